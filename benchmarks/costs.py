"""What runs cost against d, L, r, steps and runs, on one device and on many workers.

*One device.* A program of 16 runs batched (of the reduced integrator 64), float64, compiled before:
seconds for each run and step, and the bytes that XLA plans for temporaries and results. The full
run is gradient descent on L matrices of d x d; the reduced one on L matrices of 2r x 2r, whatever d
is. Against steps and runs it is the time of the whole call, of a program and of a sweep. Exponents
are slopes of the logarithms by least squares, with their standard error: at these sizes they grow
still, as small matrices are dear.

*Many workers.* A part of a long sweep is cut to ten seconds. What client and scheduler take for
one is measured below, the time of the processor that this process takes for a part, in which both
run, where results come back and where each worker reduces its own. A simulation, event by event,
hands out the parts: one server is busy for a while with each, M workers compute each part for ten
seconds. Each worker has two parts at a time, as the client asks for. What a network adds is not in
it.
"""

import heapq
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks import cluster_runs, streamed
from benchmarks.common import table, timed
from lrdyn.verification.machine.compiler_options import compiler_options
from lrdyn.verification.running import work
from lrdyn.verification.running.programs import round_to_batches
from lrdyn.verification.running.reductions import Quantiles
from lrdyn.verification.running.sweep import sweep

LANES, REDUCED_LANES = 16, 64
REDUCES = "each worker reduces its own"


class Sizes(NamedTuple):
    """What is measured, and what is worked out from it."""

    dims: Sequence[int] = (32, 48, 64, 96, 128)
    depths: Sequence[int] = (2, 3, 4, 6, 8)
    ranks: Sequence[int] = (2, 3, 4, 8, 16)
    steps: Sequence[int] = (50, 100, 200, 400)
    runs: Sequence[int] = (1024, 2048, 4096, 8192)
    reduced_runs: Sequence[int] = (100_000, 200_000, 400_000, 800_000)
    parts: int = 300
    many: int = 10**9
    many_steps: int = 500
    """Of these runs."""


class Cost(NamedTuple):
    """Of one run."""

    seconds: float
    """For each step."""
    bytes: float
    """While it runs."""


def full(seeds: Any, dim: int, depth: int, steps: int) -> Any:
    """The last losses of runs in d x d."""
    return jax.vmap(partial(full_run, dim=dim, depth=depth, steps=steps))(seeds)


def full_run(seed: Any, dim: int, depth: int, steps: int) -> Any:
    """The last loss of one."""
    for_weights, for_target = jax.random.split(jax.random.key(seed))
    scales = jnp.full(depth, 0.5)
    weights = lrdyn.gaussian_layers(for_weights, (dim,) * (depth + 1), scales)
    target = jax.random.normal(for_target, (dim, dim)) / dim
    loss = partial(lrdyn.factorization_loss, target=target)
    rule = lrdyn.gradient_descent(0.01)
    return lrdyn.simulate(loss, weights, rule, np.array([steps]), record=loss).records


def reduced(seeds: Any, rank: int, depth: int, steps: int) -> Any:
    """The same of many reduced runs, in 2r x 2r."""
    shape = (len(seeds), 2 * rank, 2 * rank)
    # With the seeds, though they change nothing: without an argument XLA would run it beforehand.
    targets = jax.random.normal(jax.random.key(0), shape) / rank + 0.0 * seeds[:, None, None]
    rates = jnp.full(len(seeds), 0.01)
    scales, last = jnp.full((len(seeds), depth), 0.5), np.array([steps])
    return lrdyn.theorem2.reduced_lanes(
        targets,
        scales,
        rates,
        0.0 * rates,
        last,
        record=lambda layers: jnp.linalg.norm(lrdyn.end_to_end(layers)),
    ).records


def timed_program(run: Callable[..., Any], lanes: int, steps: int) -> tuple[float, int]:
    """Best seconds of a program of runs after it was compiled, and the bytes that it plans."""
    seeds = jnp.arange(lanes)
    options = compiler_options()  # as a sweep does
    compiled = jax.jit(partial(run, steps=steps)).lower(seeds).compile(compiler_options=options)
    seconds = timed({"": lambda: compiled(seeds)}, 3)[""].best
    memory = compiled.memory_analysis()
    return seconds, memory.temp_size_in_bytes + memory.output_size_in_bytes


def cost(run: Callable[..., Any], lanes: int, steps: int) -> Cost:
    """Measure a function of seeds and of the number of steps."""
    (short, _), (long, size) = (timed_program(run, lanes, count) for count in (steps, 2 * steps))
    # Of tiny sizes the difference may be noise.
    return Cost(max(long - short, 1e-9) / steps / lanes, size / lanes)


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


def of_counts(swept: Callable[[int], None], counts: Sequence[int]) -> list[float]:
    """Seconds of a sweep of each number of runs; compiled before."""
    return [timed({"": partial(swept, count)}, 1)[""].best for count in counts]


def against_runs(counts: Sequence[int], devices: int) -> list[float]:
    """Seconds of sweeps of so many runs of Theorem 2, d = 20, 200 steps; compiled before."""
    local = jax.local_devices()[:devices]

    def swept(count: int) -> None:
        points = lrdyn.product(seed=range(count), init_scale=[0.3])
        sweep(cluster_runs.full, points, devices=local)

    return of_counts(swept, counts)


