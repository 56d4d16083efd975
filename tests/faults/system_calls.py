"""System calls that fail, one at a time: ``python -m tests.faults.system_calls [N]``.

Linux's strace fails a system call of one small command on one of its own files: a call of each kind
and each file, in turn, at most N times (default 300). The command must end with 0, 2 or 3 and one
line, and change nothing outside of its folder. Each try is a fork of one process that has imported
everything: most seconds of a small command are imports, which touch none of its files.
"""

import errno
import hashlib
import importlib
import itertools
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from lrdyn import __main__ as command
from lrdyn.commands import verify
from lrdyn.core.show import aligned
from lrdyn.figures import plotting
from lrdyn.system import whole_files
from lrdyn.verification.runs.run_folder import OF_THE_MACHINE
from lrdyn.verification.storing import results_file
from tests.faults.disks import SMALL
from tests.runs import ROOT
from tests.verification.test_theorem import MY_THEOREM

SHARES = {"nothing": 0.55, "killed": 0.3, "no programs": 0.1, "programs": 0.05}
"""What there is when the command starts -> share of the tries: no folder, that of a run that was
killed after one of an older version ended, no compiled programs, or all of them."""
PROGRAMS = ("no programs", "programs")
"""In these calls on the folder of compiled programs fail, without which everything goes on."""

LIMIT = 120.0
"""Seconds after which a command hangs; it takes two on an idle core."""

ERRORS = {
    "openat": ("EACCES", "EMFILE", "EIO", "ENOSPC+", "EROFS", "ENOENT"),
    "read": ("EIO", "EINTR", "EIO+"),
    "pread64": ("EIO", "EINTR"),
    "write": ("ENOSPC", "EIO", "EDQUOT+", "EINTR", "ENOSPC+"),
    "pwrite64": ("ENOSPC", "EIO+"),
    "ftruncate": ("EIO", "ENOSPC"),
    "fsync": ("EIO", "ENOSPC"),
    "rename": ("EACCES", "EIO", "ENOSPC", "EROFS+"),
    "mkdir": ("EACCES", "ENOSPC", "EROFS", "EDQUOT+"),
    "unlink": ("EACCES", "EIO", "EROFS+"),
    "unlinkat": ("EACCES", "EIO", "EROFS+"),
    "rmdir": ("EBUSY", "EIO+"),
    "chmod": ("EPERM", "EROFS"),
    "flock": ("ENOLCK", "EINTR", "EIO"),
    "newfstatat": ("EIO", "EACCES", "ENOENT"),
    "fstat": ("EIO", "ENOMEM"),
    "statx": ("EIO", "EACCES"),
    "access": ("EACCES", "EIO"),
    "readlink": ("EIO", "EACCES"),
    "getdents64": ("EIO", "ENOMEM"),
    "lseek": ("EIO", "EINVAL"),
    "close": ("EIO", "EDQUOT", "EINTR"),
    "fcntl": ("EMFILE", "EINVAL"),
}
"""Errors that each kind of call can give; with a plus sign it gives it from then on."""

KILLED = {"rename": 4, "write": 4, "unlinkat": 2, "mkdir": 2}
"""At how many calls of a kind the process is ended instead, by SIGKILL and by SIGTERM in turn."""
STATUS = {"KILL": -signal.SIGKILL, "TERM": 128 + signal.SIGTERM}
PART = r"parts/[0-9a-f]{12}/[0-9]+-[0-9a-f]{20}\.npz"
KEPT = r"jit_.*|lrdyn-[0-9a-f]{32}\.(json|program)"
"""Files in a folder of compiled programs."""
PROGRESS = r"(?m)^my_theorem: \d+ of \d+ points.*\n"
"""What a command says that takes long, on a loaded machine."""
AFTERWARDS = 8
"""One try of so many is followed by the same command without a fault; so is each killed one."""


