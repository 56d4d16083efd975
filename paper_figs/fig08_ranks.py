"""Figure 8: the rank that an adapter may have, at one rate for all and at the best of each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS
from lrdyn.studies.adapter_training.ranks import KINDS, PUBLISHED, RanksMeasured
from lrdyn.verification.stating import fields
from paper_figs import paired
from paper_figs.paired import SHORT, TASKS, TITLES
from paper_figs.shared import capital, count_seeds, judged_seeds

TOLERANCES = {"pearson": 0.05, "ridge": 0.02, "best_rate": 0.05}
"""Differences to another training in float32, on another machine or with other kernels."""

CAPTION = """\
The survey's own Figure 8 was not available: this one is ours. {what}; {seeds}, {dtype}. Pearson
correlation over the rank r, mean and standard error: {own} at the rate that is best at each r,
{one} at that of r = {first}; n = {counts}; dotted: frozen ridge.{authors}{compared}
"""
COMPARISONS = (
    " ({letter}) Change from r = {first} to {last}: seeds, mean (filled: not 0), 95 % interval "
    "({held} held at once, Bonferroni): {above} of {count} above 0, {below} below.{source}"
)
LEAST = " The seeds would show changes {}."
SOURCE = " Published changes: {}."
NOTES = """\
The column r = {first} is that of Figure 7, the same trainings, of the tasks that both
have.{told}{least} How: {how}
"""
TOLD = " Changes whose interval does not hold 0, with p after Holm: {}."
RATES = {"own": "own rates", "first": "one rate"}
"""Kind of the rates, in words."""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Pearson over task, seed, method, examples, rank and rate, the ridge, and rates tried."""
    groups = results[ADAPTERS.name]
    axes = ("task", "seed", "method", "examples", "rank", "kind_of_rate", "matrix")
    plain = paired.drop_single_axes(judged_seeds(groups["/ranks"]), *axes)
    run = fields.of_run(paired.name_methods(plain), RanksMeasured)
    drawn = xr.Dataset(
        {
            "pearson": run(lambda run: run.pearson),
            "ridge": run(lambda run: run.ridge),
            "best_rate": run(lambda run: run.rate).isel(seed=0, drop=True),
            "tried": run(lambda run: run.tried).isel(seed=0, drop=True),
            "tried_pearson": run(lambda run: run.tried_pearson).isel(seed=0, drop=True),
        }
    ).astype(float)
    drawn = drawn.assign_coords(kind_of_rate=list(KINDS)).sortby("rank")
    bracketed = bool(run(lambda run: run.bracketed).values.all())
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    first = int(np.ravel(plain["rank"].values)[0])
    return drawn.assign_attrs(
        paired.describe_trainings(groups, drawn.task.values.tolist(), bracketed) | {"first": first}
    )


def changes(drawn: xr.Dataset) -> dict[str, np.ndarray]:
    """Pearson at the largest rank less that at the first, of the same seed, in one task."""
    first, last = drawn.attrs["first"], int(drawn["rank"].max())
    if first == last:
        return {}
    ends = drawn.pearson.sel(rank=last) - drawn.pearson.sel(rank=first)
    return {
        f"{TITLES[name]}, {RATES[kind]}, n = {int(n)}": ends.sel(
            adapter=name, kind_of_rate=kind, examples=n
        ).values
        for n in drawn.examples.values
        for name in drawn.adapter.values
        for kind in KINDS
    }


