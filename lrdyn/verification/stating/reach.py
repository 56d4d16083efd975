"""What a function can reach: a digest of all code and constants that decide what it returns.

A function is followed as an object: its code, its defaults, what its closure holds, and whatever of
the objects around it the names in its code can mean. So an edit of one formula is an edit of those
functions alone that can call it. Comments, layout and docstrings are no code.

Of a module that states no theorem (:data:`lrdyn.verification.stating.sources.ROOMS`) the code of
the whole file counts, and that of every file that it imports. Packages below the library count by
their releases, which whoever keeps something names beside this digest.

What cannot be followed, such as a name that is computed, raises :class:`Unknown`: whoever asks then
keeps nothing under this digest.
"""

import dataclasses
import dis
import enum
import functools
import hashlib
import inspect
import re
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrdyn.verification.stating.sources import ROOMS, code_of_modules

BELOW = {
    "jax",
    "jaxlib",
    "numpy",
    "scipy",
    "equinox",
    "optax",
    "jaxtyping",
    "beartype",
    "typing_extensions",
}
"""Packages whose releases are named beside a digest, and which no function of them is followed
into."""
COMPUTED = {
    *("getattr", "setattr", "delattr", "vars", "globals", "locals", "eval", "exec", "compile"),
    *("__import__", "import_module", "attrgetter", "methodcaller", "open", "__dict__"),
}
"""Names by which code reaches what its names do not show, or what is in no code."""
ADDRESS = re.compile(r" at 0x[0-9a-f]+")
SIMPLE = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))


class Unknown(Exception):
    """Something can be reached that cannot be followed; the message names it."""


def reach_digest(*objects: Any) -> str:
    """SHA-256 of all that decides what these functions return, and of these constants.

    Args:
        objects: functions, constants, and tuples of them.

    Raises:
        Unknown: something that they reach cannot be followed.

    Example:
        >>> def slope(x, power=2):
        ...     return power * x
        >>> def steeper(x, power=3):
        ...     return power * x
        >>> reach_digest(slope) == reach_digest(slope), reach_digest(slope) == reach_digest(steeper)
        (True, False)
    """
    return _Walk(objects).digest()


