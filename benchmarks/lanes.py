"""The reduced integrator, run by run: how its time grows with their number, and a kernel in C.

The runs of :func:`lrdyn.theorem2.reduced_lanes` (L = 3, r = 3: three matrices of 6 x 6) on one
device, and the same descent by ``reduced_lanes.c``, which keeps one vector of runs in each register
of AVX-512: what is left of a step if nothing but arithmetic is. It is compiled by ``cc``, and left
out where there is none or the processor has no AVX-512.

The last column is the largest difference of the weights from those of JAX, over their largest.
"""

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks.common import table, timed

SIZE, EPS, ETA = 6, 0.3, 1e-3
LANES = {"float64": 8, "float32": 16}
"""Runs in a vector."""
REALS: dict[str, tuple[str, Any]] = {
    "float64": ("double", ctypes.c_double),
    "float32": ("float", ctypes.c_float),
}
HEADER = ("precision", "by", "runs", "steps", "a step of a run", "differ")


def targets(count: int, dtype: str) -> np.ndarray:
    """Gaussian ones."""
    return np.random.default_rng(0).normal(size=(count, SIZE, SIZE)).astype(dtype)


def by_jax(count: int, steps: int, dtype: str) -> Callable[[], Any]:
    """The weights of all runs after the steps, (runs, 3, 6, 6), by the library."""
    arrays = (
        jnp.asarray(targets(count, dtype)),
        jnp.full((count, 3), EPS, dtype),
        jnp.full(count, ETA, dtype),
        jnp.zeros(count, dtype),
    )

    @jax.jit
    def run(*arrays: jax.Array) -> jax.Array:
        found = lrdyn.theorem2.reduced_lanes(*arrays, np.array([steps]), record=lambda _: ())
        return jnp.stack(found.params, axis=1)

    return lambda: run(*arrays)


@functools.cache
def compiled(dtype: str) -> Any:
    """The function ``run`` of the C source; None without a compiler or a processor for it."""
    compiler, real = shutil.which("cc"), REALS[dtype][0]
    facts = Path("/proc/cpuinfo")
    if not compiler or not facts.exists() or "avx512f" not in facts.read_text():
        return None
    source = Path(__file__).with_name("reduced_lanes.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "run.so"
        words = ["-O2", "-march=native", "-shared", "-fPIC"]
        named = [f"-DREAL={real}", f"-DLANES={LANES[dtype]}"]
        subprocess.run([compiler, *words, *named, source, "-o", library], check=True)
        return ctypes.CDLL(library).run


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy whose first byte is a multiple of 64, as vectors of 512 bits want it."""
    room = np.empty(array.nbytes + 64, np.uint8)
    begin = -room.ctypes.data % 64
    copy = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def by_c(count: int, steps: int, dtype: str) -> Callable[[], np.ndarray]:
    """The same by C; the number of runs is a multiple of those in a vector."""
    function, lanes = compiled(dtype), LANES[dtype]
    blocks = targets(count, dtype).reshape(-1, lanes, SIZE, SIZE)
    target = aligned(np.moveaxis(blocks, 1, -1))
    start = np.broadcast_to(EPS * np.eye(SIZE)[..., None], (len(blocks), 3, SIZE, SIZE, lanes))
    start = aligned(start.astype(dtype))

    def run() -> np.ndarray:
        weights = aligned(start)
        function(
            ctypes.c_void_p(weights.ctypes.data),
            ctypes.c_void_p(target.ctypes.data),
            REALS[dtype][1](ETA),
            ctypes.c_long(len(blocks)),
            ctypes.c_long(steps),
        )
        return np.moveaxis(weights, -1, 1).reshape(count, 3, SIZE, SIZE)

    return run


def row(way: str, count: int, steps: int, dtype: str, repeats: int) -> tuple[str, ...]:
    """One row of the table."""
    make = {"jax": by_jax, "C": by_c}[way]
    run = make(count, steps, dtype)
    best = timed({way: run}, repeats)[way].best
    W, reference = np.asarray(run()), np.asarray(by_jax(count, steps, dtype)())
    differ = np.abs(W - reference).max() / np.abs(reference).max()
    nanoseconds = 1e9 * best / steps / count
    return (dtype, way, f"{count:,}", str(steps), f"{nanoseconds:.3g} ns", f"{differ:.1e}")


def report(
    cases: Sequence[tuple[int, int]] = (
        (64, 3000),
        (1000, 1000),
        (10_000, 300),
        (100_000, 300),
    ),
    *,
    repeats: int = 3,
) -> str:
    """Measure and lay out; the cases are numbers of runs and steps."""
    with jax.default_device(jax.local_devices()[0]):
        rows = [row("jax", *case, dtype, repeats) for dtype in LANES for case in cases]
        lanes = max(LANES.values())
        native = [dtype for dtype in LANES if compiled(dtype) is not None]
        count, steps = cases[-1]
        count = -(-count // lanes) * lanes
        rows += [row("C", count, steps, dtype, repeats) for dtype in native]
    without = "" if native else "\nno cc, or no AVX-512: the kernel in C is left out"
    title = f"the reduced integrator, L = 3, r = 3, one device; best of {repeats} runs"
    return f"{title}\n{table(HEADER, rows)}{without}"
