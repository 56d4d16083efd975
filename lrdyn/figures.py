"""Figures and tables that keep their numbers: compute, save, draw from the saved, compare.

A :class:`Figure` or a :class:`Table` is data, in this repository or in somebody else's;
:func:`main` gives a list of them a command line. Both are an :class:`Exhibit`: they differ only in
the files that are made from the saved numbers.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lrdyn import tables
from lrdyn.cli import BadInput, Parser
from lrdyn.files import replacing, set_aside

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exhibit:
    """A figure or a table of a paper, see :class:`Figure` and :class:`Table`.

    Args:
        name: short name, ``fig03``; also that of its files.
        title: one line.
        caption: text, a format string filled from the settings and the attributes of the dataset.
            Mathematics between dollar signs is that of LaTeX; elsewhere the signs are dropped.
        compute: ``compute(**settings)``: the numbers shown, with named dimensions and coordinates.
        presets: preset -> settings, JSON-able; numbers are computed anew when they differ.
        needs: package that must be installed -> how to install it.
        thin: the part of the numbers kept as a baseline; everything by default.
    """

    name: str
    title: str
    caption: str
    compute: Callable[..., xr.Dataset]
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

        paths = (stem.with_suffix(".png"), stem.with_suffix(".pdf"))
        with plotting.style():
            drawn = self.draw(dataset)
            for path in paths:
                # Without its date, the same numbers give the same PDF.
                metadata = {"CreationDate": None} if path.suffix == ".pdf" else {}
                with replacing(path) as temporary:
                    drawn.savefig(temporary, metadata=metadata)
        return paths


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


class Rendered(NamedTuple):
    """What :func:`render` returns."""

    dataset: xr.Dataset
    """The plotted numbers."""
    paths: tuple[Path, ...]
    """Files written or found: the numbers, then pictures, then texts."""
    computed: bool
    """False if saved numbers were used."""


class Difference(NamedTuple):
    """One curve that is not what the baseline says."""

    curve: str
    """Name of the variable, with the place of the largest difference."""
    problem: str
    """What is different."""
    amount: float | None
    """Largest difference relative to the scale of the curve; None if it is not a number."""
    tolerance: float | None
    """What would have been allowed."""

    def __str__(self) -> str:
        """Describe it in one line."""
        return f"{self.curve}: {self.problem}"


def missing(exhibit: Exhibit) -> str:
    """Say what a figure or table lacks to be computed here.

    Args:
        exhibit: the figure or table.

    Returns:
        One line; empty if nothing is missing.

    Example:
        >>> needs = {"nosuch": "pip install nosuch"}
        >>> missing(Exhibit(
        ...     name="f", title="", caption="", compute=xr.Dataset, presets={}, needs=needs))
        'the package nosuch (pip install nosuch)'
    """
    absent = [name for name in exhibit.needs if importlib.util.find_spec(name) is None]
    return ", ".join(f"the package {name} ({exhibit.needs[name]})" for name in absent)


def compute(exhibit: Exhibit, settings: Mapping[str, Any]) -> xr.Dataset:
    """Compute the numbers of a figure or table and note in them where they come from.

    Args:
        exhibit: the figure or table.
        settings: keyword arguments of its ``compute``.

    Returns:
        The dataset, with the attributes ``name``, ``title``, ``settings`` and ``environment``
        (JSON).
    """
    dataset = exhibit.compute(**settings)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "numpy")}
    versions["python"] = ".".join(map(str, sys.version_info[:3]))
    return dataset.assign_attrs(
        name=exhibit.name,
        title=exhibit.title,
        settings=_canonical(settings),
        environment=_canonical(versions),
    )


def _canonical(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, allow_nan=False)


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write numbers as netCDF, atomically.

    Args:
        dataset: the numbers.
        path: the file; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    numeric = [name for name, v in dataset.variables.items() if v.ndim and v.dtype.kind in "fiu"]
    with replacing(path) as temporary:
        encoding = {name: {"zlib": True, "complevel": 4, "shuffle": True} for name in numeric}
        dataset.to_netcdf(temporary, engine="h5netcdf", encoding=encoding)


def load(path: Path, *, report: Report = print) -> xr.Dataset | None:
    """Read saved numbers; a damaged file is named, set aside as ``<name>.damaged`` and not used.

    Args:
        path: the file.
        report: receives the line that names a damaged file.

    Returns:
        The numbers; None if there are none or they cannot be read.
    """
    if not path.exists():
        return None
    try:
        return xr.load_dataset(path, engine="h5netcdf")
    except PermissionError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ... on damaged files
        kept = set_aside(path)
        report(
            f"{path}: damaged ({type(error).__name__}), set aside as {kept.name}, computed again"
        )
        return None


def numbers(
    exhibit: Exhibit, path: Path, settings: Mapping[str, Any], *, report: Report = print
) -> tuple[xr.Dataset, bool]:
    """Saved numbers of a figure or table, or new ones if there are none with these settings.

    Args:
        exhibit: the figure or table.
        path: where its numbers are saved.
        settings: the settings asked for.
        report: receives lines for the reader.

    Returns:
        The numbers, and whether they were computed. Nothing is written.
    """
    saved = load(path, report=report)
    if saved is not None and saved.attrs.get("settings") == _canonical(settings):
        return saved, False
    return compute(exhibit, settings), True


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
        recompute: do not use saved numbers.
        report: receives lines for the reader.

    Returns:
        A :class:`Rendered`.
    """
    stem = Path(out) / "figures" / exhibit.name
    path, settings = stem.with_suffix(".nc"), exhibit.presets[preset]
    if recompute:
        dataset, computed = compute(exhibit, settings), True
    else:
        dataset, computed = numbers(exhibit, path, settings, report=report)
    if computed:
        save(dataset, path)
    files = [path, *exhibit.pictures(dataset, stem)]
    for suffix, text in exhibit.texts(dataset).items():
        files.append(stem.with_suffix(suffix))
        with replacing(files[-1]) as temporary:
            temporary.write_text(text)
    return Rendered(dataset, tuple(files), computed)


