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
# # Beyond the edge of stability
#
# A mode whose $L$ layers share a singular value $\rho$ descends by
# $\rho - \eta (\rho^L - s) \rho^{L-1}$. Above $\eta_c = \frac2L s^{-(2 - 2/L)}$ its minimum is not
# stable, and it oscillates between two points that are known in closed form.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lrdyn
from lrdyn import edge_of_stability as edge
from lrdyn.cli import setup
from lrdyn.figures import plotting

setup()  # float64; before the first computation
plt.style.use(plotting.STYLE)

# %% [markdown]
# ## One mode: where descent stays, and the two-cycle

# %%
depth, s = 3, 1.0
ratios = jnp.linspace(0.9, 1.6, 250)
rates = ratios * edge.edge(depth, s)


def settle(rate):
    def step(rho, _):
        after = edge.balanced_step(rho, depth, s, rate)
        return after, after

    settled, _ = jax.lax.scan(step, jnp.asarray(0.8), length=1000)
    return jax.lax.scan(step, settled, length=40)[1]


orbits = jax.vmap(settle)(rates)
beyond = rates[ratios > 1.001]
cycle = jax.vmap(lambda rate: edge.two_cycle(depth, s, rate))(beyond)

figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot(ratios.repeat(40), orbits.ravel(), ls="none", marker=".", ms=1, color=plotting.GREY)
for branch in (cycle.low, cycle.high):
    ax.plot(ratios[ratios > 1.001], branch, color=plotting.ORANGE)
ax.axvline(float(edge.doubling(depth)), ls=plotting.DASHED, color=plotting.BLUE)
ax.set(xlabel=r"$\eta / \eta_c$", ylabel=r"$\rho$", title="three layers; line: closed form")
print(f"the cycle doubles at {edge.doubling(depth):.6f} of the edge")

# %% [markdown]
# ## Two modes: which vectors stay
#
# Two dense layers start exactly aligned, in random bases, the first mode on its cycle. What is
# beside the diagonal of $U^\top W_2 W_1 V$ is rounding. It stays that if $\eta (s_1 + s_2) < 2$.

# %%
bases = lrdyn.orthogonal_layers(jax.random.key(0), (4,) * 4, jnp.ones(3))
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
for ratio, color in ((0.6, plotting.BLUE), (0.75, plotting.ORANGE)):
    values, eta = jnp.array([1.0, ratio, 0.0, 0.0]), 1.2
    network = edge.AlignedNetwork(jnp.stack(bases), values, jnp.asarray(eta))
    start = jnp.sqrt(values).at[0].set(edge.two_cycle(2, 1.0, eta).low)

    def beside(layers, network=network):
        product = network.bases[-1].T @ lrdyn.end_to_end(layers) @ network.bases[0]
        return jnp.max(jnp.abs(product - jnp.diag(jnp.diag(product))))

    run = lrdyn.simulate(
        network.loss,
        network.aligned(start),
        lrdyn.gradient_descent(eta),
        jnp.arange(0, 600, 4),
        record=beside,
    )
    ax.plot(jnp.arange(0, 600, 4), run.records, color=color, label=f"$s_2 / s_1$ = {ratio}")
    radius = edge.resting_pair(eta, eta * ratio).radius
    print(f"s_2 / s_1 = {ratio}: exponent of a step {jnp.log(radius) / 2:+.3f}")
ax.set(yscale="log", xlabel="step", title="beside the diagonal")
ax.legend()

# %% [markdown]
# ## What is seen
#
# The closed form holds at every step size, also where the cycle is no longer stable and descent
# has left it. Rounding leaves the run at the exponent of its pair.
#
# ## One thing to change
#
# `ratio = 2 / 1.2 - 1`, on the line: rounding neither grows nor shrinks, on a chaotic orbit too
# (`eta = 1.3` and `ratio = 2 / 1.3 - 1`). All claims and their controls: `lrdyn verify
# edge_of_stability`.
