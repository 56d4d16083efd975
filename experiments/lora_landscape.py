"""Which rank LoRA's landscape needs: ``lrdyn verify lora_landscape --help``."""

import sys

from lrdyn import cli
from lrdyn.studies.lora_landscape import LORA_LANDSCAPE

if __name__ == "__main__":
    sys.exit(cli.main(LORA_LANDSCAPE))
