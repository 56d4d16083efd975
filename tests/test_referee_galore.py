"""The referee on Theorem 4 and optax's GaLore: it agrees, and sees what is off on both sides."""

import dataclasses
import functools
import json
import shutil

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.adapters.methods import RELORA_FROZEN
from lrdyn.galore import path_claims, state_claims
from lrdyn.galore.statement import GALORE
from lrdyn.theorem4 import gradient_rank, memory_claims, problems
from lrdyn.theorem4.duality_claims import DualRegression
from lrdyn.theorem4.gradient_rank_claims import TERMS, Recursion
from lrdyn.theorem4.statement import THEOREM4
from lrdyn.verification.judging.judging import claim_entry, residuals
from lrdyn.verification.judging.outcomes import groups_of
from lrdyn.verification.storing import results_file
from referee import __main__ as referee
from referee import galore as of_optax
from referee import low_rank, networks
from tests.runs import finished, small_words

pytestmark = pytest.mark.tools

THEOREMS = {"theorem4": THEOREM4, "galore": GALORE}
CLAIMS = [
    pytest.param(name, claim.id, id=claim.id)
    for name, theorem in THEOREMS.items()
    for scenario in theorem.scenarios
    for claim in scenario.claims
]


def run_of(theorem, factory):
    done = finished(theorem, factory.getbasetemp())
    assert done.process.returncode == 0, done.process.stderr
    return done


# Saved arrays that are wrong on both sides ------------------------------------------------------

OTHER_ARRAYS = {
    "top_directions": ["moves"],
    "sum_excess": ["sum_values"],
    "signs": ["kept_signs"],
    "policy_trained": ["trained"],
    "stable_rank_bound": ["stable_rank_bound", "stable_rank"],
    "stable_rank_floor": ["stable_rank_floor", "stable_rank"],
    "lemma_3_3": ["lemma_3_3", "stable_rank"],
}
"""What is read by claims whose arrays are not called as they are."""


def change(group, claims):
    """Both sides of claims off alike: numbers by a thousandth, counts by one."""
    arrays = {a for c in claims for a in OTHER_ARRAYS.get(c, [c.removeprefix("network_")])}
    for name in (array + side for array in arrays for side in ("", "_predicted", "_measured")):
        if name in group and not isinstance(group[name], h5py.Group):
            array = group[name][()]
            group[name][...] = array + 1 if array.dtype.kind in "iu" else array * 1.001
    if "sum_rank" in claims:  # each sum has the direction more that is claimed of it
        values, ranks = group["sum_values"][()], group["sum_rank"][()]
        np.put_along_axis(values, ranks[..., None] - 1, values[..., :1] / 2, axis=-1)
        group["sum_values"][...] = values


@functools.cache
def when_all_are_off(name, base):
    """What lrdyn and the referee say of each claim in a changed copy."""
    theorem, folder = THEOREMS[name], base / f"{name}-off"
    shutil.copytree(finished(name, base).folder, folder)
    groups = {s.id: groups_of(theorem, s, "float64") for s in theorem.scenarios}
    with h5py.File(folder / "results.nc", "r+") as file:
        for scenario in theorem.scenarios:
            for group in groups[scenario.id].values():
                change(file[group], [claim.id for claim in scenario.claims])
    verdict = json.loads((folder / "verdict.json").read_text())
    wrong = results_file.load(folder / "results.nc")
    verdict["claims"] = [
        claim_entry(
            claim, {p: residuals(claim, scenario, wrong[g], p, power=True) for p, g in mine.items()}
        )
        for scenario in theorem.scenarios
        for mine in [groups[scenario.id]]
        for claim in scenario.claims
    ]
    (folder / "verdict.json").write_text(json.dumps(verdict))
    lines = referee.lines(folder)
    return {
        entry["id"]: (entry, line) for entry, line in zip(verdict["claims"], lines, strict=True)
    }


@pytest.mark.parametrize(("theorem", "claim"), CLAIMS)
def test_arrays_that_are_off_on_both_sides_hold_and_are_refused(theorem, claim, tmp_path_factory):
    run_of(theorem, tmp_path_factory)
    entry, line = when_all_are_off(theorem, tmp_path_factory.getbasetemp())[claim]
    assert entry["holds"]
    assert line.agrees is False, line


# Formulas that are wrong on both sides ----------------------------------------------------------


def without_controls(theorem, **others):
    """A theorem of which the claims alone are judged; some scenarios are replaced."""
    kept = [dataclasses.replace(others.get(s.id, s), controls=()) for s in theorem.scenarios]
    return dataclasses.replace(theorem, scenarios=tuple(kept))


def refused(command_line, theorem, folder):
    """The claims that hold by the verdict of a command, and those that the referee refuses."""
    _, out, err = command_line(theorem, *small_words(theorem.name), "--out", folder)
    assert "holds" in out, err
    (path,) = folder.glob("*/*/verdict.json")
    entries = json.loads(path.read_text())["claims"]
    holds = {entry["id"] for entry in entries if entry["holds"]}
    lines = referee.lines(path.parent)
    return holds, {line.claim for line in lines if line.agrees is False}


