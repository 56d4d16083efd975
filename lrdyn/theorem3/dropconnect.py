"""DropConnect: dropout of weights instead of hidden units, and the penalty that it adds."""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Weights
from lrdyn.theorem3.dropout_penalties import dropout_penalty, odds


@checked
def dropconnect_penalty(
    weights: Annotated[Weights, "h d", "m h"],
    inputs: Float[Array, "d n"],
    keep_prob: Scalar,
    *,
    layer: int,
) -> Float[Array, ""]:
    """Penalty that masks on the weights of one of two layers add (DropConnect).

    On ``W_2`` it is the penalty of dropout; on ``W_1`` it is ``((1-theta)/theta) sum_ik
    ||w_{2,i}||^2 W_{1,ik}^2 ||x_k||^2`` with ``x_k`` the k-th row of X.

    Args:
        weights: ``(W_1, W_2)``.
        inputs: X, one example a column.
        keep_prob: theta, of each weight of that layer.
        layer: 1 or 2.

    Raises:
        ValueError: there are not two layers, or ``layer`` is not one of them.

    Example:
        >>> float(dropconnect_penalty((jnp.ones((1, 2)), jnp.eye(1)), jnp.eye(2), 0.5, layer=1))
        2.0
    """
    keep_prob = checks.fraction("keep_prob", keep_prob)
    checks.integer("layer", layer, 1, 2)
    first, second = weights
    if layer == 2:
        return dropout_penalty(second, first @ inputs, keep_prob)
    columns, rows = jnp.sum(second**2, axis=0), jnp.sum(inputs**2, axis=1)
    return odds(keep_prob) * (columns @ first**2 @ rows)
