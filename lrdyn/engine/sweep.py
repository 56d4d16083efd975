"""Repeating a pure function over many points: grouped by shape, batched, spread over devices."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lrdyn.engine.jaxprs import equations
from lrdyn.engine.labels import Labels
from lrdyn.engine.parts import Store, opened
from lrdyn.engine.points import Points
from lrdyn.engine.progress import Progress, Silent

if TYPE_CHECKING:
    import xarray

CHUNKS = 32
"""Most chunks of lanes in a part: what a kill can lose."""

AHEAD = 16
"""Programs that a sweep holds at a time: more than there are cores to compile them on."""

LEAST = 4
"""Points of the smallest part of a longer sweep, however small the budget."""


def sweep(
    function: Callable[..., Mapping[str, Array]],
    points: Points,
    *,
    shapes: Sequence[str] = (),
    dims: Mapping[str, tuple[str, ...]] | None = None,
    batched: bool = False,
    lanes: int = 16,
    memory: int = 2**30,
    devices: Sequence[Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    store: str | os.PathLike | None = None,
    progress: Progress | None = None,
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
        shapes: axes whose values decide shapes: one compilation for each combination.
        dims: names of the axes of each result; ``<result>_0``, ... where not given. A result that
            is named like its only axis becomes the coordinate of that axis.
        batched: ``function`` takes 1-d arrays of ``lanes`` values and returns results with that
            leading axis, instead of being vmapped.
        lanes: how many points are batched at a time on each device.
        memory: bytes that the arrays of one part may take. Parts follow from the points, the lanes
            and this budget alone; with a store, larger results stay on disk.
        devices: devices to spread over; all local ones by default.
        compiler_options: options for XLA.
        store: a folder that keeps each finished part: after a kill the same call computes the
            others only. Parts are named by the traced program, its options and their points, so
            that another function cannot take them for its own. The caller removes the folder.
        progress: told of every finished part; see :func:`lrdyn.engine.progress.shown`.

    Returns:
        A dataset with one dimension for each axis of a product, or with the dimension ``point``;
        ragged results are padded with NaN. If its arrays exceed ``memory`` and there is a store,
        they are read from a file in the store when they are used.

    Raises:
        ValueError: an axis in ``shapes`` is not an axis of the points, ``lanes`` < 1, the names in
            ``dims`` do not fit the results, results have different names at different shapes, or a
            batched function has no traced axis or returns no axis of lanes.
        files.InUse: another process uses the store.
        OSError: the store cannot be written.

    Example:
        >>> from lrdyn import product
        >>> result = sweep(lambda x, n: {"y": x * jnp.arange(n)}, product(x=[1.0, 2.0], n=[2, 3]),
        ...                shapes=("n",), dims={"y": ("index",)})
        >>> result["y"].sel(x=2.0, n=3).values.tolist()
        [0.0, 2.0, 4.0]
    """
    unknown = [name for name in shapes if name not in points.columns]
    if unknown:
        raise ValueError(f"shapes: got {unknown}, wanted axes out of {list(points.columns)}")
    if lanes < 1:
        raise ValueError(f"lanes: got {lanes}, wanted at least 1")
    progress = Silent() if progress is None else progress
    devices = jax.local_devices() if devices is None else devices
    plan = _Plan(batched, lanes, memory, devices, dict(compiler_options or {}))
    groups = [
        _trace(function, values, indices, points, plan)
        for values, indices in _by_shape(points, shapes).items()
    ]
    with ExitStack() as stack:
        kept = stack.enter_context(opened(Path(store), progress.note)) if store else None
        labels = Labels(points, dims or {}, [group.outputs for group in groups])
        progress.expect_bytes(labels.nbytes)
        target = labels.allocate(memory, kept and kept.folder)
        for indices, outputs in _finish(groups, plan, kept, progress):
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
) -> "xarray.Dataset":
    """Call a Python function at every point, one after another, and label the results.

    For what cannot be traced: counts of a traced program, memory of a compiled one, a training that
    reads files. :func:`sweep` is for the rest.

    Args:
        function: ``function(**point)`` returns named arrays; all axes arrive as Python values.
        points: the points.
        dims: see :func:`sweep`.
        digest: of everything but the points that decides the results; it names the parts.
        memory: see :func:`sweep`.
        store: a folder that keeps the results of each finished point.
        progress: told of every finished point.

    Returns:
        A dataset as :func:`sweep` returns it.

    Raises:
        ValueError: results have different names at different points, or ``dims`` does not fit.
        files.InUse: another process uses the store.
        OSError: the store cannot be written.

    Example:
        >>> from lrdyn import product
        >>> call_each(lambda word: {"letters": len(word)}, product(word=["a", "abc"]))[
        ...     "letters"].values.tolist()
        [1, 3]
    """
    progress = Silent() if progress is None else progress
    with ExitStack() as stack:
        kept = stack.enter_context(opened(Path(store), progress.note)) if store else None
        progress.expect(points.size)
        found = [_called(function, points, i, digest, kept, progress) for i in range(points.size)]
        shapes = [
            {n: jax.ShapeDtypeStruct(a.shape, a.dtype) for n, a in each.items()} for each in found
        ]
        target = Labels(points, dims or {}, shapes).allocate(memory, kept and kept.folder)
        for index, outputs in enumerate(found):
            target.place(np.array([index]), {name: array[None] for name, array in outputs.items()})
        return target.dataset()


