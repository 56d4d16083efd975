"""When gradient descent on two layers must have arrived at a global minimum: Theorem 1.

Everything here follows from the target, the start, the step and the decay, beforehand, or bounds
the distance from the minimum by gradients, and is NumPy in float64: verdicts read it.
``docs/theorems/convergence.md`` derives each formula.

sigma (``values``) are all singular values of a target Phi, decreasing, or of the inputs X of an
autoencoder; lambda is the ``decay``, r the ``rank``, the width of the hidden layers, eta the
``rate`` and L the ``depth``. Values within a distance of ``close`` are equal. Reference:
arXiv 2503.19859, Theorem 1.
"""

from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lrdyn.core import checks
from lrdyn.core.checks import checked

SAFETY = 2.0
"""Factor of the number of steps: escape and approach overlap, and neither is of one mode alone.
Measured: see ``docs/theorems/convergence.md``."""


class Curvature(NamedTuple):
    """Extreme eigenvalues of the Hessian at the balanced global minimum."""

    least: float
    """mu, the smallest eigenvalue that is not 0. At a degenerate minimum it is 0, and descent is as
    slow as a power of time."""
    largest: float
    """mu_max; a step of 2 / mu_max or more leaves the minimum."""


class Start(NamedTuple):
    """The layers at the start, as far as the number of steps depends on them."""

    modes: Float[np.ndarray, "n r"]
    """``(U^T W_2 + V^T W_1^T) / 2``, U and V the singular vectors of the target: its rows grow
    from a small start, at rates of their own."""
    first: Float[np.ndarray, "r r"]
    """``W_1 W_1^T``."""
    last: Float[np.ndarray, "r r"]
    """``W_2^T W_2``."""

    @property
    def size(self) -> float:
        """Squared spectral norm of both layers on top of each other, ``||(W_2; W_1^T)||_2^2``."""
        return float(np.linalg.norm(self.first + self.last, 2))

    @property
    def imbalance(self) -> float:
        """``||W_2^T W_2 - W_1 W_1^T||_2``, which gradient flow never lets grow."""
        return float(np.linalg.norm(self.last - self.first, 2))


@checked
def threshold(decay: float, depth: int = 2) -> float:
    """Singular value of the target up to which a minimiser is 0 in that direction.

    lambda for two layers. For more the two minima of ``1/2 (s - sigma)^2 + (lambda L/2) s^{2/L}``
    cost the same at ``s = (lambda (L - 2))^{L/(2L-2)}``, ``sigma = s (L - 1) / (L - 2)``.

    Example:
        >>> threshold(0.5), round(threshold(0.5, 3), 4)
        (0.5, 1.1892)
    """
    checks.nonnegative("decay", decay)
    checks.integer("depth", depth, 2)
    if depth == 2:
        return decay
    return (decay * (depth - 2)) ** (depth / (2 * depth - 2)) * (depth - 1) / (depth - 2)


