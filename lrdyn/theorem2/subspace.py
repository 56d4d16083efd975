"""Theorem 2 (arXiv 2503.19859): gradient descent on deep factorisation lives in 2r dimensions.

Started from ``W_l(0) = eps_l * orthogonal`` on ``1/2 ||W_L ... W_1 - Phi||_F^2`` with square
layers and rank Phi <= r, m = d - 2r > 0, gradient descent keeps, for all t,

    W_l(t) = U_l blkdiag( Wt_l(t), rho_l(t) I_m ) V_l^T,      V_{l+1} = U_l,

where the frame (U_l, V_l) is fixed by the start and Phi, the 2r x 2r blocks ``Wt_l`` do gradient
descent on a factorisation of their own, and each ``rho_l`` follows a scalar recursion.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lrdyn.core import checks, linalg, show
from lrdyn.core.checks import checked
from lrdyn.core.descent import (
    Problem,
    Trajectory,
    gradient_descent,
    simulate,
    simulate_lanes,
)
from lrdyn.core.factorization import (
    Decay,
    Scalar,
    Steps,
    Weights,
    decays,
    end_to_end,
    factorization_loss,
    is_small,
    small_matmul,
)
from lrdyn.core.platforms import platform_dependent
from lrdyn.core.recording import interval_length
from lrdyn.core.spectra import singular_values

Square = tuple[Float[Array, "d d"], ...]
"""Square layers of one size."""


class Frame(NamedTuple):
    """The frame of Theorem 2; the first 2r columns of each matrix span the moving part."""

    left: Float[Array, "depth d d"]
    """U_l; ``left[l - 1]`` belongs to layer l."""
    right: Float[Array, "depth d d"]
    """V_l, with V_{l+1} = U_l."""

    def __repr__(self) -> str:
        """Type and shape of each field: its matrices are too many to be read."""
        return show.shapes(self)


@checked
def checked_frame(frame: Frame) -> Frame:
    """Check that a frame has as many square matrices on either side, and return it.

    Example:
        >>> checked_frame(Frame(jnp.ones((2, 3, 3)), jnp.ones((1, 3, 3))))
        Traceback (most recent call last):
        ValueError: frame.right: got shape (1, 3, 3), wanted (2, 3, 3)
    """
    return frame


def square_layers(
    weights: Weights, depth: int | None = None, dim: int | None = None, name: str = "weights"
) -> tuple[Weights, int]:
    """Check that layers are square and of one size, and return them with that size.

    Args:
        weights: the layers.
        depth: how many there must be, if it is given.
        dim: their size, if it is given; else that of the first.
        name: what messages call them.

    Example:
        >>> square_layers((jnp.ones((2, 2)), jnp.ones((3, 2))))
        Traceback (most recent call last):
        ValueError: weights[1]: got shape (3, 2), wanted (2, 2)
    """
    weights = checks.layers(weights, depth, name)
    size = weights[0].shape[1] if dim is None else dim
    for place, W in enumerate(weights):
        checks.floats(f"{name}[{place}]", W, (size, size))
    return weights, size


@checked
def start_scales(weights: Weights) -> Float[Array, "depth"]:
    """Scales of (semi-)orthogonal layers, ``eps_l = ||W_l||_F / sqrt(min(shape))``.

    Example:
        >>> start_scales((3 * jnp.eye(4),)).tolist()
        [3.0]
    """
    # Layers of one shape in one batch, which compiles once.
    if len({W.shape for W in weights}) == 1:
        return linalg.frobenius(jnp.stack(weights)) / jnp.sqrt(min(weights[0].shape))
    return jnp.stack([linalg.frobenius(W) / jnp.sqrt(min(W.shape)) for W in weights])


@checked
def frame(weights: Square, target: Float[Array, "d d"], rank: int) -> Frame:
    """Frame of Theorem 2, from the starting weights and the target alone.

    ``col(V_{1,1}) = row(Phi) + (W_L ... W_1)(0)^T col(Phi)``, then ``U_l = W_l(0) V_l / eps_l`` and
    ``V_{l+1} = U_l``. If the sum has fewer than 2r dimensions (rank Phi < r, or the two spaces
    meet) the rest is filled with directions of the complement, as the theorem allows.

    Args:
        weights: square layers at the start, ``W_l(0) = eps_l * orthogonal``.
        target: Phi.
        rank: r, at least the rank of Phi.

    Returns:
        The frame; all its matrices are orthogonal if the layers are.

    Raises:
        ValueError: the layers are not square, or there is no room: d <= 2r.

    Example:
        >>> import jax
        >>> from lrdyn import (orthogonal_layers, low_rank_target)
        >>> W = orthogonal_layers(jax.random.key(0), (7, 7, 7), jnp.ones(2))
        >>> Phi = low_rank_target(jax.random.key(1), (7, 7), jnp.array([1.0, 0.5]))
        >>> frame(W, Phi, rank=2).left.shape
        (2, 7, 7)
    """
    checks.integer("rank", rank)
    dim = len(target)
    if dim <= 2 * rank:
        checks.refuse("rank", f"{rank} with dim {dim}", "dim > 2 rank")
    # r columns for each space, whatever the rank of Phi: where they are dependent, others of the
    # complement take their place.
    left, _, right = linalg.svd(target)
    spanning = [right[:rank].T, unscaled_product(weights).T @ left[:, :rank]]
    return propagate(weights, linalg.complete_basis(jnp.concatenate(spanning, axis=1)))


@checked
def unscaled_product(weights: Weights) -> Float[Array, "k d"]:
    """``W_L ... W_1`` of (semi-)orthogonal layers over the product of their scales.

    Layer by layer: the product of many small scales can underflow.

    Example:
        >>> unscaled_product((2 * jnp.eye(2), 3 * jnp.eye(2))).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    scales = start_scales(weights)
    return end_to_end(tuple(W / scale for W, scale in zip(weights, scales, strict=True)))


