"""Every theorem at once: a process for each, one table, one exit status."""

import argparse
import contextlib
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from lrdyn.commands import printing, verify
from lrdyn.commands.arguments import (
    Example,
    Parser,
    integer_reader,
    is_negative_number,
    unknown_flag,
)
from lrdyn.commands.ending import Judged
from lrdyn.core.show import near, shortened
from lrdyn.registry import BEYOND_THE_SURVEY, theorem, theorems
from lrdyn.studies import studies
from lrdyn.system import garbage, interrupts, whole_files
from lrdyn.system.printer import say
from lrdyn.verification.judging import verdict_text
from lrdyn.verification.machine import accelerators, process
from lrdyn.verification.running.configuration import BadInput, defaults
from lrdyn.verification.stating.statement import Theorem
from lrdyn.verification.storing import files, results_file

SUMMARY = "summary.json"
"""File of the verdicts of all theorems."""


class Ended(NamedTuple):
    """Outcome of one theorem for the table; small, since it comes from another process."""

    verdict: dict[str, Any]
    path: Path
    diverged: list[str]


def split_flags(argv: Sequence[str], of: Sequence[Theorem]) -> list[list[str]]:
    """Split a command line: each flag goes to the theorems that have it.

    Raises:
        BadInput: none has it.
    """
    known = [verify.flags_of(theorem) for theorem in of]
    every = set().union(*known)
    mine: list[list[str]] = [[] for _ in of]
    # Words before the first flag go to all, which refuse them.
    takers = mine
    for word in argv:
        if word.startswith("-") and not is_negative_number(word):
            flag = word.partition("=")[0]
            if flag not in every:
                raise BadInput(unknown_flag(word, every))
            takers = [m for m, flags in zip(mine, known, strict=True) if flag in flags]
        for taker in takers:
            taker.append(word)
    return mine


