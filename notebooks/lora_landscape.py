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
# # Which rank is enough?
#
# LoRA of rank $r$ on a linearised model with decay: where does descent end, and is an end a global
# minimum? The duality gap of any point bounds how far it is above the minimum over all ranks.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from lrdyn.cli import setup
from lrdyn.figures import plotting
from lrdyn.studies import lora_landscape as landscape

setup()  # float64; before the first computation
plt.style.use(plotting.STYLE)

# %% [markdown]
# ## A problem, and its convex minimum

# %%
m, N, decay = 4, 10, 0.02
keys = jax.random.split(jax.random.key(0), 4)
model = landscape.LinearisedModel(
    features=jax.random.normal(keys[0], (N, 1, m, m)),
    targets=jax.random.normal(keys[1], (N, 1)),
    weights=jnp.full(N, 1 / N),
    decay=jnp.asarray(decay),
    loss="squared",
)
convex = landscape.proximal_gradient(model, 5000)
values = jnp.linalg.svd(convex.W)[1]
print(f"lambda {decay}, from {landscape.largest_decay(model):.3f} on W = 0 is the minimum")
print(f"minimum {convex.value:.6f}, singular values", values.round(4))

# %% [markdown]
# ## Ends of descent at each rank, and their gaps

# %%
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
for r in (1, 2, 3, 4):
    starts = landscape.Factors(*(jax.random.normal(key, (16, m, r)) / 2 for key in keys[2:]))
    descend = jax.jit(jax.vmap(lambda start: landscape.descend(model, start, decays=True)))
    ends = descend(starts)
    excess = jnp.maximum(ends.value - convex.value, 1e-17)
    gap = jnp.maximum(ends.gap, 1e-17)
    ax.plot(r + jnp.linspace(-0.2, 0.2, 16), gap, **plotting.OPEN, mec=plotting.BLUE)
    ax.plot(r + jnp.linspace(-0.2, 0.2, 16), excess, ".", color=plotting.ORANGE)
    certified = int(jnp.sum(ends.gap < 1e-10))
    print(f"r = {r}: {certified} of 16 certified, gradients below {jnp.max(ends.gradient):.0e}")
ax.set(yscale="log", xlabel="rank r", ylabel="above the minimum")
ax.set_xticks([1, 2, 3, 4])
ax.set_title("dots: F - min F; circles: the duality gap, which bounds it")
plt.show()

# %% [markdown]
# ## One thing to change
#
# `decay = 0.002`: the minimiser's rank grows, and with it the rank that is enough. The phase
# diagram over many problems: `lrdyn verify lora_landscape`.
