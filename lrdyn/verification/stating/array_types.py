"""Types of arrays: which are kept and compared, and as what.

Booleans and integers are compared exactly, floating-point numbers of every length as float64. All
others, complex numbers among them, are refused by name: a conversion would drop a part of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

KINDS = "booleans, integers of up to 64 bits or floating-point numbers"


class NotNumbers(ValueError):
    """An array whose type is not compared; the message says which."""


def kept_type(dtype: Any) -> np.dtype | None:
    """Type in which results keep an array, every number of it exactly; None if they keep it not.

    A file has no bfloat16, nor other short types that NumPy lacks: float32 holds their numbers.

    Example:
        >>> kept_type(jnp.bfloat16), kept_type(np.uint64), kept_type(np.complex64)
        (dtype('float32'), dtype('uint64'), None)
    """
    if jnp.issubdtype(dtype, jax.dtypes.extended):  # keys of random numbers
        return None
    dtype = np.dtype(dtype)
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8):
        return dtype
    if dtype.kind == "f":
        return np.dtype(np.float64)
    if dtype.kind == "V" and jnp.issubdtype(dtype, np.floating):
        return np.dtype(np.float32)
    if dtype.kind == "V" and jnp.issubdtype(dtype, np.integer):  # of two and four bits
        return np.dtype(np.int8)
    return None


def as_kept(array: np.ndarray) -> np.ndarray:
    """An array in the type in which results keep it; one of another type stays as it is."""
    kept = kept_type(array.dtype)
    return array if kept is None else array.astype(kept, copy=False)


def as_compared(values: Any, name: str = "") -> np.ndarray:
    """An array as it is compared: booleans and integers as they are, all others as float64.

    Raises:
        NotNumbers: it is of another type.

    Example:
        >>> as_compared(np.float32(0.5)).dtype, as_compared([1, 2]).dtype
        (dtype('float64'), dtype('int64'))
        >>> as_compared([1j], "roots")
        Traceback (most recent call last):
        lrdyn.verification.stating.array_types.NotNumbers: got an array of complex128 as 'roots',
        wanted ...
    """
    array = values if isinstance(values, np.ndarray) else as_array(values, name)
    if array.dtype.kind not in "biuf":
        refuse_type(array.dtype, name)
        array = as_kept(array)
    return array.astype(np.float64, copy=False) if array.dtype.kind == "f" else array


def as_array(values: Any, name: str = "") -> np.ndarray:
    """Numbers, a nested list of them or an array as a NumPy array.

    Raises:
        NotNumbers: they are no array, or one of a type that is not compared.
    """
    if hasattr(values, "dtype"):
        refuse_type(values.dtype, name)
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError):  # rows of several lengths
        raise NotNumbers(f"got {type(values).__name__}{_as_name(name)}, wanted an array") from None
    if array.dtype.kind == "O":
        got = type(values).__name__
        raise NotNumbers(f"got {got}{_as_name(name)}, wanted {KINDS}")
    refuse_type(array.dtype, name)
    return array


def refuse_type(dtype: Any, name: str = "") -> None:
    """Refuse an array of a type that is not compared.

    Raises:
        NotNumbers: it is of such a type.
    """
    if kept_type(dtype) is not None:
        return
    parts = jnp.issubdtype(dtype, np.complexfloating)
    wanted = "real and imaginary parts as arrays of their own" if parts else KINDS
    raise NotNumbers(f"got an array of {dtype}{_as_name(name)}, wanted {wanted}")


def _as_name(name: str) -> str:
    return f" as {name!r}" if name else ""


def difference(first: Any, second: Any) -> np.ndarray:
    """``first - second`` in float64, rounded as if it had been computed exactly.

    Integers above 2^53 are cut in two halves, which float64 holds; in their own type a difference
    would overflow, and as float64 2^53 + 1 would be 2^53.

    Example:
        >>> difference(np.array([2**53 + 1, -(2**63)]), np.array([2**53, 2**63 - 1])).tolist()
        [1.0, -1.8446744073709552e+19]
        >>> difference(np.uint32(3), np.uint32(5)).item()
        -2.0
    """
    (high, low), (other_high, other_low) = _halves(first), _halves(second)
    # inf - inf is NaN, which must not warn: it is judged, and fails.
    with np.errstate(invalid="ignore"):
        return np.asarray((high - other_high) + (low - other_low))


def _halves(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of float64 whose sum is an array, exactly."""
    array = as_compared(values)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        # What float64 holds stays whole: cut, it would lose digits beside a number like 0.001.
        long = (array > 2**53) | (array < (-(2**53) if array.dtype.kind == "i" else 0))
        low = np.where(long, array & np.asarray(2**32 - 1, array.dtype), np.asarray(0, array.dtype))
        return np.asarray(array - low, np.float64), low.astype(np.float64)
    # float64 holds every shorter integer.
    return array.astype(np.float64, copy=False), np.zeros(array.shape)