@checked
def curvature_at_minimum(
    values: Float[np.ndarray, "n"],
    rank: int,
    shape: tuple[int, int],
    decay: float = 0.0,
    *,
    close: float = 0.0,
) -> Curvature:
    """Curvature of :func:`lrdyn.theorem1.decayed_loss` of two layers at its minimum.

    With the q values ``sigma_i > lambda``, i <= r, that are kept, mu is the least of

    * ``2 (sigma_q - lambda)``, and ``2 lambda`` if lambda > 0, if q > 0;
    * ``sigma_i - sigma_j``, i <= q < j, where they differ (0 for sigma_j too, if k and d differ);
    * ``lambda - sigma_{q+1}`` if q < r;

    and mu_max the greatest of ``2 (sigma_1 - lambda)``, ``sigma_1 + sigma_2`` and ``2 lambda``, or
    ``lambda + sigma_1`` if q = 0. A tie of ``sigma_q`` with those left out makes a manifold of
    minimisers and no slow direction; ``sigma_i = lambda`` makes one.

    Args:
        values: sigma, all min(k, d) singular values of the target.
        rank: r.
        shape: (k, d).
        decay: lambda.
        close: values at most so far apart are equal.

    Example:
        >>> curvature_at_minimum(np.array([1.0, 0.75, 0.5]), 2, (3, 3), 0.125)
        Curvature(least=0.25, largest=1.75)
    """
    values = checks.spectrum("values", values)
    decay, close = map(checks.nonnegative, ("decay", "close"), (decay, close))
    checks.integer("rank", rank, 1, len(values))
    checks.sizes("shape", shape, 2, 2)
    # With a single value the pair sigma_1 + sigma_2 is sigma_1, which decides nothing: one of the
    # other two is as large, since they add up to 2 sigma_1.
    first, second = (*values, 0.0)[:2]
    above = values[:rank][values[:rank] > decay + close]
    rest = values[len(above) :]
    # On its longer side Phi has directions besides those of sigma: to them it gives the value 0.
    gaps = above[:, None] - (rest if shape[0] == shape[1] else np.append(rest, 0.0))
    eigenvalues = [*gaps[gaps > close]]
    if len(above) < rank:
        eigenvalues.append(decay - rest[0])
    # Nothing is kept: every unit is spare, and all blocks are [[lambda, -sigma], [-sigma, lambda]].
    if not len(above):
        return Curvature(float(max(0.0, *eigenvalues)), float(decay + first))
    # Without decay the imbalance of a kept slot costs nothing: no eigenvalue, but a gauge.
    eigenvalues += [2 * (above[-1] - decay), *([2 * decay] if decay > 0 else [])]
    # With sigma_i = lambda the loss rises along mode i as its fourth power: no rate is exponential.
    degenerate = np.any(np.abs(values[:rank] - decay) <= close)
    largest = max(2 * (first - decay), first + second, 2 * decay)
    return Curvature(0.0 if degenerate else float(min(eigenvalues)), float(largest))


@checked
def autoencoder_curvature(
    values: Float[np.ndarray, "n"], width: int, decay: float = 0.0, *, close: float = 0.0
) -> Curvature:
    """Curvature of :func:`lrdyn.theorem1.autoencoder_loss` at its minimum.

    In the basis of the singular vectors of X the Hessian falls into blocks of a unit of the hidden
    layer and a direction, or of two units; ``kappa = sigma^2``, ``w_a^2 = 1 - lambda / kappa_a``:

    * ``4 (kappa_a - lambda)`` and ``4 lambda`` for each kept a;
    * ``2 (lambda +- kappa_j)`` for each unit to spare and each j left out;
    * ``[[2 (w_a^2 kappa_j + lambda), -2 kappa_j], [., 2 kappa_a]]`` for a kept and j left out;
    * for each pair of kept a and b the matrix of ``2 kappa_b (w_a x + w_b y)^2 + 2 kappa_a (w_b x'
      + w_a y')^2 + 2 lambda ((x - y')^2 + (x' - y)^2)``, with an eigenvalue 0 for the turn of the
      hidden basis (two without decay).

    Args:
        values: sigma, all singular values of X.
        width: number of hidden units.
        decay: lambda.
        close: squares of singular values at most so far apart are equal.

    Example:
        >>> [round(e, 2) for e in autoencoder_curvature(np.array([2.0, 1.0]), 1, 1.0)]
        [2.74, 12.0]
    """
    values = checks.spectrum("values", values)
    decay, close = map(checks.nonnegative, ("decay", "close"), (decay, close))
    checks.integer("width", width)
    squares = values**2
    above = squares[:width][squares[:width] > decay + close]
    # Zeros of the block of two units: a rotation of both, and without decay any change of basis
    # that mixes them (decay alone ties W_1 to W_2^T).
    rest, flat = squares[len(above) :], 1 if decay > 0 else 2
    eigenvalues = [*(4 * (above - decay))]
    if decay > 0 and len(above):
        eigenvalues.append(4 * decay)
    if len(above) < width:
        eigenvalues += [*(2 * (decay - rest)), *(2 * (decay + rest))]
    for a in above:
        for j in rest:
            # The entries (a, j) of W_1 and (j, a) of W_2, in this order.
            block = [[2 * (j * (1 - decay / a) + decay), -2 * j], [-2 * j, 2 * a]]
            eigenvalues += [*np.linalg.eigvalsh(np.array(block))]
    for a, b in combinations(above, 2):
        eigenvalues += [*np.linalg.eigvalsh(_two_unit_hessian(a, b, decay))[flat:]]
    # A kept direction that is tied with one left out has no curvature either.
    degenerate = np.any(np.abs(squares[:width] - decay) <= close) or min(eigenvalues) <= close
    return Curvature(0.0 if degenerate else float(min(eigenvalues)), float(max(eigenvalues)))


