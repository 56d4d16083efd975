"""Entries of a verdict, from legs made by hand: claims, tests, controls, findings, lost runs."""

import dataclasses
import json
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr
from jaxtyping import Array, Float

import lrdyn as lr
from lrdyn import statements
from lrdyn.verification.judging import judging, rounding
from lrdyn.verification.judging.judging import LOST, TOO_FEW_SEEDS
from lrdyn.verification.judging.outcomes import MissingArray
from lrdyn.verification.runs import verify
from lrdyn.verification.stating import forms
from lrdyn.verification.stating.claims import UNSEEN_RELEASE, surprise
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import (
    Claim,
    Experiment,
    Finding,
    Outcome,
    Scenario,
    Study,
    Theorem,
)
from tests.made_up import CLAIM, EXACT, SCENARIO, SIZES, TRAINED, Made, a_test, produced, stated

NAN, INFINITE = float("nan"), float("inf")
TEXTS = ("unmet", "reason", "steps_flag")


def leg(residual=(0.0, 0.0), **columns):
    """What was found of a claim at two seeds; all that is not given is as where all is well."""
    usual: dict[str, Any] = {
        "tolerance": 1.0,
        "condition": 1.0,
        "steps": 3,
        "unmet": "",
        "reason": "",
        "threshold": 1.0,
        "alternative": NAN,
        "certified": False,
        "two_sided": True,
        "steps_needed": NAN,
        "steps_flag": "",
    }
    every = {"residual": residual} | usual | columns
    arrays = {}
    for name, column in every.items():
        values = np.empty(2, object) if name in TEXTS else np.empty(2)
        values[:] = column
        arrays[name] = (
            "seed",
            values.astype(bool) if name in ("certified", "two_sided") else values,
        )
    return xr.Dataset(arrays, {"seed": [0, 1]}, {"fixed": json.dumps({"steps": 3})})


# Claims ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "decided", "met"),
    [
        ({}, (2, 0, 0, 0), True),
        ({"certified": [True, False]}, (1, 1, 0, 0), True),
        ({"certified": True, "reason": ["", "trivial"]}, (0, 1, 1, 0), True),
        ({"reason": [forms.BELOW_SIGHT, ""]}, (1, 0, 0, 1), True),
        ({"reason": ["diverges", forms.TRIVIAL]}, (0, 0, 1, 1), True),
        ({"unmet": ["even", ""]}, (1, 0, 0, 0), True),
        ({"unmet": "even", "reason": "diverges"}, (0, 0, 0, 0), False),
        ({"reason": [TOO_FEW_SEEDS, "claim does not apply"]}, (0, 0, 0, 0), False),
        ({"reason": [TOO_FEW_SEEDS, "diverges"]}, (0, 0, 0, 1), True),
    ],
)
def test_cases_are_counted_by_what_decided_them(columns, decided, met):
    entry = judging.claim_entry(CLAIM, {"float64": leg(**columns)})
    names = ("steps", "certificate", "trivial", "excused")
    assert entry["decided_by"] == dict(zip(names, decided, strict=True))
    assert entry["hypotheses_met"] is met
    reasons = [str(x) for x in judging.left_out_reasons(leg(**columns))]
    left_out = {name: reasons.count(name) for name in reasons if name}
    wanted = {"drawn": 2, "judged": reasons.count(""), "left_out": left_out}
    assert entry["judged"] == {"float64": wanted}


def test_an_entry_has_the_worst_case_of_each_precision():
    legs = {"float64": leg((0.25, 0.75)), "float32": leg((3.0, 0.5), tolerance=[4.0, 1.0])}
    entry = judging.claim_entry(dataclasses.replace(CLAIM, kind="bound"), legs)
    assert (entry["residual"], entry["tolerance"], entry["worst_case"]) == (0.75, 1.0, {"seed": 1})
    assert (entry["residual_float32"], entry["tolerance_float32"]) == (3.0, 4.0)
    assert (entry["holds"], entry["cases"], entry["cases_total"]) == (True, 2, 2)
    lost = judging.claim_entry(CLAIM, {"float64": leg((0.0, NAN)), "float32": leg((INFINITE, 0.0))})
    assert (lost["residual"], lost["residual_float32"], lost["holds"]) == (None, None, False)


