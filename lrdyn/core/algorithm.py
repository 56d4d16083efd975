"""A way to descend, step by step: what every loop over steps has in common.

:func:`lrdyn.simulate` repeats one inside a traced program, :func:`lrdyn.training.train` in pieces
that can be interrupted. An optimiser of optax is one (:func:`of_optimizer`), Algorithm 1 another
(:func:`lrdyn.adapters.algorithm_1`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, PyTree

from lrdyn.core.checks import checked

Cost = Callable[[PyTree], tuple[Float[Array, ""], Any]]
"""Maps the trained arrays to the loss and to whatever else comes of computing it."""


class Algorithm(NamedTuple):
    """What a run holds between two steps, as a PyTree, and how a step changes it."""

    begin: Callable[[PyTree], PyTree]
    """``begin(weights)``: what a new run holds."""
    step: Callable[[Cost, PyTree], tuple[Float[Array, ""], Any, PyTree]]
    """``step(cost, held)``: loss and the rest of it before the step, and what is held after it."""
    weights: Callable[[PyTree], PyTree]
    """``weights(held)``."""
    refresh: Callable[[Any, Cost, PyTree], PyTree] | None = None
    """``refresh(key, cost, held)`` comes before the first step and every ``period`` steps."""
    period: int = 0
    """Steps between two refreshes; 0 to refresh at the start alone."""


@checked
def of_optimizer(optimizer: optax.GradientTransformation) -> Algorithm:
    """Descend along what an optimiser makes of the gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> rule = of_optimizer(optax.sgd(0.5))
        >>> value, other, held = rule.step(lambda w: (w**2 / 2, None), rule.begin(jnp.ones(())))
        >>> float(value), float(rule.weights(held))
        (0.5, 0.5)
    """

    def step(cost: Cost, held: PyTree) -> tuple[Float[Array, ""], Any, PyTree]:
        weights, inner = held
        (value, other), gradient = jax.value_and_grad(cost, has_aux=True)(weights)
        updates, inner = optimizer.update(gradient, inner, weights)
        return value, other, (optax.apply_updates(weights, updates), inner)

    return Algorithm(lambda weights: (weights, optimizer.init(weights)), step, lambda held: held[0])
