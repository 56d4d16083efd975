"""What every claim came to at the small run of its theorem: one file of numbers a theorem.

A file says of each claim whether a verdict rests on it, its kind, its largest tolerance, the
difference that is let pass at the first case and at a typical one, the residual, how many cases
were judged, and how many were left out for which reason; of each control what it breaks, and by
which residual.
The scale of a difference is the size of data. Where it is larger than everything that the claim
reads (a sum whose entries are saved, entries of a derivative, which are 1), ``farther`` says by how
much, and the form of the claim says why.
``tests/test_kept.py`` compares them with a run of today, and with what follows from the formulas of
the pages.

``python -m tests.kept`` writes them anew. It refuses what makes a claim weaker, unless *Numbers
that moved* in CHANGELOG.md names the claim.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lrdyn.verification.judging.judging import left_out_reasons, residuals
from lrdyn.verification.judging.outcomes import groups_of
from lrdyn.verification.stating.statement import Claim, Scenario, Theorem
from tests.runs import Finished

FOLDER = Path(__file__).parent
CHANGELOG = FOLDER.parents[1] / "CHANGELOG.md"
Entry = dict[str, Any]
Numbers = dict[str, dict[str, Entry]]
"""``claims`` and ``controls`` -> id -> what is kept of it."""

SAME = 0.01
"""Thresholds may differ by this share between machines, and tolerances."""
AMPLIFIED = 0.05
"""The same of a claim with a condition: theory's own run amplifies rounding."""
NEARER = 1.0 + 1e-9
"""Scales up to so many times the largest number that is read are those of data."""
FARTHER = 2.0
"""By how much more a scale may exceed it elsewhere: what is read may be rounding."""
ROUNDED = 10.0
"""By how much more another machine may round: the residual of a claim is rounding."""
BROKEN = 0.1
"""By which share the residual of a control may differ: it is no rounding."""


def legs(theorem: Theorem, done: Finished) -> Iterator[tuple[Scenario, Claim, Any, Any]]:
    """Every claim, its results, and residual, tolerance and reason at each point, in float64."""
    for scenario in theorem.scenarios:
        results = done.groups()[groups_of(theorem, scenario, "float64")["float64"]]
        for claim in scenario.claims:
            leg = residuals(claim, scenario, results, "float64", power=True)
            yield scenario, claim, results, leg


def numbers(theorem: Theorem, done: Finished) -> Numbers:
    """What is kept of the small run of a theorem."""
    entries = {entry["id"]: entry for entry in done.verdict["claims"]}
    claims = {}
    for scenario, claim, results, leg in legs(theorem, done):
        entry = {"carries": claim.carries} | of_claim(entries[claim.id], leg)
        ratio = farther(scenario, claim, results, leg)
        claims[claim.id] = entry | ({"farther": rounded(ratio, 3)} if ratio > NEARER else {})
    controls = {
        control.id: {
            "claim": control.claim,
            "seen": entries[control.id]["holds"],
            "residual": rounded(entries[control.id]["residual"], 3),
        }
        for scenario in theorem.scenarios
        for control in scenario.controls
    }
    return {"claims": claims, "controls": controls}


def of_claim(entry: Entry, leg: Any) -> Entry:
    """What is kept of a claim: its entry of verdict.json, and what it lets pass.

    The tolerance is the largest of the cases that are judged: verdict.json has that of the worst
    case, and which one that is depends on how a machine rounds. Tests have one for all cases.
    """
    judged = left_out_reasons(leg).ravel() == ""
    passes = leg.threshold.values.ravel()[judged]
    positive = passes[passes > 0]
    typical = float(np.exp(np.mean(np.log(positive)))) if len(positive) else 0.0
    largest_one = float(leg.tolerance.values.ravel()[judged].max())
    tolerance = entry["tolerance"] if entry["kind"] == "statistical" else largest_one
    return {
        "kind": entry["kind"],
        "tolerance": rounded(tolerance, 3),
        "first": rounded(passes[0], 4),
        "typical": rounded(typical, 4),
        "residual": rounded(entry["residual"], 2),
        "judged": entry["judged"]["float64"]["judged"],
        "left_out": entry["judged"]["float64"]["left_out"],
    }


def farther(scenario: Scenario, claim: Claim, results: Any, leg: Any) -> float:
    """The scale of an identity or a bound over the largest number that it reads; else 0."""
    judged = left_out_reasons(leg) == ""
    if claim.kind not in ("identity", "bound") or not judged.any():
        return 0.0
    scale = (leg.threshold / leg.tolerance).values[judged].max()
    return float(scale / largest(scenario.arrays_of(claim), results))


def most_farther(entry: Entry) -> float:
    """The largest such ratio that is as it is kept."""
    return FARTHER * entry["farther"] if "farther" in entry else NEARER


