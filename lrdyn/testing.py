"""Theorems as tests: ``assert_holds`` fails with what is false or undecided, and with numbers.

The same function is a fixture of pytest wherever lrdyn is installed: a test that has an argument
``assert_holds`` gets it.
"""

import os
from types import ModuleType
from typing import Any

from lrdyn.statements import verify
from lrdyn.verification.runs.verify import Verification
from lrdyn.verification.stating.statement import Experiment


def assert_holds(
    theorem: str | os.PathLike | ModuleType | Experiment, **settings: Any
) -> Verification:
    """Verify a theorem, and raise unless it holds: FALSE and undecided both fail.

    Args:
        theorem: a theorem, its name, a module or a file, as :func:`lrdyn.verify` takes it.
        **settings: those of :func:`lrdyn.verify`.

    Returns:
        The verification, whose verdict is HOLDS.

    Raises:
        DoesNotHold: an ``AssertionError`` that names claims and controls with residual, tolerance,
            worst case and the command that repeats it; of what is undecided, why.
        ValueError: what :func:`lrdyn.verify` refuses.

    Example:
        >>> found = assert_holds("corollary1", dim=9, depth=2, rank=1, steps=9, seeds=1)
        >>> found.claims["error_identity"].holds
        True
    """
    __tracebackhide__ = True
    found = verify(theorem, **settings)
    found.raise_unless_holds()
    return found
