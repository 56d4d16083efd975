"""The registry of theorems: a new one is one line here beside its own files."""

from pkgutil import resolve_name
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lrdyn.theorem import Theorem

REGISTRY = {
    "theorem1": "lrdyn.theorems.theorem1:THEOREM1",
    "theorem2": "lrdyn.theorems.theorem2:THEOREM2",
    "corollary1": "lrdyn.theorems.corollary1:COROLLARY1",
    "completion": "lrdyn.theorems.completion:COMPLETION",
    "theorem3": "lrdyn.theorems.theorem3:THEOREM3",
    "theorem4": "lrdyn.theorems.theorem4:THEOREM4",
    "lora": "lrdyn.theorems.lora:LORA",
}
"""Name of the command -> where the theorem is stated; imported when it is asked for."""


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
