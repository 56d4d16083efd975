"""Judges, on arrays made by hand: what they must see, and what they must refuse."""

import dataclasses
import importlib
import json
import shutil
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from jaxtyping import Array, Float, Int

import lrdyn as lr
from lrdyn.core.checks import OutsideDomain
from lrdyn.corollary1.statement import COROLLARY1
from lrdyn.verification.judging.judging import (
    claim_entry,
    control_entry,
    judge_results,
    residuals,
    row_of,
)
from lrdyn.verification.judging.outcomes import MissingArray
from lrdyn.verification.judging.verdict_text import outcome as outcome_in_words
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.running.evaluate import evaluate, evaluate_controls
from lrdyn.verification.running.work import Context, Sweep, run_sweep
from lrdyn.verification.runs import run_folder, verify
from lrdyn.verification.stating.claims import RESOLVED
from lrdyn.verification.stating.fields import ABSENT, Read
from lrdyn.verification.stating.flags import Flag, one_of
from lrdyn.verification.stating.forms import AtLeast, AtMost, Count, Equal, Stated, Zero
from lrdyn.verification.stating.mistakes import BadInput
from lrdyn.verification.stating.sources import code_digest, source_digest
from lrdyn.verification.stating.statement import Claim, Experiment, Outcome, Scenario, Theorem
from lrdyn.verification.storing import files, results_file
from tests.made_up import (
    CLAIM,
    EVEN,
    EXACT,
    SCENARIO,
    SIZES,
    TOLERANCE,
    Made,
    a_test,
    judged,
    produced,
    stated,
)
from tests.oracles import refuses
from tests.runs import results_of, verdict_of


def test_an_exact_match_holds():
    found = judged(produced(EXACT, EXACT))
    assert (found["holds"], found["residual"], found["cases"]) == (True, 0.0, 2)
    assert found["tolerance"] == TOLERANCE


def test_a_false_claim_is_false_even_where_a_true_one_would_show_nothing():
    """Theory says 0 everywhere: had the run been 0, too, the case would be trivial."""

    def entry(measured):
        leg = residuals(CLAIM, SCENARIO, produced(0 * EXACT, measured), "float64", power=True)
        return claim_entry(CLAIM, {"float64": leg})

    assert entry(0 * EXACT)["cases"] == 0
    assert (entry(EXACT)["holds"], entry(EXACT)["cases"]) == (False, 2)


@pytest.mark.parametrize("place", list(np.ndindex(2, 3)))
@pytest.mark.parametrize("side", ["predicted", "measured"])
def test_one_entry_off_by_ten_tolerances_is_seen_wherever_it_stands(place, side):
    off = EXACT.copy()
    off[place] += 10 * TOLERANCE * 4.0
    pair = {"predicted": EXACT, "measured": EXACT} | {side: off}
    found = judged(produced(**pair))
    assert found["holds"] is False
    assert found["residual"] == pytest.approx(10 * TOLERANCE, rel=1e-2)
    assert found["worst_case"] == {"seed": place[0]}


@pytest.mark.parametrize("place", list(np.ndindex(2, 3)))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_fails(place, value):
    lost = EXACT.copy()
    lost[place] = value
    found = judged(produced(EXACT, lost))
    assert (found["holds"], found["residual"]) == (False, None)
    assert judged(produced(lost, lost))["holds"] is False


@pytest.mark.parametrize("place", list(np.ndindex(2, 3)))
def test_a_prediction_that_is_no_number_is_refused_where_the_claim_applies(place):
    """No run could agree with it: the theory is wrong, or not one of this case."""
    lost, (seed, entry) = EXACT.copy(), place
    lost[place] = np.nan
    for run in (EXACT, lost):
        with pytest.raises(BadInput, match=rf"'value' is NaN at index {entry} \(seed={seed}\)"):
            residuals(CLAIM, SCENARIO, produced(lost, run), "float64", power=True)
    unmet = produced(lost, EXACT, met=np.array([False, False]))
    assert set(residuals(CLAIM, SCENARIO, unmet, "float64", power=True).unmet.values) == {"even"}


@pytest.mark.parametrize(
    ("theory", "run", "left_out"),
    [
        ([1.0, 2.0, np.inf], [1.0, 2.0, np.inf], True),  # both outgrew the numbers of the machine
        ([1.0, 2.0, np.inf], [1.0, np.inf, np.nan], True),
        ([1.0, 2.0, np.inf], [1.0, 2.0, 4.0], False),  # theory alone did
        ([1.0, 2.0, 4.0], [1.0, np.inf, np.nan], False),  # the run excuses nothing
    ],
)
def test_what_outgrows_the_range_of_a_precision_is_left_out_if_theory_says_so(
    theory, run, left_out
):
    leg = residuals(CLAIM, SCENARIO, produced([theory] * 2, [run] * 2), "float32", power=True)
    assert set(leg.reason.values) == {"beyond the range of float32" if left_out else ""}
    assert np.isnan(leg.residual.values).all()
    assert claim_entry(CLAIM, {"float32": leg})["holds"] is (None if left_out else False)


def test_a_setting_that_a_precision_cannot_hold_is_left_out_in_it():
    row = partial(row_of, CLAIM, SCENARIO)
    for setting, reason in ((1e38, ""), (1e39, "beyond the range of float32"), (np.inf, "")):
        outcome = Outcome(
            {"seed": 0, "scale": setting},
            predicted=Read({"value": np.ones(3)}, KeyError),
            measured=Read({"value": np.ones(3)}, KeyError),
            hypotheses={},
            dtype=np.dtype("float32"),
            size=3,
            steps=1,
        )
        assert row(outcome).reason == reason


def test_padding_is_cut_off_and_nothing_else():
    ragged = EXACT.copy()
    ragged[1, 2] = np.nan
    assert judged(produced(ragged, ragged, lengths=[3, 2]))["holds"] is True
    assert judged(produced(ragged, ragged, lengths=[3, 3]))["holds"] is False
    assert judged(produced(ragged, ragged))["holds"] is False


def test_a_case_without_an_entry_is_refused():
    with pytest.raises(BadInput, match=r"got shape \(0,\) of 'value', wanted an entry at least"):
        judged(produced(EXACT, EXACT, lengths=[3, 0]))


