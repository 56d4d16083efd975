"""``lrdyn diagnose BEFORE AFTER``: the report, its files, and the adapter."""

import argparse
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from lrdyn.adapters import peft_tensors
from lrdyn.commands.arguments import (
    Example,
    Parser,
    fraction_reader,
    integer_reader,
    parse_folder,
    rank_reader,
)
from lrdyn.core.show import near, shortened
from lrdyn.data import checkpoints
from lrdyn.diagnosis import advice, reading
from lrdyn.diagnosis.before_training import gradients
from lrdyn.diagnosis.extraction import extract
from lrdyn.diagnosis.orientation import orientation
from lrdyn.diagnosis.planning import Plan, plan
from lrdyn.diagnosis.report import Diagnosis, diagnose
from lrdyn.diagnosis.updates import NOISE
from lrdyn.system import progress, whole_files
from lrdyn.system.printer import say
from lrdyn.verification.running.configuration import BadInput

DESCRIPTION = (
    "Which LoRA rank the update between two sets of weights needs, and what it would cost."
)
WRITTEN = ("diagnosis.csv", "diagnosis.json", "diagnosis.png", "diagnosis.pdf")
"""Files of ``--out``."""
EPILOG = """BEFORE, AFTER: .safetensors or its .index.json; .bin or .pt where torch is installed; a
folder of transformers, accelerate, orbax or PEFT; ORG/NAME in the hub's cache; .npz. An adapter of
PEFT may be AFTER, both, or stand alone. GLOB is a pattern on names, such as
'*.attention.*.weight'; quote it.
"""
EXAMPLES = (
    Example("lrdyn diagnose BASE TUNED", "which rank each kind of layer needs"),
    Example("lrdyn diagnose BASE TUNED --extract DIR --energy .99", "the update as an adapter"),
    Example("lrdyn diagnose BASE TUNED --plan DIR --budget 2000000", "ranks for a new training"),
)
FIRST = 2.0
"""Seconds after which progress is printed, if the output is not a terminal."""
ADAPTER = (checkpoints.ADAPTER, peft_tensors.NAME)
"""Files of an adapter."""


def parser() -> Parser:
    """The parser of ``lrdyn diagnose``.

    Example:
        >>> parser().parse(["a.npz", "b.npz", "--rank", "8"]).rank
        8
    """
    flags = Parser("lrdyn diagnose", DESCRIPTION, EPILOG, examples=EXAMPLES)
    flags.add_argument(
        "before", type=parse_folder, metavar="BEFORE", help="weights before the training"
    )
    flags.add_argument(
        "after",
        type=parse_folder,
        nargs="?",
        metavar="AFTER",
        help="weights after it, or an adapter",
    )
    flags.add_argument(
        "--select", nargs="+", default=["*"], metavar="GLOB", help="which matrices (default: all)"
    )
    flags.add_argument(
        "--rename",
        nargs="+",
        default=[],
        metavar="OLD=NEW",
        help=r"change names of AFTER: OLD is a regular expression, as in '^module\.='",
    )
    flags.add_argument(
        "--gradients",
        nargs="+",
        type=parse_folder,
        metavar="FILE",
        help="in the place of AFTER: gradients at BEFORE under its names, a file for each batch, "
        "or one whose arrays count them in a first axis",
    )
    flags.add_argument(
        "--top",
        type=integer_reader("top", 1),
        default=8,
        metavar="K",
        help="how many leading singular values are described (default: 8)",
    )
    flags.add_argument(
        "--sketch",
        type=integer_reader("sketch", 1),
        metavar="K",
        help="compute only the first K singular values of large matrices, and bound the rest: for "
        "checkpoints of many gigabytes",
    )
    flags.add_argument(
        "--bulk",
        action="store_true",
        help="describe W beyond its first K values, too; takes three times as long",
    )
    flags.add_argument(
        "--intruders",
        action="store_true",
        help="count leading directions of AFTER that BEFORE does not have, beside those of chance",
    )
    flags.add_argument(
        "--every", action="store_true", help="list each matrix, even if there are more than 24"
    )
    flags.add_argument(
        "--json", action="store_true", help="print every number as JSON, and nothing else"
    )
    flags.add_argument(
        "--out", type=parse_folder, metavar="DIR", help=f"write {', '.join(WRITTEN)}"
    )
    flags.add_argument(
        "--extract", type=parse_folder, metavar="DIR", help="write the update as an adapter of PEFT"
    )
    flags.add_argument(
        "--rank",
        type=rank_reader("rank"),
        metavar="R",
        help="rank of that adapter, or of the plan; noise: as many as lie above the noise floor",
    )
    flags.add_argument(
        "--energy",
        type=fraction_reader("energy"),
        metavar="E",
        help="or the share of the squared norm that it must keep (default: .9)",
    )
    flags.add_argument(
        "--save-module",
        nargs="+",
        default=[],
        metavar="GLOB",
        help="modules that it saves whole: norms, heads",
    )
    flags.add_argument(
        "--embedding",
        nargs="+",
        metavar="GLOB",
        help="modules that are embeddings (default: usual names)",
    )
    flags.add_argument(
        "--fan-in-fan-out",
        action=argparse.BooleanOptionalAction,
        help="whether weights are stored transposed, as GPT-2's (default: as config.json says)",
    )
    flags.add_argument(
        "--plan",
        type=parse_folder,
        metavar="DIR",
        help="write PEFT's configuration for a new training",
    )
    flags.add_argument(
        "--budget",
        type=integer_reader("budget", 1),
        metavar="N",
        help="parameters of all factors together",
    )
    flags.add_argument(
        "--error",
        type=fraction_reader("error"),
        metavar="E",
        help="or the relative error of the update",
    )
    return flags


