"""Figure 7: adapters beside each other on few examples, each at a rate of its own."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from lrdyn.studies.adapter_training import cells, rates, tasks, tuning
from lrdyn.studies.adapter_training.cells import (
    METHODS,
    WAYS,
    Bench,
    Cell,
    SentenceTraining,
    TrainingRequest,
)
from lrdyn.studies.adapter_training.digits import Digits
from lrdyn.studies.adapter_training.rates import Chosen
from lrdyn.studies.adapter_training.tuning import Tuning
from lrdyn.studies.over_seeds import restrict_to
from lrdyn.training import FORGETFUL, Keeper
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Finding, Outcome, Scenario

PUBLISHED = {
    "lora_unit": {16: 0.529, 64: 0.735, 256: 0.814},
    "deep_lora": {16: 0.598, 64: 0.751, 256: 0.828},
}
"""Pearson correlation over the examples: STS-B, bert-base-cased, 500 steps, means of 20 seeds
(arXiv 2406.04112)."""
SHOTS = (16, 64, 256, 1024)
ROOM = 2 * rates.SIDE + 1 + rates.FARTHEST
"""Rates that are tried, at most."""
PENALTY = 0
"""The ridge's penalty is tried from 10^(k/2) on, k around this."""
LAST = 10
"""Steps at the end over which a training loss is taken."""


