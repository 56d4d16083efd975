"""Checks of the arguments of public functions, which are made before anything is traced.

:func:`checked` reads kinds and shapes off the annotations of a function. What an annotation does
not say, the domain of a number above all, the body checks by the other functions here. Of a traced
argument a check looks at shape and type alone, so that it costs a program nothing; numbers are
looked at where they are there to be read. Each check returns its argument: one that fits as it is,
integers as floats where floats are wanted. Every failure is a ValueError.

An axis, of ``axes`` or of an annotation, is a length, or a name for any length but 0: the same
name, the same length, but for names that begin with ``_``. ``"..."`` stands for any further axes,
``"*name"`` for the same ones wherever it stands.

Example:
    >>> floats("target", jnp.ones((1, 4)), (4, 4))
    Traceback (most recent call last):
    ValueError: target: got shape (1, 4), wanted (4, 4)
    >>> nonnegative("decay", -1.0)
    Traceback (most recent call last):
    lrdyn.core.checks.OutsideDomain: decay: got -1.0, wanted >= 0
"""

import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache, partial, wraps
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    NamedTuple,
    NoReturn,
    ParamSpec,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Bool, Float, Int, Integer, Key

from lrdyn.system.memory_limit import memory, size_of

P = ParamSpec("P")
R = TypeVar("R")
Axes = tuple[int | str, ...]
Lengths = dict[str, Any]
"""Lengths of the axes met so far, by name; those of a ``*name`` are a tuple."""


class OutsideDomain(ValueError):
    """A number outside the domain of a formula."""


def refuse(name: str, got: object, wanted: str) -> NoReturn:
    """Raise an error that names an argument, what it got and what it wanted.

    Args:
        name: of the argument.
        got: what it got, in words or as a value.
        wanted: what it should be.
    """
    raise ValueError(f"{name}: got {got}, wanted {wanted}")


def instance(name: str, x: Any, kind: Any = Callable) -> Any:
    """Check that an argument is an instance of a class, or callable.

    Args:
        name: of the argument.
        x: the argument.
        kind: the class, or ``Callable``.
    """
    if not isinstance(x, kind):
        refuse(name, f"type {type(x).__name__}", f"a {kind.__name__}")
    return x


class NumberKind(NamedTuple):
    """Types of numbers, as JAX has them, and their name in a message."""

    types: tuple[Any, ...]
    wanted: str


FLOATS = NumberKind((jnp.floating, jnp.integer), "floating-point numbers")
INTEGERS = NumberKind((jnp.integer,), "integers")
BOOLEANS = NumberKind((jnp.bool_,), "booleans")
KEYS = NumberKind((jax.dtypes.prng_key,), "a random key")


@cache
def _is_type(dtype: Any, types: tuple[Any, ...]) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in types)


def _has_type(x: Any, types: tuple[Any, ...]) -> bool:
    """Whether x is an array, or a number of Python's, of one of these types."""
    dtype = getattr(x, "dtype", type(x) if type(x) in (int, float) else None)
    return dtype is not None and _is_type(dtype, types)


def _check_type(name: str, x: Any, kind: NumberKind) -> Any:
    """Check that an argument holds numbers of a kind."""
    if not _has_type(x, kind.types):
        got = f"dtype {x.dtype}" if hasattr(x, "dtype") else f"type {type(x).__name__}"
        refuse(name, x if type(x) is float else got, kind.wanted)
    # A product with a weak 1.0: the other arguments decide the precision.
    return 1.0 * x if kind is FLOATS and not _has_type(x, (jnp.floating,)) else x


@lru_cache(maxsize=1024)
def _split_axes(axes: Axes) -> tuple[Axes, str | None, Axes]:
    """Axes before and after the one that stands for several."""
    for place, axis in enumerate(axes):
        if isinstance(axis, str) and (axis == "..." or axis.startswith("*")):
            return axes[:place], axis, axes[place + 1 :]
    return axes, None, ()


