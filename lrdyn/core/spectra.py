"""Measuring matrices: spectra, ranks and angles."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked


@checked
def singular_values(matrix: Float[Array, "... m n"]) -> Float[Array, "... k"]:
    """Singular values in decreasing order, without vectors.

    Example:
        >>> singular_values(jnp.diag(jnp.array([1.0, 3.0]))).tolist()
        [3.0, 1.0]
    """
    return linalg.over_leading_axes(linalg.svdvals, matrix)


@checked
def effective_rank(values: Float[Array, "... k"]) -> Float[Array, "..."]:
    """Effective rank ``exp(-sum_i p_i log p_i)``, ``p_i = sigma_i / sum_j sigma_j``.

    Args:
        values: singular values.

    Returns:
        A number from 1 (one non-zero value) to k (all equal); NaN where all values are zero.

    Example:
        >>> round(float(effective_rank(jnp.array([2.0, 2.0, 0.0]))), 6)
        2.0
        >>> float(effective_rank(jnp.zeros(3)))
        nan

    Reference:
        Roy and Vetterli, The effective rank, 2007.
    """
    values = checks.spectrum("values", values)
    # 0 / 0 of a matrix of zeros is NaN, which the comparison below passes on.
    shares = values / jnp.sum(values, axis=-1, keepdims=True)
    # x log x goes to 0 with x. The inner ``where`` is for the gradient, which a NaN in the branch
    # that is not taken would reach.
    is_zero = shares == 0
    terms = jnp.where(is_zero, 0.0, shares * jnp.log(jnp.where(is_zero, 1.0, shares)))
    return jnp.exp(-jnp.sum(terms, axis=-1))


@checked
def numerical_rank(
    values: Float[Array, "... k"] | Float[np.ndarray, "... k"],
    size: int,
    tolerance: float | Float[Array, ""] | None = None,
) -> Int[Array, "..."]:
    """Number of singular values above ``tolerance`` times the largest.

    Args:
        values: singular values in decreasing order.
        size: longest side of the matrix they come from.
        tolerance: relative threshold; by default ``size`` times machine epsilon, the error that
            an SVD itself makes.

    Example:
        >>> int(numerical_rank(jnp.array([1.0, 0.5, 1e-17]), 3))
        2
    """
    values = checks.spectrum("values", values)
    checks.integer("size", size)
    if tolerance is None:
        # The default of NumPy's matrix_rank, too.
        reach = size * float(jnp.finfo(values.dtype).eps)
    else:
        reach = checks.nonnegative("tolerance", tolerance)
    values = jnp.asarray(values)
    # Above, not at: of a matrix of zeros no value counts.
    return jnp.sum(values > reach * values[..., :1], axis=-1)


@checked
def top_share(values: Float[Array, "... k"], count: int) -> Float[Array, "..."]:
    """Share of the squared Frobenius norm in the first singular values.

    Args:
        values: singular values in decreasing order, not all zero.
        count: of how many.

    Example:
        >>> float(top_share(jnp.array([3.0, 1.0]), 1))
        0.9
    """
    values = checks.spectrum("values", values)
    checks.integer("count", count)
    squares = values**2
    return jnp.sum(squares[..., :count], axis=-1) / jnp.sum(squares, axis=-1)


def half_of_the_digits(dtype: Any) -> float:
    """Relative distance from which singular values and eigenvalues count as distinct: sqrt(eps).

    Rounding moves an eigenvalue by about eps l_max, and turns its eigenvectors by about eps l_max
    over the gap to the next one: half of the digits are left at this distance, which is a part of
    the largest absolute eigenvalue.

    Example:
        >>> half_of_the_digits("float64") == 2.0**-26
        True
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        checks.refuse("dtype", dtype, "a floating-point type")
    return float(np.sqrt(np.finfo(dtype).eps))


@checked
def sines(basis: Float[Array, "d a"], vectors: Float[Array, "d b"]) -> Float[Array, "b"]:
    """Sine of the angle between each unit vector and the span of an orthonormal basis.

    The sine is the norm of what the projection leaves; an arccos of the cosine would floor at
    the square root of machine epsilon.

    Example:
        >>> sines(jnp.eye(3)[:, :2], jnp.eye(3)[:, 1:]).tolist()
        [0.0, 1.0]
    """
    # First B^T v, then B: the d x d projector is never formed.
    rest = vectors - basis @ (basis.T @ vectors)
    return jnp.linalg.norm(rest, axis=0)
