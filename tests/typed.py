"""The checker of annotations through which the tests import the library.

jaxtyping's hook decorates a function that is defined within another one at every call of that one,
and most of what this takes is beartype writing the checks of the same annotations once more. Here
they are written once for each place and its annotations.
"""

import typing
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping

NAME = f"{__name__}.checked"
"""As jaxtyping's hook wants it."""

_WRITTEN: dict[Any, Callable] = {}


def checked(stub: Callable) -> Callable:
    """Let beartype check what goes into a function and comes out.

    Args:
        stub: what jaxtyping makes of the function that it checks: the annotations are those of the
            function, the body is empty, so that one of them serves for all with its annotations.
    """
    key = _signature(stub)
    try:
        hash(key)
    except TypeError:  # something in an annotation has none
        return beartype.beartype(stub)
    if key not in _WRITTEN:
        _WRITTEN[key] = beartype.beartype(stub)
    return _WRITTEN[key]


def _signature(stub: Callable) -> tuple[Any, ...]:
    """Where a function stands, its arguments, which may be left out, and its annotations."""
    code, optional = stub.__code__, (len(stub.__defaults__ or ()), *(stub.__kwdefaults__ or ()))
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    annotations = tuple((name, _form(one)) for name, one in stub.__annotations__.items())
    return stub.__module__, stub.__qualname__, code.co_varnames, counts, optional, annotations


def _form(annotation: Any) -> Any:
    """What two annotations that say the same have in common: jaxtyping makes a new class each time.

    Example:
        >>> from jaxtyping import Array, Float
        >>> Float[Array, "d"] == Float[Array, "d"]
        False
        >>> _form(tuple[Float[Array, "d"], int]) == _form(tuple[Float[Array, "d"], int])
        True
        >>> _form(tuple[Float[Array, "d"], int]) == _form(tuple[Float[Array, "c"], int])
        False
    """
    if isinstance(annotation, list):  # arguments of a Callable
        return tuple(map(_form, annotation))
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        return annotation.dtype, annotation.array_type, annotation.dim_str
    kind = typing.get_origin(annotation)
    if kind in (None, typing.Literal):
        return annotation
    return kind, tuple(map(_form, typing.get_args(annotation)))
