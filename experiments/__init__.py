"""One thin script for each: in a clone ``python -m experiments.NAME`` is ``lrdyn verify NAME``."""

import lrdyn  # noqa: F401  (from here on Ctrl-C ends the command in one line)
