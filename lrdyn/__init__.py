"""Low-rank learning dynamics: theorems, checked on the code that runs.

The names that the README uses are here; the rest is reached by the items of the survey, as in
``lrdyn.theorem2.blocks``. Rooms that draw, train studies or run commands are imported when they are
asked for.
"""

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from lrdyn.system import interrupts, memory_limit

with interrupts.importing():
    memory_limit.require(memory_limit.IMPORTING)
    from lrdyn import (
        adapters,
        completion,
        core,
        corollary1,
        data,
        diagnosis,
        galore,
        lora,
        networks,
        theorem1,
        theorem2,
        theorem3,
        theorem4,
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
    "completion",
    "core",
    "corollary1",
    "data",
    "diagnose",
    "diagnosis",
    "effective_rank",
    "end_to_end",
    "expand",
    "factorization_loss",
    "frame",
    "galore",
    "gaussian_layers",
    "gradient_descent",
    "listed",
    "lora",
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
    "theorem1",
    "theorem2",
    "theorem3",
    "theorem4",
    "tolerance",
    "training",
    "truncated_gaussian_target",
    "verification",
    "verify",
    "watch",
    "with_condition",
    "zipped",
]

_ON_DEMAND = ("commands", "figures", "studies")


def __getattr__(name: str) -> ModuleType:
    if name in _ON_DEMAND:
        return import_module(f"lrdyn.{name}")
    raise AttributeError(f"module 'lrdyn' has no attribute {name!r}")
