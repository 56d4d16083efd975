"""Dense layers in rotated bases, and their descent by automatic differentiation.

``W_l = Q_l diag(rho_l) Q_{l-1}^T`` with ``Phi = Q_L diag(s) Q_0^T`` and random reflections ``Q_l``:
in exact arithmetic the bases stay, whatever the step size. Nothing here knows that: a step is the
gradient of ``1/2 ||W_L ... W_1 - Phi||_F^2``, and small errors of the layers are followed by its
derivative. In a basis without zeros rounding gets into every entry.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core.factorization import Weights, factorization_loss
from lrdyn.core.initialization import reflection


class AlignedNetwork(eqx.Module):
    """Bases, target and step size of a network whose layers are diagonal in its bases."""

    bases: Float[Array, "sides d d"]
    """Q_0, ..., Q_L, orthogonal."""
    values: Float[Array, "d"]
    """s, the singular values of the target."""
    learning_rate: Float[Array, ""]
    """eta."""

    @property
    def depth(self) -> int:
        """Number L of layers."""
        return len(self.bases) - 1

    @property
    def target(self) -> Float[Array, "d d"]:
        """Phi = Q_L diag(s) Q_0^T."""
        return (self.bases[-1] * self.values[None, :]) @ self.bases[0].T

    def from_frame(self, blocks: Float[Array, "depth d d"]) -> Weights:
        """Layers Q_l B_l Q_{l-1}^T of matrices B_l."""
        return jnp.unstack(self.bases[1:] @ blocks @ jnp.swapaxes(self.bases[:-1], 1, 2))

    def to_frame(self, weights: Weights) -> Float[Array, "depth d d"]:
        """The matrices Q_l^T W_l Q_{l-1} of layers."""
        return jnp.swapaxes(self.bases[1:], 1, 2) @ jnp.stack(weights) @ self.bases[:-1]

    def beside(
        self, above: Float[Array, "depth"], below: Float[Array, "depth"]
    ) -> Float[Array, "depth d d"]:
        """Matrices whose entries are 0 but (1, 2) and (2, 1), one of each for every layer."""
        unit = np.zeros(self.bases.shape[1:], above.dtype)[None]
        unit[:, 0, 1] = 1
        return above[:, None, None] * unit + below[:, None, None] * unit.swapaxes(1, 2)

    def aligned(self, values: Float[Array, "... d"]) -> Weights:
        """Layers with these singular values in the bases, the same in each or one row a layer."""
        rows = jnp.broadcast_to(values, (self.depth, len(self.values)))
        return self.from_frame(jax.vmap(jnp.diag)(rows))

    def loss(self, weights: Weights) -> Float[Array, ""]:
        """1/2 ||W_L ... W_1 - Phi||_F^2."""
        return factorization_loss(weights, self.target)

    def step(self, weights: Weights) -> Weights:
        """One step of gradient descent."""
        slopes = jax.grad(self.loss)(weights)
        return tuple(W - self.learning_rate * G for W, G in zip(weights, slopes, strict=True))

    def push(self, weights: Weights, errors: Weights) -> tuple[Weights, Weights]:
        """One step of descent, and what it makes of small errors of the layers (first order)."""
        return jax.jvp(self.step, (weights,), (errors,))


def draw_bases(
    key: Key[Array, ""], dim: int, depth: int, beside: tuple[int, int] = (1, 1)
) -> tuple[Float[Array, "sides d d"], Float[Array, "m n"]]:
    """Random bases for every side of the layers, and numbers between -1 and 1 of the same draw.

    Reflections of uniform vectors, since any basis without zeros does and a decomposition, like a
    Gaussian draw, takes long to compile.
    """
    count = (depth + 1) * dim
    draws = jax.random.uniform(key, (count + beside[0] * beside[1],), minval=-1.0, maxval=1.0)
    vectors, others = jnp.split(draws, [count])
    return jax.vmap(reflection)(vectors.reshape(depth + 1, dim)), others.reshape(beside)
