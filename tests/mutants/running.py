"""Running mutants: each in a copy of the tree, in processes that end with it, within its time."""

import ast
import contextlib
import functools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lrdyn.registry import REGISTRY
from tests.mutants import attempt, operators
from tests.mutants.attempt import Order, Report, Task
from tests.mutants.drawing import Drawn
from tests.mutants.operators import Mutant
from tests.mutants.references import Graph
from tests.runs import FINISHED, ROOT

MADE = {
    *(".git", ".venv", ".programs", ".aot", "build", "dist", "results", "__pycache__"),
    *(".pytest_cache", ".ruff_cache", ".hypothesis"),
}
"""What is made of sources, or is no source: none of it is copied."""

RUN = ("lrdyn", "experiments")
"""Folders of what makes results."""

JUDGES, RUNS = 10.0, 60.0
"""Seconds of the processor for a mutant of what only judges, on saved results, and for others."""

HANGS, WAITS = 3.0, 10.0
"""A mutant that takes so many times its seconds of the processor hangs, and so does one that takes
so many times those of the clock, or waits."""

LOOKS = 1.0
"""Seconds between two looks at what a mutant has taken."""

COMMANDS = "tests/mutants/commands.py"
JUDGED, RAN = f"{COMMANDS}::test_saved_results_hold", f"{COMMANDS}::test_the_run_holds"
SCENARIO, CONTROL, REFEREE = (
    f"{COMMANDS}::test_the_scenario_holds",
    f"{COMMANDS}::test_the_numbers_of_a_control_are_what_they_were",
    f"{COMMANDS}::test_the_referee_agrees",
)
FORMULAS = (
    "tests/test_formulas_kept.py::test_a_public_function_gives_what_it_gave",
    "tests/test_formulas_kept.py::test_formulas_give_what_they_gave_far_from_their_examples",
)
"""Formulas at arguments far from the usual ones: a mutant begins with those that name it."""
OUTCOMES = (
    "tests/test_thresholds.py::test_what_a_claim_lets_pass_is_what_it_was",
    "tests/test_made_up_outcomes.py::test_what_is_said_of_outcomes_that_no_run_leaves",
)
"""What claims say of saved results, and of what no run leaves: the nearest tests of a judge."""
SIDES = "tests/test_referee.py::test_both_sides_that_the_referee_computes_are_what_they_were"
PARTS = (SCENARIO, CONTROL, REFEREE, SIDES, *FORMULAS, *OUTCOMES)
"""Tests of which a mutant sees what it reaches, so that their seconds are of no use to others."""

FIRST = 300.0
"""Seconds of the processor for a small run whose programs nobody has compiled yet."""

FAMILIAR = 2
"""Theorems of which a mutant sees the command: the nearest ones."""

UNKNOWN = 0.5
"""Seconds of a test that did not run yet."""

WHOLE = 10.0
"""The same of one that runs a whole command."""

SCENARIOS = 4.0
"""The same of the scenarios or claims that a mutant reaches, however many another one does."""

LISTED = 4
"""Times the budget of which tests are listed: many take less than was guessed, and what does not
begin in time is left."""

COMPILED = 40.0
"""Seconds of a small run some of whose programs are compiled anew."""


class Note(NamedTuple):
    """What became of a mutant."""

    key: str
    kind: str
    file: str
    line: int
    within: str
    operator: str
    before: str
    after: str
    ended: str
    """Killed by the ``command``, by ``tests`` or by ``time``, or ``alive``."""
    by: str = ""
    """The test that killed it."""
    said: str = ""
    """With which words."""
    ran: int = 0
    """How many tests ran."""
    left: int = 0
    """How many more there were."""
    seconds: float = 0.0
    """Of the processor."""


class Ended(NamedTuple):
    """A child process."""

    in_time: bool
    seconds: float
    status: int | None


