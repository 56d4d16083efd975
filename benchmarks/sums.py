"""Sums on a CPU: as XLA compiles them by itself, and as ``lrdyn.sweep`` has them compiled.

*loss*: 1/2 ||W_3 W_2 W_1 - target||_F^2 of three layers of d x d. By itself XLA hands the sum and
the products inside it, as one piece, to its library of kernels YNNPACK, which computes entries of
the products again and again. *reduced*: a step of the reduced integrator (L = 3, blocks of 2r x 2r)
for each of 64 runs. Its rows are sums over 2r x 2r x 64 numbers, the library's from 4,096 on: from
r = 4. (Larger blocks than those of r = 6, in float32 8, are multiplied as matrices.)

One device; both programs are compiled before, and their results compared.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks.common import table, timed
from lrdyn.verification.machine.device_defaults import usual_options

DEPTH, RUNS, EPS, ETA = 3, 64, 0.3, 1e-3
HEADER = ("", "precision", "XLA's own", "as in a sweep", "of the first", "differ")


class Sizes(NamedTuple):
    """What is measured."""

    dims: Sequence[int] = (100, 300, 1000)
    ranks: Sequence[int] = (3, 4, 6)
    steps: int = 500


def loss(dim: int, dtype: str) -> tuple[Callable[..., jax.Array], list[jax.Array]]:
    """The loss, and layers and a target."""
    arrays = np.random.default_rng(0).normal(size=(DEPTH + 1, dim, dim)) / np.sqrt(dim)
    *layers, target = jnp.asarray(arrays, dtype)
    return lambda *layers: lrdyn.factorization_loss(layers[:-1], layers[-1]), [*layers, target]


def reduced(rank: int, steps: int, dtype: str) -> tuple[Callable[..., jax.Array], list[jax.Array]]:
    """The last products of runs of the reduced integrator, and what it takes."""
    targets = np.random.default_rng(0).normal(size=(RUNS, 2 * rank, 2 * rank)).astype(dtype)
    starts = jnp.full((RUNS, DEPTH), EPS, dtype)
    rates, decays = jnp.full(RUNS, ETA, dtype), jnp.zeros(RUNS, dtype)

    def run(*arrays: jax.Array) -> jax.Array:
        last = np.array([steps])
        return lrdyn.theorem2.reduced_lanes(*arrays, last, record=lrdyn.end_to_end).records

    return run, [jnp.asarray(targets), starts, rates, decays]


def both(
    function: Callable[..., jax.Array], arrays: Sequence[jax.Array], repeats: int
) -> tuple[float, float, float]:
    """Seconds of both programs, and the largest difference over the largest entry."""
    lowered = jax.jit(function).lower(*arrays)
    ways: Mapping[str, Mapping[str, Any]] = {"own": {}, "sweep": usual_options("cpu")}
    work = {
        name: partial(lowered.compile(compiler_options=dict(options)), *arrays)
        for name, options in ways.items()
    }
    own, ours = (np.asarray(call()) for call in work.values())
    times = timed(work, repeats)
    difference = np.abs(own - ours).max() / np.abs(own).max()
    return times["own"].best, times["sweep"].best, float(difference)


FULL = Sizes()


def report(sizes: Sizes = FULL, *, repeats: int = 3) -> str:
    """Measure and lay out."""
    each = 1 / (sizes.steps * RUNS)
    rows = []
    for dtype in ("float64", "float32"):
        cases = [(f"loss, d = {d}", loss(d, dtype), 1e3, "ms") for d in sizes.dims]
        for rank in sizes.ranks:
            run = reduced(rank, sizes.steps, dtype)
            cases.append((f"reduced, r = {rank}", run, 1e6 * each, "us"))
        for name, program, scale, unit in cases:
            own, ours, differ = both(*program, repeats)
            times = (f"{scale * seconds:.3g} {unit}" for seconds in (own, ours))
            rows.append((name, dtype, *times, f"{ours / own:.2f}", f"{differ:.1e}"))
    title = (
        f"sums on a CPU, L = {DEPTH}, one device: the loss once; a step of a run of the reduced "
        f"integrator, {RUNS} runs of {sizes.steps} steps; best of {repeats}"
    )
    return f"{title}\n{table(HEADER, rows)}"
