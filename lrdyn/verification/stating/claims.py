"""Judging: tolerances with their reasons, and verdicts over many cases."""

import enum
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Shaped

from lrdyn.core import checks
from lrdyn.system.messages import refuse_truth

Numbers = Shaped[np.ndarray | Array, "..."] | np.number
Kind = Literal["exact", "identity", "bound", "limit", "rate", "statistical", "control"]

# Multiples of the natural unit of each kind; the reasons are in the docstring of `tolerance`.
ROUNDING_SAFETY = 8.0
# Probability of a false alarm of a whole command, over all its statistical tests.
FALSE_ALARM = 1e-6
# A control counts as "seen to fail" when its smallest residual is this many tolerances: a claim
# that holds leaves at most one, and a residual between the two would show neither.
CLEARLY = 10.0
# From float32 to float64 an identity's residual shrinks by the ratio of the machine epsilons, give
# or take this factor: rounding errors are random and one leg can be lucky.
SCALING_SLACK = 100.0
# Largest tolerance of a rounding error that still means something. The slightest known mistakes (a
# transposed side, a lost factor) move weights by 4 % of the largest: they stay 30 tolerances away.
RESOLVED = 1.3e-3
# Beginning of a reason that leaves controls open, too: a claim is about another library, and it
# has a release that nobody has looked at. Whether a control would fail there is not known either.
UNSEEN_RELEASE = "unseen release: "


TOO_FEW_STEPS = "too few steps"
STILL_MOVING = "still moving"
MORE_STEPS_HELP = (TOO_FEW_STEPS, STILL_MOVING)
"""Reasons with a number of steps that would do."""


class MoreSteps(str):
    """A reason that more steps would cure, with the number that would do where it is known.

    Where no number of steps would do the reason is another one.

    Args:
        needed: steps after which theory says that the case can be judged; None if it does not say.
        flag: the flag that sets them; empty if none does.
        why: the reason in words.

    Example:
        >>> reason = MoreSteps(1234.5, flag="steps")
        >>> reason, reason.needed, reason.flag
        ('too few steps', 1235, 'steps')
        >>> MoreSteps().needed is None
        True
    """

    needed: int | None
    flag: str

    def __new__(
        cls, needed: float | None = None, *, flag: str = "", why: str = TOO_FEW_STEPS
    ) -> "MoreSteps":
        """Make the reason."""
        reason = super().__new__(cls, why)
        reason.needed = None
        if needed is not None and math.isfinite(needed):
            reason.needed = math.ceil(needed)
        reason.flag = flag
        return reason


def roundings(steps: int = 1, size: int = 1) -> float:
    """By how many roundings two equal runs may differ that amplify none: see :func:`tolerance`.

    Args:
        steps: number of steps of the run.
        size: length of the longest dot product.

    Example:
        >>> roundings(steps=99, size=16)
        89.5
    """
    checks.integer("steps", steps, 0)
    checks.integer("size", size)
    return math.sqrt(size * (1 + steps)) + steps / 2


def tolerance(kind: Kind, dtype: Any, *, steps: int = 1, size: int = 1, tests: int = 1) -> float:
    """Largest relative residual that a true claim of this kind may leave.

    Every residual is divided by the scale of its data, so that tolerances are pure numbers:

    * ``exact`` (integers): 0.
    * ``identity``, ``bound``: ``8 eps (sqrt(size (1 + steps)) + steps / 2)``. A dot product of
      length ``size`` is rounded by about ``sqrt(size) eps``; the errors of the steps are
      independent and add like a random walk, since gradient descent near a minimum does not amplify
      them. While a run waits at a saddle they are not: the same small update is rounded in the same
      way, by up to ``eps / 2``, at every step. 8 covers the maximum over many entries and cases and
      the products of layers; the largest multiple seen is about 2.
    * ``statistical``: ``-log10(1e-6 / tests)``: all tests of a command together raise a false alarm
      with probability 1e-6 at most.
    * ``limit``, ``rate``: no general rule; the claim states its own tolerance and the reason.

    Args:
        kind: kind of the claim.
        dtype: floating-point type of the run.
        steps: number of steps of the run.
        size: length of the longest dot product.
        tests: number of statistical tests of the command.

    Raises:
        ValueError: the kind has no general tolerance.

    Example:
        >>> float(tolerance("identity", "float64", steps=99, size=16) / np.finfo("float64").eps)
        716.0
    """
    checks.integer("steps", steps, 0)
    checks.integer("size", size)
    checks.integer("tests", tests)
    if kind == "exact":
        return 0.0
    if kind in ("identity", "bound"):
        rounding = float(np.finfo(np.dtype(dtype)).eps)
        return ROUNDING_SAFETY * rounding * roundings(steps, size)
    if kind == "statistical":
        return surprise(FALSE_ALARM / tests)
    raise ValueError(f"kind: got {kind!r}, wanted 'exact', 'identity', 'bound' or 'statistical'")


