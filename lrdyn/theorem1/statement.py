"""Theorem 1: minimisers of the factorised loss, and its landscape."""

from lrdyn.data import mnist_file
from lrdyn.engine.statement import Theorem
from lrdyn.theorem1.critical_points_claims import CRITICAL_POINTS
from lrdyn.theorem1.figures import landscape_figure, shrinkage_figure
from lrdyn.theorem1.minimisers_claims import DESCENT
from lrdyn.theorem1.regularised_autoencoder_claims import AUTOENCODER
from lrdyn.theorem1.setting import FLAGS, check, numbers, prepare

THEOREM1 = Theorem(
    "theorem1",
    "minimisers shrink the singular values of the target, and all saddles are strict",
    FLAGS,
    (DESCENT, CRITICAL_POINTS, AUTOENCODER),
    plots={"landscape": landscape_figure, "shrinkage": shrinkage_figure},
    prepare=prepare,
    check=check,
    axes=("init_scale", "depth", "rank"),
    data=lambda settings: mnist_file(),
    numbers=numbers,
)
