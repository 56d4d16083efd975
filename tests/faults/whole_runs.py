"""Whole small runs of every command: ``python -m tests.faults.whole_runs [N] [SEED] [NAME ...]``.

Each of N times (default 20) a command runs in a process and a folder of its own, with flags drawn
over their domains, in a third of the lines among words that are wrong; nothing is left out. It must
end as the contract says: status 0, 4, or 2 with one line of at most 200 characters on stderr,
nothing on stdout and nothing written; 1 only where something may be false or differ. NAME chooses
commands, such as ``"lrdyn diff"``. A line for each fault; the status is 1 if there is one.
"""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lrdyn.registry import theorems
from lrdyn.verification.searching.domains import draw_value
from lrdyn.verification.stating.statement import Experiment
from tests.faults import command_lines
from tests.runs import ROOT, small_words, started

LONGEST = 900.0
"""Seconds after which a run counts as one that hangs."""

FAR = 0.05
"""Probability that a number is far from the presets."""

UNSAFE = {"/", "..", "paper", "all", "--preset", "--out", "-h", "--help", "--jobs"}
"""Words that would run for hours, write elsewhere, or only print."""

WORDS = [word for word in command_lines.WORDS if word not in UNSAFE and "\udc80" not in word]
EXAMPLES = [
    str(ROOT / "docs" / "examples" / name)
    for name in ("balance.py", "balance_false.py", "saddle.py", "referee.py")
]
FIGURES = ("fig03", "fig06", "fig10", "table1")
SMALL_ALL = (
    *"--seeds 1 --steps 60 --dim 7 --depth 2 --rank 1 --rows 4 --cols 5 --period 10".split(),
    *"--keep-prob 0.5 --weight-decay 0 0.1 --optimizer sgd --problem regression".split(),
)

Draw = Callable[[random.Random, list[str]], list[str]]
"""Words of a line, from a source of numbers and the folders of results that are there."""


class Command(NamedTuple):
    """A command, how a line of it is drawn, and the statuses that it may have."""

    start: tuple[str, ...]
    draw: Draw
    statuses: tuple[int, ...] = (0, 2, 4)


def flags_of(one: Experiment) -> Draw:
    """The small run of the tests with some flags drawn over their domains."""

    def draw(rng: random.Random, _: list[str]) -> list[str]:
        numbers = np.random.default_rng(rng.randrange(2**32))
        drawn = [flag for flag in one.flags if flag.domain is not None]
        words = [*small_words(one.name), "--dtype", rng.choice(("float64", "float32"))]
        for flag in rng.sample(drawn, rng.randrange(4)):
            drawn_value = draw_value(flag, numbers, far=rng.random() < FAR)
            words += ["--" + flag.name.replace("_", "-"), str(drawn_value)]
        return words

    return draw


def among(most: int, *words: str) -> Draw:
    """So many of these words or of the folders of results, or one less."""
    return lambda rng, folders: rng.choices([*words, *folders], k=most - (rng.random() < 0.2))


def own(rng: random.Random, _: list[str]) -> list[str]:
    """A theorem in a file, with flags or without."""
    name = rng.choice(["", "", ":BALANCE", ":SADDLE", ":NOTHING", ":"])
    flags = [
        "--dim",
        str(rng.randrange(1, 6)),
        "--steps",
        str(rng.randrange(1, 50)),
        "--seeds",
        "1",
    ]
    return [rng.choice(EXAMPLES) + name, *(flags if rng.random() < 0.6 else [])]


def anything(rng: random.Random, folders: list[str]) -> list[str]:
    """A command, or none, and its words."""
    first = rng.choice(["verify", "list", "runs", "diff", "--version", "--help", ""])
    if first == "verify":
        return [first, "corollary1", *small_words("corollary1"), "--dtype", "float32"]
    return [word for word in (first, *among(2, "theorem2", "results")(rng, folders)) if word]


def figures(rng: random.Random, _: list[str]) -> list[str]:
    """Quick figures, drawn or checked."""
    words = [*rng.choice(((), ("draw",), ("check",))), rng.choice(FIGURES)]
    return [*words, *(["--preset", "quick"] if rng.random() < 0.3 else [])]


def weights(rng: random.Random, _: list[str]) -> list[str]:
    """Two checkpoints, of which one may be none, and flags of the adapter."""
    folder = ROOT / "tests" / "data" / "peft_adapters"
    files = [str(folder / f"{name}.safetensors") for name in ("base", "pissa_residual", "outputs")]
    plain = ((), ("--select", "first.*"), ("--top", rng.choice("0123")))
    made = ("--extract", "adapter", *rng.choice(((), ("--rank", str(rng.randrange(5))))))
    flags = rng.choice((*plain, made))
    return [*rng.choices(files, (4, 4, 1), k=2), *flags]


