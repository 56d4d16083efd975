"""The registry of theorems: a new one is one line here beside its own files."""

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrdyn.verification.stating.statement import Theorem

REGISTRY = {
    "theorem1": "lrdyn.theorem1.statement:THEOREM1",
    "theorem2": "lrdyn.theorem2.statement:THEOREM2",
    "corollary1": "lrdyn.corollary1.statement:COROLLARY1",
    "equivariance": "lrdyn.equivariance.statement:EQUIVARIANCE",
    "completion": "lrdyn.completion.statement:COMPLETION",
    "theorem3": "lrdyn.theorem3.statement:THEOREM3",
    "theorem4": "lrdyn.theorem4.statement:THEOREM4",
    "galore": "lrdyn.galore.statement:GALORE",
    "galore_noise": "lrdyn.galore_noise.statement:GALORE_NOISE",
    "lora": "lrdyn.lora.statement:LORA",
    "edge_of_stability": "lrdyn.edge_of_stability.statement:EDGE_OF_STABILITY",
}
"""Name of the command -> where the theorem is stated; imported when it is asked for."""
BEYOND_THE_SURVEY = ("equivariance", "galore", "galore_noise", "edge_of_stability")
"""Those that are none of the survey's: what another library, optax, implements, and new results."""


def theorem(name: str) -> "Theorem":
    """Look up a theorem by the name of its command.

    Raises:
        ValueError: there is none of that name.

    Example:
        >>> theorem("theorem2").name
        'theorem2'
    """
    if name not in REGISTRY:
        raise ValueError(f"theorem: got {name!r}, wanted one of {', '.join(REGISTRY)}")
    return resolve_name(REGISTRY[name])


def theorems() -> "tuple[Theorem, ...]":
    """All theorems, in the order in which they are listed."""
    return tuple(map(theorem, REGISTRY))
