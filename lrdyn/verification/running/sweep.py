"""Repeating a pure function over many points: grouped by shape, batched, spread over devices."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Array, PyTree

from lrdyn.core.precision import matmul_precision
from lrdyn.system.progress import Progress, Silent
from lrdyn.verification.machine.device_defaults import usual_lanes, usual_memory
from lrdyn.verification.running.programs import SweepPlan
from lrdyn.verification.running.reductions import Reductions
from lrdyn.verification.running.shared import Shared, check_taken
from lrdyn.verification.running.work import Context, Elsewhere, Recipe, Sweep, run_sweep
from lrdyn.verification.stating.points import NONE, Points

if TYPE_CHECKING:
    import xarray


def sweep(
    function: Callable[..., Mapping[str, Array]],
    points: Points,
    *,
    shared: PyTree = None,
    shapes: Sequence[str] = (),
    dims: Mapping[str, tuple[str, ...]] | None = None,
    batched: bool = False,
    lanes: int | None = None,
    memory: int | None = None,
    devices: Sequence[Any] | None = None,
    compiler_options: Mapping[str, Any] | None = None,
    store: str | os.PathLike | None = None,
    reduce: Reductions | None = None,
    progress: Progress | None = None,
    client: Any = None,
) -> "xarray.Dataset":
    """Call a pure function at every point and label the results.

    Points that agree on the ``shapes`` axes are compiled once and run in parts: ``lanes`` points
    batched by ``vmap``, chunks of lanes one after another on each device, neighbouring points on
    different devices. No device waits for another before the end of a part.

    Products of matrices have the highest precision, unless JAX was told of another.

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
        lanes: how many points are batched at a time on each device; by default 16 on a CPU, or as
            many as its cache holds (matrices of 100 x 100 come one by one), and on a GPU or TPU
            4096, or as many as ``memory`` holds.
        memory: bytes that the arrays of one part may take; by default 1 GiB on a CPU, and half of
            the memory of a GPU or TPU. Parts follow from the points, the lanes,
            what is shared and this budget alone; with a store, larger results stay on disk.
        devices: devices to spread over; all local ones by default.
        compiler_options: options for XLA, beside those of
            :func:`lrdyn.compiler_options`.
        store: a folder that keeps each finished part: after a kill the same call computes the
            others only. Parts are named by the traced program, its options, what is shared and
            their points, so that another function cannot take them for its own. The caller removes
            the folder.
        reduce: what is kept in the place of the results, which are then never all there: name in
            the dataset -> a :class:`lrdyn.verification.running.reductions.Worst`, ``Quantiles`` or
            ``Histogram``. A store then keeps what is kept of each part.
        progress: told of every finished part; see :func:`lrdyn.system.progress.shown`.
        client: a ``dask.distributed.Client`` whose workers compute the parts, each on one device.
            The function then stands at the top level of a module, whose text is sent. Workers that
            see the folder of the store write there; otherwise parts come back over the network.

    Returns:
        A dataset of what is kept, with ``reduce``. Else one with one dimension for each axis of a
        product, or with the dimension ``point``; ragged results are padded with NaN. If its arrays
        exceed ``memory`` and there is a store, they are read from a file in the store when they
        are used.

    Raises:
        ValueError: ``reduce`` names no result, a leaf of ``shared`` is no array, ``function`` takes
            no such argument, or an axis is called that; an axis in ``shapes`` is not an axis of the
            points, ``lanes`` < 1, the names in ``dims`` do not fit the results, results have
            different names at different shapes, or a batched function has no traced axis or returns
            no axis of lanes; with a client, the function is in no module, or no worker has this
            release of the library.
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
    unknown = [name for name in shapes if name not in points.axes]
    if unknown:
        raise ValueError(f"shapes: got {unknown}, wanted axes out of {list(points.axes)}")
    if lanes is not None and lanes < 1:
        raise ValueError(f"lanes: got {lanes}, wanted at least 1")
    if shared is not None:
        check_taken(function, points.axes)
    options = dict(compiler_options or {})
    device = (devices or jax.local_devices())[0]
    in_cache = lanes is None and not batched  # what is batched was written for its lanes
    lanes = usual_lanes(device) if lanes is None else lanes
    memory = usual_memory(device) if memory is None else memory
    how: dict[str, Any] = {"batched": batched, "lanes": lanes, "in_cache": in_cache}
    how["memory"] = memory
    how["reduce"] = dict(reduce or {})
    # JAX's settings belong to this process: a worker that makes the sweep again must be told of
    # them.
    how |= {"compiler_options": options, "shared": shared, "x64": jax.config.jax_enable_x64}  # pyright: ignore[reportAttributeAccessIssue]
    how["matmuls"] = matmul_precision()
    # A worker has one device.
    devices = jax.local_devices()[:1] if client is not None else devices
    work = sweep_of(function, points=points, shapes=shapes, dims=dims, devices=devices, **how)
    context = Context(
        memory=memory,
        store=Path(store) if store else None,
        progress=Silent() if progress is None else progress,
        elsewhere=None if client is None else cluster_of(client),
    )
    return run_sweep(work, context, Recipe(function, f"{__name__}:sweep_of", how))


def sweep_of(
    function: Callable[..., Mapping[str, Any]],
    *,
    points: Points = NONE,
    shapes: Sequence[str] = (),
    dims: Mapping[str, tuple[str, ...]] | None = None,
    devices: Sequence[Any] | None = None,
    batched: bool,
    lanes: int,
    in_cache: bool,
    memory: int,
    compiler_options: dict[str, Any],
    shared: PyTree,
    x64: bool,
    matmuls: str,
    reduce: Reductions,
    context: Context | None = None,
) -> Sweep:
    """Describe the sweep of a function: :func:`sweep` explains the arguments.

    Beside those stand JAX's settings, whether it has 64-bit numbers and the precision of products
    of matrices; of a worker's context nothing is needed.
    """

    @contextmanager
    def scope() -> Iterator[None]:
        with jax.enable_x64(x64), jax.default_matmul_precision(matmuls):
            yield

    devices = jax.local_devices()[: context and 1] if devices is None else devices
    plan = SweepPlan(
        batched, lanes, memory, devices, compiler_options, Shared(shared), in_cache=in_cache
    )
    return Sweep(function, points, dims or {}, plan, shapes, scope=scope, reduce=reduce)


def cluster_of(client: Any) -> Elsewhere:
    """Wrap a client of Dask as :class:`Elsewhere`, which is returned as it is."""
    if isinstance(client, Elsewhere):
        return client
    # Imported by name: the engine does not depend on Dask, which only a client needs.
    return resolve_name("lrdyn.verification.cluster.client:Cluster")(client)
