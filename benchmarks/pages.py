"""Steps of trainings on a CPU, called one by one and in a loop, with and without huge pages.

XLA takes the memory of a program's intermediates (350 MB for the encoder) from the C library at
each call and gives it back at its end. Linux fills each page with zeros when it is first touched:
4 KiB at a time, 87,000 times a step. ``GLIBC_TUNABLES=glibc.malloc.hugetlb=1`` makes glibc ask for
pages of 2 MiB, where ``/sys/kernel/mm/transparent_hugepage/enabled`` says ``madvise``; where it
says ``always`` they come by themselves. The variable is read when a process starts, so each of the
two is a process of its own, and they take turns.

*encoder*: LoRA on every matrix of a BERT of MiniLM's size, 16 texts of 64 tokens. *VGG*: four
convolutions on 64 images of 32 x 32, which are called step by step, as XLA for a CPU computes
convolutions ten times slower in a loop. ``of GEMM`` is the rate of a step's operations, as XLA
counts them, over that of float32 products of 4000 x 4000 in the same process, each the best of the
repeats. ``faults`` are pages that a step touched first.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import steps
from benchmarks.common import table, timed
from lrdyn import cli, networks

TUNABLES = "GLIBC_TUNABLES"
PAGES = {"4 KiB": "", "2 MiB": "glibc.malloc.hugetlb=1"}
"""Size of pages -> what the variable says."""
HEADER = ("", "pages", "steps", "ms a step", "CPU ms", "faults", "of GEMM", "of the first")
WANTED = 0.6
"""Of the rate of GEMM, where each step of the encoder is a call."""


class Case(NamedTuple):
    """Sizes."""

    encoder: tuple[int, ...] = (6, 384, 12, 16, 64, 8)
    """Layers, width, heads, texts, tokens, rank."""
    widths: tuple[int, ...] = (16, 32)
    """Of pairs of convolutions, a pooling behind each pair."""
    images: tuple[int, ...] = (32, 64)
    """Rows of an image, images a step."""
    count: int = 10
    """Steps that are timed together."""
    product: int = 4000
    """Size of the products that steps are compared with."""


SIZES = Case()


class Taken(NamedTuple):
    """What a step took."""

    seconds: float
    cpu: float
    faults: float
    rate: float
    """Operations in a second, over those of GEMM."""


def trainings(case: Case) -> dict[str, tuple[Callable[[], steps.Step], dict[str, int]]]:
    """Network -> what makes its step, and how many steps a call carries out."""
    size, batch = case.images
    layers = [layer for width in case.widths for layer in (width, width, "pool")]
    vgg = partial(networks.vgg, layers=layers, size=size, hidden=(64,))
    each = {"a call each": 1}
    return {
        "encoder": (partial(steps.encoder_step, *case.encoder), each | {"in a loop": case.count}),
        "VGG": (partial(steps.image_step, vgg, size, 3, 4 * batch, batch), each),
    }


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


def child(case: Case, repeats: int) -> list[tuple[str, str, Taken]]:
    """Measure in this process."""
    left, multiply = jnp.ones((case.product, case.product)), jax.jit(jnp.matmul)
    rate = 2.0 * case.product**3 / timed({"": lambda: multiply(left, left)}, 2 + repeats)[""].best
    return [
        (name, calls, best_step(make(), together, case.count, repeats, rate))
        for name, (make, ways) in trainings(case).items()
        for calls, together in ways.items()
    ]


def best_step(step: steps.Step, together: int, count: int, repeats: int, rate: float) -> Taken:
    """The fastest of some times so many steps."""
    state, (_, _, *rest), constants = step.arguments
    number = jnp.asarray(0, jnp.int32)
    lowered = jax.jit(step.function, donate_argnums=0).lower(
        state, [number, number, *rest], constants
    )
    program = lowered.compile()
    operations = program.cost_analysis()["flops"]
    state, rest, constants = zeros(state), zeros(rest), zeros(constants)
    several: list[Taken] = []
    for _ in range(repeats + 1):  # the first time warms up
        before, cpu, begin = faults(), time.process_time(), time.perf_counter()
        for at in range(0, count, together):
            ends = jnp.asarray(at, jnp.int32), jnp.asarray(at + together, jnp.int32)
            state = program(state, [*ends, *rest], constants)
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - begin) / count
        taken = (time.process_time() - cpu) / count, (faults() - before) / count
        several.append(Taken(seconds, *taken, operations / seconds / rate))
    return min(several[1:])


def faults() -> int:
    """Pages that this process touched first."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measured(case: Case, repeats: int, tunables: str) -> list[tuple[str, str, Taken]]:
    """The same in a process that begins with this variable."""
    environment = {name: value for name, value in os.environ.items() if name != TUNABLES}
    environment |= {TUNABLES: tunables} if tunables else {}
    words = [sys.executable, "-m", "benchmarks.pages", json.dumps([case, repeats])]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return [(name, calls, Taken(*taken)) for name, calls, taken in json.loads(done.stdout)]


def report(
    case: Case = SIZES,
    *,
    turns: int = 1,
    repeats: int = 3,
    pages_of: Mapping[str, str] = MappingProxyType(PAGES),
) -> str:
    """A row for each network, size of pages and way to call; the best of so many processes."""
    rows: dict[tuple[str, str, str], Taken] = {}
    for _ in range(turns):
        for pages, tunables in pages_of.items():
            for name, calls, taken in measured(case, repeats, tunables):
                known = rows.get((name, pages, calls), taken)
                rows[name, pages, calls] = min(known, taken)
    first = {name: taken.seconds for (name, *_), taken in reversed(rows.items())}
    cells = [
        (
            name,
            pages,
            calls,
            f"{1e3 * taken.seconds:.1f}",
            f"{1e3 * taken.cpu:.1f}",
            f"{taken.faults:,.0f}",
            f"{taken.rate:.0%}",
            f"{taken.seconds / first[name]:.2f}",
        )
        for (name, pages, calls), taken in sorted(rows.items(), key=lambda row: row[0][0].lower())
    ]
    return (
        "steps of trainings in float32, one device on all cores, by the size of pages of memory\n"
        f"{table(HEADER, cells)}\n"
        f"wanted: {WANTED:.0%} of GEMM for the encoder with a call each, by pages of 2 MiB"
    )


if __name__ == "__main__":
    sizes, repeats = json.loads(sys.argv[1])
    cli.setup("float32", host_devices=1)
    print(json.dumps(child(Case(*sizes), repeats)))
