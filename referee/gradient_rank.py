"""Theorem 4: gradients become low-rank (Lemma 3.3 of GaLore)."""

from typing import NamedTuple

import numpy as np

from referee.redone import EPS, Claim, Redone, largest, saved_sides
from referee.results import Point, once


class GradientProblem(NamedTuple):
    """The gradient ``(1/N) sum_i (A_i - B_i W C_i)``, of a problem of a saved case."""

    A: np.ndarray
    B: np.ndarray
    C: np.ndarray
    rate: float
    rounding: float
    """Machine epsilon of the run."""
    values: np.ndarray
    """Eigenvalues of ``(1/N) sum_i C_i (x) B_i``, in increasing order."""
    vectors: np.ndarray
    """Its eigenvectors, matrices with column below column."""

    @property
    def start(self) -> np.ndarray:
        """G_0, at W = 0."""
        return self.A.mean(0)

    @property
    def slow(self) -> np.ndarray:
        """Which eigenvalues count as l_1."""
        values = self.values
        return values - values[0] <= np.sqrt(self.rounding) * np.abs(values).max()

    @property
    def edges(self) -> tuple[float, float, float]:
        """l_1, l_2 and l_max; l_2 is l_max if there is no other."""
        values = self.values
        return values[0], min(values[~self.slow], default=values[-1]), values[-1]

    @property
    def distinct(self) -> bool:
        """Whether the eigenvalues that count as l_1 are apart by rounding alone."""
        values = self.values
        spread = (values[self.slow].max() - values[0]) / np.abs(values).max()
        # The rounding of one step over as many numbers as the operator has: len(values) squared.
        return bool(spread <= 8 * self.rounding * (len(values) * np.sqrt(2) + 0.5))

    def part(self, matrix: np.ndarray) -> np.ndarray:
        """What of a matrix is in the eigenspace of l_1."""
        slowest = self.vectors[:, self.slow]
        return (slowest @ (slowest.T @ matrix.ravel("F"))).reshape(matrix.shape, order="F")

    @property
    def ratio(self) -> float:
        """``q = (1 - eta l_2) / (1 - eta l_1)``."""
        first, second, _ = self.edges
        return (1 - self.rate * second) / (1 - self.rate * first)

    def path(self, times: list[int]) -> np.ndarray:
        """``G_t = sum_j (1 - eta l_j)^t <V_j, G_0> V_j``."""
        inner = self.vectors.T @ self.start.ravel("F")
        rows = [self.vectors @ ((1 - self.rate * self.values) ** t * inner) for t in times]
        return np.array([row.reshape(self.start.shape, order="F") for row in rows])

    def descent(self, times: list[int]) -> np.ndarray:
        """The gradients of ``W <- W + eta G`` from W = 0."""
        W, gradients = np.zeros_like(self.start), []
        for t in range(max(times) + 1):
            G = np.mean(self.A - self.B @ W @ self.C, axis=0)
            if t in times:
                gradients.append(G)
            W = W + self.rate * G
        return np.array(gradients)


def with_modes(
    A: np.ndarray, B: np.ndarray, C: np.ndarray, rate: float, dtype: str
) -> GradientProblem:
    """A problem whose operator is diagonalised.

    Of sides that are symmetric up to rounding the derivative of a loss sees the symmetric part.
    """
    B, C = (B + B.mT) / 2, (C + C.mT) / 2
    whole = sum(np.kron(c, b) for b, c in zip(B, C, strict=True)) / len(B)
    return GradientProblem(A, B, C, rate, float(np.finfo(dtype).eps), *np.linalg.eigh(whole))


@once
def problems(point: Point) -> list[GradientProblem] | None:
    """The problems of a point, if all B_i and C_i are symmetric and no step is too large."""
    c, dtype = point.case, point.flags["dtype"]
    each = zip(c["targets"], c["left"], c["right"], c["learning_rate"], strict=True)
    every = [with_modes(A, B, C, float(eta), dtype) for A, B, C, eta in each]
    # A step at its largest value may be rounded above it.
    digits = np.sqrt(np.finfo(dtype).eps)
    # Not ``> digits``: a NaN is not symmetric.
    if not largest(np.abs(c[side] - c[side].mT).max() for side in ("left", "right")) <= digits:
        return None
    most = [2 / (second + last) for _, second, last in (of.edges for of in every)]
    fits = [0 < of.rate <= top * (1 + digits) for of, top in zip(every, most, strict=True)]
    return every if all(fits) else None


def gradient_path(point: Point) -> Redone | None:
    """The gradients of descent decay along the eigenvectors: closed form against descent itself."""
    if (every := problems(point)) is None:
        return None
    theory = np.array([of.path(point.times) for of in every])
    measured = np.array([of.descent(point.times) for of in every])
    saved = saved_sides(point, "gradient_path")
    return Redone(theory, measured, None, 1.0, "equal", *saved)


def stable_rank(gradients: np.ndarray) -> np.ndarray:
    """The stable rank ``||G||_F^2 / ||G||_2^2`` of each gradient."""
    values = np.linalg.svd(gradients, compute_uv=False)
    return np.sum(values**2, axis=-1) / values[..., 0] ** 2


