"""The array-like that stands in the place of a matrix and multiplies as W + s B A, in factors.

Everywhere W is m x n.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import reduce
from operator import matmul
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import checks


class Chain(NamedTuple):
    """A term s F_1 F_2 ... of an adapted matrix, by its factors."""

    scale: Any
    factors: tuple[Array, ...]

    def product(self) -> Float[Array, "m n"]:
        """The array itself."""
        return self.scale * reduce(matmul, self.factors)

    def times(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """The product s F_1 (F_2 (... x))."""
        return self.scale * reduce(lambda x, F: F @ x, reversed(self.factors), inputs)

    def under(self, inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """The product s ((x F_1) F_2) ... ."""
        return self.scale * reduce(matmul, self.factors, inputs)

    def rows(self, ids: Any) -> Array:
        """Some rows."""
        first, *others = self.factors
        return self.scale * reduce(matmul, others, first[ids])


def row_norms(weight: Float[Array, "m n"], chains: tuple[Chain, ...]) -> Float[Array, "m"]:
    """Norms of the rows of W + B A + ..., of which no m x n array is formed.

    ``||w + s b A||^2 = ||w||^2 + 2 s b . (A w^T) + s^2 b A A^T b^T`` for each row, and the same for
    several terms, whose factors are put side by side.

    Example:
        >>> ones = jnp.ones((2, 1)), jnp.ones((1, 2))
        >>> row_norms(jnp.zeros((2, 2)), (Chain(3.0, ones),)).round(3).tolist()
        [4.243, 4.243]
    """
    weight = checks.floats("weight", weight, ("m", "n"))
    squares = jnp.sum(weight**2, axis=1)
    if chains:
        B = jnp.concatenate([s * reduce(matmul, F[:-1]) for s, F in chains], axis=1)
        A = jnp.concatenate([F[-1] for _, F in chains], axis=0)
        squares = squares + jnp.sum(B * (2 * (weight @ A.T) + B @ (A @ A.T)), axis=1)
    # Round-off may take a row that vanishes below 0.
    return jnp.sqrt(jnp.maximum(squares, 0))


class _Named(type(eqx.Module)):
    """The type of a class that says in JAX's own messages what is to be done."""

    def __repr__(cls) -> str:
        return (
            f"<class {cls.__name__!r}: only W @ x, x @ W, W.T and W[ids]; for all else "
            "lrdyn.adapters.merge makes an array>"
        )


def _refused(cls: type) -> Callable[..., Any]:
    def refuse(self: Any, *args: Any, **how: Any) -> Any:
        raise TypeError(f"got {cls!r}")

    return refuse


OTHERWISE = (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow", "neg", "abs",
    "array", "iter",
)  # fmt: skip


class ArrayLike(eqx.Module, metaclass=_Named):
    """What multiplies as a matrix without being one.

    It has no ``__jax_array__``: where JAX finds one it makes an array of the matrix before it
    multiplies, and one that raises makes ``x @ W`` raise too. So JAX's functions refuse it with a
    TypeError, and the operators below do.

    Note:
        quax 0.4.6 multiplies matrices of LoRA in factors on this JAX, through ``@`` and ``einsum``
        alike. But it refuses ``W.T`` and ``W[ids]``, every call of a model has to be wrapped, and
        DoRA and chains of factors are not among its arrays.
    """

    __array_ufunc__ = None  # NumPy leaves x @ W to __rmatmul__

    def __init_subclass__(cls, **how: Any):
        super().__init_subclass__(**how)
        for name in OTHERWISE:
            setattr(cls, f"__{name}__", _refused(cls))

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Rows and columns, m and n."""

    @property
    @abstractmethod
    def dtype(self) -> Any:
        """That of W."""

    @property
    def ndim(self) -> int:
        """2."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Entries of the matrix that it stands for."""
        return self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        # Only what is not found comes here: x.reshape, x.astype.
        if name.startswith("_") or not hasattr(jax.Array, name):
            raise AttributeError(name)
        raise TypeError(f"{name}: got {type(self)!r}")


class Adapted(ArrayLike):
    """W and its adapter as they act: W x + s B (A x), which forms no array of the size of W.

    ``W @ x``, ``x @ W``, ``W.T`` and ``W[ids]`` are those of the adapted matrix, to round-off in
    value and gradient. All else raises a TypeError.

    Example:
        >>> import lrdyn
        >>> factors = lrdyn.adapters.Factors(jnp.ones((2, 1)), jnp.ones((1, 2)), 2.0)
        >>> W, x = Adapted(jnp.eye(2), factors), jnp.array([1.0, 0.0])
        >>> [found.tolist() for found in (W @ x, x @ W, W.T @ x, W[jnp.array(1)])]
        [[3.0, 2.0], [3.0, 2.0], [3.0, 2.0], [2.0, 3.0]]
    """

    weight: Float[Array, "m n"]
    adapter: Any

    def __init__(self, weight: Any, adapter: Any):
        self.weight, self.adapter = weight, adapter

    def __matmul__(self, inputs: Any) -> Float[Array, "..."]:
        """W x + s B (A x)."""
        found = self.weight @ inputs
        for chain in self.adapter.chains():
            found = found + chain.times(inputs)
        gain = self.adapter.gain(self.weight)
        if gain is None:
            return found
        column = gain if found.ndim == 1 else gain[:, None]
        return jnp.broadcast_to(column, found.shape) * found

    def __rmatmul__(self, inputs: Any) -> Float[Array, "..."]:
        """The product x W + s (x B) A."""
        gain = self.adapter.gain(self.weight)
        inputs = jnp.asarray(inputs)
        inputs = inputs if gain is None else jnp.broadcast_to(gain, inputs.shape) * inputs
        found = inputs @ self.weight
        for chain in self.adapter.chains():
            found = found + chain.under(inputs)
        return found

    def __getitem__(self, ids: Any) -> Float[Array, "..."]:
        """Rows of W + s B A: W[ids] + s B[ids] A."""
        if isinstance(ids, tuple):
            raise TypeError(f"ids: got a tuple for {type(self)!r}")
        found = self.weight[ids]
        for chain in self.adapter.chains():
            found = found + chain.rows(ids)
        gain = self.adapter.gain(self.weight)
        if gain is None:
            return found
        return jnp.broadcast_to(jnp.asarray(gain[ids])[..., None], found.shape) * found

    @property
    def T(self) -> "Transposed":
        """Its transpose, apart as well."""
        return Transposed(self)

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns, m and n."""
        return self.weight.shape

    @property
    def dtype(self) -> Any:
        """That of W."""
        return self.weight.dtype


class Transposed(ArrayLike):
    """The transpose of an adapted matrix: W^T x = x W, and x W^T = W x."""

    matrix: Adapted

    def __init__(self, matrix: Adapted):
        self.matrix = matrix

    def __matmul__(self, inputs: Any) -> Float[Array, "..."]:
        """W^T x."""
        return _turned(_turned(jnp.asarray(inputs)) @ self.matrix)

    def __rmatmul__(self, inputs: Any) -> Float[Array, "..."]:
        """The product x W^T."""
        return _turned(self.matrix @ _turned(jnp.asarray(inputs)))

    @property
    def T(self) -> Adapted:
        """The matrix."""
        return self.matrix

    @property
    def shape(self) -> tuple[int, ...]:
        """N and m."""
        return self.matrix.shape[::-1]

    @property
    def dtype(self) -> Any:
        """That of W."""
        return self.matrix.dtype


def _turned(x: Array) -> Array:
    return x if x.ndim < 2 else jnp.swapaxes(x, -1, -2)
