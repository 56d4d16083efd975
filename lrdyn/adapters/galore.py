"""GaLore: W is trained, through coordinates of its gradient."""

from lrdyn.adapters.maps import by_svd, identities, lift_onto, project
from lrdyn.adapters.memory import DECOMPOSED, PROJECTED, SVD, Footprint, Formula
from lrdyn.adapters.method import Method, Parts, Split

GALORE = Method(
    split=lambda parts: Split(parts.weights, parts.maps),
    parts=lambda split: Parts(split.trained, split.frozen, None),
    sees=lambda split, gradients: project(split.frozen, gradients),
    move=lambda split, updates, scale: split._replace(
        trained=lift_onto(split.trained, split.frozen, updates, scale)
    ),
    choose=by_svd,
    gradients=True,
    side="smaller",
    state="keep",
    memory=Footprint(
        Formula("mn"), Formula("mr + 2nr"), 1, merged=PROJECTED, refresh=DECOMPOSED
    ),
)  # fmt: skip
"""The gradient is projected, the update is lifted; P comes from an SVD of the gradient every T
steps, on the smaller side, and the state of the optimiser is kept (arXiv 2403.03507)."""

FULL = GALORE._replace(
    choose=identities,
    gradients=False,
    once=True,
    # W X became E in place; it is held with the gradient E X^T.
    memory=Footprint(Formula("mn"), Formula("2mn"), 1, merged=Formula("mn + mb")),
)
"""Full training: P is the identity, for every parameter and for ever."""

OPTAX_GALORE = Footprint(
    # One program steps and refreshes: the gradient is needed again after its SVD.
    Formula("mn"), Formula("nr + 2mr"), 2, merged=Formula("mn", ("mb", "nr", SVD))
)  # fmt: skip
"""What :data:`FULL` holds if its optimiser is ``optax.contrib.galore``: P on the larger side.
Its SVD is in float32 in either precision: in float64 a step needs up to half of it less."""