def _two_unit_hessian(a: float, b: float, decay: float) -> np.ndarray:
    """Block of the Hessian of two kept units a and b, in the order x, y, x', y'."""
    w_a, w_b = np.sqrt(1 - decay / a), np.sqrt(1 - decay / b)
    entry_ab, entry_ba = np.array([w_a, w_b, 0, 0]), np.array([0, 0, w_b, w_a])
    imbalance = np.array([[1, 0, 0, -1], [0, -1, 1, 0]])
    fit = b * np.outer(entry_ab, entry_ab) + a * np.outer(entry_ba, entry_ba)
    return 2 * fit + 2 * decay * imbalance.T @ imbalance


@checked
def sharpness(start: Start, largest: float, decay: float = 0.0) -> float:
    """Bound of the Hessian of two layers along gradient flow from a start.

    ``3/2 z + E + sigma_1 + lambda`` with ``z = max(||(W_2; W_1^T)||^2, m + (m^2 + E^2)^{1/2})``,
    ``m = (sigma_1 - lambda)_+`` and the :attr:`Start.imbalance` E.

    Args:
        start: the layers at the start.
        largest: sigma_1.
        decay: lambda.

    Example:
        >>> sharpness(Start(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1))), 1.0)
        4.0
    """
    largest, decay = map(checks.nonnegative, ("largest", "decay"), (largest, decay))
    most = max(largest - decay, 0.0)
    # z at any later time: convergence.md, Why 3, where its derivative changes sign.
    size = max(start.size, most + float(np.hypot(most, start.imbalance)))
    return 1.5 * size + start.imbalance + largest + decay


@checked
def steps_to_arrive(
    start: Start,
    values: Float[np.ndarray, "n"],
    shape: tuple[int, int],
    decay: float,
    rate: float,
    tolerance: float,
    *,
    close: float = 0.0,
    rounding: float = 0.0,
) -> float | None:
    """Steps after which gradient descent on two layers must be at the minimum.

    ``2 (ln((sigma_q - lambda)^{1/2} / a) / ln(1 + eta (sigma_q - lambda)) + ln(z / tolerance) /
    -ln c)``: a, the smallest of the q growing modes of the start, must reach its size at the end;
    then what is left shrinks by ``c = max(1 - eta mu, eta mu_max - 1)`` at each step, until it is
    within the tolerance, relative to sigma_1.

    Args:
        start: the layers at the start.
        values: sigma, all min(k, d) singular values of the target.
        shape: (k, d).
        decay: lambda.
        rate: eta.
        tolerance: distance from the minimum, relative to sigma_1, that counts as arrived.
        close: values at most so far apart are equal.
        rounding: machine epsilon of the descent, 0 for exact arithmetic.

    Returns:
        The number of steps; infinite for a degenerate minimum. None where theory gives none: the
        step is ``2 / mu_max`` or more, or ``2 /`` :func:`sharpness`; lambda = 0 and the imbalance
        of the start is above ``sigma_q / 4``; or rounding decides whether the q-th mode grows.

    Example:
        >>> start = Start(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
        >>> round(steps_to_arrive(start, np.ones(1), (1, 1), 0.0, 0.1, 1e-6), 1)
        130.0
        >>> steps_to_arrive(start, np.ones(1), (1, 1), 0.0, 0.6, 1e-6) is None
        True
    """
    rate, tolerance = map(checks.positive, ("rate", "tolerance"), (rate, tolerance))
    rounding = checks.nonnegative("rounding", rounding)
    rank = start.modes.shape[1]
    curvature = curvature_at_minimum(values, rank, shape, decay, close=close)
    above = values[:rank][values[:rank] > decay + close]
    # Without decay the imbalance of the start stays, and the Hessian at the end is another one:
    # such runs took up to six times the steps of this formula.
    # The quarter is measured: docs/theorems/convergence.md.
    unbalanced = decay == 0 and len(above) and start.imbalance > above[-1] / 4
    # Not `>= 2`: of a NaN there is no number, too.
    if unbalanced or not rate * sharpness(start, values[0], decay) < 2:
        return None
    wait = 0.0
    if len(above):
        ends = above - decay
        # All that is tied with sigma_q grows at its rate: the q-th mode may lie in any of it.
        tied = int(np.sum(values >= above[-1] - close))
        if _is_below_rounding(start, tied, ends, rate * ends, rounding):
            return None
        wait = _escape_steps(start, tied, len(above), ends[-1], rate * ends[-1])
    # What must vanish is at first as large as the start or the target, whichever is larger.
    return _arrival_steps(wait, curvature, rate, max(start.size / values[0], 1.0) / tolerance)


