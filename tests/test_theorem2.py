"""Theorem 2 and its Corollary 1 as commands: what they judge, what they leave out, and why."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from lrdyn.corollary1 import statement as corollary1
from lrdyn.corollary1.statement import COMPRESSION, COROLLARY1, CompressionMeasured
from lrdyn.theorem2 import classifier_claims as classification
from lrdyn.theorem2 import collapse
from lrdyn.theorem2 import setting as deep_factorization
from lrdyn.theorem2 import statement as theorem2
from lrdyn.theorem2.classifier_claims import CLASSIFICATION, ClassificationMeasured
from lrdyn.theorem2.statement import (
    FACTORIZATION,
    THEOREM2,
    FactorizationMeasured,
    FactorizationTheory,
)
from lrdyn.verification.judging.judging import forms_of, row_of
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.statement import Outcome
from tests import oracles
from tests.jobs import claims_job
from tests.oracles import assert_close, double
from tests.runs import finished

FLAGS = {
    "init_scale": 0.8,
    "init_spread": 2.0,
    "weight_decay": 0.03,
    "decay_spread": 3.0,
    "learning_rate": 0.1,
    "target_scale": 1.0,
    "steps": 60,
    "dim": 7,
    "depth": 3,
    "rank": 2,
}
HOW = {"steps": 60, "size": 14}
predict, measure = jax.jit(theorem2.predict), jax.jit(theorem2.measure)


def both(scenario):
    return jax.jit(lambda case: (scenario.predict(case), scenario.measure(case)))


classes, compressed = both(CLASSIFICATION), both(COMPRESSION)


def one_case(**flags):
    return deep_factorization.make_case(jax.random.key(0), **FLAGS | flags)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("many", range(1, 8))
def test_a_target_has_rank_r_if_no_value_behind_the_first_r_is_more_than_rounding(many, scale):
    """Not only the last one: at r = 2 of 7 a rank of 3 to 6 breaks the hypothesis as 7 does."""
    case = one_case()
    left, values, right = np.linalg.svd(np.random.default_rng(many).normal(size=(7, 7)))
    values = scale * values[0] * np.where(np.arange(7) < many, np.linspace(1, 0.1, 7), 0)
    target = dataclasses.replace(case, target=jnp.asarray((left * values) @ right))
    met = deep_factorization.HYPOTHESES["rank_at_most_r"](target)
    assert bool(met) is (many <= case.rank)


@pytest.mark.parametrize(("move", "whitened"), [(0.0, True), (1e-9, False)])
def test_inputs_are_whitened_in_every_entry(move, whitened):
    case = classification.make_classifier(jax.random.key(0), **FLAGS)
    moved = dataclasses.replace(case, inputs=case.inputs.at[0, 0].add(move))
    assert bool(classification._is_whitened(moved)) is whitened


@pytest.mark.parametrize(("noise", "exact"), [(None, True), (0.0, True), (1e-9, False)])
def test_a_gradient_without_noise_is_exact(noise, exact):
    case = dataclasses.replace(one_case(), noise=None if noise is None else jnp.asarray(noise))
    assert bool(deep_factorization.HYPOTHESES["exact_gradient"](case)) is exact


@pytest.mark.parametrize("target_scale", [1.0, 7.5])
def test_the_target_is_as_large_as_its_flag_says(target_scale):
    values = np.linalg.svd(one_case(target_scale=target_scale).target, compute_uv=False)
    # From the largest down to its half, the rest 0.
    assert_close(values, target_scale * np.array([1, 0.5, 0, 0, 0, 0, 0]), size=7)
    given = np.arange(49.0).reshape(7, 7)
    assert_close(one_case(target_scale=target_scale, target=given).target, target_scale * given)


@pytest.mark.parametrize("condition", [1.0, 2.0, 100.0, 1e12])
def test_the_target_has_the_condition_of_its_flag(condition):
    values = np.linalg.svd(one_case(rank=3, target_condition=condition).target, compute_uv=False)
    middle = 0.75 ** np.log2(condition)
    assert_close(values, [1, middle, 1 / condition, 0, 0, 0, 0], size=7)


def test_a_condition_of_two_changes_no_bit_of_a_target(dtype):
    @jax.jit
    def values(scale, condition):
        return deep_factorization.target_values(5, scale, condition)

    for scale in (0.3, 1.0, 7.1):
        even = jax.jit(lambda scale: scale * jnp.linspace(1.0, 0.5, 5))(scale)
        assert np.array_equal(values(scale, 2.0), even)


def outcome(predicted, measured):
    predicted, measured = (
        fields.Read(fields.arrays_in(side), KeyError)
        for side in jax.device_get((predicted, measured))
    )
    return Outcome({}, predicted, measured, {}, np.dtype(float), size=7, steps=60)


def quick(theorem, scenario, measured, **flags):
    """What theory predicts at settings of the quick preset."""
    alone = dataclasses.replace(scenario, measure=lambda case: measured(), claims=(), controls=())
    settings = {flag.name: flag.default("quick") for flag in theorem.flags} | flags
    job = claims_job(theorem, alone, settings, (0,), "/", "float64", optimize=False)
    return job.run()["/"]


# What is judged --------------------------------------------------------------------------------

JUDGED = {
    "theorem2": {
        "off_block": 16,
        "bulk": 16,
        "rho": 16,
        "reduced": 16,
        "spectra": 16,
        "loss": 16,
        "mean_loss": 16,
        "class_off_block": 16,
        "class_rho": 16,
        "class_product": 16,
        "collapse": 2,
        "collapse_interval": 2,
        "collapse_loss": 2,
    },
    "corollary1": {
        "error_identity": 16,
        "error_bound": 16,
        "bound_attained": 16,
        "parameters": 16,
    },
}


@pytest.mark.parametrize("name", JUDGED)
def test_every_case_is_judged_in_float64_and_some_in_float32(name, tmp_path_factory):
    entries = finished(name, tmp_path_factory.getbasetemp()).verdict["claims"]
    claims = {entry["id"]: entry["judged"] for entry in entries if entry["kind"] != "control"}
    for claim, count in JUDGED[name].items():
        judged = claims.pop(claim)
        assert judged["float64"] == {"drawn": count, "judged": count, "left_out": {}}, claim
        # After a thousand steps amplified rounding of float32 can hide what is worth seeing.
        assert judged["float32"]["drawn"] == count, claim
        assert judged["float32"]["judged"] > 0, claim
        assert set(judged["float32"]["left_out"]) <= {"ill-conditioned"}, claim
    assert not claims


def test_theory_excuses_nothing_at_the_quick_preset():
    """A wrong prediction that diverges, or that is chaotic, would leave cases out."""
    results = quick(THEOREM2, FACTORIZATION, FactorizationMeasured, dim=(7,))
    theory = fields.of_theory(results, FactorizationTheory)
    diverges = theory(lambda theory: theory.diverges)
    assert diverges.size == 32
    assert (diverges == -1).all()
    assert float(theory(lambda theory: theory.condition).max()) < 5


@pytest.mark.parametrize(
    ("theorem", "scenario", "measured"),
    [
        (THEOREM2, CLASSIFICATION, ClassificationMeasured),
        (COROLLARY1, COMPRESSION, CompressionMeasured),
    ],
)
def test_a_stable_run_grants_little(theorem, scenario, measured):
    """Far below the edge of stability errors are amplified by a few at most."""
    flags = {"dim": (7,), "depth": (3,), "rank": (2,), "steps": 20}
    results = quick(theorem, scenario, measured, **flags)
    names = [str(name) for name in results if str(name).startswith("condition")]
    assert names
    for name in names:
        assert float(results[name].max()) < 10, name


@pytest.mark.parametrize("name", ["rho", "reduced", "off_block"])
def test_weights_are_compared_on_the_scale_of_the_largest_singular_value(name):
    values, rho = jnp.array([[[3.0, 0.5], [2.0, 1.0]]]), jnp.ones((1, 2))
    blocks = jnp.ones((1, 2, 2, 2))
    steps = np.arange(len(rho))
    theory = FactorizationTheory(rho=rho, reduced=blocks, last_compared=steps[-1])
    run = FactorizationMeasured(rho, blocks, values, off_block=rho, step=jnp.asarray(steps))
    outcome = Outcome({}, theory, run, {}, np.dtype("float64"), size=4, steps=1)
    (claim,) = (claim for claim in FACTORIZATION.claims if claim.id == name)
    compared = forms_of(claim, FACTORIZATION, outcome)
    assert [form.threshold(1e-12) for form in compared] == pytest.approx([3e-12] * len(compared))


def test_small_scales_are_judged_or_said_to_be_too_small():
    """In float32: nothing is squared into underflow, and a product of 1e-42 has no digits."""
    flags = {
        "dim": 5,
        "rank": 1,
        "depth": 7,
        "init_scale": [1e-3, 1e-6],
        "init_spread": 1.0,
        "weight_decay": [0.0, 0.2],
        "decay_spread": 1.0,
        "steps": 100,
    }
    with jax.enable_x64(False):
        _, legs = oracles.judged(COROLLARY1, COMPRESSION, flags, dtype="float32")
    for name in ("error_identity", "error_bound", "bound_attained"):
        leg = legs[name].squeeze()
        judged = leg.sel(init_scale=1e-3)
        assert (leg.reason.sel(init_scale=1e-6) == "underflow").all(), name
        assert (judged.reason == "").all(), name
        assert (judged.residual <= judged.tolerance).all(), name


def test_a_run_that_diverges_by_itself_is_not_excused():
    """Decay times 10,000 in the run on trial: theory's own run does not diverge."""
    case = one_case(learning_rate=0.3)
    wrong = measure(dataclasses.replace(case, weight_decay=1e4 * case.weight_decay))
    assert int(wrong.diverged_at) >= 0
    sides = outcome(predict(case), wrong)
    for claim in FACTORIZATION.claims[2:]:
        row = row_of(claim, FACTORIZATION, sides)
        assert row.reason == "", claim.id
        assert not row.residual <= row.tolerance, claim.id


