"""Work: a sweep is cut into parts, and a part is a name of its content and a call.

Claims, controls, trainings and functions of users are the same here. Parts that a store has are
taken from there; an executor carries out the others, in this process (:func:`execute_here`)
or, if the context says so, elsewhere.
"""

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor as Pool
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from pkgutil import resolve_name
from time import perf_counter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from lrdyn.core.linalg import ON_TRIAL
from lrdyn.system.memory_limit import memory, size_of
from lrdyn.system.messages import Fault
from lrdyn.system.progress import Progress, Silent
from lrdyn.verification.machine.kept_programs import KeptPrograms
from lrdyn.verification.running import programs, reductions
from lrdyn.verification.running.labels import Labels, Mislabelled, Outputs, Target
from lrdyn.verification.running.programs import Group, SweepPlan
from lrdyn.verification.running.reductions import Reductions, RunningReductions
from lrdyn.verification.stating import array_types
from lrdyn.verification.stating.points import Points
from lrdyn.verification.storing.parts import Arrays, Store, open_store

if TYPE_CHECKING:
    import xarray

MANY = 64
"""Programs with more parts than this have them cut by time; at least this many remain."""
SECONDS = 10.0
"""Seconds that such a part should take, which is what a kill loses."""
TRIED = 3
"""Number of parts that are timed for this."""
AHEAD = 16
"""Programs that a sweep holds at a time: more than there are cores to compile them on."""

Scope = Callable[[], AbstractContextManager]


Executor = Callable[[Sequence[Any], Store | None], Iterator[tuple[Any, Arrays]]]
"""Carries out parts (:class:`lrdyn.verification.running.work.Part`): each and its arrays, as they
end, which are in the store by then. It raises a RuntimeError if some part raised, when the others
are computed, and an OSError if the connection is lost."""


@runtime_checkable
class Elsewhere(Protocol):
    """Other processes that compute parts of sweeps."""

    def executor(self, recipe: Any, progress: Progress) -> Executor:
        """The executor of the parts of a sweep, which also reports progress within a part.

        Args:
            recipe: a :class:`lrdyn.verification.running.work.Recipe`, from which they make the
            sweep.
            progress: is told.

        Raises:
            ValueError: no other process could make it.
        """
        ...

    def workers(self) -> list[dict[str, Any]]:
        """Hardware and versions of the processes that took part."""
        ...

    def measure_arithmetic(
        self, precision: str, word: str, on_trial: Sequence[tuple[int, int]] = ()
    ) -> Sequence[Mapping[str, Any]]:
        """The arithmetic of each kind of device that takes part.

        Args:
            precision: ``float64`` or ``float32``.
            word: of ``--precision``.
            on_trial: rows and columns of what algorithms on trial decompose.

        Raises:
            BadInput: one has no such products.
        """
        ...


class Context(NamedTuple):
    """Where and how a run is carried out; none of it decides its results, but for ``precision``."""

    memory: int = 2**30
    """Bytes that the arrays of one part of a sweep may take."""
    store: Path | None = None
    """Folder of finished parts; checkpoints of trainings lie beside it."""
    progress: Progress = Silent()
    precision: str = "highest"
    """Precision of inputs of float32 matmuls: a key of ``MATMULS`` in
    :mod:`lrdyn.verification.judging.rounding`."""
    every: int | None = None
    """Steps between two checkpoints of a training; every 30 seconds if None."""
    programs: KeptPrograms | None = None
    """Compiled programs on disk; none are kept without."""
    machine: KeptPrograms | None = None
    """Store of the measured arithmetic of devices; without it each process measures anew."""
    elsewhere: Elsewhere | None = None
    """Other processes, which compute the parts in the place of this one."""
    lanes: int | None = None
    """Points of a sweep at a time on each device; as many as suit it if None."""


DEFAULT = Context()
"""A context that computes in this process, stores nothing and reports nothing."""


