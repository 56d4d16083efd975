"""What verdict.json says, against its own numbers and against what ``results.nc`` records."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from referee.results import Record, record

CLEARLY = 10.0
"""By how many tolerances a control must fail its claim; a statistical one by one."""
TRIVIAL = "trivial"
"""Reason of a case whose value anybody would guess."""


def contradictions(verdict: Mapping[str, Any], folder: Path) -> list[str]:
    """A line for each word of a verdict that its numbers, or the results beside it, do not say.

    Fields that releases before had none of are not asked for.
    """
    recorded = record(folder / "results.nc")
    lines = [*_of_the_run(verdict, recorded, folder)]
    claims = [entry for entry in verdict["claims"] if entry["kind"] not in ("control", "finding")]
    controls = [entry for entry in verdict["claims"] if entry["kind"] == "control"]
    kinds = {entry["id"]: entry["kind"] for entry in claims}
    asked = verdict["config"].get("dtype", "float64")
    for entry in claims:
        said = [*_of_counts(entry, asked), *_of_a_claim(entry, asked)]
        lines += [f"{entry['id']}: {line}" for line in said]
    for entry in controls:
        of_tests = kinds.get(entry.get("claim", "")) == "statistical"
        said = _of_a_control(entry, 1.0 if of_tests else CLEARLY)
        lines += [f"{entry['id']}: {line}" for line in said]
    for name in sorted(recorded.controls - {entry["id"] for entry in controls}):
        lines.append(f"{name}: got no such control, wanted that of results.nc")
    lines += _of_the_whole(verdict, claims)
    return lines


def _differ(name: str, got: Any, wanted: Any) -> Iterator[str]:
    if got != wanted:
        yield f"{name}: got {_shown(got)}, wanted {_shown(wanted)}"


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _of_the_run(verdict: Mapping[str, Any], recorded: Record, folder: Path) -> Iterator[str]:
    """What it says of the run, against what the results say."""
    if verdict.get("results_sha256") is not None:
        with (folder / "results.nc").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield from _differ("results_sha256", verdict["results_sha256"], digest)
    # That of changed results has none, and says so.
    changed = verdict.get("changed", False)
    yield from _differ("changed", changed, verdict.get("results_sha256") is None)
    for name in ("name", "schema"):
        if name in verdict:
            yield from _differ(name, verdict[name], getattr(recorded, name))
    for name in ("config", "environment", "arithmetic"):
        said, wanted = verdict.get(name, {}), getattr(recorded, name)
        for key in [key for key in {**said, **wanted} if key != "workers"]:
            # The results were written before workers of a cluster were asked what they are.
            yield from _differ(f"{name}.{key}", said.get(key), wanted.get(key))


def _of_counts(entry: Mapping[str, Any], asked: str) -> Iterator[str]:
    """How many cases were drawn, judged and left out."""
    for precision, counts in entry["judged"].items():
        every = counts["judged"] + sum(counts["left_out"].values())
        yield from _differ(f"judged.{precision}.drawn", counts["drawn"], every)
    if asked not in entry["judged"]:
        yield f"judged: got {', '.join(entry['judged']) or 'nothing'}, wanted {asked}"
        return
    counts = entry["judged"][asked]
    yield from _differ("cases", entry["cases"], counts["judged"])
    yield from _differ("cases_total", entry.get("cases_total", counts["drawn"]), counts["drawn"])
    if counts["judged"]:
        yield from _differ("hypotheses_met", entry["hypotheses_met"], True)
    if decided := entry.get("decided_by"):
        judged = decided["steps"] + decided["certificate"]
        yield from _differ("decided_by.steps and .certificate", judged, counts["judged"])
        trivial = counts["left_out"].get(TRIVIAL, 0)
        yield from _differ("decided_by.trivial", decided["trivial"], trivial)
        others = sum(counts["left_out"].values()) - trivial
        if decided["excused"] > others:
            yield f"decided_by.excused: got {decided['excused']}, wanted at most {others}"


def _outcome(entry: Mapping[str, Any], precision: str, asked: str) -> bool | None:
    """Whether a claim holds in a precision, by its residual and tolerance there."""
    end = "" if precision == asked else f"_{precision}"
    residual, tolerance = entry.get(f"residual{end}"), entry.get(f"tolerance{end}")
    if not entry["judged"][precision]["judged"]:
        return None
    return residual is not None and tolerance is not None and residual <= tolerance


def _of_a_claim(entry: Mapping[str, Any], asked: str) -> Iterator[str]:
    """Whether it holds, by its numbers."""
    if asked not in entry["judged"]:
        return
    first = _outcome(entry, asked, asked)
    others = [_outcome(entry, p, asked) for p in entry["judged"] if p != asked]
    holds = None if first is None and False not in others else False not in (first, *others)
    if entry["kind"] == "identity" and others and None not in (first, *others):
        # An identity that fails in a precision need not scale; one that holds must.
        scales = entry.get("scales_with_epsilon")
        if scales is None:
            yield "scales_with_epsilon: got null, wanted true or false"
        holds = bool(holds and scales)
    yield from _differ("holds", entry["holds"], holds)
    if entry["kind"] == "exact":
        yield from _differ("tolerance", entry["tolerance"], 0 if first is not None else None)
    if entry["kind"] == "statistical" and entry["residual"] is not None:
        # A test has a p-value; one with a tolerance of its own has its residual there.
        p, residual = entry.get("p"), entry["residual"]
        if p is None or not any(
            math.isclose(p, x, rel_tol=1e-9) for x in (10**-residual, residual)
        ):
            yield f"p: got {p}, wanted {10**-residual}"


def _of_a_control(entry: Mapping[str, Any], clearly: float) -> Iterator[str]:
    """Whether it was seen to fail, by its numbers."""
    first = next(iter(entry["judged"]), "")
    if entry["holds"] is None:
        yield from _differ("cases", entry["cases"], 0)
    if entry["holds"] is not True:
        return  # it fails for other reasons, too
    for precision in entry["judged"]:
        end = "" if precision == first else f"_{precision}"
        residual, tolerance = entry.get(f"residual{end}"), entry.get(f"tolerance{end}")
        # Where the other precision shows nothing it has no residual.
        if residual is None and end:
            continue
        if residual is None or tolerance is None:
            yield f"holds: got true, wanted a residual and a tolerance{end}"
        elif not (residual > tolerance and residual >= clearly * tolerance):
            yield f"holds: got true, wanted a residual{end} of {clearly:g} tolerances or more"


def _of_the_whole(verdict: Mapping[str, Any], claims: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The verdict, by what its claims and controls say."""
    every = [entry["holds"] for entry in verdict["claims"]]
    known = {entry["id"]: entry for entry in claims}
    undecided = verdict.get("undecided", [])
    for name in undecided:
        entry = known.get(name)
        if entry is None or entry["cases"] or entry["holds"] or not entry["hypotheses_met"]:
            yield f"undecided: got {name}, wanted a claim that applies and was not judged"
    held = [entry["holds"] for entry in claims]
    if False in every:
        yield from _differ("holds", verdict["holds"], False)
    elif undecided or True not in held:
        yield from _differ("holds", verdict["holds"], None)
    elif None not in held:
        yield from _differ("holds", verdict["holds"], True)
    elif verdict["holds"] is False:
        yield "holds: got False, wanted a claim that is false"
