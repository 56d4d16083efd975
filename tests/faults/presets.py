"""Every paper preset begins on a CPU: ``python -m tests.faults.presets [NAME[/SCENARIO] ...]``.

Of each scenario of each theorem, of each study and of what figures are drawn from, one point is
computed, that of the largest sizes; of a study one step of each network, at its full size. What a
preset asks for that does not fit together, or not to the data at hand, is found here and not on a
card. Where there is no encoder, or no pairs of sentences, those of the tests stand in.
"""

import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lrdyn.core.show import aligned
from lrdyn.figures.exhibits import missing_packages
from lrdyn.registry import theorems
from lrdyn.studies import studies, study
from lrdyn.verification.machine.process import setup
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.running.jobs import job_for, plan_claims
from lrdyn.verification.running.work import Context
from lrdyn.verification.runs.run_folder import describe_run
from lrdyn.verification.stating.mistakes import Lacking, describe_error
from lrdyn.verification.stating.points import product
from lrdyn.verification.stating.statement import Experiment, Scenario
from paper_figs import EXHIBITS
from tests import test_real_updates
from tests.sentences import BERT, write_pairs, write_sentences

FEW = {
    "completion": {"steps": 50},
    "weight_updates": {"examples": 128, "batch_size": 128},
    "dropout_spectra": {"examples": 1000, "batch_size": 1000},
}
"""Name -> flags with which a training has one batch, or a run few steps."""


def short(one: Experiment) -> dict[str, Any]:
    """Flags with which each network of a study takes one step; sizes stay those of the preset."""
    lengths = [flag.name for flag in one.flags if flag.name.endswith(("epochs", "steps"))]
    once = dict.fromkeys(lengths, 1) if any(s.trains for s in one.scenarios) else {}
    return once | FEW.get(one.name, {})


def texts(folder: Path) -> dict[str, str]:
    """An encoder and texts of the tests, where ``auto`` finds none here."""
    try:
        describe_run(run_of(study("adapters"), preset="paper"))
    except Lacking:
        pairs = [write_pairs(folder / f"{name}.csv", 6000) for name in ("train", "dev")]
        scored = write_sentences(folder / "sentences.tsv", 6000)
        names = ("encoder", "train_file", "dev_file", "text_file")
        return dict(zip(names, map(str, (BERT, *pairs, scored)), strict=True))
    return {}


def checkpoints(folder: Path) -> dict[str, str]:
    """Weights of the tests before and after a training, as nobody has any by default."""
    test_real_updates.made(folder)
    return {name: str(folder / f"{name}.safetensors") for name in ("before", "after")}


STAND_INS = {
    "adapters": texts,
    "real_updates": checkpoints,
    "rank_before_training": lambda folder: {
        name: path for name, path in texts(folder).items() if name in ("encoder", "text_file")
    },
}
"""Study -> what makes files that it reads, in a folder, and the flags that name them."""


def beginnings(folder: Path) -> Iterator[tuple[str, Run, Scenario]]:
    """What is begun: its name, and a scenario of a run at the paper preset."""
    runs: dict[str, Run] = {}
    for one in (*theorems(), *studies()):
        given: dict[str, Any] = short(one)
        if one.name in STAND_INS:
            given |= STAND_INS[one.name](folder)
        runs[one.name] = run_of(one, preset="paper", **given)
    for exhibit in EXHIBITS:
        if missing_packages(exhibit):
            print(f"{exhibit.name}: left out, it needs {missing_packages(exhibit)}", flush=True)
            continue
        for run in exhibit.sources(**exhibit.presets["paper"]).values():
            runs.setdefault(run.experiment.name, run)
    for name, run in runs.items():
        describe_run(run)
        for scenario in run.concerned.scenarios:
            yield name, run, scenario


def begin(run: Run, scenario: Scenario, store: Path) -> None:
    """Compute the last point of a scenario, which has the largest sizes.

    Raises:
        ValueError: what came back has no finite number.
    """
    plan = plan_claims(
        run.experiment, scenario, run.settings, run.seeds_of(scenario)[:1], "/", run.dtype
    )
    last = product(**{name: column[-1:] for name, column in plan.points.columns.items()})
    job = job_for(run.experiment, plan._replace(points=last), run.settings, False)
    found = job.run(Context(store=store))["/"]
    real = [array.values for array in found.values() if array.dtype.kind == "f"]
    if real and not any(np.isfinite(values).any() for values in real):
        raise ValueError("got no finite number")


def main(names: Sequence[str]) -> int:
    """Begin all of them, or those named; the number of those that did not."""
    setup("float64")
    faults, rows = 0, [("preset", "scenario", "seconds", "seen")]
    with tempfile.TemporaryDirectory() as folder:
        for name, run, scenario in beginnings(Path(folder)):
            if names and not {name, f"{name}/{scenario.id}"} & set(names):
                continue
            start, seen = time.monotonic(), "begins"
            try:
                begin(run, scenario, Path(folder, f"{name}-{scenario.id}"))
            except Exception as error:
                traceback.print_exc()
                seen, faults = describe_error(error), faults + 1
            rows.append((name, scenario.id, f"{time.monotonic() - start:.0f}", seen))
            print("  ".join(rows[-1]), flush=True)
    print("\n".join(["", *aligned(rows)]))
    return faults


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
