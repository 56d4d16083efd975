"""Theorem 2's quantities of an update, each beside what chance gives.

Theorem 2 is of deep linear networks from an orthogonal start. There an update W(t) - W(0) has 2K
directions of its own, K the rank of the target, and these stay; behind them W moves as a whole: the
update is a multiple of W(0). The first 2K by singular value are these while they move more than the
rest. Of other networks the theorem promises nothing, and the same quantities can be measured. A
number says something only beside that of a matrix that knows nothing.
"""

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lrdyn.core import chance
from lrdyn.core.chance import Chance
from lrdyn.diagnosis.on_device import OnDevice
from lrdyn.diagnosis.spectrum import minus_product

DRAWS = 40
"""Pairs of random spaces that are drawn: the mean of their angles spreads by less than a degree."""
MORE = 1.1
"""Energy over that of chance from which on it counts as more: one draw of a Gaussian matrix of a
few dozen rows differs from the mean by some hundredths."""


class Bulk(NamedTuple):
    """What an update does behind its first directions, R, beside what W(0) has there, B."""

    drift: float
    """<R, B> / ||B||^2: by how much of itself W moved there; rho(t) / eps - 1 in Theorem 2."""
    drift_chance: float
    """What 2.5 % of all R of this norm exceed that know nothing of B, either way."""
    along: float
    """Share of ||R||^2 along B: 1 in Theorem 2."""
    along_chance: float
    """Share of a random R along B: one over its number of dimensions."""


UNKNOWN = Bulk(*[math.nan] * 4)


def bulk(
    update: Float[np.ndarray, "m n"] | OnDevice,
    start: Float[np.ndarray, "m n"] | OnDevice,
    left: Float[np.ndarray, "m k"],
    right: Float[np.ndarray, "n k"],
) -> Bulk:
    """Measure ``R = (1 - U U^T) D (1 - V V^T)`` against the same part of W(0).

    Args:
        update: D = W(t) - W(0), on the CPU or a device.
        start: W(0), likewise.
        left: U, the first directions of the update.
        right: V, likewise.

    Returns:
        NaN where W(0) has nothing there.

    Example:
        >>> start, k = np.diag([2.0, 2.0, 2.0]), np.eye(3)[:, :1]
        >>> behind = bulk(np.diag([5.0, -0.2, -0.2]), start, k, k)
        >>> round(behind.drift, 3), round(behind.along, 3), round(behind.along_chance, 3)
        (-0.1, 1.0, 0.25)

    Reference:
        docs/theorems/theorem2.md.
    """
    R = minus_product(update, left, left.T @ update)
    R = minus_product(R, R @ right, right.T)
    in_left = left.T @ start
    beside = [in_left, start @ right, in_left @ right]
    both, by_left, by_right, shared = (_inner_product(x, x) for x in (start, *beside))
    # The part of W(0) itself is not built: a sum of squares, less by rounding where it is 0.
    length = both - by_left - by_right + shared
    free = (len(left) - left.shape[1]) * (len(right) - right.shape[1])
    if length <= float(np.finfo(update.dtype).eps) * both or not free:
        return UNKNOWN
    inner, size = _inner_product(R, start), _inner_product(R, R)
    along = inner**2 / (size * length) if size else math.nan
    return Bulk(inner / length, math.sqrt(_high_share(free) * size / length), along, 1 / free)


@cache
def _high_share(dim: int) -> float:
    """The share along a line that 2.5 % of random directions exceed, as R has along B by chance."""
    return float(chance.direction_share(dim, 1).high) if dim > 1 else 1.0


def _inner_product(first: Any, second: Any) -> float:
    """Inner product, summed in float64 a row at a time; of two on a device, there."""
    if isinstance(first, OnDevice):
        return first.inner(second)
    with np.errstate(over="ignore", invalid="ignore"):  # float32 may leave its range
        total = float(np.sum(np.vecdot(first, second), dtype=np.float64))
    if math.isfinite(total):
        return total
    return float(np.einsum("ij,ij->", first, second, dtype=np.float64))


@cache
def energy_chance(rows: int, columns: int, k: int) -> float:
    """Share of the squared norm of a Gaussian matrix in its first k singular values.

    Args:
        rows: m.
        columns: n.
        k: how many singular values.

    Example:
        >>> round(energy_chance(150, 150, 20), 2)
        0.4
    """
    return chance.gaussian_energy(rows, columns, k)


@cache
def angle_chance(dim: int, count: int) -> Chance:
    """Principal angles in radians of two random spaces of ``count`` dimensions, increasing.

    Example:
        >>> angle_chance(100, 2).value.round(1).tolist()
        [1.4, 1.5]
    """
    return Chance(*map(np.radians, chance.principal_angles(dim, count, count, DRAWS)))
