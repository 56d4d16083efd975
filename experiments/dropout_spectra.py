"""Figure 2, as a study: ``lrdyn verify dropout_spectra --help``."""

import sys

from lrdyn import cli
from lrdyn.studies.dropout_spectra import DROPOUT_SPECTRA

if __name__ == "__main__":
    sys.exit(cli.main(DROPOUT_SPECTRA))
