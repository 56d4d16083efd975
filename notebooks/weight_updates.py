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
# # Weight updates of a small training
#
# Is the change of a trained layer of low rank? A perceptron on a synthetic classification of 4
# classes, and the singular values of $W(t) - W(0)$ of its middle layer.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import lrdyn
from lrdyn.cli import setup
from lrdyn.figures import plotting

setup()  # float64; before the first computation
plt.style.use(plotting.STYLE)

# %%
classes, width = 4, 48
keys = jax.random.split(jax.random.key(0), 6)
centres = 1.5 * jax.random.normal(keys[0], (classes, 20))
labels = jax.random.randint(keys[1], (400,), 0, classes)
inputs = centres[labels] + jax.random.normal(keys[2], (400, 20))
sizes = [(width, 20), (width, width), (classes, width)]
start = [
    jax.random.normal(k, size) / size[1] ** 0.5 for k, size in zip(keys[3:], sizes, strict=True)
]


def loss(layers):
    hidden = inputs.T
    for W in layers[:-1]:
        hidden = jax.nn.relu(W @ hidden)
    logits = (layers[-1] @ hidden).T
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


steps = lrdyn.recorded_steps(300, 61)
run = lrdyn.simulate(
    loss,
    start,
    optax.sgd(0.2),
    steps,
    record=lambda layers: {
        "update": lrdyn.singular_values(layers[1] - start[1]),
        "loss": loss(layers),
    },
)
run

# %%
values = run.records["update"][1:]
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
left.plot(steps[1:], values[:, 2 * classes :], color="#B3B3B3", lw=0.5)
left.plot(steps[1:], values[:, : 2 * classes], color=plotting.BLUE, lw=1)
left.set(yscale="log", ylim=(1e-5, 10), xlabel="step t", title="blue: first 2K = 8")
right.plot(steps[1:], lrdyn.effective_rank(values), color=plotting.ORANGE)
right.set(xlabel="step t", title=f"effective rank, of {width}")
share = jnp.sum(values[-1, : 2 * classes] ** 2) / jnp.sum(values[-1] ** 2)
print(f"the first {2 * classes} hold {share:.4f} of the squared update")

# %% [markdown]
# ## What is seen
#
# Most of the update is in a few directions, without an edge after 2K: the theorem covers linear
# networks on whitened inputs alone. On images, over seeds and with other networks:
# `lrdyn verify weight_updates`.
#
# ## One thing to change
#
# Shuffle the labels, `labels = jax.random.permutation(keys[0], labels)`: is the update of lower or
# higher rank?
