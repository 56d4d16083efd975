"""Runs that several tests look at: each command once, at a small size, in a process of its own."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import xarray as xr

from lrdyn.figures import exhibits, rendering
from lrdyn.registry import theorem
from lrdyn.system import interrupts
from lrdyn.verification.running.jobs import OLDER_KERNELS
from lrdyn.verification.stating.flags import option_string
from lrdyn.verification.storing import results_file
from tests import forked, programs

ROOT = Path(__file__).parents[1]
UNOPTIMIZED = {"xla_backend_optimization_level": 0} | (
    OLDER_KERNELS if jax.__version_info__ < (0, 11) else {}
)
XLA_FLAGS = " ".join(f"--{name}={int(value)}" for name, value in UNOPTIMIZED.items())
"""For the programs of the tests: most of their time is XLA's, which then compiles twice as fast."""
FINISHED = "LRDYN_FINISHED"
"""Variable of the environment: a folder of small runs that were made before."""


def small_words(name: str, dtype: str = "float64") -> list[str]:
    """Arguments of the small run of a theorem, of one seed.

    Flags whose defaults in a precision are others than in float64 are left at those.

    Example:
        >>> small_words("theorem4")[:4]
        ['--rows', '6', '--cols', '8']
    """
    words, flags = [], {flag.name: flag for flag in theorem(name).flags}
    for flag, value in theorem(name).small.items():
        if dtype == "float32" and flags[flag].float32:
            continue
        words += [option_string(flag), *map(str, np.ravel(value))]
    return [*words, "--seeds", "1"]


class Printed(NamedTuple):
    """What a command left beside its files."""

    returncode: int
    stdout: str
    stderr: str


class Finished(NamedTuple):
    """A finished command."""

    process: Printed
    folder: Path
    verdict: dict[str, Any]
    group: Callable[[str], xr.Dataset]
    """Loads a group of ``results.nc``, by xarray."""
    groups: Callable[[], dict[str, xr.Dataset]]
    """Loads all of its groups, as a judge does: sooner than a dozen of them one by one."""


def started(
    *words: Any,
    cwd: Path = ROOT,
    cache: str | Path = "",
    stdin: int | None = None,
    stderr: int = subprocess.PIPE,
    process_group: int | None = None,
    interpreter: Sequence[str] = (sys.executable,),
    **more: str,
) -> subprocess.Popen:
    """Start Python away from this process, with more in its environment."""
    paths = {"LRDYN_CACHE": os.fspath(cache), "PYTHONPATH": os.fspath(ROOT)}
    with default_signals():
        return subprocess.Popen(
            [*interpreter, *words],
            cwd=cwd,
            env=os.environ | paths | more,
            text=True,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            process_group=process_group,
        )


@contextlib.contextmanager
def default_signals() -> Iterator[None]:
    """Let processes that are started inside end at Ctrl-C and SIGTERM, whatever this one does.

    They inherit that a signal is ignored, and a shell has Ctrl-C ignored by what it starts with
    ``&``; that there is a handler they do not inherit.
    """
    ignored = [n for n in interrupts.SIGNALS if signal.getsignal(n) is signal.SIG_IGN]
    try:
        for number in ignored:
            signal.signal(number, signal.SIG_DFL)
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def python(
    *words: Any, cwd: Path = ROOT, cache: str | Path = "", source: str | None = None
) -> Printed:
    """Run Python away from this process, with a time-out; ``-`` reads the source."""
    stdin = None if source is None else subprocess.PIPE
    how = {"stdin": stdin, "interpreter": forked.interpreter()}
    with started(*words, cwd=cwd, cache=cache, **how) as process:
        try:
            out, err = process.communicate(source, timeout=500)
        finally:
            process.kill()
    return Printed(process.returncode, out, err)


def verdict_of(folder: Path) -> dict[str, Any]:
    """The only verdict in a folder or below it."""
    (path,) = folder.rglob("verdict.json")
    return json.loads(path.read_text())


def results_of(folder: Path, group: str = "/") -> xr.Dataset:
    """A group of the only results in a folder or below it."""
    (path,) = folder.rglob("results.nc")
    return xr.load_dataset(path, engine="h5netcdf", group=group)


@functools.cache
def finished(name: str, base: Path) -> Finished:
    """Run ``python -m experiments.<name>``; the first caller runs, the others wait and look.

    Other workers of pytest-xdist are callers too: their folders lie beside each other.
    """
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    base = Path(os.environ.get(FINISHED, base))
    out, kept = base / "tiny", base / f"{name}.json"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            words = ("-m", f"experiments.{name}", *small_words(name), "--out", out)
            ended = python(*words, cache=programs.of_command(name))
            kept.write_text(json.dumps(ended))
    done = Printed(*json.loads(kept.read_text()))
    if done.returncode:  # an exception would not be cached, and the run repeated for each test
        return Finished(done, out, {}, lambda group: xr.Dataset(), dict)
    (folder,) = (out / name).iterdir()
    group = functools.cache(functools.partial(results_of, folder))
    groups = functools.cache(functools.partial(results_file.load, folder / "results.nc"))
    return Finished(done, folder, verdict_of(folder), group, groups)


def numbers_of(exhibit: exhibits.Exhibit, settings: dict[str, Any]) -> xr.Dataset:
    """Numbers of a figure or table at other settings, from results on disk as always."""
    small = dataclasses.replace(exhibit, presets={"quick": settings})
    with tempfile.TemporaryDirectory() as out:
        return rendering.numbers(small, out, settings).dataset


class Told:
    """A progress that remembers, and that interrupts after some parts."""

    def __init__(self, stop_after=10**9):
        self.expected, self.saved, self.computed, self.notes = 0, [], [], []
        self.stop_after, self.bytes = stop_after, 0

    def expect(self, points):
        self.expected += points

    def expect_bytes(self, count):
        self.bytes += count

    def advance(self, points, *, saved=False):
        (self.saved if saved else self.computed).append(points)
        if len(self.computed) >= self.stop_after:
            raise KeyboardInterrupt

    def during(self, fraction, text):
        pass

    def note(self, line):
        self.notes.append(line)
