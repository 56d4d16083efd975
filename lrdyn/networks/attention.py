"""Attention and what goes with it: layer norms, causal masks, rotary positions.

Hidden states are matrices, one token a column.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lrdyn.core import checks
from lrdyn.core.checks import checked


class LayerNorm(eqx.Module):
    """g * (h - mean) / sqrt(variance + eps) + b over the features of each token.

    Args:
        gain: g.
        bias: b.
        eps: a token of equal features has no direction to be scaled to.

    Example:
        >>> norm = LayerNorm(jnp.ones(2), jnp.zeros(2))
        >>> norm(jnp.array([[1.0], [3.0]])).round(3).tolist()
        [[-1.0], [1.0]]
    """

    gain: Float[Array, "width"]
    bias: Float[Array, "width"]
    eps: float = eqx.field(static=True, default=1e-5)

    def __call__(self, hidden: Float[Array, "width tokens"]) -> Float[Array, "width tokens"]:
        """Normalise the features of each token, a column."""
        centred = hidden - jnp.mean(hidden, axis=0, keepdims=True)
        spread = jnp.sqrt(jnp.mean(centred**2, axis=0, keepdims=True) + self.eps)
        return self.gain[:, None] * centred / spread + self.bias[:, None]


Bias = Float[Array, "_"] | None
Biases = tuple[Bias, Bias, Bias, Bias]
"""Biases of the queries, the keys, the values and the output."""


class Attention(eqx.Module):
    """W_O concat_h(V_h softmax(K_h^T Q_h / sqrt(size))) + b_O, with Q = W_Q H + b_Q, K, V alike.

    By default there are no biases: that of the keys would have no effect, and a gradient of nothing
    but round-off, which Adam turns into steps of full size. A kind of head has W_Q.rows / heads =
    size rows; with fewer keys and values than queries, heads share them, neighbours first (LLaMA).

    Args:
        query: W_Q.
        key: W_K.
        value: W_V.
        output: W_O.
        heads: number of heads.
        biases: b_Q, b_K, b_V and b_O (BERT, ViT), each of which may be None.

    Raises:
        ValueError: the heads do not divide the rows of W_Q, or not those of W_K.

    Example:
        >>> net = Attention(*[jnp.eye(4)] * 4, heads=2)
        >>> net(jnp.ones((4, 3)), mask=causal(3)).shape
        (4, 3)
    """

    query: Float[Array, "inner width"]
    key: Float[Array, "grouped width"]
    value: Float[Array, "grouped width"]
    output: Float[Array, "width inner"]
    heads: int = eqx.field(static=True, default=1)
    biases: Biases = (None, None, None, None)

    def __check_init__(self):
        rows = len(self.query)
        check_heads(rows, self.heads)
        size = rows // self.heads
        if len(self.key) % size or self.heads % (len(self.key) // size):
            wanted = f"heads of {size} rows, in a number that divides {self.heads}"
            checks.refuse("key", f"{len(self.key)} rows", wanted)

    def __call__(
        self,
        hidden: Float[Array, "width columns"],
        *,
        sequences: int = 1,
        mask: Bool[Array, "tokens _"] | Bool[Array, "sequences tokens _"] | None = None,
        rotary: Callable[[Array], Array] | None = None,
    ) -> Float[Array, "width columns"]:
        """Every token looks at all tokens of its sequence, or at those of the mask.

        Args:
            hidden: H, the tokens of one sequence behind those of another: W_Q, W_K, W_V and W_O
                act on all of them in one product.
            sequences: how many there are, of equal length.
            mask: entry (k, q) is true where token q may look at token k, for example
                :func:`causal`; a single column holds for all q, as of padding. With three axes,
                one for each sequence. A token that may look nowhere looks everywhere alike.
            rotary: maps queries and keys, (heads, size, tokens), for example :func:`rotary`.

        Raises:
            ValueError: the columns are not so many sequences of equal length.
        """
        checks.integer("sequences", sequences)
        if hidden.shape[1] % sequences:
            got = f"{sequences} with {hidden.shape[1]} columns"
            checks.refuse("sequences", got, "a divisor of their number")
        pairs = zip((self.query, self.key, self.value), self.biases[:3], strict=True)
        projected = [_affine(W, b, hidden) for W, b in pairs]
        size = len(projected[0]) // self.heads
        apart = (x.reshape(-1, size, sequences, hidden.shape[1] // sequences) for x in projected)
        queries, keys, values = (jnp.moveaxis(x, 2, 0) for x in apart)
        if rotary is not None:
            queries, keys = jax.vmap(rotary)(queries), jax.vmap(rotary)(keys)
        # Neighbouring heads share keys and values: ``repeat`` puts copies behind each other.
        if (kinds := keys.shape[1]) < self.heads:
            keys, values = (jnp.repeat(x, self.heads // kinds, axis=1) for x in (keys, values))
        # Keys before queries, for tokens are columns: the softmax runs over axis 2.
        scores = jnp.einsum("shdk,shdq->shkq", keys, queries) / math.sqrt(size)
        if mask is not None:
            allowed = jnp.expand_dims(mask, -3)
            # No -inf: the softmax of a token that may look nowhere would be NaN.
            scores = jnp.where(allowed, scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("shdk,shkq->shdq", values, jax.nn.softmax(scores, axis=2))
        together = jnp.moveaxis(mixed, 0, 2).reshape(-1, hidden.shape[1])
        return _affine(self.output, self.biases[3], together)


def _affine(W: Any, b: Array | None, hidden: Array) -> Array:
    return W @ hidden if b is None else W @ hidden + b[:, None]


def check_heads(width: int, heads: int) -> None:
    """Check that heads are of equal size.

    Raises:
        ValueError: the width is not a multiple of the number of heads.

    Example:
        >>> check_heads(4, 3)
        Traceback (most recent call last):
        ValueError: heads: got 3 with width 4, wanted a divisor of the width
    """
    checks.integer("width", width)
    checks.integer("heads", heads)
    if width % heads:
        checks.refuse("heads", f"{heads} with width {width}", "a divisor of the width")


def causal(tokens: int) -> Bool[Array, "tokens tokens"]:
    """Mask (k, q): token q may look at token k <= q.

    Example:
        >>> causal(2).tolist()
        [[True, True], [False, True]]
    """
    checks.integer("tokens", tokens)
    checks.allocation({"tokens": tokens}, (tokens, tokens), dtype=bool)
    return jnp.triu(jnp.ones((tokens, tokens), bool))


@checked
def rotary(
    vectors: Float[Array, "heads size tokens"], base: float = 10000.0
) -> Float[Array, "heads size tokens"]:
    """Turn the plane of the entries i and i + size/2 of token t by the angle t base^(-2i / size).

    Scores of queries and keys that are turned so depend on the distance of two tokens alone.

    Args:
        vectors: queries or keys of all heads; the size is even.
        base: of the angles.

    Raises:
        ValueError: the size is odd.

    Example:
        >>> rotary(jnp.ones((1, 2, 2))).round(3).tolist()
        [[[1.0, -0.301], [1.0, 1.382]]]
    """
    checks.positive("base", base)
    _, size, tokens = vectors.shape
    if size % 2:
        checks.refuse("vectors", f"size {size}", "an even size")
    # In float64, by NumPy: the angles of late tokens are large, and float32 would turn them off.
    angles = np.outer(float(base) ** (-np.arange(0, size, 2) / size), np.arange(tokens))
    cos, sin = (jnp.asarray(f(angles), vectors.dtype)[None] for f in (np.cos, np.sin))
    upper, lower = jnp.split(vectors, 2, axis=1)
    return jnp.concatenate([upper * cos - lower * sin, lower * cos + upper * sin], axis=1)
