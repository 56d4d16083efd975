"""Verify what is claimed of optax's GaLore: ``lrdyn verify galore --help``."""

import sys

from lrdyn import cli
from lrdyn.galore.statement import GALORE

if __name__ == "__main__":
    sys.exit(cli.main(GALORE))
