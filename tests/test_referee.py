"""The referee computes both sides of claims again, and sees a formula that is wrong on both."""

import json
import subprocess
import sys

import numpy as np
import pytest

from referee import __main__ as referee
from referee.redone import Redone
from referee.results import Scenario, scenarios
from tests.runs import finished

CLAIMS = [(name, claim) for name, claims in referee.CLAIMS.items() for claim in claims]
THEOREMS = {
    "theorem1": {"descent", "basins", "critical_points", "autoencoder"},
    "theorem2": {"factorization", "mean_loss", "classification", "collapse"},
    "corollary1": {"compression"},
    "theorem3": {"masks", "dropout"},
    "lora": {"one_step", "compressed", "counts"},
}
"""Theorem -> its scenarios whose claims are computed again."""
FREE = {"schatten", "rest", "rest_loss", "balanced", "all_transposed", "search", "envelope_below"}
"""Claims of which nothing is saved but what rests on a choice: a start, a basis."""
DRAWN = {"monte_carlo", "monte_carlo_rate"}
"""Claims about draws, whose test looks at the saved ones."""


def run_of(theorem, factory):
    done = finished(theorem, factory.getbasetemp())
    assert done.process.returncode == 0, done.process.stderr
    return done


@pytest.mark.parametrize("theorem", THEOREMS)
def test_every_claim_that_is_computed_again_agrees(theorem, tmp_path_factory):
    found = referee.lines(run_of(theorem, tmp_path_factory).folder)
    known = {claim for name, claim in CLAIMS if name in THEOREMS[theorem]}
    assert {line.claim for line in found if line.agrees} == known
    assert {line.said for line in found if line.claim not in known} <= {"no referee of this claim"}


@pytest.mark.parametrize("theorem", ["corollary1", "lora"])
def test_a_formula_that_is_wrong_on_both_sides_is_seen(theorem, tmp_path_factory):
    folder = run_of(theorem, tmp_path_factory).folder
    entries = {e["id"]: e for e in json.loads((folder / "verdict.json").read_text())["claims"]}
    for name, scenario in scenarios(folder / "results.nc").items():
        wrong = Scenario(name, [bent(point) for point in scenario.points], [])
        for id, claim in referee.CLAIMS[name].items():
            if id not in FREE | DRAWN:
                assert referee.line(entries[id], claim, scenario).agrees, id
                assert referee.line(entries[id], claim, wrong).agrees is False, id


def bent(point):
    """What would be saved if theory and run were off alike: by a thousandth, a count by 1."""
    found = {n: array + offset(array) for n, array in point.found.items() if array.size}
    return point._replace(found={**point.found, **found, "diverges": np.array(-1)}, memory={})


def offset(array):
    """A thousandth of the largest entry; of rounding, which stands for 0, a thousandth."""
    if array.dtype.kind in "iub":
        return 1
    size = np.abs(np.nan_to_num(array)).max() if array.dtype.kind == "f" else 0
    return 1e-3 * size if size > 1e-9 else 1e-3


def test_a_folder_without_a_run_is_bad_input(tmp_path, capsys):
    assert referee.main([str(tmp_path)]) == 2
    assert "wanted a folder with verdict.json" in capsys.readouterr().err


def test_a_verdict_that_is_not_confirmed_ends_with_1(tmp_path_factory, monkeypatch, capsys):
    folder = run_of("corollary1", tmp_path_factory).folder
    wrong = Redone(np.ones(2), np.zeros(2))
    monkeypatch.setitem(referee.CLAIMS["compression"], "error_identity", lambda point: wrong)
    assert referee.main([str(folder)]) == 1
    assert "DIFFERENT: error_identity" in capsys.readouterr().out


def test_nothing_of_this_library_or_of_jax_is_imported():
    code = (
        "import sys, referee.__main__\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('lrdyn', 'jax', 'jaxlib')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
