"""Theorem 1: critical points, their losses and curvatures, two layers and more, and on data.

Singular values are chosen such that factors are rational: ``sigma - lambda`` is a square, and
``sigma = w^L + lambda w^(2-L)``. Where they are not, roots are enclosed in balls.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from itertools import combinations

from flint import arb, arb_mat, fmpq, fmpq_mat

from referee.exact.balls import balls
from referee.exact.claim import Both, ExactIdentity, Sides
from referee.exact.rational import (
    Layers,
    Rational,
    chain,
    column_of,
    columns,
    diagonal,
    gradients,
    hessian,
    low_rank,
    number,
    orthogonal,
    squared_norm,
    with_roots,
    zeros,
)

DECAY = Fraction(1, 4)
ROOTS = (Fraction(3, 2), Fraction(1), Fraction(1, 2))
"""Roots of ``sigma_i - lambda``."""
ROWS, COLUMNS, WIDTH, SEED = 3, 4, 2, 41


def sigma(i: int) -> Fraction:
    """A singular value of the target."""
    return ROOTS[i] ** 2 + DECAY


def target() -> fmpq_mat:
    """The target of two layers."""
    return low_rank(ROWS, COLUMNS, [sigma(i) for i in range(ROWS)], SEED)


def slope(layers: Layers, of: fmpq_mat, decay: Rational) -> Layers:
    """The gradient of ``1/2 ||W_L ... W_1 - Phi||^2 + lambda/2 sum ||W_l||^2``."""
    slopes = gradients(layers, lambda whole: whole - of)
    return [g + number(decay) * w for g, w in zip(slopes, layers, strict=True)]


def cost(layers: Layers, of: fmpq_mat, decay: Rational) -> fmpq:
    """The loss ``1/2 ||W_L ... W_1 - Phi||^2 + lambda/2 sum ||W_l||^2``."""
    penalty = sum((squared_norm(w) for w in layers), fmpq(0))
    return (squared_norm(chain(layers) - of) + number(decay) * penalty) / 2


def critical(modes: Sequence[int], decay: Rational = DECAY) -> Layers:
    """Two balanced layers that carry the modes of a set, with ``(sigma - lambda)^(1/2)`` each.

    With another decay than that of the problem they are no critical points.
    """
    left, right = orthogonal(ROWS, SEED), orthogonal(COLUMNS, SEED + 1)
    second, first = zeros(ROWS, WIDTH), zeros(WIDTH, COLUMNS)
    for slot, i in enumerate(modes):
        value = number(ROOTS[i] * (DECAY / decay))
        for k in range(ROWS):
            second[k, slot] = value * left[k, i]
        for k in range(COLUMNS):
            first[slot, k] = value * right[k, i]
    return [first, second]


def sets() -> list[tuple[int, ...]]:
    """All sets of at most as many modes as the hidden layer has units."""
    return [modes for size in range(WIDTH + 1) for modes in combinations(range(ROWS), size)]


def critical_gradient(decay: Rational = DECAY) -> Sides:
    """The gradient at the balanced point of every set is 0."""
    slopes = [g for modes in sets() for g in slope(critical(modes, decay), target(), DECAY)]
    stacked = column_of(*slopes)
    return zeros(stacked.nrows(), 1), stacked


def critical_loss(correction: bool = True) -> Sides:
    """``sum_S (lambda sigma - lambda^2/2) + sum_rest sigma^2/2`` and the loss there."""
    theory, measured = [], []
    for modes in sets():
        inside = [DECAY * sigma(i) - (DECAY**2 / 2 if correction else 0) for i in modes]
        rest = [sigma(i) ** 2 / 2 for i in range(ROWS) if i not in modes]
        theory.append(number(sum(inside + rest, Fraction(0))))
        measured.append(cost(critical(modes), target(), DECAY))
    return theory, measured


def predicted_spectrum(modes: Sequence[int], decay: Rational = DECAY) -> list[Fraction]:
    """All eigenvalues of the Hessian at the balanced point of a set."""
    slots = [sigma(i) for i in modes] + [Fraction(decay)] * (WIDTH - len(modes))
    outside = [sigma(j) for j in range(ROWS) if j not in modes]
    values = [mu + sign * s for mu in slots for s in outside for sign in (1, -1)]
    for i in modes:
        values += [2 * (sigma(i) - decay), 2 * Fraction(decay)]
    for i, j in combinations(modes, 2):
        total = sigma(i) + sigma(j)
        values += [total, total - 2 * decay, 2 * Fraction(decay), Fraction(0)]
    values += [2 * Fraction(decay), Fraction(0)] * (len(modes) * (WIDTH - len(modes)))
    values += slots * (ROWS + COLUMNS - 2 * min(ROWS, COLUMNS))
    return values


def spectrum(modes: Sequence[int], decay: Rational = DECAY) -> Sides:
    """The characteristic polynomial of the Hessian, by its eigenvalues and by its entries."""
    theory = with_roots(number(v) for v in predicted_spectrum(modes, decay))
    # The gradient is a polynomial of degree 3: 4 points are enough, and exact.
    whole = hessian(lambda layers: slope(layers, target(), DECAY), critical(modes), 4)
    return theory, whole.charpoly()


# Three and more layers ------------------------------------------------------------------------

DEEP_DECAY = Fraction(1, 16)
VALUES = (Fraction(1), Fraction(3, 4))
"""w_i, the value of a mode in every layer."""


def deep_sigma(w: Rational, depth: int, decay: Rational) -> Fraction:
    """``sigma = w^L + lambda w^(2-L)``, which is ``w^(2L-2) - sigma w^(L-2) + lambda = 0``."""
    return Fraction(w) ** depth + decay * Fraction(w) ** (2 - depth)


@cache
def deep(depth: int, size: int = 3) -> tuple[Layers, fmpq_mat]:
    """Layers that carry w_1 alone, and a target with a second value that they leave out."""
    values = [deep_sigma(w, depth, DEEP_DECAY) for w in VALUES]
    left, right = orthogonal(size, 51), orthogonal(size, 52)
    of = left * diagonal(values, size, size) * right.transpose()
    w = diagonal([VALUES[0]], 2, 2)
    first = diagonal([VALUES[0]], 2, size) * right.transpose()
    last = left * diagonal([VALUES[0]], size, 2)
    return [first, *[w] * (depth - 2), last], of


def deep_gradient(depth: int, decay: Rational = DEEP_DECAY) -> Sides:
    """The gradient at the balanced point is 0."""
    layers, of = deep(depth)
    slopes = column_of(*slope(layers, of, decay))
    return zeros(slopes.nrows(), 1), slopes


def deep_loss(depth: int, factor: Rational | None = None) -> Sides:
    """``1/2 (s - sigma)^2 + (lambda L/2) s^(2/L)`` summed over the modes, and the loss."""
    layers, of = deep(depth)
    w, (carried, left) = VALUES[0], [deep_sigma(v, depth, DEEP_DECAY) for v in VALUES]
    penalty = DEEP_DECAY * (depth if factor is None else factor) / 2 * w**2
    theory = (w**depth - carried) ** 2 / 2 + penalty + left**2 / 2
    return number(theory), cost(layers, of, DEEP_DECAY)


def deep_curvature(depth: int, sign: int = 1) -> Sides:
    """Values of the Hessian's characteristic polynomial at the eigenvalues that theory names."""
    layers, of = deep(depth)
    w, (carried, left) = VALUES[0], [deep_sigma(v, depth, DEEP_DECAY) for v in VALUES]
    named = [
        depth * w ** (2 * depth - 2) - sign * (depth - 2) * DEEP_DECAY,
        w ** (depth - 2) * (carried + left),
        w ** (depth - 2) * (carried - left),
        2 * DEEP_DECAY,
        DEEP_DECAY,
        Fraction(0),
    ]
    gradient = lambda moved: slope(moved, of, DEEP_DECAY)  # noqa: E731
    # The gradient of L layers is a polynomial of degree 2L - 1.
    polynomial = hessian(gradient, layers, 2 * depth - 1).charpoly()
    return [fmpq(0)] * len(named), [polynomial(number(value)) for value in named]


