"""Programs of a sweep: one for each shape, traced, cut into parts, compiled and started."""

import hashlib
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from lrdyn.core import linalg
from lrdyn.core.platforms import traced_for
from lrdyn.verification.machine.compiler_options import compiler_options
from lrdyn.verification.machine.device_defaults import lanes_in_cache
from lrdyn.verification.machine.kept_programs import OURS, Facts, KeptPrograms, StoredProgram
from lrdyn.verification.running.evaluate import MEASURE, PREDICT, Staged
from lrdyn.verification.running.shared import NAME, Shared
from lrdyn.verification.running.split_case import NotSplit, SplitCase, is_of_case
from lrdyn.verification.stating import array_types
from lrdyn.verification.stating.mistakes import BadInput
from lrdyn.verification.stating.points import Column, Points

CHUNKS = 32
"""Most chunks of lanes in a part: what a kill can lose."""

LEAST = 4
"""Points of the smallest part of a longer sweep, however small the budget."""


T = TypeVar("T")

ONE_AT_A_TIME = threading.RLock()
"""For tracing: it gains nothing from threads, and constants of two precisions that are traced at
once were seen to take the type of the other."""

Values = dict[str, Any]  # arrays and, where a result is a constant, NumPy's
PointsFunction = Callable[[Values, Any], Values]
"""A function of the values of points, and of the arrays that they share."""


class SweepPlan(NamedTuple):
    """How a sweep is to run, see :func:`lrdyn.sweep`."""

    batched: bool
    lanes: int
    memory: int
    devices: Sequence[Any]
    compiler_options: dict[str, Any]
    shared: Shared
    programs: KeptPrograms | None = None
    """Programs on disk."""
    identity: str = ""
    """Identifies the function in the names of these programs."""
    in_cache: bool = False
    """Whether a CPU takes fewer lanes if they leave its cache."""


