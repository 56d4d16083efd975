"""Jobs of one scenario, or of controls of one, by themselves."""

from collections.abc import Sequence
from typing import Any

from lrdyn.verification.running.jobs import Job, job_for, plan_claims, plan_controls
from lrdyn.verification.stating.statement import Control, Experiment, Scenario


def claims_job(
    experiment: Experiment,
    scenario: Scenario,
    settings: dict[str, Any],
    seeds: Sequence[int],
    group: str,
    precision: str,
    optimize: bool = True,
) -> Job:
    """The sweep of a scenario over its settings, without its cases."""
    plan = plan_claims(experiment, scenario, settings, seeds, group, precision)
    return job_for(experiment, plan, settings, optimize)


def controls_job(
    experiment: Experiment,
    scenario: Scenario,
    controls: tuple[Control, ...],
    seeds: Sequence[int],
    precision: str,
    amounts: tuple[float, ...] | None = None,
) -> Job:
    """The sweep of controls at the settings of their own."""
    plan = plan_controls(experiment, scenario, controls, seeds, precision, amounts)
    return job_for(experiment, plan, {}, False)
