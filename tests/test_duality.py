"""Duality for any linear map, against loops in NumPy."""

import dataclasses
import functools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lrdyn as lr
from lrdyn.theorem4 import duality_claims as duality
from lrdyn.theorem4.duality_claims import (
    DUALITY,
    EPSILON,
    LINEAR,
    OTHERS,
    RATE,
    ROOTS,
    SCALE,
    DualityMeasured,
    DualityTheory,
)
from lrdyn.theorem4.statement import THEOREM4
from lrdyn.verification.stating.statement import Outcome
from tests.oracles import Optimizer, assert_apart, assert_close, double, judged

FLAGS = {"rows": 8, "cols": 6, "rank": 2}
METHODS = (lr.RELORA_FROZEN, lr.GALORE)
RATES = {"sgd": 0.1, "momentum": 0.03, "adam": RATE, "rmsprop": 0.01, "adagrad": 0.05}


@functools.cache
def make(rank, steps):
    return jax.jit(partial(DUALITY.case, rows=8, cols=6, rank=rank, steps=steps))


def case_of(seed=0, rank=2, steps=60, **changes):
    return dataclasses.replace(make(rank, steps)(jax.random.key(seed)), **changes)


both_sides = jax.jit(lambda case: (DUALITY.predict(case), DUALITY.measure(case)))


def paths(case, *settings):
    """Adapter, projected descent."""
    run = jax.jit(lambda case: [duality.paths(method, case, list(settings)) for method in METHODS])
    return run(case)


def slope(case, theta):
    """Gradient of the mean of sqrt(1 + (x.theta - y)^2)."""
    inputs, outputs = double((case.inputs, case.outputs))
    total = np.zeros_like(theta)
    for x, y in zip(inputs, outputs, strict=True):
        distance = x @ theta - y
        total += distance / np.sqrt(1 + distance**2) * x
    return total / len(outputs)


def projected(case, rule, alpha, eps):
    """theta <- theta + alpha S^T opt(S g)."""
    S, theta = double((case.matrix, case.start))
    update, path = Optimizer(rule, RATES[rule], eps).update, [theta]
    for _ in range(case.steps[-1]):
        theta = theta + alpha * S.T @ update(S @ slope(case, theta))
        path.append(theta)
    return np.stack(path)[list(case.steps)]


def adapter(case, rule, scale, eps):
    """theta_0 + s S^T Lambda, with the gradient in Lambda by the chain rule."""
    S, start = double((case.matrix, case.start))
    held, update = np.zeros(len(S)), Optimizer(rule, RATES[rule], eps).update
    path = [start]
    for _ in range(case.steps[-1]):
        held = held + update(scale * S @ slope(case, start + scale * S.T @ held))
        path.append(start + scale * S.T @ held)
    return np.stack(path)[list(case.steps)]


def test_both_sides_are_the_loops_in_numpy(dtype):
    case = case_of()
    predicted, measured = both_sides(case)
    gram = double(case.matrix) @ double(case.matrix).T
    assert_close(predicted.away_from_isometry, np.linalg.norm(gram - np.eye(2)), size=8)
    parts = dict.fromkeys(LINEAR, "scale_linear") | {
        "adam": "scale_adam",
        "rmsprop": "scale_roots",
        "adagrad": "scale_roots",
    }
    where = {"sgd": 0, "momentum": 1, "adam": 0, "rmsprop": 0, "adagrad": 1}
    close = partial(assert_close, steps=60, size=8)
    for index, name in enumerate([*LINEAR, *ROOTS]):
        close(predicted.duality[:, index], adapter(case, name, 1.0, EPSILON))
        close(measured.duality[:, index], projected(case, name, 1.0, EPSILON))
        found, expected = (
            getattr(side, parts[name])[:, where[name]] for side in (measured, predicted)
        )
        close(expected, adapter(case, name, SCALE, EPSILON))
        alpha, eps = (SCALE**2, EPSILON) if name in LINEAR else (SCALE, EPSILON / SCALE)
        close(found, projected(case, name, alpha, eps))


def test_the_claims_hold_for_many_draws(dtype):
    found, legs = judged(THEOREM4, DUALITY, FLAGS, range(40), dtype)
    for name, leg in legs.items():
        assert leg.sizes["seed"] == 40
        assert np.all(leg.residual <= leg.tolerance), name
    assert np.all(found["met_gradients_only"])


