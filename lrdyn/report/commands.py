"""The command that verifies what a report shows."""

from __future__ import annotations

from lrdyn.registry import REGISTRY, theorem
from lrdyn.studies import REGISTRY as STUDIES
from lrdyn.studies import study
from lrdyn.verification.runs.repeating import OWN


def command_of(name: str, title: str) -> str:
    """Command that verifies a theorem or study, by its name if it is the library's.

    Args:
        name: of the theorem; somebody else's may have the same.
        title: its line.

    Example:
        >>> command_of("theorem2", "a theorem of mine")
        'lrdyn verify FILE.py'
    """
    known = theorem if name in REGISTRY else study if name in STUDIES else None
    ours = known is not None and known(name).summary == title
    return f"lrdyn verify {name}" if ours else OWN
