"""Recovery of a matrix from entries or measurements, against NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from tests import oracles

SIZE = 16


@pytest.mark.float32
@pytest.mark.parametrize(("shape", "rank"), [((12, 12), 3), ((9, 14), 2), ((20, 6), 3)])
def test_a_spread_target_keeps_every_nth_triplet(shape, rank, dtype):
    key = jax.random.key(0)

    @oracles.fast
    def drawn(key):
        target = lr.recovery.spread_target(key, shape, rank)
        return target, *lr.initialization.gaussians(key, [shape])

    target, gaussian = drawn(key)
    left, values, right = np.linalg.svd(oracles.double(gaussian))
    side = min(shape)
    kept = np.arange(0, side / 2, side / (2 * rank))[:rank].astype(int)
    expected = (left[:, kept] * values[kept]) @ right[kept]
    oracles.assert_close(target, expected, size=max(shape))


@partial(oracles.fast, static_argnames=("dim", "rank", "fraction", "size"))
def problem(scale, dim=SIZE, rank=2, fraction=0.6, size=4):
    """Target, mask and a network of the spectral start."""
    for_target, for_mask = jax.random.split(jax.random.key(0))
    target = lr.recovery.spread_target(for_target, (dim, dim), rank)
    mask = lr.masking.observe(for_mask, (dim, dim), fraction)
    surrogate = lr.recovery.surrogate(target, mask)
    return target, mask, lr.recovery.spectral_network(surrogate, size, scale)


def assert_unbiased(draws, expected, excess=0.0):
    """Each entry is within 4 standard errors."""
    draws = np.asarray(draws)
    error = np.abs(draws.mean(0) - expected) / (draws.std(0) / np.sqrt(len(draws)))
    assert error.max() < lr.tolerance("statistical", "float64") + excess


def test_the_surrogate_is_unbiased():
    target, *_ = problem(1.0)

    @jax.jit
    @jax.vmap
    def draw(key):
        return lr.recovery.surrogate(target, lr.masking.observe(key, (SIZE, SIZE), 0.6))

    # Dividing by the realised fraction adds 1/n.
    draws = draw(jax.random.split(jax.random.key(1), 4000))
    assert_unbiased(draws, np.asarray(target), excess=1.0)


def test_a_spectral_network_spans_the_leading_subspaces():
    matrix = jax.random.normal(jax.random.key(0), (7, 9))

    @oracles.fast
    def start(matrix):
        network = lr.recovery.spectral_network(matrix, 3, 0.1, depth=4)
        return network, lr.compression.compressed_product(network)

    network, product = start(matrix)
    left, _, right = np.linalg.svd(np.asarray(matrix))
    oracles.assert_close(product, 0.1**4 * left[:, :3] @ right[:3], size=9)
    assert len(network.inner) == 2


def test_losses_see_what_they_should():
    target, mask, _ = problem(1.0)
    product = jax.random.normal(jax.random.key(3), target.shape)
    found = (
        lr.recovery.observed_loss(product, target, mask),
        lr.recovery.recovery_error(product, target),
    )
    gap = np.asarray(product - target)
    expected = (
        (gap[np.asarray(mask) == 1] ** 2).mean() / 2,
        np.linalg.norm(gap) / np.linalg.norm(np.asarray(target)),
    )
    jax.tree.map(partial(oracles.assert_close, size=256), found, expected)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 5.0])
def test_discrepant_rates_are_gradient_descent_by_hand(ratio):
    target, mask, network = problem(0.3)
    (U, (C,), V), Phi, M, eta = *oracles.double((network, target, mask)), 0.7
    for _ in range(25):
        E = M * (U @ C @ V.T - Phi) / M.sum()
        U, C, V = (
            U - ratio * eta * E @ V @ C.T,
            C - eta * U.T @ E @ V,
            V - ratio * eta * E.T @ U @ C,
        )

    @oracles.fast
    def trained(network, ratio):
        rule, steps = lr.recovery.discrepant_rates(eta, ratio), np.array([25])
        loss = partial(lr.recovery.completion_loss, target=target, mask=mask)
        return lr.simulate(loss, network, rule, steps).params

    expected = network._replace(left=U, inner=(C,), right=V)
    compare = partial(oracles.assert_close, steps=25, size=SIZE)
    jax.tree.map(compare, trained(network, ratio), expected)


def test_compressed_completion_recovers_the_target():
    target, mask, network = problem(1e-2, dim=60, fraction=0.4)
    run = lr.descent.simulate_until(
        partial(lr.recovery.completion_loss, target=target, mask=mask),
        network, lr.recovery.discrepant_rates(10.0, 5.0), 1e-10,
        check_every=500, max_steps=100_000,
    )  # fmt: skip
    assert bool(run.converged)
    found = lr.compression.compressed_product(run.params)
    assert float(lr.recovery.recovery_error(found, target)) < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda W: lr.recovery.spread_target(jax.random.key(0), (6, 6), 4),
            "rank: got 4, wanted 1 to 3",
        ),
        (lambda W: lr.recovery.spectral_network(W, 5, 1.0), "size: got 5, wanted 1 to 4"),
        (lambda W: lr.recovery.spectral_network(W, 2, 1.0, 2), "depth: got 2, wanted at least 3"),
    ],
)
def test_recovery_refuses(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call(jnp.eye(4))


# Sensing -------------------------------------------------------------------------------------


def sensed(matrices, target, product):
    """Values, loss and surrogate."""
    values = lr.recovery.sense(matrices, target)
    loss = lr.recovery.sensing_loss(product, matrices, values)
    return values, loss, lr.recovery.sensing_surrogate(matrices, values)


@pytest.mark.float32
def test_measurements_are_inner_products(dtype):
    draw = np.random.default_rng(0)
    matrices, target, product = (draw.normal(size=size) for size in [(5, 3, 4), (3, 4), (3, 4)])
    given = [jnp.asarray(array, dtype) for array in (matrices, target, product)]
    values, loss, surrogate = oracles.fast(sensed)(*given)
    y, z = ([np.vdot(A, seen) for A in matrices] for seen in (target, product))
    oracles.assert_close(values, y, size=12)
    oracles.assert_close(loss, np.mean(np.subtract(z, y) ** 2) / 2, size=60)
    expected = sum(value * A for value, A in zip(y, matrices, strict=True)) / 5
    oracles.assert_close(surrogate, expected, size=12)


def test_sensing_is_unbiased():
    """The loss estimates 1/2 ||f - Phi||_F^2, (1/m) sum y_i A_i estimates Phi."""
    target, product = jax.random.normal(jax.random.key(1), (2, 3, 4))

    @oracles.fast
    @jax.vmap
    def draw(key):
        _, loss, surrogate = sensed(jax.random.normal(key, (6, 3, 4)), target, product)
        return jnp.append(surrogate.ravel(), loss)

    expected = np.append(np.ravel(target), 0.5 * np.sum(np.square(product - target)))
    assert_unbiased(draw(jax.random.split(jax.random.key(2), 4000)), expected)
