"""Are all controls seen to fail whatever the seed? ``python -m tests.faults.controls [NAME ...]``.

One that fails for most seeds only would make a true theorem look false where the first seeds give
other numbers, as they do on other releases. Each control of each theorem runs in both precisions
with 24 seeds, each judged alone. A seed that theory leaves out (the steps are too few for its case,
or rounding may grow too far in it) decides nothing; it is named, and there may be one in eight.
Prints a line for each control that a seed does not see; the status is 1 if there is one. It takes
some minutes a theorem.
"""

import sys
from typing import NamedTuple

import numpy as np

from lrdyn import cli
from lrdyn.registry import REGISTRY, theorem
from lrdyn.verification.judging.judging import claim_of, control_entry, residuals
from lrdyn.verification.judging.outcomes import PRECISIONS, control_group, controls_of
from lrdyn.verification.running.produce import group_by_settings
from lrdyn.verification.stating.statement import Scenario, Theorem
from tests.jobs import controls_job

SEEDS = 24
LEFT_OUT = SEEDS // 8
BY_THEORY = ("too few steps", "ill-conditioned")


class Seen(NamedTuple):
    """Of a control, the seeds that do not see it fail, and those that theory leaves out."""

    unseen: list[int]
    left_out: list[int]

    @property
    def bad(self) -> bool:
        """Whether it is no control for all seeds."""
        return bool(self.unseen) or len(self.left_out) > LEFT_OUT


def seen(one: Theorem, scenario: Scenario, precision: str) -> dict[str, Seen]:
    """What 24 seeds see of each control."""
    found = {}
    for controls in group_by_settings(controls_of(scenario, precision)):
        job = controls_job(one, scenario, controls, range(SEEDS), precision)
        groups = job.run()
        for control in controls:
            claim, data = claim_of(control, scenario), groups[control_group(control, precision)]
            together = max(1, claim.seeds)
            for first in range(0, SEEDS - together + 1, together):
                part = data.isel(seed=slice(first, first + together))
                leg = {precision: residuals(claim, scenario, part, precision)}
                if control_entry(control, claim, leg)["holds"]:
                    continue
                by_theory = np.isin(leg[precision].reason.values, BY_THEORY).all()
                one_of = found.setdefault(control.id, Seen([], []))
                (one_of.left_out if by_theory else one_of.unseen).append(first)
    return found


def main(names: list[str]) -> int:
    """Look at the controls of theorems; 1 if one is not always seen to fail."""
    bad = 0
    for one in (theorem(name) for name in names or REGISTRY):
        for scenario in one.scenarios:
            for precision in PRECISIONS["float64"]:
                for control, what in seen(one, scenario, precision).items():
                    bad += what.bad
                    print(
                        f"{one.name}: {control} in {precision}: not seen by seeds {what.unseen}, "
                        f"left out {what.left_out}",
                        flush=True,
                    )
        print(f"{one.name}: done", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    cli.setup()
    sys.exit(main(sys.argv[1:]))
