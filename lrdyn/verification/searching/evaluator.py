"""Batches: any points of a scenario, computed by few programs and judged one by one.

A command line asks for a grid. A search asks for points of its own, batch after batch: each has as
many as the program has slots, so that a program is compiled once for each combination of shapes.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lrdyn.verification.judging.judging import applies, left_out_reasons, residuals
from lrdyn.verification.running import programs
from lrdyn.verification.running.evaluate import case_arguments
from lrdyn.verification.running.jobs import (
    Job,
    Planned,
    control_results,
    job_for,
    own_settings,
    split_settings,
)
from lrdyn.verification.running.labels import Labels, Target
from lrdyn.verification.running.work import DEFAULT, Context, run_sweep
from lrdyn.verification.stating.points import listed, product
from lrdyn.verification.stating.statement import Claim, Control, Experiment, Scenario
from lrdyn.verification.storing.results_file import canonical_json

if TYPE_CHECKING:
    import xarray

WIDE, FEW = 64, 4
"""Slots of a program: for a whole batch, and for the few points that remain."""

REPAID = 1000
"""Points of a search from which on optimised programs repay what their compilation takes longer."""

Point = Mapping[str, Any]
"""Value of each flag, and ``seed``."""


def points_of(experiment: Experiment, scenario: Scenario, point: Point) -> list[dict[str, Any]]:
    """The points at which a scenario is run where a command line asks for this one.

    None where the scenario is not concerned; several where it has values of its own.
    """
    swept_names = {flag.name for flag in experiment.flags if flag.swept}
    settings = {n: (v,) if n in swept_names else v for n, v in point.items() if n != "seed"}
    swept, fixed = split_settings(experiment, own_settings(experiment, scenario, settings))
    if not all(map(len, swept.values())):
        return []
    columns = product(seed=[point["seed"]], **swept).columns
    rows = zip(*columns.values(), strict=True)
    return [dict(fixed) | dict(zip(columns, row, strict=True)) for row in rows]


def shape_of(experiment: Experiment, scenario: Scenario, point: Point) -> dict[str, Any]:
    """The settings that decide the program of a point: shapes, and what is not swept."""
    mine = case_arguments(scenario, dict(point))
    deciding = {f.name for f in experiment.flags if f.shapes or not f.swept}
    return {name: v for name, v in mine.items() if name in deciding}


def batches_of(
    experiment: Experiment, scenario: Scenario, points: Sequence[Point]
) -> Iterator[list[Point]]:
    """Points that share a program, at most as many as it has slots."""

    def key(point: Point) -> str:
        return canonical_json(shape_of(experiment, scenario, point))

    for _, alike in groupby(sorted(points, key=key), key=key):
        several = list(alike)
        yield from (several[k : k + WIDE] for k in range(0, len(several), WIDE))


class CompiledJob(NamedTuple):
    """A compiled program and the job that it is of."""

    job: Job
    group: programs.Group
    run: Any


class Evaluator:
    """Computes batches and keeps the programs that it has compiled."""

    def __init__(
        self, experiment: Experiment, context: Context = DEFAULT, *, optimize: bool = False
    ):
        self.experiment, self.context = experiment, context._replace(store=None)
        self.optimize = optimize
        """Whether XLA optimises the programs of whole batches."""
        self.programs: dict[str, CompiledJob] = {}

    def results(
        self,
        scenario: Scenario,
        precision: str,
        points: Sequence[Point],
        controls: tuple[Control, ...] = (),
    ) -> "list[xarray.Dataset]":
        """Arrays of points that share a program, along an axis ``point``.

        Args:
            scenario: the scenario.
            precision: float64 or float32.
            points: at most as many as a program has slots.
            controls: what is broken; the scenario itself without any.

        Returns:
            One dataset, or one for each control.
        """
        job = self._job(scenario, precision, points, controls)
        if not scenario.traced:
            return self._name_results(run_sweep(job.sweep(self.context), self.context), job)
        width = FEW if len(points) <= FEW else WIDE
        # Two widths only: one more program for every number of points would cost more than the
        # points.
        filled = [*points, *[points[-1]] * (width - len(points))]
        job = self._job(scenario, precision, filled, controls)
        dataset = self._compute(self._program(job, scenario, points[0], width), job)
        return self._name_results(dataset.isel(point=slice(len(points))), job)

    def _job(
        self, scenario: Scenario, precision: str, points: Sequence[Point], controls: tuple
    ) -> Job:
        fixed = {f.name: points[0][f.name] for f in self.experiment.flags if not f.swept}
        fixed |= {name: points[0][name] for name in scenario.whole}
        rows = [{n: v for n, v in point.items() if n not in fixed} for point in points]
        name = f"/points/{scenario.id}/{precision}"
        plan = Planned(scenario, precision, name, listed(rows), fixed, controls)
        return job_for(self.experiment, plan, fixed, optimize=self.optimize)

    def _program(self, job: Job, scenario: Scenario, point: Point, width: int) -> CompiledJob:
        shape = {name: point[name] for name in job.shapes}
        words = [job.group, [c.id for c in job.controls], width, shape, job.attributes["fixed"]]
        key = canonical_json(words)
        if key not in self.programs:
            sweep = job.sweep(self.context)
            assert sweep.plan is not None
            with sweep.scope(), ThreadPoolExecutor(1) as pool:
                indices = np.arange(width)
                named = tuple(shape.items())
                group = programs.trace(sweep.function, named, indices, sweep.points, sweep.plan)
                run = programs.compile_in(pool, group).result()
            self.programs[key] = CompiledJob(job, group, run)
        return self.programs[key]

    def _compute(self, program: CompiledJob, job: Job) -> "xarray.Dataset":
        group = program.group
        with job.sweep(self.context).scope():
            columns = programs.columns_of(job.points, dict(group.shape))
            group = group._replace(columns=columns)
            labels = Labels(job.points, job.dims, [group.outputs])
            target = Target(labels, self.context.memory, None)
            for part in group.parts:
                outputs = programs.start(group, program.run, part)
                target.place(part, programs.collect(group, part, outputs))
        return target.dataset()

    @staticmethod
    def _name_results(dataset: "xarray.Dataset", job: Job) -> "list[xarray.Dataset]":
        if not job.controls:
            return [dataset.assign_attrs(job.attributes)]
        return [control_results(dataset, c).assign_attrs(job.attributes) for c in job.controls]


Columns = Mapping[str, np.ndarray]
"""Columns of the judgements of a batch, each an array of claims by points."""


def judge_points(
    scenario: Scenario, claims: Sequence[Claim], dataset: "xarray.Dataset", precision: str
) -> dict[str, np.ndarray]:
    """Judge claims, each about single cases, at every point of a batch.

    Returns:
        ``residual``, ``tolerance``, ``condition``, ``alternative``; ``reason``, why a case is left
        out, empty where it is judged; ``applies``, whether it meets all hypotheses.
    """
    legs = [residuals(claim, scenario, dataset, precision, power=True) for claim in claims]
    numbers = ("residual", "tolerance", "condition", "alternative")
    columns = {name: np.stack([leg[name].values for leg in legs]) for name in numbers}
    reasons = np.stack([left_out_reasons(leg) for leg in legs]).astype(str)
    return columns | {"reason": reasons, "applies": np.stack([applies(leg) for leg in legs])}
