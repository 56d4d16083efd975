"""Masks, their distributions and expectations over them, against loops over all masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdyn.core import masking
from tests import oracles
from tests.oracles import assert_apart, assert_close, double, normal

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(5)
SHAPE = (9, 9)

compiled = oracles.Compiled(masking)
loss_of = jax.jit(jax.value_and_grad(masking.masked_loss))


@pytest.mark.parametrize("fraction", [0.5, 1.0])
def test_loss_and_gradient(fraction, dtype):
    W, Phi, _ = oracles.problem()
    mask = compiled.observe(KEY, SHAPE, fraction)
    value, gradient = loss_of(W, Phi, mask)
    W, Phi, mask = double((W, Phi, mask))
    error = mask * (oracles.product(W, 9) - Phi)
    assert_close(value, 0.5 * np.sum(error**2), size=81)
    assert_close(gradient, tuple(oracles.gradients(W, oracles.masked_slope(Phi, mask))), size=81)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_observe_nothing_or_everything(fraction):
    assert np.array_equal(compiled.observe(KEY, SHAPE, fraction), np.full(SHAPE, fraction))


def assert_mean(draws, mean, variance):
    """The mean of independent draws, up to its standard errors."""
    error = np.sqrt(variance / draws.size)
    assert abs(draws.mean() - mean) <= 4 * error


def test_observe_draws_the_fraction(dtype):
    p, mask = 0.3, np.asarray(compiled.observe(KEY, (200, 200), 0.3))
    assert mask.dtype == dtype
    assert set(np.unique(mask)) == {0, 1}
    assert_mean(mask.astype(float), p, p * (1 - p))
    # Independent entries: neighbours are observed together with probability p^2.
    assert_mean(double(mask[:, ::2] * mask[:, 1::2]), p**2, p**2 * (1 - p**2))


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_observes_more(one, other):
    fewer, more = (np.asarray(compiled.observe(KEY, SHAPE, f)) for f in sorted((one, other)))
    assert np.all(fewer <= more)


def test_keys_choose_the_entries():
    masks = [compiled.observe(jax.random.key(seed), SHAPE, 0.5) for seed in (0, 0, 1)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


@pytest.mark.parametrize(("size", "block"), [(1, 1), (4, 1), (6, 2), (6, 3), (5, 5)])
def test_block_masks_are_all_masks_of_whole_blocks(size, block, dtype):
    masks = masking.block_masks(size, block, 0.3)
    found = zip(masks.support.tolist(), masks.probabilities.tolist(), strict=True)
    groups = [i // block for i in range(size)]
    listed = [(mask.tolist(), chance) for mask, chance in oracles.masks_of(groups, 0.3)]
    (rows, chances), (expected, wanted) = (
        zip(*sorted(pairs), strict=True) for pairs in (found, listed)
    )
    assert rows == expected
    assert_close(np.array(chances, dtype), np.array(wanted), size=size)
    assert_close(np.sum(masks.probabilities), 1.0, size=len(rows))
    if block == 1:
        assert np.array_equal(masks.support, masking.bernoulli_masks(size, 0.3).support)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_moments_of_masks(block, dtype):
    masks = masking.block_masks(6, block, 0.3)
    assert_close(masking.mask_mean(masks), np.full(6, 0.3), size=64)
    expected = np.kron(np.eye(6 // block), np.full((block, block), 0.3 * 0.7))
    assert_close(masking.mask_covariance(masks), expected, size=64)
    assert_close(masking.block_covariance(6, block, jnp.asarray(0.3)), expected)


def any_distribution(points=7, count=3):
    rng = np.random.default_rng(0)
    support = 0.1 + 3 * rng.integers(0, 2, (points, 1)) * rng.uniform(size=(points, count))
    chances = rng.uniform(size=points)
    return masking.MaskDistribution(*map(jnp.asarray, (support, chances / chances.sum())))


def test_an_expectation_is_a_sum_over_masks(dtype):
    masks = any_distribution()
    found = masking.exact_expectation(lambda R: jnp.outer(R, R) * R.sum(), *masks)
    expected = sum(p * np.outer(R, R) * R.sum() for R, p in zip(*double(masks), strict=True))
    assert_close(found, expected, size=7)


def test_many_masks_are_summed_in_parts():
    # 2^13 masks: E (sum R)^2 of a binomial variable.
    masks = masking.bernoulli_masks(13, 0.3)
    found = masking.exact_expectation(lambda R: R.sum() ** 2, *masks)
    assert_close(found, 13 * 0.3 * 0.7 + (13 * 0.3) ** 2, size=2**13)


def test_the_deterministic_equivalent_is_the_expected_loss(dtype):
    masks, (Y, Z) = any_distribution(), normal(1, (2, 5), (3, 2, 5))
    mean, covariance = masking.mask_mean(masks), np.asarray(masking.mask_covariance(masks))
    pairs = list(zip(*double(masks), strict=True))
    mu = sum(p * R for R, p in pairs)
    expected = sum(p * np.sum((Y - np.tensordot(R / mu, Z, 1)) ** 2) for R, p in pairs)
    assert_close(compiled.deterministic_equivalent(Y, Z, mean, covariance), expected, size=10)
    # Correlations matter: the diagonal alone is another number.
    alone = np.diag(np.diagonal(covariance))
    assert_apart(compiled.deterministic_equivalent(Y, Z, mean, alone), expected)


def test_draws_have_the_moments_of_their_distribution(dtype):
    draw = jax.jit(jax.vmap(lambda key: masking.draw_mask(key, 4, 0.3, block=2)))
    first, again, second, last = double(draw(jax.random.split(KEY, 20_000))).T
    assert np.array_equal(first, again)
    assert np.array_equal(second, last)
    assert_mean(first, 0.3, 0.3 * 0.7)
    assert_mean(second, 0.3, 0.3 * 0.7)
    assert_mean(first * second, 0.09, 0.09 * 0.91)  # of different blocks


def draw(key):
    return masking.draw_mask(key, 5, 0.7)


def test_monte_carlo_is_mean_and_standard_error(dtype):
    def estimate(key):
        return masking.monte_carlo(key, lambda R: jnp.stack([R.sum(), R[0]]), draw, 500)

    found = jax.jit(estimate)(KEY)
    values = double(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 500)))
    values = np.stack([values.sum(1), values[:, 0]], axis=1)
    expected = masking.Estimate(values.mean(0), values.std(0, ddof=1) / np.sqrt(500))
    assert_close(found, expected, size=500)
    assert np.all(abs(np.asarray(expected.mean) - [3.5, 0.7]) <= 4 * expected.standard_error)


def test_functions_of_masks_differentiate():
    """The gradient of the expected loss is the expected gradient."""
    masks, (Z,) = masking.bernoulli_masks(3, 0.4), normal(5, (3, 2, 2))

    def loss(Z, R):
        return jnp.sum(masking.masked_prediction(R, jnp.full(3, 0.4), Z) ** 2)

    @jax.jit
    def both(Z):
        outside = jax.grad(lambda Z: masking.exact_expectation(lambda R: loss(Z, R), *masks))(Z)
        return outside, masking.exact_expectation(lambda R: jax.grad(loss)(Z, R), *masks)

    assert_close(*both(Z), size=8)


ONE, TWO, PAIR = np.ones((1, 1)), np.ones((2, 1, 1)), np.ones(2)
COVARIANCE = r"covariance: got shape \(2, 1\), wanted \(2, 2\)"
equivalent = compiled.deterministic_equivalent
test_masks_refuse = oracles.refuses(
    (lambda: masking.bernoulli_masks(21, 0.5), "size: got 21, wanted 1 to 20"),
    (lambda: masking.bernoulli_masks(0, 0.5), "size: got 0, wanted 1 to 20"),
    (lambda: masking.block_masks(6, 4, 0.5), "block: got 4, wanted a divisor of 6"),
    (lambda: masking.draw_mask(KEY, 6, 0.5, block=0), "block: got 0, wanted at least 1"),
    (lambda: masking.block_covariance(6, 5, 0.5), "block: got 5, wanted a divisor of 6"),
    (
        lambda: masking.exact_expectation(jnp.sum, jnp.ones((3, 2)), jnp.ones(2)),
        r"probabilities: got shape \(2,\), wanted \(3,\)",
    ),
    (lambda: masking.monte_carlo(KEY, jnp.sum, draw, 1), "samples: got 1, wanted at least 2"),
    (lambda: equivalent(ONE, TWO, PAIR[:1], np.eye(2)), r"mean: got shape \(1,\), wanted \(2,\)"),
    (lambda: equivalent(ONE, TWO, PAIR, np.ones((2, 1))), COVARIANCE),
)
