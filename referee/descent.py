"""Gradient descent on products of matrices, with gradients by hand."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np

Layers = list[np.ndarray]
"""W_1, ..., W_L, the first acts first."""

Record = Callable[[Layers], Any]
"""Maps layers to what is recorded."""


def chain(layers: Sequence[np.ndarray]) -> np.ndarray:
    """The product ``W_L ... W_1``."""
    return reduce(lambda whole, layer: layer @ whole, layers)


def gradients(layers: Layers, residual: np.ndarray) -> Layers:
    """``(W_L ... W_{l+1})^T R (W_{l-1} ... W_1)^T`` for each l."""
    # Both partial products are carried along: each is formed once.
    below = [np.eye(layers[0].shape[1])]
    for layer in layers[:-1]:
        below.append(layer @ below[-1])
    slopes, above = [], residual
    for layer, inputs in zip(reversed(layers), reversed(below), strict=True):
        slopes.append(above @ inputs.T)
        above = layer.T @ above
    return slopes[::-1]


def descend(
    layers: Layers,
    residual: Callable[[np.ndarray], np.ndarray],
    rate: float | Sequence[float],
    decay: Sequence[float] | np.ndarray,
    times: Sequence[int],
    record: Record,
) -> list[Any]:
    """``W <- (1 - eta lambda) W - eta gradient``; what is recorded at the times.

    Args:
        layers: at the start.
        residual: maps the product to the gradient of the loss in it.
        rate: eta, or one for each layer.
        decay: lambda of each layer.
        times: step numbers at which layers are recorded; the last one ends the run.
        record: maps layers to what is recorded.
    """
    records, rates = [], np.broadcast_to(rate, len(layers))
    for t in range(max(times) + 1):
        if t in times:
            records.append(record(layers))
        slopes = gradients(layers, residual(chain(layers)))
        parts = zip(layers, slopes, decay, rates, strict=True)
        layers = [(1 - rate * d) * w - rate * g for w, g, d, rate in parts]
    return records


def diverged(losses: np.ndarray, epsilon: float) -> bool:
    """Whether a loss is no number, or beyond the first one over machine epsilon.

    The digits of the first loss are then below the last one of the present loss.

    Args:
        losses: at the recorded steps.
        epsilon: of the precision of the run that this one repeats.
    """
    start = np.abs(losses[0])
    limit = start / epsilon if start else np.inf
    return not bool(np.all(np.abs(losses) < limit))  # a NaN is not below


def disturbed(layers: Layers, size: float) -> Layers:
    """Layers with noise of a size, the same in every call."""
    rng = np.random.default_rng(0)
    return [w + size * rng.standard_normal(w.shape) for w in layers]


def amplification(
    run: Callable[[Layers], np.ndarray], layers: Layers, scale: float, result: np.ndarray
) -> float:
    """By how much a run amplifies a disturbance of its start, from its undisturbed result.

    Args:
        run: maps layers at the start to a result.
        layers: at the undisturbed start.
        scale: of the result, and unit of the disturbance.
        result: of the undisturbed start.
    """
    # Far above the rounding of both runs, and small enough that the response is linear in it.
    size = 1e-7 * scale
    return float(np.max(np.abs(run(disturbed(layers, size)) - result)) / size)
