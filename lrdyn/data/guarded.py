"""Guards for files from elsewhere: which files are opened, and how much of them is read.

Only regular files are opened, and none larger than its reader allows. Nothing is unpacked to the
disk, no array is allocated that is out of proportion to the file, JSON is bounded in size, depth
and numbers, and whatever a damaged file makes a parser raise, a panic of a Rust library among it,
is one line that names the file.
"""

import contextlib
import errno
import gzip
import io
import json
import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lrdyn.core.show import shortened
from lrdyn.system.whole_files import name_in_errors

CONFIGURATION = 2**22
"""Bytes of a configuration in JSON, at most; a pattern for each module of a model of 70 billion
numbers, which has 560, makes an ``adapter_config.json`` of 45 kB."""
DEPTH = 32
"""How deep JSON may nest; a ``tokenizer.json``, the deepest that is read, nests to about 10."""
RATIO = 100
"""Bytes of arrays for each stored one, at most. Results of the theorems have 1 to 25 (an array
padded with NaN); deflate makes no more than 1,032 of one byte, and HDF5 any number of none."""
FLOOR = 2**26
"""Bytes of arrays that any file may have, whatever its own size."""


@runtime_checkable
class Readable(Protocol):
    """A source of bytes: a file, or a stream that decompresses one."""

    def read(self, size: int, /) -> bytes:
        """Read up to ``size`` bytes."""
        ...


class Refused(ValueError):
    """A file is damaged, hostile or not what its name says; the message begins with its name.

    Args:
        line: the whole line.
        why: the same without the name of the file.
    """

    def __init__(self, line: str, why: str = ""):
        super().__init__(line)
        self.why = why


def refused(path: Path, got: str, wanted: str, part: str = "") -> Refused:
    """Make the error that names a file, what it had and what was wanted.

    Args:
        path: the file.
        got: what it holds; only one line of it is kept.
        wanted: what it should hold.
        part: what of the file it is about, such as the name of a tensor.

    Example:
        >>> refused(Path("a.gz"), "3 bytes", "4 bytes")
        Refused('a.gz: got 3 bytes, wanted 4 bytes')
    """
    name, shown, place = (ascii(text)[1:-1] for text in (os.fspath(path), got, part))
    why = f"got {shortened(shown, 80)}, wanted {wanted}"
    why = f"{shortened(place, 160)}: {why}" if place else why
    return Refused(f"{name}: {why}", why)


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
    except BaseException as error:
        # Ctrl-C, SystemExit and what ends a generator are no faults of the file.
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        # Parsers raise an OSError without a number, or seek to where no file can be.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise refused(path, f"a damaged file ({type(error).__name__})", wanted) from None


