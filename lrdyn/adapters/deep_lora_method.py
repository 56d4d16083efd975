"""Deep LoRA: a product of more than two factors."""

from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.adapters.adapter import Started
from lrdyn.adapters.maps import Parametrization, Separate, Side, matrices_alone
from lrdyn.adapters.memory import Footprint, Formula
from lrdyn.adapters.method import Method
from lrdyn.adapters.relora import RELORA_FROZEN
from lrdyn.core import checks
from lrdyn.core.initialization import orthogonal_layers


class DeepFactors(Started):
    """s F_1 F_2 ... F_k, less the same product at the start if that is to be subtracted.

    Args:
        factors: F_1, the last to act, to F_k, the first.
        scale: s.
        start: the factors at the start, or None.
        gap: of the gradient that the outer factors come from, see
            :class:`lrdyn.corollary1.GradientBasis`.
        framed: whether the outer factors are a frame, with a label of its own.

    Example:
        >>> factors = jnp.ones((2, 1)), jnp.ones((1, 1)), jnp.ones((1, 3))
        >>> DeepFactors(factors, jnp.asarray(2.0)).onto(jnp.zeros((2, 3))).tolist()
        [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """

    factors: tuple[Array, ...]
    scale: Any = 1.0
    start: tuple[Array, ...] | None = None
    gap: Float[Array, ""] | None = None
    framed: bool = eqx.field(static=True, default=False, kw_only=True)
    trained: tuple[str, ...] = eqx.field(static=True, default=("factors",), kw_only=True)

    def factors_now(self) -> tuple[Array, ...]:
        """The factors."""
        return self.of("factors")

    def label(self, name: str) -> Any:
        """``factors``; of a compressed network ``inner``, and ``frame`` for the outer two."""
        if not self.framed:
            return tuple("factors" for _ in self.factors)
        return ("frame", *("inner" for _ in self.factors[1:-1]), "frame")


def deep_lora(*, depth: int = 3, init_scale: float = 1e-3, centred: bool = False) -> Method:
    """Deep LoRA (arXiv 2406.04112): W + s W_L ... W_1, each W_l(0) = eps * orthogonal.

    The rank is the width between the factors, m x r, r x r, ..., r x n: with r = n = m it is the
    overparametrised product of the paper, whose updates have low rank all the same (Theorem 2).
    Depth 2 is LoRA with another start.

    Args:
        depth: L.
        init_scale: eps.
        centred: subtract the product at the start, so that a run begins at W.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import lrdyn
        >>> found = lrdyn.adapters.init(
        ...     jax.random.key(0), {"W": jnp.ones((4, 3))}, rank=2, method=deep_lora())
        >>> [F.shape for F in found["W"].factors]
        [(4, 2), (2, 2), (2, 3)]
    """
    checks.integer("depth", depth, 2)
    checks.positive("init_scale", init_scale)
    checks.instance("centred", centred, bool)
    # At depth 2 there are none of r x r.
    inner = depth - 2
    times = 2 if centred else 1
    held = f"mn + {times}mr + {times * inner}rr + {times}nr"
    return RELORA_FROZEN._replace(
        choose=partial(_choose, depth=depth, init_scale=init_scale, centred=centred),
        side="right",
        gradients=False,
        once=True,
        memory=Footprint(Formula(held), Formula(f"2mr + {2 * inner}rr + 2nr"), 1),
    )


def _choose(
    key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side, *,
    depth: int, init_scale: float, centred: bool,
) -> PyTree:  # fmt: skip
    def one(key: Key[Array, ""], G: Array) -> Parametrization:
        (m, n), width = G.shape, min(rank, *G.shape)
        scales = jnp.full(depth, init_scale, G.dtype)
        layers = orthogonal_layers(key, (n, *[width] * (depth - 1), m), scales)
        factors = tuple(W.astype(G.dtype) for W in reversed(layers))
        start = factors if centred else None
        return Separate(DeepFactors(factors, jnp.ones((), G.dtype), start))

    return matrices_alone(one, key, gradients)
