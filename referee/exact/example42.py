"""Example 4.2: masked autoencoders on whole numbers, with every mask enumerated."""

from fractions import Fraction
from itertools import product as cartesian
from typing import NamedTuple

from flint import fmpq, fmpq_mat

from referee.exact.claim import Both, ExactIdentity, Sides
from referee.exact.rational import (
    column_of,
    columns,
    diagonal,
    identity,
    integers,
    number,
    squared_norm,
    trace,
    zeros,
)
from referee.exact.theorem3 import frame, only_diagonal, spread
from referee.exact.theorem3 import masks as independent_masks

SHOWN = Fraction(3, 5)
"""p, the probability to show a feature or a patch of features."""
P = number(SHOWN)


class Data(NamedTuple):
    """Data of m features and n examples, whose masks hide patches."""

    values: fmpq_mat
    """X, m x n."""
    patch: int = 1

    @property
    def second(self) -> fmpq_mat:
        """``S = X X^T / n``."""
        return self.values * self.values.transpose() / self.values.ncols()

    @property
    def blocks(self) -> fmpq_mat:
        """D: the diagonal blocks of S that belong to one patch."""
        second = self.second
        ridge = zeros(second.nrows(), second.ncols())
        for i, j in cartesian(range(second.nrows()), repeat=2):
            if i // self.patch == j // self.patch:
                ridge[i, j] = second[i, j]
        return ridge

    @property
    def mixed(self) -> fmpq_mat:
        """``Q = p S + (1 - p) D``."""
        return P * self.second + (1 - P) * self.blocks

    def masks(self) -> list[tuple[fmpq, fmpq_mat]]:
        """All masks, as diagonal matrices, with their probabilities."""
        patches = self.values.nrows() // self.patch
        return [
            (number(p), spread([bit for bit in mask for _ in range(self.patch)]))
            for p, mask in independent_masks(patches, SHOWN)
        ]

    def loss(self, model: fmpq_mat, hidden_alone: bool = False) -> fmpq:
        """``E ||X - A (M * X)||_F^2 / n``, of all entries or of the hidden ones."""
        total = fmpq(0)
        for p, mask in self.masks():
            error = self.values - model * mask * self.values
            if hidden_alone:
                error = (identity(mask.nrows()) - mask) * error
            total += p * squared_norm(error)
        return total / self.values.ncols()

    def gradient(self, model: fmpq_mat, hidden_alone: bool = False) -> fmpq_mat:
        """The gradient of half the loss, mask by mask."""
        total = zeros(model.nrows(), model.ncols())
        for p, mask in self.masks():
            shown = mask * self.values
            error = model * shown - self.values
            if hidden_alone:
                error = (identity(mask.nrows()) - mask) * error
            total += p * error * shown.transpose()
        return total / self.values.ncols()


PLAIN = Data(integers(4, 6, 121))
PATCHES = Data(integers(4, 6, 121), patch=2)
EVEN = Data(frame(4) * diagonal([4, 3, 2, 1]))
"""Its S has equal diagonal entries: D is a multiple of I, and singular vectors are rational."""


def objective(data: Data, model: fmpq_mat, ridge: fmpq_mat) -> fmpq:
    """``tr[(I - pA) S (I - pA)^T] + p (1-p) tr(A D A^T)``."""
    rest = identity(model.nrows()) - P * model
    penalty = P * (1 - P) * trace(model * ridge * model.transpose())
    return trace(rest * data.second * rest.transpose()) + penalty


def marginal(data: Data, in_patches: bool = True) -> Sides:
    """The objective and the enumerated loss of some A; of patches D = diag S is wrong."""
    model = integers(4, 4, 122) / 4
    ridge = data.blocks if in_patches else only_diagonal(data.second)
    return objective(data, model, ridge), data.loss(model)


def optimum(data: Data, weighted: bool = True) -> Sides:
    """The normal equations at ``A = S Q^-1``: the gradient is 0."""
    mixed = data.mixed if weighted else data.second + data.blocks
    return zeros(4, 4), data.gradient(data.second * mixed.inv())


def value(data: Data, weighted: bool = True) -> Sides:
    """``tr S - p tr(S Q^-1 S)`` and the enumerated loss of ``S Q^-1``."""
    gain = trace(data.second * data.mixed.inv() * data.second)
    theory = trace(data.second) - (P if weighted else 1) * gain
    return theory, data.loss(data.second * data.mixed.inv())


def bottleneck(data: Data = EVEN, width: int = 2, weighted: bool = True) -> Sides:
    """``W_2 = U_r``, ``W_1 = U_r^T S Q^-1``: no gradient in either factor."""
    second = columns(frame(4), range(width))
    first = second.transpose()
    if weighted:
        first = first * data.second * data.mixed.inv()
    slope = data.gradient(second * first)
    slopes = column_of(slope * first.transpose(), second.transpose() * slope)
    return zeros(slopes.nrows(), 1), slopes


