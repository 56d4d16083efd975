"""Vision transformers: an image is a row of patches, read by blocks of attention."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.networks.attention import Attention, LayerNorm, check_heads
from lrdyn.networks.network import Network, apply_dropout, checked_dropout, split_key
from lrdyn.networks.perceptron import MLP
from lrdyn.networks.weights import draw_weights

EPS = 1e-6
"""The eps of the layer norms."""
DEVIATION = 0.02
"""Standard deviation of the weights at the start."""


@checked
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The product x Phi(x), Phi the distribution function of the standard Gaussian.

    Example:
        >>> round(float(gelu(jnp.ones(()))), 4)
        0.8413
    """
    return jax.nn.gelu(x, approximate=False)


class TransformerBlock(eqx.Module):
    """H_1 + MLP(LN(H_1)), H_1 = H + Attention(LN(H))."""

    first: LayerNorm
    attention: Attention
    second: LayerNorm
    mlp: MLP

    def __call__(
        self, hidden: Float[Array, "width tokens"], rate: float, key: Key[Array, ""] | None
    ) -> Float[Array, "width tokens"]:
        """Apply the block to the tokens; dropout hides entries of what it adds to them."""
        attention_key, mlp_key = split_key(key, 2)
        hidden = hidden + apply_dropout(self.attention(self.first(hidden)), rate, attention_key)
        return hidden + apply_dropout(self.mlp(self.second(hidden)), rate, mlp_key)


class ViT(Network):
    """f(x) = W_L h + b_L, h the first column of LN(H_depth), H_0 = [c, E x_1, ..., E x_N] + P.

    Args:
        token: c, in front of the patches x_i.
        position: P^T in an array of three axes, so that nothing takes it for a matrix of weights.
        patches: E, as a convolution whose stride is its size.
        blocks: what is before the last norm.
        norm: the last norm.
        head: W_L and b_L.
        size: pixels of a side of an image.
        dropout: chance with which training hides an entry of H_0, of what a block adds, and of h.
    """

    token: Float[Array, "width"]
    position: Float[Array, "1 tokens width"]
    patches: eqx.nn.Conv2d
    blocks: tuple[TransformerBlock, ...]
    norm: LayerNorm
    head: eqx.nn.Linear
    size: int = eqx.field(static=True)

    def hidden(
        self, image: Float[Array, "channels height width"], key: Any, state: PyTree
    ) -> tuple[Float[Array, "features"], PyTree]:
        """First token h behind the last norm, and the state as it is."""
        axes = (self.patches.in_channels, self.size, self.size)
        embedded = self.patches(checks.floats("image", image, axes))
        tokens = [self.token[:, None], embedded.reshape(len(self.token), -1)]
        keys = split_key(key, 1 + len(self.blocks))
        hidden = jnp.concatenate(tokens, axis=1) + self.position[0].T
        hidden = apply_dropout(hidden, self.dropout, keys[0])
        for block, block_key in zip(self.blocks, keys[1:], strict=True):
            hidden = block(hidden, self.dropout, block_key)
        return self.norm(hidden[:, :1])[:, 0], state

    def last(self, features: Float[Array, "features"]) -> Float[Array, "classes"]:
        """Outputs of the last layer, W_L h + b_L."""
        return self.head(features)

    @property
    def penultimate(self) -> str:
        """Path of the second matrix of the last perceptron."""
        return f"blocks[{len(self.blocks) - 1}].mlp.weights[1]"


@checked
def vit(
    key: Key[Array, ""],
    *,
    size: int = 224,
    patch: int = 16,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    hidden: int | None = None,
    channels: int = 3,
    classes: int = 10,
    dropout: float = 0.0,
) -> ViT:
    """Draw a vision transformer, ViT-B/16 by default: Gaussian weights of deviation 0.02.

    Args:
        key: random key.
        size: pixels of a side of an image.
        patch: pixels of a side of a patch; it divides the size.
        width: entries of the representation of a patch.
        depth: number of blocks.
        heads: number of heads; it divides the width.
        hidden: hidden units of the perceptrons; 4 width by default.
        channels: of an image.
        classes: number of outputs.
        dropout: see :class:`ViT`.

    Raises:
        ValueError: an image is smaller than a patch or no multiple of it, the width is 0 or no
            multiple of the heads, or the dropout is outside [0, 1).

    Example:
        >>> net = vit(jax.random.key(0), size=8, patch=4, width=6, depth=1, heads=2)
        >>> net(jnp.ones((3, 8, 8))).shape, net.penultimate
        ((10,), 'blocks[0].mlp.weights[1]')
    """
    check_heads(width, heads)
    inner = 4 * width if hidden is None else hidden
    given = {"hidden": inner, "size": size, "patch": patch, "depth": depth, "channels": channels}
    for name, number in {**given, "classes": classes}.items():
        checks.integer(name, number)
    if size % patch:
        checks.refuse("size", f"{size} with patch {patch}", "a multiple of the patch")
    rate, tokens = checked_dropout(dropout), 1 + (size // patch) ** 2
    checks.allocation(
        {**given, "width": width, "classes": classes},
        (width, channels, patch, patch),
        (tokens, width),
        (depth, 4 * width + 2 * inner, width),
        (classes, width),
    )

    def build(key: Key[Array, ""]) -> ViT:
        # Only shapes count here: `draw_weights` fills the arrays.
        bias, square = jnp.zeros(width), jnp.zeros((width, width))
        norm = LayerNorm(jnp.ones(width), bias, EPS)
        attention = Attention(square, square, square, square, heads, (bias, bias, bias, bias))
        weights = jnp.zeros((inner, width)), jnp.zeros((width, inner))
        block = TransformerBlock(
            norm, attention, norm, MLP(weights, (jnp.zeros(inner), bias), gelu)
        )
        embed = eqx.nn.Conv2d(channels, width, patch, patch, key=key)
        head = eqx.nn.Linear(width, classes, key=key)
        position = jnp.zeros((1, tokens, width))
        return ViT(bias, position, embed, (block,) * depth, norm, head, size, dropout=rate)

    return draw_weights(key, build, lambda path, inputs: DEVIATION)
