"""Losses over listed entries, against the same losses over whole matrices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.completion import entries
from lrdyn.corollary1.compression import CompressedNetwork
from tests.oracles import assert_close, normal, refuses

pytestmark = pytest.mark.usefixtures("strict")

value_and_slope = jax.jit(jax.value_and_grad(entries.entries_loss))


def problem(shape, fraction, size=3):
    """A network, a target and a mask; in NumPy."""
    target, left, right = normal(0, shape, (shape[0], size), (shape[1], size))
    mask = (np.random.default_rng(1).uniform(size=shape) < fraction).astype(float)
    inner = 0.5 * np.eye(size), np.tri(size)
    return CompressedNetwork._make((left, inner, right)), target, mask


def listed(target, mask):
    return entries.observed_entries(jnp.asarray(target), jnp.asarray(mask))


SHAPES = [((8, 8), 0.5), ((9, 5), 0.3), ((3, 14), 1.0), ((13, 6), 0.1)]


@pytest.mark.float32
@pytest.mark.parametrize(("shape", "fraction"), SHAPES)
def test_the_loss_and_its_gradient_are_those_of_matrices(shape, fraction, dtype):
    (U, (A, B), V), target, M = network, *_ = problem(shape, fraction)
    found, slope = value_and_slope(network, listed(target, M))
    E = M * (U @ B @ A @ V.T - target) / M.sum()
    assert_close(found, 0.5 * np.sum(E**2) * M.sum(), size=U.shape[0] * V.shape[0])
    inner = B.T @ U.T @ E @ V, U.T @ E @ V @ A.T
    expected = CompressedNetwork(E @ V @ (B @ A).T, inner, E.T @ U @ B @ A)
    for one, other in zip(jax.tree.leaves(slope), jax.tree.leaves(expected), strict=True):
        assert_close(one, other, size=sum(shape))


def test_what_is_hidden_is_not_read():
    network, target, mask = problem((9, 5), 0.3)
    found = listed(np.where(mask == 1, target, np.nan), mask)
    assert np.isfinite(value_and_slope(network, found)[0])
    assert found.rows.weights.size < 9 * 5


def test_many_networks_at_once():
    network, target, mask = problem((9, 5), 0.3)
    both = jax.tree.map(lambda x: np.stack([x, 2 * x]), network)
    found = jax.jit(jax.vmap(value_and_slope, (0, None)))(both, listed(target, mask))
    alone = value_and_slope(jax.tree.map(lambda x: 2 * x, network), listed(target, mask))
    assert_close(jax.tree.map(lambda x: x[1], found), alone, size=14)


@pytest.mark.parametrize(
    ("fraction", "platform", "whole"),
    [(0.05, "cpu", False), (0.12, "cpu", True), (0.3, "cpu", True), (0.05, "cuda", True)],
)
def test_the_faster_loss_forms_a_matrix_where_much_is_seen(fraction, platform, whole):
    network, target, mask = problem((40, 30), fraction)
    loss = entries.faster_loss(jnp.asarray(target), jnp.asarray(mask))
    network = jax.tree.map(jnp.asarray, network)
    program = jax.jit(jax.grad(loss)).trace(network).lower(lowering_platforms=(platform,))
    assert bool(re.search(r"dot_general.*-> tensor<40x30xf64>", program.as_text())) == whole
    assert_close(loss(network), value_and_slope(network, listed(target, mask))[0], size=1200)


def test_of_a_narrow_network_more_entries_are_listed():
    mask = (np.random.default_rng(0).random((210, 220)) < 0.11).astype(float)
    loss = entries.faster_loss(jnp.ones(mask.shape), jnp.asarray(mask))
    for width, whole in ((2, False), (10, True)):
        factors = jnp.ones((210, width)), (jnp.eye(width),), jnp.ones((220, width))
        program = jax.jit(loss).lower(CompressedNetwork(*factors))
        assert bool(re.search(r"dot_general.*-> tensor<210x220", program.as_text())) == whole


test_nothing_observed_is_refused = refuses(
    (lambda: entries.faster_loss(jnp.eye(3), jnp.zeros((3, 3))), "mask: got no observed entry"),
    (lambda: listed(np.eye(3), np.zeros((3, 3))), "mask: got no observed entry, wanted at least"),
)
