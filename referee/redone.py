"""What a claim is computed again as, and when that agrees with a verdict.

Rounding of a descent of t steps over n numbers is at most ``8 eps (sqrt(n (1 + t)) + t/2)`` of the
scale, times how much the run amplifies a small disturbance. The referee measures that amplification
itself, by a second descent from a disturbed start.
"""

from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from referee.results import Point

EPS = float(np.finfo(float).eps)
"""Machine epsilon of the arithmetic here, float64."""


def largest(numbers: Iterable[Any]) -> float:
    """The largest of some numbers, 0 without any; NaN if one is, wherever it stands.

    ``max`` of Python keeps a NaN only if it comes first: a number that was lost would count as
    none.

    Example:
        >>> largest([1.0, np.nan]), max([1.0, np.nan]), largest([])
        (nan, 1.0, 0.0)
    """
    return float(np.max([float(number) for number in numbers])) if (numbers := [*numbers]) else 0.0


def coarser(array: np.ndarray) -> float:
    """Ratio of the rounding of an array to that of float64."""
    return float(np.finfo(array.dtype).eps) / EPS if array.dtype.kind == "f" else 1.0


def roundings(numbers: int, steps: Any) -> Any:
    """By how many roundings two descents may differ, but for the 8: ``sqrt(n (1 + t)) + t/2``."""
    return np.sqrt(numbers * (1 + steps)) + steps / 2


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
    steps: int | None = None
    """Steps after which the sides are compared, where it is not after those of the run."""

    @property
    def size(self) -> float:
        """The scale of a difference."""
        if self.scale is not None:
            return float(np.max(np.abs(self.scale)))
        sides = (np.max(np.abs(np.asarray(side, float)), initial=0) for side in self[:2])
        # Sides that are 0 have no scale: their difference counts as it is.
        return largest(sides) or 1.0

    @property
    def residual(self) -> float:
        """How far the claim is from being true, in units of the scale."""
        theory, run = (np.asarray(side, float) for side in (self.theory, self.run))
        signs = {"at most": 1.0, "at least": -1.0}
        if self.kind in signs:
            return float(np.max(np.maximum(signs[self.kind] * (run - theory), 0) / self.size))
        return float(np.max(np.abs(theory - run), initial=0) / self.size)

    @property
    def saved_residual(self) -> float:
        """The residual of the saved sides; 0 where one that is needed was not compared."""
        theory = 0 * np.asarray(self.theory) if self.kind == "zero" else self.saved_theory
        if theory is None or self.saved_run is None:
            return 0.0
        return self._replace(theory=theory, run=self.saved_run).residual

    def limit(self, steps: int) -> float:
        """The largest residual that rounding, or a tolerance that was given, explains."""
        if self.tolerance is not None:
            return self.tolerance
        return self.rounding(steps)

    def rounding(self, steps: int) -> float:
        """Distance by which rounding may put two computations of a side apart."""
        if self.kind == "count":
            return 0.0
        steps = steps if self.steps is None else self.steps
        # The last axis stands for the length of a dot product.
        numbers = max(np.asarray(self.theory).shape[-1:] or (1,))
        # Dot products and steps are rounded independently, like a random walk; while a run waits at
        # a saddle it rounds the same way at each step. 8: many entries, many points.
        return 8 * EPS * float(roundings(numbers, steps)) * largest([self.condition, 1.0])

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
        return largest(distances) / self.size


def saved_sides(point: Point, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both saved sides of a claim."""
    return point.found[f"{name}_predicted"], point.found[f"{name}_measured"]


def saved_as(mine: Any, saved: Any, *, condition: float = 1.0) -> Redone:
    """Part of a claim that only compares what was saved with what is computed here.

    Args:
        mine: computed here.
        saved: of the run.
        condition: by how much rounding is amplified in it.
    """
    return Redone(mine, mine, None, condition, "equal", saved)


Claim = Callable[[Point], "Redone | Iterable[Redone] | None"]
"""A claim at a point; None where its hypotheses are not met."""


def together(*parts: ModuleType) -> tuple[dict[str, dict[str, Claim]], dict[str, Any]]:
    """The claims of a theorem that several files compute again, and which of its runs diverge.

    Args:
        *parts: the files, each with ``CLAIMS`` and where runs can diverge with ``DIVERGES``. Two
            may have claims of one scenario.
    """
    claims: dict[str, dict[str, Claim]] = {}
    diverges: dict[str, Any] = {}
    for part in parts:
        for scenario, mine in part.CLAIMS.items():
            claims.setdefault(scenario, {}).update(mine)
        diverges |= getattr(part, "DIVERGES", {})
    return claims, diverges
