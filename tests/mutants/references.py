"""Which tests can see a mutant: those whose code reaches what it changes, the nearest first.

Nothing is run to know it. What stands at the top of a module (functions, classes, variables) refers
to others by the names that it uses, which imports lead to: a graph over the library, the referee
and the tests. A test is as far from a mutant as the shortest way between them, and so is an
example of a docstring.
"""

import ast
import re
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lrdyn.registry import REGISTRY
from tests.runs import ROOT

Node = tuple[str, str]
"""Name of a module, and what stands at its top; empty for the module itself."""

SOURCES = ("lrdyn", "referee", "tests")
NAMED = re.compile(r"(lrdyn|referee)(\.\w+)+(:\w+)?")
"""A string that is looked up as a module, or as something of it."""

PRODUCING = ("produce", "jobs", "work", "programs", "sweep", "points", "cases")
"""Modules of the engine that make results, which no judge does."""

LIST = "lrdyn.registry"
"""Where all theorems are listed."""

COMMANDS = {"command_line", "drawing_command_line", "carry_out", "python", "started", "refused"}
"""What a test takes or calls that runs a whole command or sweep."""

SHARED = {"finished", "tmp_path_factory"}
"""What a test takes or calls that looks at a small run."""

JUDGES = ("claims", "findings")
"""Arguments of a scenario that only read results."""


class Module(NamedTuple):
    """A module, as far as names go."""

    name: str
    package: bool
    path: str
    names: dict[str, list[ast.AST]]
    """What stands at its top."""
    imports: dict[str, tuple[str, str]]
    """Name that an import binds, anywhere in the file -> module and what of it, or nothing."""
    loops: frozenset[str]
    """Names that loops bind."""
    listed: tuple[str, ...]
    """Names that stand in a tuple or list, which a loop can go through."""


class Test(NamedTuple):
    """A test or an example, as pytest calls it, and how far it is from what is changed."""

    id: str
    distance: int
    general: bool = False
    """Whether it reaches all theorems alike, by their list."""
    whole: bool = False
    """Whether it runs a whole command or sweep."""
    shared: bool = False
    """Whether it looks at a small run that many tests share."""


