"""Values by chance: shares, angles, ranks and energies of random directions and matrices.

A measured share or rank says something only beside the value of an object of that size that knows
nothing. Values come from a closed form where there is one; else, and where the spread matters, from
draws that are the same at every call.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lrdyn.core import checks

BAND = 0.95
"""Share of the draws between the ends of a band."""
DRAWS = 200
GRID = 4097
"""Points of an integral; its error is far below what a figure shows."""


class Chance(NamedTuple):
    """The mean of a quantity over random objects, with a band; numbers or arrays of one shape."""

    value: np.ndarray
    """Mean over the draws."""
    low: np.ndarray
    """Lower end of the band that holds .95 of the draws."""
    high: np.ndarray
    """Upper end."""


# Directions and subspaces ----------------------------------------------------------------------


def direction_share(dim: int, subspace: int) -> Chance:
    """Share of a random unit vector in a subspace, ``||P u||^2``: ``k / d`` in the mean.

    Of a uniform direction u in d dimensions ``||P u||^2`` has the law Beta(k / 2, (d - k) / 2).

    Args:
        dim: d.
        subspace: k, below d.

    Example:
        >>> share = direction_share(384, 16)
        >>> [round(float(x), 3) for x in share]
        [0.042, 0.018, 0.074]

    Reference:
        Muirhead, Aspects of Multivariate Statistical Theory, 1982, theorem 1.5.7.
    """
    quantiles = _share_quantiles(dim, subspace, np.array([(1 - BAND) / 2, (1 + BAND) / 2]))
    return Chance(np.asarray(subspace / dim), *quantiles)


def direction_angle(dim: int, subspace: int) -> Chance:
    """Angle of a random direction to a subspace, in degrees: ``arccos ||P u||``.

    The mean is the integral over the quantiles of the law of :func:`direction_share`.

    Args:
        dim: d.
        subspace: k, below d.

    Example:
        >>> round(float(direction_angle(384, 16).value), 1)
        78.4

    Reference:
        Muirhead, Aspects of Multivariate Statistical Theory, 1982, theorem 1.5.7.
    """
    levels = np.array([(1 + BAND) / 2, (1 - BAND) / 2])  # the larger share is the smaller angle
    levels = np.concatenate([levels, (np.arange(GRID) + 0.5) / GRID])
    low, high, *every = np.degrees(np.arccos(np.sqrt(_share_quantiles(dim, subspace, levels))))
    return Chance(np.asarray(np.mean(every)), low, high)


def _share_quantiles(dim: int, subspace: int, levels: np.ndarray) -> np.ndarray:
    from scipy.special import betaincinv

    checks.integer("dim", dim, 2)
    checks.integer("subspace", subspace)
    if subspace >= dim:
        checks.refuse("subspace", subspace, f"less than dim, {dim}")
    return betaincinv(subspace / 2, (dim - subspace) / 2, levels)


def principal_angles(dim: int, first: int, second: int, draws: int = DRAWS) -> Chance:
    """Principal angles between two random subspaces, in degrees, increasing; drawn.

    Cosines are the singular values of ``U^T V``, U and V uniform with orthonormal columns; the mean
    of the sum of their squares is ``p q / d``. By invariance U may be the first p coordinates.

    Args:
        dim: d.
        first: p, dimensions of the first subspace.
        second: q, those of the second.
        draws: how many random pairs.

    Returns:
        Arrays of min(p, q) angles.

    Example:
        >>> angles = principal_angles(100, 2, 3).value
        >>> [round(float(angle)) for angle in angles]
        [78, 85]

    Reference:
        Absil, Edelman and Koev, On the largest principal angle between random subspaces, 2006.
    """
    checks.integer("dim", dim)
    for name, size in (("first", first), ("second", second)):
        checks.integer(name, size)
        if size > dim:
            checks.refuse(name, size, f"at most dim, {dim}")
    checks.integer("draws", draws)
    rng = np.random.default_rng(0)
    angles = []
    for _ in range(draws):
        # The signs that QR chooses do not matter here: angles are those of spans.
        basis, _ = np.linalg.qr(rng.normal(size=(dim, second)))
        cosines = np.linalg.svd(basis[:first], compute_uv=False)
        # Rounding may leave a cosine above 1.
        angles.append(np.degrees(np.arccos(np.minimum(cosines, 1.0))))
    return _mean_and_band(np.array(angles))


# Matrices --------------------------------------------------------------------------------------


def moved_singular_values(matrix: Float[np.ndarray, "m n"], size: float, draws: int = 8) -> Chance:
    """How far a random matrix E moves singular values: ``|ln(sigma_i(A + E) / sigma_i(A))|``.

    Args:
        matrix: A, without singular values of 0.
        size: ``||E||_F``; E has Gaussian entries.
        draws: how many random matrices.

    Returns:
        Arrays of min(m, n), in the order of the singular values.

    Example:
        >>> moved = moved_singular_values(np.eye(50), 0.1 * 50**0.5).value
        >>> bool(0.1 < moved[0] < 0.16), bool(20 < np.argmin(moved) < 30)  # the middle stays
        (True, True)
    """
    checks.integer("draws", draws)
    rng, before = np.random.default_rng(0), np.linalg.svd(matrix, compute_uv=False)
    moves = []
    for _ in range(draws):
        random = rng.normal(size=matrix.shape)
        after = np.linalg.svd(matrix + size / np.linalg.norm(random) * random, compute_uv=False)
        moves.append(np.abs(np.log(after / before)))
    return _mean_and_band(np.array(moves))


def gaussian_singular_values(rows: int, columns: int) -> Float[np.ndarray, "k"]:
    """Singular values of a matrix of standard Gaussian entries, decreasing: typical ones.

    The i-th of k = min(m, n) is the quantile at ``(i - 1/2) / k`` from above of the law of
    Marchenko and Pastur: with N = max(m, n), beta = k / N and ``x = sigma^2 / N`` the density is
    ``sqrt((b - x)(x - a)) / (2 pi beta x)`` between ``a, b = (1 -+ sqrt(beta))^2``.

    Ranks and energies of these values are within 5 % of the mean over draws at k = 5, within 3 % at
    k = 20, and within 1 % at k = 128.

    Args:
        rows: m.
        columns: n.

    Example:
        >>> values = gaussian_singular_values(512, 512)
        >>> bool(1.97 < values[0] / 512**0.5 < 2.0), bool(values[-1] < 0.002 * values[0])
        (True, True)

    Reference:
        Marchenko and Pastur, Distribution of eigenvalues for some sets of random matrices, 1967.
    """
    checks.integer("rows", rows)
    checks.integer("columns", columns)
    count, longest = min(rows, columns), max(rows, columns)
    ratio = count / longest
    least, most = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    # x = a + (b - a) sin^2 t makes the integrand smooth at both edges.
    t = np.linspace(0, np.pi / 2, GRID)
    x = least + (most - least) * np.sin(t) ** 2
    # (b - x)(x - a) = (b - a)^2 sin^2 t cos^2 t, and dx = 2 (b - a) sin t cos t dt. At x = 0, which
    # a square matrix has, the quotient below has the limit b.
    squares = (most - least) ** 2 * np.sin(t) ** 2 * np.cos(t) ** 2
    density = np.divide(squares, x, out=np.full(GRID, most), where=x > 0) / (np.pi * ratio)
    # Divided by the whole, so that errors of the trapezoidal rule do not move the last quantile.
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(t))])
    levels = 1 - (np.arange(count) + 0.5) / count
    return np.sqrt(longest * np.interp(levels, mass / mass[-1], x))


def gaussian_effective_rank(rows: int, columns: int) -> float:
    """Effective rank ``exp(-sum p log p)``, ``p = sigma_i / sum sigma``, of a Gaussian matrix.

    From :func:`gaussian_singular_values`.

    Example:
        >>> round(gaussian_effective_rank(512, 512) / 512, 2)
        0.82

    Reference:
        Roy and Vetterli, The effective rank, 2007.
    """
    values = gaussian_singular_values(rows, columns)
    shares = values / np.sum(values)
    return float(np.exp(-np.sum(shares * np.log(shares))))


def gaussian_stable_rank(rows: int, columns: int) -> float:
    """Stable rank ``||G||_F^2 / ||G||_2^2`` of a Gaussian matrix.

    From :func:`gaussian_singular_values`; for large ones ``m n / (sqrt(m) + sqrt(n))^2``.

    Example:
        >>> round(gaussian_stable_rank(512, 512) / 512, 2)
        0.25

    Reference:
        Rudelson and Vershynin, Sampling from large matrices, 2007.
    """
    return 1 / gaussian_energy(rows, columns, 1)


def gaussian_energy(rows: int, columns: int, first: int) -> float:
    """Share of the squared Frobenius norm of a Gaussian matrix in its first r singular values.

    From :func:`gaussian_singular_values`.

    Args:
        rows: m.
        columns: n.
        first: r, at most min(m, n).

    Example:
        >>> round(gaussian_energy(512, 512, 20), 3)
        0.138
    """
    values = gaussian_singular_values(rows, columns)
    _check_first(first, len(values))
    return float(np.sum(values[:first] ** 2) / np.sum(values**2))


def gaussian_ratio(rows: int, columns: int, first: int) -> float:
    """``sigma_{r+1} / sigma_r`` of a Gaussian matrix: what there is of an edge after r values.

    From :func:`gaussian_singular_values`.

    Args:
        rows: m.
        columns: n.
        first: r, below min(m, n).

    Example:
        >>> round(gaussian_ratio(512, 512, 20), 3)
        0.996
    """
    values = gaussian_singular_values(rows, columns)
    _check_first(first, len(values) - 1)
    return float(values[first] / values[first - 1])


def _check_first(first: int, most: int) -> None:
    checks.integer("first", first)
    if first > most:
        checks.refuse("first", first, f"at most {most} of the singular values")


def gaussian_statistic(
    statistic: Callable[[np.ndarray], np.ndarray | float],
    rows: int,
    columns: int,
    *,
    norm: float | None = None,
    draws: int = DRAWS,
) -> Chance:
    """Mean and band of any statistic of a Gaussian matrix, over random draws.

    Args:
        statistic: ``statistic(G)``: a number, or an array of one shape.
        rows: m.
        columns: n.
        norm: Frobenius norm to which every draw is scaled; by default entries are standard.
        draws: how many matrices.

    Example:
        >>> largest = gaussian_statistic(lambda G: np.linalg.norm(G, 2), 30, 40, norm=1.0)
        >>> bool(largest.low < largest.value < largest.high < 0.4)
        True
    """
    checks.integer("rows", rows)
    checks.integer("columns", columns)
    checks.integer("draws", draws)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(draws):
        drawn = rng.normal(size=(rows, columns))
        values.append(statistic(drawn if norm is None else drawn * (norm / np.linalg.norm(drawn))))
    return _mean_and_band(np.array(values))


def _mean_and_band(draws: np.ndarray) -> Chance:
    """Mean and band over the first axis."""
    low, high = np.quantile(draws, [(1 - BAND) / 2, (1 + BAND) / 2], axis=0)
    return Chance(np.asarray(np.mean(draws, axis=0)), np.asarray(low), np.asarray(high))