def test_a_run_that_theory_sees_diverge_is_left_out():
    case = one_case(learning_rate=5.0)
    sides = outcome(predict(case), measure(case))
    reasons = {row_of(claim, FACTORIZATION, sides).reason for claim in FACTORIZATION.claims}
    assert reasons == {"diverges"}


@pytest.mark.parametrize("value", ["1e-31", "1e31", "inf"])
@pytest.mark.parametrize("flag", ["--init-scale", "--learning-rate", "--target-scale"])
def test_what_float32_cannot_hold_is_refused(flag, value, command_line):
    status, _, err = command_line(THEOREM2, flag, value)
    assert status == 2
    assert f"{flag}: got" in err


def test_a_target_that_is_almost_zero_is_refused(tmp_path, command_line):
    np.save(tmp_path / "tiny.npy", np.diag([1e-300, 0.0, 0.0]))
    status, _, err = command_line(THEOREM2, "--target", tmp_path / "tiny.npy")
    assert status == 2
    assert "--target: got a matrix of norm 1e-300, wanted a largest singular value" in err


# Conditions ------------------------------------------------------------------------------------


@jax.jit
def derivatives(case):
    """Responses of the dense run, by its derivative in four random directions."""
    moving = 2 * case.rank
    U, V = case.frame

    def run(data):
        def record(layers):
            rotated = jnp.swapaxes(U, 1, 2) @ jnp.stack(layers) @ V
            return deep_factorization.layer_blocks(rotated, moving)

        weights, target = data
        rule = lr.gradient_descent(case.learning_rate, case.weight_decay)
        loss = partial(lr.factorization_loss, target=target)
        return lr.simulate(loss, weights, rule, case.times, record=record).records

    def response(key):
        draws = jax.random.uniform(key, (len(U) + 1, moving + 2, moving + 2), minval=-1, maxval=1)
        wide = ((0, 0), *((0, len(case.target) - moving - 2),) * 2)
        *of_layers, of_target = jnp.pad(draws, wide)
        layers = tuple(
            eps * u @ D @ v.T for eps, u, D, v in zip(case.scales, U, of_layers, V, strict=True)
        )
        target = jnp.max(jnp.abs(case.reduced_target)) * U[-1] @ of_target @ V[0].T
        seen, moved = jax.jvp(run, ((case.weights, case.target),), ((layers, target),))
        scale = jnp.max(jnp.stack([jnp.max(jnp.abs(part)) for part in seen.values()]))
        return {name: jnp.max(jnp.abs(part)) / scale for name, part in moved.items()}

    each = jax.vmap(response)(jax.random.split(jax.random.key(5), 4))
    return {name: jnp.maximum(1.0, jnp.max(part)) for name, part in each.items()}


