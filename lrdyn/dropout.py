"""Dropout of linear networks: its penalties, what they induce, and the minimisers (Example 4.1).

``U`` is m x h and ``V`` is h x n, for a network ``U = W_2`` and ``V = W_1 X``: a hidden unit is
the term ``Z_i = u_i v_i^T`` with ``u_i`` a column of U and ``v_i^T`` a row of V.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn import linalg
from lrdyn.factorization import Weights, end_to_end
from lrdyn.masking import draw_mask
from lrdyn.spectra import numerical_rank, singular_values

# Penalties -----------------------------------------------------------------------------------


def odds(keep_prob: float | Float[Array, ""]) -> Float[Array, ""]:
    """Variance over squared mean of a mask, ``(1 - theta) / theta``: the factor of all penalties.

    Args:
        keep_prob: theta.

    Returns:
        lambda.

    Example:
        >>> float(odds(0.25))
        3.0
    """
    keep_prob = jnp.asarray(keep_prob)
    return (1 - keep_prob) / keep_prob


def _term_sizes(
    left: Float[Array, "m h"], right: Float[Array, "h n"], block: int
) -> Float[Array, "blocks"]:
    """``||U_j V_j||_F^2`` of each block of hidden units."""
    rows, width = left.shape
    if right.shape[0] != width:
        raise ValueError(f"right: got shape {right.shape}, wanted {width} rows")
    if block < 1 or width % block:
        raise ValueError(f"block: got {block}, wanted a divisor of the width {width}")
    if block == 1:
        return jnp.sum(left**2, axis=0) * jnp.sum(right**2, axis=1)
    U = left.reshape(rows, width // block, block)
    V = right.reshape(width // block, block, right.shape[1])
    # By Gram matrices: the products themselves are m x n for each block.
    grams = jnp.einsum("mjb,mjc->jbc", U, U), jnp.einsum("jbn,jcn->jbc", V, V)
    return jnp.sum(grams[0] * grams[1], axis=(1, 2))


def dropout_penalty(
    left: Float[Array, "m h"],
    right: Float[Array, "h n"],
    keep_prob: float | Float[Array, ""],
    *,
    block: int = 1,
) -> Float[Array, ""]:
    """What dropout adds to the squared loss, ``((1-theta)/theta) sum_j ||U_j V_j||_F^2``.

    The sum is over hidden units (dropout) or over blocks of them (DropBlock).

    Args:
        left: U = W_2.
        right: V = W_1 X.
        keep_prob: theta; masks are scaled by 1/theta.
        block: b, hidden units that are dropped together.

    Returns:
        The penalty, a scalar.

    Raises:
        ValueError: the widths of the factors differ, or ``block`` does not divide them.

    Example:
        >>> import jax.numpy as jnp
        >>> float(dropout_penalty(jnp.eye(2), 2 * jnp.eye(2), 0.5))
        8.0
    """
    return odds(keep_prob) * jnp.sum(_term_sizes(left, right, block))


def dropout_loss(
    left: Float[Array, "m h"],
    right: Float[Array, "h n"],
    target: Float[Array, "m n"],
    keep_prob: float | Float[Array, ""],
    *,
    block: int = 1,
) -> Float[Array, ""]:
    """Expected squared loss of dropout, ``||Y - U V||_F^2`` and :func:`dropout_penalty`.

    Args:
        left: U = W_2.
        right: V = W_1 X.
        target: Y.
        keep_prob: theta.
        block: b, hidden units that are dropped together.

    Returns:
        The loss, a scalar (without the factor 1/2 of the losses that are trained).

    Raises:
        ValueError: as :func:`dropout_penalty`.

    Example:
        >>> import jax.numpy as jnp
        >>> float(dropout_loss(jnp.eye(2), jnp.eye(2), jnp.zeros((2, 2)), 0.5))
        4.0
    """
    fit = jnp.sum((target - left @ right) ** 2)
    return fit + dropout_penalty(left, right, keep_prob, block=block)


def dropout_strength(keep_prob: float | Float[Array, ""], width: int) -> Float[Array, ""]:
    """Factor of ``||Z||_*^2`` in the least penalty at a width, ``c = (1-theta) / (theta h)``.

    Args:
        keep_prob: theta.
        width: h.

    Returns:
        c.

    Example:
        >>> float(dropout_strength(0.5, 4))
        0.25
    """
    return odds(keep_prob) / width


def width_free_keep_prob(
    at_block: float | Float[Array, ""], width: int, *, block: int = 1
) -> Float[Array, ""]:
    """Keep probability for which the least penalty does not depend on the width.

    ``theta(h) = b p / (h - (h - b) p)`` gives ``(1-theta)/theta = (h/b) (1-p)/p``.

    Args:
        at_block: p, the keep probability of a single block (of a single hidden unit).
        width: h.
        block: b.

    Returns:
        theta(h).

    Example:
        >>> [round(float(width_free_keep_prob(0.5, h)), 4) for h in (1, 2, 4)]
        [0.5, 0.3333, 0.2]

    Reference:
        Cavazza et al., Dropout as a low-rank regularizer for matrix factorization, 2018.
    """
    at_block = jnp.asarray(at_block)
    return block * at_block / (width - (width - block) * at_block)


# Equalised factors ---------------------------------------------------------------------------


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
        >>> import jax.numpy as jnp
        >>> half = jnp.diag(jnp.array([2.0, 0.0]))
        >>> jnp.sum(equalize(half, half)[0] ** 2, axis=0).tolist()
        [2.0, 2.0]
    """
    width = left.shape[1]
    if right.shape[0] != width:
        raise ValueError(f"right: got shape {right.shape}, wanted {width} rows")
    mean = jnp.sum(left**2) / width
    eye, eye2 = jnp.eye(width, dtype=left.dtype), jnp.eye(2, dtype=left.dtype)

    def rotate(i, state):
        spread, turns = state
        excess = jnp.diagonal(spread) - mean
        # The excesses that are left sum to zero: one of them is opposite to this one, or all are 0.
        opposite = jnp.where(jnp.arange(width) > i, -excess * jnp.sign(excess[i]), -jnp.inf)
        pair = jnp.stack([eye[i], eye[jnp.argmax(opposite)]])
        (low, between), (_, high) = pair @ spread @ pair.T
        cos, sin = _rotation(low - mean, between, high - mean)
        turn = eye + pair.T @ (jnp.stack([cos, -sin, sin, cos]).reshape(2, 2) - eye2) @ pair
        return turn.T @ spread @ turn, turns @ turn

    _, turns = jax.lax.fori_loop(0, width - 1, rotate, (left.T @ left, eye))
    return left @ turns, turns.T @ right


