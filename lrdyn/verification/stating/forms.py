"""Forms of a claim: what is compared, by how much it differs, and whether it could have failed.

A claim names what it compares in one of these forms. From a form follows the residual, a pure
number >= 0, which must stay within a limit (tolerance times condition). From it follows, too,
whether the case had *power*: whether the judge would have noticed a wrong theory. A case that
passes without power is no evidence, and says why (:func:`lack_of_power`).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Shaped

from lrdyn.verification.stating.array_types import NotNumbers, as_compared, difference
from lrdyn.verification.stating.claims import surprise

Numbers = Shaped[np.ndarray | Array, "..."] | np.number | float

SEEN = 30.0
"""A mistake of this many thresholds must show. Rounding takes up to one, a control ten."""

TRIVIAL = "trivial"
"""Reason of a trivial case: theory's array is 0 in every bit, which anybody would guess."""
BELOW_SIGHT = "below what can be seen here"
"""Reason of a case without power: a prediction without any theory would pass, too."""


class Equal(NamedTuple):
    """Two arrays that agree: ``|predicted - measured| <= limit * scale``, entry by entry."""

    predicted: Numbers
    measured: Numbers
    scale: Numbers | None = None
    """Scale of the data: a number, or an array that broadcasts against both. If None, the largest
    absolute value of both."""
    null: Numbers = 0.0
    """The prediction of somebody who does not know the theory."""

    def residual(self) -> float:
        """Largest difference over its scale."""
        return _relative_difference(self.predicted, self.measured, self._scales())

    def threshold(self, limit: float) -> float:
        """Largest difference that passes, over the entries."""
        return limit * float(np.max(self._scales()))

    def lack_of_power(self, limit: float) -> str:
        """Why a case that passes shows nothing; empty if it does."""
        predicted, measured = self._sides()
        # The null of an array over steps is its first record, which stands for every later one.
        null = np.broadcast_to(_as_float64(self.null), predicted.shape)
        if not np.any(predicted) and not np.any(null):
            return TRIVIAL
        # The same residual as of the claim itself: what it would say of somebody who guessed the
        # null.
        if self._replace(predicted=null).residual() <= limit:
            return BELOW_SIGHT
        # A form with one scale for all entries and one with a scale for each are tried in the same
        # way.
        scales = np.broadcast_to(self._scales(), measured.shape).ravel()
        if np.any(np.isinf(scales)):  # beside an infinite scale anything agrees
            return BELOW_SIGHT
        # A scale can be so large that single entries are compared with nothing. The first, the
        # largest and the last one stand for all: a move of SEEN thresholds must show in each.
        largest = int(np.argmax(np.abs(measured)))
        for entry in {0, largest, measured.size - 1}:
            moved = measured.ravel().copy()
            moved[entry] = predicted.ravel()[entry] + SEEN * limit * scales[entry]
            if self._replace(measured=moved.reshape(measured.shape)).residual() <= limit:
                return BELOW_SIGHT
        return ""

    def _sides(self) -> tuple[np.ndarray, np.ndarray]:
        return _as_float64(self.predicted), _as_float64(self.measured)

    def _scales(self) -> np.ndarray:
        if self.scale is not None:
            return _as_scales(self.scale)
        return np.asarray(max(np.max(np.abs(side), initial=0.0) for side in self._sides()))


class Zero(NamedTuple):
    """Numbers that vanish: ``|values| <= limit * scale``.

    What theory says stays as it was is a zero of the change.
    """

    values: Numbers
    scale: Numbers
    """Scale of the data whose rounding is in the values."""
    alternative: Numbers
    """The size that the values would have if theory were wrong, in their unit."""

    def residual(self) -> float:
        """Largest absolute value over its scale."""
        values = as_compared(self.values)
        return _relative_difference(np.zeros_like(values), values, self.scale)

    def threshold(self, limit: float) -> float:
        """Largest size that passes, over the entries."""
        return limit * float(np.max(_as_scales(self.scale)))

    def lack_of_power(self, limit: float) -> str:
        """Open where the alternative is too small to be told from rounding."""
        # Theory says 0, so that a start as null says nothing: the claim itself states the size that
        # would stand there.
        scales = _as_scales(self.scale)
        visible = np.max(np.abs(_as_float64(self.alternative)) / scales)
        seen = visible >= SEEN * limit and not np.any(np.isinf(scales))
        return "" if seen else BELOW_SIGHT


