"""What a theorem costs where its programs are kept on disk, against a run that finds none.

*Warm*: no code that decides the programs was edited; nothing is traced. *Edited*: some was, but the
programs came out as before; all are traced and lowered, and none is compiled. All ratios are of CPU
seconds of the sweeps alone, without what imports and figures take.
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

HEADER = ("theorem", "cold, CPU seconds", "edited / cold", "warm / cold")


def measured(experiment: Experiment, settings: dict[str, Any]) -> tuple[float, float, float]:
    """CPU seconds of a cold run, of one after an edit, and of a warm one."""
    run = run_of(experiment, **settings)
    seconds = []
    with tempfile.TemporaryDirectory() as base:
        for code in ("before", "after", "after"):
            programs = KeptPrograms(PrivateFolder(Path(base, "kept")), code)
            jax.clear_caches()  # of this process, which a new one would not have
            begin = time.process_time()
            produce(
                run.experiment,
                run.settings,
                dtype=run.dtype,
                seeds=run.seeds_of,
                thorough=False,
                context=Context(programs=programs),
            )
            seconds.append(time.process_time() - begin)
    cold, edited, warm = seconds
    return cold, edited, warm


def small() -> tuple[Experiment, dict[str, Any]]:
    """The first scenario of Theorem 2 without its controls."""
    whole = theorem("theorem2")
    first = replace(whole.scenarios[0], controls=())
    return replace(whole, scenarios=(first,)), {"dim": 6, "depth": 2, "rank": 1, "steps": 5}


def report(names: tuple[str, ...] = ("theorem1", "theorem2", "lora"), tiny: bool = False) -> str:
    """Measure and lay out."""
    experiments = [small()] if tiny else [(theorem(name), {}) for name in names]
    rows = []
    for experiment, settings in experiments:
        cold, edited, warm = measured(experiment, settings)
        rows.append((experiment.name, f"{cold:.1f}", f"{edited / cold:.2f}", f"{warm / cold:.2f}"))
    return table(HEADER, rows)
