"""The classification version of Theorem 2.

On whitened data, X X^T = I, and with a last layer K x d, the loss
``1/2 ||W_L ... W_1 X - Y||_F^2`` is deep factorisation of ``Phi = Y X^T``. The moving part has 2K
dimensions, the last layer has no bulk, and hence the bulk of the others only decays:
``rho_l(t) = eps_l (1 - eta lambda_l)^t``.

Reference: Yaras et al., "The Law of Parsimony in Gradient Descent for Learning Deep Linear
Networks", as surveyed in arXiv 2503.19859.
"""

from typing import Annotated, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float

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
"""A Python number or a scalar array; what is returned is of the same kind."""


def _square_size(weights: Weights, depth: int | None = None) -> int:
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
    _square_size(weights)
    classes, dim = target.shape
    if dim <= 2 * classes:
        wanted = "more than twice as many columns as rows"
        checks.refuse("target", f"shape {target.shape}", wanted)
    size = linalg.frobenius(target)
    # On the scale of the product beside it: how independent columns are is judged relative to the
    # largest.
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
    dim = _square_size(weights, len(frame.left))
    checks.integer("size", size, 1, dim - 1)
    square = blocks(frame, weights[:-1], size)
    # V_L = U_{L-1}: the last layer has no frame of its own on its left side.
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
    dim = _square_size(weights, len(frame.left))
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
    # A step so large that the factor is negative has its powers, too: exponents are whole numbers.
    factor = 1 - learning_rate * jnp.broadcast_to(weight_decay, scales.shape)
    return scales[None, :] * factor[None, :] ** jnp.asarray(steps, scales.dtype)[:, None]
