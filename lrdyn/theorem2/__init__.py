"""Theorem 2: descent on a deep factorisation lives in a subspace of dimension 2r.

The formulas stand in ``subspace`` (frame, rho, blocks) and ``classifier`` (the version for
classifiers) and ``collapse`` (between its layers); what is claimed, in ``statement``.
"""

from lrdyn.theorem2.classifier import Number as Number
from lrdyn.theorem2.classifier import classifier_blocks as classifier_blocks
from lrdyn.theorem2.classifier import classifier_frame as classifier_frame
from lrdyn.theorem2.classifier import classifier_rho as classifier_rho
from lrdyn.theorem2.classifier import classifier_start as classifier_start
from lrdyn.theorem2.collapse import collapse_lower_bound as collapse_lower_bound
from lrdyn.theorem2.collapse import collapse_metrics as collapse_metrics
from lrdyn.theorem2.collapse import collapse_ratio as collapse_ratio
from lrdyn.theorem2.subspace import Blocks as Blocks
from lrdyn.theorem2.subspace import Frame as Frame
from lrdyn.theorem2.subspace import blocks as blocks
from lrdyn.theorem2.subspace import checked_frame as checked_frame
from lrdyn.theorem2.subspace import expand as expand
from lrdyn.theorem2.subspace import frame as frame
from lrdyn.theorem2.subspace import product_of_others as product_of_others
from lrdyn.theorem2.subspace import propagate as propagate
from lrdyn.theorem2.subspace import reduced_dynamics as reduced_dynamics
from lrdyn.theorem2.subspace import reduced_lanes as reduced_lanes
from lrdyn.theorem2.subspace import reduced_spectra as reduced_spectra
from lrdyn.theorem2.subspace import reduced_start as reduced_start
from lrdyn.theorem2.subspace import reduced_target as reduced_target
from lrdyn.theorem2.subspace import rho as rho
from lrdyn.theorem2.subspace import square_layers as square_layers
from lrdyn.theorem2.subspace import start_scales as start_scales
from lrdyn.theorem2.subspace import unscaled_product as unscaled_product
