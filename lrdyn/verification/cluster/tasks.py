"""A task: from its description a worker makes the program once, keeps it, and computes a part."""

import pickle
import time
import traceback
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.system.progress import Silent
from lrdyn.verification.cluster.origins import Origin, make_importable, resolve
from lrdyn.verification.cluster.shared_folder import sees
from lrdyn.verification.running import programs, reductions
from lrdyn.verification.running.work import Context, PartRequest, Recipe, Sweep
from lrdyn.verification.stating.mistakes import BadInput
from lrdyn.verification.storing.parts import Arrays, Store

KEPT = 16
"""Programs and sweeps that a worker caches: each program takes memory maps, which are limited."""


class PartTask(NamedTuple):
    """A part of a sweep, what it is made from, and where it is kept."""

    origin: Origin
    """Origin of the experiment or function, which the recipe itself leaves out."""
    key: str
    """Key of the part in the store."""
    asked: PartRequest
    folder: str = ""
    """Folder of the store; empty without one."""
    token: str = ""
    """File in that folder by which a worker recognises that it sees the same folder."""
    topic: str = ""
    """Topic to which the worker reports progress within the part."""


class TaskFailure(NamedTuple):
    """The exception that a part raised, as text."""

    line: str
    trace: str
    refused: bool = False
    """Whether what a function returned was refused, as bad input."""


def compute_part(recipe: bytes, task: bytes) -> Arrays | TaskFailure | None:
    """Compute a part; None if it is written into the store, which the other process sees too."""
    part: PartTask = pickle.loads(task)
    shared = sees(part.folder, part.token)
    try:
        with make_importable(part.origin):
            # Checkpoints of trainings are kept where the other process sees them too.
            store = Path(part.folder).parent if shared else None
            sweep_from = _small if len(recipe) <= SMALL else _large
            sweep = sweep_from(recipe, part.origin, store, part.topic)
            with sweep.scope():
                if sweep.plan:
                    arrays = _compute_traced(recipe, part, sweep)
                    if sweep.reduce:
                        arrays = reductions.summarise(sweep.reduce, arrays)
                else:
                    arrays = sweep.call(dict(part.asked.point), part.key)
        if not shared:
            return arrays
        Store(Path(part.folder), print).save(part.key, arrays)
    except BadInput as error:
        return TaskFailure(str(error), traceback.format_exc(), refused=True)
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        # As text: an exception of a user's own class cannot be unpickled where that class is not
        # imported.
        return TaskFailure(f"{type(error).__name__}: {line}", traceback.format_exc())
    return None


SMALL = 2**16
"""Largest recipe, in bytes, that is sent with each task; a larger one is sent once a worker."""


def _build_sweep(recipe: bytes, origin: Origin, store: Path | None, topic: str) -> Sweep:
    unpickled: Recipe = pickle.loads(recipe)
    # The client has cut the parts already: the memory that decides it is not asked for here.
    context = Context(memory=0, store=store, progress=_Relay(topic))
    return unpickled._replace(subject=resolve(origin)).sweep(context)


_small = lru_cache(KEPT)(_build_sweep)
_large = lru_cache(2)(_build_sweep)  # sweeps hold the shared arrays of their points


_PROGRAMS: OrderedDict[Any, tuple[programs.Group, Any]] = OrderedDict()


def _compute_traced(recipe: bytes, task: PartTask, sweep: Sweep) -> Arrays:
    asked = task.asked
    kinds = tuple((name, str(column.dtype)) for name, column in asked.values.items())
    # All that the program is made of, and not the values of the points: parts of a sweep share it.
    known = (recipe, task.origin, asked.point, asked.lanes, asked.most, kinds)
    if known not in _PROGRAMS:
        assert sweep.plan is not None
        group = programs.trace_part(
            sweep.function, asked.point, dict(asked.values), asked.lanes, asked.most, sweep.plan
        )
        _check_outputs(group, asked)
        _PROGRAMS[known] = group, programs.compile_program(group)
        while len(_PROGRAMS) > KEPT:
            _PROGRAMS.popitem(last=False)
    _PROGRAMS.move_to_end(known)
    group, compiled = _PROGRAMS[known]
    group = group._replace(columns=dict(asked.values))
    points = np.arange(asked.size)
    return programs.collect(group, points, programs.start(group, compiled, points))


def _check_outputs(group: programs.Group, asked: PartRequest) -> None:
    """Refuse a program whose results are not those that the other process expects."""
    if (mine := programs.output_signature(group)) != asked.outputs:
        got = sorted(set(mine) - set(asked.outputs))
        wanted = sorted(set(asked.outputs) - set(mine))
        raise ValueError(f"program: got {got} among its results, wanted {wanted}")


class _Relay(Silent):
    """Reports the progress of a training to the other process, at intervals."""

    EVERY = 1.0

    def __init__(self, topic: str):
        self.topic, self.last = topic, 0.0

    def during(self, fraction: float, text: str) -> None:
        """Report the fraction that is done."""
        if time.monotonic() - self.last >= self.EVERY:
            self.last = time.monotonic()
            self._tell({"during": [fraction, text]})

    def note(self, line: str) -> None:
        """Report a line of text."""
        self._tell({"note": line})

    def _tell(self, message: dict[str, Any]) -> None:
        from distributed import get_worker

        get_worker().log_event(self.topic, message)
