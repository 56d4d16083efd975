"""Line of the table: an identity, its instance, and a formula that is wrong."""

from collections.abc import Callable
from typing import Any, NamedTuple

from referee.exact.balls import compared

Sides = tuple[Any, Any]
"""Theory's side, and that of the run or the enumeration."""

Both = Callable[[], Sides]


class ExactIdentity(NamedTuple):
    """An identity on one instance."""

    theorem: str
    claim: str
    statement: str
    instance: str
    sides: Both
    wrong: Both
    """Both sides with a formula that is not true."""
    mistake: str
    """What is wrong with it."""


class Answer(NamedTuple):
    """Outcome of an identity."""

    identity: ExactIdentity
    agree: bool
    """Whether both sides are equal or, in balls, may be."""
    told_apart: bool
    """Whether those of the wrong formula are not."""
    width: float | None = None
    """Of balls: the largest radius of the difference; None where both sides are rational."""


def answer(identity: ExactIdentity) -> Answer:
    """Compute both sides, and those of the wrong formula."""
    same, _, width = compared(*identity.sides())
    return Answer(identity, same, compared(*identity.wrong())[1], width)
