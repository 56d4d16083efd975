"""PiSSA: LoRA from the principal singular triples of W."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.adapters.adapter import Factors, Linear
from lrdyn.adapters.maps import Identity, Separate, Side
from lrdyn.adapters.memory import Footprint, Formula
from lrdyn.adapters.method import Method
from lrdyn.adapters.relora import RELORA_FROZEN
from lrdyn.core import linalg


class PrincipalFactors(Factors):
    """Factors that begin at the top-r singular triples of W.

    Example:
        >>> zeros = PrincipalFactors(jnp.zeros((2, 1)), jnp.zeros((1, 2)), jnp.ones(()))
        >>> found = zeros.fitted(jnp.diag(jnp.array([4.0, 1.0])))
        >>> jnp.abs(found.B).round(6).tolist(), jnp.abs(found.A).round(6).tolist()
        ([[2.0], [0.0]], [[2.0, 0.0]])
    """

    def fitted(self, weight: Float[Array, "m n"]) -> Linear:
        """B = U (S / s)^(1/2), A = (S / s)^(1/2) V^T, and the same to subtract."""
        dtype = jnp.promote_types(weight.dtype, jnp.float32)  # LAPACK has no narrower one
        left, values, right = linalg.svd(weight.astype(dtype))
        rank = self.A.shape[0]
        roots = jnp.sqrt(values[:rank] / jnp.asarray(self.scale, dtype))
        B = (left[:, :rank] * roots[None]).astype(weight.dtype)
        A = (roots[:, None] * right[:rank]).astype(weight.dtype)
        return Factors(B, A, self.scale, (B, A))


def _choose(key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side) -> PyTree:
    return jax.tree.map(partial(_one, rank), gradients)


def _one(rank: int, G: Array) -> Separate | Identity:
    if G.ndim != 2:
        return Identity()
    (m, n), rank = G.shape, min(rank, *G.shape)
    zeros = partial(jnp.zeros, dtype=G.dtype)
    return Separate(PrincipalFactors(zeros((m, rank)), zeros((rank, n)), jnp.ones((), G.dtype)))


PISSA: Method = RELORA_FROZEN._replace(
    choose=_choose,
    gradients=False,
    once=True,
    memory=Footprint(Formula("mn + 2mr + 2nr"), Formula("2mr + 2nr"), 1),
)
"""W + s B A - s B_0 A_0 from B = B_0, A = A_0, where s B_0 A_0 is the best approximation of W of
rank r, B_0 = U (S / s)^(1/2) and A_0 = (S / s)^(1/2) V^T (arXiv 2404.02948). The paper
holds the residual W - s B_0 A_0 in the place of W, and is left with LoRA: that is
:func:`lrdyn.adapters.rebase`. In Algorithm 1, whose ``scale``
is another one, s is 1 here; :func:`lrdyn.adapters.init` gives it."""
