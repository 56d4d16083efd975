"""The pages: every block of code runs, and what it prints is compared with what the page shows.

The first word behind a fence is the language, the rest says how the block is checked:

=====================  ==========================================================================
``python``             runs, behind the blocks above it on the page and in their namespace
``python with NAME``   the same, if that package is there, which is in no lock; else it is parsed
``python FILE``        is an excerpt of ``docs/examples/FILE``
``text``               what the python block above it prints
``console``            each command (``$ ``) runs in a shell, and prints the lines below it; the
                       folder is empty but for ``docs/examples``
``text machine``,      the same, but for what depends on the machine: see :func:`alike`
``console machine``
``console parsed WHY`` does not run: what it calls exists, and has the flags
``sh FILE``,           is the file of ``docs/examples``, whole; ``sh figures/check.sh`` is what
``yaml FILE``          ``lrdyn figures init`` writes
=====================  ==========================================================================

A block without one of these fails.
"""

import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import __main__ as benchmarks
from lrdyn import __main__ as command
from lrdyn import cli
from lrdyn.commands import diagnose as diagnose_command
from lrdyn.commands import example, example_arrays, figures, help_pages, own_figures, pool, verify
from lrdyn.commands import judge_run as judge_run_command
from lrdyn.commands import merge as merge_command
from lrdyn.commands import report as report_command
from lrdyn.commands.ending import Help
from lrdyn.registry import REGISTRY, theorem, theorems
from lrdyn.studies import REGISTRY as STUDIES
from lrdyn.studies import study
from lrdyn.verification.stating.own_files import own_experiment
from lrdyn.verification.stating.statement import Experiment, Study
from paper_figs import EXHIBITS
from tests import forked
from tests.runs import ROOT, python

EXAMPLES = ROOT / "docs" / "examples"
KINDS = {
    "python": r"|\w+\.py|with \w+",
    "text": r"|machine|for \w.*",
    "console": r"|machine|parsed \w.*",
    "sh": r"[\w/]+\.sh",
    "yaml": r"[\w/]+\.yml",
}
"""Language -> what may follow it."""


class Wrong(AssertionError):
    """A page says what is not so."""


