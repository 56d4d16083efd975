"""Studies: what trains is one precision, kept, continued, and judged over seeds above 0."""

import dataclasses
import json
import signal
import time

import numpy as np
import pytest
from scipy import stats

import lrdyn
from docs.examples import training
from lrdyn.studies import studies
from lrdyn.verification.judging.judging import LOST, TOO_FEW_SEEDS
from lrdyn.verification.stating.statement import Finding, Study
from tests import programs
from tests.runs import ROOT, results_of, started, verdict_of

EXAMPLE = ROOT / "docs" / "examples" / "training.py"
SMALL = ("--width", "10", "--steps", "40")
LONG = ("--width", "10")
"""Steps enough to come to rest."""
CACHE = programs.of_command("teacher")
"""Programs that the runs of the example share."""


def entries(folder):
    return {claim["id"]: claim for claim in verdict_of(folder)["claims"]}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """The example with seeds 0 to 3, in a process of its own."""
    out = tmp_path_factory.mktemp("several")
    words = (EXAMPLE, *LONG, "--seed", "0", "--seeds", "4", "--out", out)
    with started(*words, cwd=out, cache=CACHE) as process:
        text, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return out, text, errors


def test_a_study_trains_in_float32_and_judges_its_identity_in_both(several):
    out, text, _ = several
    claims = entries(out)
    assert list(claims["rank_of_a_step"]["judged"]) == ["float32", "float64"]
    assert list(claims["in_the_teachers_rank"]["judged"]) == ["float32"]
    assert results_of(out, "/learned")["update"].dtype == np.float32
    (heading,) = (line for line in text.splitlines() if line.startswith("claim "))
    assert heading.split()[5] == "float64"


def test_seed_0_is_never_judged(several):
    out, _, _ = several
    claims = entries(out)
    (drawn,) = claims["share"]["judged"].values()
    assert (drawn["drawn"], drawn["judged"]) == (4, 3)
    shares = results_of(out, "/learned")["share"].sel(seed=[1, 2, 3]).values
    finding = claims["share"]["finding"]
    assert finding["seeds"] == 3
    assert finding["value"] == pytest.approx(np.mean(shares))
    assert finding["spread"] == pytest.approx(np.std(shares, ddof=1))
    assert finding["expected"] == "above 0.9"
    assert finding["came_true"] is bool(np.mean(shares) > 0.9)
    low, high = finding["interval"]  # of the only finding that states an expectation
    wanted = stats.t.interval(0.95, 2, np.mean(shares), stats.sem(shares.ravel()))
    assert (low, high) == pytest.approx(wanted)
    assert high < 0.9
    assert (finding["outcome"], finding["rest"]) == ("below 0.9", "at rest")
    claim = claims["in_the_teachers_rank"]
    assert claim["worst_case"] == {"width": 10, "learning_rate": 0.6}
    assert claim["p"] == claim["residual"]


def test_a_finding_decides_nothing(several):
    finding = entries(several[0])["share"]
    assert (finding["kind"], finding["holds"], finding["tolerance"]) == ("finding", None, None)
    assert finding["finding"]["came_true"] is False
    (row,) = (line for line in several[1].splitlines() if line.startswith("share "))
    assert row.endswith("above 0.9  below 0.9 (at rest)")


def test_a_claim_with_too_few_seeds_is_open_and_so_is_its_control(command_line, tmp_path):
    status, text, _ = command_line(training.TEACHER, *SMALL, "--out", tmp_path)
    assert status == 0  # the identity carries the verdict, with one seed
    assert verdict_of(tmp_path)["config"]["seed"] == 1
    claims = entries(tmp_path)
    for name in ("in_the_teachers_rank", "last_directions"):
        assert claims[name]["holds"] is None
        assert claims[name]["cases"] == 0
        assert claims[name]["hypotheses_met"] is False
        assert TOO_FEW_SEEDS in claims[name]["judged"]["float32"]["left_out"]
    assert text.count(TOO_FEW_SEEDS) == 2
    assert not (tmp_path / "checkpoints").exists()


