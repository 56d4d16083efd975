"""Updates of real models, as a study: ``lrdyn verify real_updates --help``."""

import sys

from lrdyn import cli
from lrdyn.studies.real_updates import REAL_UPDATES

if __name__ == "__main__":
    sys.exit(cli.main(REAL_UPDATES))