def main(words: Sequence[str]) -> None:
    """Run one command line.

    Raises:
        BadInput: an argument is wrong, or a file is none of weights.
    """
    options = parser().parse(words)
    _check_flags(options)
    if options.gradients:
        _say_gradients(options)
        return
    for flag, path, names in (
        ("--out", options.out, WRITTEN),
        ("--extract", options.extract, ADAPTER),
        ("--plan", options.plan, ADAPTER[:1]),
    ):
        if path and not may_be_a_folder(Path(path)):
            raise BadInput(f"{flag}: got {shortened(path)!r}, wanted a folder: that is a file")
        if path:
            # All folders before any work: decompositions of a large model take minutes.
            whole_files.refuse_links(Path(path), names)
    how: dict[str, Any] = {
        "select": options.select,
        "k": options.top,
        "sketch": options.sketch,
        "bulk": options.bulk,
        "rename": _parse_renames(options.rename),
    }
    adapter = planned = None
    with user_files("BEFORE, AFTER"), show_progress("diagnose") as progress:
        if options.extract:
            arguments = _extraction_arguments(options) | how
            adapter = extract(options.before, options.after, **arguments, progress=progress)
            diagnosis = adapter.diagnosis
        else:
            how["intruders"] = options.intruders
            diagnosis = diagnose(options.before, options.after, **how, progress=progress)
        if options.plan:
            planned = _plan(options, diagnosis)
    say(diagnosis.json() if options.json else diagnosis.table(every=options.every))
    is_report = not (options.json or options.extract or options.plan)
    if is_report and (command := _next_command(options, diagnosis)):
        say(f"\nNext: {command}")
    if options.out:
        _write(diagnosis, Path(options.out), quiet=options.json)
    if adapter is not None:
        with user_files("BEFORE, AFTER"), show_progress("reading the adapter back") as progress:
            adapter = adapter.write(options.extract, progress=progress)
        if not options.json:
            lines = [*adapter.lines(), f"adapter, read back by PEFT's rules: {options.extract}"]
            say("\n".join(["", *lines]))
    if planned is not None:
        planned.write(options.plan)
        if not options.json:
            say("\n".join(["", *planned.lines(), f"configuration: {options.plan}"]))


def _say_gradients(options: argparse.Namespace) -> None:
    """Print what gradients tell before a training."""
    with user_files("BEFORE, --gradients"), show_progress("diagnose") as progress:
        report = gradients(
            options.before,
            options.gradients,
            select=options.select,
            rename=_parse_renames(options.rename),
            progress=progress,
        )
    say(report.json() if options.json else report.table(every=options.every))


def _next_command(options: argparse.Namespace, diagnosis: Diagnosis) -> str:
    """The command that makes an adapter of what was found."""
    more = ["--select", *options.select] if options.select != ["*"] else []
    more += ["--rename", *options.rename] if options.rename else []
    return advice.next_command(diagnosis.matrices, options.before, options.after, more)


def _check_flags(options: argparse.Namespace) -> None:
    """Refuse combinations of flags that contradict each other."""
    if options.gradients:
        others = ("after", "sketch", "bulk", "intruders", "out", "extract", "plan")
        if given := [name for name in others if getattr(options, name)]:
            name = "AFTER" if given[0] == "after" else f"--{given[0]}"
            raise BadInput(f"{name}: got it beside --gradients, wanted one of the two")
    extraction = {
        "--energy": options.energy,
        "--save-module": options.save_module,
        "--embedding": options.embedding,
    }
    if options.extract is None and (alone := next((n for n, x in extraction.items() if x), None)):
        raise BadInput(f"{alone}: got it without --extract, wanted --extract DIR")
    if options.rank and not (options.extract or options.plan):
        raise BadInput("--rank: got it alone, wanted --extract DIR or --plan DIR")
    if options.fan_in_fan_out is not None and not (options.extract or options.plan):
        raise BadInput("--fan-in-fan-out: got it alone, wanted --extract DIR or --plan DIR")
    if options.intruders and options.extract:
        raise BadInput("--intruders: got it beside --extract, wanted one of the two")
    if options.rank not in (None, NOISE) and options.energy:
        raise BadInput("--energy: got it beside --rank, wanted one of the two")
    for flag, value in (("--budget", options.budget), ("--error", options.error)):
        if value is not None and options.plan is None:
            raise BadInput(f"{flag}: got it without --plan, wanted --plan DIR")
    if options.plan and (options.budget is None) == (options.error is None):
        got = "neither --budget nor --error" if options.budget is None else "--budget and --error"
        if options.budget is not None or options.rank is None:
            wanted = "--budget N, --error E or --rank R"
            raise BadInput(f"--plan: got {got} beside it, wanted {wanted}")


