"""Are all controls seen to fail whatever the seed? ``python -m tests.faults.controls [NAME ...]``.

Controls run with the seeds of the command: one that fails for most seeds only makes a true
theorem look false. Each control of each theorem runs in both precisions with 24 seeds, each seed
judged alone, as ``--seed N --seeds 1`` does. Prints a line for each that a seed does not see; the
status is 1 if there is one. It takes some minutes a theorem.
"""

import sys

from lrdyn import cli
from lrdyn.engine.groups import PRECISIONS, control_group, controls_of
from lrdyn.engine.jobs import controls_job
from lrdyn.engine.judging import claim_of, control_entry, residuals
from lrdyn.engine.produce import with_equal_settings
from lrdyn.theorem import Scenario, Theorem
from lrdyn.theorems import REGISTRY, theorem

SEEDS = 24


def unseen(one: Theorem, scenario: Scenario, precision: str) -> dict[str, list[int]]:
    """Control -> the seeds for which it is not seen to fail."""
    found = {}
    for controls in with_equal_settings(controls_of(scenario, precision)):
        job = controls_job(one, scenario, controls, range(SEEDS), precision)
        groups = job.run()
        for control in controls:
            claim, data = claim_of(control, scenario), groups[control_group(control, precision)]
            together = max(1, claim.seeds)
            for first in range(0, SEEDS - together + 1, together):
                part = data.isel(seed=slice(first, first + together))
                leg = {precision: residuals(claim, scenario, part, precision)}
                if not control_entry(control, claim, leg)["holds"]:
                    found.setdefault(control.id, []).append(first)
    return found


def main(names: list[str]) -> int:
    """Look at the controls of theorems; 1 if one is not always seen to fail."""
    bad = 0
    for one in (theorem(name) for name in names or REGISTRY):
        for scenario in one.scenarios:
            for precision in PRECISIONS["float64"]:
                for control, seeds in unseen(one, scenario, precision).items():
                    bad += 1
                    print(f"{one.name}: {control} in {precision}: seeds {seeds}", flush=True)
        print(f"{one.name}: done", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    cli.setup()
    sys.exit(main(sys.argv[1:]))
