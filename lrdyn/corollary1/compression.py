"""Corollary 1 (arXiv 2503.19859): the compressed network and its error."""

import math
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Decay, Scalar, Weights, decays, end_to_end
from lrdyn.theorem2.subspace import (
    Frame,
    Square,
    product_of_others,
    reduced_start,
    start_scales,
    unscaled_product,
)


class CompressedNetwork(NamedTuple):
    """``f_C = left @ W_L ... W_1 @ right^T`` with small inner layers."""

    left: Float[Array, "k s"]
    """U_{L,1}, the first s columns of U_L."""
    inner: Annotated[Weights, "s s"]
    """Layers ``Wt_l``, s x s."""
    right: Float[Array, "d s"]
    """V_{1,1}, the first s columns of V_1."""


@checked
def checked_network(network: CompressedNetwork) -> CompressedNetwork:
    """Check that the factors of a compressed network fit to one another, and return it.

    Example:
        >>> checked_network(CompressedNetwork(jnp.ones((3, 2)), (jnp.eye(2),), jnp.ones((3, 1))))
        Traceback (most recent call last):
        ValueError: network.right: got shape (3, 1), wanted (d, 2)
    """
    return network


@checked
def compress(frame: Frame, inner: tuple[Float[Array, "s s"], ...]) -> CompressedNetwork:
    """Put reduced layers between the outer factors of a frame.

    Args:
        frame: frame of Theorem 2.
        inner: reduced layers; their size s = 2 r^ chooses how many columns are used.

    Example:
        >>> from lrdyn.theorem2.subspace import Frame
        >>> compress(Frame(jnp.eye(3)[None], jnp.eye(3)[None]), (jnp.ones((2, 2)),)).left.shape
        (3, 2)
    """
    size = len(inner[0])
    checks.integer("the size of inner", size, 1, frame.left.shape[1])
    # Between two layers V_{l+1} = U_l: their product is I, and only the outermost are left.
    return CompressedNetwork(frame.left[-1, :, :size], inner, frame.right[0, :, :size])


