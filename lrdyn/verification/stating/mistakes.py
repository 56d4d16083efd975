"""Mistakes in somebody's own theorem or figure: bad input that names file, line and what to do."""

import ast
import inspect
import math
import os
import re
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax

from lrdyn.core.show import shortened
from lrdyn.data.lookup import MissingData
from lrdyn.system.memory_limit import memory, size_of
from lrdyn.system.messages import BadInput as BadInput
from lrdyn.system.messages import first_line as first_line
from lrdyn.verification.stating.sources import own_files_stating
from lrdyn.verification.stating.statement import Experiment


class Lacking(BadInput):
    """Data or a package that a run needs is missing; the message says what to fetch."""


def as_bad_input(error: Exception) -> BadInput:
    """Turn the exception with which settings were refused before a run into bad input.

    Example:
        >>> type(as_bad_input(ImportError("needs the package tokenizers"))).__name__
        'Lacking'
    """
    lacks = isinstance(error, MissingData | ImportError | FileNotFoundError)
    return (Lacking if lacks else BadInput)(str(error))


STATIC = (
    "a Python number: shapes=True at the flag that decides it, or traced=False in the Scenario for "
    "plain NumPy"
)
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
def name_mistakes(folders: Collection[Path], of: Experiment | None = None) -> Iterator[None]:
    """Turn what functions in these folders raise into :class:`BadInput`; elsewhere it stays.

    The innermost line of a file of these folders is named, be it where something was raised or
    where a function of the library was called with what it refuses. That holds for every exception,
    ``SystemExit`` too, but Ctrl-C and faults of the machine: no memory, a full disk. An array that
    is larger than the memory of the machine is no fault of the machine.

    Args:
        folders: where somebody states an experiment; empty for one of the library.
        of: that experiment, while the library reads, labels and writes what it states. What is
            raised over it is a mistake in it, too, and the line where it begins is named.

    Raises:
        BadInput: file, line and function, the exception, and what was wanted.
    """
    try:
        yield
    except (BadInput, KeyboardInterrupt):
        raise
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if not folders or (asked := _requested_bytes(error)) <= memory():
            raise
        where = _location(error, folders, of)
        most = f"at most {size_of(memory())}, the memory of this machine"
        raise BadInput(f"{where}got an array of {size_of(asked)}, wanted {most}") from error
    except BaseException as error:
        innermost = None if _is_system_error(error) else _innermost_frame(error, folders)
        # What the machine reports, or a worker, is a RuntimeError or an OSError.
        others = not isinstance(error, Exception) or isinstance(error, RuntimeError | OSError)
        if innermost is None and (of is None or not folders or others):
            raise
        raised = innermost[0] if innermost else error
        todo = _todo(raised) if innermost else RUN_AND_SAVED
        where = _location(error, folders, of)
        raise BadInput(f"{where}got {describe_error(raised)}, wanted {todo}") from error


RUN_AND_SAVED = "a theorem that can be run and saved (LRDYN_DEBUG=1 shows more)"


def _location(error: BaseException, folders: Collection[Path], of: Experiment | None) -> str:
    """The line of theirs that raised an exception, or else that where their experiment begins."""
    if innermost := _innermost_frame(error, folders):
        _, frame, line = innermost
        code = frame.f_code
        return f"{_shortest_path(code.co_filename)}:{line} ({code.co_name.strip('<>')}): "
    return f"{line_of(of, of.name)}: " if of else ""


def _requested_bytes(error: BaseException) -> int:
    """Size of the array for which there was no memory; 0 if the exception does not say."""
    if isinstance(error, MemoryError):  # NumPy's has the array, Python's own says nothing
        shape, dtype = getattr(error, "shape", ()), getattr(error, "dtype", None)
        return math.prod(shape) * dtype.itemsize if dtype is not None else 0
    said = re.search(r"RESOURCE_EXHAUSTED: .*allocat\w+ (\d+) bytes", first_line(error))
    return int(said[1]) if said else 0


def folders_of(experiment: Experiment) -> set[Path]:
    """The folders in which somebody states an experiment; none for one of the library."""
    return {Path(file).resolve().parent for file in own_files_stating(experiment)}


def location_of(function: Callable[..., Any]) -> str:
    """File, line and name of a user's function.

    Example:
        >>> location_of(location_of).rpartition("/")[2].partition(":")[0]
        'mistakes.py'
    """
    while isinstance(function, partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:
        return repr(function)
    return f"{_shortest_path(code.co_filename)}:{code.co_firstlineno} ({code.co_name.strip('<>')})"


def line_of(experiment: Experiment, name: object) -> str:
    """File and line where somebody gives something a name; of their first function if unknown."""
    for file in own_files_stating(experiment):
        try:
            tree = ast.parse(Path(file).read_bytes())
        except (OSError, SyntaxError, ValueError):  # a notebook, for example
            continue
        if found := [at for node in ast.walk(tree) for at in _mentions(node, name)]:
            return f"{_shortest_path(file)}:{min(found)[1]}"
    return location_of(experiment.scenarios[0].case)


def _mentions(node: Any, name: object) -> Iterator[tuple[int, int]]:
    """Where a node of a source has a name: 0 if it gives it, 1 if it mentions it; and the line."""
    match node:
        case ast.Call(args=[ast.Constant(value=first) as word, *_]) if first == name:
            yield 0, word.lineno
        case ast.keyword(arg="id" | "name", value=ast.Constant(value=first)) if first == name:
            yield 0, node.lineno
        case ast.AnnAssign(target=ast.Name(id=first)) if first == name:
            yield 0, node.lineno
        case ast.Constant(value=first) if first == name and type(first) is type(name):
            yield 1, node.lineno


def describe_error(error: BaseException) -> str:
    r"""Describe an exception in a few words, even if its own text cannot be made.

    Example:
        >>> describe_error(ValueError("first line\nsecond line"))
        'ValueError (first line)'
    """
    line = first_line(error)
    return f"{type(error).__name__} ({shortened(line, 200)})" if line else type(error).__name__


def _is_system_error(error: BaseException) -> bool:
    return isinstance(error, OSError) and not isinstance(error, OF_A_FILE)


def _innermost_frame(error: BaseException, folders: Collection[Path]) -> Any:
    """The exception, frame and line in a user's file, looked for in the causes, too."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = frame.f_code.co_filename
        # Python's own frozen modules are no files, whose folder would be the working one.
        if not file.startswith("<frozen ") and Path(file).resolve().parent in folders:
            return error, frame, line
    return _innermost_frame(error.__cause__, folders) if error.__cause__ else None


def _todo(error: BaseException) -> str:
    if isinstance(error, TypeError) and first_line(error).startswith("Shapes must be 1D"):
        return STATIC
    return next((todo for kind, todo in TODO.items() if isinstance(error, kind)), "code that runs")


def _shortest_path(file: str) -> str:
    """A file's path relative to the working folder, if that is shorter."""
    return min(file, os.path.relpath(file), key=len)
