"""Simulation: any loss over a PyTree, any optax optimiser, a recorder at chosen steps."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

State = TypeVar("State")
Record = TypeVar("Record")


class Trajectory(NamedTuple):
    """What :func:`simulate` returns."""

    params: PyTree
    """Parameters after the last recorded step."""
    records: PyTree
    """What the recorder returned, stacked along a leading axis ``times``."""
    diverged_at: Int[Array, ""]
    """First step whose loss was not finite, or so large that the first loss is lost in its
    rounding (``loss > loss(0) / machine epsilon``); -1 if there is none."""


def recorded_steps(steps: int, at_most: int = 50) -> np.ndarray:
    """Choose evenly spread steps at which to record, first (0) and last included.

    Args:
        steps: total number of steps.
        at_most: largest number of recorded steps.

    Returns:
        Increasing integers from 0 to ``steps``.

    Raises:
        ValueError: ``steps`` is smaller than 1 or ``at_most`` smaller than 2.

    Example:
        >>> recorded_steps(100, at_most=5).tolist()
        [0, 25, 50, 75, 100]
        >>> recorded_steps(2).tolist()
        [0, 1, 2]
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, wanted at least 1")
    if at_most < 2:
        raise ValueError(f"at_most: got {at_most}, wanted at least 2")
    return np.unique(np.rint(np.linspace(0, steps, min(at_most, steps + 1))).astype(np.int32))


def iterate(
    step: Callable[[Int[Array, ""], State], State],
    state: State,
    steps: Int[Array, "times"] | np.ndarray,
    record: Callable[[State], Record],
) -> tuple[State, Record]:
    """Iterate a map and look at its state at the given step numbers only.

    Args:
        step: ``step(t, state)`` is the state at t + 1.
        state: state at t = 0.
        steps: increasing step numbers at which ``record`` is called; may be traced, so that
            one compilation serves any number of steps.
        record: maps a state to what is kept of it.

    Returns:
        The state at ``steps[-1]`` and the records, stacked along a leading axis.

    Example:
        >>> import jax.numpy as jnp
        >>> steps = jnp.array([0, 3, 4])
        >>> iterate(lambda t, x: 2 * x, jnp.asarray(1), steps, lambda x: x)[1].tolist()
        [1, 8, 16]
    """
    steps = jnp.asarray(steps, jnp.int32)

    def interval(state, start_stop):
        start, stop = start_stop
        state = jax.lax.fori_loop(start, stop, step, state)
        return state, record(state)

    starts = jnp.concatenate([jnp.zeros(1, steps.dtype), steps[:-1]])
    return jax.lax.scan(interval, state, (starts, steps))


def gradient_descent(
    learning_rate: float | Float[Array, ""],
    weight_decay: float | Float[Array, "depth"] | Float[Array, ""] = 0.0,
) -> optax.GradientTransformation:
    """Gradient descent with decay, ``W_l <- (1 - eta lambda_l) W_l - eta grad_l``.

    Args:
        learning_rate: eta; may be traced.
        weight_decay: lambda, one for all or one for each layer of a tuple of layers.

    Returns:
        An optax gradient transformation.

    Example:
        >>> import jax.numpy as jnp
        >>> rule = gradient_descent(0.5, jnp.array([0.0, 1.0]))
        >>> params = (jnp.ones(1), jnp.ones(1))
        >>> updates, _ = rule.update((jnp.zeros(1), jnp.zeros(1)), rule.init(params), params)
        >>> [u.tolist() for u in updates]
        [[-0.0], [-0.5]]
    """
    decays = tuple(jnp.asarray(weight_decay)) if jnp.ndim(weight_decay) else weight_decay

    def decay(updates, params):
        # `decays` is a prefix of the tree of parameters: one number for a whole layer.
        return jax.tree.map(
            lambda lam, g, w: jax.tree.map(lambda g, w: g + lam * w, g, w), decays, updates, params
        )

    return optax.chain(optax.stateless(decay), optax.scale_by_learning_rate(learning_rate))


def simulate(
    loss: Callable[[PyTree], Float[Array, ""]],
    params: PyTree,
    optimizer: optax.GradientTransformation,
    steps: Int[Array, "times"] | np.ndarray,
    *,
    record: Callable[[PyTree], PyTree] = lambda params: params,
) -> Trajectory:
    """Train ``params`` on ``loss`` and record at the given steps.

    Pure: jit it, vmap it, differentiate through nothing. Recording costs nothing between the
    recorded steps, so an SVD belongs into ``record``.

    Args:
        loss: maps the parameters to a scalar.
        params: any PyTree of arrays.
        optimizer: any optax gradient transformation.
        steps: increasing step numbers at which ``record`` is called (time in steps); include 0
            for the start. The run ends at the last of them.
        record: maps parameters to a PyTree of arrays.

    Returns:
        A :class:`Trajectory`. Divergence is reported there and raises nothing, so that it
        cannot stop the neighbours in a batch.

    Example:
        >>> import jax.numpy as jnp
        >>> rule, steps = gradient_descent(0.5), jnp.array([0, 1, 3])
        >>> run = simulate(lambda w: 0.5 * w**2, jnp.array(1.0), rule, steps)
        >>> run.records.tolist(), int(run.diverged_at)
        ([1.0, 0.5, 0.125], -1)
    """

    def step(t, state):
        params, optimizer_state, diverged_at = state
        value, gradient = jax.value_and_grad(loss)(params)
        lost = ~(jnp.abs(value) < limit)  # also true for NaN
        diverged_at = jnp.where(lost & (diverged_at < 0), t, diverged_at)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, diverged_at

    start = loss(params)
    # Past this the digits of the first loss are below the last one of the present loss.
    # A loss of 0 has no digits to lose: then only infinities and NaN count.
    limit = jnp.where(start == 0, jnp.inf, jnp.abs(start)) / jnp.finfo(start.dtype).eps
    state = (params, optimizer.init(params), jnp.asarray(-1, jnp.int32))
    (params, _, diverged_at), records = iterate(step, state, steps, lambda state: record(state[0]))
    lost = ~(jnp.abs(loss(params)) < limit)
    diverged_at = jnp.where(
        lost & (diverged_at < 0), jnp.asarray(steps, jnp.int32)[-1], diverged_at
    )
    return Trajectory(params, records, diverged_at)
