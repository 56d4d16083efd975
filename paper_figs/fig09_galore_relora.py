"""Figure 9 (ours): GaLore is ReLoRA with a frozen factor; rank, state policies and memory."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array, Float, Int

import lrdyn
from lrdyn.adapters.algorithm_1 import Method
from lrdyn.adapters.state import POLICIES
from lrdyn.figures import plotting
from lrdyn.figures.exhibits import Figure, Results, one_seed
from lrdyn.theorem4.optimizer_state_claims import select_policy
from lrdyn.theorem4.problems import OPTIMIZERS
from lrdyn.verification.running.configuration import Run, run_of
from lrdyn.verification.stating.fields import ABSENT, of_run
from lrdyn.verification.stating.flags import POSITIVE, Flag, at_least
from paper_figs import table1_memory
from paper_figs.shared import one_scenario

QUICK = {
    "rows": 16,
    "columns": 24,
    "rank": 4,
    "examples": 60,
    "period": 25,
    "steps": 300,
    "every": 5,
    "rates": {"sgd": 0.5, "momentum": 0.1, "adam": 0.01},
    "seed": 0,
    "memory_rows": 1024,
    "memory_columns": 4096,
    "memory_batch": 64,
    "memory_ranks": [16, 64, 256],
}
PAPER = {**QUICK, "memory_ranks": [8, 16, 32, 64, 128, 256, 512]}

CAPTION = """\
Algorithm 1 on a {rows} x {columns} matrix, rank r = {rank}, a refresh each {period} steps. (a)
Relative difference of GaLore and ReLoRA with a frozen factor, both keeping the state of the
optimiser: round-off, in double (solid, at most {gap64:.0e}) and single precision (dashed, at most
{gap32:.0e}). Above it what is not the same: ReLoRA that resets (dotted), or trains the other factor
too (dash-dotted). (b) Singular values of W_t - W_0 over the largest, after 1 to {shown} periods of
GaLore with Adam; dotted: full rank. (c) Loss of GaLore whose state is kept, reset or transported.
(d) Peak memory of a step with Adam, over that of the weights: measured (circles), formulas of Table
1 (lines).
"""
NOTES = """\
The survey's own figure of this number was not available; problem, sizes and step sizes are ours:
loss || tanh(W X) - Y ||_F^2 / 2N, N = {examples}, gradient descent, heavy ball (0.9) and Adam (step
sizes {rates[sgd]:g}, {rates[momentum]:g}, {rates[adam]:g}; seed {seed}). (a) || W - W' ||_F / || W'
||_F; ReLoRA that trains the other factor too stands against ReLoRA that does not, both resetting.
(b) Each refresh adds r to the rank of the sum until it is full. (c) Transported is the first
moment, to the new coordinates; which is best depends on problem and step size. (d) {memory_rows} x
{memory_columns} entries of 4 bytes, {memory_batch} examples; the compiled program is measured, and
Table 1 says where a compiler needs more. LoRA and ReLoRA compute W x + B (A x).
"""
KINDS = tuple(OPTIMIZERS)
WORDS = {"sgd": "gradient descent", "momentum": "heavy ball", "adam": "Adam"}
PRECISIONS = ("float64", "float32")
MEMORY = (
    ("full", "merged"),
    ("galore_optax", "merged"),
    ("galore", "merged"),
    ("lora", "layered"),
    ("relora_frozen", "layered"),
)
"""What panel (d) shows: methods and how the layer is computed."""


def problem(
    key: jax.Array, m: int, n: int, examples: int, dtype: str
) -> tuple[jax.Array, Callable[[jax.Array], jax.Array]]:
    """W_0 and the loss || tanh(W X) - Y ||_F^2 / 2N: one layer fits a noisy one of full rank.

    The n inputs are of decreasing scale.
    """
    keys = jax.random.split(key, 4)
    scales = jnp.linspace(1.0, 0.2, n)[:, None]
    X = scales * jax.random.normal(keys[0], (n, examples))
    target, start = (jax.random.normal(k, (m, n)) / np.sqrt(n) for k in keys[1:3])
    Y = jnp.tanh(2 * target @ X) + 0.1 * jax.random.normal(keys[3], (m, examples))
    W, X, Y = (array.astype(dtype) for array in (0.3 * start, X, Y))
    return W, lambda W: jnp.sum((jnp.tanh(W @ X) - Y) ** 2) / (2 * examples)


def chosen_optimizer(number: Any, rates: Mapping[str, float]) -> optax.GradientTransformation:
    """One of the optimisers, by a number that may be traced: one program and one state for all."""
    rules = [rule(rates[name]) for name, rule in OPTIMIZERS.items()]

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        each = [rule.update(updates, own) for rule, own in zip(rules, state, strict=True)]
        moves, states = zip(*each, strict=True)
        return jax.tree.map(lambda *arrays: jnp.stack(arrays)[number], *moves), states

    def init(params: Any) -> Any:
        return tuple(rule.init(params) for rule in rules)

    return optax.GradientTransformation(init, update)


class Trajectories(NamedTuple):
    """Weights of GaLore, and of ReLoRA with one or both factors trained, at recorded steps."""

    galore_float64: Float[Array, "optimizer policy step row column"] = ABSENT
    """Under every policy."""
    relora_float64: Float[Array, "optimizer policy step row column"] = ABSENT
    """With a frozen factor, under every policy."""
    galore_float32: Float[Array, "optimizer first_policy step row column"] = ABSENT
    """Path of GaLore in single precision, under the first policy alone."""
    relora_float32: Float[Array, "optimizer first_policy step row column"] = ABSENT
    """With a frozen factor, in single precision under the first policy alone."""
    both: Float[Array, "optimizer step row column"] = ABSENT
    """ReLoRA with both factors trained, state reset."""
    loss: Float[Array, "optimizer policy step"] = ABSENT
    """Loss of GaLore in double precision."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


