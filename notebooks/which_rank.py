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
# # From two checkpoints to a configuration of PEFT
#
# Which rank does each layer need? Here a small transformer's matrices move by what a training
# often leaves: a few directions, and noise. Put paths of your own checkpoints, folders of the hub's
# cache or adapters of PEFT in the place of `before` and `after`.

# %%
# %matplotlib inline
import json

import matplotlib.pyplot as plt
import numpy as np

import lrdyn
from lrdyn import diagnosis

rng = np.random.default_rng(0)
shapes = {"self_attn.q_proj": (96, 96), "self_attn.v_proj": (96, 96), "mlp.up_proj": (192, 96)}
directions = {"self_attn.q_proj": 6, "self_attn.v_proj": 3, "mlp.up_proj": 12}
before, after = {}, {}
for layer in range(4):
    for kind, (m, n) in shapes.items():
        name, r = f"model.layers.{layer}.{kind}.weight", directions[kind]
        before[name] = rng.standard_normal((m, n)).astype(np.float32) / n**0.5
        signal = rng.standard_normal((m, r)) @ rng.standard_normal((r, n))
        update = 0.01 * signal + 0.003 * rng.standard_normal((m, n))
        after[name] = before[name] + update.astype(np.float32)

# %% [markdown]
# ## The answer

# %%
report = lrdyn.diagnose(before, after)
print(report)

# %% [markdown]
# The column *noise* counts the singular values above the edge of Marchenko and Pastur's law: the
# directions that were put in, and rarely one of noise beside them. An r for 99 % of the squared
# norm would spend most of its parameters on noise.

# %%
report.plot()

# %% [markdown]
# ## Ranks for a budget
#
# Ranks are taken by the largest sigma^2 / (m + n) first: no others of equal or lower cost miss less
# of the update.

# %%
plan = diagnosis.plan(report, budget=20_000)
print("\n".join(plan.lines()))
print(json.dumps(plan.config["rank_pattern"], indent=1))
plan.write("plan")  # for peft.LoraConfig.from_pretrained("plan")

# %% [markdown]
# ## What a budget buys

# %%
budgets = np.array([5_000, 10_000, 20_000, 40_000, 80_000])
plans = [diagnosis.plan(report, budget=int(budget)) for budget in budgets]
figure, ax = plt.subplots(figsize=(4, 2.6))
ax.plot(budgets, [budgeted.chosen.error for budgeted in plans], marker="o", label="planned")
ax.plot(budgets, [budgeted.one_rank[1] for budgeted in plans], marker="o", label="one r for all")
ax.set(xscale="log", xlabel="parameters", ylabel="relative error of the update")
ax.set_xticks(budgets, [f"{budget:,}" for budget in budgets], minor=False)
ax.set_xticks([], minor=True)
ax.legend()

# %% [markdown]
# ## The update itself as an adapter
#
# The error is that of the files, read back by PEFT's rules.

# %%
extracted = diagnosis.extract(before, after, rank=plan.chosen.ranks).write("adapter")
print("\n".join(extracted.lines()[-5:]))

# %% [markdown]
# ## One thing to change
#
# `error=0.3` in place of `budget=20_000`: how many parameters does that take?
