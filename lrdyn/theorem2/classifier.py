"""The classification version of Theorem 2 and collapse between layers.

On whitened data, X X^T = I, and with a last layer K x d, the loss
``1/2 ||W_L ... W_1 X - Y||_F^2`` is deep factorisation of ``Phi = Y X^T``. The moving part has 2K
dimensions, the last layer has no bulk, and hence the bulk of the others only decays:
``rho_l(t) = eps_l (1 - eta lambda_l)^t``.

Reference: Yaras et al., "The Law of Parsimony in Gradient Descent for Learning Deep Linear
Networks", as surveyed in arXiv 2503.19859.
"""

from typing import Annotated, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Steps, Weights, decays
from lrdyn.theorem2.subspace import (
    Blocks,
    Frame,
    blocks,
    propagate,
    reduced_start,
    square_layers,
    start_scales,
    unscaled_product,
)

Number = TypeVar("Number", float, Float[Array, ""])


def _square_but_last(weights: Weights, depth: int | None = None) -> int:
    """Size of the layers before the last, which are square; ``depth`` of them, if it is given."""
    if len(weights) < 2:
        checks.refuse("weights", "1 layer", "2 or more")
    return square_layers(weights[:-1], depth)[1]


@checked
def classifier_frame(weights: Annotated[Weights, "k d"], target: Float[Array, "k d"]) -> Frame:
    """Frame of the square layers of a deep linear classifier, ``l < L``.

    ``col(V_{1,1}) = row(Phi) + row((W_L ... W_1)(0))``, 2K columns, ``U_l = W_l(0) V_l / eps_l``.

    Args:
        weights: layers at the start; all square but the last, which is K x d.
        target: ``Phi = Y X^T``.

    Returns:
        The frame of layers 1 to L - 1; ``left[-1]`` is V_L.

    Raises:
        ValueError: there is no room, d <= 2K.

    Example:
        >>> import jax
        >>> from lrdyn import orthogonal_layers
        >>> W = orthogonal_layers(jax.random.key(0), (7, 7, 2), jnp.ones(2))
        >>> classifier_frame(W, jnp.ones((2, 7))).left.shape
        (1, 7, 7)
    """
    _square_but_last(weights)
    classes, dim = target.shape
    if dim <= 2 * classes:
        wanted = "more than twice as many columns as rows"
        checks.refuse("target", f"shape {target.shape}", wanted)
    size = linalg.frobenius(target)
    unit = target / jnp.where(size > 0, size, 1.0)
    spanning = jnp.concatenate([unit.T, unscaled_product(weights).T], axis=1)
    return propagate(weights[:-1], linalg.complete_basis(spanning))


@checked
def classifier_blocks(frame: Frame, weights: Annotated[Weights, "k d"], size: int) -> Blocks:
    """Measure the layers of a classifier in its frame.

    Args:
        frame: frame of the square layers.
        weights: all layers at any time.
        size: 2K.

    Returns:
        Blocks of the square layers; ``off_block`` has one more entry, for the last layer:
        the largest entry of ``W_L V_{L,2}``, which the theorem says is 0.

    Example:
        >>> identity = Frame(jnp.eye(3)[None], jnp.eye(3)[None])
        >>> classifier_blocks(identity, (jnp.eye(3), jnp.ones((1, 3))), 2).off_block.tolist()
        [0.0, 1.0]
    """
    dim = _square_but_last(weights, len(frame.left))
    checks.integer("size", size, 1, dim - 1)
    square = blocks(frame, weights[:-1], size)
    last = jnp.max(jnp.abs(weights[-1] @ frame.left[-1, :, size:]))
    return square._replace(off_block=jnp.append(square.off_block, last))


@checked
def classifier_start(frame: Frame, weights: Annotated[Weights, "k d"], size: int) -> Weights:
    """Start of the reduced problem of a classifier: ``eps_l I`` for l < L and ``W_L(0) V_{L,1}``.

    Args:
        frame: frame of the square layers.
        weights: all layers at the start.
        size: 2K.

    Returns:
        Reduced layers, 2K x 2K but for the last, which is K x 2K.

    Example:
        >>> identity = Frame(jnp.eye(3)[None], jnp.eye(3)[None])
        >>> [W.shape for W in classifier_start(identity, (jnp.eye(3), jnp.ones((1, 3))), 2)]
        [(2, 2), (1, 2)]
    """
    dim = _square_but_last(weights, len(frame.left))
    checks.integer("size", size, 1, dim)
    inner = reduced_start(start_scales(weights[:-1]), size)
    return (*inner, weights[-1] @ frame.left[-1, :, :size])


