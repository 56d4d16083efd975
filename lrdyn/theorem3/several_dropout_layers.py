"""Dropout after every hidden layer: its penalty, lower bounds, and layers that attain them."""

from itertools import pairwise
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Weights
from lrdyn.theorem3.dropout_penalties import odds


@checked
def layers_penalty(
    weights: Annotated[Weights, "k d"],
    moment: Float[Array, "d d"],
    keep_prob: Scalar | Float[Array, "hidden"],
) -> Float[Array, ""]:
    """Penalty of dropout after every hidden layer, ``tr M_L - tr(W C W^T)``.

    ``M_1 = W_1 C W_1^T`` and ``M_{l+1} = W_{l+1} (M_l + ((1-theta)/theta) Diag M_l) W_{l+1}^T``.

    Args:
        weights: layers ``(W_1, ..., W_L)``, W their product.
        moment: ``C = X X^T``.
        keep_prob: theta, of every hidden layer or one for each.

    Example:
        >>> float(layers_penalty((jnp.eye(2),) * 3, jnp.eye(2), 0.5))
        6.0

    Reference:
        Mianjy and Arora, On dropout and nuclear norm regularization, 2019.
    """
    first, *rest = weights
    axes = (len(rest),) if np.ndim(keep_prob) else ()
    keep_prob = checks.fraction("keep_prob", keep_prob, axes)
    factors = [odds(theta) for theta in jnp.broadcast_to(keep_prob, (len(rest),))]
    plain = first @ moment @ first.T
    # What masks add to M_l is carried on its own: the difference of the traces would cancel.
    added = jnp.zeros_like(plain)
    for W, factor in zip(rest, factors, strict=True):
        spread = jnp.diag(jnp.diagonal(plain + added))
        added = W @ (added + factor * spread) @ W.T
        plain = W @ plain @ W.T
    return jnp.trace(added)


@checked
def layers_strength(keep_prob: Scalar, hidden: tuple[int, ...]) -> Float[Array, ""]:
    """Factor of ``||W X||_*^2`` below the penalty of several layers, ``prod (1 + lambda/d_i) - 1``.

    Args:
        keep_prob: theta; ``lambda = (1-theta)/theta``.
        hidden: widths d_i of the hidden layers.

    Example:
        >>> float(layers_strength(0.5, (2, 4)))
        0.875
    """
    keep_prob = checks.fraction("keep_prob", keep_prob)
    checks.sizes("hidden", hidden, 1)
    factor = odds(keep_prob)
    # The product less 1, without the cancellation near theta = 1.
    return jnp.expm1(jnp.sum(jnp.log1p(factor / jnp.asarray(hidden, factor.dtype))))


@checked
def layers_schatten_bound(
    values: Float[Array, "k"], keep_prob: Scalar, hidden: tuple[int, int]
) -> Float[Array, ""]:
    """Lower bound of the penalty of three layers that holds at any rank, by two Schatten norms.

    ``(lambda/d_1 + lambda/d_2) ||Z||_*^2 + lambda^2/(d_1 d_2) ||Z||_{2/3}^2`` with ``Z = W X`` and
    ``||Z||_{2/3}^2 = (sum_i sigma_i^{2/3})^3``, which is ``||Z||_*^2`` at rank one and more beyond:
    there :func:`layers_strength` times ``||Z||_*^2`` is not attained. The terms are what masks of
    one layer add and, ``Z = U W V``, what those of both do: ``||D_U W D_V||_F^2`` with D the norms
    of the columns of U and of the rows of V, at least this by Hoelder's inequality. For equal
    singular values it is attained.

    Args:
        values: singular values of Z.
        keep_prob: theta; ``lambda = (1-theta)/theta``.
        hidden: widths d_1 and d_2.

    Example:
        >>> float(layers_schatten_bound(jnp.ones(2), 0.5, (2, 2)))  # of two identity layers
        6.0
    """
    values = checks.spectrum("values", values)
    keep_prob = checks.fraction("keep_prob", keep_prob)
    checks.sizes("hidden", hidden, 2, 2)
    factor = odds(keep_prob)
    first, second = (factor / float(width) for width in hidden)
    quasi = jnp.sum(jnp.cbrt(values) ** 2) ** 3
    return (first + second) * jnp.sum(values) ** 2 + first * second * quasi


@checked
def equalized_layers(
    column: Float[Array, "k"], row: Float[Array, "d"], hidden: tuple[int, ...]
) -> Weights:
    """Layers of ``u v^T`` that spread it evenly over all hidden units; inner entries are equal.

    Their penalty is the least one, ``nu ||u||^2 ||X^T v||^2``, see :func:`layers_strength`.

    Args:
        column: u.
        row: v.
        hidden: widths of the hidden layers.

    Example:
        >>> W_1, W_2 = equalized_layers(jnp.ones(1), jnp.ones(1), (4,))
        >>> W_1.ravel().tolist(), W_2.ravel().tolist()
        ([0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5])
    """
    checks.sizes("hidden", hidden, 1)
    shapes = pairwise((len(row), *hidden, len(column)))
    checks.allocation({"hidden": hidden}, *shapes, dtype=column.dtype)
    units = [jnp.full(width, 1 / np.sqrt(width), column.dtype) for width in hidden]
    return tuple(
        after[:, None] * before[None, :]
        for before, after in zip([row, *units], [*units, column], strict=True)
    )
