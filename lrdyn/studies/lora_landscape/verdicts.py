"""What is said of the end of a descent: certified, numerically spurious, or undecided.

All numbers are relative to F at U = V = 0; digits are half of those of the precision, d.
"""

import enum
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

SPURIOUS_ABOVE = 1000.0
"""A spurious end is this many times d above the least value found at its rank. Stationarity to d
leaves an error of d^2 over the curvature in a value: of less than d, unless the curvature is below
d, where nothing is said of second order either."""


class Verdict(enum.IntEnum):
    """What is said of an end."""

    CERTIFIED = 0
    """A global minimum over all ranks: its duality gap is at most d."""
    SPURIOUS = 1
    """Numerically spurious: of second order to d modulo gauge, not certified, and clearly above a
    value that was found at its rank or below. A proof would be that of Newton and Kantorovich."""
    LEAST = 2
    """Undecided: of second order, not certified, and the least that was found at its rank."""
    UNRESOLVED = 3
    """Undecided: not of second order to d."""


class Ends(NamedTuple):
    """Ends at several ranks, increasing, from several starts."""

    value: Float[np.ndarray, "*some rank start"]
    """F, over F at 0."""
    gap: Float[np.ndarray, "*some rank start"]
    """Duality gap, over F at 0."""
    gradient: Float[np.ndarray, "*some rank start"]
    curvature: Float[np.ndarray, "*some rank start"]
    norm: Float[np.ndarray, "*some rank start"]
    """||R||_2 over its value at 0."""


def verdicts(ends: Ends, digits: float, *, decays: bool) -> Int[np.ndarray, "*some rank start"]:
    """The :class:`Verdict` of every end.

    A point of a lower rank is one of every higher rank, so that a value found there counts.

    Args:
        ends: ends at increasing ranks.
        digits: d.
        decays: whether lambda > 0; without decay R = 0 certifies an end, too.

    Example:
        >>> column = lambda *values: np.array(values)[:, None]
        >>> ends = Ends(column(0.5, 0.5), column(0.3, 0.2), *[column(0.0, 0.0)] * 2, column(1, 1))
        >>> verdicts(ends, 1e-8, decays=True).tolist()
        [[2], [2]]
        >>> lower = ends._replace(value=column(0.4, 0.5))
        >>> verdicts(lower, 1e-8, decays=True).tolist()
        [[2], [1]]
    """
    certified = ends.gap <= digits
    if not decays:
        certified |= ends.norm <= digits
    second = (ends.gradient <= digits) & (ends.curvature >= -digits)
    known = np.where(np.isfinite(ends.value), ends.value, np.inf)
    least = np.minimum.accumulate(np.min(known, axis=-1, keepdims=True), axis=-2)
    above = ends.value - least > SPURIOUS_ABOVE * digits
    words = np.where(above, Verdict.SPURIOUS, Verdict.LEAST)
    return np.where(certified, Verdict.CERTIFIED, np.where(second, words, Verdict.UNRESOLVED))


def exact_interval(hits: int, count: int) -> tuple[float, float]:
    """Interval of Clopper and Pearson that holds a probability with .95, from hits in a count.

    Args:
        hits: how often it happened.
        count: of how many independent draws, one at least.

    Example:
        >>> [round(end, 3) for end in exact_interval(0, 24)], exact_interval(3, 3)[1]
        ([0.0, 0.142], 1.0)

    Reference:
        Clopper and Pearson, The use of confidence or fiducial limits, 1934.
    """
    from scipy.special import betaincinv

    low = betaincinv(hits, count - hits + 1, 0.025) if hits else 0.0
    high = betaincinv(hits + 1, count - hits, 0.975) if hits < count else 1.0
    return float(low), float(high)


def first_count(rank: np.ndarray, equations: np.ndarray) -> Bool[np.ndarray, "*some"]:
    """Whether ``r (r + 1) / 2 > N``, N the number of equations.

    Example:
        >>> first_count(np.array([3, 4]), np.array(6)).tolist()
        [False, True]
    """
    return rank * (rank + 1) / 2 > equations


SECOND_FACTOR = 1.35
"""Of the second count, as the pilot of this study read it in an abstract."""


def second_count(
    rank: np.ndarray, equations: np.ndarray, rows: int, cols: int
) -> Bool[np.ndarray, "*some"]:
    """Whether ``r (m + n - r) > 1.35 N``: the dimension of matrices of rank r.

    Example:
        >>> second_count(np.array([1, 2]), np.array(8), 4, 4).tolist()
        [False, True]
    """
    return rank * (rows + cols - rank) > SECOND_FACTOR * equations