class PartRequest(NamedTuple):
    """Description of a part for another process, in plain values."""

    point: tuple[tuple[str, Any], ...]
    """Values of the axes that decide shapes; of what is not traced, the whole point."""
    values: Mapping[str, np.ndarray] = {}
    """Values of its points on the other axes."""
    lanes: int = 0
    most: int = 0
    """Points of the largest part of the program."""
    outputs: tuple[tuple[str, tuple[int, ...], str], ...] = ()
    """Names, shapes and types of its arrays at one point."""

    @property
    def size(self) -> int:
        """Number of points of the part."""
        return max((len(column) for column in self.values.values()), default=1)

    def __str__(self) -> str:
        """Name the first point, and the number of further ones."""
        first = {name: column[0].item() for name, column in self.values.items() if name}
        words = ", ".join(f"{n}={value}" for n, value in {**dict(self.point), **first}.items())
        return f"{words} and {self.size - 1} more" if self.size > 1 else words


class Part(NamedTuple):
    """Points of a sweep that are computed and kept together."""

    sweep: "Sweep"
    key: str
    """Key made of everything that decides the arrays."""
    indices: np.ndarray
    """Indices of its points in the sweep."""
    group: Group | None = None
    """The group whose program computes the part, if it is traced."""
    point: Mapping[str, Any] = MappingProxyType({})
    """The one point at which a function is called that is not traced."""

    def ask(self) -> PartRequest:
        """Describe it for another process, when it is needed: there may be too many to do all."""
        if (group := self.group) is None:
            return PartRequest(tuple(self.point.items()))
        largest, described = max(map(len, group.parts)), programs.output_signature(group)
        values = group.values(self.indices)
        return PartRequest(group.shape, values, group.lanes, largest, described)

    def begin(self, ready: "Programs") -> Callable[[], Arrays]:
        """Start to compute; what is returned waits for the arrays, whose first axis is the point.

        Nothing runs of what is called in Python before the part in front of it is saved: a kill
        loses one training.
        """
        if (group := self.group) is None:
            return lambda: self.sweep.call(self.point, self.key)
        outputs = programs.start(group, ready.take(group), self.indices)

        def wait() -> Arrays:
            arrays = programs.collect(group, self.indices, outputs)
            reduce = self.sweep.reduce
            return reductions.summarise(reduce, arrays) if reduce else arrays

        return wait

    def mismatch(self, arrays: Any) -> str:
        """In what the arrays that came back of it differ from the plan; empty if in nothing.

        Of a function that is called in Python the shapes are known from its arrays alone.
        """
        if not isinstance(arrays, Mapping) or not all(
            isinstance(array, np.ndarray) for array in arrays.values()
        ):
            got = type(arrays).__name__ if not isinstance(arrays, Mapping) else "something else"
            return f"got {got}, wanted arrays by their names"
        count = len(self.indices)
        if self.group is None:
            short = next((n for n, a in arrays.items() if a.shape[:1] != (count,)), "")
            got = f"got {short!r} of shape {arrays[short].shape}" if short else ""
            return f"{got}, wanted a point first" if got else ""
        planned = self.group.outputs
        if self.sweep.reduce:
            empty = {n: np.zeros((1, *like.shape), like.dtype) for n, like in planned.items()}
            reduced = reductions.summarise(self.sweep.reduce, empty)
            wanted = {n: a.dtype.kind for n, a in reduced.items()}
            if {n: a.dtype.kind for n, a in arrays.items()} != wanted:
                return f"got arrays {sorted(arrays)}, wanted reductions {sorted(wanted)}"
            return ""
        if arrays.keys() != planned.keys():
            return f"got arrays {sorted(map(str, arrays))}, wanted {sorted(planned)}"
        for name, like in planned.items():
            shape = (count, *like.shape)
            dtype = array_types.kept_type(like.dtype) or np.dtype(like.dtype)
            array = arrays[name]
            if (array.shape, array.dtype) != (shape, dtype):
                got = f"got {name!r} of shape {array.shape} and {array.dtype}"
                return f"{got}, wanted {shape} and {dtype}"
        return ""


