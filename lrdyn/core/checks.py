"""Checks at the door of a public function: a wrong argument is named before anything is traced.

Of a traced argument a check looks at shape and type alone, so that it costs a program nothing;
numbers are looked at where they are there to be read. Each check returns its argument: one that
fits as it is, integers as floats where floats are wanted. Every failure is a ValueError. An axis of
``axes`` is a length, or a name for any length but 0: the same name, the same length. ``"..."`` in
front stands for any further axes.

Example:
    >>> floats("target", jnp.ones((1, 4)), (4, 4))
    Traceback (most recent call last):
    ValueError: target: got shape (1, 4), wanted (4, 4)
    >>> nonnegative("decay", -1.0)
    Traceback (most recent call last):
    lrdyn.core.checks.OutsideDomain: decay: got -1.0, wanted >= 0
"""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrdyn.system.memory_limit import memory, size_of


class OutsideDomain(ValueError):
    """A number that a formula is not for."""


def refuse(name: str, got: object, wanted: str) -> NoReturn:
    """Say what an argument is and what it should be."""
    raise ValueError(f"{name}: got {got}, wanted {wanted}")


def instance(name: str, x: Any, kind: Any = Callable) -> None:
    """An object of a class, or a function."""
    if not isinstance(x, kind):
        refuse(name, f"type {type(x).__name__}", f"a {kind.__name__}")


def _is(x: Any, kind: Any) -> bool:
    known = hasattr(x, "dtype") or type(x) in (int, float)
    return known and jnp.issubdtype(getattr(x, "dtype", type(x)), kind)


def _number(name: str, x: Any, axes: tuple, kinds: Any, wanted: str, inside: Any, domain: str):
    """A number or an array of one of these kinds, of this shape and inside a domain."""
    if not any(_is(x, kind) for kind in kinds):
        got = f"dtype {x.dtype}" if hasattr(x, "dtype") else f"type {type(x).__name__}"
        refuse(name, x if type(x) is float else got, wanted)
    found, last = np.shape(x), tuple(axis for axis in axes if axis != "...")
    tail = found[max(len(found) - len(last), 0) :]
    named = {a: n for a, n in zip(last, tail, strict=False) if isinstance(a, str)}
    fits = tail == tuple(named.get(axis, axis) for axis in last) and 0 not in found
    if not fits or ("..." not in axes and tail != found):
        refuse(name, f"shape {found}", str(axes).replace("'", ""))
    if inside and not isinstance(x, Tracer) and not np.all(inside(np.asarray(x))):
        raise OutsideDomain(f"{name}: got {np.asarray(x).tolist()}, wanted {domain}")
    # A product with a weak 1.0: the other arguments decide the precision.
    return 1.0 * x if jnp.floating in kinds and not _is(x, jnp.floating) else x


def floats(name: str, x: Any, axes: tuple = (), inside: Any = None, domain: str = "") -> Any:
    """Floating-point numbers of this shape, from integers too."""
    kinds = (jnp.floating, jnp.integer)
    return _number(name, x, axes, kinds, "floating-point numbers", inside, domain)


nonnegative = partial(floats, inside=lambda x: x >= 0, domain=">= 0")
positive = partial(floats, inside=lambda x: (x > 0) & (x < np.inf), domain="> 0")
fraction = partial(floats, inside=lambda x: (x > 0) & (x <= 1), domain="above 0, at most 1")
# A NaN, as of a run that diverged, goes on to what is made of it.
spectrum = partial(floats, inside=lambda x: ~(x < 0), domain="none below 0")


def integer(name: str, x: Any, low: int = 1, high: int | None = None, axes: tuple = ()) -> Any:
    """Integers from ``low`` to ``high``, which have room in 64 bits."""
    if type(x) is int and x >= 2**63:
        refuse(name, x, f"an integer below {2**63 if high is None else high + 1}")
    domain = f"at least {low}" if high is None else f"{low} to {high}"
    wanted, inside = f"an integer, {domain}", lambda x: (low <= x) & (high is None or x <= high)
    return _number(name, x, axes, (jnp.integer,), wanted, inside, domain)


