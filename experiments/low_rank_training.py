"""Low-rank training of a small LLaMA: ``lrdyn verify low_rank_training --help``."""

import sys

from lrdyn import cli
from lrdyn.studies.low_rank_training import LOW_RANK_TRAINING

if __name__ == "__main__":
    sys.exit(cli.main(LOW_RANK_TRAINING))
