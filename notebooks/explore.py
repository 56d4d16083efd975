# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Explore: theory drawn over simulation
#
# A function of the knobs, one sweep over all of them, one figure. Everything is public API.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lrdyn
from lrdyn.cli import setup
from lrdyn.figures import plotting

setup()  # float64; before the first computation
plt.style.use(plotting.STYLE)

# %% [markdown]
# ## Turn a knob
#
# Training a deep factorisation, and what Theorem 2 says of it from the start alone.

# %%
dim, eta, steps = 20, 0.1, lrdyn.recorded_steps(200, 51)


def compare(depth=3, rank=2, init_scale=0.4):
    """Losses of a run and of its prediction, at the recorded steps."""
    target_key, weights_key = jax.random.split(jax.random.key(0))
    target = lrdyn.low_rank_target(target_key, (dim, dim), lrdyn.spaced_singular_values(rank))
    scales = jnp.full(depth, init_scale)
    weights = lrdyn.orthogonal_layers(weights_key, (dim,) * (depth + 1), scales)

    def loss_to(target):
        return lambda layers: lrdyn.factorization_loss(layers, target)

    rule, loss = lrdyn.gradient_descent(eta), loss_to(target)
    trained = lrdyn.simulate(loss, weights, rule, steps, record=loss).records
    small = lrdyn.reduced_target(lrdyn.frame(weights, target, rank), target, 2 * rank)
    record = loss_to(small)
    moving = lrdyn.reduced_dynamics(small, scales, eta, 0.0, steps, record=record).records
    bulk = jnp.prod(lrdyn.rho(scales, eta, 0.0, steps), axis=1)
    predicted = moving + (dim - 2 * rank) / 2 * bulk**2
    return {"trained": trained, "predicted": predicted, "step": jnp.asarray(steps)}


losses = jax.jit(compare, static_argnames=("depth", "rank"))(depth=3, rank=2, init_scale=0.2)
figure, ax = plt.subplots(figsize=(5, 2.4), layout="constrained")
plotting.plot_compared(
    ax, steps, losses["predicted"], losses["trained"], color=plotting.BLUE, every=4
)
_ = ax.set(yscale="log", xlabel="step t", title="loss: predicted, and trained (circles)")

# %% [markdown]
# ## Sweep depth, rank and init scale

# %%
points = lrdyn.product(depth=[2, 3], rank=[1, 3], init_scale=[0.2, 0.4, 0.8])
dims = dict.fromkeys(("trained", "predicted", "step"), ("step",))
results = lrdyn.sweep(compare, points, shapes=("depth", "rank"), dims=dims)
results

# %%
figure, axes = plt.subplots(2, 2, figsize=(7, 3.6), layout="constrained", sharex=True, sharey=True)
for row, rank in zip(axes, results["rank"].values, strict=True):
    for ax, depth in zip(row, results["depth"].values, strict=True):
        for color, scale in zip(plotting.BLUES, results["init_scale"].values, strict=True):
            run = results.sel(rank=rank, depth=depth, init_scale=scale)
            both = run["predicted"].values, run["trained"].values
            plotting.plot_compared(ax, run["step"].values, *both, color=color, every=5)
        ax.set(yscale="log", title=f"L = {depth}, r = {rank}")
for ax in axes[1]:
    ax.set_xlabel("step t")
gap = abs(results["trained"] - results["predicted"]).max().item()
print(f"largest difference of a loss: {gap:.0e}; dark to light: init scale 0.2, 0.4, 0.8")

# %% [markdown]
# ## One thing to change
#
# `lrdyn.product(depth=[2], rank=[1], init_scale=np.geomspace(0.01, 1, 100))` with `import numpy
# as np`: a hundred values of a traced axis cost one compilation ([sweeps](../docs/sweeps.md)).
