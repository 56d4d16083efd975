"""Figure 10 (ours): masked training against closed forms, dropout beside input masking."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

import lrdyn
from lrdyn.data.mnist import mnist, mnist_file
from lrdyn.drawing import plotting
from lrdyn.drawing.exhibits import Figure, Results, drawn_from, one_seed
from lrdyn.dropout import dropout_minimiser, dropout_penalty, dropout_strength
from lrdyn.engine.runs import Run
from lrdyn.theorem import FRACTION, POSITIVE, Experiment, Flag, Statement, at_least

QUICK = {
    "side": 4, "keep_probs": [0.9, 0.7, 0.5, 0.3], "steps": 10_000, "learning_rate": 0.05,
    "momentum": 0.9, "start": 0.1, "stochastic_steps": 30_000,
    "stochastic_rate": 0.1,
    "halve_after": 1000, "seed": 0,
}  # fmt: skip
PAPER = {**QUICK, "side": 5, "steps": 100_000, "stochastic_steps": 60_000}

CAPTION = """\
The survey's own figure of this number was not available, nor its text on masked training
(Examples 4.1 and 4.2): data, sizes and keep probabilities are ours. A linear autoencoder of
MNIST (5,000 images averaged over {side} x {side} cells; m = {features} standardised features X)
with dropout on m hidden units, Z = W_2 W_1 X, or with masks on its inputs, Z = p A X; p is the
probability to keep. (a) Dropout: singular values of Z / sqrt(n) after {steps} steps of gradient
descent on the expected loss (circles) and of the closed form U (Sigma - mu I)_+ V^T (lines), the
minimiser of ||X - Z||_F^2 + c ||Z||_*^2, c = (1-p)/(p m): one shift for all directions, and a
cut-off. Grey: Sigma. (b) Masked inputs: the same for A = S Q^(-1), Q = p S + (1-p) diag S (lines).
Every direction is shrunk and none is cut off. Dashed: the lines of (a), which would hold here if
masking inputs were the same nuclear-norm penalty; that is false. (c) What masks add to the loss,
over its lower bound by the nuclear norm, less 1, along gradient descent, for dropout (solid) and
masked inputs (dashed): dropout attains the bound, masked inputs stay above it, by {least:.1g} and
more. (d) Training with random masks, one a step, of decreasing step size: distance to the
minimiser, || Z - Z* ||_F / || Z* ||_F; dotted: t^(-1/2). Largest distance of gradient descent from
the closed forms: {distance:.0e}. (Seed {seed}, double precision.)
"""
KINDS = ("dropout", "input")


def features(side: int) -> np.ndarray:
    """Features of MNIST over the root of their number, rotated into as many examples as features.

    Args:
        side: cells along a side of an image.

    Returns:
        ``X / sqrt(n)``, a square matrix with the singular vectors and values that count.
    """
    data = lrdyn.autoencoding.pool_images(mnist().inputs, (side, side))
    left, values, _ = np.linalg.svd(data / np.sqrt(data.shape[1]), full_matrices=False)
    # Any rotation of the examples will do; without one the last factor would be diagonal.
    return left * values @ left.T


def closed_forms(data: jax.Array, keep_prob: Any) -> dict[str, jax.Array]:
    """Reconstructions Z at the minimum of the expected losses.

    Args:
        data: X over the root of the number of examples.
        keep_prob: p.

    Returns:
        Kind of mask -> Z.
    """
    # `data` has n = 1 in the sense of S = X X^T / n.
    moments = masked_moments(data, keep_prob)
    return {
        "dropout": dropout_minimiser(data, data, keep_prob, len(data)).product,
        "input": keep_prob * lrdyn.autoencoding.optimal_autoencoder(moments) @ data,
    }


def masked_moments(data: jax.Array, keep_prob: Any) -> lrdyn.autoencoding.MaskedMoments:
    """Moments of single masked features.

    Args:
        data: X over the root of the number of examples.
        keep_prob: p.

    Returns:
        The moments.
    """
    examples = data * np.sqrt(data.shape[1])
    return lrdyn.autoencoding.masked_moments(examples, np.arange(len(data)), keep_prob)


def small_weights(key: jax.Array, size: int, scale: float) -> dict[str, Any]:
    """Small Gaussian weights.

    Args:
        key: random key.
        size: m, features and hidden units.
        scale: of the entries, times the root of m.

    Returns:
        Kind of mask -> weights: two layers, or A.
    """
    matrices = lrdyn.initialization.gaussians(key, [(size, size)] * 3)
    first, second, whole = (scale * G / np.sqrt(size) for G in matrices)
    return {"dropout": (first, second), "input": whole}


def reconstruct(weights: dict[str, Any], data: jax.Array, keep_prob: Any) -> dict[str, jax.Array]:
    """Z at the mean of the masks.

    Args:
        weights: kind of mask -> weights.
        data: X.
        keep_prob: p.

    Returns:
        Kind of mask -> Z.
    """
    first, second = weights["dropout"]
    return {"dropout": second @ first @ data, "input": keep_prob * weights["input"] @ data}


def penalties(weights: dict[str, Any], data: jax.Array, keep_prob: Any) -> dict[str, jax.Array]:
    """What masks add to the loss at their mean.

    Args:
        weights: kind of mask -> weights.
        data: X.
        keep_prob: p.

    Returns:
        Kind of mask -> penalty.
    """
    first, second = weights["dropout"]
    return {
        "dropout": dropout_penalty(second, first @ data, keep_prob),
        "input": lrdyn.autoencoding.masking_penalty(
            weights["input"], masked_moments(data, keep_prob)
        ),
    }


def descend(
    weights: dict[str, Any],
    data: jax.Array,
    keep_prob: Any,
    *,
    learning_rate: float,
    momentum: float,
    steps: np.ndarray,
) -> dict[str, Any]:
    """Gradient descent on half the expected losses.

    Args:
        weights: kind of mask -> weights at the start.
        data: X.
        keep_prob: p.
        learning_rate: eta.
        momentum: of the heavy ball.
        steps: recorded steps.

    Returns:
        Reconstructions at the end, and penalty over bound at the recorded steps.
    """

    def loss(weights):
        Z, added = reconstruct(weights, data, keep_prob), penalties(weights, data, keep_prob)
        both = jnp.stack([jnp.sum((data - Z[kind]) ** 2) + added[kind] for kind in KINDS])
        return 0.5 * jnp.sum(both)

    def record(weights):
        Z, added = reconstruct(weights, data, keep_prob), penalties(weights, data, keep_prob)
        strength = dropout_strength(keep_prob, len(data))
        nuclear = {k: jnp.sum(lrdyn.singular_values(Z[k])) for k in KINDS}
        return {k: added[k] / (strength * nuclear[k] ** 2) for k in KINDS}

    rule = optax.sgd(learning_rate, momentum)
    run = lrdyn.simulate(loss, weights, rule, steps, record=record)
    return {"end": reconstruct(run.params, data, keep_prob), "ratio": run.records}


def descend_with_masks(
    key: jax.Array,
    weights: dict[str, Any],
    data: jax.Array,
    keep_prob: Any,
    *,
    rate: Callable[[jax.Array], jax.Array],
    steps: np.ndarray,
) -> dict[str, jax.Array]:
    """Train with random masks, one a step for hidden units and one for inputs.

    Args:
        key: random key.
        weights: kind of mask -> weights at the start.
        data: X.
        keep_prob: p.
        rate: step size, as a function of t.
        steps: recorded steps.

    Returns:
        Kind of mask -> reconstructions at the recorded steps.
    """

    def loss(weights, masks):
        first, second = weights["dropout"]
        hidden = masks[0][:, None] / keep_prob * (first @ data)
        seen = masks[1][:, None] * data
        missed = data - second @ hidden, data - weights["input"] @ seen
        return 0.5 * jnp.sum(missed[0] ** 2) + 0.5 * jnp.sum(missed[1] ** 2)

    def step(t, weights):
        masks = lrdyn.masking.observe(jax.random.fold_in(key, t), (2, len(data)), keep_prob)
        gradient = jax.grad(loss)(weights, masks)
        return jax.tree.map(lambda W, G: W - rate(t) * G, weights, gradient)

    return lrdyn.descent.iterate(step, weights, steps, lambda W: reconstruct(W, data, keep_prob))[1]


def spaced_steps(steps: int, count: int = 60) -> np.ndarray:
    """Geometrically spaced step numbers from 1.

    Args:
        steps: the last.
        count: at most so many.

    Returns:
        Increasing integers.
    """
    return np.unique(np.rint(np.geomspace(1, steps, count)).astype(np.int32))


class Case(NamedTuple):
    """Data, a keep probability, and how both networks are trained."""

    key: jax.Array
    data: jax.Array
    keep_prob: jax.Array
    start: float
    steps: np.ndarray
    learning_rate: float
    momentum: float
    stochastic_steps: np.ndarray
    stochastic_rate: float
    halve_after: int


def case(
    key: jax.Array, *, side: int, keep_prob: Any, steps: int, stochastic_steps: int, **how: Any
) -> Case:
    """Read the data.

    Args:
        key: random key.
        side: cells along a side of an image; m = side^2.
        keep_prob: p.
        steps: steps of gradient descent.
        stochastic_steps: steps with random masks.
        **how: other fields of :class:`Case`.

    Returns:
        The case.
    """
    recorded = {"steps": spaced_steps(steps), "stochastic_steps": spaced_steps(stochastic_steps)}
    return Case(key, jnp.asarray(features(side)), keep_prob, **recorded, **how)


def _both(each: Mapping[str, jax.Array]) -> jax.Array:
    return jnp.stack([each[kind] for kind in KINDS])


def predict(one: Case) -> dict[str, jax.Array]:
    """The closed forms.

    Args:
        one: the case.

    Returns:
        Singular values of the reconstructions, and of the data.
    """
    best = _both(closed_forms(one.data, one.keep_prob))
    return {
        "values": lrdyn.singular_values(best),
        "data_values": lrdyn.singular_values(one.data),
    }


def measure(one: Case) -> dict[str, jax.Array]:
    """Train on the expected losses, and with random masks.

    Args:
        one: the case.

    Returns:
        Singular values of the reconstructions, their distance to the closed forms, ratios and
        distances over steps.
    """
    for_start, for_masks = jax.random.split(one.key)
    data, keep_prob = one.data, one.keep_prob
    weights = small_weights(for_start, len(data), one.start)
    best = _both(closed_forms(data, keep_prob))
    found = descend(
        weights, data, keep_prob, learning_rate=one.learning_rate, momentum=one.momentum,
        steps=one.steps,
    )  # fmt: skip
    rate = lambda t: one.stochastic_rate * keep_prob / (1 + t / one.halve_after)  # noqa: E731
    noisy = descend_with_masks(
        for_masks, weights, data, keep_prob, rate=rate, steps=one.stochastic_steps
    )
    norms, end = jnp.linalg.norm(best, axis=(1, 2)), _both(found["end"])
    return {
        "values": lrdyn.singular_values(end),
        "gap": jnp.linalg.norm(end - best, axis=(1, 2)) / norms,
        "ratio": _both(found["ratio"]),
        "distance": jnp.linalg.norm(_both(noisy) - best[:, None], axis=(2, 3)) / norms[:, None],
        "step": jnp.asarray(one.steps),
        "masked_step": jnp.asarray(one.stochastic_steps),
    }


MASKED = Experiment(
    "fig10",
    "dropout and masked inputs of a linear autoencoder of MNIST, beside closed forms",
    (
        Flag("side", (4,), at_least(2), int, help="cells along a side of an image", swept=False),
        Flag("keep_prob", (0.9, 0.7, 0.5, 0.3), FRACTION, symbol="p", help="keep probability"),
        Flag("steps", (10_000,), at_least(1), int, "t", "on the expected losses", swept=False),
        Flag("learning_rate", (0.05,), POSITIVE, symbol="eta", help="its step size", swept=False),
        Flag("momentum", (0.9,), FRACTION, help="its momentum", swept=False),
        Flag("start", (0.1,), POSITIVE, help="scale of the weights at the start", swept=False),
        Flag("stochastic_steps", (30_000,), at_least(1), int, help="with masks", swept=False),
        Flag("stochastic_rate", (0.1,), POSITIVE, help="their size, over p", swept=False),
        Flag("halve_after", (1000,), at_least(1), int, help="when it has halved", swept=False),
    ),
    (
        Statement(
            "masked",
            case,
            predict,
            measure,
            dims={
                "values": ("mask", "index"),
                "data_values": ("index",),
                "gap": ("mask",),
                "ratio": ("mask", "step"),
                "distance": ("mask", "masked_step"),
                "step": ("step",),
                "masked_step": ("masked_step",),
            },
        ),
    ),
    data=mnist_file,
)


def sources(*, keep_probs: Sequence[float], **settings: Any) -> Mapping[str, Run]:
    """The run over keep probabilities.

    Args:
        keep_probs: values of p.
        **settings: other flags, and ``seed``.

    Returns:
        The run.
    """
    return drawn_from(MASKED)(keep_prob=keep_probs, **settings)


def numbers(results: Results, **_: Any) -> xr.Dataset:
    """Numbers of Figure 10.

    Args:
        results: of the experiment.
        **_: settings.

    Returns:
        Singular values over ``keep_prob``, ``mask`` and ``index``, ratios and distances over steps.
    """
    found = one_seed(results["fig10"])
    found["values"] = found["data_values"].isel(keep_prob=0, drop=True)
    found["distance"].attrs["curve_along"] = "step"
    size = found.sizes["index"]
    shown = found[["values_measured", "values_predicted", "values", "ratio", "distance"]]
    return shown.assign_coords(mask=list(KINDS), index=np.arange(1, size + 1)).assign_attrs(
        features=size,
        distance=float(found["gap"].max()),
        least=float(found["ratio"].values[:, 1, -1].min()) - 1,
    )


COLORS = (plotting.BLUE, plotting.GREEN, plotting.ORANGE, plotting.PINK)
DASHES = {"dropout": "-", "input": (0, (4, 1.5))}


def _curves(dataset: xr.Dataset):
    """Colour and numbers of each keep probability."""
    for color, keep_prob in zip(COLORS, dataset["keep_prob"].values, strict=True):
        yield color, dataset.sel(keep_prob=keep_prob)


def _index_axis(ax: Any, index: np.ndarray) -> None:
    ax.set_xlim(0.7, index[-1] + 0.3)
    ax.set_xticks(np.unique(np.rint(np.linspace(1, index[-1], 6)).astype(int)))


def plot_dropout(ax: Any, dataset: xr.Dataset) -> Any:
    """Draw the singular values that dropout leaves, trained and predicted.

    Args:
        ax: where to draw.
        dataset: numbers of the figure.

    Returns:
        ``ax``.
    """
    index = dataset["index"].values
    ax.plot(index, dataset["values"].values, color=plotting.GREY, lw=1.0)
    for color, run in _curves(dataset.sel(mask="dropout")):
        plotting.plot_compared(
            ax, index, run.values_predicted.values, run.values_measured.values,
            color=color, every=1,
        )  # fmt: skip
    ax.set(xlabel="index i", ylim=(0, None))
    _index_axis(ax, index)
    return ax


SMALLEST = 5e-3
"""Lower end of the log axis of the singular values."""


def plot_inputs(ax: Any, dataset: xr.Dataset) -> Any:
    """Draw the singular values that masked inputs leave, and those of soft-thresholding.

    Args:
        ax: where to draw.
        dataset: numbers of the figure.

    Returns:
        ``ax``.
    """
    index = dataset["index"].values
    ax.plot(index, dataset["values"].values, color=plotting.GREY, lw=1.0)
    for color, run in _curves(dataset):
        right, wrong = run.sel(mask="input"), run.sel(mask="dropout").values_predicted.values
        plotting.plot_compared(
            ax, index, right.values_predicted.values, right.values_measured.values,
            color=color, every=1,
        )  # fmt: skip
        # A direction that is cut off leaves through the lower end of the axis.
        cut = np.maximum(wrong, SMALLEST * 1e-9)
        ax.plot(index, cut, color=color, lw=0.8, ls=DASHES["input"], zorder=1)
    top = 1.5 * float(dataset["values"].max())
    ax.set(yscale="log", xlabel="index i", ylim=(SMALLEST, top))
    _index_axis(ax, index)
    return ax


LEAST_EXCESS = 1e-8
"""Lower end of the log axis of penalty over bound, less 1."""


def plot_ratio(ax: Any, dataset: xr.Dataset) -> Any:
    """Draw how far the penalty is above its bound along training.

    Args:
        ax: where to draw.
        dataset: numbers of the figure.

    Returns:
        ``ax``.
    """
    for kind, dashes in DASHES.items():
        for color, run in _curves(dataset.sel(mask=kind)):
            excess = np.maximum(run.ratio.values - 1, LEAST_EXCESS / 10)
            ax.plot(run.step.values, excess, color=color, ls=dashes, lw=1.0)
    ax.set(xscale="log", yscale="log", xlabel="iteration t", ylim=(LEAST_EXCESS, 2))
    ax.set_xlim(1, int(dataset.step[-1]))
    return ax


def plot_distance(ax: Any, dataset: xr.Dataset) -> Any:
    """Draw how training with random masks approaches the closed forms.

    Args:
        ax: where to draw.
        dataset: numbers of the figure.

    Returns:
        ``ax``.
    """
    steps = dataset.masked_step.values
    for kind, dashes in DASHES.items():
        for color, run in _curves(dataset.sel(mask=kind)):
            ax.plot(steps, run.distance.values, color=color, ls=dashes, lw=0.8)
    late = steps[steps >= steps[-1] / 100]
    ax.plot(late, 1.5 / np.sqrt(late), color=plotting.BLACK, ls=":", lw=1.0)
    ax.set(xscale="log", yscale="log", xlabel="iteration t", xlim=(1, steps[-1]))
    return ax


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 10.

    Args:
        dataset: numbers of the figure.

    Returns:
        The matplotlib figure.
    """
    titles = (
        "dropout: singular values", "masked inputs: singular values",
        "penalty / nuclear-norm bound, less 1", "random masks: distance to the minimiser",
    )  # fmt: skip
    figure, axes = plotting.panels(titles, height=4.6, rows=2)
    plots = (plot_dropout, plot_inputs, plot_ratio, plot_distance)
    for plot, ax in zip(plots, axes, strict=True):
        plot(ax, dataset)
    _keys(axes, dataset)
    return figure