def bottleneck_value(data: Data = EVEN, width: int = 2, weighted: bool = True) -> Sides:
    """``tr S - p sum_{i <= r} sigma_i(S Q^-1/2)^2`` and the enumerated loss."""
    second = columns(frame(4), range(width))
    values = [fmpq(x * x, 4) for x in (4, 3, 2, 1)]  # of S; Q has p s + (1 - p) mean(s)
    mean = sum(values, fmpq(0)) / 4
    gains = [s**2 / (P * s + (1 - P) * mean) for s in values[:width]]
    theory = trace(data.second) - (P if weighted else 1) * sum(gains, fmpq(0))
    model = second * second.transpose() * data.second * data.mixed.inv()
    return theory, data.loss(model)


def masked_marginal(data: Data = PLAIN, removed: bool = True) -> Sides:
    """``1 - p`` times the objective without the diagonal of A, and the loss on hidden entries."""
    model = integers(4, 4, 123) / 4
    of = model - only_diagonal(model) if removed else model
    return (1 - P) * objective(data, of, data.blocks), data.loss(model, hidden_alone=True)


def masked_optimum(data: Data = PLAIN, subtracted: bool = True) -> Sides:
    """``A = (S - diag mu) Q^-1`` with ``mu_i = (S Q^-1)_ii / (Q^-1)_ii``: the gradient is 0."""
    inverse = data.mixed.inv()
    plain = data.second * inverse
    mu = [plain[i, i] / inverse[i, i] for i in range(4)]
    model = (data.second - diagonal(mu)) * inverse if subtracted else plain - only_diagonal(plain)
    return zeros(4, 4), data.gradient(model, hidden_alone=True)


def unidentified(data: Data = PLAIN, hidden_alone: bool = True) -> Sides:
    """The loss on hidden entries does not depend on the diagonal of A."""
    model = integers(4, 4, 124) / 4
    moved = model + diagonal([1, -2, 3, fmpq(1, 2)])
    return data.loss(model, hidden_alone), data.loss(moved, hidden_alone)


def attained(orthogonal_rows: bool = True) -> Sides:
    """``sum_b ||Z_b||_F^2 = ||sum_b Z_b||_*^2 / m`` at A = I for orthogonal rows of equal norm.

    There ``Z_b`` is row b of X, whose singular values are all the norm of a row.
    """
    scale = [3] * 4 if orthogonal_rows else [3, 3, 3, 2]
    rows_of = diagonal(scale) * frame(4)
    nuclear = sum(scale)
    return fmpq(nuclear**2, 4), squared_norm(rows_of)


def identities() -> list[ExactIdentity]:
    """All identities of Example 4.2."""

    def stated(
        claim: str, statement: str, at: str, sides: Both, wrong: Both, mistake: str
    ) -> ExactIdentity:
        return ExactIdentity("example 4.2", claim, statement, at, sides, wrong, mistake)

    plain, patches = "m = 4, 16 masks", "m = 4, patches of 2"
    even = "m = 4, r = 2, D = c I"
    return [
        stated(
            "marginal",
            "tr (I-pA) S (I-pA)^T + p(1-p) tr A D A^T",
            patches,
            lambda: marginal(PATCHES),
            lambda: marginal(PATCHES, in_patches=False),
            "D = diag S",
        ),
        *(
            stated(
                "optimum",
                "normal equations at A = S Q^-1",
                at,
                lambda data=data: optimum(data),
                lambda data=data: optimum(data, weighted=False),
                "p forgotten",
            )
            for at, data in ((plain, PLAIN), (patches, PATCHES))
        ),
        stated(
            "optimum (value)",
            "tr S - p tr S Q^-1 S",
            plain,
            lambda: value(PLAIN),
            lambda: value(PLAIN, weighted=False),
            "the value without p",
        ),
        stated(
            "bottleneck",
            "no gradient at U_r and U_r^T S Q^-1",
            even,
            bottleneck,
            lambda: bottleneck(weighted=False),
            "U_r U_r^T alone",
        ),
        stated(
            "bottleneck_value",
            "tr S - p sum sigma_i(S Q^-1/2)^2",
            even,
            bottleneck_value,
            lambda: bottleneck_value(weighted=False),
            "the value without p",
        ),
        stated(
            "masked_marginal",
            "1 - p times the objective without diag A",
            plain,
            masked_marginal,
            lambda: masked_marginal(removed=False),
            "the diagonal not removed",
        ),
        stated(
            "masked_optimum",
            "normal equations at (S - diag mu) Q^-1",
            plain,
            masked_optimum,
            lambda: masked_optimum(subtracted=False),
            "S Q^-1 without its diagonal",
        ),
        stated(
            "unidentified",
            "the diagonal of A changes nothing",
            plain,
            unidentified,
            lambda: unidentified(hidden_alone=False),
            "the loss on all entries",
        ),
        stated(
            "attained",
            "sum ||Z_b||^2 = ||sum Z_b||_*^2 / m",
            "orthogonal rows, A = I",
            attained,
            lambda: attained(orthogonal_rows=False),
            "rows of other norms",
        ),
    ]
