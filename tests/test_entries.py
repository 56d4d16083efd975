"""Losses over listed entries, against the same losses over whole matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from tests import oracles
from tests.oracles import double


def problem(shape, fraction, seed=0, size=3):
    keys = jax.random.split(jax.random.key(seed), 4)
    target = jax.random.normal(keys[0], shape)
    mask = lr.masking.observe(keys[1], shape, fraction)
    network = lr.compression.CompressedNetwork(
        jax.random.normal(keys[2], (shape[0], size)),
        (0.5 * jnp.eye(size), jnp.tri(size)),
        jax.random.normal(keys[3], (shape[1], size)),
    )
    return network, target, mask


SHAPES = [((8, 8), 0.5), ((9, 5), 0.3), ((3, 14), 1.0), ((13, 6), 0.1)]


@pytest.mark.float32
@pytest.mark.parametrize(("shape", "fraction"), SHAPES)
def test_the_loss_and_its_gradient_are_those_of_matrices(shape, fraction, dtype):
    network, target, mask = problem(shape, fraction)
    found, slope = jax.jit(jax.value_and_grad(lr.entries.entries_loss))(
        network, lr.entries.observed_entries(target, mask)
    )
    U, (A, B), V = double(network.left), [double(W) for W in network.inner], double(network.right)
    M = double(mask)
    E = M * (U @ B @ A @ V.T - double(target)) / M.sum()
    oracles.assert_close(found, 0.5 * np.sum(E**2) * M.sum(), size=U.shape[0] * V.shape[0])
    expected = (E @ V @ (B @ A).T, U.T @ E @ V @ A.T, B.T @ U.T @ E @ V, E.T @ U @ B @ A)
    slopes = (slope.left, slope.inner[1], slope.inner[0], slope.right)
    for one, other in zip(slopes, expected, strict=True):
        oracles.assert_close(one, other, size=sum(shape))


def test_what_is_hidden_is_not_read():
    network, target, mask = problem((9, 5), 0.3)
    entries = lr.entries.observed_entries(jnp.where(mask == 1, target, jnp.nan), mask)
    assert np.isfinite(lr.entries.entries_loss(network, entries))
    assert float(entries.rows.weights.size) < 9 * 5


def test_training_is_the_same():
    network, target, mask = problem((12, 12), 0.6)
    entries, rule, steps = (
        lr.entries.observed_entries(target, mask),
        lr.recovery.discrepant_rates(0.1, 2.0),
        [20],
    )
    one = lr.simulate(lambda n: lr.entries.entries_loss(n, entries), network, rule, np.array(steps))
    two = lr.simulate(
        lambda n: lr.recovery.completion_loss(n, target, mask), network, rule, np.array(steps)
    )
    oracles.assert_close(one.params, two.params, steps=20, size=12)


def test_many_networks_at_once():
    network, target, mask = problem((9, 5), 0.5)
    entries = lr.entries.observed_entries(target, mask)
    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), network)
    found = jax.vmap(jax.grad(lambda n: lr.entries.entries_loss(n, entries)))(both)
    single = jax.grad(lr.entries.entries_loss)(jax.tree.map(lambda x: x[1], both), entries)
    oracles.assert_close(jax.tree.map(lambda x: x[1], found), single, size=14)


def test_nothing_observed_is_refused(unchecked):
    with pytest.raises(ValueError, match="mask: got no observed entry, wanted at least one"):
        lr.entries.observed_entries(jnp.eye(3), jnp.zeros((3, 3)))
