"""``lrdyn figures``: a reader's own figures, from the example to a change that is caught."""

import os
import re
import runpy
import shutil
import subprocess

import jax
import pytest

from lrdyn import __main__ as command
from lrdyn import cli
from lrdyn.commands import own_figures
from lrdyn.commands.ending import BAD_INPUT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What ``lrdyn figures init`` leaves, made once."""
    folder = tmp_path_factory.mktemp("reader")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LRDYN_CACHE", "")
        jax.devices()  # so that `setup` finds the backend as it is
        assert command.main(["figures", "init"]) == 0
    return folder


@pytest.fixture
def here(made, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setenv("LRDYN_CACHE", "")
    return made


def test_init_makes_an_example_its_baseline_a_test_and_a_script(here):
    names = {path.relative_to(here).as_posix() for path in here.rglob("*") if path.is_file()}
    assert names == {
        "figures/arrays.py",
        "figures/example.py",
        "figures/test_figures.py",
        "figures/check.sh",
        *(
            f"figures/baselines/{name}.{suffix}"
            for name in ("arrays", "example")
            for suffix in ("json", "nc", "png")
        ),
    }
    assert (here / "figures" / "check.sh").stat().st_mode & 0o111
    assert "lrdyn figures check" in (here / "figures" / "check.sh").read_text()


LRDYN = """\
#!/bin/sh
# Stands for the command: says how it is called, and ends with the status that is set for its words.
echo "$*"
case "$1 $2" in ({fails}) exit {status};; esac
"""


@pytest.mark.parametrize(
    ("fails", "status", "said"),
    [
        ("none", 9, ""),
        ("verify theorems/b.py", 4, "check: failed, with its status: theorems/b.py (4)\n"),
        ("figures check", 1, "check: failed, with its status: figures (1)\n"),
        ("report results", 2, "check: failed, with its status: report (2)\n"),
        (
            "verify*",
            2,
            "check: failed, with its status: theorems/a.py (2) theorems/b.py (2)\n",
        ),
    ],
)
def test_the_script_runs_everything_reports_and_says_what_failed(fails, status, said, tmp_path):
    commands, own = tmp_path / "bin", tmp_path / "own"
    for folder in (commands, own / "theorems", own / "figures" / "baselines"):
        folder.mkdir(parents=True)
    pattern = fails.replace(" ", "\\ ")
    (commands / "lrdyn").write_text(LRDYN.format(fails=pattern, status=status))
    (commands / "lrdyn").chmod(0o755)
    for name in ("a", "b", "_imported_by_both"):
        (own / "theorems" / f"{name}.py").touch()
    script = own / "figures" / "check.sh"
    script.write_text(own_figures.SCRIPT)
    environment = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}"}
    run = {"capture_output": True, "text": True, "check": False, "env": environment}
    done = subprocess.run(["sh", script], **run)
    assert done.stdout.splitlines() == [
        "verify theorems/a.py --out results",
        "verify theorems/b.py --out results",
        "figures check --recompute --out results",
        "report results",
    ]
    assert done.stderr == said
    assert done.returncode == bool(said)


def test_the_script_takes_a_folder_without_theorems_or_figures(tmp_path):
    (tmp_path / "lrdyn").write_text(LRDYN.format(fails="none", status=9))
    (tmp_path / "lrdyn").chmod(0o755)
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "check.sh").write_text(own_figures.SCRIPT)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    words = ["sh", tmp_path / "figures" / "check.sh", "another"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "report another\n"


def test_the_test_of_the_folder_passes_until_one_percent_changes(
    here, tmp_path, monkeypatch, capsys
):
    test = runpy.run_path(str(here / "figures" / "test_figures.py"))["test_figures"]
    test(tmp_path / "first", monkeypatch)
    file = here / "figures" / "example.py"
    text = file.read_text()
    changed = text.replace("gradient_descent(rate)", "gradient_descent(1.01 * rate)")
    assert changed != text
    file.write_text(changed)
    capsys.readouterr()
    try:
        with pytest.raises(AssertionError):
            test(tmp_path / "second", monkeypatch)
    finally:
        file.write_text(text)
    assert "\nexample: panel (a): trained[step=" in capsys.readouterr().out


def test_the_commands_are_those_of_figures(here, capsys):
    assert command.main(["figures", "--help"]) == 0
    assert "  example   An example\n" in capsys.readouterr().out
    assert command.main(["figures", "check", "nosuch"]) == BAD_INPUT
    assert capsys.readouterr().err == (
        "lrdyn: error: figure: got 'nosuch', wanted one of arrays, example\n"
    )
    assert command.main(["figures", "init"]) == BAD_INPUT
    assert "got an existing 'figures', wanted no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "figures: got no folder 'figures', wanted `lrdyn figures init`"),
        ({}, "figures: got no figure in 'figures', wanted one in a file"),
        ({"a.py": "x = 1 / 0"}, "figures/a.py:1: got ZeroDivisionError (division by zero)"),
        ({"test_a.py": "x = 1 / 0"}, "figures: got no figure in 'figures'"),
    ],
)
def test_a_folder_without_figures_is_one_line(tmp_path, monkeypatch, capsys, files, says):
    monkeypatch.chdir(tmp_path)
    if files is not None:
        (tmp_path / "figures").mkdir()
        for name, text in files.items():
            (tmp_path / "figures" / name).write_text(text)
    before = sorted(tmp_path.rglob("*.py"))
    assert command.main(["figures", "check"]) == BAD_INPUT
    assert capsys.readouterr().err.startswith(f"lrdyn: error: {says}")
    assert sorted(tmp_path.rglob("*.py")) == before
    if files is None:
        assert command.main(["figures", "--help"]) == 0


def test_a_change_of_the_arrays_of_a_sweep_is_named(here, tmp_path, monkeypatch, capsys):
    """A figure without an experiment is computed anew, compared and reported as the others."""
    assert command.main(["figures", "check", "arrays", "--out", str(tmp_path / "first")]) == 0
    file = here / "figures" / "arrays.py"
    text = file.read_text()
    changed = text.replace('"effective_rank": rank}', '"effective_rank": 1.01 * rank}')
    assert changed != text
    file.write_text(changed)
    capsys.readouterr()
    try:
        words = ["figures", "check", "arrays", "--recompute", "--out", str(tmp_path / "second")]
        assert command.main(words) == 1
    finally:
        file.write_text(text)
    assert capsys.readouterr().out.startswith("arrays: panel (a): effective_rank[")


OF_A_FILE = """\
from pathlib import Path
import numpy as np
import xarray as xr
from lrdyn.figures import Figure, panels, plotting

