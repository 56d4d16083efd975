"""How GaLore stops under gradient noise: values, the last step, and whether the stall is stable.

The example: X is n x n, T its first n - r rows, and D a matrix of (n - r) x (n - r),

    f(X) = 1/2 ||X_T||_F^2 + <D, X_TT>,    stochastic gradient = grad f + zeta sigma C,

zeta = +-1, C the identity of the last r rows and columns. While Y, the last r columns of X_T, is 0
the stochastic gradient is block diagonal: its singular values are those of X_TT + D, called s_i,
and r times sigma. GaLore of rank r, refreshed every T_0 steps, projects on the r largest of them.
A true one is multiplied by (1 - eta)^{T_0} until the next refresh, and once all are below sigma the
projector holds noise alone: the true rows have stopped, with a gradient of almost sigma.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar


@checked
def refreshes_needed(
    values: Float[Array, "k"], noise: Scalar, learning_rate: Scalar, period: int
) -> Int[Array, "k"]:
    """Refreshes at which each s_i is taken until it is below sigma, N_i.

    ``N_i = ceil(ln(s_i / sigma) / (-T_0 ln(1 - eta)))``, 0 if s_i < sigma.

    Args:
        values: s_i > 0 at the start.
        noise: sigma > 0.
        learning_rate: eta between 0 and 1.
        period: T_0.

    Raises:
        ValueError: a number is not positive.

    Example:
        >>> refreshes_needed(jnp.array([4.0, 3.0, 0.5]), 1.0, 0.5, 1).tolist()
        [2, 2, 0]
    """
    checks.integer("period", period)
    noise = jnp.asarray(checks.positive("noise", noise))
    rate = -period * jnp.log1p(-jnp.asarray(learning_rate))
    return jnp.maximum(jnp.ceil(jnp.log(values / noise) / rate), 0).astype(jnp.int32)


@checked
def last_moving_step(
    values: Float[Array, "k"], noise: Scalar, learning_rate: Scalar, period: int, rank: int
) -> Int[Array, ""]:
    """The last step at which the true rows move, ``T_0 K - 1``; -1 if they never do.

    ``K = max(max_i N_i, ceil(sum_i N_i / r))``: at each refresh up to r values above sigma are
    taken, the largest first, which are those that need most refreshes. This is the schedule of unit
    tasks on r machines, longest first, that ends as early as any can.

    Args:
        values: s_i at the start.
        noise: sigma.
        learning_rate: eta.
        period: T_0.
        rank: r.

    Example:
        >>> int(last_moving_step(jnp.array([4.0, 3.0, 0.5]), 1.0, 0.5, 10, 1))  # one N_i = 1 each
        19
    """
    counts = refreshes_needed(values, noise, learning_rate, period)
    checks.integer("rank", rank)
    together = (jnp.sum(counts) + rank - 1) // rank
    return period * jnp.maximum(jnp.max(counts), together) - 1


class Schedule(NamedTuple):
    """The values over the refreshes, and how far each choice is from another one."""

    values: Float[Array, "refresh k"]
    """s_i at each refresh, before it, and at the end; each column is one value."""
    gap: Float[Array, "refresh"]
    """Distance over sigma from another choice: of the least value that is taken from the largest
    that is left out, and of sigma from the nearest value."""


@checked
def schedule(
    values: Float[Array, "k"],
    noise: Scalar,
    learning_rate: Scalar,
    period: int,
    rank: int,
    refreshes: int,
) -> Schedule:
    """The values of SGD at every refresh: of those above sigma the r largest are taken.

    Args:
        values: s_i at the start.
        noise: sigma.
        learning_rate: eta.
        period: T_0.
        rank: r.
        refreshes: how many.

    Example:
        >>> schedule(jnp.array([4.0, 3.0]), 1.0, 0.5, 1, 1, 2).values.tolist()
        [[4.0, 3.0], [2.0, 3.0], [2.0, 1.5]]
    """
    noise, shrink = jnp.asarray(noise), (1 - jnp.asarray(learning_rate)) ** period

    def choose(now: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        # How many are larger: no value of its own rank is counted, and ties are a gap of 0.
        place = jnp.sum(now[None, :] > now[:, None], axis=1)
        taken = (place < rank) & (now > noise)
        least = jnp.min(jnp.where(taken, now, jnp.inf))
        largest_left = jnp.max(jnp.where(taken, -jnp.inf, now))
        nearest = jnp.minimum(least - largest_left, jnp.min(jnp.abs(now - noise)))
        return jnp.where(taken, shrink * now, now), (now, nearest / noise)

    end, (before, gap) = jax.lax.scan(choose, values, length=refreshes)
    return Schedule(jnp.concatenate([before, end[None]]), gap)


@checked
def stall_factor(
    values: Float[Array, "..."], noise: Scalar, learning_rate: Scalar, sign_sum: Float[Array, "..."]
) -> Float[Array, "..."]:
    """What one period makes of a small Y in the direction of s_i, ``1 - eta kappa S``, on the left.

    ``kappa = sigma^2 / (sigma^2 - s_i^2)`` and ``S = zeta_0 (zeta_0 + ... + zeta_{T_0 - 1})``: the
    projector leans towards Y, and the noise of the period moves it along. To first order, for SGD.
    On the right: :func:`stall_factor_on_the_right`.

    Args:
        values: s_i below sigma.
        noise: sigma.
        learning_rate: eta.
        sign_sum: S.

    Example:
        >>> round(float(stall_factor(jnp.array(0.6), 1.0, 0.1, jnp.array(2.0))), 4)
        0.6875
    """
    noise = jnp.asarray(noise)
    return 1 - jnp.asarray(learning_rate) * noise**2 / (noise**2 - values**2) * sign_sum


@checked
def stall_factor_on_the_right(
    values: Float[Array, "..."], noise: Scalar, learning_rate: Scalar, period: int
) -> Float[Array, "..."]:
    """The same with P on the right, ``1 - kappa (1 - (1 - eta)^{T_0})``, whatever the signs.

    There P meets the columns: it holds those of Y, which shrink towards ``-(kappa - 1)`` times what
    they were at the refresh. Below 1 in size if and only if ``s_i^2 < sigma^2 (1 + q) / 2``, q =
    (1 - eta)^{T_0}. To first order, for SGD.

    Args:
        values: s_i below sigma.
        noise: sigma.
        learning_rate: eta.
        period: T_0.

    Example:
        >>> round(float(stall_factor_on_the_right(jnp.array(0.6), 1.0, 0.5, 2)), 6)
        -0.171875
    """
    noise = jnp.asarray(noise)
    kappa = noise**2 / (noise**2 - values**2)
    checks.integer("period", period)
    return 1 - kappa * -jnp.expm1(period * jnp.log1p(-jnp.asarray(learning_rate)))


@checked
def stall_exponent(
    values: Float[Array, "..."], noise: Scalar, learning_rate: Scalar, period: int
) -> Float[Array, "..."]:
    """Growth of ln |Y| in a period, ``E ln |1 - eta kappa S|`` over fair signs: a finite sum.

    With P on the left. Negative: a small Y, such as rounding in rotated bases, is forgotten.
    Positive: it grows until first order ends.

    Args:
        values: s_i below sigma.
        noise: sigma.
        learning_rate: eta.
        period: T_0; S is 1 and T_0 - 1 fair signs.

    Example:
        >>> s = jnp.array([0.9, 0.96, 0.985, 0.994, 0.998])
        >>> [round(float(E), 3) for E in stall_exponent(s, 1.0, 3e-3, 100)]
        [-0.029, -0.151, -0.356, 0.074, 1.422]
    """
    others = checks.integer("period", period) - 1
    sums = jnp.asarray(1.0 + 2 * np.arange(others + 1) - others, values.dtype)
    sums = jnp.expand_dims(sums, tuple(range(values.ndim)))
    weights = [math.comb(others, k) / 2**others for k in range(others + 1)]
    logs = jnp.log(jnp.abs(stall_factor(values[..., None], noise, learning_rate, sums)))
    return logs @ jnp.asarray(weights, values.dtype)
