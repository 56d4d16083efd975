"""Masks, their distributions and expectations over them, against loops over all masks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lrdyn as lr
from lrdyn.claims import tolerance
from tests import oracles
from tests.oracles import assert_apart, assert_close, double

KEY = jax.random.key(5)
SHAPE = (9, 9)


def half_observed():
    W, Phi, _ = oracles.problem()
    return W, Phi, lr.masking.observe(KEY, SHAPE, 0.5)


def test_loss_and_gradient(dtype):
    W, Phi, mask = half_observed()
    value, gradient = jax.value_and_grad(lr.masking.masked_loss)(W, Phi, mask)
    W, Phi, mask = double((W, Phi, mask))
    error = mask * (oracles.product(W, 9) - Phi)
    assert_close(value, 0.5 * np.sum(error**2), size=81)
    assert_close(gradient, tuple(oracles.gradients(W, oracles.masked_slope(Phi, mask))), size=81)


def test_unobserved_entries_do_not_matter():
    W, Phi, mask = half_observed()
    elsewhere = jnp.where(mask == 1, Phi, 100.0)
    assert_close(lr.masking.masked_loss(W, elsewhere, mask), lr.masking.masked_loss(W, Phi, mask))
    assert_apart(lr.factorization_loss(W, elsewhere), lr.factorization_loss(W, Phi))


def test_everything_observed_is_the_full_loss(dtype):
    W, Phi, _ = oracles.problem()
    assert_close(
        lr.masking.masked_loss(W, Phi, jnp.ones(SHAPE)), lr.factorization_loss(W, Phi), size=81
    )


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_observe_nothing_or_everything(fraction):
    assert np.array_equal(lr.masking.observe(KEY, SHAPE, fraction), np.full(SHAPE, fraction))


def test_observe_draws_the_fraction(dtype):
    p, n = 0.3, 40_000
    mask = np.asarray(lr.masking.observe(KEY, (200, 200), p))
    assert mask.dtype == dtype
    assert set(np.unique(mask)) == {0, 1}
    standard_error = np.sqrt(p * (1 - p) / n)
    assert abs(mask.mean() - p) <= tolerance("statistical", dtype) * standard_error
    # Independent entries: neighbours are observed together with probability p^2.
    both = np.mean(mask[:, ::2] * mask[:, 1::2])
    assert abs(both - p**2) <= tolerance("statistical", dtype) * np.sqrt(
        p**2 * (1 - p**2) / (n / 2)
    )


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_larger_fraction_observes_more(one, other):
    fewer, more = (lr.masking.observe(KEY, SHAPE, f) for f in sorted((one, other)))
    assert bool(jnp.all(fewer <= more))


def test_keys_choose_the_entries():
    masks = [lr.masking.observe(jax.random.key(seed), SHAPE, 0.5) for seed in (0, 0, 1)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


# Distributions of masks -------------------------------------------------------------------------


def listed(size, block, theta):
    """Every mask and its probability, by loops over tuples."""
    for blocks in itertools.product((0.0, 1.0), repeat=size // block):
        mask = [kept for kept in blocks for _ in range(block)]
        yield mask, np.prod([theta if kept else 1 - theta for kept in blocks])


@pytest.mark.parametrize(("size", "block"), [(1, 1), (4, 1), (6, 2), (6, 3), (5, 5)])
def test_block_masks_are_all_masks_of_whole_blocks(size, block, dtype):
    masks = lr.masking.block_masks(size, block, 0.3)
    found = sorted(zip(masks.support.tolist(), masks.probabilities.tolist(), strict=True))
    expected = sorted(listed(size, block, 0.3))
    assert [mask for mask, _ in found] == [mask for mask, _ in expected]
    assert_close(masks.probabilities.sum(), 1.0, size=len(expected))
    assert_close(jnp.asarray([p for _, p in found]), np.array([p for _, p in expected]), size=size)
    if block == 1:
        assert np.array_equal(masks.support, lr.masking.bernoulli_masks(size, 0.3).support)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_moments_of_masks(block, dtype):
    masks = lr.masking.block_masks(6, block, 0.3)
    assert_close(lr.masking.mask_mean(masks), np.full(6, 0.3), size=64)
    same = [[i // block == j // block for j in range(6)] for i in range(6)]
    expected = np.where(same, 0.3 * 0.7, 0.0)
    assert_close(lr.masking.mask_covariance(masks), expected, size=64)
    assert_close(lr.masking.block_covariance(6, block, jnp.asarray(0.3)), expected)


def any_distribution(seed=0, points=7, count=3):
    one, other = jax.random.split(jax.random.key(seed))
    support = 0.1 + 3 * jax.random.bernoulli(one, 0.5, (points, 1)) * jax.random.uniform(
        one, (points, count)
    )
    chances = jax.random.uniform(other, (points,))
    return lr.masking.MaskDistribution(support, chances / chances.sum())


def test_an_expectation_is_a_sum_over_masks(dtype):
    masks = any_distribution()
    found = lr.masking.exact_expectation(lambda R: jnp.outer(R, R) * R.sum(), *masks)
    support, chances = double(tuple(masks))
    expected = sum(p * np.outer(R, R) * R.sum() for R, p in zip(support, chances, strict=True))
    assert_close(found, expected, size=7)


def test_many_masks_are_summed_in_parts():
    # 2^13 masks: E (sum R)^2 of a binomial variable.
    masks = lr.masking.bernoulli_masks(13, 0.3)
    found = lr.masking.exact_expectation(lambda R: R.sum() ** 2, *masks)
    assert_close(found, 13 * 0.3 * 0.7 + (13 * 0.3) ** 2, size=2**13)


def test_the_deterministic_equivalent_is_the_expected_loss(dtype):
    masks = any_distribution()
    target, *terms = jax.random.normal(jax.random.key(1), (4, 2, 5))
    terms = jnp.stack(terms)
    mean, covariance = lr.masking.mask_mean(masks), lr.masking.mask_covariance(masks)
    found = lr.masking.deterministic_equivalent(target, terms, mean, covariance)
    (support, chances), Y, Z = double((tuple(masks), target, terms))
    mu = np.sum([p * R for R, p in zip(support, chances, strict=True)], axis=0)
    losses = [
        p * np.sum((Y - np.tensordot(R / mu, Z, 1)) ** 2)
        for R, p in zip(support, chances, strict=True)
    ]
    assert_close(found, sum(losses), size=10)
    # Correlations matter: the diagonal alone is another number.
    alone = lr.masking.deterministic_equivalent(
        target, terms, mean, jnp.diag(jnp.diagonal(covariance))
    )
    assert_apart(alone, sum(losses))


def test_draws_have_the_moments_of_their_distribution(dtype):
    draws = np.asarray(
        jax.vmap(lambda key: lr.masking.draw_mask(key, 4, 0.3, block=2))(
            jax.random.split(KEY, 20_000)
        ),
        np.float64,
    )
    assert np.array_equal(draws[:, 0], draws[:, 1])
    assert np.array_equal(draws[:, 2], draws[:, 3])
    error = np.sqrt(0.3 * 0.7 / len(draws))
    assert np.all(abs(draws.mean(0) - 0.3) <= tolerance("statistical", dtype) * error)
    both = np.mean(draws[:, 0] * draws[:, 2])  # of different blocks
    error = np.sqrt(0.09 * 0.91 / len(draws))
    assert abs(both - 0.09) <= tolerance("statistical", dtype) * error


def test_monte_carlo_is_mean_and_standard_error(dtype):
    found = lr.masking.monte_carlo(
        KEY, lambda R: jnp.stack([R.sum(), R[0]]), lambda k: draw(k), 500
    )
    values = np.asarray(jax.vmap(draw)(jax.random.split(KEY, 500)), np.float64)
    values = np.stack([values.sum(1), values[:, 0]], axis=1)
    assert_close(found.mean, values.mean(0), size=500)
    assert_close(found.standard_error, values.std(0, ddof=1) / np.sqrt(500), size=500)
    assert np.all(abs(np.asarray(found.mean) - [3.5, 0.7]) <= 4 * np.asarray(found.standard_error))


def draw(key):
    return lr.masking.draw_mask(key, 5, 0.7)


def test_functions_of_masks_differentiate():
    """The gradient of the expected loss is the expected gradient."""
    masks, Z = lr.masking.bernoulli_masks(3, 0.4), jax.random.normal(KEY, (3, 2, 2))

    def loss(Z, R):
        return jnp.sum(lr.masking.masked_prediction(R, jnp.full(3, 0.4), Z) ** 2)

    outside = jax.grad(lambda Z: lr.masking.exact_expectation(lambda R: loss(Z, R), *masks))(Z)
    inside = lr.masking.exact_expectation(lambda R: jax.grad(loss)(Z, R), *masks)
    assert_close(outside, inside, size=8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: lr.masking.bernoulli_masks(21, 0.5),
            r"size: got 21, wanted 1 to 20 \(2\^size masks\)",
        ),
        (lambda: lr.masking.bernoulli_masks(0, 0.5), "size: got 0, wanted 1 to 20"),
        (lambda: lr.masking.block_masks(6, 4, 0.5), "block: got 4, wanted a divisor of 6"),
        (lambda: lr.masking.draw_mask(KEY, 6, 0.5, block=0), "block: got 0, wanted a divisor of 6"),
        (lambda: lr.masking.block_covariance(6, 5, 0.5), "block: got 5, wanted a divisor of 6"),
        (
            lambda: lr.masking.exact_expectation(jnp.sum, jnp.ones((3, 2)), jnp.ones(2)),
            r"probabilities: got shape \(2,\), wanted \(3,\)",
        ),
        (
            lambda: lr.masking.monte_carlo(KEY, jnp.sum, draw, 1),
            "samples: got 1, wanted at least 2",
        ),
        (
            lambda: lr.masking.deterministic_equivalent(
                jnp.ones((1, 1)), jnp.ones((2, 1, 1)), jnp.ones(1), jnp.ones((2, 2))
            ),
            r"mean: got shape \(1,\), wanted \(2,\)",
        ),
        (
            lambda: lr.masking.deterministic_equivalent(
                jnp.ones((1, 1)), jnp.ones((2, 1, 1)), jnp.ones(2), jnp.ones((2, 1))
            ),
            r"covariance: got shape \(2, 1\), wanted \(2, 2\)",
        ),
    ],
)
def test_masks_refuse(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