class Group(NamedTuple):
    """Points of one shape and the program that they share."""

    plan: SweepPlan
    traced: Callable[[], Any]
    """One call of the function: of ``lanes`` points batched, or of one; whether slots are used."""
    outputs: dict[str, jax.ShapeDtypeStruct]
    """Shapes and types of the results of one point."""
    parts: list[np.ndarray]
    """Indices of the points of each part."""
    columns: Mapping[str, Column | np.ndarray]
    """Values of all points of the sweep on the traced axes."""
    lanes: int
    devices: Sequence[Any]
    digest: str
    """Digest of everything that decides the bits of the results, except the values of points."""
    shape: tuple = ()
    """Names and values of the axes that decide shapes."""
    size: int = 0
    """Bytes of one point."""
    stored: StoredProgram | None = None
    """Place of the compiled program on disk."""
    fit: int = 0
    """Number of points that fit into the memory of a part."""
    on_trial: tuple[tuple[str, int, int], ...] = ()
    """Type, rows and columns of the matrices that an algorithm on trial decomposes."""
    stages: tuple["Group", ...] = ()
    """Groups of its run and of theory, each with a program of its own, if it has stages."""
    inputs: Mapping[str, jax.ShapeDtypeStruct] = MappingProxyType({})
    """Of theory: the arrays of the case of one point, which it takes."""

    @property
    def several(self) -> bool:
        """Whether one call of the function takes several points."""
        return self.plan.batched or self.lanes > 1

    @property
    def slots(self) -> int:
        """Points that one call of the program takes; a part that has fewer is filled up."""
        chunk = self.lanes * len(self.devices)
        return -(-max(map(len, self.parts)) // chunk) * chunk

    def values(self, part: np.ndarray) -> dict[str, np.ndarray]:
        """Values on the traced axes of the points of a part."""
        return {name: column[part] for name, column in self.columns.items()}

    def key(self, part: np.ndarray, reduction: str = "") -> str:
        """Name of a part in a store; ``reduction`` describes what replaces its results."""
        digest = hashlib.sha256(f"{self.digest}{self.plan.shared.digest}{reduction}".encode())
        for column in self.values(part).values():
            digest.update(column.tobytes())
        return f"{part[0]}-{digest.hexdigest()[:20]}"


def refuse_without_jit() -> None:
    """Refuse to sweep if JAX was told not to compile, by a variable or in this thread.

    Raises:
        BadInput: it is.
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        raise BadInput("JAX_DISABLE_JIT: got it set, wanted it unset: sweeps run compiled programs")


def trace(
    function: Callable,
    shape: tuple,
    indices: np.ndarray,
    points: Points,
    plan: SweepPlan,
    most: int = 0,
) -> Group:
    """Trace a function for the points of one shape, and cut them into parts.

    Args:
        function: the function.
        shape: names and values of the axes that decide shapes.
        indices: the points.
        points: all points of the sweep.
        plan: how it is to run.
        most: points of a part at most, fewer if the memory is small; 32 chunks on each device if 0.
    """
    refuse_without_jit()
    known = dict(shape)
    columns = columns_of(points, known)
    if plan.batched and list(columns) == [""]:
        raise ValueError("batched: got no traced axis, wanted one whose array tells the lanes")

    # A batch of width 1 is compiled to other kernels and rounds differently: never use it unless
    # the whole group is one point, or every point is to run by itself.
    # So many devices at most that each has two points, unless points run one by one anyway.
    devices = plan.devices[: -(-len(indices) // min(2, plan.lanes))]
    lanes = min(plan.lanes, max(-(-len(indices) // len(devices)), min(2, len(indices))))
    traced = cache(lambda: _trace_call(function, known, columns, lanes, plan))
    group = Group(plan, traced, {}, [], columns, lanes, devices, "", shape)
    types = [(name, str(column.dtype)) for name, column in columns.items()]
    # ``most`` enters only where it is given, so that the programs of sweeps that are not cut anew
    # keep the names they had.
    signature = (plan.identity, plan.memory, len(indices), shape, types, len(devices), plan.batched)
    signature = (*signature, *_context(group), *[most][:most])
    stages = _trace_stages(function, group, signature)
    there = None
    if stages:
        facts = _join_facts(stages)
    else:
        there = _place(plan, getattr(function, "decided_by", None), signature)
        facts = (there and there.facts()) or _trace_facts(group, there)
    # Two parts are in memory, one that runs and one that is saved; shared arrays only once.
    fit = (plan.memory - plan.shared.nbytes) // (2 * max(1, facts.size))
    # How much a point takes is known only when it has been traced, so that it is traced once more.
    if devices[0].platform != "cpu" and max(2, fit // len(devices)) < lanes:
        # An accelerator is given as many lanes as its memory holds, at least two.
        return trace(
            function, shape, indices, points, plan._replace(lanes=max(2, fit // len(devices))), most
        )
    if plan.in_cache and devices[0].platform == "cpu":
        turn = _bytes_of_a_turn(group.traced().jaxpr.jaxpr) // (lanes if group.several else 1)
        if lanes_in_cache(turn) < lanes:
            fewer = plan._replace(lanes=lanes_in_cache(turn), in_cache=False)
            return trace(function, shape, indices, points, fewer, most)
    parts = _cut(indices, min(fit, most or CHUNKS * plan.lanes), plan.lanes)
    stages = tuple(stage._replace(parts=parts) for stage in stages)
    cut = group._replace(parts=parts, stored=there, fit=fit, stages=stages)
    return cut._replace(**facts._asdict())


# Stages --------------------------------------------------------------------------------------


def _trace_stages(function: Callable, group: Group, signature: tuple = ()) -> tuple[Group, ...]:
    """Groups of the run and of theory of a function whose sides are apart; else nothing.

    Nothing is traced of stages whose programs are kept on disk.

    Args:
        function: of a point.
        group: that of the whole function.
        signature: names its program on disk.
    """
    if not isinstance(function, Staged) or not function.apart:
        return ()
    try:
        return _trace_each_stage(function, group, signature)
    except NotSplit:
        return ()


def _trace_each_stage(function: Staged, group: Group, signature: tuple) -> tuple[Group, ...]:
    split = SplitCase(function)
    known = dict(group.shape)
    traced = cache(lambda: _trace_call(split, known, group.columns, group.lanes, group.plan))
    run = _stage_group(group._replace(traced=traced), function, MEASURE, signature)
    of_case = {name: like for name, like in run.outputs.items() if is_of_case(name)}

    def trace_theory() -> Any:
        if not split.names:  # the program of the run is on disk, and was not traced
            _trace_call(split.take_apart, known, group.columns, group.lanes, group.plan)
        lead = (group.lanes,) if group.several else ()
        like = {n: jax.ShapeDtypeStruct((*lead, *o.shape), o.dtype) for n, o in of_case.items()}

        def of_arrays(**arrays: Any) -> Any:
            return function.sides((PREDICT,), split.put_together(arrays))[0]

        return _trace_call(of_arrays, {}, like, group.lanes, group.plan)

    taking = group._replace(traced=cache(trace_theory), inputs=of_case)
    return run, _stage_group(taking, function, PREDICT, signature)


def _stage_group(group: Group, function: Staged, side: str, signature: tuple) -> Group:
    """Add to the group of a stage what is known of its program, which may be on disk."""
    decided_by = [function.decided_by[name] for name in ("case", side)]
    there = _place(group.plan, decided_by, (side, *signature))
    facts = (there and there.facts()) or _trace_facts(group, there)
    return group._replace(stored=there, **facts._asdict())


def _place(plan: SweepPlan, decided_by: Any, signature: tuple) -> StoredProgram | None:
    """Place on disk of a program that these objects decide, if programs are kept.

    Without such objects all the code of the theorem decides.
    """
    if plan.programs is None or decided_by is None:
        return plan.programs and plan.programs.place(*signature)
    return plan.programs.deciding(decided_by).place(*signature)


def _join_facts(stages: Sequence[Group]) -> Facts:
    """Facts of both stages together."""
    run, theory = stages
    digest = hashlib.sha256("".join(stage.digest for stage in stages).encode()).hexdigest()
    on_trial = {svd for stage in stages for svd in stage.on_trial}
    outputs = Staged.join(theory.outputs, _without_case(run.outputs))
    size = sum(stage.size for stage in stages)
    return Facts(outputs, size, digest, tuple(sorted(on_trial)))


def _without_case(arrays: Mapping[str, T]) -> dict[str, T]:
    return {name: value for name, value in arrays.items() if not is_of_case(name)}


class _Stages:
    """The program of a group in stages, called as any other one; they may still be compiled.

    Args:
        group: the group.
        compile: starts to compile the program of a stage.
    """

    def __init__(self, group: Group, compile: Callable[[Group], Future]):
        run, theory = group.stages
        self.of_case, self.points = theory.inputs, len(group.parts[0])
        # Records are those of a sweep of one part: a long one has a store of its parts.
        stored = run.stored if len(group.parts) == 1 else None
        self.stored = stored if stored and stored.records is not None else None
        self.compile_run = cache(lambda: compile(run))
        # A run that was compiled before may have been carried out before, too.
        if not (self.stored and self.stored.facts()):
            self.compile_run()
        self.theory = compile(theory)

    def __call__(self, values: Values, used: Array, shared: Any) -> Values:
        """The arrays of all points."""

        def carry_out() -> Values:
            return self.compile_run().result()(values, used, shared)

        if self.stored is None:
            found = carry_out()
        else:
            found = self._recorded(self.stored, {**values, " used": used}, carry_out)
        of_case = {name: found[name] for name in self.of_case}
        predicted = self.theory.result()(of_case, used, shared)
        return Staged.join(predicted, _without_case(found))

    def _recorded(
        self, stored: StoredProgram, points: Values, carry_out: Callable[[], Values]
    ) -> Values:
        """What the run of these points returns, from its record if an earlier process left one."""
        record = stored.record_of({name: np.asarray(values) for name, values in points.items()})
        if (found := record.load()) is None:
            found = jax.device_get(carry_out())
            record.save(found)
        elif stored.records is not None:
            stored.records.append(self.points)
        return found


def columns_of(points: Points, known: Mapping[str, Any]) -> dict[str, Column]:
    """Values on the traced axes, in the run's precision: all axes whose values are not known."""
    columns = {name: points.column(name) for name in points.axes if name not in known}
    # If every axis decides shapes, the only traced axis is a nameless one.
    columns = columns or {"": Column(np.zeros(1))}
    for name, (values, stride) in columns.items():
        # A setting too large for float32 is infinite there, and its cases diverge: no warning.
        with np.errstate(over="ignore"):
            converted = values.astype(jax.dtypes.canonicalize_dtype(values.dtype), copy=False)
        if values.dtype.kind in "iu" and (converted != values).any():  # NumPy drops bits
            most = np.iinfo(converted.dtype).max
            raise ValueError(f"{name}: got {abs(values).max()}, wanted integers up to {most}")
        columns[name] = Column(converted, stride)
    return columns


def _context(group: Group) -> tuple:
    """Everything besides the program that decides the bits of its results."""
    options = sorted(_options(group).items())
    return jax.__version__, group.devices[0].device_kind, group.lanes, options


def _options(group: Group) -> dict[str, Any]:
    """Options for XLA: the usual ones of the platform, beside those that were asked for."""
    return {**compiler_options(group.devices[0].platform), **group.plan.compiler_options}


def _trace_facts(group: Group, there: StoredProgram | None) -> Facts:
    """Facts that need tracing; a program kept on disk is named by its sources, not its text."""
    traced = group.traced()
    # All intermediate arrays together, an upper bound on the memory at any time. What ``vmap``
    # traced has those of all lanes.
    made = sum(_nbytes(equation.outvars) for equation, _ in equations(traced.jaxpr.jaxpr))
    size = made // (group.lanes if group.several else 1)
    digest = there.digest if there else _digest(traced.jaxpr, _context(group))
    return Facts(_outputs(group), size, digest, svds_on_trial(traced.jaxpr.jaxpr))


def svds_on_trial(jaxpr: Any) -> tuple[tuple[str, int, int], ...]:
    """Type, rows and columns of what :func:`lrdyn.core.linalg.svd_on_device` decomposes.

    Example:
        >>> traced = jax.make_jaxpr(jax.vmap(linalg.svd_on_device))(jnp.ones((5, 3, 2), "float32"))
        >>> svds_on_trial(traced.jaxpr), svds_on_trial(jax.make_jaxpr(linalg.svd)(jnp.eye(2)).jaxpr)
        ((('float32', 3, 2),), ())
    """
    matrices = {
        (str(matrix.dtype), *matrix.shape[-2:])
        for equation, _ in equations(jaxpr)
        if equation.primitive.name == "svd"
        and linalg.ON_TRIAL in str(equation.source_info.name_stack)
        for matrix in (equation.invars[0].aval,)
    }
    return tuple(sorted(matrices))


def equations(jaxpr: Any, within: bool = False) -> Iterator[tuple[Any, bool]]:
    """Iterate over every equation of a program, including its loops, branches and calls.

    Beside each stands whether it is within a ``cond``, as the program itself may be (``within``).
    Of what depends on the platform, which is no ``cond`` when it runs, stands that of the default
    one.

    Example:
        >>> def choose(x):
        ...     return jax.lax.cond(x > 0, lambda x: -x, lambda x: x, x)
        >>> every = equations(jax.make_jaxpr(choose)(1.0).jaxpr)
        >>> [within for equation, within in every if equation.primitive.name == "neg"]
        [True]
    """
    for equation in jaxpr.eqns:
        yield equation, within
        by_platform = "branches_platforms" in equation.params
        branches = within or (equation.primitive.name == "cond" and not by_platform)
        for inner in _inner_programs(equation):
            yield from equations(inner, branches)


def _inner_programs(equation: Any) -> Iterator[Any]:
    """Iterate over the programs inside an equation: of a loop, of branches, of a call."""
    parameters = equation.params
    if platforms := parameters.get("branches_platforms"):  # of jax.lax.platform_dependent
        backend = jax.default_backend()
        # JAX calls the backend of either maker "gpu", and names the makers in its branches.
        mine = {"cuda", "rocm"} if backend == "gpu" else {backend}
        # None stands for all other platforms.
        fits = [names is None or not mine.isdisjoint(names) for names in platforms]
        # Only one branch is compiled, so that the others are no part of this program.
        parameters = {"branches": parameters["branches"][fits.index(True)]}
    for parameter in jax.tree.leaves(tuple(parameters.values())):
        inner = getattr(parameter, "jaxpr", parameter)
        if hasattr(inner, "eqns"):
            yield inner


def _outputs(group: Group) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of the results of one point."""
    outputs = group.traced().out_info
    if not group.several:
        return outputs
    for name, output in outputs.items():
        if output.shape[:1] != (group.lanes,):
            raise ValueError(
                f"{name}: got shape {output.shape}, wanted {group.lanes} lanes as its leading axis"
            )
    return {n: jax.ShapeDtypeStruct(o.shape[1:], o.dtype) for n, o in outputs.items()}


def trace_part(
    function: Callable,
    shape: tuple,
    values: dict[str, np.ndarray],
    lanes: int,
    most: int,
    plan: SweepPlan,
) -> Group:
    """Trace the program of a part that another process cut, for at most ``most`` points.

    Args:
        function: the function of the sweep.
        shape: names and values of the axes that decide shapes.
        values: values of the points of the part on the traced axes.
        lanes: points of a batch.
        most: points of the largest part of the program.
        plan: how the sweep runs.
    """
    traced = cache(lambda: _trace_call(function, dict(shape), values, lanes, plan))
    parts, devices = [np.arange(most)], plan.devices[:1]
    group = Group(plan, traced, {}, parts, values, lanes, devices, "", shape)
    if stages := _trace_stages(function, group):
        return group._replace(stages=stages, outputs=_join_facts(stages).outputs)
    return group._replace(outputs=_outputs(group))


def _trace_call(
    function: Callable,
    known: Mapping[str, Any],
    columns: Mapping[str, Any],
    lanes: int,
    plan: SweepPlan,
) -> Any:
    """Trace one call of the function, on a batch of lanes or on one point."""

    def call(point: Values, shared: Any) -> Mapping[str, Any]:
        more = {} if plan.shared.tree is None else {NAME: shared}
        return function(**known, **{n: value for n, value in point.items() if n}, **more)

    several = plan.batched or lanes > 1
    run = call if plan.batched or not several else jax.vmap(call, in_axes=(0, None))
    shape = (lanes,) if several else ()

    def program(values: Values, used: Array, shared: Any) -> Mapping[str, Any]:
        return run(values, shared)

    # Tracing is half of the time of a small sweep: do it once, for the sizes and for the program.
    with traced_for(plan.devices[0].platform):
        return jax.jit(_name_program(plan, program)).trace(
            {name: _stand_in(column, shape) for name, column in columns.items()},
            jax.ShapeDtypeStruct(shape, bool),
            plan.shared.like,
        )


def _stand_in(column: Any, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """What stands for values while a function is traced: numbers, or the arrays of a case."""
    if isinstance(column, jax.ShapeDtypeStruct):
        return column
    return jax.ShapeDtypeStruct(shape, column.dtype)


def _name_program(plan: SweepPlan, program: Callable) -> Callable:
    """Name a program, so that JAX's cache leaves alone those that the library keeps itself."""
    program.__name__ = OURS if plan.programs else "sweep"
    return program


def _cut(indices: np.ndarray, most: int, lanes: int) -> list[np.ndarray]:
    """Parts of at most so many points: of 1, 2, 4, 8, ... batches, or of less than one.

    A batch that is not full takes as long as a full one, so that 7 of them on two devices take as
    long as 8. How many devices there are must not matter: a store goes on with others.

    Example:
        >>> [len(part) for part in _cut(np.arange(100), 70, 16)]
        [64, 36]
    """
    most = max(LEAST, most)
    if most < lanes:
        return np.array_split(indices, -(-len(indices) // most))
    size = round_to_batches(most, lanes)
    return [indices[first : first + size] for first in range(0, len(indices), size)]


def round_to_batches(most: int, lanes: int) -> int:
    """Points of 1, 2, 4, 8, ... batches, as many as at most so many points are.

    Example:
        >>> round_to_batches(70, 16)
        64
    """
    return lanes * 2 ** ((most // lanes).bit_length() - 1)


def _bytes_of_a_turn(jaxpr: Any) -> int:
    """Bytes of all arrays that the largest loop makes in a turn, without those of loops inside it.

    Of a program without a loop it is half of all that it makes, since no array is made again: so
    many points of it fit into a cache
    (:data:`lrdyn.verification.machine.device_defaults.IN_CACHE`).
    """
    turns = []

    def bytes_outside_loops(jaxpr: Any) -> int:
        total = 0
        for equation in jaxpr.eqns:
            total += _nbytes(equation.outvars)
            parts = sum(map(bytes_outside_loops, _inner_programs(equation)))
            if equation.primitive.name in ("while", "scan"):
                turns.append(parts)
            else:
                total += parts
        return total

    whole = bytes_outside_loops(jaxpr)
    return max(turns, default=whole // 2)


def _nbytes(variables: Sequence[Any]) -> int:
    avals = (variable.aval for variable in variables)
    return sum(math.prod(a.shape) * getattr(a.dtype, "itemsize", 8) for a in avals)


def _digest(closed: Any, context: tuple) -> str:
    # Functions inside a program print with their address, which changes from run to run.
    text = re.sub(r"0x[0-9a-f]+", "", f"{closed.jaxpr}{context}")
    digest = hashlib.sha256(text.encode())
    for constant in closed.consts:
        digest.update(np.asarray(constant).tobytes())
    return digest.hexdigest()


def _sharding(group: Group) -> NamedSharding:
    return NamedSharding(Mesh(np.asarray(group.devices), ("run",)), PartitionSpec("run"))


def compile_in(pool: Executor, group: Group) -> Future:
    """Compile the program of a group beside other work, unless it is kept on disk."""
    if group.stages:
        return _done(_Stages(group, partial(compile_in, pool)))
    program = group.stored and group.stored.load(_arguments(group), group.outputs, group.devices)
    return _done(program) if program else pool.submit(_compile, _lower(group), group)


def _done(value: Any) -> Future:
    future: Future = Future()
    future.set_result(value)
    return future


def compile_program(group: Group) -> Any:
    """The compiled program of a group."""
    if group.stages:
        return _Stages(group, lambda stage: _done(compile_program(stage)))
    return _compile(_lower(group), group)


def _compile(lowered: Any, group: Group) -> Any:
    options = _options(group)
    if not group.stored:
        return lowered.compile(compiler_options=options)
    facts = Facts(group.outputs, group.size, group.digest, group.on_trial)
    return group.stored.compiled(lowered, options, facts, _arguments(group), group.devices)


def _arguments(group: Group) -> tuple:
    """Shapes and types of the arguments of the compiled program."""
    sharding = _sharding(group)
    taken = group.inputs or {
        name: jax.ShapeDtypeStruct((), column.dtype) for name, column in group.columns.items()
    }
    values = {
        name: jax.ShapeDtypeStruct((group.slots, *like.shape), like.dtype, sharding=sharding)
        for name, like in taken.items()
    }
    used = jax.ShapeDtypeStruct((group.slots,), bool, sharding=sharding)
    return values, used, group.plan.shared.abstract_values(group.devices)


def _lower(group: Group) -> Any:
    # One batch on the default device: what was traced is already the whole program.
    if group.slots == group.lanes > 1 and group.devices == jax.local_devices()[:1]:
        return group.traced().lower()
    sharding, structure = _sharding(group), jax.tree.structure(group.outputs)

    def call(values: Values, shared: Any) -> Values:
        flat = jaxpr_as_fun(group.traced().jaxpr)
        # The traced function has this argument, and uses it nowhere: whether a slot is used is
        # decided around it.
        unused = jnp.ones(jax.tree.leaves(values)[0].shape, bool)
        return jax.tree.unflatten(structure, flat(*jax.tree.leaves((values, unused, shared))))

    if group.lanes == 1:
        local = partial(_run_one_by_one, call, group.plan.batched)
    else:
        local = partial(_run_chunks, call, group.lanes)
    # Compiling a further layer around it costs a small sweep as much as the function itself.
    if len(group.devices) > 1:
        specs = (sharding.spec, sharding.spec, PartitionSpec())
        # No check of varying types: it refuses every loop of a user whose carry begins as a
        # constant and ends as something that differs from device to device.
        local = jax.shard_map(
            local, mesh=sharding.mesh, in_specs=specs, out_specs=sharding.spec, check_vma=False
        )

    def program(values: Values, used: Array, shared: Any) -> Values:
        return local(values, used, shared)

    return jax.jit(_name_program(group.plan, program)).lower(*_arguments(group))


def _run_chunks(
    run_lanes: PointsFunction, lanes: int, values: Values, used: Array, shared: Any
) -> Values:
    """The program of one device: chunks of ``lanes`` points, one chunk after another."""
    # A loop of one turn would still be compiled as a loop.
    if len(used) == lanes:
        return run_lanes(values, shared)
    chunks = jax.tree.map(lambda v: v.reshape(-1, lanes, *v.shape[1:]), values)
    outputs = jax.lax.map(lambda chunk: run_lanes(chunk, shared), chunks)
    return jax.tree.map(lambda v: v.reshape(v.shape[0] * v.shape[1], *v.shape[2:]), outputs)


def _run_one_by_one(
    call: PointsFunction, batched: bool, values: Values, used: Array, shared: Any
) -> Values:
    """The program of one device: point after point, each for as long as it takes."""

    def run(point: Values) -> Values:
        if batched:
            outputs = call(jax.tree.map(lambda v: v[None], point), shared)
            return jax.tree.map(lambda v: v[0], outputs)
        return call(point, shared)

    def skip(point: Values) -> Values:
        return jax.tree.map(lambda o: jnp.zeros(o.shape, o.dtype), jax.eval_shape(run, point))

    # A branch that is really skipped, for this is a loop and no ``vmap``: slots that only fill up
    # the part cost nothing.
    return jax.lax.map(lambda slot: jax.lax.cond(slot[1], run, skip, slot[0]), (values, used))


def _slot_order(group: Group) -> np.ndarray:
    """Slots in the order of the devices, dealt out forwards and backwards in turn.

    A cost that grows along an axis is thus shared evenly.
    """
    slots = np.arange(group.slots).reshape(-1, len(group.devices))
    slots[1::2] = slots[1::2, ::-1]
    return slots.T.ravel()


def start(group: Group, compiled: Any, part: np.ndarray) -> Values:
    """Begin to compute a part, which need not have ended on return."""
    # Sent as one pytree: each ``device_put`` has a cost of its own.
    order = _slot_order(group)
    # Slots beyond the part repeat its last point, so that all parts share one program.
    values = group.values(part[np.minimum(order, len(part) - 1)])
    moved = jax.device_put((values, order < len(part)), _sharding(group))
    return compiled(*moved, group.plan.shared.place_on(group.devices))


def collect(group: Group, part: np.ndarray, outputs: Values) -> dict[str, np.ndarray]:
    """Wait for a part, and put its results in the order of its points."""
    # The inverse of the order in which points were dealt to the slots; slots beyond the part drop
    # out.
    place = np.argsort(_slot_order(group))[: len(part)]
    arrays = jax.device_get(outputs)
    return {name: array_types.as_kept(array[place]) for name, array in arrays.items()}


def output_signature(group: Group) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    """What the program of a group returns at one point: names, shapes, types.

    Programs themselves are no measure: constants of inner functions stand in them in an order that
    depends on what the process has traced before.
    """
    return tuple(
        sorted((n, output.shape, str(output.dtype)) for n, output in group.outputs.items())
    )
