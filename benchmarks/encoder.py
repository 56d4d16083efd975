"""A step of LoRA on an encoder, called step by step and in a loop, with and without huge pages.

XLA takes the memory of a program's intermediates (350 MB here) from the C library at each call and
gives it back at its end. Linux fills each page with zeros when it is first touched: 4 KiB at a
time, 87,000 times a step. ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1`` makes glibc ask for pages of
2 MiB, where ``/sys/kernel/mm/transparent_hugepage/enabled`` says ``madvise``; where it says
``always`` they come by themselves. The variable is read when a process starts, so each of the two
is a process of its own, and they take turns.

``of GEMM`` is the rate of the step's operations (as XLA counts them) over that of float32 products
of 4000 x 4000 in the same process. ``faults`` are pages that a step touched first.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import steps
from benchmarks.common import table, timed
from lrdyn import cli

TUNABLES = "GLIBC_TUNABLES"
PAGES = {"4 KiB": "", "2 MiB": "glibc.malloc.hugetlb=1"}
"""Size of pages -> what the variable says."""
HEADER = ("pages", "steps", "ms a step", "CPU ms", "faults", "of GEMM", "of the first")
WANTED = 0.6
"""Of the rate of GEMM, where each step is a call."""


class Case(NamedTuple):
    """Sizes: those of MiniLM, 16 texts of 64 tokens, LoRA on every matrix."""

    layers: int = 6
    width: int = 384
    heads: int = 12
    batch: int = 16
    length: int = 64
    rank: int = 8
    count: int = 10
    """Steps that are timed together."""
    product: int = 4000
    """Size of the products that they are compared with."""


class Taken(NamedTuple):
    """What a step took."""

    seconds: float
    cpu: float
    faults: float
    rate: float
    """Operations in a second, over those of GEMM."""


def zeros(tree: Any) -> Any:
    """Arrays for the shapes of a step."""
    return jax.tree.map(
        lambda leaf: (
            jnp.zeros(leaf.shape, leaf.dtype)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else jnp.asarray(leaf)
        ),
        tree,
    )


def child(case: Case, repeats: int) -> dict[str, Taken]:
    """Measure in this process: each step a call, and all in a loop of one program."""
    *sizes, count, product = case
    step = steps.encoder_step(*sizes)
    state, (_, _, *rest), constants = step.arguments
    numbers = jnp.asarray(0, jnp.int32)
    program = (
        jax.jit(step.function, donate_argnums=0)
        .lower(state, [numbers, numbers, *rest], constants)
        .compile()
    )
    operations = program.cost_analysis()["flops"]
    state, rest, constants = zeros(state), zeros(rest), zeros(constants)
    left, multiply = jnp.ones((product, product)), jax.jit(jnp.matmul)
    found: dict[str, Taken] = {}
    for _ in range(repeats + 1):  # the first time warms up
        rate = 2.0 * product**3 / timed({"": lambda: multiply(left, left)}, 2)[""].best
        for name, together in (("a call each", 1), ("in a loop", count)):
            before, cpu, begin = faults(), time.process_time(), time.perf_counter()
            for at in range(0, count, together):
                ends = jnp.asarray(at, jnp.int32), jnp.asarray(at + together, jnp.int32)
                state = program(state, [*ends, *rest], constants)
            jax.block_until_ready(state)
            seconds = (time.perf_counter() - begin) / count
            taken = Taken(
                seconds,
                (time.process_time() - cpu) / count,
                (faults() - before) / count,
                operations / seconds / rate,
            )
            if name not in found or taken.seconds < found[name].seconds:
                found[name] = taken
    return found


def faults() -> int:
    """Pages that this process touched first."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measured(case: Case, repeats: int, tunables: str) -> dict[str, Taken]:
    """The same in a process that begins with this variable."""
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    environment |= {TUNABLES: tunables} if tunables else {}
    words = [sys.executable, "-m", "benchmarks.encoder", json.dumps([case, repeats])]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return {name: Taken(*taken) for name, taken in json.loads(done.stdout).items()}


SIZES = Case()


def report(
    case: Case = SIZES,
    *,
    turns: int = 2,
    repeats: int = 3,
    pages_of: Mapping[str, str] = MappingProxyType(PAGES),
) -> str:
    """A row for each size of pages and way to call; the better of two processes of each."""
    rows: dict[tuple[str, str], Taken] = {}
    for _ in range(turns):
        for pages, tunables in pages_of.items():
            for steps_of, taken in measured(case, repeats, tunables).items():
                kept = rows.get((pages, steps_of))
                rows[pages, steps_of] = min(kept or taken, taken)
    first = next(iter(rows.values())).seconds
    cells = [
        (
            pages,
            steps_of,
            f"{1e3 * taken.seconds:.1f}",
            f"{1e3 * taken.cpu:.1f}",
            f"{taken.faults:,.0f}",
            f"{taken.rate:.0%}",
            f"{taken.seconds / first:.2f}",
        )
        for (pages, steps_of), taken in rows.items()
    ]
    return (
        f"encoder: LoRA of rank {case.rank} on {case.layers} layers of width {case.width}, "
        f"{case.batch} texts of {case.length} tokens, float32, one device on all cores\n"
        f"{table(HEADER, cells)}\n"
        f"wanted: {WANTED:.0%} of GEMM with a call each, by pages of 2 MiB"
    )


if __name__ == "__main__":
    sizes, repeats = json.loads(sys.argv[1])
    cli.setup("float32", host_devices=1)
    print(json.dumps(child(Case(*sizes), repeats)))
