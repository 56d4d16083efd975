"""Algorithm 1, GaLore and its dual, against NumPy loops written from its text."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import lrdyn as lr
from lrdyn.adapters.state import POLICIES
from lrdyn.networks import mlp
from lrdyn.theorem4.mistakes import STALE, UNMERGED, no_factors
from tests import algorithm1, oracles
from tests.algorithm1 import HOW, KEY, OPTIMIZERS, RANK, STEPS, M, N, problem, run, runs


@pytest.mark.parametrize("state", POLICIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_galore_and_relora_are_the_loops_of_the_text(side, state, dtype):
    how: Any = {"period": 4, "side": side, "state": state}
    one, other = (runs(method, dtype=dtype, **how) for method in (lr.GALORE, lr.RELORA_FROZEN))
    for kind in OPTIMIZERS:
        path = algorithm1.galore_by_hand(kind, **how)
        oracles.assert_close(one[kind], path, **HOW)
        oracles.assert_close(other[kind], path, **HOW)
        if state != "transport":  # a merge every period
            merged, _ = algorithm1.adapters_by_hand(kind, frozen=True, **how)
            oracles.assert_close(other[kind], merged, **HOW)
        late = algorithm1.galore_by_hand(kind, **how | {"period": 5})
        oracles.assert_apart(other[kind], late)


def test_full_training_is_that_of_the_whole_rank_if_the_state_turns_with_the_basis():
    """By SGD, which has none, P P^T = I is enough; Adam's squares do not turn."""
    full = {kind: algorithm1.full_by_hand(kind) for kind in OPTIMIZERS}
    for kind, path in runs(lr.FULL, scale=7.0).items():  # nothing is projected: there is no scale
        oracles.assert_close(path[-1], full[kind], **HOW)
    how: Any = {"period": 3, "steps": (STEPS,)}
    turning = runs(lr.GALORE, rank=M, state="transport", **how)
    oracles.assert_close(turning["sgd"][0], full["sgd"], steps=STEPS, size=N)
    oracles.assert_close(turning["momentum"][0], full["momentum"], **HOW)
    oracles.assert_apart(turning["adam"][0], full["adam"])
    oracles.assert_apart(run(lr.GALORE, "momentum", rank=M, **how)[0], full["momentum"])
    oracles.assert_apart(run(lr.GALORE, "sgd", rank=M - 1, **how)[0], full["sgd"])


@pytest.mark.parametrize(
    ("period", "steps"),
    [(1, (0, 5)), (4, (1, 2)), (4, (4, 8)), (4, (3, 5, 9)), (50, (2, 7)), (3, (0,)), (3, (3,))],
)
def test_records_are_those_of_the_steps(period, steps):
    found = run(lr.RELORA_FROZEN, "adam", period=period, steps=steps, state="keep")
    path = algorithm1.galore_by_hand("adam", period=period)
    oracles.assert_close(found, path[list(steps)], steps=9, size=10 * N)


@pytest.mark.parametrize("method", [lr.GALORE, lr.RELORA_FROZEN])
def test_the_last_weights_are_the_last_record_and_divergence_is_reported(method):
    for found in algorithm1.trajectories(method, period=4, side="left", state="keep").values():
        oracles.assert_close(found.params, found.records[-1])
        assert int(found.diverged_at) == -1
    far = algorithm1.trajectories(method, ("sgd",), rank=M, scale=1000.0, period=5, steps=(0, 60))
    assert 0 < int(far["sgd"].diverged_at) < 60


def network_loss(network):
    X, Y, _ = map(jnp.asarray, problem())
    return 0.5 * jnp.sum((network(X) - Y) ** 2)


def trained(start, method, kind, **how: Any):
    how = {"rank": 2, "period": 3, "steps": (0, 1, 8)} | how
    return lr.low_rank_descent(method, network_loss, start, OPTIMIZERS[kind], **how).records


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_networks_take_the_same_path_and_biases_are_trained_as_they_are(kind):
    @jax.jit
    def both(start):
        rule = OPTIMIZERS[kind]
        updates, _ = rule.update(jax.grad(network_loss)(start), rule.init(start))
        paths = [
            trained(start, method, kind, state="keep", side="left")
            for method in (lr.GALORE, lr.RELORA_FROZEN)
        ]
        return *paths, optax.apply_updates(start, updates)

    one, other, expected = both(mlp(jax.random.key(0), (N, M, M)))
    oracles.assert_close(one, other, steps=8, size=100)
    # One step of a bias is a step of the optimiser itself.
    after = jax.tree.map(lambda leaf: leaf[1], one)
    oracles.assert_close(after.biases, expected.biases, size=10)
    oracles.assert_apart(after.weights, expected.weights)


