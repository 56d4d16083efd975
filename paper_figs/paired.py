"""What Figures 4, 5, 7 and 8 share: the study, its judged seeds, two methods beside each other."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from lrdyn.figures import band, plotting
from lrdyn.studies.adapter_training import ADAPTERS, tasks, tuning
from lrdyn.studies.adapter_training.cells import METHODS
from lrdyn.verification.judging.judging import Groups
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.stating import claims
from lrdyn.verification.stating.expectations import simultaneous_interval

QUICK = {"preset": "quick", "seed": 1}
PAPER = {"preset": "paper", "seed": 1, "seeds": 30}
TITLES = {
    "lora_unit": "LoRA, N(0, 1)",
    "lora": "LoRA, N(0, 1/d)",
    "deep_lora": "Deep LoRA",
    "two_factors": "two small factors",
    "lora_plus_4": "LoRA+, 4",
    "lora_plus_16": "LoRA+, 16",
    "lora_b": "LoRA, B drawn",
    "full": "full",
}
COLORS = {
    "lora_unit": plotting.GREY,
    "lora": plotting.ORANGE,
    "deep_lora": plotting.BLUE,
    "two_factors": plotting.BLUES[0],
    "lora_plus_4": plotting.GREEN,
    "lora_plus_16": plotting.ORANGES[0],
    "lora_b": plotting.PINK,
    "full": plotting.BLACK,
}
MARKS = dict(zip(TITLES, "os^vDPX*", strict=True))
"""Apart without colours, too."""
TASKS = {
    "sentiment": "sentiment of sentences",
    "similarity": "similarity of pairs (STS-B)",
    "digits": "digits 5 to 9",
}
SHORT = {"sentiment": "sentiment", "similarity": "STS-B", "digits": "digits"}
OF_TASKS = dict(zip(TASKS, (("#8A3800", "o"), ("#56B4E9", "s"), ("#7A7A7A", "^")), strict=True))
"""Colour and mark of the differences of each task; no method has that colour."""
SEEDS = dict(zip(TASKS, (("#E3C3AE", "."), ("#C3DDED", "|"), ("#C4C4C4", "x")), strict=True))
"""Colour and mark of single seeds of each task; the marks tell them apart in grey print."""
Panel = tuple[Any, ...]
"""What a panel shows: a task first, then what tells it from the others of the task."""
BESIDE: Panel = ("differences",)
"""The panel beside all rows."""
EVERY_MATRIX = "query and value of its last {layers} layers"
OF_TEXTS = (
    "an encoder ({about}); {adapted}, a random head that stays as it is with the mean score as "
    "bias, {length} tokens"
)
OF_DIGITS = "a perceptron that was trained on the digits 0 to 4; both hidden matrices, such a head"
HOW = (
    "{what}; squared error of scores in [0, 1], {steps} steps of Adam, whose rate falls linearly, "
    "batches of {batch}. Rates: the best of five or more, {bracketed}, on {rate_seeds} seeds and "
    "on texts or digits that are reported nowhere."
)


def sources(**settings: Any) -> Mapping[str, Run]:
    """The study."""
    return {ADAPTERS.name: run_of(ADAPTERS, **settings)}


def describe_trainings(
    groups: Groups, learned: Sequence[str], bracketed: bool, *, adapted: str = EVERY_MATRIX
) -> dict[str, Any]:
    """What a caption says of the trainings.

    Args:
        groups: the results.
        learned: the tasks.
        bracketed: whether worse rates lie on both sides of each that is chosen.
        adapted: the matrices that are trained, in words.
    """
    root = groups["/"].attrs
    config = json.loads(root["config"])
    about = root["about"].partition(":")[0].removeprefix("on an encoder ")
    adapted = adapted.format(layers=config["layers"])
    texts = OF_TEXTS.format(about=about, adapted=adapted, length=config["length"])
    whats = dict.fromkeys(OF_DIGITS if task == tasks.DIGITS else texts for task in learned)
    return {
        "how": HOW.format(
            what="; ".join(whats),
            batch=tuning.BATCH,
            steps=config["steps"],
            rate_seeds=config["rate_seeds"],
            bracketed="each bracketed" if bracketed else "not all bracketed",
        ),
        "dtype": config["dtype"],
    }


def drop_single_axes(run: xr.Dataset, *axes: str) -> xr.Dataset:
    """Arrays without the axes of one value, but for these."""
    return run.squeeze([d for d in run.dims if run.sizes[d] == 1 and d not in axes], drop=True)


def name_methods(run: xr.Dataset) -> xr.Dataset:
    """Methods by their names, along ``adapter``: ``method`` is a word of xarray."""
    names = [list(METHODS)[i] for i in run.method.values]
    if "method" not in run.dims:
        run = run.expand_dims("method")
    return run.rename(method="adapter").assign_coords(adapter=names)


class Paired(NamedTuple):
    """One method less another, of the same seeds."""

    mean: float
    error: float
    """Standard error, NaN of one seed."""
    seeds: int
    draws: np.ndarray
    """The difference of each seed."""

    def came_of(self, finding: str) -> str:
        """What came of what a finding of the study expects: its interval and its outcome."""
        came = ADAPTERS.outcome_entry(finding, self.draws)
        if came["interval"] is None:
            return str(came["outcome"])
        return "{outcome}, {0:+.3f} to {1:+.3f}".format(*came["interval"], outcome=came["outcome"])


def compare_pair(method: np.ndarray, other: np.ndarray) -> Paired:
    """Compare two methods over seeds.

    Example:
        >>> found = compare_pair(np.array([0.5, 0.6, 0.9]), np.array([0.4, 0.5, 0.5]))
        >>> round(found.mean, 3), round(found.error, 3), found.seeds
        (0.2, 0.1, 3)
    """
    difference = np.asarray(method, float) - np.asarray(other, float)
    mean, count = float(np.mean(difference)), len(difference)
    return Paired(mean, float(claims.standard_error(difference)), count, difference)


class Compared(NamedTuple):
    """Differences of several pairs of methods, all held at once."""

    label: str
    paired: Paired
    low: float
    high: float
    """Ends of its simultaneous interval, by Bonferroni."""
    p: float
    """P-value of Student's test, corrected by Holm."""
    least: float
    """The difference that this spread would show with probability .8 at that level."""

    def __str__(self) -> str:
        """Say the result in words."""
        return f"{self.label} {self.paired.mean:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def held_at_once(count: int) -> int:
    """How many intervals hold at once where so many differences are drawn."""
    return max(ADAPTERS.intervals, count)


