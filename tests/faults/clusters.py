"""Clusters that lose what they are made of: ``python -m tests.faults.clusters [NAME ...]``.

Each fault has a scheduler and two workers of its own on 127.0.0.1, which are processes without
anybody who looks after them. A line for each fault and what was seen; the number of those that were
not as they should be is the status.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.runs import results_of, started
from tests.workers import Site, kill, until, write_mine

MOMENTS = 10
"""At how many a worker is killed."""
GROUPS = ("/", "/float32", "/controls/treble/float64")


def words(folder: Path, *more: object, name: str = "DOUBLE", seeds: int = 60) -> list[str]:
    """The command of the file in a folder, in parts of four points."""
    mine = f"{write_mine(folder)}:{name}"
    return ["-m", "lrdyn", "verify", mine, "--seeds", str(seeds), "--memory", "1B", *map(str, more)]


def command(folder: Path, *more: object, **how: object) -> subprocess.Popen:
    """Start it."""
    return started(*words(folder, *more, **how), cwd=folder, cache=folder / "cache")  # pyright: ignore[reportArgumentType]


def ended(process: subprocess.Popen, seconds: float = 120.0) -> tuple[int, str]:
    """Its status and its errors, without the last line break."""
    try:
        _, errors = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, errors.removesuffix("\n")


def undisturbed(folder: Path) -> Path:
    """Its results on one device of this machine."""
    out = folder / "here"
    assert ended(command(folder, "--out", out))[0] == 0
    return out


def differ(one: Path, other: Path) -> list[str]:
    """Groups of results in which two runs differ by more than rounding."""
    return [g for g in GROUPS if not _equal(results_of(one, g), results_of(other, g))]


def _equal(one, other) -> bool:
    return set(one) == set(other) and all(
        np.allclose(one[n], other[n], rtol=1e-5, atol=1e-7, equal_nan=True) for n in one
    )


def parts(folder: Path) -> int:
    """How many parts are kept below a folder."""
    return len(list(folder.rglob("*.npz")))


def killed_workers(folder: Path) -> list[str]:
    """A worker is killed at ten random moments, and another one comes."""
    here, found, rng = undisturbed(folder), [], random.Random(0)
    with Site(folder) as site:
        for index in range(MOMENTS):
            out = folder / f"out{index}"
            run = command(folder, "--cluster", site.address, "--out", out)
            until(lambda out=out: parts(out), 60)
            time.sleep(rng.uniform(0, 1.0))
            kill(site.workers.pop(0))
            site.workers.append(site.worker())
            status, line = ended(run)
            found += [f"moment {index}: status {status}, {line}"] if status else differ(here, out)
    return found


def all_workers(folder: Path) -> list[str]:
    """All workers are lost, and new ones come after two seconds."""
    here, out = undisturbed(folder), folder / "out"
    with Site(folder) as site:
        run = command(folder, "--cluster", site.address, "--out", out)
        until(lambda: parts(out), 60)
        for one in site.workers:
            kill(one)
        time.sleep(2)
        before = parts(out)
        site.workers = [site.worker(), site.worker()]
        status, line = ended(run)
    if status:
        return [f"status {status}: {line}"]
    return differ(here, out) + ([] if before else ["nothing was done before"])


def lost_scheduler(folder: Path) -> list[str]:
    """The scheduler is killed: status 3 within 30 s, and the same command goes on here."""
    here, out = undisturbed(folder), folder / "out"
    with Site(folder) as site:
        run = command(folder, "--cluster", site.address, "--out", out)
        until(lambda: parts(out), 60)
        begin = time.monotonic()
        kill(site.scheduler)
        status, line = ended(run)
        seconds = time.monotonic() - begin
    kept = parts(out)
    alone = "scheduler is lost" in line and "\n" not in line
    found = [] if status == 3 and alone else [f"status {status}: {line}"]
    found += [f"{seconds:.0f} s"] if seconds > 30 else []
    found += [] if kept else ["no part is kept"]
    status, line = ended(command(folder, "--out", out))
    return found + ([f"then status {status}: {line}"] if status else differ(here, out))


def interrupted(folder: Path) -> list[str]:
    """Ctrl-C ends the command within 5 s, and the workers are free for the next one."""
    out, found = folder / "out", []
    with Site(folder) as site:
        run = command(folder, "--cluster", site.address, "--out", out, name="SLOW", seeds=400)
        until(lambda: parts(out), 60)
        begin = time.monotonic()
        run.send_signal(signal.SIGINT)
        status, line = ended(run)
        seconds = time.monotonic() - begin
        found += [f"status {status}: {line}"] if status != 130 else []
        found += [f"{seconds:.1f} s"] if seconds > 5 else []
        from distributed import Client

        with Client(site.address, set_as_default=False) as client:
            until(lambda: client.run_on_scheduler(_idle), 5)
            left = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
        found += [f"{left} tasks are left"] if left else []
    return found


def _idle(dask_scheduler) -> bool:
    return not any(one.processing for one in dask_scheduler.workers.values())


def long_compilations(folder: Path) -> list[str]:
    """A program that takes long to compile: the worker is heard of all the while."""
    (folder / "long.py").write_text(LONG)
    gaps, out = [], folder / "out.txt"
    with Site(folder, workers=1) as site:
        from distributed import Client

        words = (folder / "long.py", site.address, out)
        run = started(*words, cwd=folder, stderr=subprocess.DEVNULL)
        with Client(site.address, set_as_default=False) as client:
            begin = time.monotonic()
            while run.poll() is None:
                seen = client.run_on_scheduler(_last_seen)
                gaps += [seen] if seen is not None else []
                time.sleep(0.1)
            took = time.monotonic() - begin
    if run.wait() or not out.exists():
        return [f"status {run.returncode}"]
    said = f"{took:.0f} s with {out.read_text()}, the longest silence {max(gaps):.1f} s"
    print(f"long_compilations: {said}")
    return [said] if max(gaps) > 10 or took < 5 else []


def _last_seen(dask_scheduler) -> float | None:
    import time

    workers = dask_scheduler.workers.values()
    return max((time.time() - one.last_seen for one in workers), default=None)


LONG = """
import sys
import time

