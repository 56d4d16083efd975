"""What a command says of a mutant: the small run of a theorem, or its saved results judged again.

No test of the suite: only mutants are tried with these.
"""

import pytest

from lrdyn.engine import results
from lrdyn.engine.verify import judged
from lrdyn.registry import REGISTRY, theorem
from tests.runs import finished


@pytest.mark.parametrize("name", REGISTRY)
def test_saved_results_hold(name, tmp_path_factory, unchecked):
    """As ``--judge`` does, but for the question whose files they are."""
    folder = finished(name, tmp_path_factory.getbasetemp()).folder
    found = judged(theorem(name), results.load(folder / results.NAME), "float64")
    assert found.verdict["holds"] is True, repr(found)


@pytest.mark.parametrize("name", REGISTRY)
def test_the_run_holds(name, tmp_path_factory):
    done = finished(name, tmp_path_factory.getbasetemp()).process
    assert done.returncode == 0, done.stdout + done.stderr