@pytest.mark.parametrize(
    ("kind", "columns", "said"),
    [
        ("identity", {"steps": 10}, True),
        ("identity", {"steps": 9}, False),
        ("identity", {"steps": [10, 9]}, True),
        ("bound", {"steps": 10}, False),
        ("identity", {"steps": 10, "two_sided": False}, False),
        ("identity", {"steps": 10, "reason": "diverges"}, False),
        ("identity", {"steps": 10, "residual": [0.0, 1e-300]}, False),
        ("identity", {"steps": [10, 9], "residual": [0.0, 0.5]}, True),
    ],
)
def test_long_runs_that_agree_in_every_bit_are_pointed_out(kind, columns, said):
    claim = dataclasses.replace(CLAIM, kind=kind)
    assert judging.claim_entry(claim, {"float64": leg(**columns)})["equal_to_the_bit"] is said


@pytest.mark.parametrize(
    ("compared", "two_sided"),
    [
        (lambda o: forms.Equal(o.predicted.value, o.measured.value), True),
        (lambda o: forms.Zero(o.measured.value, 1.0, 1.0), False),
        (lambda o: (forms.Zero(0.0, 1.0, 1.0), forms.Equal(1.0, o.measured.value[0])), True),
        (lambda o: (forms.Equal(1.0, o.measured.value[0]), forms.Zero(0.0, 1.0, 1.0)), True),
    ],
)
def test_a_claim_of_several_forms_is_two_sided_if_one_is(compared, two_sided):
    claim = dataclasses.replace(stated(lambda outcome: 0.0), form=compared)
    found = judging.residuals(claim, SCENARIO, produced(EXACT, EXACT), "float64")
    assert found.two_sided.values.tolist() == [two_sided] * 2


def test_a_row_has_the_worst_of_its_forms():
    def several(outcome):
        return forms.Test(1e-2, 1e-5), forms.Test(1e-3, 1e-4), forms.Zero(1.0, 8.0, 1.0)

    small = stated(lambda outcome: 0.0, kind="limit", tolerance=2.0)
    claim = dataclasses.replace(small, form=several)
    found = judging.residuals(claim, SCENARIO, produced(EXACT, EXACT), "float64").isel(seed=0)
    assert (found.residual.item(), found.alternative.item()) == (3.0, pytest.approx(5.0))
    assert (found.threshold.item(), found.tolerance.item()) == (16.0, 2.0)
    assert (found.condition.item(), found.steps.item(), found.certified.item()) == (1.0, 3, False)


class Run(NamedTuple):
    """What goes over steps."""

    path: Float[Array, "index step"] = ABSENT


@pytest.mark.parametrize("seeds", [0, 2])
def test_over_steps_the_null_is_where_theory_starts(seeds):
    """A claim over seeds has these as the first axis of all arrays."""
    values = np.arange(12.0).reshape(2, 2, 3) if seeds else np.arange(6.0).reshape(2, 3)
    claim = Claim[Run, Run](
        "path", "", compares=lambda theory, run: (theory.path, run.path), seeds=seeds
    )
    scenario = dataclasses.replace(SCENARIO, claims=(claim,), theory=Run, measured=Run)
    side = Run(path=values)  # pyright: ignore[reportArgumentType]
    outcome = Outcome({}, side, side, {}, np.dtype("float64"), 1, 1)
    (compared,) = judging.forms_of(claim, scenario, outcome)
    assert isinstance(compared, forms.Equal)
    np.testing.assert_equal(compared.null, values[..., :1])


def test_without_steps_the_null_is_0():
    side = Made(value=EXACT[0])  # pyright: ignore[reportArgumentType]
    outcome = Outcome({}, side, side, {}, np.dtype("float64"), 1, 1)
    (compared,) = judging.forms_of(CLAIM, SCENARIO, outcome)
    assert isinstance(compared, forms.Equal)
    assert compared.null == 0.0


