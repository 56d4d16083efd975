"""What a computation needs beside its values. It is passed on; nothing is looked up."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from lrdyn.engine.parts import Arrays, Store
from lrdyn.engine.progress import Progress, Silent

if TYPE_CHECKING:
    from lrdyn.engine.kept_programs import KeptPrograms


Executor = Callable[[Sequence[Any], Store | None], Iterator[tuple[Any, Arrays]]]
"""Carries out parts (:class:`lrdyn.engine.work.Part`): each and its arrays, as they end, which are
in the store by then. It raises a RuntimeError if some part raised, when the others are computed,
and an OSError if the connection is lost."""


@runtime_checkable
class Elsewhere(Protocol):
    """Other processes that compute."""

    def executor(self, recipe: Any, progress: Progress) -> Executor:
        """Who carries out the parts of a sweep, and tells of what happens within a part.

        Args:
            recipe: a :class:`lrdyn.engine.work.Recipe`, from which they make the sweep.
            progress: is told.

        Raises:
            ValueError: no other process could make it.
        """
        ...

    def workers(self) -> list[dict[str, Any]]:
        """Hardware and versions of those that took part."""
        ...


class Context(NamedTuple):
    """Where and how a run is carried out; none of it decides its results, but for ``precision``."""

    memory: int = 2**30
    """Bytes that the arrays of one part of a sweep may take."""
    store: Path | None = None
    """Folder of finished parts; checkpoints of trainings lie beside it."""
    progress: Progress = Silent()
    precision: str = "highest"
    """Of the inputs of matmuls in trainings, a key of :data:`MATMULS`."""
    every: int | None = None
    """Steps between two checkpoints of a training; every 30 seconds if None."""
    programs: "KeptPrograms | None" = None
    """Compiled programs on disk; none are kept without."""
    elsewhere: Elsewhere | None = None
    """Other processes, which compute the parts in the place of this one."""


DEFAULT = Context()
"""In this process, with nothing kept and nothing told."""

MATMULS: Mapping[str, str] = {
    "highest": "highest",
    "tf32": "tensorfloat32",
    "bfloat16": "bfloat16",
}
"""Word of ``--precision`` -> JAX's; parameters and the state of the optimiser stay as they are."""
