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
# # Theorem 4: GaLore is ReLoRA with a frozen factor
#
# GaLore projects the gradient to a subspace $P$ and runs the optimiser there; ReLoRA trains $A$
# in $W + BA$. With $B = P$ frozen, and the same done with the optimiser's state at each refresh
# of $P$, both take one path. Each refresh adds at most $r$ to the rank of the sum of updates.

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
# ## One small run of both, with Adam

# %%
rows, columns, rank, period = 12, 16, 3, 20
keys = jax.random.split(jax.random.key(0), 3)
X = jax.random.normal(keys[0], (columns, 40))
Y = jnp.tanh(jax.random.normal(keys[1], (rows, columns)) @ X / 4)
W = 0.1 * jax.random.normal(keys[2], (rows, columns))
steps = np.arange(0, 81, 2)


def train(method):
    return lrdyn.low_rank_descent(
        method,
        lambda W: jnp.sum((jnp.tanh(W @ X) - Y) ** 2) / 80,
        W,
        optax.adam(0.01),
        period=period,
        steps=steps,
        state="keep",
        choose=lambda key, G: lrdyn.adapters.choose_projectors(G, rank, "left"),
    ).records


galore, relora = train(lrdyn.GALORE), train(lrdyn.RELORA_FROZEN)

# %%
gap = jnp.linalg.norm(galore - relora, axis=(1, 2)) / jnp.linalg.norm(relora, axis=(1, 2))
values = lrdyn.singular_values(galore[1:] - W[None])
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
left.plot(steps, np.maximum(gap, 1e-17), color=plotting.BLUE)
left.set(yscale="log", ylim=(1e-17, 1), xlabel="step t", title="difference of the two, relative")
right.plot(steps[1:], np.sum(values > 1e-10 * values[:, :1], axis=1), color=plotting.ORANGE)
_ = right.set(xlabel="step t", title="rank of W(t) - W(0)")

# %% [markdown]
# ## What is seen
#
# A difference of round-off, and a rank that grows by 3 each 20 steps.
#
# ## One thing to change
#
# `lrdyn.RELORA` in place of `RELORA_FROZEN` trains $B$ as well: another algorithm, and the two part
# within the first period. All claims and their controls: `lrdyn verify theorem4`.
