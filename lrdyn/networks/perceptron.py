"""Multilayer perceptrons."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import checks
from lrdyn.initialization import gaussians


class MLP(eqx.Module):
    """f(X) = W_L a(... a(W_1 X + b_1) ...) + b_L, one example a column of X.

    All its leaves are arrays: a gradient has the same structure, and whatever maps a PyTree of
    parameters maps a network.

    Args:
        weights: W_l, each outputs x inputs; ``W_1`` acts first.
        biases: b_l.
        activation: a, between the layers.

    Example:
        >>> net = MLP((jnp.ones((2, 3)), jnp.ones((1, 2))), (jnp.zeros(2), jnp.ones(1)))
        >>> net(jnp.zeros((3, 4))).tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """

    weights: tuple[Float[Array, "_ _"], ...]
    biases: tuple[Float[Array, "_"], ...]
    activation: Callable[[Array], Array] = eqx.field(static=True, default=jnp.tanh)

    def __call__(self, inputs: Float[Array, "features batch"]) -> Float[Array, "outputs batch"]:
        """f(X)."""
        hidden = inputs
        for layer, (W, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = W @ (self.activation(hidden) if layer else hidden) + b[:, None]
        return hidden


def mlp(
    key: Key[Array, ""], sizes: Sequence[int], *, activation: Callable[[Array], Array] = jnp.tanh
) -> MLP:
    """Draw a perceptron: Gaussian weights of variance 1 / inputs, biases 0.

    Args:
        key: random key.
        sizes: numbers of inputs, of hidden units, and of outputs.
        activation: a.

    Raises:
        ValueError: there are fewer than two sizes, or one is not positive.

    Example:
        >>> import jax
        >>> net = mlp(jax.random.key(0), (3, 5, 2))
        >>> [W.shape for W in net.weights], [b.shape for b in net.biases]
        ([(5, 3), (2, 5)], [(5,), (2,)])
    """
    checks.key(key)
    checks.sizes("sizes", sizes, 2)
    checks.instance("activation", activation)
    draws = gaussians(key, [(outputs, inputs) for inputs, outputs in pairwise(sizes)])
    weights = tuple(G / np.sqrt(G.shape[1]) for G in draws)
    return MLP(weights, tuple(jnp.zeros(len(W), W.dtype) for W in weights), activation)
