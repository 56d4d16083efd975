"""``python -m tests.mutants [--sample N] [--seed S]``: mutants against the command and the tests.

Without a seed it is the committed drawing (``tests/data/mutants.json``). Every mutant is noted when
it ends; the same call goes on there, also after a kill, and in a new folder behind the committed
ones. ``--again`` tries those anew that stayed alive, ``--only`` those whose place has these words
in it. ``--seconds`` gives each less than its 60 seconds, in which most are killed; ``--again`` is
for the rest. ``--write`` tries none: it puts what was tried into the committed record, or into that
of a fresh seed, and the page about them (``docs/mutants.md``). The status is 1 if the lower bound
of the score is below ``--least``.
"""

import argparse
import datetime
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from tests.mutants import record, running
from tests.mutants.drawing import Drawn, drawn
from tests.mutants.running import Note
from tests.runs import ROOT


class Tries(Protocol):
    """What tries mutants: :class:`tests.mutants.running.Workshop`."""

    def try_mutant(self, one: Drawn) -> Note:
        """Try one."""
        ...

    def no_witnesses(self, notes: Iterable[Note]) -> set[str]:
        """Mutants whose test fails without a mutant, too."""
        ...


SEED, SAMPLE = 20261128, 1000
"""Of the committed drawing."""

FOLDER = ROOT / "build" / "mutants"
"""Where the copy of the tree and the logs lie, unless another folder is named."""


def tried(
    several: Sequence[Drawn],
    workshop: Tries,
    log: Path,
    *,
    again: bool,
    at_most: float,
    before: Iterable[Note] = (),
) -> list[Note]:
    """Try mutants that were not tried before; the notes of all that were.

    A test that fails without a mutant, too, is no witness: what it killed is tried anew.

    Args:
        several: mutants, in their order.
        workshop: tries one, and knows which tests are no witnesses.
        log: of what was tried.
        again: whether those that stayed alive are tried anew.
        at_most: seconds of the processor after which no further one begins.
        before: what is known from elsewhere; the log knows better.
    """
    of_log = {note.key: note for note in record.noted(log)}
    done = {note.key: note for note in before} | of_log
    left = [one for one in several if one.mutant.key not in done]
    if again:
        alive = {note.key for note in done.values() if note.ended == record.ALIVE}
        left = [one for one in several if one.mutant.key in alive] + left
    spent = 0.0
    while True:
        for one in left:
            if spent > at_most:
                break
            note = workshop.try_mutant(one)
            spent += note.seconds
            done[note.key] = of_log[note.key] = note
            record.note_down(log, note)
            print(record.said(note), flush=True)
        notes = [done[one.mutant.key] for one in several if one.mutant.key in done]
        wrong = workshop.no_witnesses(note for note in notes if note.key in of_log)
        left = [one for one in several if one.mutant.key in wrong]
        if not left or spent > at_most:
            return [note for note in notes if note.key not in wrong]


def main(argv: list[str] | None = None) -> int:
    """Draw, try, say."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--sample", type=int, default=SAMPLE, help=f"how many (default {SAMPLE})")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--only", default="", metavar="WORDS")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--least", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=running.RUNS, help="for one, at most")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of the processor")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    log = options.folder / f"log-{options.seed}.jsonl"
    several = drawn(options.seed, options.sample)
    words = options.only
    chosen = [one for one in several if words in f"{one.mutant.file} {one.mutant.within}"]
    most = -1.0 if options.write else 60 * options.minutes
    running.RUNS, running.JUDGES = options.seconds, min(running.JUDGES, options.seconds)
    file = record.FILE if options.seed == SEED else record.FRESH
    before = record.read(file)
    known = list(record.notes_of(before)) if before.get("seed") == options.seed else []
    workshop = running.Workshop(options.folder)
    try:
        if not options.write:
            workshop.save()
        notes = tried(chosen, workshop, log, again=options.again, at_most=most, before=known)
    finally:
        workshop.close()
    today = datetime.date.today().isoformat()
    last = options.seconds
    made = record.recorded(options.seed, options.sample, today, chosen, notes, before, last)
    if options.write:
        file.write_text(record.written(made))
        record.PAGE.write_text(record.page())
    print(record.summary(made["mutants"]))
    return int(record.score(made["mutants"]).lower < options.least)


if __name__ == "__main__":
    sys.exit(main())
