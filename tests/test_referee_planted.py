"""Theory and run that read the same wrong number: the verdict holds, and the referee refuses."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from lrdyn import registry
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.runs import run_folder
from referee import __main__ as referee

pytestmark = pytest.mark.tools


def times(*names: str) -> Callable[[Any], Any]:
    """A case of which these numbers are larger by a hundredth; ``a.b`` is the b of its a."""

    def wrong(case):
        for name in names:
            first, _, rest = name.partition(".")
            part = getattr(case, first)
            changed = times(rest)(part) if rest else 1.01 * part
            case = dataclasses.replace(case, **{first: changed})
        return case

    return wrong


class Plant(NamedTuple):
    """What both sides of a scenario read in place of the numbers of the case."""

    theorem: str
    scenario: str
    wrong: Callable[[Any], Any]
    claim: str
    """A claim that lrdyn says holds and that the referee refuses."""
    settings: dict[str, Any]
    after: Callable[[Any], Any] = lambda side: side
    """What becomes of both sides, where a case has no number that both read."""


TWO = {"rows": 6, "cols": 4, "rank": 2, "depth": 2, "weight_decay": 0.1}
DEEP = {"dim": 8, "depth": 2, "rank": 1, "steps": 60}
MASKED = {"rows": 6, "cols": 8, "width": 4, "keep_prob": 0.5}
SEEN = {"draw": 0, "steps": 600}
STEP = {"adapter_scale": 2.0, "rate_ratio": 4.0, "init_scale": 1.0}
PLANTS = (
    Plant("theorem1", "descent", times("target"), "minimiser", TWO),
    Plant("theorem1", "basins", times("target"), "deep_minimiser", TWO | {"depth": 3}),
    Plant("theorem1", "critical_points", times("weight_decay"), "critical_loss", TWO),
    Plant("theorem1", "autoencoder", times("weight_decay"), "autoencoder_loss", TWO),
    Plant("theorem2", "factorization", times("learning_rate"), "rho", DEEP),
    Plant("theorem2", "mean_loss", times("learning_rate"), "mean_loss", DEEP),
    Plant("theorem2", "classification", times("learning_rate"), "class_product", DEEP),
    Plant("theorem2", "collapse", times("learning_rate"), "collapse_loss", DEEP),
    Plant("corollary1", "compression", times("learning_rate"), "error_identity", DEEP),
    Plant("completion", "completion", times("learning_rate"), "recovery", SEEN),
    Plant("completion", "sensing", times("learning_rate"), "sensing_recovery", SEEN),
    Plant("completion", "basis", times("target"), "basis_gap", SEEN),
    Plant("theorem3", "masks", times("target"), "mask_identity", MASKED),
    Plant("theorem3", "dropout", times("network.target"), "penalty", MASKED),
    Plant("theorem3", "dropout_training", times("target"), "dropout_minimum", MASKED),
    Plant("theorem3", "dropblock", times("network.target"), "dropblock", MASKED),
    Plant("theorem3", "autoencoder", times("data"), "marginal", MASKED),
    Plant("lora", "one_step", times("scale"), "one_step", STEP),
    Plant("lora", "compressed", times("learning_rate"), "deep_lora", STEP),
    Plant(
        theorem="lora",
        scenario="counts",
        wrong=lambda case: case,
        claim="parameters",
        settings=STEP,
        after=lambda side: side._replace(parameters=side.parameters + 1),
    ),
)


def planted(plant: Plant):
    """The theorem of one scenario, without controls, both of whose sides read a wrong number."""
    theorem = registry.theorem(plant.theorem)
    (scenario,) = (s for s in theorem.scenarios if s.id == plant.scenario)
    alone = (dataclasses.replace(claim, carries=True) for claim in scenario.claims)
    wrong = dataclasses.replace(
        scenario,
        claims=tuple(alone),  # no other scenario is there to rest a verdict on
        predict=lambda case: plant.after(scenario.predict(plant.wrong(case))),
        measure=lambda case: plant.after(scenario.measure(plant.wrong(case))),
        controls=(),
    )
    return dataclasses.replace(theorem, scenarios=(wrong,))


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.theorem}-{plant.scenario}")
def test_a_wrong_number_on_both_sides_holds_and_is_refused(plant, tmp_path):
    run = run_of(planted(plant), seeds=1, **plant.settings)
    found, folder = run_folder.carry_out(run, tmp_path, bar=False)
    judged = {claim["id"]: claim["holds"] for claim in found.verdict["claims"]}
    assert judged[plant.claim]
    assert referee.main([str(folder)]) == 1
    (line,) = (line for line in referee.lines(folder) if line.claim == plant.claim)
    assert line.agrees is False
