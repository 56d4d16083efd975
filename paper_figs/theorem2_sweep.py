"""Theorem 2 over depth, rank and init scale: how exact it is, and how fast and how low-rank."""

from functools import partial
from typing import Any

import xarray as xr

from lrdyn.figures.exhibits import Figure
from lrdyn.theorem2.statement import THEOREM2
from paper_figs import reach
from paper_figs.reach_plots import plot_family, plot_sweeps

CAPTION = """\
(a-c) Largest residual over tolerance of the claims of Theorem 2 (all of them): at most
{largest:.2f}. (d) Time eta t until ||f - Phi||_F <= {threshold:g} ||Phi||_F, rank-{rank}
target, d = {dim}; a curve ends where {steps} steps do not suffice. A small start has to escape from
the saddle at zero, a large one to wait for the d - 2r bulk singular values. (e) Effective rank of
the product at eta t = {rank_at:g}; dotted: of the target. A network that still waits at the saddle
has {dim} equal singular values; one that left it lately has learnt the larger ones first and has
fewer than r; a large start keeps a bulk that counts.
"""
NOTES = """\
The survey has no such figure. (a-c) {seeds} seeds, d = {map_dim}, {map_steps} steps, {precision}:
below 1 means that no claim could be told from true. (d) The target's singular values are evenly
spaced in [1/2, 1], eta = {eta:g}. The escape takes the longer the deeper the network; the product
of the bulk values decays like t^(-L/(2L - 2)), slower the deeper the network. (e) The effective
rank is the exponential of the entropy of the singular values. (d, e) come from the reduced dynamics
({small} x {small} blocks and L scalars), at {recorded} recorded times.
"""
THEOREM2_MAP = reach.map_of(THEOREM2)


def draw(dataset: xr.Dataset) -> Any:
    """Draw the figure."""
    figure, _, ranks = plot_sweeps(dataset, "effective rank")
    plot_family(ranks, dataset["effective_rank"], lw=1.0)
    ranks.axhline(dataset.attrs["rank_of_target"], color="black", lw=0.7, ls=":")
    ranks.set_yscale("log")
    ranks.set_yticks([1, 2, 3, 5, 10, 30], ["1", "2", "3", "5", "10", "30"])
    ranks.minorticks_off()
    return figure


FIGURE = Figure(
    name="theorem2",
    shows=("theorem2",),
    title="Theorem 2 over depth, rank and init scale",
    caption=CAPTION,
    notes=NOTES,
    sources=partial(reach.sources, THEOREM2_MAP),
    numbers=partial(reach.numbers, THEOREM2, ("convergence_time", "effective_rank")),
    draw=draw,
    presets=reach.PRESETS,
    panels={"ratio": "abc", "convergence_time": "d", "effective_rank": "e"},
)
