"""``lrdyn report RESULTS``: all results in one HTML file."""

import os
from collections.abc import Sequence
from pathlib import Path

from lrdyn.commands.arguments import Example, Parser, parse_folder
from lrdyn.report import page
from lrdyn.system.printer import say
from lrdyn.system.release import library_version

DESCRIPTION = (
    "One HTML file of results: verdicts, claims, findings, figures, settings, checksums. It needs "
    "no other file, no script and no network."
)
EXAMPLES = (
    Example("lrdyn report results", "of all theorems: what `lrdyn verify all` left"),
    Example("lrdyn report results/theorem2/HASH --out theorem2.html", "of one run"),
    Example("lrdyn report found", "of a diagnosis: what `lrdyn diagnose ... --out found` left"),
)


def parser() -> Parser:
    """The parser of ``lrdyn report``.

    Example:
        >>> parser().parse(["results"]).out is None
        True
    """
    flags = Parser("lrdyn report", DESCRIPTION, examples=EXAMPLES)
    flags.add_argument(
        "results",
        type=parse_folder,
        metavar="RESULTS",
        help="a folder of results, or one of several",
    )
    flags.add_argument(
        "--out", type=parse_folder, metavar="FILE", help=f"the file (default: RESULTS/{page.FILE})"
    )
    return flags


def main(words: Sequence[str]) -> None:
    """Run one command line.

    Raises:
        BadInput: there are no results, one is damaged, or the file may not be written.
    """
    options = parser().parse(words)
    say(f"report: {written(Path(options.results), out=options.out)}")


def written(results: Path, command: str = "", *, out: str | os.PathLike | None = None) -> Path:
    """Write the report of a folder of results, and say where.

    Args:
        results: the folder.
        command: what verifies the theorem of a single run, if that is known.
        out: the file; by default it lies beside the results.
    """
    text = page.report(page.contents(results, command), library_version())
    path = results / page.FILE if out is None else Path(out)
    page.write(text, path)
    return path
