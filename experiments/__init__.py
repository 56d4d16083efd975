"""One thin script for each verification: ``python -m experiments.<name>``."""

import lrdyn  # noqa: F401  (from here on Ctrl-C ends the command in one line)
