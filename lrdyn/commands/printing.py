"""What a command prints of a verdict: its first screen, one line, or lines for other programs."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lrdyn.system.printer import complain, say
from lrdyn.verification.judging import verdict_text
from lrdyn.verification.judging.entries import Entry
from lrdyn.verification.stating.claims import Decision
from lrdyn.verification.stating.mistakes import line_of
from lrdyn.verification.stating.sources import own_files_stating
from lrdyn.verification.stating.statement import Experiment

FORMATS = {
    "text": "for a person",
    "json": "a line for each claim, control and finding, and a last one for the verdict",
    "github": "annotations of a GitHub workflow",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what is printed of a verdict."""
    group = parser.add_argument_group("what is printed")
    how_much = group.add_mutually_exclusive_group()
    how_much.add_argument(
        "-v", "--verbose", action="store_true", help="also a line for each control"
    )
    how_much.add_argument("-q", "--quiet", action="store_true", help="the last line alone")
    listed = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    group.add_argument("--format", choices=tuple(FORMATS), default="text", help=listed)


def remark(text: str, options: argparse.Namespace) -> None:
    """Print a line about a run: to stderr where stdout is for a program, or for one line."""
    beside = options.quiet or options.format != "text"
    (complain if beside else say)(text)


def lines(
    verdict: Mapping[str, Any],
    options: argparse.Namespace,
    last: str,
    *,
    summary: str = "",
    notes: Sequence[str] = (),
    file: str = "",
    theorem: Experiment | None = None,
) -> list[str]:
    """What is printed of a verdict, as its options say.

    Args:
        verdict: content of ``verdict.json``.
        options: those of :func:`add_flags`.
        last: the last line for a person, which stands alone with ``--quiet``.
        summary: what is claimed, in words.
        notes: lines to add.
        file: where the verdict stands, if it was written.
        theorem: where it is stated, for annotations of one's own file.
    """
    if options.format == "json":
        return list(_json_lines(verdict, file))
    if options.format == "github":
        return list(_annotations(verdict, theorem))
    if options.quiet:
        return [last]
    screen = verdict_text.first_screen(verdict, summary, notes, controls=options.verbose)
    return [screen, "", last]


def _json_lines(verdict: Mapping[str, Any], file: str) -> Iterator[str]:
    name = verdict["name"]
    for entry in verdict["claims"]:
        yield json.dumps({"theorem": name, **entry}, allow_nan=False)
    outcome = Decision.of(verdict["holds"]).value
    whole = {"theorem": name, "holds": verdict["holds"], "outcome": outcome, "file": file}
    yield json.dumps(whole | {"undecided": verdict["undecided"]}, allow_nan=False)


def _annotations(verdict: Mapping[str, Any], theorem: Experiment | None) -> Iterator[str]:
    """An error for each entry that a verdict fails by, or one notice that it holds."""
    name = verdict["name"]
    for entry in map(Entry.of, verdict["claims"]):
        if entry.outcome is Decision.FALSE or entry.id in verdict["undecided"]:
            yield _annotation("error", f"{name}: {entry.id}", repr(entry), theorem, entry.id)
    level = "notice" if verdict["holds"] else "error"
    yield _annotation(level, name, verdict_text.sentence(verdict), theorem, name)


def _annotation(
    level: str, title: str, message: str, theorem: Experiment | None, stated: str
) -> str:
    """A command of a workflow, ``::error file=mine.py,line=7,title=...::message``.

    Example:
        >>> _annotation("error", "mine: rho", "100 % off", None, "rho")
        '::error title=mine%3A rho::100 %25 off'
    """
    properties = {}
    if theorem is not None and own_files_stating(theorem):
        file, _, line = line_of(theorem, stated).rpartition(":")
        properties = {"file": file, "line": line.partition(" ")[0]}
    properties["title"] = title
    given = ",".join(f"{key}={_escaped(value, ':,')}" for key, value in properties.items())
    return f"::{level} {given}::{_escaped(message)}"


def _escaped(text: str, others: str = "") -> str:
    """Text without characters that end a property or a line of a workflow's command."""
    for character in "%\r\n" + others:
        text = text.replace(character, f"%{ord(character):02X}")
    return text
