"""Does a theorem hold wherever its flags may be? Random configurations of it, judged.

``python -m tests.faults.configurations [NAME ...] [--commands N] [--seed S] [--log FILE]`` draws
command lines of each theorem, all by default, runs and judges each in this process as the command
does, without controls, and prints those that end false or in a fault. It fails if there is one.
Half of the commands lie inside, where all flags are close to the quick preset; in the others one or
two flags are at an end of their domain or anywhere in it. Flags that decide what is compiled, steps
and shapes, take six combinations for each seed. With ``--log`` every command is noted when it ends:
the same call goes on there, also after a kill.

At the end stands which share of the points was judged. With ``--check`` it fails, too, if that
share is lower than it was in the same commands (``tests/data/configurations.json``), by more than
rounding can do, or if a claim that was judged is not any more. ``--write`` puts what was run into
that file.
"""

import argparse
import contextlib
import datetime
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrdyn import cli
from lrdyn.registry import REGISTRY, theorem
from lrdyn.verification.judging.judging import worst_ratio
from lrdyn.verification.running.configuration import Run
from lrdyn.verification.running.work import DEFAULT
from lrdyn.verification.runs.verify import Verification, verify_run
from lrdyn.verification.searching.random_settings import (
    SHAPES,
    Settings,
    choose_flags,
    command_words,
    draw_shapes,
    draw_values,
    is_accepted,
    point_flags,
    random_generator,
)
from lrdyn.verification.stating.statement import Experiment

FILE = Path(__file__).parents[1] / "data" / "configurations.json"
"""What became of the commands that were run once: read by ``--check`` and the tests."""

POINTS = 8
"""Settings of a command, always as many: their number decides what is compiled, too."""

CHECKED = 20
"""Commands of each theorem whose points are committed one by one, for others to be compared."""

CHANCE = 0.03
"""Share of the points that rounding may move over the edge of what is judged."""


LATER = ("target_condition", "gradient_gap")
"""Flags that came after the committed commands had been drawn and run: here they keep their usual
values, so that these lines are drawn again. A search draws them."""


# Drawing ------------------------------------------------------------------------------------


