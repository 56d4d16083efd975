"""Writing results: atomic, so that a killed run never leaves half a file."""

import contextlib
import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def scratch(folder: Path, suffix: str) -> Path:
    """Make an empty hidden file, which :func:`sweep_out` removes if nobody else does.

    Args:
        folder: where.
        suffix: end of its name.

    Returns:
        Its path.
    """
    handle, name = tempfile.mkstemp(suffix=suffix, prefix=".lrdyn-", dir=folder)
    os.close(handle)
    return Path(name)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder that replaces ``path`` if all goes well.

    Args:
        path: the file to write.

    Yields:
        The temporary path; it has the same suffix and is removed on failure.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text()
        'whole'
    """
    temporary = scratch(path.parent, path.suffix)
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or os.fspath(path)  # a failed write names no file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def sweep_out(folder: Path) -> None:
    """Remove the hidden files that a killed run left in a folder.

    Args:
        folder: a folder that no other process writes to.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = scratch(folder, ".txt")
        >>> sweep_out(folder)
        >>> list(folder.iterdir())
        []
    """
    for left in folder.glob(".lrdyn-*"):
        left.unlink()


class InUse(Exception):
    """Another process works in the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a folder for one process; the lock ends with the process, however that ends.

    Args:
        folder: an existing folder.

    Yields:
        Nothing.

    Raises:
        InUse: another process has it.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> with locked(folder), locked(folder):
        ...     pass
        Traceback (most recent call last):
        lrdyn.files.InUse: ...
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{folder} is in use by another run") from None
        yield
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; a NaN is an error, since the verdict must never hold one.

    Args:
        path: the file.
        content: what ``json`` can write.

    Raises:
        ValueError: the content holds a NaN or an infinity.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


SLAB = 2**26
"""Bytes above which an array is written piece by piece."""


class NetCDF:
    """A netCDF file under construction, for arrays that are filled piece by piece."""

    def __init__(self, path: Path):
        """Make the file and enter its root.

        Args:
            path: the file.
        """
        import h5netcdf

        self.file = self.group = h5netcdf.File(path, "w")

    def enter(self, group: str) -> None:
        """Go to another group.

        Args:
            group: ``"/"``, or a new one.
        """
        name = group.strip("/")
        self.group = self.file.create_group(name) if name else self.file

    def create(
        self,
        name: str,
        dims: Mapping[str, int],
        dtype: np.dtype,
        chunks: tuple[int, ...],
        **how: Any,
    ) -> Any:
        """Add an array of NaN, or of zeros if its type has none.

        Args:
            name: name of the array.
            dims: its axes and their lengths.
            dtype: its type.
            chunks: lengths of the pieces in which it is stored.
            **how: further options of h5py, such as ``compression``.

        Returns:
            The variable; assign to its slices.
        """
        missing = {axis: n for axis, n in dims.items() if axis not in self.group.dimensions}
        self.group.dimensions.update(missing)
        # A fill value marks missing entries, which only floating-point numbers have.
        fill = np.nan if dtype.kind == "f" else None
        kind = np.dtype("int8") if dtype.kind == "b" else dtype
        variable = self.group.create_variable(
            name, tuple(dims), kind, fillvalue=fill, chunks=chunks, **how
        )
        if dtype.kind == "b":
            variable.attrs["dtype"] = "bool"  # as xarray writes it
        return variable

    def close(self) -> None:
        """Finish the file."""
        self.file.close()


def write_netcdf(path: Path, groups: Mapping[str, Any]) -> None:
    """Write ``xarray`` datasets as groups of one netCDF file, atomically.

    Arrays above :data:`SLAB` go piece by piece, so that one on disk never fills the memory.

    Args:
        path: the file.
        groups: group -> dataset; ``"/"`` is the root, which ``xarray.open_dataset(path)`` reads.

    Raises:
        OSError: the disk is full.
    """
    from xarray.backends import H5NetCDFStore

    with replacing(path) as temporary, _full_disk_is_an_os_error(path):
        target = NetCDF(temporary)
        try:
            for group, dataset in groups.items():
                target.enter(group)
                large = [name for name, v in dataset.items() if v.nbytes > SLAB]
                _write_large(target, {name: dataset[name] for name in large})
                small = dataset.drop_vars(large)
                # What fits into a page of a disk is smaller as it is.
                wide = [name for name, v in small.items() if v.nbytes > 4096]
                packed = {name: {"zlib": True, "complevel": 1} for name in wide}
                small.dump_to_store(H5NetCDFStore(target.group), encoding=packed)
        finally:
            target.close()


@contextlib.contextmanager
def _full_disk_is_an_os_error(path: Path) -> Iterator[None]:
    # HDF5 reports a failed write as whatever its C code was doing.
    try:
        yield
    except RuntimeError as error:
        raise OSError(errno.EIO, str(error).splitlines()[0], os.fspath(path)) from None


def _write_large(target: NetCDF, arrays: Mapping[str, Any]) -> None:
    for name, array in arrays.items():
        pieces, chunks = _pieces(array.shape, array.dtype.itemsize)
        how = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        variable = target.create(name, dict(array.sizes), array.dtype, chunks, **how)
        for piece in pieces:
            variable[piece] = array.variable[piece].values


def _pieces(shape: tuple[int, ...], itemsize: int) -> tuple[Iterator[tuple], tuple[int, ...]]:
    """Slices of at most about SLAB bytes, and chunks of at most about a megabyte inside them."""
    cut = 0
    while (row := int(np.prod(shape[cut + 1 :])) * itemsize) > SLAB and cut < len(shape) - 1:
        cut += 1
    step = max(1, SLAB // row)
    pieces = (
        (*outer, slice(start, start + step))
        for outer in np.ndindex(*shape[:cut])
        for start in range(0, shape[cut], step)
    )
    length = max(1, min(step, 2**20 // row, shape[cut]))
    return pieces, (*(1,) * cut, length, *shape[cut + 1 :])


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that it is kept for inspection and can be computed again.

    Args:
        path: the damaged file.

    Returns:
        Its new path, ``<name>.damaged``.
    """
    target = path.with_name(path.name + ".damaged")
    os.replace(path, target)
    return target
