"""optax.contrib.galore against loops in NumPy, and what a user of it meets."""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.engine.judging import residuals
from lrdyn.engine.produce import claims_job, own_settings
from lrdyn.theorems.theorem4 import THEOREM4, optax_programs
from lrdyn.theorems.theorem4 import optax_galore as og
from tests import oracles

SETTINGS = {
    "rows": 7, "cols": 5, "rank": 2, "period": 4, "optimizer": "adam", "learning_rate": 0.02,
    "steps": 14,
}  # fmt: skip


def case_of(seed=0, **changes):
    return og.make_case(jax.random.key(seed), **(SETTINGS | changes))


def trained(case, **options):
    return og._train(case, **options)[0]


# An oracle -----------------------------------------------------------------------------------


def slopes(weights, X, Y):
    """Gradients of 1/2 ||W_2 (W_1 X + b 1^T) - Y||^2 by hand."""
    hidden = weights["first"] @ X + weights["bias"][:, None]
    error = weights["second"] @ hidden - Y
    back = weights["second"].T @ error
    return {"first": back @ X.T, "second": error @ hidden.T, "bias": back.sum(1)}


def galore(case, *, smaller=False, flip=False):
    """GaLore by the book, with SVDs in double precision: weights at the recorded steps.

    P has positive largest entries; with ``flip`` the signs alternate from one refresh to the next.
    """
    weights, X, Y = oracles.double((case.weights, case.inputs, case.outputs))
    eta, seen, moments = float(case.learning_rate), [], {}
    for t in range(case.steps[-1] + 1):
        if t in case.steps:
            seen.append(np.concatenate([weights[name].ravel() for name in sorted(weights)]))
        gradient = slopes(weights, X, Y)
        for name, G in gradient.items():
            if G.ndim == 1:
                lift, R = (lambda U: U), G
            else:
                if t % case.period == 0:
                    U, _, Vt = np.linalg.svd(G)
                    tall = G.shape[0] >= G.shape[1]
                    left = tall != smaller if G.shape[0] != G.shape[1] else True
                    P = (U if left else Vt.T)[:, : case.rank]
                    P = P * np.sign(P[np.abs(P).argmax(0), range(case.rank)])
                    if flip and t // case.period % 2:
                        P = -P
                    moments[name, "P"] = P, left
                P, left = moments[name, "P"]
                R = P.T @ G if left else G @ P
                lift = (lambda U, P=P: P @ U) if left else (lambda U, P=P: U @ P.T)
            weights[name] = weights[name] - eta * lift(updated(case.optimizer, moments, name, R, t))
    return np.stack(seen)


def updated(optimizer, moments, name, R, t):
    """What the optimiser makes of a gradient, step size aside."""
    m, v = moments.get((name, "m"), 0.0), moments.get((name, "v"), 0.0)
    if optimizer == "sgd":
        return R
    if optimizer == "momentum":
        moments[name, "m"] = 0.9 * m + R
        return moments[name, "m"]
    m, v = 0.9 * m + 0.1 * R, 0.999 * v + 0.001 * R * R
    moments[name, "m"], moments[name, "v"] = m, v
    return m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)


def as_float32(path):
    """An SVD in float32 leaves the digits of float32."""
    return np.asarray(path, np.float32)


@pytest.mark.parametrize("rows", [5, 7])
def test_without_state_optax_is_galore_by_the_book(rows):
    case = case_of(rows=rows, optimizer="sgd")
    path, steps = trained(case), case.steps[-1]
    assert len(path) == len(case.steps)
    oracles.assert_close(as_float32(path), galore(case), steps=steps, size=7)
    if rows != 5:
        oracles.assert_apart(path, galore(case, smaller=True))
    later = trained(dataclasses.replace(case, period=5))
    oracles.assert_apart(path, later)
    oracles.assert_apart(path, trained(case, scale=0.5))


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_with_signs_of_optax_algorithm_1_is_galore_by_the_book(optimizer):
    """Up to the first refresh no sign matters, and after it only the signs do."""
    case = case_of(optimizer=optimizer)
    own = og.galore_path(case, lambda G: lr.adapters.choose_projectors(G, 2, "larger"))
    oracles.assert_close(own, galore(case), steps=100, size=7)
    first = dataclasses.replace(case, steps=tuple(range(case.period + 1)))
    # A float32 projector whose singular values are apart; Adam divides by small entries.
    found = oracles.residual(trained(first), galore(first))
    assert found < np.sqrt(np.finfo(np.float32).eps)


@pytest.mark.parametrize(("optimizer", "matters"), [("sgd", 0), ("momentum", 1), ("adam", 1)])
def test_signs_matter_where_a_state_is_kept(optimizer, matters):
    case = case_of(optimizer=optimizer)
    compare = oracles.assert_apart if matters else oracles.assert_close
    compare(jnp.asarray(galore(case)), galore(case, flip=True))


# Projectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5)])
def test_the_projector_is_that_in_the_state_of_optax(shape, dtype):
    G = jax.random.normal(jax.random.key(3), shape)
    rule = optax.contrib.galore(0.1, rank=2)
    _, state = rule.update(G, rule.init(G), G)
    (own, *_) = cast(tuple, state)
    found = og.single_precision_projector(G, 2, "larger")
    assert found.basis.dtype == dtype
    np.testing.assert_array_equal(found.basis, own.projector)
    precise = og.aligned(lr.adapters.top_singular_projector(G, 2, "larger"), found)
    apart = np.float32(oracles.residual(precise.basis, found.basis))
    # The gap of this matrix is as wide as its values.
    assert apart < 100 * np.finfo(np.float32).eps


