"""What Theorem 4 draws: two methods on one path, and the rank of what they add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from lrdyn.engine.claims import relative_difference
from lrdyn.figures import plotting

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
    with plotting.style():
        figure, (left, middle, right) = plotting.panels(titles, height=2.6)
        _plot_losses(left, data)
        _plot_gaps(middle, data, groups)
        _plot_sums(right, data.isel(optimizer=0))
    return figure


def _plot_losses(ax: Axes, data: xr.Dataset) -> None:
    names = data["optimizer"].values
    for start, (name, color) in enumerate(zip(names, plotting.SHADES, strict=False)):
        one = data.sel(optimizer=name)
        step, predicted, measured = (
            one[n].values for n in ("step", "training_loss_predicted", "training_loss_measured")
        )
        plotting.plot_compared(ax, step, predicted, measured, color=color, every=(2 * start, 6))
    for refresh in range(0, int(data["step"][-1]) + 1, int(data["period"])):
        ax.axvline(refresh, color="#D9D9D9", lw=0.4, zorder=0)
    ax.set(xlabel="step", ylabel="training loss", xlim=(0, data["step"][-1]))
    frozen = plotting.entry("ReLoRA, frozen factor", **plotting.OPEN)
    plotting.key(ax, [plotting.entry("GaLore"), frozen], "upper right")


def _plot_gaps(ax: Axes, data: xr.Dataset, groups: Mapping[str, xr.Dataset]) -> None:
    for name, color in zip(data["optimizer"].values, plotting.SHADES, strict=False):
        gaps = data["gap"].sel(optimizer=name)
        # An agreement to the last bit has no logarithm.
        ax.plot(gaps["step"], gaps.where(gaps > 0), color=color, lw=1.0, label=str(name))
    left = _left_by_controls(groups, str(data["gap"].dtype))
    if left:
        low, high = min(left), max(left)
        ax.axhspan(low, high, color=plotting.GREY, lw=0, alpha=0.35)
        text = f"controls: {low:.2f} to {high:.2f}"
        ax.annotate(text, (0.03, low), (0, -3), xycoords=("axes fraction", "data"),
                    textcoords="offset points", va="top", color=plotting.GREY)  # fmt: skip
    ax.legend(loc="center right")
    ax.set(yscale="log", xlabel="step", ylabel="gap / largest weight", ylim=(None, 3.0))
    ax.set_xlim(0, float(data["step"][-1]))


def _left_by_controls(groups: Mapping[str, xr.Dataset], precision: str) -> list[float]:
    """How far each control of the weights is off the path, for the seed where that is least."""
    controls = [
        data
        for name, data in groups.items()
        if name.startswith("/controls/") and name.endswith(f"/{precision}")
    ]
    return [_least_gap(data) for data in controls if data.attrs["claim"] == "weights"]


def _least_gap(data: xr.Dataset) -> float:
    one, other = (data[f"weights_{part}"] for part in ("predicted", "measured"))
    return min(
        relative_difference(one.sel(seed=seed).values, other.sel(seed=seed).values)
        for seed in data["seed"].values
    )


def _plot_sums(ax: Axes, data: xr.Dataset) -> None:
    rank, values = int(data["rank"]), data["sum_values"]
    for number, color in zip(range(values.sizes["refreshes"]), plotting.SHADES, strict=False):
        one = values.isel(refreshes=number).dropna("index").values
        index = np.arange(1, 1 + len(one))
        ax.plot(index, one / one[0], color=color, marker="o", ms=3, lw=0.8)
        edge = rank * (number + 1)
        ax.annotate(f"$K = {number + 1}$", (edge, one[edge - 1] / one[0]), (3, 3),
                    textcoords="offset points", color=color)  # fmt: skip
    ax.set_xticks(range(rank, values.sizes["index"] + 1, rank))
    ax.set(yscale="log", xlabel="index $i$", ylabel=r"$\sigma_i / \sigma_1$")
