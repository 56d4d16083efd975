"""Figure 7: Deep LoRA beside LoRA on few examples, and the ranks that they end with."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lrdyn.engine.statement import Finding, Outcome, Scenario
from lrdyn.studies.adapter_training import tuning
from lrdyn.studies.adapter_training.tuning import METHODS, Problem, Tuning
from lrdyn.studies.over_seeds import first_lost, only

SHOTS = (16, 64, 256)


def measure_few_shot(case: Tuning) -> dict[str, Any]:
    """Every method on every number of examples."""
    layer = tuning.first_layer(case)
    cells = [(tuning.problem(case, n, layer), case.rank) for n in case.examples]
    return measured(case, cells) | {"examples": np.array(case.examples)}


def measured(case: Tuning, cells: Sequence[tuple[Problem, int]]) -> dict[str, Any]:
    """Pearson at the last step and the final rank of each matrix, for all methods and cells."""
    found, runs = [], []
    last = np.array([case.steps])
    for name in case.method:
        for problem, rank in cells:
            made, run = tuning.tuned(case, problem, name, rank, last)
            ranks = [tuning.final_rank(run.params[path]) for path in made]
            found.append((float(run.records["pearson"][-1]), ranks))
            runs.append(run)
    shape = (len(case.method), len(cells))
    return {
        "pearson": np.array([value for value, _ in found]).reshape(shape),
        "final_rank": np.array([ranks for _, ranks in found]).reshape(*shape, -1),
        "method": np.array([list(METHODS).index(name) for name in case.method]),
        "diverged_at": np.array(first_lost(run.diverged_at for run in runs)),
    }


def cell(one: Outcome, array: str, method: str, axis: str, value: int) -> np.ndarray:
    """An array of one method at one place of an axis, for each seed; empty if it was not run."""
    names, places = (np.ravel(one.measured[name][:1]) for name in ("method", axis))
    i, k = np.flatnonzero(names == list(METHODS).index(method)), np.flatnonzero(places == value)
    if not (len(i) and len(k)):
        return np.zeros(0)
    return one.measured[array][:, i[0], k[0]]


def ahead(examples: int) -> Callable[[Outcome], np.ndarray]:
    """Pearson of Deep LoRA less that of LoRA, of the same seed."""

    def value(one: Outcome) -> np.ndarray:
        deep, lora = (
            cell(one, "pearson", name, "examples", examples) for name in ("deep_lora", "lora")
        )
        return deep - lora if len(deep) == len(lora) else np.zeros(0)

    return value


def _ranks(method: str) -> Callable[[Outcome], np.ndarray]:
    """Mean final rank over the matrices, on the most examples."""

    def value(one: Outcome) -> np.ndarray:
        most = int(np.max(one.measured["examples"]))
        found = cell(one, "final_rank", method, "examples", most)
        return found.mean(axis=-1) if found.size else found

    return value


def _fewer(one: Outcome) -> np.ndarray:
    deep, lora = (_ranks(name)(one) for name in ("deep_lora", "lora"))
    return deep - lora if len(deep) == len(lora) else np.zeros(0)


READS = ("pearson", "method", "examples")
RANKS = ("final_rank", "method", "examples")
DIMS = {"pearson": ("method", "cell"), "final_rank": ("method", "cell", "matrix"),
        "method": ("method",)}  # fmt: skip


def dims(axis: str) -> dict[str, tuple[str, ...]]:
    """Axes of :func:`measured`, the cells along one flag."""
    named = {n: tuple(axis if a == "cell" else a for a in axes) for n, axes in DIMS.items()}
    return named | {axis: (axis,)}


FEW_SHOT = Scenario[Tuning](
    "few_shot", tuning.make_tuning, measure=measure_few_shot,
    dims=dims("examples"),
    narrow=lambda settings: only("few_shot", settings, "part") | {
        "rank": settings["rank"][:1], "center": settings["center"][:1],
        "init_scale": (min(settings["init_scale"]),),
    },
    whole=("method", "examples"),
    diverged="diverged_at", trains=True, steps="steps", seeds=3,
    findings=(
        Finding("few_shot_ahead_16", "n = 16: Pearson of Deep LoRA less that of LoRA",
                ahead(16), reads=READS, above=0.0),
        *(Finding(f"few_shot_ahead_{n}", f"n = {n}: the same", ahead(n), reads=READS)
          for n in SHOTS[1:]),
        *(Finding(f"few_shot_rank_{name}", f"{name}: mean final rank, most examples",
                  _ranks(name), reads=RANKS) for name in ("lora", "deep_lora")),
        Finding("few_shot_fewer_ranks", "the second less the first", _fewer, reads=RANKS,
                below=0.0),
    ),
)  # fmt: skip
