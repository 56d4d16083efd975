"""What each claim came to at a small run: as it is kept, and as formulas of the pages say."""

import copy
import json
import math

import numpy as np
import pytest

from lrdyn.registry import REGISTRY, theorem
from lrdyn.verification.judging.judging import left_out_reasons
from lrdyn.verification.running.evaluate import case_arguments
from lrdyn.verification.stating.fields import SIZE
from tests import kept, kept_numbers
from tests.kept import __main__ as recorder
from tests.runs import finished

EPSILON = 2.0**-52
MARGIN = 0.2
"""Share of its tolerance that an identity or a bound leaves at most: 8 is for the worst of many."""
OF_EIGENVALUES = {"cluster_ratio": 0.3}
"""The same of a ratio of two computed eigenvalues, whose errors are those of OpenBLAS's kernels:
0.22 was seen with those for Haswell, below 0.2 with those for SkylakeX."""


@pytest.fixture(params=REGISTRY)
def small(request, tmp_path_factory):
    return theorem(request.param), finished(request.param, tmp_path_factory.getbasetemp())


def judged_legs(small):
    """Scenario, claim, what is saved of it, its columns, and which cases are judged."""
    of, done = small
    for scenario, claim, results, leg in kept.legs(of, done):
        yield scenario, claim, results, leg, left_out_reasons(leg) == ""


def test_what_a_small_run_came_to_is_as_it_is_kept(small):
    of, done = small
    amplified = {claim.id for s in of.scenarios for claim in s.claims if claim.condition}
    assert kept.moved(kept.numbers(of, done), kept.read(of.name), amplified) == {}


def test_every_tolerance_is_that_of_the_page(small):
    """``8 eps (sqrt(size (1 + steps)) + steps / 2)``, times a condition where there is one.

    A limit or a rate alone may state one of its own.
    """
    for _, claim, results, leg, _ in judged_legs(small):
        if claim.tolerance is not None:
            assert claim.kind in ("limit", "rate"), claim.id
        elif claim.kind == "exact":
            assert not leg.tolerance.values.any()
        elif claim.kind in ("identity", "bound"):
            condition = leg.condition.values if claim.condition else 1.0
            sizes, steps = sized(results, leg), leg.steps.values
            wanted = 8 * EPSILON * (np.sqrt(sizes * (1 + steps)) + steps / 2) * condition
            assert leg.tolerance.values == pytest.approx(wanted, rel=1e-12), claim.id


def sized(results, leg):
    """Longest axis of each case, in the order of the columns of a claim."""
    size = results[SIZE]
    gone = [dim for dim in size.dims if dim not in leg.residual.dims]
    return size.max(gone).transpose(*leg.residual.dims).values


def test_identities_and_bounds_stay_far_within_their_tolerance(small):
    for _, claim, _, leg, judged in judged_legs(small):
        if claim.kind in ("identity", "bound"):
            share = OF_EIGENVALUES.get(claim.id, MARGIN)
            assert (leg.residual <= share * leg.tolerance).values[judged].all(), claim.id


def test_no_claim_lets_pass_more_than_its_tolerance_of_what_it_reads(small):
    """A scale is the size of data, or larger by as much as is kept: it could hide a mistake."""
    then = kept.read(small[0].name)["claims"]
    for scenario, claim, results, leg, _ in judged_legs(small):
        found = kept.farther(scenario, claim, results, leg)
        assert found <= kept.most_farther(then[claim.id]), claim.id


def test_every_point_of_the_sweep_is_judged_or_left_out_for_a_reason(small):
    """As many as the settings make: none is lost between the flags and the verdict."""
    of, done = small
    config = done.verdict["config"]
    swept = {f.name: np.atleast_1d(config[f.name]).tolist() for f in of.flags if f.swept}
    for entry, scenario, claim in claimed(of, done):
        asked = scenario.narrow({f.name: config[f.name] for f in of.flags} | swept)
        own = case_arguments(scenario, asked).keys() - {*scenario.whole}
        counts = [len(asked[name]) for name in swept.keys() & own]
        points = math.prod(counts) * (1 if claim.seeds else config["seeds"])
        judged = entry["judged"]["float64"]
        assert judged["judged"] + sum(judged["left_out"].values()) == points, claim.id


