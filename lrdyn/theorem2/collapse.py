"""Collapse between the layers of a deep linear classifier that has learned.

D_l is the scatter within classes over that between them, behind layer l. At convergence without
decay it falls from layer to layer by about ``p = eps^2 / n^{1/L}``, n examples a class.

Reference: Yaras et al., "The Law of Parsimony in Gradient Descent for Learning Deep Linear
Networks", as surveyed in arXiv 2503.19859.
"""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Weights
from lrdyn.theorem2.classifier import Number


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
        # Both are means: over the examples, and over classes of equal size.
        within = jnp.sum((features - means @ membership.T) ** 2) / features.shape[1]
        between = jnp.sum((means - jnp.mean(means, axis=1, keepdims=True)) ** 2) / classes
        return within / between

    # D_0 to D_{L-1}: behind the last layer, which has learned the labels, the scatter within
    # classes is the error that is left.
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
    """Lower bound of the collapse per layer at convergence, over :func:`collapse_ratio`.

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
