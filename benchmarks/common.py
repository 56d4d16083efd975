"""Timing, tables and facts about the machine."""

import contextlib
import functools
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrdyn.verification.cluster.worker import processor

HOST_DEVICES = 2
"""CPU devices of every benchmark."""


class Times(NamedTuple):
    """Seconds of the repeats of one piece of work."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        """The repeat that other jobs on the machine disturbed least."""
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """How far the median lies above the best, as a fraction of the best."""
        return float(np.median(self.seconds)) / self.best - 1


def timed(work: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """Time several pieces of work, taking turns so that a busy moment meets all of them.

    Each is called once before the clock starts: that call compiles.
    """
    for call in work.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, call in work.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return {name: Times(tuple(values)) for name, values in seconds.items()}


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of one call, which is to wait for what it computes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


@functools.cache
def _blas():
    """Found once: the search takes milliseconds, as long as what is timed."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def blas_threads(count: int) -> contextlib.AbstractContextManager:
    """Limit NumPy's BLAS threads; without threadpoolctl, what the environment says stays."""
    blas = _blas()
    return blas.limit(limits=count, user_api="blas") if blas else contextlib.nullcontext()


def gemm(size: int) -> dict[str, Callable[[], object]]:
    """Large products of float64 matrices by JAX and by NumPy, each on all cores."""
    left = np.random.default_rng(0).standard_normal((size, size))
    out = np.empty_like(left)
    on_device = jax.device_put(left, jax.local_devices()[0])
    multiply = jax.jit(jnp.matmul)

    def by_numpy() -> None:
        with blas_threads(os.cpu_count() or 1):
            np.matmul(left, left, out=out)

    return {"gemm jax": lambda: multiply(on_device, on_device), "gemm numpy": by_numpy}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Right-aligned columns; the first is left-aligned."""
    cells = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *rest in cells:
        padded = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *padded]))
    return "\n".join(lines)


def machine() -> str:
    """What decides the numbers, one fact a line."""
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    devices = ", ".join(str(device) for device in jax.local_devices())
    lines = [
        f"Python {platform.python_version()}, jax {jax.__version__}, numpy {np.__version__} "
        f"with {blas['name']} {blas['version']}",
        f"{os.cpu_count()} cores ({processor()}), devices: {devices}",
    ]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1:
        lines.append(
            f"note: load average {load:.1f}: other jobs share the cores, repeat this when they end"
        )
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_NUM_THREADS", "NPROC"):
        if name in os.environ:
            lines.append(f"note: {name}={os.environ[name]} is set and {_EFFECT[name]}")
    return "\n".join(lines)


_EFFECT = {
    "OPENBLAS_CORETYPE": "may choose slow kernels for NumPy; `env -u OPENBLAS_CORETYPE` unsets it",
    "OPENBLAS_NUM_THREADS": "limits the threads of NumPy and of LAPACK under JAX",
    "NPROC": "changes the number of threads under JAX: products of matrices are slower with it",
}
