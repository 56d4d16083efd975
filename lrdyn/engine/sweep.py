"""Repeating a pure function over many points: grouped by shape, batched, spread over devices."""

import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from lrdyn.engine import elsewhere, programs
from lrdyn.engine.elsewhere import Part, Where
from lrdyn.engine.labels import Labels
from lrdyn.engine.parts import Arrays, Store, opened
from lrdyn.engine.points import Points
from lrdyn.engine.programs import Group, Plan
from lrdyn.engine.progress import Progress, Silent
from lrdyn.engine.shared import Shared, check_taken

if TYPE_CHECKING:
    import xarray

AHEAD = 16
"""Programs that a sweep holds at a time: more than there are cores to compile them on."""


def sweep(
    function: Callable[..., Mapping[str, Array]],
    points: Points,
    *,
    shared: PyTree = None,
    shapes: Sequence[str] = (),
    dims: Mapping[str, tuple[str, ...]] | None = None,
    batched: bool = False,
    lanes: int = 16,
    memory: int = 2**30,
    devices: Sequence[Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    store: str | os.PathLike | None = None,
    progress: Progress | None = None,
    client: Any = None,
) -> "xarray.Dataset":
    """Call a pure function at every point and label the results.

    Points that agree on the ``shapes`` axes are compiled once and run in parts: ``lanes`` points
    batched by ``vmap``, chunks of lanes one after another on each device, neighbouring points on
    different devices. No device waits for another before the end of a part.

    A function that stops early, at a tolerance, wants ``lanes=1``: its points then run one by one
    and unbatched, so that none waits for the slowest of a batch.

    Args:
        function: ``function(**point)`` returns named arrays; axes in ``shapes`` arrive as Python
            values, all others as traced scalars.
        points: the points.
        shared: arrays that all points read, data or frozen weights, as a PyTree: passed to
            ``function`` as ``shared``. They are moved to each device once, and neither batched nor
            built into the program; their bytes are part of the names of the parts.
        shapes: axes whose values decide shapes: one compilation for each combination.
        dims: names of the axes of each result; ``<result>_0``, ... where not given. A result that
            is named like its only axis becomes the coordinate of that axis.
        batched: ``function`` takes 1-d arrays of ``lanes`` values and returns results with that
            leading axis, instead of being vmapped.
        lanes: how many points are batched at a time on each device.
        memory: bytes that the arrays of one part may take. Parts follow from the points, the lanes,
            what is shared and this budget alone; with a store, larger results stay on disk.
        devices: devices to spread over; all local ones by default.
        compiler_options: options for XLA.
        store: a folder that keeps each finished part: after a kill the same call computes the
            others only. Parts are named by the traced program, its options, what is shared and
            their points, so that another function cannot take them for its own. The caller removes
            the folder.
        progress: told of every finished part; see :func:`lrdyn.engine.progress.shown`.
        client: a ``dask.distributed.Client`` whose workers compute the parts, each on one device.
            The function then stands at the top level of a module, whose text is sent. Workers that
            see the folder of the store write there; otherwise parts come back over the network.

    Returns:
        A dataset with one dimension for each axis of a product, or with the dimension ``point``;
        ragged results are padded with NaN. If its arrays exceed ``memory`` and there is a store,
        they are read from a file in the store when they are used.

    Raises:
        ValueError: a leaf of ``shared`` is no array, ``function`` takes no such argument, or an
            axis is called that; an axis in ``shapes`` is not an axis of the points, ``lanes`` < 1,
            the names in ``dims`` do not fit the results, results have different names at different
            shapes, or a batched function has no traced axis or returns no axis of lanes; with a
            client, the function is in no module, or no worker has this release of the library.
        files.InUse: another process uses the store.
        OSError: the store cannot be written.

    Example:
        >>> import jax.numpy as jnp
        >>> from lrdyn import product
        >>> result = sweep(lambda x, n: {"y": x * jnp.arange(n)}, product(x=[1.0, 2.0], n=[2, 3]),
        ...                shapes=("n",), dims={"y": ("index",)})
        >>> result["y"].sel(x=2.0, n=3).values.tolist()
        [0.0, 2.0, 4.0]
        >>> result = sweep(lambda x, shared: {"y": x * shared}, product(x=[1.0, 2.0]),
        ...                shared=jnp.arange(3))
        >>> result["y"].sel(x=2.0).values.tolist()
        [0.0, 2.0, 4.0]
    """
    unknown = [name for name in shapes if name not in points.columns]
    if unknown:
        raise ValueError(f"shapes: got {unknown}, wanted axes out of {list(points.columns)}")
    if lanes < 1:
        raise ValueError(f"lanes: got {lanes}, wanted at least 1")
    if shared is not None:
        check_taken(function, points.columns)
    where = None
    if client is not None:
        recipe = elsewhere.recipe_of(
            function, batched=batched, lanes=lanes, memory=memory,
            compiler_options=compiler_options, shared=shared,
        )  # fmt: skip
        where = elsewhere.given(client).of(recipe)
    options = dict(compiler_options or {})
    plan = Plan(batched, lanes, memory, _devices(devices, where), options, Shared(shared))
    return swept(function, points, plan, shapes, dims, store, progress, where)


def _devices(given: Sequence[Any] | None, where: Where | None) -> Sequence[Any]:
    """The devices of a plan: a worker has one."""
    if where is not None:
        return jax.local_devices()[:1]
    return jax.local_devices() if given is None else given


_ONE_AT_A_TIME = threading.Lock()
"""For tracing, where dozens of jobs wait side by side: it gains nothing from threads, and constants
of two precisions that are traced at once were seen to take the type of the other."""


def swept(
    function: Callable[..., Mapping[str, Array]],
    points: Points,
    plan: Plan,
    shapes: Sequence[str],
    dims: Mapping[str, tuple[str, ...]] | None,
    store: str | os.PathLike | None,
    progress: Progress | None,
    where: Where | None,
) -> "xarray.Dataset":
    """The same by a plan, here or elsewhere."""
    progress = Silent() if progress is None else progress
    with _ONE_AT_A_TIME if where is not None else nullcontext():
        groups = [
            programs.trace(function, values, indices, points, plan)
            for values, indices in _by_shape(points, shapes).items()
        ]
    # What is no longer wanted ends here, before it makes a folder.
    progress.expect(sum(len(part) for group in groups for part in group.parts))
    with ExitStack() as stack:
        kept = stack.enter_context(opened(Path(store), progress.note)) if store else None
        labels = Labels(points, dims or {}, [group.outputs for group in groups])
        progress.expect_bytes(labels.nbytes)
        target = labels.allocate(plan.memory, kept and kept.folder)
        stack.callback(target.abandon)
        for indices, outputs in _finish(groups, kept, progress, where):
            target.place(indices, outputs)
        return target.dataset()


def call_each(
    function: Callable[..., Mapping[str, Any]],
    points: Points,
    *,
    dims: Mapping[str, tuple[str, ...]] | None = None,
    digest: str = "",
    memory: int = 2**30,
    store: str | os.PathLike | None = None,
    progress: Progress | None = None,
    around: Callable[[Mapping[str, Any]], AbstractContextManager] = lambda point: nullcontext(),
    where: Where | None = None,
) -> "xarray.Dataset":
    """Call a Python function at every point, one after another, and label the results.

    For what cannot be traced: counts of a traced program, memory of a compiled one, a training that
    reads files. :func:`sweep` is for the rest, and explains the arguments; each point is a part,
    named by the ``digest`` of everything else that decides its results. The function is called
    inside of ``around(point)``.

    Example:
        >>> from lrdyn import product
        >>> call_each(lambda word: {"letters": len(word)}, product(word=["a", "abc"]))[
        ...     "letters"].values.tolist()
        [1, 3]
    """
    progress = Silent() if progress is None else progress
    progress.expect(points.size)
    with ExitStack() as stack:
        kept = stack.enter_context(opened(Path(store), progress.note)) if store else None
        if where is None:
            found = [
                _called(function, points, index, digest, kept, progress, around)
                for index in range(points.size)
            ]
        else:
            found = _called_elsewhere(points, digest, kept, progress, where)
        shapes = [
            {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in each.items()} for each in found
        ]
        target = Labels(points, dims or {}, shapes).allocate(memory, kept and kept.folder)
        for index, outputs in enumerate(found):
            target.place(np.array([index]), {name: array[None] for name, array in outputs.items()})
        return target.dataset()


def _point(points: Points, index: int) -> dict[str, Any]:
    return {name: column[index] for name, column in points.columns.items()}


def _key(points: Points, index: int, digest: str) -> str:
    named = hashlib.sha256(f"{digest}{_point(points, index)}".encode()).hexdigest()[:20]
    return f"{index}-{named}"


def _called(
    function: Callable[..., Mapping[str, Any]],
    points: Points,
    index: int,
    digest: str,
    kept: Store | None,
    progress: Progress,
    around: Callable[[Mapping[str, Any]], AbstractContextManager],
) -> Arrays:
    point, key = _point(points, index), _key(points, index, digest)
    found = kept.load(key) if kept else None
    saved = found is not None
    if found is None:
        with around(point):
            found = {name: np.asarray(array) for name, array in function(**point).items()}
        if kept:
            kept.save(key, found)
    progress.advance(1, saved=saved)
    return found


def _called_elsewhere(
    points: Points, digest: str, kept: Store | None, progress: Progress, where: Where
) -> list[Arrays]:
    found, todo = {}, {}
    for index in range(points.size):
        key = _key(points, index, digest)
        if (arrays := kept.load(key) if kept else None) is not None:
            found[index] = arrays
            progress.advance(1, saved=True)
        else:
            todo[index] = Part(key, tuple(_point(points, index).items()), {})
    places = list(todo)
    for place, arrays in where.compute(list(todo.values()), kept):
        found[places[place]] = arrays
        progress.advance(1)
    return [found[index] for index in range(points.size)]


def _by_shape(points: Points, shapes: Sequence[str]) -> dict[tuple, list[int]]:
    groups: dict[tuple, list[int]] = {}
    for index in range(points.size):
        groups.setdefault(tuple(points.columns[name][index] for name in shapes), []).append(index)
    return {tuple(zip(shapes, values, strict=True)): found for values, found in groups.items()}


def _finish(
    groups: list[Group], store: Store | None, progress: Progress, where: Where | None
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Every part, those from the store first."""
    todo = []
    for group in groups:
        for part in group.parts:
            found = store.load(group.key(part)) if store else None
            if found is None:
                todo.append((group, part))
            else:
                progress.advance(len(part), saved=True)
                yield part, found
    for part, outputs in _computed(todo, store, where):
        progress.advance(len(part))
        yield part, outputs


def _computed(
    todo: list[tuple[Group, np.ndarray]], store: Store | None, where: Where | None
) -> Iterator[tuple[np.ndarray, Arrays]]:
    """Parts as they are computed and saved."""
    if where is not None:
        requests = [elsewhere.part_of(group, part) for group, part in todo]
        for place, outputs in where.compute(requests, store):
            yield todo[place][1], outputs
        return
    for group, part, outputs in _compute(todo):
        if store:
            store.save(group.key(part), outputs)
        yield part, outputs


def _compute(
    todo: list[tuple[Group, np.ndarray]],
) -> Iterator[tuple[Group, np.ndarray, dict[str, np.ndarray]]]:
    # Tracing holds the interpreter, XLA's compilation does not: compile the groups side by side.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        ready = _Programs(todo, pool)
        running = None
        for group, part in todo:
            # The devices work on the next part while this one is saved.
            ahead = (group, part, programs.start(group, ready.take(group), part))
            if running:
                yield programs.ended(*running)
            running = ahead
        if running:
            yield programs.ended(*running)


class _Programs:
    """Programs compiled ahead of their use and dropped after it.

    Each takes memory maps, of which a process may have so many only.
    """

    def __init__(self, todo: list[tuple[Group, np.ndarray]], pool: Executor):
        self.pool = pool
        self.uses = Counter(group.digest for group, _ in todo)
        self.groups = iter({group.digest: group for group, _ in todo}.values())
        self.compiled: dict[str, Future] = {}
        for group in islice(self.groups, AHEAD):
            self.compile(group)

    def compile(self, group: Group) -> None:
        self.compiled[group.digest] = programs.compile_in(self.pool, group)

    def take(self, group: Group) -> Any:
        while group.digest not in self.compiled:
            self.compile(next(self.groups))
        found = self.compiled[group.digest].result()
        self.uses[group.digest] -= 1
        if not self.uses[group.digest]:
            del self.compiled[group.digest]
            for following in islice(self.groups, 1):
                self.compile(following)
        return found