# Tests share one chance of a false alarm ---------------------------------------------------------

SHARED = 1e-6 / 4
"""The chance of each of four tests: two seeds in two precisions."""


@pytest.mark.parametrize(
    ("p", "alternative", "holds", "tests"),
    [
        (0.5, 1e-9, True, 4),
        (0.5, 1e-3, None, 0),  # what claims the opposite would pass, too
        (0.5, SHARED, None, 0),
        (SHARED, 1e-9, True, 4),
        (SHARED, SHARED, None, 0),
        (SHARED / 2, 1e-9, False, 4),
        (SHARED / 2, 1e-3, False, 4),  # false is false, whatever the alternative is
    ],
)
def test_a_test_holds_fails_or_says_nothing(p, alternative, holds, tests):
    claim = dataclasses.replace(a_test(p, alternative), id="rare")
    theorem = Theorem("t", "", (SIZES,), (dataclasses.replace(SCENARIO, claims=(claim,)),))
    groups: dict[str, Any] = dict.fromkeys(("/", "/float32"), produced(EXACT, EXACT))
    found = judging.judge_results(theorem, groups, "float64")
    assert (found.claims[0]["holds"], found.tests) == (holds, tests)
    wanted = [forms.BELOW_SIGHT if holds is None else ""] * 2
    assert found.legs["rare"]["float32"].reason.values.tolist() == wanted


def test_a_test_that_was_left_out_keeps_its_reason():
    """Whatever its draws could have shown."""
    excused = dataclasses.replace(a_test(0.5, 0.5), id="rare", undecided=lambda o: "too skewed")
    theorem = Theorem("t", "", (SIZES,), (dataclasses.replace(SCENARIO, claims=(excused,)),))
    found = judging.judge_results(theorem, {"/": produced(EXACT, EXACT)}, "float32")
    assert found.legs["rare"]["float32"].reason.values.tolist() == ["too skewed"] * 2


def test_a_test_of_its_own_tolerance_reports_what_it_computed():
    """That is no p-value; a claim without a judged case has none."""
    own = dataclasses.replace(a_test(1e-3), id="own", tolerance=2.0)
    for claim, p in ((own, pytest.approx(3.0)), (a_test(1e-3), pytest.approx(1e-3))):
        leg_of = judging.residuals(claim, SCENARIO, produced(EXACT, EXACT), "float64")
        assert judging.claim_entry(claim, {"float64": leg_of})["p"] == p
    assert judging.claim_entry(own, {"float64": leg(unmet="even")})["p"] is None


@pytest.mark.parametrize("count", [1, 2])
def test_one_test_has_the_whole_chance(count):
    claim = dataclasses.replace(a_test(0.5, 1e-9), id="rare")
    theorem = Theorem("t", "", (SIZES,), (dataclasses.replace(SCENARIO, claims=(claim,)),))
    data = produced(EXACT, EXACT).isel(seed=slice(count))
    found = judging.judge_results(theorem, {"/": data}, "float32")
    assert found.tests == count
    assert found.claims[0]["tolerance"] == surprise(1e-6 / count)
    assert found.claims[0]["p"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (lambda outcome: (), "got nothing, wanted a form"),
        (lambda outcome: 0.5, "got float, wanted a form"),
        (lambda outcome: (forms.Stated(0.0, 1.0), "x"), "got str, wanted a form"),
        (lambda outcome: forms.Equal(EXACT[0], EXACT), r"got shape \(3,\) of 'value', "),
    ],
)
def test_what_is_no_form_is_refused(form, said, unchecked):
    claim = dataclasses.replace(stated(lambda outcome: 0.0), form=form)
    with pytest.raises(ValueError, match=said):
        judging.residuals(claim, SCENARIO, produced(EXACT, EXACT), "float64")


# Controls -------------------------------------------------------------------------------------