class Block(NamedTuple):
    """A fenced block of a page."""

    place: str
    language: str
    how: str
    lines: tuple[str, ...]


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, each of a known kind."""
    found: list[Block] = []
    inside: list[str] | None = None
    for number, line in enumerate(page.read_text().splitlines(), start=1):
        if not line.lstrip().startswith(("```", "~~~")):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            language, _, how = line.removeprefix("```").partition(" ")
            place, inside = f"{page.name}:{number}", []
            if not re.fullmatch(KINDS.get(language, "(?!)"), how):
                raise Wrong(f"{place}: {line!r} is no kind of block")
            found.append(Block(place, language, how, ()))
        else:
            found[-1] = found[-1]._replace(lines=tuple(inside))
            inside = None
    if inside is not None:
        raise Wrong(f"{found[-1].place}: a block that does not end")
    return found


# What is shown, and what is printed -----------------------------------------------------------


FOLDER = r"\b[0-9a-f]{12}\b"
FREE = re.compile(FOLDER + r"|\b\d+\.\d+(?= s\b)")
"""Names of folders, and seconds."""
SMALL = re.compile(r"\b\d(?:\.(\d+))?e([-+]\d+)\b")
"""Numbers with an exponent: residuals, tolerances."""
SHARE = re.compile(r"\b0\.0\d+(?= of its tolerance)")
"""How much of its tolerance a small residual is."""


def alike(shown: str, printed: str) -> bool:
    """Whether two lines are the same on two machines.

    Names of folders and seconds are free. A number with an exponent may differ by one in its last
    digit; below 1e-4, where float32 rounds, by a factor of five, and so may the share of a
    tolerance that such a residual is. All else is the same.
    """
    first, second = (FREE.sub("#", line) for line in (shown, printed))
    if SHARE.sub("#", SMALL.sub("#", first)) != SHARE.sub("#", SMALL.sub("#", second)):
        return False
    pairs = zip(SMALL.finditer(first), SMALL.finditer(second), strict=True)
    shares = ([float(s) for s in SHARE.findall(line)] for line in (first, second))
    return all(_near(one, other) for one, other in pairs) and all(
        max(each) <= 5 * min(each) for each in zip(*shares, strict=True)
    )


def _near(one: re.Match[str], other: re.Match[str]) -> bool:
    a, b = float(one[0]), float(other[0])
    if max(a, b) < 1e-4:
        return max(a, b) <= 5 * max(min(a, b), 1e-16)
    last = 10.0 ** (int(one[2]) - len(one[1] or ""))
    return abs(a - b) <= 1.01 * last


def compare(place: str, shown: Sequence[str], printed: Sequence[str], how: str) -> None:
    """Compare line by line."""
    same = alike if how == "machine" else str.__eq__
    for index in range(max(len(shown), len(printed))):
        one, other = (lines[index] if index < len(lines) else None for lines in (shown, printed))
        if one is None or other is None or not same(one, other):
            raise Wrong(f"{place}: shows {one!r}, prints {other!r}")


# Python -----------------------------------------------------------------------------------------


END = "-- end of a block --"
NOTHING = Block("", "", "", ())


def run_python(blocks: Sequence[Block], folder: Path) -> None:
    """Run what is no excerpt as one script; compare each block's output with the text below it."""
    pairs: list[tuple[Block, Block]] = []
    skipped: list[Block] = []
    for block, below in pairwise((*blocks, NOTHING)):
        if block.language != "python" or block.how.endswith(".py"):
            continue
        if _runs(block):
            pairs.append((block, below if below.language == "text" else block._replace(lines=())))
        else:
            skipped.append(below)
    answers = [below for _, below in pairs] + skipped
    if lost := [block for block in blocks if block.language == "text" and block not in answers]:
        raise Wrong(f"{lost[0].place}: text that no block prints")
    if not pairs:
        return
    source = f"\nprint({END!r})\n".join("\n".join(block.lines) for block, _ in pairs)
    done = python("-m", "tests.forked.block", cwd=folder, source=source)
    if done.returncode:
        raise Wrong(f"{pairs[0][0].place} or below: {done.stderr}")
    shown = [below for _, below in pairs]
    for below, printed in zip(shown, done.stdout.split(f"{END}\n"), strict=True):
        compare(below.place, below.lines, printed.splitlines(), below.how)


def _runs(block: Block) -> bool:
    """Whether the package that a block needs is there; its code must be one of Python anyhow."""
    package = block.how.removeprefix("with ")
    if not package or importlib.util.find_spec(package):
        return True
    try:
        compile("\n".join(block.lines), block.place, "exec")
    except SyntaxError as error:
        raise Wrong(f"{block.place}: {error}") from None
    return False


def check_whole(block: Block) -> None:
    """The block is the file that it names, to copy."""
    written = {"figures/check.sh": own_figures.SCRIPT}
    text = written.get(block.how) or (EXAMPLES / block.how).read_text()
    compare(block.place, block.lines, text.splitlines(), block.how)


def check_excerpt(block: Block) -> None:
    """All lines are lines of the example, or of a notebook; comments behind code may differ."""
    path = next(p for p in (EXAMPLES / block.how, ROOT / "notebooks" / block.how) if p.exists())
    source, quoted = (
        [line.split("  #")[0].strip() for line in lines]
        for lines in (path.read_text().splitlines(), block.lines)
    )
    rest = iter(source)
    for line in filter(None, quoted):
        if line not in rest:
            raise Wrong(f"{block.place}: {line!r} is not in {block.how}, or not at this place")


# Commands ---------------------------------------------------------------------------------------


BEGINNING = 'python() {{ {} "$@"; }}; lrdyn() {{ python -m lrdyn "$@"; }}; (exit $STATUS)\n'
"""What a shell is told before a command, with the words for an interpreter."""
STATUS_SHOWN = "echo $?"


