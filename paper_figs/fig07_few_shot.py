"""Figure 7: adapters beside each other on few examples, each at its best rate."""

from typing import Any

import numpy as np
import xarray as xr

from lrdyn.engine import fields
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.few_shot import COMPARED, PUBLISHED, FewShotMeasured
from paper_figs import paired
from paper_figs.paired import TASKS, TITLES
from paper_figs.shared import counted, judged

TOLERANCES = {"pearson": 0.05, "energy_rank": 0.05, "ridge": 0.02}
"""Differences to another training in float32, on another machine or with other kernels."""

CAPTION = """\
The survey's own Figure 7 was not available: this one is ours. {what}, rank {rank}, {seeds},
{dtype}, {tested} tested. (a) Pearson correlation at the last step, mean and standard error; dotted:
ridge on the frozen network ({verdict}). {authors}(b) Paired differences: seeds, mean, simultaneous
95 % interval (Bonferroni, {intervals}); p after Holm, of {pairs}: {smallest}. The seeds would show
{least}. (c) Singular values with 99 % of the energy of what each matrix was given, mean over
matrices.
"""
NOTES = """\
(c) At n = {most}: {ranks}. How: {how}
"""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Pearson, the ridge and ranks over seed, method and examples, of the first task."""
    groups = results[ADAPTERS.name]
    whole = groups["/few_shot"]
    task = str(np.ravel(whole["task"].values)[0])
    if "task" in whole.dims:
        whole = whole.isel(task=0)
    run = fields.of_run(
        paired.named(paired.plain(judged(whole), "seed", "method", "examples")), FewShotMeasured
    )
    drawn = xr.Dataset(
        {
            "pearson": run(lambda run: run.pearson),
            "energy_rank": run(lambda run: run.energy_rank).mean("matrix"),
            "ridge": run(lambda run: run.ridge),
            "rate": run(lambda run: run.rate).isel(seed=0, drop=True),
        }
    ).astype(float)
    bracketed = bool(run(lambda run: run.bracketed).values.all())
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    return drawn.assign_attrs(
        paired.how(groups, task, bracketed)
        | {
            "rank": int(np.ravel(whole["rank"].values)[0]),
            "tested": int(np.ravel(run(lambda run: run.tested).values)[0]),
        }
    )


def differences(drawn: xr.Dataset) -> dict[str, np.ndarray]:
    """Differences of the same seed, as far as both methods were run."""
    names = set(drawn.adapter.values)
    return {
        f"{TITLES[first]} less {TITLES[second]}, n = {int(n)}": (
            drawn.pearson.sel(adapter=first, examples=n)
            - drawn.pearson.sel(adapter=second, examples=n)
        ).values
        for n in drawn.examples.values
        for first, second in COMPARED
        if {first, second} <= names
    }


def beaten(drawn: xr.Dataset) -> str:
    """Where the ridge on the frozen network is ahead of all methods, in words."""
    ahead = drawn.ridge.mean("seed") - drawn.pearson.mean("seed").max("adapter")
    places = [f"n = {int(n)}" for n, gap in zip(drawn.examples, ahead, strict=True) if gap > 0]
    if len(places) == drawn.sizes["examples"]:
        return "all methods lose to it"
    return f"all methods lose to it at {', '.join(places)}" if places else "the best method wins"


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """Values of the results that the caption quotes."""
    most = int(drawn.examples.values.max())
    ranks = drawn.energy_rank.mean("seed").sel(examples=most)
    draws = differences(drawn)
    several = drawn.sizes["seed"] > 1 and draws
    comparisons = paired.compared(draws) if several else []
    small = min(comparisons, key=lambda comparison: comparison.p, default=None)
    is_stsb = drawn.attrs["task"] == "similarity"
    return {
        "what": TASKS[drawn.attrs["task"]].capitalize(),
        "seeds": counted(drawn.sizes["seed"]),
        "verdict": beaten(drawn),
        "authors": (
            "Open circles: the authors' numbers for bert-base-cased, 500 steps. " if is_stsb else ""
        ),
        "intervals": max(ADAPTERS.intervals, len(comparisons)),
        "pairs": f"{len(comparisons)} differences" if comparisons else "no difference",
        "smallest": f"the least {small.p:.2g} ({small.label})" if small else "none",
        "least": (
            f"a difference of {min(comparison.least for comparison in comparisons):.3f} to "
            f"{max(comparison.least for comparison in comparisons):.3f}"
            if comparisons
            else "none"
        ),
        "most": most,
        "ranks": ", ".join(
            f"{TITLES[n]} {float(ranks.sel(adapter=n)):.1f}" for n in drawn.adapter.values
        ),
    }


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 7."""
    first = "Pearson"
    if beaten(dataset) == "all methods lose to it":
        first = "Pearson: the frozen ridge wins"
    draws = differences(dataset)
    rows = max(len(draws), 1)
    figure = plotting.blank(max(2.6, 0.9 + 0.16 * rows))
    axes = figure.subplots(1, 3, width_ratios=(1.1, 1.5, 0.9))
    plotting.entitle(axes, [first, "paired differences", "rank used"])
    authors = PUBLISHED if dataset.attrs["task"] == "similarity" else None
    paired.plot_methods(axes[0], dataset.pearson, "examples", authors)
    places = dataset.examples.values
    ends = [places[0] / 1.3, *places, places[-1] * 1.3]
    ridge = dataset.ridge.mean("seed").values
    axes[0].plot(ends, [ridge[0], *ridge, ridge[-1]], "k:", lw=1.2, label="frozen ridge")
    axes[0].set_xlabel("examples n")
    if draws and dataset.sizes["seed"] > 1:
        paired.plot_compared(axes[1], paired.compared(draws))
    plot_ranks(axes[2], dataset.energy_rank.mean("seed"))
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7
    )
    return figure


def plot_ranks(ax: Any, ranks: xr.DataArray) -> None:
    """Values with 99 % of the energy, over the examples."""
    places = ranks.examples.values
    for name in ranks.adapter.values:
        ax.plot(
            places,
            ranks.sel(adapter=name).values,
            color=paired.COLORS[name],
            marker=paired.MARKS[name],
            ms=3.5,
            lw=0.9,
        )
    ax.set(xscale="log", xlabel="examples n", ylim=(0, None))
    if float(ranks.max()) > 20:
        ax.set(yscale="log", ylim=(0.8, None))
    ax.set_xticks(places, [f"{n}" for n in places])
    ax.set_xlim(places[0] / 1.3, places[-1] * 1.3)
    ax.minorticks_off()


FIGURE = Figure(
    name="fig07",
    title="Adapters on few examples",
    caption=CAPTION,
    notes=NOTES,
    sources=paired.sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": paired.QUICK, "paper": paired.PAPER},
    long=True,
    turn=1,
    groups=("/few_shot",),
    says=_facts,
    panels={"pearson": "ab", "ridge": "a", "energy_rank": "c"},
)