def _parse_renames(words: Sequence[str]) -> dict[str, str] | None:
    """Parse the words of ``--rename``: regular expression -> text."""
    names: dict[str, str] = {}
    for word in words:
        old, sign, new = word.partition("=")
        try:
            # Tried on nothing: the text may name a group that the expression does not have.
            re.sub(old, new, "")
        except (re.error, IndexError):
            sign = ""
        if not sign or not old:
            wanted = "OLD=NEW, OLD a regular expression"
            raise BadInput(f"--rename: got {shortened(word)!r}, wanted {wanted}")
        names[old] = new
    return names or None


def _extraction_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Collect the arguments of :func:`lrdyn.diagnosis.extract`."""
    arguments = {
        "rank": options.rank,
        "energy": options.energy,
        "save": options.save_module,
        "fan_in_fan_out": options.fan_in_fan_out,
    }
    return arguments | ({"embeddings": options.embedding} if options.embedding else {})


def _plan(options: argparse.Namespace, diagnosis: Diagnosis) -> Plan:
    """Plan ranks for the budget, in the orientation in which the model stores its weights."""
    first = reading.weights("before", options.before)
    modules = [name.removesuffix(".weight") for name in first.infos]
    config = reading.config_of(first)
    if config is None and options.after is not None:
        config = reading.config_of(reading.weights("after", options.after))
    adapted = [matrix.name.removesuffix(".weight") for matrix in diagnosis.matrices]
    way = orientation(adapted, config, options.fan_in_fan_out)
    ranks = plan(
        diagnosis,
        budget=options.budget,
        error=options.error,
        # Beside --extract it is the adapter's, unless the plan has nothing else.
        rank=options.rank if options.budget is None and options.error is None else None,
        fan_in_fan_out=way.fan_in_fan_out,
        others=tuple(modules),
    )
    return ranks._replace(said=way.said)


@contextmanager
def user_files(
    what: str, wanted: str = "weights", *, rank_flag: str = "--rank: "
) -> Iterator[None]:
    """Turn errors about the user's files into bad input: they are no fault of the machine."""
    flags = {
        "before: ": "BEFORE: ",
        "after: ": "AFTER: ",
        "gradients: ": "--gradients: ",
        "base: ": "--base: ",
        "save: ": "--save-module: ",
        "select: ": "--select: ",
        "rename: ": "--rename: ",
        "rank: ": rank_flag,
        "budget: ": "--budget: ",
        "fan_in_fan_out: ": "--fan-in-fan-out: ",
    }
    try:
        yield
    except (ValueError, ImportError) as error:
        message = str(error)
        for name, flag in flags.items():
            message = flag + message.removeprefix(name) if message.startswith(name) else message
        raise BadInput(message) from None
    except (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError) as error:
        # The name that failed, which may be that of a shard and not what was typed.
        name, there = str(error.filename), Path(str(error.filename)).parent
        beside = os.listdir(there) if there.is_dir() else []
        got = f"{shortened(name, 120)!r} ({error.strerror}){near(Path(name).name, beside)}"
        raise BadInput(f"{what}: got {got}, wanted {wanted}") from None


def show_progress(title: str) -> AbstractContextManager[progress.Progress]:
    """Show the progress of the work on matrices, and the time left."""
    return progress.shown(title, what="", first=FIRST)


def may_be_a_folder(path: Path) -> bool:
    """Whether a path is a folder, or one can be made there."""
    there = next(
        (existing for existing in (path, *path.parents) if os.path.exists(existing)), Path()
    )
    return os.path.isdir(there)


def _write(diagnosis: Diagnosis, out: Path, *, quiet: bool) -> None:
    """Write the numbers as CSV and JSON, and the figure."""
    from lrdyn.figures.plotting import save

    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("diagnosis.csv", diagnosis.csv()), ("diagnosis.json", diagnosis.json())):
        with whole_files.replace_file(out / name) as temporary:
            temporary.write_text(text)
    save(diagnosis.plot(), out / "diagnosis")
    if not quiet:
        say(f"figure and table: {out}")
