"""Memory of a training step: what a method must hold, and what its compiled program holds."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

COUNTER_BYTES = 4
"""optax counts steps in one int32 for each transformation that needs their number."""
ADDRESS_BYTES = 8
"""The compiler counts an address for each of several outputs as output."""


class Formula(NamedTuple):
    """A number of entries: a sum of monomials in m, n, r, b, and the largest of some others.

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
    merged: Formula
    """Temporaries of a step that forms the weights as one m x n array: W, or W + B A."""
    layered: Formula | None = None
    """Temporaries of a step that computes W x + B (A x)."""
    refresh: Formula | None = None
    """Temporaries of a refresh, where that is a program of its own."""


# E is m x b: residual. Full training holds it with the gradient E X^T; W X became E in place.
_FULL = Formula("mn + mb")
# W + B A and then its gradient, with E, or with the gradients of the trained factors.
_LORA = Formula("mn", ("mb", "mr + nr"))
# A X is kept; with it W X and B (A X), or E, B^T E and the gradient of B, or that of A alone.
_LAYERED = Formula("rb", ("2mb", "mb + rb + mr", "nr"))
# The gradient, with E or with what is computed in the coordinates of P.
_PROJECTED = Formula("mn", ("mb", "nr"))
# U, the singular values and V^T, beside the gradient that LAPACK overwrites.
_SVD = "2mn + mm + m"

FOOTPRINTS = {
    "full": Footprint(Formula("mn"), Formula("2mn"), 1, _FULL),
    "lora": Footprint(Formula("mn + mr + nr"), Formula("2mr + 2nr"), 1, _LORA, _LAYERED),
    # At a refresh B A is formed and added; the rest happens in place.
    "relora": Footprint(
        Formula("mn + mr + nr"), Formula("2mr + 2nr"), 1, _LORA, _LAYERED, Formula("mn")
    ),
    "relora_frozen": Footprint(
        Formula("mn + mr + nr"),
        Formula("2nr"),
        1,
        _PROJECTED,
        Formula("rb", ("2mb", "nr")),
        Formula("", ("mn + mb", _SVD)),
    ),
    "galore": Footprint(
        Formula("mn"),
        Formula("mr + 2nr"),
        1,
        _PROJECTED,
        refresh=Formula("", ("mn + mb", _SVD)),
    ),
    # One program steps and refreshes: the gradient is needed again after its SVD.
    "galore_optax": Footprint(
        Formula("mn"), Formula("nr + 2mr"), 2, Formula("mn", ("mb", "nr", _SVD))
    ),
}
"""Method -> what it holds: full training, LoRA, ReLoRA (both factors trained), ReLoRA with B
frozen, GaLore as published (P on the smaller side), GaLore of optax (P on the larger)."""


def entries(formula: Formula, m: int, n: int, r: int, b: int = 0) -> int:
    """Evaluate a formula.

    Args:
        formula: what to count.
        m: rows.
        n: columns.
        r: rank.
        b: examples at once.

    Returns:
        The number of entries.

    Example:
        >>> entries(Formula("2mn", ("mb", "nr")), 2, 3, 1, 5)
        22
    """
    sizes = {"m": m, "n": n, "r": r, "b": b}
    values = [_sum(text, sizes) for text in formula.most]
    return _sum(formula.always, sizes) + max(values, default=0)


def _sum(text: str, sizes: dict[str, int]) -> int:
    terms = re.findall(r"(\d*)([a-z]+)", text)
    return sum(int(c or 1) * math.prod(sizes[letter] for letter in word) for c, word in terms)


def footprint(method: str) -> Footprint:
    """Look up what a method holds.

    Args:
        method: a key of :data:`FOOTPRINTS`.

    Returns:
        The :class:`Footprint`.

    Raises:
        ValueError: the method is unknown.

    Example:
        >>> print(footprint("galore").state)
        mr + 2nr
    """
    if method not in FOOTPRINTS:
        raise ValueError(f"method: got {method!r}, wanted one of {', '.join(FOOTPRINTS)}")
    return FOOTPRINTS[method]


def weights_held(method: str, m: int, n: int, r: int) -> int:
    """Count the weights held for a matrix: mn, and r(m + n) more for adapters.

    Args:
        method: a key of :data:`FOOTPRINTS`.
        m: rows.
        n: columns.
        r: rank.

    Returns:
        The number of entries.

    Raises:
        ValueError: the method is unknown.

    Example:
        >>> weights_held("full", 20, 30, 2), weights_held("lora", 20, 30, 2)
        (600, 700)
    """
    return entries(footprint(method).weights, min(m, n), max(m, n), r)


