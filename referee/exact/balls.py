"""Real numbers as balls of 60 digits: a difference that does not hold 0 is not 0."""

from collections.abc import Sequence
from typing import Any

from flint import arb, arb_mat, ctx, fmpq_mat

DIGITS = 60
WIDEST = 1e-50
"""A ball wider than this encloses too much to say anything."""

ctx.dps = DIGITS


def balls(matrix: fmpq_mat) -> arb_mat:
    """A rational matrix as one of balls."""
    return arb_mat([[arb(x) for x in row] for row in matrix.tolist()])


def compared(left: Any, right: Any) -> tuple[bool, bool, float | None]:
    """Whether two sides are equal, whether they differ, and the largest radius, of balls.

    Of rational sides one of the two is true. Balls are equal, as far as can be said, where each
    difference holds 0 and is narrow, and they differ where one does not hold 0.
    """
    if isinstance(left, arb | arb_mat):
        difference = left - right
        entries: Sequence[arb] = (
            difference.entries() if isinstance(difference, arb_mat) else [difference]
        )
        width = max(float(entry.rad()) for entry in entries)
        apart = not all(entry.contains(0) for entry in entries)
        return width < WIDEST and not apart, apart, width
    same = left == right
    return same, not same, None