class Call(NamedTuple):
    """A system call of the undisturbed command on one of its files."""

    kind: str
    path: str
    number: int
    """Which of this kind on this path."""
    total: int
    """Which of this kind on any path; both are counted for each thread, as strace does."""


class Try(NamedTuple):
    """A call, and the error or signal that it meets."""

    call: Call
    fault: str

    def words(self, paths: Sequence[str]) -> list[str]:
        """Arguments of strace; an error that stays is met by calls on all paths."""
        name, stays, _ = self.fault.partition("+")
        kind = "signal" if name in STATUS else "error"
        when = f"{self.call.total}+" if stays else self.call.number
        chosen = [word for path in (paths if stays else [self.call.path]) for word in ("-P", path)]
        fault = f"inject={self.call.kind}:{kind}={name}:when={when}"
        return [*chosen, "-e", f"trace={self.call.kind}", "-e", fault]


class Ended(NamedTuple):
    """How a command ended."""

    status: int | None
    """None if it was still there after :data:`LIMIT`."""
    stdout: str
    stderr: str
    traced: str
    """What strace wrote."""
    faults: list[str]
    """What is wrong."""


class Bench:
    """A folder with everything that the command may see, and how it runs there.

    Args:
        folder: an empty one, in which this process is, with HOME and TMPDIR below it.
    """

    def __init__(self, folder: Path):
        self.folder, self.out, self.log = folder, folder / "out", folder / "log"
        self.programs = folder / "programs"
        self.failing = self.out
        """Where calls fail: in the folder of results, or in that of compiled programs."""
        for name in ("log", "victim/thesis", "states"):
            (folder / name).mkdir(parents=True)
        (folder / "victim" / "thesis" / "step-0000000001.ckpt").write_text("mine")
        (folder / "victim" / ".lrdyn-0123456789abcdef.nc").write_text("mine")
        (folder / "mine.py").write_text(MY_THEOREM)

    def run(self, *words: str) -> Ended:
        """Run the command in a fork of this process, with strace and its arguments, if any."""
        names = {name: self.log / name for name in ("stdout", "stderr", "traced")}
        for path in names.values():
            path.write_text("")
        read, write = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            for number, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(names[name], os.O_WRONLY), number)
            # No other files of programs: what is written depends on how long a compilation took.
            keeps = self.failing == self.programs
            os.environ["LRDYN_CACHE"] = os.fspath(self.programs) if keeps else ""
            verify.is_ours = lambda theorem: True  # whose programs are kept
            verify.REGISTRY["my_theorem"] = "lrdyn.lora.statement:LORA"  # any code of the library
            sys.argv = ["lrdyn", "verify", "mine.py", *SMALL, "--out", os.fspath(self.out)]
            sys.exit(command.main())
        os.close(read)
        tracing = ["strace", "-f", "-y", "-o", os.fspath(names["traced"]), "-p", str(child)]
        tracer = subprocess.Popen([*tracing, *words], stderr=subprocess.DEVNULL) if words else None
        while tracer and tracer.poll() is None and not _has_tracer(child):
            time.sleep(0.01)
        time.sleep(0.02)  # strace attaches and then stops the process, which must not yet go on
        os.write(write, b"!")
        os.close(write)
        status = _waited(child)
        if tracer:
            tracer.wait(10)
        stdout, stderr, traced = (path.read_text(errors="replace") for path in names.values())
        stderr = re.sub(PROGRESS, "", stderr)
        return Ended(status, stdout, stderr, traced, [])

    def begin(self, state: str) -> None:
        """Put both folders into a state."""
        self.failing = self.programs if state in PROGRAMS else self.out
        for path in (self.out, self.programs):
            shutil.rmtree(path, ignore_errors=True)
        if (self.folder / "states" / state).exists():
            shutil.copytree(self.folder / "states" / state, self.failing)

    def calls(self, state: str) -> list[Call]:
        """Every call of the undisturbed command on what is below the folder where calls fail."""
        self.begin(state)
        ended = self.run("-e", "trace=%file,%desc")
        assert ended.status == 0, ended
        found, single, all_paths = {}, Counter(), Counter()
        for line in ended.traced.splitlines():
            begun = re.match(r"(\d+) +(\w+)\((.*)", line)
            named = begun and re.search(rf'[<"]({re.escape(str(self.failing))}[^>"]*)', begun[3])
            if begun and named and begun[2] in ERRORS:
                thread, kind = begun[1], begun[2]
                single[thread, kind, named[1]] += 1
                all_paths[thread, kind] += 1
                number, total = single[thread, kind, named[1]], all_paths[thread, kind]
                # Where two threads have an nth call on one path, strace fails both.
                found.setdefault((kind, named[1], number), Call(kind, named[1], number, total))
        return list(found.values())

    def outside(self) -> dict[str, str]:
        """Everything but the folders that the command writes to: path -> digest of the content."""
        own = (self.out, self.failing, self.log)
        return {
            os.fspath(path.relative_to(self.folder)): _digest(path)
            for path in self.folder.rglob("*")
            if not any(map(path.is_relative_to, own))
        }

    def inside(self) -> set[str]:
        """Every file in the folder of the run, whose place is ``out/my_theorem/HASH``."""
        paths = [path.relative_to(self.out) for path in self.out.rglob("*") if path.is_file()]
        return {"/".join(path.parts[2:]) for path in paths}


