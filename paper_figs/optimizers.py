"""Which optimisers keep the frame of Theorem 2, what Muon does there, in which order it learns."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int, Key

import lrdyn
from lrdyn.equivariance import change_bases, muon_values, polar_muon, signed_permutations
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results, one_seed, run_sources
from lrdyn.theorem2 import setting, subspace
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Flag, at_least
from paper_figs.shared import DEPTH, DIM, INIT_SCALE, LEARNING_RATE, RANK, STEPS, one_scenario

QUICK = {
    "dim": 30,
    "rank": 3,
    "depth": 3,
    "init_scale": 0.3,
    "learning_rate": 5e-3,
    "steps": 170,
    "modes": 5,
    "seed": 0,
}

CAPTION = """\
(a) Largest off-diagonal entry of U_l^T W_l V_l, over all layers (d = {dim}, r = {rank}, L =
{depth}, eps = {init_scale:g}). Lines: a random frame; dashed: the frame is the standard basis, up
to order and signs, where those of all five are {zero:g}. (b) Singular values of W_1 under optax's
Muon, measured (circles) and from blocks of {small} and one scalar (lines; grey: the bulk, {bulk}
times). Largest difference {gap:.0e}. (c) Singular values of the product over those of the target,
m_i, from equal starts, L = 2: Muon with exact polar factors (circles; lines: closed form) learns
the small ones first, descent (dashed) the large ones.
"""
NOTES = """\
The survey has no such figure (double precision, seed {seed}). (a) All optimisers are optax's, the
step is {learning_rate:g}, of gradient descent and of momentum {descent:g}. (b) Theory compares
{last} of {steps} steps. (c) eps = {start:g} in every mode, eta = {rate:g} for Muon,
{descent_rate:g} for descent; a mode of Muon that has arrived goes to and fro by one step.
"""
DESCENT = 0.05
"""Step of gradient descent and of momentum."""
START, RATE, DESCENT_RATE = 0.2, 5e-3, 2e-2
"""Of panel (c): values at the start, and steps."""
MODES = 0.2, 1.0
"""Of panel (c): the least and the largest m_i."""
RULES: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "descent": lambda rate: optax.sgd(DESCENT),
    "momentum": lambda rate: optax.sgd(DESCENT, momentum=0.9),
    "Muon": optax.contrib.muon,
    "Adam": optax.adam,
    "signs": optax.sign_sgd,
}
"""Optimisers of panel (a)."""


class Bases(NamedTuple):
    """One problem of Theorem 2 in its frame, the frame in two bases, and modes of panel (c)."""

    case: setting.DeepFactorization
    corner: Float[Array, "s s"]
    random: tuple[Float[Array, "d d"], ...]
    standard: tuple[Float[Array, "d d"], ...]
    modes: Float[Array, "k"]


class BasesTheory(NamedTuple):
    """Blocks and a scalar under Muon; and Muon's law."""

    values: Float[Array, "step index"] = ABSENT
    """Singular values of W_1 from the reduced run."""
    learned: Float[Array, "step mode"] = ABSENT
    """Singular values of the product over the target's, by Muon's law."""
    last: Int[Array, ""] = ABSENT
    """Last step that is compared."""


class BasesMeasured(NamedTuple):
    """Dense runs."""

    off_block: Float[Array, "rule basis step"] = ABSENT
    """Largest entry outside of the blocks, of all layers."""
    values: Float[Array, "step index"] = ABSENT
    """Singular values of W_1 under Muon."""
    learned: Float[Array, "step mode"] = ABSENT
    """Entries of the product over the target's under Muon with exact polar factors."""
    learned_by_descent: Float[Array, "step mode"] = ABSENT
    """The same under gradient descent."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


def make_case(
    key: Key[Array, ""],
    *,
    dim: int,
    rank: int,
    depth: int,
    init_scale: Any,
    learning_rate: Any,
    steps: int,
    modes: int,
) -> Bases:
    """Draw the problem of all panels."""
    of_case, of_corner, of_random, of_signs = jax.random.split(key, 4)
    case = setting.make_case(
        of_case,
        dim=dim,
        depth=depth,
        rank=rank,
        init_scale=init_scale,
        init_spread=1.0,
        weight_decay=0.0,
        decay_spread=1.0,
        learning_rate=learning_rate,
        target_scale=1.0,
        steps=steps,
        optimizer="muon",
    )
    small = (2 * rank, 2 * rank)
    corner = lrdyn.low_rank_target(of_corner, small, lrdyn.spaced_singular_values(rank))
    return Bases(
        case,
        corner,
        lrdyn.orthogonal_layers(of_random, (dim,) * (depth + 2), jnp.ones(depth + 1)),
        signed_permutations(of_signs, depth + 1, dim),
        jnp.linspace(*MODES, modes),
    )


def predict(drawn: Bases) -> BasesTheory:
    """The reduced run under Muon, and Muon's law from equal starts."""
    case = drawn.case
    runs = setting.theory_run(case, jnp.stack)
    layers, moving = runs.run.records[:, :1], 2 * case.rank
    last, _ = setting.conditions_in_window(case, runs, lambda records: records)
    values = jax.vmap(subspace.reduced_spectra, (0, 0, None))(
        layers[:, :, :moving, :moving], layers[:, :, moving, moving], len(case.target)
    )
    start = jnp.full((2, len(drawn.modes)), START)
    law = muon_values(start, drawn.modes, RATE, case.times)
    return BasesTheory(
        values=values[:, 0],
        learned=jnp.prod(law, axis=1) / drawn.modes[None],
        last=last,
    )


