"""Corollary 1 over depth, rank and init scale: how exact it is, and what compression changes."""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from lrdyn.drawing.exhibits import Figure, Results
from lrdyn.engine.runs import Run
from lrdyn.theorems.corollary1 import COROLLARY1
from paper_figs import theorem2_sweep
from paper_figs.reach import map_of, map_run, ratio_map, reduced_curves, reduced_run
from paper_figs.reach_plots import depth_key, layout, plot_family, plot_maps
from paper_figs.theorem2_sweep import combine, map_titles, ratios, summary

CAPTION = """\
Corollary 1 over depth, rank and init scale. The survey has no such figure. (a-c) Largest residual
over tolerance of the claims of Corollary 1 (error identity, bound where its condition holds,
parameter count; r^ = r and r + 1; {seeds} seeds, d = {map_dim}, {map_steps} steps, double
precision); largest: {largest:.2f}. (d) Time eta t until ||f - Phi||_F <= {threshold:g} ||Phi||_F of
the full network (solid) and of the compressed one with r^ = r (dashed): rank-{rank} target with
singular values evenly spaced in [1/2, 1], d = {dim}, eta = {eta:g}, at most {steps} steps. The
escape from a small start takes both as long (where only the solid curve is seen they agree);
after a large one the compressed network has only r superfluous directions to wait for, the full one
d - r. (e) Error ||f - f_C||_F when the compressed network has converged (solid), and the bound
sqrt(d - 2r) eps^L (dotted), which knows nothing of the decay. (d, e) come from the reduced dynamics
({small} x {small} blocks and L scalars), at {recorded} recorded times.
"""


COROLLARY1_MAP = map_of(COROLLARY1)


def sources(*, map: Mapping[str, Any], reduced: Mapping[str, Any]) -> dict[str, Run]:
    """Runs behind the maps and behind the curves, which are those of Theorem 2.

    Args:
        map: settings of :func:`paper_figs.reach.map_run`.
        reduced: settings of :func:`paper_figs.reach.reduced_run`.

    Returns:
        The two runs.
    """
    return {"map": map_run(COROLLARY1_MAP, **map), "reduced": reduced_run(**reduced)}


def numbers(results: Results, *, map: Mapping[str, Any], reduced: Mapping[str, Any]) -> xr.Dataset:
    """Numbers of the figure.

    Args:
        results: of both runs.
        map: settings of the maps.
        reduced: settings of the curves.

    Returns:
        ``ratio`` over rank, depth and init scale; times and errors over depth and init scale.
    """
    ratio = ratio_map(COROLLARY1, results["map"])
    curves = reduced_curves(results["reduced"], reduced).drop_vars("effective_rank")
    return combine(ratio, curves).assign_attrs(summary(ratio, map, reduced))


def draw(dataset: xr.Dataset) -> Any:
    """Draw the figure.

    Args:
        dataset: numbers of the figure.

    Returns:
        The matplotlib figure.
    """
    titles = [*map_titles(dataset), r"convergence time $\eta t$", r"error $\Vert f - f_C \Vert_F$"]
    figure, maps, (times, errors) = layout(titles, dataset.sizes["rank"], 2)
    plot_maps(figure, maps, ratios(dataset))
    plot_family(times, dataset["convergence_time"], lw=1.0)
    plot_family(times, dataset["convergence_time_compressed"], lw=1.0, ls=(0, (4, 1.5)))
    times.set_yscale("log")
    plot_family(errors, dataset["error"], lw=1.0)
    plot_family(errors, dataset["error_bound"], lw=0.8, ls=":")
    errors.set_yscale("log")
    depth_key(times, dataset["depth"].values.tolist(), loc="lower right", ncols=2)
    return figure


FIGURE = Figure(
    name="corollary1",
    title="Corollary 1 over depth, rank and init scale",
    caption=CAPTION,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets=theorem2_sweep.FIGURE.presets,
)
