"""What a command says of a mutant: the small run of a theorem, or its saved results judged again.

No test of the suite: only mutants are tried with these.
"""

import shutil

import pytest

from lrdyn.registry import REGISTRY, theorem
from tests.runs import finished


@pytest.mark.parametrize("name", REGISTRY)
def test_saved_results_hold(name, tmp_path_factory, command_line):
    folder = finished(name, tmp_path_factory.getbasetemp()).folder
    shutil.copytree(folder, "saved")  # judging writes there
    status, out, err = command_line(theorem(name), "--judge", "saved")
    assert status == 0, out + err


@pytest.mark.parametrize("name", REGISTRY)
def test_the_run_holds(name, tmp_path_factory):
    done = finished(name, tmp_path_factory.getbasetemp()).process
    assert done.returncode == 0, done.stdout + done.stderr
