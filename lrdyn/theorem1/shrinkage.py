"""Weight decay as shrinkage of singular values: minimisers of factorised losses in closed form.

sigma (``values``) are all singular values of a target Phi, decreasing; s >= 0 (``shrunk``) are
those of a product of L layers (``depth``). lambda is the ``decay`` and r the ``rank``, the width of
the inner layers (Theorem 1 of arXiv 2503.19859).
"""

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Weights, factorization_loss


@checked
def decayed_loss(
    weights: Annotated[Weights, "k d"], target: Float[Array, "k d"], decay: Scalar
) -> Float[Array, ""]:
    """Loss of Theorem 1, ``1/2 ||W_L ... W_1 - Phi||_F^2 + (lambda/2) sum_l ||W_l||_F^2``.

    Example:
        >>> float(decayed_loss((jnp.eye(2), jnp.eye(2)), jnp.zeros((2, 2)), 0.5))
        2.0
    """
    decay = checks.nonnegative("decay", decay)
    squares = sum(jnp.sum(W**2) for W in weights)
    return factorization_loss(weights, target) + 0.5 * decay * squares


@checked
def schatten_loss(
    shrunk: Float[Array, "*n"], values: Float[Array, "*n"], decay: Scalar, depth: int
) -> Float[Array, "*n"]:
    """Cost of one singular value, ``1/2 (s - sigma)^2 + (lambda L / 2) s^{2/L}``.

    The second term is the least decay of L layers whose product has the singular value s.

    Args:
        shrunk: s.
        values: sigma.
        decay: lambda.
        depth: L.

    Example:
        >>> schatten_loss(jnp.array([0.0, 1.0]), jnp.ones(2), 0.25, 2).tolist()
        [0.5, 0.25]
    """
    shrunk = checks.spectrum("shrunk", shrunk)
    values = checks.spectrum("values", values)
    decay = checks.nonnegative("decay", decay)
    checks.integer("depth", depth, 2)
    return 0.5 * (shrunk - values) ** 2 + 0.5 * decay * depth * shrunk ** (2 / depth)


@checked
def shrink(values: Float[Array, "n"], decay: Scalar, depth: int = 2) -> Float[Array, "n"]:
    """Minimiser s of :func:`schatten_loss` for each singular value: Theorem 1, item 4.

    Two layers: ``(sigma - lambda)_+``. More: the larger root of ``w^{2L-2} - sigma w^{L-2} +
    lambda = 0``, s = w^L, or 0 if that costs less.

    Raises:
        ValueError: ``depth`` is smaller than 2.

    Example:
        >>> shrink(jnp.array([2.0, 0.25]), 0.5).tolist()
        [1.5, 0.0]
        >>> shrink(jnp.array([2.0, 0.25]), 0.5, 3).round(3).tolist()
        [1.57, 0.0]
    """
    values = checks.spectrum("values", values)
    decay = checks.nonnegative("decay", decay)
    checks.integer("depth", depth, 2)
    if depth == 2:
        return jnp.maximum(values - decay, 0.0)
    shrunk = local_minimum(values, decay, depth)
    # Where both cost the same, at the jump, either is a minimiser: 0 is taken.
    wins = schatten_loss(shrunk, values, decay, depth) < 0.5 * values**2
    return jnp.where(wins, shrunk, 0.0)


@checked
def local_minimum(values: Float[Array, "n"], decay: Scalar, depth: int = 2) -> Float[Array, "n"]:
    """Local minimum s > 0 of :func:`schatten_loss` for each singular value, whatever it costs.

    Two layers: ``sigma - lambda``. More: the larger root of ``w^{2L-2} - sigma w^{L-2} + lambda =
    0``, s = w^L; from above the :func:`barrier` gradient descent runs to it.

    Returns:
        s, or 0 where there is no such minimum.

    Example:
        >>> local_minimum(jnp.array([1.0, 0.5]), 0.5, 3).tolist()
        [0.0, 0.0]
        >>> local_minimum(jnp.array([1.0, 0.5]), 0.25, 3).round(4).tolist()
        [0.7212, 0.0]
    """
    values = checks.spectrum("values", values)
    decay = checks.nonnegative("decay", decay)
    checks.integer("depth", depth, 2)
    if depth == 2:
        return jnp.maximum(values - decay, 0.0)
    # Above the turning point the slope rises: the root there, if it is below 0 there, is a minimum.
    low, high = _turning_point(values, depth), values ** (1 / depth)
    root = _bisect(lambda w: _slope(w, values, decay, depth) < 0, low, high)
    return jnp.where(_slope(low, values, decay, depth) < 0, root**depth, 0.0)


