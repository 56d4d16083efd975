"""The size of a mistake that each claim lets pass is committed: a loosened judge is seen.

``LRDYN_RECORD=1 pytest tests/test_thresholds.py`` writes ``tests/data/thresholds.json`` anew, from
the small runs. Residuals are rounding, which any release may change, and are not in it.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lrdyn.registry import theorem, theorems
from lrdyn.verification.judging.judging import left_out_reasons, residuals
from lrdyn.verification.judging.outcomes import groups_of
from tests.kept_numbers import committed
from tests.runs import finished

FILE = Path(__file__).parent / "data" / "thresholds.json"


def passed_by(stated: Any, scenario: Any, claim: Any, base: Path) -> dict[str, Any]:
    """What a claim lets pass, in the unit of what is compared, and how many cases are left out.

    ``first`` is that of the first case that is judged, ``typical`` the geometric mean over all.
    """
    groups = finished(stated.name, base).groups()
    results = groups[groups_of(stated, scenario, "float64")["float64"]]
    leg = residuals(claim, scenario, results, "float64", power=True)
    reasons = left_out_reasons(leg).ravel()
    passed = leg.threshold.values.ravel()[reasons == ""]
    positive = passed[passed > 0]
    return {
        "first": float(passed[0]) if len(passed) else None,
        "typical": float(np.exp(np.mean(np.log(positive)))) if len(positive) else None,
        "left_out": dict(sorted(Counter(map(str, reasons)).items())),
    }


CLAIMS = [
    (each.name, scenario.id, claim.id)
    for each in theorems()
    for scenario in each.scenarios
    for claim in scenario.claims
]


@pytest.mark.parametrize(("name", "scenario", "claim"), CLAIMS)
def test_what_a_claim_lets_pass_is_what_it_was(name, scenario, claim, tmp_path_factory):
    stated = theorem(name)
    (of,) = (each for each in stated.scenarios if each.id == scenario)
    (one,) = (each for each in of.claims if each.id == claim)
    now = passed_by(stated, of, one, tmp_path_factory.getbasetemp())
    before = committed(FILE, name, {claim: now}, lambda other: other == claim)[claim]
    assert now["left_out"] == before["left_out"]
    # A condition is of theory's own run, which amplifies rounding.
    rel = 0.05 if one.condition else 0.01
    for which in ("first", "typical"):
        if before[which] is None or now[which] is None:
            assert before[which] is now[which]
        else:
            assert now[which] == pytest.approx(before[which], rel=rel, abs=0)


def test_nothing_is_kept_of_what_no_theorem_claims():
    kept = json.loads(FILE.read_text())
    assert {(name, claim) for name in kept for claim in kept[name]} == {
        (name, claim) for name, _, claim in CLAIMS
    }
