"""What a theorem costs where its programs are kept on disk, against a run that finds none.

*Warm*: no code that decides the programs was edited; nothing is traced. *Edited*: some was that
every program can reach, but they came out as before; all are traced and lowered, and none is
compiled. *One formula*: theory of the first scenario is another one; its programs are made anew,
and records of runs are read. All ratios are of CPU seconds of the sweeps alone, without what
imports and figures take.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from benchmarks.common import table
from lrdyn.registry import theorem
from lrdyn.system.private_files import PrivateFolder
from lrdyn.verification.machine.kept_programs import KeptPrograms
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.running.produce import produce
from lrdyn.verification.running.work import Context
from lrdyn.verification.stating.statement import Experiment

HEADER = ("theorem", "cold, CPU seconds", "edited / cold", "warm / cold", "one formula / cold")


def measured(experiment: Experiment, settings: dict[str, Any]) -> tuple[float, ...]:
    """CPU seconds of a cold run, of one after an edit, a warm one, and one with another formula."""
    first, *others = experiment.scenarios
    theory = first.predict

    def another_formula(case: Any) -> Any:
        # No other numbers, but another program.
        return jax.tree.map(lambda a: 1.0 * a if a.dtype.kind == "f" else a, theory(case))

    changed = replace(experiment, scenarios=(replace(first, predict=another_formula), *others))
    seconds = []
    with tempfile.TemporaryDirectory() as base:
        folder = PrivateFolder(Path(base, "kept"))
        for stated, code, records in (
            (experiment, "before", None),
            (experiment, "after", []),
            (experiment, "after", None),
            (changed, "after", []),
        ):
            run = run_of(stated, **settings)
            jax.clear_caches()  # of this process, which a new one would not have
            begin = time.process_time()
            produce(
                run.experiment,
                run.settings,
                dtype=run.dtype,
                seeds=run.seeds_of,
                thorough=False,
                context=Context(programs=KeptPrograms(folder, code, records=records)),
            )
            seconds.append(time.process_time() - begin)
    return tuple(seconds)


def small() -> tuple[Experiment, dict[str, Any]]:
    """The first scenario of Theorem 2 without its controls."""
    whole = theorem("theorem2")
    first = replace(whole.scenarios[0], controls=())
    return replace(whole, scenarios=(first,)), {"dim": 6, "depth": 2, "rank": 1, "steps": 5}


def report(
    names: tuple[str, ...] = ("theorem1", "theorem2", "corollary1", "lora"), tiny: bool = False
) -> str:
    """Measure and lay out."""
    experiments = [small()] if tiny else [(theorem(name), {}) for name in names]
    rows = []
    for experiment, settings in experiments:
        cold, *others = measured(experiment, settings)
        ratios = [f"{seconds / cold:.2f}" for seconds in others]
        rows.append((experiment.name, f"{cold:.1f}", *ratios))
    return table(HEADER, rows)
