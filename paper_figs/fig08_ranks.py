"""Figure 8: the rank that an adapter may have, and what it reaches."""

from typing import Any

import numpy as np
import xarray as xr

from lrdyn.engine import fields
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.ranks import PUBLISHED, RanksMeasured
from paper_figs import paired
from paper_figs.paired import TITLES
from paper_figs.shared import counted, judged

TOLERANCES = {"pearson": 0.05, "used": 0.05}
"""Of another training in float32, on another machine or with other kernels."""

CAPTION = """\
Rank r of the adapters on n = {examples} examples, trained in {dtype}. (a) Pearson correlation on
pairs that were not trained on, at the last step, mean and standard error of {seeds}; open circles:
the authors' numbers for bert-base-cased, 200 steps, 5 seeds, another model than ours. (b) Deep LoRA
less LoRA of the same seed (points) and the mean; {differences}. (c) Final rank (as in Figure 7),
mean over the matrices and seeds; dotted: r. The column r = {first} is that of Figure 7 at n =
{examples}: the same trainings. From the smallest r to the largest: {changes}.
{expected} {adapted} {how} LoRA has no alpha / r, so that its steps grow with r; beside it LoRA with
alpha / r, alpha = 8. The survey's own Figure 8 was not available: this one is ours.
"""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Pearson over seed, method and rank, and the mean final rank."""
    groups = results[ADAPTERS.name]
    whole = groups["/ranks"]
    run = fields.of_run(
        paired.named(paired.plain(judged(whole), "seed", "method", "rank")), RanksMeasured
    )
    drawn = xr.Dataset({"pearson": run(lambda run: run.pearson)}).astype(float)
    drawn["used"] = run(lambda run: run.final_rank).mean(("seed", "matrix"))
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    return drawn.assign_attrs(
        paired.how(groups) | {"examples": int(whole["examples"].values.ravel()[0])}
    )


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """What the caption says of the results."""
    names, ranks = list(drawn.adapter.values), drawn["rank"].values
    least, most = int(ranks.min()), int(ranks.max())
    ends = {n: [drawn.pearson.sel(adapter=n, rank=r).values for r in (most, least)] for n in names}
    moves = {name: paired.paired(*both) for name, both in ends.items()}
    differences, expected = "not compared", ""
    if {"lora", "deep_lora"} <= set(names):
        differences = "; ".join(
            "r = {}: {}".format(
                int(rank),
                paired.paired(
                    drawn.pearson.sel(adapter="deep_lora", rank=rank).values,
                    drawn.pearson.sel(adapter="lora", rank=rank).values,
                ),
            )
            for rank in ranks
        )
        less = paired.paired(*(np.subtract(*ends[name]) for name in ("deep_lora", "lora")))
        if most > least:
            expected = (
                "Expected from the authors' numbers: LoRA falls with r "
                f"({moves['lora'].came_of('ranks_lora')}), Deep LoRA falls less "
                f"({less.came_of('ranks_falls_less')})."
            )
    changes = [
        f"{TITLES[name]} {move.mean:+.3f}" + (f" ± {move.error:.3f}" if move.seeds > 1 else "")
        for name, move in moves.items()
    ]
    return {
        "first": int(ranks[0]),
        "seeds": counted(drawn.sizes["seed"]),
        "differences": differences,
        "changes": ", ".join(changes),
        "expected": expected,
    }


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 8."""
    titles = ["Pearson over rank r", "paired over seeds", "rank that is used"]
    figure, axes = plotting.panels(titles, height=2.5)
    paired.plot_methods(axes[0], dataset.pearson, "rank", PUBLISHED)
    plotting.key(axes[0], None, "center left", fontsize=6)
    if {"lora", "deep_lora"} <= set(dataset.adapter.values):
        paired.plot_differences(axes[1], dataset.pearson, "rank")
    ranks = dataset["rank"].values
    for name in dataset.adapter.values:
        used = dataset.used.sel(adapter=name)
        axes[2].plot(ranks, used, ".", ls=paired.DASHES[name], color=paired.COLORS[name])
    axes[2].plot(ranks, ranks, ":", color="k", lw=0.8)
    axes[2].set(xscale="log", ylabel="final rank")
    axes[2].set_xticks(ranks, [f"{r}" for r in ranks])
    axes[2].minorticks_off()
    for ax in axes:
        ax.set_xlabel("rank r")
    return figure


FIGURE = Figure(
    name="fig08",
    title="Deep LoRA and LoRA over the rank",
    caption=CAPTION,
    sources=paired.sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": paired.QUICK, "paper": paired.PAPER},
    long=True,
    groups=("/ranks",),
    says=_facts,
    panels={"pearson": "ab", "used": "c"},
)
