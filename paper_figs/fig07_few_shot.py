"""Figure 7: adapters beside each other on few examples, each at its best rate."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.engine import fields
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.few_shot import COMPARED, PUBLISHED, FewShotMeasured
from paper_figs import paired
from paper_figs.paired import SHORT, TASKS, TITLES
from paper_figs.shared import counted, judged

TOLERANCES = {"pearson": 0.05, "energy_rank": 0.05, "ridge": 0.02}
"""Differences to another training in float32, on another machine or with other kernels."""

CAPTION = """\
The survey's own Figure 7 was not available: this one is ours. {what}; rank {rank}, {seeds},
{dtype}. {pearson} Pearson correlation at the last step, mean and standard error; dotted: ridge on
the frozen network ({verdict}). {authors}{used} Singular values with 99 % of the energy of what each
matrix was given, mean over matrices. (c) Paired differences: seeds, mean, simultaneous 95 %
interval ({intervals} by Bonferroni). The seeds would show {least}.
"""
NOTES = """\
{used} At n = {most}: {ranks}. (c) The p after Holm, of {pairs}: {smallest}. How: {how}
"""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Pearson, the ridge and ranks over task, seed, method and examples."""
    groups = results[ADAPTERS.name]
    whole = paired.plain(judged(groups["/few_shot"]), "task", "seed", "method", "examples")
    run = fields.of_run(paired.named(whole), FewShotMeasured)
    drawn = xr.Dataset(
        {
            "pearson": run(lambda run: run.pearson),
            "energy_rank": run(lambda run: run.energy_rank).mean("matrix"),
            "ridge": run(lambda run: run.ridge),
            "rate": run(lambda run: run.rate).isel(seed=0, drop=True),
            "tested": run(lambda run: run.tested).isel(seed=0, drop=True),
        }
    ).astype(float)
    bracketed = bool(run(lambda run: run.bracketed).values.all())
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    rank = int(np.ravel(groups["/few_shot"]["rank"].values)[0])
    return drawn.assign_attrs(
        paired.how(groups, drawn.task.values.tolist(), bracketed) | {"rank": rank}
    )


def differences(drawn: xr.Dataset) -> dict[str, np.ndarray]:
    """Differences of the same seed in one task, as far as both methods were run."""
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


def compared(drawn: xr.Dataset) -> dict[str, list[paired.Compared]]:
    """The differences of each task; none of one seed, or where no two methods were run."""
    some = drawn.sizes["seed"] > 1 and differences(drawn.isel(task=0))
    return paired.compared_in_tasks(drawn, differences) if some else {}


def beaten(drawn: xr.Dataset) -> str:
    """Where the ridge on the frozen network is ahead of all methods in one task, in words."""
    ahead = drawn.ridge.mean("seed") - drawn.pearson.mean("seed").max("adapter")
    places = [f"n = {int(n)}" for n, gap in zip(drawn.examples, ahead, strict=True) if gap > 0]
    if len(places) == drawn.sizes["examples"]:
        return "all methods lose to it"
    return f"all methods lose to it at {', '.join(places)}" if places else "the best method wins"


def _of_tasks(drawn: xr.Dataset, say: Callable[[xr.Dataset], str]) -> str:
    """What is said of each task."""
    each = {str(task): say(drawn.sel(task=task)) for task in drawn.task.values}
    if len(each) == 1:
        return next(iter(each.values()))
    return "; ".join(f"{SHORT[task]}: {words}" for task, words in each.items())


def _ranks(drawn: xr.Dataset) -> str:
    """Ranks that the methods use in one task with the most examples."""
    ranks = drawn.energy_rank.mean("seed").isel(examples=-1)
    return ", ".join(f"{TITLES[n]} {float(ranks.sel(adapter=n)):.1f}" for n in drawn.adapter.values)


def _letters(column: int, count: int) -> str:
    """Letters of the panels of a column, of so many tasks."""
    return ", ".join(f"({'abdefg'[2 * row + column]})" for row in range(count))


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """Values of the results that the caption quotes."""
    comparisons = paired.in_words(compared(drawn))
    small = min(comparisons, key=lambda comparison: comparison.p, default=None)
    tested = zip(drawn.task.values, drawn.tested.values, strict=True)
    what = " and ".join(f"{TASKS[task]} ({int(count):,} tested)" for task, count in tested)
    is_stsb = "similarity" in drawn.task.values
    return {
        "what": what[:1].upper() + what[1:],
        "seeds": counted(drawn.sizes["seed"]),
        "pearson": _letters(0, drawn.sizes["task"]),
        "used": _letters(1, drawn.sizes["task"]),
        "verdict": _of_tasks(drawn, beaten),
        "authors": ("Open circles: the authors', bert-base-cased, 500 steps. " if is_stsb else ""),
        "intervals": max(ADAPTERS.intervals, len(comparisons)),
        "pairs": f"{len(comparisons)} differences" if comparisons else "no difference",
        "smallest": f"the least {small.p:.2g} ({small.label})" if small else "none",
        "least": f"a difference of {paired.least_shown(comparisons)}" if comparisons else "none",
        "most": int(drawn.examples.values.max()),
        "ranks": _of_tasks(drawn, _ranks),
    }


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 7: a row for each task, the differences of all beside them."""
    in_tasks, names = compared(dataset), [str(task) for task in dataset.task.values]
    rows = max((len(found) for found in in_tasks.values()), default=1)
    figure = plotting.blank(max(2.6 if len(names) == 1 else 4.4, 0.9 + 0.16 * rows))
    places = figure.subplot_mosaic(
        [[f"{task}, Pearson", f"{task}, rank", "differences"] for task in names],
        width_ratios=(1.1, 0.9, 1.5),
    )
    titles = {}
    for row, task in enumerate(names):
        wins = beaten(dataset.sel(task=task)) == "all methods lose to it"
        first = "the frozen ridge wins" if wins else "Pearson"
        titles[f"{task}, Pearson"] = f"{SHORT[task]}: {first}"
        titles[f"{task}, rank"] = "rank used"
        if row == 0:
            titles["differences"] = "paired differences"
    plotting.entitle([places[name] for name in titles], titles.values())
    for task in names:
        values = dataset.sel(task=task, drop=True)
        plot_pearson(places[f"{task}, Pearson"], values, PUBLISHED if task == "similarity" else {})
        plot_ranks(places[f"{task}, rank"], values.energy_rank.mean("seed"))
    if in_tasks:
        paired.plot_compared(places["differences"], in_tasks)
    paired.add_key(figure, places[f"{names[0]}, Pearson"], places["differences"])
    return figure


def plot_pearson(ax: Any, values: xr.Dataset, authors: Mapping[str, Any]) -> None:
    """What the methods reach in one task, and what the ridge does."""
    paired.plot_methods(ax, values.pearson, "examples", authors)
    places, ridge = values.examples.values, values.ridge.mean("seed").values
    ends = [places[0] / 1.3, *places, places[-1] * 1.3]
    ax.plot(ends, [ridge[0], *ridge, ridge[-1]], "k:", lw=1.2, label="frozen ridge")
    ax.set_xlabel("examples n")


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
    panels={"pearson": "ac", "ridge": "a", "energy_rank": "b"},
)
