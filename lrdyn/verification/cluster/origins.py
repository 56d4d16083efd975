"""Where an experiment or a function is stated, so that another process finds it again.

What the library or an installed package states goes by its name; what a file of the user's states,
by the text of that file and of those beside it that it imports.
"""

import ast
import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any, NamedTuple

from distributed import get_worker

from lrdyn.system import whole_files
from lrdyn.verification.stating.sources import PACKAGE


class Origin(NamedTuple):
    """Name of an object with the texts of its files; without texts it can be imported."""

    name: str
    """``module:name`` or, in a text, ``file.py:name``."""
    texts: tuple[tuple[str, str], ...] = ()
    """Names and contents of files; the one that is imported comes first."""

    @property
    def digest(self) -> str:
        """SHA-256 of the texts."""
        return hashlib.sha256(repr(self.texts).encode()).hexdigest()


def origin(value: Any, argument: str) -> Origin:
    """The origin of an object at the top level of some module.

    Raises:
        ValueError: it is in none; ``argument`` is its name in the message.

    Example:
        >>> origin(hashlib.sha256, "function").name.rpartition(":")[2]
        'sha256'
    """
    # By identity: a theorem is a value, which does not know in which module and by what name it
    # stands.
    places = [(m, name) for m in _modules() for name, held in vars(m).items() if held is value]
    named = [(m, name) for m, name in places if _is_installed(m)]
    for module, name in named[:1]:
        return Origin(f"{module.__name__}:{name}")
    for module, name in places:
        if path := _source_file(module):
            return Origin(f"{path.name}:{name}", _texts(path))
    shown = getattr(value, "__qualname__", None) or getattr(value, "name", None) or repr(value)
    raise ValueError(
        f"{argument}: got {shown}, wanted one at the top level of a module, which a "
        "worker can import"
    )


def _modules() -> list[ModuleType]:
    """Loaded modules, the library's first: a theorem belongs to its module, not to an importer."""
    modules = [m for m in list(sys.modules.values()) if isinstance(m, ModuleType)]
    return sorted(modules, key=lambda m: not m.__name__.startswith("lrdyn."))


def _source_file(module: ModuleType) -> Path | None:
    path = Path(getattr(module, "__file__", None) or "")
    return path.resolve() if path.suffix == ".py" and path.is_file() else None


def _is_installed(module: ModuleType) -> bool:
    """Whether a module is part of an installed package, which other machines have, too."""
    if module.__name__ == "__main__":
        return False
    path = _source_file(module)
    if path is None:
        return module.__name__ in sys.builtin_module_names
    places = (PACKAGE, Path(inspect.__file__).parent)
    return "site-packages" in path.parts or any(path.is_relative_to(place) for place in places)


def _texts(path: Path) -> tuple[tuple[str, str], ...]:
    """Texts of a file, and of the files of its folder that it imports."""
    folder, texts, left = path.parent, {}, [path]
    while left:
        file = left.pop(0)
        if file not in texts:
            texts[file] = file.read_text()
            left += _imported_files(ast.parse(texts[file]), folder)
    return tuple((file.relative_to(folder).as_posix(), text) for file, text in texts.items())


def _imported_files(text: ast.Module, folder: Path) -> Iterator[Path]:
    """Files of a folder that are imported, with the packages they are in."""
    for node in ast.walk(text):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            names = [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        for words in (name.split(".") for name in names if name):
            for count in range(1, len(words) + 1):
                place = folder.joinpath(*words[:count])
                yield from filter(Path.is_file, (place.with_suffix(".py"), place / "__init__.py"))


# In the other process -------------------------------------------------------------------------


@contextmanager
def make_importable(source: Origin) -> Iterator[Path | None]:
    """Make the files of an origin importable inside the block, and no other origin's.

    Two users may have files of the same names.
    """
    if not source.texts:
        yield None
        return
    folder = _write_texts(source)
    mine = _HELD.setdefault(folder, {})
    others = set(sys.modules)
    sys.path.insert(0, str(folder))
    # The modules of earlier tasks of this origin: executed again, they would be other classes.
    sys.modules.update(mine)
    try:
        yield folder
    finally:
        sys.path.remove(str(folder))
        within = f"{folder}{os.sep}"
        # There are thousands of modules, and few of them are new.
        for name in (sys.modules.keys() - others) | mine.keys():
            if (getattr(sys.modules.get(name), "__file__", None) or "").startswith(within):
                mine[name] = sys.modules.pop(name)


_HELD: dict[Path, dict[str, ModuleType]] = {}
"""Modules that are made of the texts in a folder."""


@cache
def _base_folder() -> Path:
    """A folder that is removed with this process; in a worker, inside the one that Dask clears."""
    try:
        return whole_files.lasting_folder(Path(get_worker().local_directory))
    except ValueError:  # this process is no worker
        return whole_files.lasting_folder()


def _write_texts(source: Origin) -> Path:
    folder = _base_folder() / source.digest[:20]
    if not folder.is_dir():
        folder.mkdir()  # without its parents: a command that ends removes them under its workers
        for name, text in source.texts:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return folder


def resolve(source: Origin) -> Any:
    """Import the object of an origin, where the origin is importable.

    Example:
        >>> resolve(Origin("lrdyn.theorem2.statement:THEOREM2")).name
        'theorem2'
    """
    if not source.texts:
        return resolve_name(source.name)
    file, _, attribute = source.name.partition(":")
    name = f"lrdyn_text_{source.digest[:20]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, _write_texts(source) / file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return vars(sys.modules[name])[attribute]
