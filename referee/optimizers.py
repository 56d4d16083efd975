"""Optimisers of gradients by hand, and Theorem 4 for any linear map (duality)."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from referee.redone import Claim, Redone, saved_sides
from referee.results import Point, once


class MomentState(NamedTuple):
    """State of an optimiser for one array of gradients."""

    steps: int
    """Steps so far."""
    first: np.ndarray
    """Running mean of the gradients, or their weighted sum."""
    second: np.ndarray
    """Running mean of the squares, or their sum."""


def begun(gradient: np.ndarray, squares: float = 0.0) -> MomentState:
    """The state of a new run, whose sum of squares begins with a number."""
    return MomentState(0, np.zeros_like(gradient), np.full_like(gradient, squares))


Step = tuple[np.ndarray, MomentState]
"""An update, which is added, and the state after it."""
Rule = Callable[[np.ndarray, MomentState], Step]


def sgd(rate: float) -> Rule:
    """Gradient descent, ``- rate g``."""
    return lambda g, state: (-rate * g, state)


def momentum(rate: float, mu: float = 0.9) -> Rule:
    """Descent with momentum: ``M <- mu M + g``, ``- rate M``."""

    def step(g: np.ndarray, state: MomentState) -> Step:
        total = mu * state.first + g
        return -rate * total, state._replace(first=total)

    return step


def adam(rate: float, eps: float = 1e-8, b1: float = 0.9, b2: float = 0.999) -> Rule:
    """Adam: ``- rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)``."""

    def step(g: np.ndarray, state: MomentState) -> Step:
        t = state.steps + 1
        mean = b1 * state.first + (1 - b1) * g
        square = b2 * state.second + (1 - b2) * g**2
        size = np.sqrt(square / (1 - b2**t)) + eps
        return -rate * mean / (1 - b1**t) / size, MomentState(t, mean, square)

    return step


def rmsprop(rate: float, constant: float, decay: float = 0.9) -> Rule:
    """``- rate g / sqrt(v + c)`` with ``v <- decay v + (1 - decay) g^2``."""

    def step(g: np.ndarray, state: MomentState) -> Step:
        square = decay * state.second + (1 - decay) * g**2
        return -rate * g / np.sqrt(square + constant), state._replace(second=square)

    return step


def adagrad(rate: float, constant: float) -> Rule:
    """``- rate g / sqrt(v + c)`` with v the sum of all squares, which begins at c."""

    def step(g: np.ndarray, state: MomentState) -> Step:
        square = state.second + g**2
        return -rate * g / np.sqrt(square + constant), state._replace(second=square)

    return step


# Duality ----------------------------------------------------------------------------------------

NAMES = ("sgd", "momentum", "adam", "rmsprop", "adagrad")
LINEAR, ADAM, ROOTS = slice(0, 2), slice(2, 3), slice(3, 5)
PARTS = (1.0, 0.1, 0.01)
"""Parts of eps at which the gap between equal eps is measured."""


def rule_of(name: str, rate: float, eps: float) -> tuple[Rule, float]:
    """Make an optimiser, and the start of its sum of squares: beside squares stands ``eps^2``."""
    rules: dict[str, tuple[Rule, float]] = {
        "sgd": (sgd(rate), 0.0),
        "momentum": (momentum(rate), 0.0),
        "adam": (adam(rate, eps), 0.0),
        "rmsprop": (rmsprop(rate, eps**2), 0.0),
        "adagrad": (adagrad(rate, eps**2), eps**2),
    }
    return rules[name]


class OptimizedRegression(NamedTuple):
    """The mean of ``sqrt(1 + (x.theta - y)^2)``, a linear map, and how it is trained."""

    S: np.ndarray
    inputs: np.ndarray
    outputs: np.ndarray
    start: np.ndarray
    rates: np.ndarray
    eps: float
    scale: float
    times: list[int]

    def errors(self, outputs: np.ndarray) -> np.ndarray:
        """Derivatives of the loss in the outputs of the examples."""
        distance = outputs - self.outputs
        return distance / np.sqrt(1 + distance**2) / len(distance)

    def projected(self, alpha: float, part: float) -> np.ndarray:
        """``theta <- theta + alpha S^T opt(S g)`` with a part of eps, by every optimiser."""
        paths = []
        for name, rate in zip(NAMES, self.rates, strict=True):
            rule, squares = rule_of(name, rate, part * self.eps)
            theta, state, path = self.start, begun(self.S @ self.start, squares), []
            for t in range(max(self.times) + 1):
                if t in self.times:
                    path.append(theta)
                g = self.inputs.T @ self.errors(self.inputs @ theta)
                move, state = rule(self.S @ g, state)
                theta = theta + alpha * self.S.T @ move
            paths.append(path)
        return np.swapaxes(paths, 0, 1)

    def adapted(self, scale: float) -> np.ndarray:
        """``theta_0 + s S^T Lambda``, whose examples are seen as ``s S x`` by Lambda."""
        features, still, paths = scale * self.inputs @ self.S.T, self.inputs @ self.start, []
        for name, rate in zip(NAMES, self.rates, strict=True):
            rule, squares = rule_of(name, rate, self.eps)
            coordinates, path = np.zeros(len(self.S)), []
            state = begun(coordinates, squares)
            for t in range(max(self.times) + 1):
                if t in self.times:
                    path.append(self.start + scale * self.S.T @ coordinates)
                move, state = rule(features.T @ self.errors(still + features @ coordinates), state)
                coordinates = coordinates + move
            paths.append(path)
        return np.swapaxes(paths, 0, 1)


@once
def regression(point: Point) -> OptimizedRegression:
    """The regression of a point."""
    c = point.case
    numbers = (c["rates"], float(c["epsilon"]), float(c["scale"]))
    return OptimizedRegression(
        c["matrix"], c["inputs"], c["outputs"], c["start"], *numbers, point.times
    )


def response(
    of: OptimizedRegression, run: Callable[[OptimizedRegression], np.ndarray]
) -> np.ndarray:
    """By how much each optimiser's path amplifies a disturbance of start, map and data."""
    rng, size, responses = np.random.default_rng(0), 1e-7, []
    plain = run(of)
    # Two draws, the larger of both: one may miss the direction that grows.
    for _ in range(2):
        noise = lambda a: a + size * np.abs(a).max() * rng.standard_normal(a.shape)  # noqa: E731
        moved = of._replace(
            S=noise(of.S),
            inputs=noise(of.inputs),
            outputs=noise(of.outputs),
            start=noise(of.start),
        )
        apart = np.abs(run(moved) - plain).max((0, 2)) / np.abs(plain).max((0, 2))
        responses.append(apart / size)
    return np.max(responses, axis=0)


