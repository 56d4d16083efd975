"""Rendering: the runs behind a figure or table, its numbers, and the files made from them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from lrdyn.figures import long, plotting, verdicts
from lrdyn.figures.exhibits import Excerpt, Exhibit, Figure, Results
from lrdyn.system import whole_files
from lrdyn.verification.running.configuration import BadInput, Run
from lrdyn.verification.runs.run_folder import carry_out, load_results
from lrdyn.verification.stating.sources import code_digest, functions_of
from lrdyn.verification.storing import files, results_file

Report = Callable[[str], None]


class Rendered(NamedTuple):
    """A figure or table, or its numbers alone."""

    dataset: xr.Dataset
    """The numbers shown."""
    computed: bool
    """False if saved numbers were used."""
    ran: tuple[str, ...]
    """Sources that were run; the others had saved results."""
    paths: tuple[Path, ...] = ()
    """Files written or found: the numbers, then pictures, then texts."""
    excerpts: tuple[Path, ...] = ()
    """Pictures for talks that were asked for."""


def numbers_path(exhibit: Exhibit, out: Path | str) -> Path:
    """File of the saved numbers of a figure or table."""
    return Path(out) / "figures" / f"{exhibit.name}.nc"


def numbers(
    exhibit: Exhibit,
    out: Path | str,
    settings: Mapping[str, Any],
    *,
    recompute: bool = False,
    report: Report = print,
) -> Rendered:
    """Saved numbers of a figure or table, or new ones from the results of its experiments.

    Saved numbers are used if their settings and everything that made them are those asked for; so
    are saved results. Experiments without results are run; to ``recompute`` is to use nothing that
    was saved. The numbers are not saved. Their attributes are ``name``, ``title``, ``settings``,
    ``sources`` (source -> folder of its results), ``environment`` (JSON), ``digest``, and, where
    nothing that was saved was used, ``seconds_taken`` by runs and numbers.

    Args:
        exhibit: the figure or table.
        out: folder of the results.
        settings: those of a preset.
        recompute: whether nothing that was saved is used.
        report: is given each line about a file that is damaged.
    """
    runs = exhibit.sources(**settings)
    made_from = {
        "settings": results_file.canonical_json(settings),
        "digest": _digest(exhibit, runs),
    }
    saved = None if recompute else load(numbers_path(exhibit, out), report=report)
    # Settings and sources are compared, not times: a file that was copied or checked out is as
    # good.
    if saved is not None and made_from.items() <= saved.attrs.items():
        return Rendered(saved, False, ())
    begin = time.perf_counter()
    groups, ran = _load_or_run(runs, out, recompute, report)
    # Loaded before the files of results are closed or replaced.
    dataset = exhibit.numbers(groups, **settings).load()
    # What has no runs computes as the process does.
    dtype = next((run.dtype for run in runs.values()), "float64")
    record: dict[str, Any] = {
        "name": exhibit.name,
        "title": exhibit.title,
        "sources": results_file.canonical_json(
            {n: run.folder("").as_posix() for n, run in runs.items()}
        ),
        "environment": results_file.canonical_json(results_file.environment(dtype)),
    }
    if len(ran) == len(runs):
        record["seconds_taken"] = round(time.perf_counter() - begin, 1)
    return Rendered(dataset.assign_attrs(made_from | record), True, ran)


def _load_or_run(
    runs: Mapping[str, Run], out: Path | str, recompute: bool, report: Report
) -> tuple[Results, tuple[str, ...]]:
    """Results of all runs, and the names of those that had to be run."""
    groups, ran = {}, []
    for name, run in runs.items():
        known = None if recompute else load_results(run, out, note=report)
        if known is None:
            known = results_file.read(
                carry_out(run, out, draw=verdicts.draw)[1] / results_file.NAME
            )
            ran.append(name)
        groups[name] = known
    return groups, tuple(ran)


def _digest(exhibit: Exhibit, runs: Mapping[str, Run]) -> str:
    """SHA-256 of the runs, whose folders name their sources, and of the exhibit's own.

    Raises:
        BadInput: a file that it reads is not there.
    """
    parts: dict[str, Any] = {
        "own": code_digest(list(functions_of(exhibit))),
        "runs": {name: run.folder("").as_posix() for name, run in runs.items()},
    }
    for file in map(Path, exhibit.files):
        if not file.is_file():
            raise BadInput(
                f"files: got no file {file.name!r}, wanted what the numbers are read from"
            )
        parts[f"file {file.name}"] = results_file.checksum(file)
    return hashlib.sha256(results_file.canonical_json(parts).encode()).hexdigest()


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write numbers as netCDF, atomically; the folder is made."""
    whole_files.make_folder(path.parent, below=path.parent.parent)
    files.write_netcdf(path, {"/": dataset})


def load(path: Path, *, report: Report = print) -> xr.Dataset | None:
    """Read saved numbers; a damaged file is named, set aside as ``<name>.damaged`` and not used."""
    try:
        return results_file.load(path)["/"]
    except results_file.Missing:
        return None
    except results_file.Damaged as error:
        whole_files.set_aside(path, error.why, report)
        return None


def render(
    exhibit: Exhibit,
    out: Path | str,
    preset: str = "quick",
    *,
    recompute: bool = False,
    train: bool = False,
    baselines: Path | None = None,
    excerpt: Excerpt | None = None,
    report: Report = print,
) -> Rendered:
    """Write a figure or table into ``<out>/figures``, beside its numbers and its caption.

    One that takes long is not run, unless ``train`` asks for it: see
    :func:`lrdyn.figures.long.numbers`, which may use the ``baselines``.

    Args:
        exhibit: the figure or table.
        out: folder of the results.
        preset: whose settings are taken.
        recompute: whether nothing that was saved is used.
        train: whether a long one may run its trainings.
        baselines: folder of the baselines.
        excerpt: what else is drawn of a figure.
        report: is given each line about a file that is damaged.

    Raises:
        Unfit: the excerpt asks for a panel that is not there, or that does not fit; no file of the
            figure is then written.
    """
    path, settings = numbers_path(exhibit, out), exhibit.presets[preset]
    if exhibit.long:
        if train:
            _load_or_run(exhibit.sources(**settings), out, recompute, report)
        dataset = long.numbers(exhibit, out, baselines, preset)
        rendered = Rendered(dataset, dataset.attrs["drawn_from"] == long.SAVED, ())
    else:
        rendered = numbers(exhibit, out, settings, recompute=recompute, report=report)
    drawn, formats = {}, ()
    if excerpt is not None and isinstance(exhibit, Figure):  # before the first file: it may fail
        drawn, formats = exhibit.draw_excerpts(rendered.dataset, excerpt), excerpt.formats
    if rendered.computed:
        save(rendered.dataset, path)
    whole_files.make_folder(path.parent, below=Path(out))
    stem = path.with_suffix("")
    paths = [path, *exhibit.pictures(rendered.dataset, stem)]
    for suffix, text in exhibit.texts(rendered.dataset).items():
        paths.append(stem.with_suffix(suffix))
        with whole_files.replace_file(paths[-1]) as temporary:
            temporary.write_text(text)
    excerpts: list[Path] = []
    for name, figure in drawn.items():
        excerpts += plotting.save(figure, stem.with_name(name), formats=formats)
    return rendered._replace(paths=tuple(paths), excerpts=tuple(excerpts))
