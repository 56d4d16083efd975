"""Theorem 1: minimisers and critical points of a factorisation of two or more layers.

The formulas stand in ``shrinkage`` (minimisers), ``rest_points`` (local minima of three layers and
more), ``regularised_autoencoder``, ``landscape`` (critical points, Hessians) and ``convergence``
(when descent must have arrived); what is claimed, in ``statement``.
"""

from lrdyn.theorem1.balanced_minimum import balanced_spectrum as balanced_spectrum
from lrdyn.theorem1.balanced_minimum import least_sharpness as least_sharpness
from lrdyn.theorem1.convergence import Curvature as Curvature
from lrdyn.theorem1.convergence import End as End
from lrdyn.theorem1.convergence import Start as Start
from lrdyn.theorem1.convergence import autoencoder_curvature as autoencoder_curvature
from lrdyn.theorem1.convergence import autoencoder_steps as autoencoder_steps
from lrdyn.theorem1.convergence import curvature_at_minimum as curvature_at_minimum
from lrdyn.theorem1.convergence import distance_bound as distance_bound
from lrdyn.theorem1.convergence import sharpness as sharpness
from lrdyn.theorem1.convergence import steps_to_arrive as steps_to_arrive
from lrdyn.theorem1.convergence import threshold as threshold
from lrdyn.theorem1.landscape import CriticalPoint as CriticalPoint
from lrdyn.theorem1.landscape import Sets as Sets
from lrdyn.theorem1.landscape import admissible as admissible
from lrdyn.theorem1.landscape import critical_points as critical_points
from lrdyn.theorem1.landscape import critical_values as critical_values
from lrdyn.theorem1.landscape import find_critical_point as find_critical_point
from lrdyn.theorem1.landscape import hessian as hessian
from lrdyn.theorem1.landscape import hessian_spectrum as hessian_spectrum
from lrdyn.theorem1.landscape import index_sets as index_sets
from lrdyn.theorem1.landscape import members as members
from lrdyn.theorem1.landscape import smallest_curvature as smallest_curvature
from lrdyn.theorem1.regularised_autoencoder import autoencoder_gains as autoencoder_gains
from lrdyn.theorem1.regularised_autoencoder import autoencoder_loss as autoencoder_loss
from lrdyn.theorem1.regularised_autoencoder import autoencoder_minimiser as autoencoder_minimiser
from lrdyn.theorem1.regularised_autoencoder import autoencoder_minimum as autoencoder_minimum
from lrdyn.theorem1.rest_points import deep_curvature as deep_curvature
from lrdyn.theorem1.rest_points import next_critical_value as next_critical_value
from lrdyn.theorem1.rest_points import rest_condition as rest_condition
from lrdyn.theorem1.rest_points import rest_losses as rest_losses
from lrdyn.theorem1.rest_points import steps_to_approach as steps_to_approach
from lrdyn.theorem1.rest_points import sublevel_curvature as sublevel_curvature
from lrdyn.theorem1.shrinkage import barrier as barrier
from lrdyn.theorem1.shrinkage import decayed_loss as decayed_loss
from lrdyn.theorem1.shrinkage import local_minimum as local_minimum
from lrdyn.theorem1.shrinkage import minimiser as minimiser
from lrdyn.theorem1.shrinkage import minimum as minimum
from lrdyn.theorem1.shrinkage import schatten_loss as schatten_loss
from lrdyn.theorem1.shrinkage import shrink as shrink
