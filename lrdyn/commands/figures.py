"""The command line of figures and tables: draw them, compare them with baselines."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from lrdyn.commands.arguments import Example, Parser, add_device_flags, parse_folder
from lrdyn.commands.ending import Sameness
from lrdyn.core.show import near, shortened
from lrdyn.figures import long, plotting
from lrdyn.figures.baselines import check, write_baseline
from lrdyn.figures.exhibits import Excerpt, Exhibit, Figure, missing_packages, set_precision
from lrdyn.figures.rendering import render
from lrdyn.figures.single_panels import Unfit
from lrdyn.system import whole_files
from lrdyn.system.messages import Fault
from lrdyn.system.printer import say
from lrdyn.verification.judging.rounding import PRECISIONS
from lrdyn.verification.machine import accelerators
from lrdyn.verification.machine.kept_programs import KeptPrograms
from lrdyn.verification.machine.process import setup
from lrdyn.verification.running import arithmetic_probe
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.stating import mistakes
from lrdyn.verification.stating.mistakes import Lacking, describe_error

ACTIONS = {
    "draw": "draw figures and write tables, running what has no results (default)",
    "check": "compare their numbers, and how they are drawn, with the baselines",
    "baseline": "show what changes, ask, and make them the baselines",
}
OWN, INIT = "lrdyn figures", "make the folder `figures` with two examples (no other word beside it)"
"""The command for figures of a user's folder; what `init` does, a word that it alone has."""


def main(
    exhibits: Sequence[Exhibit],
    baselines: Path,
    argv: Sequence[str] | None = None,
    *,
    prog: str = "figures",
    written_in: Collection[Path] = (),
    machine: KeptPrograms | None = None,
) -> Sameness | None:
    """Command line of figures and tables: ``[draw|check|baseline] [name ...] [flags]``.

    Args:
        exhibits: the figures and tables.
        baselines: folder of the baselines.
        argv: arguments; those of the process by default.
        prog: name of the command in its messages.
        written_in: folders of somebody's own files, in which mistakes are named.
        machine: where what was measured of the devices is kept.

    One that fails keeps none of the others from being drawn. Of all figures those whose data are
    missing are named, with what to do.

    Returns:
        After ``check`` whether all of them are as their baselines, else None.

    Raises:
        BadInput: the arguments are not valid, or a figure that was named cannot be drawn.
        Fault: the machine or the library failed at a figure.
    """
    options, action, chosen = parse(exhibits, sys.argv[1:] if argv is None else argv, prog)
    options.out = Path(options.out)
    _check_writable(options.out)
    _check_preset(options.preset, chosen)
    options.excerpt = _parse_excerpt(options, action)
    # Refused at once, not after the figures are drawn.
    if action == "baseline" and not options.yes and not _has_terminal():
        raise BadInput(
            "--yes: got no terminal to ask before a baseline is written, wanted this flag"
        )
    named = bool(set(options.figures) - set(ACTIONS))
    if named:
        for exhibit in chosen:
            _check_excerpt(exhibit, options.excerpt)
    chosen = _select_precision(chosen, options.dtype, named=named, prog=prog, machine=machine)
    if options.train and not named:
        # What takes seconds is not kept waiting by hours, nor what is wanted most by other hours.
        chosen = sorted(chosen, key=lambda exhibit: (exhibit.long, exhibit.turn))
    for exhibit in exhibits:
        if missing_packages(exhibit) and not named:
            say(f"{exhibit.name}: left out, it needs {missing_packages(exhibit)}")
    agree, failed = _act_on_each(action, chosen, options, baselines, written_in, named=named)
    if not named:  # an exhibit without its data is only named
        failed = {name: e for name, e in failed.items() if not isinstance(e, Lacking)}
    if failed:
        raise _failure(failed)
    if action != "check":
        return None
    if uncompared := _describe_uncompared(chosen, options, baselines):
        say(uncompared)
    return Sameness(all(agree))


def _describe_uncompared(
    chosen: Sequence[Exhibit], options: argparse.Namespace, baselines: Path
) -> str:
    """Say which figures had no new numbers to compare, and why; empty if all had."""
    reasons: dict[str, list[str]] = {}
    for exhibit in chosen:
        if exhibit.long and (
            why := long.why_not_compared(exhibit, options.out, baselines, options.preset)
        ):
            reasons.setdefault(why, []).append(exhibit.name)
    causes = "; ".join(f"{', '.join(names)}: {why}" for why, names in reasons.items())
    return f"numbers not compared of {causes}" if causes else ""


def _act_on_each(
    action: str,
    chosen: Sequence[Exhibit],
    options: argparse.Namespace,
    baselines: Path,
    written_in: Collection[Path],
    *,
    named: bool,
) -> tuple[list[bool], dict[str, Exception]]:
    """Apply the action to each figure; returns which agreed, and what the others raised."""
    agree: list[bool] = []
    failed: dict[str, Exception] = {}
    for exhibit in chosen:
        try:
            with mistakes.name_mistakes(written_in):
                agree.append(_act(action, exhibit, options, baselines))
        except BadInput as error:
            failed[exhibit.name] = error
            if not named:  # for named figures it is the last line of the command
                say(f"{exhibit.name}: left out, {error}")
        except OSError:  # a full disk would fail the other figures, too
            raise
        except Exception as error:
            failed[exhibit.name] = error
            say(f"{exhibit.name}: failed, {describe_error(error)}")
    return agree, failed


