"""Twins of a run and conditions, against the formulas of the docstrings in NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lrdyn.core import condition

DATA = np.array([1.0, 3.0, -5.0])
FAR, NEAR = 2.0**-26, 2.0**-39
"""Machine epsilon to the powers 1/2 and 3/4."""


def disturbed(size, lane):
    """Relative to the largest entry, in the direction of cosines of squares."""
    return DATA + size * 5.0 * np.cos((np.arange(3) + lane) ** 2)


def test_twins_are_disturbed_in_proportion_to_the_largest_entry():
    runs = condition.twins(lambda x: x, jnp.asarray(DATA), rounded=True)
    np.testing.assert_array_equal(runs.run, DATA)
    for twin, size, lane in ((runs.far, FAR, 0), (runs.near, NEAR, 1), (runs.rounded, FAR**2, 2)):
        np.testing.assert_allclose(twin, disturbed(size, lane), rtol=1e-15)


def test_each_condition_is_the_larger_response_on_one_scale():
    """A linear part, and a square: the largest of all entries, 25, is the scale of both."""
    parts = {"sum": lambda x: 9 * x[:1] - x[1:2], "square": lambda x: x**2}

    def run(x):
        return {name: part(x) for name, part in parts.items()}

    found = condition.conditions(condition.twins(run, jnp.asarray(DATA)))
    for name, part in parts.items():
        responses = [
            np.max(np.abs(part(disturbed(size, lane)) - part(DATA))) / 25 / size
            for size, lane in ((FAR, 0), (NEAR, 1))
        ]
        assert float(found[name]) == pytest.approx(max(1.0, *responses), rel=1e-3)
    assert float(found["square"]) > 1.5


def test_a_push_adds_up_to_itself_over_the_steps_and_its_noise_like_a_walk():
    steps, weights = 9, jnp.array([[4.0, -2.0, 1.0]])
    rule: Any = condition.perturb_updates(optax.sgd(1.0), (jnp.full((1, 3), 1.2),), steps)
    state = rule.init((weights,))
    for step in range(3):
        (update,), state = rule.update((weights / 3,), state, (weights,))
        noise = np.cos((step + np.arange(3.0)) ** 2)
        expected = -np.asarray(weights) / 3 + 4 * 0.2 * (1 / steps + noise / steps**0.5)
        np.testing.assert_allclose(update, expected, rtol=1e-12)
