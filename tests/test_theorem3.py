"""Theorem 3's verdicts: what is judged, what is left out and why, and what must turn them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lrdyn import theorem3
from lrdyn.core import masking
from lrdyn.core.descent import gradient_descent
from lrdyn.engine.evaluate import taken
from lrdyn.engine.fields import Read, arrays_in
from lrdyn.engine.judging import row_of
from lrdyn.engine.statement import Outcome, longest_axis
from lrdyn.theorem3 import (
    dropblock,
    dropconnect,
    dropout_minimiser_claims,
    dropout_minimum,
    dropout_penalties,
    masked_autoencoder_claims,
    several_dropout_layers,
    statement,
    statistics,
)
from lrdyn.theorem3.autoencoder_training_claims import AutoencoderMeasured
from lrdyn.theorem3.dropblock_claims import DROPBLOCK
from lrdyn.theorem3.dropout_minimiser_claims import MINIMISER
from lrdyn.theorem3.dropout_penalty_claims import DROPOUT
from lrdyn.theorem3.masked_autoencoder_claims import AUTOENCODER, AutoencoderTheory
from tests.oracles import assert_apart, assert_close, double
from tests.runs import finished

FLAGS: dict[str, Any] = {
    "rows": 4,
    "cols": 5,
    "width": 4,
    "keep_prob": 0.5,
    "mask": "dropout",
    "block_size": 2,
    "patch_size": 2,
    "loss": "all masked",
    "learning_rate": 0.5,
    "steps": 2400,
}
"""A small point."""


def rows(scenario, *names, **flags):
    """How some claims are judged at one point: nothing is computed but what they read."""
    point = FLAGS | flags
    claims = [claim for claim in scenario.claims if claim.id in names]
    read = {name for c in claims for name in (*c.arrays, c.condition_name)}
    case = scenario.case(jax.random.key(0), **taken(scenario.case, point))

    def arrays_of(side):
        arrays = jax.jit(lambda case: {n: a for n, a in arrays_in(side(case)).items() if n in read})
        return Read({name: np.asarray(a) for name, a in arrays(case).items()}, KeyError)

    outcome = Outcome(
        point,
        arrays_of(scenario.predict),
        arrays_of(scenario.measure),
        {name: np.asarray(check(case)) for name, check in scenario.hypotheses.items()},
        np.dtype("float64"),
        longest_axis(case),
        point["steps"] if scenario.steps else 1,
    )
    return {claim.id: row_of(claim, scenario, outcome) for claim in claims}


def verdicts(judged):
    """What each claim says: true, false, or why it says nothing."""
    return {
        name: row.unmet or row.reason or bool(row.residual <= row.tolerance)
        for name, row in judged.items()
    }


# What is judged -------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", statement.THEOREM3.scenarios, ids=lambda s: s.id)
def test_every_case_is_judged_in_both_precisions(scenario, tmp_path_factory):
    """A wrong prediction that excuses itself would leave some out."""
    verdict = finished("theorem3", tmp_path_factory.getbasetemp()).verdict
    entries = {claim["id"]: claim for claim in verdict["claims"]}
    cases = 4 if scenario is AUTOENCODER else 2
    for claim in scenario.claims:
        counts = {"drawn": cases, "judged": cases, "left_out": {}}
        assert entries[claim.id]["judged"] == {"float64": counts, "float32": counts}, claim.id
    assert verdict["statistics"] == {"false_alarm": 1e-6, "tests": 4 * 2 * 2}


def test_every_claim_has_a_control_of_the_run_and_one_of_the_formula():
    for scenario in statement.THEOREM3.scenarios:
        of_run = {c.claim for c in scenario.controls if c.measure or c.case}
        of_formula = {c.claim for c in scenario.controls if c.predict}
        every = {claim.id for claim in scenario.claims}
        assert of_run == every
        # Both sides of this claim are arrays of the run.
        assert every - of_formula <= {"stochastic_drift"}


def test_nothing_cancels_near_a_keep_probability_of_one():
    names = "layers_rank_one", "layers_rank_two", "width_free", "envelope_above"
    assert verdicts(rows(DROPOUT, *names, keep_prob=0.9999)) == dict.fromkeys(names, True)
    said = verdicts(rows(DROPBLOCK, "dropblock_least", keep_prob=0.9999))
    assert said == {"dropblock_least": True}


def test_draws_of_rare_masks_decide_nothing():
    judged = rows(statement.MASKS, "monte_carlo", "monte_carlo_rate", keep_prob=0.9999)
    assert set(verdicts(judged).values()) == {"losses too skewed"}


def test_an_unfinished_transient_is_not_judged():
    """``theorem3 --rows 6 --cols 9 --keep-prob 0.35 --mask dropout --width 11 --steps 500``."""
    point = {"rows": 6, "cols": 9, "keep_prob": 0.35, "width": 11, "steps": 500}
    assert verdicts(rows(MINIMISER, "stochastic", **point)) == {"stochastic": "too few steps"}


def test_descent_that_has_not_ended_and_steps_too_large_are_not_judged():
    names = "dropout_minimiser", "dropout_minimum"
    for flags, word in (
        ({"steps": 10}, "still moving"),
        ({"learning_rate": 5.0}, "step too large"),
    ):
        assert set(verdicts(rows(MINIMISER, *names, **flags)).values()) == {word}


def test_descent_that_diverges_under_a_stable_step_is_false(monkeypatch):
    monkeypatch.setattr(
        dropout_minimiser_claims, "gradient_descent", lambda rate: gradient_descent(40 * rate)
    )
    judged = rows(MINIMISER, "dropout_minimiser", steps=200)
    assert verdicts(judged) == {"dropout_minimiser": False}


def test_the_mean_of_stochastic_training_is_that_of_a_loop_from_the_first_step():
    """After the steps that a judge wants, the transient is 5e-5 and seen by no test of 256 runs."""
    point = FLAGS | {"steps": 8 * dropout_minimiser_claims.SHARE}
    case = MINIMISER.case(jax.random.key(0), **taken(MINIMISER.case, point))
    values = jax.jit(lambda case: MINIMISER.predict(case).stochastic_values)(case)
    minimiser = dropout_minimiser_claims.closed_form(case)
    X, Y = double((case.inputs, case.target))
    hidden = np.asarray(theorem3.equalized_factors(minimiser.product, case.width)[1])
    left, _, right = np.linalg.svd(Y @ np.linalg.pinv(X) @ X, full_matrices=False)
    second = np.zeros((len(Y), case.width))
    for rate in double(dropout_minimiser_claims.stochastic_steps(case)):
        # The mean of the gradient over the masks; theta = 1/2.
        slope = (second @ hidden - Y) @ hidden.T + second * np.sum(hidden**2, axis=1)
        second = second - rate * slope
    ends = np.diag(left.T @ second @ hidden @ right.T)
    assert_close(values, ends, steps=8, size=5)
    assert_apart(values, minimiser.values)


# Both sides stand apart -----------------------------------------------------------------------


def patched(monkeypatch, name, broken, *modules):
    for module in modules:
        monkeypatch.setattr(module, name, broken)


def test_wrong_odds_are_seen_by_every_claim_about_penalties(monkeypatch):
    right = theorem3.odds
    patched(
        monkeypatch,
        "odds",
        lambda theta: 1.1 * right(theta),
        theorem3,
        dropout_penalties,
        several_dropout_layers,
        dropconnect,
    )
    names = (
        "penalty",
        "unscaled_masks",
        "factorisations",
        "equalised_penalty",
        "width_free",
        "envelope_above",
        "envelope_below",
        "fixed_keep_prob",
        "layers",
        "layers_rank_one",
        "layers_rank_two",
        "dropconnect_input",
        "dropconnect_output",
    )
    assert verdicts(rows(DROPOUT, *names)) == dict.fromkeys(names, False)
    names = "dropblock", "dropblock_bound", "dropblock_least"
    assert verdicts(rows(DROPBLOCK, *names)) == dict.fromkeys(names, False)


def test_factors_that_are_not_equalised_are_seen(monkeypatch):
    patched(monkeypatch, "equalize", lambda left, right: (left, right), theorem3, dropout_penalties)
    said = verdicts(rows(DROPOUT, "equalised", "equalised_product", "equalised_penalty"))
    assert said == {"equalised": False, "equalised_product": True, "equalised_penalty": False}
    # The first layer of the minimiser is one of them: training the last one ends elsewhere.
    assert verdicts(rows(MINIMISER, "stochastic", steps=7200)) == {"stochastic": False}


def test_a_wrong_theta_of_the_width_is_seen(monkeypatch):
    def same(theta, width, *, block=1):
        return jnp.asarray(theta)

    patched(monkeypatch, "width_free_keep_prob", same, theorem3, dropout_penalties)
    assert verdicts(rows(DROPOUT, "width_free")) == {"width_free": False}
    assert verdicts(rows(DROPBLOCK, "dropblock_least")) == {"dropblock_least": False}


def test_a_broken_covariance_does_not_excuse_itself(monkeypatch):
    """It feeds the prediction, and no longer the hypothesis."""
    monkeypatch.setattr(masking, "block_covariance", lambda n, b, p: jnp.full((n, n), p * (1 - p)))
    said = verdicts(rows(statement.MASKS, "mask_identity", mask="dropblock"))
    assert said == {"mask_identity": False}


def test_broken_draws_are_seen(monkeypatch):
    right, names = masking.draw_mask, ("monte_carlo", "monte_carlo_rate")
    monkeypatch.setattr(
        masking, "draw_mask", lambda key, size, p, *, block=1: right(key, size, 1.05 * p)
    )
    assert verdicts(rows(statement.MASKS, *names, mask="dropblock")) == dict.fromkeys(names, False)


def test_draws_that_are_used_twice_are_seen(monkeypatch):
    right = masking.monte_carlo

    def fewer(key, loss, draw, samples):
        return right(key, loss, draw, samples // 4)

    monkeypatch.setattr(masking, "monte_carlo", fewer)
    said = verdicts(rows(statement.MASKS, "monte_carlo", "monte_carlo_rate"))
    assert said == {"monte_carlo": True, "monte_carlo_rate": False}


def split_without_search(values, support):
    """The split of the k-support norm with its index r put to 0."""
    sizes = jnp.where(jnp.arange(len(values)) < support - 1, values, jnp.sum(values[support - 1 :]))
    return sizes, values / sizes


def test_a_split_without_search_is_seen(monkeypatch):
    """It makes the factors alone; the norm is a dual norm."""
    monkeypatch.setattr(dropblock, "_support_split", split_without_search)
    names = "dropblock", "dropblock_least", "dropblock_bound"
    said = verdicts(rows(DROPBLOCK, *names, rows=6, cols=8))
    assert said == {"dropblock": True, "dropblock_least": False, "dropblock_bound": True}


def test_a_norm_that_is_too_large_is_seen(monkeypatch):
    monkeypatch.setattr(dropblock, "support_norm", lambda values, k: 1.01 * jnp.sum(values))
    names = "dropblock_least", "dropblock_bound"
    assert verdicts(rows(DROPBLOCK, *names)) == dict.fromkeys(names, False)


def test_steps_with_masks_that_are_not_divided_are_seen(monkeypatch):
    right = theorem3.dropout_step

    def broken(mask, weights, inputs, target, keep_prob, rate):
        return right(keep_prob * mask, weights, inputs, target, keep_prob, rate)

    monkeypatch.setattr(dropout_minimum, "dropout_step", broken)
    names = "stochastic", "stochastic_drift"
    assert verdicts(rows(MINIMISER, *names, steps=7200)) == dict.fromkeys(names, False)


# The tests ------------------------------------------------------------------------------------


def test_the_correction_covers_draws_of_a_skewed_law():
    """Means of exponential draws, of skewness 2: the tail of Student's test, and the corrected."""
    rng, limit, number = np.random.default_rng(0), 3.0, 64
    draws = rng.exponential(size=(100_000, number)) - 1
    skewness = 2 / np.sqrt(number)
    # Only those far out can be past the limit.
    far = np.abs(draws.mean(1) * np.sqrt(number) / draws.std(1, ddof=1)) > 3
    plain, corrected = (
        sum(statistics.mean_surprise(0.0, row, skew) > limit for row in draws[far]) / len(draws)
        for skew in (0.0, skewness)
    )
    assert plain > 2 * 10**-limit
    assert corrected <= 2 * 10**-limit
    # What it takes off is nothing near the centre, and never all of a clear failure.
    assert statistics.allowance(1.0, 0.01) < 0.01
    assert statistics.mean_surprise(9.0, draws[0], skewness) > 10


