"""LoRA's landscape: the Hessian by complex steps, descent in its eigenvectors, the convex minimum.

The convex problem is solved by proximal gradient descent without acceleration, as long as its own
duality gap says; ends by a Newton's method that turns the sign of negative curvatures. Of the
phase diagram nothing is computed again: it has findings and no claims.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from referee.redone import EPS, Redone, saved_sides
from referee.results import Point, once

TINY = 1e-30
"""Imaginary part of a complex step: a gradient without conjugates is analytic, and the imaginary
part of its value is a column of the Hessian to the last digit."""
HALF = float(np.sqrt(EPS))
"""Half of the digits of float64."""
CONVEX_STEPS = 1000
"""Steps whose rounding the claims on values count."""
MOST = 60_000
"""Steps of proximal gradient descent here, at most."""


class Model(NamedTuple):
    """A linearised model with decay, from a saved case."""

    G: np.ndarray
    """Derivatives: examples, outputs, rows, columns."""
    y: np.ndarray
    weights: np.ndarray
    decay: float

    @property
    def is_squared(self) -> bool:
        """Whether the loss is the squared error: one output, or targets that are no classes."""
        several = self.y.shape[1] > 1
        one_hot = np.all(np.sort(self.y, axis=1)[:, :-1] == 0) and np.all(self.y.max(axis=1) == 1)
        return not (several and one_hot)

    def outputs(self, W: np.ndarray) -> np.ndarray:
        """``<G_kc, W>``."""
        return np.tensordot(self.G, W, 2)

    def slopes(self, z: np.ndarray) -> np.ndarray:
        """Errors, or probabilities less labels."""
        if self.is_squared:
            return z - self.y
        powers = np.exp(z - np.real(z).max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True) - self.y

    def residual(self, W: np.ndarray) -> np.ndarray:
        """R."""
        return np.tensordot(self.weights[:, None] * self.slopes(self.outputs(W)), self.G, 2)

    def data_loss(self, W: np.ndarray) -> float:
        """The loss of the data, without decay."""
        z = self.outputs(W)
        if self.is_squared:
            return float(self.weights @ np.sum((z - self.y) ** 2, axis=1)) / 2
        top = z.max(axis=1)
        each = top + np.log(np.exp(z - top[:, None]).sum(axis=1)) - np.sum(z * self.y, axis=1)
        return float(self.weights @ each)

    def loss(self, U: np.ndarray, V: np.ndarray) -> float:
        """F."""
        return self.data_loss(U @ V.T) + self.decay / 2 * float(np.sum(U**2) + np.sum(V**2))

    def dual(self, W: np.ndarray) -> float:
        """A lower bound of F: the dual at the slopes, which are scaled until it is feasible.

        Of the squared error ``(||y||^2 - ||y + c e||^2) / 2``, of the cross-entropy the entropy of
        the mixture ``(1 - c) labels + c probabilities``.
        """
        u = self.slopes(self.outputs(W))
        norm = np.linalg.norm(self.residual(W), 2)
        c = min(1.0, self.decay / norm) if norm > 0 else 1.0
        if self.is_squared:
            each = (np.sum(self.y**2, axis=1) - np.sum((self.y + c * u) ** 2, axis=1)) / 2
        else:
            mixed = np.maximum(self.y + c * u, 0.0)
            each = -np.sum(mixed * np.log(np.where(mixed > 0, mixed, 1.0)), axis=1)
        return float(self.weights @ each)

    def gradient(self, x: np.ndarray, rank: int) -> np.ndarray:
        """The gradient of F, of a complex point too."""
        U, V = self.factors(x, rank)
        R = self.residual(U @ V.T)
        return np.concatenate(
            [np.ravel(R @ V + self.decay * U), np.ravel(R.T @ U + self.decay * V)]
        )

    def factors(self, x: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """U and V of a vector."""
        rows = self.G.shape[2]
        return x[: rows * rank].reshape(rows, rank), x[rows * rank :].reshape(-1, rank)

    def hessian(self, x: np.ndarray, rank: int) -> np.ndarray:
        """The Hessian, a column by each complex step."""
        steps = x + 1j * TINY * np.eye(len(x))
        whole = np.array([np.imag(self.gradient(step, rank)) / TINY for step in steps])
        return (whole + whole.T) / 2


class Found(NamedTuple):
    """The convex minimum, and ends of descent."""

    model: Model
    minimum: float
    rank: int
    """Of the convex minimiser."""
    starts: list[tuple[np.ndarray, np.ndarray]]
    ends: list[tuple[np.ndarray, np.ndarray]]
    certified: np.ndarray
    deficient: np.ndarray
    unit: float
    """F at 0."""


def model_of(point: Point) -> Model:
    """The model of a point."""
    parts = (point.case[f"model.{name}"] for name in ("features", "targets", "weights"))
    G, y, weights = (np.asarray(part, float) for part in parts)
    return Model(G, y, weights, float(point.case["model.decay"]))


def starts_of(point: Point) -> list[tuple[np.ndarray, np.ndarray]]:
    """U and V of every start."""
    both = (np.asarray(point.case[f"starts.{name}"], float) for name in "UV")
    return list(zip(*both, strict=True))


def rank_of(W: np.ndarray) -> int:
    """Singular values above a hundred times half of the digits of the largest."""
    values = np.linalg.svd(W, compute_uv=False)
    return int(np.sum(values > 100 * HALF * values[0]))


def convex_minimum(model: Model) -> tuple[float, int]:
    """The least ``f(W) + lambda ||W||_*`` and its rank, by plain proximal gradient descent."""
    rows = (np.sqrt(model.weights)[:, None, None, None] * model.G).reshape(model.y.size, -1)
    step, W = 1 / np.linalg.norm(rows, 2) ** 2, np.zeros(model.G.shape[2:])
    unit, value = model.data_loss(W), np.inf
    for count in range(MOST):
        left, values, right = np.linalg.svd(W - step * model.residual(W), full_matrices=False)
        kept = np.maximum(values - step * model.decay, 0)
        W = (left * kept) @ right
        if count % 50 == 0:
            value = model.data_loss(W) + model.decay * kept.sum()
            if value - model.dual(W) <= 4 * EPS * unit:
                break
    return float(value), rank_of(W)


def descend(model: Model, U: np.ndarray, V: np.ndarray) -> np.ndarray:
    """Newton's method in the eigenvectors of the Hessian, negative curvatures turned."""
    rank, x = U.shape[1], np.concatenate([U.ravel(), V.ravel()])
    damping, value = 1.0, model.loss(U, V)
    for _ in range(500):
        slope = model.gradient(x, rank)
        if np.linalg.norm(slope) <= 1e-13 * max(1.0, model.decay):
            break
        values, vectors = np.linalg.eigh(model.hessian(x, rank))
        move = -vectors @ ((vectors.T @ slope) / (np.abs(values) + damping))
        after = model.loss(*model.factors(x + move, rank))
        smaller = np.linalg.norm(model.gradient(x + move, rank)) < np.linalg.norm(slope)
        level = abs(after - value) <= 8 * EPS * abs(value)
        if (after < value and not level) or (level and smaller):
            x, value, damping = x + move, after, max(damping / 5, 1e-14)
        elif damping > 1e10:
            break
        else:
            damping *= 5
    return x