def test_steps_of_equal_eps_are_rounded_like_the_parameters():
    """30 roundings of the largest parameter are seen, and a thirtieth of one is not."""
    draw = np.random.default_rng(0)
    gaps, start = jnp.asarray(draw.normal(size=(3, 1, 8))), jnp.asarray(4.0)
    (claim,) = (claim for claim in DUALITY.claims if claim.id == "same_eps")
    for off in (30.0, 1 / 30):
        theory = DualityTheory(same_eps=gaps)
        run = DualityMeasured(same_eps=gaps + off * 1e-14 * start, scale=start)
        outcome = Outcome({}, theory, run, {}, np.dtype("float64"), size=8, steps=60)
        form: Any = claim.form
        np.testing.assert_allclose(form(outcome).residual(), off * 1e-14, rtol=0.1, atol=1e-16)
    case = case_of()
    run = jax.jit(lambda case: DUALITY.measure(case).scale)(case)
    assert float(run) == float(jnp.max(jnp.abs(case.start)))


def test_the_map_of_the_claim_is_not_orthonormal():
    (claim,) = (claim for claim in DUALITY.claims if claim.id == "duality")
    for size, reason in ((0.009, "orthonormal map"), (0.011, "")):
        theory = DualityTheory(away_from_isometry=jnp.asarray(size))
        run = DualityMeasured()
        outcome = Outcome({}, theory, run, {}, np.dtype("float64"), size=8, steps=60)
        assert claim.undecided
        assert claim.undecided(outcome) == reason
    for seed in range(5):
        S = double(case_of(seed).matrix)
        assert np.linalg.cond(S) > 1.1
        assert np.linalg.norm(S @ S.T - np.eye(len(S))) > 10 * duality.ISOMETRY


@pytest.mark.parametrize("rank", [1, 12])
def test_the_map_may_be_any_matrix(rank):
    one, two = paths(case_of(1, rank, steps=30), (1.0, 1.0))
    assert_close(two, one, steps=30, size=12)


MORE = {
    "nadam": lambda eps: optax.nadam(RATE, eps=eps),
    "amsgrad": lambda eps: optax.amsgrad(RATE, eps=eps),
    "adabelief": lambda eps: optax.adabelief(RATE, eps=eps),
    "clipped": lambda eps: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.3)),
    "lion": lambda eps: optax.lion(RATE / 10, weight_decay=0.0),
}


def test_other_rules_that_look_at_gradients_only(monkeypatch):
    """Lion, too, as long as no rounding decides a sign."""
    monkeypatch.setattr(duality, "RULES", MORE)
    case = case_of(rules=tuple(MORE))
    assert DUALITY.hypotheses["gradients_only"](case)
    one, two = paths(case, (1.0, 1.0))
    for rule in range(len(MORE)):
        assert_close(two[:, :, rule], one[:, :, rule], steps=60, size=8)


@pytest.mark.parametrize("rule", OTHERS)
def test_rules_that_look_at_parameters_are_seen(rule):
    assert not DUALITY.hypotheses["gradients_only"](case_of(rules=(rule,)))


def test_decay_of_the_adapter_pulls_to_the_start_and_that_of_weights_to_zero():
    """What decoupled decay does to each: without a gradient they go to different places."""
    case = case_of(rules=("adamw",))
    one, two = paths(dataclasses.replace(case, inputs=0 * case.inputs), (1.0, 1.0))
    S, theta = double((case.matrix, case.start))
    for _ in range(60):
        theta = theta - RATE * 0.1 * S.T @ (S @ theta)
    assert_close(one[0, -1, 0], case.start, steps=60)
    assert_close(two[0, -1, 0], theta, steps=60, size=8)


def test_the_gap_of_equal_eps_is_that_of_the_loops_and_shrinks_with_eps():
    case = case_of(3)
    gaps = np.asarray(jax.jit(duality.gap_of_equal_eps)(case))[:, 0]
    for part, gap in zip(duality.PARTS, gaps, strict=True):
        one, two = (path(case, "adam", SCALE, EPSILON * part)[1] for path in (projected, adapter))
        assert_close(gap, one - two, scale=1.0)
    sizes = np.linalg.norm(gaps, axis=1)
    # From a tenth to a hundredth of eps: in proportion, up to eps over the least gradient.
    S, start = double((case.matrix, case.start))
    least = np.abs(S @ slope(case, start)).min()
    assert abs(sizes[1] / sizes[2] / 10 - 1) <= 2 * EPSILON * duality.PARTS[1] / least
    assert sizes[2] > 0


def test_equal_eps_takes_adam_to_another_path():
    one, two = paths(case_of(rules=("adam",)), (SCALE, 1.0), (SCALE, 0.01))
    for path, other in zip(two, one, strict=True):
        assert_apart(path, other)
