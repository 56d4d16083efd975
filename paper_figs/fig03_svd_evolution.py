"""Figure 3: evolution of the SVD of the first layer of a deep matrix factorisation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

import lrdyn
from lrdyn.core import chance
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results, one_seed, run_sources
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.fields import ABSENT
from paper_figs import shared, tracking

PRESET = {
    "dim": 30,
    "rank": 3,
    "depth": 3,
    "init_scale": 1.0,
    "weight_decay": 0.0,
    "learning_rate": 1.0,
    "steps": 50,
    "seed": 0,
}

CAPTION = """\
SVD of the first layer of a deep matrix factorisation (L = {depth}, d = {dim}, r = {rank}, eps_l =
{init_scale:g}, lambda = {weight_decay:g}) over {steps} iterations of gradient descent. (a) Singular
values sigma_i(t). (b, c) Angles of the right and of the left singular vectors to their start.
Circles (every fifth iteration): dense {dim} x {dim} gradient descent and its SVD, all i. Lines:
Theorem 2, from the start alone: 2r = {moving} directions move; the other {bulk} singular values
stay equal, decay together to {rho_last:.3f}, and their directions do not turn. Largest deviation:
{sigma_gap:.1e} (singular values), {angle_gap:.1e} degrees (angles).
"""
NOTES = """\
Phi is the rank-{rank} truncation of a standard Gaussian matrix; the step is {learning_rate:g}, the
loss half the mean squared error (seed {seed}, double precision). The {moving} directions move as
the {moving} x {moving} reduced dynamics say, the others as rho(t). At t = 0 all singular values are
equal, so vectors are not defined there: for the moving directions v_i(0) and u_i(0) are the limits
for t -> 0+ of the reduced dynamics; of a bulk direction the angle to the bulk subspace is shown.
Chance: a random direction lies at {turned:.0f} degrees to v_i(0), and at {left:.0f} to the bulk
subspace. Curves are followed by overlap, not by
size. All iterations are in fig03.nc.
"""


class Decomposition(NamedTuple):
    """Singular values and angles, ``(step, index)``, moving directions by rate at t = 0."""

    sigma: np.ndarray
    right: np.ndarray
    left: np.ndarray


class Start(NamedTuple):
    """A run and its frame."""

    weights: lrdyn.core.Weights
    target: jax.Array
    scales: jax.Array
    frame: lrdyn.theorem2.Frame
    reduced_target: jax.Array
    learning_rate: float
    """Rate of gradient descent on the mean loss, as is ``weight_decay``."""
    weight_decay: float
    steps: np.ndarray


def start(
    key: jax.Array,
    *,
    dim: int,
    rank: int,
    depth: int,
    init_scale: float,
    learning_rate: float,
    weight_decay: float,
    steps: int,
) -> Start:
    """Draw the problem and find its frame; all steps are recorded."""
    target_key, weight_key = jax.random.split(key)
    target = lrdyn.truncated_gaussian_target(target_key, (dim, dim), rank)
    scales = jnp.full(depth, init_scale)
    weights = lrdyn.orthogonal_layers(weight_key, (dim,) * (depth + 1), scales)
    frame = lrdyn.frame(weights, target, rank)
    small = lrdyn.reduced_target(frame, target, 2 * rank)
    times = np.arange(steps + 1)
    return Start(weights, target, scales, frame, small, learning_rate, weight_decay, times)


class EvolutionTheory(NamedTuple):
    """The first layer by the reduced dynamics."""

    moving: Float[Array, "step moving_output moving_input"] = ABSENT
    """Its moving block, 2r x 2r."""
    bulk: Float[Array, "step"] = ABSENT
    """rho_1, the value that its other singular values share."""
    descent: Float[Array, "moving_output moving_input"] = ABSENT
    """Symmetric part of the negative gradient at the start."""


class EvolutionMeasured(NamedTuple):
    """The first layer of the dense run, and the frame of its sides."""

    layer: Float[Array, "step output input"] = ABSENT
    """W_1."""
    left: Float[Array, "output left_direction"] = ABSENT
    """U_1, the moving directions first."""
    right: Float[Array, "input right_direction"] = ABSENT
    """V_1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps, all of them."""


def measure(begin: Start) -> EvolutionMeasured:
    """The first layer in dense gradient descent on the mean loss, and the frame of its sides."""
    run = lrdyn.simulate(
        lambda weights: lrdyn.core.mean_factorization_loss(weights, begin.target),
        begin.weights,
        lrdyn.gradient_descent(begin.learning_rate, begin.weight_decay),
        begin.steps,
        record=lambda weights: weights[0],
    )
    return EvolutionMeasured(
        layer=run.records,
        left=begin.frame.left[0],
        right=begin.frame.right[0],
        step=jnp.asarray(begin.steps),
    )


def predict(begin: Start) -> EvolutionTheory:
    """Moving block and bulk value from the reduced dynamics and rho, and how the layer begins."""
    entries = begin.target.size  # mean loss: eta / d^2 and lambda d^2
    rates = (begin.scales, begin.learning_rate / entries, begin.weight_decay * entries, begin.steps)
    run = lrdyn.reduced_dynamics(begin.reduced_target, *rates, record=lambda weights: weights[0])
    layers = tuple(scale * jnp.eye(len(begin.reduced_target)) for scale in begin.scales)
    descent = -jax.grad(lrdyn.factorization_loss)(layers, begin.reduced_target)[0]
    return EvolutionTheory(
        moving=run.records,
        bulk=lrdyn.rho(*rates)[:, 0],
        descent=(descent + descent.T) / 2,
    )


EVOLUTION = shared.one_scenario(
    "fig03",
    "first layer of a deep matrix factorisation, dense and by Theorem 2",
    (
        shared.DIM,
        shared.RANK,
        shared.DEPTH,
        shared.INIT_SCALE,
        shared.WEIGHT_DECAY,
        shared.LEARNING_RATE,
        shared.STEPS,
    ),
    start,
    predict=predict,
    measure=measure,
    theory=EvolutionTheory,
    measured=EvolutionMeasured,
)


def growth(descent: np.ndarray, init_scale: float, depth: int) -> tuple[np.ndarray, int]:
    """Limits for t -> 0+ of the reduced first layer's singular vectors, and how many grow.

    To first order in t, ``Wt_1 = eps I + t D`` with D the negative gradient, so that
    ``Wt_1^T Wt_1 = eps^2 I + eps t (D + D^T)``: both kinds of singular vectors start at the
    eigenvectors of the symmetric part of D, here fastest growing first. To grow is to grow above
    the bulk.
    """
    # Symmetric by construction, so that singular vectors at t -> 0+ are its eigenvectors.
    rates, directions = np.linalg.eigh(descent)
    # The gradient of eps I on the bulk, where the target is 0: -eps^(2L-1).
    bulk_rate = -init_scale * init_scale ** (2 * (depth - 1))
    return directions[:, ::-1], int(np.sum(rates > bulk_rate))


def decompose(
    layers: np.ndarray, left: np.ndarray, right: np.ndarray, moving: int
) -> Decomposition:
    """SVD of layers (times, d, d), followed from given singular vectors at time 0.

    At time 0 the layer is a multiple of an orthogonal matrix. Columns are the moving ones, in the
    order given, then the bulk.
    """
    U, sigma, Vh = np.linalg.svd(layers)
    V = np.swapaxes(Vh, 1, 2)
    chosen = tracking.follow(V, right[:, :moving])
    everything = np.arange(layers.shape[1])
    rest = np.array([np.setdiff1d(everything, row) for row in chosen], dtype=int)
    order = np.concatenate([chosen, rest], axis=1)
    # At time 0 all singular values are equal, and an order of them means nothing.
    sigma = np.concatenate([sigma[:1], np.take_along_axis(sigma[1:], order, axis=1)])
    angles = [
        _angles(np.take_along_axis(columns[1:], order[:, None, :], axis=2), begin, moving)
        for columns, begin in ((V, right), (U, left))
    ]
    return Decomposition(sigma, *angles)


def _angles(columns: np.ndarray, begin: np.ndarray, moving: int) -> np.ndarray:
    inside, outside = begin[:, moving:], begin[:, :moving]
    turned = tracking.vector_angles(columns[:, :, :moving], outside)
    left_bulk = tracking.subspace_angles(columns[:, :, moving:], inside, outside)
    angles = np.concatenate([turned, left_bulk], axis=1)
    return np.concatenate([np.zeros((1, angles.shape[1])), angles])  # at t = 0 by definition


def decompose_dense(results: xr.Dataset, directions: np.ndarray) -> Decomposition:
    """SVD of the first layer of the dense run, from the directions of :func:`growth`."""
    run, moving = fields.of_run(results, EvolutionMeasured), len(directions)
    left, right = (
        np.concatenate([basis[:, :moving] @ directions, basis[:, moving:]], axis=1)
        for basis in (run(lambda run: run.left).values, run(lambda run: run.right).values)
    )
    return decompose(run(lambda run: run.layer).values, left, right, moving)


def decompose_reduced(results: xr.Dataset, directions: np.ndarray) -> Decomposition:
    """SVD of the first layer by the reduced dynamics, from the moving block and the bulk."""
    theory, moving = fields.of_theory(results, EvolutionTheory), len(directions)
    blocks = theory(lambda theory: theory.moving).values
    small = decompose(blocks, directions, directions, moving)
    values = np.abs(theory(lambda theory: theory.bulk).values)
    bulk = np.repeat(values[:, None], results.sizes["input"] - moving, axis=1)
    still = np.zeros_like(bulk)
    parts = zip(small, (bulk, still, still), strict=True)
    return Decomposition(*(np.concatenate(pair, axis=1) for pair in parts))


def numbers(results: Results, *, init_scale: float, depth: int, **_: Any) -> xr.Dataset:
    """Singular values and angles, measured and predicted, over step and index."""
    saved = one_seed(results["fig03"])
    theory = fields.of_theory(saved, EvolutionTheory)
    directions, growing = growth(theory(lambda theory: theory.descent).values, init_scale, depth)
    measured, predicted = decompose_dense(saved, directions), decompose_reduced(saved, directions)
    moving, dim = len(directions), measured.sigma.shape[1]
    # Plotted order: growing, bulk, shrinking.
    grow, shrink = np.arange(growing), np.arange(growing, moving)
    order = np.concatenate([grow, np.arange(moving, dim), shrink])
    words = {
        "sigma": "singular value",
        "right": "angle of v_i to v_i(0)",
        "left": "angle of u_i to u_i(0)",
    }
    arrays = {
        f"{name}_{source}": (
            ("step", "index"),
            getattr(decomposition, name)[:, order],
            {"long_name": text, "units": "1" if name == "sigma" else "degrees"},
        )
        for name, text in words.items()
        for source, decomposition in (("measured", measured), ("predicted", predicted))
    }
    gaps = {
        name: float(np.max(np.abs(getattr(measured, name) - getattr(predicted, name))))
        for name in words
    }
    return xr.Dataset(
        arrays,
        {
            "step": fields.of_run(saved, EvolutionMeasured)(lambda run: run.step).values,
            "index": np.arange(1, dim + 1),
            "moves": ("index", (order < moving).astype(np.int8)),
        },
        {
            "moving": moving,
            "bulk": dim - moving,
            "growing": growing,
            "rho_last": float(predicted.sigma[-1, -1]),
            "sigma_gap": gaps["sigma"],
            "angle_gap": max(gaps["right"], gaps["left"]),
        },
    )


def says(drawn: xr.Dataset) -> dict[str, Any]:
    """Angles of random directions, for the caption."""
    dim = drawn.sizes["index"]
    turned, left = (chance.direction_angle(dim, size) for size in (1, int(drawn.bulk)))
    return {"turned": float(turned.value), "left": float(left.value)}


def curve_colors(dataset: xr.Dataset) -> list[str]:
    """Colour of each index: blues grow, oranges shrink, black is the bulk."""
    growing, shrinking = dataset.growing, dataset.moving - dataset.growing
    blues = [plotting.BLUES[i % 3] for i in range(growing)]
    oranges = [plotting.ORANGES[i % 3] for i in range(shrinking)]
    return [*blues, *[plotting.BLACK] * dataset.bulk, *oranges]


def plot_evolution(ax: Any, dataset: xr.Dataset, name: str) -> None:
    """Draw one quantity for all i over all t."""
    predicted, measured = (dataset[f"{name}_{side}"].values for side in ("predicted", "measured"))
    for i, color in enumerate(curve_colors(dataset)):
        # Markers of different curves are staggered; those of the bulk lie on each other.
        every = (0 if color == plotting.BLACK else i % 5, 5)
        step, curves = dataset.step.values, (predicted[:, i], measured[:, i])
        plotting.plot_compared(ax, step, *curves, color=color, every=every)
    ax.set(xlabel="iteration t", xlim=(0, int(dataset.step[-1])))


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 3."""
    titles = {
        "sigma": r"singular values $\sigma_i(t)$",
        "right": r"$\angle(v_i(t), v_i(0))$ [degrees]",
        "left": r"$\angle(u_i(t), u_i(0))$ [degrees]",
    }
    figure, axes = plotting.panels(list(titles.values()))
    for ax, name in zip(axes, titles, strict=True):
        plot_evolution(ax, dataset, name)
    _label_values(axes[0], dataset)
    top = max(float(dataset[name].max()) for name in ("right_measured", "left_measured"))
    for ax in axes[1:]:  # one scale for both kinds of angle
        ax.set_ylim(-0.04 * top, 1.08 * top)
        text = f"{dataset.bulk} bulk directions"
        above = {"xytext": (0, 5), "textcoords": "offset points", "ha": "right"}
        ax.annotate(text, (1, 0), xycoords=("axes fraction", "data"), **above)
    entries = [plotting.entry("predicted"), plotting.entry("measured", **plotting.OPEN)]
    plotting.key(axes[1], entries, "upper left", serves=axes)
    return figure


def _label_values(ax: Any, dataset: xr.Dataset) -> None:
    """Number the moving curves at their ends, and the bulk by its range."""
    moves = dataset.moves.values.astype(bool)
    first, last = dataset.index.values[~moves][[0, -1]]
    texts = {int(i): f"{i}" for i in dataset.index.values[moves]} | {int(first): f"{first}–{last}"}
    rows = [i - 1 for i in sorted(texts)]
    ends, colors = dataset.sigma_predicted.values[-1, rows], curve_colors(dataset)
    shown = [texts[row + 1] for row in rows]
    plotting.label_ends(ax, list(ends), shown, [colors[row] for row in rows], title="i =")


FIGURE = Figure(
    name="fig03",
    shows=("theorem2",),
    title="SVD of the first layer during deep matrix factorisation",
    caption=CAPTION,
    notes=NOTES,
    sources=run_sources(EVOLUTION),
    numbers=numbers,
    draw=draw,
    says=says,
    presets={"quick": PRESET, "paper": PRESET},
    panels={
        f"{name}_{side}": panel
        for name, panel in (("sigma", "a"), ("right", "b"), ("left", "c"))
        for side in ("predicted", "measured")
    },
)
