"""Figures of Theorem 1: the critical points, and what is left of the singular values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lrdyn.figures import plotting
from lrdyn.theorem1.critical_points_claims import CriticalMeasured, CriticalTheory
from lrdyn.theorem1.descent import DescentMeasured, DescentTheory
from lrdyn.theorem1.landscape import index_sets
from lrdyn.theorem1.rest_points_claims import BasinsMeasured, BasinsTheory, modes_kept
from lrdyn.verification.stating import fields

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 3
"""Most panels of a figure."""


def landscape_figure(groups: Mapping[str, Any]) -> Figure | None:
    """Draw all critical points: loss above the minimum against the smallest Hessian eigenvalue.

    Circles are the closed form, dots the derivatives by JAX at the same points, labels the sets S.
    There is a panel for each decay; nothing is drawn if none leaves a saddle or if there are too
    many points.
    """
    results = plotting.first_point(groups["/critical_points"], "weight_decay")
    decays = _decays_with_saddles(results)
    if not len(decays) or not results["met_few_critical_points"].all():
        return None
    titles = [_decay_title(decay) for decay in decays]
    figure, axes = plotting.panels(titles, height=3.0)
    for ax, decay in zip(axes, decays, strict=True):
        _plot_landscape(ax, results.sel(weight_decay=decay))
    axes[0].set_ylabel("loss above the minimum")
    axes[0].legend(loc="lower left", handletextpad=0.2, borderaxespad=0.3)
    return figure


def _decays_with_saddles(results: xr.Dataset) -> np.ndarray:
    """Decays with several saddles, since one is not worth a panel; or, if there are none, with one.

    Of all critical points, one is the minimum.
    """
    theory = fields.of_theory(results, CriticalTheory)
    saddles = theory(lambda theory: theory.admissible).sum("set").values - 1
    decays = results["weight_decay"].values
    return _choose_panels(decays[saddles > 1] if np.any(saddles > 1) else decays[saddles > 0])


def _decay_title(decay: float) -> str:
    return "no decay" if decay == 0 else rf"$\lambda$ = {decay:g}"


def _choose_panels(values: np.ndarray) -> np.ndarray:
    """The first and the last values, if there are more than fit."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(PANELS, len(values))).round())
    return values[chosen.astype(int)]