def test_a_control_by_another_array_must_fail(command_line, tmp_path):
    same = dataclasses.replace(
        training.LEARNED.controls[0], swap=lambda theory, run: (run.share, run.share)
    )
    learned = dataclasses.replace(training.LEARNED, controls=(same,))
    study = Study("teacher", "", training.TEACHER.flags, (training.ONE_STEP, learned))
    status, *_ = command_line(study, "--steps", "10000", "--seeds", "4", "--out", tmp_path)
    assert entries(tmp_path)["in_the_teachers_rank"]["holds"]
    assert entries(tmp_path)["last_directions"]["holds"] is False
    assert status == 1


def test_when_all_trainings_are_lost_the_verdict_is_open(command_line, tmp_path):
    words = (*SMALL, "--learning-rate", "1e6", "--out", tmp_path, "--seeds", "3")
    status, text, errors = command_line(training.TEACHER, *words)
    assert status == 4
    assert errors.count("diverged at step") == 3
    assert f"in_the_teachers_rank: undecided, {LOST} (1)" in text
    finding = entries(tmp_path)["share"]["finding"]
    assert (finding["value"], finding["seeds"]) == (None, 0)


def test_when_one_is_lost_the_others_go_on(command_line, tmp_path):
    words = ("--learning-rate", "1e6", "0.6", "--out", tmp_path, "--seeds", "3")
    status, _, errors = command_line(training.TEACHER, *LONG, *words)
    assert errors.count("diverged at step") == 3
    claim = entries(tmp_path)["in_the_teachers_rank"]
    assert (claim["cases"], claim["cases_total"]) == (1, 2)
    assert status in (0, 1)


def equal(first_folder, second_folder):
    """Whether two folders of results hold the same numbers."""
    for group in ("/", "/learned"):
        first, second = (results_of(folder, group) for folder in (first_folder, second_folder))
        for name in first.data_vars:
            np.testing.assert_array_equal(first[name], second[name])


def test_a_killed_study_ends_with_the_bits_of_one_that_was_not(tmp_path):
    """Killed three times, at moments that differ from run to run."""
    settings = (*SMALL, "--seed", "0", "--seeds", "4")
    words = (EXAMPLE, *settings, "--out", tmp_path / "whole")
    with started(*words, cwd=tmp_path, cache=CACHE) as process:
        process.communicate(timeout=300)
    words = (EXAMPLE, *settings, "--checkpoint-every", "7", "--out", tmp_path / "killed")
    log = "killed/teacher/*/metrics.csv"
    for _ in range(3):
        with started(*words, cwd=tmp_path, cache=CACHE) as process:
            lines = _lines(tmp_path, log)
            while process.poll() is None and _lines(tmp_path, log) <= lines + 3:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
    with started(*words, cwd=tmp_path, cache=CACHE) as process:
        _, errors = process.communicate(timeout=300)
    # A training of so few steps has not come to rest.
    assert process.returncode == 4, errors
    equal(tmp_path / "whole", tmp_path / "killed")


def _lines(folder, pattern):
    return sum(len(path.read_text().splitlines()) for path in folder.glob(pattern))


def test_ctrl_c_says_what_to_type(tmp_path):
    words = (EXAMPLE, "--steps", "1000000", "--out", tmp_path)
    with started(*words, cwd=tmp_path, cache=CACHE) as process:
        while not _lines(tmp_path, "teacher/*/metrics.csv"):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("error: interrupted; finished parts are kept")
    assert "training.py --steps 1000000" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--precision", "tf32"), "--precision: got 'tf32' on a cpu, which has none, wanted"),
        (("--precision", "bfloat16"), "on a cpu, whose products are float32, wanted 'highest'"),
        (("--precision", "half"), "--precision: got 'half', wanted one of"),
        (("--checkpoint-every", "0"), "--checkpoint-every: got '0', wanted an integer >= 1"),
        (("--data-dir", ""), "--data-dir: got '', wanted a folder"),
    ],
)
def test_bad_input_writes_nothing(command_line, tmp_path, words, message):
    status, _, errors = command_line(training.TEACHER, *words, "--out", tmp_path / "out")
    assert status == 2
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_missing_data_are_named(command_line, tmp_path, monkeypatch):
    from lrdyn.data import sets
    from lrdyn.studies.weight_updates import WEIGHT_UPDATES

    monkeypatch.setattr(sets, "mnist_file", lambda: ())
    monkeypatch.setenv("XDG_CACHE_HOME", "c")
    monkeypatch.delenv("LRDYN_DATA", raising=False)
    status, _, errors = command_line(WEIGHT_UPDATES, "--data", "cifar10", "--data-dir", "here")
    assert status == 2
    assert "lrdyn data download cifar10" in errors
    assert "here" in errors
    status, _, errors = command_line(WEIGHT_UPDATES)
    assert status == 2
    assert "mnist" in errors.lower()


