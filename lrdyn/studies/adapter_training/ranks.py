"""Figure 8: how the rank that an adapter may have changes what it reaches."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lrdyn.engine.fields import ABSENT
from lrdyn.engine.statement import Finding, Outcome, Scenario
from lrdyn.studies.adapter_training import tuning
from lrdyn.studies.adapter_training.few_shot import cell, difference, measure_cells
from lrdyn.studies.adapter_training.tuning import Tuning
from lrdyn.studies.over_seeds import only
from lrdyn.training import FORGETFUL, Keeper

PUBLISHED = {
    "lora": {8: 0.539, 16: 0.524, 32: 0.456, 64: 0.175},
    "deep_lora": {8: 0.635, 16: 0.652, 32: 0.660, 64: 0.667},
}
"""Pearson correlation over the rank: STS-B, n = 16, bert-base-cased, 200 steps, means of 5 seeds
(arXiv 2406.04112)."""


def _published_change(method: str) -> float:
    """At the largest rank less that at the smallest."""
    return round(PUBLISHED[method][64] - PUBLISHED[method][8], 3)


class RanksMeasured(NamedTuple):
    """What every method reaches at every rank."""

    pearson: Float[np.ndarray, "method rank"] = ABSENT
    """Correlation at the last step on pairs that were not trained on."""
    final_rank: Int[np.ndarray, "method rank matrix"] = ABSENT
    """Rank of what each adapter adds, at the last step."""
    method: Int[np.ndarray, "method"] = ABSENT
    """Places of the methods in METHODS."""
    rank: Int[np.ndarray, "rank"] = ABSENT
    """Ranks that the adapters may have."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """Step at which the first of the trainings diverged, or -1."""


def measure_ranks(case: Tuning, keeper: Keeper = FORGETFUL) -> RanksMeasured:
    """Every method at every rank, on one set of examples."""
    problem = tuning.problem(case, case.examples, tuning.first_layer(case))
    cells = measure_cells(case, [(problem, rank) for rank in case.rank], keeper)
    return RanksMeasured(**cells._asdict(), rank=np.array(case.rank))


def _change(outcome: Outcome[Any, RanksMeasured], method: str) -> np.ndarray:
    """Pearson at the largest rank less that at the smallest, of the same seed."""
    run = outcome.measured
    ranks = np.ravel(run.rank[:1]).astype(int)
    if len(ranks) < 2:
        return np.zeros(0)
    most, least = (
        cell(run.pearson, run.method, run.rank, method, rank) for rank in (max(ranks), min(ranks))
    )
    return most - least


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """All methods and ranks on the fewest examples."""
    return only("ranks", settings, "part") | {
        "examples": (min(settings["examples"]),),
        "center": settings["center"][:1],
        "init_scale": (min(settings["init_scale"]),),
    }


RANKS = Scenario[Tuning, Any, RanksMeasured](
    "ranks",
    tuning.make_tuning,
    train=measure_ranks,
    measured=RanksMeasured,
    narrow=_settings,
    whole=("method", "rank"),
    steps="steps",
    diverged=lambda run: run.diverged_at,
    seeds=3,
    findings=(
        Finding(
            "ranks_lora",
            "LoRA: Pearson at the largest rank less that at the smallest",
            lambda outcome: _change(outcome, "lora"),
            reads=lambda theory, run: (run.pearson, run.method, run.rank),
            below=0.0,
            source=_published_change("lora"),
        ),
        Finding(
            "ranks_deep_lora",
            "Deep LoRA: the same",
            lambda outcome: _change(outcome, "deep_lora"),
            reads=lambda theory, run: (run.pearson, run.method, run.rank),
            above=0.0,
            source=_published_change("deep_lora"),
        ),
        Finding(
            "ranks_lora_over_rank",
            "LoRA with alpha / r: the same",
            lambda outcome: _change(outcome, "lora_over_rank"),
            reads=lambda theory, run: (run.pearson, run.method, run.rank),
        ),
        Finding(
            "ranks_falls_less",
            "the second less the first",
            lambda outcome: difference(_change(outcome, "deep_lora"), _change(outcome, "lora")),
            reads=lambda theory, run: (run.pearson, run.method, run.rank),
            above=0.0,
            source=round(_published_change("deep_lora") - _published_change("lora"), 3),
        ),
    ),
)
