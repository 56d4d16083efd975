"""Theorem 2 for other optimisers: in every basis, in the standard one, and Muon's law."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from referee import theorem2
from referee.descent import Layers, amplification, chain, disturbed, gradients
from referee.redone import Redone, saved_sides
from referee.results import Point, once

# Entry by entry -----------------------------------------------------------------------------------

ENTRYWISE = ("adam", "lion", "rmsprop", "adagrad")


class Corner(NamedTuple):
    """A run whose frame is the standard basis, up to order and signs."""

    bases: list[np.ndarray]
    scales: np.ndarray
    corner: np.ndarray
    rate: float
    times: list[int]
    """Steps that are compared."""
    optimizer: str

    def run(self, size: int, start: Layers, bases: list[np.ndarray] | None = None) -> np.ndarray:
        """Layers of ``size`` on ``blkdiag(Phi~, 0)``, trained in other bases and turned back."""
        turned = [np.eye(size)] * (len(start) + 1) if bases is None else bases
        sides = list(zip(turned[1:], turned[:-1], strict=True))
        goal = turned[-1] @ np.pad(self.corner, (0, size - len(self.corner))) @ turned[0].T
        layers = [after @ w @ before.T for w, (after, before) in zip(start, sides, strict=True)]
        rule, records = entrywise(self.optimizer, self.rate), []
        for t in range(max(self.times) + 1):
            if t in self.times:
                back = zip(layers, sides, strict=True)
                records.append([after.T @ w @ before for w, (after, before) in back])
            slopes = gradients(layers, chain(layers) - goal)
            moves = rule(t + 1, np.array(slopes), np.array(layers))
            layers = [w + move for w, move in zip(layers, moves, strict=True)]
        return np.array(records)

    def whole(self) -> np.ndarray:
        """Dense layers, in the frame."""
        dim = len(self.bases[0])
        return self.run(dim, self.start(dim), self.bases)

    def start(self, size: int) -> Layers:
        """``eps_l I``."""
        return [eps * np.eye(size) for eps in self.scales]


def entrywise(name: str, rate: float) -> Callable[[int, np.ndarray, np.ndarray], np.ndarray]:
    """The updates of an optimiser, which holds its state: as optax has it by default."""
    held: dict[str, Any] = {"first": 0.0, "second": 0.1 if name == "adagrad" else 0.0}

    def adam(t: int, g: np.ndarray, w: np.ndarray) -> np.ndarray:
        held["first"] = 0.9 * held["first"] + 0.1 * g
        held["second"] = 0.999 * held["second"] + 0.001 * g**2
        size = np.sqrt(held["second"] / (1 - 0.999**t)) + (1e-6 if name == "lamb" else 1e-8)
        return held["first"] / (1 - 0.9**t) / size

    def lamb(t: int, g: np.ndarray, w: np.ndarray) -> np.ndarray:
        step = adam(t, g, w)
        of_layers, of_steps = (np.sqrt(np.sum(x**2, (1, 2), keepdims=True)) for x in (w, step))
        return step * np.where((of_layers > 0) & (of_steps > 0), of_layers / of_steps, 1.0)

    def lion(t: int, g: np.ndarray, w: np.ndarray) -> np.ndarray:
        step = np.sign(0.9 * held["first"] + 0.1 * g)
        held["first"] = 0.99 * held["first"] + 0.01 * g
        return step + 1e-3 * w  # optax.lion decays by default

    def rmsprop(t: int, g: np.ndarray, w: np.ndarray) -> np.ndarray:
        held["second"] = 0.9 * held["second"] + 0.1 * g**2
        return g / np.sqrt(held["second"] + 1e-8)

    def adagrad(t: int, g: np.ndarray, w: np.ndarray) -> np.ndarray:
        held["second"] = held["second"] + g**2
        return np.where(held["second"] > 0, g / np.sqrt(held["second"] + 1e-7), 0.0)

    def adafactor(t: int, g: np.ndarray, w: np.ndarray) -> np.ndarray:
        square, beta = g**2 + 1e-30, 1 - float(t) ** -0.8
        for axis, side in ((2, "rows"), (1, "columns")):
            held[side] = beta * held.get(side, 0.0) + (1 - beta) * square.mean(axis)
        rows = held["rows"] / held["rows"].mean(1, keepdims=True)
        step = g / np.sqrt(rows[:, :, None] * held["columns"][:, None, :])
        # Clipped by its root mean square, times the rate and the size of the layer.
        step /= np.maximum(1.0, np.sqrt(np.mean(step**2, (1, 2), keepdims=True)))
        return step * np.maximum(1e-3, np.sqrt(np.mean(w**2, (1, 2), keepdims=True)))

    made = {"adam": adam, "lamb": lamb, "lion": lion, "rmsprop": rmsprop, "adagrad": adagrad}
    rule = (made | {"adafactor": adafactor})[name]
    return lambda t, g, w: -rate * rule(t, g, w)


@once
def corner_of(point: Point) -> Corner | None:
    """The run of a point, if its frame is the standard basis, up to where it is chaotic."""
    bases = point.parts("bases")
    entries = np.abs(np.array(bases))
    if not np.max(np.minimum(entries, np.abs(entries - 1))) < 1e-10:
        return None
    of = Corner(
        bases,
        point.case["scales"],
        point.case["corner"],
        float(point.case["learning_rate"]),
        point.times,
        point.flags["coordinatewise"],
    )
    # The corner decides: entry by entry what lies outside stays 0.
    size = len(of.corner) + 1
    start, path = of.start(size), of.run(size, of.start(size))
    move = 1e-7 * float(np.abs(path).max())
    inside = np.pad(np.ones_like(of.corner), (0, 1))
    inside[-1, -1] = 1
    other = [w + inside * (d - w) for w, d in zip(start, disturbed(start, move), strict=True)]
    apart = np.abs(of.run(size, other) - path).max((1, 2, 3)) / move
    count = int(np.sum(np.logical_and.accumulate(apart <= theorem2.AMPLIFIED)))
    return of._replace(times=of.times[: max(count, 1)])


def _corner_condition(of: Corner) -> float:
    size = len(of.corner) + 1
    path = of.run(size, of.start(size))
    inside = np.pad(np.ones_like(of.corner), (0, 1))
    inside[-1, -1] = 1

    def run(start: Layers) -> np.ndarray:
        kept = [w * inside for w in start]
        return of.run(size, kept)

    return amplification(run, of.start(size), float(np.abs(path).max()), path)


def corner(point: Point) -> Redone | None:
    """The corner of the dense run is a run of its own."""
    if (of := corner_of(point)) is None or of.optimizer not in ENTRYWISE:
        return None
    size = len(of.corner) + 1
    theory, whole = of.run(size, of.start(size)), of.whole()
    saved = theorem2.sides_at_times(of, point, "corner")
    scale = float(np.abs(whole).max())
    return Redone(theory, whole[..., :size, :size], scale, _corner_condition(of), "equal", *saved)


def corner_off_block(point: Point) -> Redone | None:
    """The off-diagonal blocks are 0."""
    if (of := corner_of(point)) is None:
        return None
    k, whole = len(of.corner), of.whole()
    beside = np.maximum(
        np.abs(whole[..., k:, :k]).max((-2, -1)), np.abs(whole[..., :k, k:]).max((-2, -1))
    )
    saved = point.found["corner_off_block"][: len(of.times)]
    scale = float(np.abs(whole).max())
    return Redone(0 * beside, beside, scale, _corner_condition(of), "zero", None, saved)


def corner_bulk(point: Point) -> Redone | None:
    """The bulk block is a multiple of the identity."""
    if (of := corner_of(point)) is None:
        return None
    k, whole = len(of.corner), of.whole()
    inner = whole[..., k:, k:]
    rest = np.abs(inner - inner[..., :1, :1] * np.eye(inner.shape[-1])).max((-2, -1))
    saved = point.found["corner_bulk"][: len(of.times)]
    scale = float(np.abs(whole).max())
    return Redone(0 * rest, rest, scale, _corner_condition(of), "zero", None, saved)


# Muon's law ---------------------------------------------------------------------------------------


class Aligned(NamedTuple):
    """Layers with the singular vectors of the target, under Muon with exact polar factors."""

    bases: np.ndarray
    start: np.ndarray
    modes: np.ndarray
    rate: float
    times: list[int]

    def law(self, t: int) -> np.ndarray:
        """``a_l(t)``: step by step, up while a product is below its mode, else down."""
        values = self.start.copy()
        for _ in range(t):
            values = values - self.rate * np.sign(np.prod(values, axis=0) - self.modes)
        return values

    def layers(self) -> Layers:
        """The layers at the start."""
        sides = zip(self.bases[1:], self.bases[:-1], self.start, strict=True)
        return [(after * a) @ before.T for after, before, a in sides]

    def dense(self, layers: Layers) -> np.ndarray:
        """``O_l^T W_l O_{l-1}`` at every step, with polar factors of an SVD."""
        sides = list(zip(self.bases[1:], self.bases[:-1], strict=True))
        target = (self.bases[-1] * self.modes) @ self.bases[0].T
        records = []
        for _ in range(max(self.times) + 1):
            records.append([o.T @ w @ p for w, (o, p) in zip(layers, sides, strict=True)])
            slopes = gradients(layers, chain(layers) - target)
            turned = [np.linalg.svd(g) for g in slopes]
            layers = [w - self.rate * u @ v for w, (u, _, v) in zip(layers, turned, strict=True)]
        return np.array(records)


@once
def aligned(point: Point) -> Aligned | None:
    """The run of a point, if it is aligned and starts below its target."""
    case = point.case
    of = Aligned(
        case["bases"],
        case["start"],
        case["modes"],
        float(case["learning_rate"]),
        point.times,
    )
    below = np.all(of.start > 0) and np.all(np.prod(of.start, axis=0) < of.modes)
    return of if below and not np.any(case["moved"]) else None


class Law(NamedTuple):
    """Both sides of Muon's law at every step, up to where the run becomes chaotic."""

    of: Aligned
    every: np.ndarray
    """``a_l(t)``."""
    dense: np.ndarray
    """``O_l^T W_l(t) O_{l-1}``."""
    condition: float
    """By how much a disturbance of the start has grown."""

    @property
    def last(self) -> int:
        """Last step that is compared."""
        return len(self.dense) - 1

    def saved(self, values: np.ndarray) -> np.ndarray:
        """What was saved at the recorded steps, up to the last one that is compared."""
        return values[: len(self.of.times)]