def enclosed_root(depth: int, decay: Rational) -> arb:
    """A ball that holds the larger root of ``w^(2L-2) - w^(L-2) + lambda``, sigma = 1.

    Newton's method finds it, a change of sign between the ends of the ball shows it.
    """

    def polynomial(w: arb) -> arb:
        return w ** (2 * depth - 2) - w ** (depth - 2) + arb(number(decay))

    w = arb(1)  # beyond the root, where the polynomial is convex and rises
    for _ in range(60):
        rise = (2 * depth - 2) * w ** (2 * depth - 3) - (depth - 2) * w ** (depth - 3)
        w = (w - polynomial(w) / rise).mid()
    width = arb("1e-55")
    if not (polynomial(w - width) < 0 and polynomial(w + width) > 0):
        raise ArithmeticError(f"no change of sign around {w}")
    return arb(w, width)


def deep_root(depth: int, decay: Rational = DEEP_DECAY) -> Sides:
    """The gradient of one mode with sigma = 1 at w in every layer, w the root for a decay.

    By hand: ``W_l = w u_l u_{l-1}^T``, so that ``grad W_1 = w^(L-1) u_1 u_L^T R + lambda W_1``.
    """
    w = enclosed_root(depth, decay)
    left = balls(columns(orthogonal(3, 53), [0]))
    right = balls(columns(orthogonal(3, 54), [0])).transpose()
    residual = left * arb_mat([[w**depth - 1]]) * right
    slopes = arb_mat([[w ** (depth - 1)]]) * left.transpose() * residual
    slopes += arb_mat([[number(DEEP_DECAY) * w]]) * right
    return arb_mat(1, 3), slopes


