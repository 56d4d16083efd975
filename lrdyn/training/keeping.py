"""Keepers of trainings: they take the checkpoints and hear of the progress."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import PyTree


class Moment(NamedTuple):
    """What a training says of itself now and then."""

    step: int
    steps: int
    """Steps of the whole run."""
    metrics: Mapping[str, float]
    """Numbers of the last batch, ``loss`` first."""
    rate: float
    """Examples a second."""


@runtime_checkable
class Keeper(Protocol):
    """Keeps trainings, each under a key of everything that decides its bits."""

    every: int | None
    """Steps between two checkpoints; none to leave it to :meth:`due`."""

    def load(self, key: str, like: PyTree, name: str) -> tuple[int, PyTree] | None:
        """Load the step and the state of the last checkpoint, in the form of ``like``, if any."""

    def due(self, step: int) -> bool:
        """Whether this step is to be kept."""
        ...

    def save(self, key: str, step: int, state: PyTree) -> None:
        """Keep all that a run needs to continue at this step."""

    def tell(self, moment: Moment, name: str) -> None:
        """Hear what a training says of itself after a piece of its run."""

    def lost(self, step: int, name: str, key: str) -> None:
        """Hear that at this step the loss is no number any more, or has lost its digits."""


class Forgetful:
    """Keeps nothing and tells nothing."""

    every: int | None = None

    def load(self, key: str, like: PyTree, name: str) -> None:
        """Find no checkpoint: none is ever kept."""

    def due(self, step: int) -> bool:
        """Whether this step is to be kept: none is."""
        return False

    def save(self, key: str, step: int, state: PyTree) -> None:
        """Leave the step alone: nothing is kept."""

    def tell(self, moment: Moment, name: str) -> None:
        """Pass the moment over in silence."""

    def lost(self, step: int, name: str, key: str) -> None:
        """Pass the loss over in silence: the trajectory says where the run diverged."""


FORGETFUL = Forgetful()
"""Keeps nothing and tells nothing, as a training does unless it is given a keeper."""
