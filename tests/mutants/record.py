"""What became of mutants: the log of a run, the committed record, and the page about it."""

import contextlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import betaincinv

from lrdyn.core.show import aligned
from tests.mutants.drawing import Drawn
from tests.mutants.running import RUNS, Note
from tests.runs import ROOT

FILE = ROOT / "tests" / "data" / "mutants.json"
FRESH = FILE.with_name("mutants_fresh.json")
"""Of a drawing whose mutants nobody has written tests for."""
PAGE = ROOT / "docs" / "mutants.md"

KILLED = ("command", "tests", "time")
EQUIVALENT, ALIVE = "equivalent", "alive"

MOST_EQUIVALENT = 0.05
"""Share of the mutants that may be set aside as equivalent."""

CONFIDENCE = 0.95


# The log --------------------------------------------------------------------------------------


def noted(log: Path) -> Iterator[Note]:
    """What a log says; a kill can have left half a line, which is none."""
    for line in log.read_text().splitlines() if log.exists() else []:
        with contextlib.suppress(json.JSONDecodeError, TypeError):
            yield Note(**json.loads(line))


def note_down(log: Path, note: Note) -> None:
    """Append a note; behind half a line it begins a new one."""
    with log.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        new = b"" if file.read() in (b"", b"\n") else b"\n"
        file.write(new + json.dumps(note._asdict()).encode() + b"\n")


# The score ------------------------------------------------------------------------------------


class Score(NamedTuple):
    """Of mutants that are not equivalent, how many were killed."""

    killed: int
    of: int

    @property
    def share(self) -> float:
        """The score; 1 of none."""
        return self.killed / self.of if self.of else 1.0

    @property
    def lower(self) -> float:
        """Lower bound of the probability that a mutant is killed, exact (Clopper and Pearson).

        Example:
            >>> round(Score(10, 10).lower, 4)  # .05 ** (1 / 10)
            0.7411
        """
        if not self.killed:
            return 0.0
        left = self.of - self.killed + 1
        return float(betaincinv(self.killed, left, 1 - CONFIDENCE))

    def __str__(self) -> str:
        """In words."""
        return f"{self.killed} of {self.of}, {self.share:.3f} (at least {self.lower:.3f})"


def score(entries: Iterable[dict[str, Any]]) -> Score:
    """The score of entries of the record."""
    ended = Counter(entry["ended"] for entry in entries)
    killed = sum(ended[word] for word in KILLED)
    return Score(killed, killed + ended[ALIVE])


# The record -----------------------------------------------------------------------------------

KEPT = ("key", "kind", "file", "line", "within", "operator", "before", "after", "ended", "by")
"""Of a note."""


def notes_of(record: dict[str, Any]) -> Iterator[Note]:
    """What a record says was tried; what is equivalent stayed alive."""
    for entry in record.get("mutants", ()):
        note = Note(**{name: entry[name] for name in KEPT})
        yield note._replace(ended=ALIVE) if note.ended == EQUIVALENT else note


def recorded(
    seed: int,
    wanted: int,
    date: str,
    drawn: Sequence[Drawn],
    notes: Iterable[Note],
    before: dict[str, Any],
    seconds: float = RUNS,
) -> dict[str, Any]:
    """What is committed: every mutant of the drawing that was tried.

    Somebody who finds that a mutant changes nothing writes ``"ended": "equivalent"`` and a
    ``"reason"`` into the file by hand; both stay as long as nothing kills it.
    """
    found = {note.key: note for note in notes}  # of several the last
    reasons = {e["key"]: e["reason"] for e in before.get("mutants", ()) if e.get("reason")}
    entries = []
    for one in drawn:
        note = found.get(one.mutant.key)
        if note is None:
            continue
        entry = {name: getattr(note, name) for name in KEPT} | {"line": one.mutant.line}
        if note.ended == ALIVE and note.key in reasons:
            entry |= {"ended": EQUIVALENT, "reason": reasons[note.key]}
        entries.append(entry)
    head = {"date": date, "seed": seed, "wanted": wanted, "seconds": seconds}
    return head | {"mutants": entries}


def written(record: dict[str, Any]) -> str:
    """The record as text: one line for each mutant."""
    head = {name: record[name] for name in ("date", "seed", "wanted", "seconds")}
    lines = ",\n".join("  " + json.dumps(entry) for entry in record["mutants"])
    words = ",\n".join(f" {json.dumps(n)}: {json.dumps(v)}" for n, v in head.items())
    return f'{{\n{words},\n "mutants": [\n{lines}\n ]\n}}\n'


def read(path: Path = FILE) -> dict[str, Any]:
    """The committed record; an empty one if there is none."""
    return json.loads(path.read_text()) if path.exists() else {}


# The page -------------------------------------------------------------------------------------

