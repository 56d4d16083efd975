"""What the readers of files share: limits of what is read, and refusals that name the file.

A file of data comes from somebody else. Nothing is unpacked to the disk, no reader takes more than
the known number of bytes, and whatever a damaged file makes a parser raise is one line.
"""

import contextlib
import errno
import gzip
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from lrdyn.show import shortened


@runtime_checkable
class Readable(Protocol):
    """What bytes are read from: a file, or what unpacks one."""

    def read(self, size: int, /) -> bytes:
        """Read up to ``size`` bytes."""
        ...


class Refused(ValueError):
    """A file is damaged, hostile or not what its name says; the line begins with its name."""


def refused(path: Path, got: str, wanted: str, part: str = "") -> Refused:
    """The error for a file.

    Args:
        path: the file.
        got: what it holds; only one line of it is kept.
        wanted: what it should hold.
        part: what of the file it is about, such as the name of a tensor.

    Example:
        >>> refused(Path("a.gz"), "3 bytes", "4 bytes")
        Refused('a.gz: got 3 bytes, wanted 4 bytes')
    """
    name, found, place = (ascii(text)[1:-1] for text in (os.fspath(path), got, part))
    name += f": {shortened(place, 160)}" if place else ""
    return Refused(f"{name}: got {shortened(found, 80)}, wanted {wanted}")


@contextlib.contextmanager
def reading(path: Path, wanted: str) -> Iterator[None]:
    """Turn what a damaged file makes its parsers raise into a refusal.

    Args:
        path: the file.
        wanted: what it should hold.

    Raises:
        Refused: the file is damaged.
        OSError: the machine could not read it.

    Example:
        >>> with reading(Path("a.gz"), "numbers"):
        ...     raise EOFError
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a.gz: got a damaged file (EOFError), wanted numbers
    """
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        # Parsers raise an OSError without a number, or seek to where no file can be.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise refused(path, f"a damaged file ({type(error).__name__})", wanted) from None


def opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Open a file to read its bytes, through gzip if it is named so.

    Example:
        >>> opened(Path("no such file"))
        Traceback (most recent call last):
        FileNotFoundError: ...
    """
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def exactly(file: Readable, size: int, path: Path) -> bytes:
    """Read this many bytes, and never more.

    Raises:
        Refused: the file ends before.

    Example:
        >>> exactly(io.BytesIO(b"abc"), 4, Path("a"))
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: got 3 bytes where it ends, wanted 4: it is truncated
    """
    content = file.read(size)
    if len(content) != size:
        raise refused(path, f"{len(content)} bytes where it ends", f"{size}: it is truncated")
    return content


def ended(file: Readable, path: Path) -> None:
    """Refuse a file that goes on; at its end gzip and zip compare their checksums.

    Example:
        >>> ended(io.BytesIO(b"a"), Path("a"))
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: got more bytes, wanted its end after what it announces
    """
    if file.read(1):
        raise refused(path, "more bytes", "its end after what it announces")


class Limited:
    """A file for a parser that reads as much as the file says: it ends at a limit.

    Example:
        >>> Limited(io.BytesIO(b"abc"), 2, Path("a")).read(3)
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: got more than 2 bytes, wanted at most these
    """

    def __init__(self, file: Readable, most: int, path: Path):
        """Take a file and the number of bytes that may be read from it."""
        self.file, self.most, self.left, self.path = file, most, most, path

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes."""
        content = self.file.read(min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise refused(self.path, f"more than {self.most} bytes", "at most these")
        return content
