"""Where gradient descent on three and more layers with decay comes to rest: Theorem 1.

With lambda > 0 the layers are balanced at every critical point of the
:func:`lrdyn.theorem1.decayed_loss`. It carries a set S of at most r singular values of the target
Phi, each with one value ``w_i > 0`` in all layers,

    w_i^{2L-2} - sigma_i w_i^{L-2} + lambda = 0:    product  sum_{i in S} w_i^L u_i v_i^T.

There are two roots, or none. A direction goes down from all of these points but

    P_q = sum_{i <= q} w_i^L u_i v_i^T  with the larger roots,

q = 0, ..., min(r, number of values with a root), which are local minima.
``docs/theorems/rest_points.md`` has the second derivatives. Without decay the w_i^L are sigma_i or
0, and of the P_q the last is the minimum and the others are flat saddles.

sigma (``values``) are all singular values of the target, decreasing; lambda is the ``decay``, r the
``rank`` and L the ``depth``, 3 at least. Reference: arXiv 2503.19859, Theorem 1.
"""

from itertools import combinations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar
from lrdyn.core.spectra import half_of_the_digits
from lrdyn.theorem1.convergence import Curvature
from lrdyn.theorem1.shrinkage import barrier, local_minimum, schatten_loss


@checked
def rest_losses(
    values: Float[Array, "n"], rank: int, decay: Scalar, depth: int
) -> Float[Array, "r_and_1"]:
    """Loss at the points of rest P_0, ..., P_r.

    ``1/2 (s_i - sigma_i)^2 + (lambda L / 2) s_i^{2/L}`` for i <= q, ``sigma_i^2 / 2`` for the rest.
    A value without a root has s_i = 0, so that the last of these losses can be equal.

    Args:
        values: sigma.
        rank: r.
        decay: lambda.
        depth: L.

    Example:
        >>> rest_losses(jnp.array([1.0, 0.5]), 1, 0.1, 3).round(4).tolist()
        [0.625, 0.2698]
    """
    values = checks.spectrum("values", values)
    checks.integer("rank", rank, 1, len(values))
    checks.integer("depth", depth, 2)
    gains = _gains(values[:rank], decay, depth)
    zero = jnp.zeros(1, values.dtype)
    return 0.5 * jnp.sum(values**2) - jnp.concatenate([zero, jnp.cumsum(gains)])


def _gains(values: Array, decay: Scalar, depth: int) -> Array:
    """How much less each value costs at its local minimum than at 0."""
    shrunk = local_minimum(values, decay, depth)
    return 0.5 * values**2 - schatten_loss(shrunk, values, decay, depth)


@checked
def next_critical_value(
    values: Float[Array, "n"], rank: int, decay: Scalar, depth: int
) -> Float[Array, ""]:
    """Loss of the second lowest critical point: below it there is the minimum alone.

    A smaller root costs more than 0, which leaves four ways to the second lowest set of roots:
    give up the value that gains least; exchange it for the next one, if all r are used; or else
    keep the next one, with its larger root, or one with its smaller root, which cost something.

    Args:
        values: sigma.
        rank: r.
        decay: lambda.
        depth: L.

    Returns:
        The loss; infinite if there is no other critical point, and the minimum if there is another
        one of this loss, for example with a tie.

    Example:
        >>> float(next_critical_value(jnp.array([1.0, 0.5]), 1, 0.1, 3).round(4))
        0.5857
    """
    values = checks.spectrum("values", values)
    checks.integer("rank", rank, 1, len(values))
    checks.integer("depth", depth, 3)
    decay = checks.nonnegative("decay", decay)
    gains = _gains(values, decay, depth)
    # A smaller root is the top of the barrier between 0 and the larger one.
    hill = barrier(values, decay, depth)
    rooted = local_minimum(values, decay, depth) > 0
    place = np.arange(len(values))
    chosen = (gains > 0) & (place < rank)
    # The largest gain among the values that are not used; 0 if none gains.
    left = jnp.max(jnp.where(chosen, -jnp.inf, jnp.maximum(gains, 0.0)), initial=0.0)
    least = jnp.min(jnp.where(chosen, gains, jnp.inf))
    full = jnp.all(chosen[:rank])
    # Smaller roots of values that are used cost more than giving these up.
    climbs = schatten_loss(hill, values, decay, depth) - 0.5 * values**2
    more = jnp.min(jnp.where(rooted & ~chosen, jnp.minimum(-gains, climbs), jnp.inf))
    step = jnp.where(full, least - left, jnp.minimum(least, more))
    return 0.5 * jnp.sum(values**2) - jnp.sum(jnp.where(chosen, gains, 0.0)) + step