class Workshop:
    """A copy of the tree in which mutants run, and what is known of its tests.

    Args:
        folder: where it lies; it is made at the first use, and kept for the next.
        root: the tree.
    """

    def __init__(self, folder: Path, root: Path = ROOT):
        self.tree, self.saved = folder / "tree", folder / "saved"
        self.folder, self.root = folder, root
        known = self._read("seconds.json")
        for id in PARTS:  # from when they were no parts
            known.pop(id, None)
        self.seconds: dict[str, float] = {RAN: COMPILED} | known
        self.passes: dict[str, bool] = self._read("passes.json")
        """Whether a test passes without a mutant, or passed with one that it does not see."""
        self.younger = int(time.time())
        self._copy()
        self.servers: dict[str, Server] = {}

    @functools.cached_property
    def graph(self) -> Graph:
        """Which tests reach what."""
        return Graph(self.root)

    def server(self, *words: str) -> "Server":
        """The process that forks, cold or ``warm``; it begins when it is first needed."""
        key = " ".join(words)
        if key not in self.servers:
            self.servers[key] = Server(self.tree, *words)
        return self.servers[key]

    def close(self) -> None:
        """End the processes that fork."""
        for server in self.servers.values():
            server.close()

    def _read(self, name: str) -> dict:
        path = self.folder / name
        return json.loads(path.read_text()) if path.exists() else {}

    def _copy(self) -> None:
        """Bring the copy up to date: files that differ, and none that is gone; caches stay."""
        wanted = set()
        for source in _files(self.root):
            target = self.tree / source.relative_to(self.root)
            wanted.add(target)
            if not target.exists() or _facts(source) != _facts(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
                if source.relative_to(self.root).parts[0] in RUN or source.name == "runs.py":
                    shutil.rmtree(self.saved, ignore_errors=True)  # results of other code
                if target.parent.name != "mutants" or target.name == Path(COMMANDS).name:
                    self.passes = {}  # of tests that may be others now
        for path in _files(self.tree):
            if path not in wanted:
                path.unlink()

    # What is tried -------------------------------------------------------------------------

    def task(self, one: Drawn) -> Task:
        """Tests of a mutant that fit into its time, the nearest and cheapest first."""
        mutant = one.mutant
        start = self.graph.node(mutant.file, mutant.within)
        of_referee = one.kind == "referee"
        judges = of_referee or (self.graph.only_judges(start) and not self._of_a_control(mutant))
        budget = JUDGES if judges else RUNS
        if of_referee:
            theorems = self.graph.refereed(start)[:FAMILIAR] or list(REGISTRY)
        else:
            theorems = self.graph.theorems(start)[:FAMILIAR]
        tests = self.graph.tests(start)
        found = {test.id: test.distance for test in tests}
        general = [test.id for test in tests if test.general]
        anew = {test.id for test in tests if test.shared and not judges}  # its small run
        whole = anew | {test.id for test in tests if test.whole}
        if of_referee and not mutant.file.startswith("referee/exact/"):
            found |= {REFEREE: 0, SIDES: 1}
        elif theorems and not of_referee:
            nearest = {JUDGED: 1} | dict.fromkeys(OUTCOMES, 0)
            found |= nearest if judges else {SCENARIO: 0, CONTROL: 1, RAN: 1}
        blamed = {attempt.named(test) for test, passes in self.passes.items() if not passes}
        guessed = {id: WHOLE if id in whole else UNKNOWN for id in found}
        guessed |= dict.fromkeys(PARTS, SCENARIOS) | dict.fromkeys(FORMULAS, UNKNOWN)
        known = {id: self.seconds.get(id, guessed[id]) for id in found}
        seconds = {id: max(known[id], WHOLE) if id in anew else known[id] for id in found}
        price = {id: (1 + far) * (UNKNOWN + seconds[id]) for id, far in found.items()}
        chosen, total = [], 0.0
        for id in sorted(found, key=lambda id: (price[id], id)):
            if id not in blamed and seconds[id] <= budget:
                chosen.append(id)
                total += seconds[id]
            if total > LISTED * budget:
                break
        claims = sorted(self.graph.claims_of(start))
        scratch = str(self.folder / "scratch")
        of = sorted(self.graph.scenarios_of(start))
        return Task(
            *(chosen, list(REGISTRY), theorems, general, claims, budget, scratch, of),
            module=start[0].removeprefix("lrdyn."),
            function=start[1],
            saved=str(self.saved) if judges else "",
        )

    def _of_a_control(self, mutant: Mutant) -> bool:
        """Whether it is in the run or the prediction of a control, which is no judge's."""
        source = (self.root / mutant.file).read_text()
        line = source[: mutant.start].count("\n") + 1
        for node in ast.walk(ast.parse(source)):
            match node:
                case ast.Call(ast.Name("Control"), keywords=keywords):
                    for keyword in keywords:
                        lines = range(keyword.lineno, (keyword.end_lineno or 0) + 1)
                        if keyword.arg in ("predict", "measure", "case") and line in lines:
                            return True
        return False

    def _seconds(self, test: str) -> float:
        return self.seconds.get(test, UNKNOWN)

    # Trying --------------------------------------------------------------------------------

    def try_mutant(self, one: Drawn) -> Note:
        """Run a mutant against its tests."""
        mutant = one.mutant
        changed = operators.applied((self.root / mutant.file).read_text(), mutant)
        with self._changed(mutant.file, changed):
            ended, report = self._attempt(self.task(one), mutant.file)
        self._learn(report)
        note = Note(
            *(mutant.key, one.kind, mutant.file, mutant.line, mutant.within),
            *(mutant.operator, mutant.before, mutant.after, "alive"),
            said=report.said,
            ran=report.ran,
            left=report.left,
            seconds=round(ended.seconds, 1),
        )
        if not report.failed:
            return note
        by = "command" if report.failed[0].startswith(COMMANDS) else "tests"
        return note._replace(ended=by if ended.in_time else "time", by=report.failed[0])

    def no_witnesses(self, notes: Iterable[Note]) -> set[str]:
        """Mutants whose test fails in a tree that nobody changed, or takes as long there.

        A test that passed with another mutant is not asked again.
        """
        # That a small run ends well has been seen by `save`.
        asked = {note.key: note for note in notes if note.by and not note.by.startswith(RAN)}
        tests = {note.by for note in asked.values()} - {attempt.NOWHERE}
        if unknown := sorted(tests - self.passes.keys()):
            every, scratch = list(REGISTRY), str(self.folder / "scratch")
            task = Task(
                unknown,
                every,
                every,
                [],
                [],
                RUNS * len(unknown),
                scratch,
                saved=str(self.saved),
                to_the_end=True,
            )
            _, report = self._attempt(task)
            self._learn(report)
            for test in unknown:
                ran = "::" not in test or attempt.named(test) in report.seconds
                self.passes[test] = ran and test not in report.failed
            self._write("passes.json", self.passes)
        slow = {
            key
            for key, note in asked.items()
            if note.ended == "time" and 2 * self._seconds(attempt.named(note.by)) > note.seconds
        }
        return slow | {key for key, note in asked.items() if not self.passes.get(note.by, True)}

    @contextlib.contextmanager
    def _changed(self, file: str, text: str):
        """The copy with another text of a file, of a time that no other text of it had.

        By its time Python knows whether what it compiled of a file is of this text.
        """
        target, source = self.tree / file, self.root / file
        target.write_text(text)
        self.younger += 1
        os.utime(target, (self.younger, self.younger))
        try:
            yield
        finally:
            shutil.copy2(source, target)

    def _learn(self, report: Report) -> None:
        new = {n: s for n, s in report.seconds.items() if n not in PARTS}
        self.seconds |= {n: s for n, s in new.items() if s > self.seconds.get(n, 0.0)}
        self._write("seconds.json", self.seconds)
        self.passes |= {test: True for test in report.passed if self.passes.get(test, True)}
        self._write("passes.json", self.passes)

    def _write(self, name: str, content: dict) -> None:
        path = self.folder / name
        path.with_suffix(".new").write_text(json.dumps(content, indent=0, sort_keys=True))
        path.with_suffix(".new").replace(path)

    def _attempt(
        self, task: Task, changed: str = "", *, cold: bool = False
    ) -> tuple[Ended, Report]:
        """Run tests in the copy, of which a file is changed.

        Args:
            task: what is tried.
            changed: path of the file.
            cold: whether the library is imported anew in any case.
        """
        path = self.folder / "task.json"
        answer = path.with_suffix(".report")
        for left in (answer, path.with_suffix(".now")):
            left.unlink(missing_ok=True)
        path.write_text(json.dumps(task._asdict()))
        more = {FINISHED: task.saved} if task.saved else {}
        limit = HANGS * task.budget
        original = str(self.root / changed) if changed else ""
        order = Order(str(path), str(self.tree), more, limit, changed, original)
        ended = self.server(*[] if cold else ["warm"]).carry_out(order, clock=WAITS * limit)
        if ended.status == attempt.COLD:
            ended = self.server().carry_out(order, clock=WAITS * limit)
        if answer.exists():
            return ended, Report(**json.loads(answer.read_text()))
        # Killed, by us or by itself: the test that had begun did it.
        now = path.with_suffix(".now")
        said = f"the process ended with {ended.status}" if ended.in_time else "no end in time"
        if not now.exists():  # nothing of the mutant ran: that it was killed would be no finding
            raise RuntimeError(f"{said} before pytest began")
        return ended, Report([now.read_text()], said, 0, 0, {}, [])

    def save(self) -> None:
        """Make the results that mutants of judges judge: the small run of each theorem, once."""
        self.saved.mkdir(parents=True, exist_ok=True)
        for name in REGISTRY:
            if not (self.saved / f"{name}.json").exists():
                scratch = str(self.folder / "scratch")
                saved = str(self.saved)
                task = Task([RAN], list(REGISTRY), [name], [], [], FIRST, scratch, saved=saved)
                _, report = self._attempt(task, cold=True)
                if report.failed or not report.ran:
                    raise RuntimeError(f"{name}: the small run fails without a mutant: {report}")


def _files(root: Path) -> list[Path]:
    """Sources of a tree, without what is made of them."""
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in MADE]
        found += [Path(folder, name) for name in names if name not in MADE]
    return found


