"""LLaMA: what transformers computes with the same weights, counts of parameters, what it hides."""

import dataclasses
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.networks import Llama, RMSNorm, llama
from lrdyn.networks.attention import rotary
from tests.oracles import assert_close, refuses

STORED = Path(__file__).with_name("data") / "llama.npz"
BLOCK = {
    "input_layernorm": lambda block: block.attention_norm.gain,
    "self_attn.q_proj": lambda block: block.attention.query,
    "self_attn.k_proj": lambda block: block.attention.key,
    "self_attn.v_proj": lambda block: block.attention.value,
    "self_attn.o_proj": lambda block: block.attention.output,
    "post_attention_layernorm": lambda block: block.mlp_norm.gain,
    "mlp.gate_proj": lambda block: block.mlp.gate,
    "mlp.up_proj": lambda block: block.mlp.up,
    "mlp.down_proj": lambda block: block.mlp.down,
}
"""Name of transformers -> where the weight is here."""


@pytest.fixture(scope="module")
def stored():
    with np.load(STORED) as file:
        return dict(file)


@pytest.fixture(scope="module")
def net(stored) -> Llama:
    """The model of the file: 2 blocks, 4 heads of which two share their keys and values."""
    net = llama(
        jax.random.key(0), vocabulary=11, width=16, depth=2, heads=4, hidden=20, key_heads=2
    )
    places = {
        "model.embed_tokens": lambda net: net.embedding,
        "model.norm": lambda net: net.norm.gain,
        "lm_head": lambda net: net.head,
    }
    for layer in range(2):
        for name, where in BLOCK.items():
            places[f"model.layers.{layer}.{name}"] = lambda net, layer=layer, where=where: where(
                net.blocks[layer]
            )
    for name, where in places.items():
        net = eqx.tree_at(where, net, jnp.asarray(stored[f"{name}.weight"]))
    return with_eps(net, 0.05)


def with_eps(net: Llama, eps: float) -> Llama:
    is_norm = lambda node: isinstance(node, RMSNorm)  # noqa: E731
    return jax.tree.map(
        lambda node: RMSNorm(node.gain, eps) if is_norm(node) else node, net, is_leaf=is_norm
    )


def test_logits_are_those_of_transformers(net, stored):
    found = eqx.filter_jit(net)(jnp.asarray(stored["tokens"]))
    assert found.dtype == stored["logits"].dtype == np.float32
    assert_close(found, stored["logits"], size=20)


def exchange_heads(net: Llama) -> Llama:
    """Heads that share their keys with every second one, not with their neighbour."""
    order = np.arange(16).reshape(2, 2, 4).swapaxes(0, 1).ravel()
    query = lambda net: net.blocks[0].attention.query  # noqa: E731
    return eqx.tree_at(query, net, query(net)[order])


@pytest.mark.parametrize(
    "broken",
    [
        lambda net: dataclasses.replace(net, base=5000.0),
        lambda net: with_eps(net, 0.04),
        exchange_heads,
    ],
)
def test_another_angle_norm_or_sharing_would_be_seen(net, stored, broken):
    found = broken(net)(jnp.asarray(stored["tokens"]))
    assert np.abs(np.asarray(found) - stored["logits"]).max() > 1e-3


def test_no_token_looks_at_a_later_one_nor_at_another_text(net):
    text = np.arange(14).reshape(2, 7) % 11
    other = text.copy()
    other[0, 4:] = 5
    before, after = (np.asarray(net(jnp.asarray(t))) for t in (text, other))
    np.testing.assert_array_equal(before[0, :4], after[0, :4])
    np.testing.assert_array_equal(before[1], after[1])
    assert np.abs(before - after)[0, 4:].max() > 1e-3


def count(**sizes) -> int:
    shapes = jax.eval_shape(lambda key: llama(key, **sizes), jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_60M_of_the_papers_has_58_073_600_parameters():
    """Of the configuration that ReLoRA and GaLore train, ``llama_60m.json``."""
    sizes = {"vocabulary": 32_000, "width": 512, "depth": 8, "heads": 8, "hidden": 1376}
    assert count(**sizes) == 58_073_600
    # Two tables, and in each block four squares, three matrices of the perceptron, two norms.
    block = 4 * 512**2 + 3 * 512 * 1376 + 2 * 512
    assert count(**sizes) == 2 * 32_000 * 512 + 8 * block + 512


def test_a_start_has_gains_of_one_and_matrices_of_two_hundredths():
    net = llama(jax.random.key(1), vocabulary=64, width=32, depth=2, heads=4, hidden=48)
    for leaf in jax.tree.leaves(net):
        if leaf.ndim == 1:
            np.testing.assert_array_equal(leaf, np.ones(32))
        else:
            # Of n entries a standard deviation is known to 1 / sqrt(2 n): five of these.
            assert abs(float(jnp.std(leaf)) / 0.02 - 1) < 5 / np.sqrt(2 * leaf.size)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_another_type_give_logits_of_it(net, stored, dtype):
    narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), net)
    found = narrow(jnp.asarray(stored["tokens"]))
    assert found.dtype == dtype
    # Two blocks of some ten roundings each, of numbers of the size of the logits.
    limit = 20 * float(jnp.finfo(dtype).eps) * np.abs(stored["logits"]).max()
    assert np.abs(np.asarray(found, np.float64) - stored["logits"]).max() < limit


def test_an_unknown_token_is_no_number(net):
    assert np.isnan(np.asarray(net(jnp.array([[3, 11]])))).any()


def test_rotary_scores_depend_on_the_distance_alone(net):
    turned = rotary(jnp.ones((1, 4, 6)), 100.0)[0]
    scores = np.asarray(turned.T @ turned)
    np.testing.assert_allclose(scores[:-1, :-1], scores[1:, 1:], atol=1e-12)


def draw(**sizes):
    usual = {"vocabulary": 9, "width": 8, "depth": 1, "heads": 4, "hidden": 8}
    return lambda: llama(jax.random.key(0), **{**usual, **sizes})


test_sizes_that_do_not_fit = refuses(
    (draw(heads=3), "heads: got 3 with width 8, wanted a divisor of the width"),
    (draw(heads=8), "heads: got 8 with width 8, wanted heads of even size, to be turned"),
    (draw(key_heads=3), "key_heads: got 3, wanted a divisor of the heads, 4"),
    (draw(depth=0), "depth: got 0, wanted"),
)
