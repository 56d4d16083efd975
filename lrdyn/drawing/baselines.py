"""Baselines: committed numbers of figures and tables, with which new ones are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lrdyn.drawing import long, rendering
from lrdyn.drawing.exhibits import Exhibit
from lrdyn.drawing.rendering import Report
from lrdyn.engine import results
from lrdyn.engine.configuration import BadInput


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


def default_tolerance(dtype: Any) -> float:
    """Relative difference that two runs of one figure may show: the square root of machine epsilon.

    Other versions of JAX, other machines and other orders of summation change the last digits, and
    the steps of a run multiply that by some thousands; a change of method or settings shows in the
    first half of the digits. Half of the digits is therefore compared; integers and texts must be
    equal. A variable may set its own tolerance in its attribute ``tolerance``. It is relative to
    the largest value of the curve.

    Example:
        >>> default_tolerance("float64"), default_tolerance("int32")
        (1.4901161193847656e-08, 0.0)
    """
    dtype = np.dtype(dtype)
    return float(np.sqrt(np.finfo(dtype).eps)) if dtype.kind == "f" else 0.0


def compared(variable: xr.DataArray) -> bool:
    """Whether a curve is compared: not if it depends on the machine (attribute ``compare = 0``)."""
    return bool(variable.attrs.get("compare", 1))


def compare(dataset: xr.Dataset, baseline: xr.Dataset) -> list[Difference]:
    """The differences of the numbers of a figure or table from a baseline, one for each variable.

    Differences are relative to the largest value of the variable, or of each curve of it if the
    attribute ``curve_along`` names the dimension along which a curve runs. Variables with the
    attribute ``compare = 0`` must be there with the same shape, but their values are free.

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
    """Whether a figure or table agrees with its committed baseline; new numbers if need be.

    Numbers saved with other settings (another preset) are left as they are. One line is reported if
    all agrees, or one for each curve that differs.
    """
    try:
        baseline = results.load(baselines / f"{exhibit.name}.nc")["/"]
    except results.Missing:
        report(f"{exhibit.name}: no baseline in {baselines}")
        return False
    except results.Damaged as error:
        report(f"{exhibit.name}: no baseline, {error}")
        return False
    if exhibit.long:
        dataset = long.numbers(exhibit, out, baselines, preset)
        if why := long.comparable(dataset, baseline):
            report(f"{exhibit.name}: {why}")
            return True
        return _compared(exhibit, dataset, baseline, report)
    path = rendering.where(exhibit, out)
    found = rendering.numbers(exhibit, out, exhibit.presets[preset], report=report)
    if found.computed and not path.exists():
        rendering.save(found.dataset, path)
    return _compared(exhibit, found.dataset, baseline, report)


def _compared(exhibit: Exhibit, dataset: xr.Dataset, baseline: xr.Dataset, report: Report) -> bool:
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
    """Make the present numbers of a figure or table its baseline, and say where it is."""
    path = baselines / f"{exhibit.name}.nc"
    done = rendering.render(exhibit, out, preset, report=report)
    if exhibit.long and not done.computed:
        raise BadInput(f"figure: got {exhibit.name!r}, wanted saved results of it")
    rendering.save(exhibit.thin(done.dataset), path)
    report(f"{exhibit.name}: {path} ({path.stat().st_size / 1000:.0f} kB)")
    return path
