"""Verify Theorem 2 for other optimisers: ``lrdyn verify equivariance --help``."""

import sys

from lrdyn import cli
from lrdyn.equivariance.statement import EQUIVARIANCE

if __name__ == "__main__":
    sys.exit(cli.main(EQUIVARIANCE))
