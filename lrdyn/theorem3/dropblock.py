"""DropBlock: the spectral k-support norm that it induces, and the factors that attain it."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.spectra import singular_values


def _support_split(
    values: Float[Array, "d"], support: int
) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
    """Sizes s_i of the entries of k-sparse vectors whose mean is ``values``, and shares w_i/s_i."""
    dim = len(values)
    tails = jnp.cumsum(values[::-1])[::-1]
    # r is the first with w_{k-r-1} > (1/(r+1)) sum_{i >= k-r} w_i; the last always has it.
    r = np.arange(support)
    above = jnp.concatenate([values[: support - 1][::-1], jnp.full(1, jnp.inf, values.dtype)])
    first = jnp.argmax(above > tails[support - 1 - r] / jnp.asarray(r + 1, values.dtype))
    in_tail = jnp.arange(dim) >= support - 1 - first
    level = tails[support - 1 - first] / (first + 1).astype(values.dtype)
    sizes = jnp.where(in_tail, level, values)
    return sizes, values / jnp.where(sizes == 0, 1.0, sizes)


@checked
def support_norm(values: Float[Array, "d"], support: int) -> Float[Array, ""]:
    """k-support norm of a vector: the smallest convex norm that is Euclidean on k-sparse vectors.

    ``||w||^2 = sum_{i<k-r} w_i^2 + (1/(r+1)) (sum_{i>=k-r} w_i)^2`` with w decreasing and r the
    only index in 0..k-1 with ``w_{k-r-1} > (1/(r+1)) sum_{i>=k-r} w_i >= w_{k-r}``. Of singular
    values, it is the spectral k-support norm; k = 1 is the nuclear norm.

    Args:
        values: w >= 0 in decreasing order.
        support: k.

    Raises:
        ValueError: ``support`` is not an integer from 1 to d.

    Example:
        >>> w = jnp.array([4.0, 3.0])
        >>> float(support_norm(w, 1)), float(support_norm(w, 2))
        (7.0, 5.0)

    Reference:
        Argyriou, Foygel and Srebro, Sparse prediction with the k-support norm, 2012.
    """
    values = checks.spectrum("values", values)
    dim = len(values)
    checks.integer("support", support, 1, dim)
    # As its dual: the largest <w, u> over u whose k largest entries have norm 1. For each r take
    # w itself before k-r and the level beyond; each u is a lower bound, and one is the largest.
    r, index = np.arange(support)[:, None], np.arange(dim)[None, :]
    beyond = index >= support - 1 - r
    level = jnp.sum(jnp.where(beyond, values, 0.0), axis=1) / jnp.arange(
        1, support + 1, dtype=values.dtype
    )
    # A row for each r; sorted below, since only the k largest entries decide its dual norm.
    dual = jnp.where(beyond, level[:, None], values[None, :])
    sizes = jnp.sqrt(jnp.sum(jnp.sort(dual, axis=1)[:, dim - support :] ** 2, axis=1))
    bounds = jnp.sum(dual * values[None, :], axis=1) / jnp.where(sizes == 0, 1.0, sizes)
    return jnp.max(bounds)


@checked
def spectral_support_norm(matrix: Float[Array, "m n"], support: int) -> Float[Array, ""]:
    """Spectral k-support norm, :func:`support_norm` of the singular values.

    Args:
        matrix: Z.
        support: k; more than min(m, n) is the same as that (the Frobenius norm).

    Example:
        >>> float(spectral_support_norm(jnp.eye(4), 1)), float(spectral_support_norm(jnp.eye(4), 4))
        (4.0, 2.0)
    """
    checks.integer("support", support)
    return support_norm(singular_values(matrix), min(support, *matrix.shape))


@checked
def support_factors(
    matrix: Float[Array, "m n"], block: int, blocks: int
) -> tuple[Float[Array, "m h"], Float[Array, "h n"]]:
    """Factors with the least DropBlock penalty, ``((1-theta)/theta) (b/h) ||Z||_{b-support}^2``.

    With w_i = s_i p_i the split of the norm, ``Z = (1/B) sum_j U diag(s)^{1/2} P_j diag(s)^{1/2}
    V^T`` for projections P_j of rank b whose mean is diag(p). The projections are made of unit
    vectors with at most two entries ("spectral tetris"), dealt to the blocks in turn.

    Args:
        matrix: Z.
        block: b.
        blocks: B = h / b. Enough of them are needed: ``B p_i >= 2`` and ``B (1 - p_i) >= 2`` for
            all p_i other than 0 and 1, see :func:`enough_blocks`.

    Returns:
        U and V with ``U V = Z``, B blocks of equal size.

    Example:
        >>> from lrdyn.theorem3 import dropout_penalty
        >>> Z = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> U, V = support_factors(Z, 2, 12)
        >>> round(float(12 * dropout_penalty(U, V, 0.5, block=2)), 4)
        18.0
        >>> round(float(spectral_support_norm(Z, 2)) ** 2, 4)
        18.0
    """
    checks.integer("block", block)
    checks.integer("blocks", blocks)
    units = blocks * block, min(matrix.shape)
    checks.allocation({"block": block, "blocks": blocks}, units, dtype=matrix.dtype)
    left, values, right = linalg.svd(matrix)
    support = min(block, len(values))
    sizes, shares = _support_split(values, support)
    # Dealt in turn: a block gets vectors that are B apart in the list, which share no entry if
    # there are enough blocks, so that their sum of outer products is a projection.
    units = _tetris(blocks * shares, blocks * support).reshape(support, blocks, len(values))
    units = jnp.pad(units, ((0, block - support), (0, 0), (0, 0)))  # zeros fill larger blocks
    units = jnp.swapaxes(units, 0, 1).reshape(blocks * block, len(values))
    scaled = units * jnp.sqrt(sizes / blocks)[None, :]
    # U diag(s)^{1/2} f_l for each unit, and its transpose in V: (1/B) sum_j U S^{1/2} P_j S^{1/2}
    # V^T.
    return left @ scaled.T, scaled @ right


@checked
def enough_blocks(matrix: Float[Array, "m n"], block: int, blocks: int) -> Array:
    """Whether :func:`support_factors` attains the least penalty with so many blocks.

    Example:
        >>> Z = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> [bool(enough_blocks(Z, 2, blocks)) for blocks in (5, 6)]
        [False, True]
    """
    checks.integer("block", block)
    checks.integer("blocks", blocks)
    values = singular_values(matrix)
    shares = _shares(values, min(block, len(values)))
    rounding = len(values) * jnp.finfo(values.dtype).eps
    inside = (shares > rounding) & (1 - shares > rounding) & (values > rounding * values[0])
    # Shares are rounded, and not their products with the number of blocks.
    rare, common = shares >= 2 / blocks - rounding, 1 - shares >= 2 / blocks - rounding
    return jnp.all(~inside | (rare & common))


def _shares(values: Float[Array, "d"], support: int) -> Float[Array, "d"]:
    """Shares ``min(1, w_i / level)``, with the level at which their sum is k, by bisection."""

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        above = jnp.sum(jnp.minimum(values / middle, 1.0)) > support
        return jnp.where(above, middle, ends[0]), jnp.where(above, ends[1], middle)

    tiny = jnp.finfo(values.dtype).tiny
    # At the upper end the sum of w_i / level alone is at most k; tiny keeps 0 / 0 out where Z = 0.
    start = jnp.zeros_like(values[0]), jnp.sum(values) / support + tiny
    # Twice the digits: the level can be small beside the interval.
    level = jax.lax.fori_loop(0, 2 * jnp.finfo(values.dtype).nmant + 20, halve, start)[1]
    return jnp.minimum(values / level, 1.0)


def _tetris(weights: Float[Array, "d"], count: int) -> Float[Array, "count d"]:
    """Unit vectors f_l with ``sum_l f_l f_l^T = diag(weights)``, the weights of sum ``count``.

    Whole units of a weight are taken by coordinate vectors; a rest x < 1 by the pair ``sqrt(x/2)
    e_i +- sqrt(1 - x/2) e_{i+1}``, whose cross terms cancel and which takes 2 - x of the next.
    """
    dim = len(weights)
    rounding = count * dim * jnp.finfo(weights.dtype).eps

    def emit(
        state: tuple[Array, Array, Array], _: None
    ) -> tuple[tuple[Array, Array, Array], Array]:
        rest, i, second = state
        here, following = jax.nn.one_hot(jnp.stack([i, i + 1]), dim, dtype=rest.dtype)
        x = jnp.clip(rest @ here, 0.0, 1.0)
        # The last weight has no partner: rounding of the others must not leave it short of 1.
        whole = ~second & ((rest @ here >= 1 - rounding) | (i == dim - 1))
        cos, sin = jnp.sqrt(x / 2), jnp.sqrt(1 - x / 2)
        unit = jnp.where(whole, here, cos * here + jnp.where(second, -sin, sin) * following)
        taken = jnp.where(whole, here, jnp.where(second, x * here + (2 - x) * following, 0.0))
        rest = rest - taken
        i = jnp.where((whole & (rest @ here <= rounding)) | second, i + 1, i)
        return (rest, jnp.minimum(i, dim - 1), ~whole & ~second), unit

    start = (weights, jnp.asarray(0), jnp.asarray(False))
    return jax.lax.scan(emit, start, length=count)[1]