def _is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of Rust, which pyo3 does not derive from ``Exception``."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def panics(path: Path, wanted: str) -> Iterator[None]:
    """Turn a panic of a Rust library into a refusal, and keep what it prints from the terminal.

    A panic is described on standard error before it is raised, in some forty lines. What other
    threads write there meanwhile is lost, too: the block must be short.

    Args:
        path: the file that the library read.
        wanted: what it should hold.

    Raises:
        Refused: the library panicked.
    """
    with _silenced():
        try:
            yield
        except BaseException as error:
            if not _is_panic(error):
                raise
            raise refused(path, "a file on which its reader fails", wanted) from None


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Discard everything that the process writes to its standard error."""
    try:
        # The file descriptor, not ``sys.stderr``: Rust writes past Python.
        before = os.dup(2)
    except OSError:  # stderr is closed, so that nothing can be written there
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(
            AttributeError, OSError, ValueError
        ):  # stderr is None, full or closed
            sys.stderr.flush()
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(sink)


# Opening ------------------------------------------------------------------------------------------


KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link",
}


def opened(path: Path, *, most: int | None = None, links: bool = True) -> io.BufferedReader:
    """Open a regular file to read its bytes; nothing else is opened, and nothing is waited for.

    Args:
        path: the file.
        most: its bytes, at most.
        links: whether the name may be that of a symbolic link.

    Raises:
        Refused: it is a folder, a FIFO, a socket, a device, or too large.
        OSError: there is no such file, or the machine could not open it.

    Example:
        >>> opened(Path("no such file"))
        Traceback (most recent call last):
        FileNotFoundError: ...
        >>> opened(Path("/dev/zero"))
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: /dev/zero: got a device, wanted a file
    """
    try:
        # Opening a FIFO waits for a writer, and opening a device may act on it: look first.
        _check_kind(path, os.stat(path, follow_symlinks=links))
    except ValueError as error:
        if isinstance(error, Refused):
            raise
        raise refused(path, "a name with a NUL in it", "the name of a file") from None
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise refused(path, "a name that is too long", "the name of a file") from None
    # Another file may have taken its place by now: do not wait for it, nor follow a link.
    follow = 0 if links else os.O_NOFOLLOW
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | follow)
    with name_in_errors(path):
        file = os.fdopen(handle, "rb")
    try:
        # Of the handle, which is what will be read, and not of the name.
        with name_in_errors(path):
            about = os.fstat(handle)
        _check_kind(path, about)
        if most is not None and about.st_size > most:
            raise refused(path, f"{about.st_size} bytes", f"at most {most} bytes")
    except BaseException:
        file.close()
        raise
    return file


def _check_kind(path: Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise refused(path, KINDS.get(stat.S_IFMT(about.st_mode), "no regular file"), "a file")


def content(path: Path, *, most: int, links: bool = True) -> bytes:
    """Read a regular file that has at most ``most`` bytes.

    Args:
        path: the file.
        most: its bytes, at most.
        links: whether the name may be that of a symbolic link.

    Raises:
        Refused: it is another kind of file, or larger.
        OSError: there is no such file, or the machine could not read it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a")
        >>> _ = path.write_bytes(b"abc")
        >>> content(path, most=2)
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: ...a: got 3 bytes, wanted at most 2 bytes
    """
    with opened(path, most=most, links=links) as file, name_in_errors(path):
        # The file may have grown since its size was looked at.
        return Limited(file, most, path).read(most + 1)


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[gzip.GzipFile | io.BufferedReader]:
    """Open a regular file to read its bytes, through gzip if it is named so.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.gz")
        >>> _ = path.write_bytes(gzip.compress(b"abc"))
        >>> with unpacked(path) as file:
        ...     file.read()
        b'abc'
    """
    with opened(path) as file:
        # By the name, not by the first bytes: a reader is told what to expect, and refuses the
        # rest.
        yield gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file


# How much is read ---------------------------------------------------------------------------------


def check_room(path: Path, largest: int, total: int, stored: int) -> None:
    """Refuse arrays that are out of proportion to their file, before any is allocated.

    Args:
        path: the file.
        largest: bytes of its largest array.
        total: bytes of all of them.
        stored: bytes of the file.

    Raises:
        Refused: all are above :data:`RATIO` times the file, or one above the machine's memory.

    Example:
        >>> check_room(Path("a"), 10**11, 10**11, 5000)
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: got arrays of 100000000000 bytes in a file of ...
    """
    # A small file may be padded a lot, within what any machine can spare: hence the floor.
    if total > (most := max(FLOOR, RATIO * stored)):
        got = f"arrays of {total} bytes in a file of {stored} bytes"
        raise refused(path, got, f"at most {most} bytes of arrays")
    if largest > (most := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise refused(
            path, f"an array of {largest} bytes", f"at most {most}, the memory of this machine"
        )


def exactly(file: Readable, size: int, path: Path) -> bytes:
    """Read this many bytes, and never more.

    Args:
        file: an open file, or a stream that decompresses one.
        size: number of bytes.
        path: of the file, for the message.

    Raises:
        Refused: the file ends before.

    Example:
        >>> exactly(io.BytesIO(b"abc"), 4, Path("a"))
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: got 3 bytes before its end, wanted 4: it is truncated
    """
    content = file.read(size)
    if len(content) != size:
        raise refused(path, f"{len(content)} bytes before its end", f"{size}: it is truncated")
    return content


def ended(file: Readable, path: Path) -> None:
    """Refuse a file with more bytes; at its end gzip and zip compare their checksums.

    Example:
        >>> ended(io.BytesIO(b"a"), Path("a"))
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: got more bytes than its header announces, wanted its end
    """
    if file.read(1):
        raise refused(path, "more bytes than its header announces", "its end")


class Limited:
    """A file for a parser that reads as much as the file says: it ends at a limit.

    Example:
        >>> Limited(io.BytesIO(b"abc"), 2, Path("a")).read(3)
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: got more than 2 bytes, wanted at most 2
    """

    def __init__(self, file: Readable, most: int, path: Path):
        """Take a file and the number of bytes that may be read from it."""
        self.file, self.most, self.left, self.path = file, most, most, path

    def read(self, size: int) -> bytes:
        """Read up to ``size`` bytes."""
        # One byte more than is left, by which "too long" is told from "just as long".
        content = self.file.read(min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise refused(self.path, f"more than {self.most} bytes", f"at most {self.most}")
        return content


# JSON ---------------------------------------------------------------------------------------------


def read_json(path: Path, wanted: str, *, most: int = CONFIGURATION, depth: int = DEPTH) -> Any:
    """Read JSON from a file; see :func:`parsed`.

    Args:
        path: the file.
        wanted: what it should hold.
        most: bytes of the file, at most.
        depth: how deep it may nest.

    Raises:
        Refused: it is another kind of file, too large, damaged, or :func:`parsed` refuses it.
        OSError: there is no such file, or the machine could not read it.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.json")
        >>> _ = path.write_text('{"r": 1, "r": 2}')
        >>> read_json(path, "a rank")
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: ...: r: got this name twice, wanted it once
    """
    return parsed(content(path, most=most), path, wanted, depth=depth)


def parsed(text: bytes | str, path: Path, wanted: str, *, depth: int = DEPTH) -> Any:
    """Parse JSON with finite numbers, integers of 64 bits, and no name twice.

    Args:
        text: the JSON.
        path: the file that it is of.
        wanted: what it should be.
        depth: how deep it may nest.

    Raises:
        Refused: it is damaged; a name stands in it twice; it nests deeper; a number is no JSON or
            beyond these; a text is none of Unicode.

    Example:
        >>> parsed(b'{"lora_alpha": 1e999}', Path("a"), "numbers")
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: lora_alpha: got a number too large for float64, wanted a ...
    """

    def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for name, value in pairs:
            if name in entries:
                raise refused(path, "this name twice", "it once", name)
            entries[name] = value
        return entries

    def no_number(word: str) -> None:
        raise refused(path, word, f"a number: JSON has no {word}")

    with reading(path, wanted):
        # Within ``reading``, so that what is no UTF-8 is a refusal, too.
        text = text.decode() if isinstance(text, bytes) else text
        try:
            value = json.loads(text, object_pairs_hook=once, parse_constant=no_number)
        except RecursionError:
            raise refused(path, "JSON that nests too deeply", f"at most {depth} levels") from None
        _check_values(value, path, depth)
    return value


def _check_values(value: Any, path: Path, depth: int) -> None:
    """Check every value without recursion, which deep nesting would overflow."""
    left: list[tuple[str, Any, int]] = [("", value, 0)]
    while left:
        name, value, level = left.pop()
        if isinstance(value, dict | list):
            if level == depth:
                raise refused(path, "JSON that nests too deeply", f"at most {depth} levels", name)
            entries = value.items() if isinstance(value, dict) else ((name, x) for x in value)
            left += ((key, x, level + 1) for key, x in entries)
        elif isinstance(value, float) and not math.isfinite(value):
            raise refused(path, "a number too large for float64", "a finite number", name)
        # NumPy has no wider ones, and a reader should not meet an OverflowError of its own.
        elif type(value) is int and not -(2**63) <= value < 2**64:
            raise refused(path, "an integer of more than 64 bits", "one of at most 64", name)
        for text in (name, value):
            if isinstance(text, str) and not text.isascii():
                text.encode()  # half of a surrogate pair is not valid text, and cannot be printed
