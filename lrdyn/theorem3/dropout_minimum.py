"""Minimisers of the expected loss of dropout, and the training that finds them."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Weights
from lrdyn.core.masking import draw_mask
from lrdyn.core.spectra import numerical_rank
from lrdyn.theorem3.dropout_penalties import dropout_strength

Layers = Annotated[Weights, "h d", "m h"]
"""W_1 and W_2."""


@checked
def project_rows(target: Float[Array, "m n"], inputs: Float[Array, "d n"]) -> Float[Array, "m n"]:
    """Part of a target that a linear network can reach, ``Y P`` with P onto the row space of X.

    Example:
        >>> project_rows(jnp.ones((1, 2)), jnp.array([[1.0, 0.0]])).tolist()
        [[1.0, 0.0]]
    """
    _, _, right, has_data = _data_directions(inputs)
    right = jnp.where(has_data[:, None], right, 0.0)
    return (target @ right.T) @ right


def _data_directions(inputs: Float[Array, "d n"]) -> tuple[Array, Array, Array, Array]:
    """SVD of the inputs, and which directions have data: values above the error of the SVD."""
    left, values, right = linalg.svd(inputs)
    has_data = jnp.arange(len(values)) < numerical_rank(values, max(inputs.shape))
    return left, values, right, has_data


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
    """Left singular vectors of Z, and of the matrix that was shrunk."""
    right: Float[Array, "k n"]
    """Right singular vectors, as rows."""


@checked
def shrink_squared(matrix: Float[Array, "m n"], strength: Scalar, width: int) -> Shrinkage:
    """Minimise ``||Y - Z||_F^2 + c ||Z||_*^2`` over rank Z <= h in closed form.

    ``Z = U (Sigma - mu_q I)_+ V^T`` on the first q directions, ``mu_q = c/(1 + c q) sum_{i<=q}
    sigma_i`` with q the last index ``<= h`` with ``sigma_q > mu_q``; none for Y = 0.

    Args:
        matrix: Y.
        strength: c >= 0, see :func:`dropout_strength`.
        width: h.

    Example:
        >>> shrunk = shrink_squared(jnp.diag(jnp.array([3.0, 1.0, 0.1])), 0.5, 3)
        >>> shrunk.values.tolist(), int(shrunk.rank)
        ([2.0, 0.0, 0.0], 1)
    """
    strength = checks.nonnegative("strength", strength)
    checks.integer("width", width)
    left, values, right = linalg.svd(matrix)
    shrunk, threshold, rank = shrink_squared_values(values, strength, width)
    return Shrinkage((left * shrunk[None, :]) @ right, shrunk, threshold, rank, left, right)


@checked
def shrink_squared_values(
    values: Float[Array, "k"], strength: Scalar, width: int
) -> tuple[Float[Array, "k"], Float[Array, ""], Int[Array, ""]]:
    """Singular values at the minimum, for :func:`shrink_squared`.

    Args:
        values: singular values of Y, decreasing.
        strength: c >= 0.
        width: h.

    Returns:
        The shrunk values, the threshold mu_q and q.

    Example:
        >>> shrink_squared_values(jnp.array([3.0, 1.0, 0.1]), 0.5, 3)[0].tolist()
        [2.0, 0.0, 0.0]
    """
    values = checks.spectrum("values", values)
    strength = checks.nonnegative("strength", strength)
    checks.integer("width", width)
    count = jnp.arange(1, len(values) + 1)
    of_size = count.astype(values.dtype)
    thresholds = strength / (1 + strength * of_size) * jnp.cumsum(values)
    # Up to q the thresholds rise with each value that is above them, and from there on none is.
    rank = jnp.max(jnp.where((values > thresholds) & (count <= width), count, 0))
    threshold = jnp.where(rank > 0, thresholds[jnp.maximum(rank - 1, 0)], 0.0)
    return jnp.where(count <= rank, values - threshold, 0.0), threshold, rank


@checked
def dropout_minimiser(
    target: Float[Array, "m n"], inputs: Float[Array, "d n"], keep_prob: Scalar, width: int
) -> Shrinkage:
    """Product ``W_2 W_1 X`` at the minimum of the expected loss of dropout.

    It minimises ``||Y P - Z||_F^2 + ((1-theta)/(theta h)) ||Z||_*^2`` over rank Z <= h, where P
    projects onto the row space of X: the rest of Y is a constant.

    Args:
        target: Y.
        inputs: X, one example a column.
        keep_prob: theta.
        width: h.

    Example:
        >>> dropout_minimiser(2 * jnp.eye(1), jnp.eye(1), 0.5, 1).product.tolist()
        [[1.0]]
    """
    keep_prob = checks.fraction("keep_prob", keep_prob)
    checks.integer("width", width)
    return shrink_squared(project_rows(target, inputs), dropout_strength(keep_prob, width), width)


@checked
def input_layer(right: Float[Array, "h n"], inputs: Float[Array, "d n"]) -> Float[Array, "h d"]:
    """Smallest first layer with ``W_1 X = V``, given hidden units on the data: ``W_1 = V X^+``.

    Args:
        right: V, its rows in the row space of X (of others, the projections are used).
        inputs: X, one example a column.

    Example:
        >>> input_layer(jnp.eye(2), 2 * jnp.eye(2)).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    left, values, rows, has_data = _data_directions(inputs)
    # The pseudo-inverse: directions without data have no weight in the smallest layer.
    inverse = jnp.where(has_data, 1 / jnp.where(has_data, values, 1.0), 0.0)
    return ((right @ rows.T) * inverse[None, :]) @ left.T


