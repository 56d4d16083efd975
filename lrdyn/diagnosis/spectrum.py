"""Spectra of updates: exact, or the leading part by a randomised range finder.

Matrices are m x n, of float32 or float64. Singular values come back in float64. Those of a float32
matrix are the square roots of the eigenvalues of its Gram matrix in float64, in a third of an SVD's
time: they err by up to sqrt(eps) s_1 = 1.5e-8 s_1, an eighth of float32's rounding. Those of a
float64 matrix are LAPACK's.
"""

import ctypes
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, lru_cache, partial
from importlib import import_module
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from lrdyn.core.spectra import effective_rank, numerical_rank, top_share
from lrdyn.diagnosis.on_device import OnDevice
from lrdyn.theorem4.gradient_rank import stable_rank

OVERSAMPLING = 10
"""Directions that the range finder carries beside the k that are asked for."""
POWERS = 2
"""Its power iterations: a value s is seen as s^5, so that a slowly falling rest matters less."""
FAR_BELOW = 8
"""The range finder is used where the shorter side is so many times as long as what it carries."""
BLOCK = 4096
"""Columns of a float32 matrix that are in float64 at once."""


class Spectrum(NamedTuple):
    """Singular values of a matrix, and its leading directions."""

    values: np.ndarray
    """All min(m, n), decreasing; those that were not computed are equal, with the energy left."""
    computed: int
    """How many singular values were computed; the others follow from the energy left."""
    left: np.ndarray
    """m x k, orthonormal columns."""
    right: np.ndarray
    """n x k, orthonormal columns."""


class Measures(NamedTuple):
    """Norm, ranks and energy of one update."""

    norm: float
    """Frobenius norm of the update."""
    rank: int
    """Singular values above what rounding makes; -1 if not all entries are finite."""
    effective_rank: float
    """Effective rank; where not all singular values were computed, the most that it can be."""
    effective_rank_least: float
    """The least that it can be (:func:`least_effective_rank`); the same where all were computed."""
    stable_rank: float
    energy: float
    """Share of the squared norm in the first k."""


@cache
def _blas() -> Any:
    """The BLAS libraries of this process, searched for once: the search takes milliseconds."""
    import scipy.linalg.lapack  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def blas_threads(count: int) -> AbstractContextManager[Any]:
    """Limit the BLAS threads: beside other work, more of them make an SVD several times slower.

    Example:
        >>> with blas_threads(1):
        ...     values_of(np.eye(2)).tolist()
        [1.0, 1.0]
    """
    return _blas().limit(limits=count, user_api="blas")


Matrix = np.ndarray | OnDevice
"""An update, on the CPU or where it was trained."""
SMALL = 32
"""Shorter sides up to this are decomposed whole: LAPACK's parts want two rows at least."""
NOT_FINITE = Measures(math.nan, -1, *[math.nan] * 4)


def gram(matrix: np.ndarray) -> np.ndarray:
    """W W^T or W^T W, whichever is smaller, in float64.

    Example:
        >>> gram(np.array([[3.0], [4.0]], np.float32))
        array([[25.]])
    """
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    total = np.zeros((len(short), len(short)))
    # In blocks: a float64 copy of the whole would take twice the memory of the matrix.
    for start in range(0, short.shape[1], BLOCK):
        block = short[:, start : start + BLOCK].astype(np.float64)
        total += block @ block.T
    return total


def values_of(matrix: np.ndarray) -> np.ndarray:
    """All singular values of a finite matrix, in decreasing order.

    Example:
        >>> values_of(np.diag([1.0, 3.0]).astype(np.float32)).tolist()
        [3.0, 1.0]
    """
    if matrix.dtype == np.float64:
        return np.linalg.svd(matrix, compute_uv=False)
    squared = gram(matrix)
    squares = np.linalg.eigvalsh(squared) if len(squared) <= SMALL else tridiagonalise(squared)[0]
    # Rounding may leave an eigenvalue 0 below it.
    return np.sqrt(np.maximum(squares[::-1], 0.0))


class Tridiagonal(NamedTuple):
    """A symmetric matrix Q T Q^T with T tridiagonal, as LAPACK's DSYTRD leaves it."""

    eigenvalues: np.ndarray
    """All of them, increasing."""
    reflectors: np.ndarray
    """Those of which Q is made, below the diagonal."""
    tau: np.ndarray
    diagonal: np.ndarray
    beside: np.ndarray
    """The diagonal of T, and what stands beside it."""