def measure(drawn: Bases) -> BasesMeasured:
    """Train dense layers with every optimiser, in both bases."""
    case, dim, size = drawn.case, len(drawn.case.target), len(drawn.corner)
    still = tuple(eps * jnp.eye(dim) for eps in case.scales)
    framed = jnp.pad(drawn.corner, (0, dim - size))

    def off_block(rule: optax.GradientTransformation, bases: tuple[Array, ...]) -> Array:
        back = tuple(V.T for V in bases)
        target = bases[-1] @ framed @ back[0]

        def record(layers: lrdyn.core.Weights) -> Array:
            turned = jnp.abs(jnp.stack(change_bases(layers, bases)))
            beside = jnp.max(turned[:, :size, size:]), jnp.max(turned[:, size:, :size])
            return jnp.maximum(*beside)

        return lrdyn.simulate(
            lambda layers: lrdyn.factorization_loss(layers, target),
            change_bases(still, back),
            rule,
            case.times,
            record=record,
        ).records

    def entries(rule: optax.GradientTransformation) -> Array:
        # In the frame both layers are diagonal, and every basis is as good for both rules.
        start, goal = jnp.eye(len(drawn.modes)) * START, jnp.diag(drawn.modes)
        return lrdyn.simulate(
            lambda layers: lrdyn.factorization_loss(layers, goal),
            (start, start),
            rule,
            case.times,
            record=lambda layers: jnp.diagonal(layers[1] @ layers[0]) / drawn.modes,
        ).records

    rules = [make(case.learning_rate) for make in RULES.values()]
    return BasesMeasured(
        off_block=jnp.stack(
            [
                jnp.stack([off_block(rule, bases) for bases in (drawn.random, drawn.standard)])
                for rule in rules
            ]
        ),
        values=lrdyn.simulate(
            case.loss,
            case.weights,
            case.optimizer,
            case.times,
            record=lambda layers: lrdyn.singular_values(layers[0]),
        ).records,
        learned=entries(polar_muon(RATE)),
        learned_by_descent=entries(optax.sgd(DESCENT_RATE)),
        step=jnp.asarray(case.steps),
    )


