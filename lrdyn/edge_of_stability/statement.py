"""The edge of stability, solved for two layers: what is beyond the survey.

At steps above ``eta_c = (2/L) s^{-(2 - 2/L)}`` a balanced mode oscillates on a two-cycle in closed
form (``cycles``), doubles, and becomes chaotic. With two layers the singular vectors of a mode on
its two-cycle stay, others at rest, if and only if ``eta (s_1 + s_2) < 2`` (``alignment``).
"""

from lrdyn.edge_of_stability.alignment_claims import ALIGNMENT
from lrdyn.edge_of_stability.blocks_claims import BLOCKS
from lrdyn.edge_of_stability.cycle_claims import CYCLE
from lrdyn.edge_of_stability.depth_claims import DEPTH
from lrdyn.edge_of_stability.setting import FLAGS, SMALL, numbers
from lrdyn.edge_of_stability.twice_claims import TWICE
from lrdyn.verification.stating.statement import Theorem

EDGE_OF_STABILITY = Theorem(
    "edge_of_stability",
    "past the edge of stability a mode oscillates in closed form, and its vectors stay while eta "
    "(s_1 + s_2) < 2",
    FLAGS,
    (CYCLE, TWICE, ALIGNMENT, DEPTH, BLOCKS),
    axes=("edge_ratio", "depth", "mode_ratio"),
    numbers=numbers,
    title="Edge of stability",
    page="docs/theorems/edge_of_stability.md",
    small=SMALL,
)
