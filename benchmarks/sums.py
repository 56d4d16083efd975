"""Sums on a CPU: as XLA compiles them by itself, and as ``lrdyn.sweep`` has them compiled.

The loss is 1/2 ||W_3 W_2 W_1 - target||_F^2 of three layers of d x d. By itself XLA hands the sum,
with the products inside it, to its library of kernels YNNPACK, which computes entries of
the products again and again.

One device; both programs are compiled before, and their results compared.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks.common import table, timed
from lrdyn.verification.machine.compiler_options import compiler_options

DEPTH = 3
HEADER = ("", "precision", "XLA's own", "as in a sweep", "of the first", "differ")


def loss(dim: int, dtype: str) -> tuple[Callable[..., jax.Array], list[jax.Array]]:
    """The loss, and layers and a target."""
    arrays = np.random.default_rng(0).normal(size=(DEPTH + 1, dim, dim)) / np.sqrt(dim)
    *layers, target = jnp.asarray(arrays, dtype)
    return lambda *layers: lrdyn.factorization_loss(layers[:-1], layers[-1]), [*layers, target]


def both(
    function: Callable[..., jax.Array], arrays: Sequence[jax.Array], repeats: int
) -> tuple[float, float, float]:
    """Seconds of both programs, and the largest difference over the largest entry."""
    lowered = jax.jit(function).lower(*arrays)
    ways: Mapping[str, Mapping[str, Any]] = {"own": {}, "sweep": compiler_options("cpu")}
    work = {
        name: partial(lowered.compile(compiler_options=dict(options)), *arrays)
        for name, options in ways.items()
    }
    own, ours = (np.asarray(call()) for call in work.values())
    times = timed(work, repeats)
    difference = np.abs(own - ours).max() / np.abs(own).max()
    return times["own"].best, times["sweep"].best, float(difference)


def report(dims: Sequence[int] = (100, 300, 1000), *, repeats: int = 3) -> str:
    """Measure and lay out."""
    rows = []
    for dtype in ("float64", "float32"):
        for dim in dims:
            own, ours, differ = both(*loss(dim, dtype), repeats)
            times = (f"{1e3 * seconds:.3g} ms" for seconds in (own, ours))
            rows.append((f"d = {dim}", dtype, *times, f"{ours / own:.2f}", f"{differ:.1e}"))
    title = f"the loss of {DEPTH} layers on a CPU, one device; best of {repeats}"
    return f"{title}\n{table(HEADER, rows)}"
