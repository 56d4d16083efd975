"""DoRA: LoRA on the directions of the rows, and their lengths."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.adapters.adapter import Factors, Linear
from lrdyn.adapters.array_like import row_norms
from lrdyn.adapters.maps import LinearMap, Projector, Separate, Side, draw_projectors, over_maps
from lrdyn.adapters.memory import Footprint, Formula
from lrdyn.adapters.method import Method
from lrdyn.adapters.relora import RELORA_FROZEN
from lrdyn.core import checks


class DirectedFactors(Factors):
    """diag(magnitude / ||rows of W + s B A||) (W + s B A), no gradient through the norms.

    Example:
        >>> factors = jnp.zeros((2, 1)), jnp.ones((1, 2)), jnp.ones(())
        >>> adapter = DirectedFactors(*factors, magnitude=jnp.array([5.0, 2.0]))
        >>> adapter.onto(jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[3.0, 4.0], [0.0, 2.0]]
    """

    magnitude: Any = None
    trained: tuple[str, ...] = eqx.field(static=True, default=("B", "A", "magnitude"), kw_only=True)

    def gain(self, weight: Float[Array, "m n"]) -> Float[Array, "m"]:
        """The magnitude over the norm; a row of zeros stays one."""
        norms = jax.lax.stop_gradient(row_norms(weight, self.chains()))
        return jnp.asarray(self.of("magnitude")) / jnp.where(norms > 0, norms, 1)

    def fitted(self, weight: Float[Array, "m n"]) -> Linear:
        """The magnitudes are the norms of the rows of W."""
        norms = row_norms(weight, ())
        return DirectedFactors(self.B, self.A, self.scale, self.start, norms, trained=self.trained)

    def taken_off(self, merged: Array) -> Array:
        """Refused: the norms that were divided by are not in what was merged."""
        checks.refuse("adapters", "one of DoRA", "others: its norms are lost in a merge")


def _choose(key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side) -> PyTree:
    return over_maps(_directed, draw_projectors(key, gradients, rank, side), gradients)


def _directed(S: LinearMap, G: Array) -> LinearMap | Separate:
    if not isinstance(S, Projector):
        return S
    B, A = S.factors(jnp.zeros_like(S.project(G)))
    one = jnp.ones((), G.dtype)
    return Separate(DirectedFactors(B, A, one, magnitude=jnp.ones(len(G), G.dtype)))


DORA: Method = RELORA_FROZEN._replace(
    choose=_choose,
    side="right",
    gradients=False,
    once=True,
    memory=Footprint(Formula("mn + mr + nr + m"), Formula("2mr + 2nr + 2m"), 1),
)
"""W' = diag(m / ||W + s B A||) (W + s B A), the norms those of the rows and held constant in the
gradient; m starts at the norms of the rows of W, A Gaussian and B = 0 (arXiv 2402.09353)."""
