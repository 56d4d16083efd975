"""Whether the singular vectors stay: what a step makes of the entries beside the diagonals.

In the bases of the target balanced layers are diag(rho); ``e^l_ij`` are the other entries of layer
l. To first order the pairs (i, j) do not see each other, and a pair obeys a linear recursion along
the orbit of its two modes (:func:`off_diagonal_step`). Of its 2 L directions L - 1 are gauge: they
turn the bases between the layers and leave the product as it is.

With two layers, W_1 = X + D and W_2 = (X - D)^T, the recursion splits. Of X only ``delta = rho_i
X_ij + rho_j X_ji`` is seen in the product, and (D_ij, D_ji) is multiplied by a symmetric matrix:

    delta' = (u_i u_j - eta rho_i^2 u_i - eta rho_j^2 u_j) delta,    u = 1 - eta (rho^2 - s),
    D' = [[u_i' , eta rho_i rho_j], [eta rho_i rho_j, u_j']] D,
    u_i' = 1 + eta (rho_j^2 - s_j) - eta rho_i^2, and u_j' with i and j exchanged.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar
from lrdyn.edge_of_stability.cycles import balanced_step


class Pair(NamedTuple):
    """Two modes of one network."""

    values: Float[Array, "2"]
    """rho_i and rho_j, singular values of each layer."""
    targets: Float[Array, "2"]
    """s_i and s_j."""


def _powers(value: Array, count: int) -> Array:
    """1, rho, ..., rho^{count - 1}; a mode may be 0 or negative."""
    return jnp.concatenate([jnp.ones(1, value.dtype), jnp.cumprod(jnp.full(count - 1, value))])


@checked
def off_diagonal_step(
    errors: Float[Array, "depth 2"], pair: Pair, learning_rate: Scalar
) -> Float[Array, "depth 2"]:
    """One step of descent of the entries (e^l_ij, e^l_ji) beside balanced diagonals, first order.

    With ``delta_ij = sum_k rho_i^{L-k} e^k_ij rho_j^{k-1}`` and ``E = rho^L - s`` the gradient is

        rho_i^{L-l} delta_ij rho_j^{l-1}
        + E_j rho_j^{l-1} sum_{k>l} rho_j^{L-k} e^k_ji rho_i^{k-l-1}
        + E_i rho_i^{L-l} sum_{k<l} rho_j^{l-1-k} e^k_ji rho_i^{k-1}.

    Args:
        errors: e^l_ij and e^l_ji, a row for each layer.
        pair: the two modes before the step.
        learning_rate: eta.

    Example:
        >>> pair = Pair(jnp.ones(2), jnp.ones(2))  # at the minimum: only delta moves anything
        >>> off_diagonal_step(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), pair, 0.1).tolist()
        [[1.0, 0.0], [-1.0, 0.0]]
    """
    depth = len(errors)
    powers = jax.vmap(lambda value: _powers(value, depth + 1))(pair.values)
    layer, other = np.arange(depth)[:, None], np.arange(depth)[None, :]
    # Masked, not cut out: an exponent of a term that is left out may be negative.
    later, earlier = np.maximum(other - layer - 1, 0), np.maximum(layer - other - 1, 0)

    def slope(i: Array, j: Array, e_ij: Array, e_ji: Array, excess: Array) -> Array:
        left, right = i[depth - 1 - other[0]], j[:depth]
        delta = jnp.sum(left * e_ij * right)
        above = jnp.where(other > layer, (right[::-1] * e_ji)[None, :], 0.0) * i[later]
        below = jnp.where(other < layer, (i[:depth] * e_ji)[None, :], 0.0) * j[earlier]
        return (
            left * delta * right
            + excess[1] * right * jnp.sum(above, axis=1)
            + excess[0] * left * jnp.sum(below, axis=1)
        )

    excess = powers[:, depth] - pair.targets
    # Of (i, j) and of (j, i).
    both = ((side, side[::-1]) for side in (powers, errors.T, excess))
    (i, j), (e_ij, e_ji), (of_i, of_j) = both
    slopes = jax.vmap(slope)(i, j, e_ij, e_ji, jnp.stack([of_i, of_j], axis=1))
    return errors - learning_rate * slopes.T


@checked
def without_gauge(errors: Float[Array, "depth 2"], pair: Pair) -> Float[Array, "depth 2"]:
    """Take the gauge directions out: what is left is orthogonal to every turn of the inner bases.

    A turn between layers l and l + 1 is (rho_j, -rho_i) in the first and (-rho_i, rho_j) in the
    second. A step maps gauge directions to gauge directions, so that what is left grows as the
    classes modulo gauge do.

    Args:
        errors: (e^l_ij, e^l_ji), a row for each layer.
        pair: the two modes.

    Example:
        >>> turn = jnp.array([[0.5, -2.0], [-2.0, 0.5]])
        >>> pair = Pair(jnp.array([2.0, 0.5]), jnp.ones(2))
        >>> bool(jnp.max(jnp.abs(without_gauge(turn, pair))) < 1e-6)
        True
    """
    depth, (rho_i, rho_j) = len(errors), pair.values
    # Inner products of turns: 2 (rho_i^2 + rho_j^2) of one with itself, -2 rho_i rho_j of
    # neighbours. Such a matrix has sines for eigenvectors, whatever its entries.
    number = np.arange(1, depth)
    angles = np.pi * number / depth
    sines = jnp.asarray(np.sqrt(2 / depth) * np.sin(number[:, None] * angles), errors.dtype)
    cosines = jnp.asarray(np.cos(angles), errors.dtype)
    sizes = 2 * (rho_i**2 + rho_j**2) - 4 * rho_i * rho_j * cosines
    first = errors @ jnp.stack([rho_j, -rho_i])
    second = errors @ jnp.stack([-rho_i, rho_j])
    amounts = sines @ ((sines @ (first[:-1] + second[1:])) / sizes)
    before, after = jnp.pad(amounts, (1, 0)), jnp.pad(amounts, (0, 1))
    taken = jnp.stack([rho_j * after - rho_i * before, rho_j * before - rho_i * after], axis=1)
    return errors - taken


@checked
def alignment_growth(
    start: Float[Array, "2"],
    targets: Float[Array, "2"],
    depth: int,
    learning_rate: Scalar,
    steps: int,
) -> Float[Array, "times"]:
    """Growth of what is beside the diagonals in each step along an orbit, ``ln |e(t+1)| / |e(t)|``.

    Modulo gauge, from a generic error: the mean over many steps is the largest Lyapunov exponent
    of the pair that is none of gauge.

    Args:
        start: rho_i and rho_j at the start, balanced.
        targets: s_i and s_j.
        depth: L.
        learning_rate: eta.
        steps: so many.

    Example:
        >>> targets = jnp.array([1.0, 0.5])
        >>> growth = alignment_growth(jnp.sqrt(targets), targets, 2, 0.4, 200)  # at rest
        >>> round(float(growth[100:].mean()), 4)  # 1 - eta (s_i + s_j)
        0.0
    """
    checks.integer("depth", depth, 2)
    checks.integer("steps", steps)
    # Without symmetries, so that no direction is missing.
    first = jnp.cos(1.0 + jnp.arange(2 * depth, dtype=start.dtype) ** 2).reshape(depth, 2)

    def advance(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        values, errors = state
        moved = off_diagonal_step(errors, Pair(values, targets), learning_rate)
        values = balanced_step(values, depth, targets, learning_rate)
        moved = without_gauge(moved, Pair(values, targets))
        size = jnp.linalg.norm(moved)
        return (values, moved / jnp.where(size > 0, size, 1.0)), jnp.log(size)

    errors = without_gauge(first, Pair(start, targets))
    state = start, errors / jnp.linalg.norm(errors)
    return jax.lax.scan(advance, state, length=steps)[1]


SQUARINGS = 50
"""A matrix to the power 2^50 has the size of its spectral radius to that power, to all digits: what
is beside it, a factor that does not grow, is the 2^50th part of its logarithm."""


@checked
def cycle_exponent(
    start: Float[Array, "2"], targets: Float[Array, "2"], depth: int, learning_rate: Scalar
) -> Float[Array, ""]:
    """Largest exponent a step of a pair on a two-cycle: half of ln of its largest multiplier.

    Gauge directions, whose multipliers are 1, are left out.

    Args:
        start: rho_i and rho_j, to which both modes return in two steps.
        targets: s_i and s_j.
        depth: L.
        learning_rate: eta.

    Example:
        >>> from lrdyn.edge_of_stability.cycles import two_cycle
        >>> targets, eta = jnp.array([1.0, 0.7]), 1.2
        >>> start = jnp.stack([two_cycle(2, 1.0, eta).low, jnp.sqrt(targets[1])])
        >>> exponent = cycle_exponent(start, targets, 2, eta)
        >>> round(float(exponent), 4), round(float(jnp.log(resting_pair(eta, 0.84).radius) / 2), 4)
        (0.0215, 0.0215)
    """
    checks.integer("depth", depth, 2)
    pair = Pair(start, targets)

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        values, errors = state
        move = jax.vmap(lambda e: off_diagonal_step(e, Pair(values, targets), learning_rate))
        return (balanced_step(values, depth, targets, learning_rate), move(errors)), None

    def square(number: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, exponent = state
        size = jnp.max(jnp.abs(matrix))
        matrix = matrix / size
        return matrix @ matrix, exponent + jnp.log(size) / 2.0**number

    units = jnp.eye(2 * depth, dtype=start.dtype).reshape(-1, depth, 2)
    (_, errors), _ = jax.lax.scan(step, (start, units), length=2)
    # Gauge directions stay what they are, so that they may be taken out at the end alone: in the
    # quotient by them the matrix is the same.
    matrix = jax.vmap(lambda e: without_gauge(e, pair))(errors).reshape(2 * depth, -1)
    return jax.lax.fori_loop(0, SQUARINGS, square, (matrix, jnp.zeros_like(start[0])))[1] / 2


Numbers = float | Float[Array, "..."]
"""One number, or an array of them."""


class PairMultipliers(NamedTuple):
    """What a round of two steps makes of a pair of a network of two layers."""

    trace: Float[Array, "..."]
    """Trace of the matrix that multiplies (D_ij, D_ji)."""
    determinant: Float[Array, "..."]
    product: Float[Array, "..."]
    """Factor of delta, which is seen in the product."""

    @property
    def radius(self) -> Float[Array, "..."]:
        """Largest absolute value of a multiplier: above 1 the pair is unstable."""
        half, square = self.trace / 2, (self.trace / 2) ** 2 - self.determinant
        # Two real ones, or a complex pair whose squared size is the determinant.
        real = jnp.abs(half) + jnp.sqrt(jnp.maximum(square, 0.0))
        largest = jnp.where(square >= 0, real, jnp.sqrt(jnp.abs(self.determinant)))
        return jnp.maximum(largest, jnp.abs(self.product))


@checked
def resting_pair(first: Numbers, second: Numbers) -> PairMultipliers:
    """A pair of two layers whose first mode is on the two-cycle and whose second is at rest.

    With w = eta s_i + 1 and c = 3 - eta s_j the trace is ``c^2 - (w + 4) c + 10``, the
    determinant ``(c - w) (c - 2 w) + 1``, and the factor of the product ``1 - (1 + eta s_j) (eta
    s_i - eta s_j)``. Before the doubling all are stable if and only if eta (s_i + s_j) < 2.

    Args:
        first: eta s_i > 1.
        second: eta s_j >= 0.

    Example:
        >>> [bool(resting_pair(1.2, second).radius < 1) for second in (0.79, 0.81)]
        [True, False]
    """
    first, second = jnp.asarray(first), jnp.asarray(second)
    w, c = first + 1, 3 - second
    return PairMultipliers(
        trace=c**2 - w * c - 4 * c + 10,
        determinant=(c - w) * (c - 2 * w) + 1,
        product=1 - (1 + second) * (first - second),
    )


@checked
def oscillating_pair(first: Numbers, second: Numbers, phase: Numbers) -> PairMultipliers:
    """A pair of two layers with both modes on their two-cycles: never stable, but on a curve.

    With z + 1/z = eta s_i + 1, v + 1/v = eta s_j + 1 and p = z v in phase, z / v in opposite phase:
    ``A = 6 - 2 (z + 1/z) - 2 (v + 1/v) + p + 1/p``, the determinant is ``A (A - p - 1/p) + 1`` and
    1 plus it less the trace ``2 A (2 - z - 1/z - v - 1/v)``. For A > 0 a real multiplier is above
    1, for A < 0 the determinant is. In opposite phase A < 0 always.

    Args:
        first: z > 1.
        second: v > 1.
        phase: 1 if both are at their lower points together, -1 if one is at its upper one.

    Example:
        >>> [bool(oscillating_pair(1.4, 1.2, phase).radius > 1) for phase in (1.0, -1.0)]
        [True, True]
    """
    z, v = (
        jnp.asarray(checks.positive("first", first, ("...",))),
        checks.positive("second", second, ("...",)),
    )
    p, both = z * v**phase, z + 1 / z + v + 1 / v
    A = oscillation_excess(z, v, phase)
    determinant = A * (A - p - 1 / p) + 1
    return PairMultipliers(
        trace=1 + determinant - 2 * A * (2 - both),
        determinant=determinant,
        # u_i u_j - 2 in each step, since eta rho^2 u = 1 at both points of a two-cycle.
        product=5 - 2 * (p + 1 / p),
    )


@checked
def oscillation_excess(first: Numbers, second: Numbers, phase: Numbers) -> Float[Array, "..."]:
    """A of :func:`oscillating_pair`, which is 0 where two modes on two-cycles are neutral.

    Args:
        first: z.
        second: v.
        phase: 1 or -1.

    Example:
        >>> float(oscillation_excess(1.0, 1.0, 1.0))
        0.0
    """
    z, v = jnp.asarray(first), jnp.asarray(second)
    p = z * v**phase
    return 6 - 2 * (z + 1 / z) - 2 * (v + 1 / v) + p + 1 / p


@checked
def largest_square(scaled_target: Scalar, scaled_square: Scalar) -> Float[Array, ""]:
    """What ``a = eta rho^2`` of an orbit of two layers never passes, ``max(a_0, 4 (1+e)^3 / 27)``.

    With e = eta s < 2 and 0 <= a_0 < 2 + e, by ``a' = a (1 + e - a)^2``: it stays below 2 + e.

    Args:
        scaled_target: e.
        scaled_square: a_0.

    Example:
        >>> float(largest_square(2.0, 1.0))
        4.0
    """
    return jnp.maximum(jnp.asarray(scaled_square), 4 * (1 + jnp.asarray(scaled_target)) ** 3 / 27)
