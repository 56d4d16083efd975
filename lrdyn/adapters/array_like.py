"""The array-like that stands in the place of a matrix and multiplies as W + s B A, in factors.

Everywhere W is m x n.
"""

from functools import reduce
from operator import matmul
from typing import Any, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Term(NamedTuple):
    """A term s F_1 F_2 ... beside W, by its factors; s is None where there is no scale."""

    scale: Any
    factors: tuple[Array, ...]

    def array(self) -> Array:
        """The product s F_1 F_2 ... itself."""
        product = reduce(matmul, self.factors)
        return product if self.scale is None else self.scale * product

    def times(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """The product s F_1 (F_2 (... x))."""
        return self.scale * reduce(lambda x, F: F @ x, reversed(self.factors), inputs)

    def left_times(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """The product s ((x F_1) F_2) ... ."""
        return self.scale * reduce(matmul, self.factors, inputs)

    def rows(self, ids: Any) -> Array:
        """Some rows, (s F_1)[ids] F_2 ... ."""
        first, *others = self.factors
        return self.scale * reduce(matmul, others, first[ids])


class _Named(type(eqx.Module)):
    """The type of a class that says in JAX's own messages what is to be done."""

    def __repr__(cls) -> str:
        return (
            f"<class {cls.__name__!r}: only W @ x, x @ W, W.T and W[ids]; for all else "
            "lrdyn.adapters.merge makes an array>"
        )


@final
class Adapted(eqx.Module, metaclass=_Named):
    """W and its adapter as they act: W x + s B (A x), which forms no array of the size of W.

    ``W @ x``, ``x @ W``, ``W.T`` and ``W[ids]`` are those of the adapted matrix, to round-off in
    value and gradient. All else raises a TypeError. It has no ``__jax_array__``: where JAX finds
    one it makes an array of the matrix before it multiplies, and one that raises makes ``x @ W``
    raise too. So JAX's functions refuse it with a TypeError, and the operators below do.

    Args:
        weight: W.
        adapter: an :class:`~lrdyn.adapters.Adapter`.
        transposed: whether the transpose of the adapted matrix is meant.

    Note:
        quax 0.4.6 multiplies matrices of LoRA in factors on this JAX, through ``@`` and ``einsum``
        alike. But it refuses ``W.T`` and ``W[ids]``, every call of a model has to be wrapped, and
        DoRA and chains of factors are not among its arrays.

    Example:
        >>> import lrdyn
        >>> factors = lrdyn.adapters.Factors(jnp.ones((2, 1)), jnp.ones((1, 2)), 2.0)
        >>> W, x = Adapted(jnp.eye(2), factors), jnp.array([1.0, 0.0])
        >>> [result.tolist() for result in (W @ x, x @ W, W.T @ x, W[jnp.array(1)])]
        [[3.0, 2.0], [3.0, 2.0], [3.0, 2.0], [2.0, 3.0]]
    """

    weight: Float[Array, "m n"]
    adapter: Any
    transposed: bool = eqx.field(static=True)

    def __init__(self, weight: Any, adapter: Any, *, transposed: bool = False):
        self.weight, self.adapter, self.transposed = weight, adapter, transposed

    def __matmul__(self, inputs: Any) -> Float[Array, "..."]:
        if self.transposed:
            return _swap_last_axes(self._left_times(_swap_last_axes(jnp.asarray(inputs))))
        return self._times(inputs)

    def __rmatmul__(self, inputs: Any) -> Float[Array, "..."]:
        if self.transposed:
            return _swap_last_axes(self._times(_swap_last_axes(jnp.asarray(inputs))))
        return self._left_times(jnp.asarray(inputs))

    def _times(self, inputs: Any) -> Float[Array, "..."]:
        """W x + s B (A x), the rows times their gain."""
        outputs = self.weight @ inputs
        for term in self.adapter.terms():
            outputs = outputs + term.times(inputs)
        gain = self.adapter.gain(self.weight)
        if gain is None:
            return outputs
        # A gain belongs to a row of W, which is an entry of a vector and a row of a matrix of
        # outputs.
        column = gain if outputs.ndim == 1 else gain[:, None]
        return jnp.broadcast_to(column, outputs.shape) * outputs

    def _left_times(self, inputs: Array) -> Float[Array, "..."]:
        """The product x W + s (x B) A; a gain of rows goes to x first."""
        gain = self.adapter.gain(self.weight)
        if gain is not None:
            inputs = jnp.broadcast_to(gain, inputs.shape) * inputs
        outputs = inputs @ self.weight
        for term in self.adapter.terms():
            outputs = outputs + term.left_times(inputs)
        return outputs

    def __getitem__(self, ids: Any) -> Float[Array, "..."]:
        # A column, or an entry, would need the whole product of the factors.
        if self.transposed or isinstance(ids, tuple):
            raise TypeError(f"ids: got {type(ids).__name__} for {type(self)!r}")
        rows = self.weight[ids]
        for term in self.adapter.terms():
            rows = rows + term.rows(ids)
        gain = self.adapter.gain(self.weight)
        if gain is None:
            return rows
        return jnp.broadcast_to(jnp.asarray(gain[ids])[..., None], rows.shape) * rows

    @property
    def T(self) -> "Adapted":
        """The transpose, in factors as well: W^T x = x W, and x W^T = W x."""
        return Adapted(self.weight, self.adapter, transposed=not self.transposed)

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of rows and columns."""
        shape = self.weight.shape
        return shape[::-1] if self.transposed else shape

    @property
    def dtype(self) -> Any:
        """The type of the entries of W."""
        return self.weight.dtype

    @property
    def ndim(self) -> int:
        """Two, the number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Entries of the matrix that it stands for."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        # Only names that are not defined come here: x.reshape, x.astype.
        if name.startswith("_") or not hasattr(jax.Array, name):
            raise AttributeError(name)
        raise TypeError(f"{name}: got {type(self)!r}")

    def _refuse(self, *others: Any, **options: Any) -> Any:
        raise TypeError(f"got {type(self)!r}")

    __array_ufunc__ = None  # NumPy leaves x @ W to __rmatmul__
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = __abs__ = _refuse
    __array__ = __iter__ = _refuse


def _swap_last_axes(x: Array) -> Array:
    return x if x.ndim < 2 else jnp.swapaxes(x, -1, -2)