@checked
def autoencoder_steps(
    start: Start,
    values: Float[np.ndarray, "n"],
    decay: float,
    rate: float,
    tolerance: float,
    *,
    close: float = 0.0,
    rounding: float = 0.0,
) -> float | None:
    """Steps after which descent on a linear autoencoder must be at the minimum of its loss.

    The loss is the regularised one, ``||X - W_2 W_1 X||_F^2 + lambda (||W_1||^2 + ||W_2||^2)``. The
    number is that of :func:`steps_to_arrive` with :func:`autoencoder_curvature`, the size
    ``w_q^2 = 1 - lambda / kappa_q`` at the end, and growth by ``1 + 2 eta (kappa_q - lambda)`` at
    each step. That a step below ``2 / (2 kappa_1)`` over the :func:`sharpness` of target I is small
    enough is measured and not derived (``docs/theorems/autoencoder.md``).

    Args:
        start: the layers at the start.
        values: sigma, all singular values of X.
        decay: lambda.
        rate: eta.
        tolerance: distance from the minimum that counts as arrived; gains are at most 1.
        close: squares of singular values at most so far apart are equal.
        rounding: machine epsilon of the descent, 0 for exact arithmetic.

    Returns:
        The number of steps; infinite for a degenerate minimum. None without decay, where the step
        is larger than that, or where rounding decides whether the q-th mode grows.

    Example:
        >>> start = Start(np.ones((1, 1)), np.ones((1, 1)), np.ones((1, 1)))
        >>> round(autoencoder_steps(start, np.ones(1), 0.5, 0.1, 1e-6), 1)
        130.0
    """
    values = checks.spectrum("values", values)
    rate, tolerance = map(checks.positive, ("rate", "tolerance"), (rate, tolerance))
    rounding = checks.nonnegative("rounding", rounding)
    width, squares = start.modes.shape[1], values**2
    curvature = autoencoder_curvature(values, width, decay, close=close)
    above = squares[:width][squares[:width] > decay + close]
    # In units of the first square the loss is that of two layers with target I, twice.
    steepest = 2 * squares[0] * sharpness(start, 1.0, decay / squares[0])
    if decay == 0 or not rate * steepest < 2:
        return None
    wait = 0.0
    if len(above):
        # The gradient of this loss has the factor 2 that half a square has not.
        ends, growth = (above - decay) / above, 2 * rate * (above - decay)
        if _is_below_rounding(start, len(above), ends, growth, rounding):
            return None
        wait = _escape_steps(start, len(above), len(above), ends[-1], growth[-1])
    return _arrival_steps(wait, curvature, rate, max(start.size, 1.0) / tolerance)


