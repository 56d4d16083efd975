"""Changes to the files of a run, one at a time, and who sees each: a judge, diff or the referee.

The checksum in verdict.json is made to fit, as somebody who wants to deceive would.
"""

import contextlib
import dataclasses
import functools
import io
import json
import operator
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest

from lrdyn import registry
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.runs import consistency, past_runs, run_folder, verify
from lrdyn.verification.stating.mistakes import BadInput
from lrdyn.verification.storing import results_file
from referee import __main__ as referee

JUDGE, DIFF, REFEREE = "--judge", "diff", "referee"


PLANNED, REDONE = consistency.plan_jobs, referee.redone


class Saved(NamedTuple):
    """A run that was saved, and what is computed of it once."""

    folder: Path
    into: Path
    """A copy of the folder, which is changed."""
    verdict: dict[str, Any]
    groups: Mapping[str, Any]
    judged: verify.Verification
    points: dict[str, Any]
    """Scenario -> its first point."""
    planned: tuple[Any, ...]
    """What the content of its results follows from."""


def saved(folder: Path, into: Path) -> Saved:
    """Read a run, and copy it."""
    groups = results_file.load(folder / results_file.NAME)
    theorem = registry.theorem(groups["/"].attrs["name"])
    # Judged by this revision, whichever made it.
    shutil.copytree(folder, into)
    judged = run_folder.judge_again(theorem, into)[0]
    of = run_of(theorem, **{n: v for n, v in judged.verdict["config"].items() if v is not None})
    planned = (of.concerned, of.settings, of.dtype, of.seeds_of, of.perturb, of.preset == "paper")
    return Saved(folder, into, judged.verdict, groups, judged, first_points(folder), planned)


def first_points(folder: Path) -> dict[str, Any]:
    """The first point of each scenario: a claim that is wrong there is wrong."""
    found = referee.scenarios(folder / results_file.NAME)
    return {name: s._replace(points=s.points[:1]) for name, s in found.items()}


# verdict.json -------------------------------------------------------------------------------------


def other(value: Any) -> Any:
    """Another value that a field could have."""
    if value is None:
        return 0.5
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.5 + 1e-9
    return f"{value}?"


