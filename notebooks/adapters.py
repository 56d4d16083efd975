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
# # Adapters on a model of equinox
#
# LoRA and its relatives on a small network: the model stays as it is, adapters are a PyTree
# beside it.

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from lrdyn import adapters
from lrdyn.cli import setup
from lrdyn.figures import plotting

setup()  # float64; before the first computation
plt.style.use(plotting.STYLE)

# %%
keys = jax.random.split(jax.random.key(0), 3)
model = eqx.nn.MLP(10, 4, width_size=32, depth=2, key=keys[0])
inputs = jax.random.normal(keys[1], (200, 10))
labels = jnp.argmax(inputs @ jax.random.normal(keys[2], (10, 4)), axis=1)


def loss(model):
    logits = jax.vmap(model)(inputs)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


# %% [markdown]
# ## Train some methods alike


# %%
def train(method, rank, steps=150):
    """Losses at each step, and the adapters."""
    initial = adapters.init(
        keys[0],
        model,
        select="layers.*.weight",
        rank=rank,
        scale=adapters.over_rank(4),
        method=method,
    )
    trained, frozen = adapters.split(initial)
    rule = optax.adam(1e-2)

    def step(carry, _):
        trained, state = carry
        value, slope = jax.value_and_grad(
            lambda t: loss(adapters.apply(model, adapters.joined(t, frozen)))
        )(trained)
        moves, state = rule.update(slope, state)
        return (optax.apply_updates(trained, moves), state), value

    run = jax.jit(lambda start: jax.lax.scan(step, start, length=steps))
    (trained, _), losses = run((trained, rule.init(trained)))
    return losses, adapters.joined(trained, frozen)


figure, ax = plt.subplots(figsize=(5, 2.6), layout="constrained")
curves = [("LORA", 1), ("LORA", 4), ("DORA", 1)]
for color, (name, rank) in zip(plotting.SHADES, curves, strict=False):
    losses, trained_adapters = train(getattr(adapters, name), rank)
    ax.plot(
        losses,
        color=color,
        lw=1,
        label=f"{name}, r = {rank}: {adapters.count(trained_adapters)} numbers",
    )
ax.set(yscale="log", xlabel="step t", title="loss")
_ = ax.legend()

# %% [markdown]
# ## Merge, and look at what was added

# %%
merged = adapters.merge(model, trained_adapters)
added = merged.layers[1].weight - model.layers[1].weight
print("loss of the merged model:", round(float(loss(merged)), 4))
print("largest singular values of what was added:", jnp.linalg.svd(added)[1][:4].round(3))

# %% [markdown]
# ## One thing to change
#
# `select="layers.0.weight"` adapts one matrix; `adapters.PISSA` starts from the leading singular
# vectors. More in [docs/adapters.md](../docs/adapters.md).
