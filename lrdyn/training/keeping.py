"""Who keeps a training: where its checkpoints go, and who is told of its progress."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import PyTree


class Moment(NamedTuple):
    """What a training says of itself now and then."""

    step: int
    steps: int
    """Of the whole run."""
    metrics: Mapping[str, float]
    """Of the last batch, ``loss`` first."""
    rate: float
    """Examples a second."""


@runtime_checkable
class Keeper(Protocol):
    """Keeps trainings, each under a key of everything that decides its bits."""

    every: int | None
    """Steps between two checkpoints; none to leave it to :meth:`due`."""

    def load(self, key: str, like: PyTree, name: str) -> tuple[int, PyTree] | None:
        """Last step that was kept, and what was kept of it, in the form of ``like``."""

    def due(self, step: int) -> bool:
        """Whether this step is to be kept."""
        ...

    def save(self, key: str, step: int, kept: PyTree) -> None:
        """Keep a step."""

    def tell(self, moment: Moment, name: str) -> None:
        """A piece of the run is done."""

    def lost(self, step: int, name: str, key: str) -> None:
        """The loss is no number any more, or has lost its digits, at this step."""


class Forgetful:
    """Keeps nothing and tells nothing."""

    every: int | None = None

    def load(self, key: str, like: PyTree, name: str) -> None:
        """Nothing was kept."""

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def save(self, key: str, step: int, kept: PyTree) -> None:
        """Keep nothing."""

    def tell(self, moment: Moment, name: str) -> None:
        """Say nothing."""

    def lost(self, step: int, name: str, key: str) -> None:
        """Say nothing: the trajectory does."""


FORGETFUL = Forgetful()
"""Keeps nothing and tells nothing, as a training does unless it is given a keeper."""
