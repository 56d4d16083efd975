"""Low-rank learning dynamics: theorems, checked on the code that runs.

What a reader of the README types is here; the rest is reached by topic, as in
``lrdyn.subspace.blocks``.
"""

from importlib.metadata import version

from lrdyn import interrupts, memory_limit

with interrupts.importing():
    memory_limit.require(memory_limit.IMPORTING)
    from lrdyn import (
        adapters,
        autoencoding,
        classifier,
        compression,
        convergence,
        descent,
        dropout,
        entries,
        factorization,
        gradient_rank,
        initialization,
        landscape,
        masking,
        recovery,
        shrinkage,
        spectra,
        subspace,
        theorem,
    )
    from lrdyn.adapters.descent import low_rank_descent
    from lrdyn.adapters.galore import FULL, GALORE
    from lrdyn.adapters.lora_method import LORA
    from lrdyn.adapters.relora import RELORA, RELORA_FROZEN
    from lrdyn.claims import relative_difference, tolerance
    from lrdyn.condition import with_condition
    from lrdyn.descent import Trajectory, gradient_descent, simulate
    from lrdyn.diagnosis import diagnose, watch
    from lrdyn.engine.points import listed, product, sampled, zipped
    from lrdyn.engine.sweep import sweep
    from lrdyn.engine.verify import verify
    from lrdyn.factorization import end_to_end, factorization_loss
    from lrdyn.flags import FRACTION, NON_NEGATIVE, POSITIVE, Flag, at_least, one_of
    from lrdyn.initialization import (
        gaussian_layers,
        low_rank_target,
        orthogonal_layers,
        spaced_singular_values,
        truncated_gaussian_target,
    )
    from lrdyn.recording import recorded_steps
    from lrdyn.spectra import effective_rank, numerical_rank, singular_values
    from lrdyn.subspace import expand, frame, reduced_dynamics, reduced_target, rho
    from lrdyn.theorem import Claim, Control, Experiment, Outcome, Scenario, Theorem

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
    "Experiment",
    "Flag",
    "Outcome",
    "Scenario",
    "Theorem",
    "Trajectory",
    "__version__",
    "adapters",
    "at_least",
    "autoencoding",
    "classifier",
    "compression",
    "convergence",
    "descent",
    "diagnose",
    "dropout",
    "effective_rank",
    "end_to_end",
    "entries",
    "expand",
    "factorization",
    "factorization_loss",
    "frame",
    "gaussian_layers",
    "gradient_descent",
    "gradient_rank",
    "initialization",
    "landscape",
    "listed",
    "low_rank_descent",
    "low_rank_target",
    "masking",
    "numerical_rank",
    "one_of",
    "orthogonal_layers",
    "product",
    "recorded_steps",
    "recovery",
    "reduced_dynamics",
    "reduced_target",
    "relative_difference",
    "rho",
    "sampled",
    "shrinkage",
    "simulate",
    "singular_values",
    "spaced_singular_values",
    "spectra",
    "subspace",
    "sweep",
    "theorem",
    "tolerance",
    "truncated_gaussian_target",
    "verify",
    "watch",
    "with_condition",
    "zipped",
]
