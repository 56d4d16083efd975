"""The optimiser's state at a refresh: transported, or pruned."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrdyn as lr
from lrdyn.adapters.projectors import over_maps
from lrdyn.theorem4.mistakes import prune_moments
from tests import oracles
from tests.algorithm1 import ETA, M, N, run, runs, trajectories

MOMENTS = 3, N


def adam_state(seed=0) -> tuple[Any, Any, Any]:
    """Adam's state after steps in random coordinates, with the projectors before and after."""
    draw = np.random.default_rng(seed)
    old, new = (
        lr.adapters.top_singular_projector(jnp.asarray(draw.normal(size=(M, N))), 3, "left")
        for _ in range(2)
    )
    rule = optax.adam(ETA)
    state = rule.init(jnp.zeros(MOMENTS))
    for _ in range(4):
        _, state = rule.update(jnp.asarray(draw.normal(size=MOMENTS)), state)
    return state, old, new


def test_transport_leaves_the_projection_of_the_lifted_momentum():
    state, old, new = adam_state()
    moved: Any = lr.adapters.transport_moments(state, state, old, new)
    P, Q = np.asarray(old.basis), np.asarray(new.basis)
    lifted = P @ np.asarray(state[0].mu)
    oracles.assert_close(new.lift(moved[0].mu), Q @ Q.T @ lifted, size=M)
    unmoved = (moved[0]._replace(mu=state[0].mu), *moved[1:])
    chex.assert_trees_all_equal(unmoved, state)
    # Another subspace, so something is lost; the same one loses nothing.
    assert np.linalg.norm(Q @ Q.T @ lifted) < np.linalg.norm(lifted)
    same: Any = lr.adapters.transport_moments(state, state, old, old)
    oracles.assert_close(same[0].mu, state[0].mu, size=M)


def test_moving_the_squares_ends_the_run():
    def everything(fresh, state, old, new):
        moved: Any = lr.adapters.transport_moments(fresh, state, old, new)
        squares = over_maps(lambda S, T, v: T.project(S.lift(v)), old, new, state[0].nu)
        return (moved[0]._replace(nu=squares), *moved[1:])

    how: Any = {"rank": 3, "period": 2, "steps": (20,), "state": everything}
    found = trajectories(lr.GALORE, ("adam",), **how)["adam"]
    assert int(found.diverged_at) in range(3, 21)
    assert jnp.isnan(found.records).any()


def test_a_pruned_state_with_a_new_count_is_a_reset():
    """With few entries 99.9 % are all of them; the count is what is left of the state."""

    def path(state):
        return run(lr.RELORA_FROZEN, "adam", period=4, side="left", state=state)

    keep, reset = (
        runs(lr.RELORA_FROZEN, period=4, side="left", state=state)["adam"]
        for state in ("keep", "reset")
    )
    key = jax.random.key(0)
    oracles.assert_close(path(prune_moments(key, count=True)), reset, steps=13, size=N)
    oracles.assert_apart(path(prune_moments(key)), reset)
    oracles.assert_close(path(prune_moments(key, share=0.0)), keep, steps=13, size=N)
