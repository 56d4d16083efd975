"""Docstrings of the library as reStructuredText, read from its files without importing them.

A signature is shown as it is written: ``Float[Array, "depth d d"]`` and ``Weights`` say more than
what they are at run time.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from sphinx.config import Config
from sphinx.ext.napoleon import GoogleDocstring

ROOT = Path(__file__).resolve().parents[2]
PROTECTED = re.compile(r"(``.+?``|:[\w:]+:`[^`]+`|`[^`]+`_{0,2}|^ *\* )", re.S | re.M)
"""Literals and roles, in which nothing is escaped."""


class Entry(NamedTuple):
    """A class, function or value, where it is defined."""

    module: str
    name: str
    node: ast.stmt
    docstring: str

    @property
    def summary(self) -> str:
        """Its first paragraph."""
        return " ".join(self.docstring.partition("\n\n")[0].split())


@cache
def tree(module: str) -> ast.Module:
    """The syntax tree of a module."""
    place = ROOT / module.replace(".", "/")
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(path.read_text())


def module_docstring(module: str) -> str:
    """What the head of a module says."""
    return ast.get_docstring(tree(module)) or ""


@cache
def definitions(module: str) -> dict[str, Entry]:
    """The classes, functions and documented values of a module, by name."""
    entries = {}
    body = tree(module).body
    for node, docstring in zip(body, docstrings_behind(body), strict=True):
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                name, docstring = node.name, ast.get_docstring(node) or ""
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                pass
            case _:
                continue
        entries[name] = Entry(module, name, node, docstring)
    return entries


def docstrings_behind(body: list[ast.stmt]) -> Iterator[str]:
    """For each statement the string that follows it: that is how values are documented."""
    for following in (*body[1:], None):
        match following:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text
            case _:
                yield ""


def exports(module: str) -> dict[str, Entry]:
    """The names that a package hands out with ``from x import y as y``, where they are defined."""
    names = {}
    for node in tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if alias.asname == alias.name:
                    names[alias.name] = found(node.module, alias.name)
    return names


def found(module: str, name: str) -> Entry:
    """What a name of a module is, which may have it from another one."""
    if entry := definitions(module).get(name):
        return entry
    for node in tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    return found(node.module, alias.name)
    raise LookupError(f"{module}.{name}")


# reStructuredText -------------------------------------------------------------------------------


def directive(entry: Entry, note: str, config: Config) -> str:
    """How a name is documented: its signature, its docstring, and a note behind the first line."""
    first, gap, rest = entry.docstring.partition("\n\n")
    docstring = "\n\n".join(filter(None, (first, note))) + gap + rest
    match entry.node:
        case ast.FunctionDef() as node:
            return _function("function", node, entry.name, docstring, config)
        case ast.ClassDef() as node:
            return _class(node, docstring, config)
        case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
            text = ast.unparse(value)
            options = [f":value: {text}"] if len(text) <= 300 else []
            return _block("data", entry.name, options, docstring, config)
        case other:
            raise TypeError(type(other).__name__)


def _function(kind: str, node: ast.FunctionDef, name: str, docstring: str, config: Config) -> str:
    options = []
    arguments = node.args
    if kind == "method":
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if decorators & {"property", "cached_property", "functools.cached_property"}:
            options = [f":type: {ast.unparse(node.returns)}"] if node.returns else []
            return _block("property", name, options, docstring, config)
        options = [f":{d}:" for d in ("classmethod", "staticmethod") if d in decorators]
        if "staticmethod" not in decorators:
            arguments = ast.arguments(
                posonlyargs=arguments.posonlyargs,
                args=arguments.args[1:],
                vararg=arguments.vararg,
                kwonlyargs=arguments.kwonlyargs,
                kw_defaults=arguments.kw_defaults,
                kwarg=arguments.kwarg,
                defaults=arguments.defaults,
            )
    returned = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    signature = f"{name}({ast.unparse(arguments)}){returned}"
    return _block(kind, signature, options, docstring, config)


def _class(node: ast.ClassDef, docstring: str, config: Config) -> str:
    text = _block("class", node.name, [], docstring, config)
    members = []
    for member, docstring in zip(node.body, docstrings_behind(node.body), strict=True):
        match member:
            case ast.AnnAssign(target=ast.Name(id=name)) if not name.startswith("_"):
                options = [f":type: {ast.unparse(member.annotation)}"]
                if member.value is not None and len(default := ast.unparse(member.value)) < 60:
                    options.append(f":value: {default}")
                members.append(_block("attribute", name, options, docstring, config))
            case ast.FunctionDef(name=name) if not name.startswith("_"):
                if "overload" not in {ast.unparse(d) for d in member.decorator_list}:
                    docstring = ast.get_docstring(member) or ""
                    members.append(_function("method", member, name, docstring, config))
    return "\n".join([text, *(_indented(member) for member in members)])


def _block(kind: str, signature: str, options: list[str], docstring: str, config: Config) -> str:
    head = [f".. py:{kind}:: {signature}", *(f"   {option}" for option in options)]
    return "\n".join([*head, "", _indented(as_rst(docstring, config)), ""])


def _indented(text: str) -> str:
    return "\n".join(f"   {line}" if line else "" for line in text.splitlines())


def as_rst(docstring: str, config: Config) -> str:
    """A docstring in the house form as reStructuredText."""
    lines = with_formulas(inspect.cleandoc(docstring).splitlines())
    return str(HouseDocstring(lines, config))


class HouseDocstring(GoogleDocstring):
    """Google's form, but for a colon under Returns: it sets no type off, annotations have that."""

    def _consume_returns_section(
        self, preprocess_types: bool = False
    ) -> list[tuple[str, str, list[str]]]:
        lines = self._dedent(self._consume_to_next_section())
        return [("", "", lines)] if lines else []


def with_formulas(lines: list[str]) -> list[str]:
    """Indented blocks, which are formulas and tables of text, become literal ones.

    In all others signs that reStructuredText would take for its own are escaped.
    """
    result: list[str] = []
    paragraph: list[str] = []
    literal: int | None = None  # indentation of the literal block
    above = 0  # indentation of the paragraph above

    def end_of_paragraph() -> None:
        result.extend(escaped("\n".join(paragraph)).splitlines())
        paragraph.clear()

    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.lstrip().startswith(">>>") and not is_example(paragraph):
            end_of_paragraph()
            paragraph.append(line)
        elif not line:
            end_of_paragraph()
            result.append(line)
        elif literal is not None and indent >= literal:
            result.append(line)
        elif not paragraph and indent > above and result:
            literal = indent
            written = next((earlier for earlier in reversed(result) if earlier), "").endswith("::")
            # As a paragraph of its own the marker leaves no colon behind.
            result += [line] if written else [" " * above + "::", "", line]
        else:
            literal, above = None, indent
            paragraph.append(line)
    end_of_paragraph()
    return result


def is_example(paragraph: list[str]) -> bool:
    """Whether a paragraph is a session of Python."""
    return bool(paragraph) and paragraph[0].lstrip().startswith(">>>")


def escaped(text: str) -> str:
    """Text in which nothing but literals, roles, examples, tables and lists is markup."""
    if is_example(text.splitlines()) or text.lstrip().startswith("=="):
        return text
    parts = PROTECTED.split(text)
    parts[::2] = [re.sub(r"([|*\\])|(?<=\w)(_)(?!\w)", r"\\\1\2", part) for part in parts[::2]]
    return "".join(parts)
