"""LoRA on a linearised model: its loss, and the certificate that a point is a global minimum.

Example k has K outputs, linear in the update W of an m x n matrix: ``z_k = (<G_kc, W>)_c``. LoRA
of rank r trains ``W = U V^T`` on

    F(U, V) = f(U V^T) + lambda / 2 (||U||^2 + ||V||^2),    f(W) = sum_k w_k phi_k(z_k),

w_k = 1 / N and phi the squared error ``||z - y||^2 / 2`` or the cross-entropy. Over all ranks the
minimum of F is that of the convex ``f(W) + lambda ||W||_*``, whose dual is ``max -f*(q)`` over q
with ``||sum_kc q_kc G_kc||_2 <= lambda``. With R the gradient of f and ``c = min(1, lambda /
||R||_2)`` the point ``c`` times the slopes of f is one of these, so that *any* U and V have a bound

    F(U, V) - min F <= F(U, V) + sum_k w_k phi_k*(c phi_k'(z_k)),

which needs no convergence. At a stationary point (``R V = -lambda U``, ``R^T U = -lambda V``) it is
0 if and only if ``||R||_2 <= lambda``: then the point is a global minimum over all ranks. The
converse does not say that a point is spurious: below the rank of every convex minimiser the best
point of rank r fails it, too.

Without decay a point is a global minimum over all ranks if and only if R = 0. References for the
nuclear norm: Recht, Fazel and Parrilo, Guaranteed minimum-rank solutions, 2010, lemma 5.1.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import linalg

SQUARED, CROSS_ENTROPY = "squared", "cross_entropy"
LOSSES = (SQUARED, CROSS_ENTROPY)


class Factors(NamedTuple):
    """LoRA's factors, W = U V^T."""

    U: Float[Array, "m r"]
    V: Float[Array, "n r"]

    @property
    def product(self) -> Float[Array, "m n"]:
        """``U V^T``."""
        return self.U @ self.V.T


class LinearisedModel(eqx.Module):
    """A linearised model on labelled examples, and the decay of its adapter."""

    features: Float[Array, "N K m n"]
    """G_kc, the derivative of output c of example k."""
    targets: Float[Array, "N K"]
    """y; of the cross-entropy one-hot."""
    weights: Float[Array, "N"]
    """w_k: 1 / N, and 0 of examples that only fill an array."""
    decay: Float[Array, ""]
    """lambda."""
    loss: str = eqx.field(static=True)
    """``squared`` or ``cross_entropy``."""

    def outputs(self, W: Float[Array, "m n"]) -> Float[Array, "N K"]:
        """``z_kc = <G_kc, W>``."""
        return jnp.einsum("kcab,ab->kc", self.features, W)

    def data_loss(self, z: Float[Array, "N K"]) -> Float[Array, ""]:
        """``sum_k w_k phi_k(z_k)``."""
        if self.loss == SQUARED:
            each = 0.5 * jnp.sum((z - self.targets) ** 2, axis=1)
        else:
            each = jax.nn.logsumexp(z, axis=1) - jnp.sum(z * self.targets, axis=1)
        return jnp.sum(self.weights * each)

    def slopes(self, z: Float[Array, "N K"]) -> Float[Array, "N K"]:
        """``phi_k'(z_k)``: the errors ``z - y``, or the probabilities less the labels."""
        return (z if self.loss == SQUARED else jax.nn.softmax(z, axis=1)) - self.targets

    def conjugate(self, slopes: Float[Array, "N K"], c: Float[Array, ""]) -> Float[Array, ""]:
        """``sum_k w_k phi_k*(c u_k)`` for the slopes u and 0 <= c <= 1.

        ``phi*(q) = ||q||^2 / 2 + <q, y>``; of the cross-entropy the negative entropy of ``q + y``,
        a mixture of probabilities and labels here.
        """
        if self.loss == SQUARED:
            each = 0.5 * c**2 * jnp.sum(slopes**2, axis=1)
            each += c * jnp.sum(slopes * self.targets, axis=1)
        else:
            each = jnp.sum(jax.scipy.special.xlogy(q := c * slopes + self.targets, q), axis=1)
        return jnp.sum(self.weights * each)

    def residual(self, W: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """R, the gradient of f: ``sum_k w_k sum_c phi_k'(z_k)_c G_kc``."""
        slopes = self.weights[:, None] * self.slopes(self.outputs(W))
        return jnp.einsum("kc,kcab->ab", slopes, self.features)


def lora_loss(model: LinearisedModel, factors: Factors) -> Float[Array, ""]:
    """F, LoRA's loss with decay.

    Example:
        >>> one = jnp.ones((1, 1, 1, 1))
        >>> model = LinearisedModel(one, one[0, 0], jnp.ones(1), jnp.asarray(0.5), "squared")
        >>> float(lora_loss(model, Factors(0 * one[0, 0], one[0, 0])))
        0.75
    """
    U, V = factors
    squares = jnp.sum(U**2) + jnp.sum(V**2)
    return model.data_loss(model.outputs(U @ V.T)) + 0.5 * model.decay * squares


def lower_bound(model: LinearisedModel, W: Float[Array, "m n"]) -> Float[Array, ""]:
    """A lower bound of F over all ranks from any W: ``-sum_k w_k phi_k*(c phi_k'(z_k))``.

    Args:
        model: the model.
        W: any m x n matrix; the nearer to a minimum, the better the bound.

    Example:
        >>> one = jnp.ones((1, 1, 1, 1))
        >>> model = LinearisedModel(one, one[0, 0], jnp.ones(1), jnp.asarray(0.5), "squared")
        >>> W = jnp.asarray([[0.5]])  # the minimum of (W - 1)^2 / 2 + |W| / 2 is 3 / 8, here
        >>> float(lower_bound(model, W)), float(lower_bound(model, 0 * W))
        (0.375, 0.375)
    """
    size = linalg.svdvals(model.residual(W))[0]
    # R = 0 is below every lambda.
    c = jnp.where(size > model.decay, model.decay / jnp.where(size > 0, size, 1.0), 1.0)
    return -model.conjugate(model.slopes(model.outputs(W)), c)


def duality_gap(model: LinearisedModel, factors: Factors) -> Float[Array, ""]:
    """By how much F is above its minimum over all ranks, at most: F less :func:`lower_bound`.

    Example:
        >>> one = jnp.ones((1, 1, 1, 1))
        >>> model = LinearisedModel(one, one[0, 0], jnp.ones(1), jnp.asarray(0.5), "squared")
        >>> root = jnp.asarray([[0.5]]) ** 0.5
        >>> [round(float(duality_gap(model, Factors(s * root, s * root))), 3) for s in (0.5, 1.0)]
        [0.07, 0.0]
    """
    return lora_loss(model, factors) - lower_bound(model, factors.product)


def largest_decay(model: LinearisedModel) -> Float[Array, ""]:
    """The lambda from which on W = 0 is the minimum: ``||R||_2`` at W = 0.

    Gradients and curvatures are measured in it.

    Example:
        >>> one = jnp.ones((1, 1, 1, 1))
        >>> model = LinearisedModel(one, one[0, 0], jnp.ones(1), jnp.asarray(0.5), "squared")
        >>> float(largest_decay(model))
        1.0
    """
    zero = jnp.zeros(model.features.shape[2:], model.features.dtype)
    return linalg.svdvals(model.residual(zero))[0]