@pytest.mark.parametrize(("eta", "least"), [(0.1, 1), (0.9, 1), (0.915, 50), (0.92, 500)])
def test_conditions_are_derivatives_of_the_dense_run(eta, least):
    """Beyond the edge of stability errors grow, and in the moving block alone.

    At most 4 times the largest of four derivatives, and at least a twentieth: a twin is one more
    direction, which may lie across the one that grows.
    """
    case = one_case(learning_rate=eta)
    theory, expected = predict(case), derivatives(case)
    conditions = {
        "inner": float(theory.condition_inner),
        "off_block": float(theory.condition_off_block),
        "bulk": float(theory.condition_bulk),
    }
    assert conditions.keys() == expected.keys()
    for name, number in expected.items():
        assert number / 20 < conditions[name] < 4 * number, name
    assert max(conditions["off_block"], conditions["bulk"]) < 4
    assert float(theory.condition) == max(conditions.values())
    assert conditions["inner"] >= least


def assert_without_condition(theory):
    assert int(theory.diverges) == -1
    assert np.isinf(theory.condition)
    assert np.isinf(theory.condition_inner)
    assert np.isinf(theory.condition_off_block)
    assert np.isinf(theory.condition_bulk)


def test_a_chaotic_run_has_no_condition():
    assert_without_condition(predict(one_case(learning_rate=1.0)))


