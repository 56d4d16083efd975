"""An example: the spectrum of a deep factorisation, trained, and predicted by Theorem 2."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

import lrdyn
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, one_seed, run_sources
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.fields import ABSENT

SETTINGS = {"dim": 12, "rank": 2, "init_scale": 0.5, "learning_rate": 0.1, "steps": 100}


class Theory(NamedTuple):
    """The prediction: each field is an array that names its axes."""

    bulk: Float[Array, "step"] = ABSENT
    """rho_1, to which all but 2r singular values of the first layer stay equal."""


class Measured(NamedTuple):
    """The arrays that a run measures."""

    trained: Float[Array, "step index"] = ABSENT
    """Singular values of the first layer, largest first."""
    step: Int[Array, "step"] = ABSENT
    """The recorded steps."""


def case(key, *, dim, rank, init_scale, learning_rate, steps):
    """Draw a target, three orthogonal layers, and the frame that the theorem takes from them."""
    target_key, weight_key = jax.random.split(key)
    target = lrdyn.low_rank_target(target_key, (dim, dim), lrdyn.spaced_singular_values(rank))
    weights = lrdyn.orthogonal_layers(weight_key, (dim,) * 4, jnp.full(3, init_scale))
    return weights, target, learning_rate, np.arange(steps + 1)


def measure(drawn):
    """Train: singular values of the first layer at every step, largest first."""
    weights, target, rate, steps = drawn
    run = lrdyn.simulate(
        lambda layers: lrdyn.factorization_loss(layers, target),
        weights,
        lrdyn.gradient_descent(rate),
        steps,
        record=lambda layers: lrdyn.singular_values(layers[0]),
    )
    return Measured(trained=run.records, step=jnp.asarray(steps))


def predict(drawn):
    """The bulk, to which all but 2r singular values stay equal: a recursion of one number."""
    weights, _, rate, steps = drawn
    return Theory(bulk=lrdyn.rho(lrdyn.theorem2.start_scales(weights), rate, 0.0, steps)[:, 0])


EXPERIMENT = lrdyn.Experiment(
    "example",
    "the spectrum of a deep factorisation",
    (
        lrdyn.Flag("dim", (12,), lrdyn.at_least(3), int, swept=False),
        lrdyn.Flag("rank", (2,), lrdyn.at_least(1), int, swept=False),
        lrdyn.Flag("init_scale", (0.5,), lrdyn.POSITIVE, swept=False),
        lrdyn.Flag("learning_rate", (0.1,), lrdyn.POSITIVE, swept=False),
        lrdyn.Flag("steps", (100,), lrdyn.at_least(1), int, swept=False),
    ),
    (
        lrdyn.Scenario(
            "example",
            case,
            predict,
            measure,
            theory=Theory,
            measured=Measured,
        ),
    ),
)


def numbers(results, **settings):
    """Compute the numbers that the figure shows, from saved results alone."""
    saved = one_seed(results["example"])
    trained = fields.of_run(saved, Measured)(lambda run: run.trained)
    bulk = fields.of_theory(saved, Theory)(lambda theory: theory.bulk)
    plotted = xr.Dataset(
        {
            "trained": trained.assign_attrs(
                curve_along="step"
            ),  # each curve is compared on its own scale
            "bulk": bulk.assign_attrs(
                kind="identity"
            ),  # a formula reproduces more digits than a run
        }
    )
    return plotted.assign_coords(index=np.arange(1, saved.sizes["index"] + 1))


def draw(dataset):
    """Draw the predicted and the measured spectra over the steps."""
    figure, (ax,) = plotting.panels(["singular values of the first layer"])
    steps = dataset["step"].values
    ax.plot(steps, dataset["trained"].values, color=plotting.BLUE, lw=1.0)
    ax.plot(steps, dataset["bulk"].values, color=plotting.ORANGE, ls=plotting.DASHED, label="rho")
    ax.set(xlabel="step t", xlim=(0, int(steps[-1])))
    plotting.key(ax, None, "upper left")
    return figure


FIGURE = Figure(
    name="example",
    title="An example",
    caption="Deep factorisation, d = {dim}, r = {rank}, eps = {init_scale:g}: singular values of "
    "the first layer over {steps} steps, and the bulk of Theorem 2.",
    sources=run_sources(EXPERIMENT, preset="quick"),
    numbers=numbers,
    draw=draw,
    presets={"quick": SETTINGS},
    panels={"trained": "a", "bulk": "a"},
)
