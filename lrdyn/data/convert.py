"""Turn an archive of JPEGs into what is read as CIFAR-10: ``python -m lrdyn.commands.convert``.

The archive is an npz with ``buf``, the bytes of all JPEGs, ``off``, where each begins and the last
ends, and ``y``, their labels; training images come first. JPEG loses detail: the file that is
written says so, and captions repeat it.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from lrdyn.data import arrays, sets
from lrdyn.data.guarded import reading, refused
from lrdyn.system.whole_files import replacing

MOST = 2**28
"""Bytes of all JPEGs, at most."""
DESCRIBED = "re-encoded as JPEG"


def convert(source: str | Path, target: str | Path) -> Path:
    """Write ``x_train, y_train, x_test, y_test`` of an archive of JPEGs.

    Args:
        source: the archive.
        target: the file to write, such as ``cifar10.npz`` in one of the places; replaced whole.

    Returns:
        The file.

    Raises:
        Refused: the archive is damaged or another one.
        ImportError: the package pillow, which comes with matplotlib, is not installed.

    Example:
        >>> convert("cifar10_jpeg.npz", "cifar10.npz")  # doctest: +SKIP
    """
    path, one = Path(source), sets.KNOWN["cifar10"]
    count = one.train + one.test
    found = arrays.read(path, {
        "buf": arrays.Known("u", lambda shape: len(shape) == 1 and shape[0] <= MOST, 1),
        "off": arrays.Known("iu", arrays.shaped((count + 1,))),
        "y": arrays.Known("iu", arrays.shaped((count,))),
    })  # fmt: skip
    inputs = _decoded(path, found["buf"], found["off"].astype(np.int64), one.shape)
    labels = found["y"].astype(np.uint8)
    if not (found["y"] == labels).all() or labels.max() >= one.classes:
        raise refused(path, "other labels", f"0 to {one.classes - 1}")
    return _write(
        Path(target),
        x_train=inputs[: one.train], y_train=labels[: one.train],
        x_test=inputs[one.train :], y_test=labels[one.train :],
        described=np.array(DESCRIBED),
    )  # fmt: skip


def _decoded(
    path: Path, content: UInt8[np.ndarray, "size"], ends: Int[np.ndarray, "n"],
    shape: tuple[int, int, int],
) -> UInt8[np.ndarray, "m height width channels"]:  # fmt: skip
    if ends[0] < 0 or ends[-1] > len(content) or (np.diff(ends) <= 0).any():
        raise refused(path, "other offsets", "increasing ones within buf")
    made = np.empty((len(ends) - 1, *shape), np.uint8)
    with reading(path, "JPEGs"):
        for place in range(len(made)):
            made[place] = _picture(content[ends[place] : ends[place + 1]].tobytes(), path, shape)
    return made


def _picture(content: bytes, path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("convert needs the package pillow: pip install pillow") from None
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
        if picture.size != shape[1::-1]:  # known before anything is decoded
            got = f"a JPEG of {picture.size[0]} x {picture.size[1]}"
            raise refused(path, got, f"{shape[1]} x {shape[0]}")
        return np.asarray(picture.convert("RGB"))


def _write(target: Path, **content: Any) -> Path:
    """Write an npz in the place of another only when it is whole."""
    with replacing(target) as temporary, temporary.open("wb") as file:
        np.savez(file, **content)
    return target
