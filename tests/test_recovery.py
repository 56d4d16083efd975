"""Recovery of a matrix from entries or measurements, against NumPy."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from lrdyn.completion import recovery
from lrdyn.completion.problem import Recovery
from tests import oracles


@pytest.mark.float32
@pytest.mark.parametrize(("shape", "rank"), [((12, 12), 3), ((9, 14), 2), ((20, 6), 3)])
def test_a_spread_target_keeps_every_nth_triplet(shape, rank, dtype):
    key = jax.random.key(0)
    found = jax.jit(lambda key: recovery.spread_target(key, shape, rank))(key)
    (gaussian,) = lr.core.gaussians(key, [shape])
    left, values, right = np.linalg.svd(oracles.double(gaussian))
    side = min(shape)
    kept = np.arange(0, side / 2, side / (2 * rank))[:rank].astype(int)
    expected = (left[:, kept] * values[kept]) @ right[kept]
    oracles.assert_close(found, expected, size=max(shape))


@jax.jit
def problem(scale=0.3):
    """Target, mask and a network of the spectral start."""
    for_target, for_mask = jax.random.split(jax.random.key(0))
    target = recovery.spread_target(for_target, (16, 16), 2)
    mask = lr.core.observe(for_mask, (16, 16), 0.6)
    return target, mask, recovery.spectral_network(recovery.surrogate(target, mask), 4, scale)


def assert_unbiased(draw, expected, excess=0.0):
    """Each entry of the mean of 4000 draws is within 4 standard errors."""
    draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 4000)))
    error = np.abs(draws.mean(0) - expected) / (draws.std(0) / np.sqrt(len(draws)))
    assert error.max() < 4 + excess


def test_the_surrogate_is_unbiased():
    target, *_ = problem()

    def draw(key):
        return recovery.surrogate(target, lr.core.observe(key, (16, 16), 0.6))

    # 256 entries; dividing by the realised fraction adds 1/n.
    assert_unbiased(draw, np.asarray(target), excess=1.0)


def test_a_spectral_network_spans_the_leading_subspaces():
    matrix = jax.random.normal(jax.random.key(0), (7, 9))
    network = jax.jit(lambda W: recovery.spectral_network(W, 3, 0.1, depth=4))(matrix)
    left, _, right = np.linalg.svd(np.asarray(matrix))
    product = lr.corollary1.compressed_product(network)
    oracles.assert_close(product, 0.1**4 * left[:, :3] @ right[:3], size=9)
    assert len(network.inner) == 2


def test_losses_see_what_they_should():
    target, mask, _ = problem()
    product = jax.random.normal(jax.random.key(3), target.shape)
    gap = np.asarray(product - target)
    observed = (gap[np.asarray(mask) == 1] ** 2).mean() / 2
    oracles.assert_close(recovery.observed_loss(product, target, mask), observed, size=256)
    relative = np.linalg.norm(gap) / np.linalg.norm(np.asarray(target))
    oracles.assert_close(recovery.recovery_error(product, target), relative, size=256)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 5.0])
def test_discrepant_rates_are_gradient_descent_by_hand(ratio):
    target, mask, network = problem()
    (U, (C,), V), Phi, M = oracles.double((network, target, mask))
    eta = 0.7
    for _ in range(25):
        E = M * (U @ C @ V.T - Phi) / M.sum()
        of_U, of_C, of_V = E @ V @ C.T, U.T @ E @ V, E.T @ U @ C
        U, C, V = U - ratio * eta * of_U, C - eta * of_C, V - ratio * eta * of_V

    @jax.jit
    def trained(network, ratio):
        rule, steps = recovery.discrepant_rates(eta, ratio), np.array([25])
        loss = partial(recovery.completion_loss, target=target, mask=mask)
        return lr.simulate(loss, network, rule, steps).params

    compare = partial(oracles.assert_close, steps=25, size=16)
    jax.tree.map(compare, trained(network, ratio), type(network)(U, (C,), V))


spectral = partial(recovery.spectral_network, jnp.eye(4))
test_recovery_refuses = oracles.refuses(
    (lambda: recovery.spread_target(jax.random.key(0), (4, 4), 3), "got 3, wanted 1 to 2"),
    (lambda: spectral(5, 1.0), "size: got 5, wanted 1 to 4"),
    (lambda: spectral(2, 1.0, 2), "depth: got 2, wanted at least 3"),
)


@pytest.mark.float32
def test_measurements_are_inner_products(dtype):
    draw = np.random.default_rng(0)
    numbers = [draw.normal(size=size) for size in [(5, 3, 4), (3, 4), (3, 4)]]
    matrices, target, product = (jnp.asarray(array, dtype) for array in numbers)
    y, z = ([np.vdot(A, seen) for A in numbers[0]] for seen in numbers[1:])
    values = recovery.sense(matrices, target)
    oracles.assert_close(values, y, size=12)
    expected = np.mean(np.subtract(z, y) ** 2) / 2
    oracles.assert_close(recovery.sensing_loss(product, matrices, values), expected, size=60)
    surrogate = sum(value * A for value, A in zip(y, numbers[0], strict=True)) / 5
    oracles.assert_close(recovery.sensing_surrogate(matrices, values), surrogate, size=12)


@pytest.mark.parametrize("alpha", [1.0, 4.0])
def test_sharpness_is_the_largest_curvature_where_three_balanced_layers_reach_the_target(alpha):
    """The Hessian of all entries, outer layers at alpha times the step, against the closed form."""
    target, weight = np.diag([2.0, 1.0, 0.0, 0.0]), np.random.default_rng(0).uniform(0, 2, (4, 4))
    found = recovery.sharpness(jnp.asarray(target), 2, lambda X: jnp.asarray(weight) * X, 200)
    outer, inner = alpha ** (1 / 6) * np.cbrt(target), alpha ** (-1 / 3) * np.cbrt(target)

    def loss(flat):
        A, B, C = flat.reshape(3, 4, 4)
        return 0.5 * jnp.sum(weight * (A @ B @ C - target) ** 2)

    at = jnp.asarray(np.stack([outer, inner, outer]).ravel())
    root = np.sqrt(np.repeat([alpha, 1.0, alpha], 16))
    hessian = root[:, None] * np.asarray(jax.jit(jax.hessian(loss))(at)) * root
    expected = np.linalg.eigvalsh(hessian)[-1]
    assert abs(float(found) * alpha ** (2 / 3) / expected - 1) < 1e-6


@pytest.mark.parametrize(("shape", "rank"), [((5, 4), 2), ((4, 6), 1)])
def test_the_tangent_curvature_is_the_least_over_all_directions_of_the_tangent_space(shape, rank):
    """All U X^T + Z V^T, from a redundant list of them: the least positive generalised value."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(shape[0], rank)), rng.normal(size=(rank, shape[1]))
    target, weight = factors[0] @ factors[1], rng.uniform(0.2, 2, shape)
    left, _, right = np.linalg.svd(target)
    spanning = [np.outer(left[:, i], e) for i in range(rank) for e in np.eye(shape[1])]
    spanning += [np.outer(e, right[j]) for j in range(rank) for e in np.eye(shape[0])]
    basis = np.linalg.svd(np.stack(spanning).reshape(len(spanning), -1))[2]
    basis = basis[: rank * (sum(shape) - rank)]
    expected = np.linalg.eigvalsh((basis * weight.ravel()) @ basis.T)[0]
    least = recovery.tangent_curvature(jnp.asarray(target), rank, lambda X: weight * X)
    oracles.assert_close(least, expected, size=30)


