"""optax.contrib.galore against loops in NumPy, and what a user of it meets."""

import dataclasses
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.engine.jobs import own_settings
from lrdyn.theorem4 import optax_galore_claims as og
from lrdyn.theorem4 import optax_programs_claims as optax_programs
from lrdyn.theorem4.statement import THEOREM4
from tests import oracles
from tests.algorithm1 import vectors

SETTINGS = {
    "rows": 7, "cols": 5, "rank": 2, "period": 4, "optimizer": "adam", "learning_rate": 0.02,
    "steps": 14,
}  # fmt: skip
HOW = {"steps": SETTINGS["steps"], "size": SETTINGS["rows"]}


def case_of(seed=0, **changes):
    return og.make_case(jax.random.key(seed), **(SETTINGS | changes))


@partial(jax.jit, static_argnames="scale")
def trained(case, scale=1.0):
    return og._train(case, scale=scale)[0]


def slopes(weights, X, Y):
    """Gradients of 1/2 ||W_2 (W_1 X + b 1^T) - Y||^2 by hand."""
    hidden = weights["first"] @ X + weights["bias"][:, None]
    error = weights["second"] @ hidden - Y
    back = weights["second"].T @ error
    return {"first": back @ X.T, "second": error @ hidden.T, "bias": back.sum(1)}


def galore(case, *, smaller=False):
    """GaLore by the book, with SVDs in double precision: weights at the recorded steps."""
    weights, X, Y = oracles.double((case.weights, case.inputs, case.outputs))
    rules = {name: oracles.Optimizer(case.optimizer, float(case.learning_rate)) for name in weights}
    seen, maps = [], {"bias": np.ones((1, 1))}
    for t in range(case.steps[-1] + 1):
        if t in case.steps:
            seen.append(np.concatenate([weights[name].ravel() for name in sorted(weights)]))
        for name, gradient in slopes(weights, X, Y).items():
            rows, cols = gradient.shape if gradient.ndim == 2 else (1, 1)
            left = rows == cols or (rows > cols) != smaller
            G = np.atleast_2d(gradient if left else gradient.T)
            if t % case.period == 0 and gradient.ndim == 2:
                maps[name] = vectors(G, case.rank)
            U = maps[name] @ rules[name].update(maps[name].T @ G)
            weights[name] = weights[name] + (U if left else U.T).reshape(gradient.shape)
    return np.stack(seen)


@pytest.mark.parametrize("rows", [5, 7])
def test_without_state_optax_is_galore_by_the_book(rows):
    case = case_of(rows=rows, optimizer="sgd")
    path = trained(case)
    assert len(path) == len(case.steps)
    # An SVD in float32 leaves the digits of float32.
    oracles.assert_close(np.float32(path), galore(case), **HOW)
    if rows != 5:
        oracles.assert_apart(path, galore(case, smaller=True))
        oracles.assert_apart(path, trained(dataclasses.replace(case, period=5)))
        oracles.assert_apart(path, trained(case, scale=0.5))


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_with_signs_of_optax_algorithm_1_is_galore_by_the_book(optimizer):
    """Up to the first refresh no sign matters, and after it only the signs do."""
    case = case_of(optimizer=optimizer)

    @jax.jit
    def path(case):
        return og.galore_path(case, lambda G: lr.adapters.choose_projectors(G, 2, "larger"))

    oracles.assert_close(path(case), galore(case), steps=100, size=7)
    until = case.steps.index(case.period) + 1
    # A float32 projector whose singular values are apart; Adam divides by small entries.
    found = oracles.residual(trained(case)[:until], galore(case)[:until])
    assert found < np.sqrt(np.finfo(np.float32).eps)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_the_projector_is_that_in_the_state_of_optax(shape, dtype):
    G = jax.random.normal(jax.random.key(3), shape)
    rule = optax.contrib.galore(0.1, rank=2)

    @jax.jit
    def projectors(G):
        state: Any = rule.update(G, rule.init(G), G)[1]
        found = og.single_precision_projector(G, 2, "larger")
        precise = og.aligned(lr.adapters.top_singular_projector(G, 2, "larger"), found)
        return state[0].projector, found.basis, precise.basis

    theirs, found, precise = projectors(G)
    assert found.dtype == dtype
    chex.assert_trees_all_equal(found, theirs)
    # The gap of this matrix is as wide as its values.
    assert np.float32(oracles.residual(precise, found)) < 100 * np.finfo(np.float32).eps


