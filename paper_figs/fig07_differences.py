"""What the methods of Figure 7 differ by, pair by pair, the largest difference first."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training.few_shot import PUBLISHED
from paper_figs import fig07_few_shot, paired
from paper_figs.paired import SHORT, TITLES
from paper_figs.shared import count_seeds

CAPTION = """\
Differences of the Pearson correlations of Figure 7, method less method of the same seed, at n
examples. {what}; rank {rank}, {seeds}, {dtype}. Pale: single seeds; marks: means, filled where the
interval does not hold 0; lines: 95 % intervals{held}. Rows: by the mean{over}.{source}
"""
SOURCE = " Deep LoRA's published gains: {}."
NOTES = """\
The trainings are those of Figure 7.{shown} How: {how}
"""
HELD = " ({count} held at once, Bonferroni)"
SHOWN = (
    " The seeds would show differences {least}. Least p after Holm, of {count} differences: "
    "{p:.2g} ({label})."
)


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Pearson over task, seed, method and examples, as Figure 7 has it."""
    return fig07_few_shot.numbers(results, **settings)[["pearson"]]


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """Values of the results that title, caption and notes quote."""
    comparisons = paired.label_by_task(paired.compare_in_tasks(drawn, fig07_few_shot.differences))
    above, below = paired.count_told(comparisons)
    facts = {
        "what": fig07_few_shot.describe_what(drawn),
        "seeds": count_seeds(drawn.sizes["seed"]),
        "over": " over the tasks" if drawn.sizes["task"] > 1 else "",
        "source": _describe_source(drawn) if "similarity" in drawn.task.values else "",
    }
    if not comparisons:
        return facts | {"result": "", "held": "", "shown": ""}
    count, small = len(comparisons), min(comparisons, key=lambda comparison: comparison.p)
    least = paired.least_shown(comparisons)
    return facts | {
        "result": f"{above} of {count} above 0, {below} below",
        "held": HELD.format(count=paired.held_at_once(count)),
        "shown": SHOWN.format(least=least, count=count, p=small.p, label=small.label),
    }


def _describe_source(drawn: xr.Dataset) -> str:
    """What came of the gains that the authors of Deep LoRA report, and from where to where."""
    task = drawn.sel(task="similarity", drop=True)
    found, stated = fig07_few_shot.differences(task), []
    for n, theirs in PUBLISHED["deep_lora"].items():
        label = f"{TITLES['deep_lora']} less {TITLES['lora_unit']}, n = {n}"
        if label not in found:
            continue
        means = task.pearson.sel(examples=n).mean("seed")
        ends = [float(means.sel(adapter=name)) for name in ("lora_unit", "deep_lora")]
        published = PUBLISHED["lora_unit"][n], theirs
        ours, authors = (" to ".join(f"{end:.2f}" for end in pair) for pair in (ends, published))
        finding = f"similarity_deep_lora_less_lora_unit_{n}"
        stated.append((finding, found[label], f"n = {n}: {ours}, theirs {authors}"))
    return SOURCE.format(paired.came_of_source(stated)) if stated else ""


def sort_by_effect(
    in_tasks: Mapping[str, Sequence[paired.Compared]],
) -> dict[str, list[paired.Compared]]:
    """The same differences in every task, that of the largest mean over the tasks first."""
    means = np.array([[one.paired.mean for one in found] for found in in_tasks.values()])
    order = np.argsort(-means.mean(axis=0), kind="stable")
    return {task: [found[place] for place in order] for task, found in in_tasks.items()}


def draw(dataset: xr.Dataset) -> Any:
    """Draw a panel for each task, with the same rows."""
    in_tasks = paired.compare_in_tasks(dataset, fig07_few_shot.differences)
    if not in_tasks:  # of one seed
        figure, (ax,) = plotting.panels(["no differences of one seed"])
        ax.axis("off")
        return figure
    in_tasks = sort_by_effect(in_tasks)
    count = len(next(iter(in_tasks.values())))
    figure = plotting.blank_figure(1.2 + 0.16 * count)
    axes = figure.subplots(1, len(in_tasks), sharex=True, sharey=True, squeeze=False).ravel()
    titles = []
    for ax, (task, found) in zip(axes, in_tasks.items(), strict=True):
        paired.plot_compared(ax, {task: found})
        above, below = paired.count_told(found)
        titles.append(f"{SHORT[task]}: {above} above 0, {below} below")
        ax.grid(axis="y", lw=0.5, color="#E5E5E5", zorder=0)
        ax.set_axisbelow(True)
    plotting.entitle(axes, titles)
    seeds = [
        plotting.entry(
            f"a seed, {SHORT[task]}", paired.SEEDS[task][0], ls="none", marker=mark, ms=4
        )
        for task, mark in ((task, paired.SEEDS[task][1]) for task in in_tasks)
    ]
    means = [
        plotting.entry(f"mean, interval {words} 0", marker="o", ms=3.5, mfc=face)
        for words, face in (("without", plotting.GREY), ("with", "w"))
    ]
    serves = [([seed, *means], [ax]) for seed, ax in zip(seeds, axes, strict=True)]
    plotting.common_key(figure, [*seeds, *means], serves=serves, fontsize=7)
    return figure


FIGURE = Figure(
    name="fig07_differences",
    shows=("adapters",),
    title="Adapters on few examples, pair by pair",
    result="{result}",
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
    panels={"pearson": "ab"},
)
