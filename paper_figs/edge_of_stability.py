"""The edge of stability (ours): a mode beyond it, and which singular vectors it keeps."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from lrdyn.edge_of_stability import AlignedNetwork, alignment_growth, balanced_step, two_cycle
from lrdyn.edge_of_stability.dense import draw_bases
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results, one_seed, run_sources
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Flag, at_least
from paper_figs.shared import one_scenario

QUICK = {"orbits": 400, "tail": 60, "plane": 30, "steps": 1200, "seed": 0}
PAPER = {**QUICK, "orbits": 600, "tail": 48, "plane": 60, "steps": 2000}

DIM = 4
"""Width of the dense layers: two modes, and two dimensions of a target of rank two."""
MODES = (0.4, 0.65, 0.8)
"""Ratios s_2 / s_1 of panel (b)."""
SETTINGS = ((1.2, 0.4), (1.23, 0.65), (1.2, 0.8))
"""Pairs eta s_1 and s_2 / s_1 of panel (c)."""
TURN = 1e-6
"""Entries beside the diagonal that the runs of panels (b) and (d) start with: far above rounding,
and so small that their square is nothing."""
GOLDEN = (1 + 5**0.5) / 2

CAPTION = """\
Two layers beyond the edge of stability, s_1 = 1. (a) Where descent of one balanced mode stays
(dots), and its two-cycle in closed form (lines), which doubles at eta s = sqrt 5 - 1; at eta s = 2
it is a Chebyshev orbit on [-sqrt 2, sqrt 2] (bar). (b) Growth a step of entries of U^T P V beside
the diagonal: recursion along the mode's orbit (lines), dense runs (circles); 0 at eta (s_1 + s_2) =
2 (dotted). (c) Dense runs from an aligned start: rounding leaves it at the predicted rate (dashed).
(d) {runs} dense runs from a slightly turned start, and both borders, which meet at (2/phi, 1/phi),
phi the golden ratio (star).
"""
NOTES = """\
The survey has no such figure. Dense layers are 4 x 4 in random bases, double precision, {steps}
steps in (c, d); the second mode starts at rest. (b) Circles: slope of the logarithm of the largest
entry, from an error of 1e-6, over the steps that theory names. Above eta s_1 = 1.236 most orbits
are chaotic, and short runs scatter; those that diverge are not shown. (d) A run keeps its vectors
if the entries beside the diagonal are smaller at the end than at the start; of these it has period
two if the product returns after two steps to nine digits. That the border goes on beyond the
doubling is measured; before it, it is proven.
"""


class EdgeCase(NamedTuple):
    """Bases of all dense runs, and how many there are."""

    bases: Array
    orbits: int
    tail: int
    plane: int
    steps: int


class EdgeTheory(NamedTuple):
    """Closed forms, and exponents along scalars."""

    low: Float[Array, "branch"] = ABSENT
    """Lower point of the two-cycle over sqrt(s)."""
    high: Float[Array, "branch"] = ABSENT
    branch: Float[Array, "branch"] = ABSENT
    """eta s."""
    exponent: Float[Array, "mode line"] = ABSENT
    """Growth a step of what is beside the diagonal, modulo gauge."""
    line: Float[Array, "line"] = ABSENT
    """eta s_1."""
    rate: Float[Array, "setting"] = ABSENT
    """The same for the runs of panel (c)."""


class EdgeMeasured(NamedTuple):
    """Scalar orbits and dense runs."""

    orbit: Float[Array, "scaled tail"] = ABSENT
    """The last points of each orbit, to 1/256."""
    scaled: Float[Array, "scaled"] = ABSENT
    """eta s."""
    slope: Float[Array, "mode dot"] = ABSENT
    """Growth a step in dense runs."""
    dot: Float[Array, "dot"] = ABSENT
    """eta s_1."""
    beside: Float[Array, "setting step"] = ABSENT
    """Largest entry of U^T P V beside the diagonal."""
    step: Int[Array, "step"] = ABSENT
    """Steps at which it is recorded."""
    fate: Int[Array, "first second"] = ABSENT
    """2: vectors kept, period two; 1: kept, longer period or chaos; 0: lost, or diverged."""
    first: Float[Array, "first"] = ABSENT
    """eta s_1."""
    second: Float[Array, "second"] = ABSENT
    """s_2 / s_1."""


def case(key: jax.Array, *, orbits: int, tail: int, plane: int, steps: int) -> EdgeCase:
    """Draw the bases."""
    return EdgeCase(draw_bases(key, DIM, 2)[0], orbits, tail, plane, steps)


@partial(jax.jit, static_argnums=(1, 2))
def _orbit(scaled: Float[Array, "n"], steps: int, tail: int) -> Float[Array, "n tail"]:
    """The last points of orbits of one mode, s = 1, after so many steps."""

    def step(rho: Array, _: Any) -> tuple[Array, Array]:
        after = balanced_step(rho, 2, 1.0, scaled)
        return after, after

    settled = jax.lax.fori_loop(0, steps, lambda t, rho: step(rho, t)[0], 0.7 + 0 * scaled)
    return jax.lax.scan(step, settled, length=tail)[1].T


@partial(jax.jit, static_argnums=(2, 3))
def _dense_runs(
    bases: Array, runs: tuple[Array, Array, Array, Array], steps: int, every: int
) -> tuple[Array, Array]:
    """Entry (1, 1) of U^T P V and the largest one beside the diagonal, of many dense runs.

    Args:
        bases: of all of them.
        runs: eta s_1, s_2 / s_1, rho_1 at the start and the error at the start.
        steps: of each.
        every: how many steps lie between two records.
    """

    def run(scaled: Array, ratio: Array, rho: Array, turn: Array) -> tuple[Array, Array]:
        network = AlignedNetwork(bases, jnp.array([1.0, ratio, 0.0, 0.0]), scaled)
        blocks = jnp.stack([jnp.diag(jnp.array([rho, jnp.sqrt(ratio), 0.0, 0.0]))] * 2)
        start = network.from_frame(blocks.at[0, 0, 1].add(turn).at[1, 0, 1].add(-0.3 * turn))

        def advance(weights: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
            after = jax.lax.fori_loop(0, every, lambda _, W: network.step(W), weights)
            product = bases[-1].T @ weights[1] @ weights[0] @ bases[0]
            beside = jnp.max(jnp.abs(product - jnp.diag(jnp.diag(product))))
            return after, (product[0, 0], beside)

        return jax.lax.scan(advance, start, length=steps // every + 1)[1]

    return jax.vmap(run)(*runs)


@partial(jax.jit, static_argnums=(2,))
def _exponents(scaled: Float[Array, "n"], ratio: Float[Array, "n"], steps: int) -> Array:
    """Mean growth along the orbit of the first mode, the second at rest, after it has settled."""

    def growth(scaled: Array, ratio: Array, rho: Array) -> Array:
        start, targets = jnp.stack([rho, jnp.sqrt(ratio)]), jnp.stack([jnp.ones(()), ratio])
        return jnp.mean(alignment_growth(start, targets, 2, scaled, steps)[steps // 5 :])

    return jax.vmap(growth)(scaled, ratio, _settled(scaled))


def _settled(scaled: Float[Array, "n"]) -> Float[Array, "n"]:
    return _orbit(scaled, 1000, 1)[:, 0]


def _grid(first: np.ndarray, second: Any) -> tuple[Array, Array]:
    """All pairs of two axes, the second outermost."""
    ratio, scaled = (side.ravel() for side in np.meshgrid(second, first, indexing="ij"))
    return jnp.asarray(scaled), jnp.asarray(ratio)


LINE, DOT = np.linspace(1.01, 1.6, 60), np.linspace(1.02, 1.58, 15)


def predict(drawn: EdgeCase) -> EdgeTheory:
    """The two-cycle in closed form, and exponents along scalars."""
    branch = jnp.linspace(1.0005, 1.9, 200)
    cycle = jax.jit(jax.vmap(lambda eta: two_cycle(2, 1.0, eta)))(branch)
    settings = jnp.asarray(SETTINGS).T
    exponents = _exponents(*_grid(LINE, MODES), 2000).reshape(len(MODES), -1)
    rates = _exponents(settings[0], settings[1], 2000)
    return EdgeTheory(cycle.low, cycle.high, branch, exponents, jnp.asarray(LINE), rates)


def measure(drawn: EdgeCase) -> EdgeMeasured:
    """Scalar orbits, and dense runs."""
    scaled = jnp.linspace(0.8, 1.999, drawn.orbits)
    dots, ratios = _grid(DOT, MODES)
    points = _settled(dots)
    _, beside = _dense_runs(drawn.bases, (dots, ratios, points, TURN + 0 * dots), 160, 1)
    # Theory says over which steps: from 10 on, up to a growth of e^8, or a decay of e^16.
    slopes = []
    for path, rate in zip(
        np.asarray(beside), np.asarray(_exponents(dots, ratios, 2000)), strict=True
    ):
        last = 10 + int(np.clip((8 if rate > 0 else 16) / abs(rate), 20, 150))
        here = path[10:last]
        known = np.all(np.isfinite(here) & (here > 0))  # not of a run that diverged
        slopes.append(np.polyfit(np.arange(10, last), np.log(here), 1)[0] if known else np.nan)
    settings = jnp.asarray(SETTINGS).T
    low = jax.vmap(lambda eta: two_cycle(2, 1.0, eta).low)(settings[0])
    _, rounding = _dense_runs(drawn.bases, (*settings, low, 0 * low), drawn.steps, 4)
    first = np.linspace(1.0, 1.4, drawn.plane + 1)[1:] - 0.2 / drawn.plane
    second = np.linspace(0.3, 1.0, drawn.plane + 1)[1:] - 0.35 / drawn.plane
    plane = _grid(first, second)
    runs = (*plane, _settled(plane[0]), TURN + 0 * plane[0])
    value, off = (np.asarray(side) for side in _dense_runs(drawn.bases, runs, drawn.steps, 1))
    # A run that diverged has lost its vectors; the maximum of NaN may be any number to XLA.
    kept = (off[:, -1] < off[:, 0]) & np.isfinite(value[:, -1])
    two = np.abs(value[:, -1] - value[:, -3]) < 1e-9
    fate = np.where(kept, 1 + two, 0).reshape(len(second), len(first)).T
    return EdgeMeasured(
        # To less than a pixel: so they are committed in few bytes.
        orbit=jnp.round(_orbit(scaled, 2000, drawn.tail) * 256) / 256,
        scaled=scaled,
        slope=jnp.asarray(slopes).reshape(len(MODES), -1),
        dot=jnp.asarray(DOT),
        beside=rounding,
        step=4 * jnp.arange(rounding.shape[1]),
        fate=jnp.asarray(fate),
        first=jnp.asarray(first),
        second=jnp.asarray(second),
    )


EDGE = one_scenario(
    "fig_edge_of_stability",
    "one mode beyond the edge of stability, and the vectors that it keeps",
    (
        Flag("orbits", (400,), at_least(2), int, help="step sizes of panel (a)", swept=False),
        Flag("tail", (60,), at_least(2), int, help="points of each orbit", swept=False),
        Flag("plane", (30,), at_least(2), int, help="runs along a side of (d)", swept=False),
        Flag("steps", (1200,), at_least(8), int, "t", "steps of dense runs", swept=False),
    ),
    case,
    predict=predict,
    measure=measure,
    theory=EdgeTheory,
    measured=EdgeMeasured,
    traced=False,
)


def numbers(results: Results, **_: Any) -> xr.Dataset:
    """Everything that the panels show."""
    saved = one_seed(results["fig_edge_of_stability"])
    theory, run = fields.of_theory(saved, EdgeTheory), fields.of_run(saved, EdgeMeasured)
    shown = xr.Dataset(
        {
            "low": theory(lambda theory: theory.low),
            "high": theory(lambda theory: theory.high),
            "exponent": theory(lambda theory: theory.exponent),
            "rate": theory(lambda theory: theory.rate),
            "orbit": run(lambda run: run.orbit),
            "slope": run(lambda run: run.slope),
            "beside": run(lambda run: run.beside),
            "fate": run(lambda run: run.fate),
        }
    )
    for name in ("low", "high"):
        shown[name].attrs.update(curve_along="branch", kind="identity")
    # Rounding, and orbits that amplify it, are those of the machine.
    for name in ("orbit", "beside", "slope", "fate", "exponent"):
        shown[name].attrs["compare"] = 0
    return shown.assign_attrs(runs=f"{shown['fate'].size:,}")


def plot_orbits(ax: Any, data: xr.Dataset) -> None:
    """Draw where orbits stay, and the two-cycle."""
    scaled = np.repeat(data["scaled"].values, data.sizes["tail"])
    dots = {"color": plotting.GREY, "ls": "none", "marker": ".", "ms": 0.7, "mew": 0}
    ax.plot(scaled, data["orbit"].values.ravel(), **dots, rasterized=True)
    for branch in (data["low"], data["high"]):
        ax.plot(data["branch"].values, branch.values, color=plotting.ORANGE, lw=1.4)
    # Lines across a panel end above its key.
    ax.axvline(5**0.5 - 1, 0.3, color=plotting.BLUE, ls=plotting.DASHED, lw=1.0)
    ax.plot([2, 2], [-(2**0.5), 2**0.5], color=plotting.GREEN, lw=3, solid_capstyle="butt")
    ax.set(xlim=(0.8, 2.02), ylim=(-1.5, 1.5), xlabel=r"$\eta s$", ylabel=r"$\rho / \sqrt{s}$")
    entries = [
        plotting.entry("two-cycle, closed form", plotting.ORANGE, lw=1.4),
        plotting.entry(r"doubling, $\sqrt{5} - 1$", plotting.BLUE, ls=plotting.DASHED),
        plotting.entry(r"$\eta s = 2$: all of it", plotting.GREEN, lw=3),
    ]
    plotting.key(ax, entries, "lower left")


COLORS = (plotting.BLUE, plotting.ORANGE, plotting.GREEN)


def plot_exponents(ax: Any, data: xr.Dataset) -> None:
    """Draw exponents along scalars, and slopes of dense runs."""
    ax.axhline(0, color=plotting.BLACK, lw=0.6)
    for place, (ratio, color) in enumerate(zip(MODES, COLORS, strict=True)):
        ax.plot(data["line"].values, data["exponent"].values[place], color=color, lw=1.0)
        ax.plot(data["dot"].values, data["slope"].values[place], **plotting.OPEN, mec=color)
        ax.axvline(2 / (1 + ratio), 0.3, color=color, ls=":", lw=1.0)
    ax.set(xlim=(1.0, 1.6), ylim=(-0.45, 0.35), xlabel=r"$\eta s_1$", ylabel="exponent a step")
    entries = [
        plotting.entry(f"$s_2 / s_1$ = {ratio:g}", color)
        for ratio, color in zip(MODES, COLORS, strict=True)
    ]
    plotting.key(ax, entries, "lower right")


def plot_rounding(ax: Any, data: xr.Dataset) -> None:
    """Draw how rounding leaves aligned runs."""
    steps = data["step"].values
    for place, ((scaled, ratio), color) in enumerate(zip(SETTINGS, COLORS, strict=True)):
        label = rf"$\eta s_1$ = {scaled:g}, $s_2 / s_1$ = {ratio:g}"
        # An entry that is exactly 0 has no logarithm; a run that diverges ends.
        height = np.maximum(data["beside"].values[place], 1e-18)
        ax.plot(steps, np.where(height < 10, height, np.nan), color=color, lw=0.7, label=label)
        if (rate := float(data["rate"][place])) > 0:
            grows = (height > 1e-13) & (height < 1e-3)
            # Theory has the slope alone; the height is that of the run.
            level = np.mean(np.log(height[grows]) - rate * steps[grows])
            line = level + rate * steps
            shown = (line > np.log(2e-16)) & (line < np.log(0.1))
            look = {"color": plotting.BLACK, "ls": plotting.DASHED, "lw": 1.1}
            ax.plot(steps[shown], np.exp(line[shown]), **look)
    ax.set(yscale="log", xlim=(0, steps[-1]), ylim=(1e-17, 1e6), xlabel="step")
    ax.set_yticks([1e-16, 1e-12, 1e-8, 1e-4, 1])
    ax.set_ylabel(r"largest of $U^\top P V$ beside diagonal")
    ax.legend(loc="upper right", labelspacing=0.2)


def plot_plane(ax: Any, data: xr.Dataset) -> None:
    """Draw which runs keep their vectors, with both borders and their corner."""
    first, second = np.meshgrid(data["first"].values, data["second"].values, indexing="ij")
    fate = data["fate"].values
    size = 70 / len(data["first"])
    looks = [
        (2, plotting.BLUE, "kept, period 2"),
        (1, plotting.ORANGE, "kept, longer period"),
        (0, "#BBBBBB", "lost"),
    ]
    for value, color, _ in looks:
        here = fate == value
        ax.plot(first[here], second[here], ls="none", marker="o", ms=size, mew=0, color=color)
    border = np.linspace(1.0, 1.4, 100)
    ax.plot(border, 2 / border - 1, color=plotting.BLACK, lw=1.2)
    ax.axvline(5**0.5 - 1, color=plotting.BLACK, ls=plotting.DASHED, lw=1.0)
    corner = (2 / GOLDEN, 1 / GOLDEN)
    ax.plot(*corner, marker="*", ms=9, color="white", mec="black", ls="none")
    ax.annotate(
        r"$1/\varphi$",
        corner,
        (-5, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        bbox={"boxstyle": "square,pad=0.1", "color": "white"},
    )
    ax.set(xlim=(1.0, 1.4), ylim=(0.3, 1.0), xlabel=r"$\eta s_1$", ylabel=r"$s_2 / s_1$")
    entries = [
        *(plotting.entry(text, color, ls="none", marker="o") for _, color, text in looks),
        plotting.entry(r"$\eta (s_1 + s_2) = 2$", plotting.BLACK, lw=1.2),
        plotting.entry("doubling", plotting.BLACK, ls=plotting.DASHED),
    ]
    box = {"frameon": True, "framealpha": 1.0, "edgecolor": "none", "fancybox": False}
    # Where all runs are alike.
    plotting.key(ax, entries, "upper right", **box)


def draw(dataset: xr.Dataset) -> Any:
    """Draw the figure."""
    plots = {
        "one mode": plot_orbits,
        "growth beside the diagonal": plot_exponents,
        "rounding leaves an aligned run": plot_rounding,
        "which runs keep their vectors": plot_plane,
    }
    return plotting.draw_panels(plots, dataset, height=5.2, rows=2)


FIGURE = Figure(
    name="edge_of_stability",
    shows=("edge_of_stability",),
    title="Beyond the edge of stability",
    caption=CAPTION,
    notes=NOTES,
    sources=run_sources(EDGE),
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    panels={
        **dict.fromkeys(("orbit", "low", "high"), "a"),
        **dict.fromkeys(("exponent", "slope"), "b"),
        **dict.fromkeys(("beside", "rate"), "c"),
        "fate": "d",
    },
)