def _check_shape(name: str, x: Any, axes: Axes, lengths: Lengths) -> None:
    """Refuse an array whose axes are not as long as those of their names; add the new ones."""
    shape = np.shape(x)
    first, several, last = _split_axes(axes)
    end = len(shape) - len(last)
    # No axis may be empty: a maximum or a mean over none has no value.
    fits = 0 not in shape and (end >= len(first) if several else end == len(first))
    new: Lengths = {}
    for axis, length in zip(first + last, shape[: len(first)] + shape[end:], strict=False):
        if isinstance(axis, int):
            fits &= axis == length
        # One name twice within a shape is one length, too: hence both comparisons.
        elif axis[0] != "_":
            fits &= lengths.get(axis, new.setdefault(axis, length)) == length == new[axis]
    if several and several != "...":
        new[several] = shape[len(first) : end]
        fits &= lengths.get(several, new[several]) == new[several]
    if not fits:
        refuse(name, f"shape {shape}", _shape_text(axes, lengths))
    lengths.update(new)


def _shape_text(axes: Axes, lengths: Lengths) -> str:
    """Lengths where they are known, and names."""
    wanted: list[Any] = []
    for axis in axes:
        known = axis if isinstance(axis, int) else lengths.get(axis, axis)
        if isinstance(known, str):
            known = "..." if known.startswith("*") else known.lstrip("_") or "_"
        wanted += known if isinstance(known, tuple) else [known]
    return str(tuple(wanted)).replace("'", "")


def _check_number(
    name: str,
    x: Any,
    axes: Axes,
    kind: NumberKind,
    inside: Callable[[Any], Any] | None,
    domain: str,
) -> Any:
    """Check a number or an array: its kind, its shape and its domain."""
    number = _check_type(name, x, kind)
    _check_shape(name, x, axes, {})
    # Not ``np.any`` of the opposite, which a NaN would pass.
    if inside and not isinstance(x, Tracer) and not np.all(inside(np.asarray(x))):
        raise OutsideDomain(f"{name}: got {np.asarray(x).tolist()}, wanted {domain}")
    return number


def floats(
    name: str,
    x: Any,
    axes: Axes = (),
    inside: Callable[[Any], Any] | None = None,
    domain: str = "",
) -> Any:
    """Check floating-point numbers of this shape; integers are converted.

    Args:
        name: of the argument.
        x: a number or an array of NumPy or JAX, traced or not.
        axes: the shape that it should have.
        inside: maps an array to whether its entries lie in the domain; a traced argument is not
            asked.
        domain: the domain in words, for the message.
    """
    return _check_number(name, x, axes, FLOATS, inside, domain)


nonnegative = partial(floats, inside=lambda x: x >= 0, domain=">= 0")
positive = partial(floats, inside=lambda x: (x > 0) & (x < np.inf), domain="> 0")
fraction = partial(floats, inside=lambda x: (x > 0) & (x <= 1), domain="above 0, at most 1")


def spectrum(name: str, x: Any, axes: Axes = ("...",)) -> Any:
    """Check singular values; a NaN, as of a run that diverged, passes.

    Args:
        name: of the argument.
        x: the singular values.
        axes: the shape that they should have.
    """
    return floats(name, x, axes, lambda x: ~(x < 0), "none below 0")


def integer(name: str, x: Any, low: int = 1, high: int | None = None, axes: Axes = ()) -> Any:
    """Check integers from ``low`` to ``high``, which must fit into 64 bits.

    Args:
        name: of the argument.
        x: an integer or an array of integers.
        low: the least that is accepted.
        high: the most that is accepted; no bound if None.
        axes: the shape that it should have.
    """
    # NumPy would make an object of it, and JAX overflow, before any check could name it.
    if type(x) is int and x >= 2**63:
        refuse(name, x, f"an integer below {2**63 if high is None else high + 1}")
    domain = f"at least {low}" if high is None else f"{low} to {high}"
    kind = NumberKind(INTEGERS.types, f"an integer, {domain}")
    return _check_number(name, x, axes, kind, partial(_in_range, low, high), domain)