def compare(differences: Mapping[str, np.ndarray]) -> list[Compared]:
    """Differences of the same seeds, with intervals and p-values that hold for all of them.

    As many intervals hold at once as findings of the study are decided by one, or as there are
    differences if they are more: those of the study's own table are these.

    Args:
        differences: label -> one number for each seed, two or more.

    Example:
        >>> found = compare({"a": np.array([0.1, 0.2, 0.3]), "b": np.array([0.0, 0.2, -0.2])})
        >>> [round(one.p, 3) for one in found], round(found[0].low, 3)
        ([0.148, 1.0], -2.248)
    """
    from scipy.stats import norm

    count = held_at_once(len(differences))
    raw = [claims.student_p(0.0, values) for values in differences.values()]
    comparisons = []
    for (label, values), p in zip(differences.items(), holm(raw), strict=True):
        low, high = simultaneous_interval(values, count)
        # Half of the interval, and what exceeds it in eight draws of ten.
        least = (high - low) / 2 + float(norm.ppf(0.8)) * float(claims.standard_error(values))
        zero = np.zeros(len(values))
        comparisons.append(Compared(label, compare_pair(values, zero), low, high, p, least))
    return comparisons


def compare_in_tasks(
    drawn: xr.Dataset, differences: Callable[[xr.Dataset], Mapping[str, np.ndarray]]
) -> dict[str, list[Compared]]:
    """Differences within each task; intervals and p-values hold for those of all tasks at once.

    Of one seed there are none, nor where nothing is compared.

    Args:
        drawn: numbers over the tasks.
        differences: numbers of one task -> label -> one number for each seed.
    """
    each = {str(task): differences(drawn.sel(task=task)) for task in drawn.task.values}
    every = {(task, label): draws for task, found in each.items() for label, draws in found.items()}
    if drawn.sizes["seed"] < 2 or not every:
        return {}
    comparisons = compare({str(place): draws for place, draws in every.items()})
    in_tasks: dict[str, list[Compared]] = {task: [] for task in each}
    for (task, label), comparison in zip(every, comparisons, strict=True):
        in_tasks[task].append(comparison._replace(label=label))
    return in_tasks


