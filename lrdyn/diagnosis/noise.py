"""The noise floor of an update: where its singular values follow Marchenko and Pastur's law.

A p x q matrix (p <= q) of independent entries of variance v has singular values whose squares,
over q v, follow that law of ratio beta = p / q, between (1 - sqrt(beta))^2 and (1 + sqrt(beta))^2.
Where the values of an update behind the first few do so, what they add is like noise, and those
above the edge are what is not.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

FEWEST = 40
"""Values below the edge that a fit needs."""
MOST = 0.25
"""Share of the values that may lie above the edge: of more, the median says nothing of noise."""
POINTS = 2001
"""Angles at which the law is tabulated."""
TRACY_WIDOM = 3.27
"""Quantile .999 of the Tracy-Widom law of real matrices: how far the largest value of noise lies
beyond the edge, in units of its spread."""
ROUNDS = 20
"""Rounds of the fit; a rank that does not settle has no floor."""


class Noise(NamedTuple):
    """The noise floor of an update: its edge, what stands above it, how well the law fits."""

    edge: float
    """Largest singular value that noise of this level has."""
    above: int
    """Singular values above the edge."""
    distance: float
    """Largest difference of the distribution functions: of the values below the edge, of the
    law."""


@cache
def law(ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Points of the law of Marchenko and Pastur for unit variance, and its distribution there.

    With lambda = 1 + beta + 2 sqrt(beta) cos(angle) the density is smooth in the angle.

    Args:
        ratio: beta, above 0 and at most 1.

    Example:
        >>> points, shares = law(1.0)
        >>> float(points[-1]), float(shares[-1].round(9))
        (4.0, 1.0)

    Reference:
        Marchenko and Pastur, Distribution of eigenvalues for some sets of random matrices, 1967.
    """
    angles = np.linspace(np.pi, 0, POINTS)
    points = 1 + ratio + 2 * math.sqrt(ratio) * np.cos(angles)
    squares = 4 * ratio * np.sin(angles) ** 2
    # At beta = 1 the density is finite in the angle where lambda is 0, and so is the limit.
    density = np.divide(squares, points, out=np.zeros(POINTS), where=points > 1e-12)
    if ratio == 1:
        density[0] = 4.0
    steps = 0.5 * (density[1:] + density[:-1]) * np.diff(-angles)
    shares = np.concatenate([[0.0], np.cumsum(steps)]) / (2 * np.pi * ratio)
    return points, shares / shares[-1]


def allowed_distance(count: int) -> float:
    """The largest distance at which values still count as following the law.

    Eigenvalues of noise keep to their places: the distance is some 2 / count, and of entries whose
    variances differ, as those of rounded weights, some hundredths more.

    Example:
        >>> allowed_distance(100)
        0.07
    """
    return 0.03 + 4 / count


def floor(values: np.ndarray, shape: tuple[int, int]) -> Noise | None:
    """Fit the law to the values of an update behind the first few; None where it does not fit.

    The level is that at which the medians agree (Gavish and Donoho, arXiv 1305.5870). Values above
    the edge are left out and the level is found anew until their number settles.

    Args:
        values: all singular values, decreasing.
        shape: of the matrix.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> noise = rng.standard_normal((60, 90))
        >>> noise[0] += 10
        >>> fit = floor(np.linalg.svd(noise, compute_uv=False), (60, 90))
        >>> fit.above, fit.distance < 0.05
        (1, True)
        >>> floor(1.0 / np.arange(1, 61), (60, 90)) is None
        True
    """
    p, q = sorted(shape)
    above, tried = 0, set()
    for _ in range(ROUNDS):
        # Directions of the first values are not there for noise.
        rows, columns = p - above, q - above
        if rows < FEWEST or above > MOST * p:
            return None
        squares = values[above:p] ** 2
        points, shares = law(rows / columns)
        middle = float(np.interp(0.5, shares, points))
        variance = float(np.median(squares)) / (columns * middle)
        if not variance:
            return None
        # Johnstone, On the distribution of the largest eigenvalue in PCA, 2001.
        # Centre and spread of the largest eigenvalue, which has Tracy and Widom's law between them.
        first, second = math.sqrt(columns - 1), math.sqrt(rows)
        spread = (first + second) * (1 / first + 1 / second) ** (1 / 3)
        edge = math.sqrt(variance * ((first + second) ** 2 + TRACY_WIDOM * spread))
        count = int(np.sum(values > edge))
        if count == above:
            empirical = (np.arange(rows) + 0.5) / rows
            predicted = np.interp(squares[::-1] / (columns * variance), points, shares)
            # The empirical distribution steps by 1 / rows, half of it to either side of this point.
            distance = float(np.max(np.abs(predicted - empirical))) + 0.5 / rows
            return Noise(edge, above, distance) if distance <= allowed_distance(rows) else None
        if count in tried:  # the fit goes round in a circle
            return None
        tried.add(count)
        above = count
    return None


def product_floor(values: np.ndarray, shape: tuple[int, int]) -> Noise | None:
    """The noise floor of an adapter's B A: of the r values that two factors have, not m n numbers.

    Where both factors, m x r and r x n, are independent entries, the squares of their values follow
    laws of ratios r / m and r / n, and those of the product to first order that of ratio
    r (1 / m + 1 / n): variances add up. LoRA's A starts as noise, and what a training adds to B
    beside its task is some, too.

    Args:
        values: the r singular values of B A, decreasing.
        shape: of B A, m x n.

    Returns:
        The floor, or None where the values do not follow the law, as those of fewer than
        :data:`FEWEST`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> B, A = rng.standard_normal((400, 60)), rng.standard_normal((60, 500))
        >>> B[:, 0] *= 5
        >>> product_floor(np.linalg.svd(B @ A, compute_uv=False)[:60], (400, 500)).above
        1
    """
    m, n = shape
    return floor(values, (len(values), round(m * n / (m + n))))


def find_floor(values: np.ndarray, shape: tuple[int, int], rest: float = 0.0) -> Noise | None:
    """The noise floor of a matrix, or of a product of factors with fewer values than it has sides.

    Args:
        values: the singular values that are known, decreasing.
        shape: of the matrix, m x n.
        rest: squared norm behind them. Where there is some, no law can be fitted.

    Example:
        >>> find_floor(np.array([2.0, 1.0]), (2, 2)) is None
        True
    """
    if rest:
        return None
    return (floor if len(values) == min(shape) else product_floor)(values, shape)