def _failure(failed: Mapping[str, Exception]) -> Exception:
    """The ending of the command after all figures; a fault takes precedence over bad input."""
    faults = {name: e for name, e in failed.items() if not isinstance(e, BadInput)}
    name, error = next(iter((faults or failed).items()))
    more = f" (and {', '.join(n for n in failed if n != name)})" if len(failed) > 1 else ""
    if not faults:
        return BadInput(f"{name}{more}: {error}")
    fault = Fault(
        f"{name}{more}: internal error ({describe_error(error)}); LRDYN_DEBUG=1 shows where"
    )
    fault.__cause__ = error
    return fault


class FiguresCommand(NamedTuple):
    """A parsed command line."""

    options: argparse.Namespace
    action: str
    chosen: list[Exhibit]


def parse(
    exhibits: Sequence[Exhibit], argv: Sequence[str], prog: str = "figures"
) -> FiguresCommand:
    """Read a command line, without the program's name.

    Raises:
        BadInput: an argument is unknown.
    """
    options = parser_of(exhibits, prog).parse(argv)
    return FiguresCommand(options, *_choose(options.figures, exhibits))


def begin(argv: Sequence[str] | None, prog: str) -> KeptPrograms | None:
    """Set up the process for a command line, before importing figures, which may compute.

    Returns:
        What :func:`lrdyn.verification.machine.process.setup` does; None where a page of help is
        asked for.

    Raises:
        BadInput: an argument is unknown.
    """
    words = sys.argv[1:] if argv is None else argv
    if {"-h", "--help"} & set(words):
        return None
    if parser_of((), prog).parse(words).deterministic:
        say(f"{prog}: {accelerators.run_deterministically()}")
    return setup("float64")


def parser_of(exhibits: Sequence[Exhibit], prog: str) -> Parser:
    """The parser of the command ``prog`` for these figures."""
    width = max(len(name) for name in ["baseline", *(one.name for one in exhibits)])
    actions = ({"init": INIT} if prog == OWN else {}) | ACTIONS
    lines = [f"  {name:<{width}}  {text}" for name, text in actions.items()]
    lines += ["", *(f"  {exhibit.name:<{width}}  {exhibit.title}" for exhibit in exhibits)]
    first = next((exhibit.name for exhibit in exhibits), "NAME")
    parser = Parser(
        prog,
        "Write figures and tables beside their numbers, or compare them with the baselines.",
        epilog="\n".join(["words:", *lines]),
        examples=[
            Example(f"{prog} {first}", "draw one, running what has no results"),
            Example(f"{prog} check", "compare all with their baselines; status 1 if one differs"),
            Example(f"{prog} baseline {first} --yes", "make what is drawn now the baseline"),
        ],
    )
    parser.add_argument(
        "figures", nargs="*", metavar="figure", help="words below; everything by default"
    )
    parser.add_argument(
        "--out", type=parse_folder, default="results", metavar="DIR", help="default: results"
    )
    parser.add_argument(
        "--dtype",
        choices=PRECISIONS,
        help="of runs that do not train (default: float64, where a device has it)",
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
        "--panel",
        nargs="+",
        default=[],
        metavar="LETTER",
        help="draw each alone, with its keys, in a file beside that of the figure; never compared",
    )
    parser.add_argument(
        "--width",
        metavar="column|text|INCHES",
        help="draw at this width, in another file (default: text; of a panel alone: column)",
    )
    parser.add_argument(
        "--format",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="files of what is drawn: png, pdf, svg, pgf (default: png pdf)",
    )
    parser.add_argument(
        "--yes", action="store_true", help="write baselines without asking, as scripts need it"
    )
    add_device_flags(parser)
    return parser


