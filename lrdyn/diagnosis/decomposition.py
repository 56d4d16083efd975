"""One decomposition of a matrix: its singular values, and factors of the rank that they ask for.

Matrices are m x n, of float32 or float64, and finite.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lrdyn.diagnosis.spectrum import (
    SMALL,
    gram,
    is_sketched,
    sketch,
    tridiagonalise,
    values_of,
)

ROWS = 1024
"""Rows of what a sketch leaves that are in memory at once."""


class Decomposition(NamedTuple):
    """Singular values, and a product of two factors."""

    values: np.ndarray
    """The singular values that were computed, decreasing, in float64."""
    rest: float
    """Squared norm of the matrix behind them: 0 where all were computed."""
    factors: tuple[np.ndarray, np.ndarray] | None
    """B (m x r) and A (r x n), equally long, of the nearest matrix of rank r, if one was wanted."""


Wanted = Callable[[np.ndarray, float], int]
"""The rank r of the factors, from the singular values and the squared norm behind them."""


def decompose(
    matrix: np.ndarray, wanted: Wanted | None = None, width: int | None = None
) -> Decomposition:
    """Decompose a matrix once, whatever rank its values ask for.

    The float32 matrix has its Gram matrix in float64 brought to tridiagonal form; from there all
    values cost O(m^2) and r vectors O(m^2 r), so that the rank may be chosen when values are known.

    Args:
        matrix: m x n.
        wanted: the rank of the factors; without it none are made.
        width: compute so many values by a range finder, where the shorter side is far above that.

    Example:
        >>> result = decompose(np.diag([4.0, 1.0]).astype(np.float32), lambda values, rest: 1)
        >>> B, A = result.factors
        >>> result.values.tolist(), np.abs(B @ A).round(6).tolist()
        ([4.0, 1.0], [[4.0, 0.0], [0.0, 0.0]])
    """
    if width is not None and is_sketched(matrix.shape, width):
        return _decompose_sketch(matrix, wanted, width)
    if wanted is None:
        return Decomposition(values_of(matrix), 0.0, None)
    if matrix.dtype == np.float64:
        left, values, _ = np.linalg.svd(matrix, full_matrices=False)
        return Decomposition(
            values, 0.0, project_factors(matrix, left, values, wanted(values, 0.0))
        )
    if matrix.shape[0] > matrix.shape[1]:
        values, rest, factors = decompose(matrix.T, wanted)
        return Decomposition(values, rest, factors and (factors[1].T, factors[0].T))
    values, vectors = _decompose_gram(gram(matrix), wanted)
    return Decomposition(values, 0.0, project_factors(matrix, vectors, values, vectors.shape[1]))


def _decompose_gram(squared: np.ndarray, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """Square roots of all eigenvalues, and the eigenvectors of the largest, decreasing."""
    size = len(squared)
    if size <= SMALL:
        squares, vectors = np.linalg.eigh(squared)
        values = np.sqrt(np.maximum(squares[::-1], 0.0))
        return values, vectors[:, ::-1][:, : wanted(values, 0.0)]
    from scipy.linalg import eigh_tridiagonal
    from scipy.linalg import lapack as stubs

    lapack: Any = stubs
    squares, reflectors, tau, diagonal, beside = tridiagonalise(squared)
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    count = wanted(values, 0.0)
    if not count:
        return values, np.zeros((size, 0))
    _, vectors = eigh_tridiagonal(
        diagonal, beside, select="i", select_range=(size - count, size - 1)
    )
    # The first row and column of Q are those of the identity; the rest is as a QR leaves it.
    turned, _, _ = lapack.dormqr(
        "L", "N", reflectors[1:, :-1], tau, vectors[1:], lwork=64 * max(size, count)
    )
    return values, np.concatenate([vectors[:1], turned])[:, ::-1]


def project_factors(
    matrix: np.ndarray, left: np.ndarray, values: np.ndarray, rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """B = U sqrt(S) and A = U^T W / sqrt(S): their product is W on its first r left directions.

    Args:
        matrix: W, m x n.
        left: U, its left singular vectors as columns.
        values: S, decreasing.
        rank: r.

    Example:
        >>> B, A = project_factors(np.diag([4.0, 1.0]), np.eye(2), np.array([4.0, 1.0]), 1)
        >>> (B @ A).tolist()
        [[4.0, 0.0], [0.0, 0.0]]
    """
    # B A = U U^T W is a projection of W itself: errors of the values cancel between the two.
    roots, basis = np.sqrt(values[:rank]), left[:, :rank]
    inverse = np.divide(1.0, roots, out=np.zeros_like(roots), where=roots > 0)
    B, inner = (basis * roots).astype(matrix.dtype), (basis * inverse).astype(matrix.dtype)
    return B, inner.T @ matrix


def _decompose_sketch(matrix: np.ndarray, wanted: Wanted | None, width: int) -> Decomposition:
    left, values, right = sketch(matrix, width)
    scaled, rest = left * values.astype(matrix.dtype), 0.0
    # A difference of squares would be rounded by eps times the whole.
    for start in range(0, len(matrix), ROWS):
        block = matrix[start : start + ROWS] - scaled[start : start + ROWS] @ right.T
        rest += float(np.vdot(block, block))
    factors = None
    if wanted is not None:
        rank = wanted(values, rest)
        roots = np.sqrt(values[:rank]).astype(matrix.dtype)
        factors = left[:, :rank] * roots, (right[:, :rank] * roots).T
    return Decomposition(values, rest, factors)


class Product(NamedTuple):
    """The singular value decomposition of B A, in float64."""

    left: np.ndarray
    """m x r, orthonormal columns."""
    values: np.ndarray
    """Decreasing; as many as the shortest of m, r and n."""
    right: np.ndarray
    """n x r, orthonormal columns."""
    kind: np.dtype
    """Type in which the factors were given."""

    def cut(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Factors of the nearest matrix of a rank, equally long, in the type of B and A.

        Example:
            >>> B, A = product_svd(np.ones((3, 2)), np.ones((2, 4))).cut(1)
            >>> (B @ A).round(6).tolist()[0]
            [2.0, 2.0, 2.0, 2.0]
        """
        roots = np.sqrt(self.values[:rank])
        B, A = self.left[:, :rank] * roots, (self.right[:, :rank] * roots).T
        return B.astype(self.kind), A.astype(self.kind)


def product_svd(B: np.ndarray, A: np.ndarray) -> Product:
    """Decompose B A (m x n) from its factors, by two QRs of them: B A itself is not built.

    Args:
        B: m x r.
        A: r x n.

    Example:
        >>> product_svd(np.ones((3, 2)), np.ones((2, 4))).values.round(6).tolist()
        [6.928203, 0.0]
    """
    kind = np.result_type(B.dtype, A.dtype, np.float32)
    (left, upper), (right, other) = (np.linalg.qr(M.astype(np.float64)) for M in (B, A.T))
    inner, values, inner_right = np.linalg.svd(upper @ other.T, full_matrices=False)
    return Product(left @ inner, values, right @ inner_right.T, kind)


def decompose_product(B: np.ndarray, A: np.ndarray, wanted: Wanted | None = None) -> Decomposition:
    """Decompose B A (m x n) from its factors.

    Args:
        B: m x r.
        A: r x n.
        wanted: as in :func:`decompose`.

    Example:
        >>> decompose_product(np.ones((3, 2)), np.ones((2, 4))).values.round(6).tolist()
        [6.928203, 0.0]
    """
    product = product_svd(B, A)
    factors = None if wanted is None else product.cut(wanted(product.values, 0.0))
    return Decomposition(product.values, 0.0, factors)
