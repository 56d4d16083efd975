"""The page of findings says what committed verdicts say."""

import pytest

from docs import fidelity, findings
from lrdyn.registry import REGISTRY
from tests.runs import ROOT

ROW = findings.Row("", "holds", ["one/a", "one/b=above 0"], "", "", "", "")


@pytest.fixture
def made(monkeypatch):
    """A record, the same whatever its name is."""
    made = {
        "a": {"id": "a", "holds": True, "residual": 1e-16, "cases": 7},
        "b": {"id": "b", "finding": {"outcome": "above 0", "value": 0.461, "interval": [0.4, 0.5]}},
    }
    monkeypatch.setattr(findings, "entries", lambda name: made)
    return made


def test_a_row_is_not_told_where_a_claim_is_false_or_open_or_a_finding_came_out_otherwise(made):
    assert ROW.outcome() == "holds"
    for holds in (False, None):
        made["a"]["holds"] = holds
        assert ROW.outcome() == "not told"
    made["a"]["holds"] = True
    made["b"]["finding"]["outcome"] = "still moving"
    assert ROW.outcome() == "not told"


def test_numbers_of_a_row_are_those_of_the_verdict(made):
    row = ROW._replace(found="R = {x/b:.2f} ({x/b/low:.1f} to {x/b/high:.1f}), {x/a/cases:d}")
    assert row.text() == "R = 0.46 (0.4 to 0.5), 7"


@pytest.mark.parametrize("name", REGISTRY)
def test_a_verdict_is_kept_of_each_theorem_and_stale_once_its_theorem_is_another(name, monkeypatch):
    monkeypatch.setattr(findings, "source_digest", lambda *_: findings.record(name)["sources"])
    page = f"{name} at {findings.revision(name)}"
    assert findings.marked_stale(page) == page
    monkeypatch.setattr(findings, "source_digest", lambda *_: "of other files")
    assert findings.marked_stale(page) == f"{page} (edited since)"


def test_what_a_row_links_to_is_there():
    for row in findings.rows():
        page, _, anchor = row.page.partition("#")
        text = (ROOT / "docs" / page).read_text()
        headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
        assert not anchor or anchor in {h.lower().replace(" ", "-") for h in headings}


def test_a_source_stands_beside_each_item_of_the_survey():
    _, *rows = fidelity.table()
    assert all(source and here for _, here, source, *_ in rows)
