"""Digests of what results come from: the source files of an experiment and its data files."""

import hashlib
import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from lrdyn.engine.statement import Experiment

PACKAGE = Path(__file__).resolve().parents[1]
"""Folder of the library."""
ROOMS = {
    "studies",
    *(file.parent.name for file in PACKAGE.glob("*/statement.py") if file.parent.name != "engine"),
}
"""Its folders that state theorems and studies, with their formulas."""


def source_digest(experiment: Experiment, settings: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of the files in which the functions of an experiment are written, and of its data.

    The library's general modules do not count: an edit there changes the traced programs, if
    anything.
    """
    return code_digest(written_for(experiment), experiment.data(settings or {}))


JUDGES = ("claims", "fields", "forms", "judging", "outcomes", "statement", "verify")
"""Modules of the engine in which every verdict is reached."""


def judges_digest(experiment: Experiment) -> str:
    """SHA-256 of what decides a verdict beside the files of the theorem.

    These are :data:`JUDGES` and whatever of the library those files import, directly or not:
    conditions, tolerances, the convergence of a run. The rest of the engine, and figures, judge
    nothing.
    """
    engine = Path(__file__).parent
    others = (engine, PACKAGE / "figures")
    theirs = _files(written_for(experiment))
    reached, left = set(theirs), list(theirs)
    while left:
        for path in _imported(left.pop()) - reached:
            if not any(map(path.is_relative_to, others)):
                reached.add(path)
                left.append(path)
    judges = {engine / f"{name}.py" for name in JUDGES}
    digest = hashlib.sha256()
    for path in sorted((reached - theirs) | {path for path in judges if path.exists()}):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


IMPORT = re.compile(
    rf"^\s*(?:from\s+({PACKAGE.name}[\w.]*)\s+import\s+(?:\(([^)]*)\)|(.*))"
    rf"|import\s+({PACKAGE.name}[\w.]*))",
    re.MULTILINE,
)
"""A line that imports something of the library: a module and names in it, or a module."""


def _imported(path: Path) -> set[Path]:
    """The modules of the library that a file imports, by its text: constants say no module."""
    names = set()
    for module, several, line, alone in IMPORT.findall(path.read_text()):
        names |= {module or alone}
        names |= {f"{module}.{name}" for name in re.findall(r"\w+", several or line)}
    files = (getattr(sys.modules.get(name), "__file__", None) for name in names)
    return {Path(file).resolve() for file in files if file}


def written_for(experiment: Experiment) -> list[Any]:
    """The functions of an experiment."""
    parts: list[Any] = [experiment]
    for scenario in experiment.scenarios:
        parts += [scenario, *scenario.claims, *scenario.controls, *scenario.findings]
    return [f for part in parts for f in functions_of(part)]


def code_digest(functions: Sequence[Any], data: Sequence[Path] = ()) -> str:
    """SHA-256 of the files that functions are written in, as above, and of data files."""
    digest = hashlib.sha256()
    for path in sorted(_files(functions)):
        digest.update(path.read_bytes())
    for code in sorted(f.__code__.co_code for f in functions if not _in_file(f)):
        digest.update(code)  # written in a notebook or at a prompt
    for path in data:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def library_digest() -> str:
    """SHA-256 of all source files of the library, as they are now."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: path.relative_to(PACKAGE).parts):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def data_digest(data: Sequence[Path]) -> str:
    """SHA-256 of the names and bytes of data files; empty without any."""
    digest = hashlib.sha256()
    for path in data:
        found = path.stat()
        digest.update(f"{path.name}{_of_file(path, found.st_size, found.st_mtime_ns)}".encode())
    return digest.hexdigest() if data else ""


@cache
def _of_file(path: Path, size: int, modified: int) -> str:
    """SHA-256 of a file that is as large as it was, and as old: every job of a study asks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(functions: Sequence[Any]) -> set[Path]:
    """Files of the functions, and what these import of the theorems or from beside them."""
    own = {Path(f.__code__.co_filename).resolve() for f in functions if _in_file(f)}
    found = {path for path in own if not _general(path)}
    beside = {path.parent for path in found}
    names, seen = {f.__module__ for f in functions}, set()
    while names:
        name = names.pop()
        seen.add(name)
        module = sys.modules.get(name)
        path = Path(getattr(module, "__file__", None) or "").resolve()
        if _general(path) or not (path.parent in beside or _of_theorems(path)):
            continue
        found.add(path)
        within = [getattr(one, "__module__", None) for one in vars(module).values()]
        within += [one.__name__ for one in vars(module).values() if inspect.ismodule(one)]
        names |= {other for other in within if isinstance(other, str)} - seen
    return found


def _of_theorems(path: Path) -> bool:
    """Whether a file states a theorem or a study."""
    return any(path.is_relative_to(PACKAGE / name) for name in ROOMS)


def _general(path: Path) -> bool:
    """Whether a file is one of the library's, and of no theorem or study."""
    return path.is_relative_to(PACKAGE) and not _of_theorems(path)


def _in_file(function: Any) -> bool:
    return Path(function.__code__.co_filename).is_file()


def functions_of(part: Any) -> Iterator[Any]:
    """Functions among the fields of an instance of a dataclass, those in its mappings too."""
    assert is_dataclass(part)
    for field in fields(part):
        value = getattr(part, field.name)
        for one in value.values() if isinstance(value, Mapping) else (value,):
            while isinstance(one, partial):
                one = one.func
            if inspect.isfunction(one):
                yield one
