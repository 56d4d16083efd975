"""Running a theorem: sweeps in two precisions, controls, departures, and the verdict."""

import dataclasses
import hashlib
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import lru_cache, reduce
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lrdyn.claims import Judgement, judge, judge_control, overall, scales_with_epsilon, tolerance
from lrdyn.points import Points, product
from lrdyn.progress import Progress, Silent
from lrdyn.sweep import sweep
from lrdyn.theorem import Claim, Control, Statement, Theorem, longest_axis, relative_difference

if TYPE_CHECKING:
    import xarray

RESOLVED = 0.01
"""Largest tolerance that still means something: two digits."""

LANES = {True: 16, False: 64}
"""Points in a batch, where XLA optimises a program and where it does not: a batch that takes all
points of a small sweep needs no loop, which takes as long to compile as what it repeats."""

SHOWN = 4
"""Diverged configurations of a statement that are printed one by one."""

PRECISIONS = {"float64": ("float64", "float32"), "float32": ("float32",)}
"""The runs behind one verdict: the dtype asked for first."""


class Verification(NamedTuple):
    """What :func:`verify` returns."""

    verdict: dict[str, Any]
    """Content of ``verdict.json``."""
    groups: dict[str, "xarray.Dataset"]
    """Content of ``results.nc``: ``"/"`` is the first statement in the dtype asked for."""
    diverged: list[str]
    """One line for each configuration whose step size diverged."""