def _plot_landscape(ax: Axes, case: xr.Dataset) -> None:
    theory, run = fields.of_theory(case, CriticalTheory), fields.of_run(case, CriticalMeasured)
    admissible = theory(lambda theory: theory.admissible).values == 1
    best = theory(lambda theory: theory.global_).values[admissible] == 1
    x = theory(lambda theory: theory.smallest).values[admissible]
    y = theory(lambda theory: theory.critical_loss).values[admissible]
    measured_x = run(lambda run: run.smallest).values[admissible]
    measured_y = run(lambda run: run.critical_loss).values[admissible]
    lowest = float(y[best].min())
    # Where a point has a direction of descent.
    ax.axvspan(-10, 0, color="#F2F2F2", lw=0, zorder=0)
    for chosen, color, label in (
        (~best, plotting.BLUE, "saddle"),
        (best, plotting.ORANGE, "minimum"),
    ):
        ax.plot(
            x[chosen],
            y[chosen] - lowest,
            ls="none",
            marker="o",
            ms=6,
            mfc="none",
            mec=color,
            mew=0.8,
            label=f"{label}, predicted",
            clip_on=False,
        )
        ax.plot(
            measured_x[chosen],
            measured_y[chosen] - lowest,
            ls="none",
            marker=".",
            ms=3,
            color=color,
            label=f"{label}, measured",
            clip_on=False,
            zorder=3,
        )
    values = theory(lambda theory: theory.target_values).values
    size, sets = float(values[0]), index_sets(int(np.isfinite(values).sum()), int(case["rank"]))
    for chosen, at, loss in zip(sets[admissible[: len(sets)]], x, y, strict=True):
        name = ",".join(str(i + 1) for i in chosen if i >= 0)
        ax.annotate(
            f"{{{name}}}" if name else r"$\emptyset$",
            (at, loss - lowest),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    ax.set_xlim(min(-1.1 * size, float(x.min()) - 0.1 * size), 0.25 * size)
    top = float(y.max()) - lowest
    ax.set_ylim(-0.05 * top, 1.05 * top)
    ax.set_xlabel("smallest eigenvalue of the Hessian")


def shrinkage_figure(groups: Mapping[str, Any]) -> Figure:
    """Draw singular values of the product against those of the target; a panel for each depth.

    Lines are the minimisers in closed form, circles where gradient descent ended; crosses ended in
    another basin (three layers and more).
    """
    results = groups["/"]
    depths = _choose_panels(results["depth"].values)
    figure, axes = plotting.panels([f"{depth} layers" for depth in depths], height=2.6)
    for ax, depth in zip(axes, depths, strict=True):
        _plot_shrinkage(ax, results.sel(depth=depth), int(depth))
        ax.set_xlabel(r"singular value of the target, $\sigma_i$")
    axes[0].set_ylabel("singular value of the product")
    if len(axes) > 1:
        axes[0].legend(loc="upper left", borderaxespad=0.3)
    marks = [
        plotting.entry("global minimiser"),
        plotting.entry("end of descent", **(plotting.OPEN | {"ms": 4})),
        plotting.entry("in another basin", **(plotting.OPEN | {"marker": "x", "ms": 5})),
    ]
    axes[-1].legend(handles=marks, loc="upper left", borderaxespad=0.3)
    return figure


def basins_figure(groups: Mapping[str, Any]) -> Figure | None:
    """Draw at which local minimum runs of three layers and more rest, by the scale of their start.

    A panel for each depth; the heights are shares of the random starts of one scale, of all seeds.
    Nothing without such runs.
    """
    if "/basins" not in groups:
        return None
    results = plotting.first_point(groups["/basins"], "depth", "seed")
    depths = _choose_panels(results["depth"].values)
    titles = [f"{depth} layers, {_decay_title(float(results['weight_decay']))}" for depth in depths]
    figure, axes = plotting.panels(titles, height=2.4)
    for ax, depth in zip(axes, depths, strict=True):
        _plot_shares(ax, results.sel(depth=depth), int(depth))
        ax.set_xlabel(r"scale of the start, in units of $\sigma_1^{1/L}$")
    axes[0].set_ylabel("share of the runs")
    axes[-1].legend(title="values kept", **plotting.BESIDE)
    return figure


def _plot_shares(ax: Axes, results: xr.Dataset, depth: int) -> None:
    theory, run = fields.of_theory(results, BasinsTheory), fields.of_run(results, BasinsMeasured)
    ends = run(lambda run: run.ends).transpose("seed", "start_scale", "start", "slot")
    gradients = run(lambda run: run.end_gradients).transpose(*ends.dims[:-1])
    sides = (
        theory(lambda theory: theory.target_values).transpose("seed", "target_index"),
        theory(lambda theory: theory.local_values).transpose("seed", "target_index"),
        ends,
        gradients,
    )
    arrays = zip(*(side.values for side in sides), strict=True)
    each = [
        modes_kept(sigma, local, values, slopes, depth, ends.dtype)
        for sigma, local, values, slopes in arrays
    ]
    # The seeds are so many starts more of one scale.
    modes, most = np.concatenate([q for q, _ in each], axis=1), max(most for _, most in each)
    below, place = np.zeros(len(modes)), np.arange(len(modes))
    labels = {**{q: f"{q}" for q in range(most + 1)}, -1: "still moving"}
    for q, label in labels.items():
        share = np.mean(modes == q, axis=1)
        if q < 0 and not share.any():
            continue
        color = "white" if q < 0 else (plotting.GREY, *plotting.BLUES[::-1])[min(q, 3)]
        ax.bar(place, share, 0.8, below, color=color, ec="black", lw=0.5, label=label)
        below += share
    ax.set_xticks(place, [f"{scale:g}" for scale in results["start_scale"].values])
    ax.set_ylim(0, 1)


def shrinkage_curve(decay: float, depth: int, largest: float) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of the target from which something is left on, and what is left of them.

    What is left, s, is stationary, ``sigma = s + lambda s^{2/L - 1}``, and costs less than 0 from
    ``s^{2 - 2/L} = lambda (L - 2)`` on: there the minimiser jumps.
    """
    jump = (decay * (depth - 2)) ** (depth / (2 * depth - 2))
    left = np.linspace(jump, max(jump, largest), 400)
    return left + decay * np.where(left > 0, left, 1.0) ** (2 / depth - 1), left


def _plot_shrinkage(ax: Axes, results: xr.Dataset, depth: int) -> None:
    values = fields.of_theory(results, DescentTheory)(lambda theory: theory.target_values)
    largest = float(values.max())
    colors = dict(zip(results["weight_decay"].values, plotting.SHADES * 9, strict=False))
    for decay, color in colors.items():
        sigma, left = shrinkage_curve(float(decay), depth, 1.08 * largest)
        # Below the threshold nothing is left; dotted: the jump of three layers and more.
        ax.plot([0, sigma[0]], [0, 0], color=color, lw=1.0)
        ax.plot(sigma[[0, 0]], [0, left[0]], color=color, lw=0.7, ls=":")
        ax.plot(sigma, left, color=color, lw=1.0, label=_decay_title(decay))
        runs = results.sel(weight_decay=decay)
        theory, run = fields.of_theory(runs, DescentTheory), fields.of_run(runs, DescentMeasured)
        x = theory(lambda theory: theory.target_values)
        x = x.isel(target_index=slice(runs.sizes["index"])).rename(target_index="index")
        ends = run(lambda run: run.singular_values).transpose(*x.dims)
        gaps = abs(ends - theory(lambda theory: theory.singular_values))
        # Another basin is off by a whole singular value; how precise a run is, claims judge.
        landed = gaps < 0.01 * largest
        for chosen, marker, size in ((landed, "o", 4), (~landed, "x", 5)):
            look = plotting.OPEN | {"marker": marker, "ms": size, "mec": color}
            ax.plot(
                x.where(chosen).values.ravel(),
                ends.where(chosen).values.ravel(),
                clip_on=False,
                zorder=3 + (marker == "x"),
                **look,
            )
    ax.set_xlim(0, 1.08 * largest)
    ax.set_ylim(-0.03 * largest, 1.08 * largest)