def tridiagonalise(squared: np.ndarray) -> Tridiagonal:
    """Bring a symmetric matrix of float64 to tridiagonal form, in its place.

    The eigenvalues are those of ``numpy.linalg.eigvalsh``, which does the same with two copies of
    the matrix: at 2048 x 2048 that is an eighth of the time. Half of the work are products of the
    matrix with a vector, which wait for memory; it is the largest part of a diagnosis
    (``python -m benchmarks diagnosis``).

    Args:
        squared: m x m with m > 32, in C's order; what is in it afterwards is of no use.

    Raises:
        numpy.linalg.LinAlgError: the iteration for eigenvalues did not converge.

    Example:
        >>> tridiagonalise(np.diag(np.arange(40.0))).eigenvalues[-2:].round(12).tolist()
        [38.0, 39.0]
    """
    size = len(squared)
    diagonal, beside, tau = np.empty(size), np.empty(size - 1), np.empty(size - 1)
    # Asked for the lower half: the other is that of the transposed, without a copy.
    _call_lapack(
        "dsytrd",
        b"L",
        size,
        squared,
        size,
        diagonal,
        beside,
        tau,
        np.empty(WORK * size),
        WORK * size,
    )
    eigenvalues = diagonal.copy()
    # DSTERF gives the number of off-diagonal entries that did not vanish.
    if _call_lapack("dsterf", size, eigenvalues, beside.copy()):
        raise np.linalg.LinAlgError("eigenvalues did not converge")
    return Tridiagonal(eigenvalues, squared.T, tau, diagonal, beside)


WORK = 64
"""Columns of a block in LAPACK, at most."""


def _call_lapack(name: str, *arguments: bytes | int | np.ndarray) -> int:
    """Call a routine of SciPy's LAPACK and return its INFO, while other threads go on.

    Those of ``scipy.linalg.lapack`` stop all threads: of two matrices, each on a core, one waits.
    """
    # By their addresses: what `data_as` gives refers to itself and holds its array until garbage is
    # collected. During the call `arguments` holds them.
    given = [
        ctypes.c_void_p(x.ctypes.data)
        if isinstance(x, np.ndarray)
        else ctypes.byref(ctypes.c_int(x))
        if isinstance(x, int)
        else ctypes.c_char_p(x)
        for x in arguments
    ]
    info = ctypes.c_int()
    _lapack(name)(*given, ctypes.byref(info))
    return info.value


@cache
def _lapack(name: str) -> Callable[..., None]:
    """A routine of SciPy's LAPACK, from the table by which Cython finds it."""
    table = import_module("scipy.linalg.cython_lapack").__pyx_capi__
    capsule = ctypes.py_object(table[name])
    name_of, pointer_of = ctypes.pythonapi.PyCapsule_GetName, ctypes.pythonapi.PyCapsule_GetPointer
    name_of.restype, pointer_of.restype = ctypes.c_char_p, ctypes.c_void_p
    return ctypes.CFUNCTYPE(None)(pointer_of(capsule, name_of(capsule)))