BROKEN = lr.Control("broken", "something", "value", predict=lambda case: Made())
FAILS, AGREES = leg((10.0, 20.0)), leg((0.0, 20.0))
SET_ASIDE = leg((10.0, 20.0), reason=rounding.REASON)
ASIDE_ONCE = leg((10.0, 20.0), reason=[rounding.REASON, ""])
UNMET = leg((10.0, 20.0), unmet="even")


@pytest.mark.parametrize(
    ("legs", "holds", "met", "cases"),
    [
        ((FAILS,), True, True, 2),
        ((leg((9.9, 20.0)),), False, True, 2),
        ((FAILS, FAILS), True, True, 2),
        ((FAILS, AGREES), False, True, 2),
        ((AGREES, FAILS), False, True, 2),
        # A precision that the device does not have says nothing; that asked for must.
        ((FAILS, SET_ASIDE), True, True, 2),
        ((SET_ASIDE, FAILS), None, False, 0),
        ((FAILS, ASIDE_ONCE), False, True, 2),
        # All cases must meet the hypotheses in all precisions.
        ((UNMET, FAILS), False, False, 2),
        ((FAILS, UNMET), False, False, 2),
        ((leg((10.0, 20.0), unmet=["", "even"]),), False, True, 2),
    ],
)
def test_a_control_is_seen_to_fail_in_every_precision_that_counts(legs, holds, met, cases):
    named: dict[str, Any] = dict(zip(("float64", "float32"), legs, strict=False))
    entry = judging.control_entry(BROKEN, CLAIM, named)
    assert (entry["holds"], entry["hypotheses_met"], entry["cases"]) == (holds, met, cases)
    assert entry["claim"] == "value"
    if cases:
        worst = int(np.argmin(legs[0].residual.values))
        assert entry["worst_case"] == {"steps": 3, "seed": worst}


UNSEEN = f"{UNSEEN_RELEASE}optax 9"


@pytest.mark.parametrize(
    ("reasons", "other", "holds"),
    [
        ([TOO_FEW_SEEDS, TOO_FEW_SEEDS], None, None),
        ([LOST, TOO_FEW_SEEDS], None, None),
        ([UNSEEN, UNSEEN], None, None),
        ([UNSEEN, LOST], None, None),
        ([TOO_FEW_SEEDS, ""], None, False),
        (["", LOST], None, False),
        (["diverges", "diverges"], None, False),
        ([UNSEEN, UNSEEN], [UNSEEN, UNSEEN], None),
        ([UNSEEN, UNSEEN], ["", ""], False),
        (["", ""], [UNSEEN, UNSEEN], False),
    ],
)
def test_a_control_says_nothing_where_no_case_of_its_claim_could(reasons, other, holds):
    legs = {"float64": leg((10.0, 20.0), reason=reasons)}
    if other:
        legs["float32"] = leg((10.0, 20.0), reason=other)
    assert judging.control_entry(BROKEN, CLAIM, legs)["holds"] is holds


def of_both(**parts) -> tuple[Theorem, dict[str, Any]]:
    scenario = dataclasses.replace(SCENARIO, **parts)
    groups: dict[str, Any] = dict.fromkeys(("/", "/float32"), produced(EXACT, EXACT, other=OTHER))
    return Theorem("t", "", (SIZES,), (scenario,)), groups


OTHER = (("seed", "index"), 2 * EXACT)
SWAPPED = lr.Control[Any, Made, Made](
    "swapped", "", "value", swap=lambda theory, run: (run.value, run.other)
)


def test_a_control_in_the_precision_asked_for_must_be_there():
    """In the other one it runs only if it was asked for; there it must fail, too."""
    theorem, groups = of_both(controls=(BROKEN,))
    with pytest.raises(MissingArray, match="'/controls/broken/float64'"):
        judging.judge_results(theorem, groups, "float64")
    fails, agrees = produced(EXACT, 2 * EXACT), produced(EXACT, EXACT)
    groups["/controls/broken/float64"] = fails
    found = judging.judge_results(theorem, groups, "float64")
    assert (found.claims[1]["holds"], list(found.legs["broken"])) == (True, ["float64"])
    for other, holds in ((fails, True), (agrees, False)):
        groups["/controls/broken/float32"] = other
        found = judging.judge_results(theorem, groups, "float64")
        assert (found.claims[1]["holds"], list(found.legs["broken"])) == (
            holds,
            ["float64", "float32"],
        )