@checked
def propagate(weights: Square, right: Float[Array, "d d"]) -> Frame:
    """Frame that starts from ``V_1 = right``: ``U_l = W_l(0) V_l / eps_l``, ``V_{l+1} = U_l``.

    Example:
        >>> propagate((2 * jnp.eye(2), jnp.eye(2)), jnp.eye(2)).left.shape
        (2, 2, 2)
    """
    bases = [right]
    for W, scale in zip(weights, start_scales(weights), strict=True):
        # Orthogonal if W / eps_l is; no QR, which would hide it if a start is not.
        bases.append(W @ bases[-1] / scale)
    return Frame(jnp.stack(bases[1:]), jnp.stack(bases[:-1]))


@checked
def product_of_others(values: Float[Array, "depth"]) -> Float[Array, "depth"]:
    """``prod_{k != l} values_k`` for each l, without division (a value may be 0).

    Example:
        >>> product_of_others(jnp.array([2.0, 0.0, 5.0])).tolist()
        [0.0, 10.0, 0.0]
    """
    others = jnp.where(jnp.eye(values.shape[0], dtype=bool), 1.0, values[None, :])
    return jnp.prod(others, axis=1)


@checked
def rho(
    scales: Float[Array, "depth"], learning_rate: Scalar, weight_decay: Decay, steps: Steps
) -> Float[Array, "times depth"]:
    """Bulk singular values of Theorem 2.

    ``rho_l(t+1) = rho_l(t) (1 - eta lambda_l - eta prod_{k != l} rho_k(t)^2)`` from
    ``rho_l(0) = eps_l``.

    Args:
        scales: ``(eps_1, ..., eps_L)``.
        learning_rate: eta, for the loss ``1/2 ||.||_F^2``.
        weight_decay: lambda, or one for each layer.
        steps: increasing step numbers at which the values are returned.

    Example:
        >>> rho(jnp.ones(2), 0.5, 0.0, jnp.array([0, 1])).tolist()
        [[1.0, 1.0], [0.5, 0.5]]
    """
    learning_rate = checks.nonnegative("learning_rate", learning_rate)
    weight_decay = decays(weight_decay)
    length = interval_length(checks.steps(steps))

    def step(_: Any, values: Array) -> Array:
        # Step 3 of the proof: in the bulk the target is 0, so that the gradient in the l-th layer
        # is rho_l times the squares of the others.
        return values * (1 - learning_rate * (weight_decay + product_of_others(values**2)))

    # Loops of its own: it shares none with the descent that it is compared with.
    def advance(values: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        first, last = ends
        if length is None:
            values = jax.lax.fori_loop(first, last, step, values)
        else:
            # The interval in front of a record at step 0 has no step.
            loop = partial(jax.lax.fori_loop, 0, length, step)
            values = jax.lax.cond(last > first, loop, lambda values: values, values)
        return values, values

    ends = jnp.asarray(steps, jnp.int32)
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    return jax.lax.scan(advance, scales, (starts, ends))[1]


@checked
def reduced_target(frame: Frame, target: Float[Array, "d d"], size: int) -> Float[Array, "s s"]:
    """Target of the reduced dynamics, ``U_{L,1}^T Phi V_{1,1}``.

    Args:
        frame: frame of Theorem 2.
        target: Phi.
        size: s = 2r, or more with padding.

    Example:
        >>> reduced_target(Frame(jnp.eye(3)[None], jnp.eye(3)[None]), jnp.ones((3, 3)), 2).shape
        (2, 2)
    """
    checks.integer("size", size, 1, len(target))
    # The target stands between the outer sides of the product: those of the last and first layer.
    return frame.left[-1, :, :size].T @ target @ frame.right[0, :, :size]


@checked
def reduced_start(scales: Float[Array, "depth"], size: int) -> Weights:
    """Start of the reduced dynamics, ``Wt_l(0) = eps_l I``.

    Example:
        >>> reduced_start(jnp.array([2.0]), 2)[0].tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    checks.integer("size", size)
    checks.allocation({"size": size}, (len(scales), size, size), dtype=scales.dtype)
    return tuple(scales[:, None, None] * jnp.eye(size, dtype=scales.dtype)[None])


@checked
def reduced_dynamics(
    target: Float[Array, "s s"],
    scales: Float[Array, "depth"],
    learning_rate: Scalar,
    weight_decay: Decay,
    steps: Steps,
    *,
    start: tuple[Float[Array, "s s"], ...] | None = None,
    record: Callable[[Weights], PyTree] = lambda weights: weights,
) -> Trajectory:
    """Integrate the reduced dynamics: the moving part of a d x d run at the cost of 2r x 2r.

    Gradient descent on ``1/2 ||Wt_L ... Wt_1 - target||_F^2`` from ``Wt_l(0) = eps_l I``. With
    :func:`rho` it determines the whole full-size run exactly.

    Args:
        target: reduced target, see :func:`reduced_target`.
        scales: ``(eps_1, ..., eps_L)``.
        learning_rate: eta, for the loss ``1/2 ||.||_F^2`` (mean loss: eta / d^2).
        weight_decay: lambda, or one for each layer (mean loss: lambda d^2).
        steps: increasing step numbers at which to record.
        start: other reduced weights to start from, for example those of an earlier run.
        record: maps the reduced weights to what is recorded.

    Example:
        >>> run = reduced_dynamics(jnp.eye(2), jnp.ones(2) / 2, 0.1, 0.0, jnp.array([0, 500]))
        >>> bool(jnp.allclose(run.params[1] @ run.params[0], jnp.eye(2), atol=1e-5))
        True
    """
    learning_rate = checks.nonnegative("learning_rate", learning_rate)
    weight_decay = decays(weight_decay)
    if start is None:
        start = reduced_start(scales, len(target))
    else:
        start = checks.layers(start, len(scales), "start")
    return simulate(
        lambda weights: factorization_loss(weights, target),
        start,
        gradient_descent(learning_rate, weight_decay),
        steps,
        record=record,
    )


LAYERS_AT_ONCE = 450_000
"""Bytes of the layers of all runs that take their steps together on a CPU, where blocks are
multiplied as matrices. A step has three to four times as many, products and gradients among them;
with more of them it leaves the cache of a core."""


@checked
def reduced_lanes(
    targets: Float[Array, "runs s s"],
    scales: Float[Array, "runs depth"],
    learning_rate: Float[Array, "runs"],
    weight_decay: Float[Array, "runs"] | Float[Array, "runs depth"],
    steps: Steps,
    *,
    record: Callable[[Weights], PyTree] = lambda weights: weights,
) -> Trajectory:
    """Run :func:`reduced_dynamics` for many runs at once, on a CPU faster than by ``vmap``.

    Its arguments and its :class:`~lrdyn.Trajectory` have a leading axis of runs; steps and recorder
    are the same for all. For ``sweep(..., batched=True, lanes=64)``, or for any number of runs at a
    time. Blocks that are not :func:`lrdyn.core.is_small` are multiplied by the library of
    matrices, on a CPU as many runs at a time as suit its cache.

    In a ``jax.jit`` of your own ``compiler_options=lrdyn.compiler_options()`` makes loops use whole
    vectors of the processor, as a sweep does (``python -m benchmarks cells`` measures both).

    Args:
        targets: reduced targets, one a run.
        scales: ``(eps_1, ..., eps_L)`` of each run.
        learning_rate: eta of each run.
        weight_decay: lambda of each run, or of each of its layers.
        steps: increasing step numbers at which to record.
        record: maps the reduced weights of a run to what is recorded.

    Example:
        >>> targets, ones = jnp.stack([jnp.eye(2), 2 * jnp.eye(2)]), jnp.ones(2)
        >>> run = reduced_lanes(targets, jnp.ones((2, 2)), 0.1 * ones, 0.0 * ones, jnp.array([300]))
        >>> (run.params[1] @ run.params[0])[1].round(5).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    learning_rate = checks.nonnegative("learning_rate", learning_rate, ("runs",))
    weight_decay = checks.nonnegative("weight_decay", weight_decay, ("...",))

    data = (targets, scales, learning_rate, weight_decay)
    if not is_small(math.prod(targets.shape[1:]), targets.dtype):
        alone = partial(reduced_dynamics, steps=steps, record=record)
        layers = scales.shape[1] * math.prod(targets.shape[1:]) * targets.dtype.itemsize
        fitting = 2 ** (max(1, LAYERS_AT_ONCE // layers).bit_length() - 1)

        def some_at_once(*data: Array) -> Trajectory:
            return jax.lax.map(lambda run: alone(*run), data, batch_size=fitting)

        if len(targets) <= fitting:
            return jax.vmap(alone)(*data)
        return platform_dependent(*data, cpu=some_at_once, default=jax.vmap(alone))

    def problem(data: tuple[Array, Array, Array, Array]) -> Problem:
        target, eps, eta, decay = data
        return (
            lambda weights: factorization_loss(weights, target, small_matmul),
            reduced_start(eps, target.shape[0]),
            gradient_descent(eta, decay),
        )

    return simulate_lanes(problem, data, steps, record=record)


@checked
def expand(
    frame: Frame, reduced: tuple[Float[Array, "s s"], ...], bulk: Float[Array, "depth"]
) -> Weights:
    """Full weights from the reduced ones, ``U_l blkdiag(Wt_l, rho_l I) V_l^T``.

    Args:
        frame: frame of Theorem 2.
        reduced: reduced layers ``Wt_l``.
        bulk: rho_l.

    Example:
        >>> identity = Frame(jnp.eye(3)[None], jnp.eye(3)[None])
        >>> expand(identity, (jnp.ones((1, 1)),), jnp.array([2.0]))[0].diagonal().tolist()
        [1.0, 2.0, 2.0]
    """
    reduced = checks.layers(reduced, len(frame.left), "reduced")
    s = len(reduced[0])
    checks.integer("the size of reduced", s, 1, frame.left.shape[1])
    return tuple(
        # Thin products: the d x d block matrix is never formed.
        U[:, :s] @ Wt @ V[:, :s].T + rho * U[:, s:] @ V[:, s:].T
        for U, V, Wt, rho in zip(frame.left, frame.right, reduced, bulk, strict=True)
    )


@checked
def reduced_spectra(
    reduced: Float[Array, "depth s s"], bulk: Float[Array, "depth"], dim: int
) -> Float[Array, "depth d"]:
    """Singular values of the full layers, decreasing: of ``Wt_l``, and |rho_l| d - s times.

    Args:
        reduced: reduced layers ``Wt_l``, s x s.
        bulk: rho_l.
        dim: d.

    Example:
        >>> reduced_spectra(jnp.full((1, 1, 1), 2.0), jnp.array([-3.0]), 3).tolist()
        [[3.0, 3.0, 2.0]]
    """
    checks.integer("dim", dim, reduced.shape[1])
    checks.allocation({"dim": dim}, (len(reduced), dim), dtype=reduced.dtype)
    moving = singular_values(reduced)
    # rho_l may be negative after a step that is too large; a singular value is its size.
    still = jnp.broadcast_to(jnp.abs(bulk)[:, None], (bulk.shape[0], dim - moving.shape[1]))
    return jnp.sort(jnp.concatenate([moving, still], axis=1), axis=1, descending=True)


class Blocks(NamedTuple):
    """One set of layers seen in the frame of Theorem 2."""

    inner: Float[Array, "depth s s"]
    """Moving blocks ``U_{l,1}^T W_l V_{l,1}``."""
    off_block: Float[Array, "depth"]
    """Largest entry of the two off-diagonal blocks; the theorem says 0."""
    rho: Float[Array, "depth"]
    """Mean of the diagonal of the bulk block ``U_{l,2}^T W_l V_{l,2}``."""
    bulk_deviation: Float[Array, "depth"]
    """Largest entry of the bulk block minus ``rho_l I``; the theorem says 0."""


@checked
def blocks(frame: Frame, weights: Square, size: int) -> Blocks:
    """Measure layers in the frame: blocks of ``U_l^T W_l V_l`` split after ``size``.

    Args:
        frame: frame of Theorem 2.
        weights: square layers at any time.
        size: 2r, of the moving block.

    Example:
        >>> identity = Frame(jnp.eye(3)[None], jnp.eye(3)[None])
        >>> blocks(identity, (jnp.diag(jnp.array([5.0, 2.0, 2.0])),), 1).rho.tolist()
        [2.0]
    """
    depth, dim, _ = frame.left.shape
    weights = checks.layers(weights, depth)
    checks.integer("size", size, 1, dim - 1)
    rotated = jnp.stack(
        [U.T @ W @ V for U, W, V in zip(frame.left, weights, frame.right, strict=True)]
    )
    off = jnp.maximum(
        jnp.max(jnp.abs(rotated[:, :size, size:]), axis=(1, 2)),
        jnp.max(jnp.abs(rotated[:, size:, :size]), axis=(1, 2)),
    )
    bulk = rotated[:, size:, size:]
    # The multiple of I that is nearest to the block in the Frobenius norm.
    mean = jnp.trace(bulk, axis1=1, axis2=2) / bulk.shape[-1]
    identity = jnp.eye(bulk.shape[-1], dtype=bulk.dtype)
    deviation = jnp.max(jnp.abs(bulk - mean[:, None, None] * identity[None]), axis=(1, 2))
    return Blocks(rotated[:, :size, :size], off, mean, deviation)
