"""Memory of a training step: what a method must hold, and what its compiled program holds.

Everywhere a matrix is m x n, the rank is r and b is the number of examples at once. A ``method`` is
a :class:`lrdyn.adapters.Method` or its :class:`Footprint`. Numbers are counts of entries, unless
they are said to be bytes.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import PyTree

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.selection import Patterns, PerPath, named_arrays, select_leaves, value_at_path

COUNTER_BYTES = 4
"""optax counts steps in one int32 for each transformation that needs their number."""
ADDRESS_BYTES = 8
"""The compiler counts an address for each of several outputs as output."""


class Formula(NamedTuple):
    """A number of entries: a sum of monomials in m, n, r, b, and the largest of some others.

    A scale that an adapter holds is one entry.

    Args:
        always: the sum, such as ``mn + 2nr``.
        most: sums of which the largest is added: moments that do not coincide.

    Example:
        >>> print(Formula("mn", ("mb", "2nr")), Formula("2mn + mm + m"))
        mn + max(mb, 2nr) 2mn + m^2 + m
    """

    always: str
    most: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Write it in one line."""
        text = self.always + (f" + max({', '.join(self.most)})" if self.most else "")
        return re.sub(r"([a-z])\1", r"\1^2", text.removeprefix(" + "))


class Footprint(NamedTuple):
    """What one method holds for a layer y = W x with W of m x n, m <= n, trained with Adam.

    Rank r, b examples at once. Temporaries are those of a step for which no array is copied that
    could be overwritten.
    """

    weights: Formula
    """Weights, trained or not."""
    state: Formula
    """State of the optimiser, and P if there is one."""
    counters: int
    """Step counters in that state."""
    by_sides: bool = True
    """Whether m is the shorter side of W, whichever that is; if not, m counts its rows."""
    merged: Formula | None = None
    """Temporaries of a step that forms the weights as one m x n array: W, or W + B A."""
    layered: Formula | None = None
    """Temporaries of a step that computes W x + B (A x)."""
    refresh: Formula | None = None
    """Temporaries of a refresh, where that is a program of its own."""


# E is m x b: the residual.
PROJECTED = Formula("mn", ("mb", "nr"))
"""The gradient, with E or with what is computed in the coordinates of P."""
SVD = "2mn + mm + m"
"""U, the singular values and V^T, beside the gradient that LAPACK overwrites."""
DECOMPOSED = Formula("", ("mn + mb", SVD))
"""A refresh: the gradient with E, and then its SVD."""


@runtime_checkable
class HasFootprint(Protocol):
    """What has a footprint beside it, such as a :class:`lrdyn.adapters.Method`."""

    @property
    def memory(self) -> Footprint:
        """What the method holds for one matrix and Adam."""
        ...


Held = Footprint | HasFootprint
"""A footprint, or a method that has one."""


def footprint(method: Held) -> Footprint:
    """Look up the footprint of a method; a footprint is its own.

    Example:
        >>> import lrdyn
        >>> print(footprint(lrdyn.GALORE).state)
        mr + 2nr
    """
    if not isinstance(method, Held):
        checks.refuse("method", f"type {type(method).__name__}", "a method or its footprint")
    return method if isinstance(method, Footprint) else method.memory


@checked
def entries(formula: Formula, m: int, n: int, r: int, b: int = 0) -> int:
    """Number of entries that a formula gives for these sizes.

    Args:
        formula: the formula.
        m: rows of the matrix, or its shorter side, as the formula has it.
        n: columns, or the longer side.
        r: rank.
        b: examples of a batch.

    Example:
        >>> entries(Formula("2mn", ("mb", "nr")), 2, 3, 1, 5)
        22
    """
    for name, size in {"m": m, "n": n, "r": r, "b": b}.items():
        checks.integer(name, size, 0)
    sizes = {"m": m, "n": n, "r": r, "b": b}
    values = [_evaluate(text, sizes) for text in formula.most]
    return _evaluate(formula.always, sizes) + max(values, default=0)


def _evaluate(text: str, sizes: dict[str, int]) -> int:
    terms = re.findall(r"(\d*)([a-z]*)", text)
    # A term without letters is a number, and an empty match is none.
    return sum(
        int(c or 1) * math.prod(sizes[letter] for letter in word) for c, word in terms if c or word
    )


