"""Theorem 2, its classifier, and Corollary 1, by projectors.

An orthonormal frame needs roots; the projectors onto its parts do not. With ``P_1`` onto
``row(Phi) + (W_L ... W_1)(0)^T col(Phi)``, ``Q_l = W_l(0) / eps_l`` and ``P_{l+1} = Q_l P_l Q_l^T``
the theorem reads

    W_l(t) = M_l(t) + rho_l(t) Q_l (I - P_l),

where the ``M_l`` descend on the same target from ``eps_l Q_l P_l``.
"""

from fractions import Fraction
from functools import cache
from typing import NamedTuple

from flint import fmpq, fmpq_mat

from referee.exact.claim import Both, ExactIdentity, Sides
from referee.exact.rational import (
    Layers,
    Rational,
    beside,
    chain,
    column_of,
    columns,
    descend,
    identity,
    independent,
    integers,
    low_rank,
    number,
    orthogonal,
    projector,
    rows,
    squared_norm,
    trace,
    with_roots,
    zeros,
)

STEPS = 3
"""The number of digits grows (2L - 1)-fold a step."""


class ExactRun(NamedTuple):
    """A run from scaled orthogonal layers, and what the theorem says it is."""

    target: fmpq_mat
    scales: tuple[Rational, ...]
    rate: Rational
    decay: tuple[Rational, ...]
    turns: Layers
    """Q_l."""
    frames: Layers
    """P_1, ..., P_{L+1}."""
    layers: Layers
    """W_l after the last step."""
    moving: Layers
    """M_l after the last step."""

    @property
    def bulk(self) -> int:
        """The number of dimensions outside of the frame."""
        size = self.target.ncols()
        return size - int(trace(self.frames[0]))

    def outside(self, l: int) -> fmpq_mat:
        """``I - P_{l+1}``, l counted from 0."""
        return identity(self.frames[l].nrows()) - self.frames[l]


@cache
def run(
    depth: int, size: int, rank: int, more: int = 0, source: str = "both", aside: int = 0
) -> ExactRun:
    """Descend on a target of low rank; the frame gets ``more`` directions than it needs.

    ``source="rows"`` takes the frame from the rows of the target alone, which is wrong.
    """
    target = low_rank(size, size, [Fraction(5 - k, 5) for k in range(rank)], 11 + aside)
    scales = tuple(Fraction(k + 2, 2 * k + 5) for k in range(depth))
    decay = tuple(Fraction(k + 1, 20) for k in range(depth))
    rate = Fraction(1, 5)
    turns = [orthogonal(size, 3 * l + 5 + aside) for l in range(depth)]
    start = [number(scale) * turn for scale, turn in zip(scales, turns, strict=True)]
    spanning = target.transpose()
    if source == "both":
        spanning = beside(spanning, chain(start).transpose() * target)
    spanning = independent(spanning)
    if more or source == "rows":
        wanted = 2 * rank + more
        # Unit vectors in general position: any directions do, if they are independent of the
        # others.
        spanning = beside(spanning, columns(identity(size), range(wanted - spanning.ncols())))
    frames = [projector(spanning)]
    for turn in turns:
        frames.append(turn * frames[-1] * turn.transpose())
    held = [w * p for w, p in zip(start, frames, strict=False)]
    residual = lambda whole: whole - target  # noqa: E731
    layers = descend(start, residual, rate, decay, STEPS)[-1]
    moving = descend(held, residual, rate, decay, STEPS)[-1]
    return ExactRun(target, scales, rate, decay, turns, frames, layers, moving)


def rho(of: ExactRun, power: int = 2, product: bool = True) -> list[fmpq]:
    """``rho <- rho (1 - eta lambda - eta prod_{k != l} rho_k^2)`` from eps, for every layer."""
    values = [number(scale) for scale in of.scales]
    for _ in range(STEPS):
        after = []
        for l, value in enumerate(values):
            others = fmpq(1) if product else fmpq(0)
            for k, other in enumerate(values):
                if k != l and product:
                    others *= other**power
            after.append(value * (1 - number(of.rate * of.decay[l]) - number(of.rate) * others))
        values = after
    return values


def all_rho(values: list[fmpq]) -> fmpq:
    """The product over the layers."""
    product = fmpq(1)
    for value in values:
        product *= value
    return product


def bulk_blocks(of: ExactRun, values: list[fmpq]) -> Sides:
    """``(I - P_{l+1}) W_l (I - P_l) = rho_l Q_l (I - P_l)``."""
    theory = [
        value * turn * of.outside(l)
        for l, (value, turn) in enumerate(zip(values, of.turns, strict=True))
    ]
    measured = [of.outside(l + 1) * w * of.outside(l) for l, w in enumerate(of.layers)]
    return column_of(*theory), column_of(*measured)


