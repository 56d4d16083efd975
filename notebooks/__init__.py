"""Notebooks, one for each theorem, and the command that runs them: ``python -m notebooks``."""

import lrdyn  # noqa: F401  (from here on Ctrl-C ends the command in one line)