def adam_state(method: str, m: int, n: int, r: int) -> int:
    """Count the entries of Adam's state, and of P: 2mn, 2r(m + n), 2nr, mr + 2nr or nr + 2mr.

    Step counters are not included; see :class:`Footprint`.

    Args:
        method: a key of :data:`FOOTPRINTS`.
        m: rows.
        n: columns.
        r: rank.

    Returns:
        The number of entries.

    Raises:
        ValueError: the method is unknown.

    Example:
        >>> [adam_state(name, 20, 30, 2) for name in ("full", "lora", "relora_frozen")]
        [1200, 200, 120]
        >>> [adam_state(name, 20, 30, 2) for name in ("galore", "galore_optax")]
        [160, 140]
    """
    return entries(footprint(method).state, min(m, n), max(m, n), r)


def state_bytes(method: str, m: int, n: int, r: int, itemsize: int = 4) -> int:
    """Bytes of Adam's state, of P and of the step counters.

    Args:
        method: a key of :data:`FOOTPRINTS`.
        m: rows.
        n: columns.
        r: rank.
        itemsize: bytes of an entry.

    Returns:
        Bytes.

    Raises:
        ValueError: the method is unknown.

    Example:
        >>> state_bytes("full", 20, 30, 2), state_bytes("galore_optax", 20, 30, 2)
        (4804, 568)
    """
    counters = footprint(method).counters
    return itemsize * adam_state(method, m, n, r) + COUNTER_BYTES * counters


def temporaries(
    method: str, m: int, n: int, r: int, b: int, *, layered: bool = False, refresh: bool = False
) -> int:
    """Count the entries that a step holds at its fullest moment beside weights, state and batch.

    Args:
        method: a key of :data:`FOOTPRINTS`.
        m: rows.
        n: columns, not fewer.
        r: rank.
        b: examples at once.
        layered: compute W x + B (A x) instead of (W + B A) x.
        refresh: those of a refresh instead.

    Returns:
        The number of entries.

    Raises:
        ValueError: the method is unknown or has no such program, or m > n.

    Example:
        >>> temporaries("relora_frozen", 20, 30, 2, 4), 20 * 30 + 20 * 4
        (680, 680)
        >>> temporaries("relora_frozen", 20, 30, 2, 4, layered=True)
        168
    """
    if m > n:
        raise ValueError(f"m, n: got {m} and {n}, wanted m <= n")
    formula = program_formula(method, layered=layered, refresh=refresh)
    return entries(formula, m, n, r, b)


def program_formula(method: str, *, layered: bool = False, refresh: bool = False) -> Formula:
    """Look up the temporaries of one program of a method.

    Args:
        method: a key of :data:`FOOTPRINTS`.
        layered: compute W x + B (A x) instead of (W + B A) x.
        refresh: those of a refresh instead.

    Returns:
        The :class:`Formula`.

    Raises:
        ValueError: the method is unknown or has no such program.

    Example:
        >>> print(program_formula("lora", layered=True))
        rb + max(2mb, mb + rb + mr, nr)
    """
    held = footprint(method)
    formula = held.refresh if refresh else held.layered if layered else held.merged
    if formula is None:
        kind = "a refresh of its own" if refresh else "adapters"
        raise ValueError(f"method: got {method!r}, wanted one with {kind}")
    return formula


class Memory(NamedTuple):
    """Bytes of a compiled program, as its compiler reports them; its code is not in ``peak``."""

    arguments: int
    """What is passed."""
    outputs: int
    """What is returned, without the table of its addresses."""
    aliased: int
    """The part of the outputs that overwrites donated arguments."""
    temporaries: int
    """What is held in between, at the fullest moment."""
    table: int
    """Addresses of the outputs, if there are several."""
    code: int
    """The program itself."""

    @property
    def peak(self) -> int:
        """Arguments, temporaries and whatever output has no argument to overwrite."""
        return self.arguments + self.temporaries + self.table + self.outputs - self.aliased


def measured_memory(function: Callable[..., Any], *args: Any, donate: Sequence[int] = ()) -> Memory:
    """Compile a function and ask the compiled program what it holds; nothing is run.

    LAPACK's workspace is its own and not in these numbers.

    Args:
        function: what to compile.
        *args: its arguments, arrays or ``jax.ShapeDtypeStruct``, in any PyTrees.
        donate: positions of arguments that may be overwritten.

    Returns:
        The :class:`Memory`.

    Raises:
        RuntimeError: the backend has no memory analysis.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jax.ShapeDtypeStruct((100, 10), jnp.float32)
        >>> found = measured_memory(lambda x: 2 * x, x, donate=[0])
        >>> found.arguments, found.outputs, found.aliased, found.peak
        (4000, 4000, 4000, 4000)
    """
    # An unused argument is held all the same.
    jitted = jax.jit(function, donate_argnums=tuple(donate), keep_unused=True)
    lowered = jitted.lower(*args)
    found = lowered.compile().memory_analysis()
    if found is None:
        backend = jax.default_backend()
        raise RuntimeError(f"backend: got {backend!r}, wanted one with a memory analysis")
    outputs = len(jax.tree.leaves(lowered.out_info))
    table = ADDRESS_BYTES * outputs if outputs > 1 else 0
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes - table,
        aliased=found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        table=table,
        code=found.generated_code_size_in_bytes,
    )
