"""GaLore under gradient noise, against task lists, plain loops and enumerations of signs."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrdyn.adapters.methods import GALORE
from lrdyn.galore_noise import (
    last_moving_step,
    refreshes_needed,
    schedule,
    setting,
    stall_exponent,
    stall_factor,
    stall_factor_on_the_right,
)

NOISE, ETA, PERIOD = 0.7, 0.1, 3


def values_with(counts):
    """Values, all different, that need so many refreshes: from the middle of each range."""
    shrink = (1 - ETA) ** PERIOD
    places = np.linspace(0.3, 0.7, len(counts))
    return NOISE * shrink ** (places - np.array(counts, float))


def tasks(counts, machines):
    """The fewest refreshes of which each serves so many of the tasks, by exhaustion."""
    reached, refreshes = {tuple(sorted(counts))}, 0
    while not any(sum(left) == 0 for left in reached):
        following = set()
        for left in reached:
            busy = [i for i, n in enumerate(left) if n]
            for served in itertools.combinations(busy, min(machines, len(busy))):
                after = [n - (i in served) for i, n in enumerate(left)]
                following.add(tuple(sorted(after)))
        reached, refreshes = following, refreshes + 1
    return refreshes


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_last_step_is_the_fewest_refreshes_that_any_order_needs(rank):
    for counts in itertools.combinations_with_replacement(range(4), 4):
        values = jnp.asarray(values_with(counts))
        assert refreshes_needed(values, NOISE, ETA, PERIOD).tolist() == list(counts)
        found = int(last_moving_step(values, NOISE, ETA, PERIOD, rank))
        assert found == PERIOD * tasks(counts, rank) - 1


@given(
    counts=st.lists(st.integers(0, 5), min_size=2, max_size=2),
    rank=st.integers(1, 3),
)
def test_the_schedule_ends_at_the_last_step(counts, rank):
    values = jnp.asarray(values_with(counts))
    last = int(last_moving_step(values, NOISE, ETA, PERIOD, rank))
    path = np.asarray(schedule(values, NOISE, ETA, PERIOD, rank, 12).values)
    moving = np.flatnonzero(np.any(path[1:] != path[:-1], axis=1))
    assert PERIOD * (max(moving, default=-1) + 1) - 1 == last
    # Behind it the largest is between (1 - eta)^T_0 sigma and sigma, if it moved at all.
    assert path[-1].max() < NOISE
    assert last < 0 or path[-1].max() >= (1 - ETA) ** PERIOD * NOISE


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_loop_in_numpy_takes_the_same_path(side):
    case = setting.make_case(
        jax.random.key(1),
        dim=6,
        rank=2,
        period=4,
        side=side,
        learning_rate=0.05,
        noise=1.3,
        steps=60,
    )
    k, X, P = len(case.target), np.zeros((6, 6)), np.zeros((6, 2))
    for t, sign in enumerate(np.asarray(case.signs)):
        G = np.vstack([X[:k], np.zeros((2, 6))])
        G[:k, :k] += case.target
        G[k:, k:] += sign * 1.3 * np.eye(2)
        if t % 4 == 0:
            U, _, Vt = np.linalg.svd(G)
            P = U[:, :2] if side == "left" else Vt[:2].T
        X = X - 0.05 * (P @ P.T @ G if side == "left" else G @ P @ P.T)
    end = np.asarray(setting.run(case, GALORE).weights[-1])
    np.testing.assert_allclose(end[:k], X[:k], atol=1e-12)


@pytest.mark.parametrize("period", [1, 2, 5])
def test_the_exponent_is_the_mean_over_all_sequences_of_signs(period):
    s = np.array([0.3, 0.9])
    kappa = NOISE**2 / (NOISE**2 - (NOISE * s) ** 2)
    logs = [
        np.log(np.abs(1 - ETA * kappa * signs[0] * sum(signs)))
        for signs in itertools.product((1, -1), repeat=period)
    ]
    found = stall_exponent(jnp.asarray(NOISE * s), NOISE, ETA, period)
    np.testing.assert_allclose(found, np.mean(logs, axis=0), rtol=1e-12)


def test_on_the_right_the_stall_is_stable_below_a_known_value():
    """|factor| < 1 if and only if s^2 < sigma^2 (1 + (1 - eta)^T_0) / 2."""
    border = NOISE * np.sqrt((1 + (1 - ETA) ** PERIOD) / 2)
    below, above = (
        abs(float(stall_factor_on_the_right(jnp.asarray(s), NOISE, ETA, PERIOD)))
        for s in (border * (1 - 1e-6), border * (1 + 1e-6))
    )
    assert below < 1 < above


def test_periods_of_one_step_do_not_see_the_side_of_a_value_that_is_0():
    """s = 0: kappa = 1, and both projectors hold Y whole, which shrinks by 1 - eta."""
    zero = jnp.asarray(0.0)
    left = stall_factor(zero, NOISE, ETA, jnp.asarray(1.0))
    right = stall_factor_on_the_right(zero, NOISE, ETA, 1)
    np.testing.assert_allclose([left, right], 1 - ETA, rtol=1e-14)


def test_momentum_that_is_kept_on_the_right_moves_true_rows_again():
    case = setting.make_case(
        jax.random.key(2),
        dim=4,
        rank=1,
        period=5,
        side="right",
        learning_rate=0.02,
        noise=1.0,
        steps=400,
        optimizer="momentum",
    )

    def moved_when_all_is_below(side, state):
        one = dataclasses.replace(case, side=side, state=state)
        run = setting.run(one, GALORE, optax.sgd(0.02, momentum=0.9))
        largest = np.array([float(one.true_values(X)[0]) for X in run.weights[:-1]])
        first = int(np.argmax(largest < 1.0))
        assert largest[first] < 1.0
        return float(jnp.max(run.moved[5 * first :]))

    assert moved_when_all_is_below("right", "keep") > 1e-3
    assert moved_when_all_is_below("right", "reset") == 0.0
    assert moved_when_all_is_below("left", "keep") == 0.0


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: refreshes_needed(jnp.ones(2), -1.0, 0.1, 3), "noise: got"),
        (lambda: last_moving_step(jnp.ones(2), 1.0, 0.1, 3, 0), "rank: got"),
        (lambda: stall_exponent(jnp.ones(2), 2.0, 0.1, 0), "period: got"),
    ],
)
def test_bad_input_is_one_line(call, match):
    with pytest.raises(ValueError, match=match):
        call()
