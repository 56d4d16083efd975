"""Critical points of the two-layer factorisation: all of them, and the Hessian at each.

S are the index ``sets``, sigma (``values``) all min(k, d) singular values of the target Phi,
decreasing, and lambda is the ``decay``. Formulas of critical points hold for :func:`admissible` S.
"""

from collections.abc import Callable
from itertools import combinations
from math import comb
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Weights

Sets = Int[np.ndarray, "sets r"]
"""Index sets S, one a row: indices of singular values from 0 on, -1 for a slot that is spare."""


def index_sets(count: int, rank: int) -> Sets:
    """All sets S of at most ``rank`` of ``count`` singular values, the smaller ones first.

    Raises:
        ValueError: ``rank`` is out of range.

    Example:
        >>> index_sets(3, 2).tolist()
        [[-1, -1], [0, -1], [1, -1], [2, -1], [0, 1], [0, 2], [1, 2]]
    """
    checks.integer("count", count)
    checks.integer("rank", rank, 1, count)
    sets = 0
    for size in range(rank + 1):  # ends early: their number grows faster than any memory
        sets += comb(count, size)
        # A set is a tuple at first: eight words of Python's beside the indices.
        checks.allocation({"count": count}, (sets, rank + 8), dtype="int64")
    chosen = [s for size in range(rank + 1) for s in combinations(range(count), size)]
    return np.array([(*s, *(-1,) * (rank - len(s))) for s in chosen])


@checked
def admissible(sets: Sets, values: Float[Array, "n"], decay: Scalar) -> Bool[Array, "sets"]:
    """Which sets belong to a critical point of their own: ``sigma_i > lambda`` for all i in S.

    Args:
        sets: S.
        values: all singular values of the target, decreasing; those within round-off of the
            decay count as equal to it.
        decay: lambda.

    Example:
        >>> admissible(index_sets(2, 1), jnp.array([2.0, 1.0]), 1.0).tolist()
        [True, True, False]
    """
    values = checks.spectrum("values", values)
    sets = checks.integer("sets", sets, -1, len(values) - 1, ("...",))
    decay = checks.nonnegative("decay", decay)
    # With sigma_i = lambda the slot of i is 0, and the point is that of S without i. An SVD knows
    # sigma_i to about n eps sigma_1.
    rounding = values[0] * len(values) * jnp.finfo(values.dtype).eps
    above = values > decay + rounding
    return jnp.all(above[sets] | (sets < 0), axis=1)


