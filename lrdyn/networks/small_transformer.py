"""A small transformer: one block of attention and a perceptron, each behind a layer norm."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.initialization import gaussians
from lrdyn.networks.attention import Attention, LayerNorm, check_heads
from lrdyn.networks.perceptron import MLP


class Transformer(eqx.Module):
    """f(X) = W_U LN(H_2), H_2 = H_1 + MLP(LN(H_1)), H_1 = H_0 + Attention(LN(H_0)), H_0 = W_E X.

    One example is a matrix, one token a column. All leaves are arrays.

    Args:
        embedding: W_E.
        attention: the attention.
        mlp: the perceptron, which acts on each token.
        norms: the three layer norms, in the order of their use.
        unembedding: W_U.
    """

    embedding: Float[Array, "width features"]
    attention: Attention
    mlp: MLP
    norms: tuple[LayerNorm, LayerNorm, LayerNorm]
    unembedding: Float[Array, "outputs width"]

    def __call__(
        self, inputs: Float[Array, "batch features tokens"]
    ) -> Float[Array, "batch outputs tokens"]:
        """Outputs of the network for each example of a batch."""
        first, second, last = self.norms

        def apply_one(tokens: Float[Array, "features tokens"]) -> Float[Array, "outputs tokens"]:
            hidden = self.embedding @ tokens
            hidden = hidden + self.attention(first(hidden))
            hidden = hidden + self.mlp(second(hidden))
            return self.unembedding @ last(hidden)

        return jax.vmap(apply_one)(inputs)


@checked
def transformer(
    key: Key[Array, ""], *, features: int, width: int, hidden: int, outputs: int, heads: int = 1
) -> Transformer:
    """Draw a transformer: Gaussian weights of variance 1 / inputs, biases 0, gains 1.

    Args:
        key: random key.
        features: entries of a token.
        width: entries of its representation.
        hidden: hidden units of the perceptron.
        outputs: entries of an output.
        heads: number of heads.

    Raises:
        ValueError: the width is not a multiple of the number of heads.

    Example:
        >>> net = transformer(jax.random.key(0), features=3, width=4, hidden=8, outputs=2)
        >>> net(jnp.ones((5, 3, 7))).shape
        (5, 2, 7)
    """
    given = {"features": features, "width": width, "hidden": hidden, "outputs": outputs}
    for name, size in {**given, "heads": heads}.items():
        checks.integer(name, size)
    check_heads(width, heads)
    square = (width, width)
    shapes = [(width, features), *[square] * 4, (hidden, width), (width, hidden), (outputs, width)]
    checks.allocation(given, *shapes)
    embedding, query, to_key, value, output, first, second, unembedding = (
        G / np.sqrt(G.shape[1]) for G in gaussians(key, shapes)
    )
    zeros = jnp.zeros(width, embedding.dtype)
    biases = (jnp.zeros(hidden, embedding.dtype), zeros)
    norm = LayerNorm(jnp.ones_like(zeros), zeros)
    return Transformer(
        embedding,
        Attention(query, to_key, value, output, heads),
        MLP((first, second), biases, jax.nn.gelu),
        (norm, norm, norm),
        unembedding,
    )
