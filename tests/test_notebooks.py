"""Notebooks: what they are made of, and how the command that runs them ends."""

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
    assert notebooks.execute(tmp_path / "whole.py").problem == ""


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
