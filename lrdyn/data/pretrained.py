"""Networks whose weights are those of a file: which tensor is which leaf."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lrdyn.core.selection import arrays, name_of
from lrdyn.data.tensors import Known, Tensors, check, extra

N = TypeVar("N")


class Source(NamedTuple):
    """Where the array of a leaf lies in a file."""

    name: str
    """Of the tensor."""
    shape: tuple[int, ...] | None = None
    """Of the tensor, if it is not that of the leaf; then it is reshaped."""
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
        >>> found = filled(like, sources, opened(path), ignored=lambda name: False)
        >>> found["W"].tolist(), found["b"].tolist()
        ([[2.0], [3.0]], [1.0])
    """
    leaves = dict(arrays(like))
    known = {one.name: Known(one.shape or leaves[path].shape) for path, one in sources.items()}
    check(tensors, known, more=True)
    others = [name for name in tensors if name not in known and not ignored(name)]
    if others:
        raise extra(tensors.infos[min(others)].file, min(others))

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        source = sources.get(name_of(path))
        return leaf if source is None else jnp.asarray(_read(tensors, source).reshape(leaf.shape))

    return jax.tree_util.tree_map_with_path(one, like)


def _read(tensors: Tensors, source: Source) -> np.ndarray:
    array = np.asarray(tensors[source.name], np.float32)
    return array if source.rows is None else array[source.rows]
