"""The numbers of every theorem at a small case: each array of theory and run is as it was once.

That they are right is for claims, references and the referee to say. This says that they are the
same: a change of a formula, a case or a control that no claim notices moves one of them.
``LRDYN_RECORD=1 pytest tests/test_theorem_numbers.py`` writes the file anew, after a change that is
meant.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from lrdyn import registry
from lrdyn.verification.storing import results_file
from tests.kept_numbers import committed
from tests.runs import finished

FILE = Path(__file__).parent / "data" / "theorem_numbers.json"
TOLERANCE = 1e-3
"""Of norms. Between JAX 0.10 and 0.12 nearly all are equal to seven digits, conditions to four."""
UNDECIDED = Path(__file__).parent / "data" / "theorem_numbers_undecided.json"
"""Arrays that are rounding, or that rounding decides: between JAX 0.10 and 0.12 they differ by more
than 1e-4, or between two CPUs. A turned basis, signs of equal entries, draws that a step decides,
how near a float32 number lies to a tie."""


def numbers(theorem, factory):
    """Numbers of all groups of the small run, in float64, of controls as well."""
    folder = finished(theorem, factory.getbasetemp()).folder
    found = {}
    for group, run in results_file.load(folder / results_file.NAME).items():
        if not group.endswith("float32"):
            found |= numbers_of_group(theorem, group, run)
    return found


def numbers_of_group(theorem, group, run):
    """Array -> its entries, its norm and its largest entry.

    The steps and other places along its axes are among them, settings are not.

    Neither a sign nor a turned basis changes them.
    """
    found, left_out = {}, set(json.loads(UNDECIDED.read_text())[theorem])
    settings = {"seed", *(flag.name for flag in registry.theorem(theorem).flags)}
    for name, array in run.variables.items():
        place = f"{group.strip('/')}/{name}".strip("/")
        if name not in settings and array.dtype.kind in "fib" and place not in left_out:
            finite = array.values[np.isfinite(array.values)].astype(float)
            norm, largest = np.linalg.norm(finite), np.max(np.abs(finite), initial=0.0)
            found[place] = [finite.size, float(f"{norm:.7g}"), float(f"{largest:.7g}")]
    return found


@pytest.mark.parametrize("theorem", json.loads(UNDECIDED.read_text()))
def test_the_numbers_of_a_theorem_are_as_they_were(theorem, tmp_path_factory):
    found = numbers(theorem, tmp_path_factory)
    wanted = committed(FILE, theorem, found)
    assert found.keys() == wanted.keys()
    assert moved(found, wanted) == {}


def moved(found, wanted):
    """Arrays that are not as they were, each with both of its numbers."""
    return {n: (found[n], wanted[n]) for n in found if not same(found[n], wanted[n])}


def same(found, wanted):
    return found[0] == wanted[0] and found[1:] == pytest.approx(wanted[1:], rel=TOLERANCE, abs=0)
