"""Places in which data sets are looked for: ``--data-dir``, ``$LRDYN_DATA``, the user's cache."""

import os
from collections.abc import Sequence
from pathlib import Path

from lrdyn.core.show import shortened


class MissingData(ValueError):
    """A data set is in none of the places; the message says which, where, and what to do."""


def cache() -> Path:
    """The user's cache, to which a download goes: ``$XDG_CACHE_HOME/lrdyn/data``.

    Example:
        >>> cache().parts[-2:]
        ('lrdyn', 'data')
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base, "lrdyn", "data")


def places(data_dir: str | Path = "") -> list[Path]:
    """The folders that are searched, in their order.

    Args:
        data_dir: a folder that comes before all others, if one is named.

    Example:
        >>> places("mine")[0].name, places()[-1] == cache()
        ('mine', True)
    """
    named = [data_dir, os.environ.get("LRDYN_DATA")]
    return [*(Path(folder) for folder in named if folder), cache()]


def find(names: Sequence[str], data_dir: str | Path = "") -> Path | None:
    """The first file of one of these names in the first place that has one.

    Args:
        names: paths below a place, the preferred one first.
        data_dir: the first place, see :func:`places`.

    Example:
        >>> find(["no such file"]) is None
        True
    """
    candidates = (place / name for place in places(data_dir) for name in names)
    return next((path for path in candidates if is_file(path)), None)


def is_file(path: Path) -> bool:
    """Whether there is a file; False for an impossible name or an unreadable folder.

    Example:
        >>> is_file(Path("9" * 5000))
        False
    """
    return os.path.isfile(path)


def missing(title: str, files: str, remedy: str, data_dir: str | Path = "") -> MissingData:
    """Make the error for a data set that is in none of the places.

    Args:
        title: what the set is called.
        files: which files would do.
        remedy: the command, or what to put there.
        data_dir: the first place, see :func:`places`.

    Example:
        >>> raise missing("CIFAR-10", "cifar10.npz", "lrdyn data download cifar10")
        Traceback (most recent call last):
        lrdyn.data.lookup.MissingData: data: got no CIFAR-10, wanted cifar10.npz in ...
    """
    return MissingData(f"data: got no {title}, wanted {files} in {looked_in(data_dir)}: {remedy}")


def looked_in(data_dir: str | Path = "") -> str:
    """The places in words, the home folder as ``~``.

    Example:
        >>> looked_in().endswith("lrdyn/data")
        True
    """
    home = os.path.expanduser("~")
    # A folder's name may hold any character, but a message is one line.
    names = (ascii(os.fspath(place))[1:-1] for place in places(data_dir))
    short = (
        "~" + name.removeprefix(home) if name.startswith(home + "/") else name for name in names
    )
    return " or ".join(shortened(name, 200) for name in short)