class Graph:
    """Who refers to whom.

    Args:
        root: folder of the sources.
    """

    def __init__(self, root: Path = ROOT):
        self.modules = {m.name: m for m in _modules(root)}
        self.used_by: dict[Node, set[Node]] = defaultdict(set)
        self.claims: dict[Node, str] = {}
        """Stand-ins of claims -> their ids."""
        self.produced: dict[Node, str] = {}
        """Stand-ins of what makes the results of a scenario -> its id."""
        for module in self.modules.values():
            self._refer(module)

    # Building ------------------------------------------------------------------------------

    def _refer(self, module: Module) -> None:
        for name, parts in module.names.items():
            user = (module.name, name)
            for part in parts:
                self._from(user, part, module)
                if name == "CLAIMS" and module.name.startswith("referee."):
                    self._confirms(module, part)
                for call in ast.walk(part):
                    match call:
                        case ast.Call(ast.Name("Claim"), [ast.Constant(str(id)), *_]):
                            claim = (module.name, f"{name} claim {id}")
                            self.claims[claim] = id
                            self._from(claim, call, module)
                        case ast.Call(
                            ast.Name("Scenario") | ast.Subscript(ast.Name("Scenario"))
                        ) if not module.name.startswith("lrdyn.studies."):  # no theorem's
                            self._produces(module, name, call)

    def _confirms(self, module: Module, part: ast.AST) -> None:
        """Scenario -> claim -> both of its sides, as a referee has them."""
        for node in ast.walk(part):
            match node:
                case ast.Dict(keys, values):
                    for key, value in zip(keys, values, strict=True):
                        if isinstance(key, ast.Constant) and not isinstance(value, ast.Dict):
                            claim = (module.name, f"claim {key.value}")
                            self.claims[claim] = str(key.value)
                            self._from(claim, value, module)

    def _produces(self, module: Module, name: str, call: ast.Call) -> None:
        made = (module.name, f"{name} results")
        name_of = call.args[0] if call.args else None
        self.produced[made] = str(name_of.value) if isinstance(name_of, ast.Constant) else ""
        keywords = [k.value for k in call.keywords if k.arg not in JUDGES]
        for part in (*call.args[:4], *keywords):
            self._from(made, part, module)

    def _from(self, user: Node, part: ast.AST, module: Module) -> None:
        for used in self._names_of(part, module):
            if used != user:
                self.used_by[used].add(user)

    def _names_of(self, part: ast.AST, module: Module) -> Iterator[Node]:
        for node in _computed(part):
            match node:
                case ast.Attribute() | ast.Name():
                    chain = _chain(node)
                    if chain:
                        yield from self._resolved(module, chain)
                case ast.Constant(str(text)) if NAMED.fullmatch(text):
                    name, _, of_it = text.partition(":")
                    if name in self.modules:
                        yield (name, of_it)
                case ast.Constant(str(text)) if module.name.startswith("tests."):
                    yield from self._of_paths(text)
                case ast.FunctionDef(args=args) if module.name.startswith("tests."):
                    for arg in args.args:  # a fixture
                        for home in (module.name, "tests.conftest"):
                            if arg.arg in self.modules[home].names:
                                yield (home, arg.arg)
                                break

    def _of_paths(self, text: str) -> Iterator[Node]:
        """What modules of the library offer that a test names as ``core.spectra``."""
        for name in (f"lrdyn.{word}" for word in text.split() if "." in word):
            if name in self.modules:
                offered = self.modules[name].names
                yield from ((name, of_it) for of_it in offered if not of_it.startswith("_"))

    def _resolved(self, module: Module, chain: list[str]) -> Iterator[Node]:
        """What a dotted name leads to."""
        first, *rest = chain
        if first in module.names:
            yield (module.name, first)
            if rest:
                # A variable that stands for a module, such as one whose functions are compiled.
                for part in module.names[first]:
                    if isinstance(part, ast.Assign | ast.AnnAssign):
                        yield from self._through(part, module, rest)
        elif first in module.imports:
            yield from self._of_import(module.imports[first], rest)
        elif rest and first in module.loops:
            for name in module.listed:  # of modules, those that have it
                for node in self._of_import(module.imports[name], rest):
                    if node[1] == rest[0]:
                        yield node

    def _through(self, part: ast.AST, module: Module, rest: list[str]) -> Iterator[Node]:
        for node in ast.walk(part):
            chain = _chain(node)
            if chain and chain[0] in module.imports:
                yield from self._of_import(module.imports[chain[0]], [*chain[1:], *rest])

    def _of_import(self, bound: tuple[str, str], rest: list[str]) -> Iterator[Node]:
        name, of_it = bound
        path = [of_it, *rest] if of_it else rest
        while path and f"{name}.{path[0]}" in self.modules:
            name, path = f"{name}.{path[0]}", path[1:]
        if name not in self.modules:
            return
        module = self.modules[name]
        if not path:
            yield (name, "")
        elif path[0] in module.names:
            yield (name, path[0])
        elif path[0] in module.imports and module.imports[path[0]] != bound:
            yield from self._of_import(module.imports[path[0]], path[1:])
        else:  # found when it is asked for
            yield (name, "")

    # Asking --------------------------------------------------------------------------------

    def node(self, file: str, within: str) -> Node:
        """Where a mutant is."""
        name = ".".join(Path(file).with_suffix("").parts).removesuffix(".__init__")
        # Of several variables that are assigned in one line, the first.
        return name, within.strip("(").split(",")[0].split(".")[0]

    def distances(self, start: Node, *, by_list: bool = True) -> dict[Node, int]:
        """Everybody who refers to it, directly or not, and in how many steps.

        Args:
            start: what is referred to.
            by_list: whether the list of all theorems counts.
        """
        found, left = {start: 0}, deque([start])
        while left:
            one = left.popleft()
            for user in self.used_by[one]:
                if user not in found and (by_list or user[0] != LIST):
                    found[user] = found[one] + 1
                    left.append(user)
        return found

    def tests(self, start: Node) -> list[Test]:
        """Tests and examples that reach it, the nearest first."""
        found, near = [], self.distances(start, by_list=False)
        for (name, what), distance in self.distances(start).items():
            module, general = self.modules.get(name), (name, what) not in near
            if module is None or not what:
                continue
            if name.rpartition(".")[2].startswith("test_"):
                ids, words = _tests(module, what), _words(module, what)
            elif not name.startswith("tests."):
                ids, words = (f"{name}.{id}" for id in _examples(module, what)), set()
            else:
                continue
            costs = bool(words & COMMANDS), bool(words & SHARED)
            found += [Test(f"{module.path}::{id}", distance, general, *costs) for id in ids]
        return sorted(found, key=lambda test: (test.distance, test.id))

    def theorems(self, start: Node) -> list[str]:
        """Theorems whose statement reaches it, the nearest first."""
        reached = self.distances(start)
        places = {name: where.partition(":") for name, where in REGISTRY.items()}
        stated = {name: (module, of_it) for name, (module, _, of_it) in places.items()}
        found = [name for name, where in stated.items() if where in reached]
        return sorted(found, key=lambda name: reached[stated[name]])

    def refereed(self, start: Node) -> list[str]:
        """Theorems of the claims that a part of the referee computes again, or of its name."""
        mine = self.claims_of(start)
        stated = [n for n, id in self.claims.items() if id in mine and n[0].startswith("lrdyn.")]
        users = [(module, claim.partition(" claim ")[0]) for module, claim in stated]
        found = {start[0].rpartition(".")[2], *(t for user in users for t in self.theorems(user))}
        return [name for name in REGISTRY if name in found]

    def only_judges(self, start: Node) -> bool:
        """Whether no result of a theorem depends on it."""
        reached = self.distances(start)
        makes = {f"lrdyn.verification.{name}" for name in PRODUCING}
        return not any(node in self.produced or node[0] in makes for node in reached)

    def scenarios_of(self, start: Node) -> set[str]:
        """Ids of the scenarios whose results depend on it."""
        return {self.produced[node] for node in self.distances(start) if node in self.produced}

    def claims_of(self, start: Node) -> set[str]:
        """Ids of the claims that reach it, of those whose id stands in the source."""
        return {self.claims[node] for node in self.distances(start) if node in self.claims}


