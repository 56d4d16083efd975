"""Figure 8: the rank that an adapter may have, at one rate for all and at the best of each."""

from typing import Any

import numpy as np
import xarray as xr

from lrdyn.engine import fields
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.ranks import KINDS, PUBLISHED, RanksMeasured
from paper_figs import paired
from paper_figs.paired import TASKS, TITLES
from paper_figs.shared import counted, judged

TOLERANCES = {"pearson": 0.05, "used": 0.05}
"""Differences to another training in float32, on another machine or with other kernels."""

CAPTION = """\
The survey's own Figure 8 was not available: this one is ours. {what}, {seeds}, {dtype}. Pearson
correlation over the rank r, mean and standard error, (a), (b) at the rate that is best at each r,
(c), (d) all at the one that is best at r = {first}; n = {counts}. {authors}(e) From the smallest r
to the largest: seeds, mean, simultaneous 95 % interval ({pairs} by Bonferroni). Largest of the p
after Holm below .05: {told}. The seeds would show {least}.
"""
NOTES = """\
The column r = {first} is that of Figure 7, the same trainings, where both are drawn from one task.
How: {how}
"""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Pearson over seed, method, examples, rank and rate, and the rank that is used."""
    groups = results[ADAPTERS.name]
    whole = groups["/ranks"]
    task = str(np.ravel(whole["task"].values)[0])
    if "task" in whole.dims:
        whole = whole.isel(task=0)
    axes = ("seed", "method", "examples", "rank", "kind_of_rate", "matrix")
    plain = paired.plain(judged(whole), *axes)
    if "examples" not in plain.dims:
        plain = plain.expand_dims(examples=np.ravel(whole["examples"].values)[:1])
    first = plain.isel(examples=0) if "examples" in plain["method"].dims else plain
    plain = plain.assign(
        {n: first[n] for n in ("method", "rank") if n in plain and "examples" in plain[n].dims}
    )
    run = fields.of_run(paired.named(plain), RanksMeasured)
    drawn = xr.Dataset({"pearson": run(lambda run: run.pearson)}).astype(float)
    drawn["used"] = run(lambda run: run.energy_rank).mean(("seed", "matrix")).astype(float)
    drawn = drawn.assign_coords(kind_of_rate=list(KINDS)).sortby("rank")
    bracketed = bool(run(lambda run: run.bracketed).values.all())
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    ranks = np.ravel(run(lambda run: run.rank).values)
    return drawn.assign_attrs(paired.how(groups, task, bracketed) | {"first": int(ranks[0])})


def changes(drawn: xr.Dataset) -> dict[str, np.ndarray]:
    """Pearson at the largest rank less that at the smallest, of the same seed."""
    words = {"own": "own rates", "first": "one rate"}
    ends = drawn.pearson.isel(rank=-1) - drawn.pearson.isel(rank=0)
    return {
        f"{TITLES[name]}, {words[kind]}, n = {int(n)}": ends.sel(
            adapter=name, kind_of_rate=kind, examples=n
        ).values
        for n in drawn.examples.values
        for name in drawn.adapter.values
        for kind in KINDS
    }


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """What the caption says of the results."""
    several = drawn.sizes["seed"] > 1 and drawn.sizes["rank"] > 1
    comparisons = paired.compared(changes(drawn)) if several else []
    distinguished = [str(comparison) for comparison in comparisons if comparison.p < 0.05]
    return {
        "what": TASKS[drawn.attrs["task"]].capitalize(),
        "seeds": counted(drawn.sizes["seed"]),
        "counts": ", ".join(f"{int(n)}" for n in drawn.examples.values),
        "authors": (
            "Open circles: the authors' numbers for bert-base-cased, 200 steps. "
            if drawn.attrs["task"] == "similarity"
            else ""
        ),
        "pairs": f"{len(comparisons)} changes" if comparisons else "no change",
        "told": "; ".join(distinguished) or "none",
        "least": (
            f"a change of {min(comparison.least for comparison in comparisons):.3f} to "
            f"{max(comparison.least for comparison in comparisons):.3f}"
            if comparisons
            else "none"
        ),
    }


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 8."""
    counts = dataset.examples.values[:2]
    words = {"own": "best rate of each r", "first": "one rate"}
    titles = [f"{words[kind]}, n = {int(n)}" for kind in KINDS for n in counts]
    changed = changes(dataset)
    figure = plotting.blank(4.6)
    places = figure.subplot_mosaic(
        [["a", "b", "e"], ["c", "d", "e"]] if len(counts) > 1 else [["a", "e"], ["c", "e"]],
        width_ratios=(1, 1, 1.2) if len(counts) > 1 else (1, 1.2),
    )
    axes = [places[name] for name in ("abcd" if len(counts) > 1 else "ac")]
    plotting.entitle([*axes, places["e"]], [*titles, "change with r"])
    for ax, (kind, n) in zip(axes, [(k, n) for k in KINDS for n in counts], strict=True):
        is_published = dataset.attrs["task"] == "similarity" and n == 16
        values = dataset.pearson.sel(kind_of_rate=kind, examples=n)
        paired.plot_methods(ax, values, "rank", PUBLISHED if is_published else None)
        ax.set_xlabel("rank r")
    low, high = (f(ax.get_ylim()[i] for ax in axes) for i, f in enumerate((min, max)))
    for ax in axes:
        ax.set_ylim(low, high)
    if dataset.sizes["seed"] > 1 and dataset.sizes["rank"] > 1:
        paired.plot_compared(places["e"], paired.compared(changed))
        places["e"].set_xlabel("change of Pearson")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7
    )
    return figure


FIGURE = Figure(
    name="fig08",
    title="Adapters over the rank",
    caption=CAPTION,
    notes=NOTES,
    sources=paired.sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": paired.QUICK, "paper": paired.PAPER},
    long=True,
    turn=2,
    groups=("/ranks",),
    says=_facts,
    panels={"pearson": "abcde", "used": ""},
)
