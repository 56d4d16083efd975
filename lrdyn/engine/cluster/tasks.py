"""A task: from its description a worker makes the program once, keeps it, and computes a part."""

import pickle
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from lrdyn.data import lookup
from lrdyn.engine import programs
from lrdyn.engine.checkpoints import log_of
from lrdyn.engine.cluster.origins import Origin, found, importable
from lrdyn.engine.cluster.shared_folder import seen
from lrdyn.engine.elsewhere import FunctionRecipe, JobRecipe, Part, described
from lrdyn.engine.jobs import Job
from lrdyn.engine.parts import Arrays, Store
from lrdyn.engine.produce import jobs_of
from lrdyn.engine.programs import Plan
from lrdyn.engine.progress import Silent
from lrdyn.engine.shared import Shared
from lrdyn.engine.sources import data_digest

Recipe = JobRecipe | FunctionRecipe

KEPT = 16
"""Programs and sweeps that a worker keeps: each program takes memory maps."""


class Task(NamedTuple):
    """A part of a sweep, what it is made from, and where it is kept."""

    origin: Origin
    """Of the experiment or the function in the recipe, in which there is none."""
    part: Part
    folder: str = ""
    """Of the store, if there is one."""
    token: str = ""
    """File in that folder by which a worker knows that it sees the same one."""
    topic: str = ""
    """Where to tell of what happens within the part."""


class Failed(NamedTuple):
    """What a part raised."""

    line: str
    trace: str


def carry_out(recipe: bytes, task: bytes) -> Arrays | Failed | None:
    """Compute a part; None if it is written into the store, which the other process sees too."""
    one: Task = pickle.loads(task)
    try:
        with importable(one.origin):
            arrays = _computed(recipe, one)
        if not seen(one.folder, one.token):
            return arrays
        Store(Path(one.folder), print).save(one.part.key, arrays)
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        return Failed(f"{type(error).__name__}: {line}", traceback.format_exc())
    return None


def _computed(recipe: bytes, task: Task) -> Arrays:
    made = _recipe(recipe, task.origin)
    if isinstance(made, FunctionRecipe):
        return _of_function(recipe, made, task)
    lookup.search_first(made.data_dir or None)
    job = _job(recipe, task.origin)
    if job.trains:
        return _of_training(made, job, task)
    with jax.enable_x64(job.precision == "float64"):
        if not job.traced:
            return _called(job.function, task.part)
        plan = job.plan(0, jax.local_devices()[:1])
        return _traced(recipe, task, job.function, plan)


@lru_cache(KEPT)
def _recipe(recipe: bytes, origin: Origin) -> Recipe:
    made = pickle.loads(recipe)
    stated = found(origin)
    if isinstance(made, FunctionRecipe):
        return made._replace(function=stated)
    lookup.search_first(made.data_dir or None)
    data = data_digest(stated.data(made.settings))
    if data != made.data:
        raise ValueError(f"data: got files with SHA-256 {data[:12]}, wanted {made.data[:12]}")
    return made._replace(experiment=stated)


@lru_cache(KEPT)
def _job(recipe: bytes, origin: Origin) -> Job:
    made = _recipe(recipe, origin)
    assert isinstance(made, JobRecipe)
    # The function of a job is the same for all seeds, and a part has its own.
    jobs = jobs_of(made.experiment, made.settings, made.dtype, (0,), made.perturb, made.thorough)
    return next(islice(jobs, made.number, None))


def _of_function(recipe: bytes, made: FunctionRecipe, task: Task) -> Arrays:
    with jax.enable_x64(made.x64), jax.default_matmul_precision(made.matmuls):
        options = dict(made.compiler_options or {})
        shared = _shared(recipe, task.origin)
        plan = Plan(made.batched, made.lanes, made.memory, jax.local_devices()[:1], options, shared)
        return _traced(recipe, task, made.function, plan)


@lru_cache(2)
def _shared(recipe: bytes, origin: Origin) -> Shared:
    made = _recipe(recipe, origin)
    assert isinstance(made, FunctionRecipe)
    return Shared(made.shared)


def _called(function: Callable[..., Mapping[str, Any]], part: Part) -> Arrays:
    return {name: np.asarray(array) for name, array in function(**dict(part.point)).items()}


# Programs ------------------------------------------------------------------------------------


_PROGRAMS: OrderedDict[Any, tuple[programs.Group, Any]] = OrderedDict()


def _traced(
    recipe: bytes, task: Task, function: Callable[..., Mapping[str, Any]], plan: Plan
) -> Arrays:
    part = task.part
    kinds = tuple((name, str(column.dtype)) for name, column in part.values.items())
    known = (recipe, task.origin, part.point, part.lanes, part.most, kinds)
    if known not in _PROGRAMS:
        group = programs.trace_part(
            function, part.point, dict(part.values), part.lanes, part.most, plan
        )
        _check(group, part)
        _PROGRAMS[known] = group, programs.compiled(group)
        while len(_PROGRAMS) > KEPT:
            _PROGRAMS.popitem(last=False)
    _PROGRAMS.move_to_end(known)
    group, compiled = _PROGRAMS[known]
    group = group._replace(columns=dict(part.values))
    points = np.arange(part.size)
    return programs.ended(group, points, programs.start(group, compiled, points))[2]


def _check(group: programs.Group, part: Part) -> None:
    """The program returns what the other process expects."""
    if (found := described(group)) != part.outputs:
        got, wanted = sorted(set(found) - set(part.outputs)), sorted(set(part.outputs) - set(found))
        raise ValueError(f"program: got {got} among its results, wanted {wanted}")


# Trainings -----------------------------------------------------------------------------------


class _Relay(Silent):
    """Tells the other process, now and then, how a training goes."""

    EVERY = 1.0

    def __init__(self, topic: str):
        self.topic, self.last = topic, 0.0

    def during(self, fraction: float, text: str) -> None:
        """Tell how far it is."""
        if time.monotonic() - self.last >= self.EVERY:
            self.last = time.monotonic()
            self._tell({"during": [fraction, text]})

    def note(self, line: str) -> None:
        """Tell a line."""
        self._tell({"note": line})

    def _tell(self, message: dict[str, Any]) -> None:
        from distributed import get_worker

        get_worker().log_event(self.topic, message)


def _of_training(made: JobRecipe, job: Job, task: Task) -> Arrays:
    """A run of a study; its checkpoints are kept where the other process sees them too."""
    store = Path(task.folder).parent if seen(task.folder, task.token) else None
    point = dict(task.part.point)
    # Several runs write at a time: each has a file of its own.
    log = log_of(task.part.key)
    around = partial(job.kept, made.trainings, store, _Relay(task.topic), point, log)
    with job.training(made.trainings), around():
        return _called(job.function, task.part)
