"""Packing: sentences of unequal length behind each other in rows, so that little is filled up.

A token looks at those of its own sentence alone, wherever the sentence stands in its row: what a
network makes of it is what it makes of a sentence by itself. Positions were added before.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lrdyn.core import checks
from lrdyn.core.checks import checked


class Packed(NamedTuple):
    """Sentences that share rows, and which place belongs to which."""

    hidden: Float[Array, "rows room width"]
    """What a layer gets, 0 where nothing stands."""
    owner: Int[Array, "rows room"]
    """Which sentence a place belongs to; -1 where nothing stands."""

    def mask(self) -> Bool[Array, "rows room room"]:
        """True at (k, q) where q may look at k, as :meth:`lrdyn.networks.Bert.above` takes it."""
        return (self.owner[:, :, None] == self.owner[:, None, :]) & (self.owner >= 0)[:, :, None]

    def means(
        self, hidden: Float[Array, "rows room width"], count: int
    ) -> Float[Array, "count width"]:
        """Means over the tokens of each of so many sentences, as ``mean_pooled`` has them."""
        tokens = self._token_mask(jnp.arange(count)).astype(hidden.dtype)
        total = tokens @ hidden.reshape(-1, hidden.shape[-1])
        # A sentence without a token has the mean 0.
        return total / jnp.maximum(jnp.sum(tokens, axis=1, keepdims=True), 1)

    def firsts(
        self, hidden: Float[Array, "rows room width"], count: int
    ) -> Float[Array, "count width"]:
        """The first token of each of so many sentences."""
        places = jnp.argmax(self._token_mask(jnp.arange(count)), axis=1)
        return hidden.reshape(-1, hidden.shape[-1])[places]

    def _token_mask(self, sentences: Int[Array, "count"]) -> Bool[Array, "count places"]:
        return self.owner.reshape(1, -1) == sentences[:, None]


@checked
def lengths(mask: Bool[Array, "n length"] | Bool[np.ndarray, "n length"]) -> Int[Array, "n"]:
    """Places up to the last token of each sentence.

    Example:
        >>> lengths(jnp.array([[True, False, True, False], [True, False, False, False]])).tolist()
        [3, 1]
    """
    return jnp.max(jnp.where(mask, 1 + jnp.arange(mask.shape[1])[None], 0), axis=1)


@checked
def pack(
    hidden: Float[Array, "n length width"],
    mask: Bool[Array, "n length"] | Bool[np.ndarray, "n length"],
    rows: int,
    room: int,
) -> Packed:
    """Put sentences into rows, the longest first, there and back, so that rows are equally full.

    Args:
        hidden: what a layer gets.
        mask: true where there is a token.
        rows: how many rows.
        room: places of a row, :func:`room_for` at least; tokens beyond it are lost.

    Example:
        >>> mask = jnp.array([[True, True], [True, False]])
        >>> pack(jnp.ones((2, 2, 1)), mask, 1, 4).owner.tolist()
        [[0, 0, 1, -1]]
    """
    checks.integer("rows", rows)
    checks.integer("room", room)
    given, (count, _, width) = {"rows": rows, "room": room}, hidden.shape
    checks.allocation(given, (rows, room, width), dtype=hidden.dtype)
    checks.allocation(given, (rows, room, count), dtype=int)
    mask = jnp.asarray(mask)
    size = lengths(mask)
    row, first = _place_sentences(size, rows)
    # How far into each sentence a place of each row is; inside of at most one of them.
    into = jnp.arange(room)[None, :, None] - first[None, None]
    inside = (into >= 0) & (into < size[None, None])
    inside &= row[None, None] == jnp.arange(rows)[:, None, None]
    owner = jnp.argmax(inside, axis=2)
    token = jnp.sum(jnp.where(inside, into, 0), axis=2)
    is_token = jnp.any(inside, axis=2) & mask[owner, token]
    packed = jnp.where(is_token[..., None], hidden[owner, token], 0)
    return Packed(packed, jnp.where(is_token, owner, -1))


@checked
def room_for(
    mask: Bool[Array, "n length"] | Bool[np.ndarray, "n length"], rows: int
) -> Int[Array, ""]:
    """Places that the fullest of so many rows takes.

    It is at most that of any other sentences of which none, in order of length, is shorter.

    Example:
        >>> int(room_for(jnp.ones((4, 3), bool), 2))
        6
    """
    checks.integer("rows", rows)
    checks.allocation({"rows": rows}, (rows, len(mask)), dtype=int)
    sizes = lengths(mask)
    row, _ = _place_sentences(sizes, rows)
    in_row = row[None] == jnp.arange(rows)[:, None]
    return jnp.max(jnp.sum(jnp.where(in_row, sizes[None], 0), axis=1))


def _place_sentences(sizes: Int[Array, "n"], rows: int) -> tuple[Int[Array, "n"], Int[Array, "n"]]:
    """The row of each sentence, and where in it the sentence begins."""
    turn = jnp.arange(len(sizes))
    order = jnp.argsort(-sizes, stable=True)
    # Every other lap runs back: the row with the longest sentence of one gets the shortest of the
    # next.
    lap, at = turn // rows, turn % rows
    row = jnp.where(lap % 2 == 0, at, rows - 1 - at)
    before = (row[:, None] == row[None]) & (turn[None] < turn[:, None])
    first = jnp.sum(jnp.where(before, sizes[order][None], 0), axis=1)
    # The inverse of the order, for results in that of the sentences.
    back = jnp.argsort(order)
    return row[back], first[back]