@pytest.mark.parametrize("method", [lr.GALORE, lr.RELORA_FROZEN, lr.RELORA])
def test_in_layers_a_network_takes_the_same_path(method):
    @jax.jit
    def paths(start):
        return [
            trained(start, method, "adam", scale=0.5, key=KEY, network=view)
            for view in (lr.adapters.layered, lr.adapters.merged)
        ]

    one, other = paths(mlp(jax.random.key(0), (N, M, M)))
    oracles.assert_close(one, other, steps=8, size=100)


def test_vmap_is_a_loop_over_rates_and_keys():
    X, Y, W = map(jnp.asarray, problem())
    cases = jnp.array([0.05, 0.1]), jax.random.split(KEY, 2)

    def both(rate, key):
        return [
            lr.low_rank_descent(
                method,
                lambda W: algorithm1.loss(W, X, Y),
                W,
                optax.adam(rate),
                rank=RANK,
                period=4,
                key=key,
                steps=(0, 5, 9),
            ).records
            for method in (lr.RELORA_FROZEN, lr.RELORA)
        ]

    one = jax.jit(both)
    alone = [jnp.stack(found) for found in zip(*map(one, *cases), strict=True)]
    oracles.assert_close(jax.jit(jax.vmap(both))(*cases), alone, **HOW)
    for found in alone:  # and each case is one of its own
        oracles.assert_apart(found[0], found[1])


def test_both_factors_zero_never_move():
    found = run(lr.RELORA, "sgd", period=3, choose=no_factors(RANK, "left"))
    assert (found == found[:1]).all()


@pytest.mark.parametrize(
    ("method", "mistake"), [(UNMERGED, {"merge": False}), (STALE, {"restart": False})]
)
def test_mistakes_at_a_refresh_by_hand(method, mistake):
    """Up to the first refresh nothing is wrong; there the weights jump."""
    path, _ = algorithm1.adapters_by_hand("sgd", period=4, frozen=True, **mistake)
    found = run(method, "sgd", period=4, side="left")
    oracles.assert_close(found, path, **HOW)
    right = runs(lr.RELORA_FROZEN, period=4, side="left", state="reset")["sgd"]
    oracles.assert_close(found[:5], right[:5], steps=4, size=10 * N)
    oracles.assert_apart(found[5:], right[5:])


def test_decay_sees_what_is_trained():
    """W in full training, both factors in LoRA: with no gradient all shrinks by 1 - eta lambda."""
    W = jnp.asarray(problem()[2])
    P = lr.adapters.choose_projectors(W, RANK, "left")
    methods = {
        lr.FULL: {},
        lr.LORA: {"rank": RANK, "key": KEY},
        lr.GALORE: {"choose": lambda key, G: P, "period": 9},
    }

    @jax.jit
    def last(W):
        rule = optax.adamw(0.1, weight_decay=0.5)
        return [
            lr.low_rank_descent(method, lambda W: 0 * jnp.sum(W), W, rule, steps=(4,), **how).params
            for method, how in methods.items()
        ]

    full, lora, galore = last(W)
    oracles.assert_close(full, 0.95**4 * W, steps=4)
    oracles.assert_close(lora, W)  # W stays, B A is 0
    oracles.assert_close(galore, W - (1 - 0.95**4) * P.lift(P.project(W)), steps=4, size=N)


def small(method=lr.GALORE, optimizer=None, **how: Any):
    how = {"rank": 1, "steps": (1,)} | how
    rule = optimizer or optax.sgd(0.1)
    return lr.low_rank_descent(method, lambda W: jnp.sum(W**2), jnp.ones((2, 3)), rule, **how)


def transported(method, optimizer):
    return small(method, optimizer, period=1, state="transport", key=KEY)


test_low_rank_descent_refuses = oracles.refuses(
    (lambda: small(period=1, rank=0), "rank: got 0, wanted at least 1"),
    (lambda: small(lr.LORA, rank=0), "rank: got 0, wanted at least 1"),
    (lambda: small(period=1, side="up"), "side: got 'up', wanted one of left, right, smaller,"),
    (lambda: small(lr.RELORA), "period: got 0, wanted at least 1"),
    (lambda: small(lr.LORA, period=3), "period: got 3, wanted none for a method without a"),
    (lambda: small(period=1, steps=(2, 2)), r"steps: got \[2, 2\], wanted increasing integers"),
    (lambda: small(period=1, steps=(-1, 2)), r"steps: got \[-1, 2\], wanted increasing"),
    (
        lambda: small(period=1, steps=()),
        "steps: got dtype float64, wanted increasing",
    ),
    (lambda: small(period=1, state="drop"), "got 'drop', wanted one of keep, reset, transport"),
    (lambda: small(lr.RELORA, period=1), "key: got type NoneType, wanted a random key"),
    (lambda: transported(lr.GALORE, optax.adagrad(0.1)), "wanted one that keeps it as mu or"),
    (lambda: transported(lr.RELORA, optax.sgd(0.1, 0.9)), "moments of maps that are trained"),
)
