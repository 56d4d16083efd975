"""Domains of flags as ranges: where a number of a flag may lie, and numbers drawn from there."""

import math
from typing import Any, NamedTuple

import numpy as np

from lrdyn.verification.stating.flags import Flag

NEAR = 0.15
"""Decades around the quick preset in which a number near it is drawn."""

LEAST, MOST = 1e-307, 1e308
"""Ends of the numbers that are drawn where a domain has none: float64 has fewer digits below."""


class Range(NamedTuple):
    """The positive numbers that a flag accepts, and whether 0 is one of them."""

    least: float
    most: float
    zero: bool


def range_of(flag: Flag) -> Range:
    """Ends of the domain of a flag of floating-point numbers.

    Example:
        >>> from lrdyn.verification.stating.flags import between
        >>> range_of(Flag("rate", (0.1,), between(1e-3, 1e3)))
        Range(least=0.001, most=1000.0, zero=False)
    """
    assert flag.domain is not None
    low, high = flag.domain.low, flag.domain.high
    least = math.nextafter(low, math.inf) if flag.domain.low_open else low
    most = math.nextafter(high, -math.inf) if flag.domain.high_open else high
    return Range(max(least, LEAST), min(most, MOST), flag.domain.contains(0.0))


def integers_of(flag: Flag) -> list[int]:
    """The integers of a flag that are drawn far from the quick preset.

    Example:
        >>> from lrdyn.verification.stating.flags import at_least
        >>> integers_of(Flag("rank", (2,), at_least(1), int, most=3))
        [1, 2, 3]
    """
    assert flag.domain is not None
    # Where all integers of the domain are larger the quick preset says which take seconds.
    most = max(flag.quick) if flag.most < flag.domain.low else flag.most
    return [n for n in range(most + 1) if flag.domain.contains(n)]


def words_of(flag: Flag) -> list[str]:
    """The words of a flag that are drawn: those of its domain, or of the quick preset.

    Example:
        >>> from lrdyn.verification.stating.flags import one_of
        >>> words_of(Flag("optimizer", ("sgd",), one_of("sgd", "adam"), str, shapes=True))
        ['sgd', 'adam']
    """
    assert flag.domain is not None
    return list(flag.domain.choices or flag.quick)


def draw_value(flag: Flag, rng: np.random.Generator, *, far: bool) -> Any:
    """Draw one value of a flag, near the quick preset or anywhere in its domain.

    Args:
        flag: the flag, which has a domain.
        rng: random numbers.
        far: whether it may lie anywhere; half of such numbers are ends of the domain.
    """
    assert flag.domain is not None
    if flag.type is str:
        return str(rng.choice(words_of(flag)))
    if flag.type is float:
        drawn = _draw_number(flag, rng, far=far)
        # Rounded to four digits a number can reach an end that is open: then another is drawn.
        return drawn if flag.domain.contains(drawn) else draw_value(flag, rng, far=far)
    whole = integers_of(flag)
    if not far and flag.from_usual:
        # Up to a quarter more: a longer run costs that much time, and a shorter one has rarely
        # arrived.
        usual = range(max(flag.quick), max(flag.quick) * 5 // 4 + 1)
        whole = [n for n in usual if flag.domain.contains(n)]
    elif not far:
        least, most = min(flag.quick) // 2, max(*flag.quick, min(flag.most, 2 * max(flag.quick)))
        whole = [n for n in range(least, most + 1) if flag.domain.contains(n)]
    if not far:
        return whole[rng.integers(len(whole))]
    # Drawn by order of magnitude: most integers of a wide range would be large.
    return whole[int(rng.choice(np.geomspace(1, len(whole) + 1, 40, endpoint=False))) - 1]


def _draw_number(flag: Flag, rng: np.random.Generator, *, far: bool) -> float:
    ends = range_of(flag)
    if far and rng.random() < 0.5:
        # Ends are where formulas break, and a draw by decades would hardly ever hit one.
        return float(rng.choice([ends.least, ends.most, *([0.0] if ends.zero else [])]))
    # A usual value of 0 has no decade to lie near: half of the time it stays, half of it becomes 1.
    usual = float(rng.choice(flag.quick)) or (0.0 if rng.random() < 0.5 else 1.0)
    if not far and not usual:
        return usual
    low, high = math.log10(ends.least), math.log10(ends.most)
    if not far and flag.from_usual:
        low = math.log10(usual)
    elif not far:
        low, high = max(low, math.log10(usual) - NEAR), min(high, math.log10(usual) + NEAR)
    drawn = 10.0 ** rng.uniform(low, high)
    # A bounded number, such as a probability, comes as near to 1 as to 0.
    drawn = 1 - drawn if far and ends.most < 1 and rng.random() < 0.5 else drawn
    # Four digits: a case that fails is repeated from a command line that one can read and type.
    return float(f"{np.clip(drawn, ends.least, ends.most):.4g}")


# A flag as a number between 0 and 1 ---------------------------------------------------------

ZERO = 0.05
"""Share of the way that stands for 0, where a flag accepts it."""

FINEST = 16.0
"""Decades toward either end of a flag between two numbers that float64 tells apart."""


def to_unit(flag: Flag, value: int | float) -> float:
    """Where a value lies in the domain of its flag, from 0 to 1: by decades, integers by order.

    Example:
        >>> from lrdyn.verification.stating.flags import between
        >>> to_unit(Flag("rate", (0.1,), between(1e-3, 1e3)), 1.0)
        0.5
    """
    if flag.type is int:
        whole = integers_of(flag)
        nearest = min(range(len(whole)), key=lambda n: abs(whole[n] - value))
        # The middle of its share, so that rounding on the way back stays within it.
        return (nearest + 0.5) / len(whole)
    ends = range_of(flag)
    first = ZERO if ends.zero else 0.0
    if value == 0:
        return first / 2
    if _is_bounded(ends):
        # Decades of the distance to the nearer end, so that numbers near 1 are as dense as those
        # near 0.
        side = -math.log10(2 * value) if value < 0.5 else math.log10(2 * (1 - value))
        return 0.5 - max(-1.0, min(1.0, side / FINEST)) / 2
    low, high = math.log10(ends.least), math.log10(ends.most)
    return first + (1 - first) * (math.log10(value) - low) / (high - low)


def from_unit(flag: Flag, place: float) -> Any:
    """The value of a flag at a place of its domain: the other way of :func:`to_unit`.

    Example:
        >>> from lrdyn.verification.stating.flags import between
        >>> from_unit(Flag("rate", (0.1,), between(1e-3, 1e3)), 0.5)
        1.0
    """
    if flag.type is int:
        whole = integers_of(flag)
        # Place 1.0 itself would be one past the last.
        return whole[min(int(place * len(whole)), len(whole) - 1)]
    ends = range_of(flag)
    first = ZERO if ends.zero else 0.0
    if place < first:
        return 0.0
    if _is_bounded(ends):
        side = FINEST * (1 - 2 * place)
        number = 0.5 * 10.0**-side if side > 0 else 1 - 0.5 * 10.0**side
    else:
        low, high = math.log10(ends.least), math.log10(ends.most)
        number = 10.0 ** (low + (high - low) * (place - first) / (1 - first))
    # As a command line is written; rounding must not leave the domain.
    return float(np.clip(float(f"{number:.6g}"), ends.least, ends.most))


def _is_bounded(ends: Range) -> bool:
    """Whether a domain is bounded by 0 and 1, both of which are approached."""
    return ends.most < 1 and ends.least < 1e-15