@checked
def critical_points(
    target: Float[Array, "k d"], sets: Sets, decay: Scalar = 0.0
) -> tuple[Float[Array, "sets r d"], Float[Array, "sets k r"]]:
    """Layers of the balanced critical points: ``W_1 = D^{1/2} V_S^T``, ``W_2 = U_S D^{1/2}``.

    ``D = Sigma_S - lambda I``; a spare slot is zero. Theorem 1, item 3.

    Args:
        target: Phi.
        sets: S, admissible ones; the others give points that are not critical.
        decay: lambda.

    Example:
        >>> W1, W2 = critical_points(jnp.diag(jnp.array([4.0, 1.0])), index_sets(2, 1))
        >>> [[round(abs(float(x)), 4) for x in (W @ V).ravel()] for W, V in zip(W2, W1)]
        [[0.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    sets = checks.integer("sets", sets, -1, min(target.shape) - 1, ("...",))
    decay = checks.nonnegative("decay", decay)
    left, values, right = linalg.svd(target)
    # Below lambda there is no real root; such sets are not admissible.
    roots = jnp.where(sets >= 0, jnp.sqrt(jnp.maximum(values - decay, 0.0))[sets], 0.0)
    return roots[:, :, None] * right[sets], jnp.swapaxes(roots[:, :, None] * left.T[sets], 1, 2)


@checked
def critical_values(
    values: Float[Array, "n"], sets: Sets, decay: Scalar = 0.0
) -> Float[Array, "sets"]:
    """Loss at the critical point of each set.

    ``lambda sigma_i - lambda^2 / 2`` summed over S, ``sigma_i^2 / 2`` over the rest.

    Args:
        values: all singular values of the target, decreasing.
        sets: S, admissible ones.
        decay: lambda.

    Example:
        >>> critical_values(jnp.array([2.0, 1.0]), index_sets(2, 1)).tolist()
        [2.5, 0.5, 2.0]
    """
    values = checks.spectrum("values", values)
    sets = checks.integer("sets", sets, -1, len(values) - 1, ("...",))
    decay = checks.nonnegative("decay", decay)
    inside = members(sets, len(values))
    return jnp.sum(
        jnp.where(inside, (decay * values - 0.5 * decay**2)[None], 0.5 * values[None] ** 2), axis=1
    )


@checked
def members(sets: Sets, count: int) -> Bool[np.ndarray, "sets n"]:
    """Which singular values are in each set.

    Example:
        >>> members(index_sets(2, 1), 2).tolist()
        [[False, False], [True, False], [False, True]]
    """
    checks.integer("count", count)
    sets = checks.integer("sets", sets, -1, count - 1, ("...",))
    checks.allocation({"count": count}, (*sets.shape, count), dtype=bool)
    return (sets[:, :, None] == np.arange(count)).any(axis=1)


@checked
def smallest_curvature(
    values: Float[Array, "n"], sets: Sets, decay: Scalar = 0.0
) -> Float[Array, "sets"]:
    """Smallest eigenvalue of the Hessian at each balanced critical point: Theorem 1, item 3.

    The least of these, the largest of an empty set read as 0:

    * 0, if lambda = 0, or if S is not empty and r >= 2;
    * ``2 lambda`` and ``2 (sigma_i - lambda)``, if r = 1 and S = {i};
    * ``min sigma(S) - max sigma(S^c)``, if S is not empty;
    * ``lambda - max sigma(S^c)``, if |S| < r.

    Negative at every critical point that is no global minimiser: all saddles are strict.

    Args:
        values: all singular values of the target, decreasing.
        sets: S, admissible ones.
        decay: lambda.

    Example:
        >>> smallest_curvature(jnp.array([3.0, 2.0, 1.0]), index_sets(3, 1), 0.5).tolist()
        [-2.5, 1.0, -1.0, -2.0]
    """
    values = checks.spectrum("values", values)
    sets = checks.integer("sets", sets, -1, len(values) - 1, ("...",))
    decay = checks.nonnegative("decay", decay)
    rank, inside = sets.shape[1], members(sets, len(values))
    decay = jnp.asarray(decay, values.dtype)
    is_full, is_some = (sets >= 0).all(axis=1), (sets >= 0).any(axis=1)
    outside = jnp.max(jnp.where(inside, 0.0, values[None]), axis=1)
    least = jnp.min(jnp.where(inside, values[None], jnp.inf), axis=1)
    # The lines of the docstring, infinite where their condition is not met.
    bounds = [
        jnp.where((decay == 0) | (is_some & (rank >= 2)), 0.0, jnp.inf),
        jnp.where(is_some & (rank == 1), 2 * jnp.minimum(decay, least - decay), jnp.inf),
        jnp.where(is_some, least - outside, jnp.inf),
        jnp.where(is_full, jnp.inf, decay - outside),
    ]
    return jnp.min(jnp.stack(bounds), axis=0)


@checked
def hessian_spectrum(
    values: Float[Array, "n"], sets: Sets, shape: tuple[int, int], decay: Scalar = 0.0
) -> Float[Array, "sets params"]:
    """All eigenvalues of the Hessian at each balanced critical point, increasing.

    In the singular bases the Hessian falls into blocks. With ``mu_a = sigma_a`` for a slot a that
    keeps ``sigma_a``, and ``mu_a = lambda`` for a spare one:

    * ``mu_a +- sigma_j`` for each slot a and each j outside S;
    * ``2 (sigma_a - lambda)`` and ``2 lambda`` for each kept a;
    * ``sigma_a + sigma_b``, ``sigma_a + sigma_b - 2 lambda``, ``2 lambda`` and 0 for each pair of
      kept a and b: 0 turns the basis of the hidden layer;
    * ``2 lambda`` and 0 for each pair of a kept and a spare slot;
    * ``mu_a`` for each slot a, k + d - 2 min(k, d) times: the longer side.

    Args:
        values: all min(k, d) singular values of the target, decreasing.
        sets: S, admissible ones.
        shape: (k, d).
        decay: lambda.

    Raises:
        ValueError: the number of values does not fit the shape.

    Example:
        >>> hessian_spectrum(jnp.array([3.0, 1.0]), index_sets(2, 1)[1:2], (2, 2), 0.5).tolist()
        [[1.0, 2.0, 4.0, 5.0]]
    """
    checks.sizes("shape", shape, 2, 2)
    values = checks.spectrum("values", values, (min(shape),))
    sets = checks.integer("sets", sets, -1, len(values) - 1, ("...",))
    decay = checks.nonnegative("decay", decay)
    checks.allocation({"shape": shape}, (*sets.shape, sum(shape)), dtype=values.dtype)
    count = len(values)
    decay = jnp.asarray(decay, values.dtype)
    own = jnp.where(sets >= 0, values[sets], decay)[:, :, None]  # mu_a; axes set, slot, value
    other = values[None, None]
    in_set = members(sets, count)[:, None, :]
    same = sets[:, :, None] == np.arange(count)
    # Of two kept slots one pair of eigenvalues is counted at the later, one at the earlier slot.
    holder = np.argmax(same, axis=1)[:, None, :]
    later = (sets >= 0)[:, :, None] & (np.arange(sets.shape[1])[None, :, None] > holder)
    low = jnp.where(later, own + other - 2 * decay, 0.0)
    high = jnp.where(later, own + other, 2 * decay)
    low = jnp.where(same, 2 * (own - decay), low)
    # Slot and direction j outside of S: mu_a +- sigma_j (critical_points.md, Why 2).
    pairs = [jnp.where(in_set, low, own - other), jnp.where(in_set, high, own + other)]
    # On the longer side Phi has no singular values: they count as sigma_j = 0, once.
    longer = jnp.broadcast_to(own, (*sets.shape, sum(shape) - 2 * count))
    every = jnp.concatenate([*pairs, longer], axis=2)
    return jnp.sort(every.reshape(len(sets), -1), axis=1)


@checked
def hessian(
    loss: Callable[[Weights], Float[Array, ""]], weights: Weights
) -> Float[Array, "params params"]:
    """Hessian of a loss with respect to all entries of all layers, by automatic differentiation.

    Returns:
        A symmetric matrix; the entries of the first layer come first, row by row.

    Example:
        >>> hessian(lambda w: w[0][0, 0] * w[1][0, 0], (jnp.ones((1, 1)),) * 2).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    flat, restore = ravel_pytree(weights)
    return jax.hessian(lambda x: loss(restore(x)))(flat)