def weights_held(method: Held, m: int, n: int, r: int) -> int:
    """Count the weights held for a matrix: mn, and r(m + n) more for adapters.

    Args:
        method: the method, or its footprint.
        m: rows of the matrix.
        n: columns.
        r: rank.

    Example:
        >>> import lrdyn
        >>> weights_held(lrdyn.FULL, 20, 30, 2), weights_held(lrdyn.LORA, 20, 30, 2)
        (600, 700)
    """
    return entries(footprint(method).weights, *_sides(method, m, n), r)


def _sides(method: Held, m: int, n: int) -> tuple[int, int]:
    m, n = checks.integer("m", m), checks.integer("n", n)
    # The formulas are in m <= n where a layer and its transpose hold the same.
    return (min(m, n), max(m, n)) if footprint(method).by_sides else (m, n)


def adam_state(method: Held, m: int, n: int, r: int) -> int:
    """Count the entries of Adam's state, and of P: 2mn, 2r(m + n), 2nr or mr + 2nr.

    Step counters are not included; see :class:`Footprint`.

    Args:
        method: the method, or its footprint.
        m: rows of the matrix.
        n: columns.
        r: rank.

    Example:
        >>> from lrdyn import (FULL, GALORE, LORA, RELORA_FROZEN)
        >>> [adam_state(method, 20, 30, 2) for method in (FULL, LORA, RELORA_FROZEN, GALORE)]
        [1200, 200, 120, 160]
    """
    return entries(footprint(method).state, *_sides(method, m, n), r)


def state_bytes(method: Held, m: int, n: int, r: int, itemsize: int = 4) -> int:
    """Bytes of Adam's state, of P and of the step counters, with ``itemsize`` bytes an entry.

    Args:
        method: the method, or its footprint.
        m: rows of the matrix.
        n: columns.
        r: rank.
        itemsize: bytes of an entry, 4 for float32.

    Example:
        >>> from lrdyn.adapters.methods import (FULL, OPTAX_GALORE)
        >>> state_bytes(FULL, 20, 30, 2), state_bytes(OPTAX_GALORE, 20, 30, 2)
        (4804, 568)
    """
    checks.integer("itemsize", itemsize)
    return itemsize * adam_state(method, m, n, r) + COUNTER_BYTES * footprint(method).counters


def model_bytes(
    method: Held, params: PyTree, rank: PerPath, select: Patterns = "*", stacks: Patterns = ()
) -> int:
    """Bytes of the weights and of Adam's state of a whole model, P and step counters included.

    The formulas of the method for each matrix that is adapted, with the rank min(r, m, n); three
    numbers for each that is trained as it is: itself and its two moments. A parameter is held once.
    Where a method refreshes and has parameters of both kinds, the counters are held twice.

    Args:
        method: the method, or its footprint.
        params: the model, or its shapes.
        rank: r, or patterns with ranks.
        select: which matrices are adapted; all else is trained as it is.
        stacks: which arrays are stacked matrices, see :func:`lrdyn.adapters.choose_by_path`.

    Example:
        >>> import lrdyn, jax.numpy as jnp
        >>> params = {"W": jnp.ones((20, 30), "float32"), "b": jnp.ones(20, "float32")}
        >>> model_bytes(lrdyn.LORA, params, 2), 4 * (700 + 200 + 3 * 20) + 4
        (3844, 3844)
    """
    kinds, total = select_leaves(params, select, stacks=stacks), 0
    for name, leaf in named_arrays(params):
        if kinds.get(name) == "adapted":
            *layers, m, n = leaf.shape
            r = min(checks.integer("rank", value_at_path("rank", rank, name)), m, n)
            held = weights_held(method, m, n, r) + adam_state(method, m, n, r)
            total += leaf.dtype.itemsize * math.prod(layers) * held
        else:
            total += 3 * leaf.dtype.itemsize * leaf.size
    is_mixed = len(kinds) < len(list(named_arrays(params)))
    refreshes = footprint(method).refresh is not None
    return total + COUNTER_BYTES * footprint(method).counters * (1 + (is_mixed and refreshes))