@pytest.mark.parametrize("answer", [np.nan, 0.0, np.inf])
def test_a_hypothesis_is_met_by_a_yes_alone(answer):
    """In files of somebody else, where an answer may be any number."""
    data = produced(EXACT, EXACT, met=np.array([1.0, answer]))
    assert residuals(CLAIM, SCENARIO, data, "float64").unmet.values.tolist() == ["", "even"]


def test_a_wrong_shape_is_refused():
    dataset = produced(EXACT, EXACT).drop_vars("value_measured")
    dataset["value_measured"] = (("seed", "other"), np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"got shape \(3,\) of .value., wanted .*\(2,\)"):
        judged(dataset)


class OfTheRun(NamedTuple):
    """What is measured, under the name of its side."""

    measured: Float[Array, "index"] = ABSENT


def test_a_field_may_have_the_name_of_its_side():
    claim: Claim[Any, Any] = Claim(
        "small",
        "what is measured is at most 5",
        kind="bound",
        form=lambda outcome: AtMost(outcome.measured.measured, 5.0),
        reads=lambda theory, run: (run.measured,),
    )
    scenario = dataclasses.replace(SCENARIO, claims=(claim,), measured=OfTheRun)
    for sizes, holds in ((EXACT, True), (2 * EXACT, False)):
        dataset = produced(EXACT, EXACT).assign(measured=(("seed", "index"), sizes))
        assert judged(dataset, claim, scenario)["holds"] is holds


def test_a_missing_array_is_named():
    for name in ("value_measured", "longest_axis", "met_even"):
        with pytest.raises(MissingArray, match=r"value|longest_axis|met_even"):
            judged(produced(EXACT, EXACT).drop_vars(name))
    claim = stated(lambda outcome: outcome.measured.other)
    with pytest.raises(MissingArray, match=r"'other' of the run, .* among 'reads'"):
        judged(produced(EXACT, EXACT), claim)


def test_arithmetic_is_float64_whatever_the_run_was():
    values = np.array([[1.0, 1.0 + 2**-23]] * 2, np.float32)
    outcomes = []
    claim = stated(lambda outcome: outcomes.append(outcome) or 0.0)
    residuals(claim, SCENARIO, produced(values, values), "float32")
    first, _ = outcomes
    assert first.measured.value.dtype == np.float64
    assert (first.dtype, first.size, first.steps) == (np.float32, 5, 3)


@pytest.mark.parametrize("met", [[True, False], [False, True], [False, False]])
def test_every_part_of_every_hypothesis_counts(met):
    """Of one that says something of each of several parts, and of the second of two."""
    first = produced(EXACT, EXACT, met_other=("seed", met))
    parts = produced(EXACT, EXACT, met_other=(("seed", "part"), [met, [True, True]]))
    both = {name: lambda case: jnp.asarray(True) for name in ("even", "other")}
    scenario = dataclasses.replace(SCENARIO, hypotheses=both)
    for data, count in ((first, sum(met)), (parts, 1)):
        counts = judged(data, scenario=scenario)["judged"]["float64"]
        assert counts == {"drawn": 2, "judged": count, "left_out": {"other": 2 - count}}


MARKED = dataclasses.replace(
    CLAIM,
    reads=lambda theory, run: (theory.value, run.value, theory.short, theory.outside),
    applies=lambda outcome: not outcome.predicted.outside,
    undecided=lambda outcome: "too few steps" if outcome.predicted.short else "",
)


@pytest.mark.parametrize(
    ("met", "more", "reason"),
    [
        ([False, True], {}, "even"),
        (True, {"lost": ("seed", [7, -1])}, "diverges"),
        (True, {"amplified": ("seed", [1e15, 1.0])}, "ill-conditioned"),
        (True, {"short": ("seed", [1, 0])}, "too few steps"),
        (True, {"outside": ("seed", [1, 0])}, "claim does not apply"),
    ],
)
def test_what_is_left_out_is_counted_with_its_reason(met, more, reason):
    wrong = EXACT.copy()
    wrong[0] += 1.0
    usual = {name: ("seed", [0, 0]) for name in ("short", "outside")}
    usual |= {"lost": ("seed", [-1, -1]), "amplified": ("seed", [1.0, 1.0])}
    claim = dataclasses.replace(MARKED, condition=lambda theory: theory.amplified)
    scenario = dataclasses.replace(SCENARIO, diverges=lambda theory: theory.lost)
    found = judged(produced(EXACT, wrong, met=met, **usual | more), claim, scenario)
    assert found["holds"] is True
    counts = found["judged"]["float64"]
    assert (counts["drawn"], counts["judged"], counts["left_out"]) == (2, 1, {reason: 1})
    assert ("more_steps" in counts) is (reason == "too few steps")


def test_a_run_that_diverges_does_not_excuse_itself():
    """Nor does it if the claim reads at which step."""
    scenario = dataclasses.replace(SCENARIO, diverged=lambda run: run.lost)
    data = produced(EXACT, EXACT * np.inf, lost_measured=("seed", [7, 7]))
    claim = dataclasses.replace(
        CLAIM, reads=lambda theory, run: (theory.value, run.value, run.lost)
    )
    for reading in (CLAIM, claim):
        assert judged(data, reading, scenario)["holds"] is False
    # Theory's own run decides, also where both sides have a field of this name.
    scenario = dataclasses.replace(SCENARIO, diverges=lambda theory: theory.lost)
    for predicted, measured, holds in ((-1, 7, False), (7, -1, None)):
        both = {"lost_predicted": predicted, "lost_measured": measured}
        more = {name: ("seed", [step] * 2) for name, step in both.items()}
        assert judged(produced(EXACT, 2 * EXACT, **more), claim, scenario)["holds"] is holds


def test_a_condition_loosens_its_own_claim_alone():
    off = EXACT + 5 * TOLERANCE * 4.0
    data = produced(EXACT, off, amplified=("seed", [100.0, 100.0]))
    loosened = dataclasses.replace(CLAIM, condition=lambda theory: theory.amplified)
    assert judged(data, loosened)["holds"] is True
    assert judged(data)["holds"] is False


