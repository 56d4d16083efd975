"""Figure 8: how the rank that an adapter may have changes what it reaches."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lrdyn.engine.statement import Finding, Outcome, Scenario
from lrdyn.studies.adapter_training import tuning
from lrdyn.studies.adapter_training.few_shot import cell, dims, measured
from lrdyn.studies.adapter_training.tuning import Tuning
from lrdyn.studies.over_seeds import only


def measure_ranks(case: Tuning) -> dict[str, Any]:
    """Every method at every rank, on one set of examples."""
    found = tuning.problem(case, case.examples, tuning.first_layer(case))
    return measured(case, [(found, r) for r in case.rank]) | {"rank": np.array(case.rank)}


def change(method: str) -> Callable[[Outcome], np.ndarray]:
    """Pearson at the largest rank less that at the smallest, of the same seed."""

    def value(one: Outcome) -> np.ndarray:
        ranks = np.ravel(one.measured["rank"][:1]).astype(int)
        if len(ranks) < 2:
            return np.zeros(0)
        most, least = (cell(one, "pearson", method, "rank", r) for r in (max(ranks), min(ranks)))
        return most - least

    return value


def _falls_less(one: Outcome) -> np.ndarray:
    deep, lora = change("deep_lora")(one), change("lora")(one)
    return deep - lora if len(deep) == len(lora) else np.zeros(0)


READS = ("pearson", "method", "rank")
RANKS = Scenario[Tuning](
    "ranks", tuning.make_tuning, measure=measure_ranks,
    dims=dims("rank"),
    narrow=lambda settings: only("ranks", settings, "part") | {
        "examples": (min(settings["examples"]),), "center": settings["center"][:1],
        "init_scale": (min(settings["init_scale"]),),
    },
    whole=("method", "rank"),
    diverged="diverged_at", trains=True, steps="steps", seeds=3,
    findings=(
        Finding("ranks_lora", "LoRA: Pearson at the largest rank less that at the smallest",
                change("lora"), reads=READS, below=0.0),
        Finding("ranks_deep_lora", "Deep LoRA: the same", change("deep_lora"), reads=READS),
        Finding("ranks_lora_over_rank", "LoRA with alpha / r: the same", change("lora_over_rank"),
                reads=READS),
        Finding("ranks_falls_less", "the second less the first", _falls_less, reads=READS,
                above=0.0),
    ),
)  # fmt: skip