def command(experiment: Experiment, known: list[Settings], seed: int, n: int) -> list[str]:
    """Draw the words of a command line that is accepted."""
    rng = random_generator(experiment, seed, n)
    flags = point_flags(experiment)
    dtype = str(rng.choice(["float64", "float64", "float32"]))
    start = {"seed": [rng.integers(2**31 - 2)], "seeds": [1], "dtype": [dtype]}
    at_edge = rng.random() < 0.5
    while True:
        k = int(rng.integers(SHAPES if at_edge else SHAPES // 2))
        far = (
            choose_flags(flags, rng)
            if at_edge and (k < SHAPES // 2 or rng.random() < 0.5)
            else set()
        )
        drawn = known[k] | draw_values(experiment, rng, far, POINTS)
        if is_accepted(experiment, drawn):
            return command_words(start | drawn)


# Running ------------------------------------------------------------------------------------


def without_controls(experiment: Experiment) -> Experiment:
    """The same claims; controls run at settings of their own, which are not drawn here."""
    kept = tuple(replace(s, controls=()) for s in experiment.scenarios)
    flags = tuple(replace(f, domain=None) if f.name in LATER else f for f in experiment.flags)
    return replace(experiment, scenarios=kept, flags=flags)


def verified(run: Run) -> Verification:
    """Produce and judge as the command does."""
    programs = cli.setup(run.dtype)
    module = REGISTRY[run.experiment.name].partition(":")[0]
    context = DEFAULT._replace(programs=programs and programs.of(module))
    return verify_run(run, context)


def points(found: Verification, experiment: Experiment, dtype: str) -> Counter:
    """How many points of the first scenario hold, are undecided, or false."""
    claims = [c for c in experiment.scenarios[0].claims if not c.seeds]
    ratios = worst_ratio(claims, found.legs, dtype).values if claims else np.full(1, np.nan)
    words = np.where(ratios <= 1, "held", np.where(np.isnan(ratios), "undecided", "false"))
    return Counter(words.ravel().tolist())


def why_false(found: Verification) -> str:
    """Claims that are false, with residual, tolerance and the worst case."""
    return "; ".join(
        f"{c['id']} {c['residual']} > {c['tolerance']} (float32 {c.get('residual_float32')} > "
        f"{c.get('tolerance_float32')}, scales {c['scales_with_epsilon']}) at {c['worst_case']}"
        for c in found.verdict["claims"]
        if c["holds"] is False
    )


class Note(NamedTuple):
    """What became of a command."""

    name: str
    seed: int
    command: int
    ended: str
    points: dict[str, int]
    """How many of the first scenario hold, are undecided, or false."""
    claims: list[str]
    """Those of which a case was judged, of any scenario."""


def ran(experiment: Experiment, words: list[str], seed: int, n: int) -> Note:
    """Run and judge one command."""
    note = Note(experiment.name, seed, n, "fault", {}, [])
    try:
        run = cli.parse(experiment, words).run
        found = verified(run)
    except Exception as error:
        line = (str(error).splitlines() or [""])[0]
        print(f"FAULT {type(error).__name__}: {line}: {' '.join(words)}", flush=True)
        return note
    holds, about = found.verdict["holds"], found.verdict["undecided"]
    if holds is False:
        print(f"FALSE {why_false(found)}: {' '.join(words)}", flush=True)
    word = {True: "held", False: "false", None: "undecided" if about else "nothing applies"}
    judged = [claim["id"] for claim in found.verdict["claims"] if claim["cases"]]
    seen = dict(points(found, run.experiment, run.dtype))
    return note._replace(ended=word[holds], points=seen, claims=judged)


def noted(log: Path | None) -> Iterator[Note]:
    """What a log says; a kill can have left half a line, which is none."""
    for line in log.read_text().splitlines() if log is not None and log.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            yield Note(**json.loads(line))


def note_down(log: Path, note: Note) -> None:
    """Append a note; behind half a line it begins a new one."""
    with log.open("a+b") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        new = b"" if file.read() in (b"", b"\n") else b"\n"
        file.write(new + json.dumps(note._asdict()).encode() + b"\n")


def notes_of(name: str, commands: int, seed: int, log: Path | None = None) -> list[Note]:
    """Draw, run and note commands of one theorem, and print what became of them."""
    experiment = without_controls(theorem(name))
    known = draw_shapes(experiment, seed, POINTS)
    done = {note.command: note for note in noted(log) if (note.name, note.seed) == (name, seed)}
    for n in range(1, commands + 1):
        if n not in done:
            done[n] = ran(experiment, command(experiment, known, seed, n), seed, n)
            if log is not None:
                note_down(log, done[n])
    notes = [done[n] for n in range(1, commands + 1)]
    ended, seen = Counter(note.ended for note in notes), Counter()
    for note in notes:
        seen += Counter(note.points)
    share = f"{100 * share_of(notes):.0f} % judged"
    print(f"{name}, seed {seed}: commands {dict(ended)}; points {dict(seen)}, {share}", flush=True)
    return notes


def judged_of(note: Note) -> tuple[int, int]:
    """How many points of a command were judged, and how many there were."""
    judged = note.points.get("held", 0) + note.points.get("false", 0)
    return judged, sum(note.points.values())


def share_of(notes: Sequence[Note]) -> float:
    """The share of the points that were judged."""
    judged, every = np.sum([judged_of(note) for note in notes], axis=0)
    return float(judged / max(1, every))


# What it was --------------------------------------------------------------------------------


def record(notes: Sequence[Note]) -> dict[str, Any]:
    """What is committed of the commands of a theorem."""
    ended = Counter(note.ended for note in notes)
    first = notes[:CHECKED]
    return {
        "commands": len(notes),
        "ended": dict(sorted(ended.items())),
        "share": round(share_of(notes), 4),
        "first": " ".join(f"{judged}/{every}" for judged, every in map(judged_of, first)),
        "claims": " ".join(sorted({claim for note in first for claim in note.claims})),
    }


def fallen(notes: Sequence[Note], before: Mapping[str, Any]) -> list[str]:
    """What is judged less than in the same commands before."""
    first = [[int(number) for number in word.split("/")] for word in before["first"].split()]
    notes = notes[: len(first)]
    judged, every = np.sum(first[: len(notes)], axis=0)
    now, was, said = share_of(notes), judged / max(1, every), []
    if now < was - CHANCE:
        said.append(f"{100 * now:.1f} % of the points are judged, and were {100 * was:.1f} %")
    if len(notes) == len(first):
        claims = {claim for note in notes for claim in note.claims}
        gone = sorted(set(before["claims"].split()) - claims)
        said += [f"no case of {claim} is judged any more" for claim in gone]
    return said


def main(argv: list[str] | None = None) -> int:
    """Draw, run and judge commands; the number of those that are false or a fault."""
    parser = argparse.ArgumentParser(prog="configurations", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *REGISTRY], metavar="NAME")
    parser.add_argument("--commands", type=int)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args(argv)
    before = json.loads(FILE.read_text()) if FILE.exists() else {}
    seed = before.get("seed", 0) if options.seed is None else options.seed
    if options.check and seed != before["seed"]:
        parser.error(f"--check: got seed {seed}, wanted that of {FILE.name}, {before['seed']}")
    found = {
        name: notes_of(name, options.commands or CHECKED, seed, options.log)
        for name in options.names or REGISTRY
    }
    worse = []
    if options.check:
        worse = [
            f"{name}: {line}"
            for name, notes in found.items()
            for line in fallen(notes, before["theorems"][name])
        ]
        print("\n".join(worse or ["no share is lower than it was"]))
    if options.write:
        kept = before["theorems"] if seed == before.get("seed") else {}
        records = kept | {name: record(notes) for name, notes in found.items()}
        today = datetime.date.today().isoformat()
        in_order = {name: records[name] for name in REGISTRY if name in records}
        made = {"date": today, "seed": seed, "theorems": in_order}
        FILE.write_text(json.dumps(made, indent=1) + "\n")
    bad = [note for notes in found.values() for note in notes if note.ended in ("false", "fault")]
    return len(bad) + len(worse)


if __name__ == "__main__":
    sys.exit(bool(main()))
