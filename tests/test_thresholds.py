"""The size of a mistake that each claim lets pass is committed: a loosened judge is seen.

``LRDYN_RECORD=1 pytest tests/test_thresholds.py`` writes ``tests/data/thresholds.json`` anew, from
the small runs. Residuals are rounding, which any release may change, and are not in it.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrdyn.engine.judging import left_out, residuals
from lrdyn.engine.outcomes import groups_of
from lrdyn.registry import theorem, theorems
from tests.kept_numbers import committed
from tests.runs import finished

FILE = Path(__file__).parent / "data" / "thresholds.json"
NAMES = [each.name for each in theorems()]


def thresholds(name: str, base: Path) -> dict[str, dict[str, Any]]:
    """Claim -> what is let pass, in the unit of what is compared, and how many cases are left out.

    ``first`` is that of the first case that is judged, ``typical`` the geometric mean over all.
    """
    run, stated = finished(name, base), theorem(name)
    found = {}
    for scenario in stated.scenarios:
        results = run.group(groups_of(stated, scenario, "float64")["float64"])
        for claim in scenario.claims:
            leg = residuals(claim, scenario, results, "float64", power=True)
            reasons = left_out(leg).ravel()
            passed = leg.threshold.values.ravel()[reasons == ""]
            positive = passed[passed > 0]
            found[claim.id] = {
                "first": float(passed[0]) if len(passed) else None,
                "typical": float(np.exp(np.mean(np.log(positive)))) if len(positive) else None,
                "left_out": dict(sorted(Counter(map(str, reasons)).items())),
            }
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_a_claim_lets_pass_is_what_it_was(name, tmp_path_factory):
    stated, now = theorem(name), thresholds(name, tmp_path_factory.getbasetemp())
    wanted = committed(FILE, name, now)
    assert now.keys() == wanted.keys()
    conditions = {c.id for s in stated.scenarios for c in s.claims if c.condition}
    for claim, before in wanted.items():
        assert now[claim]["left_out"] == before["left_out"], claim
        # A condition is of theory's own run, which amplifies rounding.
        rel = 0.05 if claim in conditions else 0.01
        for which in ("first", "typical"):
            if before[which] is None or now[claim][which] is None:
                assert before[which] is now[claim][which], claim
            else:
                assert now[claim][which] == pytest.approx(before[which], rel=rel, abs=0), claim