def _has_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _ask(name: str) -> bool:
    """Whether the person at the terminal wants a baseline written."""
    say(f"{name}: write it? [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _choose(words: Sequence[str], exhibits: Sequence[Exhibit]) -> tuple[str, list[Exhibit]]:
    action = words[0] if words and words[0] in ACTIONS else "draw"
    names = list(words[1:] if words and words[0] in ACTIONS else words)
    known = {exhibit.name: exhibit for exhibit in exhibits}
    for name in names:
        if name not in known:
            got = f"{shortened(name)!r}{near(name, [*known, *ACTIONS])}"
            raise BadInput(f"figure: got {got}, wanted one of {', '.join(known)}")
        if missing_packages(known[name]):
            raise BadInput(f"figure: got {name!r}, wanted {missing_packages(known[name])} for it")
    chosen = [known[name] for name in dict.fromkeys(names)]
    return action, chosen or [exhibit for exhibit in exhibits if not missing_packages(exhibit)]


def _check_writable(out: Path) -> None:
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


def _select_precision(
    exhibits: Sequence[Exhibit],
    given: str | None,
    *,
    named: bool,
    prog: str,
    machine: KeptPrograms | None,
) -> list[Exhibit]:
    """Exhibits whose runs have the precision asked for, or else that of the device.

    Raises:
        BadInput: one that was named cannot be made in it.
    """
    dtype, why = (
        (given, "")
        if given
        else arithmetic_probe.usual_precision(arithmetic_probe.meter_here(machine))
    )
    if dtype == "float64":
        return list(exhibits)
    # Once more: :func:`begin` has set the process to float64.
    setup(dtype)
    if why:
        say(f"{prog}: in float32. {why}")
    for exhibit in exhibits:
        if dtype not in exhibit.precisions:
            wanted = " or ".join(exhibit.precisions)
            if named:
                got = f"--dtype: got {dtype!r} for {exhibit.name}"
                raise BadInput(f"{got}, wanted {wanted}")
            say(f"{exhibit.name}: left out, it needs {wanted}")
    return [set_precision(exhibit, dtype) for exhibit in exhibits if dtype in exhibit.precisions]


def _parse_excerpt(options: argparse.Namespace, action: str) -> Excerpt | None:
    """What is drawn for a talk beside the figures.

    Raises:
        BadInput: it is no width or format, or is asked for where nothing is drawn.
    """
    width = options.width
    with contextlib.suppress(TypeError, ValueError):
        width = float(width)
    asked = {"panel": options.panel, "width": width, "format": options.format}
    asked = [name for name, value in asked.items() if value]
    if not asked:
        return None
    if action != "draw":
        raise BadInput(
            f"--{asked[0]}: got it with {action}, wanted it with draw: it is not compared"
        )
    try:
        if width:
            plotting.inches_of(width)
        if options.format:
            plotting.check_formats(options.format)
    except ValueError as error:
        raise BadInput(f"--{str(error).replace('formats', 'format', 1)}") from None
    excerpt = Excerpt(options.panel, width)
    return excerpt._replace(formats=options.format) if options.format else excerpt


def _check_excerpt(exhibit: Exhibit, excerpt: Excerpt | None) -> None:
    """Refuse what shows before anything is computed and drawn.

    Raises:
        BadInput: a table is asked for a picture, or a figure for a panel that it does not have.
    """
    if excerpt is None:
        return
    if not isinstance(exhibit, Figure):
        raise BadInput(f"--panel, --width, --format: got {exhibit.name!r}, wanted a figure")
    unknown = [letter for letter in excerpt.panels if letter not in exhibit.letters]
    if unknown and exhibit.letters:
        known = ", ".join(exhibit.letters)
        raise BadInput(
            f"--panel: got {shortened(unknown[0])!r} of {exhibit.name}, wanted one of the letters "
            f"{known}"
        )


def _check_preset(preset: str, exhibits: Sequence[Exhibit]) -> None:
    for exhibit in exhibits:
        if preset not in exhibit.presets:
            raise BadInput(f"--preset: got {preset!r}, wanted one of {', '.join(exhibit.presets)}")


def _act(action: str, exhibit: Exhibit, options: argparse.Namespace, baselines: Path) -> bool:
    """Apply the action to one exhibit, and return whether it succeeded."""
    if action == "draw":
        _draw(exhibit, options, baselines)
        return True
    if options.recompute or (exhibit.long and options.train):
        how = {"recompute": options.recompute, "train": options.train, "report": say}
        render(exhibit, options.out, options.preset, baselines=baselines, **how)
    if action == "check":
        return check(exhibit, options.out, baselines, options.preset, report=say)
    agreed = (lambda: True) if options.yes else partial(_ask, exhibit.name)
    return write_baseline(
        exhibit, options.out, baselines, options.preset, agreed=agreed, report=say
    )


def _draw(exhibit: Exhibit, options: argparse.Namespace, baselines: Path) -> None:
    begin = time.perf_counter()
    _check_excerpt(exhibit, options.excerpt)
    try:
        done = render(
            exhibit,
            options.out,
            options.preset,
            recompute=options.recompute,
            train=options.train,
            baselines=baselines,
            excerpt=options.excerpt,
            report=say,
        )
    except Unfit as error:
        raise BadInput(f"--{error}") from None
    from_results = (
        done.computed and not done.ran and json.loads(done.dataset.attrs.get("sources", "{}"))
    )
    source = (
        "saved numbers" if not done.computed else "saved results" if from_results else "computed"
    )
    source = done.dataset.attrs.get("drawn_from", source)
    seconds = time.perf_counter() - begin
    say(f"{exhibit.name}: {done.paths[1]} ({source}, {seconds:.1f} s)")
    say(exhibit.terminal_text(done.dataset), end="")
    for path in done.excerpts:
        say(f"{exhibit.name}: {path}")