@pytest.mark.parametrize("precision", ["", "float64"])
def test_a_control_is_judged_where_its_failure_shows(precision):
    control = dataclasses.replace(BROKEN, precision=precision)
    theorem, groups = of_both(controls=(control,))
    for name in ("float64", "float32"):
        groups[f"/controls/broken/{name}"] = produced(EXACT, 2 * EXACT)
    found = judging.judge_results(theorem, groups, "float64")
    assert list(found.legs["broken"]) == ["float64", *(["float32"] if not precision else [])]
    entries = judging.judge_results(theorem, groups, "float32").claims
    assert [entry["id"] for entry in entries] == ["value", *(["broken"] if not precision else [])]


def test_a_swap_puts_another_array_in_its_place():
    # The field has one side: the other would hide it.
    claim = stated(lambda o: float(np.max(np.abs(o.measured.value - EXACT[0]))), id="value")
    claim = dataclasses.replace(claim, kind="limit", tolerance=0.1)
    claim = dataclasses.replace(claim, reads=lambda theory, run: (run.value, run.other))
    theorem, groups = of_both(claims=(claim,), controls=(SWAPPED,))
    one_side = {
        name: data.drop_vars("value_predicted").rename(value_measured="value")
        for name, data in groups.items()
    }
    found = judging.judge_results(theorem, one_side, "float64")
    assert [entry["holds"] for entry in found.claims] == [True, True]
    assert found.claims[1]["residual"] == 4.0
    lacking = {name: data.drop_vars("other") for name, data in one_side.items()}
    with pytest.raises(MissingArray, match="'other', wanted it for control 'swapped'"):
        judging.judge_results(
            dataclasses.replace(theorem, scenarios=(without_other(theorem),)), lacking, "float64"
        )


def without_other(theorem):
    """The scenario, whose claim does not read the array that is swapped in."""
    (scenario,) = theorem.scenarios
    (claim,) = scenario.claims
    claim = dataclasses.replace(claim, reads=lambda theory, run: (run.value,))
    return dataclasses.replace(scenario, claims=(claim,))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_precision_that_the_device_does_not_have_is_set_aside(dtype, monkeypatch):
    monkeypatch.setattr(rounding, "unfit_precisions", lambda measured: {"float32"})
    alone = dataclasses.replace(BROKEN, id="alone", precision="float64")  # has no other leg
    theorem, groups = of_both(controls=(BROKEN, alone))
    groups["/controls/alone/float64"] = produced(EXACT, 2 * EXACT)
    wrong = produced(EXACT, 2 * EXACT, met=[True, False])
    for name in ("float64", "float32"):
        groups[f"/controls/broken/{name}"] = produced(EXACT, 2 * EXACT)
    groups["/float32"] = wrong
    groups["/"] = wrong if dtype == "float32" else groups["/"]
    found = judging.judge_results(theorem, groups, dtype)
    for name in ("value", "broken"):
        left_out = judging.left_out_reasons(found.legs[name]["float32"]).tolist()
        assert left_out == [rounding.REASON] * 2
    holds = [entry["holds"] for entry in found.claims]
    assert holds == ([True, True, True] if dtype == "float64" else [None, None])


def test_too_few_seeds_stay_the_reason_whatever_the_device_has():
    found = judging._set_aside(leg(reason=[TOO_FEW_SEEDS, "diverges"], unmet=["even", ""]))
    assert found.reason.values.tolist() == [TOO_FEW_SEEDS, rounding.REASON]
    assert found.unmet.values.tolist() == ["", ""]


