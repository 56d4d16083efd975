"""LLaMA: a language model of root-mean-square norms, rotary attention and gated perceptrons.

Weights have the shapes and the order of ``LlamaForCausalLM`` of the package transformers: a matrix
is outputs x inputs, and the head is not tied to the embedding.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.networks import attention
from lrdyn.networks.attention import Attention, check_heads
from lrdyn.networks.weights import draw_weights

DEVIATION = 0.02
"""Standard deviation of every matrix at the start, as transformers has it by default."""


class RMSNorm(eqx.Module):
    """g * h / sqrt(mean(h^2) + eps) over the features of each token.

    Args:
        gain: g.
        eps: what is added to the mean square, so that a token of zeros stays one.

    Example:
        >>> RMSNorm(jnp.ones(2))(jnp.array([[3.0], [4.0]])).round(3).tolist()
        [[0.849], [1.131]]

    Reference:
        Zhang and Sennrich, Root Mean Square Layer Normalization (arXiv 1910.07467).
    """

    gain: Float[Array, "width"]
    eps: float = eqx.field(static=True, default=1e-6)

    def __call__(self, hidden: Float[Array, "width tokens"]) -> Float[Array, "width tokens"]:
        """Scale the features of each token, a column."""
        scale = jax.lax.rsqrt(jnp.mean(hidden**2, axis=0, keepdims=True) + self.eps)
        return self.gain[:, None] * (hidden * scale)


class SwiGLU(eqx.Module):
    """W_D (silu(W_G h) * W_U h), a perceptron whose hidden units are gated; silu(x) = x sigmoid(x).

    Args:
        gate: W_G.
        up: W_U.
        down: W_D.

    Example:
        >>> one = jnp.ones((1, 1))
        >>> SwiGLU(one, one, one)(jnp.array([[1.0, -1.0]])).round(3).tolist()
        [[0.731, 0.269]]

    Reference:
        Shazeer, GLU Variants Improve Transformer (arXiv 2002.05202).
    """

    gate: Float[Array, "inner width"]
    up: Float[Array, "inner width"]
    down: Float[Array, "width inner"]

    def __call__(self, hidden: Float[Array, "width tokens"]) -> Float[Array, "width tokens"]:
        """Apply it to each token, a column."""
        return self.down @ (jax.nn.silu(self.gate @ hidden) * (self.up @ hidden))


class LlamaBlock(eqx.Module):
    """H_1 + SwiGLU(RMSNorm(H_1)), H_1 = H + Attention(RMSNorm(H)).

    Args:
        attention_norm: the norm before the attention.
        attention: the attention, without biases.
        mlp_norm: the norm before the perceptron.
        mlp: the perceptron.
    """

    attention_norm: RMSNorm
    attention: Attention
    mlp_norm: RMSNorm
    mlp: SwiGLU

    def __call__(
        self, hidden: Float[Array, "width columns"], sequences: int, base: float = 10000.0
    ) -> Float[Array, "width columns"]:
        """Hidden states of so many sequences of equal length, one behind another.

        Args:
            hidden: H, a token a column.
            sequences: how many there are.
            base: of the rotary angles.
        """
        mixed = self.attention(
            self.attention_norm(hidden),
            sequences=sequences,
            mask=attention.causal(hidden.shape[1] // sequences),
            rotary=lambda vectors: attention.rotary(vectors, base),
        )
        hidden = hidden + mixed
        return hidden + self.mlp(self.mlp_norm(hidden))


class Llama(eqx.Module):
    """Logits of the next token, W_H RMSNorm(H_L), H_l = Block_l(H_{l-1}), H_0 = W_E[tokens].

    No token looks at a later one. All leaves are arrays.

    Args:
        embedding: W_E, a token a row.
        blocks: the blocks.
        norm: the norm before the head.
        head: W_H.
        base: of the rotary angles.
    """

    embedding: Float[Array, "vocabulary width"]
    blocks: tuple[LlamaBlock, ...]
    norm: RMSNorm
    head: Float[Array, "vocabulary width"]
    base: float = eqx.field(static=True, default=10000.0)

    def __call__(self, text: Int[Array, "batch length"]) -> Float[Array, "batch length vocabulary"]:
        """Logits of the token behind each token of a batch.

        Args:
            text: numbers of tokens, each below the vocabulary; an unknown one gives NaN.
        """
        # ``take`` fills with NaN what indexing would clamp to the last row. Tokens are columns.
        hidden = jnp.take(self.embedding, text.ravel(), axis=0, mode="fill").T
        for block in self.blocks:
            hidden = block(hidden, len(text), self.base)
        return (self.head @ self.norm(hidden)).T.reshape(*text.shape, -1)


@checked
def llama(
    key: Key[Array, ""],
    *,
    vocabulary: int,
    width: int,
    depth: int,
    heads: int,
    hidden: int,
    key_heads: int | None = None,
) -> Llama:
    """Draw a LLaMA: Gaussian matrices of standard deviation .02, gains 1.

    Args:
        key: random key.
        vocabulary: number of tokens, 256 for bytes.
        width: entries of a hidden state.
        depth: number of blocks.
        heads: number of heads; width / heads, the size of one, is even.
        hidden: hidden units of a perceptron.
        key_heads: heads of keys and values, which neighbouring heads share; as many as ``heads``
            if not given.

    Raises:
        ValueError: the heads do not divide the width, the size of one is odd, or the heads of keys
            do not divide the heads.

    Example:
        >>> sizes = {"vocabulary": 256, "width": 8, "depth": 1, "hidden": 12}
        >>> net = llama(jax.random.key(0), **sizes, heads=4, key_heads=2)
        >>> net(jnp.zeros((3, 5), jnp.int32)).shape, net.blocks[0].attention.key.shape
        ((3, 5, 256), (4, 8))

    Reference:
        Touvron et al., LLaMA (arXiv 2302.13971).
    """
    given = {"vocabulary": vocabulary, "width": width, "depth": depth, "hidden": hidden}
    for name, size in {**given, "heads": heads}.items():
        checks.integer(name, size)
    check_heads(width, heads)
    if (size := width // heads) % 2:
        checks.refuse("heads", f"{heads} with width {width}", "heads of even size, to be turned")
    shared = heads if key_heads is None else int(checks.integer("key_heads", key_heads))
    if heads % shared:
        checks.refuse("key_heads", shared, f"a divisor of the heads, {heads}")
    shapes = [(depth, 2 * width + 3 * hidden, width), (2 * vocabulary, width)]
    checks.allocation(given, *shapes)

    def build(_: Key[Array, ""]) -> Llama:  # of these arrays the shapes alone count
        square, norm = jnp.zeros((width, width)), RMSNorm(jnp.ones(width))
        few, wide = jnp.zeros((shared * size, width)), jnp.zeros((hidden, width))
        looks = Attention(square, few, few, square, heads)
        block = LlamaBlock(norm, looks, norm, SwiGLU(wide, wide, wide.T))
        table = jnp.zeros((vocabulary, width))
        return Llama(table, (block,) * depth, norm, table)

    return draw_weights(key, build, lambda path, inputs: DEVIATION)
