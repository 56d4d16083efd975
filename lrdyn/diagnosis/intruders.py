"""Intruder dimensions: leading directions of W + update that are nearly orthogonal to all of W's.

For a spike theta a b^T with random unit vectors a, b beside W = U S V^T of m x n, the outlier y of
W + theta a b^T and its left singular vector u follow from W's singular values s_i alone:

    theta^2 phi_m(y) phi_n(y) = 1,    phi_m(y) = (1 / m) sum_i y / (y^2 - s_i^2) over all m,
    E (u . u_i)^2 ~ (y^2 phi_n / m + s_i^2 phi_m / n) / (y^2 - s_i^2)^2

(phi_n likewise over all n; the s_i behind the shorter side are 0). Where theta is small y stays at
the edge of W's values and u is W's own direction there; where it is large u is spread over all of
W's: this is the transition of Baik, Ben Arous and Péché. So a large random update has intruders by
chance, and fewer than that say that the update goes along W.
"""

from typing import NamedTuple

import numpy as np

from lrdyn.diagnosis.spectrum import leading_triples

COSINE = 0.5
"""Largest cosine of an intruder with any direction of W."""
HALVINGS = 100
"""Halvings of the bracket of y: to the last bit of float64."""


class Intruders(NamedTuple):
    """How many of the leading directions of W + update are not W's."""

    found: int
    """Of the first k left singular vectors of W + update, those whose largest cosine with W's is
    below :data:`COSINE`."""
    by_chance: int
    """How many there would be if the update had its singular values and random directions."""
    cosines: np.ndarray
    """The largest cosine of each of the first k with any of W's."""


def outliers(sizes: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The singular values y of W + theta a b^T above all of W's, for each theta.

    Args:
        sizes: theta, positive.
        values: s_i, all singular values of W.
        shape: of W, m x n.

    Example:
        >>> outliers(np.array([3.0]), np.zeros(4), (4, 4)).round(9).tolist()
        [3.0]

    Reference:
        Benaych-Georges and Nadakuditi, arXiv 1103.2221, theorem 2.8.
    """
    low = np.full(len(sizes), float(np.max(values)))
    # By Weyl's inequality the value is at most s_1 + theta.
    high = low + sizes
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        with np.errstate(divide="ignore", over="ignore"):
            product = np.prod(_phis(middle, values, shape), axis=0)
            is_below = product > 1 / sizes**2
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return high


def weights(sizes: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Expected (u . u_i)^2 of the outlier of each theta with each direction of W.

    Args:
        sizes: theta, positive.
        values: s_i, all singular values of W, decreasing.
        shape: of W, m x n.

    Returns:
        One row for each theta, one column for each s_i.

    Example:
        >>> weights(np.array([3.0]), np.zeros(4), (4, 4)).round(9).tolist()
        [[0.25, 0.25, 0.25, 0.25]]
    """
    m, n = shape
    y = outliers(sizes, values, shape)[:, None]
    phi_m, phi_n = (phi[:, None] for phi in _phis(y[:, 0], values, shape))
    # Relative to the nearest gap: next to an edge the square of it would underflow.
    gaps = np.maximum(y**2 - values**2, np.finfo(float).tiny)
    gaps = gaps / gaps.min(axis=1, keepdims=True)
    each = (y**2 * phi_n / m + values**2 * phi_m / n) / gaps**2
    rest = np.maximum(y**2 - values[0] ** 2, np.finfo(float).tiny)
    behind = (m - len(values)) * (y**2 * phi_n / m) / (y**2 / rest) ** 2
    return each / (each.sum(axis=1, keepdims=True) + behind)


def _phis(
    y: np.ndarray, values: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """phi_m and phi_n at each y."""
    short = np.sum(y[:, None] / (y[:, None] ** 2 - values**2), axis=1)
    m, n = ((short + (side - len(values)) / y) / side for side in shape)
    return m, n


def find_intruders(before: np.ndarray, after: np.ndarray, sizes: np.ndarray, k: int) -> Intruders:
    """Count the intruders among the first k directions, beside those that chance gives.

    By chance: W's values behind its first k are the bulk. An outlier y of it counts if it is one of
    the k largest among all outliers and W's own first k values, and no expected (u . u_i)^2 is
    above the square of :data:`COSINE`. It follows from W and the sizes of the update alone.

    Args:
        before: W, m x n.
        after: W + update.
        sizes: singular values of the update, decreasing.
        k: how many directions of W + update are looked at.

    Example:
        >>> W = np.diag(np.arange(16.0, 0.0, -1.0))
        >>> spike = np.full((16, 16), 10.0)  # of size 160, alike to all directions of W
        >>> find_intruders(W, W + spike, np.array([160.0]), 1)[:2]
        (1, 1)

    Reference:
        Shuttleworth, Andreas, Torralba and Sharma, arXiv 2410.21228, algorithm 1.
    """
    shape = (before.shape[0], before.shape[1])
    k = min(k, *shape)
    left, values, _ = np.linalg.svd(before, full_matrices=False)
    new, _, _ = leading_triples(after, k)
    cosines = np.max(np.abs(left.T @ new), axis=0)
    count = int(np.sum(cosines < COSINE))
    own, bulk = (np.asarray(part, np.float64) for part in (values[:k], values[k:]))
    sizes = np.asarray(sizes[:k], np.float64)
    # What rounding leaves of a 0 is no spike.
    sizes = sizes[sizes > np.finfo(np.float32).eps * max(own[0], sizes[0])]
    if not len(sizes) or not len(bulk):
        return Intruders(count, 0, cosines)
    rest = (shape[0] - k, shape[1] - k)
    new_values = outliers(sizes, bulk, rest)
    # Among them and W's own first values the k largest are looked at.
    is_leading = new_values >= np.sort(np.concatenate([own, new_values]))[-k]
    is_spread = weights(sizes, bulk, rest).max(axis=1) < COSINE**2
    return Intruders(count, int(np.sum(is_leading & is_spread)), cosines)
