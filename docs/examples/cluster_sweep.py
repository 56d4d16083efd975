"""A sweep on the workers of a Dask scheduler: ``python cluster_sweep.py ADDRESS``."""

import sys
import tempfile
from functools import partial

import jax
import jax.numpy as jnp

import lrdyn as lr

STEPS = lr.recorded_steps(100, 11)


def run(seed, init_scale):
    """One run of deep factorisation; a worker takes it by its name from the text of this file."""
    weights_key, target_key = jax.random.split(jax.random.key(seed))
    weights = lr.orthogonal_layers(weights_key, (12,) * 4, jnp.full(3, init_scale))
    target = lr.low_rank_target(target_key, (12, 12), lr.spaced_singular_values(2))
    loss = partial(lr.factorization_loss, target=target)
    trained = lr.simulate(loss, weights, lr.gradient_descent(0.1), STEPS, record=loss)
    return {"loss": trained.records, "step": jnp.asarray(STEPS)}


if __name__ == "__main__":
    from distributed import Client

    lr.cli.setup()
    points = lr.product(seed=range(40), init_scale=[0.1, 0.3, 1.0])
    dims = {"loss": ("step",), "step": ("step",)}
    with Client(sys.argv[1]) as client, tempfile.TemporaryDirectory() as store:
        results = lr.sweep(run, points, dims=dims, store=store, client=client)
        print(dict(results.sizes))
