"""How long does gradient descent wait at the saddle? An experiment without a claim."""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

import lrdyn as lr

FLAGS = (
    lr.Flag("dim", (10,), lr.at_least(2), int, "d", "width of the layers", (30,), shapes=True),
    lr.Flag("depth", (2, 3), lr.at_least(2), int, "L", "number of layers", (2, 3, 5), shapes=True),
    lr.Flag("init_scale", (0.03, 0.1, 0.3), lr.POSITIVE, float, "eps", "init scale"),
    lr.Flag("steps", (2000,), lr.at_least(1), int, "t", "steps of gradient descent", swept=False),
)


class Start(NamedTuple):
    """Everything that decides one run."""

    weights: tuple[jax.Array, ...]
    target: jax.Array
    steps: int


class Training(NamedTuple):
    """What a run leaves."""

    loss: Float[Array, "step"] = lr.ABSENT
    """1/2 ||W_L ... W_1 - Phi||_F^2."""
    effective_rank: Float[Array, "step"] = lr.ABSENT
    """Exponential of the entropy of the singular values of the product."""
    step: Int[Array, "step"] = lr.ABSENT
    """Recorded steps."""


def make_case(key: jax.Array, *, dim: int, depth: int, init_scale: Any, steps: int) -> Start:
    """Draw layers and a target of rank 2."""
    weights_key, target_key = jax.random.split(key)
    scales = jnp.full(depth, init_scale)
    return Start(
        weights=lr.orthogonal_layers(weights_key, (dim,) * (depth + 1), scales),
        target=lr.low_rank_target(target_key, (dim, dim), jnp.array([1.0, 0.5])),
        steps=steps,
    )


def train(case: Start) -> Training:
    """Loss and effective rank of the product along gradient descent."""
    steps = lr.recorded_steps(case.steps)

    def loss(weights: tuple[jax.Array, ...]) -> jax.Array:
        return lr.factorization_loss(weights, case.target)

    def look(weights: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        return loss(weights), lr.effective_rank(lr.singular_values(lr.end_to_end(weights)))

    run = lr.simulate(loss, case.weights, lr.gradient_descent(0.1), np.asarray(steps), record=look)
    losses, ranks = run.records
    return Training(loss=losses, effective_rank=ranks, step=jnp.asarray(steps))


def plot(groups: Mapping[str, Any]) -> Any:
    """Draw the loss of the first seed: a curve for each depth and scale."""
    from lrdyn.figures import plotting

    results = groups["/"].isel(seed=0, dim=0)
    figure, (ax,) = plotting.panels(["loss"])
    for depth in results["depth"].values:
        for scale in results["init_scale"].values:
            run = lr.of_run(results.sel(depth=depth, init_scale=scale), Training)
            steps, losses = run(lambda run: run.step), run(lambda run: run.loss)
            ax.plot(steps, losses, label=f"L = {depth}, eps = {scale:g}")
    ax.set(yscale="log", xlabel="step")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


TRAINING = lr.Scenario("training", make_case, measure=train, measured=Training)

SADDLE = lr.Experiment(
    "saddle",
    "how long gradient descent waits at the saddle at zero",
    FLAGS,
    (TRAINING,),
    plots={"loss": plot},
)

if __name__ == "__main__":
    sys.exit(lr.main(SADDLE))
