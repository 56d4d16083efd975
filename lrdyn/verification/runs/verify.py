"""Verifying a theorem: produce its arrays, then judge them."""

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrdyn.core import linalg, show
from lrdyn.system import whole_files
from lrdyn.system.messages import refuse_truth
from lrdyn.verification.judging import verdict_text
from lrdyn.verification.judging.entries import Entries
from lrdyn.verification.judging.judging import Legs, arithmetic_of, judge_results, svds_of
from lrdyn.verification.judging.outcomes import MissingArray
from lrdyn.verification.judging.rounding import (
    BLOCKS,
    PRECISIONS,
    Measured,
    Meter,
    worst_measurement,
)
from lrdyn.verification.running import arithmetic_probe
from lrdyn.verification.running.configuration import Run
from lrdyn.verification.running.produce import produce
from lrdyn.verification.running.work import Context
from lrdyn.verification.runs.repeating import OWN, repeating, repeating_all
from lrdyn.verification.stating.claims import FALSE_ALARM, Decision
from lrdyn.verification.stating.flags import flag_text
from lrdyn.verification.stating.mistakes import BadInput, location_of
from lrdyn.verification.stating.statement import Experiment
from lrdyn.verification.storing import files, results_file
from lrdyn.verification.storing.results_file import SCHEMA, environment

if TYPE_CHECKING:
    import xarray


class DoesNotHold(AssertionError):
    """A verdict that is FALSE or undecided: raised by :meth:`Verification.raise_unless_holds`.

    It is an ``AssertionError``, so that a test fails with it. The first line of its message is the
    verdict; then comes a line for each claim that is false or open, and each control that was not
    seen to fail.
    """


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Verification:
    """The verdict on a theorem and the arrays behind it: what :func:`lrdyn.verify` returns.

    It shows itself as the report begins: what is claimed, whether it holds, in how many cases, how
    near the nearest came, how many controls were seen to fail. By itself it is neither true nor
    false: ``bool`` of it raises. In a test call :meth:`raise_unless_holds`, or write
    :func:`lrdyn.testing.assert_holds`.
    """

    verdict: dict[str, Any]
    """Content of ``verdict.json``."""
    results: Mapping[str, "xarray.Dataset"]
    """Content of ``results.nc``: ``"/"`` is the first scenario in the dtype asked for."""
    diverged: list[str]
    """One line for each configuration whose step size diverged."""
    legs: Mapping[str, Legs]
    """Claim or control -> precision -> residual and tolerance of every case."""
    summary: str = ""
    """What is claimed, in words: the line of the theorem."""
    command: str = OWN
    """What verifies the theorem in a terminal, without its settings."""

    @property
    def outcome(self) -> Decision:
        """What the verdict says: HOLDS, FALSE or UNDECIDED."""
        return Decision.of(self.verdict["holds"])

    @property
    def holds(self) -> bool:
        """Whether the verdict is HOLDS; one that is undecided does not hold."""
        return self.outcome is Decision.HOLDS

    __bool__ = refuse_truth(".holds, or .outcome where UNDECIDED is not to count as FALSE")

    @property
    def claims(self) -> Entries:
        """Id -> claim; of another id ``KeyError`` names one that is near."""
        return self._entries("claims", lambda kind: kind not in ("control", "finding"))

    @property
    def controls(self) -> Entries:
        """Id -> control, which holds where its claim was seen to fail."""
        return self._entries("controls", lambda kind: kind == "control")

    @property
    def findings(self) -> Entries:
        """Id -> finding, a measured number that decides nothing."""
        return self._entries("findings", lambda kind: kind == "finding")

    def _entries(self, name: str, wanted: Callable[[str], bool]) -> Entries:
        return Entries(name, [e for e in self.verdict["claims"] if wanted(e["kind"])])

    def raise_unless_holds(self) -> None:
        """Raise unless every claim that applies holds and every control was seen to fail.

        Raises:
            DoesNotHold: the verdict is FALSE or UNDECIDED. The message has for each claim and
                control that is why: residual, tolerance, why it is undecided and how many steps
                would do, and the command line that repeats its worst case.
        """
        if not self.holds:
            raise DoesNotHold("\n".join(self._why_not()))

    def _why_not(self) -> Iterator[str]:
        """The verdict, and each entry that it rests on."""
        yield verdict_text.sentence(self.verdict)
        undecided = self.verdict["undecided"]
        for entry in (*self.claims.values(), *self.controls.values()):
            if entry.outcome is not Decision.FALSE and entry.id not in undecided:
                continue
            yield f"{entry!r}"
            if entry.worst_case:
                case = ", ".join(f"{n}={flag_text(v)}" for n, v in entry.worst_case.items())
                yield f"  worst case: {case}"
            # A control runs at settings of its own: the whole run repeats it.
            worst = {} if entry.kind == "control" else entry.worst_case
            if again := repeating(self.command, self.verdict["config"], worst):
                yield f"  again: {again}"
        if self.verdict["config"]:
            yield f"the whole run: {repeating_all(self.command, self.verdict['config'])}"

    @property
    def notes(self) -> list[str]:
        """Lines that are said beside the claims."""
        return self.diverged

    def __repr__(self) -> str:
        """What the report and the command say first."""
        return verdict_text.first_screen(self.verdict, self.summary, self.notes)

    def _repr_html_(self) -> str:
        return verdict_text.html(self.verdict, self.summary, self.notes)


