"""Networks, against NumPy loops over tokens, heads and examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.networks import MLP, Attention, LayerNorm, mlp, transformer
from tests import oracles


def shuffled(network, seed=0):
    """The network with every entry of every array drawn anew, so that none is 0 or 1."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) / 2, leaf.dtype), network
    )


def perceptron(network, x, activation):
    """One example."""
    for layer, (W, b) in enumerate(zip(network.weights, network.biases, strict=True)):
        if layer:
            x = np.array([activation(v) for v in x])
        x = np.asarray(W, np.float64) @ x + np.asarray(b, np.float64)
    return x


@pytest.mark.float32
@pytest.mark.parametrize("sizes", [(4, 3), (4, 6, 3), (2, 5, 5, 1)])
def test_a_perceptron_is_a_loop_over_examples(sizes, dtype):
    network = shuffled(mlp(jax.random.key(0), sizes))
    X = jax.random.normal(jax.random.key(1), (sizes[0], 7))
    expected = [perceptron(network, x, np.tanh) for x in np.asarray(X, np.float64).T]
    oracles.assert_close(network(X), np.array(expected).T, size=6)


def test_a_perceptron_starts_with_variance_one_over_inputs():
    network = mlp(jax.random.key(0), (300, 200, 100))
    for W, inputs in zip(network.weights, (300, 200), strict=True):
        # n entries: the mean square has a relative standard error of sqrt(2 / n).
        error = abs(float(jnp.mean(W**2)) * inputs - 1) / np.sqrt(2 / W.size)
        assert error < 4
    assert all(not b.any() for b in network.biases)
    other = mlp(jax.random.key(1), (300, 200, 100))
    oracles.assert_apart(other.weights, network.weights)


def normalised(norm, h):
    gain, bias = (np.asarray(leaf, np.float64) for leaf in (norm.gain, norm.bias))
    return gain * (h - h.mean()) / np.sqrt(h.var() + 1e-5) + bias


def attended(attention, H):
    """Loops over heads and tokens."""
    Q, K, V = (np.asarray(W, np.float64) @ H for W in
               (attention.query, attention.key, attention.value))  # fmt: skip
    width, tokens = H.shape
    size = width // attention.heads
    mixed = np.zeros_like(H)
    for head in range(attention.heads):
        rows = slice(head * size, (head + 1) * size)
        for t in range(tokens):
            scores = np.array([K[rows, s] @ Q[rows, t] for s in range(tokens)]) / np.sqrt(size)
            shares = np.exp(scores) / np.exp(scores).sum()
            mixed[rows, t] = sum(shares[s] * V[rows, s] for s in range(tokens))
    return np.asarray(attention.output, np.float64) @ mixed


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


@pytest.mark.float32
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_a_transformer_is_loops_over_examples_tokens_and_heads(heads, dtype):
    network = shuffled(
        transformer(jax.random.key(0), features=3, width=4, hidden=6, outputs=2, heads=heads)
    )
    X = jax.random.normal(jax.random.key(1), (2, 3, 5))
    expected = []
    for example in np.asarray(X, np.float64):
        H = np.asarray(network.embedding, np.float64) @ example

        def each(norm, H):
            return np.stack([normalised(norm, h) for h in H.T], axis=1)

        first, second, last = network.norms
        H = H + attended(network.attention, each(first, H))
        inner = each(second, H)
        H = H + np.stack([perceptron(network.mlp, h, gelu) for h in inner.T], axis=1)
        expected.append(np.asarray(network.unembedding, np.float64) @ each(last, H))
    # Layer norms divide by the spread of four numbers, and attention exponentiates.
    oracles.assert_close(network(X), np.array(expected), size=100)


def test_a_layer_norm_forgets_shift_and_scale():
    norm = LayerNorm(jnp.ones(4), jnp.zeros(4))
    h = jax.random.normal(jax.random.key(0), (4, 3))
    oracles.assert_close(norm(h + 7), norm(h), size=100)
    oracles.assert_zero(norm(h).mean(axis=0), size=4, scale=1.0)


def test_attention_treats_tokens_alike():
    draws = jax.random.normal(jax.random.key(0), (4, 4, 4))
    attention = Attention(*draws, heads=2)
    H = jax.random.normal(jax.random.key(1), (4, 6))
    order = np.array([3, 0, 5, 1, 2, 4])
    oracles.assert_close(attention(H[:, order]), attention(H)[:, order], size=16)


def test_every_leaf_is_an_array_with_a_gradient():
    network = shuffled(transformer(jax.random.key(0), features=3, width=4, hidden=5, outputs=2))
    X = jax.random.normal(jax.random.key(1), (2, 3, 5))
    gradient = jax.grad(lambda net: jnp.sum(net(X) ** 2))(network)
    leaves = jax.tree.leaves(gradient)
    assert len(leaves) == 1 + 4 + 4 + 6 + 1
    assert all(jnp.abs(leaf).max() > 1e-6 for leaf in leaves)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mlp(jax.random.key(0), (3,)), r"sizes: got \(3,\), wanted two or more"),
        (lambda: mlp(jax.random.key(0), (3, 0)), r"sizes: got \(3, 0\), wanted two or more"),
        (
            lambda: transformer(
                jax.random.key(0), features=3, width=4, hidden=5, outputs=2, heads=3
            ),
            "heads: got 3 with width 4, wanted a divisor of the width",
        ),
    ],
)
def test_networks_refuse(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()


def test_another_activation():
    network = MLP((jnp.eye(2), jnp.eye(2)), (jnp.zeros(2), jnp.zeros(2)), jax.nn.relu)
    assert network(jnp.array([[1.0], [-1.0]])).tolist() == [[1.0], [0.0]]
