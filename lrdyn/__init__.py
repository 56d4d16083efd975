"""Low-rank learning dynamics: theorems, checked on the code that runs.

The names that the README uses are here; the rest is reached by the items of the survey, as in
``lrdyn.theorem2.blocks``. Rooms of theorems, and those that draw, train studies or run commands,
are imported when they are asked for.
"""

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType

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
    from lrdyn.diagnosis import diagnose, watch
    from lrdyn.recorded_runs import judge_run
    from lrdyn.theorem2 import expand, frame, reduced_dynamics, reduced_target, rho
    from lrdyn.verification.running.sweep import sweep
    from lrdyn.verification.runs.verify import verify
    from lrdyn.verification.stating.claims import Decision, relative_difference, tolerance
    from lrdyn.verification.stating.flags import (
        FRACTION,
        NON_NEGATIVE,
        POSITIVE,
        Flag,
        at_least,
        one_of,
    )
    from lrdyn.verification.stating.points import listed, product, sampled, zipped
    from lrdyn.verification.stating.statement import (
        Claim,
        Control,
        Experiment,
        Outcome,
        Scenario,
        Theorem,
    )

__version__ = version("lrdyn")
__all__ = [
    "FRACTION",
    "FULL",
    "GALORE",
    "LORA",
    "NON_NEGATIVE",
    "POSITIVE",
    "RELORA",
    "RELORA_FROZEN",
    "Claim",
    "Control",
    "Decision",
    "Experiment",
    "Flag",
    "Outcome",
    "Scenario",
    "Theorem",
    "Trajectory",
    "__version__",
    "adapters",
    "at_least",
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
    "networks",
    "numerical_rank",
    "one_of",
    "orthogonal_layers",
    "product",
    "recorded_steps",
    "reduced_dynamics",
    "reduced_target",
    "relative_difference",
    "rho",
    "sampled",
    "simulate",
    "singular_values",
    "spaced_singular_values",
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


def __getattr__(name: str) -> ModuleType:
    if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