@once
def found(point: Point) -> Found:
    """The convex minimum and the ends of own descents."""
    model, starts, ends = model_of(point), starts_of(point), []
    minimum, rank = convex_minimum(model)
    size = np.linalg.norm(model.residual(np.zeros(model.G.shape[2:])), 2)
    certified, deficient = [], []
    for U, V in starts:
        width = U.shape[1]
        x = descend(model, U, V)
        ends.append(model.factors(x, width))
        W = ends[-1][0] @ ends[-1][1].T
        resting = np.linalg.norm(model.gradient(x, width)) <= HALF * size
        certified.append(
            resting and np.linalg.norm(model.residual(W), 2) <= model.decay * (1 + HALF)
        )
        curvature = np.linalg.eigvalsh(model.hessian(x, width))
        bends = curvature[0] >= -HALF * abs(curvature[-1])
        deficient.append(resting and bends and rank_of(W) < width)
    unit = model.data_loss(np.zeros(model.G.shape[2:]))
    return Found(model, minimum, rank, starts, ends, np.array(certified), np.array(deficient), unit)


def spectrum(point: Point) -> Redone:
    """The Hessian with a column of zeros added, and without it."""
    model, (U, V) = model_of(point), starts_of(point)[0]
    rank = U.shape[1]
    values = np.linalg.svd(model.residual(U @ V.T), compute_uv=False)
    beside = [model.decay] * abs(len(U) - len(V))
    old = np.linalg.eigvalsh(model.hessian(np.concatenate([U.ravel(), V.ravel()]), rank))
    theory = np.sort([*old, *(model.decay + values), *(model.decay - values), *beside])
    wide = np.concatenate([np.ravel(np.pad(W, ((0, 0), (0, 1)))) for W in (U, V)])
    run = np.linalg.eigvalsh(model.hessian(wide, rank + 1))
    return Redone(theory, run, None, 1.0, "equal", *saved_sides(point, "spectrum"))


