"""A user's theorem in ``FILE.py``, or in ``FILE.py:NAME`` if the file has several."""

import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from lrdyn.commands.arguments import no_such_file
from lrdyn.core.show import near, shortened
from lrdyn.verification.stating.mistakes import BadInput, describe_error, name_mistakes
from lrdyn.verification.stating.statement import Experiment, Misstated


def own_experiment(text: str) -> Experiment:
    """Import a file and take its theorem or experiment.

    Raises:
        BadInput: the file cannot be imported, or does not say which one is meant.
    """
    file, _, name = text.partition(":")
    path, got = Path(file), f"verify: got {shortened(text)!r}"
    if path.suffix == ".py" and not os.path.lexists(path):
        raise BadInput(f"{got} ({no_such_file(path)}), wanted a Python file that states a theorem")
    if not os.path.isfile(path) or path.suffix != ".py":
        raise BadInput(f"{got}, wanted a Python file that states a theorem")
    contents = vars(import_script(path))
    with name_mistakes({path.resolve().parent}):  # an object may lie about its class, and raise
        every = {n: value for n, value in contents.items() if isinstance(value, Experiment)}
    if name:
        if name not in every:
            meant = near(name, every)
            raise BadInput(f"{got}{meant}, wanted the name of a theorem of that file")
        return every[name]
    stated = {n: experiment for n, experiment in every.items() if not _is_of_library(experiment)}
    # One theorem may have two names in its file.
    if len(set(map(id, stated.values()))) != 1:
        wanted = "one of " + ", ".join(f"{file}:{n}" for n in stated)
        raise BadInput(f"{got}, wanted {wanted if stated else 'a file that states a theorem'}")
    return next(iter(stated.values()))


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
        message = f"got {describe_error(error)}, wanted a file that can be imported"
        raise BadInput(f"{given}{_line(error, path)}: {message}") from error
    return module


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
