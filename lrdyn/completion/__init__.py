"""Matrix completion and sensing by full and compressed networks.

Problems and losses stand in ``recovery`` (dense) and ``entries`` (one observed entry at a time);
what is claimed, in ``statement``.
"""

from lrdyn.completion.entries import Lines as Lines
from lrdyn.completion.entries import ObservedEntries as ObservedEntries
from lrdyn.completion.entries import Slopes as Slopes
from lrdyn.completion.entries import entries_loss as entries_loss
from lrdyn.completion.entries import faster_loss as faster_loss
from lrdyn.completion.entries import observed_entries as observed_entries
from lrdyn.completion.recovery import completion_loss as completion_loss
from lrdyn.completion.recovery import discrepant_rates as discrepant_rates
from lrdyn.completion.recovery import observed_loss as observed_loss
from lrdyn.completion.recovery import recovery_error as recovery_error
from lrdyn.completion.recovery import sense as sense
from lrdyn.completion.recovery import sensing_loss as sensing_loss
from lrdyn.completion.recovery import sensing_surrogate as sensing_surrogate
from lrdyn.completion.recovery import sharpness as sharpness
from lrdyn.completion.recovery import spectral_network as spectral_network
from lrdyn.completion.recovery import spread_target as spread_target
from lrdyn.completion.recovery import surrogate as surrogate
from lrdyn.completion.recovery import tangent_curvature as tangent_curvature
