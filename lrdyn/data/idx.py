"""IDX, the format of MNIST: a magic number, the axes, then the bytes; plain or gzipped."""

import math
import struct
from pathlib import Path

import numpy as np

from lrdyn.data.guarded import ended, exactly, reading, refused, unpacked

BYTES = 0x0800
"""The magic number is this (unsigned bytes) plus the number of axes."""


def read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file of bytes whose shape is known; read-only.

    Args:
        path: the file, gzipped if it ends in ``.gz``.
        shape: lengths of the axes; a file that announces others is refused before it is read.

    Raises:
        Refused: the file is damaged or holds another array.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a-idx1-ubyte")
        >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 5, 7]))
        >>> read(path, (2,))
        array([5, 7], dtype=uint8)
    """
    wanted = f"IDX of {' x '.join(map(str, shape))} bytes"
    with unpacked(path) as file, reading(path, wanted):
        magic, *axes = struct.unpack(
            f">{1 + len(shape)}I", exactly(file, 4 * (1 + len(shape)), path)
        )
        if magic != BYTES + len(shape):
            raise refused(path, f"the magic number {magic:#010x}", wanted)
        if tuple(axes) != shape:
            raise refused(path, f"IDX of {' x '.join(map(str, axes))}", wanted)
        content = exactly(file, math.prod(shape), path)
        ended(file, path)
    return np.frombuffer(content, np.uint8).reshape(shape)
