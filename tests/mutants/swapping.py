"""A mutant of a library that is imported already: other code in the functions that are there.

To import the library takes seconds, as each function is compiled for its checks. Most mutants
change the inside of functions that nothing called meanwhile: there it is enough to exchange the
code of these.
"""

import gc
import importlib
import pkgutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

LOCALS = 0x2
"""Flag of a code that is called, and not the body of a module or a class (``CO_NEWLOCALS``)."""

SAME = (
    *("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags", "co_name"),
    *("co_argcount", "co_kwonlyargcount", "co_posonlyargcount", "co_exceptiontable"),
)
"""What two codes share of which only the constants differ."""

Place = tuple[str, str, int]


class Pair(NamedTuple):
    """The code of a function without a mutant and with it."""

    old: CodeType
    new: CodeType


def place(code: CodeType) -> Place:
    """Where a code stands; lambdas of one line share it."""
    return code.co_filename, code.co_qualname, code.co_firstlineno


def pairs(old: CodeType, new: CodeType, *, called: bool = False) -> list[Pair] | None:
    """Functions whose code differs, each after the one around it.

    Args:
        old: of a module, or of what is within it.
        new: the same after one change.
        called: whether a function is around it.

    Returns:
        None if what differs is run when the module is imported.
    """
    function = called or bool(old.co_flags & LOCALS)
    both = list(zip(old.co_consts, new.co_consts, strict=False))
    within = [(a, b) for a, b in both if isinstance(a, CodeType) and isinstance(b, CodeType)]
    alike = (
        all(getattr(old, name) == getattr(new, name) for name in SAME)
        and len(old.co_consts) == len(new.co_consts)
        and all((type(a), repr(a)) == (type(b), repr(b)) for a, b in both if (a, b) not in within)
    )
    found = []
    for a, b in within:
        inner = pairs(a, b, called=function)
        if inner is None:
            return None
        found += inner
    if alike and not found:
        return []
    if not function:
        return found if alike else None
    return [Pair(old, new), *found]


class Imported:
    """A library in this process: its functions, and the codes that ran while it was imported."""

    def __init__(self, packages: Iterable[str], first: Callable[[], None]):
        """Import all modules of packages.

        Args:
            packages: their names.
            first: called before; what it runs is watched, too.
        """
        self.ran: set[Place] = set()
        self.functions: dict[Place, list[FunctionType]] = defaultdict(list)
        sys.setprofile(lambda frame, event, _: event == "call" and self._note(frame.f_code))
        try:
            first()
            for package in packages:
                for name in _modules(package):
                    importlib.import_module(name)
        finally:
            sys.setprofile(None)
        gc.collect()
        for one in gc.get_objects():
            if isinstance(one, FunctionType):
                self.functions[place(one.__code__)].append(one)
        gc.freeze()  # what is forked shares it for longer

    def _note(self, code: CodeType) -> None:
        self.ran.add(place(code))

    def swap(self, file: Path, original: Path) -> bool:
        """Give functions of a file the code that the file has now.

        Args:
            file: what was imported; another text since.
            original: the text that was imported.

        Returns:
            Whether that makes the library as if it had been imported now.
        """
        name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
        module = sys.modules.get(name)
        loader = getattr(module, "__loader__", None)
        if module is None or loader is None:
            return False
        text = str(module.__file__)
        old, new = (loader.source_to_code(p.read_bytes(), text) for p in (original, file))
        found = pairs(old, new)
        if found is None or any(place(pair.old) in self.ran for pair in found):
            return False
        inner = {id(code) for pair in found for code in pair.old.co_consts}
        for pair in found:
            there = [f for f in self.functions[place(pair.old)] if f.__code__ == pair.old]
            if not there and id(pair.old) not in inner:
                return False
            for function in there:
                function.__code__ = pair.new
        return True


def _modules(package: str) -> Iterator[str]:
    yield package
    path = importlib.import_module(package).__path__
    yield from (found.name for found in pkgutil.walk_packages(path, f"{package}."))