@checked
def sublevel_curvature(
    loss: Scalar, values: Float[Array, "n"], rank: int, decay: Scalar, depth: int
) -> Float[Array, ""]:
    """Bound of the Hessian wherever the loss is at most a given one; lambda > 0.

    There ``sum_l ||W_l||_F^2 <= X = 2 (loss - 1/2 sum_{i>r} sigma_i^2) / lambda`` and ``||P -
    Phi||_F <= (2 loss)^{1/2}``. With ``x = X / L`` the derivative of the product is at most ``(L
    x^{L-1})^{1/2}``, its second one ``(L (L-1) x^{L-2})^{1/2}``, for such sums of products of
    squared norms are largest if all are equal, and the Hessian at most

        L x^{L-1} + (2 loss L (L-1) x^{L-2})^{1/2} + lambda.

    Gradient descent with a step below 2 over it never raises the loss, stays where this bound
    holds, and converges to a critical point of a lower loss than its start's.

    Args:
        loss: the loss up to which the bound holds, for example that of a start.
        values: sigma.
        rank: r.
        decay: lambda, positive.
        depth: L.

    Example:
        >>> float(sublevel_curvature(0.3, jnp.array([1.0, 0.5]), 1, 0.1, 3).round(3))
        6.233
    """
    values = checks.spectrum("values", values)
    checks.integer("rank", rank, 1, len(values))
    checks.integer("depth", depth, 3)
    loss, decay = checks.positive("loss", loss), checks.positive("decay", decay)
    x = 2 * (loss - 0.5 * jnp.sum(values[rank:] ** 2)) / (decay * depth)
    # The square of the second term: ||P - Phi|| times the second derivative of the product.
    bend = 2 * loss * depth * (depth - 1) * x ** (depth - 2)
    return jnp.asarray(depth * x ** (depth - 1) + jnp.sqrt(bend) + decay)


@checked
def rest_condition(
    values: Float[Array, "n"],
    rank: int,
    shape: tuple[int, int],
    decay: Scalar,
    depth: int,
    gradient: Scalar,
) -> Float[Array, ""]:
    """Largest ratio of the distance from the nearest P_q to a small gradient.

    The distance of products is relative to sigma_1, the ``gradient`` of all layers to
    ``sigma_1^{2-1/L}``; their ratio is a curvature in the layers. With ``w_i`` the larger root it
    is the largest of 1 and, for i <= r,

    * ``L w_i^{L-1} sigma_1^{1-1/L} / (L w_i^{2L-2} - (L-2) lambda)``: near a double root;
    * ``w_i sigma_1^{1-1/L} / (sigma_i - sigma_j)``, j > i, where they differ: near a tie (0 is a
      sigma_j too, if k and d differ);
    * ``(w / sigma_1^{1/L})^{L-1} sigma_1^{2-2/L} / m`` for a value without a root, m > 0 the least
      of the polynomial, at w. Near 0 the power 2L - 1 of the gradient stops a descent before decay
      does: w counts as at least ``gradient^{1/(2L-1)} sigma_1^{1/L}``.

    Args:
        values: sigma.
        rank: r.
        shape: (k, d).
        decay: lambda.
        depth: L.
        gradient: relative size from which a run counts as at rest.

    Example:
        >>> values = jnp.array([1.0, 0.99])
        >>> float(rest_condition(values, 1, (2, 2), 0.1, 3, 1e-14).round(1))
        96.4
    """
    values = checks.spectrum("values", values)
    checks.integer("rank", rank, 1, len(values))
    checks.sizes("shape", shape, 2, 2)
    checks.integer("depth", depth, 3)
    decay = checks.nonnegative("decay", decay)
    gradient = checks.nonnegative("gradient", gradient)
    size = values[0] ** (1 / depth)
    first = values[:rank]
    w = local_minimum(first, decay, depth) ** (1 / depth)
    rooted = w > 0
    # Curvature along a mode in all layers (rest_points.md, Why 2), 0 at a double root.
    slope = depth * w ** (2 * depth - 2) - (depth - 2) * decay
    along = depth * (w * size) ** (depth - 1) / jnp.where(rooted, slope, 1.0)
    others = values if shape[0] == shape[1] else jnp.append(values, 0.0)
    gaps = first[:, None] - others[None]
    # Closer values are a tie, where P_q is a family, of which the nearest is meant.
    apart = rooted[:, None] & (gaps > half_of_the_digits(values.dtype) * values[0])
    across = w[:, None] * size ** (depth - 1) / jnp.where(apart, gaps, 1.0)
    # Where the polynomial of a value without a root is least.
    turn = (first * (depth - 2) / (2 * depth - 2)) ** (1 / depth)
    least = turn ** (2 * depth - 2) - first * turn ** (depth - 2) + decay
    reach = jnp.maximum(turn / size, gradient ** (1 / (2 * depth - 1)))
    gone = reach ** (depth - 1) * size ** (2 * depth - 2) / jnp.where(rooted, 1.0, least)
    parts = [
        jnp.where(rooted, along, gone),
        jnp.max(jnp.where(apart, across, 1.0), axis=1),
    ]
    return jnp.maximum(1.0, jnp.max(jnp.stack(parts)))