def weaker(loss):
    """Nine tenths of a loss: of the gradients of both methods, and of all projectors alike."""
    return lambda weights, data: 0.9 * loss(weights, data)


def test_formulas_of_theorem_4_that_are_wrong_on_both_sides_hold_and_are_refused(
    command_line, tmp_path, monkeypatch
):
    for name in ("regression", "mlp"):
        monkeypatch.setitem(problems.LOSS, name, weaker(problems.LOSS[name]))
    monkeypatch.setitem(memory_claims.METHODS, "galore", RELORA_FROZEN)

    def steeper(case, every):
        distance = every @ case.inputs.T - case.outputs[None]
        return jnp.sum(jnp.sqrt(1 + 2 * distance**2)) / len(case.outputs)

    def with_more_curvature(case, weights):
        terms = weights[:, None]
        rest = 1.1 * (case.left @ terms @ case.right) / 2 - case.targets
        return jnp.sum(rest * terms) / TERMS

    plain = gradient_rank.gradient_modes
    monkeypatch.setattr(DualRegression, "loss", steeper)
    monkeypatch.setattr(Recursion, "loss", with_more_curvature)
    monkeypatch.setattr(
        gradient_rank, "gradient_modes", lambda left, right: plain(1.1 * left, right)
    )
    holds, seen = refused(command_line, without_controls(THEOREM4), tmp_path)
    of_scenarios = [{claim.id for claim in s.claims} for s in THEOREM4.scenarios]
    assert all(names & holds & seen for names in of_scenarios)
    assert seen <= holds
    assert {"weights", "top_directions", "sum_excess", "lifted", "signs", "network_weights"} <= seen
    assert {"weights_held", "state_held", "duality", "scale_adam", "same_eps"} <= seen
    assert {"gradient_path", "stable_rank_bound", "stable_rank_floor", "lemma_3_3"} <= seen


def test_formulas_of_optax_that_are_wrong_on_both_sides_hold_and_are_refused(
    command_line, tmp_path, monkeypatch
):
    plain = path_claims.training_loss
    monkeypatch.setattr(path_claims, "training_loss", lambda *given: 0.9 * plain(*given))
    monkeypatch.setattr(path_claims, "DECAY", 0.11)
    more = dataclasses.replace(
        state_claims.STATE,
        predict=lambda case: state_claims.predict_state(case._replace(rank=case.rank + 1)),
        measure=lambda case: state_claims.measure_state(case._replace(rank=case.rank + 1)),
    )
    planted = without_controls(GALORE, optax_state=more)
    holds, seen = refused(command_line, planted, tmp_path)
    every = {claim.id for scenario in GALORE.scenarios for claim in scenario.claims}
    assert holds == seen == every


# By hand ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", problems.PROBLEMS)
def test_gradients_by_hand_are_differences_of_the_loss(problem):
    rng = np.random.default_rng(0)
    loss, names = networks.LOSSES[problem]
    start = [rng.standard_normal(shape) for shape in SHAPES[problem]]
    assert len(start) == len(names)
    if problem == "transformer":
        data = [rng.standard_normal((3, 4, 2)), rng.standard_normal((3, 2, 2))]
    else:
        data = [rng.standard_normal((4, 7)), np.eye(2)[:, rng.integers(2, size=7)]]
    assert_slope(loss, start, data, rng)


def test_the_gradient_of_the_network_of_optax_is_a_difference_of_its_loss():
    """Of which no claim reads the value."""
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape) for shape in ((3,), (3, 4), (2, 3))]
    data = [rng.standard_normal((4, 7)), rng.standard_normal((2, 7))]
    assert_slope(of_optax.linear_network, start, data, rng)


def assert_slope(loss, start, data, rng):
    of = low_rank.LowRankCase(loss, start, data, 1, 1, lambda g, s: (g, s), 1.0, True, [1])
    way = [rng.standard_normal(array.shape) for array in start]
    ahead, behind = (
        loss([w + size * d for w, d in zip(start, way, strict=True)], data)[0]
        for size in (1e-5, -1e-5)
    )
    slope = sum(np.sum(G * d) for G, d in zip(of.gradient(start), way, strict=True))
    assert (ahead - behind) / 2e-5 == pytest.approx(slope, rel=1e-7)


SHAPES = {
    "regression": [(2, 4)],
    "logistic": [(2, 4)],
    "mlp": [(3, 4), (2, 3), (3,), (2,)],
    "transformer": [
        (5, 4),
        *[(5, 5)] * 4,
        (6, 5),
        (5, 6),
        (6,),
        (5,),
        *[(5,)] * 6,
        (2, 5),
    ],
}
"""Parameters of small problems of 4 features and 2 outputs."""
