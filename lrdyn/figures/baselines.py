"""Baselines: committed numbers and looks of figures and tables, to compare new ones with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lrdyn.figures import long, rendering
from lrdyn.figures.exhibits import Exhibit
from lrdyn.figures.rendering import Report
from lrdyn.system import whole_files
from lrdyn.verification.storing import results_file


class CurveDifference(NamedTuple):
    """A curve that differs from the baseline."""

    curve: str
    """Name of the variable, with the place of the largest difference."""
    problem: str
    """What is different."""
    amount: float | None
    """Largest difference relative to the scale of the curve; None if it is not a number."""
    tolerance: float | None
    """The difference that is allowed."""

    def __str__(self) -> str:
        """Describe it in one line."""
        return f"{self.curve}: {self.problem}"


def allowed_difference(kind: str, dtype: Any) -> float:
    """Difference of two runs of one figure that is allowed, relative to the scale of the curve.

    * ``identity``, numbers of a formula: two thirds of the digits. Other releases of JAX, other
      machines and other orders of summation change the last ones.
    * ``run``, numbers of a deterministic run: half of the digits. Its steps multiply rounding by
      some thousands; a change of method or settings shows in the first half.
    * ``training``: no general rule, its curves state their own.

    Integers and texts must be equal.

    Raises:
        ValueError: the kind has no general tolerance.

    Example:
        >>> [allowed_difference(kind, "float64") for kind in ("run", "identity")]
        [1.4901161193847656e-08, 3.666852862501036e-11]
        >>> allowed_difference("run", "int32")
        0.0
    """
    dtype = np.dtype(dtype)
    if dtype.kind != "f":
        return 0.0
    if kind not in DIGITS:
        raise ValueError(f"kind: got {kind!r}, wanted {' or '.join(map(repr, DIGITS))}")
    # A power of eps keeps a share of the digits: those behind it may differ.
    return float(np.finfo(dtype).eps) ** DIGITS[kind]


DIGITS = {"identity": 2 / 3, "run": 1 / 2}
"""Kind of a curve -> share of the digits that is compared."""


def kind_of(variable: xr.DataArray) -> str:
    """Kind of a curve: its attribute ``kind``, else that of a deterministic run."""
    return str(variable.attrs.get("kind", "run"))


def tolerance_of(variable: xr.DataArray) -> float:
    """The allowed difference of a curve: its attribute ``tolerance``, else that of its kind."""
    own = variable.attrs.get("tolerance")
    return allowed_difference(kind_of(variable), variable.dtype) if own is None else float(own)


def is_compared(variable: xr.DataArray) -> bool:
    """Whether a curve is compared: not if it depends on the machine (attribute ``compare = 0``)."""
    return bool(variable.attrs.get("compare", 1))


def compare(dataset: xr.Dataset, baseline: xr.Dataset) -> list[CurveDifference]:
    """The differences of the numbers of a figure or table from a baseline, one for each variable.

    Differences are relative to the largest value of the variable, or of each curve of it if the
    attribute ``curve_along`` names the dimension along which a curve runs. Variables with the
    attribute ``compare = 0`` must be there with the same shape, but their values are free.

    Example:
        >>> a = xr.Dataset({"curve": ("step", [1.0, 2.0])})
        >>> [str(d) for d in compare(a + 0.5, a)]
        ['curve[step=0]: got 1.5, wanted 1, 2.5e-01 of its scale (run: tolerance 1.5e-08)']
    """
    wanted, settings = baseline.attrs.get("settings"), dataset.attrs.get("settings")
    if wanted != settings:
        return [CurveDifference("settings", f"got {settings}, wanted {wanted}", None, None)]
    differences = [
        CurveDifference(str(name), "got an array that the baseline does not have", None, None)
        for name in sorted(set(map(str, dataset.variables)) - set(map(str, baseline.variables)))
    ]
    for name in map(str, baseline.variables):
        if name not in dataset.variables:
            differences.append(CurveDifference(name, "missing", None, None))
        else:
            differences += _compare_variable(name, dataset[name], baseline[name])
    return differences


def _compare_variable(
    name: str, actual: xr.DataArray, wanted: xr.DataArray
) -> list[CurveDifference]:
    if (actual.dims, actual.shape) != (wanted.dims, wanted.shape):
        problem = f"got shape {dict(actual.sizes)}, wanted {dict(wanted.sizes)}"
        return [CurveDifference(name, problem, None, None)]
    if not is_compared(wanted):
        return []
    if wanted.dtype.kind != "f" or actual.dtype.kind != "f":
        return _compare_exactly(name, actual, wanted)
    return _compare_numbers(name, actual, wanted)


def _compare_exactly(
    name: str, actual: xr.DataArray, wanted: xr.DataArray
) -> list[CurveDifference]:
    places = np.flatnonzero(actual.values != wanted.values).tolist()
    if not places:
        return []
    problem = _got_and_wanted(actual, wanted, places[0]) + " (compared exactly)"
    return [CurveDifference(_place(name, wanted, places[0]), problem, None, 0.0)]


def _compare_numbers(
    name: str, actual: xr.DataArray, wanted: xr.DataArray
) -> list[CurveDifference]:
    # Where a side is not finite there is no difference to measure: both must be the same there, NaN
    # equal to NaN.
    infinite = ~np.isfinite(wanted.values)
    odd = np.where(infinite | ~np.isfinite(actual.values), actual.values != wanted.values, False)
    odd &= ~(np.isnan(actual.values) & np.isnan(wanted.values))
    places = np.flatnonzero(odd).tolist()
    if places:
        problem = f"{_got_and_wanted(actual, wanted, places[0])}, at {len(places)} points"
        return [CurveDifference(_place(name, wanted, places[0]), problem, None, None)]
    worst = _largest_difference(name, actual, wanted)
    return [] if worst is None or _share(worst) <= 1 else [worst]


def nearest_to_its_tolerance(dataset: xr.Dataset, baseline: xr.Dataset) -> CurveDifference | None:
    """The difference that is the largest share of its tolerance, of curves that can be subtracted.

    Returns:
        It, within its tolerance or beyond; None if no compared curve has finite numbers in both.

    Example:
        >>> a = xr.Dataset({"curve": ("step", [1.0, 2.0])})
        >>> nearest = nearest_to_its_tolerance(a + 2.0**-30, a)
        >>> nearest.curve, nearest.amount * 2.0**31
        ('curve[step=0]', 1.0)
    """
    found: list[CurveDifference] = []
    for name, wanted in baseline.data_vars.items():
        actual = dataset.get(name)
        if actual is None or actual.dims != wanted.dims or actual.shape != wanted.shape:
            continue
        if is_compared(wanted) and wanted.dtype.kind == actual.dtype.kind == "f":
            # Where only one side is finite nothing is subtracted; :func:`compare` names it.
            both = np.isfinite(actual.values) & np.isfinite(wanted.values)
            kept = actual.copy(data=np.where(both, actual.values, wanted.values))
            worst = _largest_difference(str(name), kept, wanted)
            found += [] if worst is None else [worst]
    return max(found, key=_share, default=None)


def _share(difference: CurveDifference) -> float:
    """Share of its tolerance that a measured difference is; of a tolerance of 0 it is all."""
    amount, tolerance = difference.amount or 0.0, difference.tolerance or 0.0
    return amount / tolerance if tolerance else math.inf if amount else 0.0


def _largest_difference(
    name: str, actual: xr.DataArray, wanted: xr.DataArray
) -> CurveDifference | None:
    """The largest difference of a curve on its scale; None of an empty one.

    Both sides are finite at the same places, and equal at the others.
    """
    tolerance, infinite = tolerance_of(wanted), ~np.isfinite(wanted.values)
    gap = np.abs(np.where(infinite, 0, actual.values) - np.where(infinite, 0, wanted.values))
    ratios = np.ravel(gap / _scale(wanted))
    if not ratios.size:
        return None
    worst = int(np.argmax(ratios))
    amount = float(ratios[worst])
    measured = f"{amount:.1e} of its scale ({kind_of(wanted)}: tolerance {tolerance:.1e})"
    problem = f"{_got_and_wanted(actual, wanted, worst)}, {measured}"
    return CurveDifference(_place(name, wanted, worst), problem, amount, tolerance)


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


def _got_and_wanted(actual: xr.DataArray, wanted: xr.DataArray, position: int) -> str:
    pair = (np.ravel(array.values)[position] for array in (actual, wanted))
    got, want = (f"{x:.9g}" if isinstance(x, np.number) else repr(str(x)) for x in pair)
    return f"got {got}, wanted {want}"


def folder_of(exhibit: Exhibit, baselines: Path, preset: str) -> Path:
    """Folder of the baseline of a figure or table: ``baselines`` itself, or a preset's below it.

    A baseline is that of the preset ``quick``, of another with the same settings, or of a long
    figure, whose committed numbers stand for every preset.

    Example:
        >>> f = Exhibit(
        ...     name="f", title="", caption="", sources=dict, numbers=xr.Dataset,
        ...     presets={"quick": {"steps": 10}, "paper": {"steps": 1000}})
        >>> folder_of(f, Path("baselines"), "paper").as_posix()
        'baselines/paper'
    """
    one_for_all = exhibit.long or exhibit.presets[preset] == exhibit.presets.get(QUICK)
    return baselines if one_for_all else baselines / preset


QUICK = "quick"
"""The preset whose baselines stand in the folder itself."""


def check(
    exhibit: Exhibit,
    out: Path | str,
    baselines: Path,
    preset: str = "quick",
    *,
    report: Report = print,
) -> bool:
    """Whether a figure or table agrees with its committed baseline; new numbers if need be.

    First the numbers are compared, then how the committed ones are drawn. Numbers saved with other
    settings (another preset) are left as they are. One line is reported if all agrees, or one for
    each curve and each part of a panel that differs.
    """
    folder = folder_of(exhibit, baselines, preset)
    try:
        baseline = results_file.load(folder / f"{exhibit.name}.nc")["/"]
    except results_file.Missing:
        report(f"{exhibit.name}: no baseline in {folder}: `baseline {exhibit.name}` makes one")
        return False
    except results_file.Damaged as error:
        report(f"{exhibit.name}: no baseline, {error}")
        return False
    differences, agreement = _number_differences(exhibit, out, baselines, preset, baseline, report)
    differences += exhibit.look_changes(baseline, folder / exhibit.name)
    for line in differences or [agreement]:
        report(f"{exhibit.name}: {line}")
    return not differences


def _number_differences(
    exhibit: Exhibit,
    out: Path | str,
    baselines: Path,
    preset: str,
    baseline: xr.Dataset,
    report: Report,
) -> tuple[list[str], str]:
    """Lines about what differs in the present numbers, and the line for when nothing does."""
    if exhibit.long:
        dataset = long.numbers(exhibit, out, baselines, preset)
        if why := long.why_incomparable(dataset, baseline):
            return [], why
    else:
        path = rendering.numbers_path(exhibit, out)
        rendered = rendering.numbers(exhibit, out, exhibit.presets[preset], report=report)
        dataset = rendered.dataset
        if rendered.computed and not path.exists():
            rendering.save(dataset, path)
    return _lines(exhibit, exhibit.thin(dataset), baseline), _agreement(baseline)


def _lines(exhibit: Exhibit, dataset: xr.Dataset, baseline: xr.Dataset) -> list[str]:
    """A line for each curve that differs, behind the panels that show it."""
    lines = []
    for difference in compare(dataset, baseline):
        panels = exhibit.panels_of(difference.curve.partition("[")[0])
        lines.append(f"{panels}: {difference}" if panels else str(difference))
    return lines


def _agreement(baseline: xr.Dataset) -> str:
    free = [str(name) for name, variable in baseline.data_vars.items() if not is_compared(variable)]
    count = len(baseline.data_vars) - len(free)
    text = f"{count} arrays as in the baseline"
    return text + (f"; not compared, since the machine decides: {', '.join(free)}" if free else "")


def write_baseline(
    exhibit: Exhibit,
    out: Path | str,
    baselines: Path,
    preset: str = "quick",
    *,
    agreed: Callable[[], bool] = lambda: True,
    report: Report = print,
) -> bool:
    """Make the present numbers and looks of a figure or table its baseline, if that is agreed.

    The change is reported first; nothing is written unless ``agreed()``. A long figure without
    results keeps its committed numbers and has its looks renewed.

    Returns:
        Whether it was written.
    """
    folder = folder_of(exhibit, baselines, preset)
    path = folder / f"{exhibit.name}.nc"
    done = rendering.render(exhibit, out, preset, baselines=baselines, report=report)
    as_committed = exhibit.long and not done.computed
    numbers = results_file.load(path)["/"] if as_committed else exhibit.thin(done.dataset)
    for line in _change_lines(exhibit, numbers, path):
        report(f"{exhibit.name}: {line}")
    if not agreed():
        report(f"{exhibit.name}: the baseline stays as it was")
        return False
    if not as_committed:
        rendering.save(numbers, path)
    whole_files.make_folder(folder, below=baselines.parent)
    kept = [path, *exhibit.save_looks(results_file.load(path)["/"], path.with_suffix(""))]
    if record := long.record(exhibit, out, preset) if exhibit.long else {}:
        kept.append(path.with_name(f"{exhibit.name}_record.json"))
        with whole_files.replace_file(kept[-1]) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n")
    for written in kept:
        report(f"{exhibit.name}: {written} ({written.stat().st_size / 1000:.0f} kB)")
    return True


def _change_lines(exhibit: Exhibit, numbers: xr.Dataset, path: Path) -> list[str]:
    """Lines about the changes that a new baseline makes."""
    try:
        lines = _lines(exhibit, numbers, results_file.load(path)["/"])
    except results_file.Unreadable:
        return ["a new baseline"]
    lines += exhibit.look_changes(numbers, path.with_suffix(""))
    return lines or ["no change beyond the tolerances"]