def caption(exhibit: Exhibit, dataset: xr.Dataset) -> str:
    r"""Caption with its settings and results filled in.

    Args:
        exhibit: the figure or table.
        dataset: its numbers.

    Returns:
        The text, wrapped.

    Example:
        >>> f = Exhibit(
        ...     name="f", title="Title", caption="Rank {rank}, {gap:.0e}.", compute=xr.Dataset,
        ...     presets={})
        >>> caption(f, xr.Dataset(attrs={"settings": '{"rank": 3}', "gap": 1e-15}))
        'f. Title. Rank 3, 1e-15.\n'
    """
    text = f"{exhibit.name}. {exhibit.title}. {_filled(exhibit, dataset)}"
    return textwrap.fill(tables.plain(text), 100) + "\n"


def _filled(exhibit: Exhibit, dataset: xr.Dataset) -> str:
    """Caption with its values, in one line."""
    values = {**json.loads(dataset.attrs["settings"]), **dataset.attrs}
    return " ".join(exhibit.caption.format_map(values).split())


def default_tolerance(dtype: Any) -> float:
    """Relative difference that two runs of one figure may show: the square root of machine epsilon.

    Other versions of JAX, other machines and other orders of summation change the last digits, and
    the steps of a run multiply that by some thousands; a change of method or settings shows in the
    first half of the digits. Half of the digits is therefore compared. A variable may set its own
    tolerance in its attribute ``tolerance``.

    Args:
        dtype: type of the variable; integers and texts must be equal.

    Returns:
        The tolerance, relative to the largest value of the curve.

    Example:
        >>> default_tolerance("float64"), default_tolerance("int32")
        (1.4901161193847656e-08, 0.0)
    """
    dtype = np.dtype(dtype)
    return float(np.sqrt(np.finfo(dtype).eps)) if dtype.kind == "f" else 0.0


