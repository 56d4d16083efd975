"""Verify Theorem 3: ``lrdyn verify theorem3 --help``."""

import sys

from lrdyn import cli
from lrdyn.theorem3.statement import THEOREM3

if __name__ == "__main__":
    sys.exit(cli.main(THEOREM3))
