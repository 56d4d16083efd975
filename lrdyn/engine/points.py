"""Points of a sweep: products of axes, lists, random draws."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from lrdyn.core import checks

Axis = Sequence[Any] | np.ndarray


class Points(NamedTuple):
    """Points of a sweep: see :func:`product`, :func:`zipped`, :func:`listed`, :func:`sampled`."""

    columns: Mapping[str, list]
    """One list for each axis, all as long as there are points."""
    grid: Mapping[str, list] | None = None
    """The axes of a product, in the order of the dimensions; None for a list of points."""

    @property
    def size(self) -> int:
        """Number of points."""
        return len(next(iter(self.columns.values())))


NONE = Points({})
"""No points: a worker is told those of each part."""


def product(**axes: Axis) -> Points:
    """All combinations of the values of the axes.

    Args:
        **axes: values of each axis.

    Returns:
        The points; the results have one dimension for each axis.

    Raises:
        ValueError: there is no axis, or one is empty.

    Example:
        >>> product(depth=[2, 3], rank=[1, 2, 3]).size
        6
    """
    grid = _nonempty(axes)
    mesh = np.meshgrid(*(np.arange(len(values)) for values in grid.values()), indexing="ij")
    columns = {
        name: [values[i] for i in index.ravel()]
        for (name, values), index in zip(grid.items(), mesh, strict=True)
    }
    return Points(columns, grid)


def zipped(**axes: Axis) -> Points:
    """Values of equally long axes, taken together.

    Args:
        **axes: values of each axis.

    Returns:
        The points; the results have one dimension, ``point``.

    Raises:
        ValueError: there is no axis, or the lengths differ.

    Example:
        >>> zipped(depth=[2, 3], rank=[1, 5]).size
        2
    """
    columns = _nonempty(axes)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"axes: got lengths {lengths}, wanted all the same")
    return Points(columns)


def listed(points: Sequence[Mapping[str, Any]]) -> Points:
    """Points given one by one.

    Args:
        points: one mapping from axis to value for each point, all with the same axes.

    Returns:
        The points; the results have one dimension, ``point``.

    Raises:
        ValueError: there is no point, or they have different axes.

    Example:
        >>> listed([{"depth": 2, "rank": 1}, {"depth": 3, "rank": 4}]).size
        2
    """
    if not points:
        raise ValueError("points: got none, wanted at least one")
    names = list(points[0])
    for point in points:
        if set(point) != set(names):
            raise ValueError(
                f"points: got axes {sorted(point)}, wanted {sorted(names)} in every point"
            )
    return zipped(**{name: [point[name] for point in points] for name in names})


def sampled(
    key: Key[Array, ""], count: int, **distributions: Callable[[Key[Array, ""], tuple[int]], Array]
) -> Points:
    """Random points.

    Args:
        key: random key.
        count: number of points.
        **distributions: for each axis a function ``draw(key, shape)``, such as
            ``functools.partial(jax.random.uniform, minval=0.1)``.

    Returns:
        The points; the results have one dimension, ``point``.

    Raises:
        ValueError: ``count`` is smaller than 1.

    Example:
        >>> import jax
        >>> sampled(jax.random.key(0), 5, init_scale=jax.random.uniform).size
        5
    """
    checks.integer("count", count)
    # Values become Python's, each with a place in a list.
    checks.allocation({"count": count}, (count, 4 * max(len(distributions), 1)), dtype="int64")
    keys = jax.random.split(key, len(distributions)) if distributions else ()
    draws = {
        name: np.asarray(draw(k, (count,))).tolist()
        for k, (name, draw) in zip(keys, distributions.items(), strict=True)
    }
    return zipped(**draws)


def _nonempty(axes: Mapping[str, Axis]) -> dict[str, list]:
    columns = {name: np.asarray(values).tolist() for name, values in axes.items()}
    empty = [name for name, values in columns.items() if not values]
    if empty or not columns:
        raise ValueError(f"axes: got {empty or 'none'} empty, wanted at least one value on each")
    return columns