def test_the_scatter_is_a_chi_square():
    draws = np.random.default_rng(0).normal(size=(2000, 32)) * 3 + 1
    p_values = [10 ** -statistics.scatter_surprise(1.0, 3.0, row, 0.0, 0.0) for row in draws]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    wrong = statistics.scatter_surprise(1.0, 3.0 * 2, draws[0], 0.0, 0.0)
    assert wrong > 3
    assert np.isnan(statistics.mean_surprise(0.0, np.ones(3), 0.0))


def test_a_shape_that_is_lost_decides_nothing():
    assert statistics.decides(0.01, 0.01, 128)
    assert not statistics.decides(0.1)
    assert not statistics.decides(0.5)  # where the series has ended
    assert not statistics.decides(np.nan)
    assert not statistics.decides(0.0, 1.0, 128)


@pytest.mark.parametrize("theta", [1 - 1e-9, 1e-12])
def test_probabilities_that_float32_cannot_tell_from_the_ends_are_refused(theta):
    with pytest.raises(ValueError, match="--keep-prob: got"):
        statement.check(FLAGS | {"keep_prob": theta})
    statement.check(FLAGS | {"keep_prob": 0.9999999})


@pytest.mark.parametrize(("sizes", "unique"), [((2, 4, 2), False), ((4, 4, 2), True)])
def test_on_the_kernel_of_a_patch_no_minimiser_is_unique(sizes, unique):
    """``theorem3 --mask patch --rows 2 --patch-size 2``: training stays there where it starts."""
    point = FLAGS | dict(zip(("rows", "cols", "patch_size"), sizes, strict=True))
    point |= {"mask": "patch", "width": 1}
    case = AUTOENCODER.case(jax.random.key(0), **taken(AUTOENCODER.case, point))
    regular = jax.jit(lambda case: masked_autoencoder_claims.predict(case).unique)(case)
    claims: dict[str, Any] = {claim.id: claim for claim in AUTOENCODER.claims}
    theory, run = AutoencoderTheory(unique=regular), AutoencoderMeasured()
    outcome = Outcome(point, theory, run, {}, np.dtype("float64"), 4, 1)
    for name in ("optimum", "rank", "bottleneck", "masked_optimum"):
        assert claims[name].applies(outcome) == unique
    assert claims["bottleneck_value"].applies(outcome)