def compared(variable: xr.DataArray) -> bool:
    """Whether a curve is compared: not if it depends on the machine (attribute ``compare = 0``).

    Args:
        variable: a variable of a dataset.

    Returns:
        True unless its attribute ``compare`` is 0.

    Example:
        >>> compared(xr.DataArray(1.0, attrs={"compare": 0}))
        False
    """
    return bool(variable.attrs.get("compare", 1))


def compare(dataset: xr.Dataset, baseline: xr.Dataset) -> list[Difference]:
    """Compare the numbers of a figure or table with a baseline, curve by curve.

    Differences are relative to the largest value of the variable, or of each curve of it if the
    attribute ``curve_along`` names the dimension along which a curve runs. Variables with the
    attribute ``compare = 0`` must be there with the same shape, but their values are free.

    Args:
        dataset: the numbers.
        baseline: what they should be.

    Returns:
        One entry for each variable that differs; empty if none does.

    Example:
        >>> a = xr.Dataset({"curve": ("step", [1.0, 2.0])})
        >>> [str(d) for d in compare(a + 0.5, a)]
        ['curve[step=0]: got 1.5, wanted 1, 2.5e-01 of its scale (tolerance 1.5e-08)']
    """
    asked, found = baseline.attrs.get("settings"), dataset.attrs.get("settings")
    if asked != found:
        return [Difference("settings", f"got {found}, wanted {asked}", None, None)]
    differences = [
        Difference(str(name), "got an array that the baseline does not have", None, None)
        for name in sorted(set(map(str, dataset.variables)) - set(map(str, baseline.variables)))
    ]
    for name in map(str, baseline.variables):
        if name not in dataset.variables:
            differences.append(Difference(name, "missing", None, None))
        else:
            differences += _compare_variable(name, dataset[name], baseline[name])
    return differences


def _compare_variable(name: str, found: xr.DataArray, wanted: xr.DataArray) -> list[Difference]:
    if (found.dims, found.shape) != (wanted.dims, wanted.shape):
        problem = f"got shape {dict(found.sizes)}, wanted {dict(wanted.sizes)}"
        return [Difference(name, problem, None, None)]
    if not compared(wanted):
        return []
    if wanted.dtype.kind != "f" or found.dtype.kind != "f":
        return _compare_exactly(name, found, wanted)
    return _compare_numbers(name, found, wanted)


def _compare_exactly(name: str, found: xr.DataArray, wanted: xr.DataArray) -> list[Difference]:
    places = np.flatnonzero(found.values != wanted.values).tolist()
    if not places:
        return []
    problem = _got(found, wanted, places[0]) + " (compared exactly)"
    return [Difference(_place(name, wanted, places[0]), problem, None, 0.0)]


def _compare_numbers(name: str, found: xr.DataArray, wanted: xr.DataArray) -> list[Difference]:
    infinite = ~np.isfinite(wanted.values)
    odd = np.where(infinite | ~np.isfinite(found.values), found.values != wanted.values, False)
    odd &= ~(np.isnan(found.values) & np.isnan(wanted.values))
    places = np.flatnonzero(odd).tolist()
    if places:
        problem = f"{_got(found, wanted, places[0])}, at {len(places)} points"
        return [Difference(_place(name, wanted, places[0]), problem, None, None)]
    tolerance = float(wanted.attrs.get("tolerance", default_tolerance(wanted.dtype)))
    gap = np.abs(np.where(infinite, 0, found.values) - np.where(infinite, 0, wanted.values))
    ratios = np.ravel(gap / _scale(wanted))
    worst = int(np.argmax(ratios)) if ratios.size else 0
    if not ratios.size or ratios[worst] <= tolerance:
        return []
    amount = float(ratios[worst])
    problem = f"{_got(found, wanted, worst)}, {amount:.1e} of its scale (tolerance {tolerance:.1e})"
    return [Difference(_place(name, wanted, worst), problem, amount, tolerance)]


