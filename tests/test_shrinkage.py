"""Minimisers with weight decay, against polynomial roots, optimality conditions and grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from tests import oracles

VALUES = [1.7, 1.0, 0.8, 0.55, 0.2, 0.03]
DECAYS = [0.0, 0.02, 0.1, 0.3, 0.9]
DEPTHS = [2, 3, 4, 6]


def cost(s, sigma, decay, depth):
    return (s - sigma) ** 2 / 2 + decay * depth / 2 * s ** (2 / depth)


def stationary(sigma, decay, depth):
    """Positive roots w of w^{2L-2} - sigma w^{L-2} + lambda, by a companion matrix, as w^L."""
    polynomial = np.zeros(2 * depth - 1)
    polynomial[0] += 1
    polynomial[depth] -= sigma
    polynomial[-1] += decay
    roots = np.roots(polynomial)
    real = roots[(abs(roots.imag) < 1e-9) & (roots.real > 1e-9)].real
    return np.sort(real) ** depth


@pytest.mark.float32
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("decay", DECAYS)
def test_shrink_is_the_best_stationary_value(depth, decay, dtype):
    found = lr.shrinkage.shrink(jnp.array(VALUES), decay, depth)
    expected = [
        min([0.0, *stationary(sigma, decay, depth)], key=lambda s: cost(s, sigma, decay, depth))
        for sigma in VALUES
    ]
    # A root of a polynomial of degree 2L - 2.
    oracles.assert_close(found, np.array(expected), size=(2 * depth) ** 2, scale=VALUES[0])


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("decay", DECAYS)
def test_no_value_costs_less(depth, decay):
    grid = np.linspace(0, 2, 4001)
    for sigma, s in zip(VALUES, lr.shrinkage.shrink(jnp.array(VALUES), decay, depth), strict=True):
        least = cost(float(s), sigma, decay, depth)
        assert least <= cost(grid, sigma, decay, depth).min() + np.finfo(float).eps


@pytest.mark.parametrize("decay", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("depth", [3, 4])
def test_the_barrier_parts_the_basins(depth, decay):
    """Descent on w from just below the barrier ends at 0, from just above at the other minimum."""
    sigma = 1.0
    low, high = stationary(sigma, decay, depth)
    oracles.assert_close(
        lr.shrinkage.barrier(jnp.array([sigma]), decay, depth), np.array([low]), size=99
    )
    for start, end in ((0.99 * low, 0.0), (1.01 * low, high)):
        w = start ** (1 / depth)
        for _ in range(4000):
            w -= 0.1 * (w ** (depth - 1) * (w**depth - sigma) + decay * w)
        oracles.assert_close(w**depth, np.array(end), scale=1.0)


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.3, 0.9])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_inside_its_basin_descent_ends_at_the_minimiser(depth, decay):
    starts = np.linspace(0.001, 1.5, 60)
    for sigma in (1.0, 0.6):
        inside = lr.shrinkage.in_basin(jnp.asarray(starts), jnp.full(60, sigma), decay, depth)
        best = float(lr.shrinkage.shrink(jnp.array([sigma]), decay, depth)[0])
        w = starts[np.asarray(inside)] ** (1 / depth)
        for _ in range(4000):
            w -= 0.05 * (w ** (depth - 1) * (w**depth - sigma) + decay * w)
        assert len(w)
        oracles.assert_close(jnp.asarray(w**depth), np.full(len(w), best), steps=4000, scale=1.0)
    # Where descent seems to stand still, beside a saddle, is no basin.
    still = lr.shrinkage.in_basin(jnp.array([1e-9]), jnp.ones(1), decay, depth)
    assert bool(still[0]) == (float(lr.shrinkage.shrink(jnp.ones(1), decay, depth)[0]) == 0)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("decay", DECAYS)
def test_the_curvature_is_the_second_difference_of_the_cost(depth, decay):
    """In w, whose fourth differences are small at this distance; NumPy stays NumPy."""
    s, step = np.array([1.5, 0.9, 0.7, 0.4, 0.3, 0.02]), 1e-4
    w, sigma = s ** (1 / depth), np.array(VALUES)
    low, middle, high = (cost(x**depth, sigma, decay, depth) for x in (w - step, w, w + step))
    found = lr.shrinkage.schatten_curvature(s, sigma, decay, depth)
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(depth * found, (low - 2 * middle + high) / step**2, atol=1e-5)


def test_two_layers_and_no_decay_have_no_barrier():
    values = jnp.array(VALUES)
    assert lr.shrinkage.barrier(values, 0.3).tolist() == [0.0] * len(VALUES)
    oracles.assert_zero(lr.shrinkage.barrier(values, 0.0, 3), scale=1.0)


def target(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


SHAPES = [(5, 5), (4, 7), (6, 3)]


@pytest.mark.float32
@pytest.mark.parametrize("shape", SHAPES)
def test_without_decay_the_minimiser_is_the_best_approximation(shape, dtype):
    Phi = target(shape)
    left, values, right = np.linalg.svd(oracles.double(Phi), full_matrices=False)
    for rank in (1, 3):
        expected = sum(values[i] * np.outer(left[:, i], right[i]) for i in range(rank))
        oracles.assert_close(lr.shrinkage.minimiser(Phi, rank), expected, size=max(shape))
        rest = (values[rank:] ** 2).sum() / 2
        found = lr.shrinkage.minimum(lr.singular_values(Phi), rank)
        oracles.assert_close(found, rest, size=max(shape), scale=(values**2).sum())


@pytest.mark.float32
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.1, 0.9, 2.0])
def test_at_full_width_the_minimiser_meets_the_nuclear_norm_s_conditions(shape, decay, dtype):
    """(Phi - Z) / lambda is a subgradient of the nuclear norm: norm 1, and <., Z> = ||Z||_*."""
    Phi = target(shape)
    Z = oracles.double(lr.shrinkage.minimiser(Phi, min(shape), decay))
    slope = (oracles.double(Phi) - Z) / decay
    nuclear = np.linalg.norm(Z, "nuc")
    eps = float(jnp.finfo(dtype).eps)
    assert np.linalg.norm(slope, 2) <= 1 + 50 * eps / decay
    assert abs((slope * Z).sum() - nuclear) <= 50 * eps * nuclear / decay


def balanced(Phi, rank, decay, depth):
    """Layers whose product is the minimiser, all with the singular values s^{1/L}."""
    left, values, right = np.linalg.svd(oracles.double(Phi), full_matrices=False)
    shrunk = np.asarray(lr.shrinkage.shrink(jnp.asarray(values[:rank]), decay, depth))
    root = np.diag(shrunk ** (1 / depth))
    middle = (root,) * (depth - 2)
    return (root @ right[:rank], *middle, left[:, :rank] @ root)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.9])
def test_the_minimum_is_the_loss_at_balanced_layers(depth, decay):
    Phi, rank = target((6, 4)), 3
    weights = balanced(Phi, rank, decay, depth)
    product = oracles.product(weights, 4)
    oracles.assert_close(
        lr.shrinkage.minimiser(Phi, rank, decay, depth), product, size=6, steps=depth
    )
    squares = sum((W**2).sum() for W in weights)
    expected = ((product - oracles.double(Phi)) ** 2).sum() / 2 + decay / 2 * squares
    found = lr.shrinkage.decayed_loss(tuple(map(jnp.asarray, weights)), Phi, decay)
    oracles.assert_close(found, expected, size=24)
    oracles.assert_close(
        lr.shrinkage.minimum(lr.singular_values(Phi), rank, decay, depth),
        expected,
        size=24,
        steps=depth,
    )


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_no_layers_cost_less(depth, decay):
    Phi, rank, rng = target((5, 4)), 2, np.random.default_rng(0)
    least = float(lr.shrinkage.minimum(lr.singular_values(Phi), rank, decay, depth))
    best = balanced(Phi, rank, decay, depth)
    for size in (1e-3, 0.1, 1.0):
        for _ in range(50):
            weights = tuple(jnp.asarray(W + size * rng.normal(size=W.shape)) for W in best)
            assert float(lr.shrinkage.decayed_loss(weights, Phi, decay)) > least


def gradient_of_autoencoder(encoder, decoder, X, decay):
    rest = X - decoder @ encoder @ X
    return (
        -2 * decoder.T @ rest @ X.T + 2 * decay * encoder,
        -2 * rest @ X.T @ encoder.T + 2 * decay * decoder,
    )


@pytest.mark.parametrize("decay", [0.0, 1.0, 4.0, 30.0])
def test_the_autoencoder_s_minimiser_is_critical_and_none_is_lower(decay):
    X, width, rng = oracles.double(target((5, 9))), 3, np.random.default_rng(0)
    left, values, _ = np.linalg.svd(X)
    kept = [max(1 - decay / s**2, 0.0) for s in values[:width]]
    decoder = left[:, :width] * np.sqrt(kept)
    for slope in gradient_of_autoencoder(decoder.T, decoder, X, decay):
        oracles.assert_zero(jnp.asarray(slope), size=9, scale=values[0] ** 2)
    found = lr.shrinkage.autoencoder_minimiser(jnp.asarray(X), width, decay)
    oracles.assert_close(found, decoder @ decoder.T, size=9, scale=1.0)
    least = lr.shrinkage.autoencoder_minimum(jnp.asarray(values), width, decay)
    at_best = lr.shrinkage.autoencoder_loss(
        (jnp.asarray(decoder.T), jnp.asarray(decoder)), jnp.asarray(X), decay
    )
    oracles.assert_close(least, np.asarray(at_best), size=45)
    for _ in range(50):
        weights = tuple(
            jnp.asarray(W + 0.1 * rng.normal(size=W.shape)) for W in (decoder.T, decoder)
        )
        assert float(lr.shrinkage.autoencoder_loss(weights, jnp.asarray(X), decay)) > float(least)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lr.shrinkage.shrink(jnp.ones(2), 0.1, 1), "depth: got 1, wanted at least 2"),
        (lambda: lr.shrinkage.minimiser(jnp.eye(3), 4), "rank: got 4, wanted 1 to 3"),
    ],
)
def test_shrinkage_refuses(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
