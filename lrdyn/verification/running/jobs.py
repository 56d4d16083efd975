"""Jobs: the sweep of a scenario, of controls, or trainings, in one precision."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from lrdyn.verification.judging import rounding
from lrdyn.verification.judging.outcomes import control_group
from lrdyn.verification.machine.compiler_options import known
from lrdyn.verification.machine.device_defaults import usual_lanes
from lrdyn.verification.running.evaluate import (
    DATA_DIR,
    case_arguments,
    evaluate,
    evaluate_controls,
    refuse_unknown,
)
from lrdyn.verification.running.labels import Mislabelled
from lrdyn.verification.running.programs import SweepPlan
from lrdyn.verification.running.shared import Shared
from lrdyn.verification.running.work import DEFAULT, Context, Recipe, Sweep, run_sweep
from lrdyn.verification.stating.mistakes import BadInput, location_of
from lrdyn.verification.stating.points import Points, product
from lrdyn.verification.stating.sources import (
    code_digest,
    data_digest,
    functions_stating,
    library_digest,
    source_digest,
)
from lrdyn.verification.stating.statement import Control, Experiment, Scenario
from lrdyn.verification.storing import cases
from lrdyn.verification.storing.checkpoints import FOLDER, LOG, Checkpoints, log_of

if TYPE_CHECKING:
    import xarray

LANES = {True: 16, False: 64}
"""Points in a batch on a CPU, where XLA optimises a program and where it does not: a batch that
takes all points of a small sweep needs no loop, which takes as long to compile as what it repeats.
"""


def own_settings(
    experiment: Experiment, scenario: Scenario, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a scenario: a flag that its case does not take keeps one value only."""
    refuse_unknown(scenario, settings)
    own, mine = scenario.narrow(dict(settings)), case_arguments(scenario, settings)
    return {
        flag.name: own[flag.name][:1] if flag.swept and flag.name not in mine else own[flag.name]
        for flag in experiment.flags
    }


