"""Arrays from an ``.npz``: no pickles; names, types and shapes are known and checked first."""

import io
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrdyn.data.guarded import ended, exactly, reading, refused

HEADER = 4096
"""Bytes of the header of a member, and of the directory of the archive, at most."""


class Known(NamedTuple):
    """What is known of an array before it is read."""

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


def read(path: Path, known: Mapping[str, Known]) -> dict[str, np.ndarray]:
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
        >>> read(path, {"y": Known("i", shaped((3,)))})["y"]
        array([0, 1, 2])
    """
    wanted = f"an npz of {', '.join(name for name, one in known.items() if not one.optional)}"
    with path.open("rb") as file, reading(path, wanted):
        _check_directory(file, path)
        with zipfile.ZipFile(file) as archive:
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            needed = {name for name, one in known.items() if not one.optional}
            if len(set(names)) != len(names) or not needed <= set(names) <= set(known):
                raise refused(path, f"the members {', '.join(names)}", wanted)
            return {
                name: _array(archive, info, known[name], path)
                for name, info in zip(names, archive.infolist(), strict=True)
            }


def _check_directory(file: io.BufferedReader, path: Path) -> None:
    """Refuse a long directory: Python reads it whole when it opens the archive."""
    file.seek(max(0, file.seek(0, 2) - 42))
    before, last = (part := file.read(42))[:-22], part[-22:]
    if not last.startswith(b"PK\5\6"):
        raise refused(path, "no directory where it ends", "an npz: it is truncated or another file")
    size, comment = struct.unpack("<12xI4xH", last)
    if size > HEADER or comment or before.startswith(b"PK\6\7"):
        raise refused(path, "a long directory", f"one of at most {HEADER} bytes")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, one: Known, path: Path) -> np.ndarray:
    with archive.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise refused(path, f"{info.filename} of another version", "npy 1.0")
        header = np.lib.format.read_array_header_1_0(member, max_header_size=HEADER)
        shape, fortran, dtype = header
        if dtype.hasobject or dtype.kind not in one.kinds or dtype.itemsize > one.itemsize:
            raise refused(path, f"{info.filename} of type {dtype}", f"a type of kind {one.kinds}")
        if not one.fits(shape):
            raise refused(path, f"{info.filename} of shape {shape}", "the known one")
        content = exactly(member, math.prod(shape) * dtype.itemsize, path)
        ended(member, path)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
