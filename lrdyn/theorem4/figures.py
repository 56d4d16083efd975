"""What Theorem 4 draws: two methods on one path, and the rank of what they add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lrdyn.figures import plotting
from lrdyn.theorem4.trajectory_claims import TrajectoryMeasured, TrajectoryTheory
from lrdyn.verification.stating.claims import relative_difference
from lrdyn.verification.stating.fields import of_run, of_theory

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_paths(groups: Mapping[str, xr.Dataset]) -> Figure:
    """Draw the loss of both methods, the gap between them, and the rank of what they added.

    All flags but the optimiser have their first values.
    """
    data = plotting.first_point(groups["/"], "optimizer")
    titles = ["two methods, one path", "their distance", "$W(t) - W(0)$, $K$ refreshes"]
    figure, (left, middle, right) = plotting.panels(titles, height=2.6)
    _plot_losses(left, data)
    _plot_gaps(middle, data, groups)
    _plot_sums(right, data.isel(optimizer=0))
    return figure


def _plot_losses(ax: Axes, data: xr.Dataset) -> None:
    theory, run = of_theory(data, TrajectoryTheory), of_run(data, TrajectoryMeasured)
    steps = run(lambda run: run.step)
    predicted = theory(lambda theory: theory.training_loss)
    measured = run(lambda run: run.training_loss)
    names = data["optimizer"].values
    for start, (name, color) in enumerate(zip(names, plotting.SHADES, strict=False)):
        curves = (array.sel(optimizer=name).values for array in (predicted, measured))
        plotting.plot_compared(ax, steps.values, *curves, color=color, every=(2 * start, 6))
    for refresh in range(0, int(steps[-1]) + 1, int(data["period"])):
        ax.axvline(refresh, color="#D9D9D9", lw=0.5, zorder=0)
    ax.set(xlabel="step", ylabel="training loss", xlim=(0, steps[-1]))
    frozen = plotting.entry("ReLoRA, frozen factor", **plotting.OPEN)
    plotting.key(ax, [plotting.entry("GaLore"), frozen], "upper right")


def _plot_gaps(ax: Axes, data: xr.Dataset, groups: Mapping[str, xr.Dataset]) -> None:
    gaps = of_run(data, TrajectoryMeasured)(lambda run: run.gap)
    for name, color in zip(data["optimizer"].values, plotting.SHADES, strict=False):
        gap = gaps.sel(optimizer=name)
        # An agreement to the last bit has no logarithm.
        ax.plot(gap["step"], gap.where(gap > 0), color=color, lw=1.0, label=str(name))
    controls = [
        control
        for name, control in groups.items()
        if name.startswith("/controls/") and name.endswith(f"/{gaps.dtype}")
    ]
    distances = [_least_gap(control) for control in controls if control.attrs["claim"] == "weights"]
    if distances:
        low, high = min(distances), max(distances)
        ax.axhspan(low, high, color=plotting.GREY, lw=0, alpha=0.35)
        ax.annotate(
            f"controls: {low:.2f} to {high:.2f}",
            (0.03, low),
            (0, -3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="top",
            color=plotting.GREY,
        )
    ax.legend(loc="center right")
    ax.set(yscale="log", xlabel="step", ylabel="gap / largest weight", ylim=(None, 3.0))
    ax.set_xlim(0, float(gaps["step"][-1]))


def _least_gap(control: xr.Dataset) -> float:
    """How far a control is off the path, for the seed where that is least."""
    predicted = of_theory(control, TrajectoryTheory)(lambda theory: theory.weights)
    measured = of_run(control, TrajectoryMeasured)(lambda run: run.weights)
    return min(
        relative_difference(predicted.sel(seed=seed).values, measured.sel(seed=seed).values)
        for seed in control["seed"].values
    )


def _plot_sums(ax: Axes, data: xr.Dataset) -> None:
    rank = int(data["rank"])
    sums = of_run(data, TrajectoryMeasured)(lambda run: run.sum_values)
    for number, color in zip(range(sums.sizes["refreshes"]), plotting.SHADES, strict=False):
        values = sums.isel(refreshes=number).dropna("index").values
        index = np.arange(1, 1 + len(values))
        ax.plot(index, values / values[0], color=color, marker="o", ms=3, lw=0.8)
        edge = rank * (number + 1)
        ax.annotate(
            f"$K = {number + 1}$",
            (edge, values[edge - 1] / values[0]),
            (3, 3),
            textcoords="offset points",
            color=plotting.ink(color),
        )
    ax.set_xticks(range(rank, sums.sizes["index"] + 1, rank))
    ax.set(yscale="log", xlabel="index $i$", ylabel=r"$\sigma_i / \sigma_1$")
