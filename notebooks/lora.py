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
# # LoRA: what one step does
#
# $W + s B A$ with $B = 0$ at the start: after one step of gradient descent on both factors the
# change of the weight is $-\eta s^2 G A^\top A$, the gradient projected by $A$, of rank $r$;
# nothing else of $G$ is seen.

# %%
import dataclasses

import jax
import jax.numpy as jnp

import lrdyn
from lrdyn import adapters
from lrdyn.cli import setup
from lrdyn.lora.statement import LORA as THEOREM

setup()  # float64; before the first computation

# %% [markdown]
# ## One step, by hand and by `lrdyn.adapters`

# %%
keys = jax.random.split(jax.random.key(0), 3)
model = {"W": jax.random.normal(keys[0], (6, 8))}
X, Y = jax.random.normal(keys[1], (8, 20)), jax.random.normal(keys[2], (6, 20))


def loss(model):
    return jnp.sum((model["W"] @ X - Y) ** 2) / 40


eta, scale, rank = 0.1, 2.0, 2
adapter = adapters.init(keys[0], model, select="W", rank=rank, scale=scale, method=adapters.LORA)
trained, frozen = adapters.split(adapter)
slope = jax.grad(lambda t: loss(adapters.apply(model, adapters.joined(t, frozen))))(trained)
stepped = jax.tree.map(lambda value, move: value - eta * move, trained, slope)
after = adapters.merge(model, adapters.joined(stepped, frozen))

change, G = after["W"] - model["W"], jax.grad(loss)(model)["W"]
A = next(leaf for leaf in jax.tree.leaves(trained) if leaf.shape == (rank, 8))
expected = -eta * scale**2 * G @ A.T @ A
print("rank of the change:", int(jnp.linalg.matrix_rank(change)))
print(f"largest difference from the formula: {jnp.max(jnp.abs(change - expected)):.0e}")

# %% [markdown]
# ## A verdict
#
# The scenario of one step, without its controls; `lrdyn verify lora` has all of them.

# %%
scenario = dataclasses.replace(THEOREM.scenarios[0], controls=())
alone = dataclasses.replace(THEOREM, scenarios=(scenario,))
lrdyn.verify(alone, adapter_scale=2.0, rate_ratio=4.0, init_scale=1.0, seeds=1)

# %% [markdown]
# ## One thing to change
#
# `method=adapters.PISSA` starts from the leading singular vectors of W in place of random ones:
# both factors move at once, and the formula above no longer holds.