BASES = one_scenario(
    "optimizers",
    "optimisers of Theorem 2's problem in two bases, and Muon in its frame",
    (
        *(DIM, RANK, DEPTH, INIT_SCALE, LEARNING_RATE, STEPS),
        Flag("modes", (), at_least(2), int, help="singular values that are learned", swept=False),
    ),
    make_case,
    predict=predict,
    measure=measure,
    theory=BasesTheory,
    measured=BasesMeasured,
)


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Off-diagonal blocks, singular values and learned parts over the steps."""
    (groups,) = results.values()
    drawn = one_seed(groups)
    theory = fields.of_theory(drawn, BasesTheory)
    run = fields.of_run(drawn, BasesMeasured)
    last = int(theory(lambda theory: theory.last))
    curves = {
        "off_block": run(lambda run: run.off_block),
        "values_measured": run(lambda run: run.values),
        "values_predicted": theory(lambda theory: theory.values),
        "learned_measured": run(lambda run: run.learned),
        "learned_predicted": theory(lambda theory: theory.learned),
        "learned_by_descent": run(lambda run: run.learned_by_descent),
    }
    plotted = xr.Dataset(curves).assign_coords(rule=list(RULES), basis=["random", "standard"])
    compared = plotted.sel(step=plotted.step <= last)
    for name in curves:
        plotted[name].attrs["curve_along"] = "step"
    # Rounding itself is drawn: only its size can be compared.
    plotted["off_block"].attrs["compare"] = 0
    return plotted.assign_attrs(
        gap=float(abs(compared.values_measured - compared.values_predicted).max()),
        zero=float(plotted.off_block.sel(basis="standard").max()),
        small=2 * settings["rank"],
        bulk=settings["dim"] - 2 * settings["rank"],
        last=last,
        descent=DESCENT,
        start=START,
        rate=RATE,
        descent_rate=DESCENT_RATE,
    )


COLORS = dict(
    zip(
        RULES,
        (plotting.BLACK, plotting.GREY, plotting.BLUE, plotting.ORANGE, plotting.GREEN),
        strict=True,
    )
)
FLOOR = 1e-18
"""Where zeros are drawn."""


def plot_frames(ax: Any, dataset: xr.Dataset) -> None:
    """Draw the off-diagonal blocks of every optimiser, in both bases."""
    for name, color in COLORS.items():
        # Of the standard basis all five lie on one another.
        looks = {"random": {"color": color}, "standard": {"color": "black", "ls": plotting.DASHED}}
        for basis, look in looks.items():
            curve = dataset.off_block.sel(rule=name, basis=basis).values
            ax.plot(dataset.step[1:], np.maximum(curve[1:], FLOOR), lw=1.0, **look)
    ax.set(yscale="log", xlabel="iteration t", xlim=(0, int(dataset.step[-1])), ylim=(FLOOR / 3, 3))
    ax.set_yticks([1e-18, 1e-12, 1e-6, 1], ["0", "$10^{-12}$", "$10^{-6}$", "1"])
    ends = np.maximum(dataset.off_block.sel(basis="random").isel(step=-1).values, FLOOR)
    plotting.label_ends(ax, ends.tolist(), list(COLORS), list(COLORS.values()))
    entries = [
        plotting.entry("random frame"),
        plotting.entry("standard basis", "black", ls=plotting.DASHED),
    ]
    plotting.key(ax, entries, (0.02, 0.45))


def plot_values(ax: Any, dataset: xr.Dataset) -> None:
    """Draw singular values of W_1 under Muon, of the block and of the bulk."""
    measured, predicted = dataset.values_measured.values, dataset.values_predicted.values
    steps, bulk = dataset.step.values, dataset.attrs["bulk"]
    # The bulk's values are equal: the one most often met at the last step.
    still = np.median(predicted[-1])
    compared = steps <= dataset.attrs["last"]
    for column in range(measured.shape[1]):
        of_bulk = np.isclose(predicted[-1, column], still, rtol=1e-6)
        color = plotting.GREY if of_bulk else plotting.BLUE
        plotting.plot_compared(
            ax,
            steps[compared],
            predicted[compared, column],
            measured[compared, column],
            color=color,
            every=3,
        )
    ax.set(xlabel="iteration t", xlim=(0, int(steps[-1])), ylim=(0, None))
    ax.text(0.4 * steps[-1], still + 0.06, f"bulk, {bulk} times", color=plotting.ink(plotting.GREY))


def plot_learning(ax: Any, dataset: xr.Dataset) -> None:
    """Draw how far each mode is learned, under Muon and under descent."""
    steps = dataset.step.values
    shades = [plotting.SHADES[i % len(plotting.SHADES)] for i in range(dataset.sizes["mode"])]
    for mode, color in enumerate(shades):
        both = dataset.learned_predicted[:, mode].values, dataset.learned_measured[:, mode].values
        plotting.plot_compared(ax, steps, *both, color=color, every=2)
        ax.plot(steps, dataset.learned_by_descent[:, mode], color=color, ls=plotting.DASHED, lw=0.8)
    ax.set(xlabel="iteration t", xlim=(0, int(steps[-1])), ylim=(0, 1.1))
    texts = [f"{m:g}" for m in np.linspace(*MODES, dataset.sizes["mode"]).round(3)]
    ends = dataset.learned_by_descent.isel(step=-1).values
    plotting.label_ends(ax, ends.tolist(), texts, shades, "$m_i$")
    entries = [
        plotting.entry("Muon", marker="o", mfc="white"),
        plotting.entry("descent", ls=plotting.DASHED),
    ]
    plotting.key(ax, entries, "lower right")


def draw(dataset: xr.Dataset) -> Any:
    """Draw the figure."""
    plots = {
        "off-diagonal blocks": plot_frames,
        r"singular values of $W_1$, Muon": plot_values,
        r"$\sigma_i(W_2 W_1) / m_i$": plot_learning,
    }
    return plotting.draw_panels(plots, dataset)


FIGURE = Figure(
    name="equivariance",
    shows=("equivariance", "theorem2"),
    title="Who keeps the frame of Theorem 2",
    caption=CAPTION,
    notes=NOTES,
    sources=run_sources(BASES, preset="quick"),
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": QUICK},
    panels={
        "off_block": "a",
        **dict.fromkeys(("values_measured", "values_predicted"), "b"),
        **dict.fromkeys(("learned_measured", "learned_predicted", "learned_by_descent"), "c"),
    },
)
