"""Completion and sensing: full and compressed networks that see part of a target."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from referee.descent import Layers, amplification, chain, descend, diverged
from referee.redone import Redone, largest, saved_as, saved_sides
from referee.results import Point, once

MISSED = 32.0
"""The recovery error at which a network has ended, over what the start leaves."""
LEAST_SEEN = 1 / 16
"""Least curvature along matrices of rank r."""


class CompletionCase(NamedTuple):
    """A target seen in part and a full network, from a saved case."""

    target: np.ndarray
    layers: Layers
    rank: int
    rate: float
    alpha: float
    gamma: float
    times: list[int]
    mask: np.ndarray
    measurements: np.ndarray | None
    """One a row, where the target is seen by these."""

    @property
    def size(self) -> float:
        """``||Phi||_F``, the unit of all errors."""
        return float(np.linalg.norm(self.target))

    @property
    def scales(self) -> np.ndarray:
        """eps_l, the scale of each orthogonal layer at the start."""
        return np.array([np.linalg.norm(w) / math.sqrt(len(w)) for w in self.layers])

    @property
    def left(self) -> float:
        """The error that the start leaves, ``sqrt(d - 2r) prod eps_l / ||Phi||_F``."""
        return math.sqrt(len(self.target) - 2 * self.rank) * float(np.prod(self.scales)) / self.size

    @property
    def level(self) -> float:
        """The error below which a network counts as ended: 32 times what the start leaves."""
        return MISSED * self.left

    @property
    def share(self) -> float:
        """Share p: the number of measured numbers over that of the entries."""
        if self.measurements is None:
            return float(np.mean(self.mask))
        return len(self.measurements) / self.target.size

    def observed(self, matrix: np.ndarray) -> np.ndarray:
        """Second derivative of the loss, applied to a matrix: its observed part over the share."""
        if self.measurements is None:
            return self.mask * matrix / self.share
        shown = self.measurements @ matrix.ravel()
        return (shown @ self.measurements / len(shown)).reshape(matrix.shape)

    @property
    def surrogate(self) -> np.ndarray:
        """``M * Phi / p``, or ``(1/m) sum_i y_i A_i``."""
        return self.observed(self.target)

    def slope(self, product: np.ndarray) -> np.ndarray:
        """The gradient of the loss in the product."""
        return self.observed(product - self.target)

    def error(self, layers: Layers) -> float:
        """``||f - Phi||_F / ||Phi||_F``."""
        return float(np.linalg.norm(chain(layers) - self.target)) / self.size

    def errors(self, start: Layers, rates: float | list[float]) -> np.ndarray:
        """Recovery errors of descent at the recorded steps."""
        nothing = [0.0] * len(start)
        return np.array(descend(start, self.slope, rates, nothing, self.times, self.error))


@once
def setting_of(point: Point) -> CompletionCase:
    """The case of a point."""
    case = point.case
    drawn = case.get("measurements")
    return CompletionCase(
        target=case["target"],
        layers=point.parts("weights"),
        rank=int(case["rank"]),
        rate=float(case["learning_rate"]),
        alpha=float(case["step_ratio"]),
        gamma=float(case["outer_ratio"]),
        times=point.times,
        mask=case["mask"],
        measurements=None if drawn is None else drawn.reshape(len(drawn), -1),
    )


# Hypotheses -------------------------------------------------------------------------------------


def least_curvature(of: CompletionCase) -> float:
    """The least eigenvalue of the loss along ``{U X^T + Z V^T}``, the tangents of rank r at Phi."""
    left, _, right = np.linalg.svd(of.target)
    r, d = of.rank, len(of.target)
    # u_i v_j^T of the full SVD with i <= r or j <= r: an orthonormal basis of the tangent space.
    pairs = [(i, j) for i in range(d) for j in range(d) if i < r or j < r]
    tangents = [np.outer(left[:, i], right[j]) for i, j in pairs]
    images = np.array([of.observed(matrix).ravel() for matrix in tangents])
    return float(np.linalg.eigvalsh(images @ np.array([t.ravel() for t in tangents]).T)[0])


def largest_curvature(of: CompletionCase) -> float:
    """The largest curvature of the loss of three balanced layers at Phi, by the power method.

    ``sum_l (Phi Phi^T)^{(3-l)/3} A(X) (Phi^T Phi)^{(l-1)/3}``, A the second derivative in the
    product.
    """
    left, values, right = np.linalg.svd(of.target)
    left, values, right = left[:, : of.rank], values[: of.rank], right[: of.rank]
    power = lambda sides, k: (sides * values ** (2 * k / 3)) @ sides.T  # noqa: E731

    def bent(matrix: np.ndarray) -> np.ndarray:
        image = of.observed(matrix)
        outer = power(left, 2) @ image + image @ power(right.T, 2)
        return outer + power(left, 1) @ image @ power(right.T, 1)

    direction, size = of.target / of.size, 0.0
    for _ in range(50):
        direction = bent(direction)
        size = float(np.linalg.norm(direction))
        direction = direction / size
    return size


def grown(alpha: float, ratio: float) -> float:
    """Growth ``g = u^2 w`` of noise until the target is found: completion.md, Why 1 and 2."""
    k = math.sqrt(alpha - 1)
    u = k / math.sinh((1 - ratio) * math.asinh(k))
    return u**2 * math.sqrt(1 + (u**2 - 1) / alpha)


@once
def stable(point: Point) -> bool:
    """Whether all hypotheses are met: small steps, a small start, enough seen."""
    of = setting_of(point)
    top = float(np.linalg.norm(of.target, 2))
    factor = largest([of.alpha ** (2 / 3), 1 + 2 / 3 * of.gamma * top ** (2 / 3)])
    # Descent leaves a minimum where step times curvature is 2; 1.7 and .1 are those of lrdyn.
    if of.rate * largest_curvature(of) * factor > 1.7 or of.level > 0.1:
        return False
    # From here on what lrdyn calls enough_seen: completion.md, Why 2 and 3.
    values, r, d = np.linalg.svd(of.surrogate, compute_uv=False), of.rank, len(of.target)
    least, ratio = least_curvature(of), float(values[r] / values[r - 1])
    if least < LEAST_SEEN or ratio >= 1:
        return False
    beside = math.sqrt((d - r) / (d - 2 * r) / (of.share * least))
    return grown(of.alpha, ratio) * beside <= MISSED


# Runs -------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """Recovery errors of a run, and by how much it amplifies a disturbance."""

    errors: np.ndarray
    condition: float


def curve(of: CompletionCase, start: Layers, rates: float | list[float]) -> Curve:
    """Recovery errors of descent from a start, and by how much it amplifies a disturbance."""
    run = lambda layers: of.errors(layers, rates)  # noqa: E731
    errors = run(start)
    # Errors are relative to ||Phi||, so that 1 is their scale.
    return Curve(errors, amplification(run, start, 1.0, errors))


@once
def full(point: Point) -> Curve:
    """The recovery errors of the full network."""
    of = setting_of(point)
    return curve(of, of.layers, of.rate)


def spectral_start(of: CompletionCase, scale: float) -> Layers:
    """``(eps U) (eps I) (eps V^T)``, U and V the first 2r singular vectors of the surrogate."""
    left, _, right = np.linalg.svd(of.surrogate)
    k = 2 * of.rank
    return [scale * right[:k], scale * np.eye(k), scale * left[:, :k]]


@once
def spectral(point: Point) -> Curve:
    """The compressed network from its spectral start, outer factors at alpha eta."""
    of = setting_of(point)
    outer = of.alpha * of.rate
    return curve(of, spectral_start(of, float(of.scales[0])), [outer, of.rate, outer])


def span(matrix: np.ndarray, rank: int) -> np.ndarray:
    """Orthonormal columns that span the first right singular vectors: ``M^T U_r``."""
    left = np.linalg.svd(matrix)[0][:, :rank]
    # LAPACK turns singular vectors by many roundings of sigma_1; in the range of M^T U_r that is
    # times sigma_{r+1} / sigma_r only.
    return np.linalg.qr(matrix.T @ left)[0]


def first_gradient(of: CompletionCase) -> np.ndarray:
    """G, of the first layer of the full network at its start."""
    return chain(of.layers[1:]).T @ of.slope(chain(of.layers))


def basis(of: CompletionCase) -> np.ndarray:
    """The first r right singular vectors of G, and those of ``G^T W_1``."""
    gradient = first_gradient(of)
    both = [span(gradient, of.rank), span(gradient.T @ of.layers[0], of.rank)]
    return np.linalg.qr(np.hstack(both))[0]


@once
def on_basis(point: Point) -> tuple[float, Curve]:
    """The least error between the subspaces of the basis, and a run with fixed outer factors."""
    of = setting_of(point)
    right = basis(of)
    left = chain(of.layers) @ right / np.prod(of.scales)
    least = left @ left.T @ of.target @ right @ right.T
    inner = [scale * np.eye(right.shape[1]) for scale in of.scales]
    # A rate of 0 holds the outer factors.
    run = curve(of, [right.T, *inner, left], [0.0, *[of.rate] * len(inner), 0.0])
    return float(np.linalg.norm(of.target - least)) / of.size, run


def arrived(point: Point) -> bool:
    """Whether a point meets the hypotheses and its full network has found the target."""
    return stable(point) and bool(full(point).errors[-1] <= setting_of(point).level)


# Claims -----------------------------------------------------------------------------------------


def saved_errors(point: Point) -> Iterator[Redone]:
    """Saved errors of both networks, and the saved level, beside those computed here."""
    of, saved = setting_of(point), point.found
    for name, run in (("full_error", full(point)), ("spectral_error", spectral(point))):
        yield saved_as(run.errors, saved[name], condition=run.condition)
    yield saved_as(of.left, saved["left"])
    yield saved_as(of.level, saved["level"])


def recovery(point: Point) -> Iterator[Redone]:
    """The error of the compressed network is at most that of the full one, and what is left."""
    if not arrived(point):
        return
    of, of_full, of_spectral = setting_of(point), full(point), spectral(point)
    # Behind its level the full network bounds nothing.
    before = of_full.errors >= of.level
    bound = of_full.errors[before] + of.left
    condition = largest([of_full.condition, of_spectral.condition])
    yield Redone(bound, of_spectral.errors[before], 1.0, condition, "at most")
    yield from saved_errors(point)


def recovered(point: Point) -> Iterator[Redone]:
    """The compressed network, from its spectral start, ends below the level, too."""
    if not arrived(point):
        return
    of, run = setting_of(point), spectral(point)
    yield Redone(of.level, run.errors[-1], 1.0, run.condition, "at most")
    yield from saved_errors(point)


def fixed_basis(point: Point) -> Iterator[Redone]:
    """With fixed outer factors the error stays above ``||Phi - P Phi Q||_F / ||Phi||_F``."""
    if not stable(point):
        return
    least, run = on_basis(point)
    # The basis is an SVD's, which rounding turns.
    theory, condition = np.full(len(run.errors), least), turned(setting_of(point))
    yield Redone(theory, run.errors, 1.0, condition, "at least")
    yield saved_as(least, point.found["floor"], condition=condition)
    yield saved_as(run.errors, point.found["fixed_error"], condition=condition * run.condition)


def over_gap(matrix: np.ndarray, rank: int) -> float:
    """By how much rounding turns the first singular vectors."""
    values = np.linalg.svd(matrix, compute_uv=False)
    return float(values[0] / (values[rank - 1] - values[rank]))


def turned(of: CompletionCase) -> float:
    """By how much rounding turns the basis of the gradient."""
    gradient = first_gradient(of)
    other = gradient.T @ of.layers[0]
    both = np.hstack([span(gradient, of.rank), span(other, of.rank)])
    least = np.linalg.svd(both, compute_uv=False)[-1]
    return largest([over_gap(gradient, of.rank), over_gap(other, of.rank)]) / float(least)


def beginnings(of: CompletionCase) -> list[np.ndarray]:
    """The product at a spectral start of scale 1, the projector on the basis, the first slope."""
    start, columns = chain(spectral_start(of, 1.0)), basis(of)
    return [start, columns @ columns.T, of.slope(start)]


def start(point: Point) -> Iterator[Redone]:
    """The networks start alike with 0 in place of what is hidden: no start uses that."""
    of = setting_of(point)
    if not stable(point) or np.all(of.mask == 1):
        return
    seen_alone = of._replace(target=np.where(of.mask == 1, of.target, 0.0))
    both = [beginnings(each) for each in (seen_alone, of)]
    # The surrogate is divided by the share, and so is its rounding.
    condition = largest([over_gap(of.surrogate, 2 * of.rank) / of.share, turned(of)])
    names = ("start_predicted", "start_measured")
    for i, (theory, run) in enumerate(zip(*both, strict=True)):
        saved = (point.found[name][i] for name in names)
        yield Redone(theory, run, None, condition, "equal", *saved)


def whole_basis(point: Point) -> Redone | None:
    """With all entries observed the basis spans ``row(Phi) + W^T col(Phi)``."""
    of = setting_of(point)
    if not np.all(of.mask == 1):
        return None
    left, values, right = np.linalg.svd(of.target)
    e, r = float(np.prod(of.scales)), of.rank
    # r singular values of W - Phi are sigma_r - e or more, the others at most e.
    gap = float(values[r - 1]) - 2 * e
    if gap <= 0:
        return None
    both = np.hstack([right[:r].T, chain(of.layers).T @ left[:, :r] / e])
    columns, ours = np.linalg.qr(both)[0], basis(of)
    least = float(np.linalg.svd(both, compute_uv=False)[-1])
    saved = saved_sides(point, "basis")
    condition = (float(values[0]) + e) / gap / least
    return Redone(columns @ columns.T, ours @ ours.T, 1.0, condition, "equal", *saved)


def basis_gap(point: Point) -> Redone | None:
    """``sigma_{r+1} / sigma_r`` of G is at most ``e / (sigma_r(Phi) - e)``."""
    of = setting_of(point)
    least = float(np.linalg.svd(of.target, compute_uv=False)[of.rank - 1])
    e = float(np.prod(of.scales))
    if not np.all(of.mask == 1) or least <= e:
        return None
    values = np.linalg.svd(first_gradient(of), compute_uv=False)
    measured = float(values[of.rank] / values[of.rank - 1])
    saved = saved_sides(point, "basis_gap")
    condition = float(np.linalg.norm(of.target, 2) + e) / (least - e)
    return Redone(e / (least - e), measured, 1.0, condition, "at most", *saved)


CLAIMS = {
    "completion": {
        "recovery": recovery,
        "recovered": recovered,
        "fixed_basis": fixed_basis,
        "start": start,
    },
    "sensing": {"sensing_recovery": recovery, "sensing_recovered": recovered},
    "basis": {"basis": whole_basis, "basis_gap": basis_gap},
}
"""Scenario -> claim -> both of its sides."""


def diverges(point: Point) -> bool:
    """Whether the full network of a point diverges."""
    return diverged(full(point).errors ** 2, point.epsilon)


DIVERGES = {"completion": diverges, "sensing": diverges}
"""Scenario -> whether the run of a point diverges, where nothing is claimed."""
