"""Ten thousand runs of Theorem 2 in flat memory, full and reduced, against a NumPy loop.

*full*: gradient descent on d x d layers (d = 30, L = 3, r = 3, 500 steps, eta = 0.1) for 10,000
starts and learning rates, with the singular values of all layers at 50 recorded steps, streamed to
a store on disk under a memory budget. *reduced*: the same runs by
:func:`lrdyn.theorem2.reduced_lanes`, with the spectra of the 6 x 6 blocks at the same 50 steps.
*integrator alone*: ten times as many reduced
runs that share one target up to a factor and return their last product. Times are of the whole
call: tracing, compilation, drawing the starts, computing, writing.

Memory is the peak of the process above its size when the sweep began (Linux); beside it the size of
the results.

*Rival*: a NumPy loop with gradients by hand, every product into a buffer that exists, and NumPy's
SVD at the recorded steps, one BLAS thread, measured on a few runs; the sweep has two cores to its
one.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks.common import blas_threads, table
from benchmarks.sweeps import numpy_descent
from lrdyn.core.factorization import Weights
from lrdyn.verification.running.sweep import sweep
from lrdyn.verification.stating.points import Points, zipped

RANK, DEPTH, RATE = 3, 3, 0.1
HEADER = ("runs", "time", "per run", "per step and run", "peak memory", "results", "NumPy / this")

Run = Callable[[jax.Array, jax.Array], dict[str, jax.Array]]
"""A function of seed and learning rate."""


def points(count: int) -> Points:
    """Starts and learning rates."""
    return zipped(seed=np.arange(count), rate=np.linspace(0.5, 1.0, count) * RATE)


def start(seed: int | jax.Array, dim: int) -> tuple[Weights, jax.Array]:
    """Orthogonal layers of scale 0.3 and a target."""
    for_weights, for_target = jax.random.split(jax.random.key(seed))
    weights = lrdyn.orthogonal_layers(for_weights, (dim,) * (DEPTH + 1), jnp.full(DEPTH, 0.3))
    values = lrdyn.spaced_singular_values(RANK)
    return weights, lrdyn.low_rank_target(for_target, (dim, dim), values)


def full(dim: int, steps: np.ndarray) -> Run:
    """A run on d x d layers: spectra at the recorded steps."""

    def run(seed: jax.Array, rate: jax.Array) -> dict[str, jax.Array]:
        weights, target = start(seed, dim)
        result = lrdyn.simulate(
            lambda layers: lrdyn.factorization_loss(layers, target),
            weights,
            lrdyn.gradient_descent(rate),
            steps,
            record=lambda layers: lrdyn.singular_values(jnp.stack(layers)),
        )
        return {"spectra": result.records, "diverged_at": result.diverged_at}

    return run


def reduced(dim: int, steps: np.ndarray, spectra: bool) -> Run:
    """The same runs from 6 x 6 layers, 64 at a time."""

    def one_target(seed: int | jax.Array) -> jax.Array:
        weights, target = start(seed, dim)
        frame = lrdyn.frame(weights, target, RANK)
        return lrdyn.reduced_target(frame, target, 2 * RANK)

    def see(layers: Weights) -> jax.Array:
        return lrdyn.singular_values(jnp.stack(layers))

    def run(seed: jax.Array, rate: jax.Array) -> dict[str, jax.Array]:
        if spectra:
            targets = jax.vmap(one_target)(seed)
        else:  # nothing but the integrator: one target, scaled
            targets = one_target(0)[None] * (1 + 1e-6 * seed[:, None, None])
        result = lrdyn.theorem2.reduced_lanes(
            targets,
            jnp.full((len(seed), DEPTH), 0.3),
            rate,
            0.0 * rate,
            steps,
            record=see if spectra else lrdyn.end_to_end,
        )
        return {"spectra": result.records, "diverged_at": result.diverged_at}

    return run


def by_numpy(dim: int, steps: np.ndarray, runs: int) -> float:
    """Seconds of one run of the rival."""
    weights, target = start(0, dim)
    layers, phi = [np.array(W) for W in weights], np.asarray(target)
    gaps = np.diff(steps)
    begin = time.perf_counter()
    with blas_threads(1):
        for _ in range(runs):
            for gap in gaps:
                numpy_descent(layers, phi, RATE, int(gap))
                np.linalg.svd(np.stack(layers), compute_uv=False)
    return (time.perf_counter() - begin) / runs


def measured(run: Run, count: int, **options: Any) -> tuple[float, float | None, int]:
    """Seconds, peak memory above the start in bytes, and bytes of the results of a sweep."""
    with tempfile.TemporaryDirectory() as store:
        sweep(run, points(4 * options.get("lanes", 16)), **options)  # what a process needs at all
        before = peak(reset=True)
        begin = time.perf_counter()
        results = sweep(run, points(count), store=Path(store), **options)
        seconds, after = time.perf_counter() - begin, peak()
        if int((results["diverged_at"] >= 0).sum()):
            raise RuntimeError("many: got a run that diverged, wanted none")
        size = results.nbytes
        results.close()
    return seconds, None if after is None or before is None else after - before, size


def peak(reset: bool = False) -> int | None:
    """Largest memory of this process in bytes, or its present size after starting anew."""
    with contextlib.suppress(OSError):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        lines = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
        )
        return 1024 * int(lines["VmRSS" if reset else "VmHWM"].split()[0])
    return None


def report(
    count: int = 10_000, dim: int = 30, steps: int = 500, memory: int = 2**28, rival_runs: int = 20
) -> str:
    """Measure and lay out."""
    recorded, last = lrdyn.recorded_steps(steps, 50), np.array([steps])
    loop = by_numpy(dim, recorded, rival_runs)
    lanes = {"batched": True, "lanes": 64, "memory": memory}
    cases = {
        f"full, {len(recorded)} spectra": (full(dim, recorded), count, {"memory": memory}),
        f"reduced, {len(recorded)} spectra": (reduced(dim, recorded, True), count, lanes),
        "reduced, integrator alone": (reduced(dim, last, False), 10 * count, lanes),
    }
    rows = []
    for name, (run, runs, options) in cases.items():
        seconds, memory_used, size = measured(run, runs, **options)
        rows.append(
            (
                name,
                f"{runs:,}",
                f"{seconds:.1f} s",
                f"{1e3 * seconds / runs:.3g} ms",
                f"{1e6 * seconds / runs / steps:.3g} us",
                "-" if memory_used is None else f"{memory_used / 1e6:.0f} MB",
                f"{size / 1e6:.0f} MB",
                f"{loop * runs / seconds:.1f}x",
            )
        )
    rows.append(
        (
            "NumPy loop, full",
            f"{rival_runs}",
            "",
            f"{1e3 * loop:.3g} ms",
            f"{1e6 * loop / steps:.3g} us",
            "",
            "",
            "1x",
        )
    )
    title = (
        f"many runs of deep factorisation: d = {dim}, L = {DEPTH}, r = {RANK}, {steps} steps, "
        f"float64, memory budget {memory / 1e6:.0f} MB"
    )
    return f"{title}\n{table(('', *HEADER), rows)}"