def rows_of(drawn: xr.Dataset) -> list[list[paired.Panel]]:
    """Task, kind of rate and number of examples of the panels: two rows for each task."""
    return [
        [(str(task), kind, int(n)) for n in drawn.examples.values]
        for task in drawn.task.values
        for kind in KINDS
    ]


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """What the caption says of the results."""
    comparisons = paired.label_by_task(paired.compare_in_tasks(drawn, changes))
    letters = paired.letter_panels(rows_of(drawn), beside=bool(comparisons))
    what = " and ".join(TASKS[task] for task in drawn.task.values)
    compared, told = "", [one for one in comparisons if one.low > 0 or one.high < 0]
    if comparisons:
        compared = COMPARISONS.format(
            letter=letters[paired.BESIDE],
            first=drawn.attrs["first"],
            last=int(drawn["rank"].max()),
            held=paired.held_at_once(len(comparisons)),
            count=len(comparisons),
            above=sum(one.low > 0 for one in told),
            below=sum(one.high < 0 for one in told),
            source=_describe_source(drawn) if "similarity" in drawn.task.values else "",
        )

    return {
        "what": capital(what),
        "seeds": count_seeds(drawn.sizes["seed"]),
        "counts": ", ".join(f"{int(n)}" for n in drawn.examples.values),
        "own": paired.letters_of(letters, "own"),
        "one": paired.letters_of(letters, "first"),
        "authors": (
            " Open circles: the authors', bert-base-cased, 200 steps."
            if "similarity" in drawn.task.values
            else ""
        ),
        "compared": compared,
        "least": LEAST.format(paired.least_shown(comparisons)) if comparisons else "",
        "told": TOLD.format("; ".join(f"{one}, p = {one.p:.2g}" for one in told)) if told else "",
    }


def _describe_source(drawn: xr.Dataset) -> str:
    """What came of the changes that the authors of Deep LoRA report, in words."""
    found, stated = changes(drawn.sel(task="similarity", drop=True)), []
    for name in PUBLISHED:
        label = f"{TITLES[name]}, {RATES['first']}, n = 16"
        if label in found and drawn.attrs["first"] == 8 and int(drawn["rank"].max()) == 64:
            stated.append((f"ranks_similarity_16_{name}_first", found[label], TITLES[name]))
    return SOURCE.format(paired.came_of_source(stated)) if stated else ""


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 8: two rows for each task, the changes of all beside them."""
    in_tasks, rows = paired.compare_in_tasks(dataset, changes), rows_of(dataset)
    figure = plotting.blank_figure(1.4 + 1.6 * len(rows))
    ratios = (*[1.25] * len(rows[0]), 1.1)
    places = paired.subplots(figure, rows, ratios, beside=bool(in_tasks))
    ends = dataset.attrs["first"], int(dataset["rank"].max())
    titles: dict[paired.Panel, str] = {paired.BESIDE: "from r = {} to {}".format(*ends)}
    for task in map(str, dataset.task.values):
        plot_task(places, dataset.sel(task=task, drop=True), task)
    for row in rows:
        for task, kind, n in row:
            values = dataset.sel(task=task, kind_of_rate=kind, examples=n)
            means = values.pearson.mean("seed")
            wins = bool(values.ridge.mean("seed") > means.max())
            titles[task, kind, n] = f"n = {n}, {RATES[kind]}" + ": ridge wins" * wins
            if dataset.sizes["task"] > 1:
                places[task, kind, n].set_ylabel(f"Pearson, {SHORT[task]}")
    if in_tasks:
        paired.plot_compared(places[paired.BESIDE], in_tasks)
        places[paired.BESIDE].set_xlabel("change of Pearson")
    plotting.entitle(places.values(), [titles[panel] for panel in places])
    paired.add_key(figure, places)
    return figure


def plot_task(places: Mapping[paired.Panel, Any], values: xr.Dataset, task: str) -> None:
    """What the methods reach in one task, in panels of one height."""
    axes = []
    for kind in KINDS:
        for n in map(int, values.examples.values):
            axes.append(places[task, kind, n])
            is_published = task == "similarity" and n == 16
            pearson = values.pearson.sel(kind_of_rate=kind, examples=n)
            paired.plot_methods(axes[-1], pearson, "rank", PUBLISHED if is_published else None)
            ridge = float(values.ridge.sel(examples=n).mean("seed"))
            axes[-1].axhline(ridge, ls=":", color="k", lw=1.2, label="frozen ridge")
            axes[-1].set_xlabel("rank r")
    low, high = (f(ax.get_ylim()[i] for ax in axes) for i, f in enumerate((min, max)))
    for ax in axes:
        ax.set_ylim(low, high)


FIGURE = Figure(
    name="fig08",
    shows=("adapters",),
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
    panels={"pearson": "abcdefghi", "ridge": "abcdefgh"},
)