def _in_range(low: int, high: int | None, x: Any) -> Any:
    return (low <= x) & (high is None or x <= high)


def booleans(name: str, x: Any, axes: Axes = ()) -> Any:
    """Check boolean arrays of a shape.

    Args:
        name: of the argument.
        x: a boolean or an array of them.
        axes: the shape that it should have.
    """
    return _check_number(name, x, axes, BOOLEANS, None, "")


def key(x: Any) -> Any:
    """Check one random key."""
    return _check_number("key", x, (), KEYS, None, "")


def steps(x: Any) -> Any:
    """Check increasing step numbers, which must fit into 32 bits."""
    x, wanted = np.array(x) if isinstance(x, tuple | list) else x, "increasing integers >= 0"
    # The ends say that the first is 0 or more and that the last has room in 32 bits.
    gaps = partial(np.diff, prepend=-1, append=np.int64(2**31))
    kind = NumberKind(INTEGERS.types, wanted)
    return _check_number("steps", x, ("times",), kind, lambda x: gaps(x) > 0, wanted)


def sizes(name: str, x: Any, least: int, most: int | None = None) -> None:
    """Check a tuple of lengths, each 1 or more.

    Args:
        name: of the argument.
        x: the lengths.
        least: how many there must be at least.
        most: how many there may be at most; any number if None.
    """
    good = isinstance(x, tuple | list) and least <= len(x) <= (most or len(x))
    if not good or not all(
        _has_type(n, INTEGERS.types) and np.shape(n) == () and n >= 1 for n in x
    ):
        refuse(name, x, f"{least}{'' if least == most else ' or more'} integers >= 1")