def verify_one(name: str, share: list[str], jobs: int) -> Ended:
    """Run one theorem with its share of the arguments, ``jobs`` at a time."""
    # Processes side by side share the cores: one device for each core of its own share.
    devices = max(1, process.cores() // jobs)
    command = verify.parse(theorem(name), share)
    verification, path = verify.verify_command(command, host_devices=devices, bar=jobs == 1)
    return Ended(verification.verdict, path, verification.diverged)


def verify_all(dealt: dict[str, list[str]], jobs: int) -> list[Ended]:
    """Run theorems, several at a time: Python runs on one core of each process."""
    if jobs == 1:
        return [verify_one(name, share, jobs) for name, share in dealt.items()]
    # The longest first, so that no core is idle long before the others.
    order = sorted(dealt, key=lambda name: -count_statements(theorem(name)))
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    with contextlib.ExitStack() as stack:
        with interrupts.guard_workers():
            # Started inside ``starting_workers``: children must inherit its mask and its variable.
            pool = stack.enter_context(ProcessPoolExecutor(jobs, context, garbage.collect_rarely))
            futures = {n: pool.submit(verify_one, n, dealt[n], jobs) for n in order}
        try:
            for future in as_completed(futures.values()):
                future.result()
            return [futures[name].result() for name in dealt]
        except BaseException:  # a failure or interrupt stops the other theorems, too
            # Killed, for a computation of XLA cannot be interrupted; finished parts are on disk.
            for child in multiprocessing.active_children():
                child.kill()
            raise


def count_statements(theorem: Theorem) -> int:
    """Number of claims and controls, an estimate of the time that a theorem takes."""
    return sum(len(scenario.claims) + len(scenario.controls) for scenario in theorem.scenarios)


ALL = (
    "Run every theorem and print one table. Any flag other than those below goes to the "
    "theorems that have it."
)


def parser_of_all(prog: str) -> Parser:
    """The flags of ``all``; those of single theorems, such as ``--depth``, are taken, too.

    Args:
        prog: the command as one types it.
    """
    parser = Parser(
        prog,
        ALL,
        examples=[
            Example(f"{prog} --seeds 4 --out mine", "four seeds of each, results in mine/"),
            Example(f"{prog} --depth 2 3 --jobs 1", "two and three layers where there are any"),
            Example(f"{prog} --preset paper --cluster local:4", "the paper's settings, 4 workers"),
        ],
    )
    _add_jobs(parser)
    verify.add_run_flags(parser, defaults(theorem("theorem2")), seeds="2")
    return parser


def _add_jobs(parser: Parser) -> None:
    wanted = "theorems at a time (default: one for each core, or one on a GPU or TPU)"
    parser.add_argument("--jobs", type=integer_reader("jobs", 1), help=wanted)


def take_jobs(argv: list[str], prog: str = "lrdyn verify all") -> tuple[int, list[str]]:
    """Read ``--jobs``, the number of theorems at a time, and return the other arguments."""
    if {"-h", "--help"} & set(argv):
        parser_of_all(prog).print_help()
    parser = Parser(prog, ALL)
    _add_jobs(parser)
    given, rest = parser.parse_known_args(argv)
    # With a cluster nothing is computed here.
    alone = accelerators.accelerator() and not any(w.partition("=")[0] == "--cluster" for w in rest)
    return given.jobs or (1 if alone else process.cores()), rest


def run_all(argv: list[str], prog: str = "lrdyn verify all") -> Judged:
    """Run every theorem and print one table; their own commands print every claim."""
    jobs, rest = take_jobs(argv, prog)
    every = theorems()
    dealt = dict(zip((theorem.name for theorem in every), split_flags(rest, every), strict=True))
    # Bad input for the last theorem is found before the first one runs.
    parsed = [verify.parse(theorem, dealt[theorem.name]) for theorem in every]
    # Before hours of work, not when the summary is to be written.
    whole_files.refuse_links(Path(parsed[0].options.out), [SUMMARY])
    # Several processes open the same card.
    accelerators.share_memory()
    verify.run_deterministically("all", parsed[0].options)
    with _share_cluster(parsed[0].options, dealt) as dealt:
        outcomes = verify_all(dealt, min(jobs, len(every)))
    say("\n".join(_lines(outcomes, parsed[0].options)))
    verdicts = [outcome.verdict["holds"] for outcome in outcomes]
    # One false theorem decides, and one that is undecided leaves the whole so.
    holds = False if False in verdicts else None if None in verdicts else True
    content = {
        "schema": results_file.SCHEMA,
        "holds": holds,
        "theorems": list(map(_summary, outcomes)),
    }
    path = Path(parsed[0].options.out) / SUMMARY
    files.write_json(path, content)
    if parsed[0].options.report:
        from lrdyn.commands import report  # 0.2 s: pages of diagnoses, too

        printing.remark(f"report: {report.written(path.parent)}", parsed[0].options)
    return Judged(path, holds)


def _lines(outcomes: Sequence[Ended], options: argparse.Namespace) -> list[str]:
    """What is printed: a table for a person, each theorem's own lines where they are asked for."""
    if options.format != "text":
        return [line for outcome in outcomes for line in _own_lines(outcome, options)]
    held = sum(outcome.verdict["holds"] is True for outcome in outcomes)
    last = f"{held} of {len(outcomes)} theorems hold"
    if options.quiet:
        return [last]
    screens = (
        [line for outcome in outcomes for line in (*_own_lines(outcome, options), "")]
        if options.verbose
        else []
    )
    table = verdict_text.summary([(o.verdict, o.path) for o in outcomes])
    diverged = [f"{o.verdict['name']}: {line}" for o in outcomes for line in o.diverged]
    return [*screens, *table, *diverged, "", last]


def _own_lines(outcome: Ended, options: argparse.Namespace) -> list[str]:
    """What its own command prints of a theorem."""
    return printing.lines(
        outcome.verdict,
        options,
        last=str(outcome.path),
        summary=theorem(outcome.verdict["name"]).summary,
        notes=outcome.diverged,
        file=str(outcome.path / whole_files.VERDICT),
    )


@contextlib.contextmanager
def _share_cluster(
    options: argparse.Namespace, dealt: dict[str, list[str]]
) -> Iterator[dict[str, list[str]]]:
    """Start workers here once, for all theorems: each connects to the same scheduler."""
    address = options.cluster
    if address is None:
        yield dealt
        return
    clusters = verify.cluster_module()
    if not address.startswith("local:"):
        clusters.warn_of_exposure("all", address)
        yield dealt
        return
    with clusters.start_workers(int(address.removeprefix("local:"))) as (there, security):
        with clusters.connection(there, security) as cluster:
            printing.remark(f"all: {cluster.described()}", options)
        # The last of a flag counts.
        new = ["--cluster", there, "--cluster-security", security]
        yield {name: [*words, *new] for name, words in dealt.items()}


def _summary(ended: Ended) -> dict[str, Any]:
    """Entry of one theorem in the summary, for scripts."""
    claims = [c for c in ended.verdict["claims"] if c["kind"] != "control"]
    controls = [c for c in ended.verdict["claims"] if c["kind"] == "control"]
    count = {True: "hold", False: "false", None: "open"}
    return {
        "name": ended.verdict["name"],
        "holds": ended.verdict["holds"],
        "undecided": ended.verdict["undecided"],
        "claims": {word: sum(c["holds"] is h for c in claims) for h, word in count.items()},
        "controls": {word: sum(c["holds"] is h for c in controls) for h, word in count.items()},
        "folder": str(ended.path),
        "results_sha256": ended.verdict["results_sha256"],
    }


USAGE = """usage: lrdyn verify NAME [flags]
       lrdyn verify all [flags]

examples:
  $ lrdyn verify theorem2 --help
      the flags of one
  $ lrdyn verify theorem2 --depth 2 3
      one, at two depths
  $ lrdyn verify all --seeds 4
      all theorems, one table
"""
"""What ``--help`` says before the list."""


def listing() -> list[str]:
    """One line for each theorem and each study, under the headings that they belong to."""
    groups = {
        "theorems": [one for one in theorems() if one.name not in BEYOND_THE_SURVEY],
        "beyond the survey": [one for one in theorems() if one.name in BEYOND_THE_SURVEY],
        "studies, which train": studies(),
    }
    return [
        line
        for heading, group in groups.items()
        for line in (heading, *(f"  {line}" for line in verify.lines_of(group)))
    ]


def main(argv: list[str]) -> Judged | None:
    """List what there is, or run ``all`` theorems."""
    if not argv or argv[0] in ("-h", "--help"):
        say("\n".join([*([USAGE] if argv else []), *listing()]))
        return None
    if argv[0] != "all":
        names = [experiment.name for experiment in (*theorems(), *studies())]
        if argv[0] in names:
            raise BadInput(f"command: got {argv[0]!r}, wanted: lrdyn verify {argv[0]}")
        got = f"{shortened(argv[0])!r}{near(argv[0], ['all', *names])}"
        raise BadInput(f"command: got {got}, wanted 'all', or one that is listed without a word")
    return run_all(argv[1:])
