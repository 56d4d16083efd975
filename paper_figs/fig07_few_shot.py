"""Figure 7: Deep LoRA beside LoRA on few examples."""

from typing import Any

import numpy as np
import xarray as xr

from lrdyn.engine import fields
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.few_shot import PUBLISHED, FewShotMeasured
from paper_figs import paired
from paper_figs.paired import TITLES
from paper_figs.shared import counted, judged

TOLERANCES = {"pearson": 0.05, "final_rank": 0.05}
"""Of another training in float32, on another machine or with other kernels."""

CAPTION = """\
Few examples, drawn with replacement; trained in {dtype}. (a) Pearson correlation on pairs that were
not trained on, at the last step, mean and standard error of {seeds}; open circles: the authors'
numbers for bert-base-cased, 500 steps, 20 seeds, another model than ours. (b) Deep LoRA less LoRA
of the same seed (points) and the mean; {differences}. (c) Final ranks of the {matrices} adapted
matrices over all seeds at n = {most}: singular values of dW above max(m, n) eps32 sigma_1, rank 0
if ||dW||_2 is at most 1e-3; mean {ranks}. Rank r = {rank}. {expected} {adapted} {how} LoRA starts
from N(0, 1) and 0 and has no alpha / r, as the authors have it; beside it alpha / r with alpha = 8
(the same at r = 8). The survey's own Figure 7 was not available: this one is ours.
"""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Pearson over seed, method and examples; final ranks on the most examples."""
    groups = results[ADAPTERS.name]
    whole = groups["/few_shot"]
    run = fields.of_run(
        paired.named(paired.plain(judged(whole), "seed", "method", "examples")), FewShotMeasured
    )
    pearson, ranks = run(lambda run: run.pearson), run(lambda run: run.final_rank)
    most = int(pearson.examples.values.max())
    drawn = xr.Dataset({"pearson": pearson}).astype(float)
    drawn["final_rank"] = ranks.sel(examples=most, drop=True).astype(float)
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    return drawn.assign_attrs(
        paired.how(groups) | {"rank": int(whole["rank"].values.ravel()[0]), "most": most}
    )


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """What the caption says of the results."""
    names = list(drawn.adapter.values)
    ranks = drawn.final_rank.mean("matrix")
    differences, expected = "not compared", ""
    if {"lora", "deep_lora"} <= set(names):
        ahead = {
            int(n): paired.paired(
                drawn.pearson.sel(adapter="deep_lora", examples=n).values,
                drawn.pearson.sel(adapter="lora", examples=n).values,
            )
            for n in drawn.examples.values
        }
        differences = "; ".join(f"n = {n}: {gain}" for n, gain in ahead.items())
        fewer = paired.paired(*(ranks.sel(adapter=name).values for name in ("deep_lora", "lora")))
        if 16 in ahead:
            expected = (
                "Expected from the authors' numbers: Deep LoRA ahead at n = 16 "
                f"({ahead[16].came_of('few_shot_ahead_16')}) and with fewer ranks "
                f"({fewer.came_of('few_shot_fewer_ranks')})."
            )
    return {
        "seeds": counted(drawn.sizes["seed"]),
        "differences": differences,
        "matrices": drawn.sizes["matrix"],
        "ranks": ", ".join(f"{TITLES[n]} {float(ranks.sel(adapter=n).mean()):.1f}" for n in names),
        "expected": expected,
    }


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 7."""
    titles = ["Pearson over examples n", "paired over seeds", f"final ranks, n = {dataset.most}"]
    figure, axes = plotting.panels(titles, height=2.5)
    paired.plot_methods(axes[0], dataset.pearson, "examples", PUBLISHED)
    plotting.key(axes[0], None, "lower right", fontsize=6)
    if {"lora", "deep_lora"} <= set(dataset.adapter.values):
        paired.plot_differences(axes[1], dataset.pearson, "examples")
    plot_ranks(axes[2], dataset.final_rank)
    for ax in axes[:2]:
        ax.set_xlabel("examples n")
    return figure


def plot_ranks(ax: Any, ranks: xr.DataArray) -> None:
    """Share of the matrices with each final rank, methods side by side."""
    most = int(ranks.max())
    names = list(ranks.adapter.values)
    for place, name in enumerate(names):
        values = ranks.sel(adapter=name).values.ravel().astype(int)
        shares = np.bincount(values, minlength=most + 1) / len(values)
        shift = 0.8 * (place - (len(names) - 1) / 2) / len(names)
        ax.bar(
            np.arange(most + 1) + shift,
            shares,
            0.8 / len(names),
            color=paired.COLORS[name],
            label=TITLES[name],
        )
    ax.set(xlabel="final rank", ylabel="share of the matrices", ylim=(0, 1.02))
    ax.set_xticks(range(0, most + 1, max(1, most // 8)))


FIGURE = Figure(
    name="fig07",
    title="Deep LoRA and LoRA on few examples",
    caption=CAPTION,
    sources=paired.sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": paired.QUICK, "paper": paired.PAPER},
    long=True,
    groups=("/few_shot",),
    says=_facts,
    panels={"pearson": "ab", "final_rank": "c"},
)
