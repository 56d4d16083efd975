"""Identities of the theorems on small instances, in rational arithmetic: equal, not close.

``python -m referee.exact`` prints one line for each. Starts are orthogonal matrices with rational
entries (Cayley transforms), targets have rational singular vectors and values, steps are rational,
so that both sides of an identity are rational numbers and no rounding can hide a difference. What
needs roots is enclosed in balls of 60 digits (Arb) instead, both sides in one.
"""
