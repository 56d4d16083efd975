"""Simulation: any loss over a PyTree, any optax optimiser, a recorder at chosen steps.

A *model* is any PyTree: one of arrays, or an ``equinox.Module``, with functions, integers, texts or
None among its leaves. Its inexact arrays (floating-point or complex) are trained; whatever else it
has stays as it is. Losses and recorders are given the whole model; an optimiser sees the trained
arrays, with None in place of the rest, as ``equinox.filter`` has it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from lrdyn.core import checks, show
from lrdyn.core.algorithm import Algorithm, of_optimizer
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Decay, Scalar, Steps, decays, fix_runs_layout
from lrdyn.core.platforms import partition_results, platform_dependent
from lrdyn.core.precision import full_precision
from lrdyn.core.recording import interval_length

State = TypeVar("State")
"""What a loop carries from step to step."""
Record = TypeVar("Record")
"""What a recorder returns."""
Loss = Callable[[PyTree], Float[Array, ""]]
"""Maps the trained arrays to a number."""


TOGETHER = 2**22
"""Bytes of the recorded states of one run up to which they are kept until its end and then recorded
together on a GPU or TPU, where their decompositions are one call. On a CPU each is recorded when it
is reached: to keep them takes longer than it saves."""


class Trajectory(NamedTuple):
    """A recorded run: what :func:`simulate` and :func:`lrdyn.training.train` return."""

    params: PyTree
    """The model after the last recorded step."""
    records: PyTree
    """What the recorder returned, arrays and numbers stacked along a leading axis ``times``."""
    diverged_at: Int[Array, ""]
    """First step whose loss was not finite, or so large that the first loss is lost in its
    rounding (``loss > loss(0) / machine epsilon``); -1 if there is none."""
    state: PyTree = None
    """What the model keeps beside its parameters, after the last step of a training."""
    metrics: PyTree = None
    """Numbers of the last batch before each recorded step of a training."""

    def __repr__(self) -> str:
        """Say what was recorded."""
        return show.trajectory(self)

    def _repr_html_(self) -> str:
        return show.trajectory_html(self)


@checked
def iterate(
    step: Callable[[Int[Array, ""], State], State],
    state: State,
    steps: Steps,
    record: Callable[[State], Record],
) -> tuple[State, Record]:
    """Iterate a map and look at its state at the given step numbers only.

    Args:
        step: ``step(t, state)`` is the state at t + 1.
        state: state at t = 0.
        steps: increasing step numbers at which ``record`` is called; may be traced, so that
            one compilation serves any number of steps.
        record: maps a state to what is kept of it.

    Returns:
        The state at ``steps[-1]`` and the records, their arrays stacked along a leading axis.

    Example:
        >>> steps = jnp.array([0, 3, 4])
        >>> iterate(lambda t, x: 2 * x, jnp.asarray(1), steps, lambda x: x)[1].tolist()
        [1, 8, 16]
    """
    steps = checks.steps(steps)
    length, ends = interval_length(steps), jnp.asarray(steps, jnp.int32)
    # The first interval begins at step 0, whichever step is recorded first.
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])

    @jax.jit  # traced once for both ways of recording
    def advance(state: State, ends: tuple[Array, Array]) -> State:
        return steps_between(ends, step, state, length)

    def record_one_by_one(state: State, intervals: tuple[Array, Array]) -> tuple[State, Record]:
        def interval(state: State, ends: tuple[Array, Array]) -> tuple[State, Record]:
            state = advance(state, ends)
            return state, record(state)

        return scan_records(interval, state, intervals)

    def record_together(state: State, intervals: tuple[Array, Array]) -> tuple[State, Record]:
        def interval(state: State, ends: tuple[Array, Array]) -> tuple[State, State]:
            state = advance(state, ends)
            return state, state

        last, states = jax.lax.scan(interval, state, intervals)
        return last, _record_states(record, states)

    # Under ``vmap`` these are the bytes of one run.
    if len(ends) * sum(leaf.nbytes for leaf in jax.tree.leaves(state)) > TOGETHER:
        return record_one_by_one(state, (starts, ends))
    return platform_dependent(state, (starts, ends), cpu=record_one_by_one, default=record_together)


def _record_states(record: Callable[[State], Record], states: State) -> Record:
    """Records of states along a leading axis, all at once."""
    arrays_of, whole = partition_results(record)
    # Without the barrier XLA (of JAX 0.10, for a GPU) takes what moves the axes of batches into a
    # product of matrices, and then refuses its shape.
    return whole(jax.vmap(arrays_of)(jax.lax.optimization_barrier(states)))


@checked
def steps_between(
    ends: tuple[Array, Array],
    step: Callable[[Int[Array, ""], State], State],
    state: State,
    length: int | None,
) -> State:
    """Iterate a map from one step number to another: over no step, or over a known number.

    Args:
        ends: the two step numbers.
        step: ``step(t, state)`` is the state at t + 1.
        state: state at the first.
        length: how many steps there are, if any; None if that is not known before tracing.

    Example:
        >>> ends = jnp.asarray(1), jnp.asarray(4)
        >>> [int(steps_between(ends, lambda t, x: x + t, jnp.asarray(0), n)) for n in (3, None)]
        [6, 6]
    """
    if length is not None:
        checks.integer("length", length, 0)
    first, last = ends
    # A number of Python's has no fixed type yet: it takes that of the first step, but the two
    # branches of a cond must return equal types.
    untyped = any(jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(state))
    if length is None or untyped:
        # Bounds that are traced: one program serves any numbers of steps.
        return jax.lax.fori_loop(first, last, step, state)

    # A loop of known length looks at no counter, which on a GPU takes longer than a small step. The
    # cond is for the interval of no step before a record at step 0.
    def take_steps(state: State) -> State:
        return jax.lax.fori_loop(0, length, lambda done, state: step(first + done, state), state)

    return jax.lax.cond(last > first, take_steps, lambda state: state, state)


@checked
def scan_records(
    function: Callable[[State, Any], tuple[State, Record]], state: State, inputs: PyTree
) -> tuple[State, Record]:
    """``jax.lax.scan`` whose outputs may have leaves other than arrays and numbers: they stay.

    Args:
        function: ``function(state, input)``: the next state and what is recorded.
        state: state at the start.
        inputs: PyTree of arrays with a leading axis, over which the scan runs.

    Example:
        >>> add = lambda total, x: (total + x, {"name": "sum", "total": total + x})
        >>> _, records = scan_records(add, jnp.asarray(0), jnp.arange(3))
        >>> records["name"], records["total"].tolist()
        ('sum', [0, 1, 3])
    """
    arrays_of, whole = partition_results(function)
    return whole(jax.lax.scan(arrays_of, state, inputs))


@checked
def partition_loss(loss: Loss, model: PyTree) -> tuple[Loss, PyTree, Callable[[PyTree], PyTree]]:
    """Loss of the inexact arrays of a model, these arrays, and what makes a model of them again.

    Raises:
        ValueError: there is no inexact array.

    Example:
        >>> model = {"W": 3 * jnp.ones(2), "act": jnp.sum, "size": 2}
        >>> cost, arrays, whole = partition_loss(lambda model: model["act"](model["W"]), model)
        >>> jax.tree.map(jnp.shape, arrays), float(cost(arrays))
        ({'W': (2,), 'act': None, 'size': None}, 6.0)
        >>> whole({**arrays, "W": "trained"})["size"]
        2
    """
    arrays, rest = eqx.partition(model, eqx.is_inexact_array)
    if not jax.tree.leaves(arrays):
        types = sorted({type(leaf).__name__ for leaf in jax.tree.leaves(model)})
        got = f"leaves of type {', '.join(types) or 'none'}"
        checks.refuse("params", got, "at least one array of floating-point numbers")

    def whole(trained: PyTree) -> PyTree:
        # The rest comes first: where it has None there may be a whole layer.
        return eqx.combine(rest, trained)

    return lambda trained: loss(whole(trained)), arrays, whole


@checked
def gradient_descent(
    learning_rate: Scalar, weight_decay: Decay = 0.0
) -> optax.GradientTransformation:
    """Gradient descent with decay, ``W_l <- (1 - eta lambda_l) W_l - eta grad_l``.

    Example:
        >>> rule = gradient_descent(0.5, jnp.array([0.0, 1.0]))
        >>> params = (jnp.ones(1), jnp.ones(1))
        >>> updates, _ = rule.update((jnp.zeros(1), jnp.zeros(1)), rule.init(params), params)
        >>> [u.tolist() for u in updates]
        [[-0.0], [-0.5]]
    """
    learning_rate = checks.nonnegative("learning_rate", learning_rate)
    weight_decay = decays(weight_decay)
    # A prefix of the tree of parameters: one number for a whole layer.
    each = tuple(jnp.asarray(weight_decay)) if jnp.ndim(weight_decay) else weight_decay

    def decay(updates: PyTree, params: PyTree) -> PyTree:
        # For a GPU XLA would let the last product of each gradient add the decay to itself, which
        # is then a kernel before it and the step one behind it; so both are one behind it.
        updates = platform_dependent(
            updates, cuda=jax.lax.optimization_barrier, default=lambda updates: updates
        )
        return jax.tree.map(
            lambda lam, g, w: jax.tree.map(lambda g, w: g + lam * w, g, w), each, updates, params
        )

    return optax.chain(optax.stateless(decay), optax.scale_by_learning_rate(learning_rate))


@checked
@full_precision
def simulate(
    loss: Loss,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    steps: Steps,
    *,
    record: Callable[[PyTree], PyTree] = lambda params: params,
) -> Trajectory:
    """Train ``params`` on ``loss`` and record at the given steps.

    Pure: jit it, vmap it, differentiate through nothing (``equinox.filter_jit`` and
    ``filter_vmap`` for a model with other leaves than arrays). Recording costs nothing between the
    recorded steps, so an SVD belongs into ``record``.

    Args:
        loss: maps the model to a scalar.
        params: any PyTree, an ``equinox.nn`` model for example: its inexact arrays are trained.
        optimizer: any optax gradient transformation.
        steps: increasing step numbers at which ``record`` is called (time in steps); include 0
            for the start. The run ends at the last of them.
        record: maps the model to a PyTree, whose arrays are stacked.

    Returns:
        A :class:`Trajectory`. Divergence is reported there: an error would stop a whole batch.

    Raises:
        ValueError: ``params`` has no inexact array.

    Example:
        >>> rule, steps = gradient_descent(0.5), jnp.array([0, 1, 3])
        >>> run = simulate(lambda w: 0.5 * w**2, jnp.array(1.0), rule, steps)
        >>> run.records.tolist(), int(run.diverged_at)
        ([1.0, 0.5, 0.125], -1)
    """
    algorithm = of_optimizer(optimizer)
    steps = checks.steps(steps)
    cost, arrays, whole = partition_loss(loss, params)

    def record_model(state: _State) -> PyTree:
        return record(whole(algorithm.weights(state.held)))

    # A step checks the loss that it computes anyway, which is the one before its update: the last
    # loss is checked in the end.
    step, start = partial(_step, cost, algorithm), _begin(cost, arrays, algorithm)
    state, records = iterate(step, start, steps, record_model)
    diverged_at = _end(cost, algorithm, state, jnp.asarray(steps[-1], jnp.int32))
    return Trajectory(whole(algorithm.weights(state.held)), records, diverged_at)


class _State(NamedTuple):
    held: PyTree
    """State of the algorithm between steps."""
    limit: Float[Array, ""]
    """Past this loss the run counts as diverged."""
    diverged_at: Int[Array, ""]


def _begin(loss: Loss, params: PyTree, algorithm: Algorithm) -> _State:
    first = checks.floats("loss(params)", loss(params))
    limit = divergence_limit(first)
    # The value that step 0 would compute. A constant would have vmap trace the loop twice, since it
    # becomes one number for each lane.
    diverged_at = first_divergence(first, 0, limit, jnp.asarray(-1, jnp.int32))
    return _State(algorithm.begin(params), limit, diverged_at)


@checked
def mark_batched(state: State, of_a_run: Float[Array, ""]) -> State:
    """A copy of a state whose floating-point arrays ``vmap`` takes to differ between runs.

    What a loop begins from is often a constant, zeros for example, and becomes one array for each
    run in its first step. ``vmap`` finds that out by tracing the loop once more, and all loops in
    it, several times over where ``vmap`` stands in ``vmap``. Here the state depends on a number of
    the run, by a choice between equals that XLA drops.

    Args:
        state: what the loop begins from.
        of_a_run: any number that is one for each run.

    Example:
        >>> start = mark_batched({"sum": jnp.zeros(2), "steps": 3}, jnp.asarray(1.0))
        >>> start["sum"].tolist(), start["steps"]
        ([0.0, 0.0], 3)
    """
    # Always false, which XLA sees and ``vmap`` does not.
    never = jnp.zeros((), bool) & (of_a_run > 0)

    def mark(leaf: Any) -> Any:
        return jax.lax.select_n(never, leaf, leaf) if eqx.is_inexact_array(leaf) else leaf

    return jax.tree.map(mark, state)


@checked
def divergence_limit(start: Float[Array, ""]) -> Float[Array, ""]:
    """Loss past which the digits of the first loss are below the last one of the present loss.

    It is ``|start|`` over machine epsilon; infinity for a first loss of 0, which has no digits.

    Example:
        >>> float(divergence_limit(jnp.asarray(0.0)))
        inf
    """
    return jnp.where(start == 0, jnp.inf, jnp.abs(start)) / jnp.finfo(start.dtype).eps


@checked
def first_divergence(
    value: Float[Array, ""], t: Any, limit: Float[Array, ""], found: Int[Array, ""]
) -> Int[Array, ""]:
    """First step whose loss is past a limit or no number: the one ``found`` before, or t, or -1.

    Args:
        value: loss at step t.
        t: the present step.
        limit: loss past which the run counts as diverged, of :func:`divergence_limit`.
        found: the step that was found before, or -1.

    Example:
        >>> int(first_divergence(jnp.nan * jnp.ones(()), 7, jnp.inf * jnp.ones(()), jnp.array(-1)))
        7
    """
    checks.integer("found", found, -1)
    return jnp.where(~(jnp.abs(value) < limit) & (found < 0), t, found)  # a NaN is not below


def _step(loss: Loss, algorithm: Algorithm, t: Any, state: _State) -> _State:
    value, _, held = algorithm.step(lambda arrays: (loss(arrays), None), state.held)
    diverged_at = first_divergence(value, t, state.limit, state.diverged_at)
    return _State(held, state.limit, diverged_at)


def _end(loss: Loss, algorithm: Algorithm, state: _State, last: Array) -> Int[Array, ""]:
    value = loss(algorithm.weights(state.held))
    return first_divergence(value, last, state.limit, state.diverged_at)


class Stopped(NamedTuple):
    """A run that ended at a tolerance: what :func:`simulate_until` returns."""

    params: PyTree
    """The model after the last step."""
    loss: Float[Array, ""]
    """Loss there."""
    steps: Int[Array, ""]
    """Steps taken, a multiple of ``check_every``."""
    converged: Bool[Array, ""]
    """Whether the tolerance was reached; if not, the steps ran out or the loss is not finite."""


@checked
@full_precision
def simulate_until(
    loss: Loss,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    tolerance: Scalar,
    *,
    check_every: int,
    max_steps: int,
) -> Stopped:
    """Train ``params`` until the loss is at most a tolerance.

    Under ``vmap`` every run lasts as long as the slowest of its batch; ``sweep(..., lanes=1)``
    runs them one by one.

    Args:
        loss: maps the model to a scalar.
        params: any PyTree; its inexact arrays are trained.
        optimizer: any optax gradient transformation.
        tolerance: the run stops once ``loss <= tolerance``.
        check_every: steps between two looks at the loss.
        max_steps: the run stops after so many steps.

    Raises:
        ValueError: ``max_steps`` is not a positive multiple of ``check_every``, or ``params`` has
            no inexact array.

    Example:
        >>> rule = gradient_descent(0.5)
        >>> run = simulate_until(
        ...     lambda w: w**2 / 2, jnp.array(1.0), rule, 1e-3, check_every=2, max_steps=100)
        >>> int(run.steps), bool(run.converged)
        (6, True)
    """
    tolerance = checks.nonnegative("tolerance", tolerance)
    checks.integer("check_every", check_every)
    checks.integer("max_steps", max_steps, check_every)
    if max_steps % check_every:
        checks.refuse("max_steps", max_steps, f"a multiple of {check_every}")
    cost, arrays, whole = partition_loss(loss, params)

    def step(_: Array, state: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        arrays, inner = state
        updates, inner = optimizer.update(jax.grad(cost)(arrays), inner, arrays)
        return optax.apply_updates(arrays, updates), inner

    def should_continue(state: tuple[PyTree, Array, Array]) -> Array:
        _, value, steps = state
        # A NaN fails both comparisons, so that a diverged run ends, too.
        return (value > tolerance) & (value < jnp.inf) & (steps < max_steps)

    def block(state: tuple[PyTree, Array, Array]) -> tuple[PyTree, Array, Array]:
        trained, _, steps = state
        trained = jax.lax.fori_loop(0, check_every, step, trained)
        return trained, cost(trained[0]), steps + check_every

    first = checks.floats("loss(params)", cost(arrays))
    start = ((arrays, optimizer.init(arrays)), first, jnp.asarray(0, jnp.int32))
    (arrays, _), value, steps = jax.lax.while_loop(should_continue, block, start)
    return Stopped(whole(arrays), value, steps, value <= tolerance)


Problem = tuple[Loss, PyTree, optax.GradientTransformation]
"""A loss, where its descent starts, and the optimiser."""


RUNS_AT_ONCE = 64
"""Runs of :func:`simulate_lanes` that take their steps together on a CPU; elsewhere all do.

