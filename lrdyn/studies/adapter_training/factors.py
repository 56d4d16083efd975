"""Figure 5: norms of LoRA's factors with one rate and with two, and what each rate reaches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lrdyn.studies.adapter_training import cells, tuning
from lrdyn.studies.adapter_training.cells import TrainingRequest
from lrdyn.studies.adapter_training.few_shot import LAST, bench_of, pad_rates, search_rates
from lrdyn.studies.adapter_training.tuning import Tuning
from lrdyn.studies.over_seeds import restrict_to
from lrdyn.training import FORGETFUL, Keeper
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Finding, Outcome, Scenario

COMPARED = ("lora", "lora_plus_4", "lora_plus_16")
EXAMPLES = 64
"""Examples of the figure if they are asked for; else the largest number that is."""


class FactorsMeasured(NamedTuple):
    """What is measured of the factors with each method, in the order of COMPARED."""

    norm_A: Float[np.ndarray, "method_of_factors step matrix"] = ABSENT
    """||A||_F of every adapted matrix, at the best rate."""
    norm_B: Float[np.ndarray, "method_of_factors step matrix"] = ABSENT
    """||B||_F of every adapted matrix, at the best rate."""
    pearson: Float[np.ndarray, "method_of_factors"] = ABSENT
    """Correlation on texts that were not trained on, at the best rate."""
    loss: Float[np.ndarray, "method_of_factors"] = ABSENT
    """Training loss there, mean over the last ten steps."""
    rate: Float[np.ndarray, "method_of_factors"] = ABSENT
    """The rate of A that is best on seeds and texts of their own; that of B is a multiple."""
    tried: Float[np.ndarray, "method_of_factors candidate"] = ABSENT
    """Rates of A that were tried, NaN behind them."""
    tried_pearson: Float[np.ndarray, "method_of_factors candidate rate_seed"] = ABSENT
    """What they reach there."""
    tried_loss: Float[np.ndarray, "method_of_factors candidate rate_seed"] = ABSENT
    """Training loss there, mean over the last ten steps."""
    step: Int[np.ndarray, "step"] = ABSENT
    """Recorded steps."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """-1: a rate at which the reported training diverges is not chosen."""


Measured = Outcome[Any, FactorsMeasured]


def measure_factors(case: Tuning, keeper: Keeper = FORGETFUL) -> FactorsMeasured:
    """Train with LoRA and LoRA+, each at the rate that is best for it elsewhere."""
    bench = bench_of(case, keeper)
    tried = [search_rates(bench, case, name, case.rank, case.examples) for name in COMPARED]
    runs = [
        bench.run(
            TrainingRequest(
                name, case.rank, case.examples, search.chosen.rate, case.steps, case.init_scale
            ),
            case.key,
        )
        for name, search in zip(COMPARED, tried, strict=True)
    ]
    return FactorsMeasured(
        norm_B=np.stack([run.norms[..., 0] for run in runs]),
        norm_A=np.stack([run.norms[..., 1] for run in runs]),
        pearson=np.array([float(run.pearson) for run in runs]),
        loss=np.array([float(np.mean(run.losses[-LAST:])) for run in runs]),
        rate=np.array([search.chosen.rate for search in tried]),
        tried=np.stack([pad_rates(search.chosen.tried) for search in tried]),
        tried_pearson=np.stack([pad_rates(search.chosen.scores) for search in tried]),
        tried_loss=np.stack([pad_rates(search.losses) for search in tried]),
        step=cells.norm_steps(case.steps),
        diverged_at=np.array(-1),
    )


def _growth(
    norm: Callable[[FactorsMeasured], np.ndarray], method: str
) -> Callable[[Measured], np.ndarray]:
    """Norm at the end over that of A at the start, mean over the matrices."""
    place = COMPARED.index(method)

    def growth(outcome: Measured) -> np.ndarray:
        run = outcome.measured
        return np.mean(norm(run)[:, place, -1] / run.norm_A[:, place, 0], axis=-1)

    return growth


def _gain_over_lora(method: str) -> Callable[[Measured], np.ndarray]:
    """LoRA+ less LoRA, of the same seed, each at its best rate."""

    def gain(outcome: Measured) -> np.ndarray:
        pearson = outcome.measured.pearson
        return pearson[:, COMPARED.index(method)] - pearson[:, COMPARED.index("lora")]

    return gain


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """One number of examples, the smallest init scale, the first of everything else."""
    some = settings["examples"]
    return restrict_to("factors", settings, "part") | {
        "task": settings["task"][:1],
        "method": settings["method"][:1],
        "rank": settings["rank"][:1],
        "examples": (EXAMPLES if EXAMPLES in some else max(some),),
        "center": settings["center"][:1],
        "init_scale": (min(settings["init_scale"]),),
    }


def _norms(method: str, title: str) -> tuple[Finding[Any, FactorsMeasured], ...]:
    """How far both factors of a method move."""
    reads = lambda theory, run: (run.norm_A, run.norm_B)  # noqa: E731
    return (
        Finding(
            f"factors_A_{method}",
            f"{title}: ||A||_F at the end over that at the start, mean over matrices",
            _growth(lambda run: run.norm_A, method),
            reads=reads,
        ),
        Finding(
            f"factors_B_{method}",
            f"{title}: ||B||_F at the end over ||A||_F at the start, mean over matrices",
            _growth(lambda run: run.norm_B, method),
            reads=reads,
        ),
    )


FACTORS = Scenario[Tuning, Any, FactorsMeasured](
    "factors",
    tuning.make_tuning,
    train=measure_factors,
    measured=FactorsMeasured,
    narrow=_settings,
    steps="steps",
    diverged=lambda run: run.diverged_at,
    findings=(
        *_norms("lora", "LoRA"),
        *_norms("lora_plus_4", "LoRA+ (ratio 4)"),
        *_norms("lora_plus_16", "LoRA+ (ratio 16)"),
        *(
            Finding(
                f"factors_{method}_ahead",
                f"Pearson of {method} less that of lora, each at its best rate",
                _gain_over_lora(method),
                reads=lambda theory, run: (run.pearson,),
                above=0.0,
                rest="equal steps, each at its best rate",
            )
            for method in COMPARED[1:]
        ),
    ),
)
