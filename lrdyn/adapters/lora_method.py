"""LoRA: ReLoRA that never merges."""

from collections.abc import Callable
from functools import partial
from typing import Literal

from lrdyn.adapters.maps import Law, draw_projectors
from lrdyn.adapters.method import Method
from lrdyn.adapters.relora import RELORA
from lrdyn.core import checks

LORA = RELORA._replace(once=True, memory=RELORA.memory._replace(refresh=None))
"""W + s B A. Both factors are trained, from a Gaussian A and B = 0, and W is frozen for ever (arXiv
2106.09685). The scale s is alpha / r there, :func:`over_rank`, and alpha / sqrt(r) in rsLoRA (arXiv
2312.03732), :func:`over_root`."""


def lora(*, zero: Literal["A", "B"] = "B", law: Law = "gaussian") -> Method:
    """LoRA with another start (arXiv 2406.08447 compares them): one factor is 0, one is drawn.

    Args:
        zero: which factor is 0. With B = 0 the first step moves B alone, with A = 0 it moves A.
        law: of the other, of length l (n for A, m for B): ``gaussian``, of variance 1 / l, or
            ``kaiming``, uniform within 1 / sqrt(l).

    Example:
        >>> import jax, jax.numpy as jnp, lrdyn
        >>> found = lrdyn.adapters.init(
        ...     jax.random.key(0), {"W": jnp.eye(3)}, rank=2, method=lora(zero="A"))
        >>> found["W"].A.any().item(), found["W"].B.any().item()
        (False, True)
    """
    if zero not in ("A", "B"):
        checks.refuse("zero", repr(zero), "'A' or 'B'")
    side = "right" if zero == "B" else "left"
    return LORA._replace(choose=partial(draw_projectors, law=law), side=side)


def over_rank(alpha: float | int) -> Callable[[int], float]:
    """The scale s = alpha / r, as a function of r (arXiv 2106.09685).

    Example:
        >>> over_rank(16)(8)
        2.0
    """
    alpha = checks.positive("alpha", alpha)
    return lambda rank: alpha / checks.integer("rank", rank)


def over_root(alpha: float | int) -> Callable[[int], float]:
    """The scale s = alpha / sqrt(r), as a function of r: rsLoRA (arXiv 2312.03732).

    Example:
        >>> over_root(16)(4)
        8.0
    """
    alpha = checks.positive("alpha", alpha)
    return lambda rank: alpha / checks.integer("rank", rank) ** 0.5
