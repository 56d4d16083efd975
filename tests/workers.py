"""What tests of clusters share: a file as users write them, a scheduler and workers."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests import forked
from tests.runs import started

MINE = """
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
from beside import FACTOR
from jaxtyping import Array, Float

from lrdyn import (Claim, Control, Experiment, Flag, Scenario, Theorem)
from lrdyn.verification.stating.fields import ABSENT


def chaotic(seed, size):
    A = jax.random.normal(jax.random.key(seed), (size, size))
    B = jax.lax.fori_loop(0, 20, lambda _, B: jnp.sin(FACTOR * B @ A), A)
    return {"B": B, "trace": jnp.trace(B)}


def scaled(x, shared):
    return {"y": x * shared}


def case(key, rate):
    return {"x": jax.random.normal(key, (3,)), "rate": jnp.asarray(rate)}


class Doubled(NamedTuple):
    double: Float[Array, "double_0"] = ABSENT


class Slow(NamedTuple):
    rate_of: Float[Array, ""] = ABSENT


FLAGS = (Flag("rate", (0.1, 0.2)),)
DOUBLE = Theorem(
    "double",
    "twice is once and once",
    FLAGS,
    (
        Scenario(
            "double_scenario",
            case,
            lambda case: Doubled(2 * case["x"] * case["rate"]),
            lambda case: Doubled(case["x"] * case["rate"] + case["x"] * case["rate"]),
            theory=Doubled,
            measured=Doubled,
            claims=(
                Claim(
                    "double",
                    "2x = x + x",
                    compares=lambda theory, run: (theory.double, run.double),
                ),
            ),
            controls=(
                Control(
                    "treble",
                    "3x",
                    "double",
                    predict=lambda case: Doubled(3 * case["x"] * case["rate"]),
                ),
            ),
        ),
    ),
)


def slowly(case):
    time.sleep(0.05)
    if case["rate"] == 0.3:
        raise ArithmeticError("the third rate")
    return Slow(case["rate"])


SLOW = Experiment(
    "slow",
    "waits",
    (Flag("rate", (0.1, 0.2, 0.3, 0.4)),),
    (Scenario("slow_scenario", case, measure=slowly, measured=Slow, traced=False),),
)
"""


def write_mine(folder: Path, factor: float = 3.0) -> Path:
    """Write the file, and that beside it which it imports."""
    (folder / "beside.py").write_text(f"FACTOR = {factor}\n")
    (folder / "mine.py").write_text(MINE)
    return folder / "mine.py"


def until(true: Callable[[], object], seconds: float = 30.0) -> float:
    """Wait for something to be true; how long it took.

    Raises:
        TimeoutError: it is not.
    """
    begin = time.monotonic()
    while not true():
        if time.monotonic() > begin + seconds:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)
    return time.monotonic() - begin


class Site:
    """A scheduler and workers as one starts them by hand, each a process; they listen here only."""

    def __init__(self, folder: Path, workers: int = 2):
        self.folder, self.cache = folder, folder / "cache"
        self.file = folder / "scheduler.json"
        self.scheduler = self._scheduler("0")
        self.workers = [self.worker() for _ in range(workers)]

    def _scheduler(self, port: str) -> subprocess.Popen:
        self.file.unlink(missing_ok=True)
        process = self._dask("scheduler", "--scheduler-file", self.file, "--port", port)
        until(lambda: self.file.exists() and self.file.stat().st_size)
        return process

    def restart(self) -> None:
        """Another scheduler at the same address, without workers."""
        port = self.address.rpartition(":")[2]
        for process in (self.scheduler, *self.workers):
            kill(process)
        self.scheduler, self.workers = self._scheduler(port), []

    def worker(self) -> subprocess.Popen:
        """Start a worker that nobody looks after."""
        words = ("--scheduler-file", self.file, "--nthreads", "1", "--no-nanny")
        return self._dask("worker", *words, "--local-directory", self.folder / "dask")

    @property
    def address(self) -> str:
        """Of the scheduler."""
        import json

        return json.loads(self.file.read_text())["address"]

    def _dask(self, what: str, *words: object) -> subprocess.Popen:
        here = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
        return started(
            *("-m", "dask", what, *here, *words),
            cwd=self.folder,
            cache=self.cache,
            stderr=subprocess.DEVNULL,
            interpreter=forked.interpreter(),
        )

    def __enter__(self) -> "Site":
        return self

    def __exit__(self, *error: object) -> None:
        for process in (self.scheduler, *self.workers):
            kill(process)


def kill(process: subprocess.Popen, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a process a signal and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
    process.communicate(timeout=60)
