"""Theorem 3: p-values of tests of random draws that are not quite Gaussian.

Student's test is exact for Gaussian draws. Means of many draws of a skewed law are close to that,
but a false alarm of 1e-6 lies far out in the tail, where the p-value of a mean of skewness s at z
standard deviations is off by the factor ``exp(s z^3 / 3)`` (the first term of Cramer's series, of
Student's statistic). :func:`mean_p` takes that factor off, with s known beforehand from theory.

A sum of squared errors is compared with the law of Pearson's type III (a shifted gamma law, chi
square for Gaussian errors) of the same first three moments, which are known from those of one draw.
The fourth differs, by d in units of the variance squared: :func:`scatter_p` takes off the factor
``exp(d z^4 / 24)``.
"""

import math
from typing import NamedTuple

import numpy as np

from lrdyn.verification.stating.claims import student_p, surprise

DECISIVE = 6.0
"""Standard deviations of a Gaussian that no command of a few hundred tests passes by chance."""

LARGEST = 5.0
"""Largest logarithm of a factor, there, with which a test still decides anything: 8 standard
deviations are then as decisive as 6 are without."""


# Means ---------------------------------------------------------------------------------------


def mean_allowance(z: float, skewness: float) -> float:
    """Logarithm of the largest factor by which Student's p-value at z deviations is off.

    Args:
        z: standard deviations of a Gaussian with that p-value; past ``1/skewness``, where the
            series ends, the factor stays.
        skewness: skewness of the mean of all draws.

    Example:
        >>> mean_allowance(6.0, 0.0), round(mean_allowance(6.0, 0.01), 2)
        (0.0, 0.72)
    """
    size = abs(skewness)
    return size * min(z, 1 / size if size else z) ** 3 / 3


def mean_decides(skewness: float) -> bool:
    """Whether a test of a mean of that skewness decides anything; false for one that is lost."""
    within = DECISIVE * abs(skewness) <= 1  # the series has not ended
    return bool(within and mean_allowance(DECISIVE, skewness) <= LARGEST)


def mean_p(expected: float, draws: np.ndarray, skewness: float) -> float:
    """Largest p-value that Student's test of a mean of that skewness can have.

    Example:
        >>> draws = np.array([1.0, 3.0, 2.0, 2.5])
        >>> mean_p(9.0, draws, 0.0) < mean_p(9.0, draws, 0.2) < 0.1
        True
    """
    p = student_p(expected, draws)
    return _multiply_p(p, mean_allowance(_deviations(p), skewness))


# Scatter -------------------------------------------------------------------------------------


class Law(NamedTuple):
    """What is known beforehand of a sum of squares of independent, standardised errors."""

    number: int
    """How many are summed: the mean of the sum."""
    variance: float
    skewness: float
    excess: float
    """Excess kurtosis."""


def law_of_squares(moments: np.ndarray, draws: int, number: int) -> Law:
    """Law of the sum of squared errors of means of independent draws.

    Args:
        moments: those of order 3 to 8 of one draw, standardised.
        draws: how many make a mean.
        number: how many means there are.

    Example:
        >>> gaussian = law_of_squares(np.array([0.0, 3.0, 0.0, 15.0, 0.0, 105.0]), 16, 8)
        >>> float(gaussian.variance), float(gaussian.skewness), float(gaussian.excess)
        (16.0, 1.0, 1.5)
    """
    of_one = _cumulants(np.array([0.0, 1.0, *moments]))
    orders = np.arange(1, len(of_one) + 1)
    # Cumulants add up: of a standardised mean of n draws that of order k is n^{1 - k/2} times as
    # large.
    of_mean = _moments(of_one * float(draws) ** (1 - orders / 2))
    # Even moments of a mean are the moments of its square.
    _, second, third, fourth = _cumulants(of_mean[1::2])  # of the square of the mean
    return Law(
        number,
        number * second,
        third / second**1.5 / math.sqrt(number),
        fourth / second**2 / number,
    )


def _cumulants(moments: np.ndarray) -> np.ndarray:
    """Cumulants of order 1, 2, ... from the moments about 0."""
    # m_{n+1} = sum_{k <= n} C(n, k) c_{k+1} m_{n-k}, solved for the last cumulant.
    cumulants: list[float] = []
    for n, moment in enumerate(moments):
        earlier = sum(math.comb(n, k) * cumulants[k] * moments[n - 1 - k] for k in range(n))
        cumulants.append(moment - earlier)
    return np.array(cumulants)


def _moments(cumulants: np.ndarray) -> np.ndarray:
    """Moments about 0 of order 1, 2, ... from the cumulants."""
    moments: list[float] = []
    for n, cumulant in enumerate(cumulants):
        earlier = sum(math.comb(n, k) * cumulants[k] * moments[n - 1 - k] for k in range(n))
        moments.append(cumulant + earlier)
    return np.array(moments)


def scatter_allowance(z: float, law: Law) -> float:
    """Logarithm of the largest factor by which the p-value of a sum at z deviations is off."""
    of_gamma = 1.5 * law.skewness**2
    return float(np.maximum(law.excess - of_gamma, 0.0)) * z**4 / 24


def scatter_decides(law: Law) -> bool:
    """Whether a test of a sum of that law decides anything; false for one that is lost."""
    within = 0 < DECISIVE * law.skewness <= 1
    return bool(within and scatter_allowance(DECISIVE, law) <= LARGEST)


def scatter_p(squares: float, law: Law) -> float:
    """Largest two-sided p-value that a sum of squared, standardised errors can have.

    Example:
        >>> from lrdyn.verification.stating.claims import chi_square_p
        >>> law = law_of_squares(np.array([0.0, 3.0, 0.0, 15.0, 0.0, 105.0]), 16, 2)
        >>> round(scatter_p(2.0, law), 4), round(chi_square_p(2.0, 2), 4)
        (0.7358, 0.7358)
    """
    # Where it is needed alone: it is no small import.
    from scipy.special import gammainc, gammaincc

    deviations = (squares - law.number) / math.sqrt(law.variance)
    # A gamma law of skewness s has the shape 4 / s^2, its mean, and the deviation 2 / s.
    shape = (2 / law.skewness) ** 2
    value = np.maximum(shape + 2 / law.skewness * deviations, 0.0)  # a NaN stays one
    # The smaller tail by its own function: 1 minus the other one would have no digits.
    nearer = np.minimum(gammainc(shape, value), gammaincc(shape, value))
    p = float(np.minimum(1.0, 2 * nearer))
    return _multiply_p(p, scatter_allowance(_deviations(p), law))


# Both ----------------------------------------------------------------------------------------


def _deviations(p: float) -> float:
    """Standard deviations of a Gaussian at a p-value, at most: its tail is below exp(-z^2 / 2)."""
    return math.sqrt(2 * math.log(10) * surprise(p))


def _multiply_p(p: float, allowance: float) -> float:
    """A p-value times a factor, 1 at most; a NaN stays one."""
    return float(np.minimum(1.0, p * math.exp(allowance)))


def combine_p(p: float, number: int) -> float:
    """p-value of the smallest p of several independent tests, ``1 - (1 - p)^number``.

    Example:
        >>> combine_p(0.5, 2), combine_p(1e-20, 3)
        (0.75, 3e-20)
    """
    return -math.expm1(number * math.log1p(-p)) if p < 1 else p  # a NaN stays one
