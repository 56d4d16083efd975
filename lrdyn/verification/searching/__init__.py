"""The worst case of a theorem, within its hypotheses and beyond them."""
