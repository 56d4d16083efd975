"""Figure 3: evolution of the SVD of the first layer of a deep matrix factorisation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import lrdyn
from lrdyn import plotting
from lrdyn.figures import Figure
from paper_figs import tracking

PRESET = {
    "dim": 30, "rank": 3, "depth": 3, "init_scale": 1.0, "weight_decay": 0.0,
    "learning_rate": 1.0, "steps": 50, "seed": 0,
}  # fmt: skip

CAPTION = """\
Evolution of the SVD of the first layer of a deep matrix factorisation: L = {depth}, d = {dim}, r
= {rank}, eps_l = {init_scale:g}, lambda = {weight_decay:g}; Phi is the rank-{rank} truncation of
a standard Gaussian matrix; {steps} iterations of gradient descent with step {learning_rate:g} on
half the mean squared error (seed {seed}, double precision). Left: singular values sigma_i(t).
Middle: angle between the right singular vector v_i(t) and v_i(0). Right: angle between the left
singular vector u_i(t) and u_i(0). Circles (every fifth iteration): dense {dim} x {dim} gradient
descent and its SVD, all i. Lines: Theorem 2, from the start alone: 2r = {moving} directions move,
as the {moving} x {moving} reduced dynamics say; the other {bulk} singular values stay equal and
decay together as rho(t), rho({steps}) = {rho_last:.3f}, and their directions do not turn. At t =
0 all singular values are equal, so vectors are not defined there: for the moving directions
v_i(0) and u_i(0) are the limits for t -> 0+ of the reduced dynamics; of a bulk direction the
angle to the bulk subspace is shown. Curves are followed by overlap, not by size. Largest
deviation of measured from predicted: {sigma_gap:.1e} (singular values), {angle_gap:.1e} degrees
(angles). All iterations are in fig03.nc.
"""


class Decomposition(NamedTuple):
    """Singular values and angles, ``(step, index)``, moving directions by rate at t = 0."""

    sigma: np.ndarray
    right: np.ndarray
    left: np.ndarray


class Start(NamedTuple):
    """What theory says at initialisation."""

    weights: lrdyn.Weights
    target: jax.Array
    scales: jax.Array
    frame: lrdyn.Frame
    reduced_target: jax.Array
    directions: np.ndarray
    """Limits for t -> 0+ of the reduced first layer's singular vectors, fastest growing first."""
    growing: int
    """How many of them grow above the bulk."""


def start(*, dim: int, rank: int, depth: int, init_scale: float, seed: int) -> Start:
    """Draw the problem and find its frame.

    To first order in t, ``Wt_1 = eps I + t D`` with D the negative gradient, so that
    ``Wt_1^T Wt_1 = eps^2 I + eps t (D + D^T)``: both kinds of singular vectors start at the
    eigenvectors of the symmetric part of D.

    Args:
        dim: d.
        rank: r.
        depth: L.
        init_scale: eps.
        seed: random seed.

    Returns:
        The start.
    """
    target_key, weight_key = jax.random.split(jax.random.key(seed))
    target = lrdyn.truncated_gaussian_target(target_key, (dim, dim), rank)
    scales = jnp.full(depth, init_scale)
    weights = lrdyn.orthogonal_layers(weight_key, (dim,) * (depth + 1), scales)
    frame = lrdyn.frame(weights, target, rank)
    small = lrdyn.reduced_target(frame, target, 2 * rank)
    layers = tuple(scale * jnp.eye(2 * rank) for scale in scales)
    descent = -jax.grad(lrdyn.factorization_loss)(layers, small)[0]
    rates, directions = np.linalg.eigh(np.asarray(descent + descent.T) / 2)
    bulk_rate = -init_scale * init_scale ** (2 * (depth - 1))
    growing = int(np.sum(rates > bulk_rate))
    return Start(weights, target, scales, frame, small, directions[:, ::-1], growing)


