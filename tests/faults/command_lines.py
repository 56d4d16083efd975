"""Random command lines without their work: ``python -m tests.faults.command_lines [N] [SEED]``.

N (default 1,000) for each command: right and wrong words in any order. A line must end as the
contract says: status 0 where the run would begin, or 2 with one line of at most 200 characters on
stderr, nothing on stdout, and nothing written; never a traceback.
"""

import contextlib
import io
import os
import random
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from lrdyn import __main__ as command
from lrdyn import cli
from lrdyn.commands import figures, pool, verify
from lrdyn.registry import theorems
from lrdyn.verification.stating.statement import Experiment
from paper_figs import BASELINES, EXHIBITS

WORDS = (
    *"0 1 2 3 - -- --- -1 -5e3 0.5 1e-3 1e400 nan -inf inf 1_0 0x10 1,5 ٣ é ' * none".split(),
    *"quick paper float32 float64 -h --help --version 1GiB 0MB 2147483648 . .. /".split(),
    *"results --dim --dim= --dim=8 --nothing --out all theorem2 sgd left my.py my.py:X".split(),
    "",
    " ",
    "\udc80",
    "a b",
    "\n",
    "9" * 5000,
)


class Ended(NamedTuple):
    """What a command line left."""

    status: Any
    out: str
    err: str
    written: bool

    def fault(self) -> str:
        """What is not as the contract has it; empty if all is."""
        if self.written:
            return "something was written"
        if self.status == 0:
            return "" if not self.err else f"status 0 with {self.err[:80]!r}"
        if self.status not in (1, 2):
            return f"status {self.status}: {self.err[:200]!r}"
        if self.status == 2 and (self.out or self.err.count("\n") != 1 or len(self.err) > 201):
            return f"{self.err.count(chr(10))} lines, {len(self.err)} characters: {self.err[:80]!r}"
        return ""


class Begun(Exception):
    """The run would begin here, and ends as every other exception does."""


BEGUN = "internal error (Begun: ); LRDYN_DEBUG=1 shows where\n"


def ended(line: Callable[[], int], folder: Path) -> Ended:
    """Run a command line in an empty folder up to where its work would begin."""
    out, err = io.StringIO(), io.StringIO()
    before = sorted(folder.rglob("*"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(folder):
        try:
            status: Any = line()
        except BaseException as error:  # what a user would see as a traceback
            status = f"{type(error).__name__}: {error}"
    said = err.getvalue()
    if status == 3 and said.endswith(BEGUN) and said.count("\n") == 1:
        status, said = 0, ""
    return Ended(status, out.getvalue(), said, sorted(folder.rglob("*")) != before)


def words_for(one: Experiment | None, rng: random.Random) -> list[str]:
    """Flags of a theorem with values that may be right, and words that are not."""
    flags = [f"--{f.name.replace('_', '-')}" for f in one.flags] if one else []
    flags += ["--out", "--preset", "--seed", "--seeds", "--dtype", "--memory", "--jobs"]
    values = (
        {f"--{f.name.replace('_', '-')}": list(map(str, f.quick)) for f in one.flags} if one else {}
    )
    words: list[str] = []
    for _ in range(rng.randrange(5)):
        flag = rng.choice(flags)
        several = rng.choice((1, 1, 1, 2, 3, 0))
        right = values.get(flag, []) or list(WORDS)
        words += [
            flag,
            *(rng.choice(right if rng.random() < 0.6 else WORDS) for _ in range(several)),
        ]
    for _ in range(rng.choice((0, 0, 0, 1))):
        words.insert(rng.randrange(len(words) + 1), rng.choice(WORDS))
    return words


def run_verify(name: str, words: list[str]) -> int:
    """``lrdyn verify NAME`` with these words."""
    return command.main(["verify", name, *words])


def commands() -> dict[str, tuple[Callable[[list[str]], int], Experiment | None]]:
    """Name -> what runs its words, and the theorem whose flags they are."""
    found: dict[str, tuple[Callable[[list[str]], int], Experiment | None]] = {
        f"lrdyn verify {one.name}": (
            lambda w, name=one.name: command.main(["verify", name, *w]),
            one,
        )
        for one in theorems()
    }
    found["lrdyn verify all"] = (partial(run_verify, "all"), theorems()[1])
    for name in ("list", "runs", "diff", "diagnose", "completion", "help"):
        found[f"lrdyn {name}"] = (lambda w, name=name: command.main([name, *w]), None)
    found["lrdyn"] = (command.main, None)
    found["experiments"] = (lambda w: cli.run("experiments", lambda: pool.main(w)), None)
    found["paper_figs"] = (
        lambda w: cli.run("paper_figs", lambda: figures.main(EXHIBITS, BASELINES, w)),
        None,
    )
    return found


@contextlib.contextmanager
def without_work() -> Iterator[None]:
    """Nothing is computed: a run that would begin ends there."""

    def begin(*words: Any, **more: Any) -> Any:
        raise Begun

    with contextlib.ExitStack() as stack:
        for module, name in (
            (verify, "carry_out"),
            (verify, "setup"),
            (verify, "judge_again"),
            (pool, "verify_all"),
            (figures, "_act_on_each"),
        ):
            stack.enter_context(mock.patch.object(module, name, begin))
        yield


def main(times: int = 1000, seed: int = 0) -> int:
    """Try every command; the number of lines that did not end well."""
    faults = 0
    with tempfile.TemporaryDirectory() as folder, without_work():
        for name, (line, one) in commands().items():
            rng, count = random.Random(f"{name} {seed}"), 0
            for _ in range(times):
                words = words_for(one, rng)
                fault = ended(partial(line, words), Path(folder)).fault()
                if fault:
                    count += 1
                    said = ascii(shlex.join(words))[:200]
                    print(f"{name} {said}: {fault}", flush=True)
            faults += count
            print(f"{name}: {times} lines, {count} faults", flush=True)
    return faults


if __name__ == "__main__":
    os.environ.pop("LRDYN_DEBUG", None)
    sys.exit(min(main(*map(int, sys.argv[1:])), 1))
