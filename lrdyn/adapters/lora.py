"""LoRA: ReLoRA that never merges."""

from lrdyn.adapters.relora import RELORA

LORA = RELORA._replace(once=True, memory=RELORA.memory._replace(refresh=None))
"""Both factors are trained, from a Gaussian A and B = 0, and W is frozen for ever (arXiv
2106.09685)."""