class PartFailed(Fault):
    """A part was not computed, or something else came back; the message names its first point."""


class Sweep(NamedTuple):
    """A function and the points at which it is called."""

    function: Callable[..., Mapping[str, Any]]
    points: Points
    dims: Mapping[str, tuple[str, ...]]
    plan: SweepPlan | None = None
    """How its traced programs run; without one it is called in Python, point after point."""
    shapes: Sequence[str] = ()
    """Axes that decide the shapes of what is traced."""
    digest: str = ""
    """Digest of everything but the points that decides the results of an untraced function."""
    beside: Callable[[Mapping[str, Any], str], Mapping[str, Any]] = lambda point, key: {}
    """What the function is given besides at a point, where it is not traced: who keeps its
    training, for example. ``key`` is that of its part."""
    scope: Scope = nullcontext
    """Context manager of JAX's settings, for the thread that computes."""
    reduce: Reductions = MappingProxyType({})
    """Reductions kept in the place of all results, if any; for traced functions."""

    def parts(self) -> tuple[list[Part], list[Outputs]]:
        """The parts, and the results of one point, which are known of traced functions alone."""
        if self.plan is not None:
            groups = [
                programs.trace(self.function, values, indices, self.points, self.plan)
                for values, indices in _group_by_shape(self.points, self.shapes).items()
            ]
            return self.parts_of(groups), [group.outputs for group in groups]
        parts = []
        for index in range(self.points.size):
            point = self.points.point(index)
            digest = hashlib.sha256(f"{self.digest}{point}".encode()).hexdigest()[:20]
            parts.append(Part(self, f"{index}-{digest}", np.array([index]), point=point))
        return parts, []

    def parts_of(self, groups: Sequence[Group]) -> list[Part]:
        """Parts of several programs, in their order."""
        reduction = repr(self.reduce) if self.reduce else ""
        return [
            Part(self, group.key(indices, reduction), indices, group)
            for group in groups
            for indices in group.parts
        ]

    def call(self, point: Mapping[str, Any], key: str) -> Arrays:
        """Call the function in Python at one point; its arrays have an axis of one point."""
        arrays = self.function(**point, **self.beside(point, key))
        return {name: array_types.as_kept(np.asarray(a)[None]) for name, a in arrays.items()}


class Recipe(NamedTuple):
    """Description from which another process makes the same sweep."""

    subject: Any
    """An experiment or a function, which the other process finds by its name or its text."""
    build: str
    """``module:function`` that makes the :class:`Sweep` from the subject and a context."""
    arguments: Mapping[str, Any]

    def sweep(self, context: Context) -> Sweep:
        """The sweep in a worker, whose parts have the points."""
        return resolve_name(self.build)(self.subject, **self.arguments, context=context)