def test_sensing_is_unbiased():
    """The loss estimates 1/2 ||f - Phi||_F^2, (1/m) sum y_i A_i estimates Phi."""
    target, product = jax.random.normal(jax.random.key(1), (2, 3, 4))

    def draw(key):
        matrices = jax.random.normal(key, (6, 3, 4))
        values = recovery.sense(matrices, target)
        loss = recovery.sensing_loss(product, matrices, values)
        return jnp.append(recovery.sensing_surrogate(matrices, values).ravel(), loss)

    expected = np.append(np.ravel(target), 0.5 * np.sum(np.square(product - target)))
    assert_unbiased(draw, expected)


@pytest.mark.usefixtures("unchecked")  # a case of which a few fields are read
def test_measurements_count_where_there_are_values_of_them():
    """Of a target that is seen in part the loss is that of its entries."""
    (target, product, mask), (measurements,) = oracles.normal(3, *[(4, 4)] * 3), [None]
    mask = 1.0 * (mask > 0)
    case: Any = SimpleNamespace(
        measurements=jnp.asarray(target[None]), values=measurements, target=target, mask=mask
    )
    seen = np.sum(mask * (product - target) ** 2) / np.sum(mask) / 2
    np.testing.assert_allclose(Recovery.loss(case, jnp.asarray(product)), 16 * seen, rtol=1e-12)
