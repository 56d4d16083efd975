"""Ratios against rivals, both sides measured in one run: ``python -m benchmarks``."""

import lrdyn  # noqa: F401  (from here on Ctrl-C ends the command in one line)
