"""Verify Theorem 2: ``lrdyn verify theorem2 --help``."""

import sys

from lrdyn import cli
from lrdyn.theorem2.statement import THEOREM2

if __name__ == "__main__":
    sys.exit(cli.main(THEOREM2))