def split_settings(
    experiment: Experiment, settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings that are swept, and those that are fixed."""
    swept = {flag.name: settings[flag.name] for flag in experiment.flags if flag.swept}
    fixed = {flag.name: settings[flag.name] for flag in experiment.flags if not flag.swept}
    return swept, fixed


class Job(NamedTuple):
    """A scenario, or controls of one, at their points in one precision."""

    group: str
    """Where ``results.nc`` keeps it; of controls, which have several, the name of the parts."""
    precision: str
    function: Callable[..., Mapping[str, Any]]
    points: Points
    dims: Mapping[str, tuple[str, ...]]
    shapes: tuple[str, ...]
    compiler_options: dict[str, Any] | None
    lanes: int
    attributes: Mapping[str, Any]
    """What a judge needs beside the arrays."""
    scenario: Scenario
    controls: tuple[Control, ...] = ()
    digest: str = ""
    """Digest of sources, data and fixed settings: part of the key of what is not traced."""
    identity: str = ""
    """Names the function in the keys of programs that are kept on disk."""
    data: Callable[[], Sequence[Path]] = tuple
    """Names the files that cases are made of, which no code shows: they name programs, too."""
    keeps_cases: bool = False
    """Whether the cases are returned beside their results."""

    def run(
        self, context: Context = DEFAULT, recipe: Recipe | None = None
    ) -> dict[str, "xarray.Dataset"]:
        """Run the job: group -> results; its parts lie below the store of the context."""
        store = context.store
        if store:
            # A digest, since the ids of many controls can be longer than a file name may be.
            name = "-".join([self.group.strip("/"), *(c.id for c in self.controls)])
            store = store / hashlib.sha256(name.encode()).hexdigest()[:12]
        try:
            dataset = run_sweep(self.sweep(context), context._replace(store=store), recipe)
        except Mislabelled as error:
            run = self.scenario.train or self.scenario.measure
            # The label says which side returned the array, and so whose function is to be looked
            # at.
            theirs = self.scenario.predict if "_predicted'" in str(error) else run
            raise BadInput(f"{location_of(theirs)}: {error}") from error
        return self.name_groups(dataset)

    def sweep(self, context: Context, *, worker: bool = False) -> Sweep:
        """The sweep that the job stands for, in this process or, part by part, in a worker."""
        trains = self.scenario.trains
        scope = partial(rounding.scope, self.precision, context.precision)
        if self.scenario.traced and not trains:
            elsewhere = worker or context.elsewhere is not None  # a worker has one device
            # The client must cut parts as workers compute them.
            devices = jax.local_devices()[: 1 if elsewhere else None]
            plan = SweepPlan(
                batched=False,
                lanes=context.lanes or usual_lanes(devices[0], self.lanes),
                memory=context.memory,
                devices=devices,
                compiler_options=dict(self.compiler_options or {}),
                shared=Shared(None),
                programs=context.programs,
                identity=f"{self.identity}{data_digest(self.data())}" if context.programs else "",
            )
            return Sweep(self.function, self.points, self.dims, plan, self.shapes, scope=scope)
        if not trains:
            return Sweep(self.function, self.points, self.dims, digest=self.digest, scope=scope)
        return Sweep(
            self.function,
            self.points,
            self.dims,
            # Called in Python, a training may reach any code of the library: an edit there begins
            # it anew.
            digest=f"{self.digest}{library_digest()}{context.precision}",
            beside=partial(self._keeper, context, worker),
            scope=scope,
        )

    def _keeper(
        self, context: Context, worker: bool, point: Mapping[str, Any], key: str
    ) -> dict[str, Any]:
        """The keeper of the trainings of a point, with checkpoints beside the store of all jobs."""
        if context.store is None:
            return {}
        # Only what differs within the sweep tells a reader which training a line is about.
        several = {n: v for n, v in point.items() if len(set(self.points.axes[n].tolist())) > 1}
        words = [self.scenario.id, *(c.id for c in self.controls)]
        words += [f"{name}={v}" for name, v in {**several, "seed": point["seed"]}.items()]
        keeper = Checkpoints(
            context.store.with_name(FOLDER),
            every=context.every,
            label=" ".join(words),
            progress=context.progress,
            # Several workers write at a time.
            log=context.store.with_name(log_of(key) if worker else LOG),
        )
        return {"keeper": keeper}

    def name_groups(self, dataset: "xarray.Dataset") -> dict[str, "xarray.Dataset"]:
        """Give results the names of their groups."""
        if not self.controls and self.keeps_cases:
            dataset, beside = cases.split(dataset, self.scenario)
            named = {self.group: dataset.assign_attrs(self.attributes)}
            return named | {cases.group_of(self.group): beside}
        if not self.controls:
            return {self.group: dataset.assign_attrs(self.attributes)}
        named = {}
        perturbs = "amount" in self.points.axes
        settings = [name for name in self.points.axes if name not in ("seed", "amount")]
        fixed = json.loads(self.attributes["fixed"])
        for control in self.controls:
            results = control_results(dataset, control)
            # The settings of controls have one value each, which needs no axis.
            at = {name: results[name].values.tolist()[0] for name in settings}
            group = control_group(control, self.precision, perturb=perturbs)
            named[group] = results.squeeze(settings, drop=True).assign_attrs(
                title=f"{control.claim}: {control.statement}",
                claim=control.claim,
                amount=control.amount,
                amount_label=control.amount_label or "amount",
                fixed=json.dumps(fixed | at),
            )
        return named


def control_results(results: "xarray.Dataset", control: Control) -> "xarray.Dataset":
    """Results of one control, its arrays named as in its scenario."""
    prefixes = (f"{control.id}.", f"length_{control.id}.")
    # Results of all controls lie in one dataset, each under the id of its control and a dot.
    mine = results[[name for name in results if str(name).startswith(prefixes)]]
    names = [n for n in (*mine.variables, *mine.dims) if str(n).startswith(prefixes)]
    return mine.rename({name: str(name).replace(f"{control.id}.", "", 1) for name in names})


class Planned(NamedTuple):
    """Description of a job, by which a judge, which runs nothing, knows what results must hold."""

    scenario: Scenario
    precision: str
    group: str
    """Group of the results; controls, which have several groups, share one name."""
    points: Points
    fixed: Mapping[str, Any]
    """Flags that are not swept."""
    controls: tuple[Control, ...] = ()
    keeps_cases: bool = False
    """Whether the cases of the scenario are saved beside its results."""

    @property
    def perturbs(self) -> bool:
        """Whether the job sweeps the distance from a hypothesis."""
        return "amount" in self.points.axes

    @property
    def words(self) -> dict[str, Any]:
        """The fixed flags whose values fit into an attribute of the results."""
        return {name: v for name, v in self.fixed.items() if isinstance(v, int | float | str)}


def plan_claims(
    experiment: Experiment,
    scenario: Scenario,
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    group: str,
    precision: str,
    *,
    keeps_cases: bool = False,
) -> Planned:
    """A scenario over its settings."""
    swept, fixed = split_settings(experiment, own_settings(experiment, scenario, settings))
    fixed |= {name: swept.pop(name) for name in scenario.whole}
    points = product(seed=seeds, **swept)
    return Planned(scenario, precision, group, points, fixed, keeps_cases=keeps_cases)


def plan_controls(
    experiment: Experiment,
    scenario: Scenario,
    controls: tuple[Control, ...],
    seeds: Sequence[int],
    precision: str,
    amounts: tuple[float, ...] | None = None,
    given: Mapping[str, Any] | None = None,
) -> Planned:
    """The job of controls that share their settings; with amounts, of their whole sweep.

    Of the ``given`` settings they take those that say what cases are made of.
    """
    point = {f.name: f.quick[0] if f.quick else None for f in experiment.flags}
    # A control of a study must fail on the user's data, which may be all that there are.
    point |= {f.name: given[f.name] for f in experiment.flags if f.source and given}
    swept, fixed = split_settings(experiment, {**point, **scenario.at, **controls[0].at})
    axes = {"amount": amounts} if amounts else {}
    axes |= {name: (value,) for name, value in swept.items()}
    name = f"/{'perturb' if amounts else 'controls'}/{scenario.id}/{precision}"
    return Planned(scenario, precision, name, product(seed=seeds, **axes), fixed, controls)


def job_for(
    experiment: Experiment, plan: Planned, settings: Mapping[str, Any], optimize: bool
) -> Job:
    """The job that carries a plan out; the settings are those of the whole run."""
    scenario, fixed = plan.scenario, plan.fixed
    optimize = optimize and not plan.controls
    given = {**fixed, DATA_DIR: settings.get(DATA_DIR, "")}
    dims = scenario.axes
    for name, axes in scenario.axes.items():
        dims |= {f"{name}_predicted": axes, f"{name}_measured": axes}
    if plan.controls:
        function = evaluate_controls(scenario, given, plan.controls)
        # Each control has axes of its own, since it can change the length of one.
        dims = {
            f"{c.id}.{name}": tuple(f"{c.id}.{axis}" for axis in axes)
            for c in plan.controls
            for name, axes in dims.items()
        }
        words: list[Any] = [control.id for control in plan.controls]
    else:
        # Decided by the settings alone: the program is the same for all seeds.
        count = plan.points.size // len(np.unique(plan.points.axes["seed"]))
        room = cases.MOST // count if plan.keeps_cases else None
        function = evaluate(scenario, given, room)
        words = [] if room is None else [room]
    conditions = {c.id: c.condition_name for c in scenario.claims if c.condition}
    arrays = {n: (v.shape, v.tobytes()) for n, v in fixed.items() if isinstance(v, np.ndarray)}
    # If a theorem is cut down to one scenario, the groups are named as for its first.
    named = (scenario.id, plan.group, *words)
    return Job(
        plan.group,
        plan.precision,
        function,
        plan.points,
        dims,
        shapes=tuple(flag.name for flag in experiment.flags if flag.shapes and flag.swept),
        compiler_options=None if optimize else unoptimized_options(int(scenario.long)),
        lanes=LANES[optimize],
        attributes={
            "scenario": scenario.id,
            "fixed": json.dumps(plan.words),
            "steps": scenario.steps,
            "diverges": scenario.diverges_name,
            "diverged": scenario.diverged_name,
            "conditions": json.dumps(conditions),
        },
        scenario=scenario,
        controls=plan.controls,
        digest=_untraced_digest(experiment, scenario, settings, fixed),
        identity=repr((experiment.name, named, sorted({**fixed, **arrays}.items()))),
        data=partial(experiment.data, settings),
        keeps_cases=plan.keeps_cases,
    )


def _untraced_digest(
    experiment: Experiment,
    scenario: Scenario,
    settings: Mapping[str, Any],
    fixed: Mapping[str, Any],
) -> str:
    """Digest of all that decides an untraced run beside its point: sources, data, fixed settings.

    Empty for a traced function, which is named by its program instead.
    """
    if not scenario.trains:
        return "" if scenario.traced else source_digest(experiment, fixed)
    digest = hashlib.sha256(code_digest(functions_stating(experiment)).encode())
    digest.update(data_digest(experiment.data(settings) if settings else ()).encode())
    for name, value in sorted(fixed.items()):
        array = isinstance(value, np.ndarray)
        # The shape beside the bytes: a row and a column have the same ones.
        digest.update(f"{name} {(value.tobytes(), value.shape) if array else value}".encode())
    return digest.hexdigest()


OLDER_KERNELS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
"""XLA options of kernels without MLIR; releases of JAX after 0.10 know neither."""


@lru_cache
def unoptimized_options(level: int = 0) -> dict[str, Any] | None:
    """XLA options that compile several times faster for a CPU and cost small programs nothing.

    Level 1 takes three times as long and suits loops that run for seconds.
    """
    if jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": level, **known(OLDER_KERNELS)}
