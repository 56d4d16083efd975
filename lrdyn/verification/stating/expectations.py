"""Expectations of a mean over seeds, and whether they came true: an interval decides."""

from typing import Any, NamedTuple

import numpy as np

from lrdyn.verification.stating.claims import standard_error

CONFIDENCE = 0.95
"""Probability that any interval of one experiment misses its mean."""

ONE_SEED = "one seed"
TOO_WIDE = "too wide"
REPLICATED = "replicated"
OTHER_SIZE = "same sign, other size"
NOT_REPLICATED = "not replicated"


class Expectation(NamedTuple):
    """What the mean over seeds was expected to be, before seeds above 0 were run.

    One of ``above``, ``below`` and ``within``, or none of them where nothing was expected; then
    ``against`` may name a number with which the mean is compared.
    """

    above: float | None = None
    """The mean exceeds this."""
    below: float | None = None
    """The mean stays under this."""
    within: tuple[float, float] | None = None
    """No effect: the mean lies between these two, a margin that was stated beforehand."""
    source: float | None = None
    """The number of the source, if it has one: it is above, or below, what its side says."""
    against: float | None = None
    """A number with which the mean is compared, though nothing was expected of it."""

    @property
    def sides(self) -> int:
        """How many of ``above``, ``below`` and ``within`` are stated."""
        return sum(side is not None for side in (self.above, self.below, self.within))

    @property
    def decided(self) -> bool:
        """Whether an interval decides anything: something is expected, or compared."""
        return self.sides > 0 or self.against is not None

    @property
    def bound(self) -> float:
        """The number that the mean should exceed, stay under or is compared with; NaN for none."""
        stated = (side for side in (self.above, self.below, self.against) if side is not None)
        return next(stated, float("nan"))

    def is_met_by(self, mean: float) -> bool:
        """Whether a mean is on the side that was expected."""
        if self.within is not None:
            return bool(self.within[0] <= mean <= self.within[1])
        return bool(mean > self.bound if self.above is not None else mean < self.bound)

    def __str__(self) -> str:
        """The expectation in words.

        Example:
            >>> str(Expectation(above=0.0, source=0.069)), str(Expectation(within=(-0.1, 0.1)))
            ('above 0 (source: 0.069)', 'between -0.1 and 0.1')
        """
        if self.within is not None:
            return "between {:g} and {:g}".format(*self.within)
        bound = f"{'below' if self.above is None else 'above'} {self.bound:g}"
        return bound if self.source is None else f"{bound} (source: {self.source:g})"


def simultaneous_interval(draws: np.ndarray, intervals: int = 1) -> tuple[float, float]:
    """Interval of the mean of independent draws that holds it together with those of other means.

    ``mean +- t s / sqrt(n)``, t the quantile of Student's distribution with n - 1 degrees of
    freedom at ``1 - 0.05 / (2 k)``: by Bonferroni all k intervals hold their means at once with
    probability .95 at least, if the draws are Gaussian.

    Args:
        draws: one number for each seed, two or more.
        intervals: k, how many there are.

    Example:
        >>> [round(end, 3) for end in simultaneous_interval(np.array([1.0, 3.0]))]
        [-10.706, 14.706]
        >>> [round(end, 3) for end in simultaneous_interval(np.array([1.0, 2.0, 3.0]), 5)]
        [-3.73, 7.73]
    """
    from scipy.special import stdtrit

    quantile = float(stdtrit(len(draws) - 1, 1 - (1 - CONFIDENCE) / (2 * intervals)))
    mean, reach = float(np.mean(draws)), quantile * float(standard_error(draws))
    return mean - reach, mean + reach


def outcome(expected: Expectation, low: float, high: float) -> str:
    """Compare an interval of the mean with an expectation.

    With a number of the source: ``too wide`` if the interval holds the bound as well as that
    number, ``replicated`` if it holds that number alone, ``same sign, other size`` if it holds
    neither and lies on the side of that number, else ``not replicated``. With a margin of no
    effect: ``replicated`` if the interval lies within it, ``too wide`` if partly, else ``not
    replicated``. With a bound alone, or a number to compare with: ``above``, ``below`` or ``not
    told from`` it.

    Args:
        expected: what was expected, of one side, or compared.
        low: lower end of the interval.
        high: upper end.

    Example:
        >>> gain = Expectation(above=0.0, source=0.07)
        >>> outcome(gain, -0.01, 0.1), outcome(gain, 0.01, 0.1), outcome(gain, 0.01, 0.05)
        ('too wide', 'replicated', 'same sign, other size')
        >>> outcome(gain, -0.03, 0.05), outcome(Expectation(above=0.0), -0.03, 0.05)
        ('not replicated', 'not told from 0')
    """
    if expected.within is not None:
        least, most = expected.within
        if least <= low and high <= most:
            return REPLICATED
        return TOO_WIDE if low <= most and high >= least else NOT_REPLICATED
    bound, source = expected.bound, expected.source
    apart = low > bound or high < bound
    if source is None:
        side = "above" if low > bound else "below" if apart else "not told from"
        return f"{side} {bound:g}"
    if low <= source <= high:
        return REPLICATED if apart else TOO_WIDE
    on_the_side = low > bound if source > bound else high < bound
    return OTHER_SIZE if on_the_side else NOT_REPLICATED


def outcome_entry(expected: Expectation, draws: np.ndarray, intervals: int = 1) -> dict[str, Any]:
    """Outcome of an expectation, as ``verdict.json``, the table and the captions report it.

    What is not known (no draws, draws that are no numbers, nothing expected or compared) is None.

    Args:
        expected: what was expected.
        draws: one number for each seed.
        intervals: how many findings of the experiment an interval decides.

    Returns:
        ``expected`` in words, ``source``, ``interval`` (two numbers), ``came_true`` (whether the
        mean is on the side that was expected, whatever its error) and ``outcome``.

    Example:
        >>> came = outcome_entry(Expectation(above=0.0), np.array([0.1, 0.2, 0.15]))
        >>> came["expected"], came["came_true"], came["outcome"]
        ('above 0', True, 'above 0')
        >>> outcome_entry(Expectation(above=0.0), np.array([0.1]))["outcome"]
        'one seed'
    """
    entry = {
        "expected": str(expected) if expected.sides else None,
        "source": expected.source,
        "interval": None,
        "came_true": None,
        "outcome": None,
    }
    # One training that was lost is no number, and a mean without it would not be that of the seeds.
    if not expected.decided or not len(draws) or not np.all(np.isfinite(draws)):
        return entry
    came_true = expected.is_met_by(float(np.mean(draws))) if expected.sides else None
    entry |= {"came_true": came_true, "outcome": ONE_SEED}
    if len(draws) < 2:
        return entry
    low, high = simultaneous_interval(draws, intervals)
    return entry | {"interval": [low, high], "outcome": outcome(expected, low, high)}
