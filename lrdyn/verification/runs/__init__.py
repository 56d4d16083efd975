"""A run from its settings to its folder, and the runs that lie below a folder."""
