"""What every claim and finding says of outcomes that no run leaves is committed.

A small run holds, and takes few of the ways through a claim: nearly nothing is left out, nothing
diverges, no bound is infinite. Here each array that a claim reads is moved in turn, and each flag,
by much; what the claim leaves out then and why, what it lets pass and by how much it fails, stands
in ``tests/data/made_up_outcomes.json``. A hypothesis that is dropped, an excuse that always or
never holds, a scale, a power or a part of what is compared that is another: each moves one of these
lines. ``LRDYN_RECORD=1 pytest tests/test_made_up_outcomes.py`` writes the file anew, after a change
that is meant.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from lrdyn.registry import theorem
from lrdyn.verification.judging import judging
from lrdyn.verification.judging.outcomes import groups_of, outcomes
from lrdyn.verification.stating.statement import Claim, Finding
from tests.kept_numbers import committed
from tests.runs import finished
from tests.test_theorem_numbers import UNDECIDED

FILE = Path(__file__).parent / "data" / "made_up_outcomes.json"
DIGITS = 1e-8
"""Of the largest entry of an array: what is below is rounding, and taken off before all else."""
MOVES = {
    "zero": np.zeros_like,
    "triple": lambda x: x + x + x,
    "infinite": lambda x: np.full_like(x, np.inf),
}
EVEN = {"all one": (1.0, 1.0), "all one, three measured": (1.0, 3.0), "all zero": (0.0, 0.0)}
"""What all arrays of theory and of the run are filled with: there every inequality is an equality,
as no run has it."""
FAILS = 1e-2
"""Residual from which on it is compared; a smaller one is rounding."""
ROUNDING = {"optax_precise": 0.1}
"""The same of claims whose residual is in units of what float32's rounding may do, where each CPU
leaves something else: .007 and .011 were seen, and a mistake leaves thousands."""


def cleaned(array, *, undecided=False):
    """An array as it is whatever rounded it; one that rounding decides is a diagonal of ones."""
    if array.dtype.kind != "f" or not array.size:
        return array
    if undecided:
        return np.broadcast_to(np.eye(*array.shape[-2:]) if array.ndim > 1 else 0.0, array.shape)
    finite = np.abs(array[np.isfinite(array)])
    unit = DIGITS * np.max(finite, initial=0.0)
    if unit < DIGITS**2:
        return np.where(np.isfinite(array), 0.0, array)
    return np.round(array / unit) * unit


BASES = ("left", "right")
"""Singular vectors, the signs of which a release chooses."""


def filled(array, number):
    return np.full_like(array, number) if array.dtype.kind == "f" else array


def with_side(outcome, side, arrays):
    kind = type(getattr(outcome, side))
    return replace(outcome, **{side: kind(arrays, KeyError)})


def made_up(outcome):
    """What is moved -> an outcome with only that moved."""
    sides = {side: getattr(outcome, side) for side in ("predicted", "measured")}
    yield "nothing", outcome
    for side, arrays in sides.items():
        every = {name: arrays[name] for name in arrays}
        for name, array in every.items():
            for how, move in MOVES.items():
                if array.dtype.kind in "fi" and (array.dtype.kind == "f" or how != "infinite"):
                    moved = np.asarray(move(array)).astype(array.dtype)
                    yield f"{side} {name} {how}", with_side(outcome, side, every | {name: moved})
    for words, numbers in EVEN.items():
        one = outcome
        for (side, arrays), number in zip(sides.items(), numbers, strict=True):
            even = {n: filled(arrays[n], number) for n in arrays}
            one = with_side(one, side, even)
        yield words, one
    for name, value in outcome.point.items():
        if isinstance(value, int | float) and name != "seed":
            for how, other in (("more", 2 * value + 1), ("less", value / 2)):
                number = type(value)(other)
                yield f"{name} {how}", replace(outcome, point={**outcome.point, name: number})
    yield "float32", replace(outcome, dtype=np.dtype("float32"))
    yield "steps", replace(outcome, steps=50 * outcome.steps)


def said(statement, scenario, outcome):
    """Why a claim leaves an outcome out, what it lets pass, and by how much it fails."""
    if isinstance(statement, Finding):
        with np.errstate(all="ignore"):
            return [number(x) for x in np.ravel(statement.value(outcome))[:3]]
    row = judging.row_of(statement, scenario, outcome)
    residual = row.residual if not row.residual < ROUNDING.get(statement.id, FAILS) else 0.0
    certified = ["certified"] if row.certified else []
    return [row.reason, number(row.threshold), number(residual), *certified]


def alternatives(statement, scenario, outcome):
    """What a claim would be told from: the size of each null and each alternative."""
    if isinstance(statement, Finding):
        return []
    with np.errstate(all="ignore"):
        forms = judging.forms_of(statement, scenario, outcome)
    others = [getattr(f, n) for f in forms for n in ("null", "alternative") if hasattr(f, n)]
    return [number(np.max(np.abs(each))) for each in others]


def at_rest(statement, scenario, outcome):
    """From how small a gradient on a claim takes a run as ended, in powers of two, of each array.

    Theory's arrays are not of size 1, whose powers are all the same.
    """
    theory = {n: outcome.predicted[n] for n in outcome.predicted}
    large = {n: np.asarray(3 * x) if x.dtype.kind == "f" else x for n, x in theory.items()}
    outcome = with_side(outcome, "predicted", large)
    run = {name: outcome.measured[name] for name in outcome.measured}
    gradients = [name for name in run if "gradient" in name or name == "slope"]
    if not isinstance(statement, Claim) or not statement.undecided or not gradients:
        return []
    found = []
    for name in gradients:
        zero = run | {other: np.zeros_like(run[other]) for other in gradients}
        reasons = [
            statement.undecided(
                with_side(outcome, "measured", zero | {name: np.full_like(run[name], 2.0**-k)})
            )
            for k in range(0, 50, 2)
        ]
        found.append(sum(reason != reasons[0] for reason in reasons))
    return found


def number(x):
    return float(f"{x:.4g}") if np.isfinite(x) else str(x)


def read_by(statement):
    """A finding reads as a claim of it would."""
    if isinstance(statement, Claim):
        return statement
    return Claim(statement.id, "", form=lambda outcome: (), reads=statement.reads, seeds=1)


@cache
def cleaned_run(name, scenario, base):
    """Arrays of a scenario, by its id, in the small run of its theorem."""
    of = theorem(name)
    (known,) = (each for each in of.scenarios if each.id == scenario)
    group = groups_of(of, known, "float64")["float64"]
    run, place = finished(name, base).groups()[group].copy(), group.strip("/")
    listed = set(json.loads(UNDECIDED.read_text())[name])
    for name_of, array in run.data_vars.items():
        path = f"{place}/{name_of}".strip("/")
        run[name_of].variable.values = cleaned(
            array.values, undecided=path in listed or name_of in BASES
        )
    return run


def statements(scenario):
    return (*scenario.claims, *scenario.findings)


def lines(name, scenario, statement, base):
    """Statement and what is moved -> what is said then, where that is something else."""
    run = cleaned_run(name, scenario.id, base)
    first, *others = outcomes(read_by(statement), scenario, run, "float64")
    last, usual = others[-1] if others else first, said(statement, scenario, first)
    yield f"{statement.id}, first", usual
    for words, of_last in (("told from", alternatives), ("at rest", at_rest)):
        if any(answer := of_last(statement, scenario, last)):
            yield f"{statement.id}, {words}", answer
    for moved, one in made_up(last):
        try:
            answer = said(statement, scenario, one)
        except Exception as error:
            answer = [type(error).__name__]
        if answer != usual:
            yield f"{statement.id}, {moved}", answer
        if moved == "nothing":
            usual = answer


def differs(found, wanted):
    return len(found) != len(wanted) or any(map(apart, found, wanted))


def apart(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return one != pytest.approx(other, rel=0.02, abs=0)
    return one != other


STATEMENTS = {
    (name, scenario.id, statement.id): (name, scenario, statement)
    for name in json.loads(UNDECIDED.read_text())
    for scenario in theorem(name).scenarios
    for statement in statements(scenario)
}


@pytest.mark.parametrize(("name", "scenario", "claim"), STATEMENTS)
def test_what_is_said_of_outcomes_that_no_run_leaves(name, scenario, claim, tmp_path_factory):
    of = STATEMENTS[name, scenario, claim]
    found = dict(lines(*of, tmp_path_factory.getbasetemp()))
    wanted = committed(FILE, name, found, lambda line: line.startswith(f"{claim}, "))
    assert found.keys() == wanted.keys()
    assert {n: (found[n], wanted[n]) for n in wanted if differs(found[n], wanted[n])} == {}


def test_nothing_is_kept_of_what_no_theorem_states():
    kept = json.loads(FILE.read_text())
    assert {(name, line.partition(", ")[0]) for name in kept for line in kept[name]} == {
        (name, claim) for name, _, claim in STATEMENTS
    }
