"""Theorem 2 for other optimisers than gradient descent, and what Muon conserves.

An optimiser that does not see the basis keeps Theorem 2's blocks in every frame; one that commutes
with signed permutations keeps them where the frame is the standard basis; Muon with exact polar
factors moves every singular value of aligned layers by eta.
"""

import dataclasses
from typing import Any

from lrdyn.equivariance.every_basis_claims import EVERY_BASIS
from lrdyn.equivariance.muon_law_claims import MUON_LAW
from lrdyn.equivariance.standard_basis_claims import COORDINATEWISE, STANDARD_BASIS
from lrdyn.theorem2 import setting
from lrdyn.theorem2.optimizers import OPTIMIZERS
from lrdyn.verification.stating.flags import Flag, one_of
from lrdyn.verification.stating.statement import Theorem

OWN: dict[str, dict[str, Any]] = {
    "dim": {"quick": (12,), "paper": (30,)},
    "depth": {"quick": (3,), "paper": (2, 4)},
    "rank": {"quick": (2,), "paper": (1, 3)},
    "init_spread": {"quick": (2.0,)},
    "weight_decay": {"quick": (0.1,), "paper": (0.0, 0.1)},
    "decay_spread": {"quick": (2.0,)},
    "learning_rate": {"quick": (5e-3,), "paper": ()},
    "steps": {"quick": (150,), "paper": (300,)},
    "optimizer": {"quick": ("clipped", "muon"), "paper": tuple(OPTIMIZERS)},
}
"""What is another than in Theorem 2: all optimisers, and one rate with which all of them move."""

FLAGS = (
    *(dataclasses.replace(flag, **OWN.get(flag.name, {})) for flag in setting.FLAGS),
    Flag(
        "coordinatewise",
        ("adam",),
        one_of(*COORDINATEWISE),
        str,
        help="optimisers that see the basis, but not its order and signs",
        paper=tuple(COORDINATEWISE),
        shapes=True,
    ),
)

EQUIVARIANCE = Theorem(
    "equivariance",
    "Theorem 2 for optimisers that do not see the basis, for Adam in the standard basis, and the "
    "law of Muon",
    FLAGS,
    (EVERY_BASIS, STANDARD_BASIS, MUON_LAW),
    prepare=setting.prepare,
    check=setting.check,
    axes=("init_scale", "optimizer"),
    numbers=setting.numbers,
    title="Theorem 2 for other optimisers",
    page="docs/theorems/equivariance.md",
    small=setting.SMALL | {"steps": 60, "target_scale": (1.0,)},
)
