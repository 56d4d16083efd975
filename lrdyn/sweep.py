"""Repeating a pure function over many points: grouped by shape, batched, spread over devices."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

if TYPE_CHECKING:
    import xarray

Axis = Sequence[Any] | np.ndarray


class Points(NamedTuple):
    """Points of a sweep: see :func:`product`, :func:`zipped`, :func:`listed`, :func:`sampled`."""

    columns: Mapping[str, list]
    """One list for each axis, all as long as there are points."""
    grid: Mapping[str, list] | None = None
    """The axes of a product, in the order of the dimensions; None for a list of points."""

    @property
    def size(self) -> int:
        """Number of points."""
        return len(next(iter(self.columns.values())))


def product(**axes: Axis) -> Points:
    """All combinations of the values of the axes.

    Args:
        **axes: values of each axis.

    Returns:
        The points; the results have one dimension for each axis.

    Raises:
        ValueError: there is no axis, or one is empty.

    Example:
        >>> product(depth=[2, 3], rank=[1, 2, 3]).size
        6
    """
    grid = _nonempty(axes)
    mesh = np.meshgrid(*(np.arange(len(values)) for values in grid.values()), indexing="ij")
    columns = {
        name: [values[i] for i in index.ravel()]
        for (name, values), index in zip(grid.items(), mesh, strict=True)
    }
    return Points(columns, grid)


def zipped(**axes: Axis) -> Points:
    """Values of equally long axes, taken together.

    Args:
        **axes: values of each axis.

    Returns:
        The points; the results have one dimension, ``point``.

    Raises:
        ValueError: there is no axis, or the lengths differ.

    Example:
        >>> zipped(depth=[2, 3], rank=[1, 5]).size
        2
    """
    columns = _nonempty(axes)
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"axes: got lengths {lengths}, wanted all the same")
    return Points(columns)


def listed(points: Sequence[Mapping[str, Any]]) -> Points:
    """Points given one by one.

    Args:
        points: one mapping from axis to value for each point, all with the same axes.

    Returns:
        The points; the results have one dimension, ``point``.

    Raises:
        ValueError: there is no point, or they have different axes.

    Example:
        >>> listed([{"depth": 2, "rank": 1}, {"depth": 3, "rank": 4}]).size
        2
    """
    if not points:
        raise ValueError("points: got none, wanted at least one")
    names = list(points[0])
    for point in points:
        if set(point) != set(names):
            raise ValueError(
                f"points: got axes {sorted(point)}, wanted {sorted(names)} in every point"
            )
    return zipped(**{name: [point[name] for point in points] for name in names})


def sampled(
    key: Key[Array, ""], count: int, **distributions: Callable[[Key[Array, ""], tuple[int]], Array]
) -> Points:
    """Random points.

    Args:
        key: random key.
        count: number of points.
        **distributions: for each axis a function ``draw(key, shape)``, such as
            ``functools.partial(jax.random.uniform, minval=0.1)``.

    Returns:
        The points; the results have one dimension, ``point``.

    Raises:
        ValueError: ``count`` is smaller than 1.

    Example:
        >>> import jax
        >>> sampled(jax.random.key(0), 5, init_scale=jax.random.uniform).size
        5
    """
    if count < 1:
        raise ValueError(f"count: got {count}, wanted at least 1")
    keys = jax.random.split(key, len(distributions)) if distributions else ()
    draws = {
        name: np.asarray(draw(k, (count,))).tolist()
        for k, (name, draw) in zip(keys, distributions.items(), strict=True)
    }
    return zipped(**draws)


def _nonempty(axes: Mapping[str, Axis]) -> dict[str, list]:
    columns = {name: np.asarray(values).tolist() for name, values in axes.items()}
    empty = [name for name, values in columns.items() if not values]
    if empty or not columns:
        raise ValueError(f"axes: got {empty or 'none'} empty, wanted at least one value on each")
    return columns


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
) -> "xarray.Dataset":
    """Call a pure function at every point and label the results.

    Points that agree on the ``shapes`` axes are compiled once and run together: ``lanes`` of them
    batched by ``vmap``, chunks of lanes one after another, chunks spread over the devices. No
    device waits for another before the end of a part.

    Args:
        function: ``function(**point)`` returns named arrays; axes in ``shapes`` arrive as Python
            numbers, all others as traced scalars.
        points: the points.
        shapes: axes whose values decide shapes: one compilation for each combination.
        dims: names of the axes of each result; ``<result>_0``, ... where not given. A result that
            is named like its only axis becomes the coordinate of that axis.
        batched: ``function`` takes 1-d arrays of ``lanes`` values and returns results with that
            leading axis, instead of being vmapped.
        lanes: how many points are batched at a time on each device.
        memory: bytes that the results and intermediate arrays of one part may take; parts follow
            from the points and this budget alone.
        devices: devices to spread over; all local ones by default.
        compiler_options: options for XLA.

    Returns:
        A dataset with one dimension for each axis of a product, or with the dimension ``point``;
        ragged results are padded with NaN.

    Raises:
        ValueError: an axis in ``shapes`` is not an axis of the points, ``lanes`` < 1, the names in
            ``dims`` do not fit the results, or a batched function has no traced axis or returns
            no axis of lanes.

    Example:
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
    devices = jax.local_devices() if devices is None else devices
    rows: list[dict[str, np.ndarray]] = [{} for _ in range(points.size)]
    plan = _Plan(batched, lanes, memory, devices, dict(compiler_options or {}))
    for indices, outputs in _parts(function, points, shapes, plan):
        for lane, index in enumerate(indices):
            rows[index] = {name: values[lane, ...] for name, values in outputs.items()}
    return _label(rows, points, dims or {})


