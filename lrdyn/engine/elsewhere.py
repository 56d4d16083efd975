"""Where parts are computed: in this process, or elsewhere, by whoever is told what they are."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import PyTree

from lrdyn.engine.parts import Arrays, Store
from lrdyn.engine.programs import Group
from lrdyn.engine.statement import Experiment


class JobRecipe(NamedTuple):
    """A sweep of an experiment: from this another process makes the same job."""

    experiment: Experiment
    settings: Mapping[str, Any]
    dtype: str
    perturb: bool
    thorough: bool
    number: int
    """Among the jobs of the experiment."""
    trainings: Any = None
    """How a study trains."""
    data: str = ""
    """SHA-256 of the data files."""
    data_dir: str = ""
    """Where they are looked for first."""


class FunctionRecipe(NamedTuple):
    """A sweep of a function that somebody wrote."""

    function: Callable[..., Mapping[str, Any]]
    batched: bool
    lanes: int
    memory: int
    compiler_options: Mapping[str, Any] | None
    shared: PyTree
    x64: bool
    matmuls: str | None
    """Precision of products of matrices, in JAX's words."""


class Part(NamedTuple):
    """What one part is, beside the recipe of its sweep."""

    key: str
    point: tuple[tuple[str, Any], ...]
    """Values of the axes that decide shapes; of what is not traced, the whole point."""
    values: Mapping[str, np.ndarray]
    """Values of its points on the other axes."""
    lanes: int = 0
    most: int = 0
    """Points of the largest part of the program."""
    outputs: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    """Names, shapes and types of its arrays at one point."""

    @property
    def size(self) -> int:
        """Number of points."""
        return max((len(column) for column in self.values.values()), default=1)

    def said(self) -> str:
        """Its first point, and how many more there are."""
        first = {name: column[0].item() for name, column in self.values.items() if name}
        words = ", ".join(f"{n}={value}" for n, value in {**dict(self.point), **first}.items())
        return f"{words} and {self.size - 1} more" if self.size > 1 else words


@runtime_checkable
class Where(Protocol):
    """Computes parts of one sweep."""

    def compute(self, parts: Sequence[Part], store: Store | None) -> Iterator[tuple[int, Arrays]]:
        """Each part's place and arrays, as they end; whoever can writes them into the store.

        Raises:
            RuntimeError: some part raised; the others were computed before.
            OSError: the connection is lost.
        """
        ...


@runtime_checkable
class Elsewhere(Protocol):
    """Other processes that compute."""

    def of(self, recipe: JobRecipe | FunctionRecipe, told: Any = None) -> Where:
        """Who computes parts of this sweep; ``told`` hears of what happens within a part.

        Raises:
            ValueError: no other process could make it.
        """
        ...

    def workers(self) -> list[dict[str, Any]]:
        """Hardware and versions of those that took part."""
        ...


def given(client: Any) -> Elsewhere:
    """What a client of Dask gives; what is it already stays."""
    if isinstance(client, Elsewhere):
        return client
    # By its name: the engine knows nothing of Dask, and without a client nobody needs it.
    return resolve_name("lrdyn.engine.cluster.client:Cluster")(client)


def recipe_of(function: Callable[..., Any], **how: Any) -> FunctionRecipe:
    """The recipe of a function, in the precision of this moment."""
    x64, matmuls = jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return FunctionRecipe(function, x64=x64, matmuls=matmuls, **how)


def part_of(group: Group, indices: np.ndarray) -> Part:
    """A part of a group of points of one shape."""
    return Part(
        group.key(indices),
        group.shape,
        group.values(indices),
        group.lanes,
        max(map(len, group.parts)),
        described(group),
    )


def described(group: Group) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """What the program of a group returns at one point: names, shapes, types.

    Programs themselves are no measure: constants of inner functions stand in them in an order that
    depends on what the process has traced before.
    """
    return tuple(sorted((n, one.shape, str(one.dtype)) for n, one in group.outputs.items()))