def _scale(wanted: xr.DataArray) -> np.ndarray:
    """Largest finite value of each curve, broadcastable; 1 for a curve of zeros."""
    size = np.where(np.isfinite(wanted.values), np.abs(wanted.values), 0.0)
    along = wanted.attrs.get("curve_along")
    axis = wanted.get_axis_num(along) if along in wanted.dims else None
    largest = np.max(size, axis=axis, keepdims=True, initial=0.0)
    return np.where(largest > 0, largest, 1.0)


def _place(name: str, variable: xr.DataArray, position: int) -> str:
    where = np.unravel_index(position, variable.shape)
    labels = [
        f"{dim}={variable[dim].values[i] if dim in variable.coords else i}"
        for dim, i in zip(variable.dims, where, strict=True)
    ]
    return f"{name}[{', '.join(labels)}]" if labels else name


def _got(found: xr.DataArray, wanted: xr.DataArray, position: int) -> str:
    pair = (np.ravel(array.values)[position] for array in (found, wanted))
    got, want = (f"{x:.9g}" if isinstance(x, np.number) else repr(str(x)) for x in pair)
    return f"got {got}, wanted {want}"


def check(
    exhibit: Exhibit,
    out: Path | str,
    baselines: Path,
    preset: str = "quick",
    *,
    report: Report = print,
) -> bool:
    """Compare a figure or table with its committed baseline, computing its numbers if need be.

    Numbers saved with other settings (another preset) are left as they are.

    Args:
        exhibit: the figure or table.
        out: folder of all results.
        baselines: folder of the baselines.
        preset: settings of the baseline.
        report: receives one line if all agrees, or one for each curve that differs.

    Returns:
        Whether the numbers agree.
    """
    baseline = load(baselines / f"{exhibit.name}.nc", report=report)
    if baseline is None:
        report(f"{exhibit.name}: no baseline in {baselines}")
        return False
    path = Path(out) / "figures" / f"{exhibit.name}.nc"
    dataset, computed = numbers(exhibit, path, exhibit.presets[preset], report=report)
    if computed and not path.exists():
        save(dataset, path)
    differences = compare(exhibit.thin(dataset), baseline)
    for difference in differences:
        report(f"{exhibit.name}: {difference}")
    if not differences:
        report(f"{exhibit.name}: {_agreement(baseline)}")
    return not differences


def _agreement(baseline: xr.Dataset) -> str:
    free = [str(name) for name, variable in baseline.data_vars.items() if not compared(variable)]
    count = len(baseline.data_vars) - len(free)
    text = f"{count} arrays as in the baseline"
    return text + (f"; not compared, since the machine decides: {', '.join(free)}" if free else "")


def write_baseline(
    exhibit: Exhibit,
    out: Path | str,
    baselines: Path,
    preset: str = "quick",
    *,
    report: Report = print,
) -> Path:
    """Make the present numbers of a figure or table its baseline.

    Args:
        exhibit: the figure or table.
        out: folder of all results.
        baselines: folder of the baselines.
        preset: which of its settings.
        report: receives lines for the reader.

    Returns:
        The file written.
    """
    path = baselines / f"{exhibit.name}.nc"
    save(exhibit.thin(render(exhibit, out, preset, report=report).dataset), path)
    report(f"{exhibit.name}: {path} ({path.stat().st_size / 1000:.0f} kB)")
    return path


ACTIONS = {
    "draw": "draw figures and write tables, computing missing numbers (default)",
    "check": "compare their numbers with the baselines",
    "baseline": "make their numbers the baselines",
}