def fields(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all entries, those that hold others, too."""
    if place:
        yield place
    if isinstance(value, dict | list):
        for name, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from fields(entry, (*place, name))


def changes_of_a_field(value: Any) -> Iterator[tuple[str, Callable[[Any, Any], None]]]:
    """What somebody does to a field: removes it, empties it, or writes another value."""

    def written(new: Any) -> Callable[[Any, Any], None]:
        return lambda holder, name: operator.setitem(holder, name, new)

    yield "removed", operator.delitem
    if not isinstance(value, dict | list):
        yield "another", written(other(value))
        if value is not None:
            yield "null", written(None)
        if isinstance(value, float) and value:
            yield "0", written(0.0)


def named(place: tuple[Any, ...], verdict: Mapping[str, Any]) -> str:
    """The name of a field, the same for all claims of a kind and all precisions."""
    words_of = []
    entry: Any = verdict
    for name in place:
        entry = entry[name]
        if isinstance(name, int):
            kind = entry.get("kind") if isinstance(entry, dict) else None
            words_of.append("control" if kind == "control" else "claim" if kind else "entry")
        elif name in ("float64", "float32"):
            words_of.append("precision")
        elif words_of[-1:] in (["worst_case"], ["left_out"], ["config"], ["environment"]):
            words_of.append("NAME")
        else:
            words_of.append(name)
    return ".".join(words_of).removeprefix("claims.")


def who_sees_the_verdict(run: Saved, verdict: dict[str, Any]) -> set[str]:
    """Who sees that verdict.json is another, beside results that nobody changed."""
    with pytest.MonkeyPatch.context() as patch:
        mine = dataclasses.replace(run.judged, verdict=dict(run.verdict))
        patch.setattr(run_folder, "verify_groups", lambda *given: mine)
        patch.setattr(results_file, "read", lambda path: run.groups)
        patch.setattr(referee, "scenarios", lambda path: run.points)
        return {*_judged(run, verdict), *_told_apart(run, verdict), *_refereed(run, verdict)}


@contextlib.contextmanager
def computed_once(run: Saved) -> Iterator[None]:
    """Compute once what no change alters."""
    plans = functools.cache(lambda name: list(PLANNED(*run.planned)))
    again = functools.cache(lambda claim, name, diverges: REDONE(claim, run.points[name], diverges))

    def redone(claim: Any, scenario: Any, diverges: Any) -> Any:
        same = scenario is run.points.get(scenario.name)
        return (again if same else REDONE)(claim, scenario.name if same else scenario, diverges)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(consistency, "plan_jobs", lambda *given: plans(""))
        patch.setattr(run_folder, "source_digest", lambda *given: "")
        patch.setattr(run_folder, "judges_digest", lambda *given: "")
        patch.setattr(referee, "redone", redone)
        yield


def _judged(run: Saved, verdict: dict[str, Any]) -> Iterator[str]:
    path = run.into / "verdict.json"
    path.write_text(json.dumps(verdict))
    try:
        run_folder.judge_again(registry.theorem(run.verdict["name"]), run.into)
    except BadInput:
        yield JUDGE
        return
    if json.loads(path.read_text()) != verdict:
        yield JUDGE


def _told_apart(run: Saved, verdict: dict[str, Any]) -> Iterator[str]:
    (run.into / "verdict.json").write_text(json.dumps(verdict))
    try:
        if past_runs.differences(run.folder, run.into):
            yield DIFF
    except BadInput:
        yield DIFF


def _refereed(run: Saved, verdict: dict[str, Any]) -> Iterator[str]:
    (run.into / "verdict.json").write_text(json.dumps(verdict))
    with contextlib.redirect_stdout(io.StringIO()):
        if referee.main([str(run.into)]):
            yield REFEREE


# results.nc ---------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """Arrays that mean the same."""

    group: str
    """``scenario``, ``other precision``, ``case`` or ``control``."""
    array: str


def kind_of(path: str, array: h5py.Dataset) -> Kind:
    """What an array of a file is, by its path."""
    *groups, name = path.split("/")
    group = "control" if "controls" in groups else "case" if "case" in groups else ""
    if not group:
        group = "other precision" if groups[-1:] in (["float32"], ["float64"]) else "scenario"
    if array.is_scale:
        return Kind(group, "axis")
    if name.startswith(("met_", "length_")):
        return Kind(group, f"{name.partition('_')[0]}_...")
    if name.endswith(("_predicted", "_measured")):
        return Kind(group, name.rpartition("_")[2])
    return Kind(group, name if name == "longest_axis" else "of one side")


def arrays_of(path: Path) -> dict[Kind, list[str]]:
    """Kind -> the paths of its arrays, without those that have no entry."""
    kinds: dict[Kind, list[str]] = {}
    with h5py.File(path) as file:

        def noted(name: str, array: Any) -> None:
            if isinstance(array, h5py.Dataset) and array.size and array.dtype.kind in "fiub":
                kinds.setdefault(kind_of(name, array), []).append(name)

        file.visititems(noted)
    return kinds


def one_entry(values: np.ndarray) -> np.ndarray:
    """The first entry, that of the first point, is another: padding is at the end."""
    changed = values.copy()
    changed.reshape(-1)[:1] = all_entries(changed.reshape(-1)[:1])
    return changed


def lost(values: np.ndarray) -> np.ndarray:
    """The first entry is no number."""
    changed = values.copy()
    changed.reshape(-1)[:1] = np.nan
    return changed


def all_entries(values: np.ndarray) -> np.ndarray:
    """All entries are larger; truths are turned."""
    if values.dtype.kind == "f":
        return values * 1.01
    # A step of -1, which says that nothing diverges, becomes one.
    return ~values if values.dtype.kind == "b" else values + 7


def array_changes(run: Saved) -> Iterator[tuple[str, str, dict[str, Callable]]]:
    """Kind of array, what is done to it, and the change of one array of this kind, or of two."""
    kinds = arrays_of(run.folder / results_file.NAME)
    for kind, paths in sorted(kinds.items()):
        text = f"{kind.group}: {kind.array}"
        for path in paths[:1]:
            group, _, name = f"/{path}".rpartition("/")
            yield text, "one entry", {path: one_entry}
            number = run.groups[group or "/"][name].dtype.kind == "f"
            if number and (kind.group == "case" or kind.array in ("predicted", "measured")):
                yield text, "a NaN", {path: lost}
    for group in ("scenario", "other precision", "control"):
        for path in kinds.get(Kind(group, "predicted"), [])[:1]:
            both = (path, path.removesuffix("predicted") + "measured")
            yield f"{group}: predicted and measured", "both alike", dict.fromkeys(both, all_entries)


def who_sees_the_arrays(run: Saved, changed: Mapping[str, Callable]) -> set[str]:
    """Who sees that arrays are others, by their paths; the verdict is judged on these."""
    seen = set()
    groups = dict(run.groups)
    path = run.into / results_file.NAME
    shutil.copy(run.folder / results_file.NAME, path)
    try:
        with h5py.File(path, "r+") as file:
            for place, change in changed.items():
                array: Any = file[place]
                group, _, name = f"/{place}".rpartition("/")
                held = groups[group or "/"][name]
                # As xarray reads them: truths are integers in the file.
                new = change(held.values)
                array[...] = new.astype(array.dtype)
                dataset = groups[group or "/"].assign({name: held.copy(data=new)})
                groups[group or "/"] = dataset
        verdict = run.verdict | {"results_sha256": results_file.checksum(path)}
        (run.into / "verdict.json").write_text(json.dumps(verdict))
        points = first_points(run.into)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(results_file, "read", lambda path: groups)
            patch.setattr(referee, "scenarios", lambda path: points)
            try:
                again, _ = run_folder.judge_again(registry.theorem(run.verdict["name"]), run.into)
                if holds_of(again.verdict) != holds_of(run.verdict):
                    seen.add(JUDGE)
            except BadInput:
                seen.add(JUDGE)
            # From here on the verdict is the one that ``--judge`` wrote, where it did.
            verdict = json.loads((run.into / "verdict.json").read_text())
            return seen | {*_told_apart(run, verdict), *_refereed(run, verdict)}
    finally:
        shutil.copy(run.folder / results_file.NAME, path)


def holds_of(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """What a verdict says of its claims and controls."""
    return {entry["id"]: entry["holds"] for entry in verdict["claims"]}
