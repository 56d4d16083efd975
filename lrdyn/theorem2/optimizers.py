"""Theorem 2 beyond gradient descent: optimisers that do not see the basis, dense and reduced.

An optimiser maps past layers and gradients, of all layers, to the next layers. It is *equivariant*
if every W_l and G_l in the place of which stands ``V_l^T W_l V_{l-1}`` and ``V_l^T G_l V_{l-1}``,
with orthogonal V_0, ..., V_L, gives the next layers turned alike. Then Theorem 2 holds for it: in
the frame its run starts at ``eps_l I`` with the target ``blkdiag(Phi~, 0)``, both of which commute
with ``blkdiag(I_2r, R)``, R orthogonal, and so does every later layer.

So a run of layers of 2r and one dimension more is the whole run, if that dimension counts ``m = d -
2r`` times wherever a norm or an inner product is taken. Products of matrices need no such factor.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from lrdyn.core.descent import gradient_descent
from lrdyn.core.factorization import Scalar

Stacked = Float[Array, "depth s s"]
"""Layers, gradients or updates of one size, behind one another."""

MOMENTUM = 0.9
"""mu of momentum and of Nesterov's momentum."""
CLIP = 0.1
"""Norm of all gradients together to which longer ones are clipped: small beside those of a target
of norm 1, so that a run is clipped first and later is not."""
NORM_EPS = 1e-6
"""What optax adds to the norm by which ``normalize_by_update_norm`` divides."""
MUON_MOMENTUM, MUON_EPS = 0.95, 1e-8
"""beta of optax's Muon, and what it adds to a norm."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""c_0, c_1, c_2 of a step ``X <- c_0 X + c_1 X X^T X + c_2 (X X^T)^2 X`` of optax's Muon, which
takes five: the slope at 0 of all five is c_0^5 = 485."""


class ReducedState(NamedTuple):
    """What theory's optimiser holds between two steps."""

    step: Int[Array, ""]
    """Steps so far."""
    momentum: Stacked
    """Weighted sum or mean of the gradients, whichever the optimiser has."""


Direction = Callable[[Stacked, ReducedState, Float[Array, "s s"]], tuple[Stacked, ReducedState]]
"""``direction(gradients, state, multiplicity)``: what is subtracted eta times, and the state."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An equivariant optimiser: optax's own for dense layers, and formulas for reduced ones."""

    name: str
    full: Callable[[Scalar, Float[Array, "depth"]], optax.GradientTransformation]
    """``full(learning_rate, weight_decay)``, of dense layers."""
    direction: Direction | None = None
    """Theory's formula; None where there is none, as of an optimiser of somebody else."""


def multiplicities(moving: int, spare: int, bulk: int) -> Float[Array, "s s"]:
    """How often each entry of a reduced layer counts in a norm of the full one.

    An entry of the bulk block stands for m / spare of the full layer, any other for itself. (The
    off-diagonal blocks are 0: how often they count plays no part.)

    Args:
        moving: 2r.
        spare: dimensions of the bulk that the reduced layers keep.
        bulk: m = d - 2r, those of the full layers.

    Example:
        >>> multiplicities(1, 1, 7).tolist()
        [[1.0, 1.0], [1.0, 7.0]]
    """
    size = moving + spare
    return jnp.ones((size, size)).at[moving:, moving:].set(bulk / spare)


def squared_norms(layers: Stacked, multiplicity: Float[Array, "s s"]) -> Float[Array, "depth"]:
    """``||W_l||_F^2`` of the full layers, from reduced ones: ``||Wt_l||_F^2 + m rho_l^2``.

    Example:
        >>> squared_norms(jnp.eye(2)[None], multiplicities(1, 1, 7)).tolist()
        [8.0]
    """
    return jnp.sum(multiplicity[None] * layers**2, axis=(1, 2))


def reduced_optimizer(
    optimizer: Optimizer,
    learning_rate: Scalar,
    weight_decay: Float[Array, "depth"],
    multiplicity: Float[Array, "s s"],
) -> optax.GradientTransformation:
    """Theory's side of an optimiser: ``W_l <- W_l - eta (D_l + lambda_l W_l)``, D its direction.

    Args:
        optimizer: one that has a formula.
        learning_rate: eta.
        weight_decay: lambda_l.
        multiplicity: see :func:`multiplicities`.

    Example:
        >>> rule = reduced_optimizer(OPTIMIZERS["clipped"], 1.0, jnp.zeros(1), jnp.ones((1, 1)))
        >>> layers = (jnp.ones((1, 1)),)
        >>> rule.update((jnp.full((1, 1), 5.0),), rule.init(layers), layers)[0][0].round(6).tolist()
        [[-0.1]]
    """
    direction = optimizer.direction
    assert direction is not None, f"{optimizer.name} has no formula"

    def begin(params: Any) -> ReducedState:
        return ReducedState(jnp.zeros((), jnp.int32), jnp.zeros_like(jnp.stack(params)))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        chosen, state = direction(jnp.stack(updates), state, multiplicity)
        decayed = chosen + weight_decay[:, None, None] * jnp.stack(params)
        return tuple(-learning_rate * decayed), state._replace(step=state.step + 1)

    return optax.GradientTransformation(begin, update)


