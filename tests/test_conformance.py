"""Every registered theorem gets the same tests, on the files that its command writes."""

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest

from lrdyn.corollary1.statement import COROLLARY1
from lrdyn.galore_noise.statement import GALORE_NOISE
from lrdyn.registry import theorems
from lrdyn.statements import verify
from lrdyn.theorem2.statement import THEOREM2
from lrdyn.verification.judging.judging import (
    claim_entry,
    claim_of,
    forms_of,
    left_out_reasons,
    residuals,
    row_of,
    worst_ratio,
)
from lrdyn.verification.judging.outcomes import (
    PRECISIONS,
    MissingArray,
    groups_of,
    outcomes,
    saved_names,
)
from lrdyn.verification.runs.verify import undecided_claims
from lrdyn.verification.stating.claims import CLEARLY
from lrdyn.verification.stating.fields import SIZE, Read
from lrdyn.verification.stating.forms import SEEN
from lrdyn.verification.stating.mistakes import BadInput
from tests import kept, oracles
from tests.jobs import claims_job, controls_job
from tests.runs import finished, python, small_words, verdict_of

THEOREMS = theorems()
KEPT = {theorem.name: kept.read(theorem.name)["claims"] for theorem in THEOREMS}
"""Theorem -> claim -> difference that is let pass, among others."""
DEEP = (THEOREM2, COROLLARY1)
"""The theorems about gradient descent on deep factorisation."""
AXES = {"seed", "amount"} | {flag.name for theorem in THEOREMS for flag in theorem.flags}


@pytest.fixture(params=[theorem.name for theorem in DEEP])
def ran(request, tmp_path_factory):
    return finished(request.param, tmp_path_factory.getbasetemp())


def everywhere(part, keep=lambda entry: True, theorems=THEOREMS):
    """Statements, or claims or controls with their scenarios, of the theorems."""
    return [
        pytest.param(theorem, scenario, *entry, id="-".join([theorem.name, *ids]))
        # The last first: another worker begins with the first, and waits for no run of this one.
        for theorem in reversed(theorems)
        for scenario in theorem.scenarios
        for ids, entry in (
            [([x.id], (x,)) for x in getattr(scenario, part)] if part else [([scenario.id], ())]
        )
        if keep(*(entry or (scenario,)))
    ]


def entry_of(ran, name):
    (entry,) = [claim for claim in ran.verdict["claims"] if claim["id"] == name]
    return entry


@pytest.mark.parametrize("precision", PRECISIONS["float64"])
@pytest.mark.parametrize(("theorem", "scenario", "claim"), everywhere("claims"))
def test_a_verdict_names_the_worst_case(theorem, scenario, claim, precision, tmp_path_factory):
    ran = finished(theorem.name, tmp_path_factory.getbasetemp())
    results = ran.groups()[groups_of(theorem, scenario, "float64")[precision]]
    leg = residuals(claim, scenario, results, precision, power=True)
    entry = entry_of(ran, claim.id)
    cases = left_out_reasons(leg) == ""
    suffix = "" if precision == "float64" else "_float32"
    if cases.any():
        at = np.argmax((leg.residual / leg.tolerance.where(leg.tolerance > 0, 1)).values[cases])
        assert entry[f"residual{suffix}"] == leg.residual.values[cases][at]
        if claim.kind != "statistical":  # alone it would not share the false alarms
            assert entry[f"tolerance{suffix}"] == leg.tolerance.values[cases][at]
    assert (entry["holds"], entry["kind"], entry["hypotheses_met"]) == (True, claim.kind, True)
    judged = entry["judged"][precision]
    assert judged["judged"] == cases.sum()
    # Rounding of float32 can hide what is worth seeing, or be too coarse by what the claim says of
    # itself; float64 decides.
    hidden = set(judged["left_out"]) == {"ill-conditioned"} or claim.undecided is not None
    assert cases.any() or (suffix and hidden)
    if not suffix:
        assert entry["cases"] == cases.sum()
        assert leg.residual.sel(entry["worst_case"]) == entry["residual"]


