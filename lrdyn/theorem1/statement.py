"""Theorem 1: minimisers of the factorised loss, and its landscape."""

from lrdyn.data import mnist_file
from lrdyn.theorem import Theorem
from lrdyn.theorems.theorem1.critical_points import CRITICAL_POINTS
from lrdyn.theorems.theorem1.figures import landscape_figure, shrinkage_figure
from lrdyn.theorems.theorem1.minimisers import DESCENT
from lrdyn.theorems.theorem1.regularised_autoencoder import AUTOENCODER
from lrdyn.theorems.theorem1.setting import FLAGS, check, numbers, prepare

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
