"""Figure 6 (ours): the compressed network of Corollary 1 against the full one."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

import lrdyn
from lrdyn import plotting
from lrdyn.figures import Figure

QUICK = {
    "dim": 100, "rank": 5, "depth": 3, "init_scales": [0.1, 0.3, 1.0], "compressed_ranks": [5, 40],
    "learning_rate": 0.2, "steps": 300, "seed": 0, "timed_dims": [30, 100, 300],
}  # fmt: skip
PAPER = {**QUICK, "timed_dims": [30, 100, 300, 1000]}

CAPTION = """\
The survey's own figure of this number was not available; this one shows its Corollary 1. Deep
factorisation of a rank-{rank} target with singular values evenly spaced in [1/2, 1]: L = {depth},
d = {dim}, orthogonal initialisation of scale eps, gradient descent on 1/2 ||.||_F^2 with step
{learning_rate:g} without weight decay (seed {seed}, double precision). (a) Loss of the full
network (circles: dense {dim} x {dim} layers; lines: predicted from the compressed run and rho)
and of the compressed one (dashed; r^ = r, layers {small} x {small}). The full loss is larger by
exactly half the squared error of panel (b): the bulk, which the compressed network leaves out and
which decays slowly. (b) Error ||f - f_C||_F, measured (circles r^ = {compressed_ranks[0]},
squares r^ = {compressed_ranks[1]}) against the identity sqrt(d - 2 r^) prod_l rho_l(t) (lines)
and the bound sqrt(d - 2 r^) prod_l eps_l (dotted). Largest deviation from the identity:
{error_gap:.1e} of the error's bound. (c) Time of one step, gradient and update, full and reduced
(r^ = r), the least of {repeats} runs on {machine}; these numbers depend on the machine.
"""
REPEATS = 3


def problem(
    dim: int, rank: int, depth: int, init_scale: Any, seed: int
) -> tuple[lrdyn.Weights, jax.Array]:
    """Draw orthogonal layers and a target of the given rank.

    Args:
        dim: d.
        rank: r.
        depth: L.
        init_scale: eps.
        seed: random seed.

    Returns:
        The layers and the target.
    """
    target_key, weight_key = jax.random.split(jax.random.key(seed))
    target = lrdyn.low_rank_target(target_key, (dim, dim), lrdyn.spaced_singular_values(rank))
    weights = lrdyn.orthogonal_layers(weight_key, (dim,) * (depth + 1), jnp.full(depth, init_scale))
    return weights, target


def trajectory(
    weights: lrdyn.Weights,
    target: jax.Array,
    ranks: Sequence[int],
    learning_rate: float,
    steps: np.ndarray,
) -> dict[str, jax.Array]:
    """Full and compressed run from one start.

    Args:
        weights: the start.
        target: Phi.
        ranks: ranks r^ of the compressed networks; the losses are of the first.
        learning_rate: eta.
        steps: recorded steps.

    Returns:
        Losses ``(step)``, that of the full network also predicted; errors, their prediction
        ``(rank, step)`` and bound ``(rank)``.
    """
    scales, dim = lrdyn.start_scales(weights), target.shape[0]
    rule = lrdyn.gradient_descent(learning_rate)
    full = lrdyn.simulate(
        lambda layers: lrdyn.factorization_loss(layers, target),
        weights,
        rule,
        steps,
        record=lrdyn.end_to_end,
    ).records
    rho = lrdyn.rho(scales, learning_rate, 0.0, steps)
    compressed = jnp.stack(
        [compressed_maps(weights, target, r, learning_rate, steps) for r in ranks]
    )
    loss = _losses(compressed[0], target)
    return {
        "loss_full": _losses(full, target),
        "loss_compressed": loss,
        "loss_predicted": loss + lrdyn.compression_error(rho, dim, ranks[0]) ** 2 / 2,
        "error_measured": jnp.linalg.norm(full[None] - compressed, axis=(-2, -1)),
        "error_predicted": jnp.stack([lrdyn.compression_error(rho, dim, r) for r in ranks]),
        "error_bound": jnp.stack([lrdyn.compression_bound(scales, dim, r) for r in ranks]),
    }


def _losses(maps: jax.Array, target: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum((maps - target[None]) ** 2, axis=(-2, -1))


def compressed_maps(
    weights: lrdyn.Weights, target: jax.Array, rank: int, learning_rate: float, steps: np.ndarray
) -> jax.Array:
    """What the compressed network computes at each recorded step, as d x d matrices.

    Args:
        weights: the start.
        target: Phi.
        rank: r^.
        learning_rate: eta.
        steps: recorded steps.

    Returns:
        ``f_C(t)``, ``(step, d, d)``.
    """
    frame = lrdyn.frame(weights, target, rank)
    small = lrdyn.reduced_target(frame, target, 2 * rank)
    inner = lrdyn.reduced_dynamics(
        small, lrdyn.start_scales(weights), learning_rate, 0.0, steps
    ).records
    return jax.vmap(lambda layers: lrdyn.compressed_product(lrdyn.compress(frame, layers)))(inner)


def seconds_per_step(run: Callable[[int], Any], steps: int) -> float:
    """Time of one step: the least of several runs, after one that compiles.

    Args:
        run: runs so many steps.
        steps: how many.

    Returns:
        Seconds.
    """
    times = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        jax.block_until_ready(run(steps))
        times.append(time.perf_counter() - begin)
    return min(times[1:]) / steps


def step_times(
    dim: int, rank: int, depth: int, learning_rate: float, seed: int
) -> tuple[float, float]:
    """Time of a full and of a reduced step.

    Args:
        dim: d.
        rank: r.
        depth: L.
        learning_rate: eta.
        seed: random seed.

    Returns:
        Seconds of a full step and of a reduced one.
    """
    weights, target = problem(dim, rank, depth, 0.3, seed)
    frame = lrdyn.frame(weights, target, rank)
    small = lrdyn.reduced_target(frame, target, 2 * rank)
    layers = tuple(0.3 * jnp.eye(2 * rank) for _ in range(depth))

    @jax.jit
    def run(start, goal, steps):
        loss = lambda layers: lrdyn.factorization_loss(layers, goal)  # noqa: E731
        rule = lrdyn.gradient_descent(learning_rate)
        return lrdyn.simulate(loss, start, rule, steps, record=lambda _: None).params

    full = seconds_per_step(lambda n: run(weights, target, np.array([n])), max(4, 2000 // dim))
    reduced = seconds_per_step(lambda n: run(layers, small, np.array([n])), 2000)
    return full, reduced


def compute(
    *,
    dim: int,
    rank: int,
    depth: int,
    init_scales: Sequence[float],
    compressed_ranks: Sequence[int],
    learning_rate: float,
    steps: int,
    seed: int,
    timed_dims: Sequence[int],
) -> xr.Dataset:
    """Numbers of Figure 6.

    Args:
        dim: d.
        rank: r.
        depth: L.
        init_scales: eps of each run.
        compressed_ranks: r^ of each compressed network, the first equal to r.
        learning_rate: eta, for 1/2 ||.||_F^2.
        steps: iterations.
        seed: random seed.
        timed_dims: d of the timings.

    Returns:
        Losses and errors over ``init_scale``, ``compressed_rank`` and ``step``; times over ``dim``.
    """
    times = lrdyn.recorded_steps(steps, 61)

    def run(init_scale):
        weights, target = problem(dim, rank, depth, init_scale, seed)
        return trajectory(weights, target, compressed_ranks, learning_rate, times)

    found = lrdyn.sweep(run, lrdyn.product(init_scale=init_scales))
    arrays = {str(name): values.values for name, values in found.items()}
    timed = np.array([step_times(d, rank, depth, learning_rate, seed) for d in timed_dims])
    gap = (
        np.abs(arrays["error_measured"] - arrays["error_predicted"])
        / arrays["error_bound"][..., None]
    )
    per_curve = {"curve_along": "step"}
    errors = ("init_scale", "compressed_rank", "step")
    free = {"compare": 0, "units": "s"}
    return xr.Dataset(
        {
            "loss_full": (("init_scale", "step"), arrays["loss_full"], per_curve),
            "loss_predicted": (("init_scale", "step"), arrays["loss_predicted"], per_curve),
            "loss_compressed": (("init_scale", "step"), arrays["loss_compressed"], per_curve),
            "error_measured": (errors, arrays["error_measured"], per_curve),
            "error_predicted": (errors, arrays["error_predicted"], per_curve),
            "error_bound": (errors[:2], arrays["error_bound"]),
            "time_full": ("dim", timed[:, 0], free),
            "time_reduced": ("dim", timed[:, 1], free),
        },
        {
            "step": times, "init_scale": list(init_scales), "compressed_rank":
            list(compressed_ranks), "dim": list(timed_dims),
        },
        {
            "error_gap": float(gap.max()), "small": 2 * compressed_ranks[0], "repeats": REPEATS,
            "machine": f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        },
    )  # fmt: skip


COLORS = (plotting.BLUE, plotting.ORANGE, plotting.GREEN)
MARKERS = ("o", "s")


def plot_losses(ax: Any, dataset: xr.Dataset) -> Any:
    """Draw the loss of the full and of the compressed network over the iterations.

    Args:
        ax: where to draw.
        dataset: numbers of the figure.

    Returns:
        ``ax``.
    """
    for color, scale in zip(COLORS, dataset.init_scale.values, strict=True):
        run = dataset.sel(init_scale=scale)
        plotting.plot_compared(
            ax,
            run.step.values,
            run.loss_predicted.values,
            run.loss_full.values,
            color=color,
            every=4,
        )
        ax.plot(run.step.values, run.loss_compressed.values, color=color, lw=1.0, ls=(0, (4, 1.5)))
    ax.set(yscale="log", xlabel="iteration t", xlim=(0, int(dataset.step[-1])))
    ax.set_ylim(0.3 * float(dataset.loss_compressed.min()), 2 * float(dataset.loss_full.max()))
    return ax


def plot_errors(ax: Any, dataset: xr.Dataset) -> Any:
    """Draw the error of the compressed network, measured, predicted and bounded.

    Args:
        ax: where to draw.
        dataset: numbers of the figure.

    Returns:
        ``ax``.
    """
    for color, scale in zip(COLORS, dataset.init_scale.values, strict=True):
        for marker, rank in zip(MARKERS, dataset.compressed_rank.values, strict=True):
            run = dataset.sel(init_scale=scale, compressed_rank=rank)
            plotting.plot_compared(
                ax, run.step.values, run.error_predicted.values, run.error_measured.values,
                color=color, marker=marker, every=4,
            )  # fmt: skip
            ax.axhline(float(run.error_bound), color=color, lw=0.8, ls=":")
    ax.set(yscale="log", xlabel="iteration t", xlim=(0, int(dataset.step[-1])))
    # Room for the key below the lowest curve.
    ax.set_ylim(0.05 * float(dataset.error_predicted.min()), 2 * float(dataset.error_bound.max()))
    return ax


def plot_times(ax: Any, dataset: xr.Dataset) -> Any:
    """Draw the time of a step against d.

    Args:
        ax: where to draw.
        dataset: numbers of the figure.

    Returns:
        ``ax``.
    """
    size = dataset.small
    names = {"full": "full, d × d", "reduced": f"reduced, {size} × {size}"}
    looks = ((plotting.BLACK, "right"), (plotting.PINK, "center"))
    for (name, text), (color, align) in zip(names.items(), looks, strict=True):
        times = dataset[f"time_{name}"].values
        ax.plot(dataset["dim"].values, times, color=color, lw=1.0, marker="o", mfc="white")
        middle = len(times) // 2
        at = (dataset["dim"].values[middle], times[middle])
        ax.annotate(text, at, (-3, 5), textcoords="offset points", color=color, ha=align)
    ax.set(xscale="log", yscale="log", xlabel="dimension d")
    ax.set_xticks(dataset["dim"].values, [str(d) for d in dataset["dim"].values])
    ax.minorticks_off()
    return ax


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 6.

    Args:
        dataset: numbers of the figure.

    Returns:
        The matplotlib figure.
    """
    titles = ["loss", r"error $\Vert f - f_C \Vert_F$", "time per step [s]"]
    figure, (losses, errors, times) = plotting.panels(titles)
    plot_losses(losses, dataset)
    plot_errors(errors, dataset)
    plot_times(times, dataset)
    _label_scales(losses, dataset, dataset.loss_predicted.values[:, -1])
    _label_scales(errors, dataset, dataset.error_predicted.values[:, 0, -1])
    _keys(losses, errors, dataset)
    return figure