def verify(
    theorem: Theorem,
    settings: Mapping[str, Any],
    *,
    dtype: str = "float64",
    seeds: Sequence[int] = (0, 1),
    perturb: bool = False,
    thorough: bool = True,
    memory: int = 2**30,
    store: Path | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run every statement of a theorem with its controls and judge every claim.

    Identities run in float64 and in float32, and the verdict uses both; with ``dtype="float32"``
    the float32 run stands alone.

    Args:
        theorem: the theorem.
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
        The :class:`Verification`; with a store, its large arrays are read from there when used.

    Raises:
        ValueError: a combination of settings is outside the theorem.
    """
    validate(theorem, settings)
    theorem = concerned(theorem, settings)
    jobs = list(_jobs(theorem, settings, dtype, seeds, perturb, thorough))
    progress = Silent() if progress is None else progress
    progress.expect(sum(job.points.size for job in jobs))
    groups = _run_side_by_side(jobs, memory, store, _Announced(progress))
    runs = {p: _take_controls(theorem, groups, p) for p in PRECISIONS[dtype]}
    claims, diverged = [], []
    for statement in theorem.statements:
        legs = {p: groups[name] for p, name in groups_of(theorem, statement, dtype).items()}
        claims += [claim_entry(claim, statement, legs) for claim in statement.claims]
        for control in statement.controls:
            legs = {p: found[control.id] for p, found in runs.items() if control.id in found}
            claims.append(control_entry(control, legs))
        diverged += _diverged(groups[groups_of(theorem, statement, dtype)[dtype]], statement)
    groups |= {f"/controls/{p}": control_table(theorem, r) for p, r in runs.items() if r}
    verdict = {
        "name": theorem.name,
        "holds": _verdict(theorem, claims),
        "config": {},
        "claims": claims,
        "environment": environment(dtype),
    }
    return Verification(verdict, groups, diverged)


def concerned(theorem: Theorem, settings: Mapping[str, Any]) -> Theorem:
    """Leave out the statements that these settings do not concern, with all their claims.

    Args:
        theorem: the theorem.
        settings: a value for each flag.

    Returns:
        The theorem with the statements whose ``narrow`` leaves a value for every swept flag. The
        first statement always stays: it carries the verdict.
    """
    first, *rest = theorem.statements
    kept = [s for s in rest if all(map(len, _swept(theorem, s.narrow(dict(settings))).values()))]
    return dataclasses.replace(theorem, statements=(first, *kept))


def validate(theorem: Theorem, settings: Mapping[str, Any]) -> None:
    """Check every combination of the settings before anything is computed.

    Args:
        theorem: the theorem.
        settings: a value for each flag.

    Raises:
        ValueError: a combination is outside the theorem.
    """
    for statement in concerned(theorem, settings).statements:
        for point in _grid(theorem, statement.narrow(dict(settings))):
            theorem.check(point)


def _verdict(theorem: Theorem, claims: list[dict[str, Any]]) -> bool | None:
    # A side statement at settings of its own must not carry a verdict about nothing.
    main = {claim.id for claim in theorem.statements[0].claims}
    holds = overall(claims)
    if holds and all(claim["holds"] is None for claim in claims if claim["id"] in main):
        return None
    return holds


def groups_of(theorem: Theorem, statement: Statement, dtype: str) -> dict[str, str]:
    """Where ``results.nc`` keeps a statement.

    Args:
        theorem: the theorem.
        statement: one of its statements.
        dtype: the precision that was asked for.

    Returns:
        Precision -> group.
    """
    root = "/" if statement is theorem.statements[0] else f"/{statement.id}/"
    return {p: root if p == dtype else f"{root}{p}" for p in PRECISIONS[dtype]}


class Job(NamedTuple):
    """One sweep in one precision."""

    group: str
    """Where ``results.nc`` keeps it; that of each control has its id for ``*``."""
    precision: str
    function: Callable[..., dict[str, jax.Array]]
    points: Points
    shapes: tuple[str, ...]
    dims: Mapping[str, tuple[str, ...]]
    compiler_options: dict[str, Any] | None
    lanes: int
    controls: tuple[Control, ...] = ()

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
        name = self.group.replace("*", "-".join(c.id for c in self.controls)).strip("/")
        with jax.enable_x64(self.precision == "float64"):
            found = sweep(
                self.function,
                self.points,
                shapes=self.shapes,
                dims=self.dims,
                lanes=self.lanes,
                memory=memory,
                compiler_options=self.compiler_options,
                store=store and store / hashlib.sha256(name.encode()).hexdigest()[:12],
                progress=progress,
            )
        if not self.controls:
            return {self.group: found}
        return {self.group.replace("*", c.id): _of_control(found, c) for c in self.controls}


def _of_control(results: "xarray.Dataset", control: Control) -> "xarray.Dataset":
    mine = f"{control.id}/"
    found = results[[name for name in results if str(name).startswith(mine)]]
    found = found.rename({name: str(name).removeprefix(mine) for name in found})
    if "amount" not in found.coords:
        found = found.expand_dims(amount=[control.amount])
    label = control.amount_label or "amount"
    return found.assign_attrs(title=f"{control.claim}: {control.statement}", amount_label=label)


def _jobs(theorem, settings, dtype, seeds, perturb, thorough) -> Iterator[Job]:
    for statement in theorem.statements:
        for p, group in groups_of(theorem, statement, dtype).items():
            yield claims_job(theorem, statement, settings, seeds, group, p, thorough)
        for p in PRECISIONS[dtype]:
            if thorough or p == dtype:
                for controls in _with_equal_settings(statement):
                    yield controls_job(theorem, statement, controls, seeds, p)
            for control in statement.controls:
                if perturb and control.amounts:
                    amounts = (0.0, *control.amounts)
                    yield controls_job(theorem, statement, (control,), seeds, p, amounts)


def _with_equal_settings(statement: Statement) -> list[tuple[Control, ...]]:
    groups: dict[str, list[Control]] = {}
    for control in statement.controls:
        groups.setdefault(repr(sorted(control.at.items())), []).append(control)
    return [tuple(controls) for controls in groups.values()]


class _Announced:
    """Progress of sweeps whose points were announced together, before the first began."""

    def __init__(self, progress: Progress):
        self.advance, self.note = progress.advance, progress.note

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


def _swept(theorem: Theorem, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {flag.name: settings[flag.name] for flag in theorem.flags if flag.swept}


def _fixed(theorem: Theorem, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {flag.name: settings[flag.name] for flag in theorem.flags if not flag.swept}


def _grid(theorem: Theorem, settings: Mapping[str, Any]):
    swept, fixed = _swept(theorem, settings), _fixed(theorem, settings)
    columns = product(**swept).columns
    for values in zip(*columns.values(), strict=True):
        yield fixed | dict(zip(columns, values, strict=True))


def evaluate(statement: Statement, fixed: Mapping[str, Any]) -> Callable[..., dict[str, jax.Array]]:
    """Build the pure function of one point that computes everything a verdict needs.

    Args:
        statement: the statement.
        fixed: flags that are not swept.

    Returns:
        A function of ``seed`` and the swept flags.
    """

    def point(seed, **flags) -> dict[str, jax.Array]:
        case = statement.case(jax.random.key(seed), **fixed, **flags)
        predicted, measured = dict(statement.predict(case)), dict(statement.measure(case))
        steps = int({**fixed, **flags}.get("steps", 1))
        outputs = _judged(statement, statement.claims, case, predicted, measured, steps)
        both = dict(statement.compare(case, predicted, measured))
        return outputs | _named(predicted, measured) | both

    return point


def evaluate_controls(
    statement: Statement, fixed: Mapping[str, Any], controls: Sequence[Control]
) -> Callable[..., dict[str, jax.Array]]:
    """Build the pure function of one point that runs controls: one program, what they share once.

    Args:
        statement: the statement.
        fixed: flags that are not swept.
        controls: its controls.

    Returns:
        A function of ``seed``, the swept flags and, if it is not to be the controls' own,
        ``amount``; the names of its results start with the id of the control.
    """

    def point(seed, amount=None, **flags) -> dict[str, jax.Array]:
        key = jax.random.key(seed)
        whole = statement.case(key, **fixed, **flags)
        steps = int({**fixed, **flags}.get("steps", 1))
        once, outputs = _Once(), {}
        for control in controls:
            case = whole
            if control.case is not None:
                distance = jnp.asarray(control.amount if amount is None else amount)
                case = control.case(jax.random.fold_in(key, 1), whole, distance)
            predicted = once(control.predict or statement.predict, case)
            measured = once(control.measure or statement.measure, case)
            (claim,) = (claim for claim in statement.claims if claim.id == control.claim)
            found = _judged(statement, (claim,), case, predicted, measured, steps)
            outputs |= {f"{control.id}/{name}": value for name, value in found.items()}
        return outputs

    return point


class _Once:
    """Calls a function on a case once, however often it is asked to."""

    def __init__(self):
        self.found = {}

    def __call__(self, function, case) -> dict[str, jax.Array]:
        known = (function, id(case))
        if known not in self.found:
            self.found[known] = case, dict(function(case))  # keeps the case, so that its id stays
        return self.found[known][1]


def _judged(
    statement: Statement, claims: Sequence[Claim], case, predicted, measured, steps: int
) -> dict[str, jax.Array]:
    outputs = {f"met_{name}": check(case) for name, check in statement.hypotheses.items()}
    if "diverged_at" in measured:
        outputs["diverged_at"] = measured["diverged_at"]
    for claim in claims:
        outputs |= _claim_outputs(claim, case, predicted, measured, steps)
    return outputs


def _claim_outputs(claim: Claim, case, predicted, measured, steps: int) -> dict[str, jax.Array]:
    residual = claim.residual or (lambda _, p, m: relative_difference(p[claim.id], m[claim.id]))
    dtype = jnp.zeros(()).dtype
    limit = claim.tolerance
    applies = claim.applies(case, predicted, measured) if claim.applies else True
    if limit is None:
        limit = tolerance(claim.kind, dtype, steps=steps, size=longest_axis(case))
    if claim.kind in ("identity", "bound") and "condition" in predicted:
        limit *= predicted["condition"]
        applies &= limit <= RESOLVED
    value = jnp.asarray(residual(case, predicted, measured), dtype)
    return {
        # A residual is a number >= 0: anything else is lost, and a lost one fails.
        f"residual_{claim.id}": jnp.where(value >= 0, value, jnp.nan),
        f"tolerance_{claim.id}": jnp.asarray(limit, dtype),
        f"applies_{claim.id}": jnp.asarray(applies),
    }


def _named(predicted, measured) -> dict[str, jax.Array]:
    both = predicted.keys() & measured.keys()
    named = {f"{n}_predicted" if n in both else n: v for n, v in predicted.items()}
    named |= {f"{n}_measured" if n in both else n: v for n, v in measured.items()}
    named.pop("diverged_at", None)
    return named


def _dims(statement: Statement) -> dict[str, tuple[str, ...]]:
    dims = dict(statement.dims)
    for name, axes in statement.dims.items():
        dims |= {f"{name}_predicted": axes, f"{name}_measured": axes}
    return dims


def claims_job(
    theorem: Theorem,
    statement: Statement,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    group: str,
    precision: str,
    optimize: bool = True,
) -> Job:
    """The sweep of a statement over its settings."""
    settings = statement.narrow(dict(settings))
    return Job(
        group,
        precision,
        evaluate(statement, _fixed(theorem, settings)),
        product(seed=seeds, **_swept(theorem, settings)),
        _shapes(theorem),
        _dims(statement),
        None if optimize else unoptimized(),
        LANES[optimize],
    )


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


def controls_job(
    theorem: Theorem,
    statement: Statement,
    controls: tuple[Control, ...],
    seeds: Sequence[int],
    precision: str,
    amounts: tuple[float, ...] | None = None,
) -> Job:
    """The sweep of controls that share their settings; with amounts, how far they reach."""
    point = {f.name: f.quick[0] if f.quick else None for f in theorem.flags} | dict(controls[0].at)
    swept = {name: (value,) for name, value in _swept(theorem, point).items()}
    if amounts:
        swept = {"amount": amounts, **swept}
    return Job(
        f"/{'perturb' if amounts else 'controls'}/*/{precision}",
        precision,
        evaluate_controls(statement, _fixed(theorem, point), controls),
        product(seed=seeds, **swept),
        _shapes(theorem),
        {},
        unoptimized(),
        LANES[False],
        controls,
    )


def _shapes(theorem: Theorem) -> tuple[str, ...]:
    return tuple(flag.name for flag in theorem.flags if flag.shapes)


def _met(results: "xarray.Dataset", statement: Statement) -> np.ndarray:
    shape = results["applies_" + statement.claims[0].id].shape
    met = np.ones(shape, bool)
    for name in statement.hypotheses:
        met &= results[f"met_{name}"].values
    if "diverged_at" in results:
        met &= results["diverged_at"].values < 0
    return met


def worst_ratio(results: "xarray.Dataset", statement: Statement) -> "xarray.DataArray":
    """Largest residual / tolerance over the claims of a statement, at each point of its sweep.

    Args:
        results: arrays of the statement.
        statement: the statement.

    Returns:
        The ratio; NaN where no claim applies. An exact claim counts as a multiple of one rounding.
    """
    ratios = []
    for claim in statement.claims:
        residual, limit = results[f"residual_{claim.id}"], results[f"tolerance_{claim.id}"]
        applies = _met(results, statement) & results[f"applies_{claim.id}"].values
        ratio = residual / limit.where(limit > 0, np.finfo(residual.dtype).eps)
        ratios.append(ratio.fillna(np.inf).where(applies))
    # NaN, a claim that does not apply, gives way to a number.
    return reduce(lambda a, b: a.where(~(b > a.fillna(-1)), b), ratios)


def _point_of(results: "xarray.Dataset", shape_of: str, index: int | None) -> dict[str, Any]:
    if index is None:
        return {}
    array = results[shape_of]
    place = np.unravel_index(index, array.shape)
    return {str(dim): array[dim].values[i].item() for dim, i in zip(array.dims, place, strict=True)}


def _arrays(results: "xarray.Dataset", claim: str) -> tuple[np.ndarray, np.ndarray]:
    return results[f"residual_{claim}"].values, results[f"tolerance_{claim}"].values


def claim_entry(
    claim: Claim, statement: Statement, legs: Mapping[str, "xarray.Dataset"]
) -> dict[str, Any]:
    """Judge one claim over the runs in all precisions."""
    judged = {}
    for precision, results in legs.items():
        applies = _met(results, statement) & results[f"applies_{claim.id}"].values
        judged[precision] = judge(*_arrays(results, claim.id), applies)
    holds = _both([j.holds for j in judged.values()])
    scaling = None
    if claim.kind == "identity" and len(judged) == 2 and holds is not None:
        residuals = {p: judged[p].residual / _condition(legs[p], judged[p].worst) for p in judged}
        scaling = scales_with_epsilon(residuals["float64"], residuals["float32"])
        holds = holds and scaling
    first = next(iter(judged))
    worst = _point_of(legs[first], f"residual_{claim.id}", judged[first].worst)
    met = judged[first].cases > 0
    entry = _entry(claim.id, claim.kind, claim.statement, met, judged, holds, worst)
    return entry | {"scales_with_epsilon": scaling}


def _take_controls(theorem: Theorem, groups: dict[str, Any], precision: str) -> dict[str, Any]:
    ids = [control.id for statement in theorem.statements for control in statement.controls]
    found = {name: groups.pop(f"/controls/{name}/{precision}", None) for name in ids}
    return {name: results for name, results in found.items() if results is not None}


def control_table(theorem: Theorem, runs: Mapping[str, "xarray.Dataset"]) -> "xarray.Dataset":
    """Put all controls into one table: what each left of its claim, and at which settings.

    Args:
        theorem: the theorem.
        runs: id of a control -> its results in one precision.

    Returns:
        ``residual``, ``tolerance`` and ``met`` over ``control`` and ``seed``; of each control also
        ``claim``, ``statement``, ``amount`` and, as ``at_<flag>``, its settings.
    """
    import xarray as xr

    controls = {c.id: c for s in theorem.statements for c in s.controls if c.id in runs}
    rows = [_control_row(control, runs[name]) for name, control in controls.items()]
    table = xr.concat(rows, xr.Variable("control", list(controls)), coords="all", join="exact")
    return table.assign_attrs(title="controls: each must be seen to fail")


def _control_row(control: Control, results: "xarray.Dataset") -> "xarray.Dataset":
    import xarray as xr

    axes = [str(d) for d in results.dims if d != "seed"]
    found = results.squeeze(axes, drop=True)
    named = {"residual": f"residual_{control.claim}", "tolerance": f"tolerance_{control.claim}"}
    settings = {
        axis if axis == "amount" else f"at_{axis}": results[axis].values[0] for axis in axes
    }
    return xr.Dataset(
        {name: found[source] for name, source in named.items()} | {"met": _all_met(control, found)},
        coords=settings | {"claim": control.claim, "statement": control.statement},
    )


def _all_met(control: Control, results: "xarray.Dataset") -> "xarray.DataArray":
    met = results[f"applies_{control.claim}"]
    for name in map(str, results):
        met = met & results[name] if name.startswith("met_") else met
    return met


def _condition(results: "xarray.Dataset", worst: int) -> float:
    # The worst cases of two legs can be different runs, which amplify rounding differently.
    return float(results["condition"].values.ravel()[worst]) if "condition" in results else 1.0


def control_entry(control: Control, legs: Mapping[str, "xarray.Dataset"]) -> dict[str, Any]:
    """Judge a control: its claim fails clearly, and a broken hypothesis is seen by its check."""
    judged, met = {}, True
    for precision, results in legs.items():
        judged[precision] = judge_control(*_arrays(results, control.claim))
        met = met and bool(_all_met(control, results).any())
    seen = control.case is None or not met
    holds = bool(_both([j.holds for j in judged.values()])) and seen
    first = next(iter(judged))
    worst = _point_of(legs[first], f"residual_{control.claim}", judged[first].worst)
    return _entry(
        control.id,
        "control",
        f"{control.statement}: {control.claim} fails",
        met,
        judged,
        holds,
        worst,
    )


def _both(holds: list[bool | None]) -> bool | None:
    if any(h is False for h in holds):
        return False
    return None if any(h is None for h in holds) else True


def _entry(
    name, kind, statement, met, judged: Mapping[str, Judgement], holds, worst
) -> dict[str, Any]:
    first, *others = judged
    entry = {
        "id": name,
        "kind": kind,
        "statement": statement,
        "hypotheses_met": met,
        "residual": _finite(judged[first].residual),
        "tolerance": judged[first].tolerance,
        "holds": holds,
        "cases": judged[first].cases,
        "cases_total": judged[first].total,
        "worst_case": worst,
    }
    for other in others:
        entry[f"residual_{other}"] = _finite(judged[other].residual)
        entry[f"tolerance_{other}"] = judged[other].tolerance
    return entry


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _diverged(results: "xarray.Dataset", statement: Statement) -> list[str]:
    if "diverged_at" not in results:
        return []
    steps = results["diverged_at"].values.ravel()
    (lost,) = np.nonzero(steps >= 0)
    lines = []
    for index in lost[:SHOWN]:
        point = _point_of(results, "diverged_at", int(index))
        where = " ".join(f"{name}={shown(value)}" for name, value in point.items())
        lines.append(f"{statement.id}: diverged at step {steps[index]}: {where}")
    if len(lost) > SHOWN:
        lines.append(f"{statement.id}: {len(lost)} of {len(steps)} diverged, see results.nc")
    return lines


def shown(value: Any) -> str:
    """Write a value of a flag for a reader."""
    return value if isinstance(value, str) else f"{value:g}"


def environment(dtype: str) -> dict[str, Any]:
    """Versions, platform and revision that a verdict came from.

    Args:
        dtype: floating-point type of the run.

    Returns:
        The ``environment`` entry of ``verdict.json``.
    """
    return {
        "jax": jax.__version__,
        "jaxlib": _version("jaxlib"),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": jax.default_backend(),
        "devices": jax.local_device_count(),
        "dtype": dtype,
        "git": _revision(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    # Of the checkout that this code is run from; an installed package has none.
    here = Path(__file__).resolve().parent
    command = ["git", "-C", os.fspath(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