def _escape_steps(start: Start, count: int, number: int, end: float, growth: float) -> float:
    """Steps in which the ``number``-th mode of the first ``count`` grows to its size at the end."""
    least = np.linalg.svd(start.modes[:count], compute_uv=False)[number - 1]
    with np.errstate(divide="ignore"):  # a start without this mode stays without it
        # Layers end at the root of what the product keeps.
        return float(np.maximum(0.5 * np.log(end) - np.log(least), 0.0) / np.log1p(growth))


def _is_below_rounding(
    start: Start, count: int, ends: np.ndarray, growth: np.ndarray, rounding: float
) -> bool:
    """Whether the last mode moves by less than rounding when the first one has come to its end.

    From then on entries have the size of the first mode. What a step of a small mode adds to them
    is lost where it is less than their last digit, and the mode may never grow: convergence.md.
    """
    sizes = np.linalg.svd(start.modes[:count], compute_uv=False)
    first, last = sizes[0], sizes[len(ends) - 1]
    if len(ends) == 1 or not rounding or not last:  # without this mode a start stays without it
        return False
    wait = _escape_steps(start, count, 1, ends[0], growth[0])
    then = np.log(last) + wait * np.log1p(growth[-1])
    entries = np.log(max(np.sqrt(ends[0]), first))
    return bool(then + np.log(growth[-1]) < np.log(rounding) + entries)


def _arrival_steps(
    wait: float, curvature: Curvature, rate: float, reduction: float
) -> float | None:
    """Steps of the escape and of the approach, with the safety factor; None if descent leaves."""
    if not rate * curvature.largest < 2:
        return None
    # 1 - c, which a tiny step must not round to 0; a curvature of 1 / eta alone arrives at once.
    least = min(rate * curvature.least, 2 - rate * curvature.largest, 1 - np.finfo(float).eps)
    if least <= 0:
        return float("inf")
    approach = np.log(reduction) / -np.log1p(-least)
    return SAFETY * float(wait + approach)


class End(NamedTuple):
    """Outer layers and product of a descent, with the gradients of the whole loss there."""

    first: Float[np.ndarray, "r d"]
    """W_1."""
    last: Float[np.ndarray, "k r"]
    """W_L."""
    first_gradient: Float[np.ndarray, "r d"]
    """g_1, decay included."""
    last_gradient: Float[np.ndarray, "k r"]
    """g_L."""
    product: Float[np.ndarray, "k d"]
    """P = W_L ... W_1."""


@checked
def distance_bound(
    end: End,
    target: Float[np.ndarray, "k d"],
    rank: int,
    decay: float = 0.0,
    depth: int = 2,
    *,
    close: float = 0.0,
) -> float:
    """Bound of the distance ``||P - P*||_F`` of a product from the minimiser, by gradients.

    With ``U s V^T`` the rank-q SVD of P, ``h = V^T W_1^T g_1 V + U^T g_L W_L^T U``, ``beta =
    ||V^T W_1^T W_1 V + U^T W_L W_L^T U - 2 s^{2/L}||_F``, ``o_1 = ||s^{-1} V^T W_1^T g_1
    (I - V V^T)||_F + lambda ||s^{-1} V^T W_1^T W_1 (I - V V^T)||_F``, o_2 that of the last layer
    and ``e^2 = ((||h||_F + lambda beta) / (2 s_q))^2 + o_1^2 + o_2^2``:

        ||P - P*||_F <= ||P - P_q||_F + C e.

    P_q is the minimiser of another target within e of Phi, and C the Lipschitz constant of the
    minimiser in between. For two layers without a tie it is proved; with ``sigma_q =
    sigma_{q+1}`` (P* the nearest minimiser) and for more layers C is twice that of first order.

    Args:
        end: layers, gradients and product of the descent.
        target: Phi.
        rank: r.
        decay: lambda.
        depth: L.
        close: singular values at most so far apart are equal.

    Returns:
        The bound; infinite where there is none, near a saddle for example.

    Example:
        >>> root, zero = np.eye(1), np.zeros((1, 1))
        >>> distance_bound(End(root, root, 0.1 * root, zero, root), 0.9 * root, 1)
        0.05
    """
    checks.integer("rank", rank)
    decay, close = map(checks.nonnegative, ("decay", "close"), (decay, close))
    if not all(np.all(np.isfinite(array)) for array in (target, *end)):
        return float("inf")
    values = np.linalg.svd(target, compute_uv=False)
    count = int(np.sum(values[:rank] > threshold(decay, depth) + close))  # q
    left, spectrum, right = np.linalg.svd(end.product)
    left, s, right = left[:, :count], spectrum[:count], right[:count].T
    outside = float(np.linalg.norm(spectrum[count:]))
    # If the minimiser is 0 the distance is the product itself; without q values of its own the
    # product is near a saddle, and there is no bound.
    if not count or s[-1] <= 0:
        return float("inf") if count else outside
    error = _target_error(end, left, s, right, decay, depth)
    # (I - U U^T) Phi (I - V V^T), whose norm is N in convergence.md.
    rest = target - left @ (left.T @ target)
    rest -= (rest @ right) @ right.T
    largest = float(np.linalg.norm(rest, 2))
    return outside + _lipschitz_constant(values, s, largest, error, decay, depth, close) * error