def _modules(root: Path) -> Iterator[Module]:
    for top in SOURCES:
        for path in sorted((root / top).rglob("*.py")):
            relative = path.relative_to(root)
            if "data" in relative.parts[1:2] and top == "tests":
                continue
            name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            tree = ast.parse(path.read_text())
            package = path.name == "__init__.py"
            imports = _imports(tree, name, package)
            loops, listed = _loops(tree)
            listed = tuple(word for word in listed if word in imports)
            yield Module(name, package, relative.as_posix(), _top(tree), imports, loops, listed)


def _top(tree: ast.Module) -> dict[str, list[ast.AST]]:
    """Name -> what defines or changes it, at the top of a module."""
    found: dict[str, list[ast.AST]] = defaultdict(list)
    for node in tree.body:
        for inner in ast.walk(node) if isinstance(node, ast.If | ast.Try | ast.With) else [node]:
            match inner:
                case ast.FunctionDef(name) | ast.ClassDef(name) | ast.AsyncFunctionDef(name):
                    found[name].append(inner)
                case ast.Assign(targets):
                    for target in targets:
                        for one in ast.walk(target):
                            if isinstance(one, ast.Name):
                                found[one.id].append(inner)
                case ast.AnnAssign(ast.Name(name)) | ast.AugAssign(ast.Name(name)):
                    found[name].append(inner)
                case ast.For():  # it fills what it calls methods of
                    for call in ast.walk(inner):
                        chain = _chain(call.func) if isinstance(call, ast.Call) else []
                        if chain and chain[0] in found:
                            found[chain[0]].append(inner)
    return dict(found)


def _loops(tree: ast.Module) -> tuple[frozenset[str], tuple[str, ...]]:
    """Names that loops bind, and names that stand in a tuple or list."""
    bound, listed = set(), []
    for node in ast.walk(tree):
        match node:
            case ast.For(ast.Name(name)) | ast.comprehension(ast.Name(name)):
                bound.add(name)
            case ast.Tuple(several) | ast.List(several):
                listed += [one.id for one in several if isinstance(one, ast.Name)]
    return frozenset(bound), tuple(dict.fromkeys(listed))


def _imports(tree: ast.Module, name: str, package: bool) -> dict[str, tuple[str, str]]:
    found = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names):
                for alias in names:
                    whole = alias.asname is not None
                    found[alias.asname or alias.name.split(".")[0]] = (
                        (alias.name, "") if whole else (alias.name.split(".")[0], "")
                    )
            case ast.ImportFrom(module, names, level):
                base = module or ""
                if level:
                    parents = name.split(".")
                    parents = parents[: len(parents) - level + package]
                    base = ".".join([*parents, *([module] if module else [])])
                elif module is not None and "." not in module and module in ("runs", "oracles"):
                    base = f"tests.{module}"
                for alias in names:
                    found[alias.asname or alias.name] = (base, alias.name)
    return found


def _computed(part: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it, but for annotations, which need nothing of what they name."""
    yield part
    for field, value in ast.iter_fields(part):
        if field not in ("annotation", "returns"):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, ast.AST):
                    yield from _computed(one)


def _chain(node: ast.AST) -> list[str]:
    """The words of a dotted name; nothing of another expression."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    return [node.id, *reversed(words)] if isinstance(node, ast.Name) else []


def _tests(module: Module, what: str) -> Iterator[str]:
    for node in module.names.get(what, ()):
        if isinstance(node, ast.FunctionDef) and what.startswith("test_"):
            yield what
        elif isinstance(node, ast.ClassDef) and what.startswith("Test"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test_"):
                    yield f"{what}::{inner.name}"


def _words(module: Module, what: str) -> set[str]:
    """Arguments, and the last words of names."""
    return {
        word
        for part in module.names.get(what, ())
        for node in ast.walk(part)
        for word in ([node.arg] if isinstance(node, ast.arg) else _chain(node)[-1:])
    }


def _examples(module: Module, what: str) -> Iterator[str]:
    """Names of the docstrings with an example: of a function, a class and its methods."""
    for node in module.names.get(what, ()):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for path, one in _documented(node, node.name):
                if ">>>" in (ast.get_docstring(one, clean=False) or ""):
                    yield path


def _documented(
    node: ast.FunctionDef | ast.ClassDef, path: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.ClassDef]]:
    yield path, node
    if isinstance(node, ast.ClassDef):
        for inner in node.body:
            if isinstance(inner, ast.FunctionDef):
                yield f"{path}.{inner.name}", inner
