"""An example: the spectrum of a deep factorisation, trained, and predicted by Theorem 2."""

import jax
import jax.numpy as jnp
import numpy as np

import lrdyn
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, drawn_from, one_seed

SETTINGS = {"dim": 12, "rank": 2, "init_scale": 0.5, "learning_rate": 0.1, "steps": 100}


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
    return {"trained": run.records, "step": jnp.asarray(steps)}


def predict(drawn):
    """The bulk, that all but 2r singular values stay equal to: a recursion of one number."""
    weights, _, rate, steps = drawn
    return {"bulk": lrdyn.rho(lrdyn.theorem2.start_scales(weights), rate, 0.0, steps)[:, 0]}


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
            dims={"trained": ("step", "index"), "bulk": ("step",), "step": ("step",)},
        ),
    ),
)


def numbers(results, **settings):
    """What the figure shows, from saved results alone."""
    found = one_seed(results["example"])
    found["trained"].attrs["curve_along"] = "step"  # each curve is compared on its own scale
    found["bulk"].attrs["kind"] = "identity"  # a formula: compared to more digits than a run
    return found.assign_coords(index=np.arange(1, found.sizes["index"] + 1))


def draw(dataset):
    """Draw the numbers."""
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
    sources=drawn_from(EXPERIMENT, preset="quick"),
    numbers=numbers,
    draw=draw,
    presets={"quick": SETTINGS},
    panels={"trained": "a", "bulk": "a"},
)
