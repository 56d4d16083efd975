"""Theorem 1: the Hessian at a balanced minimum of any depth, by Kronecker products."""

from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from referee.redone import EPS, Redone, saved_as, saved_sides
from referee.results import Point, once


def jacobian(layers: list[np.ndarray]) -> np.ndarray:
    """The derivative of the product in all entries: ``vec(A X B) = (A kron B^T) vec X`` by rows."""
    parts = []
    for l in range(len(layers)):
        above = reduce(lambda A, W: W @ A, layers[l + 1 :], np.eye(len(layers[l])))
        below = reduce(lambda B, W: W @ B, layers[:l], np.eye(layers[0].shape[1]))
        parts.append(np.kron(above, below.T))
    return np.hstack(parts)


def eigenvalues(layers: list[np.ndarray]) -> np.ndarray:
    """Those of ``J^T J``, the Hessian where the loss is 0, increasing."""
    J = jacobian(layers)
    return np.linalg.eigvalsh(J.T @ J)


class SavedMinimum(NamedTuple):
    """Factorisations of a target, from a saved case."""

    target: np.ndarray
    values: np.ndarray
    """s_i, r of them not 0."""
    balanced: list[np.ndarray]
    equal: list[np.ndarray]
    others: list[list[np.ndarray]]

    @property
    def size(self) -> tuple[int, int, int]:
        """d, r and L."""
        return len(self.target), int(np.sum(self.values > 0)), len(self.balanced)

    @property
    def spectrum(self) -> np.ndarray:
        """``mu_ij``, layer by layer, and zeros."""
        d, _, depth = self.size
        squares = self.values ** (2 / depth)
        mu = np.zeros((d, d))
        for l in range(depth):
            above, below = np.ones(d), np.ones(d)
            for _ in range(depth - 1 - l):
                above = above * squares
            for _ in range(l):
                below = below * squares
            mu += np.outer(above, below)
        return np.sort(np.concatenate([mu.ravel(), np.zeros((depth - 1) * d * d)]))


@once
def minimum(point: Point) -> SavedMinimum | None:
    """The factorisations of a point, if all have the target as their product."""
    others = []
    while layers := point.parts(f"others.{len(others)}"):
        others.append(layers)
    of = SavedMinimum(
        point.case["target"],
        point.case["values"],
        point.parts("balanced"),
        point.parts("of_equal_values"),
        others,
    )
    product = lambda layers: reduce(lambda P, W: W @ P, layers)  # noqa: E731
    apart = max(float(np.abs(product(layers) - of.target).max()) for layers in others)
    return of if apart <= 64 * len(of.balanced) * point.epsilon * of.values[0] else None


def balanced_spectrum(point: Point) -> Redone | None:
    """All eigenvalues of the Hessian."""
    if (of := minimum(point)) is None:
        return None
    saved = saved_sides(point, "balanced_spectrum")
    return Redone(of.spectrum, eigenvalues(of.balanced), None, 1.0, "equal", *saved)


def nonzero_directions(point: Point) -> Redone | None:
    """The rank of ``J J^T``, where no eigenvalue is small."""
    if (of := minimum(point)) is None:
        return None
    (d, r, _), largest = of.size, of.spectrum[-1]
    if np.min(of.spectrum[of.spectrum > 0]) <= 2 * np.sqrt(EPS) * largest:
        return None
    J = jacobian(of.balanced)
    rank = int(np.sum(np.linalg.eigvalsh(J @ J.T) > np.sqrt(EPS) * largest))
    # Pairs (i, j) of which one value at least is not 0.
    pairs = 2 * d * r - r * r
    return Redone(pairs, rank, 1.0, 1.0, "count", *saved_sides(point, "nonzero_directions"))


def least_sharpness(point: Point) -> list[Redone] | None:
    """No other factorisation is below the balanced one."""
    if (of := minimum(point)) is None:
        return None
    sharpest = np.array([eigenvalues(layers)[-1] for layers in of.others])
    found = point.found
    return [
        Redone(
            np.full(len(sharpest), of.spectrum[-1]),
            sharpest,
            None,
            1.0,
            "at least",
            found["sharpness_bound"],
            found["sharpness"],
        ),
        # The least of them is that of the balanced layers themselves.
        saved_as(eigenvalues(of.balanced)[-1], found["sharpness_bound"]),
    ]


def cluster_ratio(point: Point) -> Redone | None:
    """Equal values: the largest eigenvalue over the least that is not 0."""
    if (of := minimum(point)) is None or of.size[1] == of.size[0]:
        return None
    # Of d^2 - (d - r)^2 the least one, counted from the top.
    d, r, depth = of.size
    spectrum = eigenvalues(of.equal)
    ratio = spectrum[-1] / spectrum[-(2 * d * r - r * r)]
    return Redone(depth, ratio, None, depth, "equal", *saved_sides(point, "cluster_ratio"))


CLAIMS: dict[str, dict[str, Any]] = {
    "balanced_minimum": {
        "balanced_spectrum": balanced_spectrum,
        "nonzero_directions": nonzero_directions,
        "least_sharpness": least_sharpness,
        "cluster_ratio": cluster_ratio,
    },
}
"""Scenario -> claim -> both of its sides."""
