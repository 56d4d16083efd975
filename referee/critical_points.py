"""Theorem 1: every critical point of two layers, its value and its Hessian."""

from collections.abc import Callable, Iterable
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import root

from referee.redone import EPS, Redone, largest, saved_as, saved_sides
from referee.results import Point, once


class SavedFactorization(NamedTuple):
    """A two-layer factorisation with decay, from a saved case."""

    target: np.ndarray
    decay: float
    width: int
    left: np.ndarray
    values: np.ndarray
    right: np.ndarray

    @property
    def sets(self) -> list[tuple[int, ...]]:
        """All sets of at most r indices, by size."""
        n = len(self.values)
        return [s for size in range(self.width + 1) for s in combinations(range(n), size)]

    def admissible(self, indices: Iterable[int]) -> bool:
        """Whether a set has a critical point of its own."""
        # An SVD knows sigma_i to about n eps sigma_1, and sigma_i = lambda has the point of S
        # without i.
        rounding = self.values[0] * len(self.values) * EPS
        return all(self.values[i] > self.decay + rounding for i in indices)

    def layers(self, indices: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """``W_1 = (Sigma_S - lambda)^(1/2) V_S^T`` and ``W_2 = U_S (Sigma_S - lambda)^(1/2)``."""
        first = np.zeros((self.width, self.target.shape[1]))
        second = np.zeros((self.target.shape[0], self.width))
        for slot, i in enumerate(indices):
            # Sets that are not admissible are asked, too, and put to 0 later.
            size = np.sqrt(max(self.values[i] - self.decay, 0.0))
            first[slot], second[:, slot] = size * self.right[i], size * self.left[:, i]
        return first, second

    def gradient(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradient of ``1/2 ||W_2 W_1 - Phi||^2 + lambda/2 (||W_1||^2 + ||W_2||^2)``."""
        error = second @ first - self.target
        return second.T @ error + self.decay * first, error @ first.T + self.decay * second

    def loss(self, first: np.ndarray, second: np.ndarray) -> float:
        """``1/2 ||W_2 W_1 - Phi||^2 + lambda/2 (||W_1||^2 + ||W_2||^2)``."""
        sizes = np.sum(first**2) + np.sum(second**2)
        return float(np.sum((second @ first - self.target) ** 2) + self.decay * sizes) / 2

    def hessian(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The derivative of the gradient along every entry, by the product rule."""
        # d(W_2^T R + lambda W_1) and d(R W_1^T + lambda W_2), along one entry at a time.
        error, rows = second @ first - self.target, []
        for layer, moved in ((0, first), (1, second)):
            for place in np.ndindex(moved.shape):
                in_first, in_second = np.zeros_like(first), np.zeros_like(second)
                (in_first if layer == 0 else in_second)[place] = 1.0
                change = in_second @ first + second @ in_first
                of_first = in_second.T @ error + second.T @ change + self.decay * in_first
                of_second = change @ first.T + error @ in_first.T + self.decay * in_second
                rows.append(np.concatenate([of_first.ravel(), of_second.ravel()]))
        return np.array(rows)

    def spectrum(self, indices: tuple[int, ...]) -> np.ndarray:
        """All eigenvalues of the Hessian, by blocks."""
        sigma, decay, n = self.values, self.decay, len(self.values)
        spare = self.width - len(indices)
        slots = [*(sigma[i] for i in indices), *[decay] * spare]
        eigenvalues = [
            mu + sign * sigma[j]
            for mu in slots
            for j in range(n)
            if j not in indices
            for sign in (1, -1)
        ]
        for i in indices:
            eigenvalues += [2 * (sigma[i] - decay), 2 * decay]
        for i, j in combinations(indices, 2):
            both = sigma[i] + sigma[j]
            eigenvalues += [both, both - 2 * decay, 2 * decay, 0.0]
        # A kept and a spare slot turn into one another at no cost.
        eigenvalues += [2 * decay, 0.0] * (len(indices) * spare)
        eigenvalues += slots * (sum(self.target.shape) - 2 * n)
        return np.sort(eigenvalues)


@once
def instance(point: Point) -> SavedFactorization | None:
    """The instance of a point, unless it was too large."""
    target = point.case["target"]
    rows, columns = point.flags["rows"], point.flags["cols"]
    if target.shape != (rows, columns):
        return None
    width = point.case["starts"].shape[1] // (rows + columns)
    left, values, right = np.linalg.svd(target)
    return SavedFactorization(target, float(point.case["weight_decay"]), width, left, values, right)


def of_sets(of: SavedFactorization, function: Callable[[tuple[int, ...]], Any]) -> np.ndarray:
    """Values of a function at every set; 0 for a set without a critical point of its own."""
    values = [(of.admissible(s), function(s)) for s in of.sets]
    return np.array([value if admitted else np.zeros_like(value) for admitted, value in values])


def critical_gradient(point: Point) -> Redone | None:
    """The gradient at every one of them is 0."""
    if (of := instance(point)) is None or of.values[0] <= of.decay:
        return None

    def steepest(indices: tuple[int, ...]) -> float:
        return largest(np.max(np.abs(g)) for g in of.gradient(*of.layers(indices)))

    measured = of_sets(of, steepest)
    saved = point.found["critical_gradient"]
    return Redone(0 * measured, measured, of.values[0] ** 1.5, 1.0, "zero", None, saved)


def critical_loss(point: Point) -> Redone | None:
    """``sum_S (lambda sigma - lambda^2/2) + sum_rest sigma^2/2``."""
    if (of := instance(point)) is None:
        return None

    def formula(indices: tuple[int, ...]) -> float:
        rest = [of.values[i] ** 2 / 2 for i in range(len(of.values)) if i not in indices]
        return sum([of.decay * of.values[i] - of.decay**2 / 2 for i in indices] + rest)

    theory, measured = of_sets(of, formula), of_sets(of, lambda s: of.loss(*of.layers(s)))
    saved = saved_sides(point, "critical_loss")
    return Redone(theory, measured, None, 1.0, "equal", *saved)


def measured_spectrum(of: SavedFactorization, indices: tuple[int, ...]) -> np.ndarray:
    """The eigenvalues of the Hessian at the critical point of a set."""
    return np.linalg.eigvalsh(of.hessian(*of.layers(indices)))


def spectrum(point: Point) -> Redone | None:
    """All r (k + d) eigenvalues of the Hessian."""
    if (of := instance(point)) is None:
        return None
    theory, measured = of_sets(of, of.spectrum), of_sets(of, lambda s: measured_spectrum(of, s))
    saved = saved_sides(point, "spectrum")
    return Redone(theory, measured, None, 1.0, "equal", *saved)


def least_curvature(of: SavedFactorization, indices: tuple[int, ...]) -> float:
    """Smallest eigenvalue of the Hessian at the critical point of a set, by cases."""
    outside = max((of.values[j] for j in range(len(of.values)) if j not in indices), default=0.0)
    candidates = []
    if of.decay == 0 or (indices and of.width >= 2):
        candidates.append(0.0)
    if indices:
        candidates.append(min(of.values[i] for i in indices) - outside)
        if of.width == 1:
            candidates += [2 * of.decay, 2 * (of.values[indices[0]] - of.decay)]
    if len(indices) < of.width:
        candidates.append(of.decay - outside)
    return min(candidates)


def smallest(point: Point) -> Redone | None:
    """The smallest eigenvalue of the Hessian."""
    if (of := instance(point)) is None:
        return None
    theory = of_sets(of, lambda s: least_curvature(of, s))
    measured = of_sets(of, lambda s: measured_spectrum(of, s)[0])
    scale = np.max(of_sets(of, of.spectrum))
    saved = saved_sides(point, "smallest")
    return Redone(theory, measured, scale, 1.0, "equal", *saved)


def margin(of: SavedFactorization) -> float:
    """The least size of a negative eigenvalue at a saddle."""
    below = np.maximum(np.append(of.values[1:], 0.0), of.decay)
    return float(np.min(np.where(of.values > of.decay, of.values - below, np.inf)))


def separation(of: SavedFactorization) -> float:
    """The least size of an eigenvalue that is not 0."""
    least = min(margin(of), float(np.min(np.abs(of.values - of.decay))))
    return min(least, of.decay) if of.decay else least


def resolved(of: SavedFactorization, distance: float) -> bool:
    """Whether a distance is told from 0 by half of the digits."""
    return distance > np.sqrt(EPS) * of.values[0]


def global_(point: Point) -> list[Redone] | None:
    """All but ``S = {i <= r: sigma_i > lambda}`` have a direction of descent."""
    if (of := instance(point)) is None or not resolved(of, margin(of)):
        return None
    best = tuple(i for i in range(of.width) if i < len(of.values) and of.values[i] > of.decay)
    theory = of_sets(of, lambda s: int(s == best))
    # A saddle has an eigenvalue of -margin or less, the minimum none below 0.
    rises = lambda s: int(measured_spectrum(of, s)[0] > -margin(of) / 2)  # noqa: E731
    return [
        Redone(theory, of_sets(of, rises), 1.0, 1.0, "count", point.found["global"]),
        saved_as(margin(of), point.found["margin"]),
        saved_as(
            of_sets(of, lambda s: measured_spectrum(of, s)[0]), saved_sides(point, "smallest")[1]
        ),
    ]


def search(point: Point) -> list[Redone] | None:
    """No search, ours from the saved starts or the one that was saved, ends outside the family."""
    if (of := instance(point)) is None or not resolved(of, separation(of)):
        return None
    family = [np.matmul(*of.layers(s)[::-1]) for s in of.sets if of.admissible(s)]
    shape = (of.width, of.target.shape[1])

    def layers(flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cut = shape[0] * shape[1]
        return flat[:cut].reshape(shape), flat[cut:].reshape(-1, of.width)

    def slope(flat: np.ndarray) -> np.ndarray:
        return np.concatenate([g.ravel() for g in of.gradient(*layers(flat))])

    products = []
    for start in point.case["starts"]:
        # Many searches stop at no critical point; the terms of a gradient have the size sigma^1.5.
        ended = root(slope, start, jac=lambda x: of.hessian(*layers(x)), method="lm", tol=1e-14)
        if np.linalg.norm(slope(ended.x)) <= 1e-13 * of.values[0] ** 1.5:
            products.append(np.matmul(*layers(ended.x)[::-1]))
    # The limit by which lrdyn counts a search as converged: of those saved the others say nothing.
    limit = 8 / 3 * EPS * np.sqrt(float(point.found["longest_axis"]))
    limit = min(limit, (separation(of) / of.values[0]) ** 2 / 16) * of.values[0] ** 1.5
    saved = point.found["found"][point.found["found_gradient"] <= limit]
    # A gradient that is rounding leaves a distance of it over the least curvature.
    scale = of.values[0] ** 2 / separation(of)
    return [
        Redone(min(family, key=lambda f: np.max(np.abs(f - product))), product, scale)
        for product in (*products, *saved)
    ]


def deep_origin(point: Point) -> Redone | None:
    """With three layers and four the Hessian at the origin is 0: other layers are 0."""
    if (of := instance(point)) is None:
        return None
    entries = []
    for depth in (3, 4):
        widths = (of.target.shape[1], *[of.width] * (depth - 1), of.target.shape[0])
        # The second derivative of a product in two of its layers has the other layers as factors:
        # 0. What is left is <target, product> with two layers that are 1.
        pairs = combinations(range(depth), 2)
        entry = 0.0
        for moved in pairs:
            layers = [np.ones((widths[l + 1], widths[l])) * (l in moved) for l in range(depth)]
            whole = layers[0]
            for layer in layers[1:]:
                whole = layer @ whole
            entry = largest([entry, np.abs(np.sum(of.target * whole))])
        entries.append(entry)
    saved = saved_sides(point, "deep_origin")
    return Redone(np.zeros(2), np.array(entries), of.values[0], 1.0, "zero", *saved)


CLAIMS = {
    "critical_points": {
        "critical_gradient": critical_gradient,
        "critical_loss": critical_loss,
        "spectrum": spectrum,
        "smallest": smallest,
        "global": global_,
        "search": search,
        "deep_origin": deep_origin,
    },
}
"""Scenario -> claim -> both of its sides."""
