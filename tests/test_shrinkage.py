"""Minimisers with weight decay, against polynomial roots, optimality conditions and grids."""

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from lrdyn import theorem1
from lrdyn.theorem1 import minimisers_claims, regularised_autoencoder, shrinkage
from tests import oracles
from tests.oracles import Compiled, assert_close, assert_zero, normal, refuses

pytestmark = pytest.mark.usefixtures("strict")

VALUES = np.array([1.7, 1.0, 0.8, 0.55, 0.2, 0.03])
DECAYS = [0.0, 0.02, 0.1, 0.3, 0.9]
DEPTHS = [2, 3, 4, 6]

compiled = Compiled(shrinkage)
compiled_autoencoder = Compiled(regularised_autoencoder)
decayed_losses = jax.jit(jax.vmap(shrinkage.decayed_loss, (0, None, None)))
autoencoder_losses = jax.jit(jax.vmap(regularised_autoencoder.autoencoder_loss, (0, None, None)))


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


def descend(start, sigma, decay, depth, rate):
    """Gradient descent on the cost, over L, as a function of w = s^{1/L}."""
    w = start ** (1 / depth)
    for _ in range(4000):
        w = w - rate * (w ** (depth - 1) * (w**depth - sigma) + decay * w)
    return w**depth


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("decay", DECAYS)
def test_shrink_is_the_best_stationary_value(depth, decay, dtype):
    expected = [
        min([0.0, *stationary(sigma, decay, depth)], key=lambda s: cost(s, sigma, decay, depth))
        for sigma in VALUES
    ]
    # A root of a polynomial of degree 2L - 2.
    found = compiled.shrink(VALUES, decay, depth)
    assert_close(found, expected, size=(2 * depth) ** 2, scale=VALUES[0])


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("decay", DECAYS)
def test_no_value_costs_less(depth, decay):
    grid = np.linspace(0, 2, 4001)
    least = cost(np.asarray(compiled.shrink(VALUES, decay, depth)), VALUES, decay, depth)
    assert np.all(least <= cost(grid[:, None], VALUES, decay, depth) + np.finfo(float).eps)


@pytest.mark.parametrize("decay", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("depth", [3, 4])
def test_the_barrier_parts_the_basins(depth, decay):
    """Descent on w from just below the barrier ends at 0, from just above at the other minimum."""
    low, high = stationary(1.0, decay, depth)
    assert_close(compiled.barrier(np.ones(60), decay, depth), np.full(60, low), size=99)
    for start, end in ((0.99 * low, 0.0), (1.01 * low, high)):
        assert_close(descend(start, 1.0, decay, depth, rate=0.1), end, scale=1.0)


@pytest.mark.parametrize("depth", [3, 4, 7])
@pytest.mark.parametrize("w", [Fraction(1, 2), Fraction(5, 3)])
def test_at_the_jump_two_values_cost_the_same(depth, w):
    """In rational numbers, with s_0 = w^L: there the minimiser is not unique, without any tie."""
    decay, kept = w ** (2 * depth - 2) / (depth - 2), w**depth
    value = kept * Fraction(depth - 1, depth - 2)

    def cost(w):
        return (w**depth - value) ** 2 / 2 + decay * depth * w**2 / 2

    assert cost(w) == cost(0)
    assert all(cost(w * Fraction(k, 100)) > cost(0) for k in range(1, 300) if k != 100)
    assert theorem1.threshold(float(decay), depth) == pytest.approx(float(value), rel=1e-14)


def test_two_layers_and_no_decay_have_no_barrier():
    assert np.array_equal(compiled.barrier(VALUES, 0.3, 2), np.zeros(6))
    assert_zero(compiled.barrier(VALUES, 0.0, 3), scale=1.0)


SHAPES = [(5, 5), (4, 7), (6, 3)]


@pytest.mark.parametrize("shape", SHAPES)
def test_without_decay_the_minimiser_is_the_best_approximation(shape, dtype):
    (Phi,) = normal(0, shape)
    left, values, right = np.linalg.svd(Phi, full_matrices=False)
    for rank in (1, 3):
        expected = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert_close(compiled.minimiser(Phi, rank, 0.0, 2), expected, size=max(shape))
        rest, scale = (values[rank:] ** 2).sum() / 2, (values**2).sum()
        assert_close(compiled.minimum(values, rank, 0.0, 2), rest, size=max(shape), scale=scale)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("decay", [0.1, 0.9, 2.0])
def test_at_full_width_the_minimiser_meets_the_nuclear_norm_s_conditions(shape, decay, dtype):
    """(Phi - Z) / lambda is a subgradient of the nuclear norm: norm 1, and <., Z> = ||Z||_*."""
    (Phi,) = normal(0, shape)
    Z = oracles.double(compiled.minimiser(Phi, min(shape), decay, 2))
    slope = (Phi - Z) / decay
    nuclear = np.linalg.norm(Z, "nuc")
    eps = float(np.finfo(dtype).eps)
    assert np.linalg.norm(slope, 2) <= 1 + 50 * eps / decay
    assert abs((slope * Z).sum() - nuclear) <= 50 * eps * nuclear / decay


def balanced(Phi, rank, decay, depth):
    """Layers whose product is the minimiser, all with the singular values s^{1/L}."""
    left, values, right = np.linalg.svd(Phi, full_matrices=False)
    root = np.diag(np.asarray(compiled.shrink(values[:rank], decay, depth)) ** (1 / depth))
    return (root @ right[:rank], *(root,) * (depth - 2), left[:, :rank] @ root), values


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.9])
def test_the_minimum_is_the_loss_at_balanced_layers(depth, decay):
    ((Phi,), rank) = normal(0, (6, 4)), 3
    weights, values = balanced(Phi, rank, decay, depth)
    product = oracles.product(weights, 4)
    assert_close(compiled.minimiser(Phi, rank, decay, depth), product, size=6, steps=depth)
    squares = sum((W**2).sum() for W in weights)
    expected = ((product - Phi) ** 2).sum() / 2 + decay / 2 * squares
    assert_close(compiled.decayed_loss(weights, Phi, decay), expected, size=24)
    assert_close(compiled.minimum(values, rank, decay, depth), expected, size=24, steps=depth)


