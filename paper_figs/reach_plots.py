"""How the figures of Theorem 2 and Corollary 1 draw their sweeps: maps above two panels of curves.

The first panel of curves has the convergence times of the full network, in one colour each depth.
"""

from collections.abc import Sequence
from typing import Any

import xarray as xr

from lrdyn.figures import plotting


def plot_sweeps(dataset: xr.Dataset, title: str) -> tuple[Any, Any, Any]:
    """Draw all but the second panel of curves, which gets its title; the figure and both panels."""
    figure = plotting.blank_figure(4.3)
    ranks = dataset["rank"].values
    grid = figure.add_gridspec(2, 1, height_ratios=(1, 1.35))
    above, below = (grid[row].subgridspec(1, n) for row, n in ((0, len(ranks)), (1, 2)))
    maps: Any = above.subplots(sharey=True)
    pair: Any = below.subplots()
    times, other = pair
    titles = [f"residual / tolerance, r = {rank}" for rank in ranks]
    titles += [r"convergence time $\eta t$", title]
    plotting.entitle([*maps, times, other], titles)
    plot_maps(figure, maps, dataset["ratio"])
    plot_family(times, dataset["convergence_time"], lw=1.0).set_yscale("log")
    depths = zip(plotting.SHADES, dataset["depth"].values, strict=False)
    entries = [plotting.entry(f"L = {depth}", color) for color, depth in depths]
    plotting.key(times, entries, "lower right", serves=[other], ncols=2)
    return figure, times, other


def plot_maps(figure: Any, axes: Sequence[Any], ratio: xr.DataArray) -> None:
    """Draw residual / tolerance over depth and init scale, one panel for each rank."""
    from matplotlib.colors import LogNorm

    scales, depths = ratio["map_init_scale"].values, ratio["map_depth"].values
    look = {"origin": "lower", "aspect": "auto", "cmap": "cividis", "norm": LogNorm(1e-3, 1.0)}
    images = []
    for ax, rank in zip(axes, ratio["rank"].values, strict=True):
        images.append(ax.imshow(ratio.sel(rank=rank).clip(min=1e-3).values, **look))
        ax.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        ax.set_yticks(range(len(depths)), [str(depth) for depth in depths])
        ax.set_xlabel(r"init scale $\varepsilon$")
    plotting.label_once(axes, "depth L")
    figure.colorbar(images[0], ax=list(axes), shrink=0.95, pad=0.02)


def plot_family(ax: Any, data: xr.DataArray, **look: Any) -> Any:
    """Draw one curve for each depth over the init scale."""
    for color, depth in zip(plotting.SHADES, data["depth"].values, strict=False):
        ax.plot(data["init_scale"].values, data.sel(depth=depth).values, color=color, **look)
    ax.set(xscale="log", xlabel=r"init scale $\varepsilon$")
    ax.set_xlim(float(data["init_scale"].min()), float(data["init_scale"].max()))
    ax.set_xticks([0.1, 0.3, 1.0], ["0.1", "0.3", "1"])
    ax.xaxis.minorticks_off()
    return ax
