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
# # Explore: theory drawn over simulation
#
# A function of the knobs, sliders for them, one sweep over all of them. Everything is public API.

# %%
import jax
import jax.numpy as jnp

import lrdyn
from lrdyn.cli import setup
from lrdyn.figures import overlay, panels, plotting

setup()  # float64; before the first computation

# %% [markdown]
# ## Turn a knob
#
# Training a deep factorisation, and what Theorem 2 says of it from the start alone: two losses, and
# two spectra of the first layer. Only the depth changes the shape of an array: each depth is
# compiled once, and a rank or a scale that is new costs milliseconds. So the frame is that of the
# largest rank, of which the theorem speaks as well.

# %%
dim, most, eta, steps = 20, 4, 0.1, lrdyn.recorded_steps(200, 51)
U, V, *Q = lrdyn.orthogonal_layers(jax.random.key(0), (dim,) * 7, jnp.ones(6))


def compare(depth=3, rank=2, init_scale=0.4):
    """Losses and spectra of a run, and of its prediction, at the recorded steps."""
    index = jnp.arange(most)
    target = (U[:, :most] * jnp.where(index < rank, 1 - index / (2 * most), 0.0)) @ V[:most]
    scales, weights = jnp.full(depth, init_scale), [init_scale * layer for layer in Q[:depth]]

    def loss_to(target):
        return lambda layers: lrdyn.factorization_loss(layers, target)

    def record(loss):
        return lambda layers: (loss(layers), lrdyn.singular_values(layers[0]))

    loss, rule = loss_to(target), lrdyn.gradient_descent(eta)
    trained, spectrum = lrdyn.simulate(loss, weights, rule, steps, record=record(loss)).records
    small = lrdyn.reduced_target(lrdyn.frame(weights, target, most), target, 2 * most)
    rates = scales, eta, 0.0, steps
    reduced = lrdyn.reduced_dynamics(small, *rates, record=record(loss_to(small)))
    moving, blocks = reduced.records
    rho = lrdyn.rho(*rates)
    bulk = jnp.repeat(jnp.abs(rho[:, :1]), dim - 2 * most, axis=1)
    return {
        "trained": trained,
        "predicted": moving + (dim - 2 * most) / 2 * jnp.prod(rho, axis=1) ** 2,
        "trained_spectrum": spectrum,
        "predicted_spectrum": -jnp.sort(-jnp.concatenate([blocks, bulk], axis=1), axis=1),
        "step": jnp.asarray(steps),
    }


evaluate = jax.jit(compare, static_argnames="depth")


def show(depth, rank, init_scale):
    """Theory as lines, the run as circles."""
    found = evaluate(depth=depth, rank=rank, init_scale=init_scale)
    run, theory = (
        {"loss": found[side], "singular values of the first layer": found[f"{side}_spectrum"]}
        for side in ("trained", "predicted")
    )
    figure = overlay(run, theory, steps=steps)
    figure.axes[0].set_yscale("log")
    return figure


show(depth=3, rank=2, init_scale=0.2)

# %% [markdown]
# Sliders do the same. They need Jupyter and ipywidgets, which come with `lrdyn[notebooks]`.

# %%
try:
    from ipywidgets import FloatLogSlider, interact
except ImportError:
    print("no sliders without ipywidgets: pip install 'lrdyn[notebooks]'")
else:
    scale = FloatLogSlider(0.2, min=-2, max=0, step=0.1, description="eps")
    interact(show, depth=(2, 4), rank=(1, most), init_scale=scale)

# %% [markdown]
# ## Sweep depth, rank and init scale

# %%
points = lrdyn.product(depth=[2, 3], rank=[1, 3], init_scale=[0.2, 0.4, 0.8])
spectra = dict.fromkeys(("trained_spectrum", "predicted_spectrum"), ("step", "index"))
dims = dict.fromkeys(("trained", "predicted", "step"), ("step",)) | spectra
results = lrdyn.sweep(compare, points, shapes=("depth",), dims=dims)
results

# %%
cells = [(rank, depth) for rank in results["rank"].values for depth in results["depth"].values]
figure, axes = panels([f"L = {depth}, r = {rank}" for rank, depth in cells], rows=2, height=3.6)
for ax, (rank, depth) in zip(axes, cells, strict=True):
    for color, scale in zip(plotting.BLUES, results["init_scale"].values, strict=True):
        run = results.sel(rank=rank, depth=depth, init_scale=scale)
        both = run["predicted"].values, run["trained"].values
        plotting.plot_compared(ax, run["step"].values, *both, color=color, every=5)
    ax.set(yscale="log", xlabel="step t", ylabel="loss")
gap = abs(results["trained"] - results["predicted"]).max().item()
print(f"largest difference of a loss: {gap:.0e}; dark to light: init scale 0.2, 0.4, 0.8")
figure

# %% [markdown]
# ## One thing to change
#
# `lrdyn.product(depth=[2], rank=[1], init_scale=np.geomspace(0.01, 1, 100))` with `import numpy
# as np`: a hundred values of a traced axis cost one compilation ([sweeps](../docs/sweeps.md)).
