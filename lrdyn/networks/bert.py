"""BERT: an encoder of tokens, its layers one by one, vectors of sentences.

Hidden states are batch x length x width; inside a layer, as in :mod:`lrdyn.networks.attention`, a
token is a column. There is no dropout. Files are read by :mod:`lrdyn.data.encoder`.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.networks.attention import Attention, LayerNorm
from lrdyn.networks.packing import lengths
from lrdyn.networks.perceptron import MLP

SHORTEST = 16
"""Batches of sentences are as long as this times a power of two: few programs are compiled."""


class Tokens(NamedTuple):
    """A batch of sentences, or of pairs of them, filled up to one length."""

    ids: Int[Array, "batch length"] | Int[np.ndarray, "batch length"]
    """Rows of the table of words."""
    mask: Bool[Array, "batch length"] | Bool[np.ndarray, "batch length"]
    """True where there is a token, false where it is filled up."""
    types: Int[Array, "batch length"] | Int[np.ndarray, "batch length"]
    """0, and 1 in the second sentence of a pair."""


class Embeddings(eqx.Module):
    """LN(E_word[ids] + E_position[0, 1, ...] + E_type[types]).

    Args:
        words: E_word.
        positions: E_position; no sequence is longer than it.
        types: E_type.
        norm: LN.
    """

    words: Float[Array, "vocabulary width"]
    positions: Float[Array, "positions width"]
    types: Float[Array, "types width"]
    norm: LayerNorm

    def __call__(self, tokens: Tokens) -> Float[Array, "batch length width"]:
        """What the first layer gets.

        Raises:
            ValueError: an id or a type has no row, or the sequences are longer than the table of
                positions.
        """
        self.check(tokens)
        ids, types = jnp.asarray(tokens.ids), jnp.asarray(tokens.types)
        total = self.words[ids] + self.types[types] + self.positions[: ids.shape[1]][None]
        return jax.vmap(lambda hidden: self.norm(hidden.T).T)(total)

    def check(self, tokens: Tokens) -> None:
        """Refuse tokens that do not fit the tables; of traced ones the shapes alone are looked at.

        Raises:
            ValueError: as in a call.
        """
        checks.instance("tokens", tokens, Tokens)
        shape = np.shape(tokens.ids)
        checks.integer("tokens.ids", tokens.ids, 0, len(self.words) - 1, ("batch", "length"))
        checks.integer("tokens.types", tokens.types, 0, len(self.types) - 1, shape)
        if shape[1] > len(self.positions):
            wanted = f"at most {len(self.positions)}, the table of positions"
            checks.refuse("tokens", f"sequences of length {shape[1]}", wanted)


class BertLayer(eqx.Module):
    """LN(H_1 + MLP(H_1)), H_1 = LN(H + Attention(H)).

    Args:
        attention: with biases.
        first: the norm behind the attention.
        mlp: two matrices, exact GELU between.
        second: the norm behind the perceptron.
    """

    attention: Attention
    first: LayerNorm
    mlp: MLP
    second: LayerNorm

    def __call__(
        self, hidden: Float[Array, "batch length width"], mask: Bool[Array, "batch length *_"]
    ) -> Float[Array, "batch length width"]:
        """What the next layer gets; no token looks where the mask is false."""
        # All tokens of the batch side by side: a matrix multiplies them at once.
        columns = hidden.reshape(-1, hidden.shape[-1]).T
        mask = mask[..., None] if mask.ndim == 2 else mask
        mixed = self.attention(columns, sequences=len(hidden), mask=mask)
        columns = self.first(columns + mixed)
        return self.second(columns + self.mlp(columns)).T.reshape(hidden.shape)


class Bert(eqx.Module):
    """Embeddings, layers, and a pooler of the first token.

    Leaves have paths such as ``layers.3.attention.value``, which patterns of
    :func:`lrdyn.adapters.init` select. A call is ``above(below(tokens, l), tokens.mask, l)`` for
    every l: where layers below l do not change, :meth:`below` is computed once for each example.

    Args:
        embeddings: the tables.
        layers: the layers.
        pooler: W and b of :meth:`pooled`, or None.
    """

    embeddings: Embeddings
    layers: tuple[BertLayer, ...]
    pooler: eqx.nn.Linear | None

    def __call__(self, tokens: Tokens) -> Float[Array, "batch length width"]:
        """Hidden states of the last layer; those of what is filled up mean nothing."""
        return self.above(self.below(tokens, 0), tokens.mask, 0)

    def below(self, tokens: Tokens, layer: int) -> Float[Array, "batch length width"]:
        """What a layer gets, counted from 0.

        Raises:
            ValueError: there is no such layer, or the tokens do not fit the tables.
        """
        checks.integer("layer", layer, 0, len(self.layers))
        mask = jnp.asarray(checks.booleans("mask", tokens.mask, np.shape(tokens.ids)))
        hidden = self.embeddings(tokens)
        for apply_layer in self.layers[:layer]:
            hidden = apply_layer(hidden, mask)
        return hidden

    def above(
        self,
        hidden: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length *_"] | Bool[np.ndarray, "batch length *_"],
        layer: int,
    ) -> Float[Array, "batch length width"]:
        """Hidden states of the last layer, from what a layer gets.

        The mask says where tokens are, or with three axes at (k, q) where q may look at k, as of
        sentences that share a row (:mod:`lrdyn.networks.packing`).

        Raises:
            ValueError: there is no such layer, or the mask has another shape.
        """
        checks.integer("layer", layer, 0, len(self.layers))
        width = len(self.embeddings.norm.gain)
        hidden = checks.floats("hidden", hidden, ("batch", "length", width))
        shape = hidden.shape[:2] if np.ndim(mask) < 3 else (*hidden.shape[:2], hidden.shape[1])
        mask = jnp.asarray(checks.booleans("mask", mask, shape))
        for apply_layer in self.layers[layer:]:
            hidden = apply_layer(hidden, mask)
        return hidden

    def pooled(self, hidden: Float[Array, "batch length width"]) -> Float[Array, "batch width"]:
        """Compute tanh(W h + b) of the first token's hidden states h.

        Raises:
            ValueError: there is no pooler.
        """
        if self.pooler is None:
            checks.refuse("model", "a BERT without a pooler", "one with it, or mean_pooled")
        return jnp.tanh(jax.vmap(self.pooler)(hidden[:, 0]))


@checked
def mean_pooled(
    hidden: Float[Array, "batch length width"],
    mask: Bool[Array, "batch length"] | Bool[np.ndarray, "batch length"],
) -> Float[Array, "batch width"]:
    """Means over the tokens of each sentence, 0 where there is none.

    Args:
        hidden: hidden states of the last layer.
        mask: true where there is a token.

    Example:
        >>> hidden = jnp.array([[[1.0], [3.0], [8.0]]])
        >>> mean_pooled(hidden, jnp.array([[True, True, False]])).tolist()
        [[2.0]]
    """
    mask = jnp.asarray(mask)
    # ``where`` and not a product: hidden states of what is filled up may be anything, NaN too.
    total = jnp.sum(jnp.where(mask[..., None], hidden, 0), axis=1)
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return total / count.astype(hidden.dtype)


@checked
def sentence_vectors(
    model: Bert, tokens: Tokens, *, batch: int = 64
) -> Float[np.ndarray, "sentences width"]:
    """Mean vectors of many sentences, see :func:`mean_pooled`, in batches of similar length.

    Args:
        model: the encoder.
        tokens: of all sentences.
        batch: how many are computed at a time, at most.

    Raises:
        ValueError: the tokens do not fit the tables.
    """
    checks.integer("batch", batch)
    model.embeddings.check(tokens)
    tokens = Tokens(*map(np.asarray, tokens))
    filled_to = np.asarray(lengths(tokens.mask))
    order = np.argsort(filled_to, kind="stable")
    gain = model.embeddings.norm.gain
    vectors, batch = np.zeros((len(order), len(gain)), gain.dtype), min(batch, len(order))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        # Of a last batch some are computed again, so that it has the shape of the others.
        filled = np.resize(rows, batch)
        length = SHORTEST
        while length < filled_to[rows[-1]]:
            length *= 2
        part = Tokens(*(x[filled, :length] for x in tokens))
        vectors[rows] = np.asarray(_vectors(model, part))[: len(rows)]
    return vectors


@eqx.filter_jit
def _vectors(model: Bert, tokens: Tokens) -> Float[Array, "batch width"]:
    return mean_pooled(model(tokens), tokens.mask)
