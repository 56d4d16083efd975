"""Masked objectives: losses that see only part of the entries."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lrdyn.factorization import Weights, end_to_end


def masked_loss(
    weights: Weights, target: Float[Array, "k d"], mask: Float[Array, "k d"]
) -> Float[Array, ""]:
    """Squared loss on the observed entries, ``1/2 ||M * (W_L ... W_1 - Phi)||_F^2``.

    Args:
        weights: layers ``(W_1, ..., W_L)``.
        target: Phi.
        mask: M, 1 where an entry is observed and 0 elsewhere.

    Returns:
        The loss, a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> mask = jnp.array([[1.0, 1.0], [0.0, 0.0]])
        >>> float(masked_loss((jnp.eye(2),), jnp.zeros((2, 2)), mask))
        0.5
    """
    return 0.5 * jnp.sum((mask * (end_to_end(weights) - target)) ** 2)


def observe(
    key: Key[Array, ""], shape: tuple[int, int], fraction: float | Float[Array, ""]
) -> Float[Array, "k d"]:
    """Draw a mask that observes each entry independently with probability ``fraction``.

    Args:
        key: random key.
        shape: shape of the mask.
        fraction: probability that an entry is observed.

    Returns:
        The mask M of zeros and ones.

    Example:
        >>> import jax
        >>> float(observe(jax.random.key(0), (2, 2), 1.0).sum())
        4.0
    """
    return jnp.where(jax.random.uniform(key, shape) < fraction, 1.0, 0.0)