class _Walk:
    """Follows objects, each once, in an order that the objects alone decide.

    Every object that is not simple has a number, in the order in which it was met; what is digested
    of an object says where it leads by these numbers. Of modules and classes only those attributes
    count whose names stand in code that is reached.
    """

    def __init__(self, roots: tuple[Any, ...]):
        self.hash = hashlib.sha256()
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []  # so that no other object takes the identity of one
        self.left: deque[Any] = deque()
        self.names: set[str] = set()
        self.holders: list[Mapping[str, Any]] = []
        self.looked_up: set[tuple[int, str]] = set()
        self.modules: set[str] = set()
        self.tell("roots", *map(self.refer, roots))

    def digest(self) -> str:
        """Follow everything, then look up what the names met on the way mean, until all is met."""
        while True:
            while self.left:
                self.follow(self.left.popleft())
            if not self.look_up():
                break
        if self.modules:
            self.tell("modules", code_of_modules(sorted(self.modules)))
        return self.hash.hexdigest()

    def tell(self, *words: Any) -> None:
        self.hash.update(repr(words).encode())

    def look_up(self) -> bool:
        """Follow the attributes of modules and classes whose names were met since."""
        met = False
        for number, holder in enumerate(list(self.holders)):
            for name in sorted(n for n in holder if n in self.names or n in _special(holder)):
                if (number, name) not in self.looked_up:
                    self.looked_up.add((number, name))
                    self.tell("holds", number, name, self.refer(holder[name]))
                    met = True
        return met

    def refer(self, thing: Any) -> Any:
        """What stands for an object: a simple one itself, else its number."""
        if type(thing) in SIMPLE:
            return type(thing).__name__, repr(thing)
        if id(thing) not in self.numbers:
            self.numbers[id(thing)] = len(self.numbers)
            self.kept.append(thing)
            self.left.append(thing)
        return self.numbers[id(thing)]

    # One method for each kind of object ------------------------------------------------------

    def follow(self, thing: Any) -> None:
        kind = type(thing)
        number = self.numbers[id(thing)]
        if kind in (tuple, list):
            self.tell(number, kind.__name__, *map(self.refer, thing))
        elif kind in (set, frozenset):
            if any(type(entry) not in SIMPLE for entry in thing):
                raise Unknown(f"a set of {thing!r:.80}")
            self.tell(number, kind.__name__, *sorted(map(repr, thing)))
        elif isinstance(thing, Mapping) and kind in (dict, types.MappingProxyType):
            entries = [(self.refer(name), self.refer(value)) for name, value in thing.items()]
            self.tell(number, "dict", *entries)
        elif isinstance(thing, np.ndarray | np.generic | jax.Array):
            self.follow_array(number, thing)
        elif isinstance(thing, types.ModuleType):
            self.follow_module(number, thing)
        elif isinstance(thing, types.FunctionType):
            self.follow_function(number, thing)
        elif isinstance(thing, types.CodeType):
            self.follow_code(number, thing)
        elif isinstance(thing, types.MethodType):
            self.tell(number, "method", self.refer(thing.__func__), self.refer(thing.__self__))
        elif isinstance(thing, types.BuiltinFunctionType):
            self.tell(number, "builtin", thing.__module__, thing.__qualname__)
            if not isinstance(thing.__self__, types.ModuleType | type | None):
                self.tell(self.refer(thing.__self__))
        elif isinstance(thing, weakref.ReferenceType):
            self.tell(number, "weak", self.refer(thing()))
        elif isinstance(thing, functools.partial):
            parts = (thing.func, thing.args, thing.keywords)
            self.tell(number, "partial", *map(self.refer, parts))
        elif isinstance(thing, staticmethod | classmethod):
            self.tell(number, kind.__name__, self.refer(thing.__func__))
        elif isinstance(thing, property):
            self.tell(number, "property", *map(self.refer, (thing.fget, thing.fset, thing.fdel)))
        elif isinstance(thing, type):
            self.follow_class(number, thing)
        else:
            self.follow_instance(number, thing)

    def follow_array(self, number: int, array: Any) -> None:
        if isinstance(array, Tracer):
            raise Unknown("a traced array")
        if jnp.issubdtype(array.dtype, jax.dtypes.extended) or array.dtype.hasobject:
            raise Unknown(f"an array of {array.dtype}")
        values = np.asarray(array)
        weak = getattr(array, "weak_type", None)
        self.tell(number, "array", type(array).__name__, str(values.dtype), values.shape, weak)
        self.hash.update(values.tobytes())

    def follow_module(self, number: int, module: types.ModuleType) -> None:
        name = module.__name__
        self.tell(number, "module", name)
        if _is_below(name):
            return
        if _states_theorem(name):
            self.holders.append(vars(module))
        elif name.split(".")[0] == "lrdyn":
            self.modules.add(name)
            # A package hands out what its modules have: what is taken from it is followed there.
            self.holders.append(vars(module))
        else:
            raise Unknown(f"module {name}")

    def follow_function(self, number: int, function: types.FunctionType) -> None:
        # Where it is written: a decorator has given its own function the names of another.
        module = function.__globals__.get("__name__", "")
        self.tell(number, "function", module, function.__qualname__)
        if _is_below(module):
            if _is_importable(function, module):
                return  # its release says what it does
        elif module.split(".")[0] == "lrdyn" and not _states_theorem(module):
            self.modules.add(module)
            if _is_importable(function, module):
                return
        else:
            self.tell(number, ADDRESS.sub("", repr(function.__annotations__)))
            self.tell(number, self.refer(function.__code__))
            self.follow_names(number, function)
        held = [(name, self.contents(cell)) for name, cell in _cells(function)]
        self.tell(number, [(name, self.refer(value)) for name, value in held])
        marks = {n: v for n, v in vars(function).items() if not n.startswith("__")}
        wrapped = vars(function).get("__wrapped__")
        for part in (function.__defaults__, function.__kwdefaults__, marks, wrapped):
            self.tell(number, self.refer(part))

    @staticmethod
    def contents(cell: Any) -> Any:
        try:
            return cell.cell_contents
        except ValueError:  # not set yet: a name that is bound later in the function around it
            raise Unknown("a name of a closure without a value") from None

    def follow_names(self, number: int, function: types.FunctionType) -> None:
        """Follow what the names in a function's code mean in its module."""
        for name in sorted(_names(function.__code__)):
            self.names.add(name)
            if name in function.__globals__:
                self.tell(number, name, self.refer(function.__globals__[name]))
            elif name in COMPUTED:
                raise Unknown(f"{name} in {function.__qualname__}")
        for name in _imports(function.__code__):
            if name not in sys.modules:
                raise Unknown(f"an import of {name} in {function.__qualname__}")
            self.tell(number, "imports", self.refer(sys.modules[name]))

    def follow_code(self, number: int, code: types.CodeType) -> None:
        # No line numbers: what stands above a function is no part of it.
        constants = [
            c for c in code.co_consts if c is not code.co_consts[0] or not _has_docstring(code)
        ]
        self.tell(number, "code", code.co_code, code.co_names, code.co_varnames, code.co_freevars)
        self.tell(code.co_cellvars, code.co_flags, code.co_argcount, code.co_kwonlyargcount)
        self.tell(*map(self.refer, constants))
        if table := getattr(code, "co_exceptiontable", b""):
            self.tell(table)

    def follow_class(self, number: int, kind: type) -> None:
        module = kind.__module__
        self.tell(number, "class", module, kind.__qualname__)
        if _is_below(module):
            return
        if module.split(".")[0] != "lrdyn":
            raise Unknown(f"class {module}.{kind.__qualname__}")
        if not _states_theorem(module):
            self.modules.add(module)
            return
        self.tell(number, *map(self.refer, kind.__bases__), self.refer(type(kind)))
        self.tell(number, ADDRESS.sub("", repr(vars(kind).get("__annotations__"))))
        self.holders.append(vars(kind))

    def follow_instance(self, number: int, thing: Any) -> None:
        kind = type(thing)
        self.tell(number, "instance", self.refer(kind))
        if isinstance(thing, enum.Enum):
            self.tell(thing.name)
            return
        if isinstance(thing, dataclasses.Field):  # equinox keeps converters in its metadata
            parts = (thing.name, thing.default, thing.default_factory, thing.metadata)
            self.tell(*map(self.refer, parts))
            return
        if _is_below(kind.__module__) and kind.__name__ == "DebugInfo":
            return  # of a function that is jitted: the lines where it is written are no code
        if isinstance(thing, tuple):  # a named one
            fields = thing._asdict().items()  # pyright: ignore[reportAttributeAccessIssue]
            self.tell(*((n, self.refer(value)) for n, value in fields if n != "fun_sourceinfo"))
            return
        if (wrapped := getattr(thing, "__wrapped__", None)) is not None and not hasattr(
            thing, "__dict__"
        ):
            self.tell("wraps", self.refer(wrapped))  # of jax.jit
            return
        text = ADDRESS.sub("", repr(thing))
        if hasattr(thing, "__dict__"):
            self.tell(self.refer(dict(sorted(vars(thing).items()))))
            if wrapped is not None:
                self.tell("wraps", self.refer(wrapped))
        elif hasattr(kind, "__slots__") and not _is_below(kind.__module__):
            slots = [s for k in kind.__mro__ for s in getattr(k, "__slots__", ())]
            self.tell(*(self.refer(getattr(thing, slot, None)) for slot in slots))
        elif not _is_below(kind.__module__) or text != repr(thing):
            raise Unknown(f"{kind.__module__}.{kind.__qualname__}: {text:.80}")
        else:
            self.tell(text)


