"""CIFAR's batches: bytes of a binary one, and the pickle of Python 2 of a python one.

A pickle is a program. This one may use the instructions that make a dictionary of bytes, numbers
and one array, and three names of NumPy, in whose place stand classes that only keep what they are
given; so nothing of NumPy, or of anything else, is called by it.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from lrdyn.data.guarded import reading, refused

SIDE, CHANNELS = 32, 3
PIXELS = SIDE * SIDE * CHANNELS
"""Bytes of an image: its rows of red, of green, of blue."""


class Batch(NamedTuple):
    """Images and their labels."""

    inputs: UInt8[np.ndarray, "n 32 32 3"]
    labels: Int[np.ndarray, "n"]


def pictures(rows: UInt8[np.ndarray, "n 3072"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """Rows of red, green and blue planes as images with the channel last.

    Example:
        >>> pictures(np.zeros((2, 3072), np.uint8)).shape
        (2, 32, 32, 3)
    """
    return rows.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1)


def binary(content: bytes, path: Path, count: int) -> Batch:
    """Read a batch of the binary version: a byte for the label, then the pixels.

    Args:
        content: the bytes of the batch.
        path: the archive, for messages.
        count: images of a batch.

    Raises:
        Refused: the batch has another size.

    Example:
        >>> binary(bytes(3073), Path("a"), 1).labels
        array([0])
    """
    if len(content) != count * (1 + PIXELS):
        wanted = f"{count * (1 + PIXELS)}, those of {count} images"
        raise refused(path, f"a batch of {len(content)} bytes", wanted)
    rows = np.frombuffer(content, np.uint8).reshape(count, 1 + PIXELS)
    return Batch(pictures(rows[:, 1:]), rows[:, 0].astype(np.int64))


OPCODES = frozenset(
    "PROTO EMPTY_DICT EMPTY_LIST EMPTY_TUPLE MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 "
    "LONG1 SHORT_BINSTRING BINSTRING BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL REDUCE BUILD "
    "TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS STOP".split()
)
"""Instructions that Python 2 wrote into CIFAR's batches, and their short forms."""


class _StandIn:
    """An object that only keeps its arguments and its state, in place of a pickled one."""

    def __init__(self, *words: Any):
        self.words, self.state = words, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Array(_StandIn):
    """Stand-in for ``numpy.ndarray`` and for the function that makes one."""


class _Type(_StandIn):
    """Stand-in for ``numpy.dtype``, of which only the arguments are kept."""


ALLOWED: dict[tuple[str, str], type[_StandIn]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
}
"""Every name that a batch may import, and its stand-in."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type[_StandIn]:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return ALLOWED[module, name]


def pickled(content: bytes, path: Path, count: int) -> Batch:
    """Read a batch of the python version: a dictionary with ``data`` and ``labels``.

    Args:
        content: the pickle.
        path: the archive, for messages.
        count: images of a batch.

    Raises:
        Refused: the pickle asks for anything else, is damaged, or holds other arrays.

    Example:
        >>> pickled(b"cos" + bytes([10]) + b"system" + bytes([10]) + b".", Path("a"), 1)
        Traceback (most recent call last):
        lrdyn.data.guarded.Refused: a: got a pickle with os system, wanted a batch of CIFAR-10
    """
    wanted = "a batch of CIFAR-10"
    with reading(path, wanted):
        _look_through(content, path, count)
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        _, shape, kind, fortran, raw = batch[b"data"].state
        if not isinstance(kind, _Type) or kind.words[0] not in (b"u1", b"|u1"):
            raise TypeError("not of bytes")
        if shape != (count, PIXELS) or not isinstance(raw, bytes):
            raise TypeError("another shape")
        rows = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")
        labels = batch[b"labels"]
        if len(labels) != count or not all(type(label) is int for label in labels):
            raise refused(path, "a batch with other labels", f"{count} integers")
        return Batch(pictures(rows), np.array(labels, np.int64))


def _look_through(content: bytes, path: Path, count: int) -> None:
    """Refuse a pickle by its instructions, before any of them is executed."""
    # Three instructions an image: a label, its file's name, the note of that name.
    most = 8 * count + 1000
    for number, (code, value, _) in enumerate(pickletools.genops(content)):
        if code.name == "GLOBAL" and tuple(str(value).split(" ", 1)) not in ALLOWED:
            raise refused(path, f"a pickle with {value}", "a batch of CIFAR-10")
        # The place of a note is memory that the unpickler takes.
        far = code.name.endswith("PUT") and isinstance(value, int) and value > most
        # The number of instructions is bounded, for a short pickle can run for ever or double a
        # list often.
        if code.name not in OPCODES or number > most or far:
            raise refused(path, f"a pickle with {code.name}", "a batch of CIFAR-10")
