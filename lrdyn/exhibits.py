"""Figures and tables: the runs they are drawn from, the numbers they show, the files they become.

A :class:`Figure` or a :class:`Table` is data, in this repository or in somebody else's. Both are an
:class:`Exhibit`, which names the experiments whose saved results it shows; they differ only in the
files that are made from the numbers. :func:`lrdyn.figures.main` gives a list of them a command
line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from lrdyn import files, results, tables
from lrdyn.judging import SIZE, Groups
from lrdyn.produce import code_digest, functions_of, source_digest
from lrdyn.runs import Run, carry_out, run_of, saved
from lrdyn.theorem import Experiment

Report = Callable[[str], None]
Results = Mapping[str, Groups]
"""Source -> content of its ``results.nc``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A figure or a table of a paper, see :class:`Figure` and :class:`Table`.

    Args:
        name: short name, ``fig03``; also that of its files.
        title: one line.
        caption: text, a format string filled from the settings and the attributes of the dataset.
            Mathematics between dollar signs is that of LaTeX; elsewhere the signs are dropped.
        sources: ``sources(**settings)``: name -> the run of an experiment, at least one; see
            :func:`drawn_from` for one alone.
        numbers: ``numbers(results, **settings)``: the numbers shown, from saved results alone, with
            named dimensions and coordinates; ``results`` has the names of ``sources``.
        presets: preset -> settings, JSON-able; numbers are made anew when they differ.
        needs: package that must be installed -> how to install it.
        thin: the part of the numbers kept as a baseline; everything by default.
    """

    name: str
    title: str
    caption: str
    sources: Callable[..., Mapping[str, Run]]
    numbers: Callable[..., xr.Dataset]
    presets: Mapping[str, Mapping[str, Any]]
    needs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    thin: Callable[[xr.Dataset], xr.Dataset] = lambda dataset: dataset

    def texts(self, dataset: xr.Dataset) -> Mapping[str, str]:
        """Texts to be saved, from the saved numbers alone.

        Args:
            dataset: the numbers.

        Returns:
            Suffix of a file -> its text. ``.txt`` is one of them.
        """
        return {".txt": caption(self, dataset)}

    def pictures(self, dataset: xr.Dataset, stem: Path) -> tuple[Path, ...]:
        """Save what is not text, atomically.

        Args:
            dataset: the numbers.
            stem: path without suffix.

        Returns:
            The paths.
        """
        return ()

    def shown(self, dataset: xr.Dataset) -> str:
        """What the command line shows of it beside the path of its first file.

        Args:
            dataset: the numbers.

        Returns:
            Lines; empty for nothing.
        """
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure(Exhibit):
    """One figure of a paper: a picture as PNG and PDF, its caption as text.

    Args:
        name: see :class:`Exhibit`, as for all that is not named here.
        draw: ``draw(dataset)``: the matplotlib figure, from the saved numbers alone.
    """

    draw: Callable[[xr.Dataset], Any]

    def pictures(self, dataset: xr.Dataset, stem: Path) -> tuple[Path, ...]:
        """Draw numbers and save the picture as PNG and PDF, atomically.

        Args:
            dataset: the numbers.
            stem: path without suffix.

        Returns:
            The two paths.
        """
        from lrdyn import plotting

        with plotting.style():
            drawn = self.draw(dataset)
        return plotting.save(drawn, stem)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Exhibit):
    """One table of a paper: as text above its caption, as CSV and as LaTeX.

    Args:
        name: see :class:`Exhibit`, as for all that is not named here.
        tabulate: ``tabulate(dataset)``: the cells, from the saved numbers alone.
    """

    tabulate: Callable[[xr.Dataset], tables.Grid]

    def texts(self, dataset: xr.Dataset) -> Mapping[str, str]:
        """The table as text, CSV and LaTeX.

        Args:
            dataset: the numbers.

        Returns:
            Suffix of a file -> its text.
        """
        grid = self.tabulate(dataset)
        below = _filled(self, dataset)
        return {
            ".txt": f"{tables.as_text(grid)}\n{caption(self, dataset)}",
            ".csv": tables.as_csv(grid),
            ".tex": tables.as_latex(grid, f"{self.title}. {below}", self.name),
        }

    def shown(self, dataset: xr.Dataset) -> str:
        """The table as text.

        Args:
            dataset: the numbers.

        Returns:
            Lines.
        """
        return tables.as_text(self.tabulate(dataset))


def drawn_from(
    experiment: Experiment, *, preset: str = "paper"
) -> Callable[..., Mapping[str, Run]]:
    """Sources of an exhibit that shows one run with one seed.

    Args:
        experiment: its flags, and ``seed``, are the settings of the exhibit.
        preset: of the run, whose flags are all given: ``paper`` lets XLA optimise its programs,
            ``quick`` suits those that take longer to compile than to run.

    Returns:
        A function for :class:`Exhibit`; the run has the name of the experiment.

    Example:
        >>> from lrdyn.theorem import Statement
        >>> line = Experiment("line", "a line", (), (Statement("line", lambda key: key),))
        >>> drawn_from(line)(seed=3)["line"].config["seed"]
        3
    """
    return lambda **settings: {
        experiment.name: run_of(experiment, preset=preset, seeds=1, **settings)
    }


def one_seed(groups: Groups) -> xr.Dataset:
    """Arrays of the first statement of a run with one seed, without what judges need.

    Args:
        groups: content of ``results.nc``.

    Returns:
        The arrays over the swept flags.

    Example:
        >>> root = xr.Dataset({"y": ("seed", [3.0]), SIZE: ("seed", [2])}, attrs={"digest": "0"})
        >>> found = one_seed({"/": root})
        >>> list(found), found["y"].dims, found.attrs
        (['y'], (), {})
    """
    return groups["/"].isel(seed=0, drop=True).drop_vars(SIZE).drop_attrs(deep=False)


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


def missing(exhibit: Exhibit) -> str:
    """Say what a figure or table lacks to be computed here.

    Args:
        exhibit: the figure or table.

    Returns:
        One line; empty if nothing is missing.

    Example:
        >>> needs = {"nosuch": "pip install nosuch"}
        >>> missing(Exhibit(
        ...     name="f", title="", caption="", sources=dict, numbers=xr.Dataset, presets={},
        ...     needs=needs))
        'the package nosuch (pip install nosuch)'
    """
    absent = [name for name in exhibit.needs if importlib.util.find_spec(name) is None]
    return ", ".join(f"the package {name} ({exhibit.needs[name]})" for name in absent)


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
    groups, ran = {}, []
    for name, run in runs.items():
        known = None if recompute else saved(run, out, note=report)
        if known is None:
            known = results.read(carry_out(run, out)[1] / results.NAME)
            ran.append(name)
        groups[name] = known
    dataset = exhibit.numbers(groups, **settings).load()
    first = next(iter(runs.values()))
    record = {
        "name": exhibit.name,
        "title": exhibit.title,
        "sources": results.canonical({n: run.folder("").as_posix() for n, run in runs.items()}),
        "environment": results.canonical(results.environment(first.dtype)),
    }
    return Numbers(dataset.assign_attrs(made_from | record), True, tuple(ran))


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


def caption(exhibit: Exhibit, dataset: xr.Dataset) -> str:
    r"""Caption with its settings and results filled in.

    Args:
        exhibit: the figure or table.
        dataset: its numbers.

    Returns:
        The text, wrapped.

    Example:
        >>> f = Exhibit(
        ...     name="f", title="Title", caption="Rank {rank}, {gap:.0e}.", sources=dict,
        ...     numbers=xr.Dataset, presets={})
        >>> caption(f, xr.Dataset(attrs={"settings": '{"rank": 3}', "gap": 1e-15}))
        'f. Title. Rank 3, 1e-15.\n'
    """
    text = f"{exhibit.name}. {exhibit.title}. {_filled(exhibit, dataset)}"
    return textwrap.fill(tables.plain(text), 100) + "\n"


def _filled(exhibit: Exhibit, dataset: xr.Dataset) -> str:
    """Caption with its values, in one line."""
    values = {**json.loads(dataset.attrs["settings"]), **dataset.attrs}
    return " ".join(exhibit.caption.format_map(values).split())
