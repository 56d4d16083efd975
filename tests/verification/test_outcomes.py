"""What a claim is judged on: which runs there are, what of them is read, and which seeds count."""

import dataclasses
import json

import numpy as np
import pytest
import xarray as xr

import lrdyn as lr
from lrdyn.verification.judging import outcomes
from lrdyn.verification.judging.judging import LOST, TOO_FEW_SEEDS, residuals
from lrdyn.verification.judging.outcomes import MissingArray
from lrdyn.verification.stating.statement import Experiment, Study, Theorem
from tests.made_up import CLAIM, EXACT, SCENARIO, SIZES, TRAINED, Made, produced, stated

BOTH = (SCENARIO, TRAINED)
KINDS = {
    "experiment": Experiment("e", "", (SIZES,), BOTH),
    "theorem": Theorem("t", "", (SIZES,), BOTH),
    "study": Study("s", "", (SIZES,), BOTH),
}


@pytest.mark.parametrize(
    ("kind", "scenario", "dtype", "runs"),
    [
        ("experiment", SCENARIO, "float64", {"float64": "/"}),
        ("experiment", SCENARIO, "float32", {"float32": "/"}),
        ("theorem", SCENARIO, "float64", {"float64": "/", "float32": "/float32"}),
        ("theorem", SCENARIO, "float32", {"float32": "/"}),
        ("theorem", TRAINED, "float64", {"float64": "/learned"}),
        ("study", SCENARIO, "float64", {"float64": "/", "float32": "/float32"}),
        ("study", SCENARIO, "float32", {"float32": "/", "float64": "/float64"}),
        ("study", TRAINED, "float64", {"float64": "/learned"}),
        ("study", TRAINED, "float32", {"float32": "/learned"}),
    ],
)
def test_each_kind_of_scenario_runs_in_its_precisions(kind, scenario, dtype, runs):
    """The one that was asked for comes first."""
    found = outcomes.groups_of(KINDS[kind], scenario, dtype)
    assert list(found.items()) == list(runs.items())


@pytest.mark.parametrize(
    ("kind", "scenario", "wanted"),
    [
        ("theorem", SCENARIO, "float32"),
        ("theorem", TRAINED, "float32"),
        ("study", SCENARIO, "float64"),
        ("study", TRAINED, "float32"),
    ],
)
def test_controls_of_a_study_fail_in_float64(kind, scenario, wanted):
    assert outcomes.precision_of_controls(KINDS[kind], scenario, "float32") == wanted
    assert outcomes.precision_of_controls(KINDS[kind], scenario, "float64") == "float64"


def test_a_side_scenario_has_both_groups_below_its_name():
    beside = dataclasses.replace(SCENARIO, id="beside", claims=(stated(lambda o: 0.0, id="other"),))
    theorem = Theorem("t", "", (SIZES,), (SCENARIO, beside))
    found = outcomes.groups_of(theorem, beside, "float64")
    assert found == {"float64": "/beside", "float32": "/beside/float32"}


def test_controls_are_those_whose_failure_shows():
    controls = [
        lr.Control(name, "", "value", predict=lambda case: Made(), precision=name)
        for name in ("", "float64", "float32")
    ]
    scenario = dataclasses.replace(SCENARIO, controls=tuple(controls))
    assert outcomes.controls_of(scenario, "float64") == controls[:2]
    assert outcomes.controls_of(scenario, "float32") == [controls[0], controls[2]]
    assert outcomes.control_group(controls[1], "float32") == "/controls/float64/float32"
    every = outcomes.control_group(controls[1], "float32", perturb=True)
    assert every == "/perturb/float64/float32"


# What is read ---------------------------------------------------------------------------------


def two_axes(**more):
    """Two seeds and three rates, at each of which all numbers are another."""
    lead, shape = ("seed", "rate"), (2, 3)
    values = np.arange(12.0).reshape(*shape, 2)
    arrays = {
        "value_predicted": ((*lead, "index"), values),
        "value_measured": ((*lead, "index"), values + 0.5),
        "longest_axis": (lead, np.arange(1, 7).reshape(shape)),
        "met_even": (lead, np.ones(shape, bool)),
    }
    fixed = {"fixed": json.dumps({"steps": 7, "rank": 2})}
    return xr.Dataset(arrays | more, {"seed": [0, 1], "rate": [0.1, 0.2, 0.3]}, fixed)


def seen_of(claim, data, scenario=SCENARIO):
    return list(outcomes.outcomes(claim, scenario, data, "float64"))