def run_sweep(sweep: Sweep, context: Context, recipe: Recipe | None = None) -> "xarray.Dataset":
    """Carry out all parts of a sweep and label the results.

    Args:
        sweep: the sweep.
        context: where it is carried out.
        recipe: needed where the context has other processes.
    """
    progress, store = context.progress, context.store
    with sweep.scope(), ExitStack() as stack:
        with programs.ONE_AT_A_TIME:
            parts, outputs = sweep.parts()
        # What is no longer wanted ends here, before it makes a folder.
        progress.expect(sum(len(part.indices) for part in parts))
        parts_store = stack.enter_context(open_store(store, progress.note)) if store else None
        ended = _run_parts(sweep, parts, parts_store, context, recipe)
        if sweep.plan is None:  # an untraced function's results are known only when it has run
            # A cluster returns parts as they end, and shapes are collected in the order of the
            # points.
            ended = sorted(ended, key=lambda each: int(each[0].indices[0]))
            outputs = [
                {n: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for n, a in arrays.items()}
                for _, arrays in ended
            ]
        if sweep.reduce:
            reductions.check(sweep.reduce, outputs)
            target: Target | RunningReductions = RunningReductions(sweep.reduce, sweep.points)
        else:
            labels = Labels(sweep.points, sweep.dims, outputs)
            _refuse_too_large(labels)
            progress.expect_bytes(labels.nbytes)
            target = Target(labels, context.memory, parts_store and parts_store.folder)
            # Closes the file of large arrays after a failure, too; after success it is closed
            # already.
            stack.callback(target.abandon)
        times = np.zeros(sweep.points.size, np.int64)
        for part, arrays in ended:
            # Wherever it came from: what fits by broadcasting alone would stand for the rest.
            if why := part.mismatch(arrays):
                raise PartFailed(f"{part.ask()}: {why}")
            np.add.at(times, part.indices, 1)
            target.place(part.indices, arrays)
        if np.any(times != 1):
            point = sweep.points.point(int(np.argmax(times != 1)))
            raise PartFailed(f"{point}: got results {times[times != 1][0]} times, wanted them once")
        on_trial = {svd for part in parts if part.group for svd in part.group.on_trial}
        # With the arrays, for whoever judges: they depend on how exact such an SVD was.
        attributes = {ON_TRIAL: json.dumps(sorted(on_trial))} if on_trial else {}
        return target.dataset().assign_attrs(attributes)


def _refuse_too_large(labels: Labels) -> None:
    """Refuse a result that cannot be held for a single point, before anything runs."""
    sizes = {n: math.prod(v.shape) * v.dtype.itemsize for n, v in labels.variables.items()}
    name = max(sizes, key=lambda name: sizes[name], default="")
    if name and sizes[name] > (most := memory()):
        raise Mislabelled(
            f"results: got {size_of(sizes[name])} in {name!r} at each point, wanted at most "
            f"{size_of(most)}, the memory of this machine"
        )


