"""One balanced mode beyond the edge of stability: its two-cycle, its doubling, its chaos.

A mode whose L layers share one singular value rho, with the singular value s of the target,
descends by

    h(rho) = rho - eta (rho^L - s) rho^{L-1}.

The minimum rho = s^{1/L} is stable up to the edge ``eta_c = (2 / L) s^{-(2 - 2/L)}``, where the
sharpness ``L s^{2 - 2/L}`` of the balanced minimum times eta is 2. Beyond it there is exactly one
two-cycle (rho, z rho) with positive points. With z = e^y > 1:

    rho^L = s (1 + z^{L-1}) / (1 + z^{2L-1}),
    eta / eta_c = L cosh((2L-1) y / 2)^a cosh((L-1) y / 2)^{1-a} sinh(y / 2) / sinh(L y / 2),

a = 2 - 2/L (``docs/theorems/edge_of_stability.md``, Why 1). All step sizes are those of the loss
1/2 ||.||_F^2, singular values those of the product (s) or of one layer (rho).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar

HALVINGS = 64
"""Halvings of an interval of length 1 or so: more than there are digits in float64."""


@checked
def edge(depth: int, target: Scalar) -> Float[Array, ""]:
    """Step size at which the balanced minimum loses its stability, ``(2 / L) s^{-(2 - 2/L)}``.

    Args:
        depth: L, 2 or more.
        target: s > 0.

    Raises:
        ValueError: the depth is below 2, or s is not positive.

    Example:
        >>> float(edge(2, 4.0))
        0.25
    """
    checks.integer("depth", depth, 2)
    target = jnp.asarray(checks.positive("target", target))
    return 2 / depth * target ** (2 / depth - 2)


@checked
def balanced_step(
    value: Float[Array, "..."], depth: int, target: Any, learning_rate: Any
) -> Float[Array, "..."]:
    """One step of descent of a balanced mode, ``h(rho) = rho - eta (rho^L - s) rho^{L-1}``.

    Args:
        value: rho, any number of modes.
        depth: L.
        target: s, one number or one for each mode.
        learning_rate: eta.

    Example:
        >>> float(balanced_step(jnp.asarray(2.0), 2, 1.0, 0.25))
        0.5
    """
    others = value ** (depth - 1)
    return value - learning_rate * (value * others - target) * others


class TwoCycle(NamedTuple):
    """A two-cycle of a balanced mode with positive points."""

    low: Float[Array, ""]
    """rho, the smaller point: the singular value of one layer."""
    high: Float[Array, ""]
    """z rho."""
    ratio: Float[Array, ""]
    """z = e^y, above 1."""


# Formulas of ``Any`` take numbers of Python as well as arrays of JAX.


def _sum_of_powers(z: Any, count: int) -> Any:
    """1 + z + ... + z^{count - 1}: ``(z^count - 1) / (z - 1)`` without a 0 / 0 at z = 1."""
    return sum(z**power for power in range(1, count)) + 1


def _edge_ratio(depth: int, z: Any) -> Any:
    """The formula of :func:`cycle_edge_ratio` in powers of z, in which nothing cancels."""
    a = 2 - 2 / depth
    both = ((1 + z ** (2 * depth - 1)) / 2) ** a * ((1 + z ** (depth - 1)) / 2) ** (1 - a)
    return depth * both / (z ** (depth - 1) * _sum_of_powers(z, depth))


@checked
def cycle_edge_ratio(depth: int, log_ratio: Scalar) -> Float[Array, ""]:
    """``eta / eta_c`` at which the two-cycle has the ratio z = e^y; it grows with y, from 1.

    Args:
        depth: L.
        log_ratio: y > 0.

    Example:
        >>> z = (1 + 5**0.5) / 2
        >>> round(float(cycle_edge_ratio(2, jnp.log(jnp.asarray(z)))), 6)  # sqrt 5 - 1
        1.236068
    """
    checks.integer("depth", depth, 2)
    return _edge_ratio(depth, jnp.exp(jnp.asarray(checks.positive("log_ratio", log_ratio))))


def halve(low: Any, high: Any, is_below: Callable[[Any], Any]) -> Any:
    """Where a condition that holds at the lower end of an interval ends to hold, by halving it.

    Of numbers of Python or NumPy; their precision is kept.

    Args:
        low: lower end.
        high: upper end.
        is_below: whether a number lies below the place that is looked for.

    Example:
        >>> round(halve(0.0, 2.0, lambda x: x**2 < 2), 4)
        1.4142
    """
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_below(middle) else (low, middle)
    return high


@checked
def two_cycle(depth: int, target: Scalar, learning_rate: Scalar) -> TwoCycle:
    """The one two-cycle with positive points beyond the edge, in closed form.

    The ratio z is the root of :func:`cycle_edge_ratio`, which grows with it; with two layers
    ``z + 1/z = eta s + 1``. For even L there is also (rho, -rho), which is not meant. Up to the
    edge there is none: z is then 1.

    Args:
        depth: L, 2 or more.
        target: s > 0.
        learning_rate: eta > 0.

    Example:
        >>> cycle = two_cycle(2, 1.0, 1.2)
        >>> there = float(balanced_step(cycle.low, 2, 1.0, 1.2))
        >>> abs(there - float(cycle.high)) < 1e-6
        True
    """
    target = jnp.asarray(checks.positive("target", target))
    ratio = checks.positive("learning_rate", learning_rate) / edge(depth, target)
    z = _ratio_of_two_layers(ratio) if depth == 2 else _ratio_by_halving(depth, ratio)
    low = (target * (1 + z ** (depth - 1)) / (1 + z ** (2 * depth - 1))) ** (1 / depth)
    return TwoCycle(low, z * low, z)


def _ratio_of_two_layers(edge_ratio: Array) -> Array:
    """The z of ``z + 1/z = eta s + 1``, eta s = eta / eta_c."""
    # What is above the edge, without a difference of squares.
    above = jnp.maximum(edge_ratio - 1, 0.0)
    return 1 + (above + jnp.sqrt(above * (above + 4))) / 2


def _ratio_by_halving(depth: int, edge_ratio: Array) -> Array:
    """The root z of :func:`cycle_edge_ratio`, which grows with it."""

    def cut(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (ends[0] + ends[1]) / 2
        below = _edge_ratio(depth, middle) < edge_ratio
        return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

    # With two layers z is below 1 + eta / eta_c, and that of deeper networks is smaller.
    ends = jnp.ones_like(edge_ratio), 1 + edge_ratio
    return jax.lax.fori_loop(0, HALVINGS, cut, ends)[1]


@checked
def cycle_multiplier(depth: int, ratio: Scalar) -> Float[Array, ""]:
    """``h'(rho) h'(z rho)``, by which a balanced disturbance is multiplied in two steps.

    ``[1 - (z-1) P / (z^{L-1} (z^L - 1))] [1 - (z-1) Q / (z (z^L - 1))]`` with
    ``P = L + (2L-1) z^{L-1} - (L-1) z^{2L-1}`` and ``Q = L z^{2L-1} + (2L-1) z^L - (L-1)``; with
    two layers ``9 - 2 (eta s + 1)^2``.

    Args:
        depth: L.
        ratio: z > 1.

    Example:
        >>> w = 2.0 + 1 / 2.0  # eta s + 1 where z = 2
        >>> float(cycle_multiplier(2, 2.0)), 9 - 2 * w**2
        (-3.5, -3.5)
    """
    checks.integer("depth", depth, 2)
    return _multiplier(depth, jnp.asarray(checks.positive("ratio", ratio)))


def _multiplier(depth: int, z: Any) -> Any:
    """The formula of :func:`cycle_multiplier`."""
    L, total = depth, _sum_of_powers(z, depth)
    P = L + (2 * L - 1) * z ** (L - 1) - (L - 1) * z ** (2 * L - 1)
    Q = L * z ** (2 * L - 1) + (2 * L - 1) * z**L - (L - 1)
    return (1 - P / (z ** (L - 1) * total)) * (1 - Q / (z * total))


def _edge_ratio_at_multiplier(depth: int, multiplier: float) -> Array:
    """``eta / eta_c`` at which the multiplier of the two-cycle has fallen to a value below 1.

    A number of the depth alone, so that no program has to look for it.
    """
    # From 1 at the edge it falls below -3.5 at z = 3.3 at every depth (two layers: -17).
    z = halve(1.0, 3.3, lambda z: _multiplier(depth, z) > multiplier)
    return jnp.asarray(_edge_ratio(depth, z))


def doubling(depth: int) -> Float[Array, ""]:
    """``eta / eta_c`` at which the two-cycle loses its stability to one of period four.

    There its multiplier is -1. With two layers it is sqrt 5 - 1, and z the golden ratio.

    Args:
        depth: L, 2 or more.

    Example:
        >>> [round(float(doubling(L)), 4) for L in (2, 3, 4, 6)]
        [1.2361, 1.2446, 1.2472, 1.2491]
    """
    return _edge_ratio_at_multiplier(checks.integer("depth", depth, 2), -1.0)


def fastest_cycle(depth: int) -> Float[Array, ""]:
    """``eta / eta_c`` at which the two-cycle is reached fastest: its multiplier is 0.

    Example:
        >>> [round(float(fastest_cycle(L)), 4) for L in (2, 3, 4, 6)]
        [1.1213, 1.1236, 1.1243, 1.1248]
    """
    return _edge_ratio_at_multiplier(checks.integer("depth", depth, 2), 0.0)


@checked
def balance_factor(ratio: Scalar) -> Float[Array, ""]:
    """Factor of ``s_i^2 - s_j^2`` of two layers in one round of the two-cycle, ``5 - 2 (z + 1/z)``.

    To first order, at any depth. It lies between -1 and 1 up to z = the square of the golden ratio.

    Args:
        ratio: z.

    Example:
        >>> float(balance_factor(2.0))
        0.0
    """
    z = jnp.asarray(checks.positive("ratio", ratio))
    return 5 - 2 * (z + 1 / z)


@checked
def balance_decay(
    layers: Float[Array, "depth"], first: int, second: int, target: Scalar, learning_rate: Scalar
) -> Float[Array, ""]:
    """Factor of ``b = s_i^2 - s_j^2`` in a step of scalar layers, ``1 - eta^2 (p - s)^2 q^2``.

    p is the product of all layers, q that of the layers other than i and j: exact at any step size,
    where gradient flow would conserve b.

    Args:
        layers: s_1, ..., s_L; zeros are allowed.
        first: i, from 0.
        second: j.
        target: s.
        learning_rate: eta.

    Example:
        >>> layers, eta = jnp.array([2.0, 1.0]), 0.25
        >>> after = layers - eta * (jnp.prod(layers) - 1.0) * layers[::-1]
        >>> float((after[0] ** 2 - after[1] ** 2) / 3), float(balance_decay(layers, 0, 1, 1.0, eta))
        (0.9375, 0.9375)
    """
    others = jnp.prod(
        jnp.where(jnp.isin(jnp.arange(len(layers)), jnp.array([first, second])), 1.0, layers)
    )
    return 1 - (learning_rate * (jnp.prod(layers) - target) * others) ** 2


@checked
def triple_turns(
    numerator: Int[Array, "..."], denominator: int, times: Int[Array, "step"]
) -> Int[Array, "... step"]:
    """Parts of the circle that an angle of p of q parts has when it was tripled t times.

    Args:
        numerator: p, one or several.
        denominator: q, an odd number below 2^29 (3 q must be a 32-bit integer).
        times: t.

    Example:
        >>> triple_turns(jnp.array(1), 7, jnp.arange(7)).tolist()
        [1, 3, 2, 6, 4, 5, 1]
    """
    checks.integer("denominator", denominator, 3, 2**29)

    def turn(t: Array) -> Array:
        # One factor after another: 3^t itself is soon no 32-bit integer.
        start = jnp.broadcast_to(jnp.asarray(numerator) % denominator, jnp.shape(numerator))
        return jax.lax.fori_loop(0, t, lambda _, p: p * 3 % denominator, start)

    return jax.vmap(turn, out_axes=-1)(jnp.asarray(times))


@checked
def orbit_at_twice_the_edge(
    numerator: Int[Array, "..."], denominator: int, target: Scalar, times: Int[Array, "step"]
) -> Float[Array, "... step"]:
    """Every step of a mode of two layers at eta = 2/s: ``sqrt(2 s) (-1)^t cos(3^t theta)``.

    It starts from ``rho_0 = sqrt(2 s) cos(theta)``. The angle is a fraction of the circle, theta =
    2 pi p / q, of which 3^t theta is known exactly whatever t is: ``p 3^t`` modulo q.

    Args:
        numerator: p, one or several starts.
        denominator: q, an odd number below 2^29 (3 q must be a 32-bit integer).
        target: s.
        times: steps t.

    Example:
        >>> orbit = orbit_at_twice_the_edge(jnp.array(1), 7, 2.0, jnp.array([0, 1, 6]))
        >>> [round(float(rho), 4) for rho in orbit]  # 3^6 is 1 modulo 7
        [1.247, 1.8019, 1.247]
    """
    target = jnp.asarray(checks.positive("target", target))

    turns = triple_turns(numerator, denominator, times)
    signs = jnp.where(jnp.asarray(times) % 2 == 0, 1.0, -1.0)
    return jnp.sqrt(2 * target) * signs * jnp.cos(2 * jnp.pi * turns / denominator)
