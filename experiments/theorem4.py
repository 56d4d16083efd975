"""Verify Theorem 4: ``lrdyn verify theorem4 --help``."""

import sys

from lrdyn import cli
from lrdyn.theorem4.statement import THEOREM4

if __name__ == "__main__":
    sys.exit(cli.main(THEOREM4))