def _target_error(
    end: End, left: np.ndarray, s: np.ndarray, right: np.ndarray, decay: float, depth: int
) -> float:
    """e, the distance of the target from one that P_q minimises: convergence.md, Why 4."""
    # W_1^T g_1 and g_L W_L^T, from which h and beta are made.
    inner, outer = end.first.T @ end.first_gradient, end.last_gradient @ end.last.T
    squares = end.first.T @ end.first, end.last @ end.last.T
    inside = right.T @ inner @ right + left.T @ outer @ left
    balance = right.T @ squares[0] @ right + left.T @ squares[1] @ left
    balance -= 2 * np.diag(s ** (2 / depth))

    def norm_across(matrix: np.ndarray, basis: np.ndarray) -> float:
        rows = basis.T @ matrix / s[:, None]
        return float(np.linalg.norm(rows - (rows @ basis) @ basis.T))

    within = (np.linalg.norm(inside) + decay * np.linalg.norm(balance)) / (2 * s[-1])
    first = norm_across(inner, right) + decay * norm_across(squares[0], right)
    last = norm_across(outer.T, left) + decay * norm_across(squares[1], left)
    return float(np.linalg.norm([within, first, last]))


def _lipschitz_constant(
    values: np.ndarray,
    s: np.ndarray,
    largest: float,
    error: float,
    decay: float,
    depth: int,
    close: float,
) -> float:
    """Lipschitz constant C of :func:`distance_bound` between two targets.

    ``largest`` is the largest singular value of what the target has beside P_q.
    """
    count, following = len(s), np.append(values, 0.0)[len(s) :]
    gaps = values[:count, None] - following
    if depth == 2 and max(largest, following[0]) <= decay:
        return 1.0  # soft thresholding is a proximal map, which never moves two points apart
    if depth == 2 and gaps[-1, 0] > close:
        # On the way between the targets sigma_q and sigma_{q+1} move by the error at most, each.
        room = gaps[-1, 0] - 2 * error
        if largest >= s[-1] + decay or room <= 0:
            return float("inf")
        return max(1.0, float((values[count - 1] - decay + error) / room))
    # The slope of s(sigma) is 1 / bend: differentiate sigma = s + lambda s^{2/L-1}.
    bend = 1 - decay * (1 - 2 / depth) * s[-1] ** (2 / depth - 2)
    gap = float(np.min(gaps[gaps > close], initial=np.inf))
    near = error <= min(gap, s[-1] * bend) / 8
    if not (near and largest < s[-1] + decay * s[-1] ** (2 / depth - 1) + gap / 2):
        return float("inf")
    shares = np.where(gaps > close, s[:, None] / np.where(gaps > close, gaps, 1.0), 0.0)
    # Of first order only, hence the factor 2, within errors an eighth of every gap.
    return 2 * max(1.0, 1 / bend, float(np.max(shares)))