LOG = Path(__file__).with_name("log.csv")

def numbers(results):
    step, loss = np.loadtxt(LOG, delimiter=",", skiprows=1).T
    return xr.Dataset({"loss": ("step", loss)}, {"step": step})

def draw(dataset):
    figure, (ax,) = panels(["loss"])
    ax.plot(dataset.step, dataset.loss)
    return figure

FIGURE = Figure(name="mine", title="Mine", caption="A loss.", numbers=numbers, draw=draw,
                files=(LOG,))
"""


def test_a_figure_of_a_file_follows_the_file(tmp_path, monkeypatch, capsys):
    """It is drawn, its saved numbers are used again, and another content makes new ones."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRDYN_CACHE", "")
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "mine.py").write_text(OF_A_FILE)
    assert command.main(["figures", "draw", "mine"]) == BAD_INPUT
    assert capsys.readouterr().err == (
        "lrdyn: error: mine: files: got no file 'log.csv', wanted what the numbers are read from\n"
    )
    (folder / "log.csv").write_text("step,loss\n0,1.0\n1,0.5\n")
    sources = []
    for _ in range(2):
        assert command.main(["figures", "draw", "mine"]) == 0
        sources.append(re.findall(r"\((.*), ", capsys.readouterr().out)[0])
    assert sources == ["computed", "saved numbers"]
    assert command.main(["figures", "baseline", "mine", "--yes"]) == 0
    assert command.main(["figures", "check"]) == 0
    (folder / "log.csv").write_text("step,loss\n0,1.0\n1,0.6\n")
    shutil.rmtree(tmp_path / "results")
    capsys.readouterr()
    assert command.main(["figures", "check"]) == 1
    assert "mine: loss[step=1.0]: got 0.6, wanted 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("named", ["", ", panels={'loss': 'a'}"])
def test_a_panel_that_is_not_there_leaves_no_file(tmp_path, monkeypatch, capsys, named):
    """Whether a figure names its panels or has them only when it is drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRDYN_CACHE", "")
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "mine.py").write_text(OF_A_FILE.replace("(LOG,)", f"(LOG,){named}"))
    (folder / "log.csv").write_text("step,loss\n0,1.0\n1,0.5\n")
    words = ["figures", "draw", "mine", "--format", "svg", "--panel"]
    assert command.main([*words, "a", "z"]) == BAD_INPUT
    assert re.search(r"panel: got 'z'.*wanted one of the letters a\n$", capsys.readouterr().err)
    assert not [path for path in tmp_path.rglob("results/*") if path.is_file()]
    assert command.main([*words, "a"]) == 0
    assert (tmp_path / "results" / "figures" / "mine_a.svg").exists()


def test_two_figures_of_one_name_are_refused(here, tmp_path):
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text((here / "figures" / "example.py").read_text())
    with pytest.raises(cli.BadInput, match="got two of the name 'example', wanted one"):
        own_figures.exhibits_in(tmp_path)
