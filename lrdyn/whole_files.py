"""Files that are replaced as a whole: a killed process never leaves half of one."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def scratch(folder: Path, suffix: str) -> Path:
    """Make an empty hidden file, which :func:`remove_scratch` removes if nobody else does."""
    handle, name = tempfile.mkstemp(suffix=suffix, prefix=".lrdyn-", dir=folder)
    os.close(handle)
    return Path(name)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path of the same folder and suffix; it replaces ``path`` if all goes well.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("whole")
        >>> path.read_text()
        'whole'
    """
    try:
        temporary = scratch(path.parent, path.suffix)
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    try:
        yield temporary
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
    except OSError as error:
        # A failed write names no file, a failed replacement the hidden one.
        if error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_scratch(folder: Path) -> None:
    """Remove the hidden files that a killed run left in a folder to which no process writes.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = scratch(folder, ".txt")
        >>> remove_scratch(folder)
        >>> list(folder.iterdir())
        []
    """
    for left in folder.glob(".lrdyn-*"):
        left.unlink()
