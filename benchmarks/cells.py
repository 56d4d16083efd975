"""The reduced integrator in a user's own ``jax.jit``, beside ``vmap``, at named cells.

A cell is a rank, a depth and a precision: 64 runs of :func:`lrdyn.theorem2.reduced_lanes` on L
matrices of 2r x 2r. *vmap*: ``jax.vmap`` of :func:`lrdyn.theorem2.reduced_dynamics` in a plain
``jax.jit``. *plain*: ``reduced_lanes`` in one. *options*: the same with
``lrdyn.compiler_options()``. One device, whose pool has one thread or two (``NPROC``, which XLA
reads when it starts: a process for each).

All are compiled before and take turns; the best of the repeats counts. *CPU* is the ratio in
seconds of the processor instead of the clock, which other jobs on the machine change less. *cliff*:
the largest ratio of a rank to a larger one, of the same depth and precision, in these.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from benchmarks.common import table

RUNS, EPS, ETA = 64, 0.3, 1e-3
WAYS: tuple[str, ...] = ("vmap", "plain", "options")
HEADER = ("", *WAYS, "plain / vmap", "CPU", "differ")


class Cell(NamedTuple):
    """Where the integrator is measured."""

    rank: int
    depth: int
    dtype: str

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"r = {self.rank}, L = {self.depth}, {self.dtype}"


class Measured(NamedTuple):
    """Of a step of a run: seconds of the clock and of the processor by way; largest difference."""

    wall: dict[str, float]
    cpu: dict[str, float]
    differ: float


CELLS = (
    *(Cell(rank, 3, "float64") for rank in (1, 3, 4, 5, 6, 8, 10, 20)),
    *(Cell(rank, 3, "float32") for rank in (3, 6, 8, 10, 12)),
    *(Cell(rank, 12, "float64") for rank in (3, 6)),
    Cell(6, 2, "float32"),
)


def program(way: str, cell: Cell, steps: int) -> Callable[..., jax.Array]:
    """The end-to-end products of all runs after the steps."""
    last = np.array([steps])

    def alone(target: Any, scales: Any, rate: Any, decay: Any) -> jax.Array:
        run = lrdyn.reduced_dynamics(target, scales, rate, decay, last, record=lrdyn.end_to_end)
        return run.records

    def together(*runs: jax.Array) -> jax.Array:
        return lrdyn.theorem2.reduced_lanes(*runs, last, record=lrdyn.end_to_end).records

    return jax.vmap(alone) if way == "vmap" else together


def arrays(cell: Cell) -> list[jax.Array]:
    """Targets, scales, step sizes and decays of the runs."""
    size = 2 * cell.rank
    targets = np.random.default_rng(0).normal(size=(RUNS, size, size)) / np.sqrt(size)
    runs = targets, np.full((RUNS, cell.depth), EPS), np.full(RUNS, ETA), np.zeros(RUNS)
    return [jnp.asarray(array, cell.dtype) for array in runs]


def measured(cell: Cell, steps: int, repeats: int) -> Measured:
    """Measure a cell in this process, the ways in turn."""
    given = arrays(cell)
    options: dict[str, dict[str, Any]] = {way: {} for way in WAYS}
    options["options"] = lrdyn.compiler_options("cpu")
    work = {way: jax.jit(program(way, cell, steps), compiler_options=options[way]) for way in WAYS}
    ends = {way: np.asarray(call(*given)) for way, call in work.items()}
    wall, cpu = dict.fromkeys(WAYS, np.inf), dict.fromkeys(WAYS, np.inf)
    for _ in range(repeats):
        for way, call in work.items():
            clock, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(call(*given))
            wall[way] = min(wall[way], (time.perf_counter() - clock) / steps / RUNS)
            cpu[way] = min(cpu[way], (time.process_time() - processor) / steps / RUNS)
    largest = max(np.abs(end - ends["vmap"]).max() for end in ends.values())
    return Measured(wall, cpu, float(largest / np.abs(ends["vmap"]).max()))


def in_a_process(threads: int, *given: Any) -> list[Measured]:
    """Measure cells in a process of their own, whose pool has so many threads."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.cells", json.dumps(given)],
        env=os.environ | {"NPROC": str(threads)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Measured(*fields) for fields in json.loads(done.stdout)]


def usual_steps(cell: Cell) -> int:
    """Steps that take some tens of milliseconds."""
    return max(10, int(2e8 / RUNS / cell.depth / (2 * cell.rank + 2) ** 3))


def cliff(cells: Sequence[Cell], seconds: Sequence[float]) -> tuple[float, str]:
    """The largest ratio of a rank to a larger one of the same depth and precision, and where."""
    timed = list(zip(cells, seconds, strict=True))
    ratios = [
        (mine / theirs, f"{one.name} to r = {other.rank}")
        for one, mine in timed
        for other, theirs in timed
        if one[1:] == other[1:] and one.rank < other.rank
    ]
    return max(ratios, default=(0.0, "no two ranks"))


def report(
    cells: Sequence[Cell] = CELLS,
    *,
    threads: Sequence[int] = (1, 2),
    steps: int | None = None,
    repeats: int = 7,
) -> str:
    """Measure and lay out; ``steps`` are those of :func:`usual_steps` if they are not given."""
    taken = [steps or usual_steps(cell) for cell in cells]
    lines = [f"the reduced integrator, ns a step and run; {RUNS} runs, best of {repeats}"]
    for count in threads:
        found = in_a_process(count, cells, taken, repeats)
        rows, ratios = [], []
        for cell, (wall, cpu, differ) in zip(cells, found, strict=True):
            ratios.append((wall["plain"] / wall["vmap"], cell.name))
            times = (f"{1e9 * wall[way]:.0f}" for way in WAYS)
            of_cpu = f"{cpu['plain'] / cpu['vmap']:.2f}"
            rows.append((cell.name, *times, f"{ratios[-1][0]:.2f}", of_cpu, f"{differ:.1e}"))
        lines += ["", f"threads: {count}", table(HEADER, rows)]
        lines.append("worst: {:.2f} of vmap, {}".format(*max(ratios)))
        for way in WAYS[1:]:
            ratio, where = cliff(cells, [one.cpu[way] for one in found])
            lines.append(f"cliff, {way}: {ratio:.2f}, {where}")
    return "\n".join(lines)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    cells, counts, turns = json.loads(sys.argv[1])
    print(json.dumps([measured(Cell(*c), n, turns) for c, n in zip(cells, counts, strict=True)]))
