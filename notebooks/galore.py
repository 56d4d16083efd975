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
# # optax's GaLore is Algorithm 1 on the larger side
#
# `optax.contrib.galore` keeps the state of its optimiser at a refresh, and projects the larger side
# of the gradient; the published algorithm projects the smaller one. With the same projectors,
# from an SVD in float32 with the signs of LAPACK, both take one path. This is a statement about
# an implementation, and no theorem of the survey.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import lrdyn
from lrdyn.cli import setup
from lrdyn.figures import plotting

setup()  # float64; before the first computation
plt.style.use(plotting.STYLE)

# %% [markdown]
# ## One run of optax, and Algorithm 1 with three projectors

# %%
rows, columns, rank, period, rate = 12, 16, 3, 20, 0.01
keys = jax.random.split(jax.random.key(0), 3)
X = jax.random.normal(keys[0], (columns, 40))
Y = jnp.tanh(jax.random.normal(keys[1], (rows, columns)) @ X / 4)
W = 0.1 * jax.random.normal(keys[2], (rows, columns))
steps = np.arange(0, 81, 2)


def loss(W):
    return jnp.sum((jnp.tanh(W @ X) - Y) ** 2) / 80


def algorithm_1(choose):
    return lrdyn.low_rank_descent(
        lrdyn.GALORE,
        loss,
        W,
        optax.adam(rate),
        period=period,
        steps=steps,
        choose=lambda key, G: choose(G),
    ).records


rule = optax.contrib.galore(rate, rank=rank, update_proj_gap=period)
path = lrdyn.simulate(loss, W, rule, steps, record=lambda W: W).records
single = algorithm_1(lambda G: lrdyn.galore.single_precision_projector(G, rank, "larger"))
by_rule = algorithm_1(lambda G: lrdyn.adapters.choose_projectors(G, rank, "larger"))
smaller = algorithm_1(lambda G: lrdyn.adapters.choose_projectors(G, rank, "smaller"))

# %%
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
for name, other, color in (
    ("P as in optax", single, plotting.BLUE),
    ("float64, signs by rule", by_rule, plotting.GREEN),
    ("smaller side", smaller, plotting.ORANGE),
):
    gap = jnp.max(jnp.abs(other - path), axis=(1, 2)) / jnp.max(jnp.abs(path))
    ax.plot(steps, np.maximum(gap, 1e-17), color=color, label=name)
ax.set(yscale="log", ylim=(1e-17, 1), xlabel="step t", title="distance from optax, relative")
_ = ax.legend()

# %% [markdown]
# ## What is seen
#
# With the projectors of optax a difference of round-off. With those of `lrdyn`, in float64, one of
# float32 up to the first refresh, and after it another path: Adam's state is kept and meets columns
# of other signs. The smaller side is another algorithm from the first step on.
#
# ## One thing to change
#
# `optax.sgd(rate)` above, and `base_optimizer=optax.identity()` in optax's rule: without a state no
# sign matters. All claims and their controls: `lrdyn verify galore`.
