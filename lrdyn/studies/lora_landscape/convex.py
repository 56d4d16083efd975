"""The convex problem behind LoRA: proximal gradient descent on ``f(W) + lambda ||W||_*``."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import linalg
from lrdyn.studies.lora_landscape.problem import LinearisedModel, lower_bound


class ConvexEnd(NamedTuple):
    """Where proximal gradient descent ended."""

    W: Float[Array, "m n"]
    value: Float[Array, ""]
    """``f(W) + lambda ||W||_*``."""
    gap: Float[Array, ""]
    """By how much that is above the minimum, at most."""


class Momentum(NamedTuple):
    """Accelerated proximal gradient descent on its way."""

    W: Float[Array, "m n"]
    ahead: Float[Array, "m n"]
    """The extrapolated point, at which the gradient is taken."""
    weight: Float[Array, ""]


def shrink(W: Float[Array, "m n"], by: Any) -> Float[Array, "m n"]:
    """The proximal map of ``by ||W||_*``: all singular values less ``by``, 0 at least.

    Example:
        >>> shrink(jnp.diag(jnp.array([2.0, 0.5])), 1.0).tolist()
        [[1.0, 0.0], [0.0, 0.0]]
    """
    left, values, right = linalg.svd(W)
    return (left * jnp.maximum(values - by, 0.0)[None]) @ right


def proximal_gradient(model: LinearisedModel, steps: int) -> ConvexEnd:
    """Minimise ``f(W) + lambda ||W||_*`` from W = 0: accelerated, restarted where it overshoots.

    The step is 1 / L, L the largest eigenvalue of ``sum_kc w_k G_kc G_kc^T`` (both losses have
    slopes that change by at most 1).

    Args:
        model: the model.
        steps: how many steps.

    Example:
        >>> one = jnp.ones((1, 1, 1, 1))
        >>> model = LinearisedModel(one, one[0, 0], jnp.ones(1), jnp.asarray(0.5), "squared")
        >>> float(proximal_gradient(model, 10).value)
        0.375

    Reference:
        Beck and Teboulle, A fast iterative shrinkage-thresholding algorithm, 2009; the restart:
        O'Donoghue and Candes, Adaptive restart for accelerated gradient schemes, 2015.
    """
    N, K, m, n = model.features.shape
    rows = (jnp.sqrt(model.weights)[:, None, None, None] * model.features).reshape(N * K, m * n)
    rate = 1 / linalg.svdvals(rows)[0] ** 2

    def step(now: Momentum, _: None) -> tuple[Momentum, None]:
        W = shrink(now.ahead - rate * model.residual(now.ahead), rate * model.decay)
        # Momentum that points uphill is dropped.
        uphill = jnp.sum((now.ahead - W) * (W - now.W)) > 0
        weight = jnp.where(uphill, 1.0, (1 + jnp.sqrt(1 + 4 * now.weight**2)) / 2)
        ahead = W + jnp.where(uphill, 0.0, (now.weight - 1) / weight) * (W - now.W)
        return Momentum(W, ahead, weight), None

    zero = jnp.zeros((m, n), model.features.dtype)
    begin = Momentum(zero, zero, jnp.ones((), zero.dtype))
    W = jax.lax.scan(step, begin, length=steps)[0].W
    value = model.data_loss(model.outputs(W)) + model.decay * jnp.sum(linalg.svdvals(W))
    return ConvexEnd(W, value, value - lower_bound(model, W))
