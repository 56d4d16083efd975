"""Arrays from an ``.npz``: no pickles; names, types and shapes are looked at before numbers are."""

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.data import guarded
from lrdyn.data.guarded import ended, exactly, reading, refused
from lrdyn.data.tensors import Info

HEADER = 4096
"""Bytes of the header of a member, and of the directory of a small archive, at most."""
DIRECTORY = 4_000_000
"""Bytes of the directory of any archive, at most."""


KINDS = {
    "f": "floating-point numbers",
    "i": "integers",
    "u": "integers >= 0",
    "b": "booleans",
    "U": "texts",
}
"""Kinds of types that are read, in words."""


class ArrayFormat(NamedTuple):
    """The expected type and shape of an array, checked before it is read."""

    kinds: str
    """Kinds of its type, as in ``dtype.kind``."""
    fits: Callable[[tuple[int, ...]], bool]
    """Whether a shape is right."""
    itemsize: int = 8
    """Bytes of an entry, at most."""
    optional: bool = False


def shaped(*shapes: tuple[int, ...]) -> Callable[[tuple[int, ...]], bool]:
    """Whether a shape is one of these.

    Example:
        >>> shaped((2,), (2, 1))((2, 1))
        True
    """
    return lambda shape: shape in shapes


def read(path: Path, known: Mapping[str, ArrayFormat]) -> dict[str, np.ndarray]:
    """Read the arrays of an ``.npz`` file; read-only.

    Args:
        path: the file.
        known: name of each array, and what is known of it.

    Raises:
        Refused: a member is unknown, missing or another array, or the file is damaged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.npz")
        >>> np.savez(path, y=np.arange(3))
        >>> read(path, {"y": ArrayFormat("i", shaped((3,)))})["y"]
        array([0, 1, 2])
    """
    wanted = f"an npz of {', '.join(name for name, entry in known.items() if not entry.optional)}"
    with guarded.opened(path) as file, reading(path, wanted):
        _check_directory(file, path, HEADER)
        with zipfile.ZipFile(file) as archive:
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            needed = {name for name, entry in known.items() if not entry.optional}
            if len(set(names)) != len(names) or not needed <= set(names) <= set(known):
                raise refused(path, f"the members {', '.join(names)}", wanted)
            return {
                name: _array(archive, info, known[name], path)
                for name, info in zip(names, archive.infolist(), strict=True)
            }


class Arrays:
    """The arrays of an ``.npz`` file, by name: each is read when it is asked for.

    Args:
        path: the file.
        infos: what is known of each.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.npz")
        >>> np.savez(path, W=np.ones((2, 3)))
        >>> archive = opened(path)
        >>> archive.infos["W"].shape, float(archive["W"].sum())
        ((2, 3), 6.0)
    """

    def __init__(self, path: Path, infos: Mapping[str, Info]):
        self.path, self.infos = path, dict(infos)

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one array."""
        _, dtype, shape = self.infos[name]
        known = ArrayFormat(np.dtype(dtype).kind, shaped(shape))
        with guarded.opened(self.path) as file, reading(self.path, "an npz of arrays"):
            _check_directory(file, self.path, DIRECTORY)
            with zipfile.ZipFile(file) as archive:
                check_members(archive, file, self.path)
                return _array(archive, archive.getinfo(f"{name}.npy"), known, self.path)


def opened(path: Path) -> Arrays:
    """Open an ``.npz`` file of any arrays: names, types and shapes are read, and no numbers.

    Raises:
        Refused: a member is no array of numbers, a name stands twice, or the file is damaged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.npz")
        >>> np.savez(path, names=np.array(["a"], object))
        >>> opened(path)
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: ...: got names.npy of type object, wanted floating-point ...
    """
    infos: dict[str, Info] = {}
    with guarded.opened(path) as file, reading(path, "an npz of arrays"):
        _check_directory(file, path, DIRECTORY)
        with zipfile.ZipFile(file) as archive:
            check_members(archive, file, path)
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name in infos or name == entry.filename:
                    raise refused(path, f"the member {entry.filename}", ".npy files, each once")
                with archive.open(entry) as member:
                    shape, _, dtype = _described(member, entry.filename, "fiub", 16, path)
                infos[name] = Info(path, dtype.name, shape)
    return Arrays(path, infos)


def read_npy(path: Path) -> np.ndarray:
    """Read an ``.npy`` file of numbers; read-only.

    Raises:
        Refused: it is damaged, or an array of other things.
        OSError: there is no such file, or the machine could not read it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.npy")
        >>> np.save(path, np.arange(3))
        >>> read_npy(path)
        array([0, 1, 2])
    """
    with guarded.opened(path) as file, reading(path, "an array of numbers"):
        shape, fortran, dtype = _described(file, path.name, "fiub", 16, path)
        size, left = math.prod(shape) * dtype.itemsize, os.fstat(file.fileno()).st_size
        if size != left - file.tell():
            got = f"{left - file.tell()} bytes of numbers"
            raise refused(path, got, f"{size}, as its header says")
        return np.frombuffer(file.read(), dtype).reshape(shape, order="F" if fortran else "C")


def check_members(archive: zipfile.ZipFile, file: io.BufferedReader, path: Path) -> None:
    """Refuse an archive whose members announce more than one of its size can hold.

    Args:
        archive: the archive.
        file: the open file that it is in.
        path: of the file, for messages.

    Raises:
        Refused: they do.
    """
    sizes = [member.file_size for member in archive.infolist()]
    stored = os.fstat(file.fileno()).st_size
    guarded.check_room(path, max(sizes, default=0), sum(sizes), stored)


def _check_directory(file: io.BufferedReader, path: Path, most: int) -> None:
    """Refuse a long directory: Python reads it whole when it opens the archive."""
    # The end record has 22 bytes, and 20 before it point to the directory of a zip64.
    file.seek(max(0, file.seek(0, 2) - 42))
    before, last = (part := file.read(42))[:-22], part[-22:]
    if not last.startswith(b"PK\5\6"):
        raise refused(
            path, "no zip directory at its end", "an npz: it is truncated or another file"
        )
    size, comment = struct.unpack("<12xI4xH", last)
    # NumPy writes no comment, behind which another end record could hide, and no zip64 below 4 GiB.
    if size > most or comment or before.startswith(b"PK\6\7"):
        raise refused(path, "a long zip directory", f"one of at most {most} bytes")


def _array(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, known: ArrayFormat, path: Path
) -> np.ndarray:
    with archive.open(info) as member:
        shape, fortran, dtype = _described(member, info.filename, known.kinds, known.itemsize, path)
        if not known.fits(shape):
            raise refused(
                path, f"{info.filename} of shape {shape}", "the shape that it should have"
            )
        content = exactly(member, math.prod(shape) * dtype.itemsize, path)
        ended(member, path)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _described(
    member: Any, name: str, kinds: str, itemsize: int, path: Path
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, order and type of a member, of which the header is read."""
    # Later versions exist for headers above 64 kB and field names beyond Latin-1: none is an array
    # of numbers.
    if np.lib.format.read_magic(member) != (1, 0):
        raise refused(path, f"{name} of another version of its format", "npy 1.0")
    header = np.lib.format.read_array_header_1_0(member, max_header_size=HEADER)
    dtype = header[2]
    if dtype.hasobject or dtype.kind not in kinds or dtype.itemsize > itemsize:
        raise refused(path, f"{name} of type {dtype}", " or ".join(KINDS[kind] for kind in kinds))
    return header
