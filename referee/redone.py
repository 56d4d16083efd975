"""What a claim is computed again as, and when that agrees with a verdict.

Rounding of a descent of t steps over n numbers is at most ``8 eps (sqrt(n (1 + t)) + t/2)`` of the
scale, times how much the run amplifies a small disturbance. The referee measures that amplification
itself, by a second descent from a disturbed start.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from referee.results import Point

EPS = float(np.finfo(float).eps)


def coarser(array: np.ndarray) -> float:
    """How many times the rounding of an array is that of float64."""
    return float(np.finfo(array.dtype).eps) / EPS if array.dtype.kind == "f" else 1.0


class Redone(NamedTuple):
    """Both sides of a claim at one point, computed again, and what was saved of them."""

    theory: Any
    run: Any
    """Of a bound: what must not be above ``theory``."""
    scale: Any = None
    """Of a difference; the largest entry of both sides if None."""
    condition: float = 1.0
    """By how much the run amplifies a disturbance."""
    kind: str = "equal"
    """``equal``, ``zero``, ``at most``, ``at least``, ``count``, ``limit`` or ``statistical``."""
    saved_theory: Any = None
    saved_run: Any = None
    """None where the saved array depends on a choice that is free, such as that of a basis."""
    tolerance: float | None = None
    """Of a limit, which is approximate, and of a test."""

    @property
    def size(self) -> float:
        """The scale of a difference."""
        if self.scale is not None:
            return float(np.max(np.abs(self.scale)))
        sides = (np.max(np.abs(np.asarray(side, float)), initial=0) for side in self[:2])
        return float(max(sides)) or 1.0

    @property
    def residual(self) -> float:
        """How far the claim is from being true, in units of the scale."""
        theory, run = (np.asarray(side, float) for side in (self.theory, self.run))
        signs = {"at most": 1.0, "at least": -1.0}
        if self.kind in signs:
            return float(np.max(np.maximum(signs[self.kind] * (run - theory), 0) / self.size))
        return float(np.max(np.abs(theory - run), initial=0) / self.size)

    def limit(self, steps: int) -> float:
        """The largest residual that rounding, or a tolerance that was given, explains."""
        if self.tolerance is not None:
            return self.tolerance
        return self.rounding(steps)

    def rounding(self, steps: int) -> float:
        """By how much rounding puts two computations of a side apart."""
        if self.kind == "count":
            return 0.0
        numbers = max(np.asarray(self.theory).shape[-1:] or (1,))
        return 8 * EPS * (np.sqrt(numbers * (1 + steps)) + steps / 2) * max(self.condition, 1.0)

    def apart(self) -> float:
        """How far the saved sides are from these, in units of the scale.

        What was computed in float32 is rounded by so much more: its distance counts in these units.
        """
        pairs = ((self.theory, self.saved_theory), (self.run, self.saved_run))
        distances = [
            float(np.max(np.abs(np.asarray(mine, float) - np.asarray(saved, float)), initial=0))
            / coarser(np.asarray(saved))
            for mine, saved in pairs
            if saved is not None
        ]
        return max(distances, default=0.0) / self.size


def saved_sides(point: Point, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both saved sides of a claim."""
    return point.found[f"{name}_predicted"], point.found[f"{name}_measured"]


def saved_as(mine: Any, saved: Any, *, condition: float = 1.0) -> Redone:
    """A part of a claim that needs no comparison but that of what was saved."""
    return Redone(mine, mine, None, condition, "equal", saved)


Claim = Callable[[Point], "Redone | Iterable[Redone] | None"]
"""A claim at a point; None where its hypotheses are not met."""
