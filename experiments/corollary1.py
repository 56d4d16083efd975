"""Verify Corollary 1: ``python -m experiments.corollary1 --help``."""

import sys

from lrdyn import cli
from lrdyn.theorems.corollary1 import COROLLARY1

if __name__ == "__main__":
    sys.exit(cli.main(COROLLARY1))
