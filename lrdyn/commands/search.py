"""``--search N`` of a theorem's command: the worst case among random points."""

import argparse
import datetime
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn.commands.arguments import integer_reader
from lrdyn.commands.ending import UNDECIDED, Sameness, Status
from lrdyn.core.show import aligned
from lrdyn.system import progress
from lrdyn.system.printer import say
from lrdyn.verification.judging.judging import OWN_HYPOTHESES, finite_or_none, is_test, ratio_of
from lrdyn.verification.machine.kept_programs import KeptPrograms
from lrdyn.verification.machine.process import setup
from lrdyn.verification.running import arithmetic_probe
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.running.work import DEFAULT, Context
from lrdyn.verification.runs.run_folder import hold_folder, remove_empty
from lrdyn.verification.runs.verify import meter_of, verify_run
from lrdyn.verification.searching.beyond import Edge, Unrun, search_beyond
from lrdyn.verification.searching.evaluator import REPAID, Evaluator
from lrdyn.verification.searching.random_settings import configure_run
from lrdyn.verification.searching.search import (
    Search,
    Summary,
    WorstCase,
    count_tests,
    run_search,
    summary,
    words_of,
)
from lrdyn.verification.stating import claims
from lrdyn.verification.stating.flags import option_string
from lrdyn.verification.stating.statement import Experiment
from lrdyn.verification.storing import files, parts, results_file
from lrdyn.verification.storing.results_file import environment

FILE = results_file.SEARCH
"""File of the results of a search, in its folder."""

NOT_BESIDE = (
    "--changed",
    "--checkpoint-every",
    "--cluster",
    "--cluster-security",
    "--judge",
    "--lanes",
    "--perturb",
    "--precision",
    "--preset",
    "--report",
    "--seeds",
    "--store",
)
"""Flags of a run that a search refuses: it has points of its own, and a seed for each."""


