"""An item is its room, a line in the registry, its command, its referee and its page."""

import importlib
import importlib.util

import pytest

from docs import refresh
from lrdyn.registry import REGISTRY, theorem
from referee.__main__ import referee_of
from tests.runs import ROOT


@pytest.mark.parametrize("name", REGISTRY)
def test_a_theorem_has_a_room_of_its_own(name):
    """A statement stands beside what it is about, and its room can be imported alone."""
    assert theorem(name).name == name
    assert importlib.import_module(f"lrdyn.{refresh.room_of(name)}").__doc__
    assert importlib.util.find_spec(f"experiments.{name}") is not None


@pytest.mark.parametrize("name", REGISTRY)
def test_a_theorem_has_a_referee_of_every_claim(name):
    stated = {s.id: {claim.id for claim in s.claims} for s in theorem(name).scenarios}
    assert {scenario: set(claims) for scenario, claims in referee_of(name).claims.items()} == {
        scenario: claims for scenario, claims in stated.items() if claims
    }


@pytest.mark.parametrize("name", REGISTRY)
def test_a_theorem_has_a_page(name):
    assert refresh.pages_of(name)


def test_a_theorem_without_a_page_is_named(monkeypatch):
    pages_of = refresh.pages_of
    monkeypatch.setattr(refresh, "pages_of", lambda name: name != "lora" and pages_of(name))
    (line,) = refresh.without_pages()
    assert line.startswith("lora: got no page, wanted one in docs/theorems")


@pytest.mark.parametrize(
    "page", refresh.marked_pages(), ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_the_tables_of_the_pages_are_those_of_the_registry(page):
    """Otherwise: ``make refresh``."""
    assert page.read_text() == refresh.refreshed(page.read_text())
