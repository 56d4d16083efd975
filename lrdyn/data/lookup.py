"""Where data sets are looked for: ``--data-dir``, ``$LRDYN_DATA``, the user's cache."""

import os
from collections.abc import Sequence
from pathlib import Path

from lrdyn.core.show import shortened

_given: list[Path] = []


class MissingData(ValueError):
    """A data set is in none of the places; its one line says which, where, and what to do."""


def search_first(folder: str | Path | None) -> None:
    """Look in this folder before all others, in the whole process; None ends that.

    Example:
        >>> search_first("mine")
        >>> places()[0].name
        'mine'
        >>> search_first(None)
    """
    _given[:] = [] if folder is None else [Path(folder)]


def first() -> str:
    """The folder that was given so, as whoever starts elsewhere finds it; empty without one.

    Example:
        >>> search_first(None)
        >>> first()
        ''
    """
    return os.path.abspath(_given[0]) if _given else ""


def cache() -> Path:
    """The user's cache, to which a download goes: ``$XDG_CACHE_HOME/lrdyn/data``.

    Example:
        >>> cache().parts[-2:]
        ('lrdyn', 'data')
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "lrdyn", "data")


def places() -> list[Path]:
    """The folders that are looked into, the first one first.

    Example:
        >>> places()[-1] == cache()
        True
    """
    named = os.environ.get("LRDYN_DATA")
    return [*_given, *([Path(named)] if named else []), cache()]


def find(names: Sequence[str]) -> Path | None:
    """The first file of one of these names in the first place that has one.

    Args:
        names: paths below a place, the preferred one first.

    Example:
        >>> find(["no such file"]) is None
        True
    """
    candidates = (place / name for place in places() for name in names)
    return next((path for path in candidates if is_file(path)), None)


def is_file(path: Path) -> bool:
    """Whether there is a file; not for an impossible name, or where one may not look.

    Example:
        >>> is_file(Path("9" * 5000))
        False
    """
    return os.path.isfile(path)


def missing(title: str, files: str, remedy: str) -> MissingData:
    """The error for a data set that is in no place.

    Args:
        title: what the set is called.
        files: which files would do.
        remedy: the command, or what to put there.

    Example:
        >>> raise missing("CIFAR-10", "cifar10.npz", "lrdyn data download cifar10")
        Traceback (most recent call last):
        lrdyn.data.lookup.MissingData: data: got no CIFAR-10, wanted cifar10.npz in ...
    """
    return MissingData(f"data: got no {title}, wanted {files} in {looked_in()}: {remedy}")


def looked_in() -> str:
    """The places in words, the home folder as ``~``.

    Example:
        >>> looked_in().endswith("lrdyn/data")
        True
    """
    home = os.path.expanduser("~")
    # A name of a folder may hold any character, a message is one line.
    names = (ascii(os.fspath(place))[1:-1] for place in places())
    short = (
        "~" + name.removeprefix(home) if name.startswith(home + "/") else name for name in names
    )
    return " or ".join(shortened(name, 200) for name in short)
