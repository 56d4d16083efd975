"""Spectra of the last hidden activations H, as they are and without the free scale of the units.

H is h x n, a hidden unit a row and an example a column, and W the last layer. Dropout of the hidden
units finds ``W D, D^-1 H`` as good as ``W, H`` for every positive diagonal D: the raw singular
values of H say as much of D as of the product.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import linalg
from lrdyn.core.spectra import effective_rank


def balanced(hidden: Float[Array, "h n"], last: Float[Array, "m h"]) -> Float[Array, "h n"]:
    """Rows of H over ``(||h_i|| / ||w_i||)^{1/2}``: as large as the columns of W that read them.

    A unit that is 0, or that nothing reads, is 0.

    Example:
        >>> balanced(jnp.array([[4.0, 0.0]]), jnp.array([[1.0]])).tolist()
        [[2.0, 0.0]]
    """
    rows, columns = jnp.linalg.norm(hidden, axis=1), jnp.linalg.norm(last, axis=0)
    alive = (rows > 0) & (columns > 0)
    ratio = jnp.sqrt(jnp.where(alive, columns, 0.0) / jnp.where(alive, rows, 1.0))
    return ratio[:, None] * hidden


def spectra(hidden: Float[Array, "h n"], last: Float[Array, "m h"]) -> dict[str, Array]:
    """Singular values of H / sqrt(n), raw and balanced, and the effective rank of both.

    Example:
        >>> found = spectra(jnp.diag(jnp.array([2.0, 1.0])), jnp.eye(2))
        >>> round(float(found["activations_rank"]), 3), round(float(found["balanced_rank"]), 3)
        (1.89, 1.97)
    """
    rows = hidden / jnp.sqrt(1.0 * hidden.shape[1])
    if rows.shape[0] < rows.shape[1]:  # a triangular factor has the same rows but for a rotation
        rows = jnp.linalg.qr(rows.T, mode="r").T
    found = {}
    for name, matrix in (("activations", rows), ("balanced", balanced(rows, last))):
        values = linalg.svdvals(matrix)
        found |= {name: values, f"{name}_rank": effective_rank(values)}
    return found