@pytest.mark.parametrize("measured", ['{"float13": {}}', "[]", "1"])
def test_an_arithmetic_that_no_run_measured_is_refused(measured):
    _, groups = of_both()
    groups["/"] = groups["/"].assign_attrs(arithmetic=measured)
    with pytest.raises(ValueError, match="arithmetic: "):
        judging.arithmetic_of(groups)
    assert judging.arithmetic_of({"/": groups["/"].assign_attrs(arithmetic="{}")}) == {}


# Findings -------------------------------------------------------------------------------------

MEASURED = Finding[Made, Made](
    "size",
    "the first entry",
    value=lambda outcome: outcome.measured.value[:, 0],
    reads=lambda theory, run: (run.value,),
    above=0.5,
)


@pytest.mark.parametrize(
    ("values", "value", "spread", "outcome"),
    [
        ([1.0, 2.0], 1.5, 0.5**0.5, "not told from 0.5"),
        ([2.0, 2.0], 2.0, 0.0, "above 0.5"),
        ([2.0], 2.0, None, "one seed"),
        ([1.0, NAN], None, None, None),
        ([INFINITE, 2.0], None, None, None),
    ],
)
def test_a_finding_is_a_mean_over_seeds(values, value, spread, outcome):
    scenario = dataclasses.replace(SCENARIO, claims=(), findings=(MEASURED,))
    rows = EXACT.copy()
    rows[:, 0] = values[0], values[-1]
    data = produced(EXACT, rows).isel(seed=slice(len(values)))
    experiment = Experiment("e", "", (SIZES,), (scenario,))
    found = judging.judge_results(experiment, {"/": data}, "float64")
    (entry,) = found.claims
    assert entry["finding"]["value"] == value
    assert entry["finding"]["spread"] == pytest.approx(spread, nan_ok=True)
    assert entry["finding"]["outcome"] == outcome
    assert (entry["hypotheses_met"], entry["cases"]) == (value is not None, len(values))
    assert entry["judged"] == {
        "float64": {"drawn": len(values), "judged": len(values), "left_out": {}}
    }
    assert entry["finding"]["seeds"] == len(values)


@pytest.mark.parametrize(
    ("lost", "value", "seeds"), [((-1, -1), 7.0, 1), ((5, -1), 7.0, 1), ((-1, 5), None, 0)]
)
def test_a_finding_of_trainings_leaves_out_seed_0_and_those_that_were_lost(lost, value, seeds):
    trained = dataclasses.replace(TRAINED, findings=(MEASURED,))
    data = produced(EXACT, [[3.0] * 3, [7.0] * 3], lost=("seed", list(lost)))
    study = Study("s", "", (SIZES,), (SCENARIO, trained))
    groups = {"/": produced(EXACT, EXACT), "/float64": produced(EXACT, EXACT), "/learned": data}
    entry = judging.judge_results(study, groups, "float32").claims[-1]
    assert (entry["finding"]["value"], entry["cases"], entry["cases_total"]) == (value, seeds, 2)
    assert entry["hypotheses_met"] is (value is not None)


# Runs that diverged ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "lines"),
    [
        ([-1, -1], []),
        ([0, -1, 7], ["0: rate=0.5", "7: rate=2.5"]),
        ([3] * 4, [f"3: rate={k}.5" for k in range(4)]),
        ([3] * 5, [f"3: rate={k}.5" for k in range(4)]),
    ],
)
def test_runs_that_diverged_are_printed_and_counted(steps, lines):
    scenario = dataclasses.replace(SCENARIO, diverged=lambda run: run.lost)
    rates = [k + 0.5 for k in range(len(steps))]
    data = xr.Dataset({"lost": ("rate", np.array(steps))}, {"rate": rates})
    said = judging._divergence_lines(data, scenario)
    more = ["made: 5 of 5 diverged, see results.nc"] if len(steps) > 4 else []
    assert said == [f"made: diverged at step {line}" for line in lines] + more
    assert judging._divergence_lines(data.drop_vars("lost"), scenario) == []


# Residual over tolerance ----------------------------------------------------------------------


