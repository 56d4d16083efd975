"""CIFAR-10's own archive in its binary form, read member by member.

Its python form holds pickles, which are programs, and is not read: the same images are in both.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from lrdyn.data import archives
from lrdyn.data.guarded import refused
from lrdyn.data.lookup import is_file

ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
"""Members that are read: those with training images, and the one with test images."""
OTHERS = ("batches.meta.txt", "readme.html")
"""Members that are known and not read."""
PICKLES = "cifar-10-python.tar.gz"
"""The python form."""
SIDE, CHANNELS = 32, 3
IMAGE = 1 + SIDE * SIDE * CHANNELS
"""Bytes of an image: its label, then its rows of red, of green, of blue."""
SMALL = 4096
"""Bytes of the members that are not read, at most."""


class Batch(NamedTuple):
    """Images and their labels."""

    inputs: UInt8[np.ndarray, "n 32 32 3"]
    labels: Int[np.ndarray, "n"]


def read(path: Path, count: int) -> tuple[Batch, Batch]:
    """Read the training and the test images of the archive.

    Args:
        path: of the archive.
        count: images of each of its six batches.

    Raises:
        Refused: the archive is damaged; a member is unknown, a link, of another size or missing.

    Example:
        >>> read(Path("cifar-10-binary.tar.gz"), 10_000)  # doctest: +SKIP
    """
    sizes = dict.fromkeys(BATCHES, count * IMAGE) | dict.fromkeys(OTHERS, SMALL)
    batches = {
        name: _batch(content, path, count)
        for name, content in archives.members(path, FOLDER, sizes, "CIFAR-10")
        if name in BATCHES
    }
    for name in BATCHES:
        if name not in batches:
            raise refused(path, f"no {name}", "all six batches: it is truncated or another archive")
    *training, test = (batches[name] for name in BATCHES)
    return Batch(*map(np.concatenate, zip(*training, strict=True))), test


def _batch(content: bytes, path: Path, count: int) -> Batch:
    if len(content) != count * IMAGE:
        wanted = f"{count * IMAGE}, those of {count} images"
        raise refused(path, f"a batch of {len(content)} bytes", wanted)
    rows = np.frombuffer(content, np.uint8).reshape(count, IMAGE)
    pixels = rows[:, 1:].reshape(count, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Batch(pixels, rows[:, 0].astype(np.int64))


def refuse_pickles(folders: Iterable[Path]) -> None:
    """Say what to do with the python form, if that is what lies in one of the folders.

    Raises:
        Refused: it lies there.

    Example:
        >>> refuse_pickles([Path("no such folder")])
    """
    for path in (folder / PICKLES for folder in folders):
        if is_file(path):
            wanted = f"{ARCHIVE} (lrdyn data download cifar10)"
            raise refused(path, "pickles, which are programs and are not read", wanted)