@checked
def classifier_rho(
    scales: Float[Array, "layers"],
    learning_rate: Scalar,
    weight_decay: Scalar | Float[Array, "layers"],
    steps: Steps,
) -> Float[Array, "times layers"]:
    """Bulk singular values of a deep linear classifier, ``rho_l(t) = eps_l (1 - eta lambda_l)^t``.

    Args:
        scales: eps_l of the square layers.
        learning_rate: eta, for the loss ``1/2 ||.||_F^2``.
        weight_decay: lambda, or one for each square layer.
        steps: step numbers.

    Example:
        >>> classifier_rho(jnp.ones(1), 0.5, 1.0, jnp.array([0, 2])).tolist()
        [[1.0], [0.25]]
    """
    learning_rate = checks.nonnegative("learning_rate", learning_rate)
    weight_decay = decays(weight_decay)
    steps = checks.steps(steps)
    factor = 1 - learning_rate * jnp.broadcast_to(weight_decay, scales.shape)
    return scales[None, :] * factor[None, :] ** jnp.asarray(steps, scales.dtype)[:, None]


@checked
def collapse_metrics(
    weights: Annotated[Weights, "k d"],
    inputs: Float[Array, "d n"],
    labels: Int[Array, "n"],
    classes: int,
) -> Float[Array, "layers"]:
    """Within-class over between-class variance of the features of each layer, input first.

    ``D_l = tr Sigma_W / tr Sigma_B`` of ``W_l ... W_1 X``, global mean removed; D_0 is the input's.

    Args:
        weights: layers ``(W_1, ..., W_L)``.
        inputs: X, one example a column, classes of equal size.
        labels: class of each example.
        classes: K.

    Example:
        >>> X = jnp.array([[1.0, 3.0, -1.0, -3.0]])
        >>> collapse_metrics((jnp.eye(1),), X, jnp.array([0, 0, 1, 1]), 2).tolist()
        [0.25]
    """
    checks.integer("classes", classes, 2)
    labels = checks.integer("labels", labels, 0, classes - 1, ("n",))
    checks.allocation({"classes": classes}, (len(labels), classes), dtype=inputs.dtype)
    membership = (labels[:, None] == jnp.arange(classes)[None, :]).astype(inputs.dtype)

    def ratio(features: Array) -> Array:
        means = features @ membership / jnp.sum(membership, axis=0, keepdims=True)
        within = jnp.sum((features - means @ membership.T) ** 2) / features.shape[1]
        between = jnp.sum((means - jnp.mean(means, axis=1, keepdims=True)) ** 2) / classes
        return within / between

    features, ratios = inputs, []
    for W in weights:
        ratios.append(ratio(features))
        features = W @ features
    return jnp.stack(ratios)


@checked
def collapse_ratio(scale: Number, per_class: int, depth: int) -> Number:
    """Collapse per layer at convergence without decay, ``D_{l+1} / D_l ~ eps^2 / n^{1/L}``.

    An approximation, approached from below: the measured ratio is smaller.

    Args:
        scale: eps, the same for all layers.
        per_class: n, examples in each class.
        depth: L.

    Example:
        >>> round(collapse_ratio(0.5, 10, 6), 3)
        0.17
    """
    scale = checks.nonnegative("scale", scale)
    checks.integer("per_class", per_class)
    checks.integer("depth", depth)
    return scale**2 / per_class ** (1 / depth)


@checked
def collapse_lower_bound(ratio: Number, dim: int, classes: int, depth: int) -> Number:
    """How far below :func:`collapse_ratio` the collapse per layer can be at convergence.

    Within-class variance lives in d - K directions. The bulk, d - 2K of them, shrinks by exactly
    eps at each layer, the others by less than that; the signal of layer l has
    ``n^{1/L} <= s_l^2 <= n^{1/L} (1 - p)^{-1/L}`` with ``p = eps^2 / n^{1/L}``. Hence

        ((d-2K)/(d-K))^{1/(L-1)} (1-p)^{1/L}  <=  (D_{L-1}/D_0)^{1/(L-1)} / p  <=  1.

    Args:
        ratio: p, from :func:`collapse_ratio`.
        dim: d, also the number of examples.
        classes: K.
        depth: L.

    Example:
        >>> round(collapse_lower_bound(0.17, 50, 5, 6), 3)
        0.947
    """
    ratio = checks.nonnegative("ratio", ratio)
    checks.integer("classes", classes)
    checks.integer("dim", dim, 2 * classes)
    checks.integer("depth", depth, 2)
    bulk = (dim - 2 * classes) / (dim - classes)
    return bulk ** (1 / (depth - 1)) * (1 - ratio) ** (1 / depth)
