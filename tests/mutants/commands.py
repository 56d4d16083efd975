"""What a command says of a mutant: the small run of a theorem, or its saved results judged again.

No test of the suite: only mutants are tried with these. The run of one scenario alone, in one
precision and without controls, says most of what the whole one does, at a tenth of the time.
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrdyn.registry import REGISTRY, theorem
from lrdyn.verification.running.produce import CONTROL_SEEDS
from lrdyn.verification.runs.verify import verify_groups
from lrdyn.verification.storing import results_file
from referee import __main__ as referee
from referee.results import SavedScenario, scenarios
from tests import oracles
from tests import test_referee as of_referee
from tests import test_theorem_numbers as theorem_numbers
from tests.jobs import controls_job
from tests.runs import TINY, finished

SCENARIOS = [(name, scenario.id) for name in REGISTRY for scenario in theorem(name).scenarios]


def flags_of(words: list[str]) -> dict[str, Any]:
    """Flags of a command line."""
    found: dict[str, list[int | float]] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag = word.removeprefix("--").replace("-", "_")
            found[flag] = []
        else:
            found[flag].append(int(word) if word.isdigit() else float(word))
    return {name: some if some[1:] else some[0] for name, some in found.items() if name != "seeds"}


def were_moved(name: str, group: str, run: Any) -> dict[str, Any]:
    """Arrays of a group that a test of the suite, which looks at the whole run, finds moved."""
    wanted = json.loads(theorem_numbers.FILE.read_text())[name]
    found = theorem_numbers.numbers_of_group(name, group, run)
    return theorem_numbers.moved(
        {place: found[place] for place in found.keys() & wanted.keys()}, wanted
    )


@pytest.mark.parametrize(("name", "scenario"), SCENARIOS)
def test_the_scenario_holds(name, scenario):
    """And its numbers are what they were."""
    of = theorem(name)
    (one,) = (each for each in of.scenarios if each.id == scenario)
    run, legs = oracles.judged(of, one, flags_of(TINY[name]))
    false = {
        id: leg.residual.values.max()
        for id, leg in legs.items()
        if not np.all((leg.residual <= leg.tolerance) | (leg.reason != ""))
    }
    assert false == {}
    assert were_moved(name, "" if one is of.scenarios[0] else scenario, run) == {}


CONTROLS = [
    (name, scenario.id, control.claim, control.id)
    for name in REGISTRY
    for scenario in theorem(name).scenarios
    for control in scenario.controls
]


@pytest.mark.parametrize(("name", "scenario", "claim", "control"), CONTROLS)
def test_the_numbers_of_a_control_are_what_they_were(name, scenario, claim, control):
    of = theorem(name)
    (one,) = (each for each in of.scenarios if each.id == scenario)
    (it,) = (each for each in one.controls if each.id == control)
    for group, run in controls_job(of, one, (it,), range(CONTROL_SEEDS), "float64").run().items():
        assert were_moved(name, group, run) == {}


@pytest.mark.parametrize("name", REGISTRY)
def test_saved_results_hold(name, tmp_path_factory, unchecked):
    """As ``--judge`` does, but for the question whose files they are."""
    folder = finished(name, tmp_path_factory.getbasetemp()).folder
    found = verify_groups(theorem(name), results_file.load(folder / results_file.NAME), "float64")
    assert found.verdict["holds"] is True, repr(found)


@pytest.mark.parametrize("name", REGISTRY)
def test_the_run_holds(name, tmp_path_factory):
    done = finished(name, tmp_path_factory.getbasetemp()).process
    assert done.returncode == 0, done.stdout + done.stderr


CLAIMS = [
    (name, scenario.id, claim.id)
    for name in REGISTRY
    for scenario in theorem(name).scenarios
    for claim in scenario.claims
]


@functools.cache
def saved_by(path: Path) -> dict[str, SavedScenario]:
    """What the referee reads of results."""
    return scenarios(path)


@pytest.mark.parametrize(("theorem", "scenario", "id"), CLAIMS)
def test_the_referee_agrees(theorem, scenario, id, tmp_path_factory):
    """On one claim, of small runs that are saved; what it computes and lets pass is what it was.

    Tests of the suite look at the same numbers, those of all claims of a theorem.
    """
    folder = finished(theorem, tmp_path_factory.getbasetemp()).folder
    entries = json.loads((folder / "verdict.json").read_text())["claims"]
    (entry,) = (entry for entry in entries if entry["id"] == id)
    saved = saved_by(folder / "results.nc")[scenario]
    assert referee.line(entry, referee.CLAIMS[scenario][id], saved).agrees is not False
    points = referee.redone(referee.CLAIMS[scenario][id], saved)
    found = of_referee.Computed(points, [])
    passes, parts = (
        json.loads(path.read_text())[theorem][id]
        for path in (of_referee.LET_PASS, of_referee.SIDES)
    )
    of_referee.pass_as_before({id: found}, {id: passes})
    # By what runs were disturbed depends on the claims that were computed before.
    now = of_referee.sides(id, found) | {"disturbed": parts["disturbed"]}
    of_referee.are_as_before(id, now, parts)
