"""Figures: the plotted numbers against theory, and the machinery that saves and compares them."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import matplotlib as mpl
import numpy as np
import pytest
import scipy.stats
import xarray as xr
from jaxtyping import Float
from PIL import Image

import lrdyn
from lrdyn import cli
from lrdyn.commands import figures
from lrdyn.commands.ending import BAD_INPUT, Help, Sameness
from lrdyn.figures import baselines, exhibits, plotting, rendering, tables, verdict_plots
from lrdyn.figures.exhibits import one_seed
from lrdyn.figures.rendering import render
from lrdyn.theorem2.statement import THEOREM2
from lrdyn.verification.judging.judging import residuals, worst_ratio
from lrdyn.verification.running.produce import produce
from lrdyn.verification.runs import run_folder
from lrdyn.verification.stating.claims import CLEARLY, tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.storing import files, results_file
from paper_figs import (
    BASELINES,
    EXHIBITS,
    fig03_svd_evolution,
    fig06_compression,
    reach,
    theorem2_sweep,
    tracking,
)
from tests import oracles
from tests.runs import numbers_of, verdict_of
from tests.test_tables import check_latex
from tests.tiny import Value

SAME, DIFFERS = Sameness(same=True), Sameness(same=False)

# --- the machinery, on a figure that costs nothing ---------------------------------------------


class Counted(NamedTuple):
    """What a run of the toy experiment leaves."""

    line: Float[np.ndarray, "curve t"] = ABSENT
    seconds: Float[np.ndarray, "t"] = ABSENT
    t: Float[np.ndarray, "t"] = ABSENT


def count_calls(slope) -> Counted:
    """Run the toy experiment, counting how often."""
    CALLS.append(slope)
    t = np.linspace(0, 1, 5)
    return Counted(
        line=np.stack([slope * t, 1e-3 * t]),
        seconds=np.random.default_rng(len(CALLS)).uniform(size=5),
        t=t,
    )


COUNTED = lrdyn.Experiment(
    "counted",
    "a line, and how often it is computed",
    (lrdyn.Flag("slope", (2.0,), swept=False),),
    (
        lrdyn.Scenario(
            "line",
            lambda key, slope: slope,
            measure=count_calls,
            measured=Counted,
            traced=False,
        ),
    ),
    data=lambda settings: DATA,
)


def read_lines(results, slope):
    found = one_seed(results["counted"])
    found["each"] = found.line.copy().assign_attrs(curve_along="t")
    found["seconds"].attrs["compare"] = 0
    found["steps"] = ("t", np.arange(5))
    return found.assign_coords(curve=["steep", "flat"]).assign_attrs(top=float(slope))


def draw_lines(dataset):
    figure, (ax,) = plotting.panels(["lines"])
    ax.plot(dataset.t.values, dataset.line.values.T)
    return figure


CALLS = []
DATA = []
PARTS: dict[str, Any] = {
    "name": "toy",
    "title": "Toy",
    "caption": "Slope {slope:g}, top {top:.1f}.",
    "sources": exhibits.run_sources(COUNTED),
    "numbers": read_lines,
    "presets": {"quick": {"slope": 2.0}, "paper": {"slope": 3.0}},
}
OTHER_WORDS: dict[str, Any] = {
    "name": "rows",
    "title": "Rows",
    "caption": "Slope {slope:g} of $y_1 = x$, 1 %.",
}
PLAIN = exhibits.Exhibit(**PARTS)
"""The toy figure without its picture, which takes longest."""
TOY = exhibits.Figure(**PARTS, draw=draw_lines, panels={"line": "a"})
(RUN,) = PLAIN.sources(**PLAIN.presets["quick"]).values()
ABSENT = dataclasses.replace(TOY, name="absent", needs={"nosuch_package": "pip install nosuch"})
NOSUCH = "the package nosuch_package (pip install nosuch)"
ROWS = exhibits.Table(
    **PARTS | OTHER_WORDS,
    tabulate=lambda d: tables.Grid(("part", "$t$", "$n_1$"), {"all": [["end", int(d.steps[-1])]]}),
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return render(TOY, tmp_path_factory.mktemp("drawn"))


@pytest.fixture
def baseline(drawn):
    return drawn.dataset.copy(deep=True)


def test_render_keeps_numbers_picture_and_caption_together(drawn):
    folder = drawn.paths[0].parent
    assert folder.name == "figures"
    names = ["toy.nc", "toy.pdf", "toy.png", "toy.txt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert set(drawn.paths) == set(folder.iterdir())
    assert drawn.paths[-1].read_text() == "toy. Toy. Slope 2, top 2.0.\n"
    saved = xr.load_dataset(drawn.paths[0], engine="h5netcdf")
    xr.testing.assert_identical(saved, drawn.dataset)


def test_a_pdf_depends_on_the_numbers_alone_and_matplotlib_stays_as_it_was(drawn, tmp_path):
    before, backend = dict(mpl.rcParams), mpl.get_backend()
    assert render(TOY, tmp_path).paths[2].read_bytes() == drawn.paths[2].read_bytes()
    assert dict(mpl.rcParams) == before
    assert mpl.get_backend() == backend


def test_a_figure_for_a_look_has_the_dots_of_a_screen_and_no_fonts(tmp_path):
    for for_a_look, dots in ((True, 150), (False, 300)):
        with plotting.style():
            figure, _ = plotting.panels(["one"])
        png, pdf = plotting.save(figure, tmp_path / "figure", for_a_look=for_a_look)
        with Image.open(png) as picture:
            assert picture.size[0] == plotting.TEXT_WIDTH * dots
        assert (b"/Subtype /Type3" in pdf.read_bytes()) == for_a_look


def test_a_panel_for_a_talk_lies_beside_the_figure(tmp_path, capsys):
    """Named after panel and width; nothing is compared with it, nor is a table cut."""
    out = ["--out", str(tmp_path)]
    words = ["toy", "--panel", "a", "--width", "3.25", "--format", "svg", *out]
    assert figures.main([TOY, ROWS], tmp_path, words) is None
    picture = tmp_path / "figures" / "toy_a_3.25in.svg"
    assert capsys.readouterr().out.splitlines()[-1] == f"toy: {picture}"
    assert 'width="234pt"' in picture.read_text()
    assert figures.main([TOY], tmp_path, ["toy", "--width", "column", *out]) is None
    assert (tmp_path / "figures" / "toy_column.pdf").exists()
    assert figures.main([TOY], tmp_path, ["baseline", "--yes", *out]) is None
    assert figures.main([TOY], tmp_path, ["check", *out]) == SAME


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["toy", "--panel", "z"], "--panel: got 'z' of toy, wanted one of the letters a"),
        (["toy", "--width", "page"], "--width: got 'page', wanted 'column', 'text' or inches"),
        (["toy", "--width", "-1"], "--width: got -1.0, wanted 'column', 'text' or inches"),
        (["toy", "--format", "jpg"], "--format: got 'jpg', wanted some of png, pdf, svg, pgf"),
        (["check", "toy", "--panel", "a"], "--panel: got it with check, wanted it with draw"),
        (["baseline", "--yes", "--width", "text"], "--width: got it with baseline, wanted it with"),
        (["rows", "--panel", "a"], "--panel, --width, --format: got 'rows', wanted a figure"),
    ],
)
def test_what_cannot_be_drawn_for_a_talk_is_one_line(words, said, tmp_path):
    with pytest.raises(cli.BadInput, match=f"^{re.escape(said)}"):
        figures.main([TOY, ROWS], tmp_path, [*words, "--out", str(tmp_path)])
    assert not any(tmp_path.iterdir())  # before anything is drawn


def test_a_figure_without_runs_cannot_be_long(tmp_path):
    """What takes long are runs: without them it would neither be drawn from results nor trained."""
    alone = exhibits.Figure(
        name="alone", title="", caption="", numbers=xr.Dataset, draw=draw_lines, long=True
    )
    with pytest.raises(cli.BadInput, match=r"^long: got True for alone, which has no sources"):
        render(alone, tmp_path)


def test_a_table_is_text_csv_and_latex_of_the_saved_numbers(tmp_path):
    done = render(ROWS, tmp_path)
    names = ["rows.nc", "rows.txt", "rows.csv", "rows.tex"]
    assert [path.name for path in done.paths] == names
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    text, values, latex = (path.read_text() for path in done.paths[1:])
    table = "  t    n_1\nall\n  end    4\n"
    assert text == f"{table}\nrows. Rows. Slope 2 of y_1 = x, 1 %.\n"
    assert values == "part,t,n_1\nall,end,4\n"
    assert r"\caption{Rows. Slope 2 of $y_1 = x$, 1 \%.}" in latex
    rendering.save(altered(done.dataset, "steps", -1, 7), done.paths[0])
    again = render(ROWS, tmp_path)
    assert not again.computed
    assert "end    7" in again.paths[1].read_text()


def test_a_table_that_cannot_be_written_leaves_the_old_files(tmp_path):
    render(ROWS, tmp_path)
    broken = dataclasses.replace(ROWS, caption="50 $")
    before = {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()}
    with pytest.raises(ValueError, match="dollar signs in pairs"):
        render(broken, tmp_path)
    assert {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == before


def test_figures_and_tables_share_one_command(tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    assert figures.main([TOY, ROWS], tmp_path, ["rows", "toy", *out]) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"rows: {tmp_path / 'figures/rows.txt'} (computed, ")
    assert lines[1:4] == ["  t    n_1", "all", "  end    4"]
    assert lines[4].startswith(f"toy: {tmp_path / 'figures/toy.png'} (saved results, ")
    assert figures.main([TOY, ROWS], tmp_path, ["baseline", "--yes", *out]) is None
    assert figures.main([TOY, ROWS], tmp_path, ["check", *out]) == SAME
    assert "not compared, since the machine decides: seconds" in capsys.readouterr().out
    path = tmp_path / "figures" / "rows.nc"
    rendering.save(altered(rendering.load(path), "steps", -1, 7), path)
    assert figures.main([TOY, ROWS], tmp_path, ["check", "rows", *out]) == DIFFERS
    assert "rows: steps[t=1.0]: got 7, wanted 4 (compared exactly)" in capsys.readouterr().out
    with pytest.raises(Help, match="  rows      Rows\n"):
        figures.main([TOY, ROWS], tmp_path, ["--help"])


def test_saved_numbers_are_used_until_settings_differ(tmp_path):
    presets = ("quick", "quick", "paper", "quick")
    assert [render(PLAIN, tmp_path, p).computed for p in presets] == [True, False, True, True]
    assert render(PLAIN, tmp_path, recompute=True).computed


def test_a_figure_draws_results_that_are_there(tmp_path):
    """Those that the command of the experiment left, and those of another figure or preset."""
    folder = run_folder.carry_out(RUN, tmp_path)[1]
    begin = len(CALLS)
    first = render(PLAIN, tmp_path)
    assert (first.computed, first.ran, len(CALLS)) == (True, (), begin)
    assert json.loads(first.dataset.sources) == {"counted": f"counted/{folder.name}"}
    kept = results_file.load(folder / results_file.NAME)["/"]
    np.testing.assert_array_equal(first.dataset.seconds, one_seed({"/": kept}).seconds)
    assert not render(ROWS, tmp_path).ran
    assert render(PLAIN, tmp_path, "paper").ran == ("counted",)
    assert not render(PLAIN, tmp_path).ran
    assert len(CALLS) == begin + 1
    assert render(PLAIN, tmp_path, recompute=True).ran == ("counted",)


def test_the_record_of_numbers_is_that_of_results(tmp_path):
    dataset = render(PLAIN, tmp_path).dataset
    root = results_file.read(RUN.folder(tmp_path) / results_file.NAME)["/"]
    assert dataset.attrs["environment"] == root.attrs["environment"]
    assert json.loads(dataset.environment) == results_file.environment("float64")
    assert json.loads(dataset.settings) == PLAIN.presets["quick"]
    assert {"schema", "config", "fixed", "scenario"}.isdisjoint(dataset.attrs)


def test_changed_sources_run_again(tmp_path, monkeypatch):
    source = tmp_path / "data.csv"
    monkeypatch.setattr(sys.modules[__name__], "DATA", [source])
    for text in ("1", "2"):
        source.write_text(text)
        assert render(PLAIN, tmp_path).ran == ("counted",)
        assert not render(PLAIN, tmp_path).computed


def test_a_changed_figure_reads_its_results_again(tmp_path):
    render(PLAIN, tmp_path)
    scope: dict[str, Any] = {"read_lines": read_lines}
    exec("def read(results, slope): return read_lines(results, slope)", scope)
    other = render(dataclasses.replace(PLAIN, numbers=scope["read"]), tmp_path)
    assert (other.computed, other.ran) == (True, ())


def flipped(content):
    """With one bit in the middle turned."""
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


@pytest.mark.parametrize("damage", [lambda b: b[:-100], flipped])
def test_damaged_results_are_named_set_aside_and_run_again(tmp_path, damage):
    lines = []
    folder = tmp_path / json.loads(render(PLAIN, tmp_path).dataset.sources)["counted"]
    path = folder / results_file.NAME
    content = damage(path.read_bytes())
    path.write_bytes(content)
    assert not render(PLAIN, tmp_path, report=lines.append).ran  # its numbers are there
    (tmp_path / "figures" / "toy.nc").unlink()
    assert render(PLAIN, tmp_path, report=lines.append).ran == ("counted",)
    (line,) = lines
    assert line.startswith(f"{path}: damaged (")
    assert path.with_name("results.nc.damaged").read_bytes() == content
    assert not render(PLAIN, tmp_path, report=lines.append).ran


def test_results_that_another_run_writes_are_not_set_aside(tmp_path):
    path = run_folder.carry_out(RUN, tmp_path)[1] / results_file.NAME
    assert run_folder.load_results(RUN, tmp_path) is not None
    path.write_bytes(b"new, its verdict is not there yet")
    with files.lock(path.parent):
        assert run_folder.load_results(RUN, tmp_path) is None
    assert path.exists()
    with pytest.warns(UserWarning, match="damaged"):
        assert run_folder.load_results(RUN, tmp_path) is None
    assert not path.exists()


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * len(b)]
)
def test_damaged_numbers_are_named_set_aside_and_computed_again(tmp_path, damage):
    lines = []
    path = render(PLAIN, tmp_path).paths[0]
    broken = damage(path.read_bytes())
    path.write_bytes(broken)
    assert render(PLAIN, tmp_path, report=lines.append).computed
    (line,) = lines
    assert str(path) in line
    assert path.with_name("toy.nc.damaged").read_bytes() == broken
    assert not render(PLAIN, tmp_path).computed


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, baseline):
    path = tmp_path / "toy.nc"
    rendering.save(baseline, path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        rendering.save(baseline.assign_attrs(bad=object()), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_equal_numbers_and_machine_dependent_ones_make_no_difference(tmp_path, baseline):
    again = render(PLAIN, tmp_path).dataset
    assert not np.array_equal(again.seconds, baseline.seconds)
    assert baselines.compare(again, baseline) == []


def altered(dataset, name, position, value):
    dataset = dataset.copy(deep=True)
    dataset[name].values[position] = value
    return dataset


STEEP = r"line\[curve=steep, t=1\.0\]: got "


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: altered(d, "line", (0, 4), 2.5), STEEP + "2.5, wanted 2, 2.5e-01 of its scale"),
        (lambda d: altered(d, "line", (0, 4), np.nan), STEEP + "nan, wanted 2, at 1 points"),
        (lambda d: altered(d, "line", (0, 4), np.inf), STEEP + "inf, wanted 2"),
        (lambda d: altered(d, "steps", 2, 7), r"steps\[t=0.5\]: got 7, wanted 2"),
        (lambda d: d.assign_coords(t=d.t + 1), r"t\["),
        (lambda d: d.drop_vars("line"), "line: missing"),
        (lambda d: d.assign(extra=1.0), "extra: .*does not have"),
        (lambda d: d.assign(line=d.line.T), "line: .*shape"),
        (lambda d: d.assign_attrs(settings="{}"), "settings: .*wanted"),
    ],
)
def test_a_difference_is_placed_and_measured(baseline, change, says):
    (difference,) = baselines.compare(change(baseline), baseline)
    assert re.match(says, str(difference))


def test_nan_where_the_baseline_has_nan_is_agreement(baseline):
    holed = altered(baseline, "line", (0, 4), np.nan)
    assert baselines.compare(holed, holed) == []
    (difference,) = baselines.compare(baseline, holed)
    assert "got 2, wanted nan" in difference.problem


def test_the_scale_is_that_of_the_variable_or_of_each_curve(baseline):
    # Small beside 2, not beside 1e-3.
    move = CLEARLY * baselines.allowed_difference("run", "float64") * 1e-3
    assert baselines.compare(altered(baseline, "line", (1, 4), 1e-3 + move), baseline) == []
    (difference,) = baselines.compare(altered(baseline, "each", (1, 4), 1e-3 + move), baseline)
    assert difference.curve == "each[curve=flat, t=1.0]"
    assert (difference.amount or 0) > (difference.tolerance or np.inf)


def test_a_variable_can_set_its_tolerance(baseline):
    baseline["line"].attrs["tolerance"] = 0.5
    assert baselines.compare(altered(baseline, "line", (0, 4), 2.5), baseline) == []


def test_check_computes_what_is_missing_and_keeps_other_presets(tmp_path):
    baselines.write_baseline(PLAIN, tmp_path / "a", tmp_path)
    assert baselines.check(PLAIN, tmp_path / "b", tmp_path)
    assert (tmp_path / "b/figures/toy.nc").exists()
    paper = render(PLAIN, tmp_path / "c", "paper").paths[0]
    before = paper.read_bytes()
    assert baselines.check(PLAIN, tmp_path / "c", tmp_path)
    assert paper.read_bytes() == before


def test_each_preset_has_a_baseline_of_its_own(tmp_path):
    lines, out = [], tmp_path / "out"
    baselines.write_baseline(PLAIN, out, tmp_path)
    assert not baselines.check(PLAIN, out, tmp_path, "paper", report=lines.append)
    assert lines == [f"toy: no baseline in {tmp_path / 'paper'}: `baseline toy` makes one"]
    baselines.write_baseline(PLAIN, out, tmp_path, "paper")
    quick, paper = (results_file.load(tmp_path / one / "toy.nc")["/"] for one in ("", "paper"))
    assert (quick.line.max(), paper.line.max()) == (2, 3)
    assert baselines.check(PLAIN, out, tmp_path, "paper")
    assert baselines.check(PLAIN, out, tmp_path)
    rendering.save(altered(paper, "line", (0, 4), 2.0), tmp_path / "paper/toy.nc")
    assert baselines.check(PLAIN, out, tmp_path)
    assert not baselines.check(PLAIN, out, tmp_path, "paper", report=lines.append)
    assert lines[-1].startswith("toy: line[curve=steep, t=1.0]: got 3, wanted 2")


def test_presets_of_equal_settings_and_those_of_a_long_figure_share_one(tmp_path):
    presets = PARTS["presets"]
    same = dataclasses.replace(PLAIN, presets=presets | {"paper": presets["quick"]})
    for exhibit in (same, dataclasses.replace(PLAIN, long=True)):
        assert {baselines.folder_of(exhibit, tmp_path, name) for name in presets} == {tmp_path}


def test_a_long_figure_keeps_the_verdict_of_its_run_and_some_of_its_losses(tmp_path):
    shown = dataclasses.replace(PLAIN, long=True, caption="Top {top:.1f}.")
    out = tmp_path / "out"
    path = tmp_path / "toy_record.json"
    rendering.numbers(PLAIN, out, {"slope": 2.0})
    folder = RUN.folder(out)
    rows = [f"a,{step},{name},{step / 2}" for step in range(1, 121) for name in ("loss", "rate")]
    (folder / "metrics.csv").write_text(
        "\n".join(["run,step,name,value", *rows, "b,1,loss,3.0", "b,2,loss,nan"])
    )
    baselines.write_baseline(shown, out, tmp_path)
    record = json.loads(path.read_text())["counted"]
    assert record["verdict"] == verdict_of(out)
    losses = [[step, step / 2] for step in range(1, 121, 3)]
    assert record["losses"] == {"a": losses, "b": [[1, 3.0]]}
    (folder / "metrics.csv").unlink()
    baselines.write_baseline(shown, out, tmp_path)
    assert json.loads(path.read_text())["counted"]["losses"] == {}
    # What is drawn from the committed numbers leaves the record as it is.
    baselines.write_baseline(shown, tmp_path / "none", tmp_path)
    assert json.loads(path.read_text())["counted"]["verdict"] == record["verdict"]


def test_numbers_say_how_long_they_took_where_nothing_was_there_before(tmp_path, monkeypatch):
    ticks = iter([10.0, 73.26, 100.0, 101.0])
    monkeypatch.setattr(rendering.time, "perf_counter", lambda: next(ticks))
    assert rendering.numbers(PLAIN, tmp_path, {"slope": 2.5}).dataset.seconds_taken == 63.3
    assert "seconds_taken" not in rendering.numbers(PLAIN, tmp_path, {"slope": 2.5}).dataset.attrs


def test_check_without_a_baseline_fails_and_a_damaged_one_stays(tmp_path):
    lines = []
    path, check = tmp_path / "toy.nc", partial(baselines.check, PLAIN, tmp_path / "out", tmp_path)
    assert not check(report=lines.append)
    path.write_bytes(b"")
    assert not check(report=lines.append)
    absent, damaged = lines
    assert "no baseline" in absent
    assert (
        damaged
        == f"toy: no baseline, {path}: damaged (got a damaged file (OSError), wanted netCDF)"
    )
    assert path.exists()


def baseline_of(text, tmp_path, monkeypatch, *words):
    """Write a baseline at a terminal where somebody types a text; without PNG and PDF of it."""
    monkeypatch.setattr(exhibits.Figure, "pictures", lambda *_: ())
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    monkeypatch.setattr(figures, "_has_terminal", lambda: True)
    return figures.main([TOY], tmp_path, ["baseline", *words, "--out", str(tmp_path / "out")])


def test_a_baseline_shows_what_changes_before_it_is_written(tmp_path, monkeypatch, capsys):
    path = tmp_path / "toy.nc"
    assert baseline_of("n\n", tmp_path, monkeypatch) is None
    assert "toy: a new baseline\ntoy: write it? [y/N] toy: the baseline stays" in (
        capsys.readouterr().out
    )
    assert not path.exists()
    assert baseline_of("y\n", tmp_path, monkeypatch) is None
    assert [p.suffix for p in sorted(tmp_path.glob("toy.*"))] == [".json", ".nc", ".png"]
    capsys.readouterr()
    assert baseline_of("yes\n", tmp_path, monkeypatch) is None
    assert "toy: no change beyond the tolerances\ntoy: write it?" in capsys.readouterr().out
    rendering.save(altered(rendering.load(path), "line", (0, 4), 1.5), path)
    before = path.read_bytes()
    assert baseline_of("", tmp_path, monkeypatch) is None
    out = capsys.readouterr().out
    assert "toy: panel (a): line[curve=steep, t=1.0]: got 2, wanted 1.5" in out
    assert path.read_bytes() == before
    assert baseline_of("", tmp_path, monkeypatch, "--yes") is None
    out = capsys.readouterr().out
    assert out.index("got 2, wanted 1.5") < out.index(f"toy: {path}")
    assert "write it?" not in out
    assert path.read_bytes() != before


def test_check_names_what_is_drawn_otherwise(tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert figures.main([TOY], tmp_path, ["baseline", "--yes", *out]) is None
    assert figures.main([TOY], tmp_path, ["check", *out]) == SAME

    def draw_green(dataset):
        figure = draw_lines(dataset)
        figure.axes[0].lines[1].set_color("green")
        return figure

    green = dataclasses.replace(TOY, draw=draw_green)
    capsys.readouterr()
    assert figures.main([green], tmp_path, ["check", *out]) == DIFFERS
    assert capsys.readouterr().out == (
        'toy: panel (a): curve 2: color: got "#008000", wanted "#d55e00"\n'
    )
    other = render(TOY, tmp_path).paths[1]  # a picture with text
    (tmp_path / "toy.png").write_bytes(other.read_bytes())
    assert figures.main([TOY], tmp_path, ["check", *out]) == DIFFERS
    assert capsys.readouterr().out.startswith("toy: picture: Image sizes do not match")
    (tmp_path / "toy.json").unlink()
    assert figures.main([TOY], tmp_path, ["check", *out]) == DIFFERS
    assert "nothing that can be read in" in capsys.readouterr().out


def test_all_figures_are_drawn_but_those_that_lack_something(tmp_path, capsys):
    assert figures.main([ABSENT, TOY], tmp_path, ["--out", str(tmp_path)]) is None
    out = capsys.readouterr().out
    assert f"absent: left out, it needs {NOSUCH}" in out
    assert (tmp_path / "figures/toy.pdf").exists()
    assert not (tmp_path / "figures/absent.pdf").exists()


def test_what_takes_seconds_is_made_before_trainings_and_those_in_their_turn(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(
        figures, "_act", lambda action, exhibit, *_: order.append(exhibit.name) is None
    )
    words = ["--preset", "paper", "--out", str(tmp_path)]
    names = [one.name for one in EXHIBITS if not exhibits.missing_packages(one)]
    figures.main(EXHIBITS, BASELINES, words)
    assert order == names
    order.clear()
    figures.main(EXHIBITS, BASELINES, [*words, "--train"])
    wanted_most = "fig07 fig07_differences lora_landscape fig08".split()
    wanted_most += "low_rank_gradients low_rank_losses fig04 fig05 fig01 fig02".split()
    wanted_most += ["fig01_networks", "rank_before_training"]
    assert order == [*(name for name in names if name not in wanted_most), *wanted_most]
    order.clear()
    figures.main(EXHIBITS, BASELINES, [*words, "--train", "fig02", "fig03", "fig07"])
    assert order == ["fig02", "fig03", "fig07"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("nosuch", "figure: got 'nosuch', wanted one of toy, absent"),
        ("check nosuch", "figure: got 'nosuch', wanted one of toy, absent"),
        ("toy absent", f"figure: got 'absent', wanted {NOSUCH} for it"),
        ("--preset slow", "--preset: got 'slow', wanted one of quick, paper"),
        (
            "baseline toy",
            "--yes: got no terminal to ask before a baseline is written, wanted this flag",
        ),
        ("--nosuch", "--nosuch: got an unknown argument, wanted one of those in --help"),
        ("--out file", "--out: got 'file', where 'file' is a file, wanted a folder"),
        ("--out file/below", "--out: got 'file/below', where 'file' is a file, wanted a folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")

    def command():
        return figures.main([TOY, ABSENT], tmp_path, words.split(), prog="paper_figs")

    assert cli.run("paper_figs", command) == BAD_INPUT
    assert capsys.readouterr() == ("", f"paper_figs: error: {says}\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
    assert (tmp_path / "file").read_text() == "mine"


OURS = {
    "corollary1": "The survey has no such figure",
    "fig06": "figure of this number was not available",
    "fig07": "own Figure 7 was not available: this one is ours",
    "fig08": "own Figure 8 was not available: this one is ours",
    "fig09": "figure of this number was not available; problem, sizes and step sizes are ours",
    "fig10": "not available.* data, sizes and keep probabilities are ours",
    "table1": "table of this number was not available;.* and the sizes are ours",
    "theorem2": "The survey has no such figure",
}
"""What captions say is not from the survey."""


def test_the_registry_is_in_order():
    names = [figure.name for figure in EXHIBITS]
    assert names == sorted(set(names))
    assert set(names) >= {*OURS}


@pytest.mark.parametrize("figure", EXHIBITS, ids=lambda figure: figure.name)
def test_a_figure_of_the_registry_is_complete(figure):
    assert set(figure.presets) == {"quick", "paper"}
    path = BASELINES / f"{figure.name}.nc"
    assert path.stat().st_size < 100_000
    saved = xr.load_dataset(path, engine="h5netcdf")
    if not figure.long:  # whose settings are those of the runs
        assert saved.attrs["settings"] == results_file.canonical_json(figure.presets["quick"])
    # A figure says itself what the machine decides (round-off, times, chaos): not all of it.
    assert any(baselines.is_compared(values) for values in saved.values())
    caption, texts = exhibits.caption(figure, saved), figure.texts(saved)
    headline = exhibits.headline(figure, saved)
    assert headline.startswith(figure.title)
    assert " ".join(caption.split()).startswith(f"{figure.name}. {headline}. ")
    said = " ".join((caption + exhibits.notes(figure, saved)).split())
    assert re.search(OURS.get(figure.name, ""), said)
    assert texts[".txt"].endswith(caption + exhibits.notes(figure, saved))
    if isinstance(figure, exhibits.Figure):
        figure.draw(saved)
    else:
        check_latex(texts[".tex"])


# --- plotting ----------------------------------------------------------------------------------


def test_neither_import_nor_drawing_loads_pyplot():
    code = (
        "import sys; from lrdyn.figures import plotting; assert 'matplotlib' not in sys.modules;"
        "plotting.panels(['a']); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_spread_keeps_order_distance_and_free_values():
    heights, gap = np.array([0.9, 0.1, 0.11, 0.12, 0.5]), 0.1
    moved = plotting.spread(heights, gap)
    assert np.argsort(moved).tolist() == np.argsort(heights).tolist()
    slack = tolerance("identity", moved.dtype)
    assert np.all(np.diff(np.sort(moved)) >= gap - slack)
    np.testing.assert_allclose(moved[[0, 4]], heights[[0, 4]], atol=slack)
    np.testing.assert_allclose(moved[1:4].mean(), heights[1:4].mean(), atol=slack)


# --- following singular vectors ----------------------------------------------------------------


def test_vectors_are_followed_through_a_crossing():
    t = np.linspace(-1, 1, 11)
    turn = np.array([[[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]] for a in 0.1 * t])
    values = np.stack([np.diag([2 + x, 2 - x]) for x in t + 1e-3])
    # Sorted by value: they swap in the middle.
    vectors = np.linalg.svd(turn @ values @ turn.mT)[2].mT
    chosen = tracking.follow(vectors, turn[0])
    assert set(map(tuple, chosen.tolist())) == {(0, 1), (1, 0)}
    followed = np.take_along_axis(vectors[1:], chosen[:, None], axis=2)
    found = tracking.vector_angles(followed, turn[0])
    expected = np.degrees(0.1 * (t[1:] - t[0]))
    slack = 180 * tolerance("identity", t.dtype, size=2) / np.min(np.abs(t + 1e-3))
    np.testing.assert_allclose(found, np.stack([expected] * 2, 1), atol=slack)


@pytest.mark.parametrize("angle", [1e-12, 1e-6, 0.5, np.pi / 2 - 1e-12])
@pytest.mark.parametrize("sign", [1, -1])
def test_angles_keep_their_digits_at_both_ends(angle, sign):
    vector = sign * np.array([np.cos(angle), np.sin(angle)])[None, :, None]
    axis, other = np.eye(2)[:, :1], np.eye(2)[:, 1:]
    slack = tolerance("identity", vector.dtype, size=2) * 90
    found = [tracking.vector_angles(vector, axis), tracking.subspace_angles(vector, axis, other)]
    chex.assert_trees_all_close(found, [np.degrees([[angle]])] * 2, rtol=0, atol=slack)


# --- the plotted numbers -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def evolution():
    return numbers_of(fig03_svd_evolution.FIGURE, fig03_svd_evolution.PRESET)


@pytest.fixture
def slack(evolution):
    sizes = evolution.sizes
    return tolerance("identity", "float64", steps=sizes["step"], size=sizes["index"])


def test_figure_3_singular_values_are_predicted(evolution, slack):
    found, expected = evolution.sigma_measured, evolution.sigma_predicted
    np.testing.assert_allclose(found, expected, rtol=0, atol=slack)


@pytest.mark.parametrize("side", ["right", "left"])
def test_figure_3_angles_are_predicted(evolution, side, slack):
    # A singular vector is as well determined as its value is apart from the others.
    values = np.sort(evolution.sigma_predicted.values[:, evolution.moves.values == 1], axis=1)
    gap = np.min(np.diff(values, axis=1), axis=1)
    gap[0] = 1.0  # no vectors at t = 0: angles are 0 by definition
    difference = np.abs(evolution[f"{side}_measured"] - evolution[f"{side}_predicted"]).values
    assert np.all(difference <= np.degrees(slack / gap)[:, None])


def test_figure_3_shows_six_moving_directions_and_an_equal_decaying_bulk(evolution, slack):
    moves = evolution.moves.values == 1
    assert np.flatnonzero(moves).tolist() == [0, 1, 2, 27, 28, 29]
    for side in ("right_measured", "left_measured"):
        angles = evolution[side].values[-1]
        assert np.all(angles[moves] > 1)
        assert np.all(angles[~moves] <= np.degrees(CLEARLY * slack))
    bulk = evolution.sigma_measured.values[:, ~moves]
    assert np.ptp(bulk, axis=1).max() <= slack
    assert np.all(np.diff(bulk[:, 0]) < 0)
    assert round(float(bulk[-1, 0]), 3) == 0.951


def test_figure_3_is_what_a_numpy_loop_gives(evolution, slack):
    flags = dict(fig03_svd_evolution.PRESET)
    seed, end = flags.pop("seed"), flags["steps"]
    begin = jax.jit(lambda key: fig03_svd_evolution.start(key, **flags)[:2])
    weights, Phi = begin(jax.random.key(seed))
    slope = oracles.mean_slope(np.asarray(Phi))
    W1 = oracles.descend(weights, slope, 1.0, [0.0] * 3, [end])[0][-1]
    found = np.sort(evolution.sigma_measured.values[-1])[::-1]
    expected = np.linalg.svd(W1, compute_uv=False)
    np.testing.assert_allclose(found, expected, rtol=0, atol=slack)


@pytest.fixture(scope="module")
def compression():
    """Numbers of Figure 6 at a small size."""
    small = {"dim": 12, "rank": 2, "compressed_ranks": [2, 4], "steps": 40, "timed_dims": [12]}
    return numbers_of(fig06_compression.FIGURE, fig06_compression.QUICK | small)


def test_figure_6_errors_and_losses_are_those_of_the_identities(compression):
    """The error is below its bound, and the losses differ by half its square."""
    slack = tolerance("identity", "float64", steps=40, size=12)
    measured, bound = compression.error_measured, compression.error_bound
    assert float(np.max(np.abs(measured - compression.error_predicted) / bound)) <= slack
    assert bool(np.all(measured <= bound * (1 + slack)))
    found, error = compression.loss_full, measured.isel(compressed_rank=0)
    for expected in (compression.loss_predicted, compression.loss_compressed + error**2 / 2):
        assert float(np.max(np.abs(found - expected) / found.max("step"))) <= slack
    assert bool((compression[["time_full", "time_reduced"]].to_array() > 0).all())


# --- sweeps over depth, rank and init scale ----------------------------------------------------

TINY_REDUCED: dict[str, Any] = {
    "dim": 8,
    "rank": 2,
    "depths": [2, 3],
    "init_scales": [0.2, 0.9],
    "learning_rate": 0.05,
    "steps": 3000,
    "threshold": 0.05,
    "rank_at": 5.0,
    "seed": 1,
}


@pytest.fixture(scope="module")
def reduced():
    """Results behind the curves at other settings, in memory."""
    run = reach.reduced_run(**TINY_REDUCED)
    return produce(run.experiment, run.settings, seeds=[run.seed])


def test_reduced_sweep_equals_full_runs_in_numpy(reduced):
    """Times, rank and error of the full and the compressed network, from 8 x 8 layers."""
    found, eta = reach.reduced_curves(reduced, TINY_REDUCED), TINY_REDUCED["learning_rate"]
    times = np.unique(np.rint(np.geomspace(1, 3000, 400)).astype(int))
    for depth in (2, 3):
        begin, target, _ = oracles.problem(1, dim=8, rank=2, depth=depth, scale=1.0)
        frame, Phi = lrdyn.frame(begin, target, 2), np.asarray(target)
        U, V = np.asarray(frame.left[-1, :, :4]), np.asarray(frame.right[0, :, :4])
        for eps in (0.2, 0.9):
            layers = [eps * np.asarray(W) for W in begin]
            slope, decays = oracles.sum_slope(Phi), [0.0] * depth
            stacked = oracles.descend(layers, slope, eta, decays, set(times.tolist()))
            seen = oracles.product(stacked, 8)
            inside = U @ (U.T @ seen @ V) @ V.T
            norm = np.linalg.norm(Phi)
            point = found.sel(depth=depth, init_scale=eps)
            for name, values in (("", seen), ("_compressed", inside)):
                reached = np.linalg.norm(values - Phi, axis=(1, 2)) <= 0.05 * norm
                assert reached.any()
                assert float(point[f"convergence_time{name}"]) == eta * times[np.argmax(reached)]
            slack = tolerance("identity", "float64", steps=3000, size=8)
            gap = np.linalg.norm(seen - inside, axis=(1, 2))[np.argmax(reached)]
            assert abs(float(point["error"]) - gap) <= slack
            values = np.linalg.svd(seen[np.argmin(abs(eta * times - 5.0))], compute_uv=False)
            rank = np.exp(scipy.stats.entropy(values))
            assert abs(float(point["effective_rank"]) - rank) <= 8 * slack
            assert float(point["error_bound"]) == pytest.approx(2 * eps**depth)


def test_what_does_not_converge_has_no_time(reduced):
    found = reach.reduced_curves(reduced, TINY_REDUCED | {"threshold": 0.0})
    assert np.isnan(found[["convergence_time", "error"]].to_array()).all()


def test_ratio_map_is_the_worst_claim_of_the_worst_seed():
    scenario = THEOREM2.scenarios[0]
    settings = {"dim": 8, "depths": [2], "ranks": [2], "init_scales": [0.3, 1.0], "steps": 20}
    run = reach.map_run(theorem2_sweep.THEOREM2_MAP, **settings, seeds=[2, 3])
    seeds = run.seeds_of(scenario)
    found = produce(run.experiment, run.settings, seeds=seeds, thorough=False)
    ratio = reach.ratio_map(THEOREM2, found)
    assert ratio.sizes == {"rank": 1, "depth": 1, "init_scale": 2}
    assert found["/"].seed.values.tolist() == [2, 3]
    legs = [residuals(claim, scenario, found["/"], "float64") for claim in scenario.claims]
    each = [(leg.residual / leg.tolerance).where(leg.reason == "") for leg in legs]
    worst = np.nanmax([one.sel(init_scale=1.0) for one in each])
    assert 0 < worst == float(ratio.sel(init_scale=1.0).squeeze()) < 1
    with pytest.raises(ValueError, match="wanted them without gaps"):
        reach.map_run(theorem2_sweep.THEOREM2_MAP, **settings, seeds=[0, 3])


def test_both_figures_draw_the_same_curves():
    first, second = (
        exhibit.sources(**exhibit.presets["quick"])
        for exhibit in EXHIBITS
        if exhibit.name in ("corollary1", "theorem2")
    )
    assert first["reduced"].folder("") == second["reduced"].folder("")
    assert first["map"].folder("") != second["map"].folder("")


def worst_of(**claims):
    """The ratio of made-up claims: claim -> (residuals, tolerances, applies)."""
    legs, judged = {}, []
    for name, (residual, limit, applies) in claims.items():
        reason = np.where(applies, "", "claim does not apply")
        columns = {"residual": ("x", residual), "tolerance": ("x", limit), "reason": ("x", reason)}
        columns["unmet"] = ("x", np.full(len(reason), ""))
        legs[name] = {"float64": xr.Dataset(columns, {"x": [1.0, 2.0]})}
        claim = lrdyn.Claim[Value, Value](
            name, "", compares=lambda theory, run: (theory.value, run.value)
        )
        judged.append(claim)
    return worst_ratio(judged, legs, "float64").values.tolist()


def test_the_worst_ratio_leaves_out_what_does_not_apply():
    one, other = ([3.0, 1.0], [2.0, 2.0], [True, True]), ([9.0, 9.0], [1.0, 1.0], [False, True])
    assert worst_of(a=one, b=other) == worst_of(b=other, a=one) == [1.5, 9.0]
    lost = ([np.nan, 0.0], [1.0, 1.0], [True, True])
    assert worst_of(a=lost, b=one) == worst_of(a=one, b=lost) == [np.inf, 0.5]
    (never,) = set(map(str, worst_of(a=([1.0, 1.0], [1.0, 1.0], [False, False]))))
    assert never == "nan"


@pytest.mark.parametrize("axes", [["depth"], ["init_scale", "depth"], ["init_scale", "b", "rank"]])
def test_a_sweep_is_drawn_over_what_is_swept(axes):
    rng = np.random.default_rng(0)
    sizes = {"seed": 3, **dict.fromkeys(axes, 2), "single": 1}
    axis = {name: np.arange(1.0, size + 1) for name, size in sizes.items()}
    values = xr.DataArray(rng.uniform(size=tuple(sizes.values())), axis)
    figure = verdict_plots.sweep_figure("mine", {"float64": values, "float32": 2 * values})
    assert (
        verdict_plots.swept_axes(values) == axes if "b" not in axes else ["init_scale", "rank", "b"]
    )
    panels = figure.get_axes()
    assert len(panels) == (2 if len(axes) == 3 else 1)
    order = verdict_plots.swept_axes(values)
    first = values.max(["seed", "single"])
    for column, ax in enumerate(panels):
        lines = [line for line in ax.get_lines() if line.get_marker() == "o"]
        assert len(lines) == 2 * (2 if len(axes) > 1 else 1)
        part = first.isel({order[2]: column}) if len(order) > 2 else first
        part = part.isel({order[1]: 0}) if len(order) > 1 else part
        np.testing.assert_array_equal(lines[0].get_ydata(), part.values)


def test_check_says_last_what_had_nothing_to_be_compared_with(tmp_path, capsys):
    (figure,) = (one for one in EXHIBITS if one.name == "fig02")
    ending = figures.main([figure], BASELINES, ["check", "--out", str(tmp_path)])
    assert ending is not None
    assert ending.same
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("numbers not compared of fig02: no results here (--train makes them)")
    figures.main([TOY], tmp_path, ["baseline", "--yes", "--out", str(tmp_path)])
    figures.main([TOY], tmp_path, ["check", "--out", str(tmp_path)])
    assert "numbers not compared" not in capsys.readouterr().out
