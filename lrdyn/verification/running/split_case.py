"""A case as named arrays, which one program hands to another, and what else is in it."""

import gc
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from lrdyn.verification.running.evaluate import MEASURE, Staged


class NotSplit(Exception):
    """A case cannot be handed from one program to another."""


def is_of_case(name: str) -> bool:
    """Whether a result is an array of the case: no field of a run has such a name.

    Example:
        >>> is_of_case("0"), is_of_case("loss_0")
        (True, False)
    """
    return name.isdecimal()


class SplitCase:
    """Returns the arrays of a case beside those of its run, and makes a case of such arrays again.

    Args:
        function: of a point.
    """

    def __init__(self, function: Staged):
        self.function = function
        self.names: list[str | None] = []
        """Of each leaf of the case: the name of its array; None of what is not traced."""

    def __call__(self, **point: Any) -> dict[str, Any]:
        """The arrays of the run, and of its case."""
        case = self.function.case(**point)
        return self.function.sides((MEASURE,), case)[0] | self._arrays_of(case)

    def take_apart(self, **point: Any) -> dict[str, Any]:
        """The arrays of the case alone."""
        return self._arrays_of(self.function.case(**point))

    def _arrays_of(self, case: Any) -> dict[str, Any]:
        """The traced arrays of a case, each once; what else is in it is remembered.

        Raises:
            NotSplit: it has none, or there are some where JAX does not see them: in the closure of
                a function, or in an object that is no PyTree.
        """
        self.leaves, self.structure = jax.tree.flatten(case)
        traced = {id(leaf): leaf for leaf in self.leaves if isinstance(leaf, Tracer)}
        # Controls move a part of a case and share the rest.
        names = {known: str(number) for number, known in enumerate(traced)}
        self.names = [names.get(id(leaf)) for leaf in self.leaves]
        others = [leaf for leaf in self.leaves if id(leaf) not in traced]
        if not traced or _holds_tracer([*others, *_static_parts(self.structure)]):
            raise NotSplit
        return {names[known]: _as_numbers(leaf) for known, leaf in traced.items()}

    def put_together(self, arrays: Mapping[str, Any]) -> Any:
        """The case with these arrays."""
        leaves = [
            leaf if name is None else _as_numbers_were(arrays[name], leaf)
            for name, leaf in zip(self.names, self.leaves, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)


def _as_numbers(array: Any) -> Any:
    """An array of a case as a program returns it: of random keys the numbers within."""
    return jax.random.key_data(array) if _is_key(array) else array


def _as_numbers_were(array: Any, like: Any) -> Any:
    """The array of a case from what a program has returned, see :func:`_as_numbers`."""
    if _is_key(like):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
    return array


def _is_key(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _static_parts(structure: Any) -> Iterator[Any]:
    """What the nodes of a PyTree hold beside their leaves, such as static fields of a module."""
    if (node := structure.node_data()) is not None:
        yield node[1]
    for child in structure.children():
        yield from _static_parts(child)


def _holds_tracer(objects: list[Any]) -> bool:
    """Whether a traced array can be reached from objects by what they hold."""
    left, met = list(objects), set()
    while left:
        thing = left.pop()
        if isinstance(thing, Tracer):
            return True
        if id(thing) in met or isinstance(thing, type | ModuleType | CodeType):
            continue
        met.add(id(thing))
        if isinstance(thing, FunctionType):  # not the module around it
            left += [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, vars(thing)]
        elif not isinstance(thing, str | bytes | int | float | complex | np.ndarray | jax.Array):
            left += gc.get_referents(thing)
    return False
