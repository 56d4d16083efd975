"""Every field of verdict.json and every kind of array of results.nc is changed: who sees it."""

import copy
import re
from pathlib import Path

import pytest

from tests import tampering
from tests.runs import finished

pytestmark = pytest.mark.tools

PAGE = Path(__file__).parents[1] / "docs/reviewing.md"


@pytest.fixture(scope="module", params=["lora", "corollary1"])
def run(request, tmp_path_factory):
    done = finished(request.param, tmp_path_factory.getbasetemp())
    assert done.process.returncode == 0, done.process.stderr
    into = tmp_path_factory.mktemp("changed") / "run"
    run = tampering.saved(done.folder, into)
    with tampering.computed_once(run):
        yield run


def test_every_change_of_a_field_of_a_verdict_is_seen(run):
    assert tampering.who_sees_the_verdict(run, run.verdict) == set()
    unseen, unseen_by_referee, done = [], set(), set()
    for place in tampering.fields(run.verdict):
        name = tampering.named(place, run.verdict)
        *above, last = place
        holder = run.verdict
        for step in above:
            holder = holder[step]
        for what, change in tampering.changes_of_a_field(holder[last]):
            if (name, what) in done:
                continue
            done.add((name, what))
            verdict = copy.deepcopy(run.verdict)
            inside = verdict
            for step in above:
                inside = inside[step]
            change(inside, last)
            seen = tampering.who_sees_the_verdict(run, verdict)
            if not seen:
                unseen.append((name, what))
            if tampering.REFEREE not in seen:
                unseen_by_referee.add(name)
    assert unseen == []
    # What somebody believes of a verdict first, a referee must see for itself.
    believed = {
        "holds",
        "name",
        "config.NAME",
        "results_sha256",
        "environment.NAME",
        "undecided.entry",
    }
    believed |= {f"claim.{field}" for field in ("holds", "residual", "cases", "judged.precision")}
    assert not believed & unseen_by_referee


@pytest.mark.parametrize("run", ["lora"], indirect=True)
def test_what_nobody_sees_of_changed_arrays_is_on_the_page(run):
    """Each row of the page is a kind of array and a change, and ends with a reason."""
    assert tampering.who_sees_the_arrays(run, {}) == set()
    found = {
        (text, what): tampering.who_sees_the_arrays(run, changed)
        for text, what, changed in tampering.array_changes(run)
    }
    unseen = {row for row, seen in found.items() if not seen}
    rows = re.findall(
        r"^\| ((?:scenario|other precision|case|control): .*?) \| (.*?) \| .+ \|$",
        PAGE.read_text(),
        re.M,
    )
    assert {*rows} == unseen