@checked
def dropout_step(
    mask: Float[Array, "h"],
    weights: Layers,
    inputs: Float[Array, "d n"],
    target: Float[Array, "m n"],
    keep_prob: Scalar,
    rate: Scalar,
) -> Layers:
    """One step of two layers under one mask R of the hidden units.

    The loss is ``1/2 ||Y - W_2 diag(R/theta) W_1 X||_F^2``. For random masks its gradient has that
    of :func:`dropout_loss`, over 2, for its mean.

    Args:
        mask: R, see :func:`lrdyn.core.draw_mask`.
        weights: ``(W_1, W_2)``.
        inputs: X, one example a column.
        target: Y.
        keep_prob: theta.
        rate: size of the step.

    Example:
        >>> one = jnp.eye(1)
        >>> after = dropout_step(jnp.ones(1), (one, one), one, 4 * one, 1.0, 0.1)
        >>> [round(float(W[0, 0]), 4) for W in after]
        [1.3, 1.3]
    """
    keep_prob = checks.fraction("keep_prob", keep_prob)
    rate = checks.nonnegative("rate", rate)

    def loss(weights: Layers) -> Array:
        first, second = weights
        masked = second * (mask / keep_prob)[None, :]
        return 0.5 * jnp.sum((target - masked @ (first @ inputs)) ** 2)

    return jax.tree.map(lambda W, G: W - rate * G, weights, jax.grad(loss)(weights))


@checked
def decreasing_step(
    t: float | Float[Array, "*times"],
    learning_rate: Scalar,
    keep_prob: Scalar,
    halve_after: int | Scalar,
) -> Float[Array, "*times"]:
    """Size of step t of training with dropout, ``eta theta / (1 + t/t_0)``.

    A unit that is kept weighs 1/theta, so that theta keeps the mean square of the steps bounded.

    Args:
        t: number of the step, or of several.
        learning_rate: eta.
        keep_prob: theta.
        halve_after: t_0, in steps.

    Example:
        >>> float(decreasing_step(10.0, 0.5, 0.8, 10))
        0.2
    """
    learning_rate = checks.nonnegative("learning_rate", learning_rate)
    keep_prob = checks.fraction("keep_prob", keep_prob)
    halve_after = checks.positive("halve_after", halve_after)
    return jnp.asarray(learning_rate * keep_prob / (1 + t / halve_after))


@checked
def dropout_descent(
    key: Key[Array, ""],
    weights: Layers,
    inputs: Float[Array, "d n"],
    target: Float[Array, "m n"],
    keep_prob: Scalar,
    learning_rate: Scalar,
    steps: int,
    *,
    halve_after: int,
) -> Layers:
    """Train two layers with dropout: one mask of the hidden units a step, decreasing steps.

    The loss is ``1/2 ||Y - W_2 diag(R/theta) W_1 X||_F^2``, the step :func:`decreasing_step`.

    Args:
        key: random key.
        weights: ``(W_1, W_2)`` at the start.
        inputs: X, one example a column.
        target: Y.
        keep_prob: theta.
        learning_rate: eta.
        steps: number of steps.
        halve_after: t_0, in steps.

    Example:
        >>> one = jnp.eye(1)
        >>> run = dropout_descent(
        ...     jax.random.key(0), (one, one), one, 4 * one, 1.0, 0.1, 100, halve_after=100)
        >>> round(float(run[0][0, 0]), 4)
        2.0
    """
    keep_prob = checks.fraction("keep_prob", keep_prob)
    learning_rate = checks.nonnegative("learning_rate", learning_rate)
    checks.integer("steps", steps, 0)
    checks.integer("halve_after", halve_after)

    def step(t: Array, weights: Layers) -> Layers:
        rate = decreasing_step(t.astype(inputs.dtype), learning_rate, keep_prob, halve_after)
        # The mask of a step depends on its number alone, so that any step can be drawn again.
        mask = draw_mask(jax.random.fold_in(key, t), weights[0].shape[0], keep_prob)
        return dropout_step(mask, weights, inputs, target, keep_prob, rate)

    return jax.lax.fori_loop(0, steps, step, weights)
