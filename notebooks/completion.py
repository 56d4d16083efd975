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
# # Completion: a compressed network completes a matrix
#
# Half of the entries of $\Phi$ (rank 2) are hidden. A network $f_C = U\, W\, V^\top$ whose inner
# layer is only $2r \times 2r$, with outer factors from the SVD of what is seen, recovers the
# others. The survey's claim is that it does so no later than the full network.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lrdyn
from lrdyn.cli import setup
from lrdyn.completion import recovery
from lrdyn.figures import plotting

setup()  # float64; before the first computation
plt.style.use(plotting.STYLE)

# %% [markdown]
# ## One small run of both networks

# %%
dim, rank, depth, eps, eta = 24, 2, 3, 0.03, 0.15
steps = lrdyn.recorded_steps(1500, 151)
target_key, weights_key, mask_key = jax.random.split(jax.random.key(1), 3)
target = recovery.spread_target(target_key, (dim, dim), rank)
target = target / lrdyn.singular_values(target)[0]
mask = lrdyn.core.observe(mask_key, (dim, dim), 0.5)


def train(product, start, rule):
    def loss(network):
        return dim**2 * recovery.observed_loss(product(network), target, mask)

    def record(network):
        return recovery.recovery_error(product(network), target)

    return lrdyn.simulate(loss, start, rule, steps, record=record).records


weights = lrdyn.orthogonal_layers(weights_key, (dim,) * (depth + 1), jnp.full(depth, eps))
full = train(lrdyn.end_to_end, weights, lrdyn.gradient_descent(eta))
start = recovery.spectral_network(recovery.surrogate(target, mask), 2 * rank, eps)
rates = recovery.discrepant_rates(eta, 4.0)  # the outer factors four times as fast
compressed = train(lrdyn.corollary1.compressed_product, start, rates)

# %%
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot(steps, full, color=plotting.BLACK, lw=1, label="full")
ax.plot(steps, compressed, color=plotting.BLUE, lw=1, label="compressed, 2r = 4")
ax.set(yscale="log", xlabel="step t", title="recovery error, hidden entries included")
_ = ax.legend()

# %% [markdown]
# ## What is seen
#
# The compressed network gets there first. Both stop at a floor that their starts leave them.
#
# ## One thing to change
#
# Hide more, `observe(mask_key, (dim, dim), 0.25)`: too few entries determine a matrix of rank 2,
# and neither recovers it. All claims and their controls: `lrdyn verify completion`.