def all_small(rng: random.Random, _: list[str]) -> list[str]:
    """Every theorem, one or two at a time."""
    dtype = rng.choice(("float64", "float32"))
    return [
        *SMALL_ALL,
        "--jobs",
        rng.choice("12"),
        "--dtype",
        dtype,
        "--seed",
        str(rng.randrange(9)),
    ]


COMMANDS = {
    **{
        f"lrdyn verify {one.name}": Command(("lrdyn", "verify", one.name), flags_of(one))
        for one in theorems()
    },
    "lrdyn verify FILE.py": Command(("lrdyn", "verify"), own, (0, 1, 2, 4)),
    "lrdyn verify all": Command(("lrdyn", "verify", "all"), all_small),
    "lrdyn list": Command(("lrdyn", "list"), lambda rng, _: []),
    "lrdyn runs": Command(("lrdyn", "runs"), among(1, ".", "results", "corollary1")),
    "lrdyn diff": Command(("lrdyn", "diff"), among(2), (0, 1, 2)),
    "lrdyn completion": Command(("lrdyn", "completion"), among(1, "bash", "zsh", "fish"), (0, 2)),
    "lrdyn help": Command(("lrdyn", "help"), among(2, "verify", "theorem2", "runs"), (0, 2)),
    "lrdyn diagnose": Command(("lrdyn", "diagnose"), weights, (0, 2)),
    "lrdyn": Command(("lrdyn",), anything, (0, 1, 2, 4)),
    "experiments": Command(
        ("experiments",), lambda rng, _: ["all", *all_small(rng, _)][: rng.choice((0, 0, 99))]
    ),
    "paper_figs": Command(("paper_figs",), figures),
}


class Ended(NamedTuple):
    """What a run left."""

    status: int
    out: str
    err: str
    written: bool

    def fault(self, statuses: tuple[int, ...]) -> str:
        """What is not as the contract has it; empty if all is."""
        *before, last = self.err.splitlines() or [""]
        for sign in ("Traceback", "Warning", "internal error"):
            if sign in self.out + self.err:
                return f"{sign}: {last[:200]!r}"
        if self.status not in statuses:
            return f"status {self.status}: {(last or self.out[-200:])[:200]!r}"
        others = [line for line in before if not re.search(r": [\d,]+ of [\d,]+ points", line)]
        if self.status == 2 and (others or not last or len(last) > 200 or self.out):
            return f"{len(others) + 1} lines, {len(last)} characters: {self.err[:80]!r}"
        return "something was written" if self.status == 2 and self.written else ""


def run(words: tuple[str, ...], folder: Path, cache: Path) -> Ended:
    """Run a command in a folder, in a group of processes that ends with it."""
    before = content(folder)
    process = started("-m", *words, cwd=folder, cache=cache, process_group=0)
    try:
        out, err = process.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = "", process.communicate()[1]
    return Ended(process.returncode, out, err, content(folder) != before)


def content(folder: Path) -> dict[Path, bytes | None]:
    """What is in a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def line(one: Command, rng: random.Random, folders: list[str]) -> tuple[str, ...]:
    """Draw a line, in a third of the cases with a word that is wrong or in a wrong place."""
    words = one.draw(rng, folders)
    for _ in range(rng.choice((0, 0, 1))):
        words.insert(rng.randrange(len(words) + 1), rng.choice(WORDS))
    return (*one.start, *words)


def main(times: int = 20, seed: int = 0, *names: str) -> int:
    """Run every command; the number of runs that did not end well."""
    faults = 0
    with tempfile.TemporaryDirectory() as base:
        cache, folder = Path(base, "cache"), Path(base, "work")
        folder.mkdir()
        for depth in ("2", "3"):
            words = ("lrdyn", "verify", "corollary1", *small_words("corollary1"), "--depth", depth)
            run(words, folder, cache)
        folders = [str(path) for path in (folder / "results" / "corollary1").iterdir()]
        for name in names or COMMANDS:
            rng, ended, begin = random.Random(f"{name} {seed}"), Counter[int](), time.monotonic()
            bad = 0
            for _ in range(times):
                words = line(COMMANDS[name], rng, folders)
                found = run(words, folder, cache)
                ended[found.status] += 1
                if fault := found.fault(COMMANDS[name].statuses):
                    bad += 1
                    print(f"{ascii(shlex.join(words))[:300]}: {fault}", flush=True)
            faults += bad
            minutes = (time.monotonic() - begin) / 60
            print(
                f"{name}: {times} runs, statuses {dict(ended)}, {bad} faults, {minutes:.1f} min",
                flush=True,
            )
    return faults


if __name__ == "__main__":
    number, first, *chosen = [*sys.argv[1:], *("20", "0")[len(sys.argv) - 1 :]]
    sys.exit(bool(main(int(number), int(first), *chosen)))
