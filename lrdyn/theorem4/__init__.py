"""Theorem 4: GaLore is ReLoRA, and gradients become low-rank.

The formulas of the gradients stand in ``gradient_rank``; Algorithm 1 and its methods, in
:mod:`lrdyn.adapters`; what is claimed, in ``statement``.
"""

from lrdyn.theorem4.gradient_rank import Edges as Edges
from lrdyn.theorem4.gradient_rank import GradientModes as GradientModes
from lrdyn.theorem4.gradient_rank import StableRankBounds as StableRankBounds
from lrdyn.theorem4.gradient_rank import gradient_modes as gradient_modes
from lrdyn.theorem4.gradient_rank import gradient_path as gradient_path
from lrdyn.theorem4.gradient_rank import misalignment as misalignment
from lrdyn.theorem4.gradient_rank import slowest_part as slowest_part
from lrdyn.theorem4.gradient_rank import spectral_edges as spectral_edges
from lrdyn.theorem4.gradient_rank import stable_rank as stable_rank
from lrdyn.theorem4.gradient_rank import stable_rank_bounds as stable_rank_bounds
