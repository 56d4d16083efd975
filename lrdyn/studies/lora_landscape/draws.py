"""Problems that the landscape is looked at on: Gaussian ones, and somebody's own."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from lrdyn.studies.lora_landscape.features import NONE, read_features
from lrdyn.studies.lora_landscape.problem import (
    CROSS_ENTROPY,
    SQUARED,
    Factors,
    LinearisedModel,
)

START = 0.5
"""Standard deviation of the entries of U and V at a start."""
CLASSES = 3
"""K of the problems with the cross-entropy."""


def draw_model(
    key: Key[Array, ""], loss: str, rows: int, cols: int, measurements: int, decay: Any
) -> LinearisedModel:
    """Gaussian derivatives, and Gaussian targets or classes that say nothing.

    Args:
        key: random key.
        loss: ``squared``, one output, or ``cross_entropy``, three.
        rows: m.
        cols: n.
        measurements: N.
        decay: lambda.

    Example:
        >>> draw_model(jax.random.key(0), "squared", 4, 5, 7, 0.1).features.shape
        (7, 1, 4, 5)
    """
    of_features, of_targets = jax.random.split(key)
    outputs = 1 if loss == SQUARED else CLASSES
    features = jax.random.normal(of_features, (measurements, outputs, rows, cols))
    if loss == CROSS_ENTROPY:
        classes = jax.random.randint(of_targets, (measurements,), 0, outputs)
        targets = 1.0 * (classes[:, None] == jnp.arange(outputs)[None]).astype(features.dtype)
    else:
        targets = jax.random.normal(of_targets, (measurements, outputs))
    return equally_weighted(features, targets, decay, loss)


def equally_weighted(features: Any, targets: Any, decay: Any, loss: str) -> LinearisedModel:
    """A model whose N examples have the weight 1 / N.

    Args:
        features: N x K x m x n.
        targets: N x K.
        decay: lambda.
        loss: ``squared`` or ``cross_entropy``.
    """
    features = jnp.asarray(features, jnp.zeros(()).dtype)
    count = len(features)
    weights = jnp.full(count, 1 / count, features.dtype)
    decay = jnp.asarray(decay, features.dtype)
    return LinearisedModel(features, jnp.asarray(targets, features.dtype), weights, decay, loss)


def model_of_file(path: str, decay: Any) -> LinearisedModel | None:
    """Somebody's own model; None where no file is given."""
    if path == NONE:
        return None
    own = read_features(path)
    return equally_weighted(own.features, own.targets, decay, own.loss)


def draw_starts(
    key: Key[Array, ""], shape: tuple[int, ...], rows: int, cols: int, rank: int
) -> Factors:
    """Gaussian factors for each entry of a shape.

    Example:
        >>> draw_starts(jax.random.key(0), (3, 2), 4, 5, 1).V.shape
        (3, 2, 5, 1)
    """
    of_U, of_V = jax.random.split(key)
    return Factors(
        START * jax.random.normal(of_U, (*shape, rows, rank)),
        START * jax.random.normal(of_V, (*shape, cols, rank)),
    )