def relative_difference(
    predicted: Numbers, measured: Numbers, scale: float | Numbers | None = None
) -> float:
    """Largest entry of ``|predicted - measured|`` over a scale: the residual of most claims.

    Args:
        predicted: values from theory.
        measured: values from the run, of the same shape.
        scale: scale of the data, a number or an array that broadcasts against both; by default the
            largest absolute measured or predicted value. A scale of 0 counts as 1.

    Returns:
        The relative residual; 0 for two arrays of zeros, NaN if any entry is not finite or there is
        none: what was not compared does not agree.

    Raises:
        ValueError: the shapes differ (broadcasting would hide a mistake).

    Example:
        >>> relative_difference(np.array([1.0, 4.0]), np.array([1.0, 3.0]))
        0.25
        >>> relative_difference(np.array([]), np.array([]))
        nan
    """
    predicted, measured = np.asarray(predicted), np.asarray(measured)
    if predicted.shape != measured.shape:
        raise ValueError(
            f"predicted: got shape {predicted.shape}, wanted that of measured, {measured.shape}"
        )
    # inf - inf is NaN, which must not warn: it is judged, and fails.
    with np.errstate(invalid="ignore"):
        difference = np.abs(predicted - measured)
    if not difference.size or not np.all(np.isfinite(difference)):
        return float("nan")
    if scale is None:
        scale = max(np.max(np.abs(measured)), np.max(np.abs(predicted)))
    scales = np.asarray(scale, np.float64)
    return float(np.max(difference / np.where(scales == 0, 1.0, scales)))


def standard_error(draws: np.ndarray) -> np.ndarray:
    """Standard error of the mean of independent draws, one in each row; NaN of a single one.

    Example:
        >>> float(standard_error(np.array([1.0, 3.0])))
        1.0
        >>> standard_error(np.array([[1.0, 3.0]]))
        array([nan, nan])
    """
    if len(draws) == 1:
        return np.full(np.shape(draws)[1:], np.nan)
    return np.asarray(np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws)))


def surprise(p: float) -> float:
    """``-log10 p`` of the p-value of a test: the residual of a ``statistical`` claim.

    Example:
        >>> surprise(1e-6)
        6.0
    """
    # A p-value can underflow to 0. The clip keeps its residual finite, since verdict.json admits no
    # infinity, and far above any tolerance; a NaN passes through it, and fails.
    return float(-np.log10(np.clip(p, 1e-300, 1.0)))


def student_p(expected: float | np.ndarray, draws: np.ndarray) -> float:
    """Two-sided p-value of Student's test that independent draws have an expectation.

    It is exact for Gaussian draws, with one degree of freedom less than draws; NaN if the standard
    error is not a positive number.

    Example:
        >>> round(student_p(5.0, np.array([1.0, 3.0])), 4)
        0.2048
    """
    from scipy.special import stdtr

    error = standard_error(draws)
    if not error > 0:
        return float("nan")
    # The lower tail, doubled: 1 minus the upper one would lose every p-value below machine epsilon.
    return float(2 * stdtr(len(draws) - 1, -np.abs(np.mean(draws) - expected) / error))


def above_p(threshold: float, draws: np.ndarray) -> float:
    """One-sided p-value of Student's test that the expectation of draws is above a threshold.

    Small if it is; 0 or 1 for draws that are all equal.

    Example:
        >>> above_p(0.5, np.array([0.9, 0.91, 0.92])) < 0.001 < above_p(0.91, np.ones(3) * 0.91)
        True
    """
    from scipy.special import stdtr

    if len(draws) < 2:
        return float("nan")
    error, ahead = standard_error(draws), np.mean(draws) - threshold
    if not error > 0:
        # Draws without spread leave no doubt: a p-value of 0 or 1. With a NaN among them there is
        # none.
        return float(ahead <= 0) if error == 0 else float("nan")
    return float(stdtr(len(draws) - 1, -ahead / error))


def chi_square_p(value: float, degrees: int) -> float:
    """Two-sided p-value of a sum of squares of so many standard Gaussian numbers.

    Example:
        >>> round(chi_square_p(2.0, 2), 4)
        0.7358
    """
    from scipy.special import chdtr, chdtrc

    # The survival function is computed by itself, not as 1 - cdf, for the digits of a small
    # p-value.
    nearer = np.minimum(chdtr(degrees, value), chdtrc(degrees, value))
    return float(np.minimum(1.0, 2 * nearer))  # a NaN stays NaN: the judge counts it as a failure


class Decision(enum.Enum):
    """What a verdict says.

    Example:
        >>> Decision.of(None) is Decision.UNDECIDED
        True
        >>> bool(Decision.FALSE)
        Traceback (most recent call last):
        TypeError: Decision: is neither true nor false by itself, write ... is Decision.HOLDS
    """

    HOLDS = "holds"
    """Every claim that applies holds, every control was seen to fail, and something was judged."""
    FALSE = "is false"
    """A claim is false, or a control was not seen to fail."""
    UNDECIDED = "is undecided"
    """A claim that carries could not be judged at these settings, or nothing was."""

    __bool__ = refuse_truth("... is Decision.HOLDS")

    @classmethod
    def of(cls, holds: bool | None) -> "Decision":
        """The decision of an entry ``holds`` of ``verdict.json``: true, false or null."""
        return {True: cls.HOLDS, False: cls.FALSE, None: cls.UNDECIDED}[holds]