class _Plan(NamedTuple):
    batched: bool
    lanes: int
    memory: int
    devices: Sequence[Any]
    compiler_options: dict[str, Any]


class _Group(NamedTuple):
    indices: list[int]
    """Points of the group."""
    traced: dict[str, np.ndarray]
    """Their traced values."""
    width: int
    """Points of one part; the last part is padded to it."""
    compiled: Future
    inputs: NamedSharding


def _parts(
    function: Callable, points: Points, shapes: Sequence[str], plan: _Plan
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    groups: dict[tuple, list[int]] = {}
    for index in range(points.size):
        groups.setdefault(tuple(points.columns[name][index] for name in shapes), []).append(index)
    # Tracing holds the interpreter, XLA's compilation does not: compile the groups side by side.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        prepared = []
        for values, indices in groups.items():
            known = partial(function, **dict(zip(shapes, values, strict=True)))
            traced = {n: c for n, c in points.columns.items() if n not in shapes}
            prepared.append(_prepare(known, indices, traced, plan, pool))
        for group in prepared:
            yield from _run(group)


def _prepare(
    function: Callable, indices: list[int], columns: Mapping[str, list], plan: _Plan, pool: Executor
) -> _Group:
    traced = {name: np.asarray([column[i] for i in indices]) for name, column in columns.items()}
    if plan.batched and not traced:
        raise ValueError("batched: got no traced axis, wanted one whose array tells the lanes")
    # If every axis decides shapes there is nothing to batch over but the count.
    traced = traced or {"": np.zeros(len(indices))}

    def call(point):
        return function(**{name: value for name, value in point.items() if name})

    # A batch of width 1 is compiled to other kernels and rounds differently: never use it unless
    # the whole group is one point.
    devices = plan.devices[: -(-len(indices) // 2)]
    lanes = max(min(plan.lanes, -(-len(indices) // len(devices))), min(2, len(indices)))
    chunk = lanes * len(devices)
    example = {
        name: jnp.broadcast_to(jnp.asarray(values[0]), (lanes,) if plan.batched else ())
        for name, values in traced.items()
    }
    program = _trace(call, example)
    if plan.batched:
        _check_lanes(program.outputs, lanes)
    size = program.bytes // (lanes if plan.batched else 1)
    fit = max(1, plan.memory // (max(1, size) * chunk))
    width = chunk * min(fit, -(-len(indices) // chunk))
    sharding = NamedSharding(Mesh(np.asarray(devices), ("run",)), PartitionSpec("run"))
    spread = jax.shard_map(
        partial(_local, program.call if plan.batched else jax.vmap(program.call), lanes),
        mesh=sharding.mesh,
        in_specs=(sharding.spec,),
        out_specs=sharding.spec,
        check_vma=False,
    )
    abstract = {
        name: jax.ShapeDtypeStruct((width,), values.dtype, sharding=sharding)
        for name, values in example.items()
    }
    lowered = jax.jit(spread).lower(abstract)
    compiled = pool.submit(lowered.compile, compiler_options=plan.compiler_options)
    return _Group(indices, traced, width, compiled, sharding)


def _local(run_lanes, lanes, values):
    """What one device does: chunks of ``lanes`` points, one chunk after another."""
    chunks = jax.tree.map(lambda v: v.reshape(-1, lanes), values)
    outputs = jax.lax.map(run_lanes, chunks)
    return jax.tree.map(lambda v: v.reshape(v.shape[0] * v.shape[1], *v.shape[2:]), outputs)


class _Program(NamedTuple):
    call: Callable
    """The function, traced: batching it does not run its Python again."""
    outputs: dict[str, jax.ShapeDtypeStruct]
    bytes: int
    """Every intermediate array counted once: an upper bound on what lives at a time."""


def _trace(call: Callable, example: dict[str, jax.Array]) -> _Program:
    # Tracing is half of the time of a small sweep: do it once, for the sizes and for the batch.
    closed, outputs = jax.make_jaxpr(call, return_shape=True)(example)
    flat, structure = jaxpr_as_fun(closed), jax.tree.structure(outputs)

    def traced(point):
        return jax.tree.unflatten(structure, flat(*jax.tree.leaves(point)))

    return _Program(traced, outputs, _jaxpr_bytes(closed.jaxpr))


def _check_lanes(outputs: dict[str, jax.ShapeDtypeStruct], lanes: int) -> None:
    for name, output in outputs.items():
        if output.shape[:1] != (lanes,):
            raise ValueError(
                f"{name}: got shape {output.shape}, wanted {lanes} lanes as its leading axis"
            )


def _jaxpr_bytes(jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            aval = variable.aval
            total += int(np.prod(aval.shape)) * getattr(aval.dtype, "itemsize", 8)
        for parameter in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                total += _jaxpr_bytes(inner)
    return total


def _run(group: _Group) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    compiled = group.compiled.result()
    for start in range(0, len(group.indices), group.width):
        indices = group.indices[start : start + group.width]
        # The last part is filled by repeating its last point, so that all parts share one program.
        take = np.minimum(np.arange(start, start + group.width), len(group.indices) - 1)
        values = {
            name: jax.device_put(jnp.asarray(column[take]), group.inputs)
            for name, column in group.traced.items()
        }
        outputs = jax.device_get(compiled(values))
        yield indices, {name: array[: len(indices)] for name, array in outputs.items()}


def _label(rows, points: Points, dims) -> "xarray.Dataset":
    import xarray  # 0.3 s and pandas: not at import

    lead = ("point",) if points.grid is None else tuple(points.grid)
    shape = (points.size,) if points.grid is None else tuple(map(len, points.grid.values()))
    if points.grid is None:
        coordinates = {name: ("point", column) for name, column in points.columns.items()}
    else:
        coordinates = dict(points.grid)
    variables = {}
    for name in rows[0]:
        arrays = [row[name] for row in rows]
        axes = tuple(dims.get(name, [f"{name}_{i}" for i in range(arrays[0].ndim)]))
        if len(axes) != arrays[0].ndim:
            raise ValueError(f"dims: got {axes} for {name!r}, wanted {arrays[0].ndim} names")
        if axes == (name,) and all(np.array_equal(arrays[0], a) for a in arrays):
            coordinates[name] = arrays[0]
        else:
            stacked = _pad(arrays)
            variables[name] = (lead + axes, stacked.reshape(shape + stacked.shape[1:]))
    return xarray.Dataset(variables, coordinates)


def _pad(arrays: list[np.ndarray]) -> np.ndarray:
    shape = tuple(np.max([a.shape for a in arrays], axis=0, initial=0)) if arrays[0].ndim else ()
    if all(a.shape == shape for a in arrays):
        return np.stack(arrays)
    kind = np.result_type(arrays[0].dtype, np.float32)
    padded = np.full((len(arrays), *shape), np.nan, kind)
    for target, array in zip(padded, arrays, strict=True):
        target[tuple(map(slice, array.shape))] = array
    return padded
