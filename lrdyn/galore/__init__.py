"""optax's GaLore: an implementation of Algorithm 1, and no theorem of the survey.

The projectors that it takes stand in ``projectors``; what is claimed of it, in ``statement``.
"""

from lrdyn.galore.projectors import align_signs as align_signs
from lrdyn.galore.projectors import single_precision_projector as single_precision_projector