def _rotation(first, between, second) -> tuple[Float[Array, ""], Float[Array, ""]]:
    # With t = tan: first + 2 between t + second t^2 = 0; first and second of opposite signs have
    # real roots. The smaller one is written without the cancellation of the textbook formula.
    root = jnp.sqrt(jnp.maximum(between**2 - first * second, 0.0))
    below = between + jnp.where(between < 0, -root, root)
    tan = jnp.where(below == 0, 0.0, -first / jnp.where(below == 0, 1.0, below))
    cos = 1 / jnp.sqrt(1 + tan**2)
    return cos, tan * cos


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
        >>> import jax.numpy as jnp
        >>> U, V = equalized_factors(jnp.diag(jnp.array([3.0, 1.0])), 4)
        >>> jnp.sum(U**2, axis=0).round(4).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    if width < 1:
        raise ValueError(f"width: got {width}, wanted at least 1")
    left, values, right = linalg.svd(matrix)
    roots = jnp.sqrt(values[:width])
    more = max(width - len(roots), 0)
    left = jnp.pad(left[:, :width] * roots[None, :], ((0, 0), (0, more)))
    return equalize(left, jnp.pad(roots[:, None] * right[:width], ((0, more), (0, 0))))


# Minimisers ----------------------------------------------------------------------------------


def project_rows(target: Float[Array, "m n"], inputs: Float[Array, "d n"]) -> Float[Array, "m n"]:
    """Part of a target that a linear network can reach, ``Y P`` with P onto the row space of X.

    Args:
        target: Y.
        inputs: X, one example a column.

    Returns:
        Y P.

    Example:
        >>> import jax.numpy as jnp
        >>> project_rows(jnp.ones((1, 2)), jnp.array([[1.0, 0.0]])).tolist()
        [[1.0, 0.0]]
    """
    _, values, right = linalg.svd(inputs)
    # Directions without data: below the error of the SVD itself.
    kept = jnp.arange(len(values)) < numerical_rank(values, max(inputs.shape))
    right = jnp.where(kept[:, None], right, 0.0)
    return (target @ right.T) @ right