def decompose(
    layers: np.ndarray, left: np.ndarray, right: np.ndarray, moving: int
) -> Decomposition:
    """SVD of a layer over time, followed from given singular vectors at time 0.

    Args:
        layers: ``(times, d, d)``, a multiple of an orthogonal matrix at time 0.
        left: orthonormal columns at time 0: the moving ones, then the bulk.
        right: the same for the right singular vectors.
        moving: number of moving columns.

    Returns:
        Values and angles: moving columns in the order given, then the bulk.
    """
    U, sigma, Vh = np.linalg.svd(layers)
    V = np.swapaxes(Vh, 1, 2)
    chosen = tracking.follow(V, right[:, :moving])
    everything = np.arange(layers.shape[1])
    rest = np.array([np.setdiff1d(everything, row) for row in chosen], dtype=int)
    order = np.concatenate([chosen, rest], axis=1)
    sigma = np.concatenate([sigma[:1], np.take_along_axis(sigma[1:], order, axis=1)])
    return Decomposition(
        sigma, *(_angles(np.take_along_axis(columns[1:], order[:, None, :], axis=2), begin, moving)
                 for columns, begin in ((V, right), (U, left)))
    )  # fmt: skip


def _angles(columns: np.ndarray, begin: np.ndarray, moving: int) -> np.ndarray:
    inside, outside = begin[:, moving:], begin[:, :moving]
    turned = tracking.vector_angles(columns[:, :, :moving], outside)
    left_bulk = tracking.subspace_angles(columns[:, :, moving:], inside, outside)
    angles = np.concatenate([turned, left_bulk], axis=1)
    return np.concatenate([np.zeros((1, angles.shape[1])), angles])  # at t = 0 by definition


def measure(
    begin: Start, steps: np.ndarray, learning_rate: float, weight_decay: float
) -> Decomposition:
    """Dense gradient descent on the mean loss, and the SVD of its first layer.

    Args:
        begin: the start.
        steps: recorded steps.
        learning_rate: step of gradient descent on the mean loss.
        weight_decay: decay beside the mean loss.

    Returns:
        Singular values and angles.
    """
    run = lrdyn.simulate(
        lambda weights: lrdyn.mean_factorization_loss(weights, begin.target),
        begin.weights,
        lrdyn.gradient_descent(learning_rate, weight_decay),
        steps,
        record=lambda weights: weights[0],
    )
    moving = begin.directions.shape[0]
    left, right = (
        np.concatenate([basis[0, :, :moving] @ begin.directions, basis[0, :, moving:]], axis=1)
        for basis in (np.asarray(begin.frame.left), np.asarray(begin.frame.right))
    )
    return decompose(np.asarray(run.records), left, right, moving)


def predict(
    begin: Start, steps: np.ndarray, learning_rate: float, weight_decay: float
) -> Decomposition:
    """The same from the reduced dynamics and rho; step and decay as for the loss 1/2 ||.||^2.

    Args:
        begin: the start.
        steps: recorded steps.
        learning_rate: eta.
        weight_decay: lambda.

    Returns:
        Singular values and angles.
    """
    run = lrdyn.reduced_dynamics(
        begin.reduced_target,
        begin.scales,
        learning_rate,
        weight_decay,
        steps,
        record=lambda weights: weights[0],
    )
    moving, dim = begin.directions.shape[0], begin.target.shape[0]
    small = decompose(np.asarray(run.records), begin.directions, begin.directions, moving)
    rho = np.asarray(lrdyn.rho(begin.scales, learning_rate, weight_decay, steps))[:, :1]
    bulk = np.repeat(np.abs(rho), dim - moving, axis=1)
    still = np.zeros_like(bulk)
    parts = zip(small, (bulk, still, still), strict=True)
    return Decomposition(*(np.concatenate(pair, axis=1) for pair in parts))


def compute(*, steps: int, learning_rate: float, weight_decay: float, **problem: Any) -> xr.Dataset:
    """Numbers of Figure 3.

    Args:
        steps: iterations, all recorded.
        learning_rate: for half the mean squared error.
        weight_decay: beside half the mean squared error.
        **problem: arguments of :func:`start`.

    Returns:
        Singular values and angles, measured and predicted, over ``step`` and ``index``.
    """
    begin, times = start(**problem), np.arange(steps + 1)
    entries = begin.target.size  # mean loss: eta / d^2 and lambda d^2
    measured = measure(begin, times, learning_rate, weight_decay)
    predicted = predict(begin, times, learning_rate / entries, weight_decay * entries)
    return _dataset(begin, times, measured, predicted)


