"""Theorem 3's verdicts: what is judged, what is left out and why, and what must turn them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lrdyn import theorem3
from lrdyn.core import masking
from lrdyn.core.descent import gradient_descent
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
from lrdyn.theorem3.autoencoder_training_claims import MaskedAutoencoderMeasured
from lrdyn.theorem3.dropblock_claims import DROPBLOCK
from lrdyn.theorem3.dropout_minimiser_claims import MINIMISER, STEADY
from lrdyn.theorem3.dropout_penalty_claims import DROPOUT
from lrdyn.theorem3.figures import minimiser_values
from lrdyn.theorem3.masked_autoencoder_claims import AUTOENCODER, MaskedAutoencoderTheory
from lrdyn.verification.judging.judging import residuals, row_of
from lrdyn.verification.running.evaluate import case_arguments
from lrdyn.verification.stating.claims import chi_square_p, tolerance
from lrdyn.verification.stating.fields import Read, arrays_in
from lrdyn.verification.stating.statement import Outcome, longest_axis
from tests import oracles
from tests.oracles import assert_apart, assert_close, double, judged
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
    read = {name for c in claims for name in (*scenario.arrays_of(c), c.condition_name)}
    case = scenario.case(jax.random.key(0), **case_arguments(scenario, point))

    def arrays_of(side):
        arrays = jax.jit(lambda case: {n: a for n, a in arrays_in(side(case)).items() if n in read})
        return Read({name: np.asarray(a) for name, a in arrays(case).items()}, KeyError)

    outcome = Outcome(
        point,
        arrays_of(scenario.predict),
        arrays_of(scenario.measure),
        {name: np.asarray(check(case)) for name, check in scenario.hypotheses.items()},
        np.dtype("float64"),
        longest_axis(scenario.summed(case)),
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
    assert verdict["statistics"] == {"false_alarm": 1e-6, "tests": 5 * 2 * 2}


def test_every_claim_has_a_control_of_the_run_and_one_of_the_formula():
    for scenario in statement.THEOREM3.scenarios:
        of_run = {c.claim for c in scenario.controls if c.measure or c.case}
        of_formula = {c.claim for c in scenario.controls if c.predict}
        every = {claim.id for claim in scenario.claims}
        assert of_run == every
        # All arrays of this claim are those of the run.
        assert every - of_formula <= {"stochastic_noise"}


def test_nothing_cancels_near_a_keep_probability_of_one():
    names = "layers_rank_one", "layers_rank_two", "width_free", "envelope_above"
    assert verdicts(rows(DROPOUT, *names, keep_prob=0.9999)) == dict.fromkeys(names, True)
    said = verdicts(rows(DROPBLOCK, "dropblock_least", keep_prob=0.9999))
    assert said == {"dropblock_least": True}


def test_draws_of_rare_masks_decide_nothing():
    judged = rows(statement.MASKS, "monte_carlo", "monte_carlo_rate", keep_prob=1 - 1e-6)
    assert set(verdicts(judged).values()) == {"losses too skewed"}


def test_an_unfinished_transient_is_not_judged():
    """``theorem3 --rows 6 --cols 9 --keep-prob 0.35 --mask dropout --width 11 --steps 500``."""
    point = {"rows": 6, "cols": 9, "keep_prob": 0.35, "width": 11, "steps": 500}
    assert verdicts(rows(MINIMISER, "stochastic", **point)) == {"stochastic": "too few steps"}


@pytest.mark.parametrize("steps", [24, 300, 500])
@pytest.mark.parametrize("keep_prob", [0.35, 0.8])
def test_a_transient_has_gone_after_the_steps_that_its_claim_asks_for(steps, keep_prob):
    point = {"rows": 6, "cols": 9, "keep_prob": keep_prob, "width": 11}
    short = rows(MINIMISER, "stochastic", **point, steps=steps)["stochastic"]
    assert (short.reason, short.steps_flag) == ("too few steps", "steps")
    case = MINIMISER.case(
        jax.random.key(0),
        **case_arguments(MINIMISER, FLAGS | point | {"steps": int(short.steps_needed)}),
    )
    assert float(dropout_minimiser_claims.predict(case).transient) >= STEADY
    # Not many more than that.
    fewer = dataclasses.replace(case, steps=int(0.7 * short.steps_needed))
    assert float(dropout_minimiser_claims.predict(fewer).transient) < STEADY


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
    case = MINIMISER.case(jax.random.key(0), **case_arguments(MINIMISER, point))
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


@pytest.mark.parametrize("uses", [1, 2])
def test_the_spread_of_training_the_last_layer_is_that_of_masks_that_are_independent(
    uses, monkeypatch
):
    """No mean sees a mask that is used twice; what is left of the noise is twice as large."""
    right = dropout_minimiser_claims._masks
    monkeypatch.setattr(
        dropout_minimiser_claims, "_masks", lambda case, t, theta: right(case, t // uses, theta)
    )
    point = FLAGS | {"steps": 40 * dropout_minimiser_claims.SHARE}
    case = MINIMISER.case(jax.random.key(0), **case_arguments(MINIMISER, point))
    train = jax.jit(lambda case: dropout_minimiser_claims.train_last(case, case.keep_prob))
    ends = np.sum(train(case), axis=1)
    degrees = len(ends) - 1

    def p_if_used(times):
        """That of a chi-square test of the spread; the ends are sums of many small steps."""
        ratio = float(np.var(ends, ddof=1) / end_variance(case, times))
        return chi_square_p(degrees * ratio, degrees)

    assert p_if_used(uses) > 1e-3
    assert p_if_used(3 - uses) < 1e-6


def end_variance(case, uses):
    """Variance of ``sum_{i<=q} u_i^T Z v_i`` at the end, each mask used for so many steps.

    A step is linear in the last layer, so that all second moments of its entries follow those of
    the step before, exactly: their mean over the 2^h masks.
    """
    minimiser = dropout_minimiser_claims.closed_form(case)
    X, Y, left, lines = double((case.inputs, case.target, minimiser.left, minimiser.right))
    hidden = np.asarray(theorem3.equalized_factors(minimiser.product, case.width)[1], np.float64)
    hidden = hidden @ np.linalg.pinv(X) @ X
    rank = int(np.sum(np.asarray(minimiser.values) > 0))
    # Only u_1^T W_2 ... u_q^T W_2 are looked at, and rows do not mix.
    fitted, width = left[:, :rank].T @ Y, case.width
    count = rank * width + 1  # the last entry is 1
    rates = double(dropout_minimiser_claims.stochastic_steps(case))

    def of_mask(mask, rate):
        units = np.asarray(mask)[:, None] / float(case.keep_prob) * hidden
        moved = np.zeros((count, count))
        moved[-1, -1] = 1
        for i in range(rank):
            rows = slice(i * width, (i + 1) * width)
            moved[rows, rows] = np.eye(width) - rate * units @ units.T
            moved[rows, -1] = rate * units @ fitted[i]
        return moved

    moments = np.zeros((count, count))
    moments[-1, -1] = 1
    for first in range(0, len(rates), uses):
        after = np.zeros_like(moments)
        for mask, chance in oracles.masks_of(range(width), float(case.keep_prob)):
            steps = np.eye(count)
            for rate in rates[first : first + uses]:
                steps = of_mask(mask, rate) @ steps
            after += chance * steps @ moments @ steps.T
        moments = after
    looked = np.append((hidden @ lines[:rank].T).T.ravel(), 0.0)
    return looked @ moments @ looked - (looked @ moments[:, -1]) ** 2


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


@pytest.mark.parametrize("lost", [1, 3])
def test_estimates_of_fewer_draws_are_seen(monkeypatch, lost):
    """208 draws in the place of 256 make errors larger by a tenth; 240, by a thirtieth."""
    right = masking.monte_carlo

    def fewer(key, loss, draw, samples):
        return right(key, loss, draw, samples - lost)

    monkeypatch.setattr(masking, "monte_carlo", fewer)
    said = verdicts(rows(statement.MASKS, "monte_carlo", "monte_carlo_rate"))
    assert said == {"monte_carlo": True, "monte_carlo_rate": lost == 1}


@pytest.mark.parametrize("draws", statement.DRAWS)
def test_every_estimate_has_draws_of_its_own(draws):
    """Half as many keys, each for two estimates, would be half of the evidence that is stated.

    Losses that no mean of others meets tell the masks of every estimate.
    """
    case = statement.make_case(jax.random.key(0), **case_arguments(statement.MASKS, FLAGS))
    losses = jnp.asarray(np.random.default_rng(0).normal(size=2**8))
    every = np.asarray(statement._estimates(case, losses, draws, jnp.asarray(0.5), 400))
    assert len(np.unique(every)) == 400


def test_estimates_of_196_draws_in_the_place_of_256_are_seen(monkeypatch):
    right = statement._estimates

    def fewer(case, losses, draws, keep_prob, repeats):
        with monkeypatch.context() as patch:
            patch.setattr(statement, "KEYS", 14 if draws == 256 else statement.KEYS)
            return right(case, losses, 196 if draws == 256 else draws, keep_prob, repeats)

    monkeypatch.setattr(statement, "_estimates", fewer)
    said = verdicts(rows(statement.MASKS, "monte_carlo", "monte_carlo_rate"))
    assert said == {"monte_carlo": True, "monte_carlo_rate": False}


def test_probabilities_half_a_percent_too_large_are_seen(monkeypatch):
    right = masking.draw_mask
    monkeypatch.setattr(
        masking, "draw_mask", lambda key, size, p, *, block=1: right(key, size, 1.005 * p)
    )
    said = verdicts(rows(statement.MASKS, "monte_carlo", keep_prob=0.3))
    assert said == {"monte_carlo": False}


def test_masks_that_are_used_for_two_steps_are_seen(monkeypatch):
    right = dropout_minimiser_claims._masks
    monkeypatch.setattr(
        dropout_minimiser_claims, "_masks", lambda case, t, theta: right(case, t // 2, theta)
    )
    assert verdicts(rows(MINIMISER, "stochastic_noise")) == {"stochastic_noise": False}


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


def test_enough_blocks_are_so_in_both_precisions(dtype):
    """Shares of 1, 2/3 and 1/3 want six blocks; their rounding must not want a seventh."""
    matrix = jnp.diag(jnp.array([3.0, 2.0, 1.0], dtype))
    assert [bool(dropblock.enough_blocks(matrix, 2, blocks)) for blocks in (5, 6)] == [False, True]


def test_enough_blocks_are_too_few_for_what_is_in_nearly_all_of_them():
    """Shares of .8, .6 and .6: all in two of five blocks, but the first outside of only one."""
    matrix = jnp.diag(jnp.array([8.0, 6.0, 6.0]))
    assert [bool(dropblock.enough_blocks(matrix, 2, blocks)) for blocks in (5, 10)] == [False, True]


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
    rng, p, number = np.random.default_rng(0), 1e-3, 64
    draws = rng.exponential(size=(100_000, number)) - 1
    skewness = 2 / np.sqrt(number)
    # Only those far out can be past the limit.
    far = np.abs(draws.mean(1) * np.sqrt(number) / draws.std(1, ddof=1)) > 3
    plain, corrected = (
        sum(statistics.mean_p(0.0, row, skew) < p for row in draws[far]) / len(draws)
        for skew in (0.0, skewness)
    )
    assert plain > 2 * p
    assert corrected <= 2 * p
    # What it takes off is nothing near the centre, and never all of a clear failure.
    assert statistics.mean_allowance(1.0, 0.01) < 0.01
    assert statistics.mean_p(9.0, draws[0], skewness) < 1e-10
    assert np.isnan(statistics.mean_p(0.0, np.ones(3), 0.0))


GAUSSIAN = np.array([0.0, 3.0, 0.0, 15.0, 0.0, 105.0])
"""Moments of order 3 to 8."""


def test_squares_of_gaussian_errors_are_a_chi_square():
    law = statistics.law_of_squares(GAUSSIAN, 16, 32)
    for squares in (10.0, 32.0, 90.0):
        expected = 2 * min(stats.chi2.cdf(squares, 32), stats.chi2.sf(squares, 32))
        assert statistics.scatter_p(squares, law) == pytest.approx(expected, rel=1e-9)
    assert np.isnan(statistics.scatter_p(np.nan, law))


def test_the_law_of_squares_is_that_of_means_of_exponential_draws():
    """Means of n exponential draws have a gamma law; moments of the sum of squares by SciPy."""
    (draws, number), one = (16, 50), stats.expon()
    moments = [float(one.expect(lambda x, k=k: (x - 1) ** k)) for k in range(3, 9)]
    mean = stats.gamma(draws, scale=1 / draws)
    raw = [float(mean.expect(lambda x, k=k: (draws * (x - 1) ** 2) ** k)) for k in range(1, 5)]
    central = [
        raw[1] - 1,
        raw[2] - 3 * raw[1] + 2,
        raw[3] - 4 * raw[2] + 6 * raw[1] - 3,
    ]
    law = statistics.law_of_squares(np.array(moments), draws, number)
    assert raw[0] == pytest.approx(1, rel=1e-6)
    assert law.variance == pytest.approx(number * central[0], rel=1e-5)
    assert law.skewness == pytest.approx(central[1] / central[0] ** 1.5 / number**0.5, rel=1e-5)
    assert law.excess == pytest.approx((central[2] / central[0] ** 2 - 3) / number, rel=1e-5)


def test_a_shape_that_is_lost_decides_nothing():
    assert statistics.mean_decides(0.01)
    assert not statistics.mean_decides(0.1)
    assert not statistics.mean_decides(0.5)  # where the series has ended
    assert not statistics.mean_decides(np.nan)
    law = statistics.law_of_squares(GAUSSIAN, 16, 3600)
    assert statistics.scatter_decides(law)
    assert not statistics.scatter_decides(law._replace(excess=0.1))
    assert not statistics.scatter_decides(law._replace(skewness=0.2))
    assert not statistics.scatter_decides(law._replace(excess=np.nan))
    assert not statistics.scatter_decides(law._replace(skewness=np.nan))


def test_the_shape_of_the_losses_is_that_of_all_masks():
    """Skewness of the mean of all draws, and the moments of one, in NumPy."""
    point = FLAGS | {"keep_prob": 0.3}
    case = statement.MASKS.case(jax.random.key(0), **case_arguments(statement.MASKS, point))
    theory = jax.tree.map(np.asarray, jax.jit(statement.MASKS.predict)(case))
    masks, chances = (np.asarray(side) for side in case.masks)
    Y, Z = np.asarray(case.target), np.asarray(case.terms)
    for index, kept in ((0, 0.3), (2, 1.0)):
        means = np.array([0.3, kept, kept, kept])
        every = np.column_stack([masks[:, 0], *[np.where(kept == 1, 1, m) for m in masks.T[1:]]])
        losses = np.sum((Y - np.tensordot(every / means, Z, 1)) ** 2, axis=(1, 2))
        mean = chances @ losses
        deviation = np.sqrt(chances @ (losses - mean) ** 2)
        errors = deviation / np.sqrt(statement.DRAWS)
        assert_close(theory.monte_carlo[index], mean, size=64)
        assert_close(theory.monte_carlo_rate[index], errors[index], size=64)
        moments = [chances @ ((losses - mean) / deviation) ** k for k in range(3, 9)]
        assert_close(theory.losses_shape[index], moments, size=64)
        run = statement.MasksMeasured(estimates=jnp.zeros((3, 100)))
        outcome = Outcome({}, theory, run, {}, np.dtype("float64"), 8, 1)
        all_draws = statement.DRAWS[index] * 100
        assert statement._skewness(outcome, index) == pytest.approx(moments[0] / all_draws**0.5)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_errors_off_by_a_tenth_are_seen_99_times_of_100(factor):
    """At the tolerance of 24 tests, of which each looks at three numbers of draws."""
    number, p = statement.REPEATS, 1e-6 / 24 / len(statement.DRAWS)
    edges = stats.chi2.ppf(p / 2, number), stats.chi2.isf(p / 2, number)
    low, high = np.array(edges) / factor**2
    assert stats.chi2.cdf(low, number) + stats.chi2.sf(high, number) > 0.99


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
    case = AUTOENCODER.case(jax.random.key(0), **case_arguments(AUTOENCODER, point))
    regular = jax.jit(lambda case: masked_autoencoder_claims.predict(case).unique)(case)
    claims: dict[str, Any] = {claim.id: claim for claim in AUTOENCODER.claims}
    theory, run = MaskedAutoencoderTheory(unique=regular), MaskedAutoencoderMeasured()
    outcome = Outcome(point, theory, run, {}, np.dtype("float64"), 4, 1)
    for name in ("optimum", "rank", "bottleneck", "masked_optimum"):
        assert claims[name].applies(outcome) == unique
    assert claims["bottleneck_value"].applies(outcome)


def test_a_small_loss_is_judged_on_the_scale_of_the_data():
    """``theorem3 --mask patch --rows 3 --patch-size 3 --width 2 --keep-prob 0.99998``."""
    value: Any = np.array([2e-5, 1.0])
    energy: Any = np.array([1.0, 4.0])
    theory = MaskedAutoencoderTheory(bottleneck_value=value, energy=energy)
    for change, residual in (([1e-15, 0.0], 1e-15), ([0.0, 1e-3], 2.5e-4), ([np.nan, 0.0], np.nan)):
        run = MaskedAutoencoderMeasured(bottleneck_value=value + np.array(change))
        outcome = Outcome({}, theory, run, {}, np.dtype("float64"), 4, 1)
        found = masked_autoencoder_claims.compare_bottleneck_value(outcome).residual()
        assert found == pytest.approx(residual, rel=1e-3, nan_ok=True)


def test_products_of_factors_are_granted_what_lapack_leaves():
    """By NumPy, whose decompositions of small matrices are off by 2 roundings, and rarely by 30."""
    rng, worst = np.random.default_rng(0), 0.0
    for _ in range(1500):
        left, right = (np.linalg.qr(rng.normal(size=(n, 4)))[0] for n in (7, 4))
        matrix = (left * np.linspace(1, 0.5, 4)) @ right.T
        U, values, V = np.linalg.svd(matrix, full_matrices=False)
        exact = (U.astype(np.longdouble) * values) @ V.astype(np.longdouble)
        worst = max(worst, float(np.max(np.abs(exact - matrix))))
    products = [claim for claim in (*DROPOUT.claims, *DROPBLOCK.claims) if "product" in claim.id]
    assert [claim.id for claim in products] == ["equalised_product", "dropblock_product"]
    for claim in products:
        granted = tolerance("identity", "float64", steps=claim.steps or 1, size=7)
        assert 2 * worst < granted < 100 * worst


def test_what_masks_add_does_not_cancel():
    """``theorem3 --mask patch --rows 8 --cols 2 --width 3 --keep-prob 0.0017``."""
    point = {"rows": 8, "cols": 2, "width": 3, "keep_prob": 0.0017, "mask": "patch"}
    assert verdicts(rows(AUTOENCODER, "attained", **point, patch_size=8)) == {"attained": True}


@pytest.mark.parametrize("width", [1, 3, 9])
def test_the_figure_draws_the_minimisers_in_closed_form(width):
    """In NumPy and for all theta at once what JAX finds one by one."""
    spectrum, keep_probs = np.array([1.0, 0.9, 0.5, 0.45, 0.1]), np.linspace(0.02, 1.0, 50)
    drawn = minimiser_values(spectrum, width, keep_probs)
    shrink = jax.jit(theorem3.shrink_squared_values, static_argnames="width")
    strengths = (1 - keep_probs) / keep_probs / width
    for values, strength in zip(drawn, strengths, strict=True):
        assert_close(jnp.asarray(values), shrink(spectrum, strength, width=width)[0], size=5)


def test_rounding_of_an_expectation_is_no_bias_of_draws():
    """One input of four masked changes a loss of 5.5 by 2e-4: its mean is known to 5e-8.

    The last digit of 5.5 in float32 is 5e-7, by which all estimates can be off alike.
    """
    flags = {"rows": 5, "cols": 4, "width": 1, "mask": "input", "loss": "all", "keep_prob": 0.8602}
    (claim,) = (claim for claim in statement.MASKS.claims if claim.id == "monte_carlo")
    for dtype in ("float32", "float64"):
        found, _ = judged(statement.THEOREM3, statement.MASKS, flags, (257222577,), dtype)
        leg = residuals(claim, statement.MASKS, found, dtype, power=True)
        assert leg.residual.item() <= leg.tolerance.item()
        assert leg.reason.item() == ""


def test_a_mean_without_skewness_has_student_s_p():
    draws = np.array([1.0, 3.0, 2.0, 2.5, 1.7])
    test: Any = stats.ttest_1samp(draws, 2.6)
    assert statistics.mean_p(2.6, draws, 0.0) == pytest.approx(test.pvalue, rel=1e-9)
