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
    return W, Phi, lr.observe(KEY, SHAPE, 0.5)


def test_loss_and_gradient(dtype):
    W, Phi, mask = half_observed()
    value, gradient = jax.value_and_grad(lr.masked_loss)(W, Phi, mask)
    W, Phi, mask = double((W, Phi, mask))
    error = mask * (oracles.product(W, 9) - Phi)
    assert_close(value, 0.5 * np.sum(error**2), size=81)
    assert_close(gradient, tuple(oracles.gradients(W, oracles.masked_slope(Phi, mask))), size=81)


def test_unobserved_entries_do_not_matter():
    W, Phi, mask = half_observed()
    elsewhere = jnp.where(mask == 1, Phi, 100.0)
    assert_close(lr.masked_loss(W, elsewhere, mask), lr.masked_loss(W, Phi, mask))
    assert_apart(lr.factorization_loss(W, elsewhere), lr.factorization_loss(W, Phi))


def test_everything_observed_is_the_full_loss(dtype):
    W, Phi, _ = oracles.problem()
    assert_close(lr.masked_loss(W, Phi, jnp.ones(SHAPE)), lr.factorization_loss(W, Phi), size=81)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_observe_nothing_or_everything(fraction):
    assert np.array_equal(lr.observe(KEY, SHAPE, fraction), np.full(SHAPE, fraction))


def test_observe_draws_the_fraction(dtype):
    p, n = 0.3, 40_000
    mask = np.asarray(lr.observe(KEY, (200, 200), p))
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
    fewer, more = (lr.observe(KEY, SHAPE, f) for f in sorted((one, other)))
    assert bool(jnp.all(fewer <= more))


def test_keys_choose_the_entries():
    masks = [lr.observe(jax.random.key(seed), SHAPE, 0.5) for seed in (0, 0, 1)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
