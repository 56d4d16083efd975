"""Cases as ``results.nc`` keeps them: what theory and run start from, array by array.

A case is any PyTree. Its arrays and numbers are saved by their path, of one seed of every setting,
so that somebody else can compute both sides of a claim again, without JAX.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    import xarray

    from lrdyn.verification.stating.statement import Scenario

MOST = 2**23
"""Bytes of the cases of a scenario that are saved, at most, for one seed: each setting has the same
share of them, which a program knows before it runs."""
GROUP = "case"
"""Group of the cases, below that of their scenario."""
MARK = f"{GROUP}."
"""Begin of the names of the arrays of a case. No field has a dot in its name, and many a case has a
part that is called as an axis (``weight_decay``)."""


def group_of(results_group: str) -> str:
    """Group of the cases that belong to a group of results.

    Example:
        >>> group_of("/"), group_of("/collapse")
        ('/case', '/collapse/case')
    """
    return f"{results_group.rstrip('/')}/{GROUP}"


def arrays_of(case: Any, room: int) -> dict[str, Any]:
    """The arrays of a case by their marked paths, the smallest first until ``room`` is full.

    An array that does not fit is replaced by one without entries, which says that it was left out.

    Args:
        case: a case.
        room: bytes, counted as float64.

    Example:
        >>> case = {"weights": [np.ones((2, 3)), np.ones((4, 2))], "rate": 0.1, "name": "sgd"}
        >>> {name: array.shape for name, array in arrays_of(case, 64).items()}
        {'case.rate': (), 'case.weights.0': (2, 3), 'case.weights.1': (0, 0)}
    """
    arrays = {}
    # The smallest first: one large array must not take the room of a hundred numbers.
    entries = sorted(_entries("", case), key=lambda entry: math.prod(entry[1].shape))
    for path, array in entries:
        # As float64 in both precisions, so that both leave out the same arrays.
        size = 8 * math.prod(array.shape)
        room -= size
        # A number is always kept: it costs nothing, and a case without its step size says nothing.
        fits = room >= 0 or not array.shape
        arrays[MARK + (path or GROUP)] = (
            array if fits else jnp.zeros((0,) * array.ndim, array.dtype)
        )
    return arrays


def _entries(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every array and number of a PyTree, static numbers too, with the path to it."""
    if (array := _as_array(value)) is not None:
        yield path, array
        return
    parts: Iterator[tuple[str, Any]] = iter(())
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        parts = ((field.name, getattr(value, field.name, None)) for field in fields)
    elif isinstance(value, Mapping):
        parts = ((str(name).replace("/", "."), part) for name, part in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = iter(value._asdict().items())  # pyright: ignore[reportAttributeAccessIssue]
    elif isinstance(value, list | tuple):
        parts = ((str(place), part) for place, part in enumerate(value))
    for name, part in parts:
        yield from _entries(f"{path}.{name}" if path else name, part)


def _as_array(value: Any) -> Any | None:
    """A number, an array or a list of plain numbers as an array; None if it is something else."""
    if isinstance(value, list | tuple):
        # A list of numbers is one array: a program pays for each that it returns.
        plain = value and all(type(entry) in (bool, int, float) for entry in value)
        return _as_array(np.asarray(value)) if plain and not hasattr(value, "_fields") else None
    if isinstance(value, bool | int | float):
        value = np.asarray(value)
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        return None
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(value)  # pyright: ignore[reportArgumentType]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "iu":
        # In a float32 run JAX's integers have 32 bits.
        wide = value.size and np.max(np.abs(value.astype(float))) >= 2**31
        value = np.asarray(value, float) if wide else np.asarray(value)
    numbers = (jnp.floating, jnp.integer, jnp.bool_)
    return jnp.asarray(value) if any(jnp.issubdtype(value.dtype, n) for n in numbers) else None


def split(
    dataset: "xarray.Dataset", scenario: "Scenario"
) -> "tuple[xarray.Dataset, xarray.Dataset]":
    """Results without the cases, and the cases of the first seed.

    Floating-point numbers of a case are float64. Its attributes say how a case is made again
    (``recipe``) and which arrays were left out at some setting (``left_out``).
    """
    # Arrays of the case, and the lengths of their axes.
    variables = map(str, dataset.data_vars)
    names = [name for name in variables if name.removeprefix("length_").startswith(MARK)]
    # A slice, not an index: the axis of the seeds stays, and says which one it was.
    cases, left_out, changed, empty = dataset[names].isel(seed=slice(1)), [], {}, []
    for name in [name for name in names if name.startswith(MARK)]:
        array = cases.variables[name]
        sizes = {f"length_{axis}" for axis in array.dims} & {*names}
        lengths = {size: changed.get(size, cases.variables[size]) for size in sizes}
        if not array.size or any(bool((length == 0).any()) for length in lengths.values()):
            left_out.append(name)
        if not array.size:
            empty += [name, *lengths]
            continue
        changed[name] = array.astype(np.float64) if array.dtype.kind == "f" else array
        # A network of fewer layers has no such array: its length was never set.
        changed |= {size: length.clip(0) for size, length in lengths.items()}
    # All at once: xarray copies a dataset, and compares its axes, at each assignment.
    cases = cases.drop_vars(empty).assign(changed)
    function: Any = scenario.case
    while isinstance(function, partial):
        function = function.func
    recipe = f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
    cases = cases.assign_attrs(
        title=f"cases of {scenario.id}, of one seed",
        recipe=f"{recipe}(jax.random.key(seed), **flags)",
        left_out=json.dumps(sorted(left_out)),
    )
    return dataset.drop_vars(names), cases