def label_by_task(in_tasks: Mapping[str, Sequence[Compared]]) -> list[Compared]:
    """All differences, labelled with their task where there are several."""
    return [
        found._replace(label=f"{SHORT[task]}: {found.label}") if len(in_tasks) > 1 else found
        for task, comparisons in in_tasks.items()
        for found in comparisons
    ]


def letter_panels(rows: Sequence[Sequence[Panel]], beside: bool) -> dict[Panel, str]:
    """Panel -> its letter, row after row; the one beside all rows is the last.

    Example:
        >>> letter_panels([[("one", 1), ("one", 2)], [("two", 1), ("two", 2)]], beside=True)[BESIDE]
        'e'
    """
    names = [name for row in rows for name in row] + [BESIDE] * beside
    return dict(zip(names, plotting.LETTERS, strict=False))


def letters_of(letters: Mapping[Panel, str], kind: str) -> str:
    """Letters of the panels of a kind, as a caption has them.

    Example:
        >>> letters_of({("one", "rank"): "a", ("two", "rank"): "b"}, "rank")
        '(a), (b)'
    """
    return ", ".join(f"({letter})" for panel, letter in letters.items() if kind in panel)


def subplots(
    figure: Any,
    rows: Sequence[Sequence[Panel]],
    ratios: Sequence[float],
    beside: bool = False,
    heights: Sequence[float] | None = None,
) -> dict[Panel, Any]:
    """Axes of the panels as they are lettered; the ratio of the one beside all rows is the last."""
    columns = len(rows[0]) + beside
    grid = figure.add_gridspec(
        len(rows), columns, width_ratios=ratios[:columns], height_ratios=heights
    )
    places = {
        name: figure.add_subplot(grid[line, column])
        for line, row in enumerate(rows)
        for column, name in enumerate(row)
    }
    return places | ({BESIDE: figure.add_subplot(grid[:, -1])} if beside else {})


def came_of_source(found: Sequence[tuple[str, np.ndarray, str]]) -> str:
    """What came of numbers of a source, outcome by outcome, in words; empty without any.

    Args:
        found: id of a finding of the study, its number for each seed, and what it is of.
    """
    by_outcome: dict[str, list[str]] = {}
    for finding, draws, words in found:
        by_outcome.setdefault(ADAPTERS.outcome_entry(finding, draws)["outcome"], []).append(words)
    return "; ".join(f"{outcome} ({', '.join(of)})" for outcome, of in by_outcome.items())


def count_told(comparisons: Sequence[Compared]) -> tuple[int, int]:
    """How many intervals lie above 0, and how many below."""
    above = sum(comparison.low > 0 for comparison in comparisons)
    return above, sum(comparison.high < 0 for comparison in comparisons)


def least_shown(comparisons: Sequence[Compared]) -> str:
    """Between what the least differences lie that the seeds can show, in words."""
    least = [comparison.least for comparison in comparisons]
    return f"between {min(least):.3f} and {max(least):.3f}"