@checked
def deep_curvature(
    values: Float[np.ndarray, "n"],
    shrunk: Float[np.ndarray, "n"],
    rank: int,
    shape: tuple[int, int],
    decay: float,
    depth: int,
) -> Curvature:
    """Curvature at the balanced minimum of three layers and more, in NumPy and in float64.

    In the singular bases the Hessian falls into blocks. With ``w_i^L`` for what q values keep:

    * ``L w_i^{2L-2} - (L-2) lambda``, and ``2 lambda`` L - 1 times, of the diagonal of each;
    * ``w_i^{L-2} (sigma_i +- sigma_j)`` of each with j left out (0 is one, if k and d differ);
    * a block of 2L entries for each pair that is kept, with an eigenvalue 0 for the turn of each
      hidden basis;
    * ``lambda``, if a unit is to spare: products of three small factors curve nothing.

    Args:
        values: sigma.
        shrunk: s_i, :func:`lrdyn.theorem1.shrink` of all of them; those of i <= r are kept.
        rank: r.
        shape: (k, d).
        decay: lambda.
        depth: L.

    Returns:
        The smallest eigenvalue that is not 0 by such a turn, and the largest.

    Example:
        >>> tuple(round(e, 3) for e in deep_curvature(np.ones(1), np.zeros(1), 1, (1, 1), 0.5, 3))
        (0.5, 0.5)
    """
    values = checks.spectrum("values", values)
    checks.integer("rank", rank, 1, len(values))
    checks.sizes("shape", shape, 2, 2)
    checks.integer("depth", depth, 3)
    decay = checks.positive("decay", decay)
    leading = shrunk[:rank]
    w = leading[leading > 0] ** (1 / depth)
    rest = values[len(w) :] if shape[0] == shape[1] else np.append(values[len(w) :], 0.0)
    across = (w ** (depth - 2))[:, None] * (values[: len(w), None] + np.append(rest, -rest))
    eigenvalues = [*(depth * w ** (2 * depth - 2) - (depth - 2) * decay), *across.ravel()]
    # Neighbouring layers turned against each other, and spare units (rest_points.md, Why 2).
    eigenvalues += [2 * decay] * bool(len(w)) + [decay] * (len(w) < rank)
    for i, j in combinations(range(len(w)), 2):
        block = _two_mode_hessian(w[[i, j]], values[[i, j]], decay, depth)
        # The first L - 1 are 0: each of the L - 1 hidden bases can be turned at no cost.
        eigenvalues += [*np.linalg.eigvalsh(block)[depth - 1 :]]
    return Curvature(float(min(eigenvalues)), float(max(eigenvalues)))


def _two_mode_hessian(w: np.ndarray, values: np.ndarray, decay: float, depth: int) -> np.ndarray:
    """Block of the Hessian of the entries (i, j) of all layers, and then of the entries (j, i)."""
    rest, layer = w**depth - values, np.arange(depth)
    block = decay * np.eye(2 * depth)
    for a, b in ((0, 1), (1, 0)):
        # The entry of layer l is multiplied by what is kept after it and before it.
        through = w[a] ** (depth - 1 - layer) * w[b] ** layer
        own = slice(a * depth, (a + 1) * depth)
        block[own, own] += np.outer(through, through)
        for early, late in combinations(range(depth), 2):
            # From mode a in layer `early` to mode b and in layer `late` back.
            path = rest[a] * w[a] ** (depth - 1 - late + early) * w[b] ** (late - early - 1)
            at = late + a * depth, early + b * depth
            block[at] += path
            block[at[::-1]] += path
    return block


NEAR = 1.25
"""Safety factor of the number of steps from a start near the minimum: there is no saddle to escape
from. Measured: see ``docs/theorems/rest_points.md``."""


@checked
def steps_to_approach(
    distance: float, curvature: Curvature, rate: float, tolerance: float
) -> float:
    """Steps after which gradient descent from near a minimum is within a tolerance of it.

    ``5/4 ln(distance / tolerance) / -ln c``: what is left shrinks by ``c = max(1 - eta mu, eta
    mu_max - 1)`` at each step.

    Args:
        distance: of the start from the minimum.
        curvature: mu and mu_max.
        rate: eta.
        tolerance: the distance that counts as arrived, in the unit of the first.

    Example:
        >>> round(steps_to_approach(0.1, Curvature(0.5, 1.0), 0.1, 1e-6), 1)
        280.6
    """
    rate, tolerance = map(checks.positive, ("rate", "tolerance"), (rate, tolerance))
    # Not 0, which has no logarithm: a step of 1 over the only curvature arrives at once.
    slowest = max(1 - rate * curvature.least, rate * curvature.largest - 1, np.finfo(float).tiny)
    if slowest >= 1:
        return float("inf")
    if distance <= tolerance:
        return 0.0
    return NEAR * float(np.log(distance / tolerance) / -np.log(slowest))
