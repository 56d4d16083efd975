"""How commands end: what one leaves decides its exit status, here and nowhere else.

==== =========================================================================================
0    a verdict on disk holds; nothing differs; any other command did what was asked
1    a verdict on disk is false; ``diff`` or ``check`` found a difference
2    bad input: words, files, a theorem or figure of one's own
3    a fault of the machine, or of this library
4    a verdict on disk is undecided
130  Ctrl-C
==== =========================================================================================

No exception gives 0, 1 or 4: not ``SystemExit``, and none whose text cannot be made. A verdict and
a difference stand, whatever becomes of the lines about them: a full disk below stdout or stderr, or
a reader that has gone. A command that only prints ends with 3 where stdout is lost; where the
reader of a pipe has gone, as after ``| head``, it has read what it wanted, and the status is 0.
"""

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

from lrdyn.core.show import shortened
from lrdyn.engine import process, program_cache
from lrdyn.engine.arguments import Help
from lrdyn.engine.mistakes import BadInput, first_line
from lrdyn.system import interrupts, printer
from lrdyn.system.whole_files import Linked

HOLDS, FAILS, BAD_INPUT, FAULT, UNDECIDED, INTERRUPTED = 0, 1, 2, 3, 4, 130
DONE = 0
VERDICTS = {True: HOLDS, False: FAILS, None: UNDECIDED}
LINE = 200
"""Characters of a message."""


class Status(int):
    """An exit status on which :func:`run` has decided."""


class Judged(NamedTuple):
    """A verdict, and the file in which it stands."""

    file: Path
    holds: bool | None
    claims: bool = True
    """False of an experiment, of which nothing is claimed."""


class Sameness(NamedTuple):
    """What a comparison ends with."""

    same: bool


class Fault(Exception):
    """A fault of the machine, in one line."""


Ending = Judged | Sameness | Status | None
"""What a command leaves; None without a verdict, a status where it ran another command."""


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
        >>> run("compare", lambda: Compared(same=False))
        1
    """
    if own_process:
        interrupts.end_at_once()
        _speak_plainly()
        process.collect_rarely()
    printer.lost = None
    try:
        program_cache.most()  # the environment is input, too
        return Status(_status(_ended(command)))
    except BaseException as error:
        try:
            status, line = _failed(error)
        except BaseException:  # a class of somebody's own whose text, or name, raises
            status, line = FAULT, "internal error, of which nothing can be said"
        if os.environ.get("LRDYN_DEBUG") and (status == FAULT or error.__cause__):
            printer.complain("".join(traceback.format_exception(error)).rstrip())
        # Names of files may hold line breaks, as any word does.
        line = " ".join(f"{prog}: error: {line}".splitlines())
        printer.complain(shortened(printer.printable(line), LINE))
        return Status(status)


def _ended(command: Callable[[], Ending]) -> Ending:
    try:
        ending = command()
    except Help as asked:
        printer.say(str(asked), end="")
        ending = None
    printer.flush()
    return ending


def _status(ending: Ending) -> int:
    """The status of what a command has left.

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
        case None:
            if printer.lost is not None:
                raise Fault(f"stdout: {_reason(printer.lost)}")
            return DONE
    raise TypeError(f"ending: got {ending!r}, wanted one of {Ending}")


def _failed(error: BaseException) -> tuple[int, str]:
    """The status of an exception, and its line."""
    match error:
        case BadInput():
            return BAD_INPUT, str(error)
        case Fault():
            return FAULT, str(error)
        case KeyboardInterrupt():
            return INTERRUPTED, "interrupted; finished parts are kept"
        case Linked():
            return BAD_INPUT, f"{shortened(os.fspath(error.filename), 120)}: got {error.strerror}"
        case OSError():
            # Where a file is gone the parts may be, too.
            parts = "" if isinstance(error, FileNotFoundError) else "; finished parts are kept"
            return FAULT, f"{error.filename or 'system'}: {_reason(error)}{parts}"
    return FAULT, f"internal error ({_named(error)}); LRDYN_DEBUG=1 shows where"


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or first_line(error)


def _speak_plainly() -> None:
    """Let no warning of another library reach a terminal, and any name of a folder be printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not os.environ.get("LRDYN_DEBUG"):
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)
