"""Points of a sweep: products of axes, lists, random draws."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key

from lrdyn.core import checks

Axis = Sequence[Any] | np.ndarray


class Column(NamedTuple):
    """The values of one axis at all points, made only where they are asked for."""

    values: np.ndarray
    """The different values of the axis."""
    stride: int = 1
    """Number of consecutive points that have the same value."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the values."""
        return self.values.dtype

    def __getitem__(self, indices: Any) -> Any:
        """The values at some points."""
        # A mixed-radix number: the stride is the product of the lengths of all faster axes.
        return self.values[np.asarray(indices) // self.stride % len(self.values)]

    def value(self, index: int) -> Any:
        """The value at one point, as Python has it."""
        value = self[index]
        return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


class Points(NamedTuple):
    """Points of a sweep: see :func:`product`, :func:`zipped`, :func:`listed`, :func:`sampled`.

    They are described and not listed: a product holds the values of its axes alone.
    """

    axes: Mapping[str, np.ndarray]
    """Values of each axis."""
    crossed: bool = False
    """Whether the points are all combinations of the values, the last axis fastest; else the axes
    are as long as there are points."""

    def __eq__(self, other: object) -> bool:
        """Whether the points are the same, in the same order."""
        if not isinstance(other, Points) or self.axes.keys() != other.axes.keys():
            return False
        equal = (np.array_equal(values, other.axes[name]) for name, values in self.axes.items())
        return self.crossed == other.crossed and all(equal)

    def __ne__(self, other: object) -> bool:
        """Whether the points differ; without this method, a tuple's own ``!=`` would answer."""
        return not self == other

    def __hash__(self) -> int:
        """A hash that is equal for equal points."""
        # Names alone: arrays have no hash, and ``__eq__`` tells the rest apart.
        return hash((self.crossed, frozenset(self.axes)))

    @property
    def size(self) -> int:
        """Count the points."""
        lengths = [len(values) for values in self.axes.values()]
        return math.prod(lengths) if self.crossed else lengths[0]

    @property
    def grid(self) -> dict[str, list] | None:
        """The axes of a product, in the order of the dimensions; None for a list of points."""
        return {n: v.tolist() for n, v in self.axes.items()} if self.crossed else None

    @property
    def columns(self) -> dict[str, list]:
        """One list for each axis, all as long as there are points."""
        return {name: self.column(name)[np.arange(self.size)].tolist() for name in self.axes}

    def column(self, name: str) -> Column:
        """The values of an axis at all points."""
        if not self.crossed:
            return Column(self.axes[name])
        names = list(self.axes)
        faster = names[names.index(name) + 1 :]
        return Column(self.axes[name], math.prod(len(self.axes[n]) for n in faster))

    def point(self, index: int) -> dict[str, Any]:
        """The values of one point, as Python has them."""
        return {name: self.column(name).value(index) for name in self.axes}


NONE = Points({})
"""A sweep without points: a worker is told the points of each part."""


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
    return Points(_nonempty_axes(axes), crossed=True)


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
    columns = _nonempty_axes(axes)
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
    """Draw random points, each axis independently of the others.

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
    checks.allocation({"count": count}, (count, 2 * max(len(distributions), 1)), dtype="int64")
    keys = jax.random.split(key, len(distributions)) if distributions else ()
    draws = {
        name: np.asarray(draw(k, (count,)))
        for k, (name, draw) in zip(keys, distributions.items(), strict=True)
    }
    return zipped(**draws)


def _nonempty_axes(axes: Mapping[str, Axis]) -> dict[str, np.ndarray]:
    columns = {name: _widen(values) for name, values in axes.items()}
    empty = [name for name, values in columns.items() if not len(values)]
    if empty or not columns:
        raise ValueError(f"axes: got {empty or 'none'} empty, wanted at least one value on each")
    return columns


def _widen(values: Axis) -> np.ndarray:
    """Convert numbers to 64 bits, as those of a list are: axes have no precision, runs have."""
    if isinstance(values, range):
        return np.arange(values.start, values.stop, values.step)
    array = np.asarray(values)
    kinds = {"f": np.float64, "i": np.int64}
    return array.astype(kinds.get(array.dtype.kind, array.dtype), copy=False)