def _has_tracer(process: int) -> bool:
    return "TracerPid:\t0\n" not in Path(f"/proc/{process}/status").read_text()


def _waited(child: int) -> int | None:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


# What is tried ------------------------------------------------------------------------------------


def plan(calls: Sequence[Call], most: int) -> list[Try]:
    """Share the tries among the kinds of calls, and spread those of a kind over the command.

    A kind of few calls leaves the rest of its share to the others, once each call met each error.
    """
    kinds = defaultdict(list)
    for call in calls:
        kinds[call.kind].append(call)
    tries = [
        Try(call, ("KILL", "TERM")[index % 2])
        for kind, count in KILLED.items()
        for index, call in enumerate(_spread(kinds[kind], count * most // 150))
    ]
    by_number = sorted(kinds, key=lambda kind: len(kinds[kind]) * len(ERRORS[kind]))
    for place, kind in enumerate(by_number):
        share, errors = (most - len(tries)) // (len(kinds) - place), ERRORS[kind]
        if share <= len(kinds[kind]):
            each = enumerate(_spread(kinds[kind], share))
        else:  # in the next round each call meets the next error
            rounds = itertools.product(range(len(errors)), enumerate(kinds[kind]))
            each = ((turn + index, call) for turn, (index, call) in itertools.islice(rounds, share))
        tries += [Try(call, errors[number % len(errors)]) for number, call in each]
    return tries


def _spread(these: Sequence[Call], count: int) -> list[Call]:
    count = min(count, len(these))
    return [these[index * len(these) // count] for index in range(count)]


def attempt(bench: Bench, state: str, this: Try, paths: Sequence[str], whole: Set[str]) -> Ended:
    """Run the command with one fault; what is wrong with its end is in ``faults``."""
    bench.begin(state)
    outside, before = bench.outside(), bench.inside()
    ended = bench.run(*this.words(paths))
    ended.faults.extend(_of_the_end(bench, this, ended))
    ended.faults.extend(_of_the_folder(bench, this, ended, whole, before))
    changed = outside.items() ^ bench.outside().items()
    ended.faults.extend(f"changed {name}" for name in sorted({name for name, _ in changed}))
    return ended


def _of_the_end(bench: Bench, this: Try, ended: Ended) -> Iterator[str]:
    """What is wrong with the status and the lines of a command."""
    # What cannot be read is computed again, which a line of its own says.
    lines = [line for line in ended.stderr.splitlines() if ": damaged (" not in line]
    name = this.fault.removesuffix("+")
    if this.fault in STATUS:
        wanted = {STATUS[this.fault]}
    elif bench.failing == bench.programs:
        wanted = {0}
    else:
        wanted = {0, 3} if getattr(errno, name) in OF_THE_MACHINE else {0, 2, 3}
    if ended.status not in wanted:
        yield f"status {ended.status}"
    if "Traceback" in ended.stderr or "internal error" in ended.stderr:
        yield f"stderr {lines}"
    elif len(lines) != (0 if ended.status == 0 or this.fault == "KILL" else 1):
        yield f"stderr {lines}"
    elif ended.status == 0 and " holds: " not in ended.stdout:
        yield f"stdout {ended.stdout!r}"
    elif ended.status in (2, 3) and os.fspath(bench.out) not in lines[0]:
        yield f"no file is named: {lines}"


def _of_the_folder(
    bench: Bench, this: Try, ended: Ended, whole: Set[str], before: Set[str]
) -> Iterator[str]:
    """What is wrong with the files that are there: bad input leaves those of before, alone."""
    inside = bench.inside()
    cannot_remove = this.call.kind in ("unlink", "unlinkat", "rmdir") or this.fault.endswith("+")
    may = whole if ended.status == 0 else before if ended.status == 2 else before | whole
    for name in inside - may:
        part = re.fullmatch(PART, name) and ended.status not in (0, 2)
        scratch = re.fullmatch(f"(parts/[0-9a-f]{{12}}/)?{whole_files.SCRATCH}", name)
        if not part and not cannot_remove and not (scratch and this.fault == "KILL"):
            yield f"left {name}"
    if ended.status == 2 and not before and bench.out.exists() and not cannot_remove:
        yield "left a folder"
    if ended.status == 0:
        yield from (f"{name} is missing" for name in whole - inside)
    for path in bench.programs.rglob("*"):
        if path.is_file() and not re.fullmatch(KEPT, path.name):
            if not cannot_remove and this.fault != "KILL":
                yield f"left {path.name}"
    for path in bench.out.rglob("verdict.json"):
        verdict = json.loads(path.read_text())
        digest = results_file.checksum(path.with_name("results.nc"))
        if verdict["holds"] is not True or verdict["results_sha256"] != digest:
            yield "a verdict of other results"


def afterwards(bench: Bench, whole: Set[str]) -> Iterator[str]:
    """What is wrong with the same command after one that met a fault."""
    ended = bench.run()
    lines = ended.stderr.splitlines()
    if ended.status != 0 or not all(": damaged (" in line for line in lines):
        yield f"then status {ended.status}, {lines}"
    if left := bench.inside() ^ whole:
        yield f"then {sorted(left)}"


# All of it ----------------------------------------------------------------------------------------


def prepare(bench: Bench) -> set[str]:
    """Make the states; the files of a whole folder."""
    bench.begin("nothing")
    _undisturbed(bench)
    whole = bench.inside()
    # An older version left other results and their verdict; this one is killed before its own.
    (path,) = bench.out.rglob("verdict.json")
    with path.with_name("results.nc").open("ab") as file:
        file.write(b"older")
    verdict = json.loads(path.read_text())
    verdict["results_sha256"] = results_file.checksum(path.with_name("results.nc"))
    path.write_text(json.dumps(verdict))
    shutil.copytree(bench.out, bench.folder / "states" / "older")
    calls = bench.calls("older")
    call = next(c for c in calls if c.kind == "rename" and c.path.endswith(".nc"))
    bench.begin("older")
    ended = bench.run(*Try(call, "KILL").words([]))
    assert ended.status == STATUS["KILL"], ended
    assert any(re.fullmatch(PART, name) for name in bench.inside())
    shutil.copytree(bench.out, bench.folder / "states" / "killed")
    bench.begin("no programs")
    _undisturbed(bench)
    assert list(bench.programs.rglob("*.program"))
    shutil.copytree(bench.programs, bench.folder / "states" / "programs")
    return whole


def _undisturbed(bench: Bench) -> None:
    ended = bench.run()
    assert (ended.status, ended.stderr) == (0, ""), ended


def work(folder: Path, most: int) -> int:
    """Try everything in this process; the number of tries that ended badly."""
    warnings.simplefilter("ignore")  # of forks: nothing of JAX has started
    count = itertools.count()
    secrets.token_hex = lambda nbytes=None: f"{next(count):0{2 * (nbytes or 32)}x}"
    os.cpu_count = lambda: 1  # one thread computes: its calls have an order
    # What every fork would do again, and what is none of the command's own files.
    for name in ("h5netcdf", "xarray"):
        importlib.import_module(name)
    results_file._revision()  # asks git
    plotting.save(plotting.blank_figure(1.0), folder / "home" / "fonts")
    for name in ("verdict_figure", "sweep_figure"):  # half of the seconds; saved as ever
        setattr(plotting, name, lambda *given: plotting.blank_figure(1.0))

    bench, begin = Bench(folder), time.monotonic()
    whole = prepare(bench)
    bad = sum(fail_in_turn(bench, state, int(most * SHARES[state]), whole) for state in SHARES)
    print(f"{(time.monotonic() - begin) / 60:.0f} minutes, {bad} ended badly")
    return bad


def fail_in_turn(bench: Bench, state: str, most: int, whole: Set[str]) -> int:
    """Try all that is planned for one state and print a table; how many tries ended badly."""
    calls, bad, seen = bench.calls(state), 0, defaultdict(Counter)
    paths = sorted({call.path for call in calls})
    for index, this in enumerate(plan(calls, most)):
        ended = attempt(bench, state, this, paths, whole)
        if index % AFTERWARDS == 0 or this.fault in STATUS:
            ended.faults.extend(afterwards(bench, whole))
        met = this.fault in STATUS or "(INJECTED" in ended.traced
        seen[this.call.kind][str(ended.status) if met else "not met"] += 1
        bad += bool(ended.faults)
        for fault in ended.faults:
            where = this.call.path.removeprefix(os.fspath(bench.failing)) or "/"
            what = f"{this.call.kind} {this.call.number} of {where}, {this.fault}"
            print(f"{state}: {what}: {ended.status}, {fault}", flush=True)
    total = sum(seen.values(), Counter())
    rows = [(f"{state}: status", *total)]
    rows += [(kind, *(str(seen[kind][end]) for end in total)) for kind in sorted(seen)]
    print("\n".join(aligned([*rows, ("all", *map(str, total.values()))])), flush=True)
    return bad


def main(most: int = 300) -> int:
    """Try, in a process that has HOME and all else in a folder of its own."""
    refused = _refused()
    if refused:
        print(f"system calls: not tried, {refused}")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        own = {"HOME": folder / "home", "TMPDIR": folder / "tmp"}
        for path in own.values():
            path.mkdir()
        paths = {"PYTHONPATH": ROOT, "XDG_CACHE_HOME": folder / "home"} | own
        more = {name: os.fspath(path) for name, path in paths.items()}
        words = [sys.executable, "-B", "-m", "tests.faults.system_calls", "here", str(most)]
        return subprocess.run(words, cwd=folder, env=os.environ | more, check=False).returncode


def _refused() -> str:
    """Why nothing can be tried here."""
    if shutil.which("strace") is None:
        return "there is no strace"
    with subprocess.Popen(["sleep", "1"]) as other:  # not a child of strace, as a fork is none
        words = ["strace", "-o", os.devnull, "-p", str(other.pid)]
        done = subprocess.run(words, check=False, capture_output=True)
    return "" if done.returncode == 0 else "strace may not trace other processes"


if __name__ == "__main__":
    if sys.argv[1:2] == ["here"]:
        sys.exit(min(work(Path.cwd(), int(sys.argv[2])), 1))
    sys.exit(main(*map(int, sys.argv[1:])))