class Shrinkage(NamedTuple):
    """Minimiser of a squared distance and a squared nuclear norm."""

    product: Float[Array, "m n"]
    """Z."""
    values: Float[Array, "k"]
    """Singular values of Z."""
    threshold: Float[Array, ""]
    """mu_q, which is subtracted from the first q singular values."""
    rank: Int[Array, ""]
    """q."""
    left: Float[Array, "m k"]
    right: Float[Array, "k n"]
    """Singular vectors of Z, and of the matrix that was shrunk."""


def shrink_squared(
    matrix: Float[Array, "m n"], strength: float | Float[Array, ""], width: int
) -> Shrinkage:
    """Minimise ``||Y - Z||_F^2 + c ||Z||_*^2`` over rank Z <= h in closed form.

    ``Z = U (Sigma - mu_q I)_+ V^T`` on the first q directions, ``mu_q = c/(1 + c q) sum_{i<=q}
    sigma_i`` with q the last index ``<= h`` with ``sigma_q > mu_q``.

    Args:
        matrix: Y.
        strength: c >= 0, see :func:`dropout_strength`.
        width: h.

    Returns:
        The :class:`Shrinkage`; rank 0 for Y = 0.

    Example:
        >>> import jax.numpy as jnp
        >>> found = shrink_squared(jnp.diag(jnp.array([3.0, 1.0, 0.1])), 0.5, 3)
        >>> found.values.tolist(), int(found.rank)
        ([2.0, 0.0, 0.0], 1)

    Reference:
        Cavazza et al., Dropout as a low-rank regularizer for matrix factorization, 2018.
    """
    left, values, right = linalg.svd(matrix)
    kept, threshold, rank = shrink_squared_values(values, strength, width)
    return Shrinkage((left * kept[None, :]) @ right, kept, threshold, rank, left, right)


def shrink_squared_values(
    values: Float[Array, "k"], strength: float | Float[Array, ""], width: int
) -> tuple[Float[Array, "k"], Float[Array, ""], Int[Array, ""]]:
    """Singular values at the minimum, for :func:`shrink_squared`.

    Args:
        values: sigma, decreasing.
        strength: c >= 0.
        width: h.

    Returns:
        The shrunk values, the threshold mu_q and q.

    Example:
        >>> import jax.numpy as jnp
        >>> shrink_squared_values(jnp.array([3.0, 1.0, 0.1]), 0.5, 3)[0].tolist()
        [2.0, 0.0, 0.0]
    """
    count = jnp.arange(1, len(values) + 1)
    of_size = count.astype(values.dtype)
    thresholds = strength / (1 + strength * of_size) * jnp.cumsum(values)
    rank = jnp.max(jnp.where((values > thresholds) & (count <= width), count, 0))
    threshold = jnp.where(rank > 0, thresholds[jnp.maximum(rank - 1, 0)], 0.0)
    return jnp.where(count <= rank, values - threshold, 0.0), threshold, rank


def dropout_minimiser(
    target: Float[Array, "m n"],
    inputs: Float[Array, "d n"],
    keep_prob: float | Float[Array, ""],
    width: int,
) -> Shrinkage:
    """Product ``W_2 W_1 X`` at the minimum of the expected loss of dropout.

    It minimises ``||Y P - Z||_F^2 + ((1-theta)/(theta h)) ||Z||_*^2`` over rank Z <= h, where P
    projects onto the row space of X: the rest of Y is a constant.

    Args:
        target: Y.
        inputs: X, one example a column.
        keep_prob: theta.
        width: h.

    Returns:
        The :class:`Shrinkage`.

    Example:
        >>> import jax.numpy as jnp
        >>> dropout_minimiser(2 * jnp.eye(1), jnp.eye(1), 0.5, 1).product.tolist()
        [[1.0]]

    Reference:
        arXiv 2503.19859, Example 4.1.
    """
    return shrink_squared(project_rows(target, inputs), dropout_strength(keep_prob, width), width)