class Judgement(NamedTuple):
    """Residuals of one claim, judged over the cases that meet its hypotheses."""

    __bool__ = refuse_truth(".holds, which is None if nothing was judged")

    residual: float | None
    """Residual of the worst case (largest residual / tolerance)."""
    tolerance: float | None
    """Tolerance of the worst case."""
    holds: bool | None
    """None if no case meets the hypotheses: a vacuous pass is no pass."""
    cases: int
    """Number of cases judged."""
    total: int
    """Number of all cases, those outside the hypotheses too."""
    worst: int | None
    """Index of the worst case in the flattened arrays."""


def judge(residuals: np.ndarray, tolerances: np.ndarray, applies: np.ndarray) -> Judgement:
    """Judge a claim: every case to which it applies must stay within its tolerance; a NaN fails.

    Args:
        residuals: of all cases.
        tolerances: of all cases, in the same shape.
        applies: whether each case is judged.

    Example:
        >>> judge(np.array([1.0, 9.0]), np.array([2.0, 2.0]), np.array([True, False])).holds
        True
        >>> judge(np.array([1.0]), np.array([2.0]), np.array([False])).holds is None
        True
    """
    # Not ``r > t``, which a NaN would pass.
    return _judge(residuals, tolerances, applies, np.argmax, lambda r, t: ~(r <= t))


def judge_control(
    residuals: np.ndarray,
    tolerances: np.ndarray,
    clearly: float = CLEARLY,
    shown: np.ndarray | None = None,
) -> Judgement:
    """Judge a control: every case that can must break the claim clearly (10 tolerances or more).

    A NaN is no clear failure, and ``worst`` is the case that failed least clearly. The tolerance of
    a statistical claim is as clear as it gets: there ``clearly`` is 1.

    Args:
        residuals: of all cases.
        tolerances: of all cases, in the same shape.
        clearly: how many tolerances a residual must reach.
        shown: cases that can show it; all by default.

    Example:
        >>> judge_control(np.array([1.0, 0.5]), np.array([0.01, 0.01])).holds
        True
    """
    shown = np.ones(np.shape(residuals), bool) if shown is None else shown

    def unclear(residual: np.ndarray, tolerance: np.ndarray) -> np.ndarray:
        # An exact claim has tolerance 0, ten times which an equal pair would reach.
        return ~((residual > tolerance) & (residual >= clearly * tolerance))

    return _judge(residuals, tolerances, shown, np.argmin, unclear)


def _judge(
    residuals: np.ndarray,
    tolerances: np.ndarray,
    applies: np.ndarray,
    worst: Callable[[np.ndarray], Any],
    fails: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Judgement:
    # Flat, so that ``worst`` is one index; :func:`lrdyn.verification.judging.judging.point_of`
    # unravels it again.
    residuals, tolerances, applies = (np.ravel(a) for a in (residuals, tolerances, applies))
    (cases,) = np.nonzero(applies)
    if not len(cases):
        return Judgement(None, None, None, 0, len(applies), None)
    residuals, tolerances = residuals[cases], tolerances[cases]
    # An exact claim has tolerance 0: rank its cases by the residual alone.
    ranks = residuals / np.where(tolerances > 0, tolerances, 1.0)
    # A NaN fails, in a claim and in a control, and is the worst case of both.
    lost = np.isnan(ranks)
    index = int(np.argmax(lost)) if lost.any() else int(worst(ranks))
    failed = bool(np.any(fails(residuals, tolerances)))
    worst_pair = float(residuals[index]), float(tolerances[index])
    return Judgement(*worst_pair, not failed, len(cases), len(applies), int(cases[index]))


def scales_with_epsilon(float64: float, float32: float, steps: int = 0) -> bool:
    """Whether a residual shrinks like machine epsilon, which tells an identity from a coincidence.

    That is ``float64 <= 100 (eps64 / eps32) float32``, eps32 / eps64 being 5.4e8, for runs in both
    precisions at the same settings (their random draws differ). The float32 residual is taken as at
    least ``eps32 sqrt(1 + steps)``, a random walk of one rounding a step, since a lucky run can be
    exact: where steps are below the last digit of float32 nothing is rounded at all.

    Args:
        float64: residual of the run in float64.
        float32: residual of the run in float32.
        steps: number of steps of the run.

    Example:
        >>> scales_with_epsilon(1e-15, 1e-6), scales_with_epsilon(1e-12, 1e-6)
        (True, False)
    """
    eps64, eps32 = (float(np.finfo(t).eps) for t in (np.float64, np.float32))
    # Only the float32 residual has a floor: one for float64 would let a coincidence of that size
    # pass.
    least = eps32 * float(np.sqrt(1 + steps))
    return float64 <= SCALING_SLACK * eps64 / eps32 * max(float32, least)
