"""A matrix that stays on its device: products with few columns come back, the matrix does not.

The range finder of :func:`lrdyn.diagnosis.spectrum.sketch` needs no more of a matrix than products
with k + 10 columns. Of a matrix of JAX or torch on a card these are computed there, and what comes
to the CPU is (m + n) (k + 10) numbers in the place of m n.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def is_elsewhere(x: Any) -> bool:
    """Whether an array of JAX or torch lies in the memory of an accelerator, whole.

    Example:
        >>> is_elsewhere(np.ones(2)), is_elsewhere(jax.numpy.ones(2))
        (False, False)
    """
    if isinstance(x, Tracer):
        return False
    if isinstance(x, jax.Array):
        return x.is_fully_addressable and all(one.platform != "cpu" for one in x.devices())
    return hasattr(x, "new_tensor") and x.device.type not in ("cpu", "meta")


class OnDevice:
    """A matrix of JAX or torch (m x n) that is multiplied and summed where it lies.

    Products with arrays of NumPy are arrays of NumPy, in the precision of the matrix; numbers of 16
    bits are widened to float32 on the device.

    Args:
        array: the matrix, of a floating-point type.

    Example:
        >>> W = OnDevice(jax.numpy.array([[3.0, 0.0], [0.0, 4.0]]))
        >>> (W @ np.eye(2)[:, :1]).tolist(), (np.eye(2)[:1] @ W).tolist()
        ([[3.0], [0.0]], [[3.0, 0.0]])
        >>> W.minus_product(np.eye(2)[:, 1:], 4 * np.eye(2)[1:]).inner(W)
        9.0
    """

    __array_ufunc__ = None  # NumPy's products are left to this class

    def __init__(self, array: Any):
        self._of_jax = isinstance(array, jax.Array)
        name = type_name(array)
        wide = name if name in ("float32", "float64") else "float32"
        if name != wide:
            array = array.astype(wide) if self._of_jax else array.float()
        self._array, self.dtype, self.shape = array, np.dtype(wide), tuple(array.shape)

    @property
    def T(self) -> OnDevice:
        """The transposed matrix; nothing is copied to the CPU."""
        return OnDevice(self._array.T)

    def __matmul__(self, other: np.ndarray) -> np.ndarray:
        """A product with few columns."""
        with self._exact_products():
            return _fetched(self._array @ self._sent(other))

    def __rmatmul__(self, other: np.ndarray) -> np.ndarray:
        """A product with few rows."""
        with self._exact_products():
            return _fetched(self._sent(other) @ self._array)

    def __sub__(self, other: OnDevice) -> OnDevice:
        """A difference, on the device."""
        return OnDevice(self._array - other._array)

    def minus_product(self, B: np.ndarray, A: np.ndarray) -> OnDevice:
        """W - B A for B (m x r) and A (r x n)."""
        with self._exact_products():
            return OnDevice(self._array - self._sent(B) @ self._sent(A))

    def inner(self, other: OnDevice) -> float:
        """The sum of products of entries: by row on the device, then in float64."""
        return float(np.sum(_fetched((self._array * other._array).sum(1)), dtype=np.float64))

    def square_sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Sums of squares by row and by column, in float64."""
        squares = self._array * self._array
        by_row, by_column = (_fetched(squares.sum(axis)) for axis in (1, 0))
        return by_row.astype(np.float64), by_column.astype(np.float64)

    def on_cpu(self) -> np.ndarray:
        """All numbers, as an array of NumPy."""
        return _fetched(self._array)

    def beside(self, other: OnDevice) -> OnDevice:
        """The same numbers on the devices of another matrix."""
        if self._of_jax:
            return OnDevice(jax.device_put(self._array, other._array.sharding))
        return OnDevice(self._array.to(other._array.device))

    def copy(self) -> OnDevice:
        """The same numbers in memory of their own: a training may take back the memory it gave."""
        return OnDevice(self._array.copy() if self._of_jax else self._array.clone())

    def _sent(self, x: np.ndarray) -> Any:
        x = np.ascontiguousarray(x, self.dtype)
        # JAX takes what was put on no device in particular to where the other operand is.
        return jax.numpy.asarray(x) if self._of_jax else self._array.new_tensor(x)

    def _exact_products(self) -> AbstractContextManager[Any]:
        # A card would multiply float32 in ten bits; torch does that only where it is told to.
        return jax.default_matmul_precision("highest") if self._of_jax else nullcontext()


def type_name(x: Any) -> str:
    """The type of an array's numbers, as NumPy calls it.

    Example:
        >>> type_name(jax.numpy.ones(2, "bfloat16"))
        'bfloat16'
    """
    return str(x.dtype).removeprefix("torch.")


def _fetched(x: Any) -> np.ndarray:
    return np.asarray(x if isinstance(x, jax.Array) else x.cpu())
