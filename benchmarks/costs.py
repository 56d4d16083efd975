"""What runs cost: time and memory against d, L, r and runs, and what many workers make of it.

*One device.* A program of 16 runs batched, float64, compiled before: seconds for each run and
step, and the bytes that XLA plans for temporaries and results. The full run is gradient descent on
L matrices of d x d; the reduced one on L matrices of 2r x 2r, whatever d is. Exponents are slopes
of the logarithms by least squares, with their standard error: at these sizes they grow still, as
small matrices are dear.

*Many workers.* A simulation, event by event. N parts of 512 runs are handed out by one server,
which is busy for a while with each (scheduler and client, measured below: the time of the
processor that this process takes for a part, in which both run); M workers compute each part for
as long as one took here. Each worker has two parts at a time, as the client asks for. What a
network adds is not in it.
"""

import heapq
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks import cluster_runs
from benchmarks.common import seconds_of, table
from lrdyn.engine.sweep import sweep

LANES = 16
PART = 512
"""Runs of a part of a long sweep."""


class Sizes(NamedTuple):
    """What is measured."""

    dims: Sequence[int] = (32, 48, 64, 96, 128)
    depths: Sequence[int] = (2, 3, 4, 6, 8)
    ranks: Sequence[int] = (2, 4, 8, 16, 24)
    runs: Sequence[int] = (1024, 2048, 4096, 8192)
    steps: int = 100
    parts: int = 300
    many: int = 1_000_000


class Cost(NamedTuple):
    """Of one run."""

    seconds: float
    """For each step."""
    bytes: float
    """While it runs."""


def full(seed: Any, dim: int, depth: int, steps: int) -> Any:
    """The last loss of a run in d x d."""
    for_weights, for_target = jax.random.split(jax.random.key(seed))
    scales = jnp.full(depth, 0.5)
    weights = lrdyn.gaussian_layers(for_weights, (dim,) * (depth + 1), scales)
    target = jax.random.normal(for_target, (dim, dim)) / dim
    loss = partial(lrdyn.factorization_loss, target=target)
    rule = lrdyn.gradient_descent(0.01)
    return lrdyn.simulate(loss, weights, rule, np.array([steps]), record=loss).records


def reduced(seed: Any, rank: int, depth: int, steps: int) -> Any:
    """The same of a reduced run, in 2r x 2r."""
    target = jax.random.normal(jax.random.key(seed), (2 * rank, 2 * rank)) / rank
    scales = jnp.full(depth, 0.5)
    record = partial(lrdyn.factorization_loss, target=target)
    last = np.array([steps])
    return lrdyn.reduced_dynamics(target, scales, 0.01, 0.0, last, record=record).records


def cost(run: Callable[..., Any], steps: int, repeats: int = 3) -> Cost:
    """Measure a function of a seed and of the number of steps."""
    seeds = jnp.arange(LANES)

    def best(count: int) -> tuple[float, Any]:
        compiled = jax.jit(jax.vmap(partial(run, steps=count))).lower(seeds).compile()
        jax.block_until_ready(compiled(seeds))
        return min(
            seconds_of(lambda: jax.block_until_ready(compiled(seeds))) for _ in range(repeats)
        ), (compiled.memory_analysis())

    (short, _), (long, memory) = best(1), best(steps + 1)
    size = memory.temp_size_in_bytes + memory.output_size_in_bytes
    # Of tiny sizes the difference may be noise.
    return Cost(max(long - short, 1e-9) / steps / LANES, size / LANES)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """The slope of the logarithms and its standard error.

    Example:
        >>> slope, error = exponent([1, 2, 4], [3, 12, 48])
        >>> round(slope, 9), error < 1e-9
        (2.0, True)
    """
    x, y = np.log(sizes), np.log(values)
    away = x - x.mean()
    # Least squares on logarithms: the exponent of a power law, with the error of an ordinary
    # regression.
    slope = float(away @ y / (away @ away))
    rest = y - y.mean() - slope * away
    return slope, float(np.sqrt(rest @ rest / (len(x) - 2) / (away @ away)))


def row(name: str, sizes: Sequence[int], costs: Sequence[Cost]) -> tuple[str, ...]:
    """One line of the table: sizes, times, memory, exponents."""
    seconds, memory = [cost_of.seconds for cost_of in costs], [cost_of.bytes for cost_of in costs]
    slopes = [exponent(sizes, values) for values in (seconds, memory)]
    return (
        name,
        f"{sizes[0]} to {sizes[-1]}",
        f"{1e6 * seconds[0]:.3g} to {1e6 * seconds[-1]:.3g} us",
        "{:.2f} +- {:.2f}".format(*slopes[0]),
        f"{memory[0] / 1e3:.3g} to {memory[-1] / 1e3:.3g} kB",
        "{:.2f} +- {:.2f}".format(*slopes[1]),
    )