@functools.cache
def _names(code: types.CodeType) -> set[str]:
    """Names of globals and attributes in a code, and in those inside of it."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return {*code.co_names, *(name for c in inner for name in _names(c))}


@functools.cache
def _imports(code: types.CodeType) -> list[str]:
    """Names of the modules that a code imports when it runs."""
    names = [i.argval for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME"]
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return [*names, *(name for c in inner for name in _imports(c))]


def _has_docstring(code: types.CodeType) -> bool:
    first = code.co_consts[:1]
    return bool(first) and isinstance(first[0], str) and bool(code.co_flags & inspect.CO_NEWLOCALS)


def _cells(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    return zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)


def _special(holder: Mapping[str, Any]) -> Iterator[str]:
    """Names of what Python itself looks up: methods of operators, and values that are preset."""
    if "__spec__" in holder:  # a module
        return iter(["__getattr__"])
    return (n for n in holder if n not in _DESCRIBES and (n[:2] == "__" == n[-2:] or n == _PRESET))


_PRESET = "_field_defaults"
_DESCRIBES = {
    *("__doc__", "__dict__", "__weakref__", "__module__", "__qualname__", "__annotations__"),
    *("__slots__", "__match_args__", "__abstractmethods__"),
    *("__orig_bases__", "__parameters__", "__firstlineno__", "__static_attributes__"),
}


def _is_below(module: str) -> bool:
    top = module.split(".")[0]
    return top in BELOW or top in sys.stdlib_module_names


def _states_theorem(module: str) -> bool:
    parts = module.split(".")
    return parts[0] == "lrdyn" and len(parts) > 1 and parts[1] in ROOMS


def _is_importable(function: types.FunctionType, module: str) -> bool:
    """Whether it is what its module has under its name: its code says all of it."""
    found: Any = sys.modules.get(module)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function
