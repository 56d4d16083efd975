"""An example without an experiment: arrays of one's own, here of a sweep, with a band over seeds.

Numbers may come from anywhere: a sweep, a CSV, logs. The function below makes them; where it reads
files, ``files=(...)`` of the figure names these, and the numbers are made anew when one changes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import lrdyn
from lrdyn.figures import Figure, band, panels, plotting

SETTINGS = {"dim": 10, "init_scales": [0.1, 0.3], "seeds": 6, "learning_rate": 0.1, "steps": 120}


def numbers(results, *, dim, init_scales, seeds, learning_rate, steps):
    """Train deep factorisations of a target of rank 2: effective rank of the product.

    ``results`` is empty, since the figure names no experiment whose results it shows.
    """
    recorded = np.arange(0, steps + 1, 4)

    def train(init_scale, seed):
        target_key, weight_key = jax.random.split(jax.random.key(seed))
        target = lrdyn.low_rank_target(target_key, (dim, dim), lrdyn.spaced_singular_values(2))
        run = lrdyn.simulate(
            lambda layers: lrdyn.factorization_loss(layers, target),
            lrdyn.orthogonal_layers(weight_key, (dim,) * 4, jnp.full(3, init_scale)),
            lrdyn.gradient_descent(learning_rate),
            recorded,
            record=lambda layers: lrdyn.singular_values(lrdyn.end_to_end(layers)),
        )
        return {"effective_rank": lrdyn.effective_rank(run.records)}

    points = lrdyn.product(init_scale=init_scales, seed=np.arange(seeds))
    swept = lrdyn.sweep(train, points, dims={"effective_rank": ("step",)})
    # Each curve is compared with its baseline on its own scale.
    rank = swept["effective_rank"].assign_attrs(curve_along="step")
    return xr.Dataset({"effective_rank": rank}).assign_coords(step=recorded)


def draw(dataset):
    """Draw the mean over seeds and its standard error, a curve for each scale."""
    figure, (ax,) = panels(["effective rank of the product"])
    for init_scale, color in zip(dataset["init_scale"].values, plotting.SHADES, strict=False):
        ranks = dataset["effective_rank"].sel(init_scale=init_scale)
        band(ax, ranks, over="seed", color=color, label=rf"$\varepsilon$ = {init_scale:g}")
    ax.set(xlabel="step t", xlim=(0, int(dataset["step"][-1])), ylim=(0, None))
    plotting.key(ax, None, "upper right")
    return figure


FIGURE = Figure(
    name="arrays",
    title="An example of arrays",
    caption="Deep factorisation of a target of rank 2, d = {dim}, L = 3: effective rank of the "
    "product over {steps} steps, mean over {seeds} seeds with its standard error.",
    numbers=numbers,
    draw=draw,
    presets={"quick": SETTINGS},
    panels={"effective_rank": "a"},
)
