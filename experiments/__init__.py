"""One thin script for each verification: ``python -m experiments.<name>``."""
