"""Verify LoRA and its relatives: ``lrdyn verify lora --help``."""

import sys

from lrdyn import cli
from lrdyn.lora.statement import LORA

if __name__ == "__main__":
    sys.exit(cli.main(LORA))
