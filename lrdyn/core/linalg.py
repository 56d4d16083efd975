"""Decompositions: of a batch one by one on a CPU, all at once elsewhere.

A batched LAPACK call blocks threads of XLA's CPU pool; several of them in one program that is
spread over host devices can deadlock (JAX 0.10). There a batch is a loop over single matrices,
which cannot, and which is no slower: LAPACK itself loops. On a GPU or TPU such a loop would wait
for one small kernel after another, so there a batch is one call. Which of the two a program has is
decided where it is lowered: one that is exported has that of its platform.

On a CPU LAPACK has one thread here, see :func:`limit_lapack_threads`.
"""

import os
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Float, PyTree

Function = TypeVar("Function", bound=Callable[..., Any])


def sequential_on_cpu(function: Function) -> Function:
    """Let ``vmap`` of a function of arrays be a loop where it runs on a CPU, and there alone.

    Example:
        >>> norm = sequential_on_cpu(lambda matrix: jnp.linalg.norm(matrix, 2))
        >>> program = jax.jit(jax.vmap(norm)).trace(jnp.ones((5, 2, 2)))
        >>> ["while" in program.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "cuda")]
        [True, False]
    """

    @wraps(function)
    def call(*data: PyTree) -> PyTree:
        limit_lapack_threads()
        return function(*data)

    single, loop = custom_vmap(call), sequential_vmap(function)

    @single.def_vmap
    def batch(_: int, batched: list[PyTree], *data: PyTree) -> tuple[PyTree, PyTree]:
        axes = jax.tree.map(lambda moves: 0 if moves else None, tuple(batched))
        each, together = (jax.vmap(f, in_axes=axes) for f in (loop, function))
        results = jax.lax.platform_dependent(*data, cpu=each, default=together)
        return results, jax.tree.map(lambda _: True, results)

    # Called outside of a program it is one program; inside of one nothing of it is seen.
    return wraps(function)(jax.jit(single, inline=True))  # pyright: ignore[reportReturnType]


THREADS = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "BLIS_NUM_THREADS")
"""Variables by which a user says how many threads BLAS has."""


@cache
def limit_lapack_threads() -> None:
    """Give the LAPACK that JAX calls on a CPU one thread, unless a user has said how many.

    XLA has threads of its own, and decompositions of some hundred rows take longer with more: they
    wait for each other, busily. It is for the process and for the library that SciPy brings; NumPy
    has another one, where both come as wheels. A thread count cannot be set around a call that is
    in the midst of a compiled program, so this is when such a program is traced.
    """
    if jax.default_backend() != "cpu" or any(map(os.environ.get, THREADS)):
        return
    import scipy.linalg.lapack  # noqa: F401  (loads it)
    from threadpoolctl import ThreadpoolController

    found = ThreadpoolController().select(user_api="blas").lib_controllers
    of_scipy = [
        library
        for library in found
        if any(part.startswith("scipy") for part in Path(library.filepath).parent.parts)
    ]
    for library in of_scipy or found:
        library.set_num_threads(1)


def _guard(matrix: Float[Array, "m n"]) -> tuple[Float[Array, "m n"], Float[Array, ""]]:
    # LAPACK prints to the terminal when it meets a NaN: give it zeros, add the NaN to the result.
    finite = jnp.all(jnp.isfinite(matrix))
    return jnp.where(finite, matrix, 0.0), jnp.where(finite, 0.0, jnp.nan).astype(matrix.dtype)


@sequential_on_cpu
def svd(matrix: Float[Array, "m n"]) -> tuple[Array, Array, Array]:
    """Singular value decomposition ``U, values, V^T`` without superfluous columns."""
    finite, spoil = _guard(matrix)
    left, values, right = jnp.linalg.svd(finite, full_matrices=False)
    return spoil + left, spoil + values, spoil + right


@sequential_on_cpu
def svdvals(matrix: Float[Array, "m n"]) -> Float[Array, "k"]:
    """Singular values in decreasing order."""
    # LAPACK's algorithm without vectors errs by up to 64 eps where values are 1e-5 or so apart.
    finite, spoil = _guard(matrix)
    return spoil + jnp.linalg.svd(finite, full_matrices=False)[1]


@sequential_on_cpu
def eigh(matrix: Float[Array, "n n"]) -> tuple[Array, Array]:
    """Eigenvalues of a symmetric matrix in increasing order, and its eigenvectors as columns."""
    finite, spoil = _guard(matrix)
    values, vectors = jnp.linalg.eigh(finite)
    return spoil + values, spoil + vectors


@sequential_on_cpu
def complete_basis(columns: Float[Array, "d s"]) -> Float[Array, "d d"]:
    """Orthogonal matrix whose first s columns contain the span of ``columns``.

    Householder QR is orthonormal to round-off whatever the rank of its argument, and its first s
    columns always contain the column space: a basis with too few directions is padded for free.
    """
    return jnp.linalg.qr(columns, mode="complete")[0]


@sequential_on_cpu
def orthogonal_factor(gaussian: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """Orthonormal columns, Haar-distributed if the argument is Gaussian (m >= n)."""
    # LAPACK chooses the signs of R. Made positive, the factorisation is unique and Q has the Haar
    # measure (Mezzadri, 2007); where R has a 0, multiplying by its sign would lose a column.
    q, r = jnp.linalg.qr(gaussian)
    return q * jnp.where(jnp.diagonal(r) < 0, -1.0, 1.0)[None, :]


def frobenius(matrix: Float[Array, "... m n"]) -> Float[Array, "..."]:
    """Frobenius norm without the squares of very small or very large entries.

    Example:
        >>> float(frobenius(jnp.full((2, 2), 2.0**-80)) * 2.0**80)
        2.0
    """
    # Divided by its largest entry a matrix has squares between 0 and 1, which cannot overflow.
    largest = jnp.max(jnp.abs(matrix), axis=(-2, -1), keepdims=True)
    entries = matrix / jnp.where(largest > 0, largest, 1.0)
    return largest[..., 0, 0] * jnp.linalg.norm(entries, axis=(-2, -1))


def over_leading_axes(
    function: Callable[[Float[Array, "m n"]], Any], matrices: Float[Array, "... m n"]
) -> Any:
    """Apply a function of one matrix over all leading axes."""
    for _ in range(matrices.ndim - 2):
        function = jax.vmap(function)
    return function(matrices)
