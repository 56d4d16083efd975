"""Digests of what results come from: the source files of an experiment and its data files."""

import ast
import hashlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from lrdyn.verification.stating.statement import Experiment

PACKAGE = Path(__file__).resolve().parents[2]
"""Folder of the library."""
ROOMS = {
    "studies",
    *(file.parent.name for file in PACKAGE.glob("*/statement.py")),
}
"""Its folders that state theorems and studies, with their formulas."""


def source_digest(experiment: Experiment, settings: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of the files in which the functions of an experiment are written, and of its data.

    The library's general modules do not count: an edit there changes the traced programs, if
    anything.
    """
    return code_digest(functions_stating(experiment), experiment.data(settings or {}))


JUDGES = (
    *("judging/judging", "judging/outcomes", "judging/rounding", "runs/verify"),
    *("stating/array_types", "stating/claims", "stating/fields", "stating/forms"),
    "stating/statement",
)
"""Modules below ``lrdyn/verification`` in which every verdict is reached."""


def judges_digest(experiment: Experiment) -> str:
    """SHA-256 of what decides a verdict beside the files of the theorem.

    These are :data:`JUDGES` and whatever of the library those files import, directly or not:
    conditions, tolerances, the convergence of a run. The rest of ``lrdyn/verification``, and
    figures, judge nothing.
    """
    verification = PACKAGE / "verification"
    theirs = _files(functions_stating(experiment))

    def judges_nothing(path: Path) -> bool:
        return path in theirs or path.is_relative_to(verification) or _draws(path)

    known = _module_files()
    names = [name for path in theirs for name in _imported_modules(path, known)]
    # The files of the theorem itself are left out here: ``source_digest`` counts them already.
    reached = _reachable_files(names, known, judges_nothing)
    judges = {verification / f"{name}.py" for name in JUDGES}
    digest = hashlib.sha256()
    for path in sorted(reached | judges):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def functions_stating(experiment: Experiment) -> list[Any]:
    """The functions of an experiment."""
    parts: list[Any] = [experiment]
    for scenario in experiment.scenarios:
        parts += [scenario, *scenario.claims, *scenario.controls, *scenario.findings]
    return [f for part in parts for f in functions_of(part)]


def own_files_stating(experiment: Experiment) -> list[str]:
    """The files outside of the library in which somebody states an experiment."""
    # A decorator of another package, such as one that checks types, is no file of theirs.
    written = map(inspect.unwrap, functions_stating(experiment))
    files = sorted({function.__code__.co_filename for function in written})
    return [file for file in files if not Path(file).resolve().is_relative_to(PACKAGE)]


def code_digest(functions: Sequence[Any], data: Sequence[Path] = ()) -> str:
    """SHA-256 of the source files of functions and of data files."""
    digest = hashlib.sha256()
    for path in sorted(_files(functions)):
        digest.update(path.read_bytes())
    # Sorted, since the order in which functions are found is no property of the theorem.
    for code in sorted(f.__code__.co_code for f in functions if not _has_file(f)):
        digest.update(code)  # written in a notebook or at a prompt
    for path in data:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def library_digest() -> str:
    """SHA-256 of all source files of the library."""
    digest = hashlib.sha256()
    # By their parts: sorted as texts, ``a-b/c`` and ``a/c`` change places with the separator.
    for path in sorted(PACKAGE.rglob("*.py"), key=lambda path: path.relative_to(PACKAGE).parts):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


ENGINE = ("lrdyn.verification.running.produce", "lrdyn.verification.machine.process")
"""Modules that make the programs of every theorem, and set how they run."""
MODULE = re.compile(r"lrdyn(\.\w+)+(:\w+)?")
"""A string that may be looked up as a module."""


def deciding_code_digest(theorem: str) -> str:
    """SHA-256 of the code that can decide the programs of a theorem.

    That is the code of the module that states it and of :data:`ENGINE`, and of all that they
    import, directly or not, at the top of a file or within a function; a module that is named in a
    string counts as imported. Comments, layout and docstrings are no code. What draws decides no
    program. Of the packages around a module the ``__init__`` runs, too: it counts, and what it
    imports does where a name is taken from it.

    Args:
        theorem: name of the module.

    Example:
        >>> two = deciding_code_digest("lrdyn.theorem2.statement")
        >>> two == deciding_code_digest("lrdyn.lora.statement")
        False
    """
    return _digest_codes(deciding_files(theorem))


def code_of_modules(names: Sequence[str]) -> str:
    """SHA-256 of the code of modules of the library and of all that they import.

    Args:
        names: of the modules.

    Example:
        >>> code_of_modules(["lrdyn.core.linalg"]) == code_of_modules(["lrdyn.core.descent"])
        False
    """
    modules = _modules(library_digest())
    left, lines = list(names), dict[str, str]()
    while left:
        name = left.pop()
        if name not in lines:
            lines[name], imported = modules.code(name)
            left += imported
    return hashlib.sha256("\n".join(lines[name] for name in sorted(lines)).encode()).hexdigest()


class _Modules:
    """Modules of the library, each of which is read and parsed when it is asked for."""

    def __init__(self):
        self.files, self.codes = _module_files(), dict[str, tuple[str, list[str]]]()

    def code(self, name: str) -> tuple[str, list[str]]:
        """A line on the code of a module, and the modules that it imports; empty of another one."""
        if name not in self.codes:
            path = self.files.get(name)
            if path is None or _draws(path):
                self.codes[name] = "", []
            else:
                imported = list(_imported_modules(path, self.files))
                self.codes[name] = f"{name} {code_of(path.read_bytes()).digest}", imported
        return self.codes[name]


@cache
def _modules(state: str) -> _Modules:
    """The modules of a state of the library, which every stage of a run asks for."""
    return _Modules()


def _digest_codes(files: Iterable[Path]) -> str:
    codes = {path: code_of(path.read_bytes()).digest for path in files}
    lines = [f"{path.relative_to(PACKAGE).as_posix()} {codes[path]}" for path in sorted(codes)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def deciding_files(theorem: str) -> set[Path]:
    """The source files whose code can decide the programs of a theorem."""
    files = _reachable_files([theorem, *ENGINE], _module_files(), _draws)
    folders = {folder for path in files for folder in path.relative_to(PACKAGE).parents}
    return files | {PACKAGE / folder / "__init__.py" for folder in folders}


def _reachable_files(
    names: Sequence[str], known: Mapping[str, Path], left_out: Callable[[Path], bool]
) -> set[Path]:
    """Files of modules and of all that they import, directly or not, except some."""
    left, files = list(names), set[Path]()
    while left:
        path = known.get(left.pop())
        if path is not None and path not in files and not left_out(path):
            files.add(path)
            left += _imported_modules(path, known)
    return files


def _imported_modules(path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """Names of the modules that a file imports, and of a package where a name is no module."""
    # Where the file stands; nowhere if it is none of the library.
    ours = path.is_relative_to(PACKAGE)
    package = ".".join(path.parent.relative_to(PACKAGE.parent).parts) if ours else ""
    for module, taken in code_of(path.read_bytes()).imports:
        if module.startswith(".") and not package:
            continue  # a file beside a user's own file
        base = importlib.util.resolve_name(module, package)
        inner = [f"{base}.{name}" for name in taken]
        # A name taken from a package may be a module of it or something in its ``__init__``.
        yield from inner
        if not taken or not known.keys() >= set(inner):
            yield base


def _module_files() -> dict[str, Path]:
    """The files of the library by the names of their modules."""
    names = {}
    for file in sorted(
        PACKAGE.rglob("*.py"), reverse=True
    ):  # a package comes last: it hides a namesake
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(("lrdyn", *parts)).removesuffix(".__init__")] = file
    return names


def _draws(path: Path) -> bool:
    return "figures" in path.relative_to(PACKAGE).with_suffix("").parts


class Code(NamedTuple):
    """The code of a file, without what decides nothing."""

    digest: str
    imports: Sequence[tuple[str, Sequence[str]]]
    """Modules that it imports, each with the names taken from it."""


PARSED: dict[str, Code] = {}
"""SHA-256 of a file -> its code: to parse the library takes half a second.

It may be filled from what an earlier process has parsed, for it says nothing but what the content
of a file means (:meth:`lrdyn.verification.machine.kept_programs.KeptPrograms.of`).
"""


def code_of(content: bytes) -> Code:
    """The code of a file: docstrings, comments and layout are none."""
    name = hashlib.sha256(content).hexdigest()
    if name not in PARSED:
        PARSED[name] = _parse(content)
    return PARSED[name]


def _parse(content: bytes) -> Code:
    imports: list[tuple[str, tuple[str, ...]]] = []
    tree = ast.parse(content)
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                imports += [(alias.name, ()) for alias in names]
            case ast.ImportFrom(module, names, level):
                taken = tuple(alias.name for alias in names)
                imports.append(("." * (level or 0) + (module or ""), taken))
            case ast.Constant(str(text)) if MODULE.fullmatch(text):
                imports.append((text.partition(":")[0], ()))
            case (
                ast.Module(body=body)
                | ast.ClassDef(body=body)
                | ast.FunctionDef(body=body)
                | ast.AsyncFunctionDef(body=body)
            ):
                # The tree is changed in place: nobody needs the docstrings.
                if ast.get_docstring(node, clean=False) is not None:
                    del body[0]
    # ``ast.dump`` leaves out lines and columns, so that a comment above a function changes nothing.
    return Code(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports)


def data_digest(data: Sequence[Path]) -> str:
    """SHA-256 of the names and bytes of data files; empty without any."""
    digest = hashlib.sha256()
    for path in data:
        facts = path.stat()
        # The name without its folder: data may lie elsewhere on another machine.
        digest.update(f"{path.name}{_file_digest(path, facts.st_size, facts.st_mtime_ns)}".encode())
    return digest.hexdigest() if data else ""


@cache
def _file_digest(path: Path, size: int, modified: int) -> str:
    """SHA-256 of a file, cached for its size and age, since every job of a study asks for it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(functions: Sequence[Any]) -> set[Path]:
    """Files of the functions, and what these import of the theorems or from beside them."""
    own = {Path(f.__code__.co_filename).resolve() for f in functions if _has_file(f)}
    files = {path for path in own if not _is_general(path)}
    beside = {path.parent for path in files}
    names, visited = {f.__module__ for f in functions}, set()
    while names:
        name = names.pop()
        visited.add(name)
        module = sys.modules.get(name)
        if not (file := getattr(module, "__file__", None)):
            continue  # a built-in one, such as ``sys``: an empty path would be the working folder
        path = Path(file).resolve()
        if _is_general(path) or not (path.parent in beside or _states_theorem(path)):
            continue
        files.add(path)
        # What a module has taken by ``from`` shows in the objects, what it imported whole as a
        # module.
        within = [getattr(value, "__module__", None) for value in vars(module).values()]
        within += [value.__name__ for value in vars(module).values() if inspect.ismodule(value)]
        names |= {other for other in within if isinstance(other, str)} - visited
    return files


def _states_theorem(path: Path) -> bool:
    """Whether a file states a theorem or a study."""
    return any(path.is_relative_to(PACKAGE / name) for name in ROOMS)


def _is_general(path: Path) -> bool:
    """Whether a file is a general one of the library, not part of a theorem or study."""
    return path.is_relative_to(PACKAGE) and not _states_theorem(path)


def _has_file(function: Any) -> bool:
    return Path(function.__code__.co_filename).is_file()


def functions_of(part: Any) -> Iterator[Any]:
    """Functions among the fields of an instance of a dataclass, those in its mappings too."""
    assert is_dataclass(part)
    for field in fields(part):
        value = getattr(part, field.name)
        for entry in value.values() if isinstance(value, Mapping) else (value,):
            while isinstance(entry, partial):
                entry = entry.func
            if inspect.isfunction(entry):
                yield entry
