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
# # GaLore under gradient noise
#
# GaLore projects on the largest singular vectors of the gradient. Where these are of noise, what is
# to be learnt rests: on this example from a step on that is known beforehand.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from lrdyn.adapters.methods import GALORE, RELORA_FROZEN
from lrdyn.cli import setup
from lrdyn.figures import plotting
from lrdyn.galore_noise import last_moving_step, refreshes_needed, setting, stall_exponent

setup()  # float64; before the first computation
plt.style.use(plotting.STYLE)

# %% [markdown]
# ## One draw of the example
#
# `f(X) = 1/2 ||X_T||^2 + <D, X_TT>`, and noise of size sigma = 1 in the last two rows.

# %%
case = setting.make_case(
    jax.random.key(0),
    dim=8,
    rank=2,
    period=10,
    side="left",
    learning_rate=0.02,
    noise=1.0,
    steps=400,
)
counts = refreshes_needed(case.values, case.noise, case.learning_rate, case.period)
predicted = int(last_moving_step(case.values, case.noise, case.learning_rate, case.period, 2))
print("singular values:", np.round(case.values, 2))
print("refreshes that each needs:", counts, "so that the last step is", predicted)

# %%
figure, ax = plt.subplots(figsize=(4, 2.4))
runs = {
    "GaLore": setting.run(case, GALORE),
    "ReLoRA, factor frozen": setting.run(case, RELORA_FROZEN),
    "GaLore, no noise": setting.run(dataclasses.replace(case, noise=jnp.asarray(0.0)), GALORE),
}
for name, run in runs.items():
    norms = [float(jnp.max(case.true_values(X))) for X in run.weights]
    print(f"{name}: last step {int(setting.last_move(case, run.moved))}, ends at {norms[-1]:.2g}")
    ax.semilogy(np.arange(len(norms)) * case.period, norms, label=name)
ax.axhline(1.0, ls=":", color=plotting.BLACK)
ax.axvline(predicted, ls=plotting.DASHED, color=plotting.BLACK)
ax.set(xlabel="step", ylabel="norm of the gradient of f")
ax.legend()
plt.show()
assert int(setting.last_move(case, runs["GaLore"].moved)) == predicted

# %% [markdown]
# ## Is the stall stable?
#
# A small Y, such as rounding leaves in rotated bases, grows by this exponent a refresh.

# %%
for value in (0.9, 0.985, 0.994, 0.998):
    exponent = stall_exponent(jnp.asarray(value), 1.0, 3e-3, 100)
    print(f"s = {value:g} sigma: {float(exponent):+.3f}")

# %% [markdown]
# ## One thing to change
#
# `learning_rate=0.05` in `make_case`: it stops sooner, and no lower than (1 - eta)^{T_0} sigma. All
# claims and their controls: `lrdyn verify galore_noise`.
