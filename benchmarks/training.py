"""A training of a small network on images: :func:`lrdyn.training.train` against plain loops.

A perceptron (784-256-256-10, float32) is trained by Adam on 20,000 made-up images of bytes, 128 a
step. All rivals hold the images on the device, gather a batch from them in the compiled step, scale
it in the loss, and take the examples in the same order.

*plain loop*: one ``jax.jit`` of the step, its state donated, called from Python for every step;
nothing waits before the end. *loop in a program*: ``lax.fori_loop`` over the steps of an epoch.
*train*: the loop under test, which ends a piece at every epoch and twice a second to look at the
loss, and notices a run that is lost.

``set-up`` is what comes before the first step: tracing, compilation with an empty cache, and for
``train`` the digest of the data and of the programs by which checkpoints are named. ``run`` is the
rest of the call; the loops take turns, and ratios are those of the medians. ``CPU`` is what all
threads used in it for a step, which other jobs on the machine disturb less. ``waiting`` is the
share of ``run`` that is spent outside of the compiled pieces: on orders of examples and on the time
between the end of a piece and the start of the next. ``differ`` is the largest difference of final
weights over the largest weight.

Below the table: seconds of writing and of reading a checkpoint.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from benchmarks.common import table
from benchmarks.early_stopping import compilation_cache
from lrdyn.training import Batches, train
from lrdyn.training.keeping import Forgetful, Moment
from lrdyn.training.program import Program
from lrdyn.verification.storing import checkpoints

HEADER = (
    "set-up",
    "run",
    "per step",
    "CPU",
    "examples a second",
    "of the first",
    "waiting",
    "differ",
)
RULE = optax.adam(1e-3)


class Case(NamedTuple):
    """One size."""

    inputs: int = 784
    width: int = 256
    batch: int = 128
    examples: int = 20_000
    steps: int = 1500
    checkpoint: int = 100_000_000
    """Bytes of the checkpoint."""


class Timed(NamedTuple):
    """One call of a loop."""

    setup: float
    """Seconds before the first step."""
    run: float
    """Seconds after that."""
    cpu: float
    """Of all threads in the meantime."""
    waiting: float | None
    """Seconds of these outside of the compiled pieces."""
    weights: PyTree


# The problem ---------------------------------------------------------------------------------


def images(case: Case) -> Batches:
    """Made-up images with labels that can be learned."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, case.examples)
    classes = rng.integers(0, 256, (10, case.inputs))
    noise = rng.integers(0, 256, (case.examples, case.inputs))
    pixels = (classes[labels] + noise) // 2
    return Batches({"x": pixels.astype(np.uint8), "y": labels.astype(np.int32)}, case.batch)


def network(case: Case) -> eqx.nn.MLP:
    """Two hidden layers."""
    sizes = (case.inputs, 10, case.width, 2)
    return eqx.nn.MLP(*sizes, dtype=jnp.float32, key=jax.random.key(1))


def cost(model: PyTree, batch: PyTree) -> Array:
    """Cross-entropy of a batch of bytes."""
    scores = jax.vmap(model)(batch["x"].astype(jnp.float32) / 255)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(scores, batch["y"]))


KEY = jax.random.key  # not made before the set-up
ORDER = 0
"""Of the keys of a training, that of the order of the examples."""


# Loops ---------------------------------------------------------------------------------------


def step(static: PyTree, batches: Batches, run: PyTree, data: PyTree, order: Array, t: Any):
    """One step as a user writes it: weights, optimiser and loss."""
    weights, inner, _ = run
    batch = batches.at(data, order, t)
    value, slope = jax.value_and_grad(lambda w: cost(eqx.combine(w, static), batch))(weights)
    updates, inner = RULE.update(slope, inner, weights)
    return optax.apply_updates(weights, updates), inner, value


def epoch(static: PyTree, batches: Batches, run: PyTree, data: PyTree, order: Array, stop: Array):
    """The first steps of an epoch in one program."""
    return jax.lax.fori_loop(
        0, stop, lambda t, run: step(static, batches, run, data, order, t), run
    )


