"""A study killed at random moments ends with the bits of one that was not.

``python -m tests.faults.trainings 20`` kills a small study 20 times (``kill -9``), each time at
another moment, starts the same command again, and compares the results with those of a run that
nobody disturbed.
"""

import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.runs import ROOT, results_of, started

EXAMPLE = ROOT / "docs" / "examples" / "training.py"
WORDS = (EXAMPLE, "--steps", "4000", "--seed", "0", "--seeds", "6", "--checkpoint-every", "50")


def run(out: Path, seconds: float | None = None) -> int:
    """Run the study, or kill it after so many seconds; its exit status."""
    with started(*WORDS, "--out", out, cwd=out) as process:
        if seconds is not None:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=600)
    return process.returncode


def differences(one: Path, other: Path) -> list[str]:
    """Arrays that are not equal to the bit."""
    found = []
    for group in ("/", "/learned"):
        first, second = (results_of(folder, group) for folder in (one, other))
        found += [
            f"{group}:{name}"
            for name in first.data_vars
            if not np.array_equal(first[name], second[name], equal_nan=True)
        ]
    return found


def main(kills: int, seed: int = 0) -> int:
    """Kill so many times; 1 if anything differs."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as name:
        whole, killed = Path(name, "whole"), Path(name, "killed")
        whole.mkdir()
        killed.mkdir()
        begin = time.monotonic()
        status = run(whole)
        length = time.monotonic() - begin
        done = 0
        while done < kills:
            # Early and late: a run that continues is shorter each time.
            done += run(killed, float(rng.uniform(0, length))) < 0
            if any(killed.rglob("verdict.json")):
                compared = differences(whole, killed)
                print(f"{done} kills, a run ended: differ {compared or 'nowhere'}", flush=True)
                if compared:
                    return 1
                for path in killed.rglob("verdict.json"):
                    path.unlink()
        again = run(killed)
        compared = differences(whole, killed)
    print(f"{kills} kills, status {again} and {status} undisturbed: differ {compared or 'nowhere'}")
    return int(bool(compared) or again != status)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