def test_every_point_has_its_own_flags_and_arrays():
    seen = seen_of(CLAIM, two_axes())
    assert [outcome.point for outcome in seen] == [
        {"steps": 7, "rank": 2, "seed": seed, "rate": rate}
        for seed in (0, 1)
        for rate in (0.1, 0.2, 0.3)
    ]
    assert [outcome.size for outcome in seen] == [1, 2, 3, 4, 5, 6]
    assert [outcome.steps for outcome in seen] == [7] * 6
    sides = [np.r_[o.predicted.value, o.measured.value].tolist() for o in seen]
    assert sides == [[2.0 * k, 2.0 * k + 1, 2 * k + 0.5, 2 * k + 1.5] for k in range(6)]


def test_axes_lie_in_any_order_and_a_coordinate_is_of_all_points():
    turned = two_axes().transpose("index", "rate", "seed", ...)
    turned["longest_axis"] = turned.longest_axis.transpose("seed", "rate")
    sides = lambda data: [o.predicted.value.tolist() for o in seen_of(CLAIM, data)]  # noqa: E731
    assert sides(turned) == sides(two_axes())
    coordinate = two_axes(other=(("place",), np.array([3.0, 4.0])))
    claim = dataclasses.replace(CLAIM, reads=lambda theory, run: (run.other,))
    seen = seen_of(claim, coordinate)
    assert [outcome.measured.other.tolist() for outcome in seen] == [[3.0, 4.0]] * 6


@pytest.mark.parametrize(("has", "lacks"), [("seed", "rate"), ("rate", "seed")])
def test_an_array_of_some_axes_of_the_points_is_refused(has, lacks):
    data = two_axes().drop_vars("met_even")
    data["met_even"] = (has, np.ones(data.sizes[has], bool))
    with pytest.raises(MissingArray, match=rf"met_even: got axes \('{has}',\), wanted \['{lacks}'"):
        seen_of(CLAIM, data)


def test_listed_points_have_the_flags_of_their_place():
    data = two_axes().stack(point=["seed", "rate"]).reset_index("point").transpose("point", ...)
    seen = seen_of(CLAIM, data)
    assert [(o.point["seed"], o.point["rate"]) for o in seen[2:4]] == [(0, 0.3), (1, 0.1)]
    assert seen[3].predicted.value.tolist() == [6.0, 7.0]


def test_a_slab_is_cut_by_what_a_point_takes_in_all_arrays(monkeypatch):
    """Two vectors of two numbers, a whole number and a truth value: 16 + 16 + 8 + 1 bytes."""
    asked, slabs = [], outcomes.slabs

    def cut(shape, itemsize):
        asked.append((shape, itemsize))
        return slabs(shape, itemsize)

    monkeypatch.setattr(outcomes, "slabs", cut)
    seen_of(CLAIM, two_axes())
    assert asked == [((2, 3), 41)]


def test_steps_are_those_of_the_claim_or_of_the_run():
    of_claim = dataclasses.replace(CLAIM, steps=0)
    assert {o.steps for o in seen_of(of_claim, two_axes())} == {0}
    single = dataclasses.replace(SCENARIO, steps="")
    assert {o.steps for o in seen_of(CLAIM, two_axes(), single)} == {1}


@pytest.mark.parametrize("fixed", ["{}", '{"other": 7}'])
def test_a_run_without_its_number_of_steps_is_one_step(fixed):
    data = two_axes().assign_attrs(fixed=fixed)
    assert {o.steps for o in seen_of(CLAIM, data)} == {1}


# Which seeds count ----------------------------------------------------------------------------


def over(seeds, kept):
    """A claim over seeds that keeps the outcomes it is asked of."""
    look = stated(lambda outcome: kept.append(outcome) or 0.0, kind="limit", tolerance=0.1)
    return dataclasses.replace(look, seeds=seeds)


def four_seeds(lost=(-1,) * 4, met=(True,) * 4):
    rows = np.arange(4.0)[:, None] * np.ones(2)
    return xr.Dataset(
        {
            "value_predicted": (("seed", "index"), rows),
            "value_measured": (("seed", "index"), 10 * rows),
            "longest_axis": ("seed", np.ones(4, int)),
            "met_even": ("seed", np.array(met)),
            "lost": ("seed", np.array(lost)),
        },
        {"seed": range(4)},
    )


def test_a_claim_over_seeds_has_one_outcome_for_each_setting():
    seen = seen_of(dataclasses.replace(CLAIM, seeds=1), two_axes())
    assert [outcome.point["rate"] for outcome in seen] == [0.1, 0.2, 0.3]
    assert [outcome.point["seed"].tolist() for outcome in seen] == [[0, 1]] * 3
    firsts = [outcome.predicted.value[:, 0].tolist() for outcome in seen]
    assert firsts == [[0.0, 6.0], [2.0, 8.0], [4.0, 10.0]]


LOSES = (5, 0, 7, 3)
"""Steps at which trainings are lost: the first one, too."""


