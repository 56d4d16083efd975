"""GaLore under gradient noise: how it stops, to the last step. Beyond the survey.

The formulas stand in ``stall``; what is claimed, in ``statement``.
"""

from lrdyn.galore_noise.stall import last_moving_step as last_moving_step
from lrdyn.galore_noise.stall import refreshes_needed as refreshes_needed
from lrdyn.galore_noise.stall import schedule as schedule
from lrdyn.galore_noise.stall import stall_exponent as stall_exponent
from lrdyn.galore_noise.stall import stall_factor as stall_factor
from lrdyn.galore_noise.stall import stall_factor_on_the_right as stall_factor_on_the_right