@pytest.mark.parametrize(("limit", "holds"), [(1.29e-3, False), (1.31e-3, None)])
def test_a_tolerance_without_three_digits_decides_nothing(limit, holds):
    data = produced(EXACT, 2 * EXACT, amplified=("seed", [limit / TOLERANCE] * 2))
    claim = dataclasses.replace(CLAIM, condition=lambda theory: theory.amplified)
    assert judged(data, claim)["holds"] is holds


def test_a_tolerance_is_left_out_when_it_passes_what_means_something():
    data = produced(EXACT, EXACT, amplified=("seed", [1.0, 1.0]))
    claim = stated(
        lambda outcome: 1.0,
        kind="limit",
        tolerance=1.0,
        condition=lambda theory: theory.amplified,
    )
    for limit, holds in ((RESOLVED, False), (float(np.nextafter(RESOLVED, 1)), None)):
        assert judged(data, dataclasses.replace(claim, tolerance=limit))["holds"] is holds


@pytest.mark.parametrize("arrived", [True, False])
def test_every_case_is_counted_with_who_decided_it(arrived):
    claim = dataclasses.replace(CLAIM, certified=lambda outcome: arrived)
    by = judged(produced(EXACT, EXACT), claim)["decided_by"]
    counts = {"steps": 2 * (not arrived), "certificate": 2 * arrived}
    assert by == counts | {"trivial": 0, "excused": 0}


# Two precisions, and what a verdict rests on ---------------------------------------------------


def in_both(errors, met=(True, True), claim=CLAIM, **how):
    """Entry of a claim whose two precisions leave these differences."""
    pairs = zip(("float64", "float32"), errors, met, strict=True)
    data = {p: produced(EXACT, EXACT * (1 + off), met=m, **how) for p, off, m in pairs}
    return claim_entry(claim, {p: residuals(claim, SCENARIO, d, p) for p, d in data.items()})


@pytest.mark.parametrize(
    ("errors", "met", "holds", "scales"),
    [
        ((0.0, 1e-7), (True, True), True, True),
        ((1e-13, 1e-7), (True, True), False, None),  # beyond the tolerance of float64
        ((1e-15, 1e-2), (True, True), False, True),  # float32 counts
        ((0.0, 0.0), (True, False), True, None),  # float32 says nothing
        ((0.0, 0.0), (False, True), None, None),  # float64 was asked for
        ((0.0, 1e-2), (False, True), False, None),
    ],
)
def test_both_precisions_count(errors, met, holds, scales):
    found = in_both(errors, met)
    assert found["holds"] is holds
    assert scales is None or found["scales_with_epsilon"] is scales
    assert found["hypotheses_met"] is met[0]


@pytest.mark.parametrize(("float32", "holds"), [(0.0, False), (4e-7, True)])
def test_a_residual_that_does_not_scale_is_false_within_both_tolerances(float32, holds):
    found = in_both((6e-14, float32), size=500)
    assert found["residual"] < found["tolerance"]
    assert found["residual_float32"] < found["tolerance_float32"]
    assert (found["holds"], found["scales_with_epsilon"]) == (holds, holds)


@pytest.mark.parametrize(("least", "holds"), [(100.0, True), (1.0, False)])
def test_what_a_run_amplifies_is_taken_off_before_residuals_are_compared(least, holds):
    """The worst cases of two precisions can be different runs."""
    claim = dataclasses.replace(CLAIM, condition=lambda theory: theory.amplified)
    found = in_both((6e-13, 0.0), claim=claim, amplified=("seed", [100.0, least]))
    assert found["holds"] is holds


def entries(*rows):
    names: list[str] = ["id", "kind", "holds", "hypotheses_met", "cases"]
    by = {"decided_by": {"excused": 2}, "judged": {"float64": {}}}
    return [dict(zip(names, row, strict=True)) | by for row in rows]


VALUE, COUNT = ("value", "identity"), ("count", "exact")


@pytest.mark.parametrize(
    ("rows", "verdict", "still_open"),
    [
        ([(*VALUE, True, True, 2), (*COUNT, True, True, 2)], True, []),
        ([(*VALUE, None, False, 0), (*COUNT, True, True, 2)], None, []),  # a count carries nothing
        ([(*VALUE, None, True, 0), (*COUNT, True, True, 2)], None, ["value"]),
        ([(*VALUE, True, True, 2), (*COUNT, None, True, 0)], True, []),
        ([(*VALUE, True, True, 2), (*COUNT, False, True, 2)], False, []),
        ([(*VALUE, True, True, 2), ("seen", "control", False, True, 2)], False, []),
        ([(*VALUE, None, True, 0), ("seen", "control", False, True, 2)], None, ["value"]),
        ([(*VALUE, None, False, 0), ("seen", "control", False, True, 2)], None, []),
        ([("side", "identity", True, True, 2), ("seen", "control", True, True, 2)], None, []),
        ([(*VALUE, True, True, 2), ("side", "identity", None, True, 0)], None, ["side"]),
        ([(*VALUE, True, True, 2), ("side", "identity", False, True, 2)], False, []),
    ],
)
def test_what_a_verdict_rests_on(rows, verdict, still_open):
    count = dataclasses.replace(CLAIM, id="count", kind="exact", carries=False)
    main = dataclasses.replace(SCENARIO, claims=(CLAIM, count))
    side = dataclasses.replace(
        SCENARIO, id="beside", claims=(dataclasses.replace(CLAIM, id="side"),)
    )
    theorem = Theorem("made", "by hand", (SIZES,), (main, side))
    assert verify.decide(theorem, entries(*rows)) is verdict
    assert verify.undecided_claims(theorem, entries(*rows)) == still_open


# Controls --------------------------------------------------------------------------------------


def broken(**parts):
    """A control of the formula, or of what else is named."""
    return lr.Control("broken", "something", "value", **parts or {"predict": lambda case: Made()})


BY_CASE = {"case": lambda key, case, amount: case, "breaks": "even"}
OF_CLAIM = BY_CASE | {"breaks": "applies"}


