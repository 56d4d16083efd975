"""Every preset of every theorem, study and figure is one that a run takes.

``tests/faults/presets.py`` begins the paper presets, too.
"""

import pytest

from lrdyn.commands import example, figures, verify
from lrdyn.commands.ending import BAD_INPUT, FAULT
from lrdyn.commands.ending import run as ended
from lrdyn.figures.exhibits import missing_packages
from lrdyn.registry import theorems
from lrdyn.studies import studies, study
from lrdyn.system.messages import Fault
from lrdyn.verification.running import jobs
from lrdyn.verification.running.configuration import BadInput, run_of
from lrdyn.verification.runs.run_folder import describe_run
from lrdyn.verification.stating.mistakes import Lacking
from paper_figs import EXHIBITS
from tests.sentences import BERT, write_pairs
from tests.test_figures import TOY

EVERY = (*theorems(), *studies())
FIGURES = [(one, preset) for one in (*EXHIBITS, example.FIGURE) for preset in one.presets]


@pytest.mark.parametrize("preset", ["quick", "paper"])
@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.name)
def test_a_preset_is_parsed_and_every_point_of_it_checked(one, preset):
    run = verify.parse(one, ["--preset", preset]).run
    assert run.preset == preset
    for scenario in run.concerned.scenarios:
        plan = jobs.plan_claims(one, scenario, run.settings, (0,), "/", run.dtype)
        assert plan.points.size


@pytest.mark.parametrize(
    ("exhibit", "preset"), FIGURES, ids=[f"{one.name}-{preset}" for one, preset in FIGURES]
)
def test_the_runs_behind_a_figure_are_checked(exhibit, preset):
    if missing_packages(exhibit):
        pytest.skip(missing_packages(exhibit))
    assert exhibit.sources(**exhibit.presets[preset])


# A study of the encoder at hand ----------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    train, dev = (write_pairs(folder / f"{name}.csv", 300) for name in ("train", "dev"))
    return {"encoder": str(BERT), "train_file": str(train), "dev_file": str(dev)}


def test_a_preset_takes_the_layers_that_are_there_and_says_so(pairs):
    run = run_of(study("adapters"), preset="paper", **pairs)
    assert (run.settings["layers"], run.settings["length"]) == (2, 40)
    assert run.config["layers"] == 2


def test_layers_that_are_asked_for_are_not_changed(pairs):
    run = run_of(study("adapters"), preset="paper", layers=12, **pairs)
    with pytest.raises(BadInput, match="--layers: got 12, wanted at most 3"):
        describe_run(run)


def test_a_study_without_its_encoder_says_what_to_fetch():
    with pytest.raises(Lacking, match="run make encoder"):
        describe_run(run_of(study("adapters"), preset="paper", encoder="none"))


# A figure that fails ---------------------------------------------------------------------------


def that_raises(name, error):
    """A figure whose data raise this."""

    def sources(**settings):
        raise error

    return TOY.__class__(**{**vars(TOY), "name": name, "sources": sources})


LACKS = that_raises("lacks", Lacking("encoder: got none, wanted a folder: run make encoder"))
REFUSED = that_raises("refused", BadInput("--layers: got 12, wanted at most 6"))
BROKEN = that_raises("broken", ZeroDivisionError("division by zero"))
FULL = that_raises("full", OSError(28, "No space left on device"))


@pytest.fixture
def draw(tmp_path, capsys):
    """Draw these figures: exit status, output, error, and whether the last one is there."""

    def drawn(*exhibits, named=False):
        words = [one.name for one in exhibits] if named else []
        out = ["--out", str(tmp_path)]
        status = ended("figures", lambda: figures.main(exhibits, tmp_path, [*words, *out]))
        said = capsys.readouterr()
        return status, said.out, said.err, (tmp_path / "figures/toy.png").exists()

    return drawn


def test_a_figure_that_lacks_data_is_named_and_the_others_are_drawn(draw):
    status, out, err, there = draw(LACKS, TOY)
    assert (status, err, there) == (0, "", True)
    assert out.startswith("lacks: left out, encoder: got none, wanted a folder: run make encoder\n")


def test_a_named_figure_that_lacks_data_is_bad_input(draw):
    status, out, err, there = draw(LACKS, TOY, named=True)
    assert (status, there, out.startswith("lacks:")) == (BAD_INPUT, True, False)
    assert err == "figures: error: lacks: encoder: got none, wanted a folder: run make encoder\n"


def test_a_preset_that_is_refused_is_bad_input_after_the_others(draw):
    status, _, err, there = draw(REFUSED, LACKS, TOY)
    assert (status, there) == (BAD_INPUT, True)
    assert err == "figures: error: refused: --layers: got 12, wanted at most 6\n"


def test_a_fault_at_a_figure_is_one_after_the_others(draw):
    status, out, err, there = draw(REFUSED, BROKEN, TOY)
    assert (status, there) == (FAULT, True)
    assert "broken: failed, ZeroDivisionError (division by zero)" in out
    assert err.startswith("figures: error: broken (and refused): internal error (ZeroDivisionError")


def test_a_full_disk_ends_the_command_at_once(draw):
    status, _, err, there = draw(FULL, TOY)
    assert (status, there) == (FAULT, False)
    assert "No space left on device" in err


def test_a_fault_keeps_its_cause():
    error = figures._failure({"one": ZeroDivisionError("x")})
    assert isinstance(error, Fault)
    assert isinstance(error.__cause__, ZeroDivisionError)
