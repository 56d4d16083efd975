"""Figure 6 (ours): the compressed network of Corollary 1 against the full one."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

import lrdyn
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results, one_seed
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import POSITIVE, Flag, at_least
from paper_figs.shared import DEPTH, DIM, LEARNING_RATE, RANK, STEPS, one_scenario

QUICK = {
    "dim": 100,
    "rank": 5,
    "depth": 3,
    "init_scales": [0.1, 0.3, 1.0],
    "compressed_ranks": [5, 40],
    "learning_rate": 0.2,
    "steps": 300,
    "seed": 0,
    "timed_dims": [30, 100, 300],
}
PAPER = {**QUICK, "timed_dims": [30, 100, 300, 1000]}

CAPTION = """\
Corollary 1 on a rank-{rank} target, L = {depth}, d = {dim}, from an orthogonal start of scale eps.
(a) Loss of the full network (circles: dense {dim} x {dim} layers; lines: predicted from the
compressed run and rho) and of the compressed one (dashed; r^ = r, layers {small} x {small}). (b)
Error ||f - f_C||_F, measured (circles r^ = {compressed_ranks[0]}, squares r^ =
{compressed_ranks[1]}) against the identity sqrt(d - 2 r^) prod_l rho_l(t) (lines) and the bound
sqrt(d - 2 r^) prod_l eps_l (dotted). Largest deviation from the identity: {error_gap:.1e} of the
error's bound. (c) Time of one step, full and reduced (r^ = r); it depends on the machine.
"""
NOTES = """\
The survey's own figure of this number was not available. The target's singular values are evenly
spaced in [1/2, 1]; orthogonal initialisation, gradient descent on 1/2 ||.||_F^2 with step
{learning_rate:g} without weight decay (seed {seed}, double precision). The full loss is larger by
exactly half the squared error of panel (b): the bulk, which the compressed network leaves out and
which decays slowly. A step of panel (c) is gradient and update, the least of {repeats} runs on
{machine}.
"""
REPEATS = 3


class Problem(NamedTuple):
    """A run, and the rank to which its network is compressed."""

    weights: lrdyn.core.Weights
    target: jax.Array
    compressed_rank: int
    learning_rate: float
    steps: np.ndarray


def problem(
    key: jax.Array, dim: int, rank: int, depth: int, init_scale: Any
) -> tuple[lrdyn.core.Weights, jax.Array]:
    """Draw orthogonal layers and a target of the given rank."""
    target_key, weight_key = jax.random.split(key)
    target = lrdyn.low_rank_target(target_key, (dim, dim), lrdyn.spaced_singular_values(rank))
    weights = lrdyn.orthogonal_layers(weight_key, (dim,) * (depth + 1), jnp.full(depth, init_scale))
    return weights, target


class CompressionTheory(NamedTuple):
    """Prediction of the full run from the compressed one and rho."""

    loss: Float[Array, "step"] = ABSENT
    """Loss of the full network: that of the compressed one and half the squared error."""
    error: Float[Array, "step"] = ABSENT
    """sqrt(d - 2 r^) prod_l rho_l."""
    error_bound: Float[Array, ""] = ABSENT
    """sqrt(d - 2 r^) prod_l eps_l."""


class CompressionMeasured(NamedTuple):
    """Losses of both networks, trained from one start, and the error."""

    loss: Float[Array, "step"] = ABSENT
    """1/2 ||f - Phi||_F^2 of the full network."""
    loss_compressed: Float[Array, "step"] = ABSENT
    """1/2 ||f_C - Phi||_F^2."""
    error: Float[Array, "step"] = ABSENT
    """||f - f_C||_F."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


class StepTimes(NamedTuple):
    """How long a step takes."""

    time_full: float = ABSENT
    """Seconds of one step of the full network."""
    time_reduced: float = ABSENT
    """Seconds of one step of the reduced layers."""
    machine: str = ABSENT
    """What they were taken on."""


