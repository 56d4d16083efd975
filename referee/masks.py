"""Theorem 3: the loss of masks in expectation, as a sum over all of them, and of draws."""

import math
from collections.abc import Callable, Iterator
from itertools import product as cartesian
from typing import NamedTuple

import numpy as np
from scipy import stats

from referee import draws
from referee.redone import EPS, Redone, largest, saved_as, saved_sides
from referee.results import Point, once

Mask = np.ndarray


def masks(units: int, keep: float, block: int = 1) -> Iterator[tuple[float, Mask]]:
    """All masks of independent units or blocks with their probabilities."""
    for bits in cartesian((0.0, 1.0), repeat=units // block):
        count = sum(bits)
        p = keep**count * (1 - keep) ** (len(bits) - count)
        yield p, np.repeat(bits, block)


def expected(of: Iterator[tuple[float, Mask]], loss: Callable[[Mask], float]) -> float:
    """The mean of a loss, summed without losing digits."""
    return math.fsum(p * loss(mask) for p, mask in of)


def nuclear(matrix: np.ndarray) -> float:
    """The nuclear norm, the sum of the singular values."""
    return float(np.linalg.svd(matrix, compute_uv=False).sum())


def square(matrix: np.ndarray) -> float:
    """The square of the Frobenius norm."""
    return float(np.sum(matrix**2))


# Any masks -------------------------------------------------------------------------------------


class Masked:
    """A target and the terms that are masked, from a saved case."""

    def __init__(self, point: Point):
        case = point.case
        self.target, self.terms = case["target"], case["terms"]
        self.keep, self.block = float(case["keep_prob"]), int(case["block"])
        self.mean = np.full(len(self.terms), self.keep)

    def masks(self) -> Iterator[tuple[float, Mask]]:
        """All masks of the kind."""
        return masks(len(self.terms), self.keep, self.block)

    def loss(self, mask: Mask, mean: np.ndarray) -> float:
        """``||Y - sum (R_i/mu_i) Z_i||_F^2``."""
        return square(self.target - np.tensordot(mask / mean, self.terms, 1))

    def formula(self, mean: np.ndarray, covariance: np.ndarray) -> float:
        """``||Y - sum Z_i||_F^2 + sum C_ij/(mu_i mu_j) <Z_i, Z_j>``."""
        gram = np.einsum("iab,jab->ij", self.terms, self.terms)
        weights = covariance / np.outer(mean, mean)
        return square(self.target - self.terms.sum(0)) + float(np.sum(weights * gram))

    def covariance(self) -> np.ndarray:
        """``theta (1 - theta)`` within a block."""
        place = np.arange(len(self.terms)) // self.block
        return self.keep * (1 - self.keep) * (place[:, None] == place[None, :])

    def first_alone(self) -> "Masked":
        """The first block alone masked: all other terms belong to the target."""
        # Not from a point: its parts are those of this one.
        alone = object.__new__(Masked)
        alone.target = self.target - self.terms[self.block :].sum(0)
        alone.terms, alone.mean = self.terms[: self.block], self.mean[: self.block]
        alone.keep, alone.block = self.keep, self.block
        return alone


def mask_identity(point: Point) -> Redone:
    """The expected loss by two moments, and over all masks of the kind."""
    of = Masked(point)
    theory = of.formula(of.mean, of.covariance())
    measured = expected(of.masks(), lambda mask: of.loss(mask, of.mean))
    saved = saved_sides(point, "mask_identity")
    return Redone(theory, measured, None, 1.0, "equal", *saved)


def any_masks(point: Point) -> Redone:
    """The expected loss by two moments, over nine masks of dependent real entries."""
    of = Masked(point)
    support, p = point.case["others.support"], point.case["others.probabilities"]
    mean = p @ support
    covariance = (support - mean).T @ ((support - mean) * p[:, None])
    theory = of.formula(mean, covariance)
    measured = math.fsum(w * of.loss(mask, mean) for w, mask in zip(p, support, strict=True))
    saved = saved_sides(point, "any_masks")
    return Redone(theory, measured, None, 1.0, "equal", *saved)


DRAWS = (16, 256, 4096)
"""Draws of an estimate."""
REPEATS = 3500
"""Estimates of each number of draws."""
REPEATED = 64
"""Estimates whose masks are drawn again from the key of the run."""
KEYS = 16
"""Keys of an estimate: each draws a share of its masks."""
SURPRISE = 9.0
"""-log10 of the smallest p-value that is no alarm: 1e-6 over at most a thousand tests."""


class MonteCarloMeans(NamedTuple):
    """Estimates of an expected loss, each the mean of as many draws."""

    draws: int
    mean: float
    """Expected loss, by the formula."""
    deviation: float
    """Standard deviation of one loss, over all masks."""
    shape: np.ndarray
    """Standardised moments of one loss, of order 3 to 8."""
    estimates: tuple[np.ndarray, np.ndarray]
    """Those of the run, and ours."""
    repeated: np.ndarray
    """The first of those of the run once more, from its key."""

    @property
    def rounding(self) -> float:
        """By how much rounding alone moves the mean, and every estimate alike."""
        return 4 * EPS * abs(self.mean)

    @property
    def cancelled(self) -> float:
        """By how much rounding grows in what is left of a loss without its mean."""
        return largest([1.0, abs(self.mean) / self.deviation])


@once
def of_draws(point: Point) -> list[MonteCarloMeans]:
    """The estimates of each number of draws; those of the most mask the first block alone."""
    whole, rng, look = Masked(point), np.random.default_rng(0), []
    for k, (count, of) in enumerate(zip(DRAWS, (whole, whole, whole.first_alone()), strict=True)):
        p, losses = np.array([(p, of.loss(mask, of.mean)) for p, mask in of.masks()]).T
        centred = losses - p @ losses
        deviation = math.sqrt(float(p @ centred**2))
        # How often each mask is drawn is all that a mean of losses knows.
        own = rng.multinomial(count, p / p.sum(), size=REPEATS) @ losses / count
        drawn = MonteCarloMeans(
            draws=count,
            mean=of.formula(of.mean, of.covariance()),
            deviation=deviation,
            shape=np.array([p @ (centred / deviation) ** order for order in range(3, 9)]),
            estimates=(point.found["estimates"][k], own),
            repeated=repeated(of, point.case["key"], count),
        )
        look.append(drawn)
    return look


def repeated(of: Masked, key: draws.Key, count: int) -> np.ndarray:
    """The first estimates of a run: means of the losses of its own masks."""
    blocks = len(of.terms) // of.block
    keys = draws.split(draws.folded(draws.folded(key, count), np.arange(REPEATED)), KEYS)
    shown = draws.kept(keys, (count // KEYS, blocks), of.keep)
    # A sum over masks is a quadratic form in them.
    terms = of.terms.reshape(blocks, of.block, *of.terms.shape[1:]).sum(1) / of.keep
    between = np.einsum("iab,jab->ij", terms, terms)
    with_target = np.einsum("iab,ab->i", terms, of.target)
    forms = np.einsum("...i,ij,...j->...", shown, between, shown)
    losses = square(of.target) - 2 * shown @ with_target + forms
    return losses.mean((1, 2))


def student_p(estimates: np.ndarray, mean: float, rounding: float = 0.0) -> float:
    """The two-sided p-value of Student's test of a mean: of those within rounding, the nearest."""
    error = float(np.std(estimates, ddof=1)) / math.sqrt(len(estimates))
    t = largest([abs(float(np.mean(estimates)) - mean) - rounding, 0.0]) / error
    return 2 * float(stats.t.sf(t, len(estimates) - 1))


def surprise(p: float) -> Redone:
    """A p-value as a claim: -log10 p, 0 where nothing surprises."""
    return Redone(
        0.0, -math.log10(largest([p, 1e-300])), 1.0, kind="statistical", tolerance=SURPRISE
    )


def monte_carlo(point: Point) -> Iterator[Redone]:
    """Student's test of means of 256 and of 4096 losses: those of the run, and draws of NumPy.

    The mean is that of the formula, and the first estimates are those of the key.
    """
    for k, drawn in enumerate(of_draws(point)):
        yield saved_as(drawn.mean, point.found["monte_carlo"][k])
        yield saved_as(drawn.repeated, drawn.estimates[0][:REPEATED])
        if drawn.draws > DRAWS[0]:
            for estimates in drawn.estimates:
                yield surprise(student_p(estimates, drawn.mean, drawn.rounding))


def monte_carlo_rate(point: Point) -> Iterator[Redone]:
    """The sum of the squared errors, over their variance, is about the number of estimates.

    A squared standardised error has the variance 2 and the excess of a mean of n draws, which is
    that of one over n.
    """
    for k, drawn in enumerate(of_draws(point)):
        error = drawn.deviation / math.sqrt(drawn.draws)
        rate, shape = (point.found[name][k] for name in ("monte_carlo_rate", "losses_shape"))
        yield saved_as(error, rate, condition=drawn.cancelled)
        # The eighth moment of a rounded number is off by eight times its rounding.
        yield saved_as(drawn.shape, shape, condition=8 * drawn.cancelled)
        yield saved_as(drawn.repeated, drawn.estimates[0][:REPEATED])
        for estimates in drawn.estimates:
            errors = (estimates - drawn.mean) / error
            excess = drawn.shape[1] - 3
            # Losses of two equally likely values have no excess to spare: the variance must stay
            # positive.
            spread = math.sqrt(len(errors) * largest([2 + excess / drawn.draws, 0.1]))
            size, lost = math.sqrt(float(np.mean(errors**2))), drawn.rounding / error
            # Rounding moves all errors alike: the nearest size that it allows.
            # ``np.clip`` hands on a NaN, which would count as an error of the right size else.
            nearest = float(np.clip(1.0, size - lost, size + lost))
            deviations = len(errors) * abs(nearest**2 - 1) / spread
            yield surprise(2 * float(stats.norm.sf(deviations)))


CLAIMS = {
    "masks": {
        "mask_identity": mask_identity,
        "any_masks": any_masks,
        "monte_carlo": monte_carlo,
        "monte_carlo_rate": monte_carlo_rate,
    }
}
"""Scenario -> claim -> both of its sides."""