class Peaks(NamedTuple):
    """Peak memory of a step of each program, in bytes."""

    peak_predicted: Int[np.ndarray, "program"] = ABSENT
    """Bytes at the peak, by the formulas of Table 1."""
    peak_measured: Int[np.ndarray, "program"] = ABSENT
    """Bytes at the peak, by the compiler."""


def trajectories(
    *,
    rows: int,
    columns: int,
    rank: int,
    examples: int,
    period: int,
    steps: int,
    every: int,
    rates: Mapping[str, float],
    key: jax.Array,
) -> Trajectories:
    """Run GaLore and ReLoRA under every policy; in single precision under the first alone."""
    times, kinds = np.arange(0, steps + 1, every), np.arange(len(KINDS))
    begin = {dtype: problem(key, rows, columns, examples, dtype) for dtype in PRECISIONS}

    def train(method: Method, dtype: str, kind: Any, state: Any) -> jax.Array:
        W, loss = begin[dtype]
        return lrdyn.low_rank_descent(
            method,
            loss,
            W,
            chosen_optimizer(kind, rates),
            # For all alike: ReLoRA too starts at B = P, A = 0.
            choose=lambda key, G: lrdyn.adapters.choose_projectors(G, rank, "left"),
            period=period,
            steps=times,
            state=state,
        ).records

    def train_policies(method: Method, dtype: str, policies: np.ndarray) -> jax.Array:
        def run(kind: Any, policy: Any) -> jax.Array:
            return train(method, dtype, kind, select_policy(policy))

        each = jax.vmap(jax.vmap(run, (None, 0)), (0, None))
        # As float64 also from a run in single precision: differences of the two are taken below.
        return each(kinds, policies).astype(float)

    def train_both(kind: Any) -> jax.Array:
        return train(lrdyn.RELORA, "float64", kind, "reset")

    every_policy, first_policy = np.arange(len(POLICIES)), np.arange(1)
    galore = train_policies(lrdyn.GALORE, "float64", every_policy)
    loss_of_each = jax.vmap(jax.vmap(jax.vmap(begin["float64"][1])))
    return Trajectories(
        galore_float64=galore,
        relora_float64=train_policies(lrdyn.RELORA_FROZEN, "float64", every_policy),
        galore_float32=train_policies(lrdyn.GALORE, "float32", first_policy),
        relora_float32=train_policies(lrdyn.RELORA_FROZEN, "float32", first_policy),
        both=jax.vmap(train_both)(kinds),
        loss=loss_of_each(galore),
        step=jnp.asarray(times),
    )


