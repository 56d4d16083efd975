"""Optimisers that do not see the basis, by hand, of dense layers and of reduced ones.

``W <- W - eta (D + lambda W)`` with a direction D. A reduced layer of 2r + 1 stands for one of d:
its last entry counts d - 2r times in a norm.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from referee.descent import Layers, Record, chain, gradients

MOMENTUM, CLIP, NORM_EPS = 0.9, 0.1, 1e-6
MUON_MOMENTUM, MUON_EPS = 0.95, 1e-8
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
"""Coefficients of Newton and Schulz's iteration in Muon."""

Direction = Callable[[int, Layers], Layers]
"""Maps the number of a step, from 1, and the gradients to what is subtracted eta times."""


def counts(size: int, bulk: int) -> np.ndarray:
    """How often the entries of a reduced layer of ``size`` count: the last one ``bulk`` times."""
    of_entries = np.ones((size, size))
    of_entries[-1, -1] = bulk
    return of_entries


def direction(name: str, weigh: np.ndarray) -> Direction:
    """What an optimiser makes of gradients; it holds its state.

    Args:
        name: the word of ``--optimizer``.
        weigh: how often each entry of a layer counts in a norm.
    """
    held: dict[str, Layers] = {}

    def norm(layer: np.ndarray) -> float:
        return float(np.sqrt(np.sum(weigh * layer**2)))

    def sums(name: str, slopes: Layers, keep: float, take: float) -> Layers:
        before = held.get(name, [np.zeros_like(g) for g in slopes])
        held[name] = [keep * m + take * g for m, g in zip(before, slopes, strict=True)]
        return held[name]

    def whole(slopes: Layers) -> float:
        return float(np.sqrt(sum(norm(g) ** 2 for g in slopes)))

    def muon(t: int, slopes: Layers) -> Layers:
        b = MUON_MOMENTUM
        means = sums("mean", slopes, b, 1 - b)
        made = []
        for mean, slope in zip(means, slopes, strict=True):
            x = b * mean / (1 - b ** (t + 1)) + (1 - b) * slope / (1 - b**t)
            x = x / (norm(x) + MUON_EPS)
            for _ in range(5):
                # By singular values: another arithmetic than products of matrices.
                left, values, right = np.linalg.svd(x)
                x = left * (LINEAR * values + CUBIC * values**3 + QUINTIC * values**5) @ right
            made.append(x)
        return made

    def nesterov(t: int, slopes: Layers) -> Layers:
        totals = sums("total", slopes, MOMENTUM, 1.0)
        return [MOMENTUM * total + g for total, g in zip(totals, slopes, strict=True)]

    directions: dict[str, Direction] = {
        "gradient_descent": lambda t, slopes: slopes,
        "momentum": lambda t, slopes: sums("total", slopes, MOMENTUM, 1.0),
        "nesterov": nesterov,
        "clipped": lambda t, slopes: [g * min(1.0, CLIP / whole(slopes)) for g in slopes],
        "normalized": lambda t, slopes: [g / (whole(slopes) + NORM_EPS) for g in slopes],
        "muon": muon,
    }
    return directions[name]


def train(
    layers: Layers,
    residual: Callable[[np.ndarray], np.ndarray],
    rule: Direction,
    rate: float,
    decay: Sequence[float] | np.ndarray,
    times: Sequence[int],
    record: Record,
) -> list[Any]:
    """What is recorded at the times of a run.

    Args:
        layers: at the start.
        residual: maps the product to the gradient of the loss in it.
        rule: of :func:`direction`, new for each run.
        rate: eta.
        decay: lambda of each layer.
        times: step numbers at which layers are recorded; the last one ends the run.
        record: maps layers to what is recorded.
    """
    records = []
    for t in range(max(times) + 1):
        if t in times:
            records.append(record(layers))
        chosen = rule(t + 1, gradients(layers, residual(chain(layers))))
        parts = zip(layers, chosen, decay, strict=True)
        layers = [w - rate * (d + lam * w) for w, d, lam in parts]
    return records