@pytest.mark.parametrize(
    ("parts", "met", "more", "seen"),
    [
        ({}, True, {}, True),
        ({}, False, {}, False),  # it would not have been judged
        ({}, True, {"short": 1}, False),
        (BY_CASE, False, {}, True),
        (BY_CASE, True, {}, False),  # the check of the hypothesis is blind
        (BY_CASE, [True, False], {}, False),
        (BY_CASE, False, {"short": 1}, False),  # it fails, but something else is wrong too
        (OF_CLAIM, True, {"outside": 1}, True),
        (OF_CLAIM, True, {}, False),
        (OF_CLAIM, False, {"outside": 1}, False),
    ],
)
def test_a_control_fails_for_the_reason_that_it_names(parts, met, more, seen):
    marks = {name: ("seed", [more.get(name, 0)] * 2) for name in ("short", "outside")}
    data = produced(EXACT, 2 * EXACT, met=met, **marks)
    legs = {"float64": residuals(MARKED, SCENARIO, data, "float64")}
    assert control_entry(broken(**parts), MARKED, legs)["holds"] is seen


@pytest.mark.parametrize(
    ("parts", "met", "said"),
    [
        (BY_CASE, True, "NOT SEEN TO FAIL (the hypothesis that it breaks did not notice)"),
        (BY_CASE, False, "fails, as it must"),
        ({}, True, "fails, as it must"),
    ],
)
def test_a_control_says_that_its_hypothesis_is_blind(parts, met, said):
    legs = {"float64": residuals(CLAIM, SCENARIO, produced(EXACT, 2 * EXACT, met=met), "float64")}
    assert outcome_in_words(control_entry(broken(**parts), CLAIM, legs)) == said
    # One that does not fail, whether its hypothesis notices or not, says no more than that.
    agrees = {"float64": residuals(CLAIM, SCENARIO, produced(EXACT, EXACT, met=met), "float64")}
    assert outcome_in_words(control_entry(broken(**parts), CLAIM, agrees)) == "NOT SEEN TO FAIL"


def test_a_claim_whose_run_lost_its_numbers_in_one_precision_says_in_which():
    pairs = {"float64": EXACT, "float32": EXACT * np.nan}
    legs = {p: residuals(CLAIM, SCENARIO, produced(EXACT, run), p) for p, run in pairs.items()}
    assert outcome_in_words(claim_entry(CLAIM, legs)) == "FALSE (no number in float32)"


@pytest.mark.parametrize("entry", [claim_entry, partial(control_entry, broken())])
def test_an_entry_is_json_whatever_its_condition(entry):
    claim = dataclasses.replace(CLAIM, condition=lambda theory: theory.amplified)
    data = produced(EXACT, EXACT, amplified=("seed", [np.inf, np.nan]))
    legs = {p: residuals(claim, SCENARIO, data, p) for p in ("float64", "float32")}
    assert json.loads(json.dumps(entry(claim, legs), allow_nan=False))["holds"] in (None, False)


def test_a_control_is_seen_to_fail_in_each_precision():
    fails, agrees = produced(EXACT, 2 * EXACT), produced(EXACT, EXACT)
    for first, second, seen in ((fails, fails, True), (fails, agrees, False)):
        pairs = zip(("float64", "float32"), (first, second), strict=True)
        legs = {p: residuals(CLAIM, SCENARIO, data, p) for p, data in pairs}
        assert control_entry(broken(), CLAIM, legs)["holds"] is seen


def test_a_test_fails_clearly_once_it_is_past_its_tolerance():
    rare = a_test(10**-6.6)
    leg = residuals(rare, SCENARIO, produced(EXACT, EXACT), "float64")
    leg.tolerance[:] = 6.0
    assert control_entry(broken(), rare, {"float64": leg})["holds"] is True


def test_a_control_that_can_show_nothing_has_no_case():
    leg = residuals(CLAIM, SCENARIO, produced(EXACT, 2 * EXACT), "float64")
    leg["reason"] = leg.reason.copy(data=["too few seeds"] * 2)
    entry = control_entry(broken(), CLAIM, {"float64": leg})
    assert (entry["holds"], entry["residual"]) == (None, None)
    assert (entry["cases"], entry["cases_total"], entry["worst_case"]) == (0, 2, {})


@pytest.mark.parametrize(
    ("measured", "reasons", "seen"),
    [
        ([2.0, 1.0], ["", "ill-conditioned"], True),
        ([1.0, 2.0], ["ill-conditioned", ""], True),
        ([1.0, 2.0], ["", "ill-conditioned"], False),  # the seed that decides sees nothing
        ([2.0, 2.0], ["ill-conditioned", "ill-conditioned"], False),  # nobody decides
        ([2.0, 2.0], ["", "no digits"], False),  # no reason of theory's own run
    ],
)
def test_a_seed_that_theory_calls_ill_conditioned_decides_nothing(measured, reasons, seen):
    factors = np.array(measured).reshape(-1, *[1] * (EXACT.ndim - 1))
    leg = residuals(CLAIM, SCENARIO, produced(EXACT, factors * EXACT), "float64")
    leg["reason"] = leg.reason.copy(data=reasons)
    entry = control_entry(broken(), CLAIM, {"float64": leg})
    assert entry["holds"] is seen
    assert entry["cases"] == reasons.count("") + reasons.count("no digits")


def test_a_control_says_what_it_breaks(unchecked):
    with pytest.raises(ValueError, match="control 'broken': got breaks='', wanted the hypothesis"):
        broken(case=BY_CASE["case"])
    with pytest.raises(ValueError, match="got breaks='odd', wanted one of"):
        dataclasses.replace(SCENARIO, controls=(broken(**BY_CASE | {"breaks": "odd"}),))


def test_statistical_tests_share_one_chance_of_a_false_alarm():
    claim = dataclasses.replace(a_test(10**-6.4), id="rare")
    alone = dataclasses.replace(SCENARIO, claims=(claim,))
    sums = Theorem("made", "by hand", (SIZES,), (alone,))
    groups: dict[str, Any] = dict.fromkeys(("/", "/float32"), produced(EXACT, EXACT))
    found = judge_results(sums, groups, "float64")
    assert (found.tests, found.claims[0]["holds"]) == (4, True)
    assert found.claims[0]["p"] == pytest.approx(10**-6.4)
    few = {name: data.isel(seed=[0]) for name, data in groups.items()}
    assert judge_results(sums, few, "float64").claims[0]["holds"] is False
    # A test with a tolerance of its own has no part in it.
    own = dataclasses.replace(claim, id="own", tolerance=7.0)
    both = dataclasses.replace(sums, scenarios=(dataclasses.replace(alone, claims=(claim, own)),))
    found = judge_results(both, groups, "float64")
    assert (found.tests, found.claims[1]["tolerance"]) == (4, 7.0)


