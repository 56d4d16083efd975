"""Low-rank learning dynamics: theorems, checked on the code that runs.

The names that the README uses are here; the rest is reached by the items of the survey, as in
``lrdyn.theorem2.blocks``. Rooms of theorems, and those that draw, train studies or run commands,
are imported when they are asked for.
"""

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lrdyn.system import interrupts, memory_limit

with interrupts.guard_import():
    memory_limit.require(memory_limit.IMPORTING)
    from lrdyn import (
        adapters,
        core,
        data,
        diagnosis,
        networks,
        training,
        verification,
    )
    from lrdyn.adapters.algorithm_1 import low_rank_descent
    from lrdyn.adapters.methods import FULL, GALORE, LORA, RELORA, RELORA_FROZEN
    from lrdyn.core import (
        Trajectory,
        effective_rank,
        end_to_end,
        factorization_loss,
        gaussian_layers,
        gradient_descent,
        low_rank_target,
        numerical_rank,
        orthogonal_layers,
        recorded_steps,
        simulate,
        singular_values,
        spaced_singular_values,
        truncated_gaussian_target,
        with_condition,
    )
    from lrdyn.core.show import near
    from lrdyn.diagnosis import diagnose, watch
    from lrdyn.recorded_runs import judge_run
    from lrdyn.registry import REGISTRY
    from lrdyn.statements import verify
    from lrdyn.studies.over_seeds import mean_exceeds
    from lrdyn.theorem2 import expand, frame, reduced_dynamics, reduced_target, rho
    from lrdyn.verification.judging.entries import Entry
    from lrdyn.verification.running.sweep import sweep
    from lrdyn.verification.runs.verify import DoesNotHold, Verification
    from lrdyn.verification.stating.claims import (
        Decision,
        MoreSteps,
        relative_difference,
        tolerance,
    )
    from lrdyn.verification.stating.fields import ABSENT, both_sides, of_run, of_theory
    from lrdyn.verification.stating.flags import (
        FRACTION,
        NON_NEGATIVE,
        POSITIVE,
        Domain,
        Flag,
        at_least,
        between,
        one_of,
    )
    from lrdyn.verification.stating.forms import (
        AtLeast,
        AtMost,
        Count,
        Equal,
        Stated,
        Test,
        Zero,
        scale_of_each,
        start_of,
    )
    from lrdyn.verification.stating.points import listed, product, sampled, zipped
    from lrdyn.verification.stating.rest import OverSteps
    from lrdyn.verification.stating.statement import (
        Claim,
        Control,
        Experiment,
        Finding,
        Outcome,
        Scenario,
        Study,
        Theorem,
    )

if TYPE_CHECKING:
    from lrdyn.cli import main

__version__ = version("lrdyn")
__all__ = [
    "ABSENT",
    "FRACTION",
    "FULL",
    "GALORE",
    "LORA",
    "NON_NEGATIVE",
    "POSITIVE",
    "RELORA",
    "RELORA_FROZEN",
    "AtLeast",
    "AtMost",
    "Claim",
    "Control",
    "Count",
    "Decision",
    "DoesNotHold",
    "Domain",
    "Entry",
    "Equal",
    "Experiment",
    "Finding",
    "Flag",
    "MoreSteps",
    "Outcome",
    "OverSteps",
    "Scenario",
    "Stated",
    "Study",
    "Test",
    "Theorem",
    "Trajectory",
    "Verification",
    "Zero",
    "__version__",
    "adapters",
    "at_least",
    "between",
    "both_sides",
    "core",
    "data",
    "diagnose",
    "diagnosis",
    "effective_rank",
    "end_to_end",
    "expand",
    "factorization_loss",
    "frame",
    "gaussian_layers",
    "gradient_descent",
    "judge_run",
    "listed",
    "low_rank_descent",
    "low_rank_target",
    "main",
    "mean_exceeds",
    "networks",
    "numerical_rank",
    "of_run",
    "of_theory",
    "one_of",
    "orthogonal_layers",
    "product",
    "recorded_steps",
    "reduced_dynamics",
    "reduced_target",
    "relative_difference",
    "rho",
    "sampled",
    "scale_of_each",
    "simulate",
    "singular_values",
    "spaced_singular_values",
    "start_of",
    "sweep",
    "tolerance",
    "training",
    "truncated_gaussian_target",
    "verification",
    "verify",
    "watch",
    "with_condition",
    "zipped",
]


ROOMS = (
    *(place.split(".")[1] for place in REGISTRY.values()),
    *("cli", "figures", "studies", "testing"),
)
"""Rooms and modules that are imported when they are asked for."""


def __getattr__(name: str) -> Any:
    if name == "main":  # which imports the commands, and Matplotlib with them
        return import_module(f"{__name__}.cli").main
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    meant = near(name, __dir__())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{meant}")


def __dir__() -> list[str]:
    return sorted({*__all__, *ROOMS})