def _dataset(
    begin: Start, times: np.ndarray, measured: Decomposition, predicted: Decomposition
) -> xr.Dataset:
    moving, dim = begin.directions.shape[0], begin.target.shape[0]
    # Plotted order: growing, bulk, shrinking.
    grow, shrink = np.arange(begin.growing), np.arange(begin.growing, moving)
    order = np.concatenate([grow, np.arange(moving, dim), shrink])
    words = {
        "sigma": "singular value",
        "right": "angle of v_i to v_i(0)",
        "left": "angle of u_i to u_i(0)",
    }
    arrays = {
        f"{name}_{source}": (("step", "index"), getattr(found, name)[:, order],
                             {"long_name": text, "units": "1" if name == "sigma" else "degrees"})
        for name, text in words.items()
        for source, found in (("measured", measured), ("predicted", predicted))
    }  # fmt: skip
    gaps = {
        name: float(np.max(np.abs(getattr(measured, name) - getattr(predicted, name))))
        for name in words
    }
    return xr.Dataset(
        arrays,
        {
            "step": times, "index": np.arange(1, dim + 1),
            "moves": ("index", (order < moving).astype(np.int8)),
        },
        {
            "moving": moving, "bulk": dim - moving, "growing": begin.growing,
            "rho_last": float(predicted.sigma[-1, -1]),
            "sigma_gap": gaps["sigma"], "angle_gap": max(gaps["right"], gaps["left"]),
        },
    )  # fmt: skip


def curve_colors(dataset: xr.Dataset) -> list[str]:
    """Colour of each index: blues grow, oranges shrink, black is the bulk.

    Args:
        dataset: numbers of the figure.

    Returns:
        One colour for each index.
    """
    growing, shrinking = dataset.growing, dataset.moving - dataset.growing
    blues = [plotting.BLUES[i % 3] for i in range(growing)]
    oranges = [plotting.ORANGES[i % 3] for i in range(shrinking)]
    return [*blues, *[plotting.BLACK] * dataset.bulk, *oranges]


def plot_evolution(ax: Any, dataset: xr.Dataset, name: str) -> Any:
    """Draw one quantity for all i over all t.

    Args:
        ax: where to draw.
        dataset: numbers of the figure.
        name: ``sigma``, ``right`` or ``left``.

    Returns:
        ``ax``.
    """
    predicted, measured = (
        dataset[f"{name}_{source}"].values for source in ("predicted", "measured")
    )
    for i, color in enumerate(curve_colors(dataset)):
        # Markers of different curves are staggered; those of the bulk lie on each other.
        stagger = 0 if color == plotting.BLACK else i % 5
        plotting.plot_compared(
            ax,
            dataset.step.values,
            predicted[:, i],
            measured[:, i],
            color=color,
            every=(stagger, 5),
        )
    ax.set(xlabel="iteration t", xlim=(0, int(dataset.step[-1])))
    return ax


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 3.

    Args:
        dataset: numbers of the figure.

    Returns:
        The matplotlib figure.
    """
    titles = [
        r"singular values $\sigma_i(t)$",
        r"$\angle(v_i(t), v_i(0))$ [degrees]",
        r"$\angle(u_i(t), u_i(0))$ [degrees]",
    ]
    figure, axes = plotting.panels(titles)
    for ax, name in zip(axes, ("sigma", "right", "left"), strict=True):
        plot_evolution(ax, dataset, name)
    _label_values(axes[0], dataset)
    top = max(float(dataset[name].max()) for name in ("right_measured", "left_measured"))
    for ax in axes[1:]:  # one scale for both kinds of angle
        ax.set_ylim(-0.04 * top, 1.08 * top)
        text = f"{dataset.bulk} bulk directions"
        above = {"xytext": (0, 5), "textcoords": "offset points", "ha": "right"}
        ax.annotate(text, (1, 0), xycoords=("axes fraction", "data"), **above)
    plotting.plot_key(axes[1], line="predicted", marker="measured")
    return figure


def _label_values(ax: Any, dataset: xr.Dataset) -> None:
    """Number the moving curves at their ends, and the bulk by its range."""
    moves = dataset.moves.values.astype(bool)
    first, last = dataset.index.values[~moves][[0, -1]]
    texts = {int(i): f"{i}" for i in dataset.index.values[moves]} | {int(first): f"{first}–{last}"}
    rows = [i - 1 for i in sorted(texts)]
    ends = dataset.sigma_predicted.values[-1, rows]
    colors = [curve_colors(dataset)[row] for row in rows]
    plotting.label_ends(ax, list(ends), [texts[row + 1] for row in rows], colors)
    ax.text(1.03, 1.0, "i =", transform=ax.transAxes, va="bottom")


FIGURE = Figure(
    name="fig03",
    title="SVD of the first layer during deep matrix factorisation",
    caption=CAPTION,
    compute=compute,
    draw=draw,
    presets={"quick": PRESET, "paper": PRESET},
)