def bounds(point: Point) -> list[Redone]:
    """The dual at 0, at the starts and at ends, own ones and saved ones."""
    here, saved = found(point), point.found["bounds"]
    products = [np.zeros(here.model.G.shape[2:]), *(U @ V.T for U, V in here.starts)]
    mine = np.array([here.model.dual(W) for W in products])
    of_ends = np.array([here.model.dual(U @ V.T) for U, V in here.ends])
    minimum, there = np.full(len(mine), here.minimum), np.full(len(mine), point.found["minimum"])
    least = np.full(len(of_ends), here.minimum)
    return [
        Redone(minimum, mine, here.unit, 1.0, "at most", there, saved[: len(mine)]),
        Redone(least, of_ends, here.unit, 1.0, "at most"),
        Redone(least, saved[len(mine) :], here.unit, 1.0, "at most"),
    ]


def _values(point: Point, name: str) -> Iterator[Redone]:
    """The minimum against F at own ends, and at saved ones."""
    here = found(point)
    mine = np.array([here.model.loss(U, V) for U, V in here.ends])[getattr(here, name)]
    saved = point.found["value"][point.found[name]]
    for values in filter(len, (mine, saved)):
        theory, there = (np.full(len(values), x) for x in (here.minimum, point.found["minimum"]))
        yield Redone(theory, values, here.unit, 1.0, "equal", there, None, steps=CONVEX_STEPS)


def certified(point: Point) -> list[Redone] | None:
    """F at ends with ``||R||_2 <= lambda``."""
    return [*_values(point, "certified")] or None


def deficient(point: Point) -> list[Redone] | None:
    """F at second-order ends of a rank below r, where r exceeds that of the convex minimiser."""
    here = found(point)
    if here.starts[0][0].shape[1] <= here.rank:
        return None
    return [*_values(point, "deficient")] or None


def convex_rank(point: Point) -> Redone | None:
    """The rank of UV^T at certified ends."""
    here = found(point)
    ends = [end for end, holds in zip(here.ends, here.certified, strict=True) if holds]
    ranks = np.array([rank_of(U @ V.T) for U, V in ends])
    if not len(ranks):
        return None
    theory, there = (np.full(len(ranks), x) for x in (here.rank, point.found["convex_rank"]))
    return Redone(theory, ranks, 1.0, 1.0, "count", there, None)


CLAIMS: dict[str, dict[str, Any]] = {
    "certificate": {
        "spectrum": spectrum,
        "bounds": bounds,
        "certified": certified,
        "deficient": deficient,
        "convex_rank": convex_rank,
    }
}
"""Scenario -> claim -> both of its sides."""
