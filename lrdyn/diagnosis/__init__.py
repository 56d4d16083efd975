"""How low-rank the updates of anyone's training are: while it runs, or between two checkpoints.

:func:`lrdyn.watch` looks from a loop of your own, :func:`lrdyn.diagnose` at weights before and after
it, and :func:`extract` makes an adapter of the difference.
"""
