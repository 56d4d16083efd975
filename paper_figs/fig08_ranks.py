"""Figure 8: the rank that an adapter may have, at one rate for all and at the best of each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.engine import fields
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.ranks import KINDS, PUBLISHED, RanksMeasured
from paper_figs import paired
from paper_figs.paired import SHORT, TASKS, TITLES
from paper_figs.shared import counted, judged

TOLERANCES = {"pearson": 0.05, "used": 0.05}
"""Differences to another training in float32, on another machine or with other kernels."""

CAPTION = """\
The survey's own Figure 8 was not available: this one is ours. {what}; {seeds}, {dtype}. Pearson
correlation over the rank r, mean and standard error: {own} at the rate that is best at each r,
{one} all at the one that is best at r = {first}; n = {counts}. {authors}({last}) Largest r less
smallest: seeds, mean, simultaneous 95 % interval ({pairs} by Bonferroni). {outcome} The seeds would
show {least}.
"""
NOTES = """\
The column r = {first} is that of Figure 7, the same trainings, where both are drawn from one task.
Changes whose p after Holm is below .05: {told}. How: {how}
"""
RATES = {"own": "best rate of each r", "first": "one rate"}
"""Kind of the rates, in words."""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Pearson over task, seed, method, examples, rank and rate, and the rank that is used."""
    groups = results[ADAPTERS.name]
    axes = ("task", "seed", "method", "examples", "rank", "kind_of_rate", "matrix")
    plain = paired.plain(judged(groups["/ranks"]), *axes)
    run = fields.of_run(paired.named(plain), RanksMeasured)
    drawn = xr.Dataset({"pearson": run(lambda run: run.pearson)}).astype(float)
    drawn["used"] = run(lambda run: run.energy_rank).mean(("seed", "matrix")).astype(float)
    drawn = drawn.assign_coords(kind_of_rate=list(KINDS)).sortby("rank")
    bracketed = bool(run(lambda run: run.bracketed).values.all())
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    first = int(np.ravel(plain["rank"].values)[0])
    return drawn.assign_attrs(
        paired.how(groups, drawn.task.values.tolist(), bracketed) | {"first": first}
    )


def changes(drawn: xr.Dataset) -> dict[str, np.ndarray]:
    """Pearson at the largest rank less that at the smallest, of the same seed and task."""
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


def compared(drawn: xr.Dataset) -> dict[str, list[paired.Compared]]:
    """The changes in each task; none of one seed or one rank."""
    several = drawn.sizes["seed"] > 1 and drawn.sizes["rank"] > 1
    return paired.compared_in_tasks(drawn, changes) if several else {}


def panels_of(drawn: xr.Dataset) -> dict[str, str]:
    """Letter -> the panel that has it, in the order of reading."""
    names = [
        [f"{task}, {kind}, {int(n)}" for n in drawn.examples.values[:2]]
        for task in drawn.task.values
        for kind in KINDS
    ]
    # The tall panel begins at the right of the first two rows, which are those of one task.
    first, rest = [*names[0], *names[1], "changes"], [name for row in names[2:] for name in row]
    return dict(zip("abcdefghijklm", [*first, *rest], strict=False))


def outcome(comparisons: Sequence[paired.Compared]) -> str:
    """How many intervals lie on which side of 0, in words."""
    above, below = sum(one.low > 0 for one in comparisons), sum(one.high < 0 for one in comparisons)
    held = len(comparisons) - above - below
    return f"Of these {above} lie above 0, {below} below, {held} hold it." if comparisons else ""


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """What the caption says of the results."""
    comparisons = paired.in_words(compared(drawn))
    distinguished = [str(comparison) for comparison in comparisons if comparison.p < 0.05]
    letters = panels_of(drawn)
    what = " and ".join(TASKS[task] for task in drawn.task.values)

    def lettered(kind: str) -> str:
        return ", ".join(f"({at})" for at, name in letters.items() if f", {kind}, " in name)

    return {
        "what": what[:1].upper() + what[1:],
        "seeds": counted(drawn.sizes["seed"]),
        "counts": ", ".join(f"{int(n)}" for n in drawn.examples.values),
        "own": lettered("own"),
        "one": lettered("first"),
        "last": next(letter for letter, name in letters.items() if name == "changes"),
        "authors": (
            "Open circles: the authors', bert-base-cased, 200 steps. "
            if "similarity" in drawn.task.values
            else ""
        ),
        "pairs": f"{len(comparisons)} changes" if comparisons else "no change",
        "outcome": outcome(comparisons),
        "told": "; ".join(distinguished) or "none",
        "least": f"a change of {paired.least_shown(comparisons)}" if comparisons else "none",
    }


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 8: two rows for each task, the changes of all beside them."""
    names, counts = [str(task) for task in dataset.task.values], dataset.examples.values[:2]
    figure = plotting.blank(4.6 if len(names) == 1 else 7.2)
    places = figure.subplot_mosaic(
        [
            [*(f"{task}, {kind}, {int(n)}" for n in counts), "changes"]
            for task in names
            for kind in KINDS
        ],
        width_ratios=(*[1] * len(counts), 1.2),
    )
    panels, titles = list(panels_of(dataset).values()), {"changes": "change with r"}
    for task in names:
        for kind in KINDS:
            for n in counts:
                where = f"{SHORT[task]}, n = {int(n)}" if len(names) > 1 else f"n = {int(n)}"
                titles[f"{task}, {kind}, {int(n)}"] = f"{where}: {RATES[kind]}"
    plotting.entitle([places[name] for name in panels], [titles[name] for name in panels])
    for task in names:
        plot_task(places, dataset.sel(task=task, drop=True), task)
    in_tasks = compared(dataset)
    if in_tasks:
        paired.plot_compared(places["changes"], in_tasks)
        places["changes"].set_xlabel("change of Pearson")
    paired.add_key(figure, places[panels[0]], places["changes"])
    return figure


def plot_task(places: Mapping[str, Any], values: xr.Dataset, task: str) -> None:
    """What the methods reach in one task, in panels of one height."""
    axes = []
    for kind in KINDS:
        for n in values.examples.values[:2]:
            axes.append(places[f"{task}, {kind}, {int(n)}"])
            is_published = task == "similarity" and n == 16
            pearson = values.pearson.sel(kind_of_rate=kind, examples=n)
            paired.plot_methods(axes[-1], pearson, "rank", PUBLISHED if is_published else None)
            axes[-1].set_xlabel("rank r")
    low, high = (f(ax.get_ylim()[i] for ax in axes) for i, f in enumerate((min, max)))
    for ax in axes:
        ax.set_ylim(low, high)


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