def test_the_worst_ratio_is_the_largest_of_what_was_judged():
    """A claim over seeds has none, and one that was not judged gives way."""
    eps = float(np.finfo("float64").eps)
    legs = {
        "one": {"float64": leg((1.0, 4.0), tolerance=2.0)},
        "other": {"float64": leg((3.0, 9.0), tolerance=4.0, reason=["", "diverges"])},
        "exact": {"float64": leg((0.0, eps), tolerance=0.0, reason=["", "diverges"])},
        "seeds": {"float64": leg((1e9, 1e9))},
    }
    several = [
        dataclasses.replace(stated(lambda o: 0.0), id=name, seeds=2 * (name == "seeds"))
        for name in legs
    ]
    ratio = lambda names: judging.worst_ratio(  # noqa: E731
        [claim for claim in several if claim.id in names], legs, "float64"
    ).values.tolist()
    assert ratio(("one", "other", "exact", "seeds")) == [0.75, 2.0]
    assert ratio(("other", "one")) == [0.75, 2.0]
    np.testing.assert_equal(ratio(("other", "exact")), [0.75, NAN])
    np.testing.assert_equal(ratio(("exact",)), [0.0, NAN])


@pytest.mark.parametrize(
    ("residual", "tolerance", "ratio"),
    [(3.0, 2.0, 1.5), (0.0, 0.0, 0.0), (1.0, 0.0, 2.0**23), (NAN, 1.0, INFINITE)],
)
def test_a_ratio_is_infinite_where_a_residual_is_lost(residual, tolerance, ratio):
    columns = leg((residual, residual), tolerance=tolerance, reason=["", "diverges"])
    np.testing.assert_equal(judging.ratio_of(columns, "float32").values, [ratio, NAN])
    every = judging.ratio_of(columns, "float32", everything=True)
    np.testing.assert_equal(every.values, [ratio, ratio])


# Asking for a verdict -------------------------------------------------------------------------


SIZED = Scenario[Any, Made, Made](
    "made", lambda key, *, size: size, claims=(CLAIM,), theory=Made, measured=Made
)
TRACED = Theorem("t", "", (SIZES,), (SIZED,))


@pytest.mark.parametrize("lanes", [None, 1, 2])
def test_any_number_of_lanes_from_one_on_is_taken(lanes, monkeypatch, unchecked):
    asked = []

    def noting(run, context):
        asked.append(context.lanes)
        return verify.Verification({}, {}, [], {})

    monkeypatch.setattr(statements, "verify_run", noting)
    statements.verify(TRACED, lanes=lanes, dtype="float64")
    assert asked == [lanes]
    with pytest.raises(ValueError, match="lanes: got 0, wanted at least 1"):
        statements.verify(TRACED, lanes=0)


@pytest.mark.parametrize(("preset", "thorough"), [("quick", False), ("paper", True)])
def test_the_paper_preset_is_produced_thoroughly(preset, thorough, monkeypatch, unchecked):
    asked = []

    def noting(experiment, settings, **how):
        asked.append(how)
        raise MissingArray("enough")

    monkeypatch.setattr(verify, "produce", noting)
    with pytest.raises(MissingArray):
        statements.verify(TRACED, preset=preset, dtype="float64")
    assert [how["thorough"] for how in asked] == [thorough]


@pytest.mark.parametrize("excused", [0, 2])
def test_a_claim_without_a_case_is_open_only_if_a_case_was_excused(excused):
    """Where theory's value is trivial nothing is open."""
    entry = {"id": "value", "hypotheses_met": True, "cases": 0, "holds": None}
    entry |= {"decided_by": {"excused": excused}, "judged": {"float64": {}}}
    theorem = Theorem("t", "", (SIZES,), (SCENARIO,))
    assert verify.undecided_claims(theorem, [entry]) == ["value"] * bool(excused)
    assert verify.undecided_claims(theorem, [entry | {"hypotheses_met": False}]) == []
    assert verify.undecided_claims(theorem, [entry | {"cases": 1}]) == []
    assert verify.undecided_claims(theorem, [entry | {"id": "unknown"}]) == []
