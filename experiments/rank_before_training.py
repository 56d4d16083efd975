"""Which rank before training, as a study: ``lrdyn verify rank_before_training --help``."""

import sys

from lrdyn import cli
from lrdyn.studies.rank_before_training import RANK_BEFORE_TRAINING

if __name__ == "__main__":
    sys.exit(cli.main(RANK_BEFORE_TRAINING))