# Power ---------------------------------------------------------------------------------------


def verdict_on(claims, dataset, **changes):
    """What is judged of claims on the same arrays in both precisions."""
    scenario = dataclasses.replace(SCENARIO, claims=claims, **changes)
    theorem = Theorem("made", "by hand", (SIZES,), (scenario,))
    return verify.verify_groups(
        theorem, dict.fromkeys(("/", "/float32"), dataset), "float64"
    ).verdict


SMALL = 1e-20 * EXACT
SAID = {
    "a vanishing prediction": (SMALL, SMALL, lambda p, m: Equal(p, m, scale=1.0), False),
    "one that was the start": (EXACT, EXACT, lambda p, m: Equal(p, m, null=EXACT[0]), False),
    "one that is seen": (EXACT, EXACT, lambda p, m: Equal(p, m), True),
    "a zero that could be large": (EXACT, SMALL, lambda p, m: Zero(m, 1.0, p), True),
    "a zero that could not": (SMALL, SMALL, lambda p, m: Zero(m, 1.0, p), False),
    "a bound above": (EXACT, SMALL, lambda p, m: AtMost(m, p, 1.0), True),
    "a bound of no size": (SMALL, SMALL, lambda p, m: AtMost(m, p, 1.0), False),
    "an infinite bound": (EXACT * np.inf, EXACT, lambda p, m: AtMost(m, p, 1.0), False),
    "a bound below": (EXACT, 2 * EXACT, lambda p, m: AtLeast(m, p), True),
    "a small bound below": (SMALL, EXACT, lambda p, m: AtLeast(m, p, 1.0), False),
}


@pytest.mark.parametrize("name", SAID)
def test_what_could_not_have_failed_is_undecided(name):
    predicted, measured, form, seen = SAID[name]
    claim = dataclasses.replace(
        stated(lambda outcome: 0.0),
        form=lambda outcome: form(outcome.predicted.value, outcome.measured.value),
    )
    found = verdict_on((claim,), produced(predicted, measured))
    (entry,) = found["claims"]
    assert entry["holds"] is (True if seen else None)
    assert found["holds"] is entry["holds"]
    assert found["undecided"] == ([] if seen else ["value"])
    assert entry["decided_by"] == {
        "steps": 2 * seen,
        "certificate": 0,
        "trivial": 0,
        "excused": 2 * (not seen),
    }
    assert seen or entry["judged"]["float64"]["left_out"] == {"below what can be seen here": 2}


def test_what_theory_says_by_name_is_trivial_and_opens_nothing():
    trivial = dataclasses.replace(CLAIM, id="trivial")
    for form in (lambda o: Equal(0 * o.predicted.value, o.measured.value, 1.0), at_least_zero):
        zero = dataclasses.replace(stated(lambda outcome: 0.0), id="trivial", form=form)
        found = verdict_on((zero,), produced(EXACT, 0 * EXACT))
        assert (found["holds"], found["undecided"]) == (None, [])
        assert found["claims"][0]["decided_by"]["trivial"] == 2
        both = verdict_on((zero, CLAIM), produced(EXACT, EXACT))
        assert both["claims"][0]["holds"] is (None if form is at_least_zero else False)
    assert trivial.compares is CLAIM.compares


def at_least_zero(outcome):
    return AtLeast(outcome.measured.value, 0 * outcome.predicted.value)


def test_a_claim_that_fails_is_false_whatever_it_could_have_shown():
    """Theory says that nothing moves, the run moves; the null is what theory says."""
    found = verdict_on((CLAIM,), produced(SMALL, EXACT))
    assert found["claims"][0]["holds"] is False
    blind = dataclasses.replace(
        stated(lambda outcome: 0.0), form=lambda o: Equal(o.predicted.value, o.measured.value, 1.0)
    )
    assert verdict_on((blind,), produced(EXACT, SMALL))["holds"] is False


def test_a_test_that_cannot_exclude_its_alternative_is_undecided():
    for alternative, holds in ((1e-9, True), (1e-3, None)):
        found = verdict_on((a_test(0.5, alternative),), produced(EXACT, EXACT))
        assert found["holds"] is holds
        assert found["statistics"]["tests"] == (4 if holds else 0)


def test_an_integer_off_by_one_fails():
    for off in range(3):
        other = EXACT.copy()
        other[0, off] += 1
        claim = dataclasses.replace(CLAIM, kind="exact")
        assert judged(produced(EXACT, other), claim)["holds"] is False
    assert Count(EXACT, EXACT).lack_of_power(0.0) == ""


def test_numbers_that_no_run_leaves_are_lost_and_fail():
    """A formula refuses them; that excuses nothing."""

    def refusing(outcome):
        raise OutsideDomain("values: got -1.0, wanted numbers >= 0")

    for claim in (
        dataclasses.replace(stated(lambda outcome: 0.0), form=refusing),
        dataclasses.replace(CLAIM, undecided=refusing),
    ):
        found = verdict_on((claim,), produced(EXACT, EXACT))
        assert (found["holds"], found["claims"][0]["cases"]) == (False, 2)


def test_who_decided_is_counted():
    claim = dataclasses.replace(
        CLAIM, certified=lambda outcome: outcome.measured.value[0] == 1, undecided=moving
    )
    values = EXACT * [[1.0], [2.0]]
    found = verdict_on((claim,), produced(values, values))
    by = {"steps": 1, "certificate": 1, "trivial": 0, "excused": 0}
    assert found["claims"][0]["decided_by"] == by


def moving(outcome):
    return ""


