"""Rendering: the runs behind a figure or table, its numbers, and the files made from them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from lrdyn.drawing.exhibits import Exhibit, Results
from lrdyn.engine import files, results
from lrdyn.engine.produce import code_digest, functions_of, source_digest
from lrdyn.engine.runs import Run, carry_out, saved

Report = Callable[[str], None]


class Numbers(NamedTuple):
    """What :func:`numbers` returns."""

    dataset: xr.Dataset
    """The numbers shown."""
    computed: bool
    """False if saved numbers were used."""
    ran: tuple[str, ...]
    """Sources that were run; the results of the others were there."""


class Rendered(NamedTuple):
    """What :func:`render` returns."""

    dataset: xr.Dataset
    """The numbers shown."""
    paths: tuple[Path, ...]
    """Files written or found: the numbers, then pictures, then texts."""
    computed: bool
    """False if saved numbers were used."""
    ran: tuple[str, ...]
    """Sources that were run; the results of the others were there."""


def where(exhibit: Exhibit, out: Path | str) -> Path:
    """File of the saved numbers of a figure or table.

    Args:
        exhibit: the figure or table.
        out: folder of all results.

    Returns:
        ``<out>/figures/<name>.nc``.
    """
    return Path(out) / "figures" / f"{exhibit.name}.nc"


def numbers(
    exhibit: Exhibit,
    out: Path | str,
    settings: Mapping[str, Any],
    *,
    recompute: bool = False,
    report: Report = print,
) -> Numbers:
    """Saved numbers of a figure or table, or new ones from the results of its experiments.

    Saved numbers are used if their settings and everything that made them are those asked for; so
    are saved results. Experiments without results are run. The numbers are not saved.

    Args:
        exhibit: the figure or table.
        out: folder of all results.
        settings: keyword arguments of its ``sources``, and of its ``numbers``.
        recompute: use neither saved numbers nor saved results.
        report: receives lines for the reader.

    Returns:
        The :class:`Numbers`, with the attributes ``name``, ``title``, ``settings``, ``sources``
        (source -> folder of its results), ``environment`` (JSON) and ``digest``.
    """
    runs = exhibit.sources(**settings)
    made_from = {
        "settings": results.canonical(settings),
        "digest": _digest(exhibit, runs),
    }
    found = None if recompute else load(where(exhibit, out), report=report)
    if found is not None and made_from.items() <= found.attrs.items():
        return Numbers(found, False, ())
    groups, ran = _results(runs, out, recompute, report)
    dataset = exhibit.numbers(groups, **settings).load()
    first = next(iter(runs.values()))
    record = {
        "name": exhibit.name,
        "title": exhibit.title,
        "sources": results.canonical({n: run.folder("").as_posix() for n, run in runs.items()}),
        "environment": results.canonical(results.environment(first.dtype)),
    }
    return Numbers(dataset.assign_attrs(made_from | record), True, ran)


def _results(
    runs: Mapping[str, Run], out: Path | str, recompute: bool, report: Report
) -> tuple[Results, tuple[str, ...]]:
    """Results of all runs, and which of them were not there."""
    groups, ran = {}, []
    for name, run in runs.items():
        known = None if recompute else saved(run, out, note=report)
        if known is None:
            known = results.read(carry_out(run, out)[1] / results.NAME)
            ran.append(name)
        groups[name] = known
    return groups, tuple(ran)


def _digest(exhibit: Exhibit, runs: Mapping[str, Run]) -> str:
    """SHA-256 of the runs, of their sources and of the exhibit's own."""
    parts = {
        name: [run.folder("").as_posix(), source_digest(run.experiment)]
        for name, run in runs.items()
    }
    own = code_digest(list(functions_of(exhibit)))
    return hashlib.sha256(results.canonical({"own": own, "runs": parts}).encode()).hexdigest()


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write numbers as netCDF, atomically.

    Args:
        dataset: the numbers.
        path: the file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_netcdf(path, {"/": dataset})


def load(path: Path, *, report: Report = print) -> xr.Dataset | None:
    """Read saved numbers; a damaged file is named, set aside as ``<name>.damaged`` and not used.

    Args:
        path: the file.
        report: receives the line that names a damaged file.

    Returns:
        The numbers; None if there are none or they cannot be read.
    """
    try:
        return results.load(path)["/"]
    except results.Missing:
        return None
    except results.Damaged as error:
        files.set_aside(path, error.why, report)
        return None


def render(
    exhibit: Exhibit,
    out: Path | str,
    preset: str = "quick",
    *,
    recompute: bool = False,
    report: Report = print,
) -> Rendered:
    """Write a figure or table into ``<out>/figures``, beside its numbers and its caption.

    Args:
        exhibit: the figure or table.
        out: folder of all results.
        preset: which of its settings.
        recompute: use neither saved numbers nor saved results.
        report: receives lines for the reader.

    Returns:
        A :class:`Rendered`.
    """
    path, settings = where(exhibit, out), exhibit.presets[preset]
    dataset, computed, ran = numbers(exhibit, out, settings, recompute=recompute, report=report)
    if computed:
        save(dataset, path)
    stem = path.with_suffix("")
    paths = [path, *exhibit.pictures(dataset, stem)]
    for suffix, text in exhibit.texts(dataset).items():
        paths.append(stem.with_suffix(suffix))
        with files.replacing(paths[-1]) as temporary:
            temporary.write_text(text)
    return Rendered(dataset, tuple(paths), computed, ran)