def test_a_state_from_vmap_init_gives_the_same_numbers():
    cases = [case_of(seed) for seed in (0, 1)]
    rule = og.rule_of(cases[0])
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)

    @jax.jit
    def last(weights, states):
        def step(_, both):
            weights, states = both
            slopes = jax.vmap(jax.grad(og.training_loss))(weights, batch.inputs, batch.outputs)
            updates, states = jax.vmap(rule.update)(slopes, states, weights)
            return optax.apply_updates(weights, updates), states

        return jax.lax.fori_loop(0, SETTINGS["steps"], step, (weights, states))[0]

    states: Any = jax.vmap(rule.init)(batch.weights)
    assert states[0].count.shape == (2,)
    found = jax.vmap(og.flat)(last(batch.weights, states))
    # Round-off may reach the digits that the float32 of an SVD cuts, hence float32.
    expected = np.stack([trained(case)[-1] for case in cases])
    oracles.assert_close(np.float32(found), expected, **HOW)


def test_svds_are_counted_in_loops_and_in_branches():
    def run(x):
        def body(_, x):
            return jax.lax.cond(x[0, 0] > 0, lambda x: jnp.linalg.svd(x)[0], lambda x: x, x)

        return jax.lax.fori_loop(0, 3, body, jnp.linalg.svd(x)[0])

    assert optax_programs.svds(run, jnp.ones((2, 2))) == (1, 1)
    assert optax_programs.svds(jnp.linalg.qr, jnp.ones((2, 2))) == (0, 0)


def test_the_scale_is_that_of_projected_parameters_only():
    @jax.jit
    def updates(case):
        gradient = jax.grad(og.training_loss)(case.weights, case.inputs, case.outputs)
        rules = og.rule_of(case), og.rule_of(case, scale=0.5)
        return [rule.update(gradient, rule.init(case.weights), case.weights)[0] for rule in rules]

    whole, half = updates(case_of())
    oracles.assert_close(half, {n: U if U.ndim == 1 else U / 2 for n, U in whole.items()})


def test_a_base_optimizer_that_needs_the_parameters_fails():
    W = jnp.ones((4, 3))
    rule = optax.contrib.galore(0.1, rank=2, base_optimizer=optax.adamw(1.0))
    with pytest.raises(ValueError, match="params"):
        jax.eval_shape(rule.update, W, jax.eval_shape(rule.init, W), W)


def test_the_decay_of_the_wrapper_is_decoupled():
    """Without a gradient W shrinks by the factor 1 - eta lambda a step."""
    W = jax.random.normal(jax.random.key(0), (4, 3))
    rule = optax.contrib.galore(0.1, rank=2, weight_decay=0.5)
    run = lr.simulate(lambda W: 0.0 * jnp.sum(W), W, rule, np.array([5]))
    oracles.assert_close(run.params, (1 - 0.1 * 0.5) ** 5 * np.asarray(W), steps=5, size=4)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_all_claims_hold_for_every_optimizer(optimizer, dtype):
    # Small steps, or the run's own response leaves float32 without two digits.
    changed, found = SETTINGS | {"optimizer": optimizer, "learning_rate": 0.003}, {}
    for scenario in (og.OPTAX, optax_programs.OPTAX_PROGRAMS):
        found[scenario.id], legs = oracles.judged(THEOREM4, scenario, changed, dtype=dtype)
        for name, leg in legs.items():
            assert leg.reason.values.item() == ""
            assert leg.residual <= leg.tolerance, name
    assert found["optax"]["diverged_at"] == -1
    # It is the projected side and not chance: P and moments of a tall and of a wide layer.
    shapes = found["optax_programs"]["optax_shapes_measured"].squeeze()
    assert shapes.values.tolist() == [[7, 2, 2, 5], [7, 2, 5, 2]]


def test_the_condition_is_that_of_the_projectors():
    """A gap that nearly closes is seen: then float32 may choose another direction."""
    G, case = jnp.diag(jnp.array([1.0, 0.5 + 1e-6, 0.5])), case_of(rows=3, cols=3, optimizer="sgd")
    near = dataclasses.replace(
        case, inputs=jnp.eye(3), outputs=-G,
        weights={"first": 0 * G, "second": jnp.eye(3), "bias": jnp.zeros(3)},
    )  # fmt: skip
    condition = jax.jit(lambda case: og.predict(case)["condition"])
    assert float(condition(near)) > 100 * float(condition(case))


def test_the_two_predictions_differ_by_the_float32_of_an_svd():
    """Else one would stand for the other: the claim about the precise one allows for as much."""
    found = jax.jit(og.predict)(case_of())
    apart = oracles.residual(found["optax_precise"], found["optax_same"])
    assert 1e-10 < apart < 1e-5


def test_adam_alone_is_run_unless_another_is_asked_for():
    settings = {flag.name: (1, 2) if flag.swept else 1 for flag in THEOREM4.flags}
    settings |= {"optimizer": ("sgd", "adam")}
    found = own_settings(THEOREM4, og.OPTAX, settings)
    assert (found["optimizer"], found["side"], found["rows"]) == (("adam",), (1,), (1, 2))
    assert og.OPTAX.narrow(settings | {"optimizer": ("sgd",)})["optimizer"] == ("sgd",)
