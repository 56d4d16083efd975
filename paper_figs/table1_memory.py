"""Table 1 (ours): memory of full training, LoRA, ReLoRA and GaLore, predicted and measured."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Int, Shaped

from lrdyn.adapters import memory
from lrdyn.adapters.algorithm_1 import (
    DescentState,
    Method,
    SplitParts,
    WeightParts,
    begin,
    layered,
    merged,
    refresh,
    step,
)
from lrdyn.adapters.memory import Memory, measured_memory
from lrdyn.adapters.state import POLICIES
from lrdyn.figures.exhibits import Results, Table, one_seed, run_sources
from lrdyn.figures.tables import Cell, Grid
from lrdyn.galore.state_claims import GALORE_OF_OPTAX
from lrdyn.theorem4 import memory_claims
from lrdyn.verification.stating import fields
from lrdyn.verification.stating.fields import of_run
from lrdyn.verification.stating.flags import Flag, at_least
from paper_figs.shared import one_scenario

PRESET = {"rows": 4096, "columns": 11008, "rank": 128, "batch": 256, "dtype": "float32"}

CAPTION = """\
The survey's own table of this number was not available; the methods are those of its Algorithm 1
and their relatives, and the sizes are ours. Memory of one layer $y = W x$, $W$ of {rows} x
{columns} ($m$ x $n$, those of an MLP in a 7B transformer), rank $r$ = {rank}, loss
$||W X - Y||_F^2 / 2$ on $b$ = {batch} examples, Adam, {dtype}. Predictions count entries and are
given in bytes; $c$ is an int32 step counter. Compiled: the memory analysis of the compiled program
(CPU, the program's code aside, all that may be overwritten donated); nothing is run. The peak is
weights, state, batch ($nb + mb$) and the temporaries named. Weights and state agree to the byte.
What peaks differ by: some hundred bytes are scalars and addresses. LoRA in the form
$W x + B (A x)$ takes $mr$ more than needed, since the compiler copies $B$ before it overwrites it.
ReLoRA's refresh may take $nr$ more, where the new $A$ is drawn before the old one is used. A
refresh with an SVD takes $m$ less: the singular values are put where the new factor will be. ReLoRA
with B frozen stays, between refreshes, below the size of a gradient ($mn$) in that form alone: to
differentiate $W + B A$ builds one. GaLore has to build one at every step, and a refresh decomposes
one. In optax the refresh is a branch of the step, so that each step has the peak of a refresh, and
the gradient outlives its decomposition. LAPACK's workspace is in no figure.{elsewhere}
"""

AHEAD = Path(__file__).parents[1] / "docs" / "accelerators.json"
"""Peaks of the same programs compiled for devices that need not be here, by ``make aot``."""
DEVICES = ("H100", "v5e")
ELSEWHERE = """ \
Last, the same programs at the same sizes, compiled for an H100 and a TPU v5e without either
({releases}). What the CPU's compiler does is no advice for them: of ReLoRA with B frozen in the
form $W x + B (A x)$ the peak on the H100 is {frozen:.2f} of the prediction. cuBLAS's workspace of
32 MiB is in the H100's peaks."""

METHODS: dict[str, Method] = {**memory_claims.METHODS, "galore_optax": GALORE_OF_OPTAX}
"""The rows of the table, by name."""
NAMES = {
    "full": "full",
    "lora": "LoRA",
    "relora": "ReLoRA",
    "relora_frozen": "ReLoRA, B frozen",
    "galore": "GaLore",
    "galore_optax": "GaLore of optax",
}
"""Method -> its name in tables and keys."""
ADAM = optax.adam(1e-3)

Batch = tuple[Any, Any]
"""X and Y, arrays or their shapes."""
Step = Callable[[Any, Any, Batch], tuple[Any, Any]]
Refresh = Callable[[Any, Any, Batch, jax.Array], tuple[Any, Any]]


class Program(NamedTuple):
    """What is compiled: shapes of the weights, and the functions."""

    weights: Any
    """PyTree of shapes."""
    init: Callable[[Any], Any]
    """State of the optimiser (with P, if there is one) from the weights."""
    step: Step
    """New weights and state from weights, state and batch."""
    refresh: Refresh | None = None
    """The same from a random key as well, at a refresh, where that is a program of its own."""


def loss_on(batch: Batch) -> Callable[[Any], jax.Array]:
    """||W X - Y||_F^2 / 2, of anything that acts as ``W @ X``."""
    return lambda weights: 0.5 * jnp.sum((weights @ batch[0] - batch[1]) ** 2)


def split_state(method: Method, state: DescentState) -> tuple[Any, Any]:
    """Weights, and what is held beside them: P of GaLore, unknown to the network, and the state."""
    # One matrix: there are no counts beside those in the state.
    split, inner, _ = state
    if method.parts(split).coordinates is None:
        return split.trained, (split.frozen, inner)
    return split, ((), inner)


def join_state(weights: Any, held: Any) -> DescentState:
    """The inverse of :func:`split_state`."""
    frozen, inner = held
    return DescentState(
        weights if isinstance(weights, SplitParts) else SplitParts(weights, frozen), inner
    )


def program(
    method: Method,
    optimizer: optax.GradientTransformation,
    network: Callable[[WeightParts, Any], Any],
    W: jax.ShapeDtypeStruct,
    rank: int,
) -> Program:
    """One step and one refresh of a method on weights of this shape, merged or layered."""

    def choose(key: Any, gradients: Any) -> Any:
        return method.choose(key, gradients, rank, method.side)

    def start(key: jax.Array, W: jax.Array) -> tuple[Any, Any]:
        return split_state(method, begin(method, optimizer, W, choose(key, W)))

    # Shapes alone: at the paper's sizes the arrays themselves would not fit.
    weights, held = jax.eval_shape(start, jax.eval_shape(lambda: jax.random.key(0)), W)

    def init(weights: Any) -> Any:
        # Zeros stand for the maps: memory depends on shapes alone, and a refresh comes first
        # anyway.
        frozen = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), held[0])
        parts = method.parts(join_state(weights, (frozen, None)).split)
        return split_state(method, begin(method, optimizer, parts.weights, parts.maps))[1]

    def one_step(weights: Any, held: Any, batch: Batch) -> tuple[Any, Any]:
        state = join_state(weights, held)
        return split_state(
            method, step(method, loss_on(batch), optimizer, state, network=network)[1]
        )

    def one_refresh(weights: Any, held: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        state, policy = join_state(weights, held), POLICIES[method.state]
        loss = loss_on(batch)
        return split_state(
            method, refresh(method, loss, optimizer, state, choose, key, policy=policy)
        )

    return Program(weights, init, one_step, None if method.once else one_refresh)


def programs(m: int, n: int, r: int, dtype: str) -> dict[tuple[str, str], Program]:
    """Everything that is compiled for the table: method and form -> program. There m <= n."""
    W = jax.ShapeDtypeStruct((m, n), dtype)
    compiled = {}
    for name, method in METHODS.items():
        optimizer = optax.contrib.galore(1e-3, rank=r) if name == "galore_optax" else ADAM
        compiled[name, "merged"] = program(method, optimizer, merged, W, r)
        if method.memory.layered is not None:
            # The refresh is that of the other form.
            layers = program(method, optimizer, layered, W, r)
            compiled[name, "layered"] = layers._replace(refresh=None)
    return compiled


class Measured(NamedTuple):
    """Bytes of the programs of one method."""

    weights: int
    state: int
    step: Memory
    refresh: Memory | None


def batch_of(m: int, n: int, b: int, dtype: str) -> Batch:
    """Shapes of X and Y."""
    return jax.ShapeDtypeStruct((n, b), dtype), jax.ShapeDtypeStruct((m, b), dtype)


def step_memory(program: Program, batch: Batch) -> Memory:
    """Compile the step of a method and ask it what it holds."""
    state = jax.eval_shape(program.init, program.weights)
    return measured_memory(program.step, program.weights, state, batch, donate=[0, 1])


def measure(program: Program, batch: Batch) -> Measured:
    """Compile the programs of a method and ask them what they hold."""
    weights, state = program.weights, jax.eval_shape(program.init, program.weights)
    begin, step, refresh = measured_memory(program.init, weights), step_memory(program, batch), None
    if program.refresh is not None:
        key = jax.eval_shape(lambda: jax.random.key(0))
        refresh = measured_memory(program.refresh, weights, state, batch, key, donate=[0, 1])
    return Measured(begin.arguments, begin.outputs, step, refresh)


FORMS = ("merged", "layered", "refresh")


def predicted_peak(method: str, form: str, m: int, n: int, r: int, b: int, itemsize: int) -> int:
    """Bytes at the fullest moment: weights, state, batch and temporaries."""
    of = METHODS[method].memory
    which = {"layered": form == "layered", "refresh": form == "refresh"}
    held = memory.weights_held(of, m, n, r) + n * b + m * b
    held += memory.temporaries(of, m, n, r, b, **which)
    return itemsize * held + memory.state_bytes(of, m, n, r, itemsize)


def _text(formula: memory.Formula, counters: int = 0) -> str:
    counted = {0: "", 1: " + c"}.get(counters, f" + {counters}c")
    return f"${formula}{counted}$".replace("max", r"\max")


SIZES = ("rows", "columns", "rank", "batch")
ABSENT = -1
"""Bytes of a program that a method does not have, or that was not compiled."""


def compiled_elsewhere(path: Path = AHEAD) -> tuple[xr.DataArray, str]:
    """Bytes of the peaks over devices, methods and forms, at the table's own sizes; the compilers.

    It is :data:`ABSENT` what was not compiled, or what the compiler of a device could not.
    """
    compiled = json.loads(path.read_text()) if path.exists() else {"rows": [], "releases": {}}
    by_place = {(row["device"], row["name"]): row.get("peak", ABSENT) for row in compiled["rows"]}
    peaks = [
        [[by_place.get((d, f"Table 1, {m} {form}"), ABSENT) for form in FORMS] for m in METHODS]
        for d in DEVICES
    ]
    axes = {"device": list(DEVICES), "method": list(METHODS), "form": list(FORMS)}
    releases = ", ".join(f"{name} {version}" for name, version in compiled["releases"].items())
    return xr.DataArray(np.array(peaks), axes, list(axes)), releases


class Held(NamedTuple):
    """Formulas, predictions in bytes and what compiled programs hold."""

    weights_formula: Shaped[np.ndarray, "method"] = fields.ABSENT
    """Entries of the weights."""
    weights_predicted: Int[np.ndarray, "method"] = fields.ABSENT
    """Their bytes."""
    weights_measured: Int[np.ndarray, "method"] = fields.ABSENT
    """Bytes that the program of the start is given."""
    state_formula: Shaped[np.ndarray, "method"] = fields.ABSENT
    """Entries of the state, and of P."""
    state_predicted: Int[np.ndarray, "method"] = fields.ABSENT
    """Their bytes."""
    state_measured: Int[np.ndarray, "method"] = fields.ABSENT
    """Bytes that the program of the start returns."""
    peak_formula: Shaped[np.ndarray, "method form"] = fields.ABSENT
    """Entries of the temporaries at the fullest moment."""
    peak_predicted: Int[np.ndarray, "method form"] = fields.ABSENT
    """Bytes at that moment, with weights, state and batch."""
    peak_measured: Int[np.ndarray, "method form"] = fields.ABSENT
    """Bytes of the compiled program."""


def compute(given: Mapping[str, Any]) -> Held:
    """Bytes of weights and state over methods, of peaks over methods and forms, with formulas.

    They are compiled and counted in the precision of the run.
    """
    rows, columns, rank, batch = (given[name] for name in SIZES)
    sizes, dtype = (rows, columns, rank), jnp.result_type(float).name
    itemsize, methods = np.dtype(dtype).itemsize, list(METHODS)
    footprints = [method.memory for method in METHODS.values()]
    weights, state = np.full((2, len(methods)), ABSENT)
    predicted, peaks = np.full((2, len(methods), len(FORMS)), ABSENT)
    formulas = np.full((len(methods), len(FORMS)), "", object)
    for (method, form), parts in programs(*sizes, dtype).items():
        i, measured = methods.index(method), measure(parts, batch_of(rows, columns, batch, dtype))
        weights[i], state[i] = measured.weights, measured.state
        for name, program_memory in ((form, measured.step), ("refresh", measured.refresh)):
            if program_memory is not None:
                at = i, FORMS.index(name)
                which = {"layered": name == "layered", "refresh": name == "refresh"}
                predicted[at] = predicted_peak(method, name, *sizes, batch, itemsize)
                peaks[at] = program_memory.peak
                formulas[at] = _text(memory.program_formula(footprints[i], **which))
    return Held(
        weights_formula=np.array([_text(held.weights) for held in footprints]),
        weights_predicted=itemsize
        * np.array([memory.weights_held(held, *sizes) for held in footprints]),
        weights_measured=weights,
        state_formula=np.array([_text(held.state, held.counters) for held in footprints]),
        state_predicted=np.array(
            [memory.state_bytes(held, *sizes, itemsize) for held in footprints]
        ),
        state_measured=state,
        peak_formula=formulas.astype(str),
        peak_predicted=predicted,
        peak_measured=peaks,
    )


MEMORY = one_scenario(
    "table1",
    "memory of full training, LoRA, ReLoRA and GaLore, predicted and of compiled programs",
    tuple(Flag(name, (PRESET[name],), at_least(1), int, swept=False) for name in SIZES),
    lambda key, **given: given,
    measure=compute,
    measured=Held,
    traced=False,
)


def numbers(results: Results, **settings: Any) -> xr.Dataset:
    """What :func:`compute` returns, with its coordinates, and what compilers for others say."""
    table = one_seed(results["table1"])
    for name, array in table.items():
        array.attrs.update({} if str(name).endswith("formula") else {"units": "bytes"})
    peaks = of_run(table, Held)(lambda run: run.peak_measured)
    peaks.attrs["compare"] = 0  # temporaries are the compiler's choice
    table = table.assign_coords(method=list(METHODS), form=list(FORMS))
    elsewhere, releases = compiled_elsewhere()
    if settings != PRESET or not releases:
        return table.assign_attrs(elsewhere="")
    table["peak_elsewhere"] = elsewhere.assign_attrs(units="bytes", compare=0)
    frozen = {"method": "relora_frozen", "form": "layered"}
    taken = elsewhere.sel({"device": "H100", **frozen}) / table.peak_predicted.sel(frozen)
    caption_part = ELSEWHERE.format(releases=releases, frozen=taken.item())
    return table.assign_attrs(elsewhere=caption_part)


SECTIONS = {
    "merged": "peak of a step, $(W + B A) x$ or $W x$: weights, state, batch and",
    "layered": "peak of a step, $W x + B (A x)$: weights, state, batch and",
    "refresh": "peak of a refresh: weights, state, batch and",
}


def tabulate(dataset: xr.Dataset) -> Grid:
    """Lay out Table 1."""
    header = ("quantity", "method", "entries", "predicted", "compiled", "difference")
    sections = {
        "weights held": _section(dataset, "weights"),
        "state of Adam, with $P$ of GaLore": _section(dataset, "state"),
    }
    for form, title in SECTIONS.items():
        sections[title] = _section(dataset.sel(form=form), "peak")
    for device in dataset["device"].values if "device" in dataset.coords else ():
        there = dataset.sel(device=device).assign(peak_measured=dataset.peak_elsewhere)
        for form, title in SECTIONS.items():
            if rows := _section(there.sel(form=form, device=device), "peak"):
                sections[f"{device}: {title}"] = rows
    return Grid(header, sections)


def _section(dataset: xr.Dataset, quantity: str) -> list[list[Cell]]:
    rows = []
    for method in map(str, dataset["method"].values):
        row = dataset.sel({"method": method})  # sel has an argument of this name
        formula, predicted, measured = (
            row[f"{quantity}_{name}"].item() for name in ("formula", "predicted", "measured")
        )
        if predicted != ABSENT and measured != ABSENT:
            rows.append([NAMES[method], formula, predicted, measured, measured - predicted])
    return rows


TABLE = Table(
    name="table1",
    shows=("theorem4",),
    title="Memory of full training, LoRA, ReLoRA and GaLore",
    caption=CAPTION,
    sources=run_sources(MEMORY),
    numbers=numbers,
    tabulate=tabulate,
    presets={"quick": PRESET, "paper": PRESET},
)
