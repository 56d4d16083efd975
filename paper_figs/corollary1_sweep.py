"""Corollary 1 over depth, rank and init scale: how exact it is, and what compression changes."""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from lrdyn.figures import Figure
from lrdyn.theorems.corollary1 import COROLLARY1
from paper_figs import theorem2_sweep
from paper_figs.reach import depth_key, layout, plot_family, plot_maps, ratio_map, reduced_sweep
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


def compute(*, map: Mapping[str, Any], reduced: Mapping[str, Any]) -> xr.Dataset:
    """Numbers of the figure.

    Args:
        map: settings of :func:`paper_figs.reach.ratio_map`.
        reduced: settings of :func:`paper_figs.reach.reduced_sweep`.

    Returns:
        ``ratio`` over rank, depth and init scale; times and errors over depth and init scale.
    """
    ratio = ratio_map(COROLLARY1, **map)
    runs = reduced_sweep(**reduced).drop_vars("effective_rank")
    return combine(ratio, runs).assign_attrs(summary(ratio, map, reduced))


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
    compute=compute,
    draw=draw,
    presets=theorem2_sweep.FIGURE.presets,
)
