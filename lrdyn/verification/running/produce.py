"""Producing: the sweeps of an experiment and of its controls, as labelled arrays."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import replace
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import jax

from lrdyn.system.progress import Progress
from lrdyn.verification.judging.outcomes import (
    controls_of,
    groups_of,
    precision_of_controls,
    precisions,
)
from lrdyn.verification.machine.device_defaults import memory_of_each
from lrdyn.verification.running.jobs import (
    Job,
    Planned,
    job_for,
    own_settings,
    plan_claims,
    plan_controls,
    split_settings,
)
from lrdyn.verification.running.programs import refuse_without_jit
from lrdyn.verification.running.work import DEFAULT, Context, Recipe, Sweep
from lrdyn.verification.stating.points import product
from lrdyn.verification.stating.sources import data_digest
from lrdyn.verification.stating.statement import Control, Experiment, Scenario

if TYPE_CHECKING:
    import xarray


def produce(
    experiment: Experiment,
    settings: Mapping[str, Any],
    *,
    dtype: str = "float64",
    seeds: Sequence[int] | Callable[[Scenario], Sequence[int]] = (0, 1),
    perturb: bool = False,
    thorough: bool = True,
    context: Context = DEFAULT,
) -> dict[str, "xarray.Dataset"]:
    """Run every scenario and its controls: the content of ``results.nc``, group -> dataset.

    Args:
        experiment: the experiment.
        settings: a value for each flag: a tuple for swept flags, one value for the others.
        dtype: ``float64`` or ``float32``.
        seeds: seeds to sweep, or those of each scenario.
        perturb: also sweep the distance from each hypothesis.
        thorough: run the controls in both precisions, and let XLA optimise the programs.
        context: where and how all that is carried out.
    """
    refuse_without_jit()
    mine = select_scenarios(experiment, settings)
    # All of them before any runs: their points are announced together, for a time left that means
    # something.
    jobs = list(jobs_of(mine, settings, dtype, seeds, perturb, thorough))
    context.progress.expect(sum(job.points.size for job in jobs))
    progress = _Announced(context.progress)
    context = context._replace(progress=progress)
    if context.elsewhere is not None:
        recipes = recipes_of(experiment, settings, dtype, perturb, thorough, context)
        # These threads mostly wait; a job that raises stops no other.
        with ThreadPoolExecutor(max_workers=TOGETHER) as pool:
            futures = [pool.submit(job.run, context, next(recipes)) for job in jobs]
        return {group: dataset for future in futures for group, dataset in future.result().items()}
    groups = _run_side_by_side([job for job in jobs if not job.scenario.trains], context, progress)
    for job in jobs:  # one by one: a training takes all cores
        if job.scenario.trains:
            groups |= job.run(context)
    return groups


TOGETHER = 32
"""Number of jobs that a cluster works on at a time."""


def recipes_of(
    experiment: Experiment,
    settings: Mapping[str, Any],
    dtype: str,
    perturb: bool,
    thorough: bool,
    context: Context,
) -> Iterator[Recipe]:
    """Recipes from which a worker makes the jobs of an experiment again, in their order."""
    how = {
        "settings": settings,
        "dtype": dtype,
        "perturb": perturb,
        "thorough": thorough,
        "precision": context.precision,
        "every": context.every,
        "data": data_digest(experiment.data(settings)),
    }
    for number in count():
        yield Recipe(experiment, f"{__name__}:job_of", how | {"number": number})


def job_of(
    experiment: Experiment,
    *,
    number: int,
    settings: Mapping[str, Any],
    dtype: str,
    perturb: bool,
    thorough: bool,
    precision: str,
    every: int | None,
    data: str,
    context: Context,
) -> Sweep:
    """Make the sweep of a job of an experiment, for a worker; :func:`produce` explains the rest.

    Args:
        experiment: the experiment.
        number: of the job among those of the experiment.
        settings: as of :func:`produce`.
        dtype: as of :func:`produce`.
        perturb: as of :func:`produce`.
        thorough: as of :func:`produce`.
        precision: that of the context.
        every: that of the context.
        data: SHA-256 of the data files.
        context: of the worker.

    Raises:
        ValueError: the data files here are others.
    """
    mine = data_digest(experiment.data(settings))
    if mine != data:
        raise ValueError(f"data: got files with SHA-256 {mine[:12]}, wanted {data[:12]}")
    # The function of a job is the same for all seeds, and a part has its own.
    jobs = jobs_of(select_scenarios(experiment, settings), settings, dtype, (0,), perturb, thorough)
    job = next(islice(jobs, number, None))
    return job.sweep(context._replace(precision=precision, every=every), worker=True)


def select_scenarios(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """Leave out the scenarios that these settings do not concern, with all their claims.

    Those stay whose ``narrow`` leaves a value for every swept flag, and always the first: it
    carries the verdict.
    """
    first, *rest = experiment.scenarios
    mine = [first]
    for scenario in rest:
        swept, _ = split_settings(experiment, own_settings(experiment, scenario, settings))
        # An empty tuple leaves a scenario without a single point.
        if all(map(len, swept.values())):
            mine.append(scenario)
    return replace(experiment, scenarios=tuple(mine))


def validate(experiment: Experiment, settings: Mapping[str, Any]) -> None:
    """Check every combination of the settings of an experiment before anything is computed."""
    for scenario in experiment.scenarios:
        own = own_settings(experiment, scenario, settings)
        swept, fixed = split_settings(experiment, own)
        if not swept:
            experiment.check(fixed)
            continue
        columns = product(**swept).columns
        for values in zip(*columns.values(), strict=True):
            experiment.check(fixed | dict(zip(columns, values, strict=True)))


# All jobs of an experiment -------------------------------------------------------------------


CONTROL_SEEDS = 2
"""Controls test the instrument: they run with the first seeds, whatever the flags are."""


def jobs_of(
    experiment: Experiment,
    settings: Mapping[str, Any],
    dtype: str,
    seeds: Sequence[int] | Callable[[Scenario], Sequence[int]],
    perturb: bool,
    thorough: bool,
) -> Iterator[Job]:
    """The jobs of an experiment at its settings, always in the same order."""
    for plan in plan_jobs(experiment, settings, dtype, seeds, perturb, thorough):
        yield job_for(experiment, plan, settings, thorough)


def plan_jobs(
    experiment: Experiment,
    settings: Mapping[str, Any],
    dtype: str,
    seeds: Sequence[int] | Callable[[Scenario], Sequence[int]],
    perturb: bool,
    thorough: bool,
) -> Iterator[Planned]:
    """Describe each job of a run, without tracing or reading anything.

    Args:
        experiment: the experiment.
        settings: a value for each flag.
        dtype: ``float64`` or ``float32``, the precision that was asked for.
        seeds: seeds to sweep, or those of each scenario.
        perturb: whether the distance from each hypothesis is swept, too.
        thorough: whether controls run in both precisions.
    """
    for scenario in experiment.scenarios:
        mine = seeds(scenario) if callable(seeds) else seeds
        # The first seeds, and as many as a claim over seeds needs.
        least = max((claim.seeds for claim in scenario.claims), default=0)
        fixed = range(max(CONTROL_SEEDS, least)) if scenario.controls else ()
        for p, group in groups_of(experiment, scenario, dtype).items():
            yield plan_claims(
                experiment, scenario, settings, mine, group, p, keeps_cases=p == dtype
            )
        for p in precisions(experiment, scenario, dtype):
            if thorough or p == precision_of_controls(experiment, scenario, dtype):
                # A swap needs no run of its own.
                run = [control for control in controls_of(scenario, p) if not control.swap]
                for controls in group_by_settings(run):
                    yield plan_controls(experiment, scenario, controls, fixed, p, given=settings)
            for control in controls_of(scenario, p):
                if perturb and control.amounts:
                    # Amount 0 is no move: the sweep begins where the claim must still hold.
                    amounts = (0.0, *control.amounts)
                    yield plan_controls(
                        experiment, scenario, (control,), fixed, p, amounts, settings
                    )


def group_by_settings(controls: Sequence[Control]) -> list[tuple[Control, ...]]:
    """Controls that one program can run: their settings are the same."""
    groups: dict[str, list[Control]] = {}
    for control in controls:
        # By their text: values of settings may be lists, which cannot be keys.
        groups.setdefault(repr(sorted(control.at.items())), []).append(control)
    return [tuple(controls) for controls in groups.values()]


class _Stopped(Exception):
    """Raised in a sweep when another one has failed."""


class _Announced:
    """Progress of sweeps whose points were announced together, before the first began."""

    stopped = False

    def __init__(self, progress: Progress):
        self.advance, self.note = progress.advance, progress.note
        self.expect_bytes, self.during = progress.expect_bytes, progress.during

    def expect(self, points: int) -> None:
        if self.stopped:
            raise _Stopped


def _run_side_by_side(
    jobs: Sequence[Job], context: Context, progress: _Announced
) -> dict[str, "xarray.Dataset"]:
    # Most of the time is tracing and compiling, which leave the devices idle.
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    running = min(len(jobs), os.cpu_count() or 1)
    most = memory_of_each(jax.local_devices()[0], running, context.memory)
    context = context._replace(memory=most)
    futures = [pool.submit(job.run, context) for job in jobs]
    try:
        for future in as_completed(futures):
            future.result()
        return {group: dataset for future in futures for group, dataset in future.result().items()}
    except BaseException:
        # Bad input leaves no folder. One that traces makes none from here on; one that is making
        # its own has done so before the folders are removed, and whatever computes is not awaited.
        progress.stopped = True
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in futures if not future.cancelled()], timeout=1.0)
        raise
    finally:
        pool.shutdown(wait=False)
