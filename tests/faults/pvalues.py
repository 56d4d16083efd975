"""Are p-values of Theorem 3 uniform? 200 seeds of each statistical claim, Kolmogorov-Smirnov.

``python -m tests.faults.pvalues`` prints a line for each claim and setting, and fails if the
p-value of the Kolmogorov-Smirnov test is 1e-3 or less. It takes some minutes.
"""

import sys

import jax
import numpy as np
from scipy.stats import kstest

from lrdyn.theorem3.dropout_minimiser_claims import MINIMISER
from lrdyn.theorem3.statement import MASKS, THEOREM3
from tests.oracles import judged

SEEDS = 200
LEAST = 1e-3
SETTINGS = (
    (MASKS, {"mask": "dropblock", "keep_prob": 0.7}),
    (MASKS, {"mask": "dropout", "keep_prob": 0.3}),
    # The steps of gradient descent, which is not looked at, and of the others: 5000/12.
    (MINIMISER, {"mask": "dropout", "keep_prob": 0.5}),
)


def main() -> int:
    """Test every claim; the number of those that fail."""
    failed = 0
    for scenario, flags in SETTINGS:
        _, legs = judged(THEOREM3, scenario, flags, range(SEEDS))
        for claim in scenario.claims:
            if claim.kind == "statistical":
                found = 10.0 ** -legs[claim.id].residual.values.ravel()
                p = float(kstest(found, "uniform").pvalue)
                failed += not p > LEAST
                where = " ".join(f"{name}={value}" for name, value in flags.items())
                judged_cases = int(np.sum(legs[claim.id].reason.values == ""))
                print(
                    f"{claim.id} ({where}): {judged_cases} of {SEEDS} seeds judged, "
                    f"p of the KS test {p:.3g}, least p {found.min():.2g}"
                )
    return failed


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    sys.exit(bool(main()))