class FewShotMeasured(NamedTuple):
    """What every method reaches on every number of examples."""

    pearson: Float[np.ndarray, "method examples"] = ABSENT
    """Correlation at the last step on texts that were not trained on, each at its own rate."""
    final_rank: Int[np.ndarray, "method examples matrix"] = ABSENT
    """Rank of what each matrix was given: singular values above round-off; 0 if it hardly moved."""
    energy_rank: Int[np.ndarray, "method examples matrix"] = ABSENT
    """How many of them hold 99 % of the squared norm."""
    random_rank: Int[np.ndarray, "method matrix"] = ABSENT
    """The same of a random matrix: of two Gaussian factors of that rank, or of full rank."""
    rate: Float[np.ndarray, "method examples"] = ABSENT
    """The rate of each method, the best on seeds and texts of their own."""
    bracketed: Int[np.ndarray, "method examples"] = ABSENT
    """Whether worse rates lie on both sides of it."""
    tried: Float[np.ndarray, "method examples candidate"] = ABSENT
    """Rates that were tried, NaN behind them."""
    tried_pearson: Float[np.ndarray, "method examples candidate rate_seed"] = ABSENT
    """What they reach there."""
    tried_loss: Float[np.ndarray, "method examples candidate rate_seed"] = ABSENT
    """Training loss there, mean over the last ten steps."""
    ridge: Float[np.ndarray, "examples"] = ABSENT
    """Correlation of a ridge on the network as it is, on the same examples."""
    method: Int[np.ndarray, "method"] = ABSENT
    """Places of the methods in METHODS."""
    examples: Int[np.ndarray, "examples"] = ABSENT
    """Numbers of examples."""
    tested: Int[np.ndarray, ""] = ABSENT
    """Texts that are tested on, how many."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """-1: a rate at which the reported training diverges is not chosen."""


Measured = Outcome[Any, FewShotMeasured]


class Searched(NamedTuple):
    """Rates that were tried, and their training losses."""

    chosen: Chosen
    losses: Float[np.ndarray, "tried seed"]


@lru_cache(maxsize=2)
def ground_of(task: tasks.Task, precision: str) -> SentenceTraining | Digits:
    """Data and network of a task, made once for all points of a sweep."""
    if task.name == tasks.DIGITS:
        return Digits(precision)
    return SentenceTraining(tasks.encode(task, precision))


def bench_of(case: Tuning, keeper: Keeper) -> Bench:
    """Bench that trains on the task of a case."""
    return Bench(ground_of(tuning.task_of(case), tuning.precision()), keeper)


def search_rates(bench: Bench, case: Tuning, method: str, rank: int, examples: int) -> Searched:
    """The rates of a method, tried on texts and seeds that no report has."""
    place_of = (method, rank, examples, case.steps, case.init_scale, case.rate_seeds)
    known = bench.ground.searched.get(place_of)
    if known is not None:
        return known
    by_rate: dict[float, list[Cell]] = {}

    def score(rate: float) -> Float[np.ndarray, "seed"]:
        asked = TrainingRequest(method, rank, examples, rate, case.steps, case.init_scale)
        by_rate[rate] = [
            bench.run(asked, cells.seed_of_rates(place), part="rate_")
            for place in range(case.rate_seeds)
        ]
        return np.array([float(cell.pearson) for cell in by_rate[rate]])

    best = rates.search_rate(score, WAYS[method].guess)
    losses = [[float(np.mean(c.losses[-LAST:])) for c in by_rate[rate]] for rate in best.tried]
    bench.ground.searched[place_of] = Searched(best, np.array(losses))
    return bench.ground.searched[place_of]


def pad_rates(array: np.ndarray) -> np.ndarray:
    """Rows for as many rates as can be tried, NaN behind those that were."""
    more = [(0, ROOM - len(array)), *((0, 0) for _ in array.shape[1:])]
    return np.pad(array.astype(float), more, constant_values=np.nan)


def ridge_pearson(bench: Bench, case: Tuning, examples: int) -> float:
    """Correlation that a ridge reaches on the same examples, its penalty chosen on other ones."""
    data = bench.ground
    scores = np.asarray(data.scores, np.float64)

    def test_pearson(rows: np.ndarray, tested: np.ndarray, penalty: float) -> float:
        fit = rates.ridge(data.features[rows], scores[rows], penalty)
        outputs = data.features[tested] @ fit.weights + fit.bias
        return float(np.corrcoef(outputs, scores[tested])[0, 1])

    def score(penalty: float) -> Float[np.ndarray, "seed"]:
        keys = [cells.seed_of_rates(place) for place in range(case.rate_seeds)]
        rows = [bench.draw_rows(jax.random.split(key, 4)[0], examples, "rate_") for key in keys]
        return np.array([test_pearson(subset, data.rows["rate_test"], penalty) for subset in rows])

    place_of = ("ridge", examples, case.rate_seeds)
    if place_of not in data.searched:  # one for all seeds that are reported
        data.searched[place_of] = rates.search_rate(score, PENALTY)
    rows = bench.draw_rows(jax.random.split(case.key, 4)[0], examples)
    return test_pearson(rows, data.rows["test"], data.searched[place_of].rate)


def measure_few_shot(case: Tuning, keeper: Keeper = FORGETFUL) -> FewShotMeasured:
    """Train every method on every number of examples, its rate chosen on other texts and seeds."""
    bench = bench_of(case, keeper)
    size = max(bench.weight(bench.paths[0]).shape)
    shapes, by_chance = [bench.weight(path).shape for path in bench.paths], []
    collected: dict[str, list[list[Any]]] = {name: [] for name in FewShotMeasured._fields}
    for name in case.method:
        row: dict[str, list[Any]] = {field: [] for field in collected}
        # Examples and rate are those of each training.
        asked = TrainingRequest(name, case.rank, 0, 0.0, case.steps, case.init_scale)
        for count in case.examples:
            tried = search_rates(bench, case, name, case.rank, count)
            best = tried.chosen
            cell = bench.run(asked._replace(examples=count, rate=best.rate), case.key)
            row["pearson"].append(float(cell.pearson))
            row["final_rank"].append([cells.final_rank(v, size) for v in cell.values])
            row["energy_rank"].append([cells.energy_rank(v) for v in cell.values])
            row["rate"].append(best.rate)
            row["bracketed"].append(int(best.bracketed))
            row["tried"].append(pad_rates(best.tried))
            row["tried_pearson"].append(pad_rates(best.scores))
            row["tried_loss"].append(pad_rates(tried.losses))
        by_chance.append([cells.random_rank(shape, bench.value_count(asked)) for shape in shapes])
        for field, values in row.items():
            collected[field].append(values)
    arrays = {name: np.array(values) for name, values in collected.items() if values[0]}
    return FewShotMeasured(
        **arrays,
        random_rank=np.array(by_chance),
        ridge=np.array([ridge_pearson(bench, case, count) for count in case.examples]),
        method=np.array([list(METHODS).index(name) for name in case.method]),
        examples=np.array(case.examples),
        tested=np.array(len(bench.ground.rows["test"])),
        diverged_at=np.array(-1),
    )


def cell_of(
    values: np.ndarray, methods: np.ndarray, places: np.ndarray, method: str, place: int
) -> np.ndarray:
    """The values of one method and place for each seed; empty if it was not run.

    Args:
        values: over seed, method and place.
        methods: places in METHODS, over seed and method; those of every seed are the same.
        places: examples, or ranks, over seed and place.
        method: name of a method.
        place: number of examples, or rank.
    """
    (row,) = np.nonzero(np.ravel(methods[:1]) == list(METHODS).index(method))
    (column,) = np.nonzero(np.ravel(places[:1]) == place)
    if not (len(row) and len(column)):
        return np.zeros(0)
    return values[:, row[0], column[0]]


def difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """First values less the second, seed by seed; empty if one of them was not run."""
    return first - second if len(first) == len(second) else np.zeros(0)


COMPARED = (
    ("deep_lora", "lora_unit"),
    ("deep_lora", "lora"),
    ("deep_lora", "two_factors"),
    ("lora", "lora_unit"),
    ("two_factors", "lora_unit"),
    ("lora_plus_4", "lora"),
    ("lora_plus_16", "lora"),
    ("full", "lora"),
)
"""Differences that are looked at, on every number of examples."""


def at_point(
    value: Callable[[Outcome[Any, Any]], np.ndarray], **point: str | int
) -> Callable[[Outcome[Any, Any]], np.ndarray]:
    """A value of the runs at one point alone, such as one task; empty elsewhere."""

    def value_there(outcome: Outcome[Any, Any]) -> np.ndarray:
        mine = all(outcome.point[name] == x for name, x in point.items())
        return value(outcome) if mine else np.zeros(0)

    return value_there


def _pearson_gain(outcome: Measured, pair: tuple[str, str], examples: int) -> np.ndarray:
    """Pearson of one method less that of another, of the same seed."""
    run = outcome.measured
    return difference(
        *(cell_of(run.pearson, run.method, run.examples, name, examples) for name in pair)
    )


def _mean_rank(outcome: Measured, method: str, examples: int) -> np.ndarray:
    """Mean of how many values hold 99 % of the energy, over the matrices that moved.

    NaN where none did.
    """
    run = outcome.measured
    ranks, final = (
        cell_of(array, run.method, run.examples, method, examples)
        for array in (run.energy_rank, run.final_rank)
    )
    return cells.mean_rank(ranks, final) if ranks.size else ranks


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """All methods and numbers of examples at one rank."""
    return restrict_to("few_shot", settings, "part") | {
        "rank": settings["rank"][:1],
        "center": settings["center"][:1],
        "init_scale": (min(settings["init_scale"]),),
    }


def _finding(task: str, pair: tuple[str, str], examples: int) -> Finding[Any, FewShotMeasured]:
    """A difference of two methods, and what is expected of it.

    The authors of Deep LoRA state its gain over LoRA, on pairs of sentences: their number is that
    of similarity alone.
    """
    first, second = pair
    stated = task in tasks.TASKS and pair == COMPARED[0] and examples in PUBLISHED[second]
    gain = round(PUBLISHED[first][examples] - PUBLISHED[second][examples], 3) if stated else None
    return Finding(
        f"{task}_{first}_less_{second}_{examples}",
        f"{task}, n = {examples}: Pearson of {first} less that of {second}",
        at_point(partial(_pearson_gain, pair=pair, examples=examples), task=task),
        reads=lambda theory, run: (run.pearson, run.method, run.examples),
        above=0.0 if stated else None,
        source=gain if task == "similarity" else None,
        against=0.0 if task in tasks.TASKS and not stated else None,
        rest="equal steps, each at its best rate",
    )


FEW_SHOT = Scenario[Tuning, Any, FewShotMeasured](
    "few_shot",
    tuning.make_tuning,
    train=measure_few_shot,
    measured=FewShotMeasured,
    narrow=_settings,
    whole=("method", "examples"),
    steps="steps",
    diverged=lambda run: run.diverged_at,
    seeds=3,
    findings=(
        *(
            _finding(task, pair, examples)
            for task in (*tasks.TASKS, tasks.DIGITS)
            for pair in COMPARED
            for examples in SHOTS
        ),
        *(
            Finding(
                f"{task}_rank_{method}",
                f"{task}, n = 64: values of {method} with 99 % of the energy, mean over the "
                "matrices that moved",
                at_point(partial(_mean_rank, method=method, examples=64), task=task),
                reads=lambda theory, run: (
                    run.energy_rank,
                    run.final_rank,
                    run.method,
                    run.examples,
                ),
            )
            for task in (*tasks.TASKS, tasks.DIGITS)
            for method in ("lora", "deep_lora")
        ),
    ),
)
