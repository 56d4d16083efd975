"""Figure 5: norms of LoRA's factors and the correlation they reach, with one rate and with two."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lrdyn.core.recording import recorded_steps
from lrdyn.engine.statement import Finding, Outcome, Scenario
from lrdyn.studies.adapter_training import tuning
from lrdyn.studies.adapter_training.tuning import Tuning
from lrdyn.studies.over_seeds import first_lost, only

POINTS = 11
COMPARED = ("lora", "lora_plus", "lora_b")


def norms(made: dict) -> dict[str, Array]:
    """||A||_F and ||B||_F of every adapted matrix."""
    return {
        name: jnp.stack([jnp.linalg.norm(getattr(one, name)) for one in made.values()])
        for name in ("A", "B")
    }


def measure_factors(case: Tuning) -> dict[str, Any]:
    """Train with LoRA, LoRA+ and LoRA with B drawn, and look now and then."""
    layer = tuning.first_layer(case)
    found = tuning.problem(case, case.examples, layer)
    steps = recorded_steps(case.steps, POINTS)
    runs = [
        tuning.tuned(case, found, name, case.rank, steps, watch=norms, label=name)[1]
        for name in COMPARED
    ]
    records = {n: np.stack([run.records[n] for run in runs]) for n in runs[0].records}
    return {
        "norm_A": records["A"], "norm_B": records["B"], "pearson": records["pearson"],
        "loss": np.stack([run.metrics["loss"] for run in runs]), "step": steps,
        "diverged_at": np.array(first_lost(run.diverged_at for run in runs)),
    }  # fmt: skip


def _growth(name: str, method: str) -> Any:
    """Norm at the end over that of the drawn factor at the start, mean over the matrices."""
    place = COMPARED.index(method)

    def value(one: Outcome) -> np.ndarray:
        found = one.measured[name][:, place]
        begin = np.maximum(*(one.measured[n][:, place, 0] for n in ("norm_A", "norm_B")))
        return np.mean(found[:, -1] / begin, axis=-1)

    return value


def _ahead(one: Outcome) -> np.ndarray:
    """LoRA+ less LoRA, mean over the recorded steps after the start."""
    lora, plus, _ = np.moveaxis(one.measured["pearson"], 1, 0)
    return np.mean((plus - lora)[:, 1:], axis=-1)


NORMS = ("norm_A", "norm_B")
FACTORS = Scenario[Tuning](
    "factors", tuning.make_tuning, measure=measure_factors,
    dims={
        **dict.fromkeys(NORMS, ("method_of_factors", "step", "matrix")),
        **dict.fromkeys(("pearson", "loss"), ("method_of_factors", "step")), "step": ("step",),
    },
    narrow=lambda settings: only("factors", settings, "part") | {
        "method": settings["method"][:1], "rank": settings["rank"][:1],
        "examples": (max(settings["examples"]),), "center": settings["center"][:1],
        "init_scale": (min(settings["init_scale"]),),
    },
    diverged="diverged_at", trains=True, steps="steps",
    findings=(
        Finding("factors_A", "LoRA: ||A||_F at the end over that at the start, mean over matrices",
                _growth("norm_A", "lora"), reads=NORMS),
        Finding("factors_B", "LoRA: ||B||_F at the end over ||A||_F at the start, mean over "
                "matrices", _growth("norm_B", "lora"), reads=NORMS),
        Finding("factors_A_plus", "LoRA+ (ratio 16): the first of these",
                _growth("norm_A", "lora_plus"), reads=NORMS),
        Finding("factors_B_plus", "LoRA+: the second", _growth("norm_B", "lora_plus"), reads=NORMS),
        Finding("factors_plus_ahead",
                "Pearson of LoRA+ less that of LoRA, mean over the recorded steps",
                _ahead, reads=("pearson",), above=0.0),
    ),
)  # fmt: skip
