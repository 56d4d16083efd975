"""Corollary 1 over depth, rank and init scale: how exact it is, and what compression changes."""

from functools import partial
from typing import Any

import xarray as xr

from lrdyn.corollary1.statement import COROLLARY1
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure
from paper_figs import reach
from paper_figs.reach_plots import plot_family, plot_sweeps

CAPTION = """\
(a-c) Largest residual over tolerance of the claims of Corollary 1; at most {largest:.2f}. (d) Time
eta t until ||f - Phi||_F <= {threshold:g} ||Phi||_F of the full network (solid) and of the
compressed one with r^ = r (dashed), rank-{rank} target, d = {dim}. The escape from a small start
takes both as long (there only the solid curve is seen); after a large one the compressed network
has only r superfluous directions to wait for, the full one d - r. (e) Error ||f - f_C||_F when the
compressed network has converged (solid), and the bound sqrt(d - 2r) eps^L (dotted), which knows
nothing of the decay.
"""
NOTES = """\
The survey has no such figure. (a-c) The claims are error identity, bound where its condition holds,
its equality at t = 0, parameter count; r^ = r and r + 1; {seeds} seeds, d = {map_dim}, {map_steps}
steps, {precision}. (d) The target's singular values are evenly spaced in [1/2, 1], eta =
{eta:g}, at most {steps} steps. (d, e) come from the reduced dynamics ({small} x {small} blocks and
L scalars), at {recorded} recorded times.
"""
CURVES = ("convergence_time", "convergence_time_compressed", "error", "error_bound")


def draw(dataset: xr.Dataset) -> Any:
    """Draw the figure."""
    figure, times, errors = plot_sweeps(dataset, r"error $\Vert f - f_C \Vert_F$")
    plot_family(times, dataset["convergence_time_compressed"], lw=1.0, ls=plotting.DASHED)
    plot_family(errors, dataset["error"], lw=1.0)
    plot_family(errors, dataset["error_bound"], lw=0.8, ls=":")
    errors.set_yscale("log")
    return figure


FIGURE = Figure(
    name="corollary1",
    shows=("corollary1",),
    title="Corollary 1 over depth, rank and init scale",
    caption=CAPTION,
    notes=NOTES,
    sources=partial(reach.sources, reach.map_of(COROLLARY1)),
    numbers=partial(reach.numbers, COROLLARY1, CURVES),
    draw=draw,
    presets=reach.PRESETS,
    panels={
        "ratio": "abc",
        "convergence_time": "d",
        "convergence_time_compressed": "d",
        "error": "e",
        "error_bound": "e",
    },
)
