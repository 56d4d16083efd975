"""How the figures of Theorem 2 and Corollary 1 draw their sweeps."""

from collections.abc import Sequence
from typing import Any

import xarray as xr

from lrdyn.drawing import plotting

COLORS = (plotting.BLUE, plotting.ORANGE, plotting.GREEN, plotting.PINK)
"""One for each depth."""


def layout(titles: Sequence[str], maps: int, below: int) -> tuple[Any, list[Any], list[Any]]:
    """Make a figure with a row of maps above a row of curves, each panel with its letter.

    Args:
        titles: of the maps, then of the curves.
        maps: number of maps.
        below: number of panels with curves.

    Returns:
        The figure, the axes of the maps and those of the curves.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(plotting.TEXT_WIDTH, 4.3), layout="constrained")
    rows: Any = figure.subfigures(2, 1, height_ratios=(1, 1.35))
    upper, lower = rows
    top, bottom = list(upper.subplots(1, maps, sharey=True)), list(lower.subplots(1, below))
    for letter, title, ax in zip("abcdefgh", titles, top + bottom, strict=False):
        ax.set_title(f"({letter}) {title}")
    return figure, top, bottom


def plot_maps(figure: Any, axes: Sequence[Any], ratio: xr.DataArray) -> None:
    """Draw residual / tolerance over depth and init scale, one panel for each rank.

    Args:
        figure: the figure.
        axes: one for each rank.
        ratio: values ``(rank, depth, init_scale)``.
    """
    from matplotlib.colors import LogNorm

    scales, depths = ratio["init_scale"].values, ratio["depth"].values
    images = []
    for ax, rank in zip(axes, ratio["rank"].values, strict=True):
        image = ax.imshow(
            ratio.sel(rank=rank).clip(min=1e-3).values, origin="lower", aspect="auto",
            cmap="cividis", norm=LogNorm(1e-3, 1.0),
        )  # fmt: skip
        images.append(image)
        ax.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        ax.set_yticks(range(len(depths)), [str(depth) for depth in depths])
        ax.set_xlabel(r"init scale $\varepsilon$")
    axes[0].set_ylabel("depth L")
    figure.colorbar(images[0], ax=list(axes), shrink=0.95, pad=0.02)


def plot_family(ax: Any, data: xr.DataArray, **look: Any) -> Any:
    """Draw one curve for each depth over the init scale.

    Args:
        ax: where to draw.
        data: values ``(depth, init_scale)``.
        **look: of the lines.

    Returns:
        ``ax``.
    """
    for color, depth in zip(COLORS, data["depth"].values, strict=True):
        ax.plot(data["init_scale"].values, data.sel(depth=depth).values, color=color, **look)
    ax.set(xscale="log", xlabel=r"init scale $\varepsilon$")
    ax.set_xlim(float(data["init_scale"].min()), float(data["init_scale"].max()))
    ax.set_xticks([0.1, 0.3, 1.0], ["0.1", "0.3", "1"])
    ax.minorticks_off()
    return ax


def depth_key(ax: Any, depths: Sequence[int], **place: Any) -> Any:
    """Explain the colours.

    Args:
        ax: where to draw.
        depths: the depths.
        **place: where the legend goes.

    Returns:
        ``ax``.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, lw=1.0, label=f"L = {depth}")
        for color, depth in zip(COLORS, depths, strict=False)
    ]
    ax.legend(handles=handles, **place)
    return ax
