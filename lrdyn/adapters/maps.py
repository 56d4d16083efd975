"""Coordinates in which a parameter is trained: linear maps S, and how they are chosen."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.adapters.adapter import Adapter, Factors, Shift, apart
from lrdyn.core import checks, linalg

Side = Literal["left", "right", "smaller", "larger"]


class Parametrization(eqx.Module):
    """How one parameter is made of W and of coordinates R that are trained in its place."""

    @abstractmethod
    def begin(self, weight: Array) -> tuple["Parametrization", Any]:
        """This one for W, and the R at which the parameter is W."""

    def fresh(self, weight: Array, scale: Any, *, both: bool = False) -> Adapter:
        """The adapter of this scale at its start."""
        begun, coordinates = self.begin(weight)
        return begun.adapter(coordinates, scale, both=both)

    @abstractmethod
    def adapter(self, coordinates: Any, scale: Any, *, both: bool = False) -> Adapter:
        """What R adds to W; ``both`` says that the arrays of this object are trained as well."""

    def onto(self, weight: Array, coordinates: Any, scale: Any) -> Array:
        """The parameter as one array."""
        return self.adapter(coordinates, scale).onto(weight)

    def layer(self, weight: Array, coordinates: Any, scale: Any) -> Any:
        """The parameter as it acts."""
        return self.adapter(coordinates, scale, both=True).layer(weight)


class Separate(Parametrization):
    """An adapter of any form: what is not trained is here, and what is trained is R.

    Example:
        >>> adapter = Factors(jnp.zeros((2, 1)), jnp.ones((1, 2)), trained=("B",))
        >>> fixed, R = Separate(adapter).begin(jnp.eye(2))
        >>> R.B.shape, R.A, fixed.onto(jnp.eye(2), R, 1.0).tolist()
        ((2, 1), None, [[1.0, 0.0], [0.0, 1.0]])
    """

    fixed: Adapter

    def fresh(self, weight: Array, scale: Any, *, both: bool = False) -> Adapter:
        """The adapter itself."""
        return self.fixed.scaled(scale).fitted(weight)

    def begin(self, weight: Array) -> tuple[Parametrization, Adapter]:
        """The two parts of the adapter, started on W."""
        coordinates, fixed = apart(self.fixed.fitted(weight))
        return Separate(fixed), coordinates

    def adapter(self, coordinates: Adapter, scale: Any, *, both: bool = False) -> Adapter:
        """The two parts together."""
        return eqx.combine(coordinates, self.fixed).scaled(scale)


class Frozen(Parametrization):
    """Of a parameter that is not trained: there are no coordinates."""

    def begin(self, weight: Array) -> tuple[Parametrization, None]:
        """Nothing."""
        return self, None

    def adapter(self, coordinates: None, scale: Any, *, both: bool = False) -> Adapter:
        """There is none."""
        raise NotImplementedError

    def onto(self, weight: Array, coordinates: None, scale: Any) -> Array:
        """W."""
        return weight

    def layer(self, weight: Array, coordinates: None, scale: Any) -> Array:
        """W."""
        return weight


class LinearMap(Parametrization):
    """S, from the gradient of one parameter to its coordinates, and its transpose: W + s S^T R."""

    @abstractmethod
    def project(self, gradient: Array) -> Array:
        """S G."""

    @abstractmethod
    def lift(self, coordinates: Array) -> Array:
        """S^T R."""

    def begin(self, weight: Array) -> tuple[Parametrization, Array]:
        """R = 0."""
        return self, jnp.zeros_like(self.project(weight))

    def adapter(self, coordinates: Array, scale: Any, *, both: bool = False) -> Adapter:
        """S^T R as it is."""
        return Shift(jnp.asarray(scale, coordinates.dtype) * self.lift(coordinates))

    def onto(self, weight: Array, coordinates: Array, scale: Any) -> Array:
        """W + s S^T R."""
        return weight + jnp.asarray(scale, weight.dtype) * self.lift(coordinates)


class Projector(LinearMap):
    """A factor P on one side of a matrix: S G = P^T G and S^T R = P R, or G P and R P^T.

    Args:
        basis: P; its columns are orthonormal if it comes from an SVD.
        side: ``left`` or ``right``.

    Example:
        >>> P = Projector(jnp.array([[1.0], [0.0]]), "left")
        >>> G = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> P.project(G).tolist(), P.lift(P.project(G)).tolist()
        ([[1.0, 2.0]], [[1.0, 2.0], [0.0, 0.0]])
    """

    basis: Float[Array, "length rank"]
    side: str = eqx.field(static=True)

    def project(self, gradient: Float[Array, "m n"]) -> Float[Array, "..."]:
        """P^T G (r x n), or G P (m x r)."""
        return self.basis.T @ gradient if self.side == "left" else gradient @ self.basis

    def factors(self, coordinates: Float[Array, "..."]) -> tuple[Array, Array]:
        """B and A: P and R, or R and P^T."""
        left = self.side == "left"
        return (self.basis, coordinates) if left else (coordinates, self.basis.T)

    def lift(self, coordinates: Float[Array, "..."]) -> Float[Array, "m n"]:
        """B A: P R, or R P^T (m x n)."""
        B, A = self.factors(coordinates)
        return B @ A

    def adapter(
        self, coordinates: Float[Array, "..."], scale: Any, *, both: bool = False
    ) -> Factors:
        """B and A; of a projector that is not trained, the other one is."""
        B, A = self.factors(coordinates)
        other = ("A",) if self.side == "left" else ("B",)
        scale = jnp.asarray(scale, coordinates.dtype)
        return Factors(B, A, scale, trained=("B", "A") if both else other)


class Identity(LinearMap):
    """The map of a parameter that is trained as it is, without a scale: a bias, a gain."""

    def project(self, gradient: Array) -> Array:
        """G."""
        return gradient

    def lift(self, coordinates: Array) -> Array:
        """R."""
        return coordinates

    def adapter(self, coordinates: Array, scale: Any, *, both: bool = False) -> Shift:
        """R, without a scale."""
        return Shift(coordinates)

    def onto(self, weight: Array, coordinates: Array, scale: Any) -> Array:
        """W + R."""
        return weight + coordinates


def is_map(node: Any) -> bool:
    """Whether a node of a PyTree is the map of one parameter."""
    return isinstance(node, Parametrization)


def over_maps(function: Callable[..., Any], maps: PyTree, *others: PyTree) -> PyTree:
    """Map a function over the linear maps of a PyTree, and over the nodes that others have there.

    Example:
        >>> over_maps(lambda S, name: name, {"b": Identity()}, {"b": "bias"})
        {'b': 'bias'}
    """
    checks.instance("function", function)
    return jax.tree.map(function, maps, *others, is_leaf=is_map)


def project(maps: PyTree, gradients: PyTree) -> PyTree:
    """R = S G for every parameter.

    Example:
        >>> project({"b": Identity()}, {"b": jnp.ones(2)})["b"].tolist()
        [1.0, 1.0]
    """
    return over_maps(lambda S, G: S.project(G), maps, gradients)


def lift_onto(weights: PyTree, maps: PyTree, coordinates: PyTree, scale: Any = 1.0) -> PyTree:
    """W + s S^T R for every parameter that is projected, W + R for every other.

    Example:
        >>> W, P = jnp.zeros((2, 1)), Projector(jnp.array([[1.0], [0.0]]), "left")
        >>> found = lift_onto((W, W), (P, Identity()), (jnp.ones((1, 1)), W + 1), 2.0)
        >>> [new.tolist() for new in found]
        [[[2.0], [0.0]], [[1.0], [1.0]]]
    """
    return over_maps(lambda S, W, R: S.onto(W, R, scale), maps, weights, coordinates)


# How they are chosen ---------------------------------------------------------------------------


def resolve_side(shape: tuple[int, ...], side: Side) -> Literal["left", "right"]:
    """Name the side that is projected, ``left`` or ``right``.

    Args:
        shape: m x n of the matrix.
        side: ``left`` or ``right``; ``smaller``, as published (left if m <= n), or ``larger``, as
            in optax (left if m >= n).

    Raises:
        ValueError: the side is unknown.

    Example:
        >>> resolve_side((2, 3), "smaller"), resolve_side((2, 3), "larger")
        ('left', 'right')
    """
    checks.sizes("shape", shape, 2, 2)
    m, n = shape
    sides = {"left": True, "right": False, "smaller": m <= n, "larger": m >= n}
    if side not in sides:
        raise ValueError(f"side: got {side!r}, wanted one of {', '.join(get_args(Side))}")
    return "left" if sides[side] else "right"


TIED = 1e-3
"""Entries of a singular vector that are so close to the largest, as a part of it, are tied."""


def signed(vectors: Float[Array, "length rank"]) -> Float[Array, "length rank"]:
    """Give each column a sign: the first of its largest entries is positive, ties included.

    Where entries are equal up to rounding, as in the gradient of two classes, rounding would say
    which one is the largest. So the first entry within :data:`TIED` of the largest decides.

    Example:
        >>> signed(jnp.array([[-0.7], [0.7 + 1e-9]])).round(3).tolist()
        [[0.7], [-0.7]]
    """
    vectors = checks.floats("vectors", vectors, ("length", "rank"))
    sizes = jnp.abs(vectors)
    largest = sizes >= (1 - TIED) * jnp.max(sizes, axis=0, keepdims=True)
    first = jnp.argmax(largest, axis=0, keepdims=True)
    return vectors * jnp.sign(jnp.take_along_axis(vectors, first, axis=0))


def top_singular_projector(
    gradient: Float[Array, "m n"], rank: int, side: Side = "smaller"
) -> Projector:
    """P = top-r left (or right) singular vectors of G, with signs by :func:`signed`.

    Without a rule for signs a kept momentum would depend on LAPACK's choice of them.

    Args:
        gradient: G.
        rank: r; min(m, n) if that is less.
        side: see :func:`resolve_side`.

    Raises:
        ValueError: the rank is not positive, or the side unknown.

    Example:
        >>> P = top_singular_projector(jnp.diag(jnp.array([1.0, -2.0])), 1, "left")
        >>> jnp.abs(P.basis).tolist(), P.side
        ([[0.0], [1.0]], 'left')
    """
    gradient = checks.floats("gradient", gradient, ("m", "n"))
    checks.integer("rank", rank)
    side = resolve_side(gradient.shape, side)
    left, _, right = linalg.svd(gradient)
    vectors = left if side == "left" else right.T
    return Projector(signed(vectors[:, :rank]), side)


def choose_projectors(gradients: PyTree, rank: int, side: Side = "smaller") -> PyTree:
    """One linear map for each parameter: a projector for matrices, the identity for the rest.

    Args:
        gradients: gradients, a PyTree like the parameters.
        rank: r.
        side: see :func:`resolve_side`.

    Example:
        >>> found = choose_projectors({"W": jnp.eye(3), "b": jnp.ones(3)}, 2)
        >>> found["W"].basis.shape, found["b"]
        ((3, 2), Identity())
    """
    checks.integer("rank", rank)
    return jax.tree.map(
        lambda G: top_singular_projector(G, rank, side) if G.ndim == 2 else Identity(), gradients
    )


Law = Literal["gaussian", "kaiming"]
"""Of the entries of a factor that is drawn."""


def draw_projectors(
    key: Key[Array, ""] | None,
    weights: PyTree,
    rank: int,
    side: Side = "right",
    *,
    law: Law = "gaussian",
) -> PyTree:
    """The same with factors that are drawn.

    Gaussian entries have the variance 1 / length, so that E[P^T P] = I; those of Kaiming are
    uniform within 1 / sqrt(length), three times less.

    Args:
        key: random key.
        weights: arrays of the shapes of the parameters.
        rank: r; min(m, n) if that is less.
        side: see :func:`resolve_side`.
        law: ``gaussian`` or ``kaiming``.

    Raises:
        ValueError: there is no key, the rank is not positive, or the side or the law unknown.

    Example:
        >>> found = draw_projectors(jax.random.key(0), {"W": jnp.ones((3, 5)), "b": jnp.ones(3)}, 2)
        >>> found["W"].basis.shape, found["b"]
        ((5, 2), Identity())
    """
    checks.integer("rank", rank)
    if law not in get_args(Law):
        checks.refuse("law", repr(law), f"one of {', '.join(get_args(Law))}")
    return matrices_alone(lambda key, W: _draw(key, W, rank, side, law), key, weights)


def _draw(key: Key[Array, ""], W: Array, rank: int, side: Side, law: Law) -> LinearMap:
    side = resolve_side(W.shape, side)
    length = W.shape[0 if side == "left" else 1]
    shape = (length, min(rank, *W.shape))
    if law == "gaussian":
        basis = jax.random.normal(key, shape, W.dtype)
    else:
        basis = jax.random.uniform(key, shape, W.dtype, -1, 1)
    return Projector(basis / math.sqrt(length), side)


def matrices_alone(
    draw: Callable[[Key[Array, ""], Array], Any], key: Key[Array, ""] | None, gradients: PyTree
) -> PyTree:
    """``draw(key, G)`` for each matrix, with a key of its own, and the identity for the rest.

    Example:
        >>> found = matrices_alone(
        ...     lambda key, G: Projector(G, "left"), jax.random.key(0), [jnp.eye(2), jnp.ones(2)])
        >>> found[0].side, found[1]
        ('left', Identity())
    """
    checks.instance("draw", draw)
    leaves, structure = jax.tree.flatten(gradients)
    keys = jax.random.split(checks.key(key), len(leaves))
    drawn = [
        draw(one, G) if G.ndim == 2 else Identity() for one, G in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)


# As a method chooses them: from a random key, the gradients, r and the side -----------------------


def by_svd(key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side) -> PyTree:
    """:func:`choose_projectors`, which needs no random key."""
    return choose_projectors(gradients, rank, side)


def identities(key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side) -> PyTree:
    """The identity for every parameter."""
    return jax.tree.map(lambda G: Identity(), gradients)