def off_blocks(of: ExactRun) -> Sides:
    """``(I - P_{l+1}) W_l P_l = 0`` and ``P_{l+1} W_l (I - P_l) = 0``."""
    blocks = []
    for l, w in enumerate(of.layers):
        blocks += [of.outside(l + 1) * w * of.frames[l], of.frames[l + 1] * w * of.outside(l)]
    stacked = column_of(*blocks)
    return zeros(stacked.nrows(), 1), stacked


def mean_rho(of: ExactRun, values: list[fmpq]) -> Sides:
    """rho_l and ``tr(Q_l^T W_l (I - P_l)) / m``."""
    measured = [
        trace(turn.transpose() * w * of.outside(l)) / of.bulk
        for l, (turn, w) in enumerate(zip(of.turns, of.layers, strict=True))
    ]
    return fmpq_mat([values]), fmpq_mat([measured])


def moving_blocks(of: ExactRun, moving: Layers) -> Sides:
    """``M_l`` and ``P_{l+1} W_l P_l``."""
    measured = [of.frames[l + 1] * w * of.frames[l] for l, w in enumerate(of.layers)]
    return column_of(*moving), column_of(*measured)


def transposed_target(of: ExactRun) -> Layers:
    """The moving part of a descent on the transposed target."""
    held = [
        number(scale) * turn * frame
        for scale, turn, frame in zip(of.scales, of.turns, of.frames, strict=False)
    ]
    other = of.target.transpose()
    return descend(held, lambda whole: whole - other, of.rate, of.decay, STEPS)[-1]


def spectra(of: ExactRun, multiplicity: int) -> Sides:
    """``(x - rho_l^2)^m`` divides the characteristic polynomial of ``W_l^T W_l``."""
    left = []
    for value, w in zip(rho(of), of.layers, strict=True):
        # Squares of singular values are eigenvalues: no root is needed.
        remainder = (w.transpose() * w).charpoly() % with_roots([value**2] * multiplicity)
        left.append(remainder)
    return [remainder * 0 for remainder in left], left


def losses(of: ExactRun, bulk: bool = True) -> Sides:
    """``1/2 ||M_L ... M_1 - Phi||^2 + (m/2) prod rho_l^2`` and the loss of the run."""
    theory = squared_norm(chain(of.moving) - of.target) / 2
    if bulk:
        theory += fmpq(of.bulk, 2) * all_rho(rho(of)) ** 2
    return theory, squared_norm(chain(of.layers) - of.target) / 2


def mean_loss(of: ExactRun, decay_rescaled: bool = True) -> Sides:
    """Descent on ``||W - Phi||^2 / (2 d^2)``, and on the sum with eta/d^2 and lambda d^2."""
    entries = of.target.nrows() ** 2
    start = [number(s) * turn for s, turn in zip(of.scales, of.turns, strict=True)]
    mean = descend(start, lambda w: (w - of.target) / entries, of.rate, of.decay, STEPS)[-1]
    decay = [d * (entries if decay_rescaled else 1) for d in of.decay]
    total = descend(start, lambda w: w - of.target, Fraction(of.rate) / entries, decay, STEPS)[-1]
    return column_of(*total), column_of(*mean)


def compression_error(of: ExactRun, dimensions: int | None = None) -> Sides:
    """``(d - 2 r^) prod rho_l^2`` and ``||f - f_C||_F^2``."""
    number_of = of.bulk if dimensions is None else dimensions
    theory = number_of * all_rho(rho(of)) ** 2
    return theory, squared_norm(chain(of.layers) - chain(of.moving))


def compression_bound(of: ExactRun, power: int = 2) -> Sides:
    """Whether the error is at most ``(d - 2 r^) prod eps_l^2`` (and that it should be)."""
    bound = fmpq(of.bulk)
    for scale in of.scales:
        bound *= number(scale) ** power
    return True, bool(squared_norm(chain(of.layers) - chain(of.moving)) <= bound)


class ExactClassifier(NamedTuple):
    """A classifier on whitened data whose last layer has one row a class."""

    scale: Rational
    rate: Rational
    decay: Rational
    turns: Layers
    frames: Layers
    layers: Layers


@cache
def classifier(whitened: bool = True) -> ExactClassifier:
    """Three steps of three layers of width 6 on eight examples of two classes."""
    size, classes, examples = 6, 2, 8
    data = rows(orthogonal(examples, 2), range(size))
    if not whitened:
        data = data + integers(size, examples, 9, 1) / 10
    labels = fmpq_mat([[int(n % classes == k) for n in range(examples)] for k in range(classes)])
    scale, rate, decay = Fraction(1, 2), Fraction(1, 5), Fraction(1, 10)
    turns = [orthogonal(size, 31), orthogonal(size, 32), rows(orthogonal(size, 33), range(classes))]
    start = [number(scale) * turn for turn in turns]
    target = labels * data.transpose()
    spanning = beside(target.transpose(), chain(turns).transpose())
    frames = [projector(spanning)]
    for turn in turns[:-1]:
        frames.append(turn * frames[-1] * turn.transpose())
    residual = lambda whole: (whole * data - labels) * data.transpose()  # noqa: E731
    layers = descend(start, residual, rate, decay, STEPS)[-1]
    return ExactClassifier(scale, rate, decay, turns, frames, layers)


