"""ReLoRA, with a frozen factor and with both trained: W is frozen, and takes over s B A."""

from lrdyn.adapters.maps import by_svd, draw_projectors
from lrdyn.adapters.memory import DECOMPOSED, PROJECTED, Footprint, Formula
from lrdyn.adapters.method import Method, Parts, Split

FACTORS = Formula("mn + mr + nr")
"""W, B and A."""

RELORA_FROZEN = Method(
    split=lambda parts: Split(parts.coordinates, (parts.weights, parts.maps)),
    parts=lambda split: Parts(*split.frozen, coordinates=split.trained),
    choose=by_svd,
    gradients=True,
    side="smaller",
    state="reset",
    memory=Footprint(
        FACTORS,
        Formula("2nr"),
        1,
        merged=PROJECTED,
        layered=Formula("rb", ("2mb", "nr")),
        refresh=DECOMPOSED,
    ),
)
"""ReLoRA': one factor is frozen at GaLore's P; the other, from 0, is trained and merged every T
steps, and the state of the optimiser is reset. Line 3 of Algorithm 1 chooses P."""

RELORA = Method(
    split=lambda parts: Split((parts.maps, parts.coordinates), parts.weights),
    parts=lambda split: Parts(split.frozen, *split.trained),
    choose=draw_projectors,
    side="right",
    state="reset",
    memory=Footprint(
        FACTORS,
        Formula("2mr + 2nr"),
        1,
        # W + B A and then its gradient, with E, or with the gradients of the trained factors.
        merged=Formula("mn", ("mb", "mr + nr")),
        # A X is kept; with it W X and B (A X), or E, B^T E and the gradient of B, or that of A.
        layered=Formula("rb", ("2mb", "mb + rb + mr", "nr")),
        # B A is formed and added; the rest happens in place.
        refresh=Formula("mn"),
    ),
)
"""ReLoRA as published: both factors are trained; every T steps B A is merged, A drawn anew and B
set to 0 (arXiv 2307.05695). With ``choose`` of another kind the factor that is not 0 starts there:
at GaLore's P, say."""
