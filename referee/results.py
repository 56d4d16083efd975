"""Reading ``results.nc`` with h5py: points with their cases and what was found there."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import h5py
import numpy as np

Function = TypeVar("Function", bound=Callable[..., Any])
MARK = "case."
"""Beginning of the names of the arrays of a case."""


class Point(NamedTuple):
    """One setting of one scenario at its first seed."""

    case: Mapping[str, np.ndarray]
    """What theory and run start from, by the names of its parts."""
    found: Mapping[str, np.ndarray]
    """What was computed there, without padding."""
    flags: Mapping[str, Any]
    """The values of the axes, and of the flags that are not swept; ``dtype``."""
    memory: dict[Any, Any]
    """What was computed here already, see :func:`once`."""

    @property
    def epsilon(self) -> float:
        """Machine epsilon of the precision that was asked for."""
        return float(np.finfo(self.flags["dtype"]).eps)

    @property
    def times(self) -> list[int]:
        """The recorded steps, as whole numbers."""
        return [int(t) for t in np.atleast_1d(self.case["steps"])]

    def parts(self, name: str) -> list[np.ndarray]:
        """A list of arrays of the case: ``weights.0``, ``weights.1``, ...; those that are there."""
        arrays = []
        while (array := self.case.get(f"{name}.{len(arrays)}")) is not None and array.size:
            arrays.append(array)
        return arrays


def once(function: Function) -> Function:
    """A function of a point that is computed there once, however many claims look at it."""

    @wraps(function)
    def remembered(point: Point, *rest: Any) -> Any:
        # By the function itself: names are shared between modules.
        key = (function, *rest)
        if key not in point.memory:
            point.memory[key] = function(point, *rest)
        return point.memory[key]

    return cast(Function, remembered)


class SavedScenario(NamedTuple):
    """A group of ``results.nc`` whose cases are saved."""

    name: str
    points: list[Point]
    left_out: list[str]
    """Arrays of cases that were too large to be saved."""


class Record(NamedTuple):
    """What a file says of its run."""

    name: str
    schema: int
    config: dict[str, Any]
    environment: dict[str, Any]
    arithmetic: dict[str, Any]
    controls: set[str]
    """Those with arrays of their own."""


def record(path: Path) -> Record:
    """Read what a file says of its run."""
    with h5py.File(path) as file:
        attributes: Any = file.attrs
        about = {name: json.loads(_text(attributes.get(name, "{}"))) for name in RECORDED}
        controls = file.get("controls")
        named = {str(name) for name in controls} if isinstance(controls, h5py.Group) else set()
        schema = int(np.ravel(attributes["schema"])[0])
        return Record(_text(attributes["name"]), schema, **about, controls=named)


RECORDED = ("config", "environment", "arithmetic")
"""Attributes in JSON."""


def scenarios(path: Path) -> dict[str, SavedScenario]:
    """Every scenario of a file, by its name."""
    by_name, names = {}, dict[int, str]()
    with h5py.File(path) as file:
        dtype = json.loads(_text(file.attrs["config"]))["dtype"]
        for group in (file, *file.values()):
            if not isinstance(group, h5py.Group) or "scenario" not in group.attrs:
                continue
            if isinstance(cases := group.get("case"), h5py.Group):
                title = _text(group.attrs["scenario"])
                left_out = json.loads(_text(cases.attrs["left_out"]))
                by_name[title] = SavedScenario(
                    title, list(_points(group, cases, dtype, names)), left_out
                )
    return by_name


def _points(
    group: h5py.Group, cases: h5py.Group, dtype: str, names: dict[int, str]
) -> Iterator[Point]:
    whole = _dataset(group, "longest_axis")
    axes = _axes(whole, names)
    fixed = json.loads(_text(group.attrs["fixed"])) | {"dtype": dtype}
    # Cases are those of the first seed; they lie along the axes of the results.
    sizes = [1 if axis == "seed" else n for axis, n in zip(axes, whole.shape, strict=True)]
    values = {axis: _dataset(group, axis)[()] for axis in axes}
    results, of_cases = _arrays(group, axes, names), _arrays(cases, axes, names)
    for place in np.ndindex(*sizes):
        flags = {axis: _plain(values[axis][i]) for axis, i in zip(axes, place, strict=True)}
        case = _cut(of_cases, place)
        case = {n.removeprefix(MARK): a for n, a in case.items() if n.startswith(MARK)}
        yield Point(case, _cut(results, place), fixed | flags, {})


class _Padded(NamedTuple):
    values: np.ndarray
    axes: list[str]
    """Beyond those of the points."""


def _arrays(group: h5py.Group, points: list[str], names: dict[int, str]) -> dict[str, _Padded]:
    padded = {}
    for name, array in group.items():
        if isinstance(array, h5py.Dataset):
            axes = _axes(array, names)
            # An array without the axes of the points is a coordinate, and no result.
            if axes[: len(points)] == points:
                padded[name] = _Padded(array[()], axes[len(points) :])
    return padded


def _cut(arrays: Mapping[str, _Padded], place: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The arrays of a point without their padding."""
    # length_AXIS says where the padding of an axis begins.
    ends = {n[7:]: int(a.values[place]) for n, a in arrays.items() if n.startswith("length_")}
    return {
        name: np.asarray(array.values[place])[tuple(slice(ends.get(axis)) for axis in array.axes)]
        for name, array in arrays.items()
        if not name.startswith("length_")
    }


def _axes(array: h5py.Dataset, names: dict[int, str]) -> list[str]:
    """Names of the axes of an array; those that were met are known by their place in the file.

    To name an axis HDF5 looks through the file for it, which takes longer than all else here.
    """
    library: Any = h5py  # whose stubs lack what says that place
    axes = []
    for scale in array.dims:
        if len(scale):
            axis = scale[0]
            place = library.h5o.get_info(axis.id).addr
            if place not in names:
                names[place] = str(axis.name).rpartition("/")[2]
            axes.append(names[place])
    return axes


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else _text(value)


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    array = group[name]
    assert isinstance(array, h5py.Dataset), f"{name} is no array"
    return array


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
