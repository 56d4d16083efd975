"""What ends a command in one line, and the words of such lines.

Nothing else of the library is imported here: a command that only prints its version needs it, too.
"""

import difflib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class BadInput(ValueError):
    """Bad input of a command: one line, status 2, nothing written."""


class Fault(RuntimeError):
    """A fault of the machine, in one line: status 3."""


def shortened(text: str, most: int = 60) -> str:
    """Shorten a word for a message: a long one loses its middle.

    Example:
        >>> shortened("10000000000", 7)
        '10...00'
    """
    side = (most - 3) // 2
    return text if len(text) <= most else f"{text[:side]}...{text[-side:]}"


def near(word: str, known: Iterable[str]) -> str:
    """Suggest the known word that a wrong one may have meant; empty if none is similar.

    Example:
        >>> near("theorm2", ["theorem1", "theorem2"])
        " (did you mean 'theorem2'?)"
        >>> near("x", ["theorem1"])
        ''
    """
    matches = difflib.get_close_matches(word[:80], list(known), 1, 0.7)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def bring(package: str) -> str:
    """Message about a package that the library needs and that is not there.

    Example:
        >>> bring("h5netcdf")
        'h5netcdf: not installed, wanted it beside lrdyn: pip install h5netcdf'
    """
    return f"{package}: not installed, wanted it beside lrdyn: pip install {package}"


def no_such_file(path: Path) -> str:
    """Message about a file that does not exist, with a similar name if there is one nearby.

    Example:
        >>> no_such_file(Path("no such folder/x.npy"))
        'no such file'
    """
    try:
        beside = os.listdir(path.parent)
    except (OSError, ValueError):  # the folder is not there either, or no name of one
        beside = []
    return "; ".join(["no such file", *filter(None, [near(path.name, beside).strip(" ()")])])


def first_line(error: BaseException) -> str:
    """The first line of the text of an exception; empty without one."""
    try:
        return (str.splitlines(str(error)) or [""])[0]
    except BaseException:  # a user's __str__ may raise anything
        return "no text: its __str__ raises"


def refuse_truth(instead: str) -> Callable[[Any], bool]:
    """Make the ``__bool__`` of an object that reads like a verdict and is none.

    Python takes every object for true, so that ``assert verify(...)`` would pass whatever was
    found.

    Args:
        instead: what to write in its place.
    """

    def __bool__(self: Any) -> bool:
        name = type(self).__name__
        raise TypeError(f"{name}: is neither true nor false by itself, write {instead}")

    return __bool__
