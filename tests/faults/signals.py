"""Signals at random moments: ``python -m tests.faults.signals [N] [SEED]``, outside CI.

Each of N times (default 100) a command is started, gets Ctrl-C, SIGTERM or SIGKILL at a random
moment between its first instruction and its usual end, and must be gone within five seconds: with
its status, one line, no traceback, its workers ended and its folders unlocked. A line for each
fault; the number of faults is the status.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lrdyn.verification.storing import files
from tests.runs import small_words, started

WITHIN = 5.0
"""Seconds in which a command must have ended."""

COMMANDS = {
    "one": ("-m", "experiments.corollary1", *small_words("corollary1")),
    "lrdyn": ("-m", "lrdyn", "verify", "corollary1", *small_words("corollary1")),
    "all": ("-m", "experiments", "all", "--jobs", "2", "--seeds", "1"),
    "own": ("-m", "lrdyn", "verify", "docs/examples/balance.py", "--seeds", "1"),
    "figures": ("-m", "paper_figs", "fig03"),
}
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


class Ended(NamedTuple):
    """How a command ended after a signal."""

    status: int
    stderr: str
    seconds: float
    left: list[int]
    """Processes of it that were still there after :data:`WITHIN`."""
    locked: list[Path]

    def faults(self, number: signal.Signals) -> list[str]:
        """What is not as it should be; a command that ended by itself before is well."""
        found = []
        if self.status not in (0, STATUS[number]):
            found.append(f"status {self.status}")
        if self.seconds > WITHIN:
            found.append(f"{self.seconds:.1f} s")
        if self.status == STATUS[number] and number != signal.SIGKILL:
            lines = self.stderr.splitlines()
            if "Traceback" in self.stderr or not (lines and lines[-1].startswith("error: ")):
                found.append(f"stderr ends with {lines[-1:]}")
        return (
            found + [f"left process {p}" for p in self.left] + [f"locked {p}" for p in self.locked]
        )


def members(group: int) -> list[int]:
    """Processes of a group that are no zombies."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = entry.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(pgrp) == group and state != "Z":
            found.append(int(entry.parent.name))
    return found


def signalled(
    words: tuple[str, ...], number: signal.Signals, wait: Callable[[], None], out: Path
) -> Ended:
    """Start a command, wait, send it a signal, and see what is left of it."""
    process = started(*words, "--out", out, process_group=0)
    try:
        wait()
        begin = time.monotonic()
        process.send_signal(number)  # to it alone: its workers must hear of it
        try:
            _, stderr = process.communicate(timeout=10 * WITHIN)
        except subprocess.TimeoutExpired:
            stderr = ""
        seconds = time.monotonic() - begin
        while (left := members(process.pid)) and time.monotonic() - begin < WITHIN:
            time.sleep(0.05)
    finally:
        for one in members(process.pid):
            os.kill(one, signal.SIGKILL)
        process.wait()
    return Ended(process.returncode, stderr, seconds, left, [p for p in folders(out) if held(p)])


def folders(out: Path) -> list[Path]:
    """The folders of results below one."""
    return [path for path in out.glob("*/*") if path.is_dir()]


def held(folder: Path) -> bool:
    """Whether a process still has the lock of a folder."""
    try:
        with files.lock(folder):
            return False
    except files.InUse:
        return True


def usual(words: tuple[str, ...], out: Path) -> float:
    """Seconds that a command takes undisturbed."""
    begin = time.monotonic()
    started(*words, "--out", out).communicate()
    return time.monotonic() - begin


def main(times: int = 100, seed: int = 0) -> int:
    """Disturb commands in turn; the number of faults."""
    rng, count = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        takes = {name: usual(words, Path(folder, name)) for name, words in COMMANDS.items()}
        for index in range(times):
            name = list(COMMANDS)[index % len(COMMANDS)]
            number = rng.choice(list(STATUS))
            # Before its first tenth of a second Python itself is not there yet.
            wait = rng.uniform(0.1, takes[name])
            out = Path(folder, str(index))
            for fault in signalled(COMMANDS[name], number, partial(time.sleep, wait), out).faults(
                number
            ):
                count += 1
                print(f"{name}, {number.name} after {wait:.2f} s: {fault}", flush=True)
    print(f"{times} signals to {len(COMMANDS)} commands: {count} faults")
    return count


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:])), 1))
