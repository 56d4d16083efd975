"""Curves of one's own arrays: a mean over seeds, a spectrum beside chance, theory over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from lrdyn.core import chance as by_chance
from lrdyn.core import checks
from lrdyn.core.show import near
from lrdyn.figures import plotting
from lrdyn.verification.stating.claims import standard_error
from lrdyn.verification.stating.expectations import simultaneous_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHADE: dict[str, Any] = {"alpha": 0.2, "lw": 0}
"""Of an area around a curve, in the colour of the curve."""


def band(
    ax: Axes,
    array: Any,
    over: str | int = "seed",
    *,
    x: Any = None,
    errors: float | int = 1.0,
    intervals: int | None = None,
    bars: bool = False,
    **look: Any,
) -> Axes:
    r"""Draw the mean over seeds as a curve, and how sure it is as a band around it.

    ``mean +- s / sqrt(n)``, s the standard deviation of the n draws at a point, or Student's
    interval ``mean +- t s / sqrt(n)``. Of one draw there is no band.

    Args:
        ax: the axes.
        array: of two axes, one of them ``over``; ``DataArray``, ``DataFrame`` or array.
        over: axis of the independent draws: its name, or its number where axes have no names.
        x: abscissae, one a point; by default the coordinate of the other axis, else 0, 1, ...
        errors: how many standard errors the band reaches up and down.
        intervals: in place of that Student's interval, so wide that so many such intervals hold
            their means at once with probability .95 (by Bonferroni), if draws are Gaussian.
        bars: whether a bar stands at each point in place of the band: where there are few.
        look: what Matplotlib's ``plot`` takes: ``color``, ``label``, ``marker``, ``ls``, ...

    Returns:
        The axes.

    Raises:
        ValueError: an axis or a shape is not as above, or a number is not positive.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> losses = xr.DataArray(rng.normal(size=(8, 50)), dims=("seed", "step"))
        >>> figure, (ax,) = plotting.panels(["loss"])
        >>> ax = band(ax, losses, over="seed", color=plotting.BLUE, label="mean of 8 seeds")
        >>> len(ax.lines), len(ax.collections)
        (1, 1)
    """
    if not errors > 0:
        raise ValueError(f"errors: got {errors!r}, wanted a number of standard errors above 0")
    if intervals is not None:
        checks.integer("intervals", intervals)
    draws, places = _draws(array, over)
    if x is not None:
        places = np.asarray(x)
        if places.shape != draws.shape[1:]:
            wanted = f"one number for each of the {draws.shape[1]} points"
            raise ValueError(f"x: got shape {places.shape}, wanted {wanted}")
    mean = draws.mean(axis=0)
    if intervals is None:
        reach = errors * standard_error(draws)
    else:
        ends = [simultaneous_interval(column, intervals) for column in draws.T]
        reach = np.array([high for _, high in ends]) - mean
    if bars:
        ax.errorbar(places, mean, reach, **{"capsize": 2, **look})
        return ax
    (line,) = ax.plot(places, mean, **look)
    if len(draws) > 1:
        ax.fill_between(places, mean - reach, mean + reach, color=line.get_color(), **SHADE)
    return ax


def _draws(array: Any, over: str | int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, (draw, point), and the place of each point."""
    if hasattr(array, "columns"):  # pandas: its index and columns are axes with coordinates
        array = xr.DataArray(array)
    if isinstance(array, xr.DataArray):
        dims = [str(name) for name in array.dims]
        if over in (0, 1) and not isinstance(over, bool) and len(dims) == 2:
            over = dims[int(over)]
        if over not in dims:
            meant = near(str(over), dims)
            raise ValueError(f"over: got {over!r}{meant}, wanted one of {', '.join(dims)}")
        if len(dims) != 2:
            got = f"array: got the axes {', '.join(dims)}"
            raise ValueError(f"{got}, wanted {over} and one more: .sel chooses of the others")
        (along,) = set(dims) - {str(over)}
        array = array.transpose(over, along)
        return np.asarray(array.values, float), array[along].values
    draws = np.asarray(array, float)
    if draws.ndim != 2:
        raise ValueError(f"array: got shape {draws.shape}, wanted two axes")
    # Without names the axis of the draws is asked for: first and last are both usual.
    if isinstance(over, bool) or over not in (0, 1, -1, -2):
        raise ValueError(f"over: got {over!r}, wanted 0 or 1 of an array without names of axes")
    draws = np.moveaxis(draws, int(over), 0)
    return draws, np.arange(draws.shape[1])