def class_bulk(of: ExactClassifier, product: bool = False) -> Sides:
    """``W_l (I - P_l) = eps (1 - eta lambda)^t Q_l (I - P_l)``, l < L, and 0 in the last layer."""
    factor = number(1 - of.rate * of.decay)
    if product:
        factor -= number(of.rate * of.scale**4)
    size = of.frames[0].nrows()
    theory, measured = [], []
    for l, (turn, frame, w) in enumerate(zip(of.turns, of.frames, of.layers, strict=True)):
        outside = identity(size) - frame
        value = number(of.scale) * factor**STEPS if l + 1 < len(of.layers) else fmpq(0)
        theory.append(value * turn * outside)
        measured.append(w * outside)
    return column_of(*theory), column_of(*measured)


def of_layers(depth: int, size: int, rank: int) -> list[ExactIdentity]:
    """Every claim of Theorem 2 at one shape."""
    right = run(depth, size, rank)
    no_turn = run(depth, size, rank, source="rows")

    def stated(claim: str, statement: str, sides: Both, wrong: Both, mistake: str) -> ExactIdentity:
        instance = f"d = {size}, L = {depth}, r = {rank}"
        return ExactIdentity("theorem2", claim, statement, instance, sides, wrong, mistake)

    return [
        stated(
            "bulk",
            "(I - P') W (I - P) = rho Q (I - P)",
            lambda: bulk_blocks(right, rho(right)),
            lambda: bulk_blocks(right, rho(right, product=False)),
            "rho without the product",
        ),
        stated(
            "off_block",
            "(I - P') W P = 0, P' W (I - P) = 0",
            lambda: off_blocks(right),
            lambda: off_blocks(no_turn),
            "a frame of row(Phi) alone",
        ),
        stated(
            "rho",
            "rho by its recursion",
            lambda: mean_rho(right, rho(right)),
            lambda: mean_rho(right, rho(right, power=1)),
            "the product not squared",
        ),
        stated(
            "reduced",
            "P' W P = M, which descends by itself",
            lambda: moving_blocks(right, right.moving),
            lambda: moving_blocks(right, transposed_target(right)),
            "the target transposed",
        ),
        stated(
            "spectra",
            "(x - rho^2)^(d-2r) divides det(x I - W^T W)",
            lambda: spectra(right, right.bulk),
            lambda: spectra(right, right.bulk + rank),
            "d - r equal singular values",
        ),
        stated(
            "loss",
            "f = f_M + (d-2r)/2 prod rho^2",
            lambda: losses(right),
            lambda: losses(right, bulk=False),
            "the loss without the bulk's",
        ),
        stated(
            "mean_loss",
            "mean over d^2 entries: eta/d^2, lambda d^2",
            lambda: mean_loss(right),
            lambda: mean_loss(right, decay_rescaled=False),
            "the decay as it was",
        ),
    ]


def of_compression(depth: int, size: int, rank: int, compressed_rank: int) -> list[ExactIdentity]:
    """Corollary 1 at one shape."""
    compressed = run(depth, size, rank, 2 * (compressed_rank - rank))
    instance = f"d = {size}, L = {depth}, r = {rank}, r^ = {compressed_rank}"
    return [
        ExactIdentity(
            "corollary1",
            "error_identity",
            "||f - f_C||^2 = (d-2r^) prod rho^2",
            instance,
            lambda: compression_error(compressed),
            lambda: compression_error(compressed, size - compressed_rank),
            "d - r^ dimensions",
        ),
        ExactIdentity(
            "corollary1",
            "error_bound",
            "||f - f_C||^2 <= (d-2r^) prod eps^2",
            instance,
            lambda: compression_bound(compressed),
            lambda: compression_bound(compressed, power=4),
            "eps squared",
        ),
    ]


def of_classifiers() -> list[ExactIdentity]:
    """The classifier on whitened data."""
    instance = "d = 6, K = 2, L = 3"
    return [
        ExactIdentity(
            "theorem2",
            "class_rho",
            "W_l (I - P) = eps (1 - eta lambda)^t Q (I - P)",
            instance,
            lambda: class_bulk(classifier()),
            lambda: class_bulk(classifier(), product=True),
            "Theorem 2's product term",
        ),
        ExactIdentity(
            "theorem2",
            "class_off_block",
            "W_l (I - P) is rho Q (I - P) alone, 0 at l = L",
            instance,
            lambda: class_bulk(classifier()),
            lambda: class_bulk(classifier(whitened=False)),
            "data that is not whitened",
        ),
    ]


def identities() -> list[ExactIdentity]:
    """All of Theorem 2 and of Corollary 1."""
    return [
        *of_layers(2, 6, 1),
        *of_layers(3, 5, 1),
        *of_layers(2, 7, 2),
        *of_classifiers(),
        *of_compression(2, 7, 1, 2),
        *of_compression(3, 5, 1, 1),
        *of_compression(3, 6, 1, 2),
    ]
