"""The loop of a training: one compiled step, repeated in pieces that can be kept and shown.

It takes the step of :func:`lrdyn.simulate`. What follows from a step alone follows from its number:
the examples, the random key of dropout, whether the maps of Algorithm 1 are chosen anew. A run that
continues at a step therefore ends with the bits of one that never stopped; on a GPU only where XLA
takes deterministic kernels.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn.core import checks
from lrdyn.core.algorithm import Algorithm, of_optimizer
from lrdyn.core.checks import checked
from lrdyn.core.descent import (
    Trajectory,
    divergence_limit,
    first_divergence,
    partition_loss,
)
from lrdyn.core.factorization import Steps
from lrdyn.core.platforms import partition_results
from lrdyn.core.precision import full_precision
from lrdyn.training import keeping
from lrdyn.training.batches import Batches
from lrdyn.training.program import Program, digest_of, replicate, shard

Loss = Callable[
    [PyTree, PyTree, PyTree, Key[Array, ""]], tuple[Float[Array, ""], tuple[PyTree, dict]]
]
"""``loss(params, state, batch, key)`` returns the loss, the new state and named numbers to watch.

``state`` is what a model keeps beside its parameters, running means of batches for example; ``key``
is that of the step, for dropout."""

STEPPED = "conv_general_dilated"
"""What XLA computes ten times slower inside a loop on a CPU (JAX 0.10): Python loops over it."""

PIECE = 0.5
"""Seconds between two looks at a run."""


class _Run(NamedTuple):
    held: PyTree
    """What the algorithm holds."""
    state: PyTree
    limit: Float[Array, ""]
    """Above this loss the run counts as diverged."""
    diverged_at: Int[Array, ""]
    metrics: dict[str, Float[Array, ""]]
    """What the loss gave to watch at the last step."""


@checked
@full_precision
def train(
    key: Key[Array, ""],
    loss: Loss,
    params: PyTree,
    optimizer: optax.GradientTransformation | Algorithm,
    batches: Batches,
    steps: Steps | Sequence[int],
    *,
    state: PyTree = None,
    record: Callable[[PyTree, PyTree], PyTree] = lambda params, state: params,
    devices: Sequence[Any] | None = None,
    name: str = "",
    keeper: keeping.Keeper = keeping.FORGETFUL,
) -> Trajectory:
    """Minimise a loss over mini-batches, and record at the given steps.

    On full batches this is the trajectory of :func:`lrdyn.simulate`. A step is compiled once; what
    a loss closes over is passed to the program, not built into it. Accumulation of gradients
    (``optax.MultiSteps(optimizer, k).gradient_transformation()``, whose running mean is float32
    unless ``accumulator_dtype`` says otherwise), clipping, schedules and
    different rates for parts of the parameters are optax's.

    Args:
        key: decides the order of the examples, the keys of the steps and what Algorithm 1 draws.
        loss: see :data:`Loss`; its numbers to watch are scalars.
        params: the model, any PyTree; its inexact arrays are trained.
        optimizer: an optax transformation, or :func:`lrdyn.adapters.algorithm_1`.
        batches: the data and how they are cut.
        steps: increasing step numbers at which ``record`` is called; the run ends at the last.
        state: arrays that the loss hands on from step to step.
        record: ``record(params, state)`` is traced and compiled; its arrays are stacked, and other
            leaves, the functions of a model for example, stay.
        devices: each takes an equal share of a batch; parameters are on all of them. By default
            all accelerators, where a batch is a multiple of them, or one CPU device, which uses all
            cores by itself.
        name: of the run, where a study has several at one point.
        keeper: keeps checkpoints and is told of the progress; a study gives its own.

    Returns:
        A :class:`lrdyn.Trajectory`, its records arrays of NumPy, with ``state`` and ``metrics``:
        the numbers of the last batch before each recorded step, ``loss`` among them, NaN at the
        start. A run whose loss is lost ends there, and its later records are NaN.

    Raises:
        ValueError: ``params`` has no inexact array, or a batch is no multiple of the devices.

    Example:
        >>> def loss(w, state, batch, key):
        ...     return jnp.mean((w - batch) ** 2) / 2, (state, {})
        >>> batches = Batches(np.array([1.0, 3.0]), 1)
        >>> run = train(jax.random.key(0), loss, jnp.zeros(()), optax.sgd(1.0), batches, (0, 1, 2))
        >>> sorted(run.records.tolist())
        [0.0, 1.0, 3.0]
    """
    algorithm = optimizer if isinstance(optimizer, Algorithm) else of_optimizer(optimizer)
    if not devices:
        devices = jax.local_devices()
        # One CPU device uses all cores by itself; cards share a batch only in equal parts.
        if devices[0].platform == "cpu" or batches.examples % len(devices):
            devices = devices[:1]
    devices = tuple(devices)
    if batches.examples % len(devices):
        checks.refuse("batches", f"{batches.examples} examples", f"a multiple of {len(devices)}")
    programs = _Programs(key, loss, params, algorithm, batches, state, devices)
    at = np.asarray(checks.steps(steps)).tolist()
    return _Loop(programs, at, record, name, keeper).run()


class _Programs:
    """The programs of a run and what they begin with."""

    def __init__(
        self,
        key: Key[Array, ""],
        loss: Loss,
        params: PyTree,
        algorithm: Algorithm,
        batches: Batches,
        state: PyTree,
        devices: tuple[Any, ...],
    ):
        _, arrays, self.whole = partition_loss(lambda model: model, params)
        # Three keys, so that dropout does not change the order of the examples, nor the maps.
        self.order_key, self.noise_key, self.map_key = jax.random.split(key, 3)
        self.loss, self.algorithm, self.batches, self.devices = loss, algorithm, batches, devices
        self.data = replicate(batches.data, devices)
        self.epoch, self.order = -1, None
        begun = _Run(algorithm.begin(arrays), state, jnp.zeros(()), jnp.asarray(-1, jnp.int32), {})
        order = replicate(batches.order(self.order_key, 0), devices)
        shapes = jax.eval_shape(self.cost(begun, 0, self.data, order), arrays)
        value, (_, metrics) = shapes
        checks.floats("loss(params, state, batch, key)", value)
        begun = begun._replace(
            limit=jnp.zeros((), value.dtype),
            metrics={n: jnp.full(x.shape, jnp.nan, x.dtype) for n, x in metrics.items()},
        )
        # Copies: a program uses its first argument up, and these arrays belong to the caller.
        self.start = replicate(jax.tree.map(jnp.array, begun), devices)
        numbers = (jnp.asarray(0, jnp.int32),) * 2
        self.looped = True
        self.segment = Program(self.run_piece, (self.start, *numbers, self.data, order))
        if devices[0].platform == "cpu" and STEPPED in self.segment.text:
            self.looped = False
            self.segment = Program(self.run_step, (self.start, *numbers, self.data, order))
        self.refresh = None
        if algorithm.refresh is not None:
            self.refresh = Program(self.renew, (self.start, numbers[0], self.data, order))

    def cost(self, run: _Run, t: Any, data: PyTree, order: Array) -> Callable[[PyTree], Any]:
        """The loss of step t."""
        batch = shard(self.batches.at(data, order, t), self.devices)
        noise = jax.random.fold_in(self.noise_key, t)

        def cost(weights: PyTree) -> tuple[Array, tuple[PyTree, dict]]:
            value, (state, metrics) = self.loss(self.whole(weights), run.state, batch, noise)
            return value, (state, {"loss": value, **metrics})

        return cost

    def step(self, t: Array, run: _Run, data: PyTree, order: Array) -> _Run:
        cost = self.cost(run, t, data, order)
        value, (state, metrics), held = self.algorithm.step(cost, run.held)
        # The limit is made from the first loss, which is known only when the run has begun.
        limit = jnp.where(t == 0, divergence_limit(value), run.limit)
        diverged_at = first_divergence(value, t, limit, run.diverged_at)
        return _Run(held, state, limit, diverged_at, metrics)

    def pieces(self, at: int, stop: int) -> list[tuple[int, int]]:
        """What the program is called for: all steps at once, or one after the other."""
        return [(at, stop)] if self.looped else [(t, t + 1) for t in range(at, stop)]

    def run_piece(self, run: _Run, start: Array, stop: Array, data: PyTree, order: Array) -> _Run:
        run = jax.lax.fori_loop(start, stop, lambda t, run: self.step(t, run, data, order), run)
        return self.check_finite(run, stop)

    def run_step(self, run: _Run, start: Array, stop: Array, data: PyTree, order: Array) -> _Run:
        return self.check_finite(self.step(start, run, data, order), stop)

    def check_finite(self, run: _Run, stop: Array) -> _Run:
        """The run after a piece, diverged also where its weights are no numbers."""
        arrays = jax.tree.leaves(self.algorithm.weights(run.held))
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays]))
        # Weights can be lost in the last step of a piece, whose loss nobody has computed yet.
        lost = jnp.where(~finite & (run.diverged_at < 0), stop, run.diverged_at)
        return run._replace(diverged_at=lost)

    def renew(self, run: _Run, t: Array, data: PyTree, order: Array) -> _Run:
        assert self.algorithm.refresh is not None
        key = jax.random.fold_in(self.map_key, t)
        return run._replace(
            held=self.algorithm.refresh(key, self.cost(run, t, data, order), run.held)
        )

    def order_at(self, t: int) -> Array:
        """The order of the examples in the epoch of a step."""
        if self.epoch != t // self.batches.epoch:
            self.epoch = t // self.batches.epoch
            order = self.batches.order(self.order_key, self.epoch)
            self.order = replicate(order, self.devices)
        assert self.order is not None
        return self.order

    def model(self, run: _Run) -> PyTree:
        return self.whole(self.algorithm.weights(run.held))


class _Loop:
    """A run from its start, or from where it was kept, to its end."""

    def __init__(
        self,
        programs: _Programs,
        steps: list[int],
        record: Callable[[PyTree, PyTree], PyTree],
        name: str,
        keeper: keeping.Keeper,
    ):
        self.programs, self.steps, self.name, self.keeper = programs, steps, name, keeper
        self.count, self.at = 0, 0

        def look(run: _Run) -> PyTree:
            return record(programs.model(run), run.state), run.metrics

        arrays_of, self.whole = partition_results(look)
        self.look = Program(arrays_of, (programs.start,), donate=False)

        def allocate(record: Any) -> np.ndarray:
            # Where records go: NaN, or zeros of a type that has none, until they are taken.
            empty = np.nan if jnp.issubdtype(record.dtype, jnp.inexact) else 0
            return np.full((len(steps), *record.shape), empty, record.dtype)

        self.records = jax.tree.map(allocate, self.look.out)
        parts = [programs.segment, self.look, *([programs.refresh] if programs.refresh else [])]
        # The loop calls for a refresh: no program knows the period.
        settings = f"{steps} {len(programs.devices)} {programs.algorithm.period}"
        self.key = digest_of([programs.start, *parts], programs.batches.digest, settings)

    def run(self) -> Trajectory:
        programs, last = self.programs, self.steps[-1]
        run = self._resume()
        pace = _Pace()
        while self.at < last and int(run.diverged_at) < 0:
            # A piece ends at a record, a refresh, an epoch, a checkpoint, or in a while.
            every = (programs.batches.epoch, programs.algorithm.period, self.keeper.every)
            ends = [(self.at // each + 1) * each for each in every if each]
            stop = min(self.steps[self.count], self.at + pace.steps, *ends)
            begin = time.perf_counter()
            run = self._advance(run, stop)
            if int(run.diverged_at) >= 0:  # waits for the piece
                break
            rate = pace.measure(stop - self.at, time.perf_counter() - begin)
            self.at = stop
            self._record(run)
            metrics = {n: float(value) for n, value in run.metrics.items() if not value.ndim}
            moment = keeping.Moment(self.at, last, metrics, rate * programs.batches.examples)
            self.keeper.tell(moment, self.name)
            # The last step too: a study that is killed later then trains nothing again.
            if self.at == last or self.keeper.due(self.at):
                self.keeper.save(self.key, self.at, (run, self.records))
        if int(run.diverged_at) >= 0:
            self.keeper.lost(int(run.diverged_at), self.name, self.key)
        run = jax.device_put(run, programs.devices[0])
        records, metrics = self.whole(self.records)
        return Trajectory(programs.model(run), records, run.diverged_at, run.state, metrics)

    def _resume(self) -> _Run:
        checkpoint = self.keeper.load(self.key, (self.programs.start, self.records), self.name)
        if checkpoint is None:
            run = jax.tree.map(jnp.copy, self.programs.start)
            self._record(run)
            return run
        self.at, (run, records) = checkpoint
        self.records = jax.tree.map(np.array, records)
        # Records up to this step are in the checkpoint.
        self.count = int(np.searchsorted(self.steps, self.at, "right"))
        return replicate(run, self.programs.devices)

    def _advance(self, run: _Run, stop: int) -> _Run:
        programs, period = self.programs, self.programs.algorithm.period
        order = programs.order_at(self.at)
        is_refresh = self.at % period == 0 if period else self.at == 0
        if programs.refresh and is_refresh:
            run = programs.refresh(run, np.int32(self.at), programs.data, order)
        for ends in programs.pieces(self.at, stop):
            run = programs.segment(run, *map(np.int32, ends), programs.data, order)
        if stop < self.steps[-1]:
            programs.order_at(stop)  # of the next epoch, while the piece runs
        return run

    def _record(self, run: _Run) -> None:
        if self.count < len(self.steps) and self.steps[self.count] == self.at:
            values = jax.device_get(self.look(run))
            for room, value in zip(
                jax.tree.leaves(self.records), jax.tree.leaves(values), strict=True
            ):
                room[self.count] = value
            self.count += 1


class _Pace:
    """How many steps a piece has, so that it takes a moment."""

    def __init__(self):
        self.steps = 1

    def measure(self, steps: int, seconds: float) -> float:
        """Learn the pace from a piece that took so long, and return its steps a second."""
        rate = steps / max(seconds, 1e-9)
        # At most ten times as many: the first pieces are short, and timed badly.
        self.steps = int(np.clip(rate * PIECE, 1, 10 * max(self.steps, steps)))
        return rate
