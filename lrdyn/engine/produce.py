"""Producing: the sweeps of an experiment and of its controls, as labelled arrays."""

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from lrdyn.engine.judging import SIZE, claim_of, control_group
from lrdyn.engine.points import Points, product
from lrdyn.engine.progress import Progress, Silent
from lrdyn.engine.sweep import call_each, sweep
from lrdyn.theorem import (
    Control,
    Experiment,
    Statement,
    groups_of,
    longest_axis,
    precisions,
)

if TYPE_CHECKING:
    import xarray

LANES = {True: 16, False: 64}
"""Points in a batch, where XLA optimises a program and where it does not: a batch that takes all
points of a small sweep needs no loop, which takes as long to compile as what it repeats."""


def produce(
    experiment: Experiment,
    settings: Mapping[str, Any],
    *,
    dtype: str = "float64",
    seeds: Sequence[int] = (0, 1),
    perturb: bool = False,
    thorough: bool = True,
    memory: int = 2**30,
    store: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, "xarray.Dataset"]:
    """Run every statement of an experiment, and its controls.

    Args:
        experiment: the experiment.
        settings: a value for each flag: a tuple for swept flags, one value for the others.
        dtype: ``float64`` or ``float32``.
        seeds: seeds to sweep.
        perturb: also sweep the distance from each hypothesis.
        thorough: run the controls in both precisions, and let XLA optimise the programs of the
            claims. Small sweeps spend their time in the compiler and finish sooner without.
        memory: bytes that the arrays of one part of a sweep may take, see :func:`lrdyn.sweep`.
        store: a folder that keeps finished parts, so that the same call continues after a kill.
        progress: told of every finished part.

    Returns:
        Content of ``results.nc``: group -> dataset; ``"/"`` is the first statement in the dtype
        asked for. With a store, large arrays are read from there when used.

    Raises:
        ValueError: a combination of settings is outside the experiment.
    """
    validate(experiment, settings)
    experiment = concerned(experiment, settings)
    jobs = list(_jobs(experiment, settings, dtype, seeds, perturb, thorough))
    progress = Silent() if progress is None else progress
    progress.expect(sum(job.points.size for job in jobs))
    return _run_side_by_side(jobs, memory, store, _Announced(progress))