def nearby(best, sizes):
    """Layers at random around the best ones, at each of these distances."""
    rng, sizes = np.random.default_rng(0), np.asarray(sizes)[:, None, None]
    return tuple(W + sizes * rng.normal(size=(len(sizes), *W.shape)) for W in best)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_no_layers_cost_less(depth, decay):
    (Phi,) = normal(0, (5, 4))
    best, values = balanced(Phi, 2, decay, depth)
    found = decayed_losses(nearby(best, [1e-3, 0.1, 1.0] * 50), Phi, decay)
    assert float(np.min(found)) > float(compiled.minimum(values, 2, decay, depth))


def gradient_of_autoencoder(encoder, decoder, X, decay):
    rest = X - decoder @ encoder @ X
    return (
        -2 * decoder.T @ rest @ X.T + 2 * decay * encoder,
        -2 * rest @ X.T @ encoder.T + 2 * decay * decoder,
    )


@pytest.mark.parametrize("decay", [0.0, 1.0, 4.0, 30.0])
def test_the_autoencoder_s_minimiser_is_critical_and_none_is_lower(decay):
    ((X,), width) = normal(0, (5, 9)), 3
    left, values, _ = np.linalg.svd(X)
    kept = [max(1 - decay / s**2, 0.0) for s in values[:width]]
    decoder = left[:, :width] * np.sqrt(kept)
    slopes = gradient_of_autoencoder(decoder.T, decoder, X, decay)
    assert_zero(slopes, size=9, scale=values[0] ** 2)
    found = compiled_autoencoder.autoencoder_minimiser(X, width, decay)
    assert_close(found, decoder @ decoder.T, size=9, scale=1.0)
    least = compiled_autoencoder.autoencoder_minimum(values, width, decay)
    losses = autoencoder_losses(nearby((decoder.T, decoder), [0.0] + [0.1] * 50), X, decay)
    assert_close(least, losses[0], size=45)
    assert float(np.min(losses[1:])) > float(least)


test_shrinkage_refuses = refuses(
    (lambda: compiled.shrink(np.ones(2), 0.1, 1), "depth: got 1, wanted at least 2"),
    (lambda: compiled.minimiser(np.eye(3), 4), "rank: got 4, wanted 1 to 3"),
)


def test_at_the_jump_zero_is_taken():
    """Where both cost the same: for three layers and lambda = 1 that is at sigma = 2."""
    found = np.asarray(shrinkage.shrink(jax.numpy.array([2.0, 2.01, 1.99]), 1.0, 3))
    assert (found > 0).tolist() == [False, True, False]
    assert found[1] > 1  # it jumps


@pytest.mark.usefixtures("unchecked")  # a case of which a few fields are read
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_the_control_of_another_power_takes_the_larger_root_of_its_polynomial(depth):
    """``w^{2L} - sigma w^{L-2} + lambda``."""
    values, decay = np.array([10.0, 3.0, 1.4]), 0.1
    case: Any = SimpleNamespace(
        values=jax.numpy.asarray(values), decay=jax.numpy.asarray(decay), depth=depth
    )
    found = minimisers_claims._root_of_another_power(case).local_values
    for value, kept in zip(values, np.asarray(found), strict=True):
        polynomial = np.zeros(2 * depth + 1)
        polynomial[0] += 1
        polynomial[depth + 2] -= value
        polynomial[-1] += decay
        roots = np.roots(polynomial)
        largest = roots[abs(roots.imag) < 1e-9].real.max()
        assert kept == pytest.approx(largest**depth, rel=1e-9)
