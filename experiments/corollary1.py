"""Verify Corollary 1: ``lrdyn verify corollary1 --help``."""

import sys

from lrdyn import cli
from lrdyn.corollary1.statement import COROLLARY1

if __name__ == "__main__":
    sys.exit(cli.main(COROLLARY1))