def test_chaos_within_a_hundredth_of_the_weights_has_no_condition():
    """A decay at the edge of stability: errors grow a thousandfold in 30 steps, and end there."""
    flags = FLAGS | {
        "dim": 3,
        "rank": 1,
        "init_scale": 0.4553,
        "init_spread": 0.005008,
        "weight_decay": 0.4328,
        "decay_spread": 286.3,
        "learning_rate": 0.00131,
        "target_scale": 66.39,
        "steps": 403,
    }
    case = deep_factorization.make_case(jax.random.key(918068489), **flags)
    assert_without_condition(predict(case))


def test_noise_ends_the_delay_at_an_orbit_that_has_become_unstable():
    """What leaves the orbit has fallen to 1e-9 and grows again: a constant push does not see it."""
    flags = FLAGS | {
        "dim": 14,
        "depth": 2,
        "init_scale": 0.5651,
        "init_spread": 0.2842,
        "weight_decay": 0.2142,
        "decay_spread": 8.105,
        "learning_rate": 0.06006,
        "target_scale": 16.91,
        "steps": 1030,
    }
    case = deep_factorization.make_case(jax.random.key(972187749), **flags)
    sides = outcome(predict(case), measure(case))
    sides = dataclasses.replace(sides, size=14, steps=1030)
    rows = {claim.id: row_of(claim, FACTORIZATION, sides) for claim in FACTORIZATION.claims}
    for name, row in rows.items():
        assert row.reason == "", name
        assert row.residual <= row.tolerance, name
    assert rows["reduced"].residual > 1e-10 > rows["off_block"].tolerance


# Two sides -------------------------------------------------------------------------------------


def rotated(frame, layers, size):
    """Blocks of size 2r of dense layers, at each recorded step."""
    U, V = double(frame)
    seen = np.swapaxes(U, 1, 2)[:, None] @ np.stack(layers) @ V[:, None]
    return np.swapaxes(seen, 0, 1)[..., :size, :size]


