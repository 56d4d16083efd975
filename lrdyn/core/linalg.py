"""Decompositions: by LAPACK in float64, whatever device computes the rest.

Cases, predictions and recorded numbers rest on decompositions, and the solvers of accelerators are
less exact than their precision is called: cuSOLVER's Jacobi SVD of a Gaussian matrix of 128 rows is
reported 122 eps off, LAPACK's 10. So a program that a GPU or a TPU runs hands these matrices to the
host, all of a batch in one call, and NumPy decomposes them in float64 (:func:`decompose_on_host`).
:func:`svd_on_device` alone stays on the device: it is for algorithms on trial, which must be tried
as they run.

A batched LAPACK call blocks threads of XLA's CPU pool; several of them in one program that is
spread over host devices can deadlock (JAX 0.10). There a batch is a loop over single matrices,
which cannot, and which is no slower: LAPACK itself loops. On a GPU or TPU such a loop would wait
for one small kernel after another, so there a batch is one call. Which of the two a program has is
decided where it is lowered: one that is exported has that of its platform.

On a CPU LAPACK has one thread here, see :func:`limit_lapack_threads`.
"""

import os
from collections.abc import Callable
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap, sequential_vmap
from jaxtyping import Array, Float, PyTree

from lrdyn.core.platforms import platform_dependent

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
        results = platform_dependent(*data, cpu=each, default=together)
        return results, jax.tree.map(lambda _: True, results)

    # Called outside of a program it is one program; inside of one nothing of it is seen.
    return wraps(function)(jax.jit(single, inline=True))  # pyright: ignore[reportReturnType]


def has_accelerator() -> bool:
    """Whether this process computes on something else than a CPU, so that a host is beside it."""
    return jax.default_backend() != "cpu"


def decompose_on_host(on_device: Function, on_host: Callable[[np.ndarray], Any]) -> Function:
    """Let the host decompose what a program of an accelerator asks for; on a CPU nothing changes.

    A callback can be lowered only where its platform is, and no program with one can be exported or
    serialised. So a process without an accelerator traces ``on_device`` alone, also into what it
    compiles ahead for a card: there the launches of the device's own solver stand in the place of
    one call of the host.

    Args:
        on_device: decomposes one matrix with finite entries, in JAX.
        on_host: the same in NumPy, of float64 matrices over any leading axes.

    Returns:
        The decomposition: arrays as those of ``on_device``.
    """

    def call_host(matrix: Array) -> PyTree:
        like = jax.eval_shape(on_device, matrix)
        as_like = partial(jax.tree.map, lambda leaf, found: np.asarray(found).astype(leaf.dtype))

        def decompose(received: Any) -> Any:
            return as_like(like, on_host(np.asarray(received).astype(np.float64)))

        return jax.pure_callback(decompose, like, matrix, vmap_method="broadcast_all")

    def call_host_in_parts(matrix: Array) -> PyTree:
        # A TPU sends and receives 32 bits at a time. Its float64 is a pair of float32 anyway.
        if matrix.dtype != jnp.float64:
            return call_host(matrix)
        likes = jax.tree.map(_parts_of, jax.eval_shape(on_device, matrix))

        def decompose(large: Any, small: Any) -> Any:
            whole = np.asarray(large).astype(np.float64) + np.asarray(small)
            return jax.tree.map(_split, on_host(whole))

        parts = jax.pure_callback(decompose, likes, *_split(matrix), vmap_method="broadcast_all")
        return jax.tree.map(
            lambda pair: pair[0].astype(jnp.float64) + pair[1],
            parts,
            is_leaf=lambda node: isinstance(node, _Parts),
        )

    @wraps(on_device)
    def decompose(matrix: Array) -> PyTree:
        if not has_accelerator():
            return on_device(matrix)
        return platform_dependent(matrix, cpu=on_device, tpu=call_host_in_parts, default=call_host)

    return decompose  # pyright: ignore[reportReturnType]


class _Parts(NamedTuple):
    """A float64 as the sum of two float32."""

    large: Any
    small: Any


def _split(array: Any) -> _Parts:
    large = array.astype(np.float32)
    return _Parts(large, (array - large.astype(np.float64)).astype(np.float32))


def _parts_of(like: Any) -> _Parts:
    part = jax.ShapeDtypeStruct(like.shape, jnp.float32)
    return _Parts(part, part)


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


