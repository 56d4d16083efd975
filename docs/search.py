"""Write ``records/search.md`` from what searches left: ``python -m docs.search [RESULTS]``."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.refresh import row
from lrdyn.commands.search import FILE, exceeds, format_ratio
from lrdyn.registry import theorems

PAGE = Path(__file__).parent / "records" / "search.md"
INTRODUCTION = """\
# What was searched

The result of each search for [the worst case](../search.md), from its `search.json`. `repeated` is
the ratio of the command that repeats the worst point: the search computes 64 points at once, the
command one, so that their last bits differ. CPU seconds are those of the process that ended a
search, which may have gone on from an earlier one.

This page is written by `python -m docs.search RESULTS`.
"""

Found = Mapping[str, Any]
"""Content of ``search.json``."""


def newest(results: Path, kind: str) -> dict[str, Found]:
    """The newest search of each theorem."""
    by_theorem = {}
    for theorem in theorems():
        paths = sorted(results.glob(f"{theorem.name}/{kind}-*/{FILE}"), key=_age)
        if paths:
            by_theorem[theorem.name] = json.loads(paths[-1].read_text())
    return by_theorem


def _age(path: Path) -> float:
    return path.stat().st_mtime


def about(search: Found) -> str:
    """Command, date and size of a search, in a sentence."""
    environment = search["environment"]
    return (
        f"`{search['command']}`, {search['date']}, seed {search['seed']}, "
        f"{search['points']:,} points, "
        f"{search['cpu_seconds']:.0f} CPU seconds (JAX {environment['jax']} on a "
        f"{environment['platform'].upper()}, {environment['git'] or 'an installed release'})."
    )


def inside(search: Found) -> Iterator[str]:
    """What a search says of every claim."""
    precisions = ("float64", "float32")
    yield about(search)
    yield ""
    yield row(("claim", "judged", "excused", "outside", *precisions, "repeated"))
    yield "|" + "---|" * 7
    for entry in search["claims"]:
        again = "-" if entry["repeated"] is None else f"{entry['repeated']:.2g}"
        counts = [f"{entry[name]:,}" for name in ("judged", "excused", "outside")]
        ratios = [format_ratio(entry, precision) for precision in precisions]
        yield row((f"`{entry['id']}`", *counts, *ratios, again))
    for entry in search["claims"]:
        if exceeds(entry):
            yield ""
            yield f"Above its threshold, `{entry['id']}`: `{entry['command']}`"
    worst = max(
        (entry for entry in search["claims"] if entry["repeated"] is not None),
        key=lambda entry: entry["repeated"],
        default=None,
    )
    if worst is not None:
        yield ""
        yield f"The worst of all again, `{worst['id']}`: `{worst['command']}`"


def beyond(search: Found) -> Iterator[str]:
    """Which hypothesis costs which claim."""
    yield about(search)
    yield ""
    yield row(
        ("without", "claim", "precision", "fails at", "first at", "largest ratio", "condition")
    )
    yield "|" + "---|" * 7
    for edge in search["edges"]:
        if edge["fails"]:
            ratio = "lost" if edge["ratio"] is None else f"{edge['ratio']:.2g}"
            counts = f"{edge['fails']} of {edge['points']}"
            least = edge["least_condition"]
            condition = "infinite" if least is None else "" if least == 1 else f"from {least:.1e}"
            where = edge["hypothesis"], f"`{edge['claim']}`", edge["precision"]
            yield row((*where, counts, f"{edge['found_after']:,}", ratio, condition))
    for case in search["not_run"]:
        yield ""
        yield f"Without {case['hypothesis']} `{case['scenario']}` cannot be run: {case['why']}."


def written(results: Path) -> str:
    """The whole page."""
    text = INTRODUCTION
    known = {theorem.name: theorem for theorem in theorems()}
    parts = (("Within the hypotheses", "search", inside), ("Beyond them", "beyond", beyond))
    for heading, kind, lines in parts:
        text += f"\n## {heading}\n"
        for name, search in newest(results, kind).items():
            text += f"\n### {known[name].title}{' beyond' if kind == 'beyond' else ''}\n\n"
            text += "\n".join(lines(search)) + "\n"
    return text


if __name__ == "__main__":
    PAGE.write_text(written(Path(sys.argv[1] if len(sys.argv) > 1 else "results")))