def against_reduced_runs(counts: Sequence[int], devices: int) -> list[float]:
    """The same of reduced runs of 20 steps, summarised as they end (:mod:`benchmarks.streamed`)."""
    local, batch = jax.local_devices()[:devices], streamed.run(20)
    how = {"batched": True, "lanes": REDUCED_LANES, "reduce": streamed.KEPT, "devices": local}

    def swept(count: int) -> None:
        sweep(batch, streamed.points(count), **how)

    return of_counts(swept, counts)


def service(cluster: Any, parts: int, **how: Any) -> float:
    """Seconds of the processor that client and scheduler take for a part, in one process."""
    points = lrdyn.product(x=np.arange(4.0 * parts))
    sweep(cluster_runs.nothing, points, memory=1, client=cluster, **how)
    begin = time.process_time()
    sweep(cluster_runs.nothing, points, memory=1, client=cluster, **how)
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


def many_workers(parts: int, seconds: float, busy: float) -> list[tuple[str, ...]]:
    """A line for each number of workers: how long, and how much of them is used."""
    rows = []
    for workers in (1, 64, 1000):
        took = makespan(parts, workers, seconds, busy)
        used = parts * seconds / workers / took
        rows.append((f"{workers:,}", f"{took / 3600:.3g} h", f"{used:.2f}"))
    return rows


def growing(name: str, sizes: Sequence[int], seconds: Sequence[float]) -> tuple[str, ...]:
    """One line of the table of whole calls."""
    slope = "{:.2f} +- {:.2f}".format(*exponent(sizes, seconds))
    return name, f"{sizes[0]:,} to {sizes[-1]:,}", f"{seconds[0]:.3g} to {seconds[-1]:.3g} s", slope


def by_size(s: Sizes) -> dict[str, tuple[Sequence[int], list[Cost]]]:
    """Row -> its sizes, and what a run of each costs."""
    d, r = s.dims[1], s.ranks[1]
    of_full = {
        "full, d (L = 3)": (s.dims, [partial(full, dim=n, depth=3) for n in s.dims]),
        f"full, L (d = {d})": (s.depths, [partial(full, dim=d, depth=n) for n in s.depths]),
    }
    of_reduced = {
        "reduced, r (L = 3)": (s.ranks, [partial(reduced, rank=n, depth=3) for n in s.ranks]),
        f"reduced, L (r = {r})": (s.depths, [partial(reduced, rank=r, depth=n) for n in s.depths]),
    }
    return {
        name: (numbers, [cost(run, lanes, s.steps[1]) for run in runs])
        for lanes, rows in ((LANES, of_full), (REDUCED_LANES, of_reduced))
        for name, (numbers, runs) in rows.items()
    }


def whole_calls(s: Sizes) -> Iterator[tuple[str, ...]]:
    """Lines of the table of whole calls: programs against steps, sweeps against runs."""
    d, r = s.dims[1], s.ranks[1]
    for name, run, lanes in (
        (f"full, d = {d}", partial(full, dim=d, depth=3), LANES),
        (f"reduced, r = {r}", partial(reduced, rank=r, depth=3), REDUCED_LANES),
    ):
        times = [timed_program(run, lanes, count)[0] for count in s.steps]
        yield growing(f"{name}, {lanes} runs: steps", s.steps, times)
    for devices, on in ((1, "one device"), (2, "two devices")):
        times = against_runs(s.runs, devices)
        yield growing(f"Theorem 2, d = 20, 200 steps, {on}: runs", s.runs, times)
        times = against_reduced_runs(s.reduced_runs, devices)
        yield growing(f"reduced, r = 3, 20 steps, {on}: runs", s.reduced_runs, times)


def services(parts: int) -> dict[str, float]:
    """What becomes of results -> seconds of client and scheduler for a part."""
    from lrdyn.verification.cluster import client as clusters

    reducing = {"reduce": {"least": Quantiles("y", (0.0,))}}
    with clusters.open_cluster("local:1") as cluster:
        return {
            "results come back": service(cluster, parts),
            REDUCES: service(cluster, parts, **reducing),
        }


def report(sizes: Sizes | None = None) -> str:
    """Measure, fit, simulate and lay out."""
    s = Sizes() if sizes is None else sizes
    costs, calls, busy = by_size(s), list(whole_calls(s)), services(s.parts)
    head = ("", "sizes", "each run and step", "exponent", "memory of a run", "exponent")
    each = costs["reduced, r (L = 3)"][1][1].seconds
    size = round_to_batches(int(work.SECONDS / s.many_steps / each), REDUCED_LANES)
    parts, of_a_part = math.ceil(s.many / size), size * s.many_steps * each
    return "\n".join(
        [
            table(head, [row(name, *measured) for name, measured in costs.items()]),
            "",
            table(("whole calls", "sizes", "time", "exponent"), calls),
            "",
            *(
                f"where {which}, a part keeps client and scheduler busy for {1e3 * seconds:.2f} "
                f"ms: they saturate at {work.SECONDS / seconds:,.0f} workers"
                for which, seconds in busy.items()
            ),
            f"{s.many:.0e} reduced runs (L = 3, r = {s.ranks[1]}) of {s.many_steps} steps, "
            f"{1e9 * each:.3g} ns each run and step:",
            f"{parts:,} parts of {size:,} runs and {of_a_part:.1f} s, by simulation",
            table(("workers", "time", "used"), many_workers(parts, of_a_part, busy[REDUCES])),
        ]
    )