def case(
    key: jax.Array,
    *,
    dim: int,
    rank: int,
    depth: int,
    init_scale: Any,
    compressed_rank: int,
    learning_rate: float,
    steps: int,
) -> Problem:
    """Draw a run on the loss 1/2 ||.||_F^2."""
    drawn = problem(key, dim, rank, depth, init_scale)
    return Problem(*drawn, compressed_rank, learning_rate, lrdyn.recorded_steps(steps, 61))


def predict(drawn: Problem) -> CompressionTheory:
    """Loss and error from the compressed run and rho, and the bound."""
    scales, dim = lrdyn.theorem2.start_scales(drawn.weights), drawn.target.shape[0]
    rho = lrdyn.rho(scales, drawn.learning_rate, 0.0, drawn.steps)
    error = lrdyn.corollary1.compression_error(rho, dim, drawn.compressed_rank)
    loss = _losses(compressed_maps(drawn), drawn.target)
    return CompressionTheory(
        loss=loss + error**2 / 2,
        error=error,
        error_bound=lrdyn.corollary1.compression_bound(scales, dim, drawn.compressed_rank),
    )


def measure(drawn: Problem) -> CompressionMeasured:
    """Train both networks from one start: losses of both, and the error."""
    full = lrdyn.simulate(
        lambda layers: lrdyn.factorization_loss(layers, drawn.target),
        drawn.weights,
        lrdyn.gradient_descent(drawn.learning_rate),
        drawn.steps,
        record=lrdyn.end_to_end,
    ).records
    compressed = compressed_maps(drawn)
    return CompressionMeasured(
        loss=_losses(full, drawn.target),
        loss_compressed=_losses(compressed, drawn.target),
        error=jnp.linalg.norm(full - compressed, axis=(-2, -1)),
        step=jnp.asarray(drawn.steps),
    )


