"""Looking into traced programs."""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from lrdyn.training.program import take_in


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


def digest_of_program(closed: ClosedJaxpr) -> str:
    """SHA-256 of what a traced function does, the same in every process.

    Printed, a program also shows which inner functions were found in JAX's caches: that depends on
    what was traced before.
    """
    return _of_closed(closed, {})


def _of_closed(closed: ClosedJaxpr, known: dict[int, tuple[Jaxpr, str]]) -> str:
    digest = hashlib.sha256(_of_jaxpr(closed.jaxpr, known).encode())
    for constant in closed.consts:
        take_in(digest, constant)
    return digest.hexdigest()


def _of_jaxpr(jaxpr: Jaxpr, known: dict[int, tuple[Jaxpr, str]]) -> str:
    if id(jaxpr) in known:
        return known[id(jaxpr)][1]
    numbers: dict[Any, int] = {}

    def said(variable: Any) -> str:
        if isinstance(variable, Literal):
            return f"{np.asarray(variable.val).tolist()!r}:{variable.aval}"
        return f"{numbers.setdefault(variable, len(numbers))}:{variable.aval}"

    lines = [" ".join(map(said, (*jaxpr.constvars, *jaxpr.invars)))]
    for one in jaxpr.eqns:
        params = [f"{name}={_of_value(v, known)}" for name, v in sorted(one.params.items())]
        sides = (" ".join(map(said, side)) for side in (one.invars, one.outvars))
        lines.append(f"{one.primitive.name} {'>'.join(sides)} {' '.join(params)}")
    lines.append(" ".join(map(said, jaxpr.outvars)))
    found = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    known[id(jaxpr)] = jaxpr, found  # which keeps it, and so its id
    return found


def _of_value(value: Any, known: dict[int, tuple[Jaxpr, str]]) -> str:
    """A parameter of an equation in words."""
    if isinstance(value, ClosedJaxpr):
        return _of_closed(value, known)
    if isinstance(value, Jaxpr):
        return _of_jaxpr(value, known)
    if isinstance(value, tuple | list):
        return f"({', '.join(_of_value(one, known) for one in value)})"
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tobytes()}"
    return re.sub(r"0x[0-9a-f]+", "", f"{value}")  # functions print with their address
