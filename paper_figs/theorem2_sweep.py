"""Theorem 2 over depth, rank and init scale: how exact it is, and how fast and how low-rank."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lrdyn import effective_rank, spaced_singular_values
from lrdyn.drawing.exhibits import Figure, Results
from lrdyn.engine.runs import Run
from lrdyn.theorems.theorem2 import THEOREM2
from paper_figs.reach import MAP, REDUCED, map_of, map_run, ratio_map, reduced_curves, reduced_run
from paper_figs.reach_plots import depth_key, layout, plot_family, plot_maps

MAP_SCALES = [0.01, 0.03, 0.1, 0.3, 1.0]
SCALES = np.geomspace(0.1, 1.2, 40).round(4).tolist()
QUICK = {"map": {**MAP, "init_scales": MAP_SCALES}, "reduced": {**REDUCED, "init_scales": SCALES}}
PAPER = {
    **QUICK,
    "map": {
        **MAP, "dim": 30, "depths": [2, 3, 4, 6, 8], "steps": 500, "seeds": [0, 1, 2, 3],
        "init_scales": MAP_SCALES,
    },
}  # fmt: skip

CAPTION = """\
Theorem 2 over depth, rank and init scale. The survey has no such figure. (a-c) Largest residual
over tolerance of the claims of Theorem 2 (all of them, {seeds} seeds, d = {map_dim}, {map_steps}
steps, double precision): below 1 everywhere means that no claim could be told from true; largest:
{largest:.2f}. (d) Time eta t until ||f - Phi||_F <= {threshold:g} ||Phi||_F, for a rank-{rank}
target with singular values evenly spaced in [1/2, 1], d = {dim}, eta = {eta:g}; a curve ends where
{steps} steps do not suffice. A small start has to escape from the saddle at zero, the longer the
deeper the network; a large start has to wait for the d - 2r bulk singular values, whose product
decays like t^(-L/(2L - 2)), slower the deeper the network. (e) Effective rank (exponential of the
entropy of the singular values) of the product at eta t = {rank_at:g}; dotted: of the target. A
network that still waits at the saddle has {dim} equal singular values; one that left it lately has
learnt the larger ones first and has fewer than r; a large start keeps a bulk that counts. (d, e)
come from the reduced dynamics ({small} x {small} blocks and L scalars), at {recorded} recorded
times.
"""


THEOREM2_MAP = map_of(THEOREM2)


def sources(*, map: Mapping[str, Any], reduced: Mapping[str, Any]) -> dict[str, Run]:
    """Runs behind the maps and behind the curves.

    Args:
        map: settings of :func:`paper_figs.reach.map_run`.
        reduced: settings of :func:`paper_figs.reach.reduced_run`.

    Returns:
        The two runs.
    """
    return {"map": map_run(THEOREM2_MAP, **map), "reduced": reduced_run(**reduced)}


def numbers(results: Results, *, map: Mapping[str, Any], reduced: Mapping[str, Any]) -> xr.Dataset:
    """Numbers of the figure.

    Args:
        results: of both runs.
        map: settings of the maps.
        reduced: settings of the curves.

    Returns:
        ``ratio`` over rank, depth and init scale; times and effective ranks over depth and init
        scale.
    """
    ratio = ratio_map(THEOREM2, results["map"])
    curves = reduced_curves(results["reduced"], reduced)[["convergence_time", "effective_rank"]]
    return combine(ratio, curves).assign_attrs(summary(ratio, map, reduced))


def combine(ratio: xr.DataArray, runs: xr.Dataset) -> xr.Dataset:
    """Put maps and curves into one dataset, the maps with axes of their own.

    Args:
        ratio: residual over tolerance: its values are round-off and not compared.
        runs: curves.

    Returns:
        The dataset.
    """
    names = {"depth": "map_depth", "init_scale": "map_init_scale"}
    curves = {name: array.assign_attrs(curve_along="init_scale") for name, array in runs.items()}
    return xr.Dataset({"ratio": ratio.rename(names).assign_attrs(compare=0), **curves})


def summary(
    ratio: xr.DataArray, map: Mapping[str, Any], reduced: Mapping[str, Any]
) -> dict[str, Any]:
    """Numbers of the caption.

    Args:
        ratio: residual over tolerance.
        map: settings of the maps.
        reduced: settings of the curves.

    Returns:
        Attributes of the dataset.
    """
    return {
        "largest": float(ratio.max()),
        "seeds": len(map["seeds"]),
        "map_dim": map["dim"],
        "map_steps": map["steps"],
        "dim": reduced["dim"],
        "rank": reduced["rank"],
        "small": 2 * reduced["rank"],
        "eta": reduced["learning_rate"],
        "steps": reduced["steps"],
        "threshold": reduced["threshold"],
        "rank_at": reduced["rank_at"],
        "rank_of_target": float(effective_rank(spaced_singular_values(reduced["rank"]))),
        "recorded": len(np.unique(np.rint(np.geomspace(1, reduced["steps"], 400)))),
    }


def map_titles(dataset: xr.Dataset) -> Sequence[str]:
    """Titles of the maps.

    Args:
        dataset: numbers of the figure.

    Returns:
        One for each rank.
    """
    first, *rest = dataset["rank"].values
    return [f"residual / tolerance, r = {first}", *(f"r = {rank}" for rank in rest)]


def ratios(dataset: xr.Dataset) -> xr.DataArray:
    """The maps with their own names of axes.

    Args:
        dataset: numbers of the figure.

    Returns:
        ``ratio`` over rank, depth and init scale.
    """
    return dataset["ratio"].rename({"map_depth": "depth", "map_init_scale": "init_scale"})


def draw(dataset: xr.Dataset) -> Any:
    """Draw the figure.

    Args:
        dataset: numbers of the figure.

    Returns:
        The matplotlib figure.
    """
    titles = [*map_titles(dataset), r"convergence time $\eta t$", "effective rank"]
    figure, maps, (times, ranks) = layout(titles, dataset.sizes["rank"], 2)
    plot_maps(figure, maps, ratios(dataset))
    plot_family(times, dataset["convergence_time"], lw=1.0).set_yscale("log")
    plot_family(ranks, dataset["effective_rank"], lw=1.0)
    ranks.axhline(dataset.attrs["rank_of_target"], color="black", lw=0.7, ls=":")
    ranks.set_yscale("log")
    ranks.set_yticks([1, 2, 3, 5, 10, 30], ["1", "2", "3", "5", "10", "30"])
    ranks.minorticks_off()
    depth_key(times, dataset["depth"].values.tolist(), loc="lower right", ncols=2)
    return figure


FIGURE = Figure(
    name="theorem2",
    title="Theorem 2 over depth, rank and init scale",
    caption=CAPTION,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
)
