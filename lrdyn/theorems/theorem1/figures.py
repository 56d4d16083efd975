"""Figures of Theorem 1: the critical points, and what is left of the singular values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from lrdyn.landscape import index_sets
from lrdyn.shrinkage import shrink
from lrdyn.theorems.theorem1.minimisers import FLAGS

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 3
"""Most panels of a figure."""


def landscape_figure(groups: Mapping[str, Any]) -> Figure | None:
    """Draw all critical points: loss above the minimum against the smallest Hessian eigenvalue.

    Circles are the closed form, dots what JAX finds at the same points, labels the sets S; a panel
    for each decay.

    Args:
        groups: content of ``results.nc``.

    Returns:
        The figure; None if no decay leaves a saddle.
    """
    from lrdyn.drawing import plotting

    results = groups["/critical_points"]
    one = results.isel({name: 0 for name in results.dims if name in _SWEPT - {"weight_decay"}})
    decays = _with_saddles(one)
    if not len(decays):
        return None
    with plotting.style():
        titles = [_decay_title(decay) for decay in decays]
        figure, axes = plotting.panels(titles, height=3.0)
        for ax, decay in zip(axes, decays, strict=True):
            _landscape(ax, one.sel(weight_decay=decay))
        axes[0].set_ylabel("loss above the minimum")
        axes[0].legend(loc="lower left", handletextpad=0.2, borderaxespad=0.3)
    return figure


def _with_saddles(results: xr.Dataset) -> np.ndarray:
    """Decays with several saddles, since one is not worth a panel; or, if there are none, with one.

    Of all critical points, one is the minimum.
    """
    saddles = results["admissible"].sum("set").values - 1
    decays = results["weight_decay"].values
    return _first(decays[saddles > 1] if np.any(saddles > 1) else decays[saddles > 0])


_SWEPT = {"seed"} | {flag.name for flag in FLAGS if flag.swept}


def _decay_title(decay: float) -> str:
    return "no decay" if decay == 0 else rf"$\lambda$ = {decay:g}"


def _first(values: np.ndarray) -> np.ndarray:
    """The first and the last values, if there are more than fit."""
    chosen = np.unique(np.linspace(0, len(values) - 1, min(PANELS, len(values))).round())
    return values[chosen.astype(int)]


def _landscape(ax: Axes, case: xr.Dataset) -> None:
    from lrdyn.drawing import plotting

    there = case["admissible"].values == 1
    x, y = (
        {part: case[f"{name}_{part}"].values[there] for part in ("predicted", "measured")}
        for name in ("smallest", "critical_loss")
    )
    best = case["global"].values[there] == 1
    lowest = float(y["predicted"][best].min())
    ax.axvspan(-10, 0, color="#F2F2F2", lw=0, zorder=0)
    for chosen, color, label in (
        (~best, plotting.BLUE, "saddle"),
        (best, plotting.ORANGE, "minimum"),
    ):
        ax.plot(
            x["predicted"][chosen], y["predicted"][chosen] - lowest, ls="none", marker="o", ms=6,
            mfc="none", mec=color, mew=0.8, label=f"{label}, predicted", clip_on=False,
        )  # fmt: skip
        ax.plot(
            x["measured"][chosen], y["measured"][chosen] - lowest, ls="none", marker=".", ms=3,
            color=color, label=f"{label}, measured", clip_on=False, zorder=3,
        )  # fmt: skip
    values = case["target_values"].values
    size, sets = float(values[0]), index_sets(int(np.isfinite(values).sum()), int(case["rank"]))
    for chosen, *place in zip(
        sets[there[: len(sets)]], x["predicted"], y["predicted"], strict=True
    ):
        name = ",".join(str(i + 1) for i in chosen if i >= 0)
        ax.annotate(
            f"{{{name}}}" if name else r"$\emptyset$", (place[0], place[1] - lowest), (5, 0),
            textcoords="offset points", va="center", fontsize=6,
        )  # fmt: skip
    ax.set_xlim(min(-1.1 * size, float(x["predicted"].min()) - 0.1 * size), 0.25 * size)
    top = float(y["predicted"].max()) - lowest
    ax.set_ylim(-0.05 * top, 1.05 * top)
    ax.set_xlabel("smallest eigenvalue of the Hessian")


def shrinkage_figure(groups: Mapping[str, Any]) -> Figure:
    """Draw singular values of the product against those of the target; a panel for each depth.

    Lines are the minimisers in closed form, circles where gradient descent ended; crosses ended in
    another basin (three layers and more).

    Args:
        groups: content of ``results.nc``.

    Returns:
        The figure.
    """
    from lrdyn.drawing import plotting

    results = groups["/"]
    depths = _first(results["depth"].values)
    with plotting.style():
        figure, axes = plotting.panels([f"{depth} layers" for depth in depths], height=2.6)
        for ax, depth in zip(axes, depths, strict=True):
            _shrinkage(ax, results.sel(depth=depth), int(depth))
            ax.set_xlabel(r"singular value of the target, $\sigma_i$")
        axes[0].set_ylabel("singular value of the product")
        if len(axes) > 1:
            axes[0].legend(loc="upper left", borderaxespad=0.3)
        axes[-1].legend(handles=_marks(), loc="upper left", borderaxespad=0.3)
    return figure


def _marks() -> list[Any]:
    from matplotlib.lines import Line2D

    from lrdyn.drawing import plotting

    style = {"ls": "none", "mfc": "white", "mec": plotting.GREY, "mew": 0.8}
    return [
        Line2D([], [], color=plotting.GREY, lw=1.0, label="global minimiser"),
        Line2D([], [], marker="o", ms=4, label="end of descent", **style),
        Line2D([], [], marker="x", ms=5, label="in another basin", **style),
    ]


def _shrinkage(ax: Axes, results: xr.Dataset, depth: int) -> None:
    from lrdyn.drawing import plotting

    largest = float(results["target_values"].max())
    grid = np.linspace(0, 1.08 * largest, 400)
    colors = dict(zip(results["weight_decay"].values, plotting.SHADES * 9, strict=False))
    for decay, color in colors.items():
        curve = np.array(shrink(jnp.asarray(grid), float(decay), depth))
        (jumps,) = np.nonzero(np.diff(curve) > 0.05 * largest)
        for jump in jumps:
            ax.plot(grid[[jump, jump]], curve[jump : jump + 2], color=color, lw=0.7, ls=":")
            curve[jump] = np.nan
        ax.plot(grid, curve, color=color, lw=1.0, label=_decay_title(decay))
        runs = results.sel(weight_decay=decay)
        kept = runs.sizes["index"]
        x = runs["target_values"].isel(target_index=slice(kept)).rename(target_index="index")
        found = runs["singular_values_measured"].transpose(*x.dims)
        landed = abs(found - runs["singular_values_predicted"]) < 0.01 * largest
        for chosen, marker, size in ((landed, "o", 4), (~landed, "x", 5)):
            ax.plot(
                x.where(chosen).values.ravel(), found.where(chosen).values.ravel(),
                ls="none", marker=marker, ms=size, mfc="white", mec=color, mew=0.8,
                clip_on=False, zorder=3 + (marker == "x"),
            )  # fmt: skip
    ax.set_xlim(0, 1.08 * largest)
    ax.set_ylim(-0.03 * largest, 1.08 * largest)