def test_axes_that_do_not_fit_are_named_where_the_training_is_written(command_line):
    """Not at what measures nothing in its place."""

    def learn(case, keeper):
        return training.learn(case, keeper)._replace(share=np.ones(2))

    wrong = dataclasses.replace(training.LEARNED, train=learn)
    study = dataclasses.replace(training.TEACHER, scenarios=(training.ONE_STEP, wrong))
    status, _, errors = command_line(study, "--steps", "1", "--seeds", "1")
    assert status == 2
    assert "test_studies.py" in errors
    assert "'share'" in errors


def test_an_edited_study_has_another_folder():
    from lrdyn.studies import weight_updates
    from lrdyn.verification.stating import sources

    files = {path.name for path in sources._files([weight_updates.EDGE.measure])}
    assert {"edge.py", "pictures.py", "classifier_claims.py", "setting.py"} <= files


def test_a_study_begins_with_an_identity():
    with pytest.raises(ValueError, match="got a training first"):
        Study("t", "", training.TEACHER.flags, (training.LEARNED,))


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"above": 1.0, "below": 2.0}, "got 2 of above, below and within, wanted at most one"),
        ({"above": 1.0, "within": (0.0, 2.0)}, "got 2 of above, below and within"),
        ({"within": (2.0, 0.0)}, "wanted low < high"),
        ({"source": 1.0}, "got source=1, wanted it on the side of above or below"),
        ({"above": 1.0, "source": 1.0}, "got source=1, wanted it on the side"),
        ({"below": 1.0, "source": 2.0}, "got source=2, wanted it on the side"),
        ({"within": (0.0, 2.0), "source": 1.0}, "got source=1, wanted it on the side"),
    ],
)
def test_an_expectation_has_one_side_and_its_source_stands_on_it(expected, message):
    with pytest.raises(ValueError, match=message):
        Finding("a", "", lambda outcome: np.zeros(1), lambda theory, run: (), **expected)


def test_saved_results_are_judged_again(several, command_line):
    out, text, _ = several
    (folder,) = (out / "teacher").iterdir()
    before = json.loads((folder / "verdict.json").read_text())
    status, again, _ = command_line(training.TEACHER, "--judge", folder)
    assert status == {True: 0, False: 1, None: 4}[before["holds"]]
    after = json.loads((folder / "verdict.json").read_text())
    assert after["claims"] == before["claims"]
    assert again.splitlines()[2] == text.splitlines()[2]


def test_in_python_a_study_is_verified_like_a_theorem():
    result = lrdyn.verify(training.TEACHER, width=10, steps=5, precision="highest")
    assert result.verdict["holds"]
    assert result.verdict["config"]["precision"] == "highest"


@pytest.mark.parametrize("study", studies(), ids=lambda study: study.name)
def test_every_training_has_a_claim_over_three_seeds_or_more_or_findings(study):
    for scenario in study.scenarios[1:]:
        if scenario.trains:
            claims = [claim for claim in scenario.claims if claim.kind == "statistical"]
            assert claims or scenario.findings
            assert all(claim.seeds >= 3 and claim.tolerance == 0.01 for claim in claims)
            assert {c.claim for c in scenario.controls} >= {claim.id for claim in claims}
