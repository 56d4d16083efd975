"""LoRA and its relatives: one step, starts, counts, compression.

The methods stand in :mod:`lrdyn.adapters`; what is claimed of them, in ``statement``.
"""