class Looks(Read):
    """Arrays that remember which of them were looked at."""

    def __init__(self, arrays, names):
        super().__init__({name: arrays[name] for name in arrays}, MissingArray)
        self.names = names

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def compared(claim, scenario, outcome):
    """Names of the arrays that the form looks at, without those of a claim's own hypothesis."""
    names = set()
    sides = {side: Looks(getattr(outcome, side), names) for side in ("predicted", "measured")}
    forms_of(claim, scenario, dataclasses.replace(outcome, **sides))
    return names


def with_array(outcome, sides, name, array):
    """The outcome with another array in the place of one, on these sides."""
    arrays = {side: getattr(outcome, side) for side in sides}
    changed = {
        side: Read({**{other: read[other] for other in read}, name: array}, MissingArray)
        for side, read in arrays.items()
    }
    return dataclasses.replace(outcome, **changed)


def places_of(array, count=3):
    """First, last and some other entries of an array."""
    rng = np.random.default_rng(0)
    chosen = {0, array.size - 1, *rng.integers(0, array.size, count)} if array.size else set()
    return [np.unravel_index(i, array.shape) for i in sorted(map(int, chosen))]


def moves(entry, claim, theorem):
    """Values of an entry that a judge must see: of an identity 30 kept thresholds away.

    They do not ask the judge on trial what it lets pass. A bound, a test or a limit is crossed from
    where the run happens to be, near or far.
    """
    if not np.isfinite(entry):
        return []
    if claim.kind in ("identity", "exact"):
        steps = [SEEN * KEPT[theorem.name][claim.id]["first"] or 1.0]
    else:
        steps = np.geomspace(1e-15, 1e3, 19) * max(abs(float(entry)), 1e-3)
    return [float(entry) + sign * step for step in steps for sign in (1, -1)]


def moved_to_ten_tolerances(theorem, claim, scenario, outcome, sides, name, place):
    """A value of one entry by which the residual comes to ten tolerances, if there is one."""
    array = getattr(outcome, sides[0])[name]
    for value in moves(array[place], claim, theorem):
        changed = array.astype(float)
        changed[place] = value
        row = row_of(claim, scenario, with_array(outcome, sides, name, changed))
        if not row.unmet + row.reason and row.residual > 0 and row.residual >= 10 * row.tolerance:
            return value
    return None


@pytest.mark.parametrize(("theorem", "scenario", "claim"), everywhere("claims"))
def test_a_changed_entry_turns_the_verdict(theorem, scenario, claim, tmp_path_factory, unchecked):
    """Wherever it stands: no maximum skips it, no case hides it, and neither does a NaN.

    A judge is asked thousands of times: annotations are checked where it is asked once.
    """
    ran = finished(theorem.name, tmp_path_factory.getbasetemp())
    results = ran.groups()[groups_of(theorem, scenario, "float64")["float64"]]
    leg = residuals(claim, scenario, results, "float64", power=True)
    every = list(outcomes(claim, scenario, results, "float64"))
    judged = np.flatnonzero(left_out_reasons(leg).ravel() == "")
    turned = set()
    # The threshold that is kept is that of the first case.
    for case in {judged[0]} if claim.kind == "identity" else {judged[0], judged[-1]}:
        for name in sorted(compared(claim, scenario, every[case])):
            for saved in saved_names(claim, scenario, map(str, results.variables))[name]:
                if set(results[SIZE].dims) <= set(results[saved].dims):
                    turned |= turn(
                        theorem, claim, scenario, results, every[case], case, name, saved
                    )
    must = {claim.id} & {
        str(n).removesuffix("_predicted").removesuffix("_measured") for n in results
    }
    assert turned >= must
    assert turned


