"""Figure 8: the rank that an adapter may have, at one rate for all and at the best of each."""

from collections.abc import Mapping, Sequence
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
correlation over the rank r, mean and standard error, n = {counts}: {own} at the rate that is best
at each r, {one} at that of r = {first}; dotted: frozen ridge.{authors}{compared}
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
    """Task, kind of rate and number of examples of the panels: both rates beside each other.

    The most examples come first, where the rank changes most.
    """
    return [
        [(str(task), kind, n) for kind in KINDS]
        for n in sorted(map(int, drawn.examples.values), reverse=True)
        for task in drawn.task.values
    ]


def describe_result(in_tasks: Mapping[str, Sequence[paired.Compared]]) -> str:
    """How many methods fall with the rank at one rate and at the best of each, in words."""
    said = []
    for kind, when in (("first", "when the rate is kept"), ("own", "at the best rate of each")):
        mine = [
            one for found in in_tasks.values() for one in found if f", {RATES[kind]}," in one.label
        ]
        if mine:
            _, below = paired.count_told(mine)
            said.append(f"{below or 'none'} of {len(mine)} fall {when}")
    return ", ".join(said)


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """What the caption says of the results."""
    in_tasks = paired.compare_in_tasks(drawn, changes)
    comparisons = paired.label_by_task(in_tasks)
    letters = paired.letter_panels(rows_of(drawn), beside=bool(comparisons))
    what = " and ".join(TASKS[task] for task in drawn.task.values)
    compared, told = "", [one for one in comparisons if one.low > 0 or one.high < 0]
    above, below = paired.count_told(comparisons)
    if comparisons:
        compared = COMPARISONS.format(
            letter=letters[paired.BESIDE],
            first=drawn.attrs["first"],
            last=int(drawn["rank"].max()),
            held=paired.held_at_once(len(comparisons)),
            count=len(comparisons),
            above=above,
            below=below,
            source=_describe_source(drawn) if "similarity" in drawn.task.values else "",
        )
    counts = sorted(map(int, drawn.examples.values), reverse=True)
    return {
        "result": describe_result(in_tasks),
        "what": capital(what),
        "seeds": count_seeds(drawn.sizes["seed"]),
        "counts": ", ".join(map(str, counts)),
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
    """Draw Figure 8: a row for each task and number of examples, the changes of all beside them."""
    in_tasks, rows = paired.compare_in_tasks(dataset, changes), rows_of(dataset)
    most = max(map(int, dataset.examples.values))
    heights = [1.5 if row[0][2] == most else 1.0 for row in rows]
    figure = plotting.blank_figure(1.3 + 1.3 * sum(heights))
    ratios = (*[1.25] * len(KINDS), 1.1)
    places = paired.subplots(figure, rows, ratios, beside=bool(in_tasks), heights=heights)
    ends = dataset.attrs["first"], int(dataset["rank"].max())
    titles: dict[paired.Panel, str] = {paired.BESIDE: "from r = {} to {}".format(*ends)}
    for row in rows:
        for task, kind, n in row:
            values, ax = (
                dataset.sel(task=task, kind_of_rate=kind, examples=n),
                places[task, kind, n],
            )
            plot_panel(ax, values, PUBLISHED if task == "similarity" and n == 16 else None)
            wins = bool(values.ridge.mean("seed") > values.pearson.mean("seed").max())
            titles[task, kind, n] = f"n = {n}, {RATES[kind]}" + ": ridge wins" * wins
            ax.set_ylabel(f"Pearson, {SHORT[task]}")
        share_heights([places[panel] for panel in row])
    if in_tasks:
        paired.plot_compared(places[paired.BESIDE], in_order_of_rows(in_tasks))
        places[paired.BESIDE].set_xlabel("change of Pearson")
    plotting.entitle(places.values(), [titles[panel] for panel in places])
    paired.add_key(figure, places)
    return figure


def in_order_of_rows(
    in_tasks: Mapping[str, Sequence[paired.Compared]],
) -> dict[str, list[paired.Compared]]:
    """The same differences, those of the most examples first."""

    def examples(one: paired.Compared) -> int:
        return -int(one.label.rpartition(" ")[2])

    return {task: sorted(found, key=examples) for task, found in in_tasks.items()}


def plot_panel(ax: Any, values: xr.Dataset, published: Mapping[str, Any] | None) -> None:
    """What the methods reach over the rank, and what the ridge does."""
    paired.plot_methods(ax, values.pearson, "rank", published)
    ridge = float(values.ridge.mean("seed"))
    ax.axhline(ridge, ls=":", color="k", lw=1.2, label="frozen ridge")
    ax.set_xlabel("rank r")


def share_heights(axes: Sequence[Any]) -> None:
    """Give panels of one row the same limits."""
    low, high = (f(ax.get_ylim()[i] for ax in axes) for i, f in enumerate((min, max)))
    for ax in axes:
        ax.set_ylim(low, high)


FIGURE = Figure(
    name="fig08",
    shows=("adapters",),
    title="Adapters over the rank",
    result="{result}",
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
