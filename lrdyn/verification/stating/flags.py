"""Flags of an experiment: their values, which of them are accepted, and their words."""

import dataclasses
import math
import numbers
from typing import Any

import numpy as np

from lrdyn.core.show import shortened


@dataclasses.dataclass(frozen=True)
class Domain:
    """Which values a flag accepts: the numbers between two ends, or words.

    What ends cannot say, such as a condition on two flags, is refused by the ``check`` of an
    :class:`~lrdyn.verification.stating.statement.Experiment`.

    Args:
        low: lower end of the numbers.
        high: upper end of the numbers.
        low_open: whether the lower end itself is refused.
        high_open: whether the upper end itself is refused.
        zero: whether 0 is accepted beside the numbers between the ends.
        integer: whether the numbers are integers.
        choices: the accepted words, in the place of numbers.
        text: what a word is, such as ``a path``, where any word is accepted but the empty one.

    Raises:
        ValueError: an end is no number, or the lower one is above the upper one.

    Example:
        >>> Domain(0, 1, low_open=True).wanted, Domain(0, 1, low_open=True).contains(0)
        ('a number > 0 and <= 1', False)
    """

    low: int | float = -math.inf
    high: int | float = math.inf
    low_open: bool = dataclasses.field(default=False, kw_only=True)
    high_open: bool = dataclasses.field(default=False, kw_only=True)
    zero: bool = dataclasses.field(default=False, kw_only=True)
    integer: bool = dataclasses.field(default=False, kw_only=True)
    choices: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)
    text: str = dataclasses.field(default="", kw_only=True)

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            end = getattr(self, name)
            if isinstance(end, bool) or not isinstance(end, numbers.Real) or math.isnan(end):
                raise ValueError(f"{name}: got {shortened(repr(end), 16)}, wanted a number")
        if self.low > self.high:
            raise ValueError(f"low: got {self.low}, wanted at most high, {self.high}")

    @property
    def accepts_words(self) -> bool:
        """Whether words are accepted, and no numbers."""
        return bool(self.choices or self.text)

    @property
    def wanted(self) -> str:
        """The accepted values in words."""
        if self.accepts_words:
            return self.text or f"one of {', '.join(self.choices)}"
        low, high = (
            str(end) if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high)
        )
        bounded = self.low > -math.inf and self.high < math.inf
        if bounded and self.low_open and self.high_open:
            words = f"strictly between {low} and {high}"
        elif bounded and not self.low_open and not self.high_open:
            if self.integer and self.high == self.low + 1:
                return f"{low} or {high}"
            words = f"from {low} to {high}"
        else:
            above = f"{'>' if self.low_open else '>='} {low}" if self.low > -math.inf else ""
            below = f"{'<' if self.high_open else '<='} {high}" if self.high < math.inf else ""
            words = " and ".join(filter(None, [above, below]))
        kind = "an integer" if self.integer else "a number"
        return f"{'0 or ' * self.zero}{kind} {words}".rstrip()

    def contains(self, value: Any) -> bool:
        """Whether a value is accepted: a number, or a word where the domain is one of words."""
        if self.accepts_words:
            return value in self.choices if self.choices else value != ""
        if self.integer and value % 1 != 0:  # of a NaN and of infinity it is NaN
            return False
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return bool((above and below) or (self.zero and value == 0))


POSITIVE = Domain(0, low_open=True)
"""For a quantity that must not vanish, such as a step or a scale."""
NON_NEGATIVE = Domain(0)
"""For a quantity that may be 0, such as weight decay."""
FRACTION = Domain(0, 1, low_open=True, high_open=True)
"""For a probability or a share, without both ends."""


def at_least(least: int) -> Domain:
    """Integers from ``least`` on.

    Args:
        least: the smallest accepted integer.

    Example:
        >>> at_least(2).contains(1), at_least(2).wanted
        (False, 'an integer >= 2')
    """
    return Domain(least, integer=True)


def between(least: float, most: float, *, zero: bool = False) -> Domain:
    """Numbers between two others, both included, and 0 if asked for.

    Example:
        >>> between(1e-3, 1e3, zero=True).wanted
        '0 or a number from 0.001 to 1000'
    """
    return Domain(least, most, zero=zero)


def one_of(*names: str) -> Domain:
    """Words out of a list.

    Args:
        *names: the accepted words.

    Raises:
        ValueError: there is none.

    Example:
        >>> one_of("sgd", "adam").contains("adam"), one_of("sgd", "adam").wanted
        (True, 'one of sgd, adam')
    """
    if not names:
        raise ValueError("names: got none, wanted the accepted words")
    return Domain(choices=names)


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag of the command line and, if it is swept, one axis of the results.

    Args:
        name: the flag is ``--name`` with dashes, the argument of ``case`` and the axis ``name``.
        quick: values of the quick preset.
        paper: values of the paper preset; ``quick`` if empty.
        float32: values of both presets where the run is in float32; those above if empty. It has
            half the digits, and a run that amplifies rounding may leave none to judge by.
        domain: accepted values.
        type: ``int``, ``float``, ``str`` (a word of its domain; it decides shapes),
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
    float32: tuple = ()
    shapes: bool = False
    swept: bool = True
    source: bool = False
    most: int = 6
    from_usual: bool = False

    def __post_init__(self) -> None:
        if self.type is str and not (self.shapes and self.domain and self.domain.accepts_words):
            raise ValueError(
                f"flag {self.name!r}: got words, wanted shapes=True and a domain of words"
            )

    def at(self, quick: tuple, *, paper: tuple = (), **others: Any) -> "Flag":
        """Copy the flag with presets of its own.

        Args:
            quick: values of the quick preset.
            paper: values of the paper preset.
            **others: other arguments that differ, such as ``help`` or ``float32``.

        Example:
            >>> rank = Flag("rank", (), at_least(1), int, "r", "rank of the target")
            >>> rank.at((2, 4), paper=(10,)).default("paper")
            (10,)
        """
        return dataclasses.replace(self, quick=quick, paper=paper, **others)

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

    def default(self, preset: str, dtype: str = "float64") -> Any:
        """What the flag is if it is not given.

        Args:
            preset: ``quick`` or ``paper``.
            dtype: precision of the run.

        Returns:
            All values of the preset if the flag is swept, else its value (None if it has none).

        Example:
            >>> steps = Flag("steps", (60,), at_least(1), int, paper=(100,), float32=(30,))
            >>> steps.default("paper"), steps.default("paper", "float32")
            ((100,), (30,))
        """
        values = self.paper if preset == "paper" and self.paper else self.quick
        if dtype == "float32" and self.float32:
            values = self.float32
        return values if self.swept else (values[0] if values else None)


def flag_text(value: Any) -> str:
    """Write a value of a flag, a word or a number, for a reader."""
    return value if isinstance(value, str) else f"{value:g}"


def option_string(name: str) -> str:
    """A flag as it is typed.

    Example:
        >>> option_string("weight_decay")
        '--weight-decay'
    """
    return f"--{name.replace('_', '-')}"