def spectrum(
    ax: Axes,
    values: Any,
    marks: Sequence[int] = (),
    *,
    chance: bool | tuple[int, int] = False,
    index: Any = None,
    **look: Any,
) -> Axes:
    r"""Draw singular values over the largest, ``sigma_i / sigma_1``, over their index i.

    Dotted: the same of a Gaussian matrix, which knows nothing. What is not above 0, or not finite,
    is not drawn.

    Args:
        ax: the axes; both become logarithmic.
        values: singular values, largest first.
        marks: indices at which a line stands, as the number K of outputs and 2K.
        chance: rows and columns of the matrix of chance; True for a square one with as many
            singular values as ``values``. One that is not square has a flatter spectrum.
        index: i of each value, where not all are kept; by default 1, 2, ...
        look: what Matplotlib's ``plot`` takes: ``color``, ``label``, ``ls``, ...

    Returns:
        The axes.

    Raises:
        ValueError: a shape, a mark or a size is not as above, or the largest value is not positive.

    Example:
        >>> figure, (ax,) = plotting.panels(["an update of rank 2"])
        >>> ax = spectrum(ax, [4.0, 2.0, 0.1, 0.01], marks=(2,), chance=(4, 6))
        >>> ax.get_xscale(), len(ax.lines)
        ('log', 3)

    Reference:
        Marchenko and Pastur, Distribution of eigenvalues for some sets of random matrices, 1967.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values: got shape {values.shape}, wanted singular values in one axis")
    if not values[0] > 0:
        raise ValueError(f"values: got {values[0]:g} as the largest, wanted it above 0, and first")
    index = 1 + np.arange(len(values)) if index is None else np.asarray(index)
    if index.shape != values.shape:
        raise ValueError(f"index: got shape {index.shape}, wanted {values.shape}, as the values")
    for mark in marks:
        checks.integer("marks", mark)
        ax.axvline(mark, color=plotting.GREY, lw=0.5, zorder=0)
    if chance is not False:
        size = (len(values), len(values)) if chance is True else tuple(chance)
        if len(size) != 2:
            raise ValueError(f"chance: got {chance!r}, wanted rows and columns, True or False")
        random = by_chance.gaussian_singular_values(*size)
        ax.plot(1 + np.arange(len(random)), random / random[0], ls=":", color="k", lw=0.8, zorder=1)
    drawn = np.isfinite(values) & (values > 0)
    ax.plot(index[drawn], values[drawn] / values[0], **{"lw": 1.0, **look})
    ax.set(xscale="log", yscale="log", xlabel="index i")
    return ax


MOST = 12
"""Curves of a panel of :func:`overlay`, at most: those that move most."""
COLORS: Sequence[str] = (plotting.BLUE, plotting.ORANGE, plotting.GREEN, plotting.BLACK)
MARKERS = 20
"""Markers of a curve, about."""


def overlay(run: Any, theory: Any, *, along: str = "step", steps: Any = None) -> Figure:
    """Draw what theory predicts as lines, and what a run measured as open markers on them.

    There is a panel for each quantity that theory predicts. Of many curves of one quantity the
    twelve are drawn that move most: what stays lies on top of each other.

    Args:
        run: what was measured: a ``Dataset``, or name -> array with the steps as first axis; of a
            single quantity an array will do.
        theory: what is predicted, in the same form, with the same names, shapes and steps.
        along: axis of the steps, and name of the abscissa.
        steps: the steps, of arrays that do not say them; by default 0, 1, ...

    Returns:
        The figure, which :func:`lrdyn.figures.save` writes. A panel has the ``long_name`` of its
        array as title, else its name.

    Raises:
        ValueError: a quantity is missing from the run, or has another shape there, or no steps.

    Example:
        >>> steps = np.arange(0, 50, 2)
        >>> figure = overlay({"loss": 0.9 ** (2 * steps)}, {"loss": 0.81**steps}, steps=steps)
        >>> [len(ax.lines) for ax in figure.axes]
        [2]
    """
    if isinstance(run, xr.DataArray) and isinstance(theory, xr.DataArray):
        theory = theory.rename(run.name)  # one quantity, whatever either side calls it
    measured, predicted = _dataset("run", run, along), _dataset("theory", theory, along)
    for name in predicted.data_vars:
        if name not in measured:
            known = [str(known) for known in measured.data_vars]
            meant = near(str(name), known)
            raise ValueError(
                f"theory: got {name!r}{meant}, wanted what run has: {', '.join(known)}"
            )
        both = [dict(side[name].sizes) for side in (measured, predicted)]
        if both[0] != both[1]:
            raise ValueError(f"theory: got {both[1]} of {name!r}, wanted {both[0]} as of the run")
    places = predicted[along].values if steps is None else np.asarray(steps)
    if places.shape != (predicted.sizes[along],):
        raise ValueError(f"steps: got shape {places.shape}, wanted ({predicted.sizes[along]},)")
    titles = [
        str(array.attrs.get("long_name", name)) for name, array in predicted.data_vars.items()
    ]
    figure, axes = plotting.panels(titles)
    for ax, name in zip(axes, predicted.data_vars, strict=True):
        sides = [
            side[name].transpose(along, ...).values.reshape(side.sizes[along], -1)
            for side in (predicted, measured)
        ]
        _plot_pair(ax, places, *sides)
        ax.set_xlabel(along)
    entries = [plotting.entry("theory"), plotting.entry("run", **plotting.OPEN)]
    plotting.common_key(figure, entries)
    return figure


def _dataset(name: str, arrays: Any, along: str) -> xr.Dataset:
    """Arrays as a dataset whose variables all run along the steps."""
    if isinstance(arrays, xr.DataArray):
        arrays = arrays.to_dataset(name=arrays.name or "value")
    if not isinstance(arrays, xr.Dataset):
        if not isinstance(arrays, Mapping):
            arrays = {"value": arrays}
        named = {key: np.asarray(array) for key, array in arrays.items()}
        arrays = xr.Dataset(
            {
                key: ((along, *(f"{key}_{axis}" for axis in range(1, array.ndim))), array)
                for key, array in named.items()
                if array.ndim
            }
        )
    missing = [str(key) for key, array in arrays.data_vars.items() if along not in array.dims]
    if missing or not arrays.data_vars:
        got = f"{missing[0]!r} without it" if missing else "none"
        raise ValueError(f"{name}: got {got}, wanted arrays with the axis {along!r}")
    return arrays


def _plot_pair(ax: Axes, steps: np.ndarray, predicted: np.ndarray, measured: np.ndarray) -> None:
    moved = np.nan_to_num(np.ptp(measured, axis=0))
    chosen = np.sort(np.argsort(-moved, kind="stable")[:MOST])
    every = max(1, len(steps) // MARKERS)
    for place, column in enumerate(chosen):
        color = COLORS[place % len(COLORS)]
        sides = predicted[:, column], measured[:, column]
        plotting.plot_compared(ax, steps, *sides, color=color, every=every)
