"""What the methods of Table 1 and optax's GaLore hold, in entries and bytes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from referee.redone import Claim, Redone, saved_sides
from referee.results import Point

Shapes = Sequence[tuple[int, int]]


class Held(NamedTuple):
    """Shapes of the arrays of a method, for Adam."""

    weights: Shapes
    """W, and the factors beside it."""
    trained: Shapes
    """What has two moments."""
    projector: Shapes = ()
    """P, where the network does not know it."""
    counters: int = 1


def full(m: int, n: int, r: int) -> Held:
    """The shapes of full training: W alone, with two moments."""
    return Held([(m, n)], [(m, n)])


def both_factors(m: int, n: int, r: int) -> Held:
    """LoRA and ReLoRA: B and A are trained."""
    return Held([(m, n), (m, r), (r, n)], [(m, r), (r, n)])


def frozen_factor(m: int, n: int, r: int) -> Held:
    """ReLoRA with P on the smaller side: the other factor is trained."""
    return Held([(m, n), (m, r), (r, n)], [(r, n) if m <= n else (m, r)])


def projected(m: int, n: int, r: int) -> Held:
    """GaLore as published: P on the smaller side, moments of ``P^T G``."""
    left = m <= n
    return Held([(m, n)], [(r, n) if left else (m, r)], [(m, r) if left else (n, r)])


def optax_galore(m: int, n: int, r: int) -> Held:
    """The shapes of optax's GaLore: P on the larger side, and its own counter beside Adam's."""
    left = m >= n
    return Held([(m, n)], [(r, n) if left else (m, r)], [(m, r) if left else (n, r)], 2)


METHODS: tuple[Callable[[int, int, int], Held], ...] = (
    full,
    both_factors,
    both_factors,
    frozen_factor,
    projected,
)
"""Full training, LoRA, ReLoRA, ReLoRA with a frozen factor, GaLore."""


def entries(shapes: Shapes) -> int:
    """Count the numbers of arrays of these shapes, in arrays."""
    return sum(np.zeros(shape).size for shape in shapes)


def state_bytes(held: Held, size: int) -> int:
    """Bytes of two moments, P, and an int32 for each counter."""
    return size * (2 * entries(held.trained) + entries(held.projector)) + 4 * held.counters


def sizes(point: Point, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """The smaller side, the larger side, r, and the bytes of a number."""
    m, n = sorted(shape)
    r = min(int(point.case["rank"]), m)
    return m, n, r, np.dtype(point.flags["dtype"]).itemsize


def weights_held(point: Point) -> Redone:
    """mn, and r (m + n) more for LoRA and ReLoRA."""
    rows, cols = point.case["weight"].shape
    m, n, r, _ = sizes(point, (rows, cols))
    theory = [m * n, *[m * n + r * (m + n)] * 3, m * n]
    counted = [entries(method(rows, cols, r).weights) for method in METHODS]
    saved = saved_sides(point, "weights_held")
    return Redone(np.array(theory), np.array(counted), 1.0, 1.0, "count", *saved)


def state_held(point: Point) -> Redone:
    """2mn, 2r (m + n), 2r (m + n), 2nr and mr + 2nr numbers for m <= n, and an int32."""
    rows, cols = point.case["weight"].shape
    m, n, r, size = sizes(point, (rows, cols))
    formulas = (2 * m * n, 2 * r * (m + n), 2 * r * (m + n), 2 * n * r, m * r + 2 * n * r)
    theory = [size * numbers + 4 for numbers in formulas]
    counted = [state_bytes(method(rows, cols, r), size) for method in METHODS]
    saved = saved_sides(point, "state_held")
    return Redone(np.array(theory), np.array(counted), 1.0, 1.0, "count", *saved)


def optax_shapes(point: Point) -> Redone:
    """P of max(m, n) x r, and moments of r x min(m, n), transposed if m < n."""
    theory, measured = [], []
    for W in point.parts("weights"):
        m, n = W.shape
        _, _, r, _ = sizes(point, W.shape)
        moment = (r, min(m, n)) if m >= n else (min(m, n), r)
        theory.append([max(m, n), r, *moment])
        held = optax_galore(m, n, r)
        measured.append([*held.projector[0], *held.trained[0]])
    saved = saved_sides(point, "optax_shapes")
    return Redone(np.array(theory), np.array(measured), 1.0, 1.0, "count", *saved)


def optax_held(point: Point) -> Redone:
    """What optax's GaLore holds for m <= n: nr + 2mr numbers, and two int32."""
    theory, measured = [], []
    for W in point.parts("weights"):
        rows, cols = W.shape
        m, n, r, size = sizes(point, W.shape)
        theory.append(size * (n * r + 2 * m * r) + 8)
        measured.append(state_bytes(optax_galore(rows, cols, r), size))
    saved = saved_sides(point, "optax_held")
    return Redone(np.array(theory), np.array(measured), 1.0, 1.0, "count", *saved)


CLAIMS: dict[str, dict[str, Claim]] = {
    "memory": {"weights_held": weights_held, "state_held": state_held},
}
"""Scenario -> claim -> both of its sides."""
OF_OPTAX: dict[str, Claim] = {"optax_shapes": optax_shapes, "optax_held": optax_held}
"""Claims of what optax's GaLore holds."""
