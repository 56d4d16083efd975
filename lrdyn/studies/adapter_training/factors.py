"""Figure 5: norms of LoRA's factors and the correlation they reach, with one rate and with two."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrdyn.core.recording import recorded_steps
from lrdyn.engine.fields import ABSENT
from lrdyn.engine.statement import Finding, Outcome, Scenario
from lrdyn.studies.adapter_training import tuning
from lrdyn.studies.adapter_training.tuning import Tuning
from lrdyn.studies.over_seeds import first_lost, only
from lrdyn.training import FORGETFUL, Keeper

POINTS = 11
COMPARED = ("lora", "lora_plus", "lora_b")


class FactorsMeasured(NamedTuple):
    """What is measured of the factors with each method, in the order of COMPARED."""

    norm_A: Float[np.ndarray, "method_of_factors step matrix"] = ABSENT
    """||A||_F of every adapted matrix."""
    norm_B: Float[np.ndarray, "method_of_factors step matrix"] = ABSENT
    """||B||_F of every adapted matrix."""
    pearson: Float[np.ndarray, "method_of_factors step"] = ABSENT
    """Correlation on pairs that were not trained on."""
    loss: Float[np.ndarray, "method_of_factors step"] = ABSENT
    """Loss of the last batch before each recorded step; NaN at the start."""
    step: Int[np.ndarray, "step"] = ABSENT
    """Recorded steps."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """Step at which the first of the trainings diverged, or -1."""


Measured = Outcome[Any, FactorsMeasured]


def norms(now: dict) -> tuple[Float[Array, "matrices"], Float[Array, "matrices"]]:
    """||A||_F and ||B||_F of every adapted matrix."""
    return (
        jnp.stack([jnp.linalg.norm(adapter.A) for adapter in now.values()]),
        jnp.stack([jnp.linalg.norm(adapter.B) for adapter in now.values()]),
    )


def measure_factors(case: Tuning, keeper: Keeper = FORGETFUL) -> FactorsMeasured:
    """Train with LoRA, LoRA+ and LoRA with B drawn, and look now and then."""
    problem = tuning.problem(case, case.examples, tuning.first_layer(case))
    steps = recorded_steps(case.steps, POINTS)
    runs = [
        tuning.tuned(case, problem, name, case.rank, steps, watch=norms, label=name, keeper=keeper)[
            1
        ]
        for name in COMPARED
    ]
    return FactorsMeasured(
        norm_A=np.stack([run.records.watched[0] for run in runs]),
        norm_B=np.stack([run.records.watched[1] for run in runs]),
        pearson=np.stack([run.records.pearson for run in runs]),
        loss=np.stack([run.metrics["loss"] for run in runs]),
        step=steps,
        diverged_at=np.array(first_lost(run.diverged_at for run in runs)),
    )


def _growth(
    norm: Callable[[FactorsMeasured], np.ndarray], method: str
) -> Callable[[Measured], np.ndarray]:
    """Norm at the end over that of the drawn factor at the start, mean over the matrices."""
    place = COMPARED.index(method)

    def growth(outcome: Measured) -> np.ndarray:
        run = outcome.measured
        # The other factor starts at 0.
        drawn = np.maximum(run.norm_A[:, place, 0], run.norm_B[:, place, 0])
        return np.mean(norm(run)[:, place, -1] / drawn, axis=-1)

    return growth


def _ahead(outcome: Measured) -> np.ndarray:
    """LoRA+ less LoRA, mean over the recorded steps after the start."""
    lora, plus, _ = np.moveaxis(outcome.measured.pearson, 1, 0)
    return np.mean((plus - lora)[:, 1:], axis=-1)


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    """One setting: the most examples, the smallest init scale, the first of everything else."""
    return only("factors", settings, "part") | {
        "method": settings["method"][:1],
        "rank": settings["rank"][:1],
        "examples": (max(settings["examples"]),),
        "center": settings["center"][:1],
        "init_scale": (min(settings["init_scale"]),),
    }


FACTORS = Scenario[Tuning, Any, FactorsMeasured](
    "factors",
    tuning.make_tuning,
    train=measure_factors,
    measured=FactorsMeasured,
    narrow=_settings,
    steps="steps",
    diverged=lambda run: run.diverged_at,
    findings=(
        Finding(
            "factors_A",
            "LoRA: ||A||_F at the end over that at the start, mean over matrices",
            _growth(lambda run: run.norm_A, "lora"),
            reads=lambda theory, run: (run.norm_A, run.norm_B),
        ),
        Finding(
            "factors_B",
            "LoRA: ||B||_F at the end over ||A||_F at the start, mean over matrices",
            _growth(lambda run: run.norm_B, "lora"),
            reads=lambda theory, run: (run.norm_A, run.norm_B),
        ),
        Finding(
            "factors_A_plus",
            "LoRA+ (ratio 16): the first of these",
            _growth(lambda run: run.norm_A, "lora_plus"),
            reads=lambda theory, run: (run.norm_A, run.norm_B),
        ),
        Finding(
            "factors_B_plus",
            "LoRA+: the second",
            _growth(lambda run: run.norm_B, "lora_plus"),
            reads=lambda theory, run: (run.norm_A, run.norm_B),
        ),
        Finding(
            "factors_plus_ahead",
            "Pearson of LoRA+ less that of LoRA, mean over the recorded steps",
            _ahead,
            reads=lambda theory, run: (run.pearson,),
            above=0.0,
        ),
    ),
)
