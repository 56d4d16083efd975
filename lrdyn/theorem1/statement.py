"""Theorem 1: minimisers of the factorised loss, and its landscape.

``1/2 ||W_L ... W_1 - Phi||_F^2 + lambda/2 sum_l ||W_l||_F^2`` with hidden layers of width r has the
minimisers ``W_L ... W_1 = U_r s(Sigma_r) V_r^T``, ``Phi = U Sigma V^T``. For two layers
``s(sigma) = (sigma - lambda)_+``, and all critical points but these are strict saddles; for more,
s minimises ``1/2 (s - sigma)^2 + (lambda L / 2) s^{2/L}``, and without decay the origin is none.
"""

from lrdyn.data import mnist_file
from lrdyn.theorem1.balanced_minimum_claims import BALANCED_MINIMUM
from lrdyn.theorem1.critical_points_claims import CRITICAL_POINTS
from lrdyn.theorem1.figures import basins_figure, landscape_figure, shrinkage_figure
from lrdyn.theorem1.minimisers_claims import DESCENT
from lrdyn.theorem1.regularised_autoencoder_claims import AUTOENCODER
from lrdyn.theorem1.rest_points_claims import BASINS
from lrdyn.theorem1.setting import FLAGS, check, numbers, prepare
from lrdyn.verification.stating.statement import Theorem

THEOREM1 = Theorem(
    "theorem1",
    "minimisers shrink the singular values of the target; with two layers all saddles are strict",
    FLAGS,
    (DESCENT, BASINS, CRITICAL_POINTS, BALANCED_MINIMUM, AUTOENCODER),
    plots={
        "landscape": landscape_figure,
        "shrinkage": shrinkage_figure,
        "basins": basins_figure,
    },
    prepare=prepare,
    check=check,
    axes=("init_scale", "depth", "rank"),
    data=lambda settings: mnist_file(),
    numbers=numbers,
    title="Theorem 1",
    page="docs/theorems/theorem1.md",
    source="the first lines of the theorem in the listing of arXiv 2503.19859; Kunin, "
    "Bloom, Goeva and Seed 2019 for data",
    small={"depth": (2, 3), "weight_decay": (0.0, 0.1), "target_scale": (0.7,)},
)
