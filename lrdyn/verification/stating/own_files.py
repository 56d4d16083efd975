"""A user's theorem in ``FILE.py``, or in ``FILE.py:NAME`` if the file has several."""

import dataclasses
import importlib.util
import os
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from lrdyn.core.show import near, no_such_file, shortened
from lrdyn.verification.stating import statement
from lrdyn.verification.stating.mistakes import BadInput, describe_error, name_mistakes
from lrdyn.verification.stating.statement import Experiment, Misstated


def own_experiment(text: str, argument: str = "verify") -> Experiment:
    """Import a file and take its theorem or experiment.

    Args:
        text: ``FILE.py`` or ``FILE.py:NAME``.
        argument: what a message calls it: the word of a command, or a name of Python.

    Raises:
        BadInput: the file cannot be imported, or does not say which one is meant.
    """
    file, _, name = text.partition(":")
    path, got = Path(file), f"{argument}: got {shortened(text)!r}"
    if path.suffix == ".py" and not os.path.lexists(path):
        raise BadInput(f"{got} ({no_such_file(path)}), wanted a Python file that states a theorem")
    if not os.path.isfile(path) or path.suffix != ".py":
        raise BadInput(f"{got}, wanted a Python file that states a theorem")
    module = import_script(path)
    if not name:
        return experiment_in(module, got, file)
    every = _experiments(module, path.resolve().parent)
    if name not in every:
        raise BadInput(f"{got}{near(name, every)}, wanted the name of a theorem of that file")
    return every[name]


def experiment_in(module: ModuleType, got: str, file: str = "") -> Experiment:
    """The one theorem or experiment that a module states; those of the library do not count.

    Args:
        module: the module.
        got: the beginning of a message.
        file: its file where one behind a colon can be named; a module has attributes.

    Raises:
        BadInput: it states none, or several.
    """
    here = Path(getattr(module, "__file__", None) or ".").resolve().parent
    every = _experiments(module, here)
    stated = {n: experiment for n, experiment in every.items() if not _is_of_library(experiment)}
    # One theorem may have two names in its file.
    if len(set(map(id, stated.values()))) != 1:
        named = [f"{file}:{n}" if file else f"{module.__name__}.{n}" for n in stated]
        kind = "file" if file else "module"
        wanted = f"one of {', '.join(named)}" if stated else f"a {kind} that states a theorem"
        raise BadInput(f"{got}, wanted {wanted}")
    return next(iter(stated.values()))


def _experiments(module: ModuleType, folder: Path) -> dict[str, Experiment]:
    """Name in a module -> theorem or experiment."""
    with name_mistakes({folder}):  # an object may lie about its class, and raise
        return {n: value for n, value in vars(module).items() if isinstance(value, Experiment)}


def _is_of_library(experiment: Experiment) -> bool:
    """Whether an experiment is one of the library's, which a user's file may import."""
    return any(s.case.__module__.startswith("lrdyn.") for s in experiment.scenarios)


def import_script(given: Path) -> ModuleType:
    """Import a Python file as a script of its folder.

    Raises:
        BadInput: it cannot be imported; the line says where.
    """
    path, name = given.resolve(), given.stem
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        # XLA names the file of each operation, and fails on what is no text.
        wanted = "a file in folders whose names are UTF-8"
        raise BadInput(f"{given}: got a folder whose name is no text, wanted {wanted}") from None
    while name in sys.modules:  # the name of another module
        name += "_of_its_own"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before it runs, as Python does: dataclasses and pickles look their module up there.
    sys.modules[name] = module
    sys.path.insert(0, os.fspath(path.parent))  # as Python does for a script
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except Misstated as error:
        # The file can be imported, and this line says by itself what is wanted.
        raise BadInput(f"{given}{_line(error, path)}: {error}") from error
    except BaseException as error:
        wanted = _arguments_of(error) or "a file that can be imported"
        message = f"got {describe_error(error)}, wanted {wanted}"
        raise BadInput(f"{given}{_line(error, path)}: {message}") from error
    return module


def _arguments_of(error: BaseException) -> str:
    """The arguments of a part of a statement that was given another; empty for other errors."""
    if not isinstance(error, TypeError):
        return ""
    said = re.match(r"(\w+)\.__init__\(\) got an unexpected .* '(\w+)'", str(error))
    kind = getattr(statement, said[1], None) if said else None
    if said is None or not dataclasses.is_dataclass(kind):
        return ""
    names = [field.name for field in dataclasses.fields(kind)]
    return f"one of its arguments{near(said[2], names)}"


def _line(error: BaseException, path: Path) -> str:
    """The last line of the file that ran; for a syntax error, the line it names."""
    lines = [
        line
        for frame, line in traceback.walk_tb(error.__traceback__)
        if Path(frame.f_code.co_filename) == path
    ]
    if not lines and isinstance(error, SyntaxError) and error.lineno:
        lines = [error.lineno]
    return f":{lines[-1]}" if lines else ""