def same_paths(
    point: Point, name: str, scale: float, alpha: float, part: float, rules: slice
) -> Iterable[Redone]:
    """Compare an adapter with projected descent, for some optimisers.

    Args:
        point: the regression.
        name: of the saved sides.
        scale: s, of the adapter.
        alpha: of projected descent.
        part: part of eps with which that descends.
        rules: which optimisers.
    """
    of = regression(point)
    theory, run = of.adapted(scale)[:, rules], of.projected(alpha, part)[:, rules]
    conditions = response(of, lambda other: other.adapted(scale)[:, rules])
    saved, saved_run = (point.found[f"{name}_{side}"] for side in ("predicted", "measured"))
    for k, condition in enumerate(conditions):
        sides = (theory[:, k], run[:, k])
        yield Redone(*sides, None, condition, "equal", saved[:, k], saved_run[:, k])


def duality(point: Point) -> Iterable[Redone] | None:
    """``theta_0 + S^T Lambda``, for an S whose rows are not orthonormal."""
    S = regression(point).S
    if np.linalg.norm(S @ S.T - np.eye(len(S))) < 0.01:
        return None
    return same_paths(point, "duality", 1.0, 1.0, 1.0, slice(None))


def scale_linear(point: Point) -> Iterable[Redone]:
    """``alpha = s^2`` for SGD and momentum."""
    s = regression(point).scale
    return same_paths(point, "scale_linear", s, s**2, 1.0, LINEAR)


def scale_adam(point: Point) -> Iterable[Redone]:
    """``alpha = s`` for Adam, and ``eps / s``."""
    s = regression(point).scale
    return same_paths(point, "scale_adam", s, s, 1 / s, ADAM)


def scale_roots(point: Point) -> Iterable[Redone]:
    """``alpha = s`` for RMSProp and Adagrad, and ``eps^2 / s^2`` under the root."""
    s = regression(point).scale
    return same_paths(point, "scale_roots", s, s, 1 / s, ROOTS)


def both_trained(point: Point) -> Redone:
    """One is trained in the k entries of Lambda, the other in the n of theta."""
    of = regression(point)
    coordinates, theta = of.S @ of.start, of.S.T @ (of.S @ of.start)
    saved = saved_sides(point, "both_trained")
    counted = np.array([coordinates.size, theta.size])
    return Redone(np.array(of.S.shape), counted, 1.0, 1.0, "count", *saved)


def same_eps(point: Point) -> Redone:
    """``s rate S^T [g / (|g| + eps/s) - g / (|g| + eps)]`` between two first steps of Adam."""
    of = regression(point)
    g = of.S @ (of.inputs.T @ of.errors(of.inputs @ of.start))
    rate, s = of.rates[NAMES.index("adam")], of.scale
    theory, measured = [], []
    for part in PARTS:
        eps = part * of.eps
        bracket = g / (np.abs(g) + eps / s) - g / (np.abs(g) + eps)
        theory.append([s * rate * of.S.T @ bracket])
        first = of._replace(times=[1])
        measured.append(first.projected(s, part)[0, ADAM] - first.projected(s, part / s)[0, ADAM])
    saved = saved_sides(point, "same_eps")
    # Differences of theta are rounded like theta.
    scale = np.abs(of.start)
    return Redone(np.array(theory), np.array(measured), scale, 1.0, "equal", *saved)


CLAIMS: dict[str, dict[str, Claim]] = {
    "duality": {
        "duality": duality,
        "both_trained": both_trained,
        "scale_linear": scale_linear,
        "scale_adam": scale_adam,
        "scale_roots": scale_roots,
        "same_eps": same_eps,
    },
}
"""Scenario -> claim -> both of its sides."""
