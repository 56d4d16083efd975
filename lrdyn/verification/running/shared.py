"""Arrays that every point of a sweep reads: passed to its programs, on each device once."""

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from lrdyn.training.program import update_digest

NAME = "shared"
"""Name of the argument by which a function takes shared arrays."""


class Shared:
    """A PyTree of arrays; None is one without any.

    Args:
        tree: the arrays.

    Raises:
        ValueError: a leaf is no array of numbers.

    Example:
        >>> shared = Shared({"x": np.ones((2, 3))})
        >>> shared.nbytes == 6 * shared.like["x"].dtype.itemsize
        True
    """

    def __init__(self, tree: PyTree):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not _is_array(leaf):
                where = jax.tree_util.keystr(path)
                raise ValueError(f"{NAME}{where}: got {leaf!r:.50}, wanted an array of numbers")
        self.tree = tree
        # As JAX will see them: with 64-bit numbers switched off, a float64 array has half of its
        # bytes.
        self.like = jax.eval_shape(lambda tree: tree, tree)
        self.placed: dict[Any, list] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.size * array.dtype.itemsize for array in jax.tree.leaves(self.like))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the arrays and of how they are put together; empty without any."""
        leaves, structure = jax.tree.flatten(self.tree)
        if not leaves:
            return ""
        # Functions among its static parts print with their address.
        digest = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", f"{structure}").encode())
        for leaf in leaves:
            update_digest(digest, leaf)
        return digest.hexdigest()

    def abstract_values(self, devices: Sequence[Any]) -> PyTree:
        """Shapes, types and placement of the arrays."""
        everywhere = _replicated_sharding(devices)
        return jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(
                array.shape, array.dtype, sharding=everywhere, weak_type=array.weak_type
            ),
            self.like,
        )

    def place_on(self, devices: Sequence[Any]) -> PyTree:
        """The arrays on each of these devices, moved there the first time."""
        leaves, structure = jax.tree.flatten(self.tree)
        for device in devices:
            if device not in self.placed:
                self.placed[device] = jax.device_put(leaves, device)
        everywhere, copies = (
            _replicated_sharding(devices),
            zip(*map(self.placed.get, devices), strict=True),
        )
        arrays = [
            # One array with a copy on each device, made of those that are there: nothing is moved
            # again.
            jax.make_array_from_single_device_arrays(each[0].shape, everywhere, list(each))
            for each in copies
        ]
        return jax.tree.unflatten(structure, arrays)


def check_taken(function: Callable, columns: Mapping[str, Any]) -> None:
    """Refuse a function without an argument for shared arrays, or an axis of its name.

    Raises:
        ValueError: it does not, or one has.

    Example:
        >>> check_taken(lambda x, shared: x, {"x": [1.0]})
    """
    if NAME in columns:
        raise ValueError(f"{NAME}: got an axis of this name, too, wanted only one of them")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin has no signature
        return
    by_name = NAME in parameters and parameters[NAME].kind is not inspect.Parameter.POSITIONAL_ONLY
    if not by_name and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        wanted = f"an argument {NAME!r} among {list(parameters)}"
        raise ValueError(f"{NAME}: got a function without it, wanted {wanted}")


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, Tracer):
        return False
    return isinstance(leaf, jax.Array) or (
        isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSUVMm"
    )


def _replicated_sharding(devices: Sequence[Any]) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(devices), ("run",)), PartitionSpec())
