"""Figures 4, 5, 7 and 8, as a study: ``lrdyn verify adapters --help``."""

import sys

from lrdyn import cli
from lrdyn.studies.adapter_training import ADAPTERS

if __name__ == "__main__":
    sys.exit(cli.main(ADAPTERS))
