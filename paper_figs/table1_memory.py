"""Table 1 (ours): memory of full training, LoRA, ReLoRA and GaLore, predicted and measured."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from lrdyn.adapters import memory
from lrdyn.adapters.algorithm_1 import (
    Method,
    Parts,
    Split,
    State,
    begin,
    layered,
    merged,
    refresh,
    step,
)
from lrdyn.adapters.memory import Memory, measured_memory
from lrdyn.adapters.state import POLICIES
from lrdyn.engine.flags import Flag, at_least
from lrdyn.figures.exhibits import Results, Table, drawn_from, one_seed
from lrdyn.figures.tables import Cell, Grid
from lrdyn.theorem4.memory_claims import METHODS as METHODS
from paper_figs.shared import one_scenario

PRESET = {"rows": 4096, "columns": 11008, "rank": 128, "batch": 256, "dtype": "float32"}

CAPTION = """\
The survey's own table of this number was not available; the methods are those of its Algorithm 1
and their relatives, and the sizes are ours. Memory of one layer $y = W x$, $W$ of {rows} x
{columns} ($m$ x $n$, those of an MLP in a 7B transformer), rank $r$ = {rank}, loss
$||W X - Y||_F^2 / 2$ on $b$ = {batch} examples, Adam, {dtype}. Predictions count entries and are
given in bytes; $c$ is an int32 step counter. Measured: the memory analysis of the compiled program
(CPU, the program's code aside, all that may be overwritten donated); nothing is run. The peak is
weights, state, batch ($nb + mb$) and the temporaries named. Weights and state agree to the byte.
What peaks differ by: some hundred bytes are scalars and addresses. LoRA in the form
$W x + B (A x)$ takes $mr$ more than needed, since the compiler copies $B$ before it overwrites it.
ReLoRA's refresh may take $nr$ more, where the new $A$ is drawn before the old one is used. A
refresh with an SVD takes $m$ less: the singular values are put where the new factor will be. ReLoRA
with B frozen stays, between refreshes, below the size of a gradient ($mn$) in that form alone: to
differentiate $W + B A$ builds one. GaLore has to build one at every step, and a refresh decomposes
one. In optax the refresh is a branch of the step, so that each step has the peak of a refresh, and
the gradient outlives its decomposition. LAPACK's workspace is in no figure.
"""

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


def apart(method: Method, state: State) -> tuple[Any, Any]:
    """Weights, and what is held beside them: P of GaLore, unknown to the network, and the state."""
    split, inner = state
    if method.parts(split).coordinates is None:
        return split.trained, (split.frozen, inner)
    return split, ((), inner)


def together(weights: Any, held: Any) -> State:
    """The inverse of :func:`apart`."""
    frozen, inner = held
    return State(weights if isinstance(weights, Split) else Split(weights, frozen), inner)


def program(
    method: Method, optimizer: optax.GradientTransformation,
    network: Callable[[Parts, Any], Any], W: jax.ShapeDtypeStruct, rank: int,
) -> Program:  # fmt: skip
    """One step and one refresh of a method on weights of this shape, merged or layered."""

    def choose(key: Any, gradients: Any) -> Any:
        return method.choose(key, gradients, rank, method.side)

    def start(key: jax.Array, W: jax.Array) -> tuple[Any, Any]:
        return apart(method, begin(method, optimizer, W, choose(key, W)))

    weights, held = jax.eval_shape(start, jax.eval_shape(lambda: jax.random.key(0)), W)

    def init(weights: Any) -> Any:
        frozen = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), held[0])
        parts = method.parts(together(weights, (frozen, None)).split)
        return apart(method, begin(method, optimizer, parts.weights, parts.maps))[1]

    def one_step(weights: Any, held: Any, batch: Batch) -> tuple[Any, Any]:
        state = together(weights, held)
        return apart(method, step(method, loss_on(batch), optimizer, state, network=network)[1])

    def one_refresh(weights: Any, held: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
        state, policy = together(weights, held), POLICIES[method.state]
        loss = loss_on(batch)
        return apart(method, refresh(method, loss, optimizer, state, choose, key, policy=policy))

    return Program(weights, init, one_step, None if method.once else one_refresh)


def programs(m: int, n: int, r: int, dtype: str) -> dict[tuple[str, str], Program]:
    """Everything that is compiled for the table: method and form -> program. There m <= n."""
    W = jax.ShapeDtypeStruct((m, n), dtype)
    found = {}
    for name, method in METHODS.items():
        optimizer = optax.contrib.galore(1e-3, rank=r) if name == "galore_optax" else ADAM
        found[name, "merged"] = program(method, optimizer, merged, W, r)
        if method.memory.layered is not None:
            # The refresh is that of the other form.
            one = program(method, optimizer, layered, W, r)
            found[name, "layered"] = one._replace(refresh=None)
    return found


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
    held = memory.weights_held(of, m, n, r) + n * b + m * b
    held += memory.temporaries(of, m, n, r, b, **_which(form))
    return itemsize * held + memory.state_bytes(of, m, n, r, itemsize)


def _which(form: str) -> dict[str, bool]:
    return {"layered": form == "layered", "refresh": form == "refresh"}


def _text(formula: memory.Formula, counters: int = 0) -> str:
    counted = {0: "", 1: " + c"}.get(counters, f" + {counters}c")
    return f"${formula}{counted}$".replace("max", r"\max")


SIZES = ("rows", "columns", "rank", "batch")
ABSENT = -1
"""Bytes of a program that a method does not have."""


def compute(given: Mapping[str, Any]) -> dict[str, Any]:
    """Bytes of weights and state over methods, of peaks over methods and forms, with formulas.

    They are compiled and counted in the precision of the run.
    """
    rows, columns, rank, batch = (given[name] for name in SIZES)
    sizes, dtype = (rows, columns, rank), jnp.result_type(float).name
    itemsize, methods = np.dtype(dtype).itemsize, list(METHODS)
    held = [method.memory for method in METHODS.values()]
    measured = {name: np.full(len(methods), ABSENT) for name in ("weights", "state")}
    peaks = {name: np.full((len(methods), len(FORMS)), ABSENT) for name in KINDS[1:]}
    formulas = np.full((len(methods), len(FORMS)), "", object)
    for (method, form), one in programs(*sizes, dtype).items():
        i, found = methods.index(method), measure(one, batch_of(rows, columns, batch, dtype))
        measured["weights"][i], measured["state"][i] = found.weights, found.state
        for name, program_memory in ((form, found.step), ("refresh", found.refresh)):
            if program_memory is not None:
                at = i, FORMS.index(name)
                peaks["predicted"][at] = predicted_peak(method, name, *sizes, batch, itemsize)
                peaks["measured"][at] = program_memory.peak
                formulas[at] = _text(memory.program_formula(held[i], **_which(name)))
    return {
        "weights_formula": [_text(h.weights) for h in held],
        "weights_predicted": [itemsize * memory.weights_held(of, *sizes) for of in held],
        "state_formula": [_text(h.state, h.counters) for h in held],
        "state_predicted": [memory.state_bytes(of, *sizes, itemsize) for of in held],
        "peak_formula": formulas.astype(str),
        **{f"{name}_measured": bytes_held for name, bytes_held in measured.items()},
        **{f"peak_{kind}": bytes_held for kind, bytes_held in peaks.items()},
    }


KINDS = ("formula", "predicted", "measured")
MEMORY = one_scenario(
    "table1",
    "memory of full training, LoRA, ReLoRA and GaLore, predicted and of compiled programs",
    tuple(Flag(name, (PRESET[name],), at_least(1), int, swept=False) for name in SIZES),
    lambda key, **given: given,
    measure=compute,
    dims={f"{held}_{kind}": ("method",) for held in ("weights", "state") for kind in KINDS}
    | {f"peak_{kind}": ("method", "form") for kind in KINDS},
    traced=False,
)


def numbers(results: Results, **_: Any) -> xr.Dataset:
    """What :func:`compute` returns, with its coordinates."""
    found = one_seed(results["table1"])
    for name, array in found.items():
        array.attrs.update({} if str(name).endswith("formula") else {"units": "bytes"})
    found["peak_measured"].attrs["compare"] = 0  # temporaries are the compiler's choice
    return found.assign_coords(method=list(METHODS), form=list(FORMS))


SECTIONS = {
    "merged": "peak of a step, $(W + B A) x$ or $W x$: weights, state, batch and",
    "layered": "peak of a step, $W x + B (A x)$: weights, state, batch and",
    "refresh": "peak of a refresh: weights, state, batch and",
}


def tabulate(dataset: xr.Dataset) -> Grid:
    """Lay out Table 1."""
    header = ("quantity", "method", "entries", "predicted", "measured", "difference")
    sections = {
        "weights held": _section(dataset, "weights"),
        "state of Adam, with $P$ of GaLore": _section(dataset, "state"),
    }
    for form, title in SECTIONS.items():
        sections[title] = _section(dataset.sel(form=form), "peak")
    return Grid(header, sections)


def _section(dataset: xr.Dataset, quantity: str) -> list[list[Cell]]:
    rows = []
    for method in map(str, dataset["method"].values):
        one = dataset.sel({"method": method})  # sel has an argument of this name
        formula, predicted, measured = (
            one[f"{quantity}_{name}"].item() for name in ("formula", "predicted", "measured")
        )
        if predicted != ABSENT:
            rows.append([NAMES[method], formula, predicted, measured, measured - predicted])
    return rows


TABLE = Table(
    name="table1", title="Memory of full training, LoRA, ReLoRA and GaLore", caption=CAPTION,
    sources=drawn_from(MEMORY), numbers=numbers, tabulate=tabulate,
    presets={"quick": PRESET, "paper": PRESET},
)  # fmt: skip
