"""What the command of a theorem prints: for a person, in one line, for programs."""

import dataclasses
import json
import re
import runpy

import pytest

from lrdyn import __main__ as lrdyn_command
from lrdyn.registry import theorem as registered
from lrdyn.registry import theorems
from lrdyn.studies import studies
from tests.runs import ROOT
from tests.verification.test_theorem import MY_THEOREM

FLAGS = ("--dim", "2", "--rate", "0.2", "--seeds", "1")
OUTCOMES = {"holds": 0, "IS FALSE": 1, "is undecided": 4}


@pytest.fixture
def stated(tmp_path):
    """A theorem of one's own in a file, and the same with another outcome."""
    path = tmp_path / "my_theorem.py"
    path.write_text(MY_THEOREM)
    mine = runpy.run_path(str(path))["THEOREM"]

    def of(outcome):
        (scenario,) = mine.scenarios
        (claim,) = scenario.claims
        changed = {
            "holds": {},
            "IS FALSE": {"compares": lambda theory, run: (theory.exponential, run.decay)},
            "is undecided": {"undecided": lambda one: "too coarse: 100 %"},
        }[outcome]
        claims = (dataclasses.replace(claim, **changed),)
        return dataclasses.replace(mine, scenarios=(dataclasses.replace(scenario, claims=claims),))

    return of


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_last_line_alone(outcome, stated, command_line):
    status, out, _ = command_line(stated(outcome), *FLAGS, "-q")
    assert status == OUTCOMES[outcome]
    (line,) = out.splitlines()
    assert line.startswith(f"my_theorem {outcome}: results")


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_lines_of_json_are_the_verdict(outcome, stated, command_line, tmp_path):
    # --deterministic has something to say, which is no line of JSON.
    words = (*FLAGS, "--format", "json", "--deterministic")
    status, out, err = command_line(stated(outcome), *words)
    assert status == OUTCOMES[outcome]
    *entries, last = map(json.loads, out.splitlines())
    verdict = json.loads((tmp_path / last["file"]).read_text())
    assert entries == [{"theorem": "my_theorem", **entry} for entry in verdict["claims"]]
    assert last["holds"] is verdict["holds"]
    assert last["undecided"] == verdict["undecided"]
    assert err.startswith("my_theorem: ")


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_annotations_stand_at_the_line_of_the_file(outcome, stated, command_line, tmp_path):
    _, out, _ = command_line(stated(outcome), *FLAGS, "--format", "github")
    annotation = re.compile(r"::(\w+) file=([^,]+),line=(\d+),title=(.*?)::(.*)")
    found = list(filter(None, map(annotation.fullmatch, out.splitlines())))
    assert len(found) == len(out.splitlines())
    levels = [match[1] for match in found]
    assert set(levels) == ({"notice"} if outcome == "holds" else {"error"})
    assert "my_theorem" in found[-1][4]
    written = MY_THEOREM.splitlines()
    for match in found:
        about = match[4].partition("%3A ")[2] or "my_theorem"
        assert (tmp_path / match[2]).read_text() == MY_THEOREM
        assert about in written[int(match[3]) - 1]
        # A percent sign would begin an escape.
        assert not re.search("%(?!25|3A|0A|2C)", match[0])


def test_a_first_screen_has_the_claims_and_all_of_it_the_controls(stated, command_line):
    mine = stated("holds")
    _, first, _ = command_line(mine, *FLAGS)
    _, more, _ = command_line(mine, *FLAGS, "-v")
    assert mine.summary in first.splitlines()[0]
    assert "2 of 2 controls were seen to fail" in first
    for control in ("bent", "exponential_decay"):
        rows = [re.findall(rf"(?m)^{control} .*fails, as it must$", text) for text in (first, more)]
        assert [len(found) for found in rows] == [0, 1]
    for text in (first, more):
        assert len(re.findall(r"(?m)^decay .*holds$", text)) == 1


def test_judging_again_prints_as_the_run_did(stated, command_line, tmp_path):
    mine = stated("holds")
    for words in ((), ("-v",), ("-q",), ("--format", "json"), ("--format", "github")):
        _, ran, _ = command_line(mine, *FLAGS, *words)
        (folder,) = (tmp_path / "results" / "my_theorem").iterdir()
        status, again, _ = command_line(mine, "--judge", folder.relative_to(tmp_path), *words)
        assert status == 0, again
        if "json" not in words:  # which says who judged, and when
            assert again == ran


def test_judging_again_takes_no_settings(stated, command_line):
    status, _, err = command_line(stated("holds"), "--judge", "results", "--preset", "quick")
    assert status == 2, err
    assert "wanted none but --changed or --report" in err


def test_quiet_and_verbose_exclude_each_other(stated, command_line):
    status, _, err = command_line(stated("holds"), "-q", "-v")
    assert status == 2
    assert "-v/--verbose" in err


# Explaining ---------------------------------------------------------------------------------------


def explained(capsys, *words):
    """Status, output and errors of ``lrdyn explain``."""
    status = lrdyn_command.main(["explain", *words])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("name", [one.name for one in (*theorems(), *studies())])
def test_every_statement_is_explained_whole(name, capsys):
    stated = {one.name: one for one in (*theorems(), *studies())}[name]
    status, out, _ = explained(capsys, name)
    assert status == 0
    said = " ".join(out.split())
    for scenario in stated.scenarios:
        for entry in (*scenario.claims, *scenario.controls, *scenario.findings):
            assert entry.id in said
            assert " ".join(entry.statement.split()) in said
        for hypothesis in scenario.hypotheses:
            assert " ".join(hypothesis.split()) in said


def test_one_claim_is_explained_alone(capsys):
    _, out, _ = explained(capsys, "theorem2", "rho")
    claims = {claim.id for s in registered("theorem2").scenarios for claim in s.claims}
    assert {id for id in claims if re.search(rf"(?m)^    {id} \(", out)} == {"rho"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["theorm2"], "did you mean 'theorem2'?"),
        (["theorem2", "collaps"], "claim: got 'collaps' (did you mean 'collapse'?)"),
        ([], "NAME: got nothing"),
    ],
)
def test_what_cannot_be_explained_is_one_line(words, said, capsys):
    status, out, err = explained(capsys, *words)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_a_page_that_is_named_is_there():
    for one in (*theorems(), *studies()):
        assert (ROOT / one.page).is_file()
