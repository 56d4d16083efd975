"""Turn an archive of JPEGs into what is read as CIFAR-10: ``python -m lrdyn.commands.convert``.

The archive is an npz with ``buf``, the bytes of all JPEGs, ``off``, where each begins and the last
ends, and ``y``, their labels; training images come first. JPEG loses detail: the file that is
written says so, and captions repeat it.
"""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from lrdyn.data import arrays, sets
from lrdyn.data.guarded import reading, refused
from lrdyn.system.whole_files import replace_file

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
    path, known = Path(source), sets.KNOWN["cifar10"]
    count = known.train + known.test
    members = {
        "buf": arrays.ArrayFormat("u", lambda shape: len(shape) == 1 and shape[0] <= MOST, 1),
        "off": arrays.ArrayFormat("iu", arrays.shaped((count + 1,))),
        "y": arrays.ArrayFormat("iu", arrays.shaped((count,))),
    }
    content = arrays.read(path, members)
    inputs = _decoded(path, content["buf"], content["off"].astype(np.int64), known.shape)
    labels = content["y"].astype(np.uint8)
    if not (content["y"] == labels).all() or labels.max() >= known.classes:
        raise refused(path, "labels beyond the classes", f"0 to {known.classes - 1}")
    with replace_file(Path(target)) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            x_train=inputs[: known.train],
            y_train=labels[: known.train],
            x_test=inputs[known.train :],
            y_test=labels[known.train :],
            described=np.array(DESCRIBED),
        )
    return Path(target)


def _decoded(
    path: Path,
    content: UInt8[np.ndarray, "size"],
    ends: Int[np.ndarray, "n"],
    shape: tuple[int, int, int],
) -> UInt8[np.ndarray, "m height width channels"]:
    if ends[0] < 0 or ends[-1] > len(content) or (np.diff(ends) <= 0).any():
        raise refused(path, "offsets that decrease or leave buf", "increasing ones within buf")
    images = np.empty((len(ends) - 1, *shape), np.uint8)
    with reading(path, "JPEGs"):
        for place in range(len(images)):
            images[place] = _picture(content[ends[place] : ends[place + 1]].tobytes(), path, shape)
    return images


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