def input_layer(right: Float[Array, "h n"], inputs: Float[Array, "d n"]) -> Float[Array, "h d"]:
    """Smallest first layer with given hidden units on the data, ``W_1 = V X^+``.

    Args:
        right: V, its rows in the row space of X (of others, the projections are used).
        inputs: X, one example a column.

    Returns:
        W_1 with ``W_1 X = V``.

    Example:
        >>> import jax.numpy as jnp
        >>> input_layer(jnp.eye(2), 2 * jnp.eye(2)).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    left, values, rows = linalg.svd(inputs)
    kept = jnp.arange(len(values)) < numerical_rank(values, max(inputs.shape))
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1.0), 0.0)
    return ((right @ rows.T) * inverse[None, :]) @ left.T


def dropout_descent(
    key: Key[Array, ""],
    weights: Weights,
    inputs: Float[Array, "d n"],
    target: Float[Array, "m n"],
    keep_prob: float | Float[Array, ""],
    learning_rate: float | Float[Array, ""],
    steps: int,
    *,
    halve_after: int,
) -> Weights:
    """Train two layers with dropout: one mask of the hidden units a step, decreasing steps.

    The loss is ``1/2 ||Y - W_2 diag(R/theta) W_1 X||_F^2``, the step ``eta theta / (1 + t/t_0)``: a
    unit that is kept weighs 1/theta, so that theta keeps the mean square of the steps bounded.

    Args:
        key: random key.
        weights: ``(W_1, W_2)`` at the start.
        inputs: X, one example a column.
        target: Y.
        keep_prob: theta.
        learning_rate: eta.
        steps: number of steps.
        halve_after: t_0, in steps.

    Returns:
        The trained layers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> one = jnp.eye(1)
        >>> run = dropout_descent(
        ...     jax.random.key(0), (one, one), one, 4 * one, 1.0, 0.1, 100, halve_after=100)
        >>> round(float(run[0][0, 0]), 4)
        2.0
    """
    width = weights[0].shape[0]

    def step(t, weights):
        mask = draw_mask(jax.random.fold_in(key, t), width, keep_prob) / keep_prob

        def loss(weights):
            first, second = weights
            return 0.5 * jnp.sum((target - (second * mask[None, :]) @ (first @ inputs)) ** 2)

        rate = learning_rate * keep_prob / (1 + t.astype(inputs.dtype) / halve_after)
        return jax.tree.map(lambda W, G: W - rate * G, weights, jax.grad(loss)(weights))

    return jax.lax.fori_loop(0, steps, step, weights)


# Several layers ------------------------------------------------------------------------------


def layers_penalty(
    weights: Weights, moment: Float[Array, "d d"], keep_prob: float | Float[Array, ""]
) -> Float[Array, ""]:
    """What dropout after every hidden layer adds, ``tr M_L - tr(W C W^T)``.

    ``M_1 = W_1 C W_1^T`` and ``M_{l+1} = W_{l+1} (M_l + ((1-theta)/theta) Diag M_l) W_{l+1}^T``.

    Args:
        weights: layers ``(W_1, ..., W_L)``, W their product.
        moment: ``C = X X^T``.
        keep_prob: theta, of every hidden layer.

    Returns:
        The penalty, a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> float(layers_penalty((jnp.eye(2),) * 3, jnp.eye(2), 0.5))
        6.0

    Reference:
        Mianjy and Arora, On dropout and nuclear norm regularization, 2019.
    """
    first, *rest = weights
    spread = first @ moment @ first.T
    for W in rest:
        spread = W @ (spread + odds(keep_prob) * jnp.diag(jnp.diagonal(spread))) @ W.T
    product = end_to_end(weights)
    return jnp.trace(spread) - jnp.trace(product @ moment @ product.T)


def layers_strength(
    keep_prob: float | Float[Array, ""], hidden: tuple[int, ...]
) -> Float[Array, ""]:
    """Factor of ``||W X||_*^2`` below the penalty of several layers, ``prod (1 + lambda/d_i) - 1``.

    Args:
        keep_prob: theta; ``lambda = (1-theta)/theta``.
        hidden: widths d_i of the hidden layers.

    Returns:
        nu.

    Example:
        >>> float(layers_strength(0.5, (2, 4)))
        0.875
    """
    factor = odds(keep_prob)
    return jnp.prod(1 + factor / jnp.asarray(hidden, factor.dtype)) - 1


def equalized_layers(
    column: Float[Array, "k"], row: Float[Array, "d"], hidden: tuple[int, ...]
) -> Weights:
    """Layers of the rank-one map ``u v^T`` that spread it evenly over every hidden unit.

    Their penalty is the least one, ``nu ||u||^2 ||X^T v||^2``, see :func:`layers_strength`.

    Args:
        column: u.
        row: v.
        hidden: widths of the hidden layers.

    Returns:
        The layers; the inner ones have equal entries.

    Example:
        >>> import jax.numpy as jnp
        >>> W_1, W_2 = equalized_layers(jnp.ones(1), jnp.ones(1), (4,))
        >>> W_1.ravel().tolist(), W_2.ravel().tolist()
        ([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5])
    """
    units = [jnp.full(width, 1 / np.sqrt(width), column.dtype) for width in hidden]
    return tuple(
        after[:, None] * before[None, :]
        for before, after in zip([row, *units], [*units, column], strict=True)
    )


def dropconnect_penalty(
    weights: Weights,
    inputs: Float[Array, "d n"],
    keep_prob: float | Float[Array, ""],
    *,
    layer: int,
) -> Float[Array, ""]:
    """What masks on the weights of one of two layers add (DropConnect).

    On ``W_2`` it is the penalty of dropout; on ``W_1`` it is ``((1-theta)/theta) sum_ik
    ||w_{2,i}||^2 W_{1,ik}^2 ||x_k||^2`` with ``x_k`` the k-th row of X.

    Args:
        weights: ``(W_1, W_2)``.
        inputs: X, one example a column.
        keep_prob: theta, of each weight of that layer.
        layer: 1 or 2.

    Returns:
        The penalty, a scalar.

    Raises:
        ValueError: there are not two layers, or ``layer`` is not one of them.

    Example:
        >>> import jax.numpy as jnp
        >>> float(dropconnect_penalty((jnp.ones((1, 2)), jnp.eye(1)), jnp.eye(2), 0.5, layer=1))
        2.0
    """
    if len(weights) != 2:
        raise ValueError(f"weights: got {len(weights)} layers, wanted 2")
    if layer not in (1, 2):
        raise ValueError(f"layer: got {layer}, wanted 1 or 2")
    first, second = weights
    if layer == 2:
        return dropout_penalty(second, first @ inputs, keep_prob)
    columns, rows = jnp.sum(second**2, axis=0), jnp.sum(inputs**2, axis=1)
    return odds(keep_prob) * (columns @ first**2 @ rows)


# DropBlock -----------------------------------------------------------------------------------


def _support_split(
    values: Float[Array, "d"], support: int
) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
    """Sizes s_i of the entries of k-sparse vectors whose mean is ``values``, and shares w_i/s_i."""
    dim = len(values)
    if not 1 <= support <= dim:
        raise ValueError(f"support: got {support}, wanted 1 to {dim}")
    tails = jnp.cumsum(values[::-1])[::-1]
    # r is the first with w_{k-r-1} > (1/(r+1)) sum_{i >= k-r} w_i; the last always has it.
    r = np.arange(support)
    above = jnp.concatenate([values[: support - 1][::-1], jnp.full(1, jnp.inf, values.dtype)])
    first = jnp.argmax(above > tails[support - 1 - r] / jnp.asarray(r + 1, values.dtype))
    in_tail = jnp.arange(dim) >= support - 1 - first
    level = tails[support - 1 - first] / (first + 1).astype(values.dtype)
    sizes = jnp.where(in_tail, level, values)
    return sizes, values / jnp.where(sizes == 0, 1.0, sizes)


def support_norm(values: Float[Array, "d"], support: int) -> Float[Array, ""]:
    """k-support norm of a vector: the smallest convex norm that is Euclidean on k-sparse vectors.

    ``||w||^2 = sum_{i<k-r} w_i^2 + (1/(r+1)) (sum_{i>=k-r} w_i)^2`` with w decreasing and r the
    only index in 0..k-1 with ``w_{k-r-1} > (1/(r+1)) sum_{i>=k-r} w_i >= w_{k-r}``. Of singular
    values, it is the spectral k-support norm; k = 1 is the nuclear norm.

    Args:
        values: w >= 0 in decreasing order.
        support: k.

    Returns:
        The norm.

    Raises:
        ValueError: ``support`` is not an integer from 1 to d.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([4.0, 3.0])
        >>> float(support_norm(w, 1)), float(support_norm(w, 2))
        (7.0, 5.0)

    Reference:
        Argyriou, Foygel and Srebro, Sparse prediction with the k-support norm, 2012.
    """
    sizes, shares = _support_split(values, support)
    return jnp.sqrt(jnp.sum(shares * sizes**2))


def spectral_support_norm(matrix: Float[Array, "m n"], support: int) -> Float[Array, ""]:
    """Spectral k-support norm, :func:`support_norm` of the singular values.

    Args:
        matrix: Z.
        support: k; more than min(m, n) is the same as that (the Frobenius norm).

    Returns:
        The norm.

    Example:
        >>> import jax.numpy as jnp
        >>> float(spectral_support_norm(jnp.eye(4), 1)), float(spectral_support_norm(jnp.eye(4), 4))
        (4.0, 2.0)
    """
    return support_norm(singular_values(matrix), min(support, *matrix.shape))


def support_factors(
    matrix: Float[Array, "m n"], block: int, blocks: int
) -> tuple[Float[Array, "m h"], Float[Array, "h n"]]:
    """Factors with the least DropBlock penalty, ``((1-theta)/theta) (b/h) ||Z||_{b-support}^2``.

    With w_i = s_i p_i the split of the norm, ``Z = (1/B) sum_j U diag(s)^{1/2} P_j diag(s)^{1/2}
    V^T`` for projections P_j of rank b whose mean is diag(p). The projections are made of unit
    vectors with at most two entries ("spectral tetris"), dealt to the blocks in turn.

    Args:
        matrix: Z.
        block: b.
        blocks: B = h / b. Enough of them are needed: ``B p_i >= 2`` and ``B (1 - p_i) >= 2`` for
            all p_i other than 0 and 1, see :func:`enough_blocks`.

    Returns:
        U and V with ``U V = Z``, B blocks of equal size.

    Example:
        >>> import jax.numpy as jnp
        >>> Z = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> U, V = support_factors(Z, 2, 12)
        >>> round(float(12 * dropout_penalty(U, V, 0.5, block=2)), 4)
        18.0
        >>> round(float(spectral_support_norm(Z, 2)) ** 2, 4)
        18.0
    """
    left, values, right = linalg.svd(matrix)
    support = min(block, len(values))
    sizes, shares = _support_split(values, support)
    units = _tetris(blocks * shares, blocks * support).reshape(support, blocks, len(values))
    units = jnp.pad(units, ((0, block - support), (0, 0), (0, 0)))  # zeros fill larger blocks
    units = jnp.swapaxes(units, 0, 1).reshape(blocks * block, len(values))
    scaled = units * jnp.sqrt(sizes / blocks)[None, :]
    return left @ scaled.T, scaled @ right


def enough_blocks(matrix: Float[Array, "m n"], block: int, blocks: int) -> Array:
    """Whether :func:`support_factors` attains the least penalty with so many blocks.

    Args:
        matrix: Z.
        block: b.
        blocks: B.

    Returns:
        A boolean.

    Example:
        >>> import jax.numpy as jnp
        >>> Z = jnp.diag(jnp.array([3.0, 2.0, 1.0]))
        >>> [bool(enough_blocks(Z, 2, blocks)) for blocks in (5, 6)]
        [False, True]
    """
    values = singular_values(matrix)
    _, shares = _support_split(values, min(block, len(values)))
    rounding = len(values) * jnp.finfo(values.dtype).eps
    inside = (shares > rounding) & (1 - shares > rounding)
    rare, common = blocks * shares >= 2 - rounding, blocks * (1 - shares) >= 2 - rounding
    return jnp.all(~inside | (rare & common))


def _tetris(weights: Float[Array, "d"], count: int) -> Float[Array, "count d"]:
    """Unit vectors f_l with ``sum_l f_l f_l^T = diag(weights)``, the weights of sum ``count``.

    Whole units of a weight are taken by coordinate vectors; a rest x < 1 by the pair ``sqrt(x/2)
    e_i +- sqrt(1 - x/2) e_{i+1}``, whose cross terms cancel and which takes 2 - x of the next.
    """
    dim = len(weights)
    rounding = count * dim * jnp.finfo(weights.dtype).eps

    def emit(state, _):
        rest, i, second = state
        here, following = jax.nn.one_hot(jnp.stack([i, i + 1]), dim, dtype=rest.dtype)
        x = jnp.clip(rest @ here, 0.0, 1.0)
        whole = ~second & ((rest @ here >= 1 - rounding) | (i == dim - 1))
        cos, sin = jnp.sqrt(x / 2), jnp.sqrt(1 - x / 2)
        unit = jnp.where(whole, here, cos * here + jnp.where(second, -sin, sin) * following)
        taken = jnp.where(whole, here, jnp.where(second, x * here + (2 - x) * following, 0.0))
        rest = rest - taken
        i = jnp.where((whole & (rest @ here <= rounding)) | second, i + 1, i)
        return (rest, jnp.minimum(i, dim - 1), ~whole & ~second), unit

    start = (weights, jnp.asarray(0), jnp.asarray(False))
    return jax.lax.scan(emit, start, length=count)[1]