def add_search_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a search."""
    parser.add_argument(
        "--search",
        type=integer_reader("search", 1),
        metavar="N",
        help="search the worst case of every claim among N random points of the domain of the "
        "flags (those that are given are held), and climb from the worst ten",
    )
    parser.add_argument(
        "--beyond",
        action="store_true",
        help="with --search: drop the hypotheses, and say which of them which claim needs",
    )


class SearchCommand(NamedTuple):
    """A search with its folder, its command line and its context."""

    search: Search
    folder: Path
    out: Path
    prog: str
    context: Context


def command(
    theorem: Experiment,
    options: argparse.Namespace,
    words: Sequence[str],
    prog: str,
    kept_by: Callable[[KeptPrograms | None], KeptPrograms | None],
) -> Sameness | Status:
    """Search, print and write; the ending is *different* if a claim exceeds its threshold.

    Args:
        theorem: the theorem.
        options: what was read of the words.
        words: those of the command line.
        prog: the command as one types it, empty for ``lrdyn verify``.
        kept_by: where the programs of the theorem are kept, of what the machine keeps.

    Raises:
        BadInput: flags that a search has no use for, or with which no point is accepted.
    """
    for word in words:
        if (flag := word.partition("=")[0]) in NOT_BESIDE:
            raise BadInput(f"{flag}: got it beside --search, wanted it without")
    held = options.settings
    for flag in theorem.flags:
        # A command line that repeats the worst case has no room for an array.
        if flag.name in held and flag.type == "array":
            raise BadInput(f"{option_string(flag.name)}: got it beside --search, wanted it without")
    held = {name: v if isinstance(v, list) else [v] for name, v in held.items()}
    dtype, why = options.dtype, ""
    machine = setup(dtype or "float64")
    context = DEFAULT._replace(programs=kept_by(machine), machine=machine)
    if dtype is None:
        dtype, why = arithmetic_probe.usual_precision(meter_of(context))
    if why:
        say(f"{theorem.name}: in float32. {why}")
    search = Search(theorem, options.search, options.seed, held, dtype)
    out, kind = Path(options.out), "beyond" if options.beyond else "search"
    folder = out / theorem.name / f"{kind}-{search.name}"
    if options.memory:
        context = context._replace(memory=options.memory)
    asked = SearchCommand(search, folder, out, prog or f"lrdyn verify {theorem.name}", context)
    return _search_beyond(asked) if options.beyond else _search_within(asked)


@contextmanager
def _open_search(asked: SearchCommand) -> Iterator[tuple[parts.Store, progress.Progress]]:
    """Open the folder of a search, with its earlier judgements, and show progress."""
    folder, search = asked.folder, asked.search
    with hold_folder(folder, asked.out, "--out") as new_folders:
        try:
            with (
                progress.shown(search.experiment.name) as shown,
                parts.open_store(folder / parts.FOLDER / search.name, shown.note) as store,
            ):
                yield store, shown
        except BadInput:
            # Keep what was computed before for the next attempt.
            if not any((folder / parts.FOLDER / search.name).glob("*.npz")):
                parts.clear(folder)
                remove_empty(folder, new_folders)
            raise


def _evaluator(asked: SearchCommand) -> Evaluator:
    search = asked.search
    return Evaluator(search.experiment, asked.context, optimize=search.points >= REPAID)


def _search_within(asked: SearchCommand) -> Sameness | Status:
    search, began = asked.search, time.process_time()
    evaluator = _evaluator(asked)
    with _open_search(asked) as (store, shown):
        records = run_search(search, evaluator, store, shown)
        summaries, tests = summary(search, records), count_tests(records)
        again = {}
        for summary_of_claim in summaries:
            if summary_of_claim.largest and summary_of_claim.largest.ratio > 0:
                shown.during(0.0, f"repeat {summary_of_claim.claim.id}")
                again[summary_of_claim.claim.id] = repeat_point(
                    search.experiment, summary_of_claim.largest, asked.context, tests
                )
        entries = [
            _entry(summary_of_claim, again.get(summary_of_claim.claim.id), asked.prog)
            for summary_of_claim in summaries
        ]
        over = any(exceeds(entry) for entry in entries)
        points = sum(len(record.points) for record in records)
        written = _header(asked, "search", began) | {
            "computed": points,
            "tests": tests,
            "holds": not over,
            "claims": entries,
        }
        files.write_json(asked.folder / FILE, written)
    say(f"{search.experiment.name}: {search.experiment.summary}")
    say("\n".join(_table(entries)))
    found = ", ".join(entry["id"] for entry in entries if exceeds(entry))
    say(f"ABOVE ITS THRESHOLD: {found}" if found else "nothing is above its threshold")
    say(f"{search.points:,} points and what the climbs added: {asked.folder / FILE}")
    if over:
        return Sameness(same=False)
    carriers = {claim.id for claim in search.experiment.scenarios[0].claims if claim.carries}
    if not any(
        summary_of_claim.judged
        for summary_of_claim in summaries
        if summary_of_claim.claim.id in carriers
    ):
        say("no point was judged of a claim that carries the verdict")
        return Status(UNDECIDED)
    return Sameness(same=True)


def _header(asked: SearchCommand, kind: str, began: float) -> dict[str, Any]:
    search = asked.search
    return {
        "schema": 1,
        "kind": kind,
        "name": search.experiment.name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "points": search.points,
        "seed": search.seed,
        "held": dict(search.held),
        "dtype": search.dtype,
        "command": f"{asked.prog} {' '.join(_words(asked, kind))}",
        "cpu_seconds": round(time.process_time() - began, 1),
        "environment": environment(search.dtype),
    }


def _words(asked: SearchCommand, kind: str) -> list[str]:
    search = asked.search
    words = ["--search", str(search.points), *(["--beyond"] if kind == "beyond" else [])]
    words += ["--seed", str(search.seed)] if search.seed else []
    words += ["--dtype", search.dtype] if search.dtype != "float64" else []
    for name, values in search.held.items():
        words += [option_string(name), *map(str, values)]
    return words


def repeat_point(experiment: Experiment, worst: WorstCase, context: Context, tests: int) -> float:
    """The ratio at a point that is computed alone, as by the command that repeats it."""
    alone = replace(experiment, scenarios=(replace(worst.scenario, controls=()),))
    settings = {n: [v] for n, v in worst.asked.items() if n != "seed" and v is not None}
    seed = worst.asked["seed"]
    run = configure_run(alone, settings, seed=seed, seeds=1, dtype=worst.precision)
    # In a program of its own: a batch of other width rounds differently, and the worst case must be
    # one that a user sees again.
    leg = verify_run(run, context).legs[worst.claim.id][worst.precision]
    if is_test(worst.claim):
        limit = claims.tolerance("statistical", worst.precision, tests=tests)
        return float(np.nanmax(leg.residual.values) / limit)
    ratios = ratio_of(leg, worst.precision).values
    return float(np.nanmax(ratios)) if not np.all(np.isnan(ratios)) else float("nan")


def command_of(prog: str, worst: WorstCase) -> str:
    """The command line that repeats a point."""
    first = f"{prog} --dtype {worst.precision} --seeds 1"
    return " ".join([first, *words_of(worst.asked)])


def _entry(claim_summary: Summary, again: float | None, prog: str) -> dict[str, Any]:
    """Entry of a claim in the file; a ratio that is not finite is null, and ``lost`` says so."""
    largest = claim_summary.largest
    entry = {
        "id": claim_summary.claim.id,
        "kind": claim_summary.claim.kind,
        "statement": claim_summary.claim.statement,
        "judged": claim_summary.judged,
        "excused": claim_summary.excused,
        "outside": claim_summary.outside,
        "left_out": dict(sorted(claim_summary.reasons.items())),
        "ratios": {p: finite_or_none(worst.ratio) for p, worst in claim_summary.worst.items()},
        "repeated": finite_or_none(
            again if largest and largest.ratio else largest and largest.ratio
        ),
        "precision": largest.precision if largest else None,
        "command": command_of(prog, largest) if largest else None,
        "lost": bool(largest and not np.isfinite(largest.ratio)),
    }
    return entry


def exceeds(entry: Mapping[str, Any]) -> bool:
    """Whether a claim was above its threshold, in the batch or when it was repeated."""
    several = [*entry["ratios"].values(), entry["repeated"]]
    return entry["lost"] or any(ratio is not None and ratio > 1 for ratio in several)


def _table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    precisions = list(dict.fromkeys(p for entry in entries for p in entry["ratios"]))
    rows: list[tuple[str, ...]] = [
        ("claim", "kind", "judged", "excused", "outside", *precisions, "repeated")
    ]
    for entry in entries:
        ratios = [format_ratio(entry, p) for p in precisions]
        again = "-" if entry["repeated"] is None else f"{entry['repeated']:.3g}"
        counts = [str(entry[name]) for name in ("judged", "excused", "outside")]
        rows.append((entry["id"], entry["kind"], *counts, *ratios, again))
    lines = [f"{e['id']}: {e['command']}" for e in entries if e["command"]]
    return [*aligned(rows), "", "the worst of each again:", *lines]


def format_ratio(entry: Mapping[str, Any], precision: str) -> str:
    """Residual over threshold of a claim in a precision."""
    ratio = entry["ratios"].get(precision)
    if ratio is None:
        return "lost" if precision in entry["ratios"] else "-"
    return f"{ratio:.3g}"


# Beyond the hypotheses ------------------------------------------------------------------------


def _search_beyond(asked: SearchCommand) -> Sameness:
    search, began = asked.search, time.process_time()
    evaluator = _evaluator(asked)
    with _open_search(asked) as (store, shown):
        edges, unrun = search_beyond(search, evaluator, store, shown)
        written = _header(asked, "beyond", began) | {
            "edges": [_edge_entry(entry, asked.prog) for entry in edges],
            "not_run": [_unrun_entry(entry, asked.prog) for entry in unrun],
        }
        files.write_json(asked.folder / FILE, written)
    say(f"{search.experiment.name}: {search.experiment.summary}")
    say("\n".join(_edge_lines(written["edges"], written["not_run"])))
    say(f"{search.points:,} points without hypotheses: {asked.folder / FILE}")
    return Sameness(same=True)


def _beyond_command(prog: str, point: Mapping[str, Any]) -> str:
    return " ".join([prog, "--search 1 --beyond", *words_of(point)])


def _edge_entry(edge: Edge, prog: str) -> dict[str, Any]:
    own = edge.hypothesis == OWN_HYPOTHESES[0]
    return {
        "hypothesis": f"condition of {edge.claim.id}" if own else edge.hypothesis,
        "claim": edge.claim.id,
        "statement": edge.claim.statement,
        "precision": edge.precision,
        "points": edge.points,
        "fails": edge.fails,
        "ratio": finite_or_none(edge.worst.ratio),
        "condition": finite_or_none(edge.worst.condition),
        "least_condition": finite_or_none(edge.least),
        "found_after": edge.found_after,
        "command": _beyond_command(prog, edge.worst.asked),
    }


def _unrun_entry(failure: Unrun, prog: str) -> dict[str, Any]:
    return {
        "scenario": failure.scenario,
        "hypothesis": failure.hypothesis,
        "why": failure.why,
        "command": _beyond_command(prog, failure.asked),
    }


def _edge_lines(
    edges: Sequence[Mapping[str, Any]], unrun: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Which hypothesis costs which claim, with commands; then those that cost nothing here."""
    costly = [edge for edge in edges if edge["fails"]]
    rows = [("without", "claim", "precision", "fails", "largest ratio", "condition")]
    for edge in costly:
        ratio = "lost" if edge["ratio"] is None else f"{edge['ratio']:.3g}"
        least = edge["least_condition"]
        condition = "infinite" if least is None else "" if least == 1 else f"from {least:.2g}"
        count = f"{edge['fails']}/{edge['points']}"
        where = edge["hypothesis"], edge["claim"], edge["precision"]
        rows.append((*where, count, ratio, condition))
    lines = [f"{e['claim']} without {e['hypothesis']}: {e['command']}" for e in costly]
    for failure in unrun:
        lines.append(
            f"{failure['scenario']} without {failure['hypothesis']} cannot be run "
            f"({failure['why']}): {failure['command']}"
        )
    harmless = sorted({f"{e['hypothesis']} ({e['claim']})" for e in edges if not e["fails"]})
    free = [f"cost nothing at these points: {', '.join(harmless)}"] if harmless else []
    return [*aligned(rows), "", *lines, *free]
