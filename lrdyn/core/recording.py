"""When a run is recorded: at steps that are known before it is traced."""

from typing import Any

import equinox as eqx
import numpy as np
from jax.core import Tracer

from lrdyn.core import checks


def recorded_steps(steps: int, at_most: int = 50) -> np.ndarray:
    """Choose evenly spread steps at which to record, first (0) and last included.

    Raises:
        ValueError: ``steps`` is smaller than 1 or ``at_most`` smaller than 2.

    Example:
        >>> recorded_steps(100, at_most=5).tolist(), recorded_steps(2).tolist()
        ([0, 25, 50, 75, 100], [0, 1, 2])
    """
    steps = checks.integer("steps", steps, 1, 2**31 - 1)
    at_most = checks.integer("at_most", at_most, 2)
    checks.allocation({"at_most": at_most}, (min(at_most, steps + 1),), dtype="float64")
    return np.unique(np.rint(np.linspace(0, steps, min(at_most, steps + 1))).astype(np.int32))


def log_steps(steps: int, at_most: int) -> np.ndarray:
    """Choose steps at which to record from 1 to ``steps``, evenly spread on a log axis.

    Example:
        >>> log_steps(100, at_most=3).tolist()
        [1, 10, 100]
    """
    steps, at_most = checks.integer("steps", steps), checks.integer("at_most", at_most)
    checks.allocation({"at_most": at_most}, (at_most,), dtype="float64")
    return np.unique(np.rint(np.geomspace(1, steps, at_most)).astype(int))


def interval_length(steps: Any) -> int | None:
    """Steps from one record to the next where that is known and one number, else None.

    A loop of a known number of steps needs no look at a counter, which a GPU takes longer for than
    for a small step. The interval of no step in front of a record at step 0 does not count.

    Example:
        >>> interval_length(np.array([0, 4, 8])), interval_length(np.array([1, 10, 100]))
        (4, None)
    """
    if isinstance(steps, Tracer):
        return None
    lengths = set(np.diff(np.asarray(steps), prepend=0).tolist()) - {0}
    return lengths.pop() if len(lengths) == 1 else None


class Recorded(eqx.Module):
    """A case that knows before it is traced at which steps, a tuple, its run is recorded."""

    steps: tuple[int, ...] = eqx.field(
        static=True, kw_only=True, converter=lambda steps: tuple(np.asarray(steps).tolist())
    )

    @property
    def times(self) -> np.ndarray:
        """The recorded steps as an array."""
        return np.asarray(self.steps)
