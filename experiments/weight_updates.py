"""Figure 1, as a study: ``python -m experiments.weight_updates --help``."""

import sys

from lrdyn import cli
from lrdyn.studies.weight_updates import WEIGHT_UPDATES

if __name__ == "__main__":
    sys.exit(cli.main(WEIGHT_UPDATES))
