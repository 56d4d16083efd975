"""The regularised linear autoencoder: its loss, and its minimiser in closed form.

sigma (``values``) are the singular values of the inputs X, one example a column, decreasing; lambda
is the ``decay``.

Reference: Kunin et al., Loss landscapes of regularized linear autoencoders, 2019.
"""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Weights


@checked
def autoencoder_loss(
    weights: Annotated[Weights, "h d", "d h"], inputs: Float[Array, "d n"], decay: Scalar
) -> Float[Array, ""]:
    """Loss of a linear autoencoder, ``||X - W_2 W_1 X||_F^2 + lambda (||W_1||^2 + ||W_2||^2)``.

    Args:
        weights: encoder W_1 and decoder W_2.
        inputs: X, one example a column.
        decay: lambda.

    Example:
        >>> float(autoencoder_loss((jnp.ones((1, 2)), jnp.zeros((2, 1))), jnp.eye(2), 0.5))
        3.0
    """
    decay = checks.nonnegative("decay", decay)
    encoder, decoder = weights
    rest = inputs - decoder @ (encoder @ inputs)
    return jnp.sum(rest**2) + decay * (jnp.sum(encoder**2) + jnp.sum(decoder**2))


@checked
def autoencoder_gains(values: Float[Array, "n"], decay: Scalar) -> Float[Array, "n"]:
    """Gain of a regularised autoencoder in each direction, ``(1 - lambda / sigma^2)_+``.

    Example:
        >>> autoencoder_gains(jnp.array([2.0, 1.0, 0.5]), 1.0).tolist()
        [0.75, 0.0, 0.0]
    """
    values = checks.spectrum("values", values)
    decay = checks.nonnegative("decay", decay)
    squares = values**2
    above = squares > decay
    # No division by 0: its NaN would reach derivatives through the branch that is not taken.
    return jnp.where(above, 1 - decay / jnp.where(above, squares, 1.0), 0.0)


@checked
def autoencoder_minimiser(
    inputs: Float[Array, "d n"], width: int, decay: Scalar = 0.0
) -> Float[Array, "d d"]:
    """Global minimiser ``W_2 W_1 = U_l (I - lambda Sigma_l^{-2}) U_l^T``: Theorem 1, item 5.

    ``l = min(width, #{sigma_i^2 > lambda})``.

    Args:
        inputs: X, one example a column.
        width: number of hidden units.
        decay: lambda.

    Example:
        >>> autoencoder_minimiser(jnp.diag(jnp.array([2.0, 1.0])), 1, 1.0).round(6).tolist()
        [[0.75, 0.0], [0.0, 0.0]]
    """
    checks.integer("width", width)
    decay = checks.nonnegative("decay", decay)
    left, values, _ = linalg.svd(inputs)
    left = left[:, :width]
    return (left * autoencoder_gains(values[:width], decay)[None, :]) @ left.T


@checked
def autoencoder_minimum(
    values: Float[Array, "n"], width: int, decay: Scalar = 0.0
) -> Float[Array, ""]:
    """Least value of :func:`autoencoder_loss` over all layers of one width: Theorem 1, item 5.

    ``2 lambda - lambda^2 / sigma_i^2`` for the directions kept, ``sigma_i^2`` for the others.

    Args:
        values: all singular values of X, decreasing.
        width: number of hidden units.
        decay: lambda.

    Example:
        >>> float(autoencoder_minimum(jnp.array([2.0, 1.0]), 1, 1.0))
        2.75
    """
    values = checks.spectrum("values", values)
    checks.integer("width", width)
    decay = checks.nonnegative("decay", decay)
    gains = autoencoder_gains(values[:width], decay)
    # Fit and decay of w^2 = gain; where nothing is kept that is sigma_i^2.
    costs = (1 - gains) ** 2 * values[:width] ** 2 + 2 * decay * gains
    return jnp.sum(costs) + jnp.sum(values[width:] ** 2)
