"""Damaged files at random: ``python -m tests.faults.foreign_files [N] [SEED] [READER ...]``.

N files (default 2,000) for each reader of :mod:`tests.foreign`, with one to four edits each. A file
ends in a value or in one line that names it, within five seconds of processor time and two
gigabytes beside what the process had. What ends otherwise, the process with it or not, is kept in a
folder that is named at the end: it belongs into ``tests/data/foreign/found``, once it is mended.
"""

import random
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.foreign import READERS, WORDS, Edit, edited, outcome
from tests.runs import ROOT

SECONDS, BYTES = 5.0, 2**31


def edits_of(seed: str) -> list[Edit]:
    """One to four edits."""
    draw = random.Random(seed)
    return [
        (draw.random(), draw.randrange(-3, len(WORDS)), draw.choice((0, 1, 1, 2, 4, 8, 30)))
        for _ in range(draw.randint(1, 4))
    ]


def content_of(name: str, seed: str) -> bytes:
    """The damaged file of a seed."""
    return edited(READERS[name].file.read_bytes(), edits_of(seed))


def read_some(name: str, seed: str, first: int, last: int) -> None:
    """Read files of these numbers; a line for each before it is read, and one for each fault."""
    reader = READERS[name]
    with tempfile.TemporaryDirectory() as base:
        reader.place(Path(base), reader.file.read_bytes())
        assert not outcome(reader, Path(base))  # what is imported and traced once is not counted
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
    for number in range(first, last):
        with tempfile.TemporaryDirectory() as base:
            reader.place(Path(base), content_of(name, f"{seed} {number}"))
            print(number, flush=True)
            # Without a handler the signal of this timer ends the process, whatever it is in.
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            fault = outcome(reader, Path(base))
            signal.setitimer(signal.ITIMER_PROF, 0)
        if fault:
            print(f"fault {number} {fault!r}", flush=True)


def faults_of(name: str, count: int, seed: str) -> dict[int, str]:
    """Number -> fault of the files of a reader; a process that ends goes on behind that file."""
    faults: dict[int, str] = {}
    first = 0
    while first < count:
        words = ("-m", "tests.faults.foreign_files", "--read", name, seed, str(first), str(count))
        done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
        lines = done.stdout.splitlines()
        for line in lines:
            if line.startswith("fault "):
                _, number, fault = line.split(" ", 2)
                faults[int(number)] = fault
        begun = [int(line) for line in lines if line.isdecimal()]
        if done.returncode == 0:
            break
        if not begun:
            raise RuntimeError(done.stderr)
        last = (done.stderr.splitlines() or [""])[-1]
        faults[begun[-1]] = f"the process ended with {done.returncode}: {last[:200]}"
        first = begun[-1] + 1
    return faults


def main(words: list[str]) -> int:
    """Run it for every reader, or one; 1 if a file ends otherwise."""
    count = int(words[0]) if words else 2000
    seed = words[1] if len(words) > 1 else "0"
    kept, bad = Path(tempfile.mkdtemp(prefix="lrdyn-foreign-")), 0
    for name in words[2:] or READERS:
        faults = faults_of(name, count, seed)
        for number, fault in faults.items():
            path = kept / f"{name.replace(' ', '-')}-{seed}-{number}{READERS[name].file.suffix}"
            path.write_bytes(content_of(name, f"{seed} {number}"))
            print(f"{path}: {fault}", flush=True)
        print(f"{name}: {count} files, {len(faults)} faults", flush=True)
        bad += len(faults)
    return int(bad > 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read_some(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        sys.exit(main(sys.argv[1:]))
