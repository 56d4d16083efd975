"""Theorem 3 and Example 4.1: every expectation is a sum over all masks with their probabilities."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import product as cartesian
from typing import Any

from flint import arb, arb_mat, fmpq, fmpq_mat

from referee.exact.balls import balls
from referee.exact.claim import Both, ExactIdentity, Sides
from referee.exact.rational import (
    beside,
    columns,
    diagonal,
    inner,
    integers,
    number,
    orthogonal,
    rows,
    squared_norm,
    trace,
    zeros,
)

KEEP = Fraction(2, 5)
"""theta, the probability to keep a unit."""
UNITS = 4
LAMBDA = (1 - KEEP) / KEEP

Mask = tuple[int, ...]


def masks(units: int, keep: Fraction = KEEP) -> Iterator[tuple[Fraction, Mask]]:
    """All masks of independent units with their probabilities."""
    for mask in cartesian((0, 1), repeat=units):
        count = sum(mask)
        yield keep**count * (1 - keep) ** (units - count), mask


def in_blocks(blocks: int, size: int) -> Iterator[tuple[Fraction, Mask]]:
    """All masks that keep or drop whole blocks."""
    for p, mask in masks(blocks):
        yield p, tuple(bit for bit in mask for _ in range(size))


def expectation(of: Iterable[tuple[Fraction, Mask]], loss: Callable[[Mask], fmpq]) -> fmpq:
    """The mean of a loss over masks."""
    return sum((number(p) * loss(mask) for p, mask in of), fmpq(0))


def spread(values: Sequence[Any]) -> fmpq_mat:
    """A diagonal matrix of a mask, or of norms."""
    return diagonal(list(values))


def network() -> tuple[fmpq_mat, fmpq_mat, fmpq_mat, fmpq_mat]:
    """Y (3 x 5), W_2 (3 x 4), W_1 (4 x 3) and X (3 x 5) of small integers."""
    return integers(3, 5, 71), integers(3, UNITS, 72), integers(UNITS, 3, 73), integers(3, 5, 74)


# The general identity --------------------------------------------------------------------------


def mask_identity(kind: str, covariances: bool = True) -> Sides:
    """``E ||Y - sum (R_i/mu_i) Z_i||^2 = ||Y - sum Z_i||^2 + sum C_ij/(mu_i mu_j) <Z_i, Z_j>``."""
    goal = integers(3, 5, 75)
    parts = [integers(3, 5, 80 + i) for i in range(UNITS)]
    if kind == "dependent":  # nine masks of real entries, whatever they are
        # Entries from -4 to 4; with 5 added they are positive, and so are their means.
        drawn = integers(9, UNITS + 1, 90, 4)
        weight = [abs(drawn[k, UNITS]) + 1 for k in range(9)]
        table = [
            (w / sum(weight), tuple(drawn[k, i] + 5 for i in range(UNITS)))
            for k, w in enumerate(weight)
        ]
    else:
        source = masks(UNITS) if kind == "dropout" else in_blocks(UNITS // 2, 2)
        table = [(number(p), mask) for p, mask in source]
    mean = [sum((p * m[i] for p, m in table), fmpq(0)) for i in range(UNITS)]
    theory = squared_norm(goal - sum(parts, zeros(3, 5)))
    for i, j in cartesian(range(UNITS), repeat=2):
        covariance = sum((p * m[i] * m[j] for p, m in table), fmpq(0)) - mean[i] * mean[j]
        if covariances or i == j:
            theory += covariance / (mean[i] * mean[j]) * inner(parts[i], parts[j])
    measured = fmpq(0)
    for p, mask in table:
        masked = [(fmpq(m) / mu) * z for m, mu, z in zip(mask, mean, parts, strict=True)]
        measured += p * squared_norm(goal - sum(masked, zeros(3, 5)))
    return theory, measured


# Dropout of one hidden layer --------------------------------------------------------------------


def unit_sizes(second: fmpq_mat, hidden: fmpq_mat) -> list[fmpq]:
    """``||w_2i||^2 ||w_1i^T X||^2`` of every unit."""
    return [
        squared_norm(columns(second, [i])) * squared_norm(rows(hidden, [i]))
        for i in range(second.ncols())
    ]


def dropout_loss(
    second: fmpq_mat, hidden: fmpq_mat, goal: fmpq_mat, keep: Fraction = KEEP, block: int = 1
) -> fmpq:
    """The expected loss, by enumeration."""
    blocks = second.ncols() // block
    table = ((p, [b for b in mask for _ in range(block)]) for p, mask in masks(blocks, keep))
    return expectation(
        ((p, tuple(mask)) for p, mask in table),
        lambda mask: squared_norm(goal - second * spread(mask) * hidden / number(keep)),
    )


def penalty(odds: Fraction = LAMBDA) -> Sides:
    """The loss and ``((1-theta)/theta) sum ||w_2i||^2 ||w_1i^T X||^2``."""
    goal, second, first, data = network()
    hidden = first * data
    theory = squared_norm(goal - second * hidden)
    theory += number(odds) * sum(unit_sizes(second, hidden), fmpq(0))
    return theory, dropout_loss(second, hidden, goal)


def unscaled_masks(shrunk: bool = True) -> Sides:
    """Masks that are not divided by theta."""
    goal, second, first, data = network()
    hidden = first * data
    theory = squared_norm(goal - (number(KEEP) if shrunk else fmpq(1)) * second * hidden)
    theory += number(KEEP * (1 - KEEP)) * sum(unit_sizes(second, hidden), fmpq(0))
    measured = expectation(
        masks(UNITS), lambda mask: squared_norm(goal - second * spread(mask) * hidden)
    )
    return theory, measured


def frame(count: int) -> fmpq_mat:
    """Columns of a Hadamard matrix over 2: orthonormal, with rows of equal norm."""
    signs = [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    return columns(fmpq_mat(signs) / 2, range(count))


ROOT = (Fraction(3, 2), Fraction(1))
"""Roots of the singular values of a product."""


def equalised(turned: bool = True) -> tuple[fmpq_mat, fmpq_mat]:
    """Factors of ``U diag(s^2) V^T`` in which all units have the same size, or those of the SVD."""
    left, right = columns(orthogonal(3, 63), range(2)), columns(orthogonal(5, 64), range(2))
    units = frame(2) if turned else diagonal([1, 1], UNITS, 2)
    scale = diagonal(list(ROOT))
    return left * scale * units.transpose(), units * scale * right.transpose()


def equalised_penalty(turned: bool = True) -> Sides:
    """``c ||Z||_*^2``, ``c = (1-theta)/(theta h)``, and the penalty of the factors."""
    second, hidden = equalised(turned)
    nuclear = sum((r**2 for r in ROOT), Fraction(0))
    # Roots are rational, so that the nuclear norm is, too.
    theory = number(LAMBDA / UNITS * nuclear**2)
    goal = second * hidden
    return theory, dropout_loss(second, hidden, goal)


def width_free(own: bool = True) -> Sides:
    """With ``theta(h) = p / (h - (h-1) p)`` the least penalty is ``((1-p)/p) ||Z||_*^2``."""
    p = Fraction(3, 5)
    keep = p / (UNITS - (UNITS - 1) * p) if own else p
    second, hidden = equalised()
    nuclear = sum((r**2 for r in ROOT), Fraction(0))
    return number((1 - p) / p * nuclear**2), dropout_loss(second, hidden, second * hidden, keep)


def fixed_keep_prob(copies: int = 4) -> Sides:
    """One unit, and four halves of it: copies divide the penalty by their number."""
    second, hidden = integers(3, 1, 65), integers(1, 5, 66)
    whole = dropout_loss(second, hidden, second * hidden)
    halves = beside(*[second / 2] * 4), beside(*[hidden.transpose() / 2] * 4).transpose()
    return whole / copies, dropout_loss(*halves, second * hidden)


def minimiser(smaller: bool = True) -> Sides:
    """The gradient of the expected loss at the equalised minimiser is 0.

    With ``sigma_i = s_i^2 + c sum_j s_j^2`` the threshold is ``mu = c sum_j s_j^2``, and factors
    are rational. Without ``1/h`` in c the target has another minimiser.
    """
    second, hidden = equalised()
    c = LAMBDA / (UNITS if smaller else 1)
    threshold = c * sum((r**2 for r in ROOT), Fraction(0))
    goal = columns(orthogonal(3, 63), range(2)) * diagonal([r**2 + threshold for r in ROOT])
    goal = goal * columns(orthogonal(5, 64), range(2)).transpose()
    seen_second, seen_hidden = zeros(3, UNITS), zeros(UNITS, 5)
    for p, mask in masks(UNITS):
        scaled = spread(mask) / number(KEEP)
        residual = second * scaled * hidden - goal
        seen_second += number(p) * residual * (scaled * hidden).transpose()
        seen_hidden += number(p) * (second * scaled).transpose() * residual
    stacked = fmpq_mat([[*seen_second.entries(), *seen_hidden.entries()]])
    return fmpq_mat(1, stacked.ncols()), stacked


def shrunk(squared: bool = True) -> Sides:
    """The minimiser of a target with singular values 3 and 2, whose factors have roots."""
    c = LAMBDA / UNITS
    values = (Fraction(3), Fraction(2))
    threshold = c / (1 + 2 * c) * sum(values, Fraction(0))
    if not squared:  # soft thresholding by c: the nuclear norm itself
        threshold = c / 2
    root = [arb(number(v - threshold)).sqrt() for v in values]
    scale = arb_mat([[root[0], 0], [0, root[1]]])
    left, right = (balls(columns(orthogonal(n, s), range(2))) for n, s in ((3, 63), (5, 64)))
    units = balls(frame(2))
    second, hidden = left * scale * units.transpose(), units * scale * right.transpose()
    goal = left * arb_mat([[3, 0], [0, 2]]) * right.transpose()
    gradient = arb_mat(3, UNITS)
    for p, mask in masks(UNITS):
        scaled = balls(spread(mask) / number(KEEP))
        part = (second * scaled * hidden - goal) * (scaled * hidden).transpose()
        gradient += part * arb(number(p))
    return arb_mat(3, UNITS), gradient


# Several layers, weights, blocks ---------------------------------------------------------------


def only_diagonal(matrix: fmpq_mat) -> fmpq_mat:
    """A matrix without its entries off the diagonal."""
    return diagonal([matrix[i, i] for i in range(matrix.nrows())])


def layers(jointly: bool = True) -> Sides:
    """Dropout after two hidden layers of 3 and 4 units: ``tr M_L - tr(W C W^T)``."""
    weights = [integers(3, 2, 101), integers(4, 3, 102), integers(2, 4, 103)]
    data = integers(2, 4, 104)
    second_moment = data * data.transpose()
    moment = weights[0] * second_moment * weights[0].transpose()
    plain = moment
    theory = fmpq(0)
    for w in weights[1:]:
        if not jointly:  # what each layer would add alone
            theory += number(LAMBDA) * trace(w * only_diagonal(plain) * w.transpose())
        moment = w * (moment + number(LAMBDA) * only_diagonal(moment)) * w.transpose()
        plain = w * plain * w.transpose()
    if jointly:
        theory = trace(moment) - trace(plain)
    whole = weights[2] * weights[1] * weights[0] * data
    measured = fmpq(0)
    for p, first in masks(3):
        for q, second in masks(4):
            output = weights[0] * data
            output = weights[1] * (spread(first) / number(KEEP)) * output
            output = weights[2] * (spread(second) / number(KEEP)) * output
            measured += number(p * q) * squared_norm(whole - output)
    return theory, measured


def layers_rank_two(schatten: bool = True) -> Sides:
    """``U = T, W = T^T T, V = T^T``: the bound with the 2/3-norm is attained."""
    turned = frame(2).transpose()
    count = 2  # singular values, all 1
    third = number(LAMBDA**2 / UNITS**2) * (count**3 if schatten else count**2)
    theory = number(2 * LAMBDA / UNITS) * count**2 + third
    middle = turned.transpose() * turned
    measured = fmpq(0)
    for p, first in masks(UNITS):
        for q, second in masks(UNITS):
            masked = spread(second) * middle * spread(first) / number(KEEP**2)
            output = turned * masked * turned.transpose()
            measured += number(p * q) * squared_norm(diagonal([1, 1]) - output)
    return theory, measured


def dropconnect(of_input: bool, as_input: bool) -> Sides:
    """Masks on the weights of one layer, and what theory says of this layer or of the other."""
    second, first, data = integers(2, 3, 111), integers(3, 2, 112), integers(2, 3, 113)
    hidden = first * data
    theory = fmpq(0)
    for i in range(3):
        size = squared_norm(columns(second, [i]))
        if as_input:
            for k in range(2):
                theory += size * first[i, k] ** 2 * squared_norm(rows(data, [k]))
        else:
            theory += size * squared_norm(rows(hidden, [i]))
    whole = second * hidden
    measured = fmpq(0)
    for p, mask in masks(6):
        if of_input:
            masked = [[first[i, k] * mask[2 * i + k] for k in range(2)] for i in range(3)]
            output = second * fmpq_mat(masked) * data / number(KEEP)
        else:
            masked = [[second[k, i] * mask[3 * k + i] for i in range(3)] for k in range(2)]
            output = fmpq_mat(masked) * hidden / number(KEEP)
        measured += number(p) * squared_norm(whole - output)
    return number(LAMBDA) * theory, measured


def dropblock(in_units: bool = False) -> Sides:
    """``((1-theta)/theta) sum_j ||U_j V_j^T||_F^2`` and the penalty of blocks of two units."""
    goal, second, first, data = network()
    hidden = first * data
    size = 1 if in_units else 2
    theory = squared_norm(goal - second * hidden)
    for j in range(0, UNITS, size):
        block = range(j, j + size)
        theory += number(LAMBDA) * squared_norm(columns(second, block) * rows(hidden, block))
    return theory, dropout_loss(second, hidden, goal, block=2)


def identities() -> list[ExactIdentity]:
    """All of Theorem 3 and Example 4.1."""

    def stated(
        claim: str, statement: str, at: str, sides: Both, wrong: Both, mistake: str
    ) -> ExactIdentity:
        return ExactIdentity("theorem3", claim, statement, at, sides, wrong, mistake)

    units = "h = 4, all 16 masks"
    return [
        *(
            stated(
                claim,
                "E ||Y - sum (R/mu) Z||^2 by mu and C",
                at,
                lambda kind=kind: mask_identity(kind),
                lambda kind=kind: mask_identity(kind, covariances=False),
                "covariances left out",
            )
            for claim, kind, at in (
                ("mask_identity", "dropblock", "blocks of 2, all masks"),
                ("any_masks", "dependent", "nine dependent masks"),
            )
        ),
        stated(
            "penalty",
            "E loss = loss + odds sum ||w_2||^2 ||w_1 X||^2",
            units,
            penalty,
            lambda: penalty(1 - KEEP),
            "1 - theta for the odds",
        ),
        stated(
            "unscaled_masks",
            "||Y - theta Z||^2 + theta (1 - theta) sum",
            units,
            unscaled_masks,
            lambda: unscaled_masks(shrunk=False),
            "Z not shrunk",
        ),
        stated(
            "equalised_penalty",
            "penalty = c ||Z||_*^2, c = (1-theta)/(theta h)",
            units,
            equalised_penalty,
            lambda: equalised_penalty(turned=False),
            "factors of the SVD",
        ),
        stated(
            "width_free",
            "theta(h) = p/(h - (h-1) p): (1-p)/p ||Z||_*^2",
            units,
            width_free,
            lambda: width_free(own=False),
            "p for theta(h)",
        ),
        stated(
            "fixed_keep_prob",
            "k copies have 1/k of the penalty",
            "1 unit, 4 copies",
            fixed_keep_prob,
            lambda: fixed_keep_prob(1),
            "copies change nothing",
        ),
        stated(
            "dropout_minimiser",
            "gradient = 0 at U (Sigma - mu) V^T",
            units,
            minimiser,
            lambda: minimiser(smaller=False),
            "c with h dropped",
        ),
        stated(
            "dropout_minimiser",
            "gradient = 0 at U (Sigma - mu) V^T, roots enclosed",
            "sigma = 3, 2",
            shrunk,
            lambda: shrunk(squared=False),
            "soft thresholding",
        ),
        stated(
            "layers",
            "tr M_L - tr(W C W^T)",
            "3 and 4 units, 128 pairs of masks",
            layers,
            lambda: layers(jointly=False),
            "the layers one by one",
        ),
        stated(
            "layers_rank_two",
            "nu ||Z||_*^2 and the 2/3-norm, attained",
            "widths 4, 4, rank 2",
            layers_rank_two,
            lambda: layers_rank_two(schatten=False),
            "the nuclear norm alone",
        ),
        stated(
            "dropconnect_input",
            "lambda sum ||w_2i||^2 W_1ik^2 ||x_k||^2",
            "3 x 2 weights",
            lambda: dropconnect(True, True),
            lambda: dropconnect(True, False),
            "what dropout adds",
        ),
        stated(
            "dropconnect_output",
            "lambda sum ||w_2i||^2 ||w_1i^T X||^2",
            "2 x 3 weights",
            lambda: dropconnect(False, False),
            lambda: dropconnect(False, True),
            "what masks on W_1 add",
        ),
        stated(
            "dropblock",
            "odds sum ||U_j V_j^T||_F^2",
            "4 units in blocks of 2",
            dropblock,
            lambda: dropblock(in_units=True),
            "units in the place of blocks",
        ),
    ]
