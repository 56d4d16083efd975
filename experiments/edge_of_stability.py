"""Verify the edge of stability: ``lrdyn verify edge_of_stability --help``."""

import sys

from lrdyn import cli
from lrdyn.edge_of_stability.statement import EDGE_OF_STABILITY

if __name__ == "__main__":
    sys.exit(cli.main(EDGE_OF_STABILITY))
