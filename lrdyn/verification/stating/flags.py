"""Flags of an experiment: their values, which of them are accepted, and their words."""

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Domain:
    """Which numbers a flag accepts: ``wanted`` says it in words, ``contains`` in code."""

    wanted: str
    contains: Callable[[Any], bool]


POSITIVE = Domain("a number > 0", lambda x: x > 0)
"""For a quantity that must not vanish, such as a step or a scale."""
NON_NEGATIVE = Domain("a number >= 0", lambda x: x >= 0)
"""For a quantity that may be 0, such as weight decay."""
FRACTION = Domain("a number strictly between 0 and 1", lambda x: 0 < x < 1)
"""For a probability or a share, without both ends."""


def at_least(least: int) -> Domain:
    """Integers from ``least`` on.

    Args:
        least: the smallest accepted integer.

    Example:
        >>> at_least(2).contains(1), at_least(2).wanted
        (False, 'an integer >= 2')
    """
    return Domain(f"an integer >= {least}", lambda x: x >= least)


def between(least: float, most: float, *, zero: bool = False) -> Domain:
    """Numbers between two others, and 0 if asked for.

    Example:
        >>> between(1e-3, 1e3, zero=True).wanted
        '0 or a number from 0.001 to 1000'
    """
    words = f"{'0 or ' * zero}a number from {least:g} to {most:g}"
    return Domain(words, lambda x: least <= x <= most or (zero and x == 0))


def one_of(*names: str) -> Domain:
    """Words out of a list.

    Args:
        *names: the accepted words.

    Example:
        >>> one_of("sgd", "adam").contains("adam"), one_of("sgd", "adam").wanted
        (True, 'one of sgd, adam')
    """
    return Domain(f"one of {', '.join(names)}", lambda word: word in names)


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of the command line and, if it is swept, one axis of the results.

    Args:
        name: the flag is ``--name`` with dashes, the argument of ``case`` and the axis ``name``.
        quick: values of the quick preset.
        paper: values of the paper preset; ``quick`` if empty.
        domain: accepted values.
        type: ``int``, ``float``, ``str`` (a word of the domain :func:`one_of`; it decides shapes),
            or ``"array"`` for an ``.npy`` file (default: none is given).
        symbol: the symbol of the paper, for ``--help``.
        help: one line, with the unit.
        shapes: whether the value decides shapes: compiled once for each value and passed as a
            Python number; all other values are traced and batched.
        swept: whether several values are accepted.
        source: whether it says what the cases are made of, a file or a folder: controls, which
            have settings of their own, are made of the same.
        most: the largest integer that is drawn at random, for a case to take seconds, where the
            domain has no end.
        from_usual: whether numbers near the usual ones are drawn from these on, not below:
            a shorter training is rarely long enough, for example.
    """

    name: str
    quick: tuple
    domain: Domain | None = None
    type: "type | str" = float
    symbol: str = ""
    help: str = ""
    paper: tuple = ()
    shapes: bool = False
    swept: bool = True
    source: bool = False
    most: int = 6
    from_usual: bool = False

    def __post_init__(self) -> None:
        if self.type is str and not (self.shapes and self.domain):
            raise ValueError(f"flag {self.name!r}: got words, wanted shapes=True and a domain")

    def wanted(self, value: Any = None) -> str:
        """The accepted values in words, to somebody who gave this one."""
        if self.type == "array":
            return "an array of real numbers below 1e15"
        words = self.domain.wanted if self.domain else "a number"
        large = self.type is int and isinstance(value, int) and abs(value) >= 2**31
        return f"{words}, below 2^31" if large else words

    def accepts(self, value: Any) -> bool:
        """Whether one value can be used.

        Example:
            >>> Flag("dim", (3,), at_least(1), int).accepts(2.5)
            False
        """
        if self.type == "array":
            # Squares must stay finite in float32; a NaN fails every comparison.
            real = isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.size > 0
            return bool(real and np.all((value < 1e15) & (value > -1e15)))
        if self.type is str:
            return isinstance(value, str) and bool(self.domain and self.domain.contains(value))
        # Numbers of NumPy are of these kinds, too; a bool is an Integral, and as a number a
        # mistake.
        kind = numbers.Integral if self.type is int else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        limit = 2**31 if self.type is int else math.inf  # the float32 run has 32-bit integers
        inside = -limit < value < limit  # pyright: ignore[reportOperatorIssue]
        return inside and bool(self.domain is None or self.domain.contains(value))

    def default(self, preset: str) -> Any:
        """What the flag is if it is not given.

        Args:
            preset: ``quick`` or ``paper``.

        Returns:
            All values of the preset if the flag is swept, else its value (None if it has none).
        """
        values = self.paper if preset == "paper" and self.paper else self.quick
        return values if self.swept else (values[0] if values else None)


def flag_text(value: Any) -> str:
    """Write a value of a flag, a word or a number, for a reader."""
    return value if isinstance(value, str) else f"{value:g}"


def typed(name: str) -> str:
    """A flag as it is typed.

    Example:
        >>> typed("weight_decay")
        '--weight-decay'
    """
    return f"--{name.replace('_', '-')}"
