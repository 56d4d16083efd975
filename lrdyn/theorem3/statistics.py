"""Theorem 3: tests of random draws that are not quite Gaussian.

Student's test is exact for Gaussian draws. Means of many draws of a skewed law are close to that,
but a false alarm of 1e-6 lies far out in the tail, where the p-value of a mean of skewness s at z
standard deviations is off by the factor ``exp(s z^3 / 3)`` (the first term of Cramer's series, of
Student's statistic). The tests here take that factor off, with s known beforehand from theory.
"""

import numpy as np

from lrdyn.engine.claims import chi_square_p, student_p, surprise

DECISIVE = 6.0
"""Standard deviations of a Gaussian that no command of a few hundred tests passes by chance."""

LARGEST = 5.0
"""Largest logarithm of a factor, there, with which a test still decides anything: 8 standard
deviations are then as decisive as 6 are without."""


def allowance(z: float, skewness: float, excess: float = 0.0, number: int = 0) -> float:
    """Logarithm of the largest factor by which a p-value at z standard deviations is off.

    Args:
        z: standard deviations of a Gaussian with that p-value; past ``1/skewness``, where the
            series ends, the factor stays.
        skewness: skewness of the mean of all draws.
        excess: excess kurtosis of one estimate, if squares are tested.
        number: how many squares of estimates are summed; 0 if the mean is tested.

    Example:
        >>> allowance(6.0, 0.0), round(allowance(6.0, 0.01), 2)
        (0.0, 0.72)
    """
    if not number:
        size = abs(skewness)
        return size * min(z, 1 / size if size else z) ** 3 / 3
    # Of a square: variance 2 + k, and third moment 8 + 12 k + 10 s^2 with s that of one estimate,
    # whose square is ``number`` times that of the mean.
    heavy, squared_skewness = max(excess, 0.0), skewness**2 * number
    z = min(z, float(np.sqrt(2 * number)) / 2)
    third = 10 * squared_skewness + 12 * heavy
    return heavy * z**2 / 4 + third * z**3 / (6 * 2**1.5 * number**0.5)


def decides(skewness: float, excess: float = 0.0, number: int = 0) -> bool:
    """Whether a test of draws of that shape decides anything; false for a shape that is lost."""
    within = DECISIVE * abs(skewness) <= 1  # the series has not ended
    return bool(within and allowance(DECISIVE, skewness, excess, number) <= LARGEST)


def mean_surprise(expected: float, draws: np.ndarray, skewness: float) -> float:
    """:func:`surprise` of Student's test of a mean of that skewness.

    Example:
        >>> draws = np.array([1.0, 3.0, 2.0, 2.5])
        >>> mean_surprise(9.0, draws, 0.0) > mean_surprise(9.0, draws, 0.2) > 1
        True
    """
    return _corrected(student_p(expected, draws), skewness)


def scatter_surprise(
    expected: float, error: float, draws: np.ndarray, skewness: float, excess: float
) -> float:
    """:func:`surprise` of the chi-square test that draws scatter by ``error`` about ``expected``.

    It has as many degrees of freedom as there are draws.

    Example:
        >>> scatter_surprise(0.0, 1.0, np.array([1.0, -1.0, 0.8]), 0.0, 0.0) < 1
        True
    """
    squares = float(np.sum(((draws - expected) / error) ** 2))
    return _corrected(chi_square_p(squares, len(draws)), skewness, excess, len(draws))


def _corrected(p: float, skewness: float, excess: float = 0.0, number: int = 0) -> float:
    """Surprise of a p-value less the largest that its shape can explain, 0 at least."""
    raw = surprise(p)
    # The Gaussian tail is about exp(-z^2 / 2).
    z = float(np.sqrt(2 * np.log(10) * raw))
    # 0 times it, not 0: a NaN stays one.
    return max(raw - allowance(z, skewness, excess, number) / float(np.log(10)), 0.0 * raw)
