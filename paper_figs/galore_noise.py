"""GaLore stops at the size of the noise: when, and whether the stall is stable."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int, Key

from lrdyn.adapters.algorithm_1 import algorithm1
from lrdyn.adapters.methods import GALORE
from lrdyn.adapters.projectors import Projector
from lrdyn.core import linalg
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results, one_seed, run_sources
from lrdyn.galore_noise import (
    last_moving_step,
    schedule,
    setting,
    stall_exponent,
    stall_factor,
    stall_factor_on_the_right,
)
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Flag, at_least
from paper_figs.shared import DIM, LEARNING_RATE, RANK, STEPS, one_scenario

QUICK = {
    "dim": 10,
    "rank": 2,
    "learning_rate": 0.02,
    "period": 20,
    "steps": 1600,
    "refreshes": 100,
    "dots": 12,
    "seed": 0,
}
PAPER = QUICK | {"dim": 20, "rank": 4, "refreshes": 400, "dots": 20}

CAPTION = """\
(a) Norm of the gradient of f under GaLore with SGD (n = {dim}, r = {rank}, T_0 = {period}):
measured (circles) and by the schedule of its singular values (lines), without noise and with noise
of three sizes sigma (dotted). Dashed: the last step at which the true rows move, predicted. Grey:
the same with random projections, sigma = {random:g}. (b) Growth a refresh of ln |Y| when all s_i
are below the noise, over the distance of s_i from sigma: theory (lines, T_0 = {long}) and runs in a
rotated basis (circles). Right of the dashed lines it is positive, and the stall not stable.
"""
NOTES = """\
The survey has no such figure (double precision, seed {seed}). (a) The step is {learning_rate:g};
singular values of D from {largest:g} to {smallest:g}; P on the left. (b) The step is {slow:g}. Y =
h u_i w^T, h = 1e-8 sigma, at the start of each of {refreshes} periods with signs of their own;
circles are the mean of the logarithm of what a period makes of it, the band is two standard errors
of that mean, by theory. On the right no sign matters.
"""
LEVELS = 0.0, 1.0, 0.1, 0.01
"""Sizes of the noise of panel (a)."""
RANDOM = 1.0
"""That of random projections."""
VALUES = 4.0, 0.5
"""Largest and smallest singular value of D."""
SLOW, LONG = 3e-3, 100
"""Of panel (b): eta and T_0."""
CLOSEST, FURTHEST = 1e-3, 0.25
"""Of panel (b): 1 - s_i / sigma."""
CURVE = 400
SIDES = ("left", "right")
SMALL = 1e-8
"""Y over sigma in panel (b): its square is below rounding."""


class Noisy(NamedTuple):
    """A target, signs, and bases in which nothing is a coordinate."""

    example: setting.NoisyExample
    """That of panel (a), sigma = 1."""
    key: Key[Array, ""]
    """Of random projections."""
    signs: Float[Array, "period sign"]
    """Of panel (b)."""
    bases: Float[Array, "both n n"]
    distance: Float[Array, "dot"]
    """1 - s_i / sigma of the runs of panel (b)."""


class NoisyTheory(NamedTuple):
    """The schedule and its end, and exponents."""

    predicted: Float[Array, "level refresh"] = ABSENT
    """Largest s_i at each refresh."""
    last: Int[Array, "level"] = ABSENT
    """The last step at which the true rows move."""
    exponent: Float[Array, "side curve"] = ABSENT
    exponent_at_dots: Float[Array, "side dot"] = ABSENT
    error: Float[Array, "side dot"] = ABSENT
    """Standard error of the mean of so many periods."""


class NoisyMeasured(NamedTuple):
    """Runs of Algorithm 1."""

    measured: Float[Array, "level refresh"] = ABSENT
    """||grad f||_2 at each refresh."""
    random: Float[Array, "refresh"] = ABSENT
    """The same with random projections."""
    growth: Float[Array, "side dot"] = ABSENT
    """Mean of ln |factor|."""


def make_case(
    key: Key[Array, ""],
    *,
    dim: int,
    rank: int,
    learning_rate: Any,
    period: int,
    steps: int,
    refreshes: int,
    dots: int,
) -> Noisy:
    """Draw bases and signs of all panels."""
    of_case, of_signs, of_bases, of_random = jax.random.split(key, 4)
    case = setting.make_case(
        of_case,
        dim=dim,
        rank=rank,
        period=period,
        side="left",
        learning_rate=learning_rate,
        noise=1.0,
        steps=steps,
    )
    values = jnp.geomspace(*VALUES, dim - rank)
    left, _, right = jnp.linalg.svd(case.target)
    draws = jax.random.normal(of_bases, (2, dim, dim))
    return Noisy(
        dataclasses.replace(case, target=(left * values[None]) @ right),
        of_random,
        jax.random.rademacher(of_signs, (refreshes, LONG), values.dtype),
        jnp.linalg.qr(draws)[0],
        jnp.geomspace(FURTHEST, CLOSEST, dots),
    )


def exponents(distance: Float[Array, "any"]) -> Float[Array, "side any"]:
    """Growth of ln |Y| a refresh, on both sides, sigma = 1."""
    values = 1 - distance
    on_the_right = stall_factor_on_the_right(values, 1.0, SLOW, LONG)
    return jnp.stack([stall_exponent(values, 1.0, SLOW, LONG), jnp.log(jnp.abs(on_the_right))])


def predict(drawn: Noisy) -> NoisyTheory:
    """Scalars alone."""
    case = drawn.example
    rates = (case.learning_rate, case.period, case.rank)
    values = jnp.stack(
        [
            jnp.max(schedule(case.values, level, *rates, case.refreshes).values, axis=1)
            for level in LEVELS
        ]
    )
    ends = [last_moving_step(case.values, level, *rates) for level in LEVELS if level]
    # ln |factor| has a variance over the signs; theory's own draws show it.
    sums = jnp.sum(drawn.signs, axis=1) * drawn.signs[:, 0]
    factors = stall_factor(1 - drawn.distance[None], 1.0, SLOW, sums[:, None])
    error = jnp.std(jnp.log(jnp.abs(factors)), axis=0) / len(sums) ** 0.5
    return NoisyTheory(
        predicted=values,
        last=jnp.stack([jnp.asarray(-1), *ends]),
        exponent=exponents(jnp.geomspace(FURTHEST, CLOSEST, CURVE)),
        exponent_at_dots=exponents(drawn.distance),
        error=jnp.stack([error, jnp.zeros_like(error)]),
    )


def growth(drawn: Noisy, side: Any) -> Float[Array, "dot"]:
    """Mean of ln |factor| over periods of Algorithm 1 in a rotated basis."""
    rank, n = drawn.example.rank, len(drawn.example.start)
    k, (U, V) = n - rank, drawn.bases
    rule = algorithm1(GALORE, optax.sgd(SLOW), rank=rank, period=LONG, side=side)
    others = jnp.linspace(0.5, 0.2, k - 1)
    start = jnp.zeros((n, n)).at[0, k].set(SMALL)

    def of_value(distance: Array) -> Array:
        target = jnp.diag(jnp.concatenate([1 - distance[None], others]))
        example = dataclasses.replace(drawn.example, target=target)

        def period(signs: Array) -> Array:
            def cost_at(sign: Array) -> Any:
                return lambda X: (example.cost(U.T @ X @ V, sign), None)

            def step(state: Any, sign: Array) -> tuple[Any, None]:
                return rule.step(cost_at(sign), state)[2], None

            assert rule.refresh is not None
            key = jax.random.key(0)
            state = rule.refresh(key, cost_at(signs[0]), rule.begin(U @ start @ V.T))
            state, _ = jax.lax.scan(step, state, signs)
            return jnp.log(jnp.abs((U.T @ rule.weights(state) @ V)[0, k] / SMALL))

        return jnp.mean(jax.lax.map(period, drawn.signs))

    return linalg.sequential_on_cpu(lambda at: jax.lax.map(of_value, at))(drawn.distance)


def measure(drawn: Noisy) -> NoisyMeasured:
    """Run Algorithm 1 with noise of every size, with random projections, and near its stall."""
    case = drawn.example
    k, shape = len(case.target), (len(case.start), case.rank)

    def norms(one: setting.NoisyExample, choose: Any = None) -> Array:
        weights = setting.run(one, GALORE, choose=choose).weights[:, :k]
        return jnp.linalg.norm(weights.at[:, :, :k].add(one.target), 2, axis=(1, 2))

    def any_directions(key: Any, gradient: Array) -> Projector:
        draw = jax.random.normal(jax.random.fold_in(drawn.key, jax.random.bits(key)), shape)
        return Projector(jnp.linalg.qr(draw)[0], "left")

    levels = [dataclasses.replace(case, noise=jnp.asarray(level)) for level in LEVELS]
    noisy = dataclasses.replace(case, noise=jnp.asarray(RANDOM))
    return NoisyMeasured(
        measured=jnp.stack([setting.one_at_a_time(norms, one) for one in levels]),
        random=setting.one_at_a_time(lambda one: norms(one, any_directions), noisy),
        growth=jnp.stack([growth(drawn, side) for side in SIDES]),
    )


NOISE = one_scenario(
    "noise",
    "GaLore with noise of several sizes, and the stability of its stall",
    (
        *(DIM, RANK, LEARNING_RATE, STEPS),
        Flag("period", (), at_least(1), int, "T_0", "steps between refreshes", swept=False),
        Flag("refreshes", (), at_least(2), int, help="periods of a circle of (b)", swept=False),
        Flag("dots", (), at_least(2), int, help="circles of a side of (b)", swept=False),
    ),
    make_case,
    predict=predict,
    measure=measure,
    theory=NoisyTheory,
    measured=NoisyMeasured,
)


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """Norms over the steps, and exponents over the distance."""
    (groups,) = results.values()
    drawn = one_seed(groups)
    theory, run = fields.of_theory(drawn, NoisyTheory), fields.of_run(drawn, NoisyMeasured)
    shown = xr.Dataset(
        {
            "predicted": theory(lambda theory: theory.predicted),
            "last": theory(lambda theory: theory.last),
            "exponent": theory(lambda theory: theory.exponent),
            "exponent_at_dots": theory(lambda theory: theory.exponent_at_dots),
            "error": theory(lambda theory: theory.error),
            "measured": run(lambda run: run.measured),
            "random": run(lambda run: run.random),
            "growth": run(lambda run: run.growth),
        }
    )
    # Each of LONG steps rounds sums of ``dim`` products of entries of about 1, beside which Y is
    # SMALL: that share of it is lost, whatever library multiplies. A factor near 0 loses more, in
    # the mean over all signs about as many times more as the curve is large.
    eps = np.finfo(shown["growth"].dtype).eps
    shown["growth"].attrs["tolerance"] = float(LONG * settings["dim"] * eps / SMALL)
    steps = np.arange(shown.sizes["refresh"]) * settings["period"]
    shown = shown.assign_coords(
        step=("refresh", steps),
        level=list(LEVELS),
        side=list(SIDES),
        curve=np.geomspace(FURTHEST, CLOSEST, CURVE),
        dot=np.geomspace(FURTHEST, CLOSEST, settings["dots"]),
    )
    # The last passage through 0: nearer to sigma the exponent stays positive.
    negative = (shown.exponent < 0) & (shown.exponent.shift(curve=-1) >= 0)
    shown["passage"] = shown.curve.where(negative).min("curve")
    return shown.assign_attrs(
        random=RANDOM,
        long=LONG,
        slow=SLOW,
        largest=VALUES[0],
        smallest=VALUES[1],
    )


COLORS = (plotting.BLACK, plotting.BLUE, plotting.ORANGE, plotting.GREEN)


LOWEST = 2e-3
"""End of the axis of panel (a)."""


def plot_norms(ax: Any, data: xr.Dataset) -> None:
    """Draw the norm of the gradient, the noise and the last step."""
    steps = data["step"].values
    ax.plot(steps, data["random"].values, color=plotting.GREY, lw=0.9)
    for place, (level, color) in enumerate(zip(LEVELS, COLORS, strict=True)):
        both = data["predicted"].values[place], data["measured"].values[place]
        # A marker below the axis would be drawn there.
        seen = [np.where(side > LOWEST, side, np.nan) for side in both]
        plotting.plot_compared(ax, steps, *seen, color=color, every=(place % 4, 4))
        if level:
            ax.axhline(level, color=color, ls=":", lw=1.0)
            end = int(data["last"].values[place])
            ax.plot([end, end], [LOWEST, level], color=color, ls=plotting.DASHED, lw=0.8)
    ax.set(yscale="log", xlim=(0, steps[-1]), ylim=(LOWEST, 20), xlabel="step")
    ax.set_ylabel(r"$\Vert \nabla f \Vert_2$")
    entries = [
        plotting.entry(r"noise, $\sigma$", ls=":"),
        plotting.entry("last step", ls=plotting.DASHED),
        plotting.entry("schedule"),
        plotting.entry("GaLore", **plotting.OPEN),
    ]
    plotting.key(ax, entries, "upper right", ncols=2)
    ends = [*data["measured"].values[:, -1], data["random"].values[-1]]
    texts = ["no noise", *(rf"$\sigma$ = {level:g}" for level in LEVELS[1:]), "random P"]
    plotting.label_ends(
        ax, np.clip(ends, 1.1 * LOWEST, None).tolist(), texts, [*COLORS, plotting.GREY]
    )


def plot_exponents(ax: Any, data: xr.Dataset) -> None:
    """Draw the exponent of a small Y on both sides, and where it changes its sign."""
    ax.axhline(0, color=plotting.BLACK, lw=0.6)
    entries = []
    for place, (side, color) in enumerate(zip(SIDES, (plotting.BLACK, plotting.PINK), strict=True)):
        line, curve = data["exponent"].values[place], data["curve"].values
        ax.plot(curve, line, color=color, lw=1.0)
        near, error = data["exponent_at_dots"].values[place], 2 * data["error"].values[place]
        if np.any(error):
            band = {"color": color, "alpha": 0.2, "lw": 0}
            ax.fill_between(data["dot"].values, near - error, near + error, **band)
        ax.plot(data["dot"].values, data["growth"].values[place], **plotting.OPEN, mec=color)
        ax.axvline(float(data["passage"][place]), 0, 0.65, color=color, ls=plotting.DASHED, lw=1.0)
        entries.append(plotting.entry(f"P on the {side}", color))
    ax.set(xscale="log", xlim=(FURTHEST, CLOSEST), ylim=(-2, 5), xlabel=r"$1 - s_i / \sigma$")
    ax.set_ylabel(r"growth of $\ln |Y|$ a refresh")
    entries.append(plotting.entry("sign changes", ls=plotting.DASHED))
    plotting.key(ax, entries, "upper left")


def draw(dataset: xr.Dataset) -> Any:
    """Draw the figure."""
    plots = {
        "GaLore stops at the noise": plot_norms,
        r"near $\sigma$ the stall is not stable": plot_exponents,
    }
    return plotting.draw_panels(plots, dataset)


FIGURE = Figure(
    name="galore_noise",
    shows=("galore_noise",),
    title="GaLore stops at the noise",
    caption=CAPTION,
    notes=NOTES,
    sources=run_sources(NOISE),
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    panels={
        **dict.fromkeys(("predicted", "measured", "last", "random"), "a"),
        **dict.fromkeys(("exponent", "exponent_at_dots", "error", "growth", "passage"), "b"),
    },
)