class CriticalPoint(NamedTuple):
    """End of a search, as :func:`find_critical_point` returns it."""

    weights: Weights
    """Where the search ended."""
    gradient: Float[Array, ""]
    """Norm of the gradient there; a search may also end at a minimum of it that is not 0."""


@checked
def find_critical_point(
    loss: Callable[[PyTree], Float[Array, ""]], start: PyTree, *, steps: int = 60
) -> CriticalPoint:
    """Search a critical point of any kind by a damped Newton method for ``grad f = 0``.

    Levenberg-Marquardt: ``x <- x - H (H^2 + mu)^{-1} g``; mu shrinks with ``||g||^2`` and is
    raised whenever a step does not reduce ``||g||``. Saddles attract it as minima do.

    Args:
        loss: f.
        start: any PyTree of arrays.
        steps: number of steps tried.

    Example:
        >>> saddle = lambda x: jnp.cos(x)
        >>> round(float(find_critical_point(saddle, jnp.array(0.3)).weights), 6)
        0.0
    """
    checks.integer("steps", steps)
    flat, restore = ravel_pytree(start)
    slope = jax.grad(lambda x: loss(restore(x)))
    # Directions that the loss does not depend on must not be divided by their round-off.
    floor = (len(flat) * jnp.finfo(flat.dtype).eps) ** 2

    def step(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, gradient, factor = state
        # One decomposition of H serves (H^2 + mu)^{-1}, too, without squaring its condition.
        curvature, basis = linalg.eigh(jax.jacfwd(slope)(x))
        damping = factor * jnp.sum(gradient**2) + floor * jnp.max(curvature**2)
        along = basis.T @ gradient
        tried = x - basis @ (curvature * along / (curvature**2 + damping))
        there = slope(tried)
        better = jnp.sum(there**2) < jnp.sum(gradient**2)
        return (
            jnp.where(better, tried, x),
            jnp.where(better, there, gradient),
            # The usual factors: less damping behind a step that helped, more behind one that did
            # not.
            jnp.where(better, 0.25, 4.0) * factor,
        )

    begin = (flat, slope(flat), jnp.ones((), flat.dtype))
    x, gradient, _ = jax.lax.fori_loop(0, steps, step, begin)
    return CriticalPoint(restore(x), jnp.linalg.norm(gradient))