def _label_scales(ax: Any, dataset: xr.Dataset, ends: np.ndarray) -> None:
    texts = [rf"$\varepsilon$ = {scale:g}" for scale in dataset.init_scale.values]
    plotting.label_ends(ax, list(ends), texts, COLORS)


def _keys(losses: Any, errors: Any, dataset: xr.Dataset) -> None:
    from matplotlib.lines import Line2D

    def entry(text: str, marker: str = "none", **line: Any) -> Line2D:
        return Line2D(
            [], [], color=plotting.GREY, marker=marker, mfc="white", label=text, lw=1.0, **line
        )

    shared = {"borderaxespad": 0.2, "labelspacing": 0.3}
    losses.legend(
        handles=[entry("full $f$", "o"), entry("compressed $f_C$", ls=(0, (4, 1.5)))],
        loc="upper right", **shared,
    )  # fmt: skip
    ranks = [
        entry(rf"$\hat r$ = {rank}", marker)
        for marker, rank in zip(MARKERS, dataset.compressed_rank.values, strict=True)
    ]
    errors.legend(handles=[*ranks, entry("bound", ls=":")], loc="lower left", ncols=2, **shared)


FIGURE = Figure(
    name="fig06",
    title="The compressed network follows the full one",
    caption=CAPTION,
    compute=compute,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
)
