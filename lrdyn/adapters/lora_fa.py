"""LoRA-FA: LoRA whose drawn factor stays."""

from lrdyn.adapters.maps import draw_projectors
from lrdyn.adapters.memory import Footprint, Formula
from lrdyn.adapters.relora import FACTORS, RELORA_FROZEN

LORA_FA = RELORA_FROZEN._replace(
    choose=draw_projectors,
    gradients=False,
    side="right",
    once=True,
    memory=Footprint(
        FACTORS,
        Formula("2mr"),
        1,
        # W + B A and then its gradient, with E, or with that of B.
        merged=Formula("mn", ("mb", "mr")),
        # A X is kept; with it W X and B (A X), or E and the gradient of B.
        layered=Formula("rb", ("2mb", "mb + mr")),
    ),
)
"""W + s B A with A frozen where it was drawn, and B trained from 0 (arXiv 2308.03303): ReLoRA with
a frozen factor that never merges. For the gradient A x alone is kept, and
not x."""
