"""Whether what is compared had come to rest when a training stopped.

A rank at the last step can be that of the middle of a fall. A quantity q over the steps is at rest
at the last one, T, if over each of the last two doublings of the steps its mean over seeds moved by
less than a tenth of its distance to the threshold that it is compared with:

    |q(T) - q(T/2)| and |q(T/2) - q(T/4)| < |q(T) - threshold| / 10.

With a threshold of 0, a sign, the distance is its own size. Trainings that are compared at an equal
budget (steps, tokens, how well they fit) need not be at rest: the budget is said.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lrdyn.verification.stating.claims import STILL_MOVING, MoreSteps

AT_REST = "at rest"
NOT_TESTED = "not tested for rest"
SHARE = 0.1
"""Largest movement over a doubling, over the distance to the threshold, of what is at rest."""


class OverSteps(NamedTuple):
    """What is compared, at the recorded steps."""

    step: Int[np.ndarray, "step"]
    """Recorded steps, the same for all seeds."""
    values: Float[np.ndarray, "seed step"]
    """The quantity that is compared."""
    threshold: float = 0.0
    """What its mean over seeds is compared with; 0 where a sign is claimed."""
    flag: str = ""
    """The flag that counts the steps, or epochs; empty if none does."""

    def movements(self) -> tuple[float, float]:
        """Movement over the last doubling of the steps and over the one before, over the distance.

        Infinite where the distance is 0; NaN where a quarter of the steps is before the first
        record, and of a training that was lost.

        Example:
            >>> steps = np.array([0, 25, 50, 100])
            >>> OverSteps(steps, np.array([[9.0, 4.0, 2.0, 1.0]])).movements()
            (1.0, 2.0)
        """
        taken = self.step > 0
        steps, means = np.log(self.step[taken]), np.mean(self.values, axis=0)[taken]
        if not len(steps) or 4 * self.step[taken][0] > self.step[-1]:
            return np.nan, np.nan
        end, half, quarter = np.interp(steps[-1] - np.log([1.0, 2.0, 4.0]), steps, means)
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = np.abs(end - self.threshold)
            return float(np.abs(end - half) / distance), float(np.abs(half - quarter) / distance)

    def longer(self) -> float:
        """How many times the steps the quantity needs: 1 at rest, infinite where nobody can tell.

        Movements that shrink from one doubling to the next are taken to go on so.

        Example:
            >>> steps = np.array([0, 25, 50, 100])
            >>> OverSteps(steps, np.array([[9.0, 4.0, 2.0, 1.0]]), threshold=-1.0).longer()
            16.0
            >>> OverSteps(steps, np.array([[9.0, 1.02, 1.01, 1.0]])).longer()
            1.0
        """
        newest, before = self.movements()
        if newest < SHARE and before < SHARE:
            return 1.0
        if newest < SHARE:  # the doubling before is past after one more
            return 2.0
        if not newest < before:
            return np.inf
        doublings = np.ceil(np.log(SHARE / newest) / np.log(newest / before))
        # After so many the last one is small enough; one more, and the one before it is, too.
        with np.errstate(over="ignore"):  # infinite where movements hardly shrink
            return float(2.0 ** (doublings + 1))


def reason_to_train_on(quantity: OverSteps, point: Mapping[str, Any]) -> str:
    """Why what a training left cannot be judged yet; empty at rest.

    Args:
        quantity: what is compared.
        point: values of the flags, the one that counts the steps among them.

    Returns:
        A reason with the number of steps, or the value of that flag, that would do.

    Example:
        >>> values = np.array([[9.0, 4.0, 2.0, 1.0]])
        >>> falling = OverSteps(np.array([0, 25, 50, 100]), values, -1.0, flag="epochs")
        >>> reason = reason_to_train_on(falling, {"epochs": 10})
        >>> reason, reason.needed
        ('still moving', 160)
    """
    longer = quantity.longer()
    if longer == 1.0:
        return ""
    spent = point[quantity.flag] if quantity.flag else quantity.step[-1]
    return MoreSteps(longer * float(spent), flag=quantity.flag, why=STILL_MOVING)
