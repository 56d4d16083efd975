"""Figure 1, as a study: ``lrdyn verify weight_updates --help``."""

import sys

from lrdyn import cli
from lrdyn.studies.weight_updates import WEIGHT_UPDATES

if __name__ == "__main__":
    sys.exit(cli.main(WEIGHT_UPDATES))
