"""Looking into traced programs."""

from collections.abc import Iterator
from typing import Any

import jax


def equations(jaxpr: Any, within: bool = False) -> Iterator[tuple[Any, bool]]:
    """Every equation of a program, those of its loops, branches and calls too.

    Beside each stands whether it is within a ``cond``, as the program itself may be (``within``).

    Example:
        >>> def choose(x):
        ...     return jax.lax.cond(x > 0, lambda x: -x, lambda x: x, x)
        >>> found = equations(jax.make_jaxpr(choose)(1.0).jaxpr)
        >>> [within for equation, within in found if equation.primitive.name == "neg"]
        [True]
    """
    for equation in jaxpr.eqns:
        yield equation, within
        branches = within or equation.primitive.name == "cond"
        for parameter in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner, branches)
