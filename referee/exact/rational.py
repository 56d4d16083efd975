"""Rational matrices and what is done with them: rotations, projectors, descent, derivatives."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import product as cartesian
from typing import Any

from flint import fmpq, fmpq_mat, fmpq_poly

Rational = Fraction | int
Layers = list[fmpq_mat]
"""W_1, ..., W_L, the first acts first."""


def number(value: Rational) -> fmpq:
    """A rational number as FLINT has it."""
    return fmpq(value.numerator, value.denominator)


def zeros(rows: int, columns: int) -> fmpq_mat:
    """A matrix whose entries are all 0."""
    return fmpq_mat(rows, columns)


def identity(size: int) -> fmpq_mat:
    """The identity matrix of a size."""
    return diagonal([1] * size)


def diagonal(values: Sequence[Any], rows: int = 0, columns: int = 0) -> fmpq_mat:
    """A matrix with these values on the diagonal, square unless its shape is given."""
    matrix = zeros(rows or len(values), columns or len(values))
    for i, value in enumerate(values):
        matrix[i, i] = number(value) if isinstance(value, int | Fraction) else value
    return matrix


def integers(rows: int, columns: int, seed: int, most: int = 3) -> fmpq_mat:
    """A matrix of small integers, by a congruential generator: the same on every machine."""
    matrix = zeros(rows, columns)
    for i, j in cartesian(range(rows), range(columns)):
        for _ in range(3):  # the low digits of a single draw repeat
            seed = (1103515245 * seed + 12345) % 2**31
        matrix[i, j] = fmpq((seed >> 12) % (2 * most + 1) - most)
    return matrix


def orthogonal(size: int, seed: int) -> fmpq_mat:
    """The Cayley transform ``(I - A)(I + A)^-1`` of a skew matrix: rational and orthogonal."""
    drawn = integers(size, size, seed, 1)
    skew = (drawn - drawn.transpose()) / 2
    # I + A is never singular, since A has imaginary eigenvalues.
    return (identity(size) - skew) * (identity(size) + skew).inv()


def columns(matrix: fmpq_mat, indices: Iterable[int]) -> fmpq_mat:
    """Some columns of a matrix."""
    return fmpq_mat([[row[j] for j in indices] for row in matrix.tolist()])


def rows(matrix: fmpq_mat, indices: Iterable[int]) -> fmpq_mat:
    """Some rows of a matrix."""
    listed = matrix.tolist()
    return fmpq_mat([listed[i] for i in indices])


def beside(*blocks: fmpq_mat) -> fmpq_mat:
    """One matrix made of several side by side."""
    return fmpq_mat(
        [
            [x for part in parts for x in part]
            for parts in zip(*(b.tolist() for b in blocks), strict=True)
        ]
    )


def column_of(*matrices: fmpq_mat) -> fmpq_mat:
    """All entries of several matrices, one below the other."""
    return fmpq_mat([[x] for matrix in matrices for x in matrix.entries()])


def low_rank(d_out: int, d_in: int, values: Sequence[Any], seed: int) -> fmpq_mat:
    """``U diag(values) V^T`` with rational singular vectors."""
    left, right = orthogonal(d_out, seed), orthogonal(d_in, seed + 1)
    return left * diagonal(values, d_out, d_in) * right.transpose()


def projector(spanning: fmpq_mat) -> fmpq_mat:
    """The orthogonal projector ``B (B^T B)^-1 B^T`` onto the span of independent columns."""
    turned = spanning.transpose()
    return spanning * (turned * spanning).inv() * turned


def independent(matrix: fmpq_mat) -> fmpq_mat:
    """A basis of the column space, made of columns of the matrix."""
    # The pivot columns of the matrix itself, whose digits are fewer than those of the reduced one.
    reduced, rank = matrix.rref()
    listed = reduced.tolist()
    return columns(
        matrix, [next(j for j, x in enumerate(listed[i]) if x != 0) for i in range(rank)]
    )


def trace(matrix: fmpq_mat) -> fmpq:
    """The sum of the diagonal."""
    return sum((matrix[i, i] for i in range(matrix.nrows())), fmpq(0))


def inner(left: fmpq_mat, right: fmpq_mat) -> fmpq:
    """The sum of the products of entries."""
    pairs = zip(left.entries(), right.entries(), strict=True)
    return sum((x * y for x, y in pairs), fmpq(0))


def squared_norm(matrix: fmpq_mat) -> fmpq:
    """The square of the Frobenius norm."""
    return inner(matrix, matrix)


def chain(layers: Sequence[Any]) -> Any:
    """The product ``W_L ... W_1``."""
    product = layers[0]
    for layer in layers[1:]:
        product = layer * product
    return product


def gradients(layers: Layers, residual: Callable[[fmpq_mat], fmpq_mat]) -> Layers:
    """``(W_L ... W_{l+1})^T R (W_{l-1} ... W_1)^T`` for each l, R the residual of the product."""
    error = residual(chain(layers))
    slopes = []
    for l in range(len(layers)):
        gradient = error
        if l + 1 < len(layers):
            gradient = chain(layers[l + 1 :]).transpose() * gradient
        if l:
            gradient = gradient * chain(layers[:l]).transpose()
        slopes.append(gradient)
    return slopes


def descend(
    layers: Layers,
    residual: Callable[[fmpq_mat], fmpq_mat],
    rate: Rational,
    decay: Rational | Sequence[Rational] = 0,
    steps: int = 3,
) -> list[Layers]:
    """Every iterate of ``W <- (1 - rate decay) W - rate gradient``."""
    rates = decay if isinstance(decay, Sequence) else [decay] * len(layers)
    path = [layers]
    for _ in range(steps):
        steps_down = zip(layers, gradients(layers, residual), rates, strict=True)
        layers = [number(1 - rate * d) * w - number(rate) * g for w, g, d in steps_down]
        path.append(layers)
    return path


def derivative(function: Callable[[fmpq], Any], degree: int) -> Any:
    """The derivative at 0 of a polynomial of at most this degree, by central differences.

    Of so low a degree they are exact, and they know nothing of how the function is computed.
    """
    # 2 points + 1 values fix a polynomial of that degree; the one at 0 drops out of its slope.
    points = (degree + 1) // 2
    weights = []
    for k in range(1, points + 1):  # Lagrange's polynomials through -points, ..., points
        weight = fmpq(1, k)
        for j in range(1, points + 1):
            if j != k:
                weight *= fmpq(j * j, j * j - k * k)
        weights.append(weight / 2)
    total = None
    for k, weight in enumerate(weights, 1):
        part = weight * (function(fmpq(k)) - function(fmpq(-k)))
        total = part if total is None else total + part
    return total


def hessian(gradient: Callable[[Layers], Layers], layers: Layers, degree: int) -> fmpq_mat:
    """The matrix of second derivatives, of a gradient that is a polynomial of this degree."""
    rows_of = []
    for l, layer in enumerate(layers):
        for i, j in cartesian(range(layer.nrows()), range(layer.ncols())):
            unit = zeros(layer.nrows(), layer.ncols())
            unit[i, j] = fmpq(1)

            def along(t: fmpq, l: int = l, unit: fmpq_mat = unit) -> fmpq_mat:
                moved = [*layers[:l], layers[l] + t * unit, *layers[l + 1 :]]
                return column_of(*gradient(moved))

            rows_of.append(derivative(along, degree).entries())
    return fmpq_mat(rows_of)


def with_roots(values: Iterable[Any]) -> fmpq_poly:
    """The polynomial with these roots and leading coefficient 1."""
    polynomial = fmpq_poly([1])
    for value in values:
        polynomial *= fmpq_poly([-fmpq(value), 1])
    return polynomial
