"""CIFAR-10's own archives, python and binary, read member by member."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrdyn.data import archives
from lrdyn.data.batches import PIXELS, Batch, binary, pickled
from lrdyn.data.guarded import refused

TRAINING = 5
"""Training batches; one more is the test batch."""
SMALL = 4096
"""Bytes of the members that are not read, at most."""


class Version(NamedTuple):
    """One of the two archives."""

    folder: str
    batch: str
    """Pattern of the name of a batch."""
    others: tuple[str, ...]
    """Members that are known and not read."""
    size: Callable[[int], int]
    """Images of a batch -> its bytes, at most."""
    read: Callable[[bytes, Path, int], Batch]


VERSIONS = {
    "cifar-10-python.tar.gz": Version(
        folder="cifar-10-batches-py",
        batch="{}",
        others=("batches.meta", "readme.html"),
        # A batch of 10,000 images has up to 31,035,999 bytes: label and file's name of each.
        size=lambda count: count * (PIXELS + 32) + SMALL,
        read=pickled,
    ),
    "cifar-10-binary.tar.gz": Version(
        folder="cifar-10-batches-bin",
        batch="{}.bin",
        others=("batches.meta.txt", "readme.html"),
        size=lambda count: count * (PIXELS + 1),
        read=binary,
    ),
}


def read(path: Path, count: int) -> tuple[Batch, Batch]:
    """Read the training and the test images of an archive.

    Args:
        path: ``cifar-10-python.tar.gz`` or ``cifar-10-binary.tar.gz``.
        count: images of each of its six batches.

    Raises:
        Refused: the archive is damaged; a member is unknown, a link, too large or missing.

    Example:
        >>> read(Path("cifar-10-python.tar.gz"), 10_000)  # doctest: +SKIP
    """
    version = VERSIONS[path.name]
    training = [f"data_batch_{number}" for number in range(1, TRAINING + 1)]
    names = [version.batch.format(name) for name in (*training, "test_batch")]
    sizes = dict.fromkeys(names, version.size(count)) | dict.fromkeys(version.others, SMALL)
    batches: dict[str, Batch] = {}
    for name, content in archives.members(path, version.folder, sizes, "CIFAR-10"):
        if name in names:
            batches[name] = version.read(content, path, count)
    for name in names:
        if name not in batches:
            raise refused(path, f"no {name}", "all six batches: it is truncated or another archive")
    *parts, test = (batches[name] for name in names)
    return Batch(*map(np.concatenate, zip(*parts, strict=True))), test