64 runs of three 6 x 6 layers are 55 kB: a core's first cache.
"""


@checked
@full_precision
def simulate_lanes(
    problem: Callable[[PyTree], Problem],
    data: PyTree,
    steps: Steps,
    *,
    record: Callable[[PyTree], PyTree] = lambda params: params,
) -> Trajectory:
    """Run :func:`simulate` for many small problems at once: the first axis of all arrays is runs.

    Inside it is the last one. For matrices of a few rows this is several times faster than
    ``vmap``, which puts the runs first, if the loss multiplies them by
    :func:`lrdyn.core.small_matmul`. On a CPU they are taken :data:`RUNS_AT_ONCE` at a time, so that
    a run takes as long among 64 as among 100,000. In a ``jax.jit`` of your own
    ``compiler_options=lrdyn.compiler_options()`` makes them faster still.

    Args:
        problem: maps the data of one run to its loss, starting parameters and optimiser.
        data: PyTree of arrays with a leading axis of runs.
        steps: increasing step numbers at which to record, the same for all runs.
        record: maps the parameters of one run to a PyTree of arrays.

    Raises:
        ValueError: the arrays of ``data`` have no first axis in common.

    Example:
        >>> def problem(rate):
        ...     return lambda w: 0.5 * w**2, jnp.array(1.0), gradient_descent(rate)
        >>> run = simulate_lanes(problem, jnp.array([0.5, 1.0]), jnp.array([0, 1, 2]))
        >>> run.records.tolist()
        [[1.0, 0.5, 0.25], [1.0, 0.0, 0.0]]
    """
    steps = checks.steps(steps)
    some = partial(_simulate_lanes, problem, steps=steps, record=record)
    heads = sorted({jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)})
    if len(heads) != 1 or not heads[0]:
        checks.refuse(
            "data", f"arrays with first axes {heads}", "arrays with one first axis, of runs"
        )
    ((count,),) = heads
    parts = -(-count // RUNS_AT_ONCE)
    if parts <= 1:
        return some(data)
    # Parts of one size, so that one program is enough; the last run fills up the last of them. A
    # size of whole vectors (8 numbers of AVX-512) takes a third less time than one that is not.
    size = -(-count // (8 * parts)) * 8
    index = jnp.minimum(jnp.arange(parts * size), count - 1).reshape(parts, size)

    def in_parts(data: PyTree) -> Trajectory:
        found = jax.lax.map(lambda runs: some(jax.tree.map(lambda array: array[runs], data)), index)
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:])[:count], found)

    return platform_dependent(data, cpu=in_parts, default=some)


def _simulate_lanes(
    problem: Callable[[PyTree], Problem],
    data: PyTree,
    steps: Steps,
    record: Callable[[PyTree], PyTree],
) -> Trajectory:
    last = jax.tree.map(lambda array: jnp.moveaxis(array, 0, -1), data)

    def vmap_runs(function: Callable[..., Any], axis: int) -> Callable[..., Any]:
        def call(data: PyTree, *rest: Any) -> Any:
            loss, params, optimizer = problem(data)
            return function(loss, params, of_optimizer(optimizer), *rest)

        return jax.vmap(call, -1, axis)

    def step(t: Array, state: _State) -> _State:
        state = vmap_runs(lambda loss, _, rule, s: _step(loss, rule, t, s), -1)(last, state)
        return jax.tree.map(fix_runs_layout, state)

    record_runs = vmap_runs(lambda loss, _, rule, s: record(rule.weights(s.held)), 0)
    weights = vmap_runs(lambda loss, _, rule, s: rule.weights(s.held), 0)
    ended = jnp.asarray(steps[-1], jnp.int32)
    state, records = iterate(
        step, vmap_runs(_begin, -1)(last), steps, lambda state: record_runs(last, state)
    )
    return Trajectory(
        weights(last, state),
        # Records have steps first and runs second: as everywhere else, runs come first in the
        # result.
        jax.tree.map(lambda array: jnp.swapaxes(array, 0, 1), records),
        vmap_runs(lambda loss, _, rule, s: _end(loss, rule, s, ended), 0)(last, state),
    )