# On data ---------------------------------------------------------------------------------------

COSINES = (Fraction(4, 5), Fraction(5, 13))
"""Roots of ``1 - lambda / sigma^2``, of the encoder's directions."""


def autoencoder(modes: int, power: int = 2) -> tuple[Layers, fmpq_mat, list[Fraction]]:
    """``W_1 = W_2^T = (I - lambda Sigma^-2)^(1/2) U_l^T`` at lambda = 1, data, and sigma^2.

    ``power`` is that of the root, 2 where it is right.
    """
    squares = [1 / (1 - c**2) for c in COSINES] + [Fraction(1, 4)]
    left, right = orthogonal(3, 61), orthogonal(4, 62)
    data_values = [Fraction(5, 3), Fraction(13, 12), Fraction(1, 2)]
    assert [v**2 for v in data_values] == squares
    data = left * diagonal(data_values, 3, 4) * right.transpose()
    code = [c if power == 2 else c**2 for c in COSINES[:modes]]
    first = diagonal(code, 2, 3) * left.transpose()
    return [first, first.transpose()], data, squares


def autoencoder_gradient(power: int = 2) -> Sides:
    """The gradient of ``||X - W_2 W_1 X||^2 + lambda (||W_1||^2 + ||W_2||^2)`` is 0 there."""
    slopes = []
    for modes in (0, 1, 2):
        layers, data, _ = autoencoder(modes, power)
        parts = gradients(layers, lambda w, data=data: (w * data - data) * data.transpose())
        slopes += [2 * g + 2 * w for g, w in zip(parts, layers, strict=True)]
    stacked = column_of(*slopes)
    return zeros(stacked.nrows(), 1), stacked


def autoencoder_loss(correction: bool = True) -> Sides:
    """``sum_kept (2 lambda - lambda^2/sigma^2) + sum_rest sigma^2`` and the loss."""
    theory, measured = [], []
    for modes in (0, 1, 2):
        layers, data, squares = autoencoder(modes)
        inside = [2 - (1 / s if correction else 0) for s in squares[:modes]]
        theory.append(number(sum(inside + squares[modes:], Fraction(0))))
        penalty = sum((squared_norm(w) for w in layers), fmpq(0))
        measured.append(squared_norm(data - chain(layers) * data) + penalty)
    return theory, measured


BALANCED = (Fraction(3, 2), Fraction(1, 2), Fraction(0))
"""L-th roots of the values of a target that balanced layers reach."""


def balanced_spectrum(depth: int, wrong: bool = False) -> Sides:
    """``mu_ij`` and zeros, against the Hessian of balanced layers in rational bases."""
    d = len(BALANCED)
    bases = [orthogonal(d, SEED + l) for l in range(depth + 1)]
    roots = diagonal(BALANCED)
    layers = [bases[l + 1] * roots * bases[l].transpose() for l in range(depth)]
    whole = chain(layers)
    mu = [
        sum(
            # The last value is 0, and 0^0 = 1.
            a ** (2 * (depth - 1 - l)) * b ** (2 * (depth - 1 - l if wrong else l))
            for l in range(depth)
        )
        for a in BALANCED
        for b in BALANCED
    ]
    theory = with_roots([number(value) for value in mu] + [fmpq(0)] * ((depth - 1) * d * d))
    curved = hessian(lambda W: slope(W, whole, Fraction(0)), layers, 2 * depth - 1)
    return theory, curved.charpoly()