@once
def law(point: Point) -> Law | None:
    """The law and dense layers, as long as a disturbance of the start grows little."""
    if (of := aligned(point)) is None:
        return None
    start = of.layers()
    dense = of.dense(start)
    size = 1e-7 * float(np.abs(dense).max())
    apart = np.abs(of.dense(disturbed(start, size)) - dense).max((1, 2, 3)) / size
    # A gradient that is small beside one step turns far with its smallest change: modes that have
    # arrived by large steps are chaotic.
    count = max(int(np.sum(np.logical_and.accumulate(apart <= theorem2.AMPLIFIED))), 1)
    every = np.array([of.law(t) for t in range(count)])
    within = of._replace(times=[t for t in of.times if t < count])
    return Law(within, every, dense[:count], float(apart[:count].max()))


def muon_law(point: Point) -> Redone | None:
    """Layers are diagonal, and every singular value moves by eta."""
    if (redone := law(point)) is None:
        return None
    times = redone.of.times
    theory = redone.every[times][..., None] * np.eye(len(redone.of.modes))
    saved, saved_run = map(redone.saved, saved_sides(point, "muon_law"))
    dense = redone.dense[times]
    return Redone(theory, dense, None, redone.condition, "equal", saved, saved_run)


def muon_differences(point: Point) -> Redone | None:
    """Differences of two layers' singular values stay."""
    if (redone := law(point)) is None:
        return None
    values = np.diff(np.diagonal(redone.dense[redone.of.times], axis1=2, axis2=3), axis=1)
    changes = np.abs(values - values[:1])
    scale = float(np.abs(redone.every).max())
    saved = redone.saved(np.abs(point.found["differences"]))
    return Redone(0 * changes, changes, scale, redone.condition, "zero", None, saved)


