"""Networks with the weights of a file: which tensor belongs to which leaf."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lrdyn.core.selection import name_of, named_arrays
from lrdyn.data.tensors import TensorFormat, Tensors, check, extra

N = TypeVar("N")


class Source(NamedTuple):
    """Where the array of a leaf lies in a file."""

    name: str
    """Name of the tensor."""
    shape: tuple[int, ...] | None = None
    """Shape of the tensor, if it is not that of the leaf; then it is reshaped."""
    rows: slice | None = None
    """Which rows of the tensor, if not all."""


def filled(
    like: N,
    sources: Mapping[str, Source],
    tensors: Tensors,
    *,
    ignored: Callable[[str], bool],
) -> N:
    """A network with the weights of a file, in float32.

    Args:
        like: the network, or its shapes.
        sources: the tensor of each leaf, by its path; other leaves stay as they are.
        tensors: the open file; all is checked before anything is read.
        ignored: which other tensors there may be, by their names.

    Raises:
        Refused: a tensor is missing, has another shape or type, or is one too many.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from lrdyn.data.tensors import (opened, write)
        >>> path = Path(tempfile.mkdtemp(), "a.safetensors")
        >>> write(path, {"both": np.arange(4.0).reshape(4, 1)})
        >>> like = {"W": jnp.zeros((2, 1)), "b": jnp.ones(1)}
        >>> sources = {"W": Source("both", (4, 1), slice(2, 4))}
        >>> net = filled(like, sources, opened(path), ignored=lambda name: False)
        >>> net["W"].tolist(), net["b"].tolist()
        ([[2.0], [3.0]], [1.0])
    """
    leaves = dict(named_arrays(like))
    known = {
        source.name: TensorFormat(source.shape or leaves[path].shape)
        for path, source in sources.items()
    }
    check(tensors, known, more=True)
    others = [name for name in tensors if name not in known and not ignored(name)]
    if others:
        raise extra(tensors.infos[min(others)].file, min(others))

    def read_leaf(path: tuple[Any, ...], leaf: Any) -> Any:
        source = sources.get(name_of(path))
        if source is None:
            return leaf
        array = np.asarray(tensors[source.name], np.float32)
        array = array if source.rows is None else array[source.rows]
        return jnp.asarray(array.reshape(leaf.shape))

    return jax.tree_util.tree_map_with_path(read_leaf, like)
