"""Hypotheses that a number decides: the check, and by how much a case meets or misses it."""

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

from jaxtyping import Array

C = TypeVar("C")


class Extent(NamedTuple):
    """What decides a hypothesis: a number, and how far it may go."""

    amount: Array
    """What was found in the case, one number or several."""
    limit: Any
    """What is allowed."""


class Measure(NamedTuple):
    """How a hypothesis is measured."""

    words: str
    """What is measured, in words and formula."""
    extent: Callable[[Any], Extent]
    """Measures a case."""
    from_above: bool
    """Whether the limit is the most that is allowed; else the number must exceed it."""


def at_most(words: str) -> Callable[[Callable[[C], Extent]], Callable[[C], Array]]:
    """Make the check of a hypothesis from a function that measures it: amount <= limit.

    Args:
        words: what is measured, in words and formula.

    Example:
        >>> import jax.numpy as jnp
        >>> @at_most("|x|")
        ... def small(x):
        ...     return Extent(jnp.abs(x), 1.0)
        >>> bool(small(-2.0)), measure_of(small).words
        (False, '|x|')
    """
    return lambda extent: _check(extent, words, from_above=True)


def above(words: str) -> Callable[[Callable[[C], Extent]], Callable[[C], Array]]:
    """Make the check of a hypothesis from a function that measures it: amount > limit.

    Args:
        words: what is measured, in words and formula.
    """
    return lambda extent: _check(extent, words, from_above=False)


def _check(extent: Callable[[C], Extent], words: str, *, from_above: bool) -> Callable[[C], Array]:
    @wraps(extent)
    def check(case: C) -> Array:
        amount, limit = extent(case)
        # Both are false of a NaN.
        return amount <= limit if from_above else amount > limit

    check.__dict__["measure"] = Measure(words, extent, from_above)
    return check


def measure_of(check: Callable[..., Any]) -> Measure | None:
    """How a hypothesis is measured; None of a check that answers yes or no.

    Example:
        >>> measure_of(lambda case: True) is None
        True
    """
    return getattr(check, "measure", None)
