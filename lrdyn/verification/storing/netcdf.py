"""Reading netCDF-4 files as :mod:`lrdyn.verification.storing.files` writes them, by h5py itself.

xarray's own reader looks every axis of every array up by its address in the file, and opens an
array again for each thing that it asks of it: for the hundreds of small arrays of a verdict that
takes longer than to judge them.
"""

import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lrdyn.system.messages import Fault, bring
from lrdyn.verification.storing.files import NO_AXIS, SLAB

if TYPE_CHECKING:
    import xarray

WITHOUT_VALUES = "This is a netCDF dimension but not a netCDF variable"
"""Begin of the words that netCDF gives an axis without values."""
OF_FORMAT = {"CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST", "_NCProperties"}
"""Attributes that netCDF uses itself."""
OURS = {"_FillValue", "dtype", "long_name", "symbol", "units"} | {  # and those of figures
    "compare",
    "curve_along",
    "kind",
    "tolerance",
}
"""Attributes that this reader understands; a file with others is left to xarray."""
UNITS = {"1", "steps", "bytes", "degrees"}
"""Units that this reader understands; with units of time xarray converts the values."""


class _Other(Exception):
    """The file has something that the library never writes."""


def read_groups(path: Path) -> dict[str, "xarray.Dataset"]:
    """Open all groups of a netCDF-4 file.

    Arrays of a small file are read at once. Those of a large one, or of one that somebody else has
    written, are read by xarray when they are used; what comes back is the same.

    Args:
        path: a file that was looked through (:mod:`lrdyn.data.hdf5`).

    Raises:
        OSError, KeyError, RuntimeError, ...: whatever h5py raises on a damaged file.
    """
    import xarray

    try:
        return _read_whole(path)
    except _Other:
        return dict(xarray.open_groups(path, engine=engine()))


def engine() -> Literal["h5netcdf"]:
    """What xarray reads netCDF-4 files with.

    Raises:
        Fault: it is not installed.
    """
    if find_spec("h5netcdf") is None:
        raise Fault(bring("h5netcdf"))
    return "h5netcdf"


def _read_whole(path: Path) -> dict[str, "xarray.Dataset"]:
    import h5py

    with h5py.File(path, "r") as file:
        groups = dict(_groups("/", file))
        nodes = {group: dict(node.items()) for group, node in groups.items()}
        arrays = {
            group: {name: node for name, node in named.items() if isinstance(node, h5py.Dataset)}
            for group, named in nodes.items()
        }
        every = [array for named in arrays.values() for array in named.values()]
        # A large file is left to xarray, which reads a piece of an array when it is used.
        if sum(math.prod(array.shape) * array.dtype.itemsize for array in every) > SLAB:
            raise _Other
        axes = {
            _address(array.id): name for named in arrays.values() for name, array in named.items()
        }
        return {group: _dataset(node, arrays[group], axes) for group, node in groups.items()}


def _groups(place: str, group: Any) -> Iterator[tuple[str, Any]]:
    import h5py

    yield place, group
    for name, node in group.items():
        if isinstance(node, h5py.Group):
            yield from _groups(f"{place.rstrip('/')}/{name}", node)


def _address(identifier: Any) -> int:
    """The address of an object in its file."""
    import h5py

    library: Any = h5py  # whose stubs lack it
    return library.h5o.get_info(identifier).addr


def _dataset(group: Any, arrays: Mapping[str, Any], axes: Mapping[int, str]) -> "xarray.Dataset":
    import xarray

    attributes = _attributes(group)
    labels = attributes.pop("coordinates", "").split()
    variables = {}
    for name, array in arrays.items():
        known = _attributes(array)
        if not str(_text(array.attrs.get("NAME", ""))).startswith(WITHOUT_VALUES):
            variable = _variable(array, _axes(name, array, axes), known)
            variables[name.removeprefix(NO_AXIS)] = variable
    marked = {
        name for name, variable in variables.items() if name in labels or variable.dims == (name,)
    }
    # Coordinates last, as xarray lists them.
    listed = dict(sorted(variables.items(), key=lambda item: item[0] in marked))
    return xarray.Dataset(listed, attrs=attributes).set_coords(sorted(marked))


def _attributes(node: Any) -> dict[str, Any]:
    """The user's attributes of an array or group; as in xarray, a list of one is its entry."""
    attributes = {}
    for name in node.attrs:
        # Written by netCDF's own library for axes in another order, which is not followed here.
        if name.startswith("_Netcdf4"):
            raise _Other
        if name not in OF_FORMAT:
            value = _text(node.attrs[name])
            if isinstance(value, np.ndarray):
                if value.dtype.kind not in "biuf" or value.ndim != 1 or not value.size:
                    raise _Other
                value = value[0] if len(value) == 1 else value
            elif not isinstance(value, str | np.generic):
                raise _Other
            attributes[name] = value
    return attributes


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _axes(name: str, array: Any, axes: Mapping[int, str]) -> tuple[str, ...]:
    """Names of the axes of an array, by the references to them that it has."""
    import h5py

    if _text(array.attrs.get("CLASS", "")) == "DIMENSION_SCALE":
        if array.ndim != 1:
            raise _Other
        return (name,)
    listed = array.attrs.get("DIMENSION_LIST", ())
    if len(listed) != array.ndim or not all(map(len, listed)):
        raise _Other
    file = array.file.id
    return tuple(
        # The last reference, which h5netcdf takes, if an axis has several scales.
        axes[_address(h5py.h5r.dereference(references[-1], file))]
        for references in listed
    )


def _variable(array: Any, dims: tuple[str, ...], known: dict[str, Any]) -> "xarray.Variable":
    import h5py
    import xarray

    if not known.keys() <= OURS or known.get("units", "1") not in UNITS:
        raise _Other
    fill, kind = known.pop("_FillValue", math.nan), known.pop("dtype", None)
    if not (isinstance(fill, float | np.floating) and math.isnan(fill)) or kind not in (
        None,
        "bool",
    ):
        raise _Other
    text = h5py.check_string_dtype(array.dtype)
    if text is None:
        values = np.asarray(array[()])
        values = values.astype(bool) if kind == "bool" else values
    elif text.length is None:
        values = np.asarray(array.asstr()[()], object).astype(str)
    else:
        raise _Other
    return xarray.Variable(dims, values, known)
