"""What is measured of an update W(t) - W(0), and what is compared with it."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core.spectra import effective_rank, singular_values, top_share


def whiten(inputs: Float[np.ndarray, "features n"], directions: int) -> np.ndarray:
    """Leading principal components with ``X X^T = n I``; the last ones are ill-determined noise.

    The largest entry of each principal direction is made positive: signs are arbitrary, and another
    version of LAPACK would start another run.

    Example:
        >>> whiten(np.diag([2.0, 1.0]), 1).round(6).tolist()
        [[1.414214, 0.0]]
    """
    U, _, Vh = np.linalg.svd(inputs, full_matrices=False)
    largest = np.take_along_axis(U, np.argmax(np.abs(U), axis=0)[None], axis=0)[0]
    return np.sqrt(inputs.shape[1]) * (np.sign(largest)[:, None] * Vh)[:directions]


def of_update(update: Float[Array, "m n"], count: int) -> dict[str, Array]:
    """Singular values of an update, the share of the first ones, its effective and stable rank."""
    values = singular_values(update)
    return {
        "update": values,
        "share": top_share(values, count),
        "effective_rank": effective_rank(values),
        "stable_rank": jnp.sum(values**2) / values[0] ** 2,
    }


def of_gaussian(key: Key[Array, ""], update: Float[Array, "m n"], count: int) -> dict[str, Array]:
    """The same of a Gaussian matrix of equal shape and norm: an update without a direction."""
    drawn = jax.random.normal(key, update.shape, update.dtype)
    drawn *= jnp.linalg.norm(update) / jnp.linalg.norm(drawn)
    found = of_update(drawn, count)
    return {f"{name}_gaussian": found[name] for name in ("share", "effective_rank")}
