"""How commands end: the exit status of every command is decided here and nowhere else.

==== =========================================================================================
0    a verdict holds; nothing differs; any other command did what was asked
1    a verdict is false; ``diff`` or ``check`` found a difference
2    bad input: words, files, a theorem or figure of one's own
3    a fault of the machine, or of this library
4    a verdict is undecided
130  Ctrl-C
==== =========================================================================================

A verdict is that on disk; that of ``judge-run``, which need not write, is what it printed.
No exception gives 0, 1 or 4: not ``SystemExit``, and none whose text cannot be made. A verdict and
a difference stand, whatever becomes of the lines about them: a full disk below stdout or stderr, or
a reader that has gone. A command that only prints ends with 3 where stdout is lost; where the
reader of a pipe has gone, as after ``| head``, it has read what it wanted, and the status is 0.
"""

import errno
import io
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# Nothing that imports JAX: a command that prints its version waits for what is imported here.
from lrdyn.system import garbage, interrupts, printer
from lrdyn.system.messages import BadInput, Fault, first_line, refuse_truth, shortened
from lrdyn.system.whole_files import Linked

HOLDS, FAILS, BAD_INPUT, FAULT, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 4, 130
DONE = 0
VERDICTS = {True: HOLDS, False: FAILS, None: UNDECIDED}
LINE = 200
"""Longest message, in characters."""


NO_NAMES = {
    errno.ENAMETOOLONG: "a name that is too long",
    errno.ELOOP: "links that lead in a circle",
}
"""Numbers of errors that say nothing of the machine -> what a user's words or files named."""


class Help(Exception):
    """The help that was asked for: no error, and the only way to end without doing anything."""


class Status(int):
    """An exit status that :func:`run` has decided already."""


class Judged(NamedTuple):
    """A verdict, and the file in which it stands."""

    __bool__ = refuse_truth(".holds, which is None if undecided")

    file: Path
    holds: bool | None
    claims: bool = True
    """False for an experiment without claims."""


class Printed(NamedTuple):
    """A verdict that was printed, of a command that writes none unless it is asked to."""

    __bool__ = refuse_truth(".holds, which is None if undecided")

    holds: bool | None


class Sameness(NamedTuple):
    """The end of a command that compares: whether both sides were the same."""

    __bool__ = refuse_truth(".same")

    same: bool


Ending = Judged | Printed | Sameness | Status | None
"""How a command ended: None without a verdict, a status if it ran another command."""


def run(prog: str, command: Callable[[], Ending], *, own_process: bool = False) -> Status:
    """Run a command; what it raises becomes one line on stderr.

    If the process ends with the command (``own_process``) Ctrl-C and SIGTERM end it at once,
    without waiting for computations that cannot be interrupted.

    Args:
        prog: name of the command in its messages.
        command: the command.
        own_process: whether nothing comes after it.

    Returns:
        The exit status.

    Example:
        >>> run("compare", lambda: Sameness(same=False))
        1
    """
    # A notebook or a test goes on after the command, and keeps its signals and its warnings.
    if own_process:
        interrupts.end_at_once()
        _speak_plainly()
        garbage.collect_rarely()
    printer.lost = None
    try:
        if "LRDYN_CACHE_MAX" in os.environ:  # environment variables are input, too
            from lrdyn.verification.machine import program_cache

            program_cache.most()
        try:
            ending = command()
        except Help as asked:
            printer.say(str(asked), end="")
            ending = None
        printer.flush()
        return Status(_status(ending))
    except BaseException as error:
        try:
            status, line = _failure(error)
        except BaseException:  # a user's class whose __str__ or name raises
            status, line = FAULT, "internal error, which cannot be described"
        if os.environ.get("LRDYN_DEBUG") and (status == FAULT or error.__cause__):
            printer.complain("".join(traceback.format_exception(error)).rstrip())
        # Words of the user, such as file names, may hold line breaks.
        line = " ".join(f"{shortened(str(prog), 60)}: error: {line}".splitlines())
        line = printer.make_printable(line)
        if len(line) > LINE:  # long words, mostly paths, go before what is said of them
            line = " ".join(shortened(word, 48) for word in line.split(" "))
        printer.complain(shortened(line, LINE))
        return Status(status)


def _status(ending: Ending) -> int:
    """The exit status that an ending stands for.

    Raises:
        Fault: the file of a verdict holds another one, or what was asked for could not be printed.
    """
    match ending:
        case Status():
            return ending
        case Sameness():
            return HOLDS if ending.same else FAILS
        case Judged():
            if json.loads(ending.file.read_bytes())["holds"] is not ending.holds:
                raise Fault(f"{ending.file}: got another verdict than was judged, wanted it there")
            return VERDICTS[ending.holds] if ending.claims else DONE
        case Printed():
            return VERDICTS[ending.holds]
        case None:
            if printer.lost is not None:
                raise Fault(f"stdout: {_reason(printer.lost)}")
            return DONE
    raise TypeError(f"ending: got {ending!r}, wanted one of {Ending}")


def _failure(error: BaseException) -> tuple[int, str]:
    """The exit status for an exception, and the line to print."""
    match error:
        case BadInput():
            return BAD_INPUT, str(error)
        case Fault():
            return FAULT, str(error)
        case KeyboardInterrupt():
            return INTERRUPTED, "interrupted; finished parts are kept"
        case Linked():
            return BAD_INPUT, f"{shortened(os.fspath(error.filename), 120)}: got {error.strerror}"
        case OSError(errno=number) if number in NO_NAMES and error.filename:
            name = shortened(os.fspath(error.filename), 120)
            return BAD_INPUT, f"{name}: got {NO_NAMES[number]}, wanted that of a file or folder"
        case OSError():
            # If a file has vanished, finished parts may have, too: promise nothing.
            parts = "" if isinstance(error, FileNotFoundError) else "; finished parts are kept"
            return FAULT, f"{error.filename or 'system'}: {_reason(error)}{parts}"
    named = f"{type(error).__name__}: {first_line(error)}"
    return FAULT, f"internal error ({named}); LRDYN_DEBUG=1 shows where"


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _speak_plainly() -> None:
    """Keep warnings of other libraries from the terminal, and make any file name printable."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not os.environ.get("LRDYN_DEBUG"):
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
