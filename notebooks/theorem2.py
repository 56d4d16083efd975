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
# # Theorem 2: gradient descent on deep factorisation lives in a 2r-dimensional subspace
#
# Minimise $\frac12\|W_L \cdots W_1 - \Phi\|_F^2$ with $\Phi$ of rank $r$, from orthogonal layers
# of scale $\epsilon_l$. Then $U_l^\top W_l(t) V_l$ is block diagonal at all $t$: a $2r \times 2r$
# block, which is gradient descent on a problem of that size, and $\rho_l(t)$ times the identity,
# with $\rho_l(t+1) = \rho_l(t)\,(1 - \eta\lambda_l - \eta \prod_{k \ne l} \rho_k(t)^2)$.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

import lrdyn
from lrdyn.cli import setup
from lrdyn.figures import plotting
from lrdyn.theorem2.statement import THEOREM2

setup()  # float64; before the first computation
plt.style.use(plotting.STYLE)

# %% [markdown]
# ## One small run, and its prediction from the start alone

# %%
dim, rank, depth, eta = 30, 2, 3, 0.1
scales, steps = jnp.full(depth, 0.5), lrdyn.recorded_steps(120, 61)
target_key, weights_key = jax.random.split(jax.random.key(0))
target = lrdyn.low_rank_target(target_key, (dim, dim), lrdyn.spaced_singular_values(rank))
weights = lrdyn.orthogonal_layers(weights_key, (dim,) * (depth + 1), scales)


def spectrum(layers):
    return lrdyn.singular_values(layers[0])


run = lrdyn.simulate(
    lambda layers: lrdyn.factorization_loss(layers, target),
    weights,
    lrdyn.gradient_descent(eta),
    steps,
    record=spectrum,
)
small = lrdyn.reduced_target(lrdyn.frame(weights, target, rank), target, 2 * rank)
reduced = lrdyn.reduced_dynamics(small, scales, eta, 0.0, steps, record=spectrum)
bulk = lrdyn.rho(scales, eta, 0.0, steps)[:, 0]

# %%
figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
ax.plot(steps, reduced.records, color=plotting.BLUE, lw=1)
ax.plot(steps, bulk, color=plotting.ORANGE, lw=1, label=f"rho, {dim - 2 * rank} times")
ax.plot(steps, run.records, color=plotting.BLACK, markevery=6, **plotting.OPEN)
ax.set(xlabel="step t", ylabel="singular values of the first layer", title="circles: trained")
_ = ax.legend(loc="center right")

# %% [markdown]
# ## A verdict
#
# The first scenario of the theorem, without its controls (broken hypotheses, under which the claims
# must fail); `lrdyn verify theorem2` has them all.

# %%
scenario = dataclasses.replace(THEOREM2.scenarios[0], controls=())
alone = dataclasses.replace(THEOREM2, scenarios=(scenario,))
lrdyn.verify(alone, dim=9, depth=2, rank=2, steps=100, seeds=1)

# %% [markdown]
# ## What is seen
#
# Four singular values move; the other 26 stay equal and follow one scalar.
#
# ## One thing to change
#
# Use `lrdyn.gaussian_layers(weights_key, (dim,) * (depth + 1), scales)` in the run: the bulk
# spreads, and the circles leave the lines.
