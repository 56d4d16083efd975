"""Mutants: which wrong lines of formulas, claims and judges does somebody notice?

``python -m tests.mutants`` (``make mutants``) draws mutants, runs each against the command and the
tests that can see it, in a copy of the tree, and says which of them stay alive.
"""