def test_a_small_loss_is_judged_on_the_scale_of_the_data():
    """``theorem3 --mask patch --rows 3 --patch-size 3 --width 2 --keep-prob 0.99998``."""
    (claim,) = (claim for claim in AUTOENCODER.claims if claim.id == "bottleneck_value")
    assert claim.residual is not None
    value: Any = np.array([2e-5, 1.0])
    energy: Any = np.array([1.0, 4.0])
    theory = AutoencoderTheory(bottleneck_value=value, energy=energy)
    for change, residual in (([1e-15, 0.0], 1e-15), ([0.0, 1e-3], 2.5e-4), ([np.nan, 0.0], np.nan)):
        run = AutoencoderMeasured(bottleneck_value=value + np.array(change))
        outcome = Outcome({}, theory, run, {}, np.dtype("float64"), 4, 1)
        assert claim.residual(outcome) == pytest.approx(residual, rel=1e-3, nan_ok=True)


def test_what_masks_add_does_not_cancel():
    """``theorem3 --mask patch --rows 8 --cols 2 --width 3 --keep-prob 0.0017``."""
    point = {"rows": 8, "cols": 2, "width": 3, "keep_prob": 0.0017, "mask": "patch"}
    assert verdicts(rows(AUTOENCODER, "attained", **point, patch_size=8)) == {"attained": True}