def concerned(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """Leave out the statements that these settings do not concern, with all their claims.

    Args:
        experiment: the experiment.
        settings: a value for each flag.

    Returns:
        The experiment with the statements whose ``narrow`` leaves a value for every swept flag. The
        first statement always stays: it carries the verdict.
    """
    first, *rest = experiment.statements
    kept = [
        s
        for s in rest
        if all(map(len, _swept(experiment, own_settings(experiment, s, settings)).values()))
    ]
    return replace(experiment, statements=(first, *kept))


def validate(experiment: Experiment, settings: Mapping[str, Any]) -> None:
    """Check every combination of the settings before anything is computed.

    Args:
        experiment: the experiment.
        settings: a value for each flag.

    Raises:
        ValueError: a combination is outside the experiment.
    """
    for statement in concerned(experiment, settings).statements:
        for point in _grid(experiment, own_settings(experiment, statement, settings)):
            experiment.check(point)


# Jobs ----------------------------------------------------------------------------------------


class Job(NamedTuple):
    """One sweep in one precision."""

    group: str
    """Where ``results.nc`` keeps it; of controls, which have several, the name of the parts."""
    precision: str
    function: Callable[..., Mapping[str, Any]]
    points: Points
    shapes: tuple[str, ...]
    dims: Mapping[str, tuple[str, ...]]
    compiler_options: dict[str, Any] | None
    lanes: int
    attributes: Mapping[str, Any]
    """What a judge needs beside the arrays."""
    controls: tuple[Control, ...] = ()
    traced: bool = True
    digest: str = ""
    """Of the sources, which keys the parts of what is not traced."""

    def run(
        self, memory: int = 2**30, store: Path | None = None, progress: Progress | None = None
    ) -> dict[str, "xarray.Dataset"]:
        """Sweep, in the precision of the job.

        Args:
            memory: see :func:`lrdyn.sweep`.
            store: a folder for the parts of all jobs.
            progress: told of every finished part.

        Returns:
            Group -> results.
        """
        name = "-".join([self.group.strip("/"), *(c.id for c in self.controls)])
        folder = store and store / hashlib.sha256(name.encode()).hexdigest()[:12]
        shared = {"dims": self.dims, "memory": memory, "store": folder, "progress": progress}
        with jax.enable_x64(self.precision == "float64"):
            if self.traced:
                found = sweep(
                    self.function,
                    self.points,
                    shapes=self.shapes,
                    lanes=self.lanes,
                    compiler_options=self.compiler_options,
                    **shared,
                )
            else:
                found = call_each(self.function, self.points, digest=self.digest, **shared)
        if not self.controls:
            return {self.group: found.assign_attrs(self.attributes)}
        perturb = "amount" in self.points.columns
        return {
            control_group(c, self.precision, perturb=perturb): _of_control(found, c, self)
            for c in self.controls
        }


def _of_control(results: "xarray.Dataset", control: Control, job: Job) -> "xarray.Dataset":
    """What one control left, without the axes of its settings, which have one value each."""
    mine = (f"{control.id}.", f"length_{control.id}.")
    found = results[[name for name in results if str(name).startswith(mine)]]
    names = [n for n in (*found.variables, *found.dims) if str(n).startswith(mine)]
    settings = [name for name in job.points.columns if name not in ("seed", "amount")]
    at = {name: _plain(found[name].values[0]) for name in settings}
    found = found.rename({name: str(name).replace(f"{control.id}.", "", 1) for name in names})
    return found.squeeze(settings, drop=True).assign_attrs(
        title=f"{control.claim}: {control.statement}",
        claim=control.claim,
        amount=control.amount,
        amount_label=control.amount_label or "amount",
        fixed=json.dumps(json.loads(job.attributes["fixed"]) | at),
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _jobs(experiment, settings, dtype, seeds, perturb, thorough) -> Iterator[Job]:
    for statement in experiment.statements:
        for p, group in groups_of(experiment, statement, dtype).items():
            yield claims_job(experiment, statement, settings, seeds, group, p, thorough)
        for p in precisions(experiment, dtype):
            if thorough or p == dtype:
                for controls in _with_equal_settings(statement):
                    yield controls_job(experiment, statement, controls, seeds, p)
            for control in statement.controls:
                if perturb and control.amounts:
                    amounts = (0.0, *control.amounts)
                    yield controls_job(experiment, statement, (control,), seeds, p, amounts)


def _with_equal_settings(statement: Statement) -> list[tuple[Control, ...]]:
    groups: dict[str, list[Control]] = {}
    for control in statement.controls:
        at = {**statement.at, **control.at}
        groups.setdefault(repr(sorted(at.items())), []).append(control)
    return [tuple(controls) for controls in groups.values()]


class _Announced:
    """Progress of sweeps whose points were announced together, before the first began."""

    def __init__(self, progress: Progress):
        self.advance, self.note, self.expect_bytes = (
            progress.advance, progress.note, progress.expect_bytes
        )  # fmt: skip

    def expect(self, points: int) -> None:
        pass


def _run_side_by_side(jobs, memory, store, progress) -> dict[str, "xarray.Dataset"]:
    # Most of the time is tracing and compiling, which leave the devices idle.
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    try:
        futures = [pool.submit(job.run, memory, store, progress) for job in jobs]
        for future in as_completed(futures):
            future.result()
        return {group: found for future in futures for group, found in future.result().items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def own_settings(
    experiment: Experiment, statement: Statement, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a statement: of a flag that its case does not take one value is enough.

    Args:
        experiment: the experiment.
        statement: one of its statements.
        settings: a value for each flag.

    Returns:
        A value for each flag.
    """
    own, mine = statement.narrow(dict(settings)), taken(statement.case, settings)
    return {
        flag.name: own[flag.name][:1] if flag.swept and flag.name not in mine else own[flag.name]
        for flag in experiment.flags
    }


def taken(case: Callable[..., Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that are arguments of a case.

    Args:
        case: draws a case from a key and flags.
        flags: values of all flags.

    Returns:
        Those that it takes.

    Example:
        >>> taken(lambda key, *, dim: None, {"dim": 3, "depth": 2})
        {'dim': 3}
    """
    arguments = inspect.signature(case).parameters.values()
    if any(argument.kind is argument.VAR_KEYWORD for argument in arguments):
        return dict(flags)
    names = {argument.name for argument in arguments}
    return {name: value for name, value in flags.items() if name in names}


def _swept(experiment: Experiment, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {flag.name: settings[flag.name] for flag in experiment.flags if flag.swept}


def _fixed(experiment: Experiment, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {flag.name: settings[flag.name] for flag in experiment.flags if not flag.swept}


def _grid(experiment: Experiment, settings: Mapping[str, Any]):
    swept, fixed = _swept(experiment, settings), _fixed(experiment, settings)
    if not swept:
        yield fixed
        return
    columns = product(**swept).columns
    for values in zip(*columns.values(), strict=True):
        yield fixed | dict(zip(columns, values, strict=True))


def claims_job(
    experiment: Experiment,
    statement: Statement,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    group: str,
    precision: str,
    optimize: bool = True,
) -> Job:
    """The sweep of a statement over its settings."""
    settings = own_settings(experiment, statement, settings)
    fixed = _fixed(experiment, settings)
    return Job(
        group,
        precision,
        evaluate(statement, fixed),
        product(seed=seeds, **_swept(experiment, settings)),
        _shapes(experiment),
        _dims(statement),
        None if optimize else unoptimized(),
        LANES[optimize],
        _attributes(statement, fixed),
        traced=statement.traced,
        digest="" if statement.traced else source_digest(experiment),
    )


def controls_job(
    experiment: Experiment,
    statement: Statement,
    controls: tuple[Control, ...],
    seeds: Sequence[int],
    precision: str,
    amounts: tuple[float, ...] | None = None,
) -> Job:
    """The sweep of controls that share their settings; with amounts, how far they reach."""
    point = {f.name: f.quick[0] if f.quick else None for f in experiment.flags}
    point |= {**statement.at, **controls[0].at}
    swept = {name: (value,) for name, value in _swept(experiment, point).items()}
    if amounts:
        swept = {"amount": amounts, **swept}
    fixed = _fixed(experiment, point)
    return Job(
        f"/{'perturb' if amounts else 'controls'}/{statement.id}/{precision}",
        precision,
        evaluate_controls(statement, fixed, controls),
        product(seed=seeds, **swept),
        _shapes(experiment),
        _dims_of_controls(statement, controls),
        unoptimized(),
        LANES[False],
        _attributes(statement, fixed),
        controls,
        statement.traced,
        "" if statement.traced else source_digest(experiment),
    )


def _attributes(statement: Statement, fixed: Mapping[str, Any]) -> dict[str, Any]:
    named = {name: v for name, v in fixed.items() if isinstance(v, int | float | str)}
    names = {name: getattr(statement, name) for name in ("steps", "condition", "diverged")}
    return {"statement": statement.id, "fixed": json.dumps(named), **names}


def _shapes(experiment: Experiment) -> tuple[str, ...]:
    return tuple(flag.name for flag in experiment.flags if flag.shapes)


def _dims(statement: Statement) -> dict[str, tuple[str, ...]]:
    dims = dict(statement.dims)
    for name, axes in statement.dims.items():
        dims |= {f"{name}_predicted": axes, f"{name}_measured": axes}
    return dims


def _dims_of_controls(statement: Statement, controls: Sequence[Control]):
    """Axes of their own for each: a control can change the length of one."""
    dims = _dims(statement).items()
    return {f"{c.id}.{n}": tuple(f"{c.id}.{a}" for a in axes) for c in controls for n, axes in dims}


@lru_cache
def unoptimized() -> dict[str, Any] | None:
    """XLA options that compile several times faster for a CPU and cost small programs nothing."""
    if jax.default_backend() != "cpu":
        return None
    plain: dict[str, Any] = {"xla_backend_optimization_level": 0}
    older = plain | {
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_parallel_codegen_split_count": 1,
    }
    try:  # older kernels without MLIR; newer releases have them no more, nor the option
        jax.jit(jnp.negative).lower(0.0).compile(compiler_options=older)
    except jax.errors.JaxRuntimeError:
        return plain
    return older


# The function of one point -------------------------------------------------------------------


def evaluate(statement: Statement, fixed: Mapping[str, Any]) -> Callable[..., dict[str, Any]]:
    """Build the function of one point that produces the arrays of a statement.

    Args:
        statement: the statement.
        fixed: flags that are not swept.

    Returns:
        A function of ``seed`` and the swept flags.
    """

    def point(seed, **flags) -> dict[str, Any]:
        case = statement.case(jax.random.key(seed), **taken(statement.case, {**fixed, **flags}))
        predicted, measured = dict(statement.predict(case)), dict(statement.measure(case))
        compared = dict(statement.compare(case, predicted, measured))
        return _facts(statement, case) | _named(predicted, measured) | compared

    return point


def evaluate_controls(
    statement: Statement, fixed: Mapping[str, Any], controls: Sequence[Control]
) -> Callable[..., dict[str, Any]]:
    """Build the function of one point that runs controls: one program, what they share once.

    Args:
        statement: the statement.
        fixed: flags that are not swept.
        controls: its controls.

    Returns:
        A function of ``seed``, the swept flags and, if it is not to be the controls' own,
        ``amount``; the names of its results start with the id of the control. Only what the claim
        of a control reads is returned, so that nothing else is compiled.
    """

    def point(seed, amount=None, **flags) -> dict[str, Any]:
        key = jax.random.key(seed)
        whole = statement.case(key, **taken(statement.case, {**fixed, **flags}))
        once, outputs = _Once(), {}
        for control in controls:
            case = whole
            if control.case is not None:
                distance = jnp.asarray(control.amount if amount is None else amount)
                case = control.case(jax.random.fold_in(key, 1), whole, distance)
            predicted, measured = once(statement.predict, case), once(statement.measure, case)
            if control.predict is not None:
                predicted = predicted | once(control.predict, case)
            if control.measure is not None:
                measured = measured | once(control.measure, case)
            claim = claim_of(control, statement)
            read = (*claim.arrays, statement.condition, statement.diverged)
            named = _named(
                *({n: a for n, a in side.items() if n in read} for side in (predicted, measured))
            )
            found = _facts(statement, case) | named
            outputs |= {f"{control.id}.{name}": value for name, value in found.items()}
        return outputs

    return point


class _Once:
    """Calls a function on a case once, however often it is asked to."""

    def __init__(self):
        self.found = {}

    def __call__(self, function, case) -> dict[str, Any]:
        known = (function, id(case))
        if known not in self.found:
            self.found[known] = case, dict(function(case))  # keeps the case, so that its id stays
        return self.found[known][1]


def _facts(statement: Statement, case) -> dict[str, Any]:
    """What a judge asks of a case, which is not saved itself."""
    met = {f"met_{name}": jnp.asarray(check(case)) for name, check in statement.hypotheses.items()}
    return met | {SIZE: jnp.asarray(longest_axis(case), jnp.int32)}


def _named(predicted, measured) -> dict[str, Any]:
    both = predicted.keys() & measured.keys()
    named = {f"{n}_predicted" if n in both else n: v for n, v in predicted.items()}
    return named | {f"{n}_measured" if n in both else n: v for n, v in measured.items()}


# Where it came from --------------------------------------------------------------------------


def source_digest(experiment: Experiment) -> str:
    """SHA-256 of the source files of an experiment and of its data files.

    Its source files are those in which its functions are written, without the library's general
    modules: an edit there changes the traced programs, if anything.

    Args:
        experiment: the experiment.

    Returns:
        The digest, in hexadecimal.
    """
    functions = [f for part in _parts(experiment) for f in functions_of(part)]
    return code_digest(functions, experiment.data())


def code_digest(functions: Sequence[Any], data: Sequence[Path] = ()) -> str:
    """SHA-256 of the files that functions are written in, and of data files.

    Args:
        functions: the functions; those of the library's general modules do not count.
        data: the data files.

    Returns:
        The digest, in hexadecimal.
    """
    files = {Path(f.__code__.co_filename) for f in functions}
    digest = hashlib.sha256()
    for path in sorted(p for p in files if p.is_file() and not _general(p)):
        digest.update(path.read_bytes())
    for code in sorted(f.__code__.co_code for f in functions if not _in_file(f)):
        digest.update(code)  # written in a notebook or at a prompt
    for path in data:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _general(path: Path) -> bool:
    """Whether a file is one of the library's, and of no theorem."""
    library = Path(lrdyn.__path__[0])
    return path.is_relative_to(library) and not path.is_relative_to(library / "theorems")


def _parts(experiment: Experiment) -> Iterator[Any]:
    yield experiment
    for statement in experiment.statements:
        yield statement
        yield from (*statement.claims, *statement.controls)


def functions_of(part: Any) -> Iterator[Any]:
    """Functions among the fields of a dataclass, those in its mappings too.

    Args:
        part: an instance of a dataclass.

    Yields:
        The functions.
    """
    assert is_dataclass(part)
    for field in fields(part):
        value = getattr(part, field.name)
        for one in value.values() if isinstance(value, Mapping) else (value,):
            while isinstance(one, partial):
                one = one.func
            if inspect.isfunction(one):
                yield one


def _in_file(function: Any) -> bool:
    return Path(function.__code__.co_filename).is_file()
