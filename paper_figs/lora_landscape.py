"""Which rank LoRA's landscape needs (ours): two counts, and the rank of the convex minimiser."""

import json
from collections.abc import Mapping
from typing import Any

import xarray as xr

from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.lora_landscape import LORA_LANDSCAPE
from lrdyn.studies.lora_landscape.figures import (
    phase_entries,
    phase_numbers,
    plot_above,
    plot_phase,
)
from lrdyn.studies.lora_landscape.phase import CLASSES, GAUSSIAN, RECTANGULAR, UNREGULARISED
from lrdyn.verification.running.configuration import Run, run_of

CAPTION = """\
Ends of descent on LoRA of a linearised model, F = f(U V^T) + lambda/2 (|U|^2 + |V|^2), m = n =
{rows}, Gaussian, {seeds} problems a cell, {starts} starts each. (a-c) White: every end is certified
as a global minimum over all ranks; grey: in no problem all are. Dots: problems with a numerically
spurious end. Lines: both counts; circles: rank r* of the convex minimiser. (d) Share of problems
with a spurious end over r - r*, 95 % intervals (Clopper-Pearson). At r = r*: {at}; at r* + 1:
{above}.
"""
NOTES = """\
The survey has no such figure ({dtype}). Certified: a duality gap below 1.5e-8 of F at 0, which
needs no convergence. Numerically spurious: of second order to 1.5e-8 modulo gauge, not certified
and 1.5e-5 of F at 0 above a value found at that rank or below. Grey cells below r* have no
certificate for their best end either. Without decay every matrix that fits is a minimum, and there
is no r*. One draw serves every lambda. n = 2 m and the cross-entropy (three classes, N K
equations): one lambda, {largest:g}.
"""
NAMES = {GAUSSIAN: "", RECTANGULAR: "n = 2m, ", CLASSES: "cross-entropy, "}


def sources(**settings: Any) -> Mapping[str, Run]:
    """The study whose results the figure shows."""
    return {LORA_LANDSCAPE.name: run_of(LORA_LANDSCAPE, **settings)}


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Diagrams of square problems without decay and with the least and the largest; shares."""
    groups = results[LORA_LANDSCAPE.name]
    config = json.loads(groups["/"].attrs["config"])
    square = phase_numbers(groups[f"/{GAUSSIAN}"])
    free = phase_numbers(groups[f"/{UNREGULARISED}"])
    chosen = list(dict.fromkeys((0, square.sizes["decay"] - 1)))
    diagrams = xr.concat(
        [free, square.isel(decay=chosen)], "decay", data_vars="all", combine_attrs="drop"
    )[["certified", "spurious", "convex_rank"]]
    series = {}
    for name, words in NAMES.items():
        if (group := groups.get(f"/{name}")) is not None:
            table = phase_numbers(group)
            for place, decay in enumerate(table.decay.values):
                label = f"{words}λ = {decay:g}"
                series[label] = table.isel(decay=place, drop=True)[["problems", "hits", "interval"]]
    shares = xr.concat(list(series.values()), "series").assign_coords(series=list(series))
    return xr.merge([diagrams, shares]).assign_attrs(
        rows=square.attrs["rows"],
        cols=square.attrs["cols"],
        seeds=square.attrs["seeds"],
        starts=config["starts"],
        dtype=config["dtype"],
        largest=max(config["weight_decay"]),
    )


def says(dataset: xr.Dataset) -> dict[str, Any]:
    """Counts that the caption quotes, over all lambda > 0 and kinds of problems."""

    def counted(places: xr.Dataset) -> str:
        return f"{int(places.hits.sum())} of {int(places.problems.sum())}"

    return {"at": counted(dataset.sel(above=0)), "above": counted(dataset.sel(above=1))}


def draw(dataset: xr.Dataset) -> Any:
    """Draw the figure."""
    decays = dataset.decay.values
    titles = [rf"$\lambda$ = {decay:g}" for decay in decays]
    figure, axes = plotting.panels(
        [*titles, "share of problems with spurious ends"], rows=2, height=4.9
    )
    for place, ax in enumerate(axes[:-1]):
        plot_phase(ax, dataset.isel(decay=place))
        ax.set_ylabel("rank r")
    series = {str(name): dataset.sel(series=name) for name in dataset.series.values}
    colors = dict(
        zip(series, (plotting.PINK, plotting.GREY, plotting.ORANGE, *OTHERS), strict=False)
    )
    plot_above(axes[-1], series, colors)
    plotting.key(axes[-1], None, "upper right", fontsize=7)
    entries = phase_entries()
    return plotting.common_key(figure, entries, serves=[(entries, axes[:-1])], fontsize=7)


OTHERS = (plotting.BLUE, plotting.GREEN)
"""Colours of the problems of other shapes and losses."""

FIGURE = Figure(
    name="lora_landscape",
    shows=(LORA_LANDSCAPE.name,),
    title="Which rank LoRA's landscape needs",
    caption=CAPTION,
    notes=NOTES,
    sources=sources,
    numbers=numbers,
    draw=draw,
    says=says,
    presets={"quick": {"preset": "quick"}, "paper": {"preset": "paper"}},
    long=True,
    turn=1,
    panels={
        **dict.fromkeys(("certified", "spurious"), "abc"),
        "convex_rank": "bc",
        **dict.fromkeys(("hits", "problems", "interval"), "d"),
    },
)