def claimed(of, done):
    entries = {entry["id"]: entry for entry in done.verdict["claims"]}
    return [(entries[c.id], s, c) for s in of.scenarios for c in s.claims]


def test_every_control_is_seen_and_belongs_to_a_claim(small):
    found = kept.read(small[0].name)
    assert all(control["seen"] for control in found["controls"].values())
    assert {control["claim"] for control in found["controls"].values()} <= found["claims"].keys()


def test_there_is_a_file_for_each_theorem_and_no_other():
    assert {path.stem for path in kept.FOLDER.glob("*.json")} == set(REGISTRY)


# The recorder ---------------------------------------------------------------------------------

WEAKER = {
    "a larger tolerance": lambda entry: entry | {"tolerance": 10 * entry["tolerance"]},
    "a larger scale": lambda entry: entry | {"first": 2 * entry["first"]},
    "a scale beyond what it reads": lambda entry: entry | {"farther": 2.0},
    "fewer cases": lambda entry: entry | {"judged": entry["judged"] - 1},
    "another reason": lambda entry: entry | {"left_out": {"it is late": 1}},
    "another kind": lambda entry: entry | {"kind": "limit"},
    "no claim": lambda entry: None,
}


@pytest.mark.parametrize("how", WEAKER)
def test_a_weaker_claim_is_recorded_only_where_the_changelog_names_it(how):
    before = kept.read("corollary1")
    after = copy.deepcopy(before)
    weaker = WEAKER[how](after["claims"].pop("error_identity"))
    if weaker is not None:
        after["claims"]["error_identity"] = weaker
    (line,) = recorder.refused("corollary1", after, "")
    assert line.startswith("corollary1: error_identity: ")
    named = "\n## [Unreleased]\n\n### Numbers that moved\n\n- `error_identity` is now loose.\n"
    assert recorder.refused("corollary1", after, named) == []
    assert recorder.refused("corollary1", after, named.replace("[Unreleased]", "[0.1.0]")) != []
    assert recorder.refused("corollary1", after, named.replace("Numbers that moved", "Fixed")) != []


def test_a_control_that_is_gone_or_unseen_is_not_recorded():
    before = kept.read("lora")
    name = next(iter(before["controls"]))
    after = copy.deepcopy(before)
    after["controls"][name]["seen"] = False
    assert "not seen to fail" in recorder.refused("lora", after, "")[0]
    del after["controls"][name]
    assert recorder.refused("lora", after, "") == [f"lora: {name}: it is gone"]


def test_a_stronger_claim_and_a_new_one_are_recorded():
    after = copy.deepcopy(kept.read("lora"))
    claim = next(entry for entry in after["claims"].values() if entry["kind"] == "identity")
    claim["tolerance"] /= 10
    after["claims"]["new"] = claim
    assert recorder.refused("lora", after, "") == []
    assert recorder.refused("a theorem that is new", after, "") == []


def test_what_moved_is_named_with_both():
    before = kept.read("corollary1")
    after = copy.deepcopy(before)
    after["claims"]["error_identity"]["typical"] *= 1.03
    after["controls"]["error_with_r"]["residual"] *= 1.2
    assert kept.moved(after, before, set()).keys() == {"error_identity", "error_with_r"}
    assert kept.moved(after, before, {"error_identity"}).keys() == {"error_with_r"}


# Trainings, which have no oracle --------------------------------------------------------------


def test_numbers_of_a_training_that_moved_are_recorded_only_where_the_changelog_names_it(tmp_path):
    path, before = tmp_path / "training_vgg.json", {"loss": kept_numbers.kept([1.0, 0.5])}
    kept_numbers.record(path, before, "")  # a new one
    after = {"loss": kept_numbers.kept([1.0, 0.6])}
    line = "training_vgg: wanted `training_vgg` under Numbers that moved"
    with pytest.raises(AssertionError, match=line):
        kept_numbers.record(path, after, "")
    with pytest.raises(AssertionError, match="share: in one of both"):
        kept_numbers.record(path, before | {"share": before["loss"]}, "")
    kept_numbers.record(path, before, "")
    assert json.loads(path.read_text()) == before
    named = "\n## [Unreleased]\n\n### Numbers that moved\n\n- `training_vgg` is trained longer.\n"
    kept_numbers.record(path, after, named)
    assert json.loads(path.read_text()) == after


def test_a_test_alone_writes_nothing():
    assert not kept_numbers.recording
