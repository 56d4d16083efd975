"""Table 1 (ours): memory of full training, LoRA, ReLoRA and GaLore, predicted and measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from lrdyn import memory
from lrdyn.exhibits import Results, Table, drawn_from, one_seed
from lrdyn.memory import FOOTPRINTS, Memory, measured_memory
from lrdyn.projection import (
    GALORE,
    RELORA,
    Iterate,
    Method,
    Projector,
    choose_projectors,
    project,
)
from lrdyn.tables import Cell, Grid
from lrdyn.theorem import Experiment, Flag, Statement, at_least

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
ReLoRA's refresh takes $nr$ more: the new $A$ is drawn before the old one is used. A refresh with an
SVD takes $m$ less: the singular values are put where the new factor will be. ReLoRA with B frozen
stays, between refreshes, below the size of a gradient ($mn$) in that form alone: to differentiate
$W + B A$ builds one. GaLore has to build one at every step, and a refresh decomposes one. In optax
the refresh is a branch of the step, so that each step has the peak of a refresh, and the gradient
outlives its decomposition. LAPACK's workspace is in no figure.
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


def residual_loss(outputs: jax.Array, wanted: jax.Array) -> jax.Array:
    """||F - Y||_F^2 / 2.

    Args:
        outputs: F, ``(m, b)``.
        wanted: Y.

    Returns:
        The loss.
    """
    return 0.5 * jnp.sum((outputs - wanted) ** 2)


def merged(weights: Mapping[str, jax.Array], inputs: jax.Array) -> jax.Array:
    """(W + B A) X.

    Args:
        weights: W, B, A.
        inputs: X, ``(n, b)``.

    Returns:
        Outputs.
    """
    return (weights["W"] + weights["B"] @ weights["A"]) @ inputs


def layered(weights: Mapping[str, jax.Array], inputs: jax.Array) -> jax.Array:
    """W X + B (A X).

    Args:
        weights: W, B, A.
        inputs: X, ``(n, b)``.

    Returns:
        Outputs.
    """
    return weights["W"] @ inputs + weights["B"] @ (weights["A"] @ inputs)


def part_step(
    forward: Callable[[Any, jax.Array], jax.Array],
    trained: Sequence[str],
    optimizer: optax.GradientTransformation,
) -> tuple[Callable[[Any], Any], Step]:
    """Train some of the weights by an optimiser that sees only them.

    Args:
        forward: outputs from weights and inputs.
        trained: names of the weights that are trained.
        optimizer: their optimiser.

    Returns:
        ``init`` and ``step``.
    """

    def chosen(weights):
        return {name: weights[name] for name in trained}

    def step(weights, state, batch):
        def loss(part):
            return residual_loss(forward(weights | part, batch[0]), batch[1])

        part = chosen(weights)
        updates, state = optimizer.update(jax.grad(loss)(part), state, part)
        return weights | optax.apply_updates(part, updates), state

    return lambda weights: optimizer.init(chosen(weights)), step


def projected_step(method: Method, optimizer: optax.GradientTransformation) -> Step:
    """Lines 6 to 8 of Algorithm 1, for an iterate and the state of the optimiser.

    Args:
        method: GaLore or ReLoRA with a frozen factor.
        optimizer: of the coordinates.

    Returns:
        The step.
    """

    def step(iterate, state, batch):
        _, gradients = method.gradient(_loss(batch), iterate, 1.0)
        updates, state = optimizer.update(gradients, state)
        return method.move(iterate, updates, 1.0), state

    return step


def _loss(batch: Batch) -> Callable[[jax.Array], jax.Array]:
    return lambda weights: residual_loss(weights @ batch[0], batch[1])


def projected_refresh(method: Method, rank: int) -> Refresh:
    """Lines 2 to 4 of Algorithm 1; GaLore keeps the state and ReLoRA resets it.

    Args:
        method: GaLore or ReLoRA with a frozen factor.
        rank: r.

    Returns:
        The refresh.
    """

    def refresh(iterate, state, batch, key):
        iterate = method.merge(iterate, 1.0)
        maps = choose_projectors(jax.grad(_loss(batch))(iterate.weights), rank)
        iterate = method.begin(iterate._replace(maps=maps))
        return iterate, state if method is GALORE else jax.tree.map(jnp.zeros_like, state)

    return refresh


def merge_and_restart(weights: Any, state: Any, batch: Batch, key: jax.Array) -> tuple[Any, Any]:
    """Refresh of ReLoRA with both factors trained: W <- W + B A, A drawn anew, B and state zero.

    Args:
        weights: W, B, A.
        state: of the optimiser.
        batch: not looked at.
        key: random key, for A.

    Returns:
        New weights and state.
    """
    fresh = jax.random.normal(key, weights["A"].shape, weights["A"].dtype)
    total = weights["W"] + weights["B"] @ weights["A"]
    zero = jax.tree.map(jnp.zeros_like, (weights["B"], state))
    return {"W": total, "B": zero[0], "A": fresh}, zero[1]


def projector_in_state(function: Callable[..., Any]) -> Callable[..., Any]:
    """Hold P of GaLore with the state of the optimiser, as published code does.

    Args:
        function: step or refresh, for an iterate and the state of the optimiser.

    Returns:
        The same for W, and for P with the state of the optimiser.
    """

    def wrapped(weights, state, *rest):
        iterate, inner = function(Iterate(weights, state[0], None), state[1], *rest)
        return iterate.weights, (iterate.maps, inner)

    return wrapped


def programs(m: int, n: int, r: int, dtype: str) -> dict[tuple[str, str], Program]:
    """Everything that is compiled for the table.

    Args:
        m: rows, at most as many as columns.
        n: columns.
        r: rank.
        dtype: of all arrays.

    Returns:
        Method and form, ``merged`` or ``layered`` -> program.
    """
    W, B, A = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((m, n), (m, r), (r, n)))
    alone, adapted = {"W": W}, {"W": W, "B": B, "A": A}
    found = {
        ("full", "merged"): Program(alone, *part_step(_whole, ["W"], ADAM)),
        ("galore", "merged"): _galore_program(W, B, r),
        ("galore_optax", "merged"): Program(
            alone, *part_step(_whole, ["W"], optax.contrib.galore(1e-3, rank=r))
        ),
        ("relora_frozen", "merged"): _relora_frozen_program(W, B, A, r),
        ("relora_frozen", "layered"): Program(adapted, *part_step(layered, ["A"], ADAM)),
    }
    for form, forward in (("merged", merged), ("layered", layered)):
        lora = Program(adapted, *part_step(forward, ["B", "A"], ADAM))
        found["lora", form] = lora
        found["relora", form] = lora._replace(refresh=merge_and_restart)
    return found


def _whole(weights: Mapping[str, jax.Array], inputs: jax.Array) -> jax.Array:
    return weights["W"] @ inputs


def _galore_program(W: Any, B: Any, rank: int) -> Program:
    def init(weights):
        maps = _zero_projector(B)
        return maps, ADAM.init(project(maps, weights))

    step = projector_in_state(projected_step(GALORE, ADAM))
    return Program(W, init, step, projector_in_state(projected_refresh(GALORE, rank)))


def _zero_projector(B: Any) -> Projector:
    return Projector(jnp.zeros(B.shape, B.dtype), "left")


def _relora_frozen_program(W: Any, B: Any, A: Any, rank: int) -> Program:
    weights = Iterate(W, jax.eval_shape(lambda: _zero_projector(B)), A)
    step, refresh = projected_step(RELORA, ADAM), projected_refresh(RELORA, rank)
    return Program(weights, lambda iterate: ADAM.init(iterate.adapters), step, refresh)


class Measured(NamedTuple):
    """Bytes of the programs of one method."""

    weights: int
    state: int
    step: Memory
    refresh: Memory | None


def batch_of(m: int, n: int, b: int, dtype: str) -> Batch:
    """Shapes of X and Y.

    Args:
        m: rows of W.
        n: columns of W.
        b: examples.
        dtype: of all arrays.

    Returns:
        X and Y.
    """
    return jax.ShapeDtypeStruct((n, b), dtype), jax.ShapeDtypeStruct((m, b), dtype)


def step_memory(program: Program, batch: Batch) -> Memory:
    """Compile the step of a method and ask it what it holds.

    Args:
        program: whose step.
        batch: shapes of X and Y.

    Returns:
        The measured bytes.
    """
    state = jax.eval_shape(program.init, program.weights)
    return measured_memory(program.step, program.weights, state, batch, donate=[0, 1])


def measure(program: Program, batch: Batch) -> Measured:
    """Compile the programs of a method and ask them what they hold.

    Args:
        program: what to compile.
        batch: shapes of X and Y.

    Returns:
        The measured bytes.
    """
    weights, state = program.weights, jax.eval_shape(program.init, program.weights)
    begin, step, refresh = measured_memory(program.init, weights), step_memory(program, batch), None
    if program.refresh is not None:
        key = jax.eval_shape(lambda: jax.random.key(0))
        refresh = measured_memory(program.refresh, weights, state, batch, key, donate=[0, 1])
    return Measured(begin.arguments, begin.outputs, step, refresh)


FORMS = ("merged", "layered", "refresh")


def predicted_peak(method: str, form: str, m: int, n: int, r: int, b: int, itemsize: int) -> int:
    """Bytes at the fullest moment: weights, state, batch and temporaries.

    Args:
        method: a key of ``FOOTPRINTS``.
        form: one of :data:`FORMS`.
        m: rows.
        n: columns.
        r: rank.
        b: examples.
        itemsize: bytes of an entry.

    Returns:
        Bytes.
    """
    held = memory.weights_held(method, m, n, r) + n * b + m * b
    held += memory.temporaries(method, m, n, r, b, **_which(form))
    return itemsize * held + memory.state_bytes(method, m, n, r, itemsize)


def _which(form: str) -> dict[str, bool]:
    return {"layered": form == "layered", "refresh": form == "refresh"}


def _text(formula: memory.Formula, counters: int = 0) -> str:
    counted = {0: "", 1: " + c"}.get(counters, f" + {counters}c")
    return f"${formula}{counted}$".replace("max", r"\max")


ABSENT = -1
"""Bytes of a program that a method does not have."""


def compute(given: Mapping[str, Any]) -> dict[str, Any]:
    """Compile and count, in the precision of the run.

    Args:
        given: rows m, columns n (not fewer), rank r and batch b (examples at once).

    Returns:
        Bytes of weights and state over ``method``, of peaks over ``method`` and ``form``, predicted
        and measured, with their formulas.
    """
    rows, columns, rank, batch = (given[name] for name in ("rows", "columns", "rank", "batch"))
    dtype = jnp.result_type(float).name
    sizes, itemsize = (rows, columns, rank), np.dtype(dtype).itemsize
    methods = list(FOOTPRINTS)
    held = FOOTPRINTS.values()
    shape = (len(methods), len(FORMS))
    arrays = {
        name: np.full(len(methods), ABSENT) for name in ("weights_measured", "state_measured")
    }
    peaks = {name: np.full(shape, ABSENT) for name in ("peak_predicted", "peak_measured")}
    formulas = np.full(shape, "", object)
    for (method, form), program in programs(*sizes, dtype).items():
        i, found = methods.index(method), measure(program, batch_of(rows, columns, batch, dtype))
        arrays["weights_measured"][i], arrays["state_measured"][i] = found.weights, found.state
        for name, program_memory in ((form, found.step), ("refresh", found.refresh)):
            if program_memory is not None:
                at = i, FORMS.index(name)
                peaks["peak_predicted"][at] = predicted_peak(method, name, *sizes, batch, itemsize)
                peaks["peak_measured"][at] = program_memory.peak
                formulas[at] = _text(memory.program_formula(method, **_which(name)))
    weights = [itemsize * memory.weights_held(name, *sizes) for name in methods]
    states = [memory.state_bytes(name, *sizes, itemsize) for name in methods]
    return {
        "weights_formula": [_text(h.weights) for h in held],
        "weights_predicted": weights,
        "state_formula": [_text(h.state, h.counters) for h in held],
        "state_predicted": states,
        "peak_formula": formulas.astype(str),
        **arrays,
        **peaks,
    }


KINDS = ("formula", "predicted", "measured")
MEMORY = Experiment(
    "table1",
    "memory of full training, LoRA, ReLoRA and GaLore, predicted and of compiled programs",
    tuple(Flag(name, (PRESET[name],), at_least(1), int, swept=False)
          for name in ("rows", "columns", "rank", "batch")),
    (
        Statement(
            "memory",
            lambda key, **given: given,
            measure=compute,
            dims={f"{held}_{kind}": ("method",) for held in ("weights", "state") for kind in KINDS}
            | {f"peak_{kind}": ("method", "form") for kind in KINDS},
            traced=False,
        ),
    ),
)  # fmt: skip


def numbers(results: Results, **_: Any) -> xr.Dataset:
    """Numbers of Table 1.

    Args:
        results: of the experiment.
        **_: settings.

    Returns:
        What :func:`compute` returns, with its coordinates.
    """
    found = one_seed(results["table1"])
    for name, array in found.items():
        array.attrs.update({} if str(name).endswith("formula") else {"units": "bytes"})
    found["peak_measured"].attrs["compare"] = 0  # temporaries are the compiler's choice
    return found.assign_coords(method=list(FOOTPRINTS), form=list(FORMS))


SECTIONS = {
    "merged": "peak of a step, $(W + B A) x$ or $W x$: weights, state, batch and",
    "layered": "peak of a step, $W x + B (A x)$: weights, state, batch and",
    "refresh": "peak of a refresh: weights, state, batch and",
}


def tabulate(dataset: xr.Dataset) -> Grid:
    """Lay out Table 1.

    Args:
        dataset: its numbers.

    Returns:
        The cells.
    """
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
    name="table1",
    title="Memory of full training, LoRA, ReLoRA and GaLore",
    caption=CAPTION,
    sources=drawn_from(MEMORY),
    numbers=numbers,
    tabulate=tabulate,
    presets={"quick": PRESET, "paper": PRESET},
)
