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
# # Corollary 1: a compressed network follows the full one
#
# Only a $2\hat r \times 2\hat r$ block of each layer moves ($\hat r \ge r$), so a network of that
# width can be trained in place of the full one. Its error is known beforehand: $\|f(t) -
# f_C(t)\|_F = \sqrt{d - 2\hat r}\, \prod_l |\rho_l(t)|$.

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
# ## One small run of both

# %%
dim, rank, depth, eta = 40, 3, 3, 0.1
scales, steps = jnp.full(depth, 0.4), lrdyn.recorded_steps(200, 41)
target_key, weights_key = jax.random.split(jax.random.key(0))
target = lrdyn.low_rank_target(target_key, (dim, dim), lrdyn.spaced_singular_values(rank))
weights = lrdyn.orthogonal_layers(weights_key, (dim,) * (depth + 1), scales)

full = lrdyn.simulate(
    lambda layers: lrdyn.factorization_loss(layers, target),
    weights,
    lrdyn.gradient_descent(eta),
    steps,
    record=lrdyn.end_to_end,
).records

frame = lrdyn.frame(weights, target, rank)
small = lrdyn.reduced_target(frame, target, 2 * rank)
inner = lrdyn.reduced_dynamics(small, scales, eta, 0.0, steps).records
compressed = jax.vmap(
    lambda layers: lrdyn.corollary1.compressed_product(lrdyn.corollary1.compress(frame, layers))
)(inner)

# %%
measured = jnp.linalg.norm(full - compressed, axis=(1, 2))
predicted = lrdyn.corollary1.compression_error(lrdyn.rho(scales, eta, 0.0, steps), dim, rank)
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
plotting.plot_compared(ax, steps, predicted, measured, color=plotting.BLUE, every=3)
ax.set(yscale="log", xlabel="step t", title="error of the compressed network, circles: trained")
print(f"largest difference: {jnp.max(jnp.abs(measured - predicted)):.0e}")
print(lrdyn.corollary1.parameter_counts(dim, depth, rank))

# %% [markdown]
# ## What is seen
#
# The error does not depend on the target, only on the start and the step; it falls slowly, since
# the bulk does.
#
# ## One thing to change
#
# Start smaller, `jnp.full(depth, 0.1)`: the error begins 64 times lower, and escape from the saddle
# at zero takes longer. All claims and their controls: `lrdyn verify corollary1`.
