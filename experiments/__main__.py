"""``python -m experiments`` lists the verifications, ``python -m experiments all`` runs them."""

import gc
import multiprocessing
import signal
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lrdyn import cli
from lrdyn.theorem import Theorem
from lrdyn.theorems.completion import COMPLETION
from lrdyn.theorems.corollary1 import COROLLARY1
from lrdyn.theorems.theorem1 import THEOREM1
from lrdyn.theorems.theorem2 import THEOREM2
from lrdyn.theorems.theorem3 import THEOREM3
from lrdyn.theorems.theorem4 import THEOREM4

THEOREMS = (THEOREM1, THEOREM2, COROLLARY1, COMPLETION, THEOREM3, THEOREM4)


def shares(argv: list[str]) -> list[list[str]]:
    """Deal a command line out: a flag goes to the theorems that have it, and a wrong one to all."""
    known = [cli.flags_of(theorem) for theorem in THEOREMS]
    mine: list[list[str]] = [[] for _ in THEOREMS]
    takers = mine
    for word in argv:
        if word.startswith("--"):
            has = [word.partition("=")[0] in flags for flags in known]
            takers = [m for m, h in zip(mine, has, strict=True) if h or not any(has)]
        for taker in takers:
            taker.append(word)
    return mine


class Outcome(NamedTuple):
    """What the table shows of a theorem; small, as it comes from another process."""

    verdict: dict[str, Any]
    path: Path
    diverged: list[str]


def verify_one(place: int, share: list[str], jobs: int) -> Outcome:
    """Run one theorem, alone or beside others."""
    devices = max(1, cli.cores() // jobs)
    found, path = cli.verify_command(THEOREMS[place], share, host_devices=devices, bar=jobs == 1)
    return Outcome(found.verdict, path, found.diverged)


def verify_all(shares: list[list[str]], jobs: int) -> list[Outcome]:
    """Run all theorems, several at a time: Python runs on one core of each process."""
    if jobs == 1:
        return [verify_one(place, share, jobs) for place, share in enumerate(shares)]
    # The largest first, so that no core ends long before the others.
    places = sorted(range(len(shares)), key=lambda place: -size(THEOREMS[place]))
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    with ProcessPoolExecutor(jobs, context, _begin) as pool:
        try:
            futures = {
                place: pool.submit(verify_one, place, shares[place], jobs) for place in places
            }
            for future in as_completed(futures.values()):
                future.result()
            return [futures[place].result() for place in range(len(shares))]
        except BaseException:  # what fails or is interrupted leaves no other one at work
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends its children
    # Tracing makes many objects and little garbage: look for it less often.
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def size(theorem: Theorem) -> int:
    """Count claims and controls, as a guess of the time that a theorem takes."""
    return sum(len(statement.claims) + len(statement.controls) for statement in theorem.statements)


def take_jobs(argv: list[str]) -> tuple[int, list[str]]:
    """Read ``--jobs``: theorems at a time; by default one for each core, or one on a GPU or TPU."""
    parser = cli.Parser(
        "experiments all",
        "Run every theorem and print one table. Other flags go to the theorems that have them.",
    )
    wanted = "theorems at a time (default: one for each core, or one on a GPU or TPU)"
    parser.add_argument("--jobs", type=cli.whole("jobs", 1), help=wanted)
    given, rest = parser.parse_known_args(argv)
    if given.jobs:
        return given.jobs, rest
    cli.setup()
    return (cli.cores() if jax.default_backend() == "cpu" else 1), rest


def run_all(argv: list[str]) -> int:
    """Run every theorem and print one table; their own commands print every claim."""
    jobs, rest = take_jobs(argv)
    dealt = shares(rest)
    for theorem, share in zip(THEOREMS, dealt, strict=True):
        cli.parse(theorem, share)  # bad input of the last one is found before the first one runs
    found = verify_all(dealt, min(jobs, len(THEOREMS)))
    diverged = [f"{o.verdict['name']}: {line}" for o in found for line in o.diverged]
    print("\n".join([*cli.summary([(o.verdict, o.path) for o in found]), *diverged]))
    held = sum(outcome.verdict["holds"] for outcome in found)
    print(f"\n{held} of {len(found)} theorems hold")
    return cli.HOLDS if held == len(found) else cli.FAILS


def main(argv: list[str]) -> int:
    """List or run."""
    if not argv or argv[0] in ("-h", "--help"):
        for theorem in THEOREMS:
            print(f"{theorem.name:12}{theorem.summary}")
        return cli.HOLDS
    if argv[0] != "all":
        names = ", ".join(theorem.name for theorem in THEOREMS)
        raise cli.BadInput(
            f"command: got {argv[0]!r}, wanted 'all' (or python -m experiments.NAME with NAME "
            f"out of {names})"
        )
    return run_all(argv[1:])


if __name__ == "__main__":
    from experiments import __main__ as module  # a name by which other processes find it

    sys.exit(cli.run("experiments", lambda: module.main(sys.argv[1:]), own_process=True))
