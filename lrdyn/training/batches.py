"""Mini-batches whose examples follow from a random key and the number of the step alone."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from lrdyn.core import checks
from lrdyn.training.program import update_digest

Take = Callable[[PyTree, Int[Array, "batch"]], PyTree]
"""``take(data, indices)`` makes a batch of examples."""


def take_rows(data: PyTree, indices: Int[Array, "batch"]) -> PyTree:
    """Take the rows of these examples from every array."""
    return jax.tree.map(lambda array: array[indices], data)


class Batches:
    """Data and how it is cut into batches: an epoch is a random order of all examples.

    The order follows from a key and the number of the epoch, so that a run which continues needs no
    more than its step. What an epoch leaves over for a batch is not used in it.

    Args:
        data: a PyTree of arrays. They stay on the device as they are: images of bytes are best
            scaled by the loss.
        size: examples in a batch; without it every batch is the whole data, in its own order.
        take: makes a batch of some examples; by default these rows of every array.
        count: number of examples; by default that of the rows.

    Raises:
        ValueError: there is no array, the arrays have different numbers of rows, or a batch has
            more examples than there are.

    Example:
        >>> batches = Batches({"x": np.arange(10.0)}, 4)
        >>> batches.epoch, batches.order(jax.random.key(0), 0).shape
        (2, (10,))
    """

    def __init__(
        self,
        data: PyTree,
        size: int | None = None,
        *,
        take: Take = take_rows,
        count: int | None = None,
    ):
        arrays = jax.tree.leaves(data)
        lengths = {np.shape(array)[:1] for array in arrays}
        if count is None and (len(lengths) != 1 or () in lengths):
            checks.refuse("data", f"leading axes {sorted(lengths)}", "arrays of equally many rows")
        self.data, self.take = data, take
        self.count = int(lengths.pop()[0]) if count is None else checks.integer("count", count)
        if size is not None:
            checks.integer("size", size, 1, self.count)
        self.size = size

    @property
    def epoch(self) -> int:
        """Steps of an epoch; without batches there is one that never ends."""
        return self.count // self.size if self.size else 2**31 - 1

    @property
    def examples(self) -> int:
        """Number of examples of one step."""
        return self.size or self.count

    def order(self, key: Key[Array, ""], epoch: int) -> Int[np.ndarray, "examples"]:
        """The order of the examples in an epoch, none without batches.

        It is made by NumPy, beside the device that is busy with the epoch before; the numbers of
        its Philox are the same in all releases.
        """
        if not self.size:
            return np.zeros(0, np.int32)
        words = np.asarray(jax.random.key_data(key)).ravel().tolist()
        # A stable sort of whole numbers has one answer on every machine, ties or not.
        drawn = np.random.Philox(np.random.SeedSequence([epoch, *words])).random_raw(self.count)
        return np.argsort(drawn, kind="stable").astype(np.int32)

    def at(self, data: PyTree, order: Int[Array | np.ndarray, "examples"], t: Any) -> PyTree:
        """The batch of step t, in a traced program: of the data and the order of its epoch.

        Args:
            data: the data, as the program has it.
            order: of the examples in the epoch of this step.
            t: number of the step.
        """
        if not self.size:
            return data
        first = (t % self.epoch) * self.size
        return self.take(data, jax.lax.dynamic_slice_in_dim(order, first, self.size))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the data, a part of the key under which a training is kept."""
        digest = hashlib.sha256(str(jax.tree.structure(self.data)).encode())
        for array in jax.tree.leaves(self.data):
            update_digest(digest, array)
        return digest.hexdigest()
