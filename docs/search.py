"""Write ``search.md`` from what searches left: ``python -m docs.search [RESULTS]``."""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs.refresh import row
from lrdyn.commands.search import FILE, exceeds, format_ratio
from lrdyn.registry import theorems

PAGE = Path(__file__).with_name("search.md")
INTRODUCTION = """\
# The worst case

Presets are points that we chose. `--search N` draws N points of the domain of the flags (ends of
ranges, numbers anywhere in them, shapes from six combinations), each with a seed of its own, and
climbs from the ten worst by differential evolution in the flags that decide no shape, in both
precisions:

```console parsed takes minutes
$ lrdyn verify corollary1 --search 10000
$ lrdyn verify my_theorem.py --search 2000 --dim 3 5
$ lrdyn verify corollary1 --search 2000 --beyond
```

Flags that are given are held at these values. For each claim it prints the largest residual over
its threshold, how many points were judged, excused (they meet the hypotheses and could not be
judged) and outside, climbs and both precisions counted, and the one command that gives the worst
point again. A claim with a ratio above 1 is false there, or its tolerance is; it stands here with
its command until that is decided. `repeated` is the ratio of that command, which computes one point
where the search computes 64: its last bits are others. The status is 1 if a ratio passes 1 or is
`lost`, no number. Statistical claims share a probability of 1e-6 of a false alarm over all points,
and do not climb. A kill loses at most one batch of 64 points of a scenario; the same command goes
on, and a larger N goes on from a smaller. From 1,000 points on XLA optimises the programs.

`--beyond` drops the hypotheses: what the flags leave, what a claim leaves out, what the controls
break. It says which of them, lost alone, costs which claim, at which of the points first (the first
is 1), and with which condition, the factor by which a run amplifies a small error of its data. An
ill-conditioned case must keep two digits there; a quarter of the points lies on climbs from those
that come nearest to losing them. It ends with status 0.

CPU seconds are those of the process that ended a search, which may have gone on from others.

This page is written by `python -m docs.search RESULTS` from the files `search.json` that these
commands left.
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
