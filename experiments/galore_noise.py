"""Verify how GaLore stops under noise: ``lrdyn verify galore_noise --help``."""

import sys

from lrdyn import cli
from lrdyn.galore_noise.statement import GALORE_NOISE

if __name__ == "__main__":
    sys.exit(cli.main(GALORE_NOISE))