class _Bound(NamedTuple):
    value: Numbers
    """What must stay on one side."""
    bound: Numbers
    scale: Numbers | None = None
    """Scale of the data, a number or an array; if None, the larger of value and bound, by entry."""

    def threshold(self, limit: float) -> float:
        """Largest excess over the bound that passes, over the entries."""
        return limit * float(np.max(self.scales()))

    def lack_of_power(self, limit: float) -> str:
        """Open where the bound is too small to be told from rounding, or infinite."""
        # One entry with a bound that means something is enough: beside it others may be 0 or
        # infinite.
        bounds, scales = np.abs(_as_float64(self.bound)), self.scales()
        finite = np.isfinite(bounds)
        if np.any(finite & np.isinf(scales)):  # beside an infinite scale any value is within it
            return BELOW_SIGHT
        return "" if np.any(np.where(finite, bounds, 0.0) / scales > limit) else BELOW_SIGHT

    def scales(self) -> np.ndarray:
        """The scale of each entry; a scale of 0 counts as 1."""
        if self.scale is not None:
            scales = _as_scales(self.scale)
            return np.where(scales == 0, 1.0, scales)
        larger = np.maximum(np.abs(_as_float64(self.value)), np.abs(_as_float64(self.bound)))
        return np.where(larger > 0, larger, 1.0)

    def _excess(self, above: np.ndarray) -> float:
        """Largest excess over its scale, of which positive ones break the bound."""
        _refuse_nothing(above)
        # ``np.maximum`` hands on a NaN, where ``max(above, 0.0)`` of Python might not: it must
        # fail. So must a value that is infinite on the side that is allowed: it was lost. A bound
        # may be infinite.
        lost = np.isinf(_as_float64(self.value)) & (above < 0)
        return float(np.max(np.where(lost, np.nan, np.maximum(above, 0.0) / self.scales())))


class AtMost(_Bound):
    """A bound from above: ``value <= bound + limit * scale``, entry by entry."""

    def residual(self) -> float:
        """Largest excess over its scale."""
        return self._excess(difference(self.value, self.bound))


class AtLeast(_Bound):
    """A bound from below: ``value >= bound - limit * scale``, entry by entry."""

    def residual(self) -> float:
        """Largest shortfall over its scale."""
        return self._excess(difference(self.bound, self.value))

    def lack_of_power(self, limit: float) -> str:
        """Trivial for a bound of 0 on what cannot be negative; else see :class:`_Bound`."""
        return super().lack_of_power(limit) if np.any(_as_float64(self.bound)) else TRIVIAL


def _as_float64(values: Any) -> np.ndarray:
    return as_compared(values).astype(np.float64, copy=False)


def _as_scales(scale: Any) -> np.ndarray:
    """Scales as float64: sizes, of which a negative one would turn a difference into agreement."""
    scales = _as_float64(scale)
    if np.any(scales < 0):
        raise NegativeScale(float(np.min(scales)))
    return scales


def _relative_difference(predicted: Any, measured: Any, scale: Any) -> float:
    """Largest difference over its scale, of two sides of one shape; a scale of 0 counts as 1.

    NaN if any difference is not finite: what was lost does not agree.
    """
    shapes = np.shape(predicted), np.shape(measured)
    if shapes[0] != shapes[1]:
        raise OtherShapes(*shapes)
    apart, scales = np.abs(difference(predicted, measured)), _as_scales(scale)
    _refuse_nothing(apart)
    if not np.all(np.isfinite(apart)):
        return float("nan")
    return float(np.max(apart / np.where(scales == 0, 1.0, scales)))


def _refuse_nothing(differences: Any) -> None:
    if not differences.size:
        raise NothingCompared(differences.shape)


class Count(NamedTuple):
    """Two arrays of integers that are equal."""

    predicted: Numbers
    measured: Numbers

    def residual(self) -> float:
        """Largest difference of the two arrays."""
        return _relative_difference(self.predicted, self.measured, 1.0)

    def threshold(self, limit: float) -> float:
        """The difference that passes: 0."""
        return limit

    def lack_of_power(self, limit: float) -> str:
        """Empty, since one more or less always fails: the limit is 0."""
        return "" if limit < 1 else BELOW_SIGHT