def temporaries(
    method: Held, m: int, n: int, r: int, b: int, *, layered: bool = False, refresh: bool = False
) -> int:
    """Count the entries that a step holds at its fullest moment beside weights, state and batch.

    With ``layered`` it computes W x + B (A x) and not (W + B A) x; a ``refresh`` has its own.

    Args:
        method: the method, or its footprint.
        m: rows of the matrix, at most n.
        n: columns.
        r: rank.
        b: examples of a batch.
        layered: whether the step computes W x + B (A x).
        refresh: whether the program is that of a refresh.

    Raises:
        ValueError: the method has no such program, or m > n.

    Example:
        >>> from lrdyn import RELORA_FROZEN
        >>> temporaries(RELORA_FROZEN, 20, 30, 2, 4), 20 * 30 + 20 * 4
        (680, 680)
        >>> temporaries(RELORA_FROZEN, 20, 30, 2, 4, layered=True)
        168
    """
    if checks.integer("m", m) > checks.integer("n", n):
        raise ValueError(f"m, n: got {m} and {n}, wanted m <= n")
    formula = program_formula(method, layered=layered, refresh=refresh)
    return entries(formula, m, n, r, b)


def program_formula(method: Held, *, layered: bool = False, refresh: bool = False) -> Formula:
    """Look up the temporaries of one program of a method, see :func:`temporaries`.

    Args:
        method: the method, or its footprint.
        layered: whether a step computes W x + B (A x).
        refresh: whether the program is that of a refresh.

    Raises:
        ValueError: the method has no such program.

    Example:
        >>> import lrdyn
        >>> print(program_formula(lrdyn.LORA, layered=True))
        rb + max(2mb, mb + rb + mr, nr)
    """
    held = footprint(method)
    formula = held.refresh if refresh else held.layered if layered else held.merged
    if formula is None:
        kind = "a refresh of its own" if refresh else "adapters" if layered else "a known step"
        raise ValueError(f"method: got one that holds {held.weights}, wanted one with {kind}")
    return formula


class Memory(NamedTuple):
    """Bytes of a compiled program, as its compiler reports them; its code is not in ``peak``."""

    arguments: int
    """Bytes of all arguments."""
    outputs: int
    """What is returned, without the table of its addresses."""
    aliased: int
    """The part of the outputs that overwrites donated arguments."""
    temporaries: int
    """What is held in between, at the fullest moment."""
    table: int
    """Addresses of the outputs, if there are several."""
    code: int
    """Bytes of the machine code."""

    @property
    def peak(self) -> int:
        """Arguments, temporaries and whatever output has no argument to overwrite."""
        return self.arguments + self.temporaries + self.table + self.outputs - self.aliased


@checked
def measured_memory(function: Callable[..., Any], *args: Any, donate: Sequence[int] = ()) -> Memory:
    """Compile a function and ask the compiled program what it holds; nothing is run.

    LAPACK's workspace is its own and not in these numbers.

    Args:
        function: what to compile.
        *args: its arguments, arrays or ``jax.ShapeDtypeStruct``, in any PyTrees.
        donate: positions of arguments that may be overwritten.

    Raises:
        RuntimeError: the backend has no memory analysis.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((100, 10), jnp.float32)
        >>> memory = measured_memory(lambda x: 2 * x, x, donate=[0])
        >>> memory.arguments, memory.outputs, memory.aliased, memory.peak
        (4000, 4000, 4000, 4000)
    """
    # An unused argument is held all the same.
    jitted = jax.jit(function, donate_argnums=tuple(donate), keep_unused=True)
    lowered = jitted.lower(*args)
    analysis = lowered.compile().memory_analysis()
    if analysis is None:
        backend = jax.default_backend()
        raise RuntimeError(f"backend: got {backend!r}, wanted one with a memory analysis")
    outputs = len(jax.tree.leaves(lowered.out_info))
    table = ADDRESS_BYTES * outputs if outputs > 1 else 0
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        outputs=analysis.output_size_in_bytes - table,
        aliased=analysis.alias_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        table=table,
        code=analysis.generated_code_size_in_bytes,
    )
