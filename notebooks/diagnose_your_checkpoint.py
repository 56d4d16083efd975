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
# # Is the update of my model of low rank, and which r do I need?
#
# `lrdyn.watch` looks on while a training runs, `lrdyn.diagnose` compares the weights before and
# after it. Here they look at a small perceptron; put paths of your own checkpoints in its place.

# %%
# %matplotlib inline
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lrdyn
from lrdyn.cli import setup

setup(dtype="float32")

# %% [markdown]
# ## A training

# %%
classes, width = 4, 96
keys = jax.random.split(jax.random.key(0), 6)
centres = 1.5 * jax.random.normal(keys[0], (classes, 20))
labels = jax.random.randint(keys[1], (400,), 0, classes)
inputs = centres[labels] + jax.random.normal(keys[2], (400, 20))
sizes = {"first": (width, 20), "middle": (width, width), "last": (classes, width)}
before = {
    f"{name}.weight": jax.random.normal(key, size) / size[1] ** 0.5
    for key, (name, size) in zip(keys[3:], sizes.items(), strict=True)
}


def loss(weights):
    hidden = jax.nn.relu(weights["first.weight"] @ inputs.T)
    hidden = jax.nn.relu(weights["middle.weight"] @ hidden)
    logits = (weights["last.weight"] @ hidden).T
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


@jax.jit
def step(weights):
    return jax.tree.map(lambda W, G: W - 0.2 * G, weights, jax.grad(loss)(weights))


recorder = lrdyn.watch(before, "*.weight", k=8)
after = before
for t in range(1, 201):
    after = step(after)
    if t % 20 == 0:
        recorder(after, t)
recorder

# %%
recorder.plot()

# %% [markdown]
# ## Before and after
#
# Arrays, paths of safetensors files, sharded checkpoints or `.npz`.

# %%
report = lrdyn.diagnose(before, after, k=8)
report

# %%
report.plot()

# %% [markdown]
# ## An update that is not of low rank

# %%
noise = np.random.default_rng(0).normal(size=(width, width)).astype(np.float32)
(pure_noise,) = lrdyn.diagnose({"W": np.zeros_like(noise)}, {"W": noise}).matrices
print("r for 90 % and 99 % of the squared norm:", pure_noise.rank_90, pure_noise.rank_99)

# %% [markdown]
# ## One thing to change
#
# `lrdyn.diagnose("before.safetensors", "after.safetensors", select="*.q_proj.weight")` on your own
# checkpoints; the command `lrdyn diagnose BEFORE AFTER` prints the same table.
