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
# # Theorem 1: weight decay shrinks singular values
#
# Minimise $\frac12\|W_L \cdots W_1 - \Phi\|_F^2 + \frac\lambda2 \sum_l \|W_l\|_F^2$. At the
# global minimum the product has the singular vectors of $\Phi$, and each singular value $\sigma$
# becomes the minimiser of $\frac12 (s - \sigma)^2 + \frac{\lambda L}{2} s^{2/L}$: for two layers
# $(\sigma - \lambda)_+$, soft-thresholding.

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
# ## One small run
#
# Two layers of width 8, a random target, gradient descent from a random start.

# %%
decay, steps = 0.4, lrdyn.recorded_steps(2000, 101)
target_key, weights_key = jax.random.split(jax.random.key(0))
values = jnp.linspace(1.5, 0.1, 8)
target = lrdyn.low_rank_target(target_key, (8, 8), values)
weights = lrdyn.gaussian_layers(weights_key, (8, 8, 8), jnp.full(2, 0.3))

run = lrdyn.simulate(
    lambda layers: lrdyn.factorization_loss(layers, target),
    weights,
    lrdyn.gradient_descent(0.1, decay),
    steps,
    record=lambda layers: lrdyn.singular_values(lrdyn.end_to_end(layers)),
)
run

# %%
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot(steps, run.records, color=plotting.BLUE, lw=1)
for shrunk in lrdyn.theorem1.shrink(values, decay):
    ax.axhline(float(shrunk), color=plotting.ORANGE, lw=0.8, ls=plotting.DASHED)
_ = ax.set(
    xlabel="step t", ylabel="singular values of the product", title="dashed: (sigma - lambda)+"
)

# %%
gap = jnp.max(jnp.abs(run.records[-1] - lrdyn.theorem1.shrink(values, decay)))
print(f"largest difference of a singular value from (sigma - lambda)+: {gap:.0e}")

# %% [markdown]
# ## What is seen
#
# Values above $\lambda$ lose exactly $\lambda$, the others vanish: decay finds a low rank.
#
# ## One thing to change
#
# Set `(8, 8, 8, 8)` and `jnp.full(3, 0.3)` for three layers, and `shrink(values, decay, depth=3)`:
# larger values lose less, and the origin is a local minimum, in which small starts stay. All claims
# and their controls: `lrdyn verify theorem1`.
