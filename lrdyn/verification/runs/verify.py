"""Verifying a theorem: produce its arrays, then judge them."""

import contextlib
import dataclasses
import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from lrdyn.core import show
from lrdyn.system import progress as progresses
from lrdyn.system import whole_files
from lrdyn.system.progress import Progress
from lrdyn.verification.judging import verdict_text
from lrdyn.verification.judging.judging import Legs, arithmetic_of, judge_results
from lrdyn.verification.judging.outcomes import MissingArray
from lrdyn.verification.judging.rounding import PRECISIONS, Meter, worst_measurement
from lrdyn.verification.machine.device_defaults import ON_A_CPU, usual_memory
from lrdyn.verification.running import arithmetic_probe
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.running.produce import produce
from lrdyn.verification.running.sweep import cluster_of
from lrdyn.verification.running.work import Context
from lrdyn.verification.stating.claims import FALSE_ALARM, Decision, refuse_truth
from lrdyn.verification.stating.mistakes import BadInput, location_of
from lrdyn.verification.stating.statement import Experiment
from lrdyn.verification.storing import files, results_file
from lrdyn.verification.storing.results_file import SCHEMA, environment

if TYPE_CHECKING:
    import xarray


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Verification:
    """The verdict on a theorem and the arrays behind it: what :func:`verify` returns.

    By itself it is neither true nor false: ``bool`` of it raises. In a test write ``assert
    verify(...).holds``.
    """

    verdict: dict[str, Any]
    """Content of ``verdict.json``."""
    groups: Mapping[str, "xarray.Dataset"]
    """Content of ``results.nc``: ``"/"`` is the first scenario in the dtype asked for."""
    diverged: list[str]
    """One line for each configuration whose step size diverged."""
    legs: Mapping[str, Legs]
    """Claim or control -> precision -> residual and tolerance of every case."""

    @property
    def outcome(self) -> Decision:
        """What the verdict says: HOLDS, FALSE or UNDECIDED."""
        return Decision.of(self.verdict["holds"])

    @property
    def holds(self) -> bool:
        """Whether the verdict is HOLDS; one that is undecided does not hold."""
        return self.outcome is Decision.HOLDS

    __bool__ = refuse_truth(".holds, or .outcome where UNDECIDED is not to count as FALSE")

    def __repr__(self) -> str:
        """The text that the command prints."""
        lines = [
            *verdict_text.table(self.verdict),
            *self.diverged,
            *verdict_text.shortfall_lines(self.verdict),
        ]
        lines += verdict_text.why_undecided(self.verdict)
        return "\n".join([*lines, f"{self.verdict['name']} {verdict_text.word(self.verdict)}"])

    def _repr_html_(self) -> str:
        return verdict_text.html(self.verdict)


class Results(dict[str, "xarray.Dataset"]):
    """Content of ``results.nc``, group -> dataset, which shows itself as a table."""

    def __repr__(self) -> str:
        """One line for each group."""
        return "\n".join(show.aligned(show.group_rows(self)))

    def _repr_html_(self) -> str:
        return show.table(show.group_rows(self))


