"""Output of commands to stdout and stderr: escaped, and never a reason to fail.

It imports nothing else of the library, so that it is there before everything else is.
"""

import contextlib
import os
import sys
from typing import Any

lost: OSError | ValueError | None = None
"""Why something could not be written to stdout, since the present command began."""


def make_printable(text: str, *, lines: bool = False) -> str:
    r"""Escape a text so that a terminal shows it and does not obey it.

    That is control characters, DEL, marks of writing direction, separators of lines and bytes of a
    file name that are no text; letters, accents and symbols of any language stay.

    Args:
        text: words out of a file, a name or an exception.
        lines: whether line breaks are the caller's own and stay.

    Example:
        >>> make_printable("Noël \x1b[2J")
        'Noël \\x1b[2J'
    """
    if text.isprintable():  # the usual case
        return text
    return "".join(
        character
        if character.isprintable() or (lines and character == "\n")
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def silence_xla() -> None:
    """Keep what XLA logs from the terminal of a command, here and in processes started from here.

    Of a compilation that takes long, as on a busy machine, it would say to file a bug. What fails
    is raised besides. XLA reads this variable when JAX is imported; ``LRDYN_DEBUG`` leaves it be.
    """
    # JAX sets it to 1 where nobody has: in a process that started this one, too.
    if not os.environ.get("LRDYN_DEBUG") and os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


def say(text: str, end: str = "\n") -> None:
    r"""Write lines to stdout at once.

    What stdout does not take is dropped and remembered as :data:`lost`; a pipe whose reader has
    gone, as that of ``| head``, has read what it wanted.

    Example:
        >>> say("one\x07\ntwo")
        one\x07
        two
    """
    global lost
    if (error := write(sys.stdout, text + end)) and not isinstance(error, BrokenPipeError):
        lost = lost or error


def complain(text: str) -> None:
    """Write a line to stderr at once, if it takes one: there is nowhere else to say that."""
    write(sys.stderr, f"{text}\n")


def write(stream: Any, text: str) -> OSError | ValueError | None:
    """Write lines to a stream at once, and return why that failed; None also without a stream.

    Afterwards a stream that failed takes everything and keeps nothing: Python would try once more
    when it ends, and then change the exit status.
    """
    if stream is None:  # closed by who started the command
        return None
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        shown = make_printable(text, lines=True).encode(encoding, "backslashreplace")
        stream.write(shown.decode(encoding))
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: the stream was closed
        _silence(stream)
        return error
    return None


def flush() -> None:
    """Write the output of another process, which must not fail either."""
    say("", end="")
    write(sys.stderr, "")


def _silence(stream: Any) -> None:
    with contextlib.suppress(
        OSError, ValueError, AttributeError
    ):  # the stream has no file, or not one of its own
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