def identities() -> list[ExactIdentity]:
    """All identities of Theorem 1."""

    def stated(
        claim: str, statement: str, instance: str, sides: Both, wrong: Both, mistake: str
    ) -> ExactIdentity:
        return ExactIdentity("theorem1", claim, statement, instance, sides, wrong, mistake)

    two = f"{ROWS} x {COLUMNS}, r = {WIDTH}, all sets"
    listed = [
        stated(
            "critical_gradient",
            "gradient = 0 at sum_S (sigma - lambda) u v^T",
            two,
            critical_gradient,
            lambda: critical_gradient(DECAY / 2),
            "another threshold",
        ),
        stated(
            "critical_loss",
            "f = sum_S (lambda sigma - lambda^2/2) + sum sigma^2/2",
            two,
            critical_loss,
            lambda: critical_loss(correction=False),
            "lambda^2/2 left out",
        ),
    ]
    for modes in ((0, 1), (1,), ()):
        named = "{" + ", ".join(str(i + 1) for i in modes) + "}"
        listed.append(
            stated(
                "spectrum",
                "det(x I - Hessian) = prod (x - value)",
                f"{ROWS} x {COLUMNS}, r = {WIDTH}, S = {named}",
                lambda modes=modes: spectrum(modes),
                lambda modes=modes: spectrum(modes, DECAY / 2),
                "values of another decay",
            )
        )
    for depth in (2, 3):
        listed.append(
            stated(
                "balanced_spectrum",
                "det(x I - Hessian) = x^{L d^2 - d^2} prod (x - mu_ij)",
                f"3 x 3, r = 2, L = {depth}, balanced",
                lambda depth=depth: balanced_spectrum(depth),
                lambda depth=depth: balanced_spectrum(depth, wrong=True),
                "both powers of layer L - l",
            )
        )
    for depth in (3, 4):
        deep_at = f"3 x 3, r = 2, L = {depth}, one mode of two"
        listed += [
            stated(
                "rest",
                "gradient = 0 at sigma = w^L + lambda w^(2-L)",
                deep_at,
                lambda depth=depth: deep_gradient(depth),
                lambda depth=depth: deep_gradient(depth, DEEP_DECAY / 2),
                "half the decay",
            ),
            stated(
                "rest_loss",
                "f = sum 1/2 (s - sigma)^2 + (lambda L/2) s^(2/L)",
                deep_at,
                lambda depth=depth: deep_loss(depth),
                lambda depth=depth: deep_loss(depth, 2),
                "2 in the place of L",
            ),
            stated(
                "rest (curvature)",
                "values named are eigenvalues of the Hessian",
                deep_at,
                lambda depth=depth: deep_curvature(depth),
                lambda depth=depth: deep_curvature(depth, -1),
                "L w^(2L-2) + (L-2) lambda",
            ),
            stated(
                "deep_minimiser",
                "gradient = 0 at the larger root, enclosed",
                f"3 x 3, r = 1, L = {depth}, sigma = 1",
                lambda depth=depth: deep_root(depth),
                lambda depth=depth: deep_root(depth, DEEP_DECAY + Fraction(1, 10**6)),
                "the root of a decay larger by 1e-6",
            ),
        ]
    on_data = "3 x 4, r = 2, l = 0, 1, 2"
    listed += [
        stated(
            "autoencoder_gradient",
            "gradient = 0 at U (I - lambda Sigma^-2) U^T",
            on_data,
            autoencoder_gradient,
            lambda: autoencoder_gradient(power=1),
            "factors that are not roots",
        ),
        stated(
            "autoencoder_loss",
            "f = sum (2 lambda - lambda^2/sigma^2) + sum sigma^2",
            on_data,
            autoencoder_loss,
            lambda: autoencoder_loss(correction=False),
            "2 lambda alone",
        ),
    ]
    return listed
