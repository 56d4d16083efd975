"""Reading a command line: a parser whose errors are one line, and readers of values."""

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from lrdyn.commands.ending import Help
from lrdyn.core.show import near, no_such_file, shortened
from lrdyn.data.arrays import read_npy
from lrdyn.system.memory_limit import SIZE, read_size
from lrdyn.verification.cluster import ADDRESS
from lrdyn.verification.running.configuration import BadInput
from lrdyn.verification.stating.flags import FRACTION, Flag, at_least, flag_text, option_string


class Example(NamedTuple):
    """A command line of a page of help, and what it does."""

    line: str
    what: str


def unknown_flag(flag: str, known: Iterable[str]) -> str:
    """Message about a flag that a command does not have.

    Example:
        >>> unknown_flag("--rnak=3", ["--rank", "--dim"])
        "--rnak=3: got an unknown argument (did you mean '--rank'?), wanted one of those in --help"
    """
    meant = near(flag.partition("=")[0], known) if flag.startswith("--") else ""
    return f"{flag}: got an unknown argument{meant}, wanted one of those in --help"


def typed_command() -> str:
    """The command that started this process, as typed, without its arguments.

    That is ``python -m experiments.lora``, ``python my_theorem.py`` or the name of a command.
    """
    # ``sys.argv`` names the file behind ``-m``; only the original words show how it was started.
    words = sys.orig_argv
    # Without the last word: ``-m`` with nothing behind it names no module.
    if "-m" in words[:-1]:
        return f"python -m {words[words.index('-m') + 1]}"
    name = os.path.basename(sys.argv[0])
    return f"python {name}" if name.endswith(".py") else name


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line (argument, got, wanted) and status 2.

    ``--help`` raises :class:`Help`, and not the ``SystemExit`` that anything could raise.
    """

    def __init__(
        self, prog: str, description: str, epilog: str = "", *, examples: Sequence[Example] = ()
    ):
        """Create a parser that knows no abbreviations.

        Args:
            prog: the command as one types it.
            description: what it does.
            epilog: lines below the flags.
            examples: command lines, the last lines of the page.
        """
        shown = [f"  $ {line}\n      {purpose}" for line, purpose in examples]
        super().__init__(
            prog,
            description=description,
            epilog="\n".join([*filter(None, [epilog.rstrip()]), *["", "examples:"], *shown])
            if shown
            else epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Turn argparse's own messages into our one line."""
        message = message.removeprefix("argument ").split("\n")[0]
        if message.startswith("unrecognized arguments:"):
            unknown = message.partition(": ")[2].strip()
            first = (unknown.split() or ["''"])[0]
            message = unknown_flag(first, self._option_string_actions)
        elif message.startswith("the following arguments are required: "):
            message = f"{message.partition(': ')[2]}: got nothing, wanted a value"
        elif message.partition(": ")[2].startswith("expected "):
            flag, _, wanted = message.partition(": ")
            message = f"{flag}: got nothing, wanted {wanted.removeprefix('expected ')}"
        elif message.partition(": ")[2].startswith("invalid choice: "):
            flag, _, rest = message.partition(": ")
            got, _, choices = rest.removeprefix("invalid choice: ").partition(" (choose from ")
            message = f"{flag}: got {got}, wanted one of {choices.rstrip(')')}"
        raise BadInput(message)

    def print_help(self, file: Any = None) -> NoReturn:
        """Raise the text as :class:`Help`, for the caller to print."""
        raise Help(self.format_help())

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse arguments; a number may be written with a minus, as in ``-inf`` or ``-1e-3``."""
        # argparse takes ``-inf`` for a flag, but no word that begins with a space; readers of
        # numbers strip it.
        return self.parse_args([f" {word}" if is_negative_number(word) else word for word in argv])


def is_negative_number(word: str) -> bool:
    """Whether a word that begins with a minus is a number and no flag.

    Example:
        >>> is_negative_number("-1e-3"), is_negative_number("-inf"), is_negative_number("-q")
        (True, True, False)
    """
    with contextlib.suppress(ValueError):
        return word.startswith("-") and float(word) is not None
    return False


def _value_reader(flag: Flag) -> Callable[[str], Any]:
    """Reader of one value of a flag."""
    convert: Any = flag.type

    def read(text: str) -> Any:
        text = text.strip()
        try:
            value = convert(text)
        except ValueError:
            # No domain contains NaN, so that a word that is no number is refused below, by the same
            # message.
            value = math.nan
        if not flag.accepts(value):
            raise argparse.ArgumentTypeError(
                f"got {shortened(text)!r}, wanted {flag.wanted(value)}"
            )
        return value

    return read


def _array_reader(flag: Flag) -> Callable[[str], np.ndarray]:
    """Reader of an ``.npy`` file of finite real numbers."""
    wanted = "an .npy file of real numbers below 1e15"

    def read(text: str) -> np.ndarray:
        shown = repr(shortened(text))
        try:
            array = read_npy(Path(text))
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            reason = no_such_file(Path(text)) if missing else error.strerror or "not readable"
            raise argparse.ArgumentTypeError(f"got {shown} ({reason}), wanted {wanted}") from None
        except Exception:  # a damaged header or archive ends in whatever its parser met
            reason = " (Is a directory)" if Path(text).is_dir() else ""
            raise argparse.ArgumentTypeError(f"got {shown}{reason}, wanted {wanted}") from None
        if not flag.accepts(array):
            raise argparse.ArgumentTypeError(
                f"got {_refused_entry(flag, array)}{shown}, wanted {wanted}"
            )
        # float64 whatever the file has: the precision of a run is no matter of its target.
        return array.astype(float)

    return read


def _refused_entry(flag: Flag, array: Any) -> str:
    """The first entry for which an array of numbers is refused."""
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        return ""
    return next((f"an entry {x} in " for x in array.flat if not flag.accepts(np.array([x]))), "")


def integer_reader(name: str, least: int) -> Callable[[str], int]:
    """Reader of an integer of a command line, from ``least`` on: argparse's ``type``."""
    return _value_reader(Flag(name, (), at_least(least), int))


