"""GaLore under gradient noise, solved on the example of GoLore's authors, on which it stops.

With a deterministic gradient GaLore converges. Under noise of one size in a few directions the top
singular vectors are those of the noise as soon as the gradient is smaller, and the rows that are to
be learnt never move again. The example was read at second hand: it is stated here in full.
"""

from lrdyn.galore_noise.any_optimizer_claims import ANY_OPTIMIZER
from lrdyn.galore_noise.setting import FLAGS, SMALL, check, numbers
from lrdyn.galore_noise.stability_claims import STABILITY
from lrdyn.galore_noise.stop_claims import STOP
from lrdyn.verification.stating.statement import Theorem

GALORE_NOISE = Theorem(
    "galore_noise",
    "under gradient noise GaLore stops before it has converged, at a step that is known exactly",
    FLAGS,
    (STOP, ANY_OPTIMIZER, STABILITY),
    axes=("rank",),
    check=check,
    numbers=numbers,
    title="GaLore under noise",
    page="docs/theorems/galore_noise.md",
    small=SMALL,
)
