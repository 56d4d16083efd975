"""The size of a mistake that each claim lets pass is committed: a loosened judge is seen.

``python -m tests.test_thresholds`` writes ``tests/data/thresholds.json`` anew, from one case of
every claim. Residuals are rounding, which any release may change, and are not in it.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from lrdyn.engine.judging import left_out, residuals
from lrdyn.engine.outcomes import groups_of
from lrdyn.registry import theorem, theorems
from tests.runs import finished

FILE = Path(__file__).parent / "data" / "thresholds.json"
NAMES = [each.name for each in theorems()]


def thresholds(name: str, base: Path) -> dict[str, float]:
    """Claim -> difference that is let pass, in the unit of what is compared, of the first case."""
    run, stated = finished(name, base), theorem(name)
    found = {}
    for scenario in stated.scenarios:
        results = run.group(groups_of(stated, scenario, "float64")["float64"])
        for claim in scenario.claims:
            leg = residuals(claim, scenario, results, "float64", power=True)
            judged = np.flatnonzero(left_out(leg).ravel() == "")
            found[claim.id] = float(leg.threshold.values.flat[judged[0]]) if len(judged) else None
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_a_claim_lets_pass_is_what_it_was(name, tmp_path_factory):
    committed, stated = json.loads(FILE.read_text())[name], theorem(name)
    now = thresholds(name, tmp_path_factory.getbasetemp())
    assert now.keys() == committed.keys()
    conditions = {c.id for s in stated.scenarios for c in s.claims if c.condition}
    for claim, before in committed.items():
        if before is None or now[claim] is None:
            assert before is now[claim], claim
        elif claim in conditions:  # of theory's own run, which amplifies rounding
            assert now[claim] == pytest.approx(before, rel=0.05, abs=0), claim
        else:
            assert now[claim] == pytest.approx(before, rel=0.01, abs=0), claim


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        every = {name: thresholds(name, Path(folder)) for name in NAMES}
    FILE.write_text(json.dumps(every, indent=1) + "\n")
    sys.stdout.write(f"{sum(map(len, every.values()))} thresholds\n")
