"""Weights by name, of a model of any framework or of a checkpoint, read one at a time.

A leaf is what has ``__array__`` (NumPy, JAX, torch) or ``__dlpack__``; other leaves are left alone.
Names are those of :mod:`lrdyn.core.selection`: attributes, keys, positions, with dots between.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from lrdyn.core import checks
from lrdyn.core.selection import Patterns, checked_patterns, fits, name_of
from lrdyn.data import arrays, tensors
from lrdyn.data.arrays import Arrays
from lrdyn.data.tensors import FLOATS, Info, Tensors


class Leaves:
    """The arrays of a PyTree by the names of their paths; nothing is copied.

    Args:
        name: what the tree is called in messages.
        params: the tree.

    Raises:
        ValueError: two leaves have one name, or one is traced or lies where NumPy cannot read it.

    Example:
        >>> leaves = Leaves("params", {"layer": {"W": np.ones((2, 3)), "f": abs}})
        >>> leaves.infos
        {'layer.W': Info(file=PosixPath('params'), dtype='float64', shape=(2, 3))}
    """

    def __init__(self, name: str, params: Any):
        self._leaves: dict[str, np.ndarray | jax.Array] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            place = name_of(path)
            if not hasattr(leaf, "__array__") and not hasattr(leaf, "__dlpack__"):
                continue
            if place in self._leaves:
                checks.refuse(name, f"two leaves called {place}", "names that differ")
            # An array of JAX knows its shape, and may lie on a device.
            known = isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer)
            self._leaves[place] = leaf if known else of_any_framework(f"{name}[{place!r}]", leaf)
        self.infos = {n: Info(Path(name), x.dtype.name, x.shape) for n, x in self._leaves.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        """Give one array to NumPy; it may be copied from a device."""
        return np.asarray(self._leaves[name])


Weights = Tensors | Arrays | Leaves
"""Arrays by name, each read when it is asked for; ``infos`` has what is known of them."""


def of_any_framework(name: str, x: Any) -> np.ndarray:
    """An array as one of NumPy, without a copy where the framework allows it.

    Raises:
        ValueError: it is traced, or lies where it cannot be read.

    Example:
        >>> of_any_framework("W", jax.numpy.ones(2)).tolist()
        [1.0, 1.0]
    """
    if isinstance(x, Tracer):
        checks.refuse(name, "a traced array", "numbers: call this outside of jit, grad and vmap")
    # A parameter of torch gives its numbers away only without its gradient.
    x = x.detach() if hasattr(x, "detach") else x
    if isinstance(x, np.ndarray | jax.Array):
        return np.asarray(x)
    ways = [("__dlpack__", np.from_dlpack), ("__dlpack__", jax.dlpack.from_dlpack)]
    failure = ""
    for attribute, way in [*ways, ("__array__", np.asarray)]:
        if hasattr(x, attribute):
            try:  # bfloat16 is no type of NumPy's DLPack, and of JAX's it is
                return np.asarray(way(x))
            except Exception as error:  # each framework has its own
                failure = f" ({type(error).__name__})"
    checks.refuse(name, f"a {type(x).__name__} that cannot be read{failure}", "an array on the CPU")


def weights(name: str, source: Any) -> Weights:
    """Weights of a file, an open one, or a PyTree.

    Args:
        name: what it is called in messages.
        source: ``.safetensors``, ``.safetensors.index.json``, a folder with either, ``.npz``, or
            what :func:`lrdyn.data.tensors.opened` gives; or a tree of arrays of any framework.

    Raises:
        Refused: a file is damaged, a pickle, or of another format.
        OSError: it cannot be read.

    Example:
        >>> weights("before", {"W": np.ones((2, 3), np.float32)})["W"].shape
        (2, 3)
    """
    if isinstance(source, str | Path):
        path = Path(source)
        return arrays.opened(path) if path.suffix == ".npz" else tensors.opened(path)
    if isinstance(source, Tensors | Arrays):
        return source
    return Leaves(name, source)


def matrices(infos: Mapping[str, Info], select: Patterns) -> Iterator[str]:
    """Names of the matrices of floating-point numbers that fit ``select``.

    Example:
        >>> leaves = Leaves("params", {"W": np.ones((2, 3)), "b": np.ones(2)})
        >>> list(matrices(leaves.infos, "*"))
        ['W']
    """
    select = checked_patterns("select", select)
    for name, info in infos.items():
        if is_matrix(info) and fits(name, select):
            yield name


def is_matrix(info: Info) -> bool:
    """Two axes, none empty, of floating-point numbers.

    Example:
        >>> is_matrix(Info(Path(), "int32", (2, 3)))
        False
    """
    return len(info.shape) == 2 and 0 not in info.shape and info.dtype in FLOATS


def in_full(array: np.ndarray) -> np.ndarray:
    """Half precision as float32; float32 and float64 as they are.

    Example:
        >>> in_full(np.ones(2, np.float16)).dtype.name
        'float32'
    """
    return array.astype(np.result_type(array.dtype, np.float32), copy=False)


def epsilon(dtype: str) -> float:
    """Machine epsilon of a type by its name.

    Example:
        >>> epsilon("bfloat16")
        0.0078125
    """
    return float(jax.numpy.finfo(dtype).eps)
