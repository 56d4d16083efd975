"""Files of one's own: a theorem in ``FILE.py``, or ``FILE.py:NAME`` where a file has several."""

import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from lrdyn.engine.configuration import BadInput
from lrdyn.show import shortened
from lrdyn.theorem import Experiment


def own_experiment(text: str) -> Experiment:
    """Import a file and take its theorem or experiment.

    Raises:
        BadInput: the file cannot be imported, or does not say which one is meant.
    """
    file, _, name = text.partition(":")
    path, got = Path(file), f"verify: got {shortened(text)!r}"
    if not os.path.isfile(path) or path.suffix != ".py":
        raise BadInput(f"{got}, wanted a Python file that states a theorem")
    found = vars(imported(path))
    if name:
        if not isinstance(found.get(name), Experiment):
            raise BadInput(f"{got}, wanted the name of a theorem of that file")
        return found[name]
    stated = {n: one for n, one in found.items() if isinstance(one, Experiment) and not _known(one)}
    if len(set(map(id, stated.values()))) != 1:
        wanted = "one of " + ", ".join(f"{file}:{n}" for n in stated)
        raise BadInput(f"{got}, wanted {wanted if stated else 'a file that states a theorem'}")
    return next(iter(stated.values()))


def _known(one: Experiment) -> bool:
    """Whether it is one of the library's, which a file may import."""
    return any(s.case.__module__.startswith("lrdyn.theorems.") for s in one.scenarios)


def imported(path: Path) -> ModuleType:
    """Import a Python file as a script of its folder.

    Raises:
        BadInput: it cannot be imported; the line says where.
    """
    name = path.stem
    while name in sys.modules:  # another file's, or a package's
        name += "_of_its_own"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, os.fspath(path.resolve().parent))  # as Python does for a script
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        if os.environ.get("LRDYN_DEBUG"):
            raise
        raise BadInput(f"{path}{_line(error, path)}: {_said(error)}") from None
    return module


def _line(error: Exception, path: Path) -> str:
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame.lineno for frame in frames if Path(frame.filename) == path.resolve()]
    return f":{mine[-1]}" if mine else ""


def _said(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"got {type(error).__name__} ({lines[0]}), wanted a file that can be imported"