# Theory's formulas --------------------------------------------------------------------------------


def _momentum(
    gradients: Stacked, state: ReducedState, multiplicity: Array
) -> tuple[Stacked, ReducedState]:
    total = MOMENTUM * state.momentum + gradients
    return total, state._replace(momentum=total)


def _nesterov(
    gradients: Stacked, state: ReducedState, multiplicity: Array
) -> tuple[Stacked, ReducedState]:
    total = MOMENTUM * state.momentum + gradients
    return MOMENTUM * total + gradients, state._replace(momentum=total)


def _clipped(
    gradients: Stacked, state: ReducedState, multiplicity: Array
) -> tuple[Stacked, ReducedState]:
    # One norm of all layers: it couples them, which the theorem allows.
    norm = jnp.sqrt(jnp.sum(squared_norms(gradients, multiplicity)))
    return gradients * jnp.minimum(1.0, CLIP / norm), state


def _normalized(
    gradients: Stacked, state: ReducedState, multiplicity: Array
) -> tuple[Stacked, ReducedState]:
    norm = jnp.sqrt(jnp.sum(squared_norms(gradients, multiplicity)))
    return gradients / (norm + NORM_EPS), state


def _muon(
    gradients: Stacked, state: ReducedState, multiplicity: Array
) -> tuple[Stacked, ReducedState]:
    """Muon: momentum, Nesterov's look ahead, bias corrections, and five steps of Newton-Schulz."""
    beta, t = MUON_MOMENTUM, state.step + 1
    mean = beta * state.momentum + (1 - beta) * gradients
    ahead = beta * mean / (1 - beta ** (t + 1)) + (1 - beta) * gradients / (1 - beta**t)
    size = jnp.sqrt(squared_norms(ahead, multiplicity))
    X = ahead / (size + MUON_EPS)[:, None, None]
    linear, cubic, quintic = NEWTON_SCHULZ
    for _ in range(5):
        square = X @ jnp.swapaxes(X, 1, 2)
        X = linear * X + cubic * square @ X + quintic * square @ (square @ X)
    # A square layer has the shape factor sqrt(max(1, d / d)) = 1.
    return X, state._replace(momentum=mean)


# optax's own --------------------------------------------------------------------------------------


def _of_direction(
    *direction: optax.GradientTransformation,
) -> Callable[[Scalar, Float[Array, "depth"]], optax.GradientTransformation]:
    """Make an optimiser of dense layers from transformations of optax, with decay of each layer."""

    def full(
        learning_rate: Scalar, weight_decay: Float[Array, "depth"]
    ) -> optax.GradientTransformation:
        depth = len(weight_decay)
        decay = (
            optax.add_decayed_weights(
                weight_decay[place], mask=tuple(other == place for other in range(depth))
            )
            for place in range(depth)
        )
        return optax.chain(*direction, *decay, optax.scale_by_learning_rate(learning_rate))

    return full


def _muon_of_optax(
    learning_rate: Scalar, weight_decay: Float[Array, "depth"]
) -> optax.GradientTransformation:
    depth = len(weight_decay)
    # One for each layer: its decay is a number.
    each: dict[Hashable, optax.GradientTransformation] = {
        place: optax.contrib.muon(learning_rate, weight_decay=weight_decay[place])
        for place in range(depth)
    }
    return optax.partition(each, tuple(range(depth)))


DESCENT = Optimizer("gradient_descent", gradient_descent)
"""Gradient descent, whose bulk has a scalar recursion of its own (:func:`lrdyn.theorem2.rho`)."""

OPTIMIZERS = {
    optimizer.name: optimizer
    for optimizer in (
        DESCENT,
        Optimizer("momentum", _of_direction(optax.trace(MOMENTUM)), _momentum),
        Optimizer("nesterov", _of_direction(optax.trace(MOMENTUM, nesterov=True)), _nesterov),
        Optimizer("clipped", _of_direction(optax.clip_by_global_norm(CLIP)), _clipped),
        Optimizer("normalized", _of_direction(optax.normalize_by_update_norm()), _normalized),
        Optimizer("muon", _muon_of_optax, _muon),
    )
}
"""Word of ``--optimizer`` -> optimiser: gradient descent; momentum and Nesterov's momentum of 0.9;
gradients clipped to a norm of 0.1 over all layers, or divided by that norm; Muon as optax has it by
default. All decay the weights by eta lambda_l W_l beside their own step."""
