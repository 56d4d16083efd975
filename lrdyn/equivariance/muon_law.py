"""Muon's law: with exact polar factors every singular value moves by eta, and when it arrives.

Layers ``W_l = O_l diag(a_l) O_{l-1}^T`` descend to the target ``O_L diag(m) O_0^T`` by ``W_l <- W_l
- eta polar(gradient)``, ``polar(U S V^T) = U V^T``. The gradient is ``O_l diag(prod_{k != l} a_k
(prod_k a_k - m)) O_{l-1}^T``. While all ``a_{l,i} > 0`` its polar factor is the sign of ``prod_k
a_{k,i} - m_i``, the same in every layer, so that

    a_{l,i}(t+1) = a_{l,i}(t) - eta sign(prod_k a_{k,i}(t) - m_i).

From ``0 < prod_k a_{k,i}(0) < m_i`` a mode rises until step ``n_i``, the least n with ``prod_k
(a_{k,i}(0) + n eta) >= m_i``, and then alternates between n_i - 1 and n_i; it never falls below its
start, which keeps it positive. Differences ``a_{l,i} - a_{k,i}`` are conserved.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Steps

POLAR = (15 / 8, -10 / 8, 3 / 8)
"""Coefficients of Newton and Schulz's iteration of fifth order that converges to the polar factor,
where optax's own are chosen to be steep at 0 and do not converge."""
POLAR_STEPS = 60
"""Its steps: the slope at 0 is 15/8, so that singular values of 1e-15 of the norm get to 1, too."""


LATEST = 2**30
"""Largest step that is told: the sum of two of them is no integer of 32 bits."""


@checked
def arrival_steps(
    start: Float[Array, "depth d"], target: Float[Array, "d"], learning_rate: Scalar
) -> Int[Array, "d"]:
    """Least n with ``prod_l (a_{l,i} + n eta) >= m_i``: the step at which Muon's mode i arrives.

    One beyond :data:`LATEST` is that.

    Args:
        start: a_{l,i}, not negative.
        target: m_i.
        learning_rate: eta.

    Example:
        >>> arrival_steps(jnp.full((2, 2), 0.1), jnp.array([0.25, 0.05]), 0.03).tolist()
        [14, 5]
    """
    learning_rate = checks.positive("learning_rate", learning_rate)
    depth = len(start)
    # Every factor is at most the root of m once the largest one is: n is at most this.
    low = jnp.zeros(target.shape, jnp.int32)
    most = jnp.ceil(jnp.maximum(target, 0) ** (1 / depth) / learning_rate) + 1
    high = jnp.minimum(most, 1.0 * LATEST).astype(jnp.int32)

    def arrived(n: Array) -> Array:
        return jnp.prod(start + learning_rate * n[None].astype(start.dtype), axis=0) >= target

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = low + (high - low) // 2
        return jnp.where(arrived(middle), low, middle + 1), jnp.where(arrived(middle), middle, high)

    # The product grows in n: the interval of up to 2^31 steps is halved until nothing is left.
    return jax.lax.fori_loop(0, 32, halve, (low, high))[1]


@checked
def muon_values(
    start: Float[Array, "depth d"],
    target: Float[Array, "d"],
    learning_rate: Scalar,
    steps: Steps,
) -> Float[Array, "times depth d"]:
    """``a_{l,i}(t)`` under Muon with exact polar factors: up by eta until n_i, then to and fro.

    Args:
        start: a_{l,i}(0) > 0, with products below the target.
        target: m_i.
        learning_rate: eta.
        steps: step numbers.

    Example:
        >>> start, steps = jnp.array([[0.1], [0.2]]), jnp.array([0, 1, 2, 3])
        >>> muon_values(start, jnp.array([0.05]), 0.1, steps)[:, 0, 0].round(6).tolist()
        [0.1, 0.2, 0.1, 0.2]
    """
    learning_rate = checks.positive("learning_rate", learning_rate)
    arrival = arrival_steps(start, target, learning_rate)
    times = jnp.asarray(steps)[:, None]
    # After its arrival a mode is at n_i and n_i - 1 by turns.
    past = jnp.maximum(times - arrival[None], 0) % 2
    taken = jnp.minimum(times, arrival[None]) - past
    return start[None] + learning_rate * taken[:, None, :].astype(start.dtype)


def polar_muon(learning_rate: Scalar) -> optax.GradientTransformation:
    """Muon of optax with exact polar factors: no momentum, and an iteration that converges.

    Example:
        >>> rule, layers = polar_muon(1.0), (jnp.diag(jnp.array([3.0, 1e-3])),)
        >>> rule.update(layers, rule.init(layers), layers)[0][0].round(6).diagonal().tolist()
        [-1.0, -1.0]
    """
    # Coefficients for each step, all alike: optax unrolls a loop with one set of them.
    return optax.contrib.muon(
        learning_rate,
        ns_coeffs=(POLAR,) * POLAR_STEPS,
        ns_steps=POLAR_STEPS,
        beta=0.0,
        nesterov=False,
    )
