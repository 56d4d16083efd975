"""Networks whose weights are those of a file: which tensor is which leaf."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from lrdyn.adapters.selection import name_of
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
    build: Callable[[Key[Array, ""]], N],
    source: Callable[[str], Source],
    tensors: Tensors,
    *,
    ignored: Callable[[str], bool] = lambda name: False,
) -> N:
    """A network with the weights of a file, in float32.

    Args:
        build: makes the network from a key; of its arrays the shapes alone are used.
        source: from the path of a leaf to its tensor.
        tensors: the open file; all is checked before anything is read.
        ignored: which other tensors there may be, by their names.

    Raises:
        Refused: a tensor is missing, has another shape or type, or is one too many.
    """
    like = eqx.filter_eval_shape(build, jax.eval_shape(jax.random.key, 0))
    found, structure = jax.tree_util.tree_flatten_with_path(like)
    places = [(source(name_of(path)), leaf.shape) for path, leaf in found]
    known = {one.name: Known(one.shape or shape) for one, shape in places}
    check(tensors, known, more=True)
    others = [name for name in tensors if name not in known and not ignored(name)]
    if others:
        raise extra(tensors.infos[min(others)].file, min(others))
    leaves = [jnp.asarray(_read(tensors, one).reshape(shape)) for one, shape in places]
    return jax.tree.unflatten(structure, leaves)


def _read(tensors: Tensors, source: Source) -> np.ndarray:
    array = np.asarray(tensors[source.name], np.float32)
    return array if source.rows is None else array[source.rows]