def _facts(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


# Processes ------------------------------------------------------------------------------------


class Server:
    """A process that has imported what no mutant changes, and forks for each of them.

    Args:
        tree: where it starts.
        words: ``warm`` if it imports the tree, too.
    """

    def __init__(self, tree: Path, *words: str):
        left_out = ("LRDYN", "PYTHONDONTWRITEBYTECODE")
        ours = {name: v for name, v in os.environ.items() if not name.startswith(left_out)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.mutants.attempt", *words],
            cwd=tree,
            env={**ours, "PYTHONPATH": str(tree)},
            bufsize=0,  # what was read ahead would be no answer to wait for
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def carry_out(self, order: Order, *, clock: float) -> Ended:
        """Carry out an order in a session of its own, which ends with it, however it ends.

        Args:
            order: with the seconds of the processor that it may take, with all that it starts.
            clock: seconds that may pass meanwhile.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order._asdict()).encode() + b"\n")
        session, begin, in_time = int(self._answer()), time.monotonic(), True
        try:
            while in_time and not self._answered(LOOKS):
                passed = time.monotonic() - begin
                in_time = passed < clock and _spent(session) < order.seconds
        finally:
            end_session(session)
        status, seconds = json.loads(self._answer())
        return Ended(in_time and status != -signal.SIGXCPU, seconds, status)

    def close(self) -> None:
        """Let it end."""
        self.process.communicate()

    def _answered(self, seconds: float) -> bool:
        assert self.process.stdout is not None
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def _answer(self) -> bytes:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended with {self.process.wait()}")
        return line


def _sessions() -> dict[int, tuple[int, float]]:
    """Process -> its session, and seconds of the processor with those that it waited for."""
    found, tick = {}, os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] not in "ZX":
                spent = sum(map(int, fields[11:15])) / tick
                found[int(path.parent.name)] = (int(fields[3]), spent)
    return found


def _spent(session: int) -> float:
    return sum(spent for its, spent in _sessions().values() if its == session)


def end_session(session: int) -> None:
    """End every process of a session, also those in groups of their own, and wait for that."""
    while True:
        left = [pid for pid, (its, _) in _sessions().items() if its == session]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(session, signal.SIGKILL)
        if not left:
            return
        time.sleep(0.01)
