"""Verify Theorem 1: ``lrdyn verify theorem1 --help``."""

import sys

from lrdyn import cli
from lrdyn.theorem1.statement import THEOREM1

if __name__ == "__main__":
    sys.exit(cli.main(THEOREM1))