def _keys(axes: Any, dataset: xr.Dataset) -> None:
    from matplotlib.lines import Line2D

    def line(text: str, color: str, **how: Any) -> Line2D:
        return Line2D([], [], color=color, label=text, **{"lw": 1.0, **how})

    shared = {"borderaxespad": 0.2, "labelspacing": 0.3}
    chances = dataset["keep_prob"].values
    colors = [line(f"$p$ = {p:g}", c) for p, c in zip(chances, COLORS, strict=True)]
    marked = {"marker": "o", "mfc": "white", "mew": 0.8}
    axes[0].legend(
        handles=[line("data $X$", plotting.GREY), *colors], loc="upper right", ncols=1, **shared
    )
    axes[1].legend(
        handles=[
            line("trained", plotting.GREY, ls="none", **marked),
            line(r"$S Q^{-1}$", plotting.GREY),
            line("soft threshold (wrong)", plotting.GREY, ls=DASHES["input"], lw=0.8),
        ],
        loc="lower left", **shared,
    )  # fmt: skip
    kinds = [line(t, plotting.GREY, ls=DASHES[k]) for k, t in
             (("dropout", "dropout"), ("input", "masked inputs"))]  # fmt: skip
    axes[2].legend(handles=kinds, loc="lower left", **shared)
    root = line("$t^{-1/2}$", plotting.BLACK, ls=":")
    axes[3].legend(handles=[*kinds, root], loc="lower left", **shared)


FIGURE = Figure(
    name="fig10",
    title="Masked training: dropout is a nuclear norm, masked inputs are a ridge",
    caption=CAPTION,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    needs={"mlxtend": "pip install 'lrdyn[data]'"},
)
