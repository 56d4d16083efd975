"""Small networks, against NumPy loops over tokens, heads and examples."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.networks import MLP, Attention, causal, mlp, rotary, transformer, vit
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
    assert network.biases is not None
    assert all(not np.any(b) for b in network.biases)
    assert_apart(other.weights, network.weights)


def normalised(norm, H):
    """Each token, a column, on its own."""
    gain, bias = double((norm.gain, norm.bias))
    columns = [gain * (h - h.mean()) / np.sqrt(h.var() + 1e-5) + bias for h in H.T]
    return np.stack(columns, axis=1)


def attended(attention, H, seen=lambda t, s: True, turn=lambda x, t: x):
    """Loops over heads and tokens t, which look at the tokens s that are seen."""
    biases = [0.0 if b is None else double(b)[:, None] for b in attention.biases]
    matrices = double((attention.query, attention.key, attention.value))
    Q, K, V = (W @ H + b for W, b in zip(matrices, biases[:3], strict=True))
    tokens, size = H.shape[1], len(Q) // attention.heads
    shared = attention.heads // (len(K) // size)
    mixed = np.zeros_like(Q)
    for head in range(attention.heads):
        rows, group = (slice(i * size, (i + 1) * size) for i in (head, head // shared))
        for t in range(tokens):
            others = [s for s in range(tokens) if seen(t, s)]
            keys = [turn(K[group, s], s) for s in others]
            scores = np.array([k @ turn(Q[rows, t], t) for k in keys]) / np.sqrt(size)
            shares = np.exp(scores) / np.exp(scores).sum()
            mixed[rows, t] = sum(
                share * V[group, s] for share, s in zip(shares, others, strict=True)
            )
    return double(attention.output) @ mixed + biases[3]


def turned(x, t, base=10000.0):
    """Planes (i, i + size/2) as complex numbers."""
    half = len(x) // 2
    z = [complex(x[i], x[i + half]) * np.exp(1j * t * base ** (-i / half)) for i in range(half)]
    return np.array([*np.real(z), *np.imag(z)])


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


def attention(heads, groups, size, *, bias):
    """Of width 4, with Gaussian entries."""
    rows = [(n * size, 4) for n in (heads, groups, groups)]
    shapes = [*rows, (4, heads * size), *[(n,) for n, _ in rows], (4,)]
    drawn = [jnp.asarray(draw) for draw in normal(3, *shapes)]
    Q, K, V, O, q, k, v, o = drawn
    return Attention(Q, K, V, O, heads, (q, k, v, o) if bias else (None, None, None, None))


KINDS = {
    "bert": (attention(2, 2, 2, bias=True), lambda t, s: s < 3, None),
    "llama": (attention(4, 2, 2, bias=False), lambda t, s: s <= t, rotary),
    "one_key": (attention(3, 1, 4, bias=True), lambda t, s: s <= t, partial(rotary, base=50.0)),
}
"""Padding of two tokens; causal and rotary; wider than the hidden states."""


@pytest.mark.parametrize("kind", KINDS)
def test_attention_with_biases_masks_rotary_positions_and_shared_keys(kind):
    network, seen, turning = KINDS[kind]
    (H,) = normal(1, (4, 5))
    mask = (jnp.arange(5) < 3)[:, None] if kind == "bert" else causal(5)
    found = jax.jit(lambda net, H: net(H, mask=mask, rotary=turning))(network, H)
    base = getattr(turning, "keywords", {}).get("base", 10000.0)
    turn = (lambda x, t: turned(x, t, base)) if turning else (lambda x, t: x)
    assert_close(found, attended(network, H, seen, turn), size=100)
    assert_apart(found, attended(network, H, turn=turn))
    if turning:
        assert_apart(found, attended(network, H, seen))


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_side_by_side_do_not_see_one_another(kind):
    network, _, turning = KINDS[kind]
    one, other = normal(1, (4, 5), (4, 5))
    masks = jnp.stack([causal(5), causal(5).T])
    found = network(jnp.hstack([one, other]), sequences=2, mask=masks, rotary=turning)
    parts = [
        network(jnp.asarray(H), mask=mask, rotary=turning)
        for H, mask in zip((one, other), masks, strict=True)
    ]
    assert_close(found, np.hstack(parts), size=100)
    assert_apart(found, network(jnp.hstack([one, other]), rotary=turning))


test_networks_refuse = refuses(
    (
        lambda: attention(2, 2, 2, bias=True)(jnp.ones((4, 5)), sequences=2),
        "sequences: got 2 with 5 columns, wanted a divisor of their number",
    ),
    (
        lambda: attention(3, 2, 1, bias=False),
        "key: got 2 rows, wanted heads of 1 rows, in a number",
    ),
    (lambda: rotary(jnp.ones((1, 3, 2))), "vectors: got size 3, wanted an even size"),
    (lambda: mlp(KEY, (3, 2), dropout=1.0), "dropout: got 1.0, wanted at least 0, below 1"),
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


def test_a_perceptron_takes_vectors_images_and_columns_and_needs_no_biases():
    network = shuffled(mlp, (6, 5, 4), bias=False)
    (X,) = normal(1, (6, 3))
    columns = apply(network, X)
    W, U = double(network.weights)
    assert_close(columns, U @ np.tanh(W @ X), size=6)
    images = X.T.reshape(3, 1, 2, 3)
    for one, image, column in zip(X.T, images, columns.T, strict=True):
        assert_close((apply(network, one), apply(network, image)), (column, column), size=6)
    assert len(jax.tree.leaves(network)) == 2


def test_a_block_of_a_vision_transformer_hides_other_entries_of_each_part():
    """Attention and perceptron have a mask each: a block by hand, with keys of its own."""
    net = vit(jax.random.key(0), size=4, patch=2, width=6, depth=1, heads=2)
    (block,), hidden = net.blocks, jax.random.normal(jax.random.key(1), (6, 5))
    first, second = jax.random.split(jax.random.key(2))

    def kept(key):
        return jax.random.bernoulli(key, 0.5, hidden.shape).astype(hidden.dtype) / 0.5

    assert np.any(kept(first) != kept(second))
    middle = hidden + kept(first) * block.attention(block.first(hidden))
    wanted = middle + kept(second) * block.mlp(block.second(middle))
    assert_close(block(hidden, 0.5, jax.random.key(2)), wanted, size=24)