def verify(
    theorem: Experiment,
    *,
    memory: int | None = None,
    lanes: int | None = None,
    store: Path | None = None,
    progress: Progress | None = None,
    data_dir: str | os.PathLike | None = None,
    checkpoint_every: int | None = None,
    client: Any = None,
    **settings: Any,
) -> Verification:
    """Run every scenario of a theorem with its controls and judge every claim.

    Identities run in float64 and in float32, and the verdict uses both; with ``dtype="float32"``
    the float32 run stands alone. That is so by itself where the float64 of a device is none
    (:mod:`lrdyn.verification.judging.rounding`). Every program has the highest precision, whatever
    JAX is set to; with ``precision="tf32"`` or ``"bfloat16"`` products of matrices in float32 have
    that one.

    Args:
        theorem: the theorem, or an experiment, of which nothing is claimed.
        memory: bytes that the arrays of one part of a sweep may take, see :func:`lrdyn.sweep`.
        lanes: points of a sweep at a time on each device; by default as many as suit it.
        store: a folder that keeps finished parts, so that the same call continues after a kill.
        progress: told of every finished part; by default a notebook shows a bar.
        data_dir: where the data sets of a study are looked for first.
        checkpoint_every: steps between two checkpoints of a training, which a store keeps.
        client: a ``dask.distributed.Client`` whose workers compute, see :func:`lrdyn.sweep`.
        **settings: those of the command, under the same names: ``dim=30, depth=(2, 3)``; flags,
            ``preset``, ``seed``, ``seeds`` (how many), ``dtype``, ``perturb``, ``precision``. What
            is not given is as the preset has it.

    Returns:
        The :class:`Verification`; with a store, its large arrays are read from there when used.

    Raises:
        ValueError: a setting is unknown or outside its domain, a combination outside the
            theorem, or a precision that the device does not have.

    Example:
        >>> from lrdyn.registry import theorem
        >>> verify(theorem("theorem2"), dim=30, width=7)
        Traceback (most recent call last):
        lrdyn.verification.stating.mistakes.BadInput: --width: got an unknown setting, wanted one of
        dim, ...
    """
    run = run_of(theorem, memory=memory or ON_A_CPU, data_dir=data_dir, **settings)
    if lanes is not None and lanes < 1:
        raise BadInput(f"lanes: got {lanes}, wanted at least 1")
    if progress is None:
        notebook = progresses.in_notebook()
        progress = progresses.Notebook(theorem.name) if notebook else progresses.Silent()
    elsewhere = None if client is None else cluster_of(client)
    memory = memory or usual_memory(jax.local_devices()[0])
    context = Context(
        memory, store, progress, every=checkpoint_every, elsewhere=elsewhere, lanes=lanes
    )
    if "dtype" not in settings:
        run, _ = choose_precision(run, context)
    return verify_run(run, context)


def meter_of(context: Context) -> Meter:
    """The meter of the arithmetic of the devices that compute."""
    if context.elsewhere is not None:
        return context.elsewhere.measure_arithmetic
    return arithmetic_probe.meter_here(context.machine)


def choose_precision(run: Run, context: Context) -> tuple[Run, str]:
    """Choose the precision of a run that was asked for without one, and give the reason."""
    if run.dtype != "float64":
        return run, ""
    dtype, why = arithmetic_probe.usual_precision(meter_of(context))
    return run._replace(dtype=dtype), why


def verify_run(run: Run, context: Context) -> Verification:
    """Produce what a configuration asks for, write it to a scratch file and judge that file."""
    groups = produce_run(run, context)
    with whole_files.scratch_folder(context.store) as folder:
        path = folder / results_file.NAME
        files.write_netcdf(path, groups)
        return judge_written(run, groups, path, context)


def produce_run(run: Run, context: Context) -> dict[str, "xarray.Dataset"]:
    """Produce what a configuration asks for: the content of ``results.nc``, group -> dataset.

    At the quick preset controls run in one precision and XLA does not optimise the programs: small
    sweeps spend their time in the compiler.
    """
    meter = meter_of(context)
    # First: a precision that the device cannot follow is refused before anything is computed.
    arithmetic_probe.check_products(run.precision, meter)
    measured = {p: worst_measurement(p, meter(p, run.precision)) for p in PRECISIONS}
    groups = produce(
        run.experiment,
        run.settings,
        dtype=run.dtype,
        seeds=run.seeds_of,
        perturb=run.perturb,
        thorough=run.preset == "paper",
        context=context._replace(precision=run.precision),
    )
    # With the results, since whoever judges them again has another device.
    groups["/"] = groups["/"].assign_attrs(arithmetic=results_file.canonical_json(measured))
    return groups


