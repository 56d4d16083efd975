"""The edge of stability, solved for two layers: beyond the survey.

The two-cycle of one mode stands in ``cycles``, whether singular vectors stay in ``alignment``; what
is claimed, in ``statement``.
"""

from lrdyn.edge_of_stability.alignment import Pair as Pair
from lrdyn.edge_of_stability.alignment import PairMultipliers as PairMultipliers
from lrdyn.edge_of_stability.alignment import alignment_growth as alignment_growth
from lrdyn.edge_of_stability.alignment import cycle_exponent as cycle_exponent
from lrdyn.edge_of_stability.alignment import largest_square as largest_square
from lrdyn.edge_of_stability.alignment import off_diagonal_step as off_diagonal_step
from lrdyn.edge_of_stability.alignment import oscillating_pair as oscillating_pair
from lrdyn.edge_of_stability.alignment import oscillation_excess as oscillation_excess
from lrdyn.edge_of_stability.alignment import resting_pair as resting_pair
from lrdyn.edge_of_stability.alignment import without_gauge as without_gauge
from lrdyn.edge_of_stability.cycles import TwoCycle as TwoCycle
from lrdyn.edge_of_stability.cycles import balance_decay as balance_decay
from lrdyn.edge_of_stability.cycles import balance_factor as balance_factor
from lrdyn.edge_of_stability.cycles import balanced_step as balanced_step
from lrdyn.edge_of_stability.cycles import cycle_edge_ratio as cycle_edge_ratio
from lrdyn.edge_of_stability.cycles import cycle_multiplier as cycle_multiplier
from lrdyn.edge_of_stability.cycles import doubling as doubling
from lrdyn.edge_of_stability.cycles import edge as edge
from lrdyn.edge_of_stability.cycles import fastest_cycle as fastest_cycle
from lrdyn.edge_of_stability.cycles import halve as halve
from lrdyn.edge_of_stability.cycles import orbit_at_twice_the_edge as orbit_at_twice_the_edge
from lrdyn.edge_of_stability.cycles import two_cycle as two_cycle
from lrdyn.edge_of_stability.dense import AlignedNetwork as AlignedNetwork