def turn(theorem, claim, scenario, results, outcome, case, name, saved):
    """Change entries of one saved array; those that reach ten tolerances must turn the verdict."""
    both = [side for side in ("predicted", "measured") if name in getattr(outcome, side)]
    sides = both if saved == name else [saved.removeprefix(f"{name}_")]
    turned = set()
    for place in places_of(getattr(outcome, sides[0])[name]):
        value = moved_to_ten_tolerances(theorem, claim, scenario, outcome, sides, name, place)
        for new in [np.nan] if value is None else [value, np.nan]:
            altered = alter(results, saved, case, place, new)
            # A prediction that is no number where the claim applies gets no verdict at all.
            refused = np.isnan(new) and "predicted" in sides
            with contextlib.suppress(BadInput) if refused else contextlib.nullcontext():
                again = residuals(claim, scenario, altered, "float64", power=True)
                entry = claim_entry(claim, {"float64": again})
                if new == value:
                    assert entry["holds"] is False, (saved, place)
                    turned.add(name)
                elif value is not None:
                    assert entry["holds"] is not True or left_out_reasons(again).ravel()[case]
    if claim.kind in ("exact", "identity") and name == claim.id:
        assert turned, saved
    return turned


def alter(results, saved, case, place, value):
    """Results with one entry of one case changed."""
    lead = results[SIZE].dims
    array = results[saved].transpose(*lead, ...).astype(float)
    values = array.values.copy()
    values[(*np.unravel_index(case, results[SIZE].shape), *place)] = value
    return results.assign({saved: (array.dims, values)})


def cases(results):
    """Each case with the scales and decays of its layers."""
    stacked = results.stack(case=[dim for dim in results.dims if dim in AXES])
    for index in range(stacked.sizes["case"]):
        case = stacked.isel(case=index)
        spread = np.linspace(-0.5, 0.5, int(case["depth"]))
        scales = float(case["init_scale"]) * float(case["init_spread"]) ** spread
        decays = float(case["weight_decay"]) * float(case["decay_spread"]) ** spread
        yield case, scales, decays


def test_the_start_is_orthogonal(ran):
    """At t = 0 every singular value of layer l is eps_l, and so is rho_l."""
    for case, scales, _ in cases(ran.group("/").sel(step=0)):
        values = case.get("singular_values_measured", case.get("singular_values"))
        values = values.transpose("index", "layer").values
        oracles.assert_close(values, np.broadcast_to(scales, values.shape), size=9)
        oracles.assert_close(case["rho_measured"].values, scales, size=9)
        oracles.assert_close(case["rho_predicted"].values, scales)


def test_the_bulk_follows_the_recursion_in_python_scalars(ran):
    steps = ran.group("/")["step"].values.tolist()
    assert (steps[0], steps[-1]) == (0, 1000)
    assert len(steps) <= 50
    for case, scales, decays in cases(ran.group("/")):
        expected = oracles.rho(scales, float(case["learning_rate"]), decays, steps)
        found = case["rho_measured"].transpose("step", "layer").values
        oracles.assert_close(found, expected, steps=1000, size=9)


@pytest.mark.parametrize(("theorem", "scenario", "control"), everywhere("controls"))
def test_a_control_is_seen_to_fail(theorem, scenario, control, tmp_path_factory):
    ran = finished(theorem.name, tmp_path_factory.getbasetemp())
    entry = entry_of(ran, control.id)
    assert (entry["kind"], entry["holds"]) == ("control", True)
    results = ran.groups()[f"/controls/{control.id}/float64"]
    assert results.attrs["claim"] == control.claim
    claim = claim_of(control, scenario)
    leg = residuals(claim, scenario, results, "float64")
    clearly = 1.0 if claim.kind == "statistical" else CLEARLY
    assert (leg.residual > clearly * leg.tolerance).all()
    # A broken hypothesis is seen by its check; a wrong formula breaks no hypothesis.
    assert (left_out_reasons(leg) == "").all() == entry["hypotheses_met"] == (control.case is None)