@pytest.mark.parametrize("main", [True, False])
def test_any_carrying_claim_without_a_case_opens_the_verdict(main):
    """Of whatever scenario was asked for."""
    excused = dataclasses.replace(CLAIM, id="excused", undecided=lambda outcome: "too few steps")
    side = dataclasses.replace(SCENARIO, id="side", claims=(excused,))
    scenarios = (SCENARIO, side)
    groups: dict[str, Any] = dict.fromkeys(
        ("/", "/float32", "/side", "/side/float32"), produced(EXACT, EXACT)
    )
    for carries in (True, False):
        claims = (dataclasses.replace(excused, carries=carries),)
        first = dataclasses.replace(SCENARIO, claims=(CLAIM, *(claims if main else ())))
        scenarios = (first, dataclasses.replace(side, claims=() if main else claims))
        found = verify.verify_groups(
            Theorem("made", "", (SIZES,), scenarios), groups, "float64"
        ).verdict
        assert found["holds"] is (None if carries else True)
        assert found["undecided"] == (["excused"] if carries else [])


def test_a_name_on_the_wrong_side_is_refused_when_it_is_stated():
    class Theory(NamedTuple):
        weights: Float[Array, "index"] = ABSENT

    class Run(NamedTuple):
        weights: Float[Array, "index"] = ABSENT
        step: Int[Array, ""] = ABSENT

    def scenario(**claim):
        return Scenario[Any, Any, Any](
            "mine", dict, theory=Theory, measured=Run, claims=(Claim("mine", "", **claim),)
        )

    scenario(compares=lambda theory, run: (theory.weights, run.weights))
    for claim, message in (
        ({"compares": lambda theory, run: (theory.weights, run.weigths)}, "wanted run.weights"),
        ({"compares": lambda theory, run: (theory.step, run.weights)}, "wanted run.step"),
        ({"compares": lambda theory, run: (run.weights, run.step)}, "an array of theory and one"),
    ):
        with pytest.raises(ValueError, match=message):
            scenario(**claim)


def test_one_side_does_not_stand_in_for_the_other():
    alone = produced(EXACT, EXACT).rename(value_predicted="value").drop_vars("value_measured")
    with pytest.raises(MissingArray, match="got array 'value' of one side alone"):
        judged(alone)


def test_a_residual_that_is_zero_in_every_bit_of_a_long_run_is_pointed_out():
    for steps, said in ((3, False), (100, True)):
        data = produced(EXACT, EXACT)
        data.attrs["fixed"] = json.dumps({"steps": steps})
        (entry,) = verdict_on((CLAIM,), data)["claims"]
        assert entry["equal_to_the_bit"] is said


# Claims over seeds ---------------------------------------------------------------------------


def spread(outcome):
    """Standard deviation of the first entry over the seeds; one of 1 would be a difference."""
    return Stated(float(np.std(outcome.measured.value[:, 0])), alternative=1.0)


OVER_SEEDS = Claim[Made, Made](
    "spread",
    "seeds agree",
    "limit",
    form=spread,
    reads=lambda theory, run: (run.value,),
    tolerance=0.1,
    seeds=2,
)


def many_seeds(values):
    """A sweep of three seeds and two settings."""
    values = np.asarray(values, float)[:, :, None]
    lead = ("seed", "rate")
    arrays = {
        "value": ((*lead, "index"), values),
        "longest_axis": (lead, np.ones(values.shape[:2], int)),
        "met_even": (lead, np.ones(values.shape[:2], bool)),
    }
    return xr.Dataset(arrays, {"seed": [0, 1, 2], "rate": [0.1, 0.2]})


def test_a_claim_over_seeds_looks_at_one_setting_at_a_time():
    found = judged(many_seeds([[1, 5], [1, 5], [1, 5]]), OVER_SEEDS)
    assert (found["holds"], found["cases"], found["worst_case"]) == (True, 2, {"rate": 0.1})
    found = judged(many_seeds([[1, 5], [1, 6], [1, 7]]), OVER_SEEDS)
    assert (found["holds"], found["worst_case"]) == (False, {"rate": 0.2})


def test_a_seed_that_does_not_meet_the_hypotheses_is_no_evidence():
    data = many_seeds([[1, 5], [1, 5], [1, 9]])
    data["met_even"][2, 1] = False
    seen = []
    claim = dataclasses.replace(
        OVER_SEEDS, form=lambda outcome: seen.append(outcome) or spread(outcome)
    )
    assert judged(data, claim)["holds"] is True
    assert [outcome.point["seed"].tolist() for outcome in seen] == [[0, 1, 2], [0, 1]]
    more = dataclasses.replace(OVER_SEEDS, seeds=3)
    counts = judged(data, more)["judged"]["float64"]
    assert counts == {"drawn": 2, "judged": 1, "left_out": {"too few seeds": 1}}
    data["met_even"][:] = False
    assert judged(data, OVER_SEEDS)["holds"] is None


# Large results -------------------------------------------------------------------------------


def test_large_arrays_are_read_slab_by_slab(monkeypatch):
    rng = np.random.default_rng(0)
    shape, lead = (3, 4, 2), ("seed", "a", "b")
    values = rng.normal(size=(*shape, 5))
    other = values * (1 + 1e-17)
    other[2, 1, 0, 4] += 1e-9
    arrays = {
        "value_predicted": ((*lead, "index"), values),
        "value_measured": ((*lead, "index"), other),
        "longest_axis": (lead, np.full(shape, 5)),
        "met_even": (lead, np.ones(shape, bool)),
    }
    coordinates = {"seed": range(3), "a": range(4), "b": [0.5, 0.7]}
    whole = judged(xr.Dataset(arrays, coordinates))
    monkeypatch.setattr(files, "SLAB", 200)
    assert judged(xr.Dataset(arrays, coordinates)) == whole
    assert whole["worst_case"] == {"seed": 2, "a": 1, "b": 0.5}


def test_each_seed_has_draws_of_its_own():
    (scenario,) = saved_theorem().scenarios
    for point in (
        evaluate(scenario, {"size": 3}),
        evaluate_controls(scenario, {"size": 3}, scenario.controls),
    ):
        one, other = point(0), point(1)
        (name,) = (name for name in one if name.endswith("value_measured"))
        assert not np.any(one[name] == other[name])


def test_a_negative_residual_is_lost():
    outcome = Outcome({}, Made(), Made(), {}, np.dtype("float64"), 1, 1)
    assert np.isnan(row_of(stated(lambda outcome: -1.0), SCENARIO, outcome).residual)


