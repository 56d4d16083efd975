"""Long figures: drawn from saved results or committed numbers, never training by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import xarray as xr

from lrdyn.engine import results
from lrdyn.engine.configuration import Run
from lrdyn.engine.judging import Groups
from lrdyn.engine.mistakes import Lacking
from lrdyn.engine.runs import intact, saved
from lrdyn.figures.exhibits import Exhibit, Results


class Undrawable(Lacking):
    """A long figure has neither results nor committed numbers."""


SAVED, COMMITTED = "saved results", "the committed numbers"


def numbers(exhibit: Exhibit, out: Path | str, baselines: Path | None, preset: str) -> xr.Dataset:
    """Numbers from saved results, else those that are committed; the caption says which.

    Results of the preset come first, else the last ones of each experiment, whatever their
    settings. The attribute ``settings`` has those of the results, source -> configuration.

    Raises:
        Undrawable: there are neither.
    """
    settings = exhibit.presets[preset]
    groups = _saved(exhibit.sources(**settings), Path(out), exhibit.groups)
    if groups is None:
        return _committed(exhibit, baselines)
    configs = {name: json.loads(group["/"].attrs["config"]) for name, group in groups.items()}
    first = next(iter(groups.values()))["/"].attrs
    record = {
        "name": exhibit.name,
        "title": exhibit.title,
        "drawn_from": SAVED,
        "settings": results.canonical(configs),
        "environment": first["environment"],
    }
    return exhibit.numbers(groups, **settings).load().assign_attrs(record)


def _committed(exhibit: Exhibit, baselines: Path | None) -> xr.Dataset:
    try:
        path = (baselines or Path()) / f"{exhibit.name}.nc"
        dataset = results.load(path)["/"]
    except results.Unreadable:
        raise Undrawable(
            f"figure: got {exhibit.name!r}, wanted saved results of it, or --train"
        ) from None
    return dataset.assign_attrs(drawn_from=COMMITTED)


def _saved(runs: Mapping[str, Run], out: Path, groups: tuple[str, ...]) -> Results | None:
    """Saved results of every source, with these groups; None if one has none."""
    by_source = {name: _last(run, out, groups) for name, run in runs.items()}
    if any(groups is None for groups in by_source.values()):
        return None
    return {name: groups for name, groups in by_source.items() if groups is not None}


def _last(run: Run, out: Path, groups: tuple[str, ...]) -> Groups | None:
    """Results of a run or, without them, the last ones of its experiment that have the groups."""
    known = saved(run, out)
    if known is not None and known.keys() >= set(groups):
        return known
    verdicts = [*(out / run.experiment.name).glob("*/verdict.json")]
    for path in sorted(verdicts, key=lambda path: -path.stat().st_mtime):
        try:
            groups_of = intact(path.parent)
        except results.Unreadable:
            continue
        if groups_of.keys() >= set(groups):
            return groups_of
    return None


def uncompared(exhibit: Exhibit, out: Path | str, baselines: Path, preset: str) -> str:
    """Why the numbers of a figure are not compared with the committed ones; empty if they are."""
    try:
        baseline = results.load(baselines / f"{exhibit.name}.nc")["/"]
    except results.Unreadable:
        return "no baseline"
    return comparable(numbers(exhibit, out, baselines, preset), baseline)


def comparable(dataset: xr.Dataset, baseline: xr.Dataset) -> str:
    """Why numbers are not compared with the committed ones; empty if they are."""
    if dataset.attrs["drawn_from"] == COMMITTED:
        return "no results here (--train makes them), drawn from the committed numbers"
    if dataset.attrs["settings"] != baseline.attrs["settings"]:
        return "drawn from results of another configuration, not compared"
    return ""