def largest(read: Any, results: Any) -> float:
    """The largest number in arrays, by the names of their fields."""
    names = {f"{name}{side}" for name in read for side in ("", "_predicted", "_measured")}
    arrays = [results[name].values for name in names & set(map(str, results.variables))]
    finite = [np.abs(array[np.isfinite(array)].astype(float)) for array in arrays]
    return max(np.max(array, initial=0.0) for array in finite)


def rounded(number: float, digits: int) -> float:
    """A number with so many digits."""
    return float(f"{number:.{digits}g}")


def read(name: str) -> Numbers:
    """What is kept of a theorem; nothing of a new one."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"claims": {}, "controls": {}}


def written(found: Numbers) -> str:
    """The text of a file: a line for each claim and control."""
    parts = (
        f' "{part}": {{\n'
        + ",\n".join(f"  {json.dumps(id)}: {json.dumps(entry)}" for id, entry in entries.items())
        + "\n }"
        for part, entries in found.items()
    )
    return "{\n" + ",\n".join(parts) + "\n}\n"


def moved(found: Numbers, kept: Numbers, amplified: set[str]) -> dict[str, tuple[Any, Any]]:
    """What is not as it is kept, each with both.

    Args:
        found: of a run of today.
        kept: what is kept.
        amplified: ids of claims with a condition.
    """
    apart = {}
    for id in kept["claims"].keys() | found["claims"].keys():
        now, then = found["claims"].get(id), kept["claims"].get(id)
        if now is None or then is None or not same_claim(now, then, id in amplified):
            apart[id] = (now, then)
    for id in kept["controls"].keys() | found["controls"].keys():
        now, then = found["controls"].get(id), kept["controls"].get(id)
        drawn = then is not None and kept["claims"][then["claim"]]["kind"] == "statistical"
        if now is None or then is None or not same_control(now, then, drawn):
            apart[id] = (now, then)
    return apart


def same_claim(now: Entry, then: Entry, amplified: bool) -> bool:
    """Whether two entries agree, as far as another machine may round them."""
    share = AMPLIFIED if amplified else SAME
    return (
        all(now[word] == then[word] for word in ("kind", "carries", "judged", "left_out"))
        and all(near(now[name], then[name], share) for name in ("tolerance", "first", "typical"))
        and (now["kind"] == "statistical" or now["residual"] <= ROUNDED * then["residual"] + 1e-15)
    )


def same_control(now: Entry, then: Entry, drawn: bool) -> bool:
    """The same of controls; how surprising draws are differs between releases of JAX."""
    words = now["claim"] == then["claim"] and now["seen"] is then["seen"]
    return words and (drawn or near(now["residual"], then["residual"], BROKEN))


def near(one: float, other: float, share: float) -> bool:
    """Whether two numbers differ by a share at most."""
    return abs(one - other) <= share * abs(other)


# Recording ------------------------------------------------------------------------------------


def weaker(found: Numbers, kept: Numbers) -> dict[str, list[str]]:
    """Claim or control -> what makes it weaker than it was kept."""
    reasons: dict[str, list[str]] = {}
    for part in ("claims", "controls"):
        for id, then in kept[part].items():
            now = found[part].get(id)
            if why := ["it is gone"] if now is None else list(weakened(now, then)):
                reasons[id] = why
    return reasons


def weakened(now: Entry, then: Entry) -> Iterator[str]:
    """What makes an entry weaker, in words."""
    if "claim" in then:
        if now["claim"] != then["claim"]:
            yield f"it breaks {now['claim']}, not {then['claim']}"
        if then["seen"] and not now["seen"]:
            yield "it is not seen to fail"
        return
    if now["kind"] != then["kind"]:
        yield f"its kind is {now['kind']}, not {then['kind']}"
    if then["carries"] and not now["carries"]:
        yield "no verdict rests on it"
    for name in ("tolerance", "first", "typical"):
        if now[name] > (1 + AMPLIFIED) * then[name]:
            yield f"{name}: {now[name]:g} in place of {then[name]:g}"
    if now.get("farther", 0.0) > most_farther(then):
        yield f"farther: {now['farther']:g} in place of {then.get('farther', 1.0):g}"
    if now["judged"] < then["judged"]:
        yield f"{now['judged']} cases are judged in place of {then['judged']}"
    for reason, count in now["left_out"].items():
        before = then["left_out"].get(reason, 0)
        if count > before:
            yield f"{reason}: {count} cases are left out in place of {before}"


def excused(changelog: str) -> set[str]:
    """Ids in backticks under *Numbers that moved* of what is not released yet."""
    unreleased = changelog.partition("\n## [Unreleased]")[2].partition("\n## ")[0]
    section = unreleased.partition("\n### Numbers that moved\n")[2].partition("\n### ")[0]
    return set(re.findall(r"`(\w+)`", section))