def commands_of(block: Block) -> Iterator[tuple[str, list[str]]]:
    """Each command of a block, with the lines below it."""
    command, shown = "", []
    for line in (*block.lines, "$ "):
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line.removeprefix("$ "), []
        elif not command:
            raise Wrong(f"{block.place}: {line!r} stands behind no command")
        else:
            shown.append(line)


def run_console(blocks: Sequence[Block], folder: Path) -> None:
    """Run the commands of a page one after the other; a failure must be shown by ``echo $?``."""
    status, names = 0, {}
    beginning = BEGINNING.format(shlex.join(forked.interpreter()))
    for block in blocks:
        for line, shown in commands_of(block):
            if status and line != STATUS_SHOWN:
                raise Wrong(f"{block.place}: status {status} before {line!r}, not shown")
            for name, mine in names.items():
                line = line.replace(name, mine)
            done = subprocess.run(
                ["bash", "-c", beginning + line],
                cwd=folder,
                text=True,
                capture_output=True,
                env=os.environ | _environment(folder, status),
                timeout=500,
                check=False,
            )
            status = done.returncode
            printed = done.stdout.splitlines()
            try:
                compare(f"{block.place}: {line}", shown, printed, block.how)
            except Wrong as error:
                raise Wrong(f"{error}\n{done.stderr}") from None
            # Commands below name the folder that is shown.
            found = (re.findall(FOLDER, "\n".join(lines)) for lines in (shown, printed))
            names |= dict(zip(*found, strict=True))
    if status:
        raise Wrong(f"{blocks[-1].place}: status {status}, not shown")


def _environment(folder: Path, status: int) -> dict[str, str]:
    return {
        "PYTHONPATH": os.fspath(ROOT),
        "STATUS": str(status),
        "LRDYN_CACHE": os.fspath(folder.parent / "cache"),
    }


# Commands that are only parsed ------------------------------------------------------------------


INLINE = r"(?:\w+=\S+ )*(?:make|\.ci/run|(?:make|env|python|lrdyn|pip) .+)"
STANDS_FOR = {"my_theorem.py": "balance.py"}
"""A file of the reader's -> the example whose flags it has."""


def inline_commands(page: Path) -> Iterator[str]:
    """Commands within the text of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for span in re.findall(r"`([^`]+)`", text):
        if re.fullmatch(INLINE, line := " ".join(span.split())):
            yield line.replace("\\|", "|")


def parse(line: str, folder: Path) -> None:
    """Raise unless what a command calls exists and takes the arguments; nothing runs."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            _called(_words(line), folder)
    except Help:
        pass
    except (cli.BadInput, ImportError, ValueError, OSError) as error:
        raise Wrong(f"{line!r}: {error}") from None


def _words(line: str) -> list[str]:
    """A command without what sets its environment."""
    words = shlex.split(line, comments=True)
    if words[:2] == ["env", "-u"]:
        words = words[3:]
    while re.match(r"\w+=", words[0]):
        words.pop(0)
    return words


def _called(words: list[str], folder: Path) -> None:
    match words:
        case ["make", *rest]:
            targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.M)
            _known([word for word in rest if "=" not in word], targets)
        case ["python" | "python3", "-m", module, *rest]:
            _module(module, rest, folder)
        case ["python", file, *rest]:
            _script(file, rest, folder)
        case ["lrdyn", *rest]:
            _lrdyn(rest, folder)
        case ["pip", "install" | "wheel", *_]:
            pass
        case [".", script] if script.endswith("/bin/activate"):
            pass
        case [file, *_] if (ROOT / file).is_file():
            pass
        case _:
            raise cli.BadInput("no such command")


def _known(words: Sequence[str], names: Sequence[str]) -> None:
    if unknown := sorted(set(words) - set(names)):
        raise cli.BadInput(f"got {unknown[0]}, wanted some of {', '.join(names)}")