def _called(function, points: Points, index: int, digest: str, kept: Store | None, progress):
    point = {name: column[index] for name, column in points.columns.items()}
    named = hashlib.sha256(f"{digest}{point}".encode()).hexdigest()[:20]
    key = f"{index}-{named}"
    found = kept.load(key) if kept else None
    saved = found is not None
    if found is None:
        found = {name: np.asarray(array) for name, array in function(**point).items()}
        if kept:
            kept.save(key, found)
    progress.advance(1, saved=saved)
    return found


class _Plan(NamedTuple):
    batched: bool
    lanes: int
    memory: int
    devices: Sequence[Any]
    compiler_options: dict[str, Any]


class _Group(NamedTuple):
    """Points of one shape and the program that they share."""

    traced: Any
    """One call of the function: of ``lanes`` points batched, or of one; whether slots are used."""
    outputs: dict[str, jax.ShapeDtypeStruct]
    """Of one point."""
    parts: list[np.ndarray]
    """Indices of the points of each part."""
    columns: dict[str, np.ndarray]
    """Values of all points of the sweep on the traced axes."""
    lanes: int
    devices: Sequence[Any]
    digest: str
    """Of everything but the values that decides the bits of the results."""

    @property
    def slots(self) -> int:
        """Points that one call of the program takes; a part that has fewer is filled up."""
        chunk = self.lanes * len(self.devices)
        return -(-max(map(len, self.parts)) // chunk) * chunk

    def values(self, part: np.ndarray) -> dict[str, np.ndarray]:
        return {name: column[part] for name, column in self.columns.items()}

    def key(self, part: np.ndarray) -> str:
        digest = hashlib.sha256(self.digest.encode())
        for column in self.values(part).values():
            digest.update(column.tobytes())
        return f"{part[0]}-{digest.hexdigest()[:20]}"


def _by_shape(points: Points, shapes: Sequence[str]) -> dict[tuple, list[int]]:
    groups: dict[tuple, list[int]] = {}
    for index in range(points.size):
        groups.setdefault(tuple(points.columns[name][index] for name in shapes), []).append(index)
    return {tuple(zip(shapes, values, strict=True)): found for values, found in groups.items()}


def _trace(
    function: Callable, shape: tuple, indices: list[int], points: Points, plan: _Plan
) -> _Group:
    known = dict(shape)
    columns = {n: np.asarray(column) for n, column in points.columns.items() if n not in known}
    if plan.batched and not columns:
        raise ValueError("batched: got no traced axis, wanted one whose array tells the lanes")
    # If every axis decides shapes there is nothing to batch over but the count.
    columns = _canonical(columns or {"": np.zeros(points.size)})

    def call(point):
        return function(**known, **{name: value for name, value in point.items() if name})

    # A batch of width 1 is compiled to other kernels and rounds differently: never use it unless
    # the whole group is one point, or every point is to run by itself.
    devices = plan.devices[: -(-len(indices) // min(2, plan.lanes))]
    lanes = min(plan.lanes, max(-(-len(indices) // len(devices)), min(2, len(indices))))
    several = plan.batched or lanes > 1
    run = call if plan.batched or not several else jax.vmap(call)

    def abstract(dtype):
        return jax.ShapeDtypeStruct((lanes,) if several else (), dtype)

    # Tracing is half of the time of a small sweep: do it once, for the sizes and for the program.
    traced = jax.jit(lambda values, used: run(values)).trace(
        {name: abstract(column.dtype) for name, column in columns.items()}, abstract(bool)
    )
    outputs = _one_lane(traced.out_info, lanes) if several else traced.out_info
    size = _jaxpr_bytes(traced.jaxpr.jaxpr) // (lanes if several else 1)
    # Two parts are in memory: one that runs and one that is saved.
    fit = plan.memory // (2 * max(1, size))
    parts = _cut(np.asarray(indices), fit, CHUNKS * plan.lanes)
    context = (
        jax.__version__,
        devices[0].device_kind,
        lanes,
        sorted(plan.compiler_options.items()),
    )
    digest = _digest(traced.jaxpr, context)
    return _Group(traced, outputs, parts, columns, lanes, devices, digest)


def _one_lane(
    outputs: dict[str, jax.ShapeDtypeStruct], lanes: int
) -> dict[str, jax.ShapeDtypeStruct]:
    for name, output in outputs.items():
        if output.shape[:1] != (lanes,):
            raise ValueError(
                f"{name}: got shape {output.shape}, wanted {lanes} lanes as its leading axis"
            )
    return {n: jax.ShapeDtypeStruct(o.shape[1:], o.dtype) for n, o in outputs.items()}


def _cut(indices: np.ndarray, fit: int, most: int) -> list[np.ndarray]:
    """Parts of at most ``fit`` and ``most`` points, as even as can be."""
    size = max(LEAST, min(fit, most))
    return np.array_split(indices, -(-len(indices) // size))


def _jaxpr_bytes(jaxpr) -> int:
    """Every intermediate array counted once: an upper bound on what lives at a time."""
    avals = (variable.aval for equation, _ in equations(jaxpr) for variable in equation.outvars)
    return sum(int(np.prod(a.shape)) * getattr(a.dtype, "itemsize", 8) for a in avals)


def _digest(closed, context: tuple) -> str:
    # Functions inside a program print with their address, which changes from run to run.
    text = re.sub(r"0x[0-9a-f]+", "", f"{closed.jaxpr}{context}")
    digest = hashlib.sha256(text.encode())
    for constant in closed.consts:
        digest.update(np.asarray(constant).tobytes())
    return digest.hexdigest()


def _finish(
    groups: list[_Group], plan: _Plan, store: Store | None, progress: Progress
) -> Iterator[tuple[np.ndarray, Mapping[str, np.ndarray]]]:
    """Every part, those from the store first."""
    todo = []
    for group in groups:
        for part in group.parts:
            progress.expect(len(part))
            found = store.load(group.key(part)) if store else None
            if found is None:
                todo.append((group, part))
            else:
                progress.advance(len(part), saved=True)
                yield part, found
    for group, part, outputs in _compute(todo, plan):
        if store:
            store.save(group.key(part), outputs)
        progress.advance(len(part))
        yield part, outputs


def _compute(
    todo: list[tuple[_Group, np.ndarray]], plan: _Plan
) -> Iterator[tuple[_Group, np.ndarray, dict[str, np.ndarray]]]:
    # Tracing holds the interpreter, XLA's compilation does not: compile the groups side by side.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        programs = _Programs(todo, plan, pool)
        running = None
        for group, part in todo:
            # The devices work on the next part while this one is saved.
            ahead = (group, part, _start(group, programs.take(group), part))
            if running:
                yield _ended(*running)
            running = ahead
        if running:
            yield _ended(*running)


class _Programs:
    """Programs compiled ahead of their use and dropped after it.

    Each takes memory maps, of which a process may have so many only.
    """

    def __init__(self, todo: list[tuple[_Group, np.ndarray]], plan: _Plan, pool: Executor):
        self.plan, self.pool = plan, pool
        self.uses = Counter(group.digest for group, _ in todo)
        self.groups = iter({group.digest: group for group, _ in todo}.values())
        self.compiled: dict[str, Future] = {}
        for group in islice(self.groups, AHEAD):
            self.compile(group)

    def compile(self, group: _Group) -> None:
        self.compiled[group.digest] = _compile(group, self.plan, self.pool)

    def take(self, group: _Group) -> Any:
        while group.digest not in self.compiled:
            self.compile(next(self.groups))
        found = self.compiled[group.digest].result()
        self.uses[group.digest] -= 1
        if not self.uses[group.digest]:
            del self.compiled[group.digest]
            for following in islice(self.groups, 1):
                self.compile(following)
        return found


def _sharding(group: _Group) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(group.devices), ("run",)), PartitionSpec("run"))


def _compile(group: _Group, plan: _Plan, pool: Executor) -> Future:
    return pool.submit(_lowered(group, plan).compile, compiler_options=plan.compiler_options)


def _lowered(group: _Group, plan: _Plan) -> Any:
    if group.slots == group.lanes > 1 and group.devices == jax.local_devices()[:1]:
        return group.traced.lower()
    sharding, structure = _sharding(group), jax.tree.structure(group.outputs)

    def call(values):
        flat = jaxpr_as_fun(group.traced.jaxpr)
        unused = jnp.ones(jax.tree.leaves(values)[0].shape, bool)
        return jax.tree.unflatten(structure, flat(*jax.tree.leaves((values, unused))))

    if group.lanes == 1:
        local = partial(_one_by_one, call, plan.batched)
    else:
        local = partial(_chunks, call, group.lanes)
    # Every layer around the function costs a small sweep as much as the function.
    spread = (
        local
        if len(group.devices) == 1
        else jax.shard_map(
            local,
            mesh=sharding.mesh,
            in_specs=(sharding.spec, sharding.spec),
            out_specs=sharding.spec,
            check_vma=False,
        )
    )
    abstract = {
        name: jax.ShapeDtypeStruct((group.slots,), column.dtype, sharding=sharding)
        for name, column in group.columns.items()
    }
    used = jax.ShapeDtypeStruct((group.slots,), bool, sharding=sharding)
    return jax.jit(spread).lower(abstract, used)


def _canonical(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: column.astype(jax.dtypes.canonicalize_dtype(column.dtype))
        for name, column in columns.items()
    }


def _chunks(run_lanes, lanes, values, used):
    """What one device does: chunks of ``lanes`` points, one chunk after another."""
    if len(used) == lanes:
        return run_lanes(values)
    chunks = jax.tree.map(lambda v: v.reshape(-1, lanes), values)
    outputs = jax.lax.map(run_lanes, chunks)
    return jax.tree.map(lambda v: v.reshape(v.shape[0] * v.shape[1], *v.shape[2:]), outputs)


def _one_by_one(call, batched, values, used):
    """What one device does: point after point, each as long as it takes."""

    def run(point):
        if batched:
            outputs = call(jax.tree.map(lambda v: v[None], point))
            return jax.tree.map(lambda v: v[0], outputs)
        return call(point)

    def skip(point):
        return jax.tree.map(lambda o: jnp.zeros(o.shape, o.dtype), jax.eval_shape(run, point))

    return jax.lax.map(lambda slot: jax.lax.cond(slot[1], run, skip, slot[0]), (values, used))


def _order(group: _Group) -> np.ndarray:
    """Slots in the order of the devices, dealt out to and fro.

    So a cost that changes along an axis is shared evenly.
    """
    slots = np.arange(group.slots).reshape(-1, len(group.devices))
    slots[1::2] = slots[1::2, ::-1]
    return slots.T.ravel()


def _start(group: _Group, compiled, part: np.ndarray) -> dict[str, Array]:
    order = _order(group)
    # Slots beyond the part repeat its last point, so that all parts share one program.
    values = group.values(part[np.minimum(order, len(part) - 1)])
    return compiled(*jax.device_put((values, order < len(part)), _sharding(group)))


def _ended(group: _Group, part: np.ndarray, outputs: dict[str, Array]):
    place = np.argsort(_order(group))[: len(part)]
    return group, part, {name: array[place] for name, array in jax.device_get(outputs).items()}
