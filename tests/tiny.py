"""The smallest arrays that a theorem can predict and measure: for tests of the engine."""

from typing import NamedTuple

from jaxtyping import Array, Float

from lrdyn.verification.stating.fields import ABSENT


class Value(NamedTuple):
    """One vector, on either side."""

    value: Float[Array, "index"] = ABSENT
    """What is claimed to be the same."""


class Number(NamedTuple):
    """One number, on either side."""

    value: Float[Array, ""] = ABSENT
    """What is claimed to be the same."""
