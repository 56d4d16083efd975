"""Low-rank learning dynamics: theorems, checked on the code that runs.

The names that the README uses are here; the rest is reached by the items of the survey, as in
``lrdyn.theorem2.blocks``. ``import lrdyn`` imports none of it, and not JAX: each name is imported
when it is first asked for.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrdyn.registry import REGISTRY
from lrdyn.system import interrupts, memory_limit

interrupts.guard_process()
memory_limit.require(memory_limit.IMPORTING)

if TYPE_CHECKING:
    # The public names: type checkers read them here, and so does ``_places``.
    from lrdyn import adapters as adapters
    from lrdyn import core as core
    from lrdyn import data as data
    from lrdyn import diagnosis as diagnosis
    from lrdyn import networks as networks
    from lrdyn import training as training
    from lrdyn import verification as verification
    from lrdyn.adapters.algorithm_1 import low_rank_descent as low_rank_descent
    from lrdyn.adapters.methods import FULL as FULL
    from lrdyn.adapters.methods import GALORE as GALORE
    from lrdyn.adapters.methods import LORA as LORA
    from lrdyn.adapters.methods import RELORA as RELORA
    from lrdyn.adapters.methods import RELORA_FROZEN as RELORA_FROZEN
    from lrdyn.cli import main as main
    from lrdyn.core import Trajectory as Trajectory
    from lrdyn.core import effective_rank as effective_rank
    from lrdyn.core import end_to_end as end_to_end
    from lrdyn.core import factorization_loss as factorization_loss
    from lrdyn.core import gaussian_layers as gaussian_layers
    from lrdyn.core import gradient_descent as gradient_descent
    from lrdyn.core import low_rank_target as low_rank_target
    from lrdyn.core import numerical_rank as numerical_rank
    from lrdyn.core import orthogonal_layers as orthogonal_layers
    from lrdyn.core import recorded_steps as recorded_steps
    from lrdyn.core import simulate as simulate
    from lrdyn.core import singular_values as singular_values
    from lrdyn.core import spaced_singular_values as spaced_singular_values
    from lrdyn.core import truncated_gaussian_target as truncated_gaussian_target
    from lrdyn.core import with_condition as with_condition
    from lrdyn.diagnosis import diagnose as diagnose
    from lrdyn.diagnosis import watch as watch
    from lrdyn.recorded_runs import judge_run as judge_run
    from lrdyn.statements import verify as verify
    from lrdyn.studies.over_seeds import mean_exceeds as mean_exceeds
    from lrdyn.theorem2 import expand as expand
    from lrdyn.theorem2 import frame as frame
    from lrdyn.theorem2 import reduced_dynamics as reduced_dynamics
    from lrdyn.theorem2 import reduced_target as reduced_target
    from lrdyn.theorem2 import rho as rho
    from lrdyn.verification.judging.entries import Entry as Entry
    from lrdyn.verification.machine.compiler_options import compiler_options as compiler_options
    from lrdyn.verification.running.sweep import sweep as sweep
    from lrdyn.verification.runs.verify import DoesNotHold as DoesNotHold
    from lrdyn.verification.runs.verify import Verification as Verification
    from lrdyn.verification.stating.claims import Decision as Decision
    from lrdyn.verification.stating.claims import MoreSteps as MoreSteps
    from lrdyn.verification.stating.claims import relative_difference as relative_difference
    from lrdyn.verification.stating.claims import tolerance as tolerance
    from lrdyn.verification.stating.fields import ABSENT as ABSENT
    from lrdyn.verification.stating.fields import both_sides as both_sides
    from lrdyn.verification.stating.fields import of_run as of_run
    from lrdyn.verification.stating.fields import of_theory as of_theory
    from lrdyn.verification.stating.flags import FRACTION as FRACTION
    from lrdyn.verification.stating.flags import NON_NEGATIVE as NON_NEGATIVE
    from lrdyn.verification.stating.flags import POSITIVE as POSITIVE
    from lrdyn.verification.stating.flags import Domain as Domain
    from lrdyn.verification.stating.flags import Flag as Flag
    from lrdyn.verification.stating.flags import at_least as at_least
    from lrdyn.verification.stating.flags import between as between
    from lrdyn.verification.stating.flags import one_of as one_of
    from lrdyn.verification.stating.forms import AtLeast as AtLeast
    from lrdyn.verification.stating.forms import AtMost as AtMost
    from lrdyn.verification.stating.forms import Count as Count
    from lrdyn.verification.stating.forms import Equal as Equal
    from lrdyn.verification.stating.forms import Stated as Stated
    from lrdyn.verification.stating.forms import Test as Test
    from lrdyn.verification.stating.forms import Zero as Zero
    from lrdyn.verification.stating.forms import scale_of_each as scale_of_each
    from lrdyn.verification.stating.forms import start_of as start_of
    from lrdyn.verification.stating.points import listed as listed
    from lrdyn.verification.stating.points import product as product
    from lrdyn.verification.stating.points import sampled as sampled
    from lrdyn.verification.stating.points import zipped as zipped
    from lrdyn.verification.stating.rest import OverSteps as OverSteps
    from lrdyn.verification.stating.statement import Claim as Claim
    from lrdyn.verification.stating.statement import Control as Control
    from lrdyn.verification.stating.statement import Experiment as Experiment
    from lrdyn.verification.stating.statement import Finding as Finding
    from lrdyn.verification.stating.statement import Outcome as Outcome
    from lrdyn.verification.stating.statement import Scenario as Scenario
    from lrdyn.verification.stating.statement import Study as Study
    from lrdyn.verification.stating.statement import Theorem as Theorem

__version__: str

ROOMS = (
    *(place.split(".")[1] for place in REGISTRY.values()),
    *("cli", "figures", "studies", "testing"),
)
"""Modules that are reached by the package's name and are in no ``__all__``."""


@cache
def _places() -> dict[str, str]:
    """Public name -> module that has it, of the imports above."""
    import ast

    tree = ast.parse(Path(__file__).read_bytes())
    [public] = (node for node in tree.body if isinstance(node, ast.If))
    taken = (node for node in public.body if isinstance(node, ast.ImportFrom))
    return {alias.name: str(node.module) for node in taken for alias in node.names}


def __getattr__(name: str) -> Any:
    match name:
        case "__all__":
            value = sorted([*_places(), "__version__"])
        case "__version__":
            from lrdyn.system.release import library_version

            value = library_version()
        case _:
            value = _imported(name)
    globals()[name] = value  # where Python itself finds it from now on
    return value


def _imported(name: str) -> Any:
    """A public name, or a module of the package."""
    from importlib.util import find_spec

    from lrdyn.system.messages import near

    if not name.startswith("_"):
        place = _places().get(name, __name__)
        with interrupts.guard_import():
            if place != __name__:
                return getattr(import_module(place), name)
            if find_spec(f"{__name__}.{name}"):
                return import_module(f"{__name__}.{name}")
    meant = near(name, __dir__())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{meant}")


def __dir__() -> list[str]:
    return sorted({*__getattr__("__all__"), *ROOMS})