def holm(p: Sequence[float]) -> list[float]:
    """Corrected p-values: the i-th smallest of k times k - i + 1, none below one before it.

    Example:
        >>> [round(x, 3) for x in holm([0.04, 0.01, 0.03])]
        [0.06, 0.03, 0.06]

    Reference:
        Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    order, corrected, least = np.argsort(p), np.zeros(len(p)), 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(p) - place) * p[index]))
        corrected[index] = least
    return corrected.tolist()


def plot_methods(
    ax: Any, pearson: xr.DataArray, axis: str, authors: Mapping[str, Any] | None = None
) -> None:
    """Mean over seeds with a standard error, and the authors' numbers as open markers."""
    places = pearson[axis].values
    names = list(pearson.adapter.values)
    for turn, name in enumerate(names):
        # Side by side: equal places would hide each other.
        shift = 1.04 ** (turn - (len(names) - 1) / 2)
        look = {"color": COLORS[name], "marker": MARKS[name], "ms": 3.5, "lw": 0.9}
        values, label = pearson.sel(adapter=name), TITLES[name]
        band(ax, values, over="seed", x=places * shift, bars=True, label=label, **look)
    for name, published in (authors or {}).items():
        ax.plot(
            list(published),
            list(published.values()),
            color=COLORS[name],
            **{**plotting.OPEN, "mec": COLORS[name], "ls": ":", "lw": 0.8},
        )
    more = (n for published in (authors or {}).values() for n in published)
    ticks = sorted({*places.tolist(), *more})
    ax.set(xscale="log", ylabel="Pearson correlation")
    if len(ticks) == 1:
        ax.set_xlim(ticks[0] / 1.6, ticks[0] * 1.6)
    ax.set_xticks(ticks, [f"{n}" for n in ticks])
    ax.minorticks_off()


def plot_compared(ax: Any, in_tasks: Mapping[str, Sequence[Compared]]) -> None:
    """A line for each difference: its seeds, its mean and its simultaneous interval.

    A task has a colour and marks; its lines lie below those of the one before. A mark is filled
    where the interval does not hold 0.
    """
    compared = next(iter(in_tasks.values()))
    labels = [comparison.label.replace(" less LoRA, ", " less ") for comparison in compared]
    for place, (task, comparisons) in enumerate(in_tasks.items()):
        (color, mark), (pale, of_seed) = OF_TASKS[task], SEEDS[task]
        below = 0.7 / len(in_tasks) * (place - (len(in_tasks) - 1) / 2)
        for row, comparison in enumerate(comparisons):
            y = len(labels) - 1 - row - below
            seeds = np.full(comparison.paired.seeds, y)
            ax.plot(comparison.paired.draws, seeds, of_seed, color=pale, ms=3, mew=0.6)
            ax.plot([comparison.low, comparison.high], [y, y], color=color, lw=1.2)
            apart = comparison.low > 0 or comparison.high < 0
            ax.plot(
                [comparison.paired.mean],
                [y],
                marker=mark,
                color=color,
                mfc=color if apart else "w",
                ms=2.5,
                label=f"difference, {SHORT[task]}" if row == 0 and len(in_tasks) > 1 else None,
            )
    ax.axvline(0, color="k", lw=0.8)
    ax.set_yticks(range(len(labels)), labels[::-1], fontsize=7)
    ax.set(xlabel="difference of Pearson", ylim=(-0.6, len(labels) - 0.4))


def add_key(figure: Any, places: Mapping[Panel, Any]) -> None:
    """The key of the methods, and of the tasks if there are several, below all panels."""
    of_methods = next(iter(places.values())).get_legend_handles_labels()[0]
    serves = [(of_methods, [ax for panel, ax in places.items() if panel != BESIDE])]
    if BESIDE in places:
        serves.append((places[BESIDE].get_legend_handles_labels()[0], [places[BESIDE]]))
    entries = [entry for lines, _ in serves for entry in lines]
    plotting.common_key(figure, entries, serves=serves, fontsize=7)
