"""Arrays as fields: what a scenario predicts and measures has names that a type checker knows.

A scenario states two NamedTuples, one of theory and one of the run. A field is an array; its
annotation names its axes, its docstring its meaning and unit. Fields of one name are the two sides
of a comparison. An underscore at the end, where a name would be a keyword of Python (``global_``),
is left out in ``results.nc``.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import numpy as np

if TYPE_CHECKING:
    import xarray

T = TypeVar("T")

SIZE = "longest_axis"
"""Array of every group: the longest axis of each case, which tolerances need."""
ABSENT: Any = None
"""Default of every field: a control returns only the fields that it makes wrong."""


class _Names:
    """Stands in for arrays where their names are asked for: an attribute is its own name."""

    def __init__(self, side: str = ""):
        self._side = side

    def __getattr__(self, name: str) -> str:
        # Python and its tools ask any object for such names, ``__deepcopy__`` for example.
        if name.startswith("_"):
            raise AttributeError(name)
        return self._side + name.rstrip("_")


def names_of(read: Callable[..., Any], sides: int = 1) -> tuple[str, ...]:
    """Names of the fields that a function returns.

    Args:
        read: a function of as many NamedTuples as there are sides that returns fields of theirs,
            one or a tuple.
        sides: how many it takes.

    Example:
        >>> names_of(lambda theory, run: (theory.rho, run.rho, run.step), 2)
        ('rho', 'step')
    """
    # The lambda is called on names: what it returns says what it would read, before there are
    # arrays.
    fields = read(*[_Names()] * sides)
    return tuple(dict.fromkeys(fields if isinstance(fields, tuple) else (fields,)))


def sides_of(read: Callable[..., Any]) -> tuple[tuple[str, str], ...]:
    """Side and name of the fields that a function of theory and run returns.

    Example:
        >>> sides_of(lambda theory, run: (theory.rho, run.rho))
        (('theory', 'rho'), ('run', 'rho'))
    """
    fields = read(_Names("theory."), _Names("run."))
    each = fields if isinstance(fields, tuple) else (fields,)
    pairs = (tuple(field.split(".")) for field in dict.fromkeys(each))
    return tuple((side, name) for side, name in pairs)


def both_sides(name: str) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Make the function of theory and run that returns the field of one name from each.

    Example:
        >>> sides_of(both_sides("rho"))
        (('theory', 'rho'), ('run', 'rho'))
    """
    return lambda theory, run: (getattr(theory, name), getattr(run, name))


def arrays_in(returned: Any) -> dict[str, Any]:
    """The arrays of a NamedTuple by name; those that are absent are left out."""
    named = returned._asdict()
    return {name.rstrip("_"): value for name, value in named.items() if value is not ABSENT}


def axes_of(kind: type | None) -> dict[str, tuple[str, ...]]:
    """Names of the axes of each field, from its annotation.

    Example:
        >>> from typing import NamedTuple
        >>> from jaxtyping import Array, Float
        >>> class Theory(NamedTuple):
        ...     rho: Float[Array, "step layer"] = ABSENT
        >>> axes_of(Theory)
        {'rho': ('step', 'layer')}
    """
    # ``get_type_hints`` resolves annotations that are texts, as under ``from __future__``.
    hints = get_type_hints(kind) if kind else {}
    axes = {name.rstrip("_"): getattr(hint, "dim_str", "...") for name, hint in hints.items()}
    # An array of any shape gets axes named after itself when it is labelled.
    return {name: tuple(text.split()) for name, text in axes.items() if "..." not in text}


class Read:
    """The arrays of one side as a claim reads them: a field, or an error that names it."""

    def __init__(self, arrays: Mapping[str, np.ndarray], absent: Callable[[str], Exception]):
        self._arrays, self._absent = arrays, absent

    def __getattr__(self, name: str) -> np.ndarray:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name.rstrip("_")]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._arrays[name]
        except KeyError:
            raise self._absent(name) from None


def of_theory(
    results: "xarray.Dataset", kind: type[T]
) -> "Callable[[Callable[[T], Any]], xarray.DataArray]":
    """Read what a scenario predicted out of its results: for figures, with axes and labels.

    Args:
        results: a dataset of ``results.nc``, or what was selected from it.
        kind: the NamedTuple of theory.

    Returns:
        A function of a function: ``theory(lambda theory: theory.rho)`` is the array of that field.
    """
    return lambda read: _saved_array(results, names_of(read)[0], "predicted")


def of_run(
    results: "xarray.Dataset", kind: type[T]
) -> "Callable[[Callable[[T], Any]], xarray.DataArray]":
    """Read what a scenario measured out of its results, as :func:`of_theory` does of theory."""
    return lambda read: _saved_array(results, names_of(read)[0], "measured")


def _saved_array(results: "xarray.Dataset", name: str, side: str) -> "xarray.DataArray":
    compared = f"{name}_{side}"  # where the other side has the same field
    return results[compared if compared in results.variables else name]