def test_both_sides_of_theorem_2_agree_with_numpy():
    """What they share, the loss, the descent and the frame, could be wrong on both sides."""
    case = one_case()
    Phi, eta, decays = double((case.target, case.learning_rate, case.weight_decay))
    layers = oracles.descend(case.weights, oracles.sum_slope(Phi), eta, decays, case.steps)
    products = np.stack([oracles.product(each, 7) for each in zip(*layers, strict=True)])
    frame = case.frame
    spectra = np.stack([np.linalg.svd(W, compute_uv=False) for W in layers], axis=1)
    losses = 0.5 * np.sum((products - Phi) ** 2, axis=(1, 2))
    bulk = oracles.rho(case.scales, eta, decays, case.steps)
    expected = (bulk, rotated(frame, layers, 4), spectra, losses)
    theory, run = predict(case), measure(case)
    for side in (theory, run):
        arrays = (side.rho, side.reduced, side.singular_values, side.loss)
        assert_close(arrays, expected, **HOW)
    target = double(frame.left)[-1, :, :4].T @ Phi @ double(frame.right)[0, :, :4]
    start = [eps * np.eye(4) for eps in double(case.scales)]
    small = oracles.descend(start, oracles.sum_slope(target), eta, decays, case.steps)
    assert_close(theory.reduced, np.stack(small, axis=1), **HOW)


def test_both_sides_of_the_classifier_agree_with_numpy():
    case = classification.make_classifier(jax.random.key(0), **FLAGS)
    X, Y, eta, decays = double((case.inputs, case.outputs, case.learning_rate, case.weight_decay))
    slope = oracles.regression_slope(X, Y)
    layers = oracles.descend(case.weights, slope, eta, decays, case.steps)
    products = np.stack([oracles.product(each, 7) for each in zip(*layers, strict=True)])
    frame = lr.theorem2.classifier_frame(case.weights, case.target)
    factors = 1 - eta * decays[:2]
    expected = (
        products @ double(frame.right)[0][:, :4],
        double(case.scales)[:2] * factors ** np.array(case.steps)[:, None],
    )
    for side in classes(case):
        assert_close((side.class_product, side.class_rho), expected, **HOW)


def assert_parted(*pairs):
    for predicted, measured in pairs:
        assert oracles.residual(predicted, measured) > 1e-3


def test_where_the_theorem_fails_the_two_sides_part():
    """So that neither is the other, put in its place."""
    key, whole = jax.random.key(3), jnp.ones(())
    broken = deep_factorization.move_toward_gaussian(key, one_case(), whole)
    theory, run = predict(broken), measure(broken)
    assert_parted(
        (theory.rho, run.rho),
        (theory.reduced, run.reduced),
        (theory.singular_values, run.singular_values),
        (theory.loss, run.loss),
    )
    raw = classification.make_classifier(jax.random.key(0), **FLAGS)
    raw = dataclasses.replace(raw, inputs=raw.inputs * jnp.linspace(0.5, 1.5, 7)[:, None])
    theory, run = classes(raw)
    assert_parted((theory.class_rho, run.class_rho), (theory.class_product, run.class_product))
    narrow = corollary1.make_case(key, **FLAGS, excess_rank=0)
    theory, run = compressed(deep_factorization.move_toward_gaussian(key, narrow, whole))
    assert_parted((theory.error, run.error))


@pytest.mark.parametrize(("scale", "per_class", "depth"), [(0.4, 7, 2), (0.3, 20, 5)])
def test_the_collapse_ratio_is_the_share_of_the_bulk_in_a_layer(scale, per_class, depth):
    """The signal grows by ``n^{1/2L}`` a layer, what is in a class shrinks by eps; squares."""
    ratio = (scale / per_class ** (1 / (2 * depth))) ** 2
    assert collapse.collapse_ratio(scale, per_class, depth) == pytest.approx(ratio)
    # A bulk of d - 2K directions of d - K, over L - 1 layers, and a signal that is larger by
    # (1 - p)^{-1/L} at most.
    bulk = ((40 - 6) / (40 - 3)) ** (1 / (depth - 1))
    lower = collapse.collapse_lower_bound(ratio, 40, 3, depth)
    assert lower == pytest.approx(bulk * (1 - ratio) ** (1 / depth))


def test_the_largest_change_counts_what_falls():
    assert deep_factorization.largest_change(np.array([[3.0, 1.0], [1.0, 2.0]])) == 2.0
