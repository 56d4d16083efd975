"""What labels decide, as a study: ``lrdyn verify labels --help``."""

import sys

from lrdyn import cli
from lrdyn.studies.labels import LABELS

if __name__ == "__main__":
    sys.exit(cli.main(LABELS))
