"""Figure 8: how the rank that an adapter may have changes what it reaches.

At each rank a method is trained at its own rate, the best there, and at the one that is best at the
first rank: a fall with the rank that the second alone shows is a fall of the rate's.
"""

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lrdyn.studies.adapter_training import cells, tasks, tuning
from lrdyn.studies.adapter_training.cells import METHODS, TrainingRequest
from lrdyn.studies.adapter_training.few_shot import (
    at_point,
    bench_of,
    cell_of,
    pad_rates,
    ridge_pearson,
    search_rates,
)
from lrdyn.studies.adapter_training.tuning import Tuning
from lrdyn.studies.over_seeds import restrict_to
from lrdyn.training import FORGETFUL, Keeper
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Finding, Outcome, Scenario

PUBLISHED = {
    "lora_unit": {8: 0.539, 16: 0.524, 32: 0.456, 64: 0.175},
    "deep_lora": {8: 0.635, 16: 0.652, 32: 0.660, 64: 0.667},
}
"""Pearson correlation over the rank: STS-B, n = 16, bert-base-cased, 200 steps, means of 5 seeds
(arXiv 2406.04112)."""


def _published_change(method: str) -> float:
    """Published correlation at the largest rank less that at the first."""
    return round(PUBLISHED[method][64] - PUBLISHED[method][8], 3)


OF_RANKS = ("lora_unit", "lora", "deep_lora")
"""Methods whose ranks are compared, as far as they are asked for."""
AT = (16, 64)
"""Numbers of examples at which ranks are compared, as far as they are asked for."""
KINDS = ("own", "first")
"""Rates: the best at each rank, and the best at the first."""


class RanksMeasured(NamedTuple):
    """What every method reaches at every rank."""

    pearson: Float[np.ndarray, "method rank kind_of_rate"] = ABSENT
    """Correlation at the last step, at the rates of KINDS, on texts that were not trained on."""
    energy_rank: Int[np.ndarray, "method rank kind_of_rate matrix"] = ABSENT
    """How many values hold 99 % of the squared norm of what each matrix was given."""
    rate: Float[np.ndarray, "method rank"] = ABSENT
    """The best rate at each rank, on seeds and texts of their own."""
    bracketed: Int[np.ndarray, "method rank"] = ABSENT
    """Whether worse rates lie on both sides of it."""
    tried: Float[np.ndarray, "method rank candidate"] = ABSENT
    """Rates that were tried, NaN behind them."""
    tried_pearson: Float[np.ndarray, "method rank candidate rate_seed"] = ABSENT
    """What they reach there."""
    ridge: Float[np.ndarray, ""] = ABSENT
    """Correlation of a ridge on the network as it is, on the same examples."""
    method: Int[np.ndarray, "method"] = ABSENT
    """Places of the methods in METHODS."""
    rank: Int[np.ndarray, "rank"] = ABSENT
    """Ranks that the adapters may have."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """-1: a training that diverges reaches 0."""


def measure_ranks(case: Tuning, keeper: Keeper = FORGETFUL) -> RanksMeasured:
    """Train every method at every rank, on one set of examples."""
    bench = bench_of(case, keeper)
    pearson, ranks, searches = [], [], []
    for name in case.method:
        best = [search_rates(bench, case, name, rank, case.examples).chosen for rank in case.rank]
        kinds = [(chosen.rate, best[0].rate) for chosen in best]
        runs = [
            [
                bench.run(
                    TrainingRequest(name, rank, case.examples, rate, case.steps, case.init_scale),
                    case.key,
                )
                for rate in pair
            ]
            for rank, pair in zip(case.rank, kinds, strict=True)
        ]
        pearson.append([[float(cell.pearson) for cell in pair] for pair in runs])
        ranks.append(
            [[[cells.energy_rank(v) for v in cell.values] for cell in pair] for pair in runs]
        )
        searches.append(best)
    return RanksMeasured(
        pearson=np.array(pearson),
        energy_rank=np.array(ranks),
        rate=np.array([[chosen.rate for chosen in best] for best in searches]),
        bracketed=np.array([[int(chosen.bracketed) for chosen in best] for best in searches]),
        tried=np.array([[pad_rates(chosen.tried) for chosen in best] for best in searches]),
        tried_pearson=np.array(
            [[pad_rates(chosen.scores) for chosen in best] for best in searches]
        ),
        ridge=np.array(ridge_pearson(bench, case, case.examples)),
        method=np.array([list(METHODS).index(name) for name in case.method]),
        rank=np.array(case.rank),
        diverged_at=np.array(-1),
    )


Measured = Outcome[Any, RanksMeasured]


def _change(outcome: Measured, method: str, kind: str) -> np.ndarray:
    """Pearson at the largest rank less that at the first, of the same seed.

    From the first one, whose rate is kept: the authors' is 8, too.
    """
    run = outcome.measured
    ranks = np.ravel(run.rank[:1]).astype(int)
    first, last = ranks[0], max(ranks)
    if first == last:
        return np.zeros(0)
    values = run.pearson[..., KINDS.index(kind)]
    at_last, at_first = (
        cell_of(values, run.method, run.rank, method, rank) for rank in (last, first)
    )
    return at_last - at_first


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The methods whose ranks are compared, on few examples."""
    at = tuple(n for n in settings["examples"] if n in AT) or settings["examples"][:1]
    methods = tuple(name for name in settings["method"] if name in OF_RANKS)
    mine = restrict_to("ranks", settings, "part")
    return mine | {
        "part": mine["part"] if methods else (),
        "method": methods or settings["method"][:1],
        "examples": at,
        "center": settings["center"][:1],
        "init_scale": (min(settings["init_scale"]),),
    }


def _findings(task: str, examples: int) -> tuple[Finding[Any, RanksMeasured], ...]:
    """Changes with the rank; the authors state theirs at n = 16, on pairs, at one rate for all."""
    where = f"{task}, n = {examples}"
    reads = lambda theory, run: (run.pearson, run.method, run.rank)  # noqa: E731
    words = {"own": "each at its own rate", "first": "all at the rate of the first"}

    def change(method: str, kind: str) -> Finding[Any, RanksMeasured]:
        stated = task in tasks.TASKS and method in PUBLISHED and kind == "first" and examples == 16
        fall = stated and method == "lora_unit"
        return Finding(
            f"ranks_{task}_{examples}_{method}_{kind}",
            f"{where}, {method}: Pearson at the largest rank less that at the first, {words[kind]}",
            at_point(partial(_change, method=method, kind=kind), task=task, examples=examples),
            reads=reads,
            below=0.0 if fall else None,
            above=0.0 if stated and not fall else None,
            source=_published_change(method) if stated and task == "similarity" else None,
            against=0.0 if task in tasks.TASKS and not stated else None,
            rest="equal steps, each at its best rate",
        )

    return tuple(change(method, kind) for method in OF_RANKS for kind in words)


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
    findings=tuple(
        finding
        for task in (*tasks.TASKS, tasks.DIGITS)
        for examples in AT
        for finding in _findings(task, examples)
    ),
)
