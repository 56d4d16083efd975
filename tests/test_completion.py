"""Matrix completion by compressed networks, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from tests import oracles


@pytest.mark.float32
@pytest.mark.parametrize(("shape", "rank"), [((12, 12), 3), ((9, 14), 2), ((20, 6), 3)])
def test_a_spread_target_keeps_every_nth_triplet(shape, rank, dtype):
    key = jax.random.key(0)
    (gaussian,) = lr.gaussians(key, [shape])
    left, values, right = np.linalg.svd(np.asarray(gaussian, np.float64))
    side = min(shape)
    kept = np.arange(0, side / 2, side / (2 * rank))[:rank].astype(int)
    expected = sum(values[i] * np.outer(left[:, i], right[i]) for i in kept)
    oracles.assert_close(lr.spread_target(key, shape, rank), expected, size=max(shape))


def problem(seed=0, dim=16, rank=2, fraction=0.6):
    for_target, for_mask = jax.random.split(jax.random.key(seed))
    target = lr.spread_target(for_target, (dim, dim), rank)
    return target, lr.observe(for_mask, (dim, dim), fraction)


def test_the_surrogate_is_unbiased():
    target, _ = problem()
    keys = jax.random.split(jax.random.key(1), 4000)
    masks = jax.vmap(lambda k: lr.observe(k, (16, 16), 0.6))(keys)
    draws = np.asarray(jax.vmap(lambda mask: lr.surrogate(target, mask))(masks))
    error = draws.std(0) / np.sqrt(len(draws))
    # 256 entries, each within 4 standard errors; dividing by the realised fraction adds 1/n.
    assert (
        np.abs((draws.mean(0) - np.asarray(target)) / error).max()
        < lr.tolerance("statistical", "float64") + 1
    )


def test_a_spectral_network_spans_the_leading_subspaces():
    matrix = jax.random.normal(jax.random.key(0), (7, 9))
    network = lr.spectral_network(matrix, 3, 0.1, depth=4)
    left, _, right = np.linalg.svd(np.asarray(matrix))
    product = lr.compressed_product(network)
    oracles.assert_close(product, 0.1**4 * left[:, :3] @ right[:3], size=9)
    assert len(network.inner) == 2


def test_losses_see_what_they_should():
    target, mask = problem()
    product = jax.random.normal(jax.random.key(3), target.shape)
    gap = np.asarray(product - target)
    seen = gap[np.asarray(mask) == 1]
    oracles.assert_close(lr.observed_loss(product, target, mask), (seen**2).mean() / 2, size=256)
    expected = np.linalg.norm(gap) / np.linalg.norm(np.asarray(target))
    oracles.assert_close(lr.recovery_error(product, target), expected, size=256)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 5.0])
def test_discrepant_rates_are_gradient_descent_by_hand(ratio):
    target, mask = problem()
    network = lr.spectral_network(lr.surrogate(target, mask), 4, 0.3)
    U, (C,), V = (
        np.asarray(network.left),
        tuple(map(np.asarray, network.inner)),
        np.asarray(network.right),
    )
    Phi, M, eta = np.asarray(target), np.asarray(mask), 0.7
    for _ in range(25):
        E = M * (U @ C @ V.T - Phi) / M.sum()
        U, C, V = (
            U - ratio * eta * E @ V @ C.T,
            C - eta * U.T @ E @ V,
            V - ratio * eta * E.T @ U @ C,
        )
    rule = lr.discrepant_rates(eta, ratio)
    run = lr.simulate(lambda n: lr.completion_loss(n, target, mask), network, rule, np.array([25]))
    for found, expected in zip(jax.tree.leaves(run.params), (U, C, V), strict=True):
        oracles.assert_close(found, expected, steps=25, size=16)


def test_compressed_completion_recovers_the_target():
    target, mask = problem(dim=60, rank=2, fraction=0.4)
    network = lr.spectral_network(lr.surrogate(target, mask), 4, 1e-2)
    run = lr.simulate_until(
        lambda n: lr.completion_loss(n, target, mask),
        network,
        lr.discrepant_rates(10.0, 5.0),
        1e-10,
        check_every=500,
        max_steps=100_000,
    )
    assert bool(run.converged)
    assert float(lr.recovery_error(lr.compressed_product(run.params), target)) < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lr.spread_target(jax.random.key(0), (6, 6), 4), "rank: got 4, wanted 1 to 3"),
        (lambda: lr.spectral_network(jnp.eye(4), 5, 1.0), "size: got 5, wanted 1 to 4"),
        (lambda: lr.spectral_network(jnp.eye(4), 2, 1.0, 2), "depth: got 2, wanted at least 3"),
    ],
)
def test_completion_refuses(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
