"""Long figures: drawn from saved results or committed numbers, never training by themselves."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lrdyn.figures.exhibits import Exhibit
from lrdyn.verification.judging.judging import Groups
from lrdyn.verification.running.configuration import BadInput, Run
from lrdyn.verification.runs.run_folder import load_results, read_intact
from lrdyn.verification.stating.mistakes import Lacking
from lrdyn.verification.storing import results_file
from lrdyn.verification.storing.checkpoints import LOG


class Undrawable(Lacking):
    """A long figure has neither results nor committed numbers."""


SAVED, COMMITTED = "saved results", "the committed numbers"
STEPS, PAIRS = 50, 2000
"""Steps of a training whose loss stands in the record of a figure, at most; and of all of them."""


class Found(NamedTuple):
    """Saved results of one source."""

    folder: Path
    groups: Groups


def numbers(exhibit: Exhibit, out: Path | str, baselines: Path | None, preset: str) -> xr.Dataset:
    """Numbers from saved results, else those that are committed; the caption says which.

    Results of the preset come first, else the last ones of each experiment, whatever their
    settings. The attribute ``settings`` has those of the results, source -> configuration, without
    where files lie on this machine.

    Raises:
        Undrawable: there are neither.
        BadInput: it has no runs, which are what may take long.
    """
    settings = exhibit.presets[preset]
    runs = exhibit.sources(**settings)
    if not runs:
        raise BadInput(f"long: got True for {exhibit.name}, which has no sources, wanted False")
    found = _saved_results(runs, Path(out), exhibit.groups)
    if found is None:
        return _committed_numbers(exhibit, baselines)
    groups = {name: one.groups for name, one in found.items()}
    configs = {name: json.loads(group["/"].attrs["config"]) for name, group in groups.items()}
    first = next(iter(groups.values()))["/"].attrs
    record = {
        "name": exhibit.name,
        "title": exhibit.title,
        "drawn_from": SAVED,
        "settings": results_file.canonical_json(make_portable(configs)),
        "environment": first["environment"],
    }
    return exhibit.numbers(groups, **settings).load().assign_attrs(record)


def _committed_numbers(exhibit: Exhibit, baselines: Path | None) -> xr.Dataset:
    try:
        path = (baselines or Path()) / f"{exhibit.name}.nc"
        dataset = results_file.load(path)["/"]
    except results_file.Unreadable:
        raise Undrawable(
            f"figure: got {exhibit.name!r}, wanted saved results of it, or --train"
        ) from None
    return dataset.assign_attrs(drawn_from=COMMITTED)


def record(exhibit: Exhibit, out: Path | str, preset: str) -> dict[str, Any]:
    """What is kept beside the numbers of a long figure: source -> its verdict and its losses.

    The verdict is that of the run, with all claims and findings and the revision; ``losses`` has,
    for each training that told of itself, the loss at :data:`STEPS` steps at most, as pairs; at
    fewer of many trainings, :data:`PAIRS` in all.
    Empty without saved results.
    """
    found = _saved_results(exhibit.sources(**exhibit.presets[preset]), Path(out), exhibit.groups)
    return {
        name: {
            "verdict": make_portable(results_file.read_verdict(one.folder)),
            "losses": _losses(one.folder),
        }
        for name, one in (found or {}).items()
    }


def make_portable(record: Any) -> Any:
    """A record without where files lie on this machine: of an absolute path the last two names.

    Records that differ in nothing else are those of one configuration.

    Example:
        >>> make_portable({"encoder": "/home/me/minilm/model", "rank": [4, 8]})
        {'encoder': 'minilm/model', 'rank': [4, 8]}
    """
    match record:
        case dict():
            return {name: make_portable(value) for name, value in record.items()}
        case list() | tuple():
            return [make_portable(value) for value in record]
        case str() if Path(record).is_absolute():
            return "/".join(Path(record).parts[1:][-2:])
    return record


def _losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Loss over the step of each training, some steps of it."""
    try:
        text = (folder / LOG).read_text()
    except OSError:  # only what trains through the loop tells of itself
        return {}
    by_run: dict[str, list[tuple[int, float]]] = {}
    for run, step, name, value in csv.reader(io.StringIO(text)):
        if name == "loss" and np.isfinite(float(value)):  # JSON has no words for others
            by_run.setdefault(run, []).append((int(step), float(value)))
    most = max(2, min(STEPS, PAIRS // max(1, len(by_run))))
    return {run: told[:: -(-len(told) // most)] for run, told in by_run.items()}


def _saved_results(
    runs: Mapping[str, Run], out: Path, groups: tuple[str, ...]
) -> dict[str, Found] | None:
    """Saved results of every source, with these groups; None if one has none."""
    by_source = {name: _last_results(run, out, groups) for name, run in runs.items()}
    if any(found is None for found in by_source.values()):
        return None
    return {name: found for name, found in by_source.items() if found is not None}


def _last_results(run: Run, out: Path, groups: tuple[str, ...]) -> Found | None:
    """Results of a run or, without them, the last ones of its experiment that have the groups."""
    known = load_results(run, out)
    if known is not None and known.keys() >= set(groups):
        return Found(run.folder(out), known)
    verdicts = [*(out / run.experiment.name).glob("*/verdict.json")]
    for path in sorted(verdicts, key=lambda path: -path.stat().st_mtime):
        try:
            groups_of = read_intact(path.parent)
        except results_file.Unreadable:
            continue
        if groups_of.keys() >= set(groups):
            return Found(path.parent, groups_of)
    return None


def why_not_compared(exhibit: Exhibit, out: Path | str, baselines: Path, preset: str) -> str:
    """Why the numbers of a figure are not compared with the committed ones; empty if they are."""
    try:
        baseline = results_file.load(baselines / f"{exhibit.name}.nc")["/"]
    except results_file.Unreadable:
        return "no baseline"
    return why_incomparable(numbers(exhibit, out, baselines, preset), baseline)


def why_incomparable(dataset: xr.Dataset, baseline: xr.Dataset) -> str:
    """Why numbers are not compared with the committed ones; empty if they are."""
    if dataset.attrs["drawn_from"] == COMMITTED:
        return "no results here (--train makes them), drawn from the committed numbers"
    if dataset.attrs["settings"] != baseline.attrs["settings"]:
        return "drawn from results of another configuration, not compared"
    return ""
