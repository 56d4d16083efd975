"""An item of the survey is a room and a line in the registry; everything else is found from there.

What cannot follow by itself is listed in `PLACES`: one test names all that a new theorem lacks.
"""

import importlib.util
import re

import pytest

import lrdyn
from lrdyn.registry import REGISTRY, theorem
from tests.runs import ROOT, TINY
from tests.test_docs import ROOMS


def text(path):
    return (ROOT / path).read_text() if (ROOT / path).is_file() else ""


def room(name):
    """The folder of a theorem's statement."""
    return REGISTRY.get(name, f"lrdyn.{name}.statement:").split(".")[1]


PLACES = {
    "lrdyn/ROOM/statement.py states a theorem of that name": lambda name: (
        name in REGISTRY and theorem(name).name == name
    ),
    "lrdyn/__init__.py exports the room": lambda name: room(name) in lrdyn.__all__,
    "tests/test_docs.py: the order of imports": lambda name: room(name) in ROOMS,
    "experiments/NAME.py runs it": lambda name: (
        "main(" in text(f"experiments/{name}.py")
        and importlib.util.find_spec(f"experiments.{name}") is not None
    ),
    "tests/runs.py: settings of a small run": lambda name: name in TINY,
    "notebooks/NAME.py explores it": lambda name: f"verify {name}" in text(f"notebooks/{name}.py"),
    "docs/results.md has what it measured (python -m docs.refresh)": lambda name: (
        f"experiments.{name}`" in text("docs/results.md")
    ),
    "docs/theorems/ has a page of it": lambda name: any(
        re.search(rf"^`python -m experiments\.{name}`", page.read_text(), re.M)
        for page in ROOT.glob("docs/theorems/*.md")
    ),
    "docs/theory.md leads to its pages": lambda name: (
        f"`python -m experiments.{name}`" in text("docs/theory.md")
    ),
    "docs/examples/referee.py recomputes a claim": lambda name: (
        f'"{name}":' in text("docs/examples/referee.py")
    ),
    "README.md: what it says": lambda name: f"| `{name}` |" in text("README.md"),
    "docs/commands.md: what `experiments all` prints": lambda name: bool(
        re.search(rf"^{name} +[0-9]+/[0-9]+ ", text("docs/commands.md"), re.M)
    ),
    "CONTRIBUTING.md: where a reader finds it": lambda name: (
        f"{room(name)}/" in text("CONTRIBUTING.md")
    ),
}


def lacking(name):
    """The places that do not know a theorem yet."""
    return [place for place, known in PLACES.items() if not known(name)]


def test_every_place_knows_every_theorem():
    assert {name: lacking(name) for name in REGISTRY} == {name: [] for name in REGISTRY}


def test_a_theorem_that_is_new_is_lacking_everywhere():
    assert lacking("theorem9") == list(PLACES)


@pytest.mark.parametrize("name", REGISTRY)
def test_a_room_has_its_own_formulas(name):
    """A statement stands beside what it is about, and its room can be imported alone."""
    module = importlib.import_module(f"lrdyn.{room(name)}")
    assert module.__doc__
