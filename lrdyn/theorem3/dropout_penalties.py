"""Penalty that dropout of one hidden layer adds to the squared loss, and factors with the least."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar


@checked
def odds(keep_prob: Scalar) -> Float[Array, ""]:
    """Variance over squared mean of a mask, ``(1 - theta) / theta``: the factor of all penalties.

    Example:
        >>> float(odds(0.25))
        3.0
    """
    keep_prob = checks.fraction("keep_prob", keep_prob)
    keep_prob = jnp.asarray(keep_prob)
    return (1 - keep_prob) / keep_prob


def _term_sizes(
    left: Float[Array, "m h"], right: Float[Array, "h n"], block: int
) -> Float[Array, "blocks"]:
    """``||U_j V_j||_F^2`` of each block of hidden units."""
    rows, width = left.shape
    checks.integer("block", block)
    if width % block:
        checks.refuse("block", block, f"a divisor of the width {width}")
    if block == 1:
        return jnp.sum(left**2, axis=0) * jnp.sum(right**2, axis=1)
    U = left.reshape(rows, width // block, block)
    V = right.reshape(width // block, block, right.shape[1])
    # By Gram matrices: the products themselves are m x n for each block.
    grams = jnp.einsum("mjb,mjc->jbc", U, U), jnp.einsum("jbn,jcn->jbc", V, V)
    return jnp.sum(grams[0] * grams[1], axis=(1, 2))


@checked
def dropout_penalty(
    left: Float[Array, "m h"], right: Float[Array, "h n"], keep_prob: Scalar, *, block: int = 1
) -> Float[Array, ""]:
    """Penalty that dropout adds to the squared loss, ``((1-theta)/theta) sum_j ||U_j V_j||_F^2``.

    The sum is over hidden units (dropout) or over blocks of them (DropBlock).

    Args:
        left: U = W_2.
        right: V = W_1 X.
        keep_prob: theta; masks are scaled by 1/theta.
        block: b, hidden units that are dropped together.

    Raises:
        ValueError: the widths of the factors differ, or ``block`` does not divide them.

    Example:
        >>> float(dropout_penalty(jnp.eye(2), 2 * jnp.eye(2), 0.5))
        8.0
    """
    keep_prob = checks.fraction("keep_prob", keep_prob)
    return odds(keep_prob) * jnp.sum(_term_sizes(left, right, block))


@checked
def dropout_loss(
    left: Float[Array, "m h"],
    right: Float[Array, "h n"],
    target: Float[Array, "m n"],
    keep_prob: Scalar,
    *,
    block: int = 1,
) -> Float[Array, ""]:
    """Expected squared loss of dropout, ``||Y - U V||_F^2`` and :func:`dropout_penalty`.

    Args:
        left: U = W_2.
        right: V = W_1 X.
        target: Y.
        keep_prob: theta; masks are scaled by 1/theta.
        block: b, hidden units that are dropped together.

    Returns:
        The loss, a scalar (without the factor 1/2 of the losses that are trained).

    Raises:
        ValueError: as :func:`dropout_penalty`.

    Example:
        >>> float(dropout_loss(jnp.eye(2), jnp.eye(2), jnp.zeros((2, 2)), 0.5))
        4.0
    """
    keep_prob = checks.fraction("keep_prob", keep_prob)
    fit = jnp.sum((target - left @ right) ** 2)
    return fit + dropout_penalty(left, right, keep_prob, block=block)


@checked
def dropout_strength(keep_prob: Scalar, width: int) -> Float[Array, ""]:
    """Factor of ``||Z||_*^2`` in the least penalty at a width, ``c = (1-theta) / (theta h)``.

    Example:
        >>> float(dropout_strength(0.5, 4))
        0.25
    """
    checks.integer("width", width)
    return odds(keep_prob) / width


@checked
def width_free_keep_prob(at_block: Scalar, width: int, *, block: int = 1) -> Float[Array, ""]:
    """Keep probability for which the least penalty does not depend on the width.

    ``theta(h) = b p / (h - (h - b) p)`` gives ``(1-theta)/theta = (h/b) (1-p)/p``.

    Args:
        at_block: p, the keep probability of a single block (of a single hidden unit).
        width: h.
        block: b.

    Example:
        >>> [round(float(width_free_keep_prob(0.5, h)), 4) for h in (1, 2, 4)]
        [0.5, 0.3333, 0.2]
    """
    at_block = checks.fraction("at_block", at_block)
    checks.integer("width", width)
    checks.integer("block", block)
    at_block = jnp.asarray(at_block)
    return block * at_block / (width - (width - block) * at_block)


# Equalised factors ---------------------------------------------------------------------------


@checked
def equalize(
    left: Float[Array, "m h"], right: Float[Array, "h n"]
) -> tuple[Float[Array, "m h"], Float[Array, "h n"]]:
    """Rotate balanced factors until all hidden units have the same size, by h - 1 Givens rotations.

    ``U^T U = V V^T`` (balanced) makes ``||u_i||^2 = ||v_i||^2`` the diagonal of one matrix of trace
    ``||U V||_*``. Each rotation sets one entry of the diagonal to the mean, together with an entry
    on the other side of it.

    Args:
        left: U.
        right: V, with ``V V^T = U^T U``.

    Returns:
        U Q and Q^T V with orthogonal Q: the same product, every ``||u_i|| ||v_i|| = ||U V||_*/h``.

    Raises:
        ValueError: the widths of the factors differ.

    Example:
        >>> half = jnp.diag(jnp.array([2.0, 0.0]))
        >>> jnp.sum(equalize(half, half)[0] ** 2, axis=0).tolist()
        [2.0, 2.0]
    """
    width = left.shape[1]
    mean = jnp.sum(left**2) / width
    eye, eye2 = jnp.eye(width, dtype=left.dtype), jnp.eye(2, dtype=left.dtype)

    def rotate(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        spread, turns = state
        excess = jnp.diagonal(spread) - mean
        # The excesses that are left sum to zero: one of them is opposite to this one, or all are 0.
        opposite = jnp.where(jnp.arange(width) > i, -excess * jnp.sign(excess[i]), -jnp.inf)
        pair = jnp.stack([eye[i], eye[jnp.argmax(opposite)]])
        (low, between), (_, high) = pair @ spread @ pair.T
        cos, sin = _rotation(low - mean, between, high - mean)
        turn = eye + pair.T @ (jnp.stack([cos, -sin, sin, cos]).reshape(2, 2) - eye2) @ pair
        return turn.T @ spread @ turn, turns @ turn

    # The last entry needs no turn: what is left of the trace is the mean.
    _, turns = jax.lax.fori_loop(0, width - 1, rotate, (left.T @ left, eye))
    return left @ turns, turns.T @ right


def _rotation(first: Array, between: Array, second: Array) -> tuple[Array, Array]:
    # With t = tan: first + 2 between t + second t^2 = 0; first and second of opposite signs have
    # real roots. The smaller one is written without the cancellation of the textbook formula.
    root = jnp.sqrt(jnp.maximum(between**2 - first * second, 0.0))
    below = between + jnp.where(between < 0, -root, root)
    tan = jnp.where(below == 0, 0.0, -first / jnp.where(below == 0, 1.0, below))
    cos = 1 / jnp.sqrt(1 + tan**2)
    return cos, tan * cos


@checked
def equalized_factors(
    matrix: Float[Array, "m n"], width: int
) -> tuple[Float[Array, "m h"], Float[Array, "h n"]]:
    """Factors with the least dropout penalty, ``((1-theta)/(theta h)) ||Z||_*^2``.

    Args:
        matrix: Z, of rank h at most; beyond, its best approximation of rank h is factorised.
        width: h.

    Returns:
        U and V with ``U V = Z`` and all ``||u_i|| ||v_i||`` equal.

    Raises:
        ValueError: ``width`` < 1.

    Example:
        >>> U, V = equalized_factors(jnp.diag(jnp.array([3.0, 1.0])), 4)
        >>> jnp.sum(U**2, axis=0).round(4).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    checks.integer("width", width)
    checks.allocation({"width": width}, (width, width), dtype=matrix.dtype)
    left, values, right = linalg.svd(matrix)
    roots = jnp.sqrt(values[:width])
    more = max(width - len(roots), 0)
    # Balanced factors of the SVD, U^T U = V V^T = diag(sigma); units beyond the rank are 0 at
    # first.
    left = jnp.pad(left[:, :width] * roots[None, :], ((0, 0), (0, more)))
    return equalize(left, jnp.pad(roots[:, None] * right[:width], ((0, more), (0, 0))))
