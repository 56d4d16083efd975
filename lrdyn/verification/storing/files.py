"""Writing results: atomic, so that a killed run never leaves half a file."""

import contextlib
import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lrdyn.system.whole_files import name_in_errors, replace_file


class InUse(Exception):
    """Another process works in the folder."""


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep a folder for one process; the lock ends with the process, however that ends.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with lock(folder), lock(folder):
        ...     pass
        Traceback (most recent call last):
        lrdyn.verification.storing.files.InUse: ...
    """
    # The folder itself is locked: a lock file would have to be made, and would be left behind.
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            # Not ``lockf``, whose locks end as soon as this process closes any handle of the file.
            with name_in_errors(folder):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{folder} is in use by another run") from None
        yield
    finally:
        with name_in_errors(folder):
            os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; a NaN or infinity is an error: a verdict must never hold one."""
    text = json.dumps(content, indent=2, allow_nan=False)
    with replace_file(path) as temporary:
        temporary.write_text(text + "\n")


NO_AXIS = "_nc4_non_coord_"
"""netCDF-4 puts these words in front of such a name, and readers take them off."""
SLAB = 2**26
"""Bytes above which an array is written piece by piece."""


class NetCDF:
    """A netCDF-4 file under construction, for arrays that are whole or filled piece by piece.

    It is HDF5 with one dimension scale for each axis, written by h5py itself: general writers of
    netCDF take ten times as long for the many small arrays of a verdict.
    """

    def __init__(self, path: Path, *, in_memory: bool = False):
        """Make the file, or its image in memory, and enter its root."""
        import h5py

        # In memory no write can fail, so that HDF5 needs no file object in between.
        self.disk = None if in_memory else _Disk(path)
        how = {"driver": "core", "backing_store": False} if in_memory else {}
        # Arrays are read back in the order in which they were written: tables and figures follow
        # it.
        self.file = h5py.File(self.disk or path, "w", track_order=True, **how)
        self.enter("/")

    def enter(self, group: str) -> None:
        """Go to another group: ``"/"``, or a new one."""
        self.group: Any = self.file.require_group(group) if group.strip("/") else self.file
        self.scales: dict[str, Any] = {}

    def write_coordinate(self, name: str, values: np.ndarray) -> None:
        """Add an axis with its values, before any array that has it."""
        self.scales[name] = self._put(name, values)
        self.scales[name].make_scale(name)

    def create(
        self,
        name: str,
        dims: Mapping[str, int],
        dtype: np.dtype,
        chunks: tuple[int, ...],
        **how: Any,
    ) -> Any:
        """Add an array of NaN, or of zeros if its type has none, to whose slices one assigns.

        It is stored in ``chunks``; ``how`` are further options of h5py, such as ``compression``.
        """
        # A fill value marks missing entries, which only floating-point numbers have.
        fill = {"fillvalue": np.nan} if dtype.kind == "f" else {}
        # netCDF has no booleans.
        kind = np.dtype("int8") if dtype.kind == "b" else dtype
        shape = tuple(dims.values())
        array = self.group.create_dataset(name, shape, kind, chunks=chunks, **fill, **how)
        return self._label(array, dims, dtype)

    def write(self, name: str, dims: Mapping[str, int], values: np.ndarray) -> None:
        """Add a whole array; ``dims`` are its axes and their lengths."""
        self._label(self._put(name, values), dims, values.dtype)

    def write_attributes(self, values: Mapping[str, Any], name: str = "") -> None:
        """Add attributes to an array, or to the group if no name is given."""
        (self.group[name] if name else self.group).attrs.update(values)

    def _put(self, name: str, values: np.ndarray) -> Any:
        if values.dtype.kind in "OU":
            import h5py

            return self.group.create_dataset(
                name, data=values.astype(object), dtype=h5py.string_dtype()
            )
        kind = np.dtype("int8") if values.dtype.kind == "b" else values.dtype
        # Below the size of a disk page, compressing would make an array larger.
        how = {"compression": "gzip", "compression_opts": 1} if values.nbytes > 4096 else {}
        return self.group.create_dataset(name, data=values.astype(kind, copy=False), **how)

    def _label(self, array: Any, dims: Mapping[str, int], dtype: np.dtype) -> Any:
        for place, (axis, length) in enumerate(dims.items()):
            if axis not in self.scales:
                scale = self.group.create_dataset(axis, (length,), "f4")
                # These words mark an axis without values for netCDF.
                scale.make_scale(
                    f"This is a netCDF dimension but not a netCDF variable. {length:10d}"
                )
                self.scales[axis] = scale
            array.dims[place].attach_scale(self.scales[axis])
        if dtype.kind == "f":
            array.attrs["_FillValue"] = np.array([np.nan], dtype)
        if dtype.kind == "b":
            array.attrs["dtype"] = "bool"  # as xarray writes it
        return array

    def image(self) -> bytes:
        """Bytes of the whole file, if it is in memory."""
        self.file.flush()
        return self.file.id.get_file_image()

    def check(self) -> None:
        """Raise the error of a write that failed since the file was made."""
        # HDF5 has swallowed the error by now, and would go on for hours without writing anything.
        if self.disk and self.disk.failed:
            raise self.disk.failed

    def close(self) -> None:
        """Close the file, and raise the first error of a write."""
        try:
            self.file.close()
        finally:
            if self.disk:
                self.disk.close()
            self.check()