def rank_reader(name: str) -> Callable[[str], int | str]:
    """Reader of a rank of a command line, an integer >= 1 or ``noise``: argparse's ``type``."""
    read = integer_reader(name, 1)

    def read_rank(text: str) -> int | str:
        return text if text == "noise" else read(text)

    return read_rank


def fraction_reader(name: str) -> Callable[[str], float]:
    """Reader of a number strictly between 0 and 1: argparse's ``type``."""
    return _value_reader(Flag(name, (), FRACTION))


LEVELS = 500
"""Folders in one another, at most: Python makes each by a call within that of the one below."""


def parse_folder(text: str) -> str:
    """Reader of a folder of a command line: argparse's ``type``."""
    text = text.removeprefix(" ")  # which keeps a negative number from being taken for a flag
    if not text:
        raise argparse.ArgumentTypeError("got '', wanted a folder")
    if (levels := len(Path(text).parts)) > LEVELS:
        raise argparse.ArgumentTypeError(f"got {levels} folders in one another, wanted a folder")
    return text


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that all commands share."""
    parser.add_argument(
        "--out",
        default="results",
        type=parse_folder,
        metavar="DIR",
        help="folder of the results (default: results)",
    )
    parser.add_argument(
        "--preset",
        default="quick",
        choices=("quick", "paper"),
        help="defaults of the other flags (default: quick)",
    )


def add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where parts are computed and kept."""
    parser.add_argument(
        "--cluster",
        type=_parse_address,
        metavar="ADDRESS",
        help="a Dask scheduler whose workers compute, such as tls://127.0.0.1:8786; local:N starts "
        "N workers here",
    )
    parser.add_argument(
        "--cluster-security",
        type=parse_folder,
        metavar="DIR",
        help="certificates for a scheduler at tls://: ca.pem, cert.pem and key.pem there (default: "
        "what the configuration of Dask names)",
    )
    parser.add_argument(
        "--store",
        type=parse_folder,
        metavar="DIR",
        help="where finished parts are kept, best a folder that all workers see: only names of "
        "parts then come back (default: beside the results)",
    )


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say how devices compute."""
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="give the same bits each time on a GPU, too, which is slower (a CPU always does)",
    )


def check_cluster(options: argparse.Namespace) -> None:
    """Refuse certificates beside an address that would not use them.

    Raises:
        BadInput: ``--cluster-security`` is there without an address of ``tls://``.
    """
    if options.cluster_security and not (options.cluster or "").startswith("tls://"):
        got = f"--cluster {options.cluster}" if options.cluster else "no --cluster"
        raise BadInput(f"--cluster-security: got {got} beside it, wanted --cluster tls://HOST:PORT")


def _parse_address(text: str) -> str:
    """Reader of the address of a scheduler."""
    known = r"local:[1-9][0-9]{0,3}|(?!local:)((\w+://)?[^\s/:]+:[0-9]{1,5}|\w+://\S+)"
    if re.fullmatch(known, text):
        return text
    raise argparse.ArgumentTypeError(f"got {shortened(text)!r}, wanted {ADDRESS}")


def parse_size(text: str) -> int:
    """Reader of a number of bytes such as ``500MB`` or ``2GiB``."""
    count = read_size(text)
    if count is None:
        raise argparse.ArgumentTypeError(f"got {shortened(text)!r}, wanted {SIZE}")
    return count


class Setting(argparse.Action):
    """Puts the value of a flag of an experiment among the ``settings`` that were given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """What argparse calls for each flag that it meets."""
        namespace.settings = {**namespace.settings, self.dest: values}


def add_flag(group: Any, flag: Flag) -> None:
    """Add a flag of an experiment to a group of a parser; its value is one of ``settings``."""
    name = option_string(flag.name)
    if flag.type == "array":
        group.add_argument(
            name,
            action=Setting,
            dest=flag.name,
            type=_array_reader(flag),
            metavar="FILE",
            default=argparse.SUPPRESS,
            help=f"{flag.symbol}: {flag.help} (.npy)",
        )
        return
    values = " ".join(map(flag_text, flag.quick))
    paper = f"; paper: {' '.join(map(flag_text, flag.paper))}" if flag.paper else ""
    single = f"; in float32: {' '.join(map(flag_text, flag.float32))}" if flag.float32 else ""
    wanted = f", {flag.domain.wanted}" if flag.domain else ""
    text = f"{flag.symbol}: {flag.help}{wanted} (default: {values}{paper}{single})"
    group.add_argument(
        name,
        action=Setting,
        dest=flag.name,
        type=_value_reader(flag),
        nargs="+" if flag.swept else None,
        metavar=flag.name.upper(),
        default=argparse.SUPPRESS,
        # argparse formats the text of a help with ``%``.
        help=text.replace("%", "%%"),
    )
