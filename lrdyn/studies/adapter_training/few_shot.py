"""Figure 7: Deep LoRA beside LoRA on few examples, and the ranks that they end with."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lrdyn.engine.fields import ABSENT
from lrdyn.engine.statement import Finding, Outcome, Scenario
from lrdyn.studies.adapter_training import tuning
from lrdyn.studies.adapter_training.tuning import METHODS, Problem, Tuning
from lrdyn.studies.over_seeds import first_lost, only
from lrdyn.training import FORGETFUL, Keeper

PUBLISHED = {
    "lora": {16: 0.529, 64: 0.735, 256: 0.814},
    "deep_lora": {16: 0.598, 64: 0.751, 256: 0.828},
}
"""Pearson correlation over the examples: STS-B, bert-base-cased, 500 steps, means of 20 seeds
(arXiv 2406.04112)."""
SHOTS = tuple(PUBLISHED["lora"])


class FewShotMeasured(NamedTuple):
    """What every method reaches on every number of examples."""

    pearson: Float[np.ndarray, "method examples"] = ABSENT
    """Correlation at the last step on pairs that were not trained on."""
    final_rank: Int[np.ndarray, "method examples matrix"] = ABSENT
    """Rank of what each adapter adds, at the last step."""
    method: Int[np.ndarray, "method"] = ABSENT
    """Places of the methods in METHODS."""
    examples: Int[np.ndarray, "examples"] = ABSENT
    """Numbers of examples."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """Step at which the first of the trainings diverged, or -1."""


Measured = Outcome[Any, FewShotMeasured]


class Cells(NamedTuple):
    """What all methods reach on several problems, or at several ranks: a cell is one of them."""

    pearson: Float[np.ndarray, "method cell"]
    final_rank: Int[np.ndarray, "method cell matrix"]
    method: Int[np.ndarray, "method"]
    diverged_at: Int[np.ndarray, ""]


def measure_cells(
    case: Tuning, cells: Sequence[tuple[Problem, int]], keeper: Keeper = FORGETFUL
) -> Cells:
    """Pearson at the last step and the final rank of each matrix, for all methods and cells."""
    pearson, ranks, runs = [], [], []
    for name in case.method:
        for problem, rank in cells:
            begun, run = tuning.tuned(
                case, problem, name, rank, np.array([case.steps]), keeper=keeper
            )
            pearson.append(float(run.records.pearson[-1]))
            ranks.append([tuning.final_rank(run.params[path]) for path in begun])
            runs.append(run)
    shape = (len(case.method), len(cells))
    return Cells(
        pearson=np.array(pearson).reshape(shape),
        final_rank=np.array(ranks).reshape(*shape, -1),
        method=np.array([list(METHODS).index(name) for name in case.method]),
        diverged_at=np.array(first_lost(run.diverged_at for run in runs)),
    )


def measure_few_shot(case: Tuning, keeper: Keeper = FORGETFUL) -> FewShotMeasured:
    """Every method on every number of examples."""
    layer = tuning.first_layer(case)
    cells = [(tuning.problem(case, n, layer), case.rank) for n in case.examples]
    measured = measure_cells(case, cells, keeper)
    return FewShotMeasured(**measured._asdict(), examples=np.array(case.examples))


def cell(
    values: np.ndarray, methods: np.ndarray, places: np.ndarray, method: str, place: int
) -> np.ndarray:
    """The values of one cell for each seed; empty if it was not run.

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


def difference(deep: np.ndarray, lora: np.ndarray) -> np.ndarray:
    """Deep LoRA less LoRA, of the same seed; empty if one of them was not run."""
    return deep - lora if len(deep) == len(lora) else np.zeros(0)


def _ahead(examples: int) -> Callable[[Measured], np.ndarray]:
    """Pearson of Deep LoRA less that of LoRA, of the same seed."""

    def ahead(outcome: Measured) -> np.ndarray:
        run = outcome.measured
        return difference(
            cell(run.pearson, run.method, run.examples, "deep_lora", examples),
            cell(run.pearson, run.method, run.examples, "lora", examples),
        )

    return ahead


def _mean_rank(outcome: Measured, method: str) -> np.ndarray:
    """Mean final rank over the matrices, on the most examples."""
    run = outcome.measured
    ranks = cell(run.final_rank, run.method, run.examples, method, int(np.max(run.examples)))
    return ranks.mean(axis=-1) if ranks.size else ranks


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """All methods and numbers of examples at one rank."""
    return only("few_shot", settings, "part") | {
        "rank": settings["rank"][:1],
        "center": settings["center"][:1],
        "init_scale": (min(settings["init_scale"]),),
    }


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
            Finding(
                f"few_shot_ahead_{n}",
                f"n = {n}: Pearson of Deep LoRA less that of LoRA",
                _ahead(n),
                reads=lambda theory, run: (run.pearson, run.method, run.examples),
                above=0.0,
                source=round(PUBLISHED["deep_lora"][n] - PUBLISHED["lora"][n], 3),
            )
            for n in SHOTS
        ),
        Finding(
            "few_shot_rank_lora",
            "lora: mean final rank, most examples",
            lambda outcome: _mean_rank(outcome, "lora"),
            reads=lambda theory, run: (run.final_rank, run.method, run.examples),
        ),
        Finding(
            "few_shot_rank_deep_lora",
            "deep_lora: mean final rank, most examples",
            lambda outcome: _mean_rank(outcome, "deep_lora"),
            reads=lambda theory, run: (run.final_rank, run.method, run.examples),
        ),
        Finding(
            "few_shot_fewer_ranks",
            "the second less the first",
            lambda outcome: difference(
                _mean_rank(outcome, "deep_lora"), _mean_rank(outcome, "lora")
            ),
            reads=lambda theory, run: (run.final_rank, run.method, run.examples),
            below=0.0,
        ),
    ),
)
