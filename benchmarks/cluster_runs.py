"""What the benchmark of clusters sweeps; workers import the text of this file alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn

DIM, DEPTH, RANK = 20, 3, 2
STEPS = np.linspace(0, 200, 11, dtype=int)


def full(seed, init_scale):
    """A run of Theorem 2: gradient descent on d x d matrices."""
    for_weights, for_target = jax.random.split(jax.random.key(seed))
    scales = jnp.full(DEPTH, init_scale)
    weights = lrdyn.orthogonal_layers(for_weights, (DIM,) * (DEPTH + 1), scales)
    target = lrdyn.low_rank_target(for_target, (DIM, DIM), lrdyn.spaced_singular_values(RANK))
    loss = partial(lrdyn.factorization_loss, target=target)
    rule = lrdyn.gradient_descent(0.1)
    return {"loss": lrdyn.simulate(loss, weights, rule, STEPS, record=loss).records}


def reduced(seed, init_scale):
    """The same in coordinates of the frame: 2r x 2r matrices."""
    size = 2 * RANK
    target = (
        jnp.zeros((size, size))
        .at[:RANK, :RANK]
        .set(jax.random.normal(jax.random.key(seed), (RANK, RANK)))
    )
    scales = jnp.full(DEPTH, init_scale)

    def record(blocks):
        return lrdyn.factorization_loss(blocks, target)

    return {"loss": lrdyn.reduced_dynamics(target, scales, 0.1, 0.0, STEPS, record=record).records}


def nothing(x):
    """A part that costs nothing."""
    return {"y": x}