# What a user meets ---------------------------------------------------------------------------


def test_a_state_from_vmap_init_gives_the_same_numbers():
    cases = [case_of(seed) for seed in (0, 1)]
    rule = og.rule_of(cases[0])
    weights, X, Y = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
        for parts in zip(*[(c.weights, c.inputs, c.outputs) for c in cases], strict=True)
    )

    @jax.jit
    def step(weights, states):
        slopes = jax.vmap(jax.grad(og.training_loss))(weights, X, Y)
        updates, states = jax.vmap(rule.update)(slopes, states, weights)
        return optax.apply_updates(weights, updates), states

    states = jax.vmap(rule.init)(weights)
    assert cast(tuple, states)[0].count.shape == (2,)
    for _ in range(SETTINGS["steps"]):
        weights, states = step(weights, states)
    for index, case in enumerate(cases):
        found = og.flat(jax.tree.map(lambda W, index=index: W[index], weights))
        # Round-off may reach the digits that the float32 of an SVD cuts, hence float32.
        oracles.assert_close(as_float32(found), trained(case)[-1], steps=SETTINGS["steps"], size=7)


def test_svds_are_counted_in_loops_and_in_branches():
    def run(x):
        def body(_, x):
            return jax.lax.cond(x[0, 0] > 0, lambda x: jnp.linalg.svd(x)[0], lambda x: x, x)

        return jax.lax.fori_loop(0, 3, body, jnp.linalg.svd(x)[0])

    assert optax_programs.svds(run, jnp.ones((2, 2))) == (1, 1)
    assert optax_programs.svds(jnp.linalg.qr, jnp.ones((2, 2))) == (0, 0)


def test_the_scale_is_that_of_projected_parameters_only():
    case = case_of()
    gradient = jax.grad(og.training_loss)(case.weights, case.inputs, case.outputs)
    whole, half = (
        rule.update(gradient, rule.init(case.weights), case.weights)[0]
        for rule in (og.rule_of(case), og.rule_of(case, scale=0.5))
    )
    expected = {n: U if U.ndim == 1 else U / 2 for n, U in cast(dict, whole).items()}
    oracles.assert_close(half, expected)


def test_a_base_optimizer_that_needs_the_parameters_fails():
    W = jnp.ones((4, 3))
    rule = optax.contrib.galore(0.1, rank=2, base_optimizer=optax.adamw(1.0))
    with pytest.raises(ValueError, match="params"):
        rule.update(W, rule.init(W), W)


def test_the_decay_of_the_wrapper_is_decoupled():
    """Without a gradient W shrinks by the factor 1 - eta lambda a step."""
    W = jax.random.normal(jax.random.key(0), (4, 3))
    rule = optax.contrib.galore(0.1, rank=2, weight_decay=0.5)
    run = lr.simulate(lambda W: 0.0 * jnp.sum(W), W, rule, np.array([5]))
    oracles.assert_close(run.params, (1 - 0.1 * 0.5) ** 5 * np.asarray(W), steps=5, size=4)


# The statement -------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_all_claims_hold_for_every_optimizer(optimizer, dtype):
    # Small steps, or the run's own response leaves float32 without two digits.
    settings = {flag.name: flag.default("quick") for flag in THEOREM4.flags}
    changed = SETTINGS | {"optimizer": optimizer, "learning_rate": 0.003}
    settings |= {n: value if n == "steps" else (value,) for n, value in changed.items()}
    found = {}
    for statement in (og.OPTAX, optax_programs.OPTAX_PROGRAMS):
        job = claims_job(THEOREM4, statement, settings, (0,), statement.id, dtype)
        found |= job.run()
        for claim in statement.claims:
            leg = residuals(claim, statement, found[statement.id], dtype)
            assert leg.reason.values.item() == ""
            assert leg.residual <= leg.tolerance, claim.id
    assert found["optax"]["diverged_at"] == -1
    # It is the projected side and not chance: P and moments of a tall and of a wide layer.
    shapes = found["optax_programs"]["optax_shapes_measured"].squeeze()
    assert shapes.values.tolist() == [[7, 2, 2, 5], [7, 2, 5, 2]]


def test_the_condition_is_that_of_the_projectors():
    """A gap that nearly closes is seen: then float32 may choose another direction."""
    G = jnp.diag(jnp.array([1.0, 0.5 + 1e-6, 0.5]))
    case = case_of(rows=3, cols=3, optimizer="sgd")
    wide = float(og.predict(case)["condition"])
    outputs = -jnp.diag(jnp.diagonal(G))
    near = dataclasses.replace(
        case, inputs=jnp.eye(3), outputs=outputs,
        weights={"first": 0 * G, "second": jnp.eye(3), "bias": jnp.zeros(3)},
    )  # fmt: skip
    assert float(og.predict(near)["condition"]) > 100 * wide


def test_adam_alone_is_run_unless_another_is_asked_for():
    settings = {flag.name: (1, 2) if flag.swept else 1 for flag in THEOREM4.flags}
    settings |= {"optimizer": ("sgd", "adam")}
    found = own_settings(THEOREM4, og.OPTAX, settings)
    assert (found["optimizer"], found["side"], found["rows"]) == (("adam",), (1,), (1, 2))
    assert og.OPTAX.narrow(settings | {"optimizer": ("sgd",)})["optimizer"] == ("sgd",)