def main(
    exhibits: Sequence[Exhibit],
    baselines: Path,
    argv: Sequence[str] | None = None,
    *,
    prog: str = "figures",
) -> int:
    """Command line of figures and tables: ``[draw|check|baseline] [name ...] [flags]``.

    Args:
        exhibits: the figures and tables.
        baselines: folder of the baselines.
        argv: arguments; those of the process by default.
        prog: name of the command in its messages.

    Returns:
        Exit status: 0, or 1 if what is checked differs.

    Raises:
        BadInput: the arguments are not valid.
    """
    options = _parser(exhibits, prog).parse(sys.argv[1:] if argv is None else argv)
    action, chosen = _choose(options.figures, exhibits)
    _writable(options.out)
    _known_preset(options.preset, chosen)
    for exhibit in exhibits:
        if missing(exhibit) and not set(options.figures) - set(ACTIONS):
            print(f"{exhibit.name}: left out, it needs {missing(exhibit)}")
    act = {"draw": _draw, "check": _check, "baseline": _baseline}[action]
    agree = [act(exhibit, options, baselines) for exhibit in chosen]
    return 0 if all(agree) else 1


def _parser(exhibits: Sequence[Exhibit], prog: str) -> Parser:
    lines = [f"  {name:<9} {text}" for name, text in ACTIONS.items()]
    lines += ["", *(f"  {exhibit.name:<9} {exhibit.title}" for exhibit in exhibits)]
    parser = Parser(
        prog,
        "Write figures and tables beside their numbers, or compare the numbers with the baselines.",
        epilog="\n".join(["words:", *lines]),
    )
    parser.add_argument(
        "figures", nargs="*", metavar="figure", help="words below; everything by default"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("results"), metavar="DIR", help="default: results"
    )
    parser.add_argument("--preset", default="quick", metavar="quick|paper", help="default: quick")
    parser.add_argument("--recompute", action="store_true", help="do not use saved numbers")
    return parser


def _choose(words: Sequence[str], exhibits: Sequence[Exhibit]) -> tuple[str, list[Exhibit]]:
    action = words[0] if words and words[0] in ACTIONS else "draw"
    names = list(words[1:] if words and words[0] in ACTIONS else words)
    known = {exhibit.name: exhibit for exhibit in exhibits}
    for name in names:
        if name not in known:
            raise BadInput(f"figure: got {name!r}, wanted one of {', '.join(known)}")
        if missing(known[name]):
            raise BadInput(f"figure: got {name!r}, wanted {missing(known[name])} for it")
    chosen = [known[name] for name in dict.fromkeys(names)]
    return action, chosen or [exhibit for exhibit in exhibits if not missing(exhibit)]


def _writable(out: Path) -> None:
    existing = next(
        folder for folder in (out / "figures", *(out / "figures").parents) if folder.exists()
    )
    if not existing.is_dir():
        raise BadInput(
            f"--out: got {str(out)!r}, where {str(existing)!r} is a file, wanted a folder"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"--out: got {str(out)!r}, wanted a folder that can be written")


def _known_preset(preset: str, exhibits: Sequence[Exhibit]) -> None:
    for exhibit in exhibits:
        if preset not in exhibit.presets:
            raise BadInput(f"--preset: got {preset!r}, wanted one of {', '.join(exhibit.presets)}")


def _draw(exhibit: Exhibit, options: argparse.Namespace, baselines: Path) -> bool:
    begin = time.perf_counter()
    done = render(exhibit, options.out, options.preset, recompute=options.recompute)
    source = "computed" if done.computed else "saved numbers"
    print(
        f"{exhibit.name}: {done.paths[1]} ({source}, {time.perf_counter() - begin:.1f} s)",
        flush=True,
    )
    print(exhibit.shown(done.dataset), end="", flush=True)
    return True


def _check(exhibit: Exhibit, options: argparse.Namespace, baselines: Path) -> bool:
    if options.recompute:
        render(exhibit, options.out, options.preset, recompute=True)
    return check(exhibit, options.out, baselines, options.preset)


def _baseline(exhibit: Exhibit, options: argparse.Namespace, baselines: Path) -> bool:
    if options.recompute:
        render(exhibit, options.out, options.preset, recompute=True)
    write_baseline(exhibit, options.out, baselines, options.preset)
    return True