@pytest.mark.parametrize(
    ("theorem", "scenario", "control"),
    everywhere("controls", lambda control: control.amounts),
)
def test_without_a_move_the_claim_is_restored(theorem, scenario, control):
    job = controls_job(theorem, scenario, (control,), (0,), "float64", amounts=(0.0,))
    (results,) = job.run().values()
    leg = residuals(claim_of(control, scenario), scenario, results, "float64")
    assert (left_out_reasons(leg) == "").all()
    assert (leg.residual <= leg.tolerance).all()


@pytest.mark.parametrize(
    ("theorem", "scenario"),
    # Collapse is a claim about the end.
    everywhere(None, lambda scenario: scenario.id != "collapse", DEEP),
)
def test_one_step_is_enough(theorem, scenario):
    bare = dataclasses.replace(scenario, controls=())
    alone = dataclasses.replace(theorem, scenarios=(bare,))
    settings: dict[str, Any] = {
        flag.name: flag.quick[:1] if flag.swept else (flag.quick or (None,))[0]
        for flag in theorem.flags
    }
    settings |= {"dim": (5,), "depth": (2,), "rank": (1,), "steps": 1}
    found = verify(alone, **settings, dtype="float32", seeds=1)
    assert found.verdict["holds"] is True
    assert all(claim["holds"] for claim in found.verdict["claims"])
    assert found.results["/"]["step"].values.tolist() == [0, 1]


@pytest.mark.parametrize("theorem", DEEP, ids=lambda theorem: theorem.name)
def test_rounding_that_repeats_at_a_saddle_is_tolerated(theorem):
    """From small starts the same update is rounded in the same way thousands of times."""
    scenario = theorem.scenarios[0]
    settings = {flag.name: flag.quick[:1] for flag in theorem.flags if flag.swept}
    settings |= {"dim": (8,), "depth": (4,), "rank": (1,), "steps": 30_000, "target": None}
    settings["init_scale"] = (0.003, 0.01, 0.03)
    job = claims_job(theorem, scenario, settings, (0,), "/", "float64", optimize=False)
    found = job.run()["/"]
    legs = {c.id: {"float64": residuals(c, scenario, found, "float64")} for c in scenario.claims}
    assert float(worst_ratio(scenario.claims, legs, "float64").max()) < 1
    # A random walk alone would not allow it.
    worst = {name: leg["float64"].residual / leg["float64"].tolerance for name, leg in legs.items()}
    walk = np.sqrt(8 * 30_001) / (np.sqrt(8 * 30_001) + 15_000)
    assert max(float(r.max()) for r in worst.values() if np.isfinite(r.max())) > walk


@pytest.mark.parametrize("name", [theorem.name for theorem in THEOREMS])
def test_float32_alone_decides_each_theorem(name, tmp_path):
    """As on a device without float64; tolerances are those of every run."""
    words = small_words(name, "float32")
    # What is left out in half of the digits depends on the seed: as many as are usual.
    words = words[: words.index("--seeds")]
    ran = python("-m", f"experiments.{name}", *words, "--dtype", "float32", "--out", tmp_path)
    assert ran.returncode == 0, ran.stdout
    verdict = verdict_of(tmp_path)
    assert verdict["holds"] is True
    controls = [claim for claim in verdict["claims"] if claim["kind"] == "control"]
    assert controls
    assert all(control["holds"] for control in controls)


def test_a_claim_of_float64_leaves_a_verdict_in_float32_alone_open_no_more(tmp_path_factory):
    ran = finished("galore_noise", tmp_path_factory.getbasetemp())
    claim = next(c for c in ran.verdict["claims"] if c["id"] == "stall_factor")
    assert claim["holds"]  # in float64 it is judged
    left_out = {"drawn": 1, "judged": 0, "left_out": {"ill-conditioned": 1}}
    excused = {"hypotheses_met": True, "cases": 0, "decided_by": {"excused": 1}}
    for precision, wanted in (("float32", []), ("float64", ["stall_factor"])):
        entry = claim | excused | {"holds": None, "judged": {precision: left_out}}
        assert undecided_claims(GALORE_NOISE, [entry]) == wanted