@pytest.mark.parametrize(
    ("lost", "met", "trains", "seeds", "reason"),
    [
        ((), (), False, [0, 1, 2, 3], ""),
        ((1, 2), (), False, [0, 1, 2, 3], ""),  # a run that is lost excuses nothing
        ((), (2,), False, [0, 1, 3], ""),
        ((), (0, 1, 2, 3), False, [0, 1, 2, 3], ""),  # all stay, to show that none meets them
        ((), (), True, [1, 2, 3], ""),
        ((3,), (), True, [1, 2], ""),
        ((1,), (), True, [2, 3], ""),
        ((1,), (2,), True, [3], TOO_FEW_SEEDS),
        ((2, 3), (), True, [1], TOO_FEW_SEEDS),
        ((1, 2, 3), (), True, [0], TOO_FEW_SEEDS),  # which set what is expected
        ((), (1, 2, 3), True, [0], TOO_FEW_SEEDS),
        ((0, 1, 2, 3), (), True, [0, 1, 2, 3], LOST),
        ((1, 2, 3), (0,), True, [1, 2, 3], LOST),
    ],
)
def test_seeds_that_count_of_a_setting(lost, met, trains, seeds, reason):
    """Those that meet the hypotheses; of trainings those that end, without seed 0."""
    kept = []
    claim, scenario = over(2, kept), TRAINED if trains else SCENARIO
    data = four_seeds(
        [LOSES[k] if k in lost else -1 for k in range(4)], [k not in met for k in range(4)]
    )
    (outcome,) = outcomes.outcomes(claim, scenario, data, "float32")
    assert outcome.point["seed"].tolist() == seeds
    assert outcome.predicted.value[:, 0].tolist() == seeds
    assert outcome.measured.value[:, 1].tolist() == [10 * seed for seed in seeds]
    assert outcome.hypotheses["even"].tolist() == [seed not in met for seed in seeds]
    leg = residuals(claim, scenario, data, "float32")
    assert leg.reason.values.item() == reason


@pytest.mark.parametrize("broken", ["even", "other"])
def test_a_seed_counts_if_it_meets_every_hypothesis(broken):
    data = four_seeds().assign(met_other=("seed", np.ones(4, bool)))
    data[f"met_{broken}"][1] = False
    checks = dict.fromkeys(("even", "other"), SCENARIO.hypotheses["even"])
    scenario = dataclasses.replace(SCENARIO, hypotheses=checks)
    (outcome,) = outcomes.outcomes(over(2, []), scenario, data, "float64")
    assert outcome.point["seed"].tolist() == [0, 2, 3]


@pytest.mark.parametrize(
    ("wanted", "lost", "reason"),
    [
        (1, (1, 2, 3), TOO_FEW_SEEDS),
        (1, (2, 3), ""),
        (3, (), ""),
        (4, (), TOO_FEW_SEEDS),
    ],
)
def test_seed_0_of_a_training_does_not_count_among_so_many(wanted, lost, reason):
    data = four_seeds([5 if k in lost else -1 for k in range(4)])
    assert residuals(over(wanted, []), TRAINED, data, "float32").reason.values.item() == reason


def test_a_claim_about_each_training_leaves_out_those_that_were_lost():
    """From the first step on; of other scenarios none."""
    claim = dataclasses.replace(over(0, []), seeds=0)
    data = four_seeds((-1, 0, -1, 8))
    assert residuals(claim, TRAINED, data, "float32").reason.values.tolist() == ["", LOST, "", LOST]
    plain = dataclasses.replace(SCENARIO, diverged=TRAINED.diverged)
    assert residuals(claim, plain, data, "float32").reason.values.tolist() == [""] * 4
    silent = dataclasses.replace(TRAINED, diverged=None)
    assert residuals(claim, silent, data, "float32").reason.values.tolist() == [""] * 4


def test_a_field_that_a_claim_does_not_read_is_named_by_its_side():
    (outcome,) = outcomes.outcomes(over(1, []), SCENARIO, four_seeds(), "float32")
    with pytest.raises(MissingArray, match="no array 'other' of theory"):
        outcome.predicted.other  # noqa: B018
    with pytest.raises(MissingArray, match="no array 'other' of the run"):
        outcome.measured.other  # noqa: B018


def test_one_side_alone_is_refused_where_both_are_compared():
    """The same array would be both sides, and agree."""
    alone = produced(EXACT, EXACT).rename(value_predicted="value").drop_vars("value_measured")
    with pytest.raises(MissingArray, match="of one side alone"):
        seen_of(CLAIM, alone)
    of_the_run = stated(lambda outcome: 0.0)
    of_the_run = dataclasses.replace(of_the_run, reads=lambda theory, run: (run.value,))
    (first, _) = seen_of(of_the_run, alone)
    assert first.measured.value.tolist() == EXACT[0].tolist()