def by_hand(case: Case, batches: Batches, whole: bool) -> Timed:
    """A plain loop over steps, or over whole epochs."""
    begin = time.perf_counter()
    weights, static = eqx.partition(network(case), eqx.is_inexact_array)
    run = (weights, RULE.init(weights), jnp.zeros((), jnp.float32))
    data, key = jax.device_put(batches.data, jax.local_devices()[0]), order_key()
    order, t = batches.order(key, 0), np.int32(0)
    body = partial(epoch if whole else step, static, batches)
    # Compiled before the clock starts, and donated, as :func:`lrdyn.training.train` does.
    done = jax.jit(body, donate_argnums=0).lower(run, data, order, t).compile()
    jax.block_until_ready((run, data))
    start, cpu = time.perf_counter(), time.process_time()
    for first in range(0, case.steps, batches.epoch):
        count = min(batches.epoch, case.steps - first)
        order = batches.order(key, first // batches.epoch)
        for t in (count,) if whole else range(count):
            run = done(run, data, order, np.int32(t))
    jax.block_until_ready(run)
    taken, used = time.perf_counter() - start, time.process_time() - cpu
    return Timed(start - begin, taken, used, None, run[0])


def order_key() -> Array:
    """The key from which :func:`train` takes the order of the examples."""
    return jax.random.split(KEY(0), 3)[ORDER]


def by_train(case: Case, batches: Batches) -> Timed:
    """The loop under test."""

    def loss(model: PyTree, state: PyTree, batch: PyTree, key: Array):
        return cost(model, batch), (state, {})

    begin = time.perf_counter()
    clock = Clock()
    with clock.watching():
        done = train(
            KEY(0),
            loss,
            network(case),
            RULE,
            batches,
            (0, case.steps),
            record=lambda *_: (),
            keeper=clock,
        )
        jax.block_until_ready(done.params)
        end, cpu = time.perf_counter(), time.process_time() - clock.cpu
    start, busy = clock.begun[0], sum(clock.ended) - sum(clock.begun)
    weights = eqx.filter(done.params, eqx.is_inexact_array)
    return Timed(start - begin, end - start, cpu, end - start - busy, weights)


class Clock(Forgetful):
    """When the compiled pieces of a training begin, and when the loop has seen their end."""

    def __init__(self):
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.cpu = 0.0

    def tell(self, moment: Moment, name: str) -> None:
        """A piece has ended."""
        self.ended.append(time.perf_counter())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the programs that are called."""
        call = Program.__call__

        def clocked(program: Program, *arguments: Any) -> Any:
            program.compile()
            jax.block_until_ready(arguments)  # an order of examples that is not made yet
            if program.donate:
                # From the first piece on: what is before belongs to the set-up.
                self.cpu = self.cpu or time.process_time()
                self.begun.append(time.perf_counter())
            return call(program, *arguments)

        with mock.patch.object(Program, "__call__", clocked):
            yield


LOOPS: dict[str, Callable[[Case, Batches], Timed]] = {
    "plain loop": partial(by_hand, whole=False),
    "loop in a program": partial(by_hand, whole=True),
    "train": by_train,
}


# Measuring -----------------------------------------------------------------------------------


def measured(case: Case, repeats: int) -> dict[str, list[Timed]]:
    """Calls of every loop, the first with an empty cache of programs."""
    batches = images(case)
    with tempfile.TemporaryDirectory() as cache, compilation_cache(cache):
        # The small programs that make the weights are nobody's set-up.
        jax.block_until_ready(RULE.init(eqx.filter(network(case), eqx.is_inexact_array)))
        calls = {name: [loop(case, batches)] for name, loop in LOOPS.items()}
        for _ in range(repeats):
            for name, loop in LOOPS.items():
                calls[name].append(loop(case, batches))
    return calls


def difference(weights: PyTree, expected: PyTree) -> float:
    """Largest difference over the largest weight."""
    pairs = list(zip(jax.tree.leaves(weights), jax.tree.leaves(expected), strict=True))
    gaps = [float(jnp.max(jnp.abs(array - reference))) for array, reference in pairs]
    return max(gaps) / max(float(jnp.max(jnp.abs(reference))) for _, reference in pairs)


def checkpoint(size: int, repeats: int) -> tuple[float, float]:
    """Median seconds of writing and of reading a checkpoint."""
    key, count = "of a benchmark", max(1, size // 100)
    arrays = {f"{i}": jax.random.normal(KEY(i), (count // 4,), jnp.float32) for i in range(100)}
    jax.block_until_ready(arrays)
    written, read_times = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "step-0000000001.ckpt"
        for _ in range(repeats):
            begin = time.perf_counter()
            checkpoints.write(path, key, 1, arrays)
            middle = time.perf_counter()
            jax.block_until_ready(checkpoints.read(path, key, arrays))
            written.append(middle - begin)
            read_times.append(time.perf_counter() - middle)
    return statistics.median(written), statistics.median(read_times)


def row(name: str, case: Case, calls_of: dict[str, list[Timed]]) -> tuple[str, ...]:
    """One row of the table."""
    cold, *calls = calls_of[name]
    first, *_ = calls_of
    runs = [call.run for call in calls]
    taken, rival = statistics.median(runs), statistics.median(c.run for c in calls_of[first][1:])
    waits = [call.waiting / call.run for call in calls if call.waiting is not None]
    return (
        name,
        f"{cold.setup:.2f} s",
        f"{taken:.2f} s (+{max(runs) / taken - 1:.0%})",
        f"{1e3 * taken / case.steps:.3g} ms",
        f"{1e3 * statistics.median(call.cpu for call in calls) / case.steps:.3g} ms",
        f"{case.batch * case.steps / taken:,.0f}",
        f"{rival / taken:.2f}x",
        f"{statistics.median(waits):.1%}" if waits else "",
        f"{difference(calls[-1].weights, calls_of[first][-1].weights):.1e}",
    )


def report(case: Case | None = None, *, repeats: int = 5) -> str:
    """Measure and lay out."""
    case = case or Case()
    calls = measured(case, repeats)
    rows = [row(name, case, calls) for name in LOOPS]
    write, read = checkpoint(case.checkpoint, repeats)
    title = (
        f"training: {case.inputs}-{case.width}-{case.width}-10, Adam, {case.batch} of "
        f"{case.examples:,} images a step, {case.steps} steps, float32, one device\n"
        "wanted: train at 0.90x of the plain loop or more, waiting below 2 %, 100 MB within 1 s\n"
        f"median of {repeats} runs that take turns; in brackets: how far the slowest lies above"
    )
    of_checkpoint = (
        f"checkpoint of {case.checkpoint / 1e6:.3g} MB: written in {write:.2f} s, "
        f"read in {read:.2f} s"
    )
    return f"{title}\n{table(('', *HEADER), rows)}\n{of_checkpoint}"
