"""What studies state beside their trainings holds at its quick preset, and what is wrong fails."""

import pytest

from lrdyn.studies import studies
from lrdyn.verification.judging.judging import claim_of, left_out_reasons, residuals
from lrdyn.verification.stating.claims import CLEARLY
from tests import oracles
from tests.jobs import controls_job
from tests.kept import NEARER, largest

IMAGES = {"edge", "real_step", "energies"}
"""Scenarios that read files of images, weights or sentences; their tests make such files."""
STATED = [
    pytest.param(study, scenario, id=f"{study.name}-{scenario.id}")
    for study in studies()
    for scenario in study.scenarios
    if not scenario.trains and scenario.id not in IMAGES
]


@pytest.mark.parametrize(("study", "scenario"), STATED)
def test_what_a_study_states_holds_and_its_controls_fail(study, scenario):
    results, legs = oracles.judged(study, scenario, {})
    for claim in scenario.claims:
        leg = legs[claim.id]
        judged = left_out_reasons(leg) == ""
        assert judged.any(), claim.id
        assert (leg.residual <= leg.tolerance).values[judged].all(), claim.id
        if claim.kind in ("identity", "bound"):
            scale = (leg.threshold / leg.tolerance).values[judged].max()
            assert scale <= NEARER * largest(scenario.arrays_of(claim), results), claim.id
    controls = tuple(control for control in scenario.controls if control.swap is None)
    found = controls_job(study, scenario, controls, (0,), "float64").run()
    for control in controls:
        claim = claim_of(control, scenario)
        (results,) = (r for name, r in found.items() if f"/{control.id}/" in f"{name}/")
        leg = residuals(claim, scenario, results, "float64")
        assert (leg.residual >= CLEARLY * leg.tolerance).all(), control.id