def _module(module: str, rest: list[str], folder: Path) -> None:
    package, _, name = module.partition(".")
    if module == "lrdyn":
        _lrdyn(rest, folder)
    elif module == "experiments":
        _known(rest[:1], ["all"])
        _all(rest[1:])
    elif package == "experiments":
        _theorem(_stated(name), rest, folder)
    elif module == "paper_figs":
        figures.parse(EXHIBITS, rest, module)
    elif module == "benchmarks":
        benchmarks.parse(rest)
    else:
        flags = re.findall(r"--[\w-]+", _source(module).read_text())
        _known([word for word in rest if word.startswith("--")], flags)


def _source(module: str) -> Path:
    """The file that ``python -m`` runs."""
    # By its place, if it is here: a script in docs/examples may have the name of a package.
    place = ROOT / module.replace(".", "/")
    for file in (place / "__main__.py", place.with_suffix(".py")):
        if file.is_file():
            return file
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise cli.BadInput("no such module")
    return Path(spec.origin)


def _script(file: str, rest: list[str], folder: Path) -> None:
    here = ROOT / file
    path = here if here.is_file() else EXAMPLES / STANDS_FOR.get(file, Path(file).name)
    if re.search(r"\b(cli|lr)\.main\(", path.read_text()):
        _theorem(own_experiment(os.fspath(path)), rest, folder)
    elif "def parser()" in path.read_text():
        importlib.import_module(f"docs.examples.{path.stem}").parser().parse(rest)
    else:
        _known([word for word in rest if word.startswith("--")], [])


def _lrdyn(rest: list[str], folder: Path) -> None:
    match rest:
        case ["--version" | "--help"]:
            pass
        case ["verify", "all", *more]:
            _all(more)
        case ["verify", name, *more] if name in (*REGISTRY, *STUDIES):
            _theorem(_stated(name), more, folder)
        case ["data", *more]:
            _known(more[:1], ["download"])
            _known([word for word in more[1:] if word.startswith("--")], ["--data-dir"])
        case ["diagnose", *more]:
            diagnose_command.parser().parse(more)
        case ["judge-run", *more]:
            judge_run_command.parser().parse(more)
        case ["merge", *more]:
            merge_command.parser().parse(more)
        case ["report", *more]:
            report_command.parser().parse(more)
        case ["verify", file, *more]:
            _script(file, more, folder)
        case ["figures", "init"]:
            pass
        case ["figures", *more]:
            figures.parse([example.FIGURE, example_arrays.FIGURE], more)
        case [name, *more]:
            _known([name], [*command.COMMANDS])
            help_pages.PAGES[name]().parse(more)


def _stated(name: str) -> Experiment:
    return study(name) if name in STUDIES else theorem(name)


def _all(words: list[str]) -> None:
    _, rest = pool.take_jobs(["--jobs", "1", *words])
    for one, share in zip(theorems(), pool.split_flags(rest, theorems()), strict=True):
        cli.parse(one, share)


def _theorem(one: Experiment, words: list[str], folder: Path) -> None:
    for word in words:
        if word.endswith(".npy"):  # the reader's own
            np.save(folder / word, np.diag([1.0, 0, 0, 0]))
    here = [os.fspath(folder / word) if word.endswith(".npy") else word for word in words]
    if isinstance(one, Study):
        verify.parser_of(one).parse(here)  # its data need not be here
    else:
        cli.parse(one, here)


# A page -----------------------------------------------------------------------------------------


def check(page: Path, folder: Path) -> None:
    """Run the blocks of a page in a folder, or parse them, and parse the commands in its text."""
    blocks = [block for block in blocks_of(page) if not block.how.startswith("for ")]
    parsed = [block for block in blocks if block.how.startswith("parsed")]
    lines = [line for block in parsed for line, _ in commands_of(block)]
    for line in (*lines, *inline_commands(page)):
        parse(line, folder)
    for block in blocks:
        if block.language == "python" and block.how.endswith(".py"):
            check_excerpt(block)
        if block.language in ("sh", "yaml"):
            check_whole(block)
    here = folder / "page"
    (here / "docs").mkdir(parents=True)
    (here / "docs" / "examples").symlink_to(EXAMPLES)
    run_python(blocks, here)
    run = [block for block in blocks if block.language == "console" and block not in parsed]
    run_console(run, here)