def resolution(of: GradientProblem, times: list[int]) -> np.ndarray:
    """``||G_t|| / ||G_0|| (l_2 - l_1) / l_max``: an excess over a bound counts in these units."""
    first, second, _ = of.edges
    sizes = np.linalg.norm(of.path(times), axis=(1, 2))
    return sizes / np.linalg.norm(of.start) * (second - first) / np.abs(of.values).max()


def decay(of: GradientProblem, times: list[int]) -> tuple[float, float, np.ndarray]:
    """``||G_par||_2``, ``||G_par||_F`` and ``q^t ||D||_F``."""
    part = of.part(of.start)
    left = of.ratio ** np.array(times) * np.linalg.norm(of.start - part)
    return float(np.linalg.norm(part, 2)), float(np.linalg.norm(part)), left


def upper(of: GradientProblem, times: list[int]) -> np.ndarray:
    """``(||G_par||_F^2 + q^2t ||D||_F^2) / (||G_par||_2 - q^t ||D||_F)^2``, or infinite."""
    top, size, left = decay(of, times)
    # A bracket that is not positive bounds nothing.
    return np.where(top > left, (size**2 + left**2) / (top - left) ** 2, np.inf)


def lower(of: GradientProblem, times: list[int]) -> np.ndarray:
    """``||G_par||_F^2 / (||G_par||_2 + q^t ||D||_F)^2``."""
    top, size, left = decay(of, times)
    return size**2 / (top + left) ** 2


def printed(of: GradientProblem, times: list[int]) -> np.ndarray:
    """``sr(G_par) + q^2t ||D||_F^2 / ||G_par||_2^2``."""
    top, size, left = decay(of, times)
    return (size / top) ** 2 + (left / top) ** 2


def aligned(of: GradientProblem) -> bool:
    """Whether the top singular pair of G_par lies in the eigenspace of l_1."""
    left, _, right = np.linalg.svd(of.part(of.start))
    pair = np.outer(left[:, 0], right[0])
    return bool(np.linalg.norm(pair - of.part(pair)) <= np.sqrt(of.rounding))


def bounded(
    point: Point, every: list[GradientProblem], bounds: np.ndarray, saved: np.ndarray, kind: str
) -> list[Redone]:
    """Stable ranks of descent on one side of bounds, where these are finite and determined."""
    parts, file = [], point.found["stable_rank"]
    for of, bound, claimed, ranks in zip(every, bounds, saved, file, strict=True):
        finite = np.isfinite(bound)
        if not of.distinct or not finite.any():
            continue
        measured, closed = (stable_rank(path(point.times)) for path in (of.descent, of.path))
        # In units of the larger one over the resolution. What is infinite in the file is 0 here.
        units = (resolution(of, point.times) / np.maximum(bound, measured))[finite]
        bound, measured, closed = (array[finite] * units for array in (bound, measured, closed))
        claimed = np.where(np.isfinite(claimed), claimed, 0)[finite] * units.astype(file.dtype)
        ranks = ranks[finite] * units.astype(file.dtype)
        # Eigenvalues that count as one are apart by the rounding of the case.
        parts.append(Redone(bound, measured, 1.0, of.rounding / EPS, kind))
        parts.append(Redone(bound, bound, 1.0, 1.0, "equal", claimed))
        parts.append(Redone(closed, measured, 1.0, 1.0, "equal", None, ranks))
    return parts


def stable_rank_bound(point: Point) -> list[Redone] | None:
    """The corrected bound, of all problems."""
    if (every := problems(point)) is None:
        return None
    bounds = np.array([upper(of, point.times) for of in every])
    return bounded(point, every, bounds, point.found["stable_rank_bound"], "at most")


def stable_rank_floor(point: Point) -> list[Redone] | None:
    """The bound from below, of all problems."""
    if (every := problems(point)) is None:
        return None
    bounds = np.array([lower(of, point.times) for of in every])
    return bounded(point, every, bounds, point.found["stable_rank_floor"], "at least")


def lemma_3_3(point: Point) -> list[Redone] | None:
    """The bound as printed, of the problems whose top singular pair is in the eigenspace."""
    if (every := problems(point)) is None:
        return None
    places = [k for k, of in enumerate(every) if aligned(of)]
    bounds = np.array([printed(every[k], point.times) for k in places])
    saved = point.found["lemma_3_3"][places]
    ranks = {**point.found, "stable_rank": point.found["stable_rank"][places]}
    chosen = point._replace(found=ranks)
    return bounded(chosen, [every[k] for k in places], bounds, saved, "at most")


CLAIMS: dict[str, dict[str, Claim]] = {
    "gradient_rank": {
        "gradient_path": gradient_path,
        "stable_rank_bound": stable_rank_bound,
        "stable_rank_floor": stable_rank_floor,
        "lemma_3_3": lemma_3_3,
    },
}
"""Scenario -> claim -> both of its sides."""
