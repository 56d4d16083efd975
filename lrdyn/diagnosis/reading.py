"""Weights by name, of a model of any framework or of a checkpoint, read one at a time.

A leaf is what has ``__array__`` (NumPy, JAX, torch) or ``__dlpack__``; other leaves are left alone.
Names are those of :mod:`lrdyn.core.selection`: attributes, keys, positions, with dots between.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from lrdyn.adapters import lora_files, peft
from lrdyn.core import checks
from lrdyn.core.selection import Patterns, checked_patterns, fits, name_of
from lrdyn.data import arrays, checkpoints, tensors
from lrdyn.data.arrays import Arrays
from lrdyn.data.tensors import EIGHT_BITS, Info, Tensors
from lrdyn.data.tensors import FLOATS as COMPUTED
from lrdyn.diagnosis.on_device import OnDevice, is_elsewhere, type_name
from lrdyn.diagnosis.products import Products
from lrdyn.diagnosis.unfolding import Unfolded

FLOATS = (*COMPUTED, *EIGHT_BITS.values())
"""Types of numbers that are compared."""


class Leaves:
    """The arrays of a PyTree by the names of their paths; nothing is copied.

    Args:
        name: what the tree is called in messages.
        params: the tree.

    Raises:
        ValueError: two leaves have one name, one is traced or lies where NumPy cannot read it, or
            one is a module of torch.

    Example:
        >>> leaves = Leaves("params", {"layer": {"W": np.ones((2, 3)), "f": abs}})
        >>> leaves.infos
        {'layer.W': Info(file=PosixPath('params'), dtype='float64', shape=(2, 3))}
    """

    path: Path | None = None
    """Where the tree was read from, if it was."""

    def __init__(self, name: str, params: Any):
        if _is_torch_module(params):
            params = params.state_dict()
        self._leaves: dict[str, Any] = {}
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            place = name_of(path)
            if not hasattr(leaf, "__array__") and not hasattr(leaf, "__dlpack__"):
                if _is_torch_module(leaf):
                    got = f"a module of torch ({type(leaf).__name__})"
                    checks.refuse(name, got, "its weights by name: model.state_dict()")
                continue
            if place in self._leaves:
                checks.refuse(name, f"two leaves called {place}", "names that differ")
            # An array of JAX knows its shape, and may lie on a device, as one of torch may.
            if isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
                self._leaves[place] = leaf
            elif is_elsewhere(leaf):
                self._leaves[place] = leaf.detach()
            else:
                self._leaves[place] = to_numpy(f"{name}[{place!r}]", leaf)
        self.infos = {
            n: Info(Path(name), type_name(x), tuple(x.shape)) for n, x in self._leaves.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        """Give one array to NumPy; it may be copied from a device."""
        return to_numpy(name, self._leaves[name])

    def on_device(self, name: str) -> OnDevice | None:
        """One matrix where it lies, if that is the memory of an accelerator."""
        leaf = self._leaves[name]
        return OnDevice(leaf) if is_elsewhere(leaf) else None


def _is_torch_module(x: Any) -> bool:
    return hasattr(x, "state_dict") and hasattr(x, "named_parameters")


class Renamed:
    r"""Weights under other names: those of a wrapper, or of another library.

    Args:
        name: what they are called in messages.
        inner: the weights.
        names: regular expression -> what takes the place of each match, one after the other.

    Raises:
        ValueError: two arrays get one name.

    Example:
        >>> inner = Leaves("after", {"module.q.weight": np.ones((2, 3))})
        >>> list(Renamed("after", inner, {r"^module\.": ""}).infos)
        ['q.weight']
    """

    def __init__(self, name: str, inner: Any, names: Mapping[str, str]):
        self._inner, self._old = inner, {}
        for old in inner.infos:
            new = old
            for pattern, text in names.items():
                new = re.sub(pattern, text, new)
            if new in self._old:
                checks.refuse("rename", f"{new} for {self._old[new]} and {old}", "a name for each")
            self._old[new] = old
        self.infos = {new: inner.infos[old] for new, old in self._old.items()}
        self.path = getattr(inner, "path", Path(name))

    def __getitem__(self, name: str) -> np.ndarray:
        """One array by its new name."""
        return self._inner[self._old[name]]


Weights = Tensors | Arrays | Leaves | Renamed | Unfolded | Products
"""Arrays by name, each read when it is asked for; ``infos`` has what is known of them."""


def to_numpy(name: str, x: Any) -> np.ndarray:
    """An array as one of NumPy, without a copy where the framework allows it.

    Raises:
        ValueError: it is traced, or lies where it cannot be read.

    Example:
        >>> to_numpy("W", jax.numpy.ones(2)).tolist()
        [1.0, 1.0]
    """
    if isinstance(x, Tracer):
        checks.refuse(name, "a traced array", "numbers: call this outside of jit, grad and vmap")
    # A parameter of torch gives its numbers away only without its gradient.
    x = x.detach() if hasattr(x, "detach") else x
    x = x.cpu() if is_elsewhere(x) and not isinstance(x, jax.Array) else x
    if isinstance(x, np.ndarray | jax.Array):
        return np.asarray(x)
    ways = [("__dlpack__", np.from_dlpack), ("__dlpack__", jax.dlpack.from_dlpack)]
    failure = ""
    for attribute, way in [*ways, ("__array__", np.asarray)]:
        # DLPack first, which shares the memory; ``__array__`` may copy.
        if hasattr(x, attribute):
            try:  # bfloat16 is no type of NumPy's DLPack, and of JAX's it is
                return np.asarray(way(x))
            except Exception as error:  # each framework has its own
                failure = f" ({type(error).__name__})"
    checks.refuse(name, f"a {type(x).__name__} that cannot be read{failure}", "an array on the CPU")


def weights(name: str, source: Any, rename: Mapping[str, str] | None = None) -> Weights:
    """Weights of a file, an open one, an adapter, or a PyTree.

    Args:
        name: what it is called in messages.
        source: a file or folder (:func:`lrdyn.data.checkpoints.located` says which), what
            :func:`lrdyn.data.tensors.opened` or :func:`lrdyn.adapters.peft.read` gives; or a tree
            of arrays of any framework.
        rename: regular expression -> text, for the names.

    Raises:
        Refused: a file is damaged, quantised, a pickle that torch does not read, or of another
            format.
        OSError: it cannot be read.

    Example:
        >>> weights("before", {"W": np.ones((2, 3), np.float32)})["W"].shape
        (2, 3)
    """
    opened = _open(name, source)
    if rename:
        if isinstance(opened, Products):
            return opened.rename(rename)
        return Renamed(name, opened, rename)
    return opened


def _open(name: str, source: Any) -> Weights:
    if isinstance(source, Weights):
        return source
    if isinstance(source, lora_files.LoraFile):
        source = source.stored
    if isinstance(source, peft.Stored):
        return Products(name, Path(name), source)
    if not isinstance(source, str | Path):
        return Leaves(name, source)
    path = checkpoints.located(source)
    if is_adapter(path):
        return Products(name, path, peft.read(path))
    if path.is_dir():
        opened = Leaves(os.fspath(path), checkpoints.orbax_weights(path))
    elif path.suffix == ".npz":
        return arrays.opened(path)
    elif checkpoints.is_torch(path):
        opened = Leaves(os.fspath(path), checkpoints.torch_weights(path))
    else:
        opened = tensors.opened(path)
        if lora_files.is_lora_file(opened.infos):
            return Products(name, path, lora_files.read(path).stored)
    opened.path = path
    checkpoints.check_full(path, opened.infos, checkpoints.config_beside(path))
    return opened


def is_adapter(path: Path) -> bool:
    """Whether a folder or a file is an adapter of PEFT.

    Example:
        >>> is_adapter(Path("adapter_model.safetensors"))
        True
    """
    inside = path.is_dir() and (path / checkpoints.ADAPTER).is_file()
    return inside or path.name == "adapter_model.safetensors"


def config_of(source: Any) -> dict[str, Any] | None:
    """The content of the ``config.json`` beside weights that were read from files."""
    path = getattr(source, "path", None)
    return None if path is None else checkpoints.config_beside(path)


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
    """Two axes, none empty, of floating-point numbers that are read.

    Example:
        >>> is_matrix(Info(Path(), "int32", (2, 3)))
        False
    """
    return len(info.shape) == 2 and 0 not in info.shape and info.dtype in FLOATS


def widen(array: np.ndarray) -> np.ndarray:
    """Numbers of 8 and 16 bits as float32; float32 and float64 as they are.

    Example:
        >>> widen(np.ones(2, np.float16)).dtype.name
        'float32'
    """
    if array.dtype.name == "bfloat16":  # the upper half of a float32; a cast takes thrice as long
        wide = array.view(np.uint16).astype(np.uint32)
        return np.left_shift(wide, 16, out=wide).view(np.float32)
    kind = np.float32 if array.dtype.itemsize < 4 else array.dtype
    return array.astype(kind, copy=False)


def count_nonfinite(array: np.ndarray) -> int:
    """How many entries are NaN or infinite.

    Example:
        >>> count_nonfinite(np.array([1.0, np.inf]))
        1
    """
    parts = map(widen, tensors.pieces(array))
    return sum(part.size - int(np.count_nonzero(np.isfinite(part))) for part in parts)


def epsilon(dtype: str) -> float:
    """Machine epsilon of a type by its name.

    Example:
        >>> epsilon("bfloat16")
        0.0078125
    """
    return float(jax.numpy.finfo(dtype).eps)
