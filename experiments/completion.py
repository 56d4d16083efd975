"""Verify Corollary 1 for completion and sensing: ``lrdyn verify completion --help``."""

import sys

from lrdyn import cli
from lrdyn.completion.statement import COMPLETION

if __name__ == "__main__":
    sys.exit(cli.main(COMPLETION))