@checked
def barrier(values: Float[Array, "n"], decay: Scalar, depth: int = 2) -> Float[Array, "n"]:
    """Local maximum of :func:`schatten_loss` between 0 and the other minimum.

    From below it gradient descent runs to 0, even if the other minimum costs less: with three
    layers or more and lambda > 0 the origin is a local minimum. Where there is no other minimum the
    number has no meaning.

    Returns:
        The value s of the maximum, 0 without decay; two layers have no barrier.

    Example:
        >>> barrier(jnp.array([1.0]), 0.1, 3).round(4).tolist()
        [0.001]
    """
    values = checks.spectrum("values", values)
    decay = checks.nonnegative("decay", decay)
    checks.integer("depth", depth, 2)
    if depth == 2:
        return jnp.zeros_like(values)
    # Below it the slope falls from lambda: the root there, if any, is the maximum.
    high = _turning_point(values, depth)
    # In w = s^{1/L}, in which the slope is a polynomial: near s = 0 that of the cost is infinite.
    return _bisect(lambda w: _slope(w, values, decay, depth) > 0, 0 * high, high) ** depth


def _slope(w: Array, values: Array, decay: Scalar, depth: int) -> Array:
    """Derivative of the cost by w = s^{1/L}, divided by L w."""
    return w ** (2 * depth - 2) - values * w ** (depth - 2) + decay


def _turning_point(values: Array, depth: int) -> Array:
    return (values * (depth - 2) / (2 * depth - 2)) ** (1 / depth)


def _bisect(below: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """Upper end of the last interval; ``below(w)`` says that the root lies above w."""

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        up = below(middle)
        return jnp.where(up, middle, low), jnp.where(up, high, middle)

    # One halving for each digit, and a few since the root may be small beside the interval.
    digits = jnp.finfo(high.dtype).nmant + 8
    return jax.lax.fori_loop(0, digits, halve, (low, high))[1]


@checked
def minimiser(
    target: Float[Array, "k d"], rank: int, decay: Scalar = 0.0, depth: int = 2
) -> Float[Array, "k d"]:
    """Product of the layers at a global minimum of :func:`decayed_loss`: Theorem 1, items 1 and 4.

    ``U_r (Sigma_r - lambda I)_+ V_r^T`` for two layers, ``U_r s(Sigma_r) V_r^T`` with
    :func:`shrink` for more. It is the only one if ``sigma_r > sigma_{r+1}``, or if nothing is left
    of ``sigma_r``.

    Args:
        target: Phi.
        rank: r.
        decay: lambda.
        depth: L.

    Raises:
        ValueError: ``rank`` is out of range.

    Example:
        >>> minimiser(jnp.diag(jnp.array([3.0, 2.0, 1.0])), 2, 0.5).round(6).tolist()
        [[2.5, 0.0, 0.0], [0.0, 1.5, 0.0], [0.0, 0.0, 0.0]]
    """
    checks.integer("rank", rank, 1, min(target.shape))
    decay = checks.nonnegative("decay", decay)
    checks.integer("depth", depth, 2)
    left, values, right = linalg.svd(target)
    return (left[:, :rank] * shrink(values[:rank], decay, depth)[None, :]) @ right[:rank]


@checked
def minimum(
    values: Float[Array, "n"], rank: int, decay: Scalar = 0.0, depth: int = 2
) -> Float[Array, ""]:
    """Least value of :func:`decayed_loss`: Theorem 1, item 1.

    Two layers: ``lambda sigma_i - lambda^2 / 2`` for i <= r with ``sigma_i > lambda``, and
    ``sigma_i^2 / 2`` for every other i. With more layers :func:`schatten_loss` at what
    :func:`shrink` leaves takes the place of the former.

    Args:
        values: sigma, all of them.
        rank: r.
        decay: lambda.
        depth: L.

    Example:
        >>> float(minimum(jnp.array([3.0, 2.0, 1.0]), 2, 0.5))
        2.75
    """
    values = checks.spectrum("values", values)
    checks.integer("rank", rank)
    decay = checks.nonnegative("decay", decay)
    checks.integer("depth", depth, 2)
    first, rest = values[:rank], values[rank:]
    if depth == 2:
        costs = jnp.where(first > decay, decay * first - 0.5 * decay**2, 0.5 * first**2)
    else:
        costs = schatten_loss(shrink(first, decay, depth), first, decay, depth)
    return jnp.sum(costs) + 0.5 * jnp.sum(rest**2)