def _losses(maps: jax.Array, target: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum((maps - target[None]) ** 2, axis=(-2, -1))


def compressed_maps(drawn: Problem) -> jax.Array:
    """The product of the compressed network at each recorded step, as a d x d matrix."""
    frame = lrdyn.frame(drawn.weights, drawn.target, drawn.compressed_rank)
    small = lrdyn.reduced_target(frame, drawn.target, 2 * drawn.compressed_rank)
    scales = lrdyn.theorem2.start_scales(drawn.weights)
    inner = lrdyn.reduced_dynamics(small, scales, drawn.learning_rate, 0.0, drawn.steps).records

    def product(layers: lrdyn.core.Weights) -> jax.Array:
        return lrdyn.corollary1.compressed_product(lrdyn.corollary1.compress(frame, layers))

    return jax.vmap(product)(inner)


COMPRESSION = one_scenario(
    "fig06",
    "the compressed network of Corollary 1 beside the full one",
    (
        *(DIM, RANK, DEPTH, LEARNING_RATE, STEPS),
        Flag("init_scale", (0.1, 0.3, 1.0), POSITIVE, symbol="eps", help="init scale"),
        Flag("compressed_rank", (5, 40), at_least(1), int, "r^", "compress to", shapes=True),
    ),
    case,
    predict=predict,
    measure=measure,
    theory=CompressionTheory,
    measured=CompressionMeasured,
)


def seconds_per_step(run: Callable[[int], Any], steps: int) -> float:
    """Time of one step: the least of several runs, after one that compiles."""
    times = []
    for _ in range(REPEATS + 1):
        begin = time.perf_counter()
        jax.block_until_ready(run(steps))
        times.append(time.perf_counter() - begin)
    # The least, which other work on the machine disturbed least; the first call has compiled.
    return min(times[1:]) / steps


class Timed(NamedTuple):
    """The timed functions: one step of the full run and of the reduced one."""

    weights: lrdyn.core.Weights
    target: jax.Array
    layers: lrdyn.core.Weights
    reduced_target: jax.Array
    learning_rate: float


def timed_case(key: jax.Array, *, dim: int, rank: int, depth: int, learning_rate: float) -> Timed:
    """Draw a run and reduce it."""
    weights, target = problem(key, dim, rank, depth, 0.3)
    frame = lrdyn.frame(weights, target, rank)
    small = lrdyn.reduced_target(frame, target, 2 * rank)
    layers = tuple(0.3 * jnp.eye(2 * rank) for _ in range(depth))
    return Timed(weights, target, layers, small, learning_rate)


def step_times(drawn: Timed) -> StepTimes:
    """Time a full and a reduced step, and name the machine."""

    @jax.jit
    def run(start: lrdyn.core.Weights, goal: jax.Array, steps: np.ndarray) -> Any:
        loss = lambda layers: lrdyn.factorization_loss(layers, goal)  # noqa: E731
        rule = lrdyn.gradient_descent(drawn.learning_rate)
        return lrdyn.simulate(loss, start, rule, steps, record=lambda _: None).params

    few = max(4, 2000 // drawn.target.shape[0])
    layers, goal = drawn.layers, drawn.reduced_target
    return StepTimes(
        time_full=seconds_per_step(lambda n: run(drawn.weights, drawn.target, np.array([n])), few),
        time_reduced=seconds_per_step(lambda n: run(layers, goal, np.array([n])), 2000),
        machine=f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores",
    )


TIMES = one_scenario(
    "fig06_times",
    "time of a step of the full and of the compressed network",
    (RANK, DEPTH, LEARNING_RATE, dataclasses.replace(DIM, quick=(30, 100, 300), swept=True)),
    timed_case,
    measure=step_times,
    measured=StepTimes,
    traced=False,
)


def sources(
    *,
    dim: int,
    init_scales: Sequence[float],
    compressed_ranks: Sequence[int],
    steps: int,
    timed_dims: Sequence[int],
    **shared: Any,
) -> dict[str, Run]:
    """Runs of both experiments; the first compressed network has r^ = r."""
    curves = run_of(
        COMPRESSION,
        preset="paper",
        seeds=1,
        dim=dim,
        init_scale=init_scales,
        compressed_rank=compressed_ranks,
        steps=steps,
        **shared,
    )
    return {"curves": curves, "times": run_of(TIMES, seeds=1, dim=timed_dims, **shared)}


def numbers(results: Results, *, compressed_ranks: Sequence[int], **_: Any) -> xr.Dataset:
    """Losses and errors over init scale, compressed rank and step; times over width."""
    curves = one_seed(results["curves"])
    theory = fields.of_theory(curves, CompressionTheory)
    run = fields.of_run(curves, CompressionMeasured)
    timed = fields.of_run(one_seed(results["times"]), StepTimes)
    measured, predicted = run(lambda run: run.error), theory(lambda theory: theory.error)
    bound = theory(lambda theory: theory.error_bound)
    losses = {
        "loss_full": run(lambda run: run.loss),
        "loss_predicted": theory(lambda theory: theory.loss),
        "loss_compressed": run(lambda run: run.loss_compressed),
    }
    errors = {"error_measured": measured, "error_predicted": predicted}
    times = {
        "time_full": timed(lambda run: run.time_full),
        "time_reduced": timed(lambda run: run.time_reduced),
    }
    plotted = xr.merge(
        [
            xr.Dataset(losses).isel(compressed_rank=0, drop=True),
            xr.Dataset({**errors, "error_bound": bound}),
            xr.Dataset(times),
        ]
    )
    for name in (*losses, *errors):
        plotted[name].attrs["curve_along"] = "step"
    for name in ("error_predicted", "error_bound"):
        plotted[name].attrs["kind"] = "identity"
    for name in times:
        plotted[name].attrs.update(compare=0, units="s")
    return plotted.assign_attrs(
        error_gap=float((abs(measured - predicted) / bound).max()),
        small=2 * compressed_ranks[0],
        repeats=REPEATS,
        machine=str(timed(lambda run: run.machine).values[0]),
    )


MARKERS = ("o", "s")


def plot_losses(ax: Any, dataset: xr.Dataset) -> None:
    """Draw the loss of the full and of the compressed network over the iterations."""
    for color, scale in zip(plotting.SHADES, dataset.init_scale.values, strict=False):
        run = dataset.sel(init_scale=scale)
        step, both = run.step.values, (run.loss_predicted.values, run.loss_full.values)
        plotting.plot_compared(ax, step, *both, color=color, every=4)
        ax.plot(step, run.loss_compressed.values, color=color, lw=1.0, ls=plotting.DASHED)
    ax.set(yscale="log", xlabel="iteration t", xlim=(0, int(dataset.step[-1])))
    ax.set_ylim(0.3 * float(dataset.loss_compressed.min()), 2 * float(dataset.loss_full.max()))
    _label_scales(ax, dataset.loss_predicted.isel(step=-1))


def plot_errors(ax: Any, dataset: xr.Dataset) -> None:
    """Draw the error of the compressed network, measured, predicted and bounded."""
    ranks = dataset.compressed_rank.values
    for color, scale in zip(plotting.SHADES, dataset.init_scale.values, strict=False):
        for marker, rank in zip(MARKERS, ranks, strict=True):
            run = dataset.sel(init_scale=scale, compressed_rank=rank)
            both = (run.error_predicted.values, run.error_measured.values)
            look = {"color": color, "marker": marker, "every": 4}
            plotting.plot_compared(ax, run.step.values, *both, **look)
            ax.axhline(float(run.error_bound), color=color, lw=0.8, ls=":")
    ax.set(yscale="log", xlabel="iteration t", xlim=(0, int(dataset.step[-1])))
    ax.set_ylim(0.5 * float(dataset.error_predicted.min()), 2 * float(dataset.error_bound.max()))
    _label_scales(ax, dataset.error_predicted.isel(compressed_rank=0, step=-1))


def _label_scales(ax: Any, ends: xr.DataArray) -> None:
    texts = [rf"$\varepsilon$ = {scale:g}" for scale in ends.init_scale.values]
    plotting.label_ends(ax, ends.values.tolist(), texts, plotting.SHADES[: len(texts)])


def plot_times(ax: Any, dataset: xr.Dataset) -> None:
    """Draw the time of a step against d."""
    dims, small = dataset["dim"].values, dataset.small
    for name, text, color, align in (
        ("full", "full, d × d", plotting.BLACK, "right"),
        ("reduced", f"reduced, {small} × {small}", plotting.PINK, "center"),
    ):
        times = dataset[f"time_{name}"].values
        ax.plot(dims, times, color=color, lw=1.0, marker="o", mfc="white")
        middle = len(times) // 2
        at = (dims[middle], times[middle])
        how = {"textcoords": "offset points", "color": plotting.ink(color), "ha": align}
        ax.annotate(text, at, (-3, 5), **how)
    ax.set(xscale="log", yscale="log", xlabel="dimension d")
    ax.set_xticks(dims, [str(d) for d in dims])
    ax.minorticks_off()


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 6."""
    plots = {
        "loss": plot_losses,
        r"error $\Vert f - f_C \Vert_F$": plot_errors,
        "time per step [s]": plot_times,
    }
    figure = plotting.draw_panels(plots, dataset, height=2.6)
    losses = [
        plotting.entry("full $f$", marker="o", mfc="white"),
        plotting.entry("compressed $f_C$", ls=plotting.DASHED),
    ]
    errors = [
        plotting.entry(rf"$\hat r$ = {rank}", marker=marker, mfc="white")
        for marker, rank in zip(MARKERS, dataset.compressed_rank.values, strict=True)
    ]
    errors.append(plotting.entry("bound", ls=":"))
    serves = [(losses, figure.axes[:1]), (errors, figure.axes[1:2])]
    return plotting.common_key(figure, [*losses, *errors], serves=serves)


FIGURE = Figure(
    name="fig06",
    shows=("corollary1", "completion"),
    title="The compressed network follows the full one",
    caption=CAPTION,
    notes=NOTES,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    panels={
        **dict.fromkeys(("loss_full", "loss_predicted", "loss_compressed"), "a"),
        **dict.fromkeys(("error_measured", "error_predicted", "error_bound"), "b"),
        **dict.fromkeys(("time_full", "time_reduced"), "c"),
    },
)
