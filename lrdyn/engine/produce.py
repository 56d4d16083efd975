"""Producing: the sweeps of an experiment and of its controls, as labelled arrays."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrdyn.data import lookup
from lrdyn.engine.elsewhere import Elsewhere, JobRecipe, Where
from lrdyn.engine.groups import controls_of, groups_of, precision_of_controls, precisions
from lrdyn.engine.jobs import Job, Trainings, claims_job, controls_job, own_settings, split_settings
from lrdyn.engine.points import product
from lrdyn.engine.programs import refuse_without_jit
from lrdyn.engine.progress import Progress, Silent
from lrdyn.engine.sources import data_digest
from lrdyn.engine.statement import Control, Experiment, Scenario

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
    memory: int = 2**30,
    store: Path | None = None,
    progress: Progress | None = None,
    trainings: Trainings | None = None,
    elsewhere: Elsewhere | None = None,
) -> dict[str, "xarray.Dataset"]:
    """Run every scenario and its controls: the content of ``results.nc``, group -> dataset.

    Args:
        experiment: the experiment.
        settings: a value for each flag: a tuple for swept flags, one value for the others.
        dtype: ``float64`` or ``float32``.
        seeds: seeds to sweep, or those of each scenario.
        perturb: also sweep the distance from each hypothesis.
        thorough: run the controls in both precisions, and let XLA optimise the programs.
        memory: see :func:`lrdyn.sweep`, as for the store.
        store: a folder that keeps finished parts; checkpoints of trainings lie beside it.
        progress: told of every finished part.
        trainings: how a study trains.
        elsewhere: other processes, which compute the parts.
    """
    validate(experiment, settings)
    refuse_without_jit()
    jobs = list(jobs_of(experiment, settings, dtype, seeds, perturb, thorough))
    progress = Silent() if progress is None else progress
    progress.expect(sum(job.points.size for job in jobs))
    told = _Announced(progress)
    trainings = trainings or Trainings()
    if elsewhere is not None:
        data = data_digest(experiment.data(settings))
        recipe = JobRecipe(
            experiment, settings, dtype, perturb, thorough, 0, trainings, data, lookup.first()
        )
        wheres = [elsewhere.of(recipe._replace(number=n), told) for n in range(len(jobs))]
        each = zip(jobs, wheres, strict=True)
        return _run_together([_call(job, trainings, memory, store, told, w) for job, w in each])
    found = _run_side_by_side(
        [_call(job, trainings, memory, store, told) for job in jobs if not job.trains], told
    )
    for job in jobs:  # one by one: a training takes all cores
        if job.trains:
            found |= job.train(trainings, store, told)
    return found


def _call(
    job: Job,
    trainings: Trainings,
    memory: int,
    store: Path | None,
    progress: Progress,
    where: Where | None = None,
) -> Callable[[], dict[str, "xarray.Dataset"]]:
    """The call that carries a job out."""
    if job.trains:
        return partial(job.train, trainings, store, progress, where)
    return partial(job.run, memory, store, progress, where)


def concerned(experiment: Experiment, settings: Mapping[str, Any]) -> Experiment:
    """Leave out the scenarios that these settings do not concern, with all their claims.

    Those stay whose ``narrow`` leaves a value for every swept flag, and always the first: it
    carries the verdict.
    """
    first, *rest = experiment.scenarios

    def asked_for(scenario: Scenario) -> bool:
        swept, _ = split_settings(experiment, own_settings(experiment, scenario, settings))
        return all(map(len, swept.values()))

    return replace(experiment, scenarios=(first, *filter(asked_for, rest)))


def validate(experiment: Experiment, settings: Mapping[str, Any]) -> None:
    """Check every combination of the settings before anything is computed."""
    for scenario in concerned(experiment, settings).scenarios:
        for point in _grid(experiment, own_settings(experiment, scenario, settings)):
            experiment.check(point)


def _grid(experiment: Experiment, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    swept, fixed = split_settings(experiment, settings)
    if not swept:
        yield fixed
        return
    columns = product(**swept).columns
    for values in zip(*columns.values(), strict=True):
        yield fixed | dict(zip(columns, values, strict=True))


# All jobs of an experiment -------------------------------------------------------------------


CONTROL_SEEDS = 2
"""Controls test the instrument: they run with the first seeds, whatever the flags are."""


def _seeds_of_controls(scenario: Scenario, count: int) -> range:
    """The first seeds, as many as a claim over seeds needs."""
    return range(max(min(count, CONTROL_SEEDS), *(claim.seeds for claim in scenario.claims)))


def jobs_of(
    experiment: Experiment,
    settings: Mapping[str, Any],
    dtype: str,
    seeds: Sequence[int] | Callable[[Scenario], Sequence[int]],
    perturb: bool,
    thorough: bool,
) -> Iterator[Job]:
    """The jobs of the scenarios that these settings concern, always in the same order."""
    experiment = concerned(experiment, settings)
    for scenario in experiment.scenarios:
        mine = seeds(scenario) if callable(seeds) else seeds
        fixed = _seeds_of_controls(scenario, len(mine)) if scenario.controls else ()
        for p, group in groups_of(experiment, scenario, dtype).items():
            yield claims_job(experiment, scenario, settings, mine, group, p, thorough)
        for p in precisions(experiment, scenario, dtype):
            if thorough or p == precision_of_controls(experiment, scenario, dtype):
                for controls in with_equal_settings(run_for(scenario, p)):
                    yield controls_job(experiment, scenario, controls, fixed, p, given=settings)
            for control in controls_of(scenario, p):
                if perturb and control.amounts:
                    amounts = (0.0, *control.amounts)
                    yield controls_job(
                        experiment, scenario, (control,), fixed, p, amounts, settings
                    )


def run_for(scenario: Scenario, precision: str) -> list[Control]:
    """The controls that need runs of their own."""
    return [c for c in controls_of(scenario, precision) if not c.swap]


def with_equal_settings(controls: Sequence[Control]) -> list[tuple[Control, ...]]:
    """Controls that one program can run: their settings are the same."""
    groups: dict[str, list[Control]] = {}
    for control in controls:
        groups.setdefault(repr(sorted(control.at.items())), []).append(control)
    return [tuple(controls) for controls in groups.values()]


class _Stopped(Exception):
    """Another sweep has failed."""


class _Announced:
    """Progress of sweeps whose points were announced together, before the first began."""

    stopped = False

    def __init__(self, progress: Progress):
        self.advance, self.note, self.expect_bytes, self.during = (
            progress.advance, progress.note, progress.expect_bytes, progress.during
        )  # fmt: skip

    def expect(self, points: int) -> None:
        if self.stopped:
            raise _Stopped


def _run_side_by_side(
    calls: Sequence[Callable[[], dict[str, "xarray.Dataset"]]], told: _Announced
) -> dict[str, "xarray.Dataset"]:
    # Most of the time is tracing and compiling, which leave the devices idle.
    pool = ThreadPoolExecutor(max_workers=os.cpu_count())
    futures = [pool.submit(call) for call in calls]
    try:
        for future in as_completed(futures):
            future.result()
        return {group: found for future in futures for group, found in future.result().items()}
    except BaseException:
        # Bad input leaves no folder. One that traces makes none from here on; one that is making
        # its own has done so before the folders are removed, and whatever computes is not awaited.
        told.stopped = True
        pool.shutdown(wait=False, cancel_futures=True)
        wait([future for future in futures if not future.cancelled()], timeout=1.0)
        raise
    finally:
        pool.shutdown(wait=False)


TOGETHER = 32
"""Jobs that are carried out elsewhere at a time: here each of them waits, most of the time."""


def _run_together(
    calls: Sequence[Callable[[], dict[str, "xarray.Dataset"]]],
) -> dict[str, "xarray.Dataset"]:
    """The same elsewhere, where a job that raises stops no other one."""
    with ThreadPoolExecutor(max_workers=TOGETHER) as pool:
        futures = [pool.submit(call) for call in calls]
    return {group: found for future in futures for group, found in future.result().items()}
