"""Mistakes in somebody's own theorem or figure: bad input that names file, line and what to do."""

import inspect
import os
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lrdyn.core.show import shortened
from lrdyn.data.lookup import MissingData
from lrdyn.engine.sources import PACKAGE, written_for
from lrdyn.engine.statement import Experiment


class BadInput(ValueError):
    """Bad input of a command: one line, status 2, nothing written."""


class Lacking(BadInput):
    """Data or a package that a run needs is missing; the message says what to fetch."""


def refused(error: Exception) -> BadInput:
    """Turn the exception with which settings were refused before a run into bad input.

    Example:
        >>> type(refused(ImportError("needs the package tokenizers"))).__name__
        'Lacking'
    """
    lacks = isinstance(error, MissingData | ImportError | FileNotFoundError)
    return (Lacking if lacks else BadInput)(str(error))


STATIC = "a Python number: shapes=True at the flag that decides it"
TODO = {
    jax.errors.TracerBoolConversionError: "jnp.where or jax.lax.cond on a traced value",
    jax.errors.TracerArrayConversionError: "jax.numpy for a traced value, or traced=False",
    jax.errors.TracerIntegerConversionError: STATIC,
    jax.errors.NonConcreteBooleanIndexError: "jnp.where in the place of a boolean index",
    jax.errors.UnexpectedTracerError: "a function that keeps nothing between calls",
    jax.errors.ConcretizationTypeError: STATIC,
}
"""What JAX raises -> what to do; a class comes before what it is derived from."""
OF_A_FILE = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
"""What a wrong name of a file raises; any other OSError is a fault of the machine."""


@contextmanager
def named(folders: Collection[Path]) -> Iterator[None]:
    """Turn what functions in these folders raise into :class:`BadInput`; elsewhere it stays.

    The innermost line of a file of these folders is named, be it where something was raised or
    where a function of the library was called with what it refuses. That holds for every exception,
    ``SystemExit`` too, but Ctrl-C and faults of the machine: no memory, a full disk.

    Raises:
        BadInput: file, line and function, the exception, and what was wanted.
    """
    try:
        yield
    except (BadInput, KeyboardInterrupt, MemoryError, jax.errors.JaxRuntimeError):
        raise
    except BaseException as error:
        innermost = None if _of_the_machine(error) else _innermost(error, folders)
        if innermost is None:
            raise
        raised, frame, line = innermost
        code = frame.f_code
        where = f"{_shown(code.co_filename)}:{line} ({code.co_name.strip('<>')})"
        raise BadInput(f"{where}: got {described(raised)}, wanted {_todo(raised)}") from error


def folders_of(experiment: Experiment) -> set[Path]:
    """The folders in which somebody states an experiment; none for one of the library."""
    # A decorator of another package, such as one that checks types, is no file of theirs.
    written = map(inspect.unwrap, written_for(experiment))
    files = {Path(f.__code__.co_filename).resolve() for f in written}
    return {file.parent for file in files if not file.is_relative_to(PACKAGE)}


def place(function: Callable[..., Any]) -> str:
    """File, line and name of a user's function.

    Example:
        >>> place(place).rpartition("/")[2].partition(":")[0]
        'mistakes.py'
    """
    while isinstance(function, partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return repr(function)
    return f"{_shown(code.co_filename)}:{code.co_firstlineno} ({code.co_name.strip('<>')})"


def described(error: BaseException) -> str:
    r"""Describe an exception in a few words, even if its own text cannot be made.

    Example:
        >>> described(ValueError("first line\nsecond line"))
        'ValueError (first line)'
    """
    line = first_line(error)
    return f"{type(error).__name__} ({shortened(line)})" if line else type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of the text of an exception; empty without one."""
    try:
        return (str.splitlines(str(error)) or [""])[0]
    except BaseException:  # a user's __str__ may raise anything
        return "no text: its __str__ raises"


def _of_the_machine(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, OF_A_FILE)


def _innermost(error: BaseException, folders: Collection[Path]) -> Any:
    """The exception, frame and line in a user's file, looked for in the causes, too."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if Path(frame.f_code.co_filename).resolve().parent in folders:
            return error, frame, line
    return _innermost(error.__cause__, folders) if error.__cause__ else None


def _todo(error: BaseException) -> str:
    if isinstance(error, TypeError) and first_line(error).startswith("Shapes must be 1D"):
        return STATIC
    return next((todo for kind, todo in TODO.items() if isinstance(error, kind)), "code that runs")


def _shown(file: str) -> str:
    """A file's path relative to the working folder, if that is shorter."""
    return min(file, os.path.relpath(file), key=len)
