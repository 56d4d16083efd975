"""Docstrings: the first line stands alone."""

import ast
import re

import pytest

from tests.runs import ROOT

FILES = sorted(path for room in ("lrdyn", "referee") for path in (ROOT / room).rglob("*.py"))
RELATIVE = re.compile(r"The same\b|Of\b|That of\b|Those of\b|Those that\b|Those\b")
"""Beginnings of a first line that speaks of something outside of it."""
FORMULA = re.compile(r"[=^<>*/]|``")
VERBS = set(
    "Adam Add Allocate Ask Build Check Choose Close Compute Count Create Cut Descend Do Draw Find "
    "Finish Fit Get Give Ignore Keep Load Look Make Mark Measure Merge Name Open Parse Plot Print "
    "Put Raise Read Refuse Remove Report Return Run Save Say Show Split Start Stop Take Tell Test "
    "Train Turn Wait Warn Write".split()
)


def documented(tree):
    """Every class, function and module with a docstring, and its first line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text.splitlines()[0]


def amiss(line):
    """What is wrong with the first line of a docstring; empty if it stands alone."""
    words = line.split()
    if RELATIVE.match(line):
        return "speaks of what stands before it"
    if len(words) <= 3 and words[0] not in VERBS and not FORMULA.search(line):
        return "has neither a verb nor a formula"
    return ""


TREES = {path: ast.parse(path.read_text()) for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_first_line_stands_alone(path):
    wrong = {f"{name}: {line}": amiss(line) for name, line in documented(TREES[path])}
    assert not {line: why for line, why in wrong.items() if why}


@pytest.mark.parametrize(
    ("line", "stands"),
    [
        ("The same, for a batch.", False),
        ("Of the run.", False),
        ("That of W.", False),
        ("Number of points.", False),
        ("``W_L ... W_1``.", True),
        ("Read a file.", True),
        ("Number of points in the sweep.", True),
    ],
)
def test_a_line_that_leans_on_another_is_noticed(line, stands):
    assert (amiss(line) == "") == stands
