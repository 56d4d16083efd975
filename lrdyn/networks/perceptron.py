"""Multilayer perceptrons: how they are called, and how they are drawn."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.initialization import gaussians
from lrdyn.networks.network import Network, checked_dropout


class MLP(Network):
    """f(x) = W_L a(... a(W_1 x + b_1) ...) + b_L, Example 2.1 of the survey.

    An example is a vector, or an image, which is flattened. A matrix is a batch, one example a
    column. All its leaves are arrays: a gradient has the same structure, and whatever maps a PyTree
    of parameters maps a network.

    Args:
        weights: W_l, each outputs x inputs; ``W_1`` acts first.
        biases: b_l, or None to have none.
        activation: a, between the layers; the identity makes a deep linear network.
        dropout: chance with which training hides an entry of the last hidden activations.

    Example:
        >>> net = MLP((jnp.ones((2, 3)), jnp.ones((1, 2))), (jnp.zeros(2), jnp.ones(1)))
        >>> net(jnp.zeros((3, 4))).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
        >>> net.features(jnp.zeros(3)).tolist()
        [0.0, 0.0]
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, "_"], ...] | None
    activation: Callable[[Array], Array] = eqx.field(static=True, default=jnp.tanh)

    def hidden(
        self, image: Float[Array, "..."], key: Key[Array, ""] | None, state: PyTree
    ) -> tuple[Float[Array, "..."], PyTree]:
        """Last hidden activations a(W_{L-1} ... + b_{L-1}), and the state as it is."""
        hidden = image if image.ndim < 3 else image.ravel()
        first = self.weights[0]  # in Algorithm 1 it can be a Layer, which is no array
        if isinstance(first, Array) and hidden.shape[:1] != first.shape[1:]:
            wanted = f"{first.shape[1]} entries, or so many rows"
            checks.refuse("image", f"shape {image.shape}", wanted)
        for layer in range(len(self.weights) - 1):
            hidden = self.activation(self._layer(layer, hidden))
        return hidden, state

    def last(self, features: Float[Array, "..."]) -> Float[Array, "..."]:
        """Outputs of the last layer, W_L h + b_L."""
        return self._layer(len(self.weights) - 1, features)

    def _layer(self, layer: int, inputs: Array) -> Array:
        outputs = self.weights[layer] @ inputs
        if self.biases is None:
            return outputs
        b = self.biases[layer]
        return outputs + (b[:, None] if inputs.ndim > 1 else b)

    @property
    def penultimate(self) -> str:
        """Path of the matrix before the last, W_{L-1}."""
        if len(self.weights) < 2:
            checks.refuse("network", "a single layer", "two or more")
        return f"weights[{len(self.weights) - 2}]"


@checked
def mlp(
    key: Key[Array, ""],
    sizes: Sequence[int],
    *,
    activation: Callable[[Array], Array] = jnp.tanh,
    bias: bool = True,
    dropout: float = 0.0,
) -> MLP:
    """Draw a perceptron (Example 2.1): Gaussian weights of variance 1 / inputs, biases 0.

    Args:
        key: random key.
        sizes: numbers of inputs, of hidden units, and of outputs.
        activation: a.
        bias: whether there are biases.
        dropout: see :class:`MLP`.

    Raises:
        ValueError: there are fewer than two sizes, one is not positive, or the dropout is outside
            [0, 1).

    Example:
        >>> import jax
        >>> net = mlp(jax.random.key(0), (3, 5, 2))
        >>> [W.shape for W in net.weights], [b.shape for b in net.biases]
        ([(5, 3), (2, 5)], [(5,), (2,)])
    """
    checks.sizes("sizes", sizes, 2)
    checks.instance("bias", bias, bool)
    rate = checked_dropout(dropout)
    shapes = [(outputs, inputs) for inputs, outputs in pairwise(sizes)]
    checks.allocation({"sizes": sizes}, *shapes)
    draws = gaussians(key, shapes)
    weights = tuple(G / np.sqrt(G.shape[1]) for G in draws)
    biases = tuple(jnp.zeros(len(W), W.dtype) for W in weights) if bias else None
    return MLP(weights, biases, activation, dropout=rate)
