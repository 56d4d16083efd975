"""Which rank LoRA's landscape needs: ``python -m experiments.lora_landscape --help``."""

import sys

from lrdyn import cli
from lrdyn.studies.lora_landscape import LORA_LANDSCAPE

if __name__ == "__main__":
    sys.exit(cli.main(LORA_LANDSCAPE))