def allocation(given: Mapping[str, Any], *shapes: Iterable[int], dtype: Any = float) -> None:
    """Check that arrays of these shapes fit into the memory of this process, before making one.

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


def _check_length(name: str, x: Any, wanted: int | str) -> None:
    """Check the length of a tuple or list; a text as ``wanted`` asks for one entry or more."""
    size = len(x) if isinstance(x, tuple | list) else np.size(x)
    fits = size == wanted if isinstance(wanted, int) else size > 0
    if not isinstance(x, tuple | list) or not fits:
        refuse(name, f"a {type(x).__name__} of {size}", f"a tuple of {wanted}")


def layers(
    x: Any,
    count: int | None = None,
    name: str = "weights",
    outside: Axes = ("_out", "_in"),
    lengths: Lengths | None = None,
) -> tuple:
    """``count`` layers (W_1, ..., W_L), each with as many columns as the one before has rows.

    ``outside`` are the axes of their product.

    Args:
        x: the layers, ``W_l`` of shape (out, in).
        count: how many there must be; one or more if None.
        name: of the argument.
        outside: the axes of their product.
        lengths: lengths of named axes that are known already; those of these layers are added.
    """
    _check_length(name, x, count or "layers")
    lengths = {} if lengths is None else lengths
    last_rows, columns = outside
    weights = []
    for place, W in enumerate(x):
        rows = last_rows if place == len(x) - 1 else "_out"
        W = _check_type(f"{name}[{place}]", W, FLOATS)
        _check_shape(f"{name}[{place}]", W, (rows, columns), lengths)
        weights.append(W)
        columns = W.shape[0]
    return tuple(weights)


# What the annotations of a function say ------------------------------------------------------

Check = Callable[[str, Any, Lengths], Any]
"""``check(name, x, lengths)`` returns the argument x, and adds the lengths of its axes."""
HINTS: list[tuple[Any, NumberKind]] = [
    (Float, FLOATS),
    (Int, INTEGERS),
    (Integer, INTEGERS),
    (Bool, BOOLEANS),
    (Key, KEYS),
]
KINDS = {hint.dtypes: kind for hint, kind in HINTS}
SILENT = {"builtins", "collections", "typing", "pathlib", "jax", "jaxlib", "jaxtyping", "numpy"}
"""Packages whose classes say nothing by themselves: a bare ``Array`` may be one of NumPy's too."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Check the arguments of a function by its annotations, which are read once.

    They are checked in the order in which they stand, and passed on as the checks return them.
    These annotations say something:

    * ``Float[Array, "k d"]`` with ``Int``, ``Bool`` or ``Key`` in its place, of JAX or NumPy:
      kind and shape; ``float`` is a number without axes;
    * unions of these, of which that with the nearest number of axes counts, and unions with None
      and with ``int``, of which both stay what they are;
    * ``Callable``;
    * :data:`lrdyn.core.Weights`: layers each of which has as many columns as the one before has
      rows; ``Annotated[Weights, "k d"]`` names the axes of their product, and several texts,
      ``Annotated[Weights, "h d", "k h"]``, those of so many layers;
    * other tuples of arrays, such as square ones of one size, ``tuple[Float[Array, "d d"], ...]``;
    * named tuples, by the annotations of their fields, whose axes are those of the function; a
      named tuple inside of one has names of its own;
    * ``Mapping`` and ``dict``, for any mapping, and other classes than those of
      :data:`SILENT` and protocols.

    One name is one length in all arguments of a call. Other annotations say nothing here: an
    integer has a range, which the body checks with its kind, and a tree may be any. Nor are
    defaults checked, and ``*args``.

    Raises:
        TypeError: no annotation says anything, or an axis is neither a length nor a name.

    Example:
        >>> from jaxtyping import Array
        >>> @checked
        ... def apply(matrix: Float[Array, "k d"], vector: Float[Array, "d"]) -> Array:
        ...     return matrix @ vector
        >>> apply(jnp.eye(2), jnp.arange(2)).tolist()
        [0.0, 1.0]
        >>> apply(jnp.eye(2), jnp.ones(3))
        Traceback (most recent call last):
        ValueError: vector: got shape (3,), wanted (2,)
    """
    plan: list[tuple[int, str, Check]] = []
    # Texts are evaluated, as annotations are under ``from __future__ import annotations``.
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    for place, parameter in enumerate(parameters):
        is_several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if is_several or parameter.annotation is parameter.empty:
            continue
        check = _make_check(parameter.annotation)
        if check is None:
            continue
        keyword_only = parameter.kind is parameter.KEYWORD_ONLY
        # What can only be given by name is at no position.
        plan.append((sys.maxsize if keyword_only else place, parameter.name, check))
    if not plan:
        raise TypeError(f"checked: got {function}, wanted annotations that say something")

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        positional: list[Any] = list(args)
        named: dict[str, Any] = kwargs
        lengths: Lengths = {}
        # What is missing, too many or unknown is left to Python, which says so.
        for place, name, check in plan:
            if place < len(positional):
                positional[place] = check(name, positional[place], lengths)
            elif name in named:
                named[name] = check(name, named[name], lengths)
        return cast("Any", function)(*positional, **named)

    return call


def _make_check(hint: Any) -> Check | None:
    """The check of an argument with this annotation; None if there is nothing to check."""
    origin, parts = get_origin(hint), get_args(hint)
    if isinstance(hint, TypeVar):
        origin, parts = Union, hint.__constraints__
    if origin in (Union, UnionType):
        passed = tuple(part for part in parts if part in (NoneType, int))
        others = [part for part in parts if part not in passed]
        of_others = _make_check(others[0]) if len(others) == 1 else _make_number_check(others)
        if of_others is None or not passed:
            return of_others
        return lambda name, x, lengths: x if type(x) in passed else of_others(name, x, lengths)
    if origin is Annotated and len(parts) == 2:
        outside = _parse_axes(parts[1])
        return lambda name, x, lengths: layers(x, None, name, outside, lengths)
    if origin is Annotated:
        checks = [partial(_check_numbers, FLOATS, [_parse_axes(words)]) for words in parts[1:]]
        return partial(_check_tuple, checks, len(checks))
    if origin is tuple and parts[1:] == (...,):
        axes = getattr(parts[0], "dim_str", "")
        if axes == "_ _":
            return lambda name, x, lengths: layers(x, None, name, lengths=lengths)
        check = _make_number_check([parts[0]])
        return check and partial(_check_tuple, [check], "layers" if " " in axes else "arrays")
    if origin is tuple:
        checks = [check for part in parts if (check := _make_check(part))]
        return partial(_check_tuple, checks, len(parts)) if len(checks) == len(parts) else None
    if Callable in (hint, origin):
        return lambda name, x, lengths: instance(name, x)
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        hints = get_type_hints(hint, include_extras=True)
        of_fields = {name: check for name in hints if (check := _make_check(hints[name]))}
        return partial(_check_fields, hint, of_fields)
    if origin in (Mapping, dict):
        return lambda name, x, lengths: instance(name, x, Mapping)
    if isinstance(hint, type) and hint.__module__.partition(".")[0] not in SILENT:
        is_protocol = getattr(hint, "_is_protocol", False)
        return None if is_protocol else lambda name, x, lengths: instance(name, x, hint)
    return _make_number_check([hint])


def _make_number_check(hints: list[Any]) -> Check | None:
    """The check of a union of numbers of one kind; None if other types are among it."""
    kinds = [
        FLOATS if hint is float else KINDS.get(getattr(hint, "dtypes", None)) for hint in hints
    ]
    if not kinds or kinds[0] is None or len(set(kinds)) > 1:
        return None
    shapes = [_parse_axes("" if hint is float else hint.dim_str) for hint in hints]
    return partial(_check_numbers, kinds[0], shapes)


def _parse_axes(words: str) -> Axes:
    """Parse the axes of an annotation."""
    axes: list[int | str] = []
    for word in words.split():
        if not (word == "..." or word.removeprefix("*").isidentifier() or word.isdecimal()):
            raise TypeError(f"axis: got {word!r} in {words!r}, wanted a length or a name")
        name = "..." if word.startswith("*_") else word
        axes.append(int(word) if word.isdecimal() else name)
    return tuple(axes)


def _check_numbers(
    kind: NumberKind, shapes: list[Axes], name: str, x: Any, lengths: Lengths
) -> Any:
    number = _check_type(name, x, kind)
    axes = shapes[0]
    if len(shapes) > 1:  # the message says what comes nearest
        axes = min(shapes, key=lambda axes: abs(len(axes) - np.ndim(x)))
    _check_shape(name, x, axes, lengths)
    return number


def _check_tuple(
    checks: list[Check], wanted: int | str, name: str, x: Any, lengths: Lengths
) -> Any:
    """A check for each of so many, or one for all."""
    _check_length(name, x, wanted)
    parts = zip(checks if isinstance(wanted, int) else checks * len(x), x, strict=True)
    return tuple(
        check(f"{name}[{place}]", part, lengths) for place, (check, part) in enumerate(parts)
    )


def _check_fields(kind: type, checks: dict[str, Check], name: str, x: Any, lengths: Lengths) -> Any:
    """A check of a named tuple: its fields share names of axes with the function."""
    instance(name, x, kind)
    changed = {}
    for field, check in checks.items():
        value = getattr(x, field)
        # Two of one class inside of x, such as rows and columns, may differ in size.
        apart = hasattr(value, "_fields")
        fitting = check(f"{name}.{field}", value, {} if apart else lengths)
        if fitting is not value:
            changed[field] = fitting
    return x._replace(**changed) if changed else x