import jax
import jax.numpy as jnp

import lrdyn


def slow(x):
    for index in range(1500):
        x = jnp.sin(x + index) @ jnp.cos(jnp.ones((3, 3)) * x[index % 3, 0])
    return {"y": x}


def run(seed):
    return slow(jax.random.normal(jax.random.key(seed), (3, 3)))


if __name__ == "__main__":
    from distributed import Client

    with Client(sys.argv[1], set_as_default=False) as client:
        begin = time.monotonic()
        lrdyn.sweep(run, lrdyn.product(seed=range(4)), client=client)
        open(sys.argv[2], "w").write(f"a sweep of {time.monotonic() - begin:.0f} s")
"""


def two_users(folder: Path) -> list[str]:
    """Two users with files of the same names run at once on one scheduler."""
    folders = [folder / "one", folder / "two"]
    for one in folders:
        one.mkdir()
    here = [undisturbed(one) for one in folders]
    with Site(folder) as site:
        runs = [command(f, "--cluster", site.address, "--out", f / "out") for f in folders]
        ends = [ended(run) for run in runs]
    found = [f"status {status}: {line}" for status, line in ends if status]
    both = zip(here, folders, strict=True)
    return found or [g for one, f in both for g in differ(one, f / "out")]


def local_workers(folder: Path) -> list[str]:
    """A signal to a command with workers of its own leaves no worker, folder or file behind.

    What `kill -9` leaves on disk, the next command removes.
    """
    from tests.faults.signals import members

    found, temporary = [], folder / "temporary"
    temporary.mkdir()
    for number, wanted in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        out = folder / number.name
        line = words(folder, "--cluster", "local:2", "--out", out, name="SLOW", seeds=400)
        run = started(
            *line, cwd=folder, cache=folder / "cache", process_group=0, TMPDIR=str(temporary)
        )
        until(lambda out=out: parts(out), 60)
        begin = time.monotonic()
        run.send_signal(number)
        status, error = ended(run)
        left = until(lambda run=run: not members(run.pid), 10)
        seconds = time.monotonic() - begin
        if status != wanted:
            found.append(f"{number.name}: status {status}: {error}")
        if seconds > 5:
            found.append(f"{number.name}: {seconds:.1f} s, the last {left:.1f}")
    # The second command has removed what the first could not.
    scratch = [*temporary.iterdir(), *out.rglob("*.seen")]
    return found + [f"{path.name} is left" for path in scratch]


KILLING = """
import os, signal
from typing import NamedTuple
import jax
from jaxtyping import Array, Float
from lrdyn import (Claim, Flag, Scenario, Theorem)


class Twice(NamedTuple):
    twice: Float[Array, "index"]


def case(key, rate):
    return {"x": jax.random.normal(key, (3,)), "rate": rate}


def measure(case):
    if case["rate"] == 0.3:
        os.kill(os.getpid(), signal.SIGKILL)
    return Twice(2 * case["x"])


TWICE = Scenario(
    "twice",
    case,
    lambda case: Twice(case["x"] + case["x"]),
    measure,
    theory=Twice,
    measured=Twice,
    claims=(
        Claim("twice", "2x = x + x", compares=lambda theory, run: (theory.twice, run.twice)),
    ),
    traced=False,
)
DOUBLE = Theorem("killing", "kills at 0.3", (Flag("rate", (0.1, 0.2, 0.3)),), (TWICE,))
"""


def killing_point(folder: Path) -> list[str]:
    """A point that kills every worker it meets is named, and the others are computed."""
    (folder / "killing.py").write_text(KILLING)
    line = ["-m", "lrdyn", "verify", "killing.py", "--seeds", "2", "--cluster", "local:2"]
    run = started(*line, "--out", folder / "out", cwd=folder, cache=folder / "cache")
    status, error = ended(run, 300)
    kept = parts(folder / "out")
    found = [] if status == 3 and "rate=0.3" in error else [f"status {status}: {error}"]
    return found + ([] if kept == 8 else [f"{kept} parts kept, wanted 8"])


FAULTS: dict[str, Callable[[Path], list[str]]] = {
    "killed_workers": killed_workers,
    "all_workers": all_workers,
    "lost_scheduler": lost_scheduler,
    "interrupted": interrupted,
    "local_workers": local_workers,
    "killing_point": killing_point,
    "long_compilations": long_compilations,
    "two_users": two_users,
}


def main(names: list[str]) -> int:
    """Make faults; how many were not as they should be."""
    bad = 0
    for name in names or FAULTS:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = FAULTS[name](Path(folder))
        bad += bool(found)
        seen = "; ".join(found) or "as it should be"
        print(f"{name}: {seen} ({time.monotonic() - begin:.0f} s)", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