def leading_triples(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first k singular triples: U (m x k), values, V (n x k).

    Example:
        >>> [part.shape for part in leading_triples(np.ones((3, 2)), 1)]
        [(3, 1), (1,), (2, 1)]
    """
    if matrix.dtype == np.float64:
        left, values, right_transposed = np.linalg.svd(matrix, full_matrices=False)
        return left[:, :k], values[:k], right_transposed[:k].T
    if matrix.shape[0] > matrix.shape[1]:
        right, values, left = leading_triples(matrix.T, k)
        return left, values, right
    import scipy.linalg

    size = len(matrix)
    # LAPACK counts eigenvalues upwards; the last k are the largest.
    squares, vectors = scipy.linalg.eigh(gram(matrix), subset_by_index=[size - k, size - 1])
    left = vectors[:, ::-1]
    # Columns of length s_i: QR makes unit vectors of them, where s_i is 0 too.
    right, lengths = np.linalg.qr(matrix.T @ left)
    signs = np.where(np.diagonal(lengths) < 0, -1.0, 1.0)
    return left, np.sqrt(np.maximum(squares[::-1], 0.0)), right * signs


def sketch(matrix: Matrix, k: int, draw: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Approximate the first k + 10 singular triples, from products with that many vectors.

    The values are at most the true ones, and nearly these where the spectrum falls behind k. Where
    it is flat, the directions lean towards the random vectors: of two matrices whose directions
    are compared each wants a draw of its own.

    Args:
        matrix: m x n; products with one on a device are computed there.
        k: how many are wanted.
        draw: which random vectors; with the same ones the same matrix has the same numbers.

    Example:
        >>> wide = np.outer(np.arange(1.0, 3.0), np.ones(300))
        >>> left, values, right = sketch(wide.astype(np.float32), 1)
        >>> values[:2].round(4).tolist()
        [38.7298, 0.0]

    Reference:
        Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4.
    """
    size = min(k + OVERSAMPLING, *matrix.shape)
    basis = np.linalg.qr(matrix @ _draw_start(draw, matrix.shape[1], size, matrix.dtype))[0]
    for _ in range(POWERS):
        # A QR at each half step: without it all columns would turn into the first direction.
        basis = np.linalg.qr(matrix @ np.linalg.qr(matrix.T @ basis)[0])[0]
    inner, values, right_transposed = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ inner, values.astype(np.float64), right_transposed.T


@lru_cache(maxsize=12)  # a model has few shapes, and a draw below an eighth of its matrix
def _draw_start(draw: int, columns: int, size: int, dtype: np.dtype) -> np.ndarray:
    start = np.random.default_rng(draw).standard_normal((columns, size), dtype)
    start.flags.writeable = False
    return start


def is_sketched(shape: tuple[int, ...], k: int) -> bool:
    """Whether a matrix is so large that the range finder is used for k directions.

    Example:
        >>> is_sketched((256, 784), 8), is_sketched((64, 784), 8)
        (True, False)
    """
    return min(shape) >= FAR_BELOW * (k + OVERSAMPLING)


def spectrum(matrix: Matrix, k: int, draw: int = 0) -> Spectrum:
    """Singular values and the first k directions: exact, or by :func:`sketch` if k is far below.

    Args:
        matrix: m x n; one on a device must be large enough for the sketch.
        k: how many directions.
        draw: of the sketch.

    Example:
        >>> result = spectrum(np.diag([2.0, 1.0, 1.0]), 1)
        >>> result.values.tolist(), result.computed, result.left.shape
        ([2.0, 1.0, 1.0], 3, (3, 1))
    """
    if not isinstance(matrix, OnDevice) and not is_sketched(matrix.shape, k):
        left, values, right = leading_triples(matrix, min(matrix.shape))
        return Spectrum(values, len(values), left[:, :k], right[:, :k])
    left, values, right = sketch(matrix, k, draw)
    computed, others = len(values), min(matrix.shape) - len(values)
    # A difference of squares would be rounded by eps times the whole.
    rest = minus_product(matrix, left * values.astype(matrix.dtype), right.T)
    values = np.append(values, np.full(others, norm(rest) / math.sqrt(others)))
    return Spectrum(values, computed, left[:, :k], right[:, :k])


def minus_product(matrix: Matrix, B: np.ndarray, A: np.ndarray) -> Matrix:
    """W - B A, where W lies.

    Example:
        >>> minus_product(np.eye(2), np.ones((2, 1)), np.ones((1, 2))).tolist()
        [[0.0, -1.0], [-1.0, 0.0]]
    """
    return matrix - B @ A if isinstance(matrix, np.ndarray) else matrix.minus_product(B, A)


def norm(array: Matrix) -> float:
    """Frobenius norm, summed in float64 a row at a time.

    Example:
        >>> norm(np.array([[3.0, 4.0]], np.float32))
        5.0
    """
    if isinstance(array, OnDevice):
        return math.sqrt(array.inner(array))
    rows = array.reshape(len(array) if array.ndim else 1, -1)
    total = float(np.sum(np.vecdot(rows, rows), dtype=np.float64))
    if not 1e-30 < total < math.inf:  # float32 may have left its range
        total = float(np.einsum("ij,ij->", rows, rows, dtype=np.float64))
    return math.sqrt(total)


class SquareSums(NamedTuple):
    """Sums of squares of the entries of a matrix, in float64."""

    by_row: np.ndarray
    by_column: np.ndarray


def square_sums(matrix: Matrix) -> SquareSums:
    """Sums in the type of the matrix, which is many times faster, if they are in range.

    Example:
        >>> square_sums(np.array([[3.0, 4.0]]))
        SquareSums(by_row=array([25.]), by_column=array([ 9., 16.]))
    """
    if isinstance(matrix, OnDevice):
        return SquareSums(*matrix.square_sums())
    sums = [np.einsum(axes, matrix, matrix) for axes in ("ij,ij->i", "ij,ij->j")]
    if not all(np.isfinite(part).all() for part in sums):
        full = matrix.astype(np.float64)
        sums = [np.einsum(axes, full, full) for axes in ("ij,ij->i", "ij,ij->j")]
    return SquareSums(*(part.astype(np.float64) for part in sums))


def rounding(before: SquareSums, after: SquareSums, epsilons: tuple[float, float]) -> float:
    """The largest singular value that independent rounding errors of two matrices have, about.

    The error of an entry w is uniform within eps |w| / 2 at most, of variance eps^2 w^2 / 12. A
    matrix of independent entries is about as long as its longest row and column together
    (Bandeira and van Handel, arXiv 1408.6185).

    Args:
        before: sums of the matrix as it was stored.
        after: likewise.
        epsilons: machine epsilon of the type in which each was stored.

    Example:
        >>> eps, ones = 2.0**-8, square_sums(np.ones((2, 2)))
        >>> round(rounding(ones, ones, (eps, eps)) / eps, 3)
        1.155
    """
    pairs = tuple(zip(epsilons, (before, after), strict=True))
    by_row = sum(eps**2 * sums.by_row for eps, sums in pairs)
    by_column = sum(eps**2 * sums.by_column for eps, sums in pairs)
    return rounding_of(np.asarray(by_row), np.asarray(by_column))


def rounding_of(by_row: np.ndarray, by_column: np.ndarray) -> float:
    """Largest singular value of rounding errors, from the sums of eps^2 w^2 by row and by column.

    See :func:`rounding`.

    Example:
        >>> rounding_of(np.array([12.0]), np.array([0.0]))
        1.0
    """
    return float(np.sqrt(np.max(by_row)) + np.sqrt(np.max(by_column))) / math.sqrt(12)


def least_effective_rank(values: np.ndarray, computed: int) -> float:
    """The least effective rank of a spectrum of which the first values are known.

    With S the sum of all, s_l the last one known and e the energy of the others t <= s_l, these
    add t log(S / t) >= t log(S / s_l) each to S H, so that H >= log(S / s_l) - sum_i s_i
    log(s_i / s_l) / S, the sum over those known. That increases with S, which is least where the
    t are 0 or s_l: at sum_i s_i + e / s_l. The most is that of equal t, by Jensen's inequality.

    Args:
        values: in decreasing order.
        computed: how many are known; of the others the energy is.

    Example:
        >>> round(least_effective_rank(np.array([1.0, 1.0, 0.5, 0.5, 0.5, 0.5]), 2), 6)
        3.0
    """
    # What rounding leaves of a 0 is no value to count by.
    known = values[:computed][values[:computed] > np.finfo(float).eps * values[0]]
    last, others = known[-1], values[len(known) :]
    total = np.sum(known) + others @ others / last
    return float(total / last * np.exp(-(known @ np.log(known / last)) / total))


def measure_spectrum(
    spectrum: Spectrum, *, k: int, side: int, eps: float, floor: float
) -> Measures:
    """Ranks and energies of a spectrum.

    Args:
        spectrum: of the update.
        k: how many values the energy is of.
        side: the longer side of the matrix.
        eps: machine epsilon of the type in which the matrix was decomposed.
        floor: largest singular value of what rounding its entries added, see :func:`rounding`.

    Example:
        >>> values = spectrum(np.diag([3.0, 1.0, 0.0]), 1)
        >>> measures = measure_spectrum(values, k=1, side=3, eps=2.0**-52, floor=0.0)
        >>> measures.rank, round(measures.energy, 3), round(measures.stable_rank, 3)
        (2, 0.9, 1.111)
    """
    largest = float(spectrum.values[0])
    if largest == 0:
        return NOT_FINITE._replace(norm=0.0, rank=0)
    # The values are float64 whatever JAX is set to: this may be called from a user's training.
    with jax.enable_x64(True):
        # What the decomposition rounds and what the stored types round, each over the largest
        # value.
        limit = max(side * eps, floor / largest)
        ranks = jax.device_get(_ranks(spectrum.values, limit, k, spectrum.computed, side))
    rank, most, *others = map(float, ranks)
    norm = math.sqrt(float(spectrum.values @ spectrum.values))
    is_whole = spectrum.computed == len(spectrum.values)
    least = most if is_whole else least_effective_rank(spectrum.values, spectrum.computed)
    return Measures(norm, int(rank), most, least, *others)


@partial(jax.jit, static_argnames=("k", "computed", "side"))
def _ranks(
    values: Float[Array, "size"], limit: Float[Array, ""] | float, k: int, computed: int, side: int
) -> tuple[Array, ...]:
    """One program: four of a millisecond each would be most of the time of a small matrix."""
    rank = numerical_rank(values[:computed], side, limit)
    return rank, effective_rank(values), stable_rank(values), top_share(values, k)