# Runs in plain Python, and experiments without a claim ---------------------------------------


class Counted(NamedTuple):
    equations: Int[np.ndarray, ""] = ABSENT
    sizes: Int[np.ndarray, "place"] = ABSENT


def counted(calls):
    """An experiment whose run cannot be traced: it counts the equations of a program."""

    def case(key, *, size):
        return size

    def measure(size):
        calls.append(size)
        jaxpr = jax.make_jaxpr(lambda x: [x + i for i in range(size)])(1.0)
        return Counted(equations=np.array(len(jaxpr.jaxpr.eqns)), sizes=np.arange(size))

    scenario = Scenario("counted", case, measure=measure, measured=Counted, traced=False)
    return Experiment("counts", "additions in a program", (SIZES,), (scenario,))


def test_an_experiment_without_a_claim(command_line, tmp_path):
    calls = []
    status, out, _ = command_line(counted(calls), "--seeds", "1")
    assert (status, calls) == (0, [2, 4])
    assert "counts claims nothing: results/counts/" in out
    found, data = verdict_of(tmp_path), results_of(tmp_path)
    assert (found["holds"], found["claims"]) == (None, [])
    assert data["equations"].squeeze().values.tolist() == [2, 4]
    assert data["length_place"].squeeze().values.tolist() == [2, 4]
    assert command_line(counted(calls), "--judge", "x")[0] == 2


test_a_theorem_wants_a_claim = refuses(
    (lambda: Theorem("bare", "", (), counted([]).scenarios), "'bare': got no claim, wanted one"),
)


def test_finished_points_of_a_plain_run_are_kept(tmp_path):
    calls = []

    def function(size):
        if size == 3 and len(calls) < 3:
            calls.append("stopped")
            raise KeyboardInterrupt
        calls.append(size)
        return {"found": np.array(size)}

    sweep = Sweep(function, lr.product(size=[1, 2, 3]), {}, digest="a")
    context = Context(store=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep, context)
    found = run_sweep(sweep, context)
    assert calls == [1, 2, "stopped", 3]
    assert found["found"].values.tolist() == [1, 2, 3]
    run_sweep(sweep._replace(digest="b"), context)  # other sources: nothing is taken
    assert calls[4:] == [1, 2, 3]


# Saved results, judged again -----------------------------------------------------------------


def value(key, *, size):
    return jax.random.normal(key, (size,))


def doubled(case):
    return Made(value=2 * case)


def added(case):
    return Made(value=case + case, extra=jnp.zeros(3))