class Results(dict[str, "xarray.Dataset"]):
    """Content of ``results.nc``, group -> dataset, which shows itself as a table."""

    def __repr__(self) -> str:
        """One line for each group."""
        return "\n".join(show.aligned(show.group_rows(self)))

    def _repr_html_(self) -> str:
        return show.table(show.group_rows(self))


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
    return run if dtype == run.dtype else run.in_precision(dtype), why


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
    networks = any(scenario.trains or not scenario.traced for scenario in run.experiment.scenarios)
    # No theorem has a convolution in a traced program; what is called in Python may have.
    arithmetic_probe.check_products(run.precision, meter, convolutions=networks)
    # Beside the run, which depends on none of these numbers and leaves a core idle at times.
    with ThreadPoolExecutor(max_workers=1) as beside:
        measuring = beside.submit(_measure_arithmetic, run, meter)
        if context.elsewhere is not None:  # workers are asked before they have anything else to do
            measuring.result()
        groups = produce(
            run.experiment,
            run.settings,
            dtype=run.dtype,
            seeds=run.seeds_of,
            perturb=run.perturb,
            thorough=run.preset == "paper",
            context=context._replace(precision=run.precision),
        )
    measured = measuring.result()
    # A CPU's own SVD is LAPACK's, by which the tolerances were tried.
    if context.elsewhere is not None or linalg.has_accelerator():
        for precision, shapes in svds_on_trial(groups).items():
            found = meter(precision, run.precision, on_trial=shapes)
            worst = dict(worst_measurement(precision, found))
            if not any(scenario.blocks for scenario in run.experiment.scenarios):
                del worst[BLOCKS]  # on which no claim rests
            measured[precision] = worst
    # With the results, since whoever judges them again has another device.
    groups["/"] = groups["/"].assign_attrs(arithmetic=results_file.canonical_json(measured))
    return groups


def svds_on_trial(groups: Mapping[str, "xarray.Dataset"]) -> dict[str, list[tuple[int, int]]]:
    """Precision -> rows and columns of what algorithms on trial decompose, in any scenario."""
    every = {svd for dataset in groups.values() for svd in svds_of(dataset)}
    return {
        precision: shapes
        for precision in PRECISIONS
        if (shapes := sorted((m, n) for name, m, n in every if name == precision))
    }


def _measure_arithmetic(run: Run, meter: Meter) -> dict[str, Measured]:
    """The worst arithmetic of the devices that compute, in each precision."""
    return {p: worst_measurement(p, meter(p, run.precision)) for p in PRECISIONS}


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
    verification = dataclasses.replace(verification, results=Results(groups))
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
    return Verification(
        verdict, Results(groups), judgement.diverged, judgement.legs, theorem.summary
    )


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

    Where theory's value is what anybody would say (trivial cases alone) nothing is open; nor is it
    where the precision that was asked for decides the claim at no settings.
    """
    carriers = {c.id: c for s in theorem.scenarios for c in s.claims if c.carries}
    return [
        claim["id"]
        for claim in claims
        if claim["id"] in carriers
        and carriers[claim["id"]].precision in ("", next(iter(claim["judged"])))
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