def judge_written(
    run: Run, groups: Mapping[str, "xarray.Dataset"], path: Path, context: Context
) -> Verification:
    """Judge what was written of a run, by the reader with which anybody judges it again.

    Args:
        run: the configuration.
        groups: what was produced, for whoever goes on with it.
        path: the file in which it was written.
        context: where it was produced.

    Raises:
        BadInput: an array that a claim reads is missing, or is none that can be compared.
        OSError: the file is not what was written.
    """
    try:
        with contextlib.ExitStack() as opened:
            saved = results_file.read(path)
            for dataset in saved.values():
                opened.enter_context(dataset)
            verification = verify_groups(run.concerned, saved, run.dtype)
    except MissingArray as error:
        first = run.experiment.scenarios[0]
        raise BadInput(f"{location_of(first.measure)}: {error}") from error
    except results_file.Unreadable as error:
        # It was written a moment ago: the machine lost it, neither the theorem nor its user did.
        name = os.fspath(path.with_name(results_file.NAME))
        raise OSError(errno.EIO, "cannot be read back as it was written", name) from error
    verification = dataclasses.replace(verification, groups=Results(groups))
    verification.verdict["config"] = run.config
    if context.elsewhere is not None:
        verification.verdict["environment"]["workers"] = context.elsewhere.workers()
    return verification


def verify_groups(
    theorem: Experiment, groups: Mapping[str, "xarray.Dataset"], dtype: str
) -> Verification:
    """Judge the content of ``results.nc``; :func:`judge_results` says what it refuses.

    Args:
        theorem: the theorem, without scenarios that the settings do not concern.
        groups: content of ``results.nc``.
        dtype: the precision that was asked for.
    """
    judgement = judge_results(theorem, groups, dtype)
    record = environment(dtype)
    verdict = {
        "schema": SCHEMA,
        "name": theorem.name,
        "holds": decide(theorem, judgement.claims),
        "config": {},
        "claims": judgement.claims,
        "undecided": undecided_claims(theorem, judgement.claims),
        "statistics": {"false_alarm": FALSE_ALARM, "tests": judgement.tests},
        "judged_by": {name: record[name] for name in ("git", "numpy", "python")},
        "arithmetic": arithmetic_of(groups),
        "environment": record,
    }
    if reasons := unmet_reasons(theorem, judgement.claims):
        verdict["nothing_applies"] = reasons
    return Verification(verdict, Results(groups), judgement.diverged, judgement.legs)


def unmet_reasons(theorem: Experiment, claims: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Why no claim of the first scenario that carries applies, and to how many cases.

    Empty if one applies. A side scenario may leave a verdict open that is about nothing else.
    """
    carriers = {claim.id for s in theorem.scenarios[:1] for claim in s.claims if claim.carries}
    mine = [claim for claim in claims if claim["id"] in carriers]
    if any(claim["hypotheses_met"] for claim in mine):
        return {}
    counts = [next(iter(claim["judged"].values()))["left_out"] for claim in mine]
    reasons = sorted({reason for left_out in counts for reason in left_out})
    return {reason: max(left_out.get(reason, 0) for left_out in counts) for reason in reasons}


def undecided_claims(theorem: Experiment, claims: Sequence[Mapping[str, Any]]) -> list[str]:
    """Claims of any scenario that carry and apply, but of which no case could be judged.

    Where theory's value is what anybody would say (trivial cases alone) nothing is open.
    """
    carriers = {claim.id for s in theorem.scenarios for claim in s.claims if claim.carries}
    return [
        claim["id"]
        for claim in claims
        if claim["id"] in carriers
        and claim["hypotheses_met"]
        and not claim["cases"]
        and claim["decided_by"]["excused"]
    ]


def decide(theorem: Experiment, claims: Sequence[Mapping[str, Any]]) -> bool | None:
    """Verdict over the entries of all claims and controls.

    False if any is false, and any claim was judged: that of controls alone is a verdict about
    nothing. None if a claim is undecided, or if none of the first scenario that can carry a verdict
    was judged: side scenarios at settings of their own must not carry one about nothing, either.
    """
    judged = any(c["kind"] != "control" and c["holds"] is not None for c in claims)
    if judged and any(claim["holds"] is False for claim in claims):
        return False
    carriers = {claim.id for claim in theorem.scenarios[0].claims if claim.carries}
    # One is enough: claims that no case meets say nothing, and those left open are in
    # ``undecided``.
    carried = any(claim["holds"] for claim in claims if claim["id"] in carriers)
    return True if carried and not undecided_claims(theorem, claims) else None