def relative_gap(weights: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """|| W - W' ||_F / || W' ||_F, over the last two axes."""
    pair = (weights - reference, reference)
    gap, size = (np.linalg.norm(array, axis=(-2, -1)) for array in pair)
    return gap / size


def peaks(given: Mapping[str, int]) -> Peaks:
    """Peak memory of a step of each of :data:`MEMORY`, in bytes of single precision."""
    m, n, b, r = (given[name] for name in ("rows", "columns", "batch", "rank"))
    batch = table1_memory.batch_of(m, n, b, "float32")
    programs = table1_memory.programs(m, n, r, "float32")
    predicted = [table1_memory.predicted_peak(*form, m, n, r, b, 4) for form in MEMORY]
    measured = [table1_memory.step_memory(programs[form], batch).peak for form in MEMORY]
    return Peaks(np.array(predicted), np.array(measured))


ROUND_OFF = {"kind": "round-off", "tolerance": 100.0}
"""Round-off may differ from the baseline by this factor: it is that of another machine."""


def case(key: jax.Array, **given: Any) -> dict[str, Any]:
    """Arguments of :func:`trajectories`."""
    rates = {name: given.pop(f"{name}_rate") for name in KINDS}
    return {"key": key, "rates": rates, **given}


SIZES = (
    Flag("rows", (16,), at_least(1), int, "m", "outputs", swept=False),
    Flag("columns", (24,), at_least(1), int, "n", "inputs, not fewer", swept=False),
)
RANK = Flag("rank", (4,), at_least(1), int, "r", "rank of the projectors", swept=False)
RATES = tuple(
    Flag(f"{kind}_rate", (), POSITIVE, help=f"step size of {text}", swept=False)
    for kind, text in WORDS.items()
)
RUNS = one_scenario(
    "fig09",
    "GaLore and ReLoRA, with the factor frozen and trained, under each state policy",
    (
        *SIZES,
        RANK,
        Flag("examples", (60,), at_least(1), int, "N", "examples", swept=False),
        Flag("period", (25,), at_least(1), int, "T", "steps between refreshes", swept=False),
        Flag("steps", (300,), at_least(1), int, "t", "a multiple of the period", swept=False),
        Flag("every", (5,), at_least(1), int, help="steps between records; divides T", swept=False),
        *RATES,
    ),
    case,
    measure=lambda given: trajectories(**given),
    measured=Trajectories,
)
PEAKS = one_scenario(
    "fig09_memory",
    "peak memory of a training step, over the rank",
    (
        *SIZES,
        Flag("batch", (64,), at_least(1), int, "b", "examples at once", swept=False),
        dataclasses.replace(RANK, quick=(16, 64, 256), swept=True),
    ),
    lambda key, **given: given,
    measure=peaks,
    measured=Peaks,
    traced=False,
)


def sources(
    *,
    rates: Mapping[str, float],
    memory_rows: int,
    memory_columns: int,
    memory_batch: int,
    memory_ranks: Sequence[int],
    **settings: Any,
) -> dict[str, Run]:
    """The runs of panels (a) to (c), and the programs of panel (d)."""
    steps = {f"{name}_rate": rate for name, rate in rates.items()}
    memory = run_of(
        PEAKS,
        seeds=1,
        rows=memory_rows,
        columns=memory_columns,
        batch=memory_batch,
        rank=memory_ranks,
    )
    return {"runs": run_of(RUNS, preset="paper", seeds=1, **steps, **settings), "memory": memory}


def numbers(
    results: Results, *, rows: int, rank: int, period: int, every: int, **_: Any
) -> xr.Dataset:
    """Gaps and losses over steps, singular values over the index, bytes over the rank."""
    run = of_run(one_seed(results["runs"]), Trajectories)
    memory = of_run(one_seed(results["memory"]), Peaks)
    keep, reset = (list(POLICIES).index(name) for name in ("keep", "reset"))  # keep is the first
    galore = run(lambda run: run.galore_float64).values
    relora = run(lambda run: run.relora_float64).values
    both_single = (
        run(lambda run: run.galore_float32).values,
        run(lambda run: run.relora_float32).values,
    )
    exact = [relative_gap(*(w[:, keep] for w in pair)) for pair in ((galore, relora), both_single)]
    shown = -(-rows // rank)  # after so many periods the rank is full
    path = galore[KINDS.index("adam"), keep]
    updates = path[np.arange(1, shown + 1) * (period // every)] - path[0]
    values = np.linalg.svd(updates, compute_uv=False)
    curve = {"curve_along": "step"}
    apart = relative_gap(galore[1:, keep], relora[1:, reset])
    trained = relative_gap(run(lambda run: run.both).values, relora[:, reset])
    losses = run(lambda run: run.loss).values
    return xr.Dataset(
        {
            "gap": (("precision", "optimizer", "step"), exact, {**curve, **ROUND_OFF}),
            "gap_state": (("with_state", "step"), apart, curve),
            "gap_both": (("optimizer", "step"), trained, curve),
            "values": (("period", "index"), values / values[:, :1], {"curve_along": "index"}),
            "loss": (("optimizer", "policy", "step"), losses, curve),
            "peak_predicted": memory(lambda run: run.peak_predicted).T,
            "peak_measured": memory(lambda run: run.peak_measured).T.assign_attrs(compare=0),
        },
        {
            "precision": list(PRECISIONS),
            "optimizer": list(KINDS),
            "with_state": list(KINDS[1:]),
            "policy": list(POLICIES),
            "step": run(lambda run: run.step).values,
            "period": np.arange(1, shown + 1),
            "index": np.arange(1, values.shape[1] + 1),
            "program": [method for method, _ in MEMORY],
        },
        {"gap64": float(exact[0].max()), "gap32": float(exact[1].max()), "shown": shown},
    )


COLORS = {"sgd": plotting.BLUE, "momentum": plotting.GREEN, "adam": plotting.ORANGE}
DASHES = {"float64": "-", "float32": plotting.DASHED}
STATE, BOTH = ":", (0, (5, 1.5, 1, 1.5))
POLICY_DASHES = {"keep": "-", "reset": plotting.DASHED, "transport": ":"}
SMALLEST = 1e-17
"""Lower end of the log axes of what is round-off."""


def plot_gaps(ax: Any, dataset: xr.Dataset) -> None:
    """Draw how far the methods are apart over the iterations."""
    steps = dataset.step.values[1:]

    def draw(curve: np.ndarray, name: str, dashes: Any, width: float = 1.0) -> None:
        ax.plot(steps, np.maximum(curve[1:], SMALLEST), color=COLORS[name], ls=dashes, lw=width)

    for name in map(str, dataset.optimizer.values):
        for precision, dashes in DASHES.items():
            draw(dataset.gap.sel(precision=precision, optimizer=name).values, name, dashes)
        draw(dataset.gap_both.sel(optimizer=name).values, name, BOTH)
    for name in map(str, dataset.with_state.values):
        draw(dataset.gap_state.sel(with_state=name).values, name, STATE, 1.4)
    for precision, word in zip(DASHES, ("double", "single"), strict=True):
        height = 5 * dataset.gap.sel(precision=precision).max().item()
        ax.text(steps[-1], height, f"{word} precision", color=plotting.GREY, ha="right")
    ax.set(yscale="log", xlabel="iteration t", xlim=(0, steps[-1]), ylim=(SMALLEST, 30))
    apart = plotting.entry("keeps / resets", ls=STATE, lw=1.4)
    entries = [*_kinds(KINDS), apart, plotting.entry("B trained too", ls=BOTH)]
    place = {"bbox_to_anchor": (1.01, 0.575), "ncols": 2, "columnspacing": 1.0, "handlelength": 1.5}
    plotting.key(ax, entries, "upper right", **place)


def _kinds(names: Sequence[str]) -> list[Any]:
    return [plotting.entry(WORDS[name], COLORS[name]) for name in names]


def plot_ranks(ax: Any, dataset: xr.Dataset) -> None:
    """Draw the singular values of the accumulated update, period after period."""
    import matplotlib as mpl

    index, rank = dataset["index"].values, _settings(dataset)["rank"]
    shades = mpl.colormaps["viridis"](np.linspace(0.85, 0.1, dataset.sizes["period"]))
    for k, color in zip(dataset.period.values, shades, strict=True):
        values = np.maximum(dataset["values"].sel(period=k).values, SMALLEST)
        ax.plot(index, values, color=color, lw=0.8, marker="o", ms=3, label=rf"${k}T$")
        if rank * k < len(index):
            ax.axvline(rank * k + 0.5, color=plotting.GREY, lw=0.8, ls=":")
    ax.set(yscale="log", xlabel="index i", xlim=(0.5, index[-1] + 0.5), ylim=(SMALLEST, 10))
    ax.set_xticks(np.arange(rank, len(index) + 1, rank))
    plotting.key(ax, None, "lower left", title="after")


def _settings(dataset: xr.Dataset) -> dict[str, Any]:
    return json.loads(dataset.attrs["settings"])


def plot_losses(ax: Any, dataset: xr.Dataset) -> None:
    """Draw the loss under each state policy."""
    for name in map(str, dataset.with_state.values):
        for policy, dashes in POLICY_DASHES.items():
            loss = dataset.loss.sel(optimizer=name, policy=policy)
            ax.plot(loss.step.values, loss.values, color=COLORS[name], ls=dashes, lw=1.0)
    ax.set(yscale="log", xlabel="iteration t", xlim=(0, int(dataset.step[-1])))
    policies = [plotting.entry(name, ls=dashes) for name, dashes in POLICY_DASHES.items()]
    plotting.key(ax, [*_kinds(KINDS[1:]), *policies], "upper right")


LOOKS = {
    "full": plotting.BLACK,
    "galore_optax": plotting.PINK,
    "relora_frozen": plotting.ORANGE,
    "galore": plotting.BLUE,
    "lora": plotting.GREEN,
}


def plot_memory(ax: Any, dataset: xr.Dataset) -> None:
    """Draw the peak memory of a step over the rank."""
    settings, ranks = _settings(dataset), dataset["rank"].values
    weights = 4 * settings["memory_rows"] * settings["memory_columns"]
    for name, color in LOOKS.items():
        peaks = dataset[["peak_predicted", "peak_measured"]].sel(program=name) / weights
        both = (peaks.peak_predicted.values, peaks.peak_measured.values)
        plotting.plot_compared(ax, ranks, *both, color=color)
    ax.set(xscale="log", xlabel="rank r", ylim=(0, None))
    ax.set_xticks(ranks, [str(r) for r in ranks])
    ax.minorticks_off()
    methods = [plotting.entry(table1_memory.NAMES[name], color) for name, color in LOOKS.items()]
    place = {"bbox_to_anchor": (0.0, 0.75), "ncols": 2, "columnspacing": 1.0, "handlelength": 1.3}
    plotting.key(ax, methods, "upper left", **place)


def draw(dataset: xr.Dataset) -> Any:
    """Draw Figure 9."""
    plots = {
        "GaLore against ReLoRA: relative difference": plot_gaps,
        r"singular values of $W_t - W_0$": plot_ranks,
        "loss, by state policy": plot_losses,
        "peak memory of a step / weights": plot_memory,
    }
    return plotting.draw_panels(plots, dataset, height=4.8, rows=2)


FIGURE = Figure(
    name="fig09",
    shows=("theorem4",),
    title="GaLore is ReLoRA with a frozen factor",
    caption=CAPTION,
    notes=NOTES,
    sources=sources,
    numbers=numbers,
    draw=draw,
    presets={"quick": QUICK, "paper": PAPER},
    precisions=("float64",),  # with float32 beside it
    panels={
        **dict.fromkeys(("gap", "gap_state", "gap_both"), "a"),
        "values": "b",
        "loss": "c",
        **dict.fromkeys(("peak_predicted", "peak_measured"), "d"),
    },
)