def _or_nan(decompose: Callable[[np.ndarray], Any], matrices: np.ndarray) -> Any:
    """A decomposition by NumPy, or NaN where LAPACK's iteration does not end, as in JAX."""
    try:
        return decompose(matrices)
    except np.linalg.LinAlgError:
        return jax.tree.map(lambda array: np.full_like(array, np.nan), decompose(0 * matrices))


ON_TRIAL = "svd_on_device"
"""Scope of the SVDs of algorithms on trial, by which a traced program shows them."""


def _reduced_svd(matrix: Array) -> tuple[Array, Array, Array]:
    return tuple(jnp.linalg.svd(matrix, full_matrices=False))


def _reduced_svd_on_host(matrices: np.ndarray) -> Any:
    return _or_nan(lambda a: tuple(np.linalg.svd(a, full_matrices=False)), matrices)


def _eigh(matrix: Array) -> tuple[Array, Array]:
    return tuple(jnp.linalg.eigh(matrix))


def _eigh_on_host(matrices: np.ndarray) -> Any:
    # LAPACK reads one triangle; the mean of both is what JAX decomposes.
    means = (matrices + np.swapaxes(matrices, -1, -2)) / 2
    return _or_nan(lambda a: tuple(np.linalg.eigh(a)), means)


_host_svd = decompose_on_host(_reduced_svd, _reduced_svd_on_host)
_host_eigh = decompose_on_host(_eigh, _eigh_on_host)
_host_basis = decompose_on_host(
    lambda matrix: jnp.linalg.qr(matrix, mode="complete")[0],
    lambda matrices: np.linalg.qr(matrices, mode="complete")[0],
)
_host_qr = decompose_on_host(
    lambda matrix: tuple(jnp.linalg.qr(matrix)), lambda matrices: tuple(np.linalg.qr(matrices))
)


@sequential_on_cpu
def svd(matrix: Float[Array, "m n"]) -> tuple[Array, Array, Array]:
    """Singular value decomposition ``U, values, V^T`` without superfluous columns."""
    finite, spoil = _guard(matrix)
    left, values, right = _host_svd(finite)
    return spoil + left, spoil + values, spoil + right


@sequential_on_cpu
def svd_on_device(matrix: Float[Array, "m n"]) -> tuple[Array, Array, Array]:
    """:func:`svd` by the device's own solver, ``U, values, V^T``: for an algorithm on trial.

    How exact the solver is, is measured at the sizes that a run decomposes, see
    :mod:`lrdyn.verification.judging.rounding`.

    Example:
        >>> U, values, V_T = svd_on_device(jnp.array([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
        >>> U.shape, values.tolist()
        ((3, 2), [3.0, 2.0])
    """
    finite, spoil = _guard(matrix)
    with jax.named_scope(ON_TRIAL):
        # Not by jnp.linalg, in whose own jit the name of the scope would be lost.
        left, values, right = jax.lax.linalg.svd(finite, full_matrices=False)
    return spoil + left, spoil + values, spoil + right


@sequential_on_cpu
def svdvals(matrix: Float[Array, "m n"]) -> Float[Array, "k"]:
    """Singular values in decreasing order."""
    # LAPACK's algorithm without vectors errs by up to 64 eps where values are 1e-5 or so apart.
    finite, spoil = _guard(matrix)
    return spoil + _host_svd(finite)[1]


@sequential_on_cpu
def eigh(matrix: Float[Array, "n n"]) -> tuple[Array, Array]:
    """Eigenvalues of a symmetric matrix in increasing order, and its eigenvectors as columns."""
    finite, spoil = _guard(matrix)
    values, vectors = _host_eigh(finite)
    return spoil + values, spoil + vectors


@sequential_on_cpu
def complete_basis(columns: Float[Array, "d s"]) -> Float[Array, "d d"]:
    """Orthogonal matrix whose first s columns contain the span of ``columns``.

    Householder QR is orthonormal to round-off whatever the rank of its argument, and its first s
    columns always contain the column space: a basis with too few directions is padded for free.
    """
    return _host_basis(columns)


@sequential_on_cpu
def orthogonal_factor(gaussian: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """Orthonormal columns, Haar-distributed if the argument is Gaussian (m >= n)."""
    # LAPACK chooses the signs of R. Made positive, the factorisation is unique and Q has the Haar
    # measure (Mezzadri, 2007); where R has a 0, multiplying by its sign would lose a column.
    q, r = _host_qr(gaussian)
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
