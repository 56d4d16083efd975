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
# # Theorem 3: masks are penalties
#
# Averaged over its masks, training with dropout is training without them and with a penalty. For
# a linear network with $h$ hidden units kept with probability $\theta$ the expected loss is $\|Y
# - UV\|_F^2 + \frac{1-\theta}{\theta} \sum_j \|u_j\|^2 \|v_j\|^2$, and at its minimum the penalty
# is a *squared* nuclear norm: $Z = UV$ minimises $\|Y - Z\|_F^2 + c\,\|Z\|_*^2$.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lrdyn
from lrdyn.cli import setup
from lrdyn.figures import plotting
from lrdyn.theorem3 import dropout_loss, dropout_strength, shrink_squared
from lrdyn.theorem3.statement import THEOREM3

setup()  # float64; before the first computation
plt.style.use(plotting.STYLE)

# %% [markdown]
# ## One small run

# %%
keep_prob, width, steps = 0.5, 8, lrdyn.recorded_steps(3000, 101)
keys = jax.random.split(jax.random.key(0), 3)
target = lrdyn.low_rank_target(keys[0], (8, 8), jnp.linspace(2.0, 0.2, 8))
factors = (
    0.3 * jax.random.normal(keys[1], (8, width)),
    0.3 * jax.random.normal(keys[2], (width, 8)),
)

run = lrdyn.simulate(
    lambda UV: dropout_loss(*UV, target, keep_prob),
    factors,
    lrdyn.gradient_descent(0.02),
    steps,
    record=lambda UV: lrdyn.singular_values(UV[0] @ UV[1]),
)
best = shrink_squared(target, dropout_strength(keep_prob, width), width)
print("trained:    ", run.records[-1].round(6))
print("closed form:", best.values.round(6))

# %%
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot(steps, run.records, color=plotting.BLUE, lw=1)
for value in best.values:
    ax.axhline(float(value), color=plotting.ORANGE, lw=0.8, ls=plotting.DASHED)
_ = ax.set(xlabel="step t", title="singular values of UV, dashed: closed form")

# %% [markdown]
# ## A verdict
#
# The scenario of any masks, without its controls; `lrdyn verify theorem3` has all of them.

# %%
scenario = dataclasses.replace(THEOREM3.scenarios[0], controls=())
alone = dataclasses.replace(THEOREM3, scenarios=(scenario,))
lrdyn.verify(alone, rows=6, cols=8, keep_prob=0.5, seeds=1)

# %% [markdown]
# ## What is seen
#
# All values lose the same amount, and the small ones vanish: dropout leaves a low rank.
#
# ## One thing to change
#
# `keep_prob = 0.9`: less is subtracted, and more values stay.