def booleans(name: str, x: Any, axes: tuple = ()) -> Any:
    """Truth values."""
    return _number(name, x, axes, (jnp.bool_,), "booleans", None, "")


def sizes(name: str, x: Any, least: int, most: int | None = None) -> None:
    """So many lengths, each 1 or more."""
    good = isinstance(x, tuple | list) and least <= len(x) <= (most or len(x))
    if not good or not all(_is(n, jnp.integer) and np.shape(n) == () and n >= 1 for n in x):
        refuse(name, x, f"{least}{'' if least == most else ' or more'} integers >= 1")


def allocation(given: Mapping[str, Any], *shapes: Iterable[int], dtype: Any = float) -> None:
    """Room in the memory of this process for arrays of these shapes, before one is made.

    XLA ends the interpreter where the number of entries has no room in 64 bits. What fits may
    still be too much for all that is computed from it; JAX raises an exception then.

    Args:
        given: arguments that the shapes come from, integers or tuples of integers, by name; the
            message names the one with the largest number.
        *shapes: of the arrays, all of which are held at a time.
        dtype: of their entries; ``float`` is what JAX makes of it, of four or eight bytes.

    Raises:
        ValueError: they take more than :func:`lrdyn.system.memory_limit.memory`.

    Example:
        >>> allocation({"rank": 3}, (3, 3))
        >>> allocation({"rank": 2**62}, (2**62,), dtype="float64")
        Traceback (most recent call last):
        ValueError: rank: got 4611686018427387904, for which arrays take 36.9 EB, wanted at most ...
    """
    bytes_each = jax.dtypes.canonicalize_dtype(dtype).itemsize
    # Python's integers: those of NumPy wrap around.
    total = bytes_each * sum(math.prod(map(int, shape)) for shape in shapes)
    if total > memory():
        name = max(given, key=lambda name: int(np.max(np.asarray(given[name], object))))
        taken = f"{given[name]}, for which arrays take {size_of(total)}"
        refuse(name, taken, f"at most {size_of(memory())}")


def steps(x: Any) -> Any:
    """Step numbers, which have room in 32 bits."""
    x, wanted = np.array(x) if isinstance(x, tuple | list) else x, "increasing integers >= 0"
    gaps = partial(np.diff, prepend=-1, append=np.int64(2**31))
    return _number("steps", x, ("times",), (jnp.integer,), wanted, lambda x: gaps(x) > 0, wanted)


def key(x: Any) -> Any:
    """One random key."""
    return _number("key", x, (), (jax.dtypes.prng_key,), "a random key", None, "")


def fields(name: str, x: Any, kind: type, **axes: tuple) -> Any:
    """A named tuple whose arrays have such shapes: one name is one length in all of them."""
    instance(name, x, kind)
    lengths: dict[Any, int] = {}
    for field, letters in axes.items():
        wanted = tuple(lengths.get(a, a) for a in letters)
        x = x._replace(**{field: floats(f"{name}.{field}", getattr(x, field), wanted)})
        lengths |= dict(zip(letters, np.shape(getattr(x, field)), strict=True))
    return x


def layers(x: Any, count: int | None = None, name: str = "weights") -> tuple:
    """``count`` layers (W_1, ..., W_L), each with as many columns as the one before has rows."""
    if not isinstance(x, tuple | list) or len(x) != (count or len(x) or 1):
        size = len(x) if isinstance(x, tuple | list) else np.size(x)
        refuse(name, f"a {type(x).__name__} of {size}", f"a tuple of {count or 'layers'}")
    found, columns = [], "in"
    for place, W in enumerate(x):
        found.append(floats(f"{name}[{place}]", W, ("out", columns)))
        columns = W.shape[0]
    return tuple(found)
