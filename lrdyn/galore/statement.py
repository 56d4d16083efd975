"""What is claimed of ``optax.contrib.galore``, which is another library's: no theorem of a survey.

It stands beside Theorem 4, which says what Algorithm 1 does; here another implementation is
compared with it. A release of optax that nobody has looked at leaves every claim undecided.
"""

import dataclasses

from lrdyn.galore.figures import plot_distances
from lrdyn.galore.path_claims import PATH
from lrdyn.galore.releases import RELEASES
from lrdyn.galore.state_claims import STATE
from lrdyn.theorem4 import statement as theorem4
from lrdyn.verification.stating.flags import Flag
from lrdyn.verification.stating.statement import Theorem

OWN = {
    "optimizer": {"quick": ("adam",), "help": "base optimiser: sgd, momentum 0.9, or Adam"},
    "learning_rate": {"help": "step size"},
    "gradient_gap": {
        "help": "sigma_r - sigma_{r+1} of the second layer's gradient at the first refresh, over "
        "what it is as drawn; 0: a tie"
    },
}
"""What is another than in Theorem 4: Adam alone, optax's default, unless others are asked for."""
NAMES = ("rows", "cols", "rank", "period", "optimizer", "learning_rate", "gradient_gap", "steps")

FLAGS: tuple[Flag, ...] = tuple(
    dataclasses.replace(flag, **OWN.get(flag.name, {}))
    for flag in theorem4.FLAGS
    if flag.name in NAMES
)

GALORE = Theorem(
    "galore",
    f"optax's GaLore is Algorithm 1 on the larger side; no theorem of the survey "
    f"(seen on optax {', '.join(RELEASES)})",
    FLAGS,
    (PATH, STATE),
    plots={"distances": plot_distances},
    numbers=lambda point: 8 * point["rows"] * point["cols"],  # two layers: W, G and two moments
    prepare=theorem4.refuse_equal_cases,
    check=theorem4.check,
    axes=("rank",),
    title="GaLore in optax",
    page="docs/theorems/optax_galore.md",
    small=theorem4.SMALL,
)