class Test(NamedTuple):
    """A statistical test of random draws, given by its p-value."""

    __test__ = False  # nothing that pytest should collect

    p: float
    """Probability, were the claim true, of draws as far away as these or further."""
    alternative: float
    """P-value of the same draws under the alternative that the claim states."""

    def residual(self) -> float:
        """The residual ``-log10 p``; NaN if p is no probability."""
        p = _as_number(self.p)
        # One rounding of a sum of probabilities is none of these.
        return surprise(p) if 0 <= p <= 1 + 1e-9 else float("nan")

    def threshold(self, limit: float) -> float:
        """The largest ``-log10 p`` that passes."""
        return limit

    def lack_of_power(self, limit: float) -> str:
        """Open where the draws are too few to exclude the alternative."""
        return "" if surprise(_as_number(self.alternative)) > limit else BELOW_SIGHT


class Stated(NamedTuple):
    """A ``limit`` or ``rate``, of which only the claim knows what counts as a difference."""

    difference: float
    """Dimensionless, >= 0."""
    alternative: float
    """The difference under the alternative that the claim states."""

    def residual(self) -> float:
        """The difference that the claim computed itself."""
        value = _as_number(self.difference)
        return value if value >= 0 else float("nan")

    def threshold(self, limit: float) -> float:
        """The largest difference that passes."""
        return limit

    def lack_of_power(self, limit: float) -> str:
        """Open where the alternative would pass, too."""
        return "" if _as_number(self.alternative) > limit else BELOW_SIGHT


def _as_number(value: Any) -> float:
    array = as_compared(value)
    if array.size != 1:
        raise NotNumbers(f"got an array of shape {array.shape}, wanted one number")
    return float(array.item())


class OtherShapes(ValueError):
    """Predicted and measured have other shapes: broadcasting would hide a mistake."""


class NegativeScale(ValueError):
    """A scale below 0, which is no size; the argument is the least of them."""


class NothingCompared(ValueError):
    """Arrays without any entry: nothing agrees, and nothing fails."""


Form = Equal | Zero | AtMost | AtLeast | Count | Test | Stated
ONE_SIDED = (Zero, AtMost, AtLeast, Test)
"""Forms that may lack an array of theory, or of the run."""


def scale_of_each(predicted: Numbers, measured: Numbers, axis: int = 0) -> np.ndarray:
    """Scales of arrays whose parts along an axis have scales of their own; 1 for a part of zeros.

    Args:
        predicted: values from theory.
        measured: values from the run, of the same shape.
        axis: along which the parts lie.

    Example:
        >>> predicted, measured = np.array([8.0, 1.0]), np.array([9.0, 2.0])
        >>> Equal(predicted, measured, scale_of_each(predicted, measured)).residual()
        0.5
    """
    both = np.maximum(np.abs(predicted), np.abs(measured))
    others = tuple(n for n in range(both.ndim) if n != axis % both.ndim)
    # The axes stay, so that the scales broadcast against the arrays that they belong to.
    largest = np.max(both, axis=others, keepdims=True)
    return np.where(largest > 0, largest, 1.0)


def start_of(values: Numbers, axis: int = 0) -> np.ndarray:
    """First entry along an axis, which stays: the null of what runs over steps.

    Example:
        >>> start_of(np.array([[1.0, 2.0], [3.0, 4.0]]))
        array([[1., 2.]])
    """
    first = (slice(None),) * axis + (slice(1),)  # empty for an array without records
    return np.asarray(values, np.float64)[first]


def residual_of(forms: Sequence[Form]) -> float:
    """Largest residual of the forms of a claim; NaN, which fails, if any is not a number."""
    # ``np.max``, for it hands on a NaN wherever it stands; the order decides what ``max`` of Python
    # does.
    return float(np.max([form.residual() for form in forms]))


def lack_of_power(forms: Sequence[Form], limit: float) -> str:
    """Why a case that passes shows nothing: a form that is not trivial could not have failed.

    Example:
        >>> lack_of_power([Equal(np.array([1e-9]), np.array([0.0]), scale=1.0)], 1e-6)
        'below what can be seen here'
        >>> lack_of_power([Equal(np.array([0.5]), np.array([0.5]))], 1e-6)
        ''
    """
    reasons = [form.lack_of_power(limit) for form in forms]
    others = [reason for reason in reasons if reason != TRIVIAL]
    if not others:
        return TRIVIAL
    return max(others)  # the empty text is the least: it wins only if every form has power