class _Disk(io.FileIO):
    """A file object that never raises: HDF5 would end the process when a write fails."""

    def __init__(self, path: Path):
        """Open the file; its first error is kept in ``failed``, and nothing is written after it."""
        super().__init__(os.fspath(path), "w+")
        self.failed: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all bytes: h5py does not look at how many were written."""
        rest = memoryview(data).cast("B")
        try:
            while rest and not self.failed:
                # A nearly full disk takes a part of the bytes before it refuses the others.
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failed = error
        # The whole length even after a failure, which ``NetCDF.check`` raises in the place of HDF5.
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Set the size of the file."""
        try:
            return size or 0 if self.failed else super().truncate(size)
        except OSError as error:
            self.failed = error
            return size or 0


def write_netcdf(path: Path, groups: Mapping[str, Any]) -> None:
    """Write ``xarray`` datasets as groups of one netCDF file, atomically.

    Arrays above :data:`SLAB` go piece by piece, so that one on disk never fills the memory. Small
    files are made in memory and written at once.
    """
    size = sum(dataset.nbytes for dataset in groups.values())
    with replace_file(path) as temporary:
        target = NetCDF(temporary, in_memory=size <= SLAB)
        try:
            for group, dataset in groups.items():
                target.enter(group)
                _write_group(target, dataset)
            if size <= SLAB:
                temporary.write_bytes(target.image())
        finally:
            target.close()


def _write_group(target: NetCDF, dataset: Any) -> None:
    target.write_attributes(dataset.attrs)
    axes = [name for name in dataset.coords if dataset[name].dims == (name,)]
    labels = [str(name) for name in dataset.coords if name not in axes]
    if labels:  # this word tells xarray that they are coordinates, not results
        target.write_attributes({"coordinates": " ".join(labels)})
    for name in axes:
        # Before the arrays: h5py can attach a scale only when it is there.
        target.write_coordinate(str(name), dataset[name].values)
    for name, variable in dataset.variables.items():
        dims = dict(zip(map(str, variable.dims), variable.shape, strict=True))
        # An array called as an axis that has no values, or others: steps that depend on a flag.
        apart = name in dataset.dims and name not in axes
        stored = f"{NO_AXIS}{name}" if apart else str(name)
        if name in axes:
            pass
        elif variable.nbytes > SLAB:
            _write_large(target, stored, variable)
        else:
            target.write(stored, dims, np.asarray(variable.values))
        target.write_attributes(variable.attrs, stored)


def _write_large(target: NetCDF, name: str, variable: Any) -> None:
    pieces = list(slabs(variable.shape, variable.dtype.itemsize))
    largest = pieces[0]
    inner = [len(range(n)[part]) for n, part in zip(variable.shape, largest, strict=True)]
    # Chunks of about a megabyte: the last axes whole, one piece of the first that is not.
    chunks, room = [], 2**20 // variable.dtype.itemsize
    for length in reversed(inner):
        chunks.append(max(1, min(length, room)))
        room //= max(1, length)
    # Shuffled, bytes of equal significance lie together, which packs floating-point numbers better.
    how = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    dims = dict(zip(map(str, variable.dims), variable.shape, strict=True))
    array = target.create(name, dims, variable.dtype, tuple(reversed(chunks)), **how)
    for piece in pieces:
        array[piece] = variable[piece].values
        target.check()


def slabs(shape: tuple[int, ...], itemsize: int) -> Iterator[tuple[slice, ...]]:
    """Cut an array into pieces of at most about :data:`SLAB` bytes, in the order of its entries.

    Example:
        >>> list(slabs((3,), 2**25))
        [(slice(0, 2, None),), (slice(2, 3, None),)]
    """
    cut = 0
    # The axes before ``cut`` are taken entry by entry, that one in pieces, those behind it whole.
    while cut < len(shape) - 1 and int(np.prod(shape[cut + 1 :])) * itemsize > SLAB:
        cut += 1
    whole = tuple(slice(0, n) for n in shape[cut + 1 :])
    if not shape:
        yield ()
        return
    row = max(1, int(np.prod(shape[cut + 1 :])) * itemsize)
    step = max(1, SLAB // row)
    for outer in np.ndindex(*shape[:cut]):
        for start in range(0, shape[cut], step):
            stop = min(start + step, shape[cut])
            yield (*(slice(i, i + 1) for i in outer), slice(start, stop), *whole)