@checked
def compressed_product(network: CompressedNetwork) -> Float[Array, "k d"]:
    """The map that a compressed network computes, ``U_{L,1} Wt_L ... Wt_1 V_{1,1}^T``.

    Example:
        >>> half = jnp.eye(2)[:, :1]
        >>> compressed_product(CompressedNetwork(half, (jnp.ones((1, 1)),), half)).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    return network.left @ end_to_end(network.inner) @ network.right.T


class GradientBasis(NamedTuple):
    """Directions in which the first layer of a run will move, from one gradient."""

    columns: Float[Array, "d s"]
    """Orthonormal; s = 2 r. They span ``V_{1,1}`` of Theorem 2, exactly or approximately."""
    gap: Float[Array, ""]
    """``sigma_{r+1} / sigma_r`` of the gradient: 0 if it has rank r."""


@checked
def gradient_basis(weights: Square, gradient: Float[Array, "d d"], rank: int) -> GradientBasis:
    """Basis of the moving subspace from the gradient at an orthogonal start.

    With G the gradient with respect to ``W_1``: the top-r right singular vectors of G, and those of
    ``G^T W_1``, in two decompositions. (In one of the stack ``[G; G^T W_1]`` the second block is
    drowned for small eps.) Exact, and the gap at most :func:`gradient_gap_bound`, if all entries of
    a target of rank r are observed; otherwise the closer the smaller the gap.

    Args:
        weights: square layers at the start, of which ``W_1`` alone is used.
        gradient: G.
        rank: r.

    Example:
        >>> target = jnp.diag(jnp.array([1.0, 0.0, 0.0]))
        >>> weights = (0.1 * jnp.eye(3)[jnp.array([1, 2, 0])], 0.1 * jnp.eye(3))
        >>> loss = lambda layers: 0.5 * jnp.sum((layers[1] @ layers[0] - target) ** 2)
        >>> basis = gradient_basis(weights, jax.grad(loss)(weights)[0], 1)
        >>> jnp.abs(basis.columns).round(6).tolist(), round(float(basis.gap), 3)
        ([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], 0.01)
    """
    checks.integer("rank", rank, 1, len(gradient) - 1)
    # Each space from a decomposition of its own, then one basis of both.
    right, values = _right_subspace(gradient, rank)
    turned, _ = _right_subspace(gradient.T @ weights[0], rank)
    both = jnp.concatenate([right, turned], axis=1)
    return GradientBasis(linalg.orthogonal_factor(both), values[rank] / values[rank - 1])


def _right_subspace(
    matrix: Float[Array, "m n"], rank: int
) -> tuple[Float[Array, "n r"], Float[Array, "k"]]:
    """Orthonormal columns that span the top-r right singular vectors, and all singular values.

    LAPACK counts off-diagonal entries below 100 (float32: 10) roundings of sigma_1 as zero, which
    turns singular vectors by as much. In the range of M^T U_r what is turned out of the subspace is
    sigma_{r+1} / sigma_r of that.
    """
    left, values, _ = linalg.svd(matrix)
    return linalg.orthogonal_factor(matrix.T @ left[:, :rank]), values


@checked
def gradient_gap_bound(
    scales: Float[Array, "depth"], smallest: Float[Array, ""]
) -> Float[Array, ""]:
    """Largest gap of a gradient from which nothing is hidden, ``e / (sigma_r - e)``.

    ``e = prod eps_l``. By Weyl's inequality, since ``G = (W_L ... W_2)^T (W_L ... W_1 - Phi)``.

    Args:
        scales: ``(eps_1, ..., eps_L)``.
        smallest: sigma_r of the target; infinite if not above e.

    Example:
        >>> round(float(gradient_gap_bound(jnp.full(2, 0.1), jnp.array(1.0))), 4)
        0.0101
    """
    smallest = checks.nonnegative("smallest", smallest)
    start = jnp.prod(scales)  # the spectral norm of (W_L ... W_1)(0)
    return jnp.where(smallest > start, start / jnp.abs(smallest - start), jnp.inf)


@checked
def gradient_network(
    weights: Annotated[Weights, "k d"], basis: Float[Array, "d s"]
) -> CompressedNetwork:
    """Compressed network at the start of Corollary 1, from an orthogonal start and a basis.

    ``f_C = U (eps_L I) ... (eps_1 I) V^T`` with V the basis and ``U = W_L ... W_1 V / prod eps_l``:
    the full network on the basis.

    Args:
        weights: layers at the start, multiples of matrices with orthonormal columns.
        basis: orthonormal columns, from :func:`gradient_basis`.

    Example:
        >>> network = gradient_network((2 * jnp.eye(2), 3 * jnp.eye(2)), jnp.eye(2)[:, :1])
        >>> compressed_product(network).tolist()
        [[6.0, 0.0], [0.0, 0.0]]
    """
    inner = reduced_start(start_scales(weights), basis.shape[1])
    return CompressedNetwork(unscaled_product(weights) @ basis, inner, basis)


@checked
def compression_error(rho: Float[Array, "... depth"], dim: int, rank: int) -> Float[Array, "..."]:
    """Error of the compressed network, ``||f - f_C||_F = sqrt(d - 2 r^) prod_l |rho_l|``.

    Args:
        rho: bulk singular values, from :func:`lrdyn.rho`.
        dim: d.
        rank: r^ >= r, half the size of the inner layers.

    Example:
        >>> float(compression_error(jnp.array([0.5, 0.5]), 8, 2))
        0.5
    """
    checks.integer("rank", rank, 0)
    checks.integer("dim", dim, 2 * rank)
    return jnp.sqrt(dim - 2.0 * rank) * jnp.abs(jnp.prod(rho, axis=-1))


@checked
def compression_bound(scales: Float[Array, "depth"], dim: int, rank: int) -> Float[Array, ""]:
    """Bound of Corollary 1, ``||f - f_C||_F <= sqrt(d - 2 r^) prod_l eps_l``.

    It holds at all times if :func:`bulk_contracts` is at most 1.

    Args:
        scales: ``(eps_1, ..., eps_L)``.
        dim: d.
        rank: r^ >= r, half the size of the inner layers.

    Example:
        >>> float(compression_bound(jnp.ones(3), 8, 2))
        2.0
    """
    # The error where every rho_l is as at the start (corollary1.md, Why 3).
    return compression_error(scales, dim, rank)


@checked
def bulk_contracts(
    scales: Float[Array, "depth"], learning_rate: Scalar, weight_decay: Decay, steps: int
) -> Float[Array, ""]:
    """Largest ``|1 - eta lambda_l - eta prod_{k != l} rho_k^2|`` over layers and steps.

    The condition of the bound of Corollary 1 is that this is at most 1.

    Args:
        scales: ``(eps_1, ..., eps_L)``, where rho starts.
        learning_rate: eta.
        weight_decay: lambda, or one for each layer.
        steps: number of steps, 1 or more.

    Example:
        >>> float(bulk_contracts(jnp.ones(2), 0.5, 0.0, 2))
        0.875
    """
    learning_rate = checks.nonnegative("learning_rate", learning_rate)
    weight_decay = decays(weight_decay)
    checks.integer("steps", steps)

    def step(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        bulk, largest = state
        factors = 1 - learning_rate * (weight_decay + product_of_others(bulk) ** 2)
        return bulk * factors, jnp.maximum(largest, jnp.max(jnp.abs(factors)))

    return jax.lax.fori_loop(0, steps, step, (scales, jnp.zeros((), scales.dtype)))[1]


def parameter_counts(dim: int, depth: int, rank: int) -> dict[str, int]:
    """Trained parameters: full, compressed with trained outer factors, and inner layers only.

    ``L d^2``, ``4 d r^ + 4 L r^^2`` and ``4 L r^^2``.

    Args:
        dim: d.
        depth: L.
        rank: r^, half the size of the inner layers.

    Example:
        >>> counts = parameter_counts(1000, 3, 5)
        >>> counts["full"] // counts["compressed"]
        147
    """
    checks.integer("dim", dim)
    checks.integer("depth", depth)
    checks.integer("rank", rank)
    # Outer factors are d x 2 r^, inner layers 2 r^ x 2 r^.
    inner = depth * (2 * rank) ** 2
    return {"full": depth * dim**2, "compressed": 2 * dim * 2 * rank + inner, "inner": inner}


def count(tree: object) -> int:
    """Number of scalars in a PyTree of arrays (or of shapes).

    Example:
        >>> count((jnp.ones((2, 3)), jnp.ones(4)))
        10
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