def _run_parts(
    sweep: Sweep,
    parts: Sequence[Part],
    store: Store | None,
    context: Context,
    recipe: Recipe | None,
) -> Iterator[tuple[Part, Arrays]]:
    """Every part and its arrays; the parts of a long program are cut anew after a few."""
    # By identity, for a group holds lists and arrays and cannot be hashed.
    groups = {id(part.group): part.group for part in parts if part.group}.values()
    # Where the memory admits no part of twice as many points there is nothing to measure: all are
    # as large as can be.
    long = [g for g in groups if len(g.parts) > MANY and g.fit >= 2 * len(g.parts[0])]
    few = [part for part in parts if not any(part.group is group for group in long)]
    cut = []
    for group in long:
        tried = sweep.parts_of([group._replace(parts=group.parts[:TRIED])])
        took: list[float] = []
        # What was measured before a kill cuts the parts that were saved.
        how_cut = group.key(group.parts[0], f"cut {len(group.parts)}")
        known = store.load(how_cut) if store else None
        most = int(known["most"]) if known else 0
        # In this process the first one waits for its program; a worker that is asked for several
        # at a time computes them beside each other.
        alone = [tried] if context.elsewhere is None else [[part] for part in tried]
        for some in alone:
            yield from _load_or_run(some, store, context, recipe, took)
        if not most:
            size = len(tried[0].indices)
            # Rounded up, by // of the negative: with parts of this size at least MANY remain.
            alike = -(-size * len(group.parts) // MANY)
            most = min(
                _points_per_part(size, took[1:] if context.elsewhere is None else took), alike
            )
            most = max(most, size)
            if store:
                store.save(how_cut, {"most": np.asarray(most)})
        assert sweep.plan is not None  # only what is traced has groups
        rest = np.concatenate(group.parts[TRIED:])
        anew = programs.trace(sweep.function, group.shape, rest, sweep.points, sweep.plan, most)
        cut.append(anew)
    others = [*few, *sweep.parts_of(cut)]
    yield from _load_or_run(others, store, context, recipe, [])


def _points_per_part(size: int, took: Sequence[float]) -> int:
    """Number of points that take ``SECONDS``, from the times of parts of ``size`` points."""
    # The fastest of them: whatever else the machine does can only make a part slower.
    return int(SECONDS * size / min(took)) if took else size


def _load_or_run(
    parts: Sequence[Part],
    store: Store | None,
    context: Context,
    recipe: Recipe | None,
    took: list[float],
) -> Iterator[tuple[Part, Arrays]]:
    """Parts and their arrays, those from the store first; how long each of the others took."""
    missing = []
    for part in parts:
        arrays = store.load(part.key) if store else None
        if store and arrays is not None and (why := part.mismatch(arrays)):
            store.set_aside(part.key, why)
            arrays = None
        if arrays is None:
            # All of these go to the executor at once, which can then compile ahead of them.
            missing.append(part)
        else:
            context.progress.advance(len(part.indices), saved=True)
            yield part, arrays
    execute: Executor = execute_here
    if context.elsewhere is not None and recipe is not None:
        execute = context.elsewhere.executor(recipe, context.progress)
    begin = perf_counter()
    for part, arrays in execute(missing, store):
        took.append(perf_counter() - begin)
        begin = perf_counter()
        context.progress.advance(len(part.indices))
        yield part, arrays


def execute_here(parts: Sequence[Part], store: Store | None) -> Iterator[tuple[Part, Arrays]]:
    """Compute parts in this process; the next one is computed while one is saved."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        ready = Programs([part.group for part in parts if part.group], pool)
        started = ((part, part.begin(ready)) for part in parts)
        running = next(started, None)
        while running:
            part, wait = running
            # XLA computes in the background: the next part starts before this thread waits for, and
            # writes, the one before it.
            running = next(started, None)
            arrays = wait()
            if store:
                store.save(part.key, arrays)
            yield part, arrays


# Traced programs -----------------------------------------------------------------------------


class Programs:
    """Programs compiled ahead of their use and dropped after it.

    Tracing holds the interpreter, XLA's compilation does not: programs are compiled side by side.
    Each takes memory maps, of which a process may have so many only.
    """

    def __init__(self, groups: Sequence[Group], pool: Pool):
        self.pool = pool
        self.uses = Counter(group.digest for group in groups)
        self.groups = iter({group.digest: group for group in groups}.values())
        self.compiled: dict[str, Future] = {}
        for group in islice(self.groups, AHEAD):
            self.compile(group)

    def compile(self, group: Group) -> None:
        """Begin to compile a program, or to load it."""
        self.compiled[group.digest] = programs.compile_in(self.pool, group)

    def take(self, group: Group) -> Any:
        """The program of a part, compiled."""
        while group.digest not in self.compiled:
            self.compile(next(self.groups))
        program = self.compiled[group.digest].result()
        self.uses[group.digest] -= 1
        if not self.uses[group.digest]:
            del self.compiled[group.digest]
            for following in islice(self.groups, 1):
                self.compile(following)
        return program


def _group_by_shape(points: Points, shapes: Sequence[str]) -> dict[tuple, np.ndarray]:
    """The points of each combination of the axes that decide shapes, in the order of the first."""
    everything = np.arange(points.size)
    if not shapes:
        return {(): everything}
    codes = np.zeros(points.size, np.int64)
    for name in shapes:
        column = points.column(name)
        known: dict[Any, int] = {}
        of_values = [known.setdefault(value, len(known)) for value in column.values.tolist()]
        codes = codes * len(known) + column._replace(values=np.asarray(of_values))[everything]
    _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
    groups = {}
    for code in np.argsort(first):
        values = (points.column(name).value(int(first[code])) for name in shapes)
        indices = np.flatnonzero(codes == code) if len(first) > 1 else everything
        groups[tuple(zip(shapes, values, strict=True))] = indices
    return groups