def saved_theorem(**parts):
    scenario = Scenario[jax.Array, Made, Made](
        "sums",
        value,
        doubled,
        added,
        theory=Made,
        measured=Made,
        claims=(CLAIM,),
        controls=(lr.Control("tripled", "3 x", "value", predict=lambda x: Made(value=3 * x)),),
    )
    scenario = dataclasses.replace(scenario, **parts)
    return Theorem("sums", "2 x = x + x", (SIZES,), (scenario,))


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The folder of one run, to be copied."""
    run = run_of(saved_theorem(), size=[2, 4])
    return run_folder.carry_out(run, tmp_path_factory.mktemp("saved"))[1]


@pytest.fixture
def folder(once, tmp_path):
    return shutil.copytree(once, tmp_path / "saved")


@pytest.fixture
def again(folder, command_line):
    """Judge the folder again: exit status, output, errors."""
    return lambda theorem=None, *more: command_line(
        theorem or saved_theorem(), "--judge", folder.name, *more
    )


def content(folder):
    """All groups of saved results, in memory."""
    return results_file.load(folder / "results.nc")


def test_judging_again_gives_the_same(folder, again):
    before = verdict_of(folder)
    stamp = (folder / "results.nc").stat().st_mtime_ns
    status, out, err = again()
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "sums holds: saved"
    assert verdict_of(folder) == before
    assert (folder / "results.nc").stat().st_mtime_ns == stamp


def test_results_say_what_made_them(folder):
    attributes = content(folder)["/"].attrs
    verdict = verdict_of(folder)
    every = {"drawn": 4, "judged": 4, "left_out": {}}  # two seeds of two sizes
    assert verdict["claims"][0]["judged"] == {"float64": every, "float32": every}
    one, other = content(folder)["/"]["value_measured"].values[..., :2]
    assert not np.any(one == other)
    assert attributes["name"] == "sums"
    assert json.loads(attributes["config"]) == verdict["config"]
    assert attributes["digest"] == source_digest(saved_theorem())
    assert json.loads(attributes["environment"]) == verdict["environment"]
    assert verdict["results_sha256"] == results_file.checksum(folder / "results.nc")


def test_a_changed_file_is_noticed_and_judged_if_asked_for(folder, again):
    groups = content(folder)
    groups["/"]["value_measured"].values[1, 1, 3] += 1e-3
    files.write_netcdf(folder / "results.nc", groups)
    before = verdict_of(folder)
    status, out, err = again()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "results.nc is not the file that the run wrote: its checksum differs" in err
    assert "or --changed" in err
    assert verdict_of(folder) == before
    status, out, _ = again(None, "--changed")
    assert status == 1
    assert "changed: results.nc is not the file that the run wrote: its checksum differs" in out
    assert out.splitlines()[-1] == "changed: sums IS FALSE: saved"
    verdict = verdict_of(folder)
    assert (verdict["changed"], verdict["results_sha256"]) == (True, None)
    assert "verdict.json is of a changed file" in again()[2]  # that is not forgotten
    assert again(None, "--changed")[0] == 1


def test_an_edited_judge_is_told_from_the_run(again, monkeypatch):
    monkeypatch.setattr(run_folder, "source_digest", lambda theorem, config: "other")
    status, out, _ = again()
    assert status == 0
    assert "the source of sums is not that of the run" in out
    monkeypatch.setattr(run_folder, "judges_digest", lambda theorem: "other")
    assert "the judges of sums are not those of the run" in again()[1]


def test_results_from_before_a_flag_are_those_of_another_version(folder, again):
    groups = content(folder)
    config = json.loads(groups["/"].attrs["config"])
    del config["size"]
    groups["/"].attrs |= {"config": json.dumps(config), "digest": "0" * 64}
    files.write_netcdf(folder / "results.nc", groups)
    status, out, err = again()
    assert (status, out) == (2, "")
    assert "results.nc: of another version of sums, without --size" in err


def test_a_control_that_no_longer_fails_is_seen(folder, again):
    groups = content(folder)
    tripled = groups["/controls/tripled/float64"]
    tripled["value_predicted"].values[:] = tripled["value_measured"].values
    files.write_netcdf(folder / "results.nc", groups)
    status, out, _ = again(None, "--changed")
    assert status == 1
    assert "NOT SEEN TO FAIL" in out


@pytest.mark.parametrize(
    ("group", "name", "said"),
    [
        ("/", "value_measured", "no array 'value'"),
        ("/float32", "longest_axis", "no array 'longest_axis'"),
        ("/controls/tripled/float64", None, "no group '/controls/tripled/float64'"),
        ("/float32", None, "no group '/float32'"),
    ],
)
def test_a_missing_array_is_bad_input(group, name, said, folder, again):
    groups = content(folder)
    dropped = groups.pop(group)
    if name:
        groups[group] = dropped.drop_vars(name)
    files.write_netcdf(folder / "results.nc", groups)
    assert again()[0] == 2
    status, out, err = again(None, "--changed")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert err.startswith("sums: error: --judge: got 'saved' (")


@pytest.mark.parametrize(
    ("attribute", "value", "said"),
    [
        ("config", "[]", "its settings: TypeError"),
        ("config", "{}", "its settings: KeyError"),
        ("config", '{"size": NaN}', "its settings: ValueError"),
        ("config", '{"size": "2"}', "its setting size"),
        ("config", '{"size": [{}]}', "its setting size"),
        ("config", "[" * 100_000, "its settings: RecursionError"),
        ("digest", None, "no digest of the source"),
        ("name", "\x1b[2J", r"of '\x1b[2J'"),
    ],
)
def test_settings_that_no_run_wrote_are_bad_input(attribute, value, said, folder, again):
    groups = content(folder)
    groups["/"].attrs.pop(attribute)
    if value is not None:
        groups["/"].attrs[attribute] = value
    files.write_netcdf(folder / "results.nc", groups)
    status, out, err = again()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_verdict_without_a_known_precision_is_bad_input(folder, again):
    verdict = verdict_of(folder)
    verdict["environment"] = {"dtype": "float13"}
    (folder / "verdict.json").write_text(json.dumps(verdict))
    status, out, err = again()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "float13" in err


@pytest.mark.parametrize("name", ["results.nc", "verdict.json"])
@pytest.mark.parametrize("content", [None, b"", b"half a file"])
def test_a_missing_or_damaged_file_is_bad_input(name, content, folder, again):
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    status, out, err = again()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f"saved/{name}: {'not found' if content is None else 'damaged'}" in err


def test_nothing_that_applies_is_bad_input(folder, again):
    groups = content(folder)
    for group in ("/", "/float32"):
        groups[group]["met_even"] = xr.zeros_like(groups[group]["longest_axis"], bool)
    files.write_netcdf(folder / "results.nc", groups)
    status, out, err = again(saved_theorem(hypotheses=EVEN, controls=()), "--changed")
    assert (status, out) == (2, "")
    assert "nothing judged: no case meets even" in err


def test_results_of_another_theorem_are_refused(again):
    status, _, err = again(dataclasses.replace(saved_theorem(), name="other"))
    assert (status, err.count("\n")) == (2, 1)
    assert "of 'sums'" in err
    assert "wanted a folder of results of other" in err


def test_nothing_can_be_asked_for_beside_judging(command_line):
    status, _, err = command_line(saved_theorem(), "--judge", "folder", "--size", "3")
    assert status == 2
    assert "--judge: got other arguments beside it, wanted none" in err
    status, _, err = command_line(saved_theorem(), "--changed")
    assert (status, err) == (
        2,
        "sums: error: --changed: got it alone, wanted --judge FOLDER beside it\n",
    )


def test_the_digest_covers_what_a_theorem_imports_from_beside_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "beside_it.py").write_text("def helper(one):\n    return 0.0\n")
    (tmp_path / "of_its_own.py").write_text(
        "from beside_it import helper\n\n\ndef judge(one):\n    return helper(one)\n"
    )
    judge = importlib.import_module("of_its_own").judge
    before = code_digest([judge])
    assert code_digest([judge]) == before
    (tmp_path / "beside_it.py").write_text("def helper(one):\n    return 1.0\n")
    assert code_digest([judge]) != before


def test_one_claim_of_the_first_scenario_that_applies_is_enough():
    """Whichever it is: only where none applies something is said of all."""
    entries = [
        {"id": claim.id, "hypotheses_met": False, "judged": {"float64": {"left_out": {"even": n}}}}
        for n, claim in enumerate(COROLLARY1.scenarios[0].claims, start=1)
    ]
    carriers = [n for n, claim in enumerate(COROLLARY1.scenarios[0].claims) if claim.carries]
    assert verify.unmet_reasons(COROLLARY1, entries) == {"even": carriers[-1] + 1}
    for n in carriers:
        one = [entry | {"hypotheses_met": k == n} for k, entry in enumerate(entries)]
        assert verify.unmet_reasons(COROLLARY1, one) == {}


@pytest.mark.parametrize(
    ("flag", "value", "right"),
    [
        (Flag("mask", ("a", "b"), one_of("a", "b"), str, shapes=True), ["b", "a"], True),
        (Flag("mask", ("a", "b"), one_of("a", "b"), str, shapes=True), [1.0], False),
        (Flag("rate", (0.1,)), [0.2, 1], True),
        (Flag("rate", (0.1,)), ["0.2"], False),
        (Flag("rate", (0.1,)), [], False),
        (Flag("steps", (5,), type=int, swept=False), 7, True),
        (Flag("steps", (5,), type=int, swept=False), None, True),
        (Flag("steps", (5,), type=int, swept=False), "7", False),
    ],
)
def test_settings_of_saved_results_have_the_types_of_their_flags(flag, value, right):
    assert run_folder._is_setting(flag, value) is right
