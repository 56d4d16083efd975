"""Networks, against NumPy loops over tokens, heads and examples."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.networks import MLP, mlp, transformer
from tests.oracles import assert_apart, assert_close, double, normal, refuses

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
apply = jax.jit(lambda network, X: network(X))


def shuffled(make, *sizes, **named):
    """A network with every entry of every array drawn anew, so that none is 0 or 1."""
    network = jax.eval_shape(lambda: make(KEY, *sizes, **named))
    leaves, structure = jax.tree.flatten(network)
    draws = normal(0, *(leaf.shape for leaf in leaves))
    return jax.tree.unflatten(structure, [jnp.asarray(draw / 2) for draw in draws])


def perceptron(network, x, activation):
    """One example."""
    for layer, (W, b) in enumerate(zip(*double((network.weights, network.biases)), strict=True)):
        if layer:
            x = np.array([activation(v) for v in x])
        x = W @ x + b
    return x


@pytest.mark.float32
@pytest.mark.parametrize("sizes", [(4, 3), (4, 6, 3), (2, 5, 5, 1)])
def test_a_perceptron_is_a_loop_over_examples(sizes, dtype):
    network, (X,) = shuffled(mlp, sizes), normal(1, (sizes[0], 7))
    expected = [perceptron(network, x, np.tanh) for x in X.T]
    assert_close(apply(network, X), np.array(expected).T, size=6)


def test_a_perceptron_starts_with_variance_one_over_inputs():
    network, other = (mlp(jax.random.key(seed), (300, 200, 100)) for seed in (0, 1))
    for W, inputs in zip(network.weights, (300, 200), strict=True):
        # n entries: the mean square has a relative standard error of sqrt(2 / n).
        error = abs(np.mean(np.square(W)) * inputs - 1) / np.sqrt(2 / W.size)
        assert error < 4
    assert all(not np.any(b) for b in network.biases)
    assert_apart(other.weights, network.weights)


def normalised(norm, H):
    """Each token, a column, on its own."""
    gain, bias = double((norm.gain, norm.bias))
    columns = [gain * (h - h.mean()) / np.sqrt(h.var() + 1e-5) + bias for h in H.T]
    return np.stack(columns, axis=1)


def attended(attention, H):
    """Loops over heads and tokens."""
    Q, K, V = (W @ H for W in double((attention.query, attention.key, attention.value)))
    width, tokens = H.shape
    size = width // attention.heads
    mixed = np.zeros_like(H)
    for head in range(attention.heads):
        rows = slice(head * size, (head + 1) * size)
        for t in range(tokens):
            scores = np.array([K[rows, s] @ Q[rows, t] for s in range(tokens)]) / np.sqrt(size)
            shares = np.exp(scores) / np.exp(scores).sum()
            mixed[rows, t] = sum(shares[s] * V[rows, s] for s in range(tokens))
    return double(attention.output) @ mixed


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


SIZES = {"features": 3, "width": 4, "hidden": 6, "outputs": 2}


@pytest.mark.float32
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_a_transformer_is_loops_over_examples_tokens_and_heads(heads, dtype):
    network, (X,) = shuffled(transformer, **SIZES, heads=heads), normal(1, (2, 3, 5))
    first, second, last = network.norms
    expected = []
    for example in X:
        H = double(network.embedding) @ example
        H = H + attended(network.attention, normalised(first, H))
        inner = normalised(second, H)
        H = H + np.stack([perceptron(network.mlp, h, gelu) for h in inner.T], axis=1)
        expected.append(double(network.unembedding) @ normalised(last, H))
    # Layer norms divide by the spread of four numbers, and attention exponentiates.
    assert_close(apply(network, X), np.array(expected), size=100)


def test_every_leaf_is_an_array_with_a_gradient():
    network, (X,) = shuffled(transformer, **SIZES), normal(1, (2, 3, 5))
    gradient = jax.jit(jax.grad(lambda net: jnp.sum(net(jnp.asarray(X)) ** 2)))(network)
    chex.assert_trees_all_equal_shapes_and_dtypes(gradient, network)
    leaves = jax.tree.leaves(gradient)
    assert len(leaves) == 1 + 4 + 4 + 6 + 1
    assert all(np.abs(leaf).max() > 1e-6 for leaf in leaves)


test_networks_refuse = refuses(
    (lambda: mlp(KEY, (3,)), r"sizes: got \(3,\), wanted 2 or more"),
    (lambda: mlp(KEY, (3, 0)), r"sizes: got \(3, 0\), wanted 2 or more"),
    (
        lambda: transformer(KEY, **SIZES, heads=3),
        "heads: got 3 with width 4, wanted a divisor of the width",
    ),
)


def test_another_activation():
    network = MLP((jnp.eye(2), jnp.eye(2)), (jnp.zeros(2), jnp.zeros(2)), jax.nn.relu)
    assert network(jnp.array([[1.0], [-1.0]])).tolist() == [[1.0], [0.0]]
