"""Theorem 2 for other optimisers: which of them see the basis, and what holds of those.

What an optimiser sees is tried in ``trial``, all that optax exports in ``optax_exports``, one of
your own is verified by ``own``; what Muon conserves stands in ``muon_law``. The reduced runs of
optimisers are in :mod:`lrdyn.theorem2.optimizers`; what is claimed, in ``statement``.
"""

from lrdyn.equivariance.muon_law import arrival_steps as arrival_steps
from lrdyn.equivariance.muon_law import muon_values as muon_values
from lrdyn.equivariance.muon_law import polar_muon as polar_muon
from lrdyn.equivariance.own import theorem2_for as theorem2_for
from lrdyn.equivariance.trial import KINDS as KINDS
from lrdyn.equivariance.trial import Equivariance as Equivariance
from lrdyn.equivariance.trial import change_bases as change_bases
from lrdyn.equivariance.trial import equivariance as equivariance
from lrdyn.equivariance.trial import signed_permutations as signed_permutations
