"""Runs of which there are too many to keep their results: reduced as they come, in flat memory.

The reduced integrator of Theorem 2 (L = 3, r = 3, 64 runs at a time) for targets and learning rates
that are described by two axes; of the norm of each last product quantiles, a histogram and the
worst ten are kept. Memory is the peak of the process above its size after a small such sweep
(Linux). A part is what is computed, reduced and, with a store, kept at a time: it is cut by its
time.
"""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks.common import table
from benchmarks.many import DEPTH, RANK, RATE, peak
from lrdyn.system.progress import Silent
from lrdyn.verification.running.reductions import Histogram, Quantiles, Worst
from lrdyn.verification.running.sweep import sweep
from lrdyn.verification.stating.points import Points, product

LANES, RATES = 64, 1000
HEADER = ("runs", "time", "per step and run", "parts", "longest part", "peak memory")
KEPT = {
    "quantile": Quantiles("norm", (0.0, 0.01, 0.5, 0.99, 1.0)),
    "count": Histogram("norm", tuple(np.linspace(0, 2, 21))),
    "worst": Worst("norm", 10),
}


class Parts(Silent):
    """Counts parts."""

    def __init__(self) -> None:
        self.count, self.longest, self.last = 0, 0.0, time.perf_counter()

    def advance(self, points: int, *, saved: bool = False) -> None:
        """Count a part that has ended."""
        now = time.perf_counter()
        self.count, self.longest, self.last = (
            self.count + 1,
            max(self.longest, now - self.last),
            now,
        )


def points(count: int) -> Points:
    """So many runs: targets and learning rates."""
    rates = np.linspace(0.5, 1.0, min(RATES, count)) * RATE
    return product(scale=np.linspace(0.5, 1.5, count // len(rates)), rate=rates)


def run(steps: int):
    """A batch of runs: the norm of the last product."""

    def batch(scale: jax.Array, rate: jax.Array) -> dict[str, jax.Array]:
        values = lrdyn.spaced_singular_values(RANK)
        target = jnp.diag(jnp.append(values, jnp.zeros(RANK)))
        result = lrdyn.theorem2.reduced_lanes(
            scale[:, None, None] * target[None],
            jnp.full((len(scale), DEPTH), 0.3),
            rate,
            0.0 * rate,
            np.array([steps]),
            record=lambda layers: jnp.linalg.norm(lrdyn.end_to_end(layers)),
        )
        return {"norm": result.records[:, -1]}

    return batch


def report(counts: Sequence[int] = (100_000, 1_000_000, 10_000_000), steps: int = 20) -> str:
    """Measure and lay out."""
    batch, rows = run(steps), []
    how = {"batched": True, "lanes": LANES, "reduce": KEPT}
    sweep(batch, points(64 * LANES), **how)  # what a process needs at all
    for count in counts:
        parts, before, begin = Parts(), peak(reset=True), time.perf_counter()
        results = sweep(batch, points(count), progress=parts, **how)
        seconds, after = time.perf_counter() - begin, peak()
        if int(results["count"].sum()) != count:
            got = int(results["count"].sum())
            raise RuntimeError(f"streamed: got {got} runs in the histogram, wanted {count}")
        known = before is not None and after is not None
        used = f"{(after - before) / 1e6:.0f} MB" if known else "-"
        each = f"{1e6 * seconds / count / steps:.3g} us"
        longest = f"{parts.longest:.2g} s"
        rows.append((f"{count:,}", f"{seconds:.1f} s", each, str(parts.count), longest, used))
    title = f"reduced runs, summarised as they end: L = {DEPTH}, r = {RANK}, {steps} steps, float64"
    return f"{title}\n{table(HEADER, rows)}"