HEAD = """# Mutants: which wrong lines are noticed

A mutant is the library with one wrong place: a sign, a scale, a tolerance, a mean in the place of
the largest, a flag that is ignored, a mask that is used twice. Each runs in a copy of the tree,
against the command and against the tests whose code reaches what was changed, the nearest and
cheapest first. The command is the small run of its theorem, whole, or of one scenario or control
alone, whose numbers must be what they were; of what only judges, saved results judged again; of the
referee, a claim of them computed again. A mutant is killed if one of these fails that passes
without it. One of what only judges has 10 seconds of a processor, another one 60; one that takes
three times as much hangs, which kills it, too. `--seconds` gives less: then most are killed as
well, and what stays alive may have had too little time; `--again` tries it anew.

The library is imported once, with all its checks. For each mutant a process is forked from there,
and the functions that it changes get its code; where a change is of what the import ran, the fork
imports everything again.

What is changed, where, and which tests can see it is said in `tests/mutants/` by `operators.py`,
`drawing.py` and `references.py`. Mutants are drawn by name: an edit of one function leaves those of
all others drawn as they are.

```console parsed takes hours
$ make mutants                                    # goes on where it was stopped
$ python -m tests.mutants --sample 300 --seed 7   # the score of another drawing
$ python -m tests.mutants --write                 # tests/data/mutants.json, and this page
$ python -m tests.mutants --sample 300 --seed 7 --write   # tests/data/mutants_fresh.json
```
"""


def page() -> str:
    """``docs/mutants.md``, of the committed records."""
    record, fresh = read(), read(FRESH)
    lines = [HEAD, *_drawing(record, LOOKED_AT), *(_drawing(fresh, UNSEEN) if fresh else [])]
    return "\n".join(lines) + "\n"


LOOKED_AT = (
    "From mutants that stay alive tests are written, one by one: this score is of what was looked "
    "at, and that of another seed, on the same tests, of what was not.\n"
)
UNSEEN = "No test was written for what stays alive here before this score was known.\n"


def _drawing(record: dict[str, Any], about: str) -> Iterator[str]:
    entries, wanted = record["mutants"], record["wanted"]
    ended, seconds = Counter(entry["ended"] for entry in entries), record["seconds"]
    whole = score(entries)
    tried = "All" if len(entries) == wanted else f"{len(entries):,}"
    yield f"## Seed {record['seed']}, {record['date']}\n"
    yield (
        f"{tried} of {wanted:,} mutants were tried, each for at most {seconds:g} seconds. "
        f"Killed: {ended['command']} by the command, {ended['tests']} by tests, "
        f"{ended['time']} by time; {ended[EQUIVALENT]} are equivalent, "
        f"{ended[ALIVE]} alive. The score, killed over those that are not equivalent, is "
        f"**{whole.share:.3f}**; with 95 % confidence a mutant drawn so is killed with probability "
        f"{whole.lower:.3f} or more (Clopper and Pearson, one-sided).\n"
    )
    yield about
    yield from _table("kind of module", "kind", entries)
    yield ""
    yield from _table("operator", "operator", entries)
    for word, title in ((ALIVE, "Alive"), (EQUIVALENT, "Equivalent")):
        if chosen := [entry for entry in entries if entry["ended"] == word]:
            reason = word == EQUIVALENT
            yield f"\n### {title}, of seed {record['seed']}\n"
            yield "| place | within | change |" + " reason |" * reason
            yield "|---|---|---|" + "---|" * reason
            yield from (_row(entry) for entry in sorted(chosen, key=_place))
    yield ""


def _table(title: str, by: str, entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in entries:
        groups[entry[by]].append(entry)
    yield f"| {title} | command | tests | time | equivalent | alive | score | at least |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in sorted(groups):
        ended, found = Counter(entry["ended"] for entry in groups[name]), score(groups[name])
        counts = " | ".join(str(ended[word]) for word in (*KILLED, EQUIVALENT, ALIVE))
        yield f"| {name} | {counts} | {found.share:.2f} | {found.lower:.2f} |"


def _place(entry: dict[str, Any]) -> tuple[str, int]:
    return entry["file"], entry["line"]


def _row(entry: dict[str, Any]) -> str:
    place = f"{entry['file']}:{entry['line']}"
    change = f"{_code(entry['before'])} → {_code(entry['after'])}"
    reason = f" {entry['reason']} |" if entry["ended"] == EQUIVALENT else ""
    return f"| {place} | `{entry['within']}` | {entry['operator']}: {change} |{reason}"


def _code(text: str, longest: int = 60) -> str:
    words = " ".join(text.split()).replace("|", "¦")
    return f"`{words if len(words) <= longest else words[: longest - 1] + '…'}`"


# What is printed ------------------------------------------------------------------------------


def said(note: Note) -> str:
    """A line about one mutant."""
    place = f"{note.file}:{note.line} {note.within}"
    change = f"{_code(note.before, 40)} -> {_code(note.after, 40)}".replace("`", "")
    by = f" {note.by}" if note.by else f" ({note.ran} tests, {note.left} left)"
    return f"{note.ended}{by}, {note.seconds} s: {place} [{note.operator}] {change}"


def summary(entries: Sequence[dict[str, Any]]) -> str:
    """Scores by kind, and of all."""
    kinds = sorted({entry["kind"] for entry in entries})
    rows = [("kind", "score")]
    rows += [(kind, str(score(e for e in entries if e["kind"] == kind))) for kind in kinds]
    return "\n".join(aligned([*rows, ("all", str(score(entries)))]))
