"""Notebooks: what they are made of, and how the command that runs them ends."""

import importlib.util
import re
import signal
import subprocess
import time
from pathlib import Path

import jupytext
import pytest

from lrdyn.commands import ending as commands
from notebooks import __main__ as notebooks
from notebooks import _kept
from tests.runs import ROOT, started

pytestmark = pytest.mark.tools

NAMES = _kept.names()
has_widgets = importlib.util.find_spec("ipywidgets") is not None


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_states_runs_and_ends_with_words(name):
    path = _kept.FOLDER / f"{name}.py"
    notebook = jupytext.read(path)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == kinds[-1] == "markdown"
    assert kinds.count("code") >= 2
    assert notebook.cells[0].source.startswith("# ")
    assert "One thing to change" in notebook.cells[-1].source
    assert notebook.metadata.kernelspec.name == "python3"
    assert not re.search("http|/home/|/tmp/", path.read_text())
    assert jupytext.writes(notebook, fmt="py:percent").count("# %%") == len(kinds)


def test_an_error_names_notebook_cell_and_line(tmp_path):
    text = "# %% [markdown]\n# # Title\n\n# %%\nx = 1\n\n# %%\ny = 2\n\nprint(y / (x - 1))\n"
    (tmp_path / "broken.py").write_text(text)
    said = "cell 3, line 3 (line 10 of the file): ZeroDivisionError: division by zero"
    assert notebooks.execute(tmp_path / "broken.py").problem == f"broken.py: {said}"
    (tmp_path / "whole.py").write_text(text.replace("x - 1", "x"))
    ran = notebooks.execute(tmp_path / "whole.py")
    assert ran.notebook.cells[-1].outputs[0].text == "2.0\n"
    assert ran.problem == ""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of notebooks, none of which was run."""
    for name in ("FOLDER", "ROOT"):
        monkeypatch.setattr(_kept, name, tmp_path)
    monkeypatch.setattr(_kept, "KEPT", tmp_path / "build" / "notebooks")
    return tmp_path


def test_what_was_run_is_kept_until_its_code_changes(folder, monkeypatch):
    """Its words may change; of a run that fails nothing is left."""
    text, ran = "# %% [markdown]\n# # Title\n\n# %%\nx = 1\n", []

    def execute(path):
        ran.append(path.stem)
        return notebooks.Ran(jupytext.read(path), "wrong" if "0 / 0" in path.read_text() else "")

    monkeypatch.setattr(notebooks, "execute", execute)
    for name in ("a", "b"):
        (folder / f"{name}.py").write_text(text)
    assert notebooks.main([]).same
    (folder / "a.py").write_text(text.replace("Title", "Other"))
    (folder / "b.py").write_text(text.replace("1", "0 / 0"))
    assert _kept.missing(same_library=False) == ["b"]
    ran.clear()
    assert not notebooks.main(["--missing"]).same
    assert ran == ["b"]
    assert [name for name, *_ in _kept.load()] == ["a"]
    monkeypatch.setattr(_kept, "library_digest", lambda: "those of another day")
    assert _kept.missing(same_library=True) == ["a", "b"]
    assert _kept.missing(same_library=False) == ["b"]


def test_explore_says_how_to_have_sliders_or_has_them(tmp_path):
    """Where ipywidgets are installed, a slider draws another run."""
    notebook = jupytext.read(_kept.FOLDER / "explore.py")
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    (place,) = [k for k, source in enumerate(cells) if "interact(" in source]
    moved = "show.widget.children[1].value = 3" if has_widgets else "pass"
    chosen = [*cells[: place + 1], moved]
    (tmp_path / "sliders.py").write_text("\n\n".join(f"# %%\n{cell}" for cell in chosen))
    ran = notebooks.execute(tmp_path / "sliders.py")
    assert ran.problem == ""
    shown = ran.notebook.cells[place].outputs
    if not has_widgets:
        assert [one.text for one in shown] == [
            "no sliders without ipywidgets: pip install 'lrdyn[notebooks]'\n"
        ]
        return
    assert "application/vnd.jupyter.widget-view+json" in shown[0].data


def test_an_unknown_notebook_is_one_line_and_status_2(capsys):
    assert commands.run("notebooks", lambda: notebooks.main(["nosuch"])) == 2
    said = "notebooks: error: notebook: got 'nosuch', wanted adapters, "
    assert capsys.readouterr().err.startswith(said)


def kernels_of(process):
    """Numbers of the kernels among the children of all threads of a process."""
    threads = Path(f"/proc/{process}/task").glob("*/children")
    children = " ".join(path.read_text() for path in threads).split()
    return [c for c in children if b"ipykernel" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_ctrl_c_ends_the_command_and_its_kernels(tmp_path):
    how = {"process_group": 0, "TMPDIR": str(tmp_path)}
    with started("-m", "notebooks", "theorem2", **how) as process:
        while not (found := kernels_of(process.pid)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err.count("\n")) == (130, "", 1), err
    until = time.monotonic() + 30
    while any(Path("/proc", kernel).exists() for kernel in found):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert list(tmp_path.iterdir()) == []  # no scratch folder


def test_outputs_are_not_committed():
    listed = ["git", "-C", ROOT, "ls-files", "*.ipynb"]
    done = subprocess.run(listed, capture_output=True, text=True, check=False)
    assert done.stdout == ""
