"""Adapters of many seeds on one frozen model."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from lrdyn import adapters as ad
from lrdyn.adapters.memory import measured_memory
from tests.oracles import assert_close

SEEDS, WIDTH, BATCH, RANK = 20, 512, 4, 2
RULE = optax.adam(1e-3)
X = jnp.ones((BATCH, WIDTH), jnp.float32)


def network(width=WIDTH):
    made = eqx.nn.MLP(width, width, width, 2, key=jax.random.key(0))
    return jax.tree.map(lambda x: x.astype("float32") if eqx.is_inexact_array(x) else x, made)


def step(net, static, trained, frozen, state, x) -> Any:
    def loss(trained):
        model = ad.apply(eqx.combine(net, static), ad.joined(trained, frozen))
        return jnp.sum(jax.vmap(model)(x) ** 2)

    moves, state = RULE.update(jax.grad(loss)(trained), state)
    return optax.apply_updates(trained, moves), state


def begun(net, keys):
    split = jax.vmap(lambda key: ad.split(ad.init(key, net, rank=RANK)))(keys)
    return split.trained, split.frozen, jax.vmap(RULE.init)(split.trained)


def size_of(tree):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_twenty_seeds_share_the_frozen_weights():
    arrays, static = eqx.partition(network(), eqx.is_array)
    trained, frozen, state = begun(arrays, jax.random.split(jax.random.key(1), SEEDS))

    def all_seeds(net, trained, frozen, state, x):
        one = lambda t, f, s: step(net, static, t, f, s, x)  # noqa: E731
        return jax.vmap(one)(trained, frozen, state)

    found = measured_memory(all_seeds, arrays, trained, frozen, state, X, donate=[1, 3])
    # Each of three layers keeps its inputs, its outputs and A x, and their gradients.
    activations = SEEDS * 3 * 2 * (2 * BATCH * WIDTH + BATCH * RANK) * 4
    mine = size_of((trained, frozen, state)) + activations
    assert found.peak < 1.3 * (size_of(arrays) + mine)
    assert found.peak > size_of(arrays)


def test_a_seed_among_many_is_that_seed_alone():
    arrays, static = eqx.partition(network(8), eqx.is_array)
    keys, x = jax.random.split(jax.random.key(1), 3), X[:, :8]
    every = begun(arrays, keys)
    moved = jax.vmap(lambda t, f, s: step(arrays, static, t, f, s, x))(*every)
    alone: Any = jax.tree.map(lambda leaf: leaf[1], every)
    expected = step(arrays, static, alone[0], alone[1], alone[2], x)
    assert_close(jax.tree.map(lambda leaf: leaf[1], moved[0]), expected[0], size=100)
