"""Labelled results of a sweep, in memory or in a file: filled part by part."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lrdyn.system import whole_files
from lrdyn.verification.stating import array_types
from lrdyn.verification.stating.points import Points
from lrdyn.verification.storing import files, netcdf
from lrdyn.verification.storing.cases import MARK

if TYPE_CHECKING:
    import xarray


class Mislabelled(ValueError):
    """The names of axes do not fit the results."""


Outputs = Mapping[str, jax.ShapeDtypeStruct]


class Variable(NamedTuple):
    """One result of all points."""

    axes: tuple[str, ...]
    """Names of the axes behind those of the points."""
    shape: tuple[int, ...]
    """Shape of the largest result; smaller ones are padded with NaN."""
    dtype: np.dtype
    ragged: bool


class Labels:
    """Names and sizes of the results, known before anything runs."""

    def __init__(
        self, points: Points, dims: Mapping[str, tuple[str, ...]], outputs: Sequence[Outputs]
    ):
        """Join the results of one point of each program; programs differ in shapes.

        Arrays of cases may be missing in some; those whose number of axes varies are left out.
        """
        self.points = points
        # What each program returns beside a case.
        names, *others = [{n for n in output if not n.startswith(MARK)} for output in outputs]
        for other in others:
            if other != names:
                got = sorted(other)
                raise Mislabelled(f"results: got {got}, wanted {sorted(names)} everywhere")
        every: dict[str, list[jax.ShapeDtypeStruct]] = {}
        for output in outputs:
            for name, like in output.items():
                every.setdefault(name, []).append(like)
        self.variables = {
            name: _variable(name, likes, dims, missing=len(likes) < len(outputs))
            for name, likes in every.items()
            if name in names or len({len(like.shape) for like in likes}) == 1
        }
        lengths: dict[str, set[int]] = {}
        for name, v in self.variables.items():
            # An array that a program lacks has a length at its points, too, and -1 stands for that.
            absent = {-1} if len(every[name]) < len(outputs) else set()
            for place, axis in enumerate(v.axes):
                sizes = {like.shape[place] for like in every[name]}
                lengths.setdefault(axis, set()).update(sizes | absent)
        self.ragged = [axis for axis, sizes in lengths.items() if len(sizes) > 1]
        """Axes whose true length is saved for each point, as ``length_<axis>``."""
        axes = {name: len(values) for name, values in points.axes.items()}
        self.lead = axes if points.crossed else {"point": points.size}
        """Names and sizes of the axes of the points."""
        each = (math.prod(v.shape) * v.dtype.itemsize for v in self.variables.values())
        self.nbytes = points.size * sum(each)
        """Bytes of all results."""


def _variable(
    name: str,
    outputs: Sequence[jax.ShapeDtypeStruct],
    dims: Mapping[str, tuple[str, ...]],
    *,
    missing: bool,
) -> Variable:
    ranks = [len(output.shape) for output in outputs]
    axes = tuple(dims.get(name, [f"{name}_{i}" for i in range(ranks[0])]))
    if {len(axes)} != set(ranks):
        raise Mislabelled(f"dims: got {axes} for {name!r}, wanted {ranks[0]} names")
    shapes = [output.shape for output in outputs]
    shape = tuple(int(n) for n in np.max(np.asarray(shapes, int), axis=0)) if axes else ()
    ragged = missing or any(other != shape for other in shapes)
    # What is no number, of a sweep of which nothing is judged, stays as it is.
    kept = [array_types.kept_type(output.dtype) or output.dtype for output in outputs]
    dtype = np.result_type(*kept)
    # Only a floating-point number can be NaN.
    return Variable(axes, shape, np.result_type(dtype, np.float32) if ragged else dtype, ragged)


class Target:
    """Room for all results; parts are put into it in any order."""

    def __init__(self, labels: Labels, memory: int, folder: Path | None):
        """Make room: on disk if the results exceed the budget and there is a folder."""
        self.labels = labels
        self.large = {
            name
            for name, v in labels.variables.items()
            # Not on disk: single numbers, empty arrays, which HDF5 cannot cut into chunks, and
            # coordinates, which xarray reads anyway.
            if v.shape and 0 not in v.shape and v.axes != (name,)
        }
        if folder is None or labels.nbytes <= memory:
            self.large = set()
        self.arrays: dict[str, np.ndarray] = {
            name: np.full((labels.points.size, *v.shape), np.nan if v.ragged else 0, v.dtype)
            for name, v in labels.variables.items()
            if name not in self.large
        }
        self.lengths = {axis: np.full(labels.points.size, -1, np.int32) for axis in labels.ragged}
        self.file = None
        if self.large and folder:
            self.path = whole_files.make_scratch(folder, ".nc")
            self.file = files.NetCDF(self.path)
            self.stored = {}
            for name in self.large:
                v = labels.variables[name]
                dims = labels.lead | dict(zip(v.axes, v.shape, strict=True))
                # One chunk for each point: parts arrive in any order, and each point is written at
                # once.
                chunks = (*(1 for _ in labels.lead), *v.shape)
                self.stored[name] = self.file.create(name, dims, v.dtype, chunks)

    def place(self, indices: np.ndarray, outputs: Mapping[str, np.ndarray]) -> None:
        """Put the results of some points, along a leading axis, where they belong."""
        for name, rows in outputs.items():
            if name not in self.labels.variables:
                continue
            self._record_lengths(name, indices, rows)
            self._refuse_rounding(name, rows)
            inner = tuple(map(slice, rows.shape[1:]))
            if name in self.arrays:
                self.arrays[name][(indices, *inner)] = rows
                continue
            # One by one: HDF5 takes no list of indices along several axes.
            for index, row in zip(indices, rows, strict=True):
                where = np.unravel_index(index, tuple(self.labels.lead.values()))
                self.stored[name][(*map(int, where), *inner)] = row
        if self.file:
            self.file.check()

    def close(self) -> None:
        """Finish the file of the large arrays, if there is one."""
        if self.file:
            file, self.file = self.file, None
            file.close()

    def abandon(self) -> None:
        """Close the file after a failure, whose error must not be replaced by one of closing."""
        with contextlib.suppress(OSError):
            self.close()

    def _refuse_rounding(self, name: str, rows: np.ndarray) -> None:
        """Refuse integers that would be rounded, since padding made them floating-point numbers."""
        dtype = self.labels.variables[name].dtype
        if rows.dtype.kind in "iu" and dtype.kind == "f" and not name.startswith(MARK):
            lost = array_types.difference(rows, rows.astype(dtype)) != 0
            if np.any(lost):
                raise Mislabelled(
                    f"got {rows[lost][0]} in {name!r}, whose shape differs from point to point, "
                    "wanted one shape, or integers up to 2^53"
                )

    def _record_lengths(self, name: str, indices: np.ndarray, rows: np.ndarray) -> None:
        for axis, length in zip(self.labels.variables[name].axes, rows.shape[1:], strict=True):
            if axis in self.lengths:
                # -1 where no result of this point has had the axis yet.
                known = self.lengths[axis][indices]
                if np.any((known != length) & (known >= 0)):
                    raise Mislabelled(
                        f"dims: got axis {axis!r} of {length} in {name!r} and of {known.max()} in "
                        "another result of the same point, wanted one length"
                    )
                self.lengths[axis][indices] = length

    def dataset(self) -> "xarray.Dataset":
        """Label the results that were put; large arrays stay on disk until they are used."""
        import xarray  # 0.3 s and pandas: not at import

        labels, points = self.labels, self.labels.points
        lead, sizes = tuple(labels.lead), tuple(labels.lead.values())
        listed = {name: ("point", values) for name, values in points.axes.items()}
        coordinates: dict[str, Any] = dict(points.grid or listed)
        variables: dict[str, Any] = {}
        if self.file:
            self.close()
            stored = xarray.open_dataset(self.path, engine=netcdf.engine(), cache=False)
            variables |= {name: stored[name].variable for name in self.large}
        for name, array in self.arrays.items():
            v = labels.variables[name]
            # Named as its only axis and the same at all points: it labels the axis. With lengths or
            # values that differ it stays an array, for a coordinate can be only one.
            if v.axes == (name,) and not v.ragged and (array == array[:1]).all():
                coordinates[name] = array[0]
            else:
                variables[name] = (lead + v.axes, array.reshape(sizes + v.shape))
        for axis, lengths in self.lengths.items():
            variables[f"length_{axis}"] = (lead, lengths.reshape(sizes))
        # In the order in which the function returned them, wherever they were kept.
        ordered = {name: variables[name] for name in labels.variables if name in variables}
        ordered |= {name: v for name, v in variables.items() if name not in ordered}
        return xarray.Dataset(ordered, coordinates)