def against_runs(counts: Sequence[int], devices: int) -> list[float]:
    """Seconds of sweeps of so many runs of Theorem 2, d = 20, 200 steps; compiled before."""
    local = jax.local_devices()[:devices]

    def swept(count: int) -> None:
        points = lrdyn.product(seed=range(count), init_scale=[0.3])
        sweep(cluster_runs.full, points, devices=local)

    times = []
    for count in counts:
        swept(count)
        times.append(seconds_of(lambda count=count: swept(count)))
    return times


def service(parts: int) -> float:
    """Seconds of the processor that client and scheduler take for a part, in one process."""
    from lrdyn.engine.cluster import client as clusters

    work = lrdyn.product(x=np.arange(4.0 * parts))
    with clusters.open_cluster("local:1") as cluster:
        sweep(cluster_runs.nothing, work, memory=1, client=cluster)
        begin = time.process_time()
        sweep(cluster_runs.nothing, work, memory=1, client=cluster)
        return (time.process_time() - begin) / parts


def makespan(parts: int, workers: int, seconds: float, busy: float) -> float:
    """Seconds until all parts have ended; the server is busy for a while with each.

    Example:
        >>> makespan(100, 10, 1.0, 0.0), makespan(100, 10, 1.0, 1.0) >= 100
        (10.0, True)
    """
    free = [0.0] * workers
    server, ended = 0.0, 0.0
    asked: list[float] = []  # when the parts that are out end
    for _ in range(parts):
        if len(asked) >= 2 * workers:  # the client asks for no more before one has come back
            server = max(server, heapq.heappop(asked))
        server += busy
        end = max(server, heapq.heappop(free)) + seconds
        heapq.heappush(free, end)
        heapq.heappush(asked, end)
        ended = max(ended, end)
    return ended


def many_workers(sizes: Sizes, seconds: float, busy: float) -> list[tuple[str, ...]]:
    """A line for each number of workers: how long, and how much of them is used."""
    parts = -(-sizes.many // PART)
    rows = []
    for workers in (1, 64, 1000):
        took = makespan(parts, workers, seconds, busy)
        rows.append(
            (
                f"{workers:,}",
                f"{took:.0f} s",
                f"{parts * seconds / workers / took:.2f}",
            )
        )
    return rows


def report(sizes: Sizes | None = None) -> str:
    """Measure, fit, simulate and lay out."""
    s = Sizes() if sizes is None else sizes
    by_dim = [cost(partial(full, dim=d, depth=3), s.steps) for d in s.dims]
    by_depth = [cost(partial(full, dim=s.dims[1], depth=n), s.steps) for n in s.depths]
    by_rank = [cost(partial(reduced, rank=r, depth=3), s.steps) for r in s.ranks]
    of_depth = [cost(partial(reduced, rank=s.ranks[1], depth=n), s.steps) for n in s.depths]
    head = ("", "sizes", "each run and step", "exponent", "memory of a run", "exponent")
    costs = table(
        head,
        [
            row("full, d (L = 3)", s.dims, by_dim),
            row(f"full, L (d = {s.dims[1]})", s.depths, by_depth),
            row("reduced, r (L = 3)", s.ranks, by_rank),
            row(f"reduced, L (r = {s.ranks[1]})", s.depths, of_depth),
        ],
    )
    alone, on_two = (against_runs(s.runs, devices) for devices in (1, 2))
    slope = "{:.2f} +- {:.2f}".format(*exponent(s.runs, alone))
    runs = (
        f"{s.runs[-1]:,} runs of Theorem 2 (d = 20, 200 steps): {alone[-1]:.2f} s on one device, "
        f"{on_two[-1]:.2f} s on two; exponent in the runs {slope}"
    )
    each = max(alone[-1] - alone[0], 1e-9) / (s.runs[-1] - s.runs[0])
    seconds, busy = each * PART, service(s.parts)
    simulated = table(("workers", "time", "used"), many_workers(s, seconds, busy))
    return (
        f"{costs}\n{runs}\n\n"
        f"{s.many:,} such runs in parts of {PART}, by simulation: a part takes {seconds:.2f} s and "
        f"keeps client and scheduler busy for {1e3 * busy:.2f} ms;\n"
        f"they saturate at {seconds / busy:.0f} workers\n{simulated}"
    )