def muon_arrival(point: Point) -> Redone | None:
    """The step at which each product first reaches its mode."""
    if (redone := law(point)) is None:
        return None
    of = redone.of
    least = np.arange(redone.last + 1)[:, None, None] * of.rate + of.start
    theory = first(np.prod(least, axis=1) >= of.modes)
    products = np.array([np.diagonal(chain(list(layers))) for layers in redone.dense])
    measured = first(products >= of.modes)
    # A mode that arrives later has not arrived here.
    saved, saved_run = (
        np.where(side > redone.last, -1, side) for side in saved_sides(point, "muon_arrival")
    )
    return Redone(theory, measured, 1.0, 1.0, "count", saved, saved_run)


def first(there: np.ndarray) -> np.ndarray:
    """First step at which each column is true, or -1."""
    return np.where(np.any(there, axis=0), np.argmax(there, axis=0), -1)


CLAIMS = {
    "every_basis": {
        "off_block": theorem2.off_block,
        "bulk": theorem2.bulk,
        "rho": theorem2.bulk_value,
        "reduced": theorem2.reduced,
    },
    "standard_basis": {
        "corner_off_block": corner_off_block,
        "corner_bulk": corner_bulk,
        "corner": corner,
    },
    "muon_law": {
        "muon_law": muon_law,
        "muon_differences": muon_differences,
        "muon_arrival": muon_arrival,
    },
}
"""Scenario -> claim -> both of its sides."""
DIVERGES = {"every_basis": theorem2.factorization_diverges}
"""Scenario -> whether the run of a point diverges, where nothing is claimed."""
