"""One mutant against its tests, in a process of its own.

``python -m tests.mutants.attempt`` imports the libraries of others, once, and reads orders, one
line each. For each it forks a process, which imports ours as they are then and runs the tests in
the order in which they are given, until one fails or the time is over. With ``warm`` ours are
imported, too, and the process exchanges the code of what was changed since, or ends with
:data:`COLD` if that will not do.
"""

import contextlib
import importlib
import json
import os
import re
import resource
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

import jax
import jaxtyping
import pytest

from tests.mutants.swapping import Imported

COLD = 77
"""Status: what was changed must be imported anew."""

OURS = ("lrdyn", "referee")
"""Packages that are imported in a warm process."""

NOWHERE = "pytest"
"""What failed where no test began."""


class Task(NamedTuple):
    """What to try."""

    tests: list[str]
    """Tests and examples by their names, without parameters, in their order; with parameters where
    they go on to the end."""
    known: list[str]
    """Names of all theorems."""
    theorems: list[str]
    """Of a test that runs for each theorem, only these are tried."""
    general: list[str]
    """Tests that are tried only where they run for each theorem."""
    claims: list[str]
    """Of one that runs for each claim, these come first."""
    budget: float
    """Seconds of the processor after which no further test begins."""
    scratch: str
    """Folder for what the tests write."""
    scenarios: list[str] = []  # noqa: RUF012 (a tuple would come back as a list)
    """Of one that runs for each scenario, only these are tried."""
    module: str = ""
    """Of a test that runs for each of several modules, only this one is tried: ``core.spectra``."""
    function: str = ""
    """What is changed at the top of its module: a table of calls begins with those that name it."""
    saved: str = ""
    """Folder of the small runs that are looked at, where they need not be made anew."""
    to_the_end: bool = False
    """Whether tests go on behind one that fails."""


class Report(NamedTuple):
    """What came of it."""

    failed: list[str]
    """The tests that failed, or the files that could not be read."""
    said: str
    """Last line of the first error."""
    ran: int
    """How many tests ran, each parameter counted."""
    left: int
    """How many did not begin in time."""
    seconds: dict[str, float]
    """Test -> seconds of the processor, over its parameters."""
    passed: list[str]
    """Tests that ended well, with their parameters."""


