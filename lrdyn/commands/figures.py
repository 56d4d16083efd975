"""The command line of figures and tables: draw them, compare them with baselines."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lrdyn.commands.ending import Compared
from lrdyn.engine.arguments import Parser, folder
from lrdyn.engine.configuration import BadInput
from lrdyn.figures import long
from lrdyn.figures.baselines import check, write_baseline
from lrdyn.figures.exhibits import Exhibit, missing
from lrdyn.figures.rendering import render
from lrdyn.system import whole_files
from lrdyn.system.printer import say

ACTIONS = {
    "draw": "draw figures and write tables, running what has no results (default)",
    "check": "compare their numbers, and how they are drawn, with the baselines",
    "baseline": "show what changes, ask, and make them the baselines",
}


def main(
    exhibits: Sequence[Exhibit],
    baselines: Path,
    argv: Sequence[str] | None = None,
    *,
    prog: str = "figures",
) -> Compared | None:
    """Command line of figures and tables: ``[draw|check|baseline] [name ...] [flags]``.

    Args:
        exhibits: the figures and tables.
        baselines: folder of the baselines.
        argv: arguments; those of the process by default.
        prog: name of the command in its messages.

    Returns:
        After ``check`` whether all of them are as their baselines, else None.

    Raises:
        BadInput: the arguments are not valid.
    """
    options, action, chosen = parse(exhibits, sys.argv[1:] if argv is None else argv, prog)
    options.out = Path(options.out)
    _writable(options.out)
    _known_preset(options.preset, chosen)
    if action == "baseline" and not options.yes and not _terminal():
        raise BadInput("--yes: got a baseline to write and no terminal to ask, wanted this flag")
    for exhibit in exhibits:
        if missing(exhibit) and not set(options.figures) - set(ACTIONS):
            say(f"{exhibit.name}: left out, it needs {missing(exhibit)}")
    named = bool(set(options.figures) - set(ACTIONS))
    agree = [_act(action, exhibit, options, baselines, named) for exhibit in chosen]
    if action != "check":
        return None
    if uncompared := _not_compared(chosen, options, baselines):
        say(uncompared)
    return Compared(all(agree))


def _not_compared(chosen: Sequence[Exhibit], options: argparse.Namespace, baselines: Path) -> str:
    """Which figures have no new numbers that were compared, and why; empty if all have."""
    reasons: dict[str, list[str]] = {}
    for exhibit in chosen:
        if exhibit.long and (
            why := long.uncompared(exhibit, options.out, baselines, options.preset)
        ):
            reasons.setdefault(why, []).append(exhibit.name)
    said = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    return f"numbers not compared of {said}" if said else ""


class Command(NamedTuple):
    """A parsed command line."""

    options: argparse.Namespace
    action: str
    chosen: list[Exhibit]


def parse(exhibits: Sequence[Exhibit], argv: Sequence[str], prog: str = "figures") -> Command:
    """Read a command line, without the program's name.

    Raises:
        BadInput: an argument is unknown.
    """
    options = _parser(exhibits, prog).parse(argv)
    return Command(options, *_choose(options.figures, exhibits))


def _parser(exhibits: Sequence[Exhibit], prog: str) -> Parser:
    lines = [f"  {name:<9} {text}" for name, text in ACTIONS.items()]
    lines += ["", *(f"  {exhibit.name:<9} {exhibit.title}" for exhibit in exhibits)]
    parser = Parser(
        prog,
        "Write figures and tables beside their numbers, or compare them with the baselines.",
        epilog="\n".join(["words:", *lines]),
    )
    parser.add_argument(
        "figures", nargs="*", metavar="figure", help="words below; everything by default"
    )
    parser.add_argument(
        "--out", type=folder, default="results", metavar="DIR", help="default: results"
    )
    parser.add_argument("--preset", default="quick", metavar="quick|paper", help="default: quick")
    parser.add_argument(
        "--recompute", action="store_true", help="use neither saved numbers nor saved results"
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="run the trainings of long figures; else they are drawn from what is there",
    )
    parser.add_argument(
        "--yes", action="store_true", help="write baselines without asking, as scripts need it"
    )
    return parser


def _terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _asked(name: str) -> bool:
    """Whether the person at the terminal wants a baseline written."""
    say(f"{name}: write it? [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _choose(words: Sequence[str], exhibits: Sequence[Exhibit]) -> tuple[str, list[Exhibit]]:
    action = words[0] if words and words[0] in ACTIONS else "draw"
    names = list(words[1:] if words and words[0] in ACTIONS else words)
    known = {exhibit.name: exhibit for exhibit in exhibits}
    for name in names:
        if name not in known:
            raise BadInput(f"figure: got {name!r}, wanted one of {', '.join(known)}")
        if missing(known[name]):
            raise BadInput(f"figure: got {name!r}, wanted {missing(known[name])} for it")
    chosen = [known[name] for name in dict.fromkeys(names)]
    return action, chosen or [exhibit for exhibit in exhibits if not missing(exhibit)]


def _writable(out: Path) -> None:
    existing = next(
        folder for folder in (out / "figures", *(out / "figures").parents) if os.path.exists(folder)
    )
    if not existing.is_dir():
        raise BadInput(
            f"--out: got {str(out)!r}, where {str(existing)!r} is a file, wanted a folder"
        )
    whole_files.refuse_links(out, ["figures"])
    if (out / "figures").is_dir():
        whole_files.refuse_links(out / "figures")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BadInput(f"--out: got {str(out)!r}, wanted a folder that can be written")


def _known_preset(preset: str, exhibits: Sequence[Exhibit]) -> None:
    for exhibit in exhibits:
        if preset not in exhibit.presets:
            raise BadInput(f"--preset: got {preset!r}, wanted one of {', '.join(exhibit.presets)}")


def _act(
    action: str, exhibit: Exhibit, options: argparse.Namespace, baselines: Path, named: bool
) -> bool:
    """Whether all is well with one exhibit after the action."""
    if action == "draw":
        try:
            _draw(exhibit, options, baselines)
        except long.Undrawable as error:
            if named:
                raise
            say(f"{exhibit.name}: left out, {error}")
        return True
    if options.recompute or (exhibit.long and options.train):
        how = {"recompute": options.recompute, "train": options.train, "report": say}
        render(exhibit, options.out, options.preset, baselines=baselines, **how)
    if action == "check":
        return check(exhibit, options.out, baselines, options.preset, report=say)
    agreed = (lambda: True) if options.yes else partial(_asked, exhibit.name)
    return write_baseline(
        exhibit, options.out, baselines, options.preset, agreed=agreed, report=say
    )


def _draw(exhibit: Exhibit, options: argparse.Namespace, baselines: Path) -> None:
    begin = time.perf_counter()
    done = render(
        exhibit,
        options.out,
        options.preset,
        recompute=options.recompute,
        train=options.train,
        baselines=baselines,
        report=say,
    )
    source = "computed" if done.ran else "saved results" if done.computed else "saved numbers"
    source = done.dataset.attrs.get("drawn_from", source)
    seconds = time.perf_counter() - begin
    say(f"{exhibit.name}: {done.paths[1]} ({source}, {seconds:.1f} s)")
    say(exhibit.shown(done.dataset), end="")
