"""The referee computes both sides of claims again, and sees what is wrong on both."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lrdyn import registry
from lrdyn.studies import study
from lrdyn.verification.judging.judging import judge_results
from lrdyn.verification.storing import results_file
from referee import __main__ as referee
from referee import draws
from referee.redone import Redone
from referee.results import SavedScenario, scenarios
from tests import kept
from tests.runs import finished, python

pytestmark = pytest.mark.tools

THEOREMS = list(registry.REGISTRY)
ELSEWHERE = ("theorem4", "galore")
"""Theorems whose wrong formulas are in another file."""
CLAIMS = [
    (name, scenario.id, claim.id)
    for name in THEOREMS
    if name not in ELSEWHERE
    for scenario in registry.theorem(name).scenarios
    for claim in scenario.claims
]


def run_of(theorem, factory):
    done = finished(theorem, factory.getbasetemp())
    assert done.process.returncode == 0, done.process.stderr
    return done


@functools.cache
def read(path):
    """The scenarios of a run, with what the referee computed of them."""
    return scenarios(path)


@functools.cache
def computed(path: Path) -> dict[str, list[referee.ClaimAtPoint]]:
    """Every claim of a small run, computed once for all tests."""
    every, theorem = {}, registry.theorem(path.parent.parent.name)
    mine = referee.referee_of(theorem.name)
    for scenario in theorem.scenarios:
        for claim in (claim.id for claim in scenario.claims):
            saved = read(path)[scenario.id]
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                every[claim] = referee.redone(
                    mine.claims[scenario.id][claim],
                    saved,
                    mine.diverges.get(scenario.id, referee.never),
                )
    return every


def of_run(theorem, factory):
    return computed(run_of(theorem, factory).folder / "results.nc")


@pytest.mark.parametrize("theorem", THEOREMS)
def test_every_claim_is_computed_again_and_agrees(theorem, tmp_path_factory, monkeypatch):
    every, mine = of_run(theorem, tmp_path_factory), referee.referee_of(theorem)
    known = {
        (mine.claims[scenario.id][claim.id], scenario.id): every[claim.id]
        for scenario in registry.theorem(theorem).scenarios
        for claim in scenario.claims
    }
    monkeypatch.setattr(referee, "scenarios", read)
    monkeypatch.setattr(referee, "redone", lambda claim, scenario, _: known[claim, scenario.name])
    found = referee.lines(run_of(theorem, tmp_path_factory).folder)
    assert len(found) == sum(len(s.claims) for s in registry.theorem(theorem).scenarios)
    assert {line.claim: line.said for line in found if not line.agrees} == {}


def test_every_claim_of_a_study_with_a_certificate_is_computed_again_and_agrees(tmp_path):
    sizes = "--rows 3 --cols 3 --measurements 4 --rank 1 2 --weight-decay 0.1 --starts 2".split()
    command = ["-m", "experiments.lora_landscape", "--problem", "gaussian", *sizes]
    assert not python(*command, "--seeds", "1", "--out", tmp_path).returncode
    (folder,) = referee.folders([str(tmp_path)])
    lines = referee.lines(folder)
    stated = [claim.id for part in study("lora_landscape").scenarios for claim in part.claims]
    assert [line.claim for line in lines] == stated
    assert {line.claim: line.said for line in lines if not line.agrees} == {}


@pytest.mark.parametrize("theorem", THEOREMS)
def test_every_case_that_is_judged_is_computed_again(theorem, tmp_path_factory):
    """Those, too, of which the judge says that nothing could be seen there."""
    every, claims = of_run(theorem, tmp_path_factory), kept.read(theorem)["claims"]
    assert every.keys() == claims.keys()
    unseen = ("trivial", "below what can be seen here")
    for claim, entry in claims.items():
        cases = entry["judged"] + sum(entry["left_out"].get(reason, 0) for reason in unseen)
        assert len(every[claim]) == cases, claim


LOOSER = {
    # how far from the end a run at rest may be, by its gradient, which only the referee allows
    **dict.fromkeys(("minimiser", "schatten", "balanced", "rest", "rest_loss"), 2e3),
    **dict.fromkeys(("autoencoder", "autoencoder_loss", "transposed", "all_transposed"), 5e2),
    **dict.fromkeys(("deep_minimiser", "deep_minimum"), 5e2),
    # conditions that the two measure with other disturbances
    **dict.fromkeys(("start", "optax_decay"), 60.0),
}
"""Claim -> by how much the referee may be looser than the judge, if not by :data:`AS_STRICT`."""
AS_STRICT = 6.0


@pytest.mark.parametrize("theorem", THEOREMS)
def test_the_referee_lets_pass_about_as_much_as_the_judge(theorem, tmp_path_factory):
    """Their tolerances are derived apart: neither was fitted to the other."""
    claims = kept.read(theorem)["claims"]
    for claim, points in of_run(theorem, tmp_path_factory).items():
        limits = [part.size * part.limit(at.steps) for at in points for part in at.parts]
        positive = [limit for limit in limits if limit > 0]
        if positive and claims[claim]["kind"] != "exact":
            typical = np.exp(np.mean(np.log(positive)))
            assert typical <= LOOSER.get(claim, AS_STRICT) * claims[claim]["typical"], claim


@pytest.mark.parametrize("theorem", THEOREMS)
def test_what_the_referee_compares_is_not_nothing(theorem, tmp_path_factory):
    """A side that is 0 everywhere would agree with any other that was forgotten."""
    for claim, points in of_run(theorem, tmp_path_factory).items():
        parts = [part for at in points for part in at.parts if part.kind == "equal"]
        assert not parts or any(np.any(part.theory) and np.any(part.run) for part in parts), claim


def test_the_name_of_an_axis_is_sought_once(tmp_path_factory, monkeypatch):
    """HDF5 looks through the whole file for it: of every array, that took most of the time."""
    sought, name = [], h5py.Dataset.name

    def asked(axis):
        sought.append(name.__get__(axis))
        return sought[-1]

    monkeypatch.setattr(h5py.Dataset, "name", property(asked))
    found = scenarios(run_of("galore", tmp_path_factory).folder / "results.nc")
    assert found
    assert "/rows" in sought
    assert len(sought) == len(set(sought))


# Saved sides that are wrong -------------------------------------------------------------------

BASES = ("left", "right")
"""Singular vectors, which nothing makes longer."""
DECIDES = "found_gradient"
"""By which a saved search is looked at."""


def larger(name, array):
    """Both sides as a formula leaves them that is off by a thousandth; counts are off by one."""
    if array.dtype.kind == "f":
        return array * (1 if name in BASES else 1.001)
    return array + 1 if name.endswith(("_predicted", "_measured")) else array


def moved(name, array):
    """What is said to be 0 is not."""
    return array + 1e-3 if array.dtype.kind == "f" and name != DECIDES else array


@functools.cache
def changed(folder: Path, into: Path, change: Callable[..., Any]) -> Path:
    """A copy of results without controls, of which what was saved is changed."""
    path = into / folder.parent.name / "results.nc"
    path.parent.mkdir()
    shutil.copy(folder / "results.nc", path)
    with h5py.File(path, "r+") as file:
        for group in (file, *file.values()):
            if isinstance(group, h5py.Group) and "controls" in group:
                del group["controls"]
        file.visititems(lambda name, array: rewritten(name, array, change))
    return path


def rewritten(path, array, change):
    *groups, name = path.split("/")
    produced = "case" not in groups and not name.startswith(("met_", "length_"))
    if produced and isinstance(array, h5py.Dataset) and not array.is_scale:
        array[...] = change(name, array[...])


@functools.cache
def judged(path: Path) -> dict[str, Any]:
    """What lrdyn says of the claims of a copy."""
    theorem = registry.theorem(path.parent.name)
    alone = tuple(dataclasses.replace(one, controls=()) for one in theorem.scenarios)
    theorem = dataclasses.replace(theorem, scenarios=alone)
    found = judge_results(theorem, results_file.load(path), "float64")
    return {entry["id"]: entry["holds"] for entry in found.claims}


@functools.cache
def saved_by(path: Path) -> dict[str, SavedScenario]:
    """What is computed once at a point is remembered there."""
    return scenarios(path)


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory):
    return functools.cache(tmp_path_factory.mktemp)


@pytest.mark.parametrize(("theorem", "name", "id"), CLAIMS)
def test_what_is_wrong_on_both_sides_holds_and_is_refused(
    theorem, name, id, tmp_path_factory, somewhere
):
    folder = run_of(theorem, tmp_path_factory).folder
    entries = json.loads((folder / "verdict.json").read_text())["claims"]
    (entry,) = (entry for entry in entries if entry["id"] == id)
    claim = referee.referee_of(theorem).claims[name][id]
    place, zero = judged_place(claim, saved_by(folder / "results.nc")[name])
    # Of what is said to be 0 there is one side alone, and nothing that both could be off by.
    path = changed(folder, somewhere(f"zero-{zero}"), moved if zero else larger)
    wrong = SavedScenario(name, [saved_by(path)[name].points[place]], [])
    assert zero or judged(path)[id]
    assert referee.line(entry, claim, wrong).agrees is False


def judged_place(claim, scenario):
    """The first point at which a claim is judged, and whether it says that something is 0."""
    for place, point in enumerate(scenario.points):
        if found := referee.redone(claim, SavedScenario("", [point], [])):
            return place, all(part.kind == "zero" for part in found[0].parts)
    raise AssertionError("no point meets the hypotheses")


# The command ----------------------------------------------------------------------------------


def test_a_folder_without_a_run_is_bad_input(tmp_path, capsys):
    assert referee.main([str(tmp_path)]) == 2
    assert "wanted a folder with verdict.json" in capsys.readouterr().err


def test_a_verdict_that_is_not_confirmed_ends_with_1(tmp_path_factory, monkeypatch, capsys):
    folder = run_of("corollary1", tmp_path_factory).folder
    wrong = Redone(np.ones(2), np.zeros(2))
    mine = referee.referee_of("corollary1").claims["compression"]
    monkeypatch.setitem(mine, "error_identity", lambda point: wrong)
    assert referee.main([str(folder)]) == 1
    assert "DIFFERENT: error_identity" in capsys.readouterr().out


def test_a_claim_without_a_referee_ends_with_1(tmp_path_factory, monkeypatch, capsys):
    folder = run_of("lora", tmp_path_factory).folder
    monkeypatch.delitem(referee.referee_of("lora").claims["one_step"], "dora_step")
    assert referee.main([str(folder)]) == 1
    assert "NO REFEREE OF THIS CLAIM" in capsys.readouterr().out


def test_a_reason_why_a_claim_is_not_computed_again_is_printed(
    tmp_path_factory, monkeypatch, capsys
):
    folder = run_of("lora", tmp_path_factory).folder
    monkeypatch.delitem(referee.referee_of("lora").claims["one_step"], "dora_step")
    mine = referee.referee_of("lora")._replace(reason="it is too long ago")
    monkeypatch.setattr(referee, "referee_of", lambda command: mine)
    assert referee.main([str(folder)]) == 0
    assert "it is too long ago" in capsys.readouterr().out


def test_random_draws_are_those_of_jax():
    import jax

    words = np.array([928981903, 3453687069], np.uint32)
    key = jax.random.wrap_key_data(jax.numpy.asarray(words))
    for number in (0, 7, 2**32 - 3):
        folded = jax.random.fold_in(key, np.uint32(number))
        assert np.array_equal(jax.random.key_data(folded), draws.folded(words, number))
    assert np.array_equal(jax.random.key_data(jax.random.split(key, 5)), draws.split(words, 5))
    assert np.array_equal(jax.random.uniform(key, (3, 5)), draws.uniform(words, (3, 5)))


def test_nothing_of_this_library_or_of_jax_is_imported():
    code = (
        "import sys, referee.__main__\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('lrdyn', 'jax', 'jaxlib')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