def used() -> float:
    """Seconds of the processor, of this process and of those that it waited for."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def named(nodeid: str) -> str:
    """A test without its parameters."""
    return nodeid.partition("[")[0]


def names_in(code: CodeType | None) -> set[str]:
    """Names that a function uses, with the functions inside it."""
    if code is None:
        return set()
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    return {*code.co_names, *(name for one in inner for name in names_in(one))}


def is_module(name: str) -> bool:
    """Whether a module of the library is called so, as ``core.spectra`` is."""
    path = re.fullmatch(r"\w+(\.\w+)+", name)
    return path is not None and Path("lrdyn", *name.split(".")).with_suffix(".py").exists()


class Watch:
    """A plugin of pytest that chooses, orders and watches.

    Args:
        task: what to try.
        now: file that has the name of the test that began last.
    """

    def __init__(self, task: Task, now: Path):
        self.task, self.now = task, now
        self.failed: list[str] = []
        self.passed: list[str] = []
        self.said, self.ran, self.left, self.begin = "", 0, 0, 0.0
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_collectreport(self, report: Any) -> None:
        self.pytest_runtest_logreport(report)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        order = {test: n for n, test in enumerate(self.task.tests)}
        if self.task.to_the_end:  # each by its whole name
            items[:] = [item for item in items if item.nodeid in order]
            return
        chosen = [item for item in items if named(item.nodeid) in order and self._concerned(item)]
        items[:] = sorted(
            chosen,
            key=lambda item: (
                self._of_other_claim(item),
                order[named(item.nodeid)],
                self._calls_others(item),
            ),
        )

    def _parameters(self, item: Any) -> list[Any]:
        return list(getattr(getattr(item, "callspec", None), "params", {}).values())

    def _concerned(self, item: Any) -> bool:
        values = self._parameters(item)
        scenario = getattr(getattr(item, "callspec", None), "params", {}).get("scenario", "")
        only = self.task.scenarios
        if only and scenario and isinstance(scenario, str) and scenario not in only:
            return False
        modules = [x for x in values if isinstance(x, str) and is_module(x)]
        if modules:
            return self.task.module in modules
        names = [x if isinstance(x, str) else getattr(x, "name", None) for x in values]
        theorems = [name for name in names if isinstance(name, str) and name in self.task.known]
        if not theorems:
            return named(item.nodeid) not in self.task.general
        return all(name in self.task.theorems for name in theorems)

    def _of_other_claim(self, item: Any) -> bool:
        """Whether a test is for a claim, or for a theorem, that the mutant does not reach."""
        names = dict(getattr(getattr(item, "callspec", None), "params", {}))
        values = list(names.values())
        ids = [getattr(x, "id", None) for x in values if hasattr(x, "compares")]
        ids += [names[word] for word in ("id", "claim") if isinstance(names.get(word), str)]
        ids += [x.claim for x in values if isinstance(getattr(x, "claim", None), str)]
        theorems = [x.theorem for x in values if isinstance(getattr(x, "theorem", None), str)]
        elsewhere = theorems and theorems[0] not in self.task.theorems
        return bool(elsewhere or (self.task.claims and ids and ids[0] not in self.task.claims))

    def _calls_others(self, item: Any) -> int:
        """Of a test that goes through a table of calls: 0 for one that names what is changed.

        1 for one that names its module, 2 for any other.
        """
        known = getattr(getattr(item, "function", None), "__globals__", {})
        tables = [table for table in known.values() if isinstance(table, dict)]
        keys = [x for x in self._parameters(item) if isinstance(x, str)]
        calls = [table[key] for table in tables for key in keys if key in table]
        names = {name for call in calls for name in names_in(getattr(call, "__code__", None))}
        for listed in (known[name] for name in names & known.keys()):
            if isinstance(listed, tuple):
                rows = [one if isinstance(one, tuple) else (one,) for one in listed]
                names |= {getattr(x, "__name__", "") for row in rows for x in row}
        module = self.task.module.rpartition(".")[2]
        return 0 if self.task.function in names else 1 if module in names else 2

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: Any) -> bool | None:
        if used() <= self.task.budget:
            return None
        self.left += 1
        return True

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.begin = used()
        self.ran += 1
        self.now.write_text(nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        if nodeid not in self.failed:
            self.passed.append(nodeid)
        self.seconds[named(nodeid)] += used() - self.begin

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.said = self.said or last_line(report)
            self.failed.append(report.nodeid)

    def report(self) -> Report:
        seconds = {name: round(value, 2) for name, value in self.seconds.items()}
        return Report(self.failed, self.said, self.ran, self.left, seconds, self.passed)


def last_line(report: Any) -> str:
    """What went wrong, in a line."""
    crash = getattr(getattr(report, "longrepr", None), "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    lines = [line for line in text.splitlines() if line.strip()] or [""]
    return lines[0 if crash is not None else -1].strip()[:200]


def attempt(path: Path) -> None:
    """Try what a file says, and write the report beside it."""
    task = Task(**json.loads(path.read_text()))
    watch = Watch(task, path.with_suffix(".now"))
    watch.now.write_text(NOWHERE)
    files = list(dict.fromkeys(test.partition("::")[0] for test in task.tests))
    until = "--continue-on-collection-errors" if task.to_the_end else "-x"
    words = ["-q", until, "--no-header", "-p", "no:cacheprovider", f"--basetemp={task.scratch}"]
    words += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # imported before pytest's time
    status = pytest.main([*words, *files], plugins=[watch])
    report = watch.report()
    if status not in (0, 1, 5) and not report.failed:
        report = report._replace(failed=[NOWHERE], said=f"status {int(status)}")
    path.with_suffix(".report").write_text(json.dumps(report._asdict()))


class Order(NamedTuple):
    """What the parent asks for."""

    task: str
    """File of the task."""
    tree: str
    """Where it is tried."""
    environment: dict[str, str]
    """What the environment has besides."""
    seconds: float
    """Of the processor, after which the system ends the process."""
    changed: str = ""
    """File that has another text than it had when the process began that forks."""
    original: str = ""
    """A file with that text."""


PRELOADED = (
    *("jax.numpy", "jax.scipy.linalg", "matplotlib.pyplot", "mpmath", "rich.progress"),
    *("scipy.optimize", "scipy.stats", "xarray", "h5netcdf"),
)
"""Modules that no mutant changes, but none that brings a plugin of pytest."""


SHARE = Path("/proc/self/autogroup")


def own_session(share: Path = SHARE) -> None:
    """Begin a session that keeps the last one's share of the processor, where the system has such.

    Args:
        share: file in which Linux says it; empty for a session that shares with all others.
    """
    nice = ""
    with contextlib.suppress(OSError):
        nice = share.read_text().rpartition(" nice ")[2].strip()
    os.setsid()
    if nice not in ("", "0"):
        with contextlib.suppress(OSError):  # not ours to set
            share.write_text(nice)


def carried_out(order: Order, imported: Imported | None) -> int:
    """In the forked process: be a session of one's own, and try; the status."""
    own_session()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(nowhere, handle)
    most = int(order.seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    os.chdir(order.tree)
    os.environ |= order.environment
    sys.path[0] = order.tree
    if imported and order.changed:
        if not imported.swap(Path(order.changed), Path(order.original)):
            return COLD
    attempt(Path(order.task))
    return 0


def as_tests_do() -> None:
    """What ``tests/conftest.py`` does before most modules are imported, but for opening devices."""
    jaxtyping.install_import_hook("lrdyn", "beartype.beartype")
    importlib.import_module("lrdyn")
    jax.config.update("jax_enable_x64", True)


def serve(*, warm: bool) -> None:
    """Fork a process for each order; say its number, then its status and seconds."""
    for name in PRELOADED:
        importlib.import_module(name)
    imported = (
        Imported([name for name in OURS if Path(name).is_dir()], as_tests_do) if warm else None
    )
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            status = 1
            try:
                status = carried_out(Order(**json.loads(line)), imported)
            finally:
                os._exit(status)
        print(pid, flush=True)
        _, ended, usage = os.wait4(pid, 0)
        seconds = usage.ru_utime + usage.ru_stime
        print(json.dumps([os.waitstatus_to_exitcode(ended), seconds]), flush=True)


if __name__ == "__main__":
    serve(warm="warm" in sys.argv[1:])
