"""Random configurations: what is drawn, how a log goes on after a kill, what may not fall."""

import json

import numpy as np
import pytest

from lrdyn import cli
from lrdyn.registry import theorem
from lrdyn.verification.searching.domains import NEAR
from lrdyn.verification.searching.random_settings import SHAPES, draw_shapes, shape_flags
from tests.faults import configurations
from tests.faults.configurations import FILE, POINTS, Note

pytestmark = pytest.mark.tools

SEED = 7
COMMITTED = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", ["theorem1", "completion", "lora"])
def test_commands_share_few_programs_and_half_are_inside(name):
    experiment = configurations.without_controls(theorem(name))
    known = draw_shapes(experiment, SEED, POINTS)
    assert len(known) == SHAPES
    deciding = {flag.name for flag in shape_flags(experiment)}
    inside = 0
    for n in range(1, 61):
        words = configurations.command(experiment, known, SEED, n)
        assert words == configurations.command(experiment, known, SEED, n)
        settings = cli.parse(experiment, words).run.settings
        assert {k: np.ravel(settings[k]).tolist() for k in deciding} in known
        assert np.prod([np.size(settings[f.name]) for f in experiment.flags]) == POINTS
        inside += all(near(flag, settings[flag.name]) for flag in experiment.flags)
    assert 15 <= inside < 60  # others have the shapes of an edge, or numbers far away


def near(flag, values):
    """Whether numbers are as close to the quick preset as those of commands inside."""
    if flag.type is not float or flag.from_usual:
        return True
    usual = [number for number in (*flag.quick, 1.0) if number]  # in the place of 0 it is 1
    decades = np.abs(np.log10(np.array([v for v in values if v])[:, None]) - np.log10(usual))
    return bool(np.all(decades.min(axis=1, initial=9.0) <= NEAR + 1e-3))


def test_a_log_goes_on_behind_the_half_line_of_a_kill(tmp_path):
    log, note = tmp_path / "log", Note("lora", 1, 2, "held", {"held": 3}, ["one_step"])
    configurations.note_down(log, note)
    whole = log.read_text()
    log.write_text(whole + whole[:20])
    assert list(configurations.noted(log)) == [note]
    configurations.note_down(log, note._replace(command=3))
    assert [each.command for each in configurations.noted(log)] == [2, 3]
    assert list(configurations.noted(tmp_path / "none")) == []


def test_noted_commands_do_not_run_again(monkeypatch, tmp_path, capsys):
    started = []

    def ran(experiment, words, seed, n):
        started.append(n)
        return Note("lora", seed, n, "held", {"held": 3, "undecided": 1}, [])

    monkeypatch.setattr(configurations, "ran", ran)
    log = tmp_path / "log"
    configurations.notes_of("lora", 2, SEED, log)
    configurations.notes_of("lora", 3, SEED, log)
    configurations.notes_of("lora", 1, SEED + 1, log)
    assert started == [1, 2, 3, 1]
    assert "75 % judged" in capsys.readouterr().out


def test_what_is_judged_less_than_before_is_said():
    notes = [Note("lora", 1, n, "held", {"held": 6, "undecided": 2}, ["a", "b"]) for n in range(4)]
    before = configurations.record(notes)
    assert before["share"] == 0.75
    assert configurations.fallen(notes, before) == []
    fewer = [note._replace(points={"held": 5, "undecided": 3}) for note in notes]
    assert configurations.fallen(fewer, before) == [
        "62.5 % of the points are judged, and were 75.0 %"
    ]
    gone = [note._replace(claims=["a"]) for note in notes]
    assert configurations.fallen(gone, before) == ["no case of b is judged any more"]


def test_nothing_was_false_in_the_commands_that_are_committed():
    for name, found in COMMITTED["theorems"].items():
        assert found["ended"].keys() <= {"held", "undecided", "nothing applies"}, name
        assert len(found["first"].split()) == min(found["commands"], configurations.CHECKED)


def test_a_committed_command_judges_as_many_points_as_it_did():
    (note,) = configurations.notes_of("corollary1", 1, COMMITTED["seed"])
    assert configurations.fallen([note], COMMITTED["theorems"]["corollary1"]) == []
    assert configurations.judged_of(note)[0] > 0
