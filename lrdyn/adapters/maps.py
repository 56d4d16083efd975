"""Linear maps S from gradients to coordinates, and how they are chosen."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lrdyn import checks, linalg

Side = Literal["left", "right", "smaller", "larger"]


class LinearMap(eqx.Module):
    """S, from the gradient of one parameter to its coordinates, and its transpose."""

    @abstractmethod
    def project(self, gradient: Array) -> Array:
        """S G."""

    @abstractmethod
    def lift(self, coordinates: Array) -> Array:
        """S^T R."""

    def onto(self, weight: Array, coordinates: Array, scale: Any) -> Array:
        """W + s S^T R."""
        return weight + jnp.asarray(scale, weight.dtype) * self.lift(coordinates)

    def layer(self, weight: Array, coordinates: Array, scale: Any) -> Any:
        """What maps x to (W + s S^T R) x; here that very matrix."""
        return self.onto(weight, coordinates, scale)


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

    def layer(self, weight: Float[Array, "m n"], coordinates: Float[Array, "..."], scale: Any):
        """The three factors, apart."""
        return Layer(weight, *self.factors(coordinates), jnp.asarray(scale, weight.dtype))


class Layer(eqx.Module):
    """W + s B A as it acts: W x + s B (A x), which forms no array of the size of W.

    Example:
        >>> layer = Layer(jnp.eye(2), jnp.ones((2, 1)), jnp.ones((1, 2)), jnp.asarray(2.0))
        >>> (layer @ jnp.array([1.0, 0.0])).tolist()
        [3.0, 2.0]
    """

    weight: Float[Array, "m n"]
    left: Float[Array, "m r"]
    right: Float[Array, "r n"]
    scale: Float[Array, ""]

    def __matmul__(self, inputs: Float[Array, "n *batch"]) -> Float[Array, "m *batch"]:
        """W x + s B (A x)."""
        return self.weight @ inputs + self.scale * (self.left @ (self.right @ inputs))


class Identity(LinearMap):
    """The map of a parameter that is trained as it is, without a scale: a bias, a gain."""

    def project(self, gradient: Array) -> Array:
        """G."""
        return gradient

    def lift(self, coordinates: Array) -> Array:
        """R."""
        return coordinates

    def onto(self, weight: Array, coordinates: Array, scale: Any) -> Array:
        """W + R."""
        return weight + coordinates


def is_map(node: Any) -> bool:
    """Whether a node of a PyTree is the map of one parameter."""
    return isinstance(node, LinearMap)


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


def draw_projectors(
    key: Key[Array, ""] | None, weights: PyTree, rank: int, side: Side = "right"
) -> PyTree:
    """The same with Gaussian factors of variance 1 / length: E[P^T P] = I.

    Args:
        key: random key.
        weights: arrays of the shapes of the parameters.
        rank: r; min(m, n) if that is less.
        side: see :func:`resolve_side`.

    Raises:
        ValueError: there is no key, the rank is not positive, or the side unknown.

    Example:
        >>> found = draw_projectors(jax.random.key(0), {"W": jnp.ones((3, 5)), "b": jnp.ones(3)}, 2)
        >>> found["W"].basis.shape, found["b"]
        ((5, 2), Identity())
    """
    checks.integer("rank", rank)
    leaves, structure = jax.tree.flatten(weights)
    keys = jax.random.split(checks.key(key), len(leaves))
    drawn = [_draw(*pair, rank, side) for pair in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _draw(key: Key[Array, ""], W: Array, rank: int, side: Side) -> LinearMap:
    if W.ndim != 2:
        return Identity()
    side = resolve_side(W.shape, side)
    length = W.shape[0 if side == "left" else 1]
    basis = jax.random.normal(key, (length, min(rank, *W.shape)), W.dtype)
    return Projector(basis / math.sqrt(length), side)


# As a method chooses them: from a random key, the gradients, r and the side -----------------------


def by_svd(key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side) -> PyTree:
    """:func:`choose_projectors`, which needs no random key."""
    return choose_projectors(gradients, rank, side)


def identities(key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side) -> PyTree:
    """The identity for every parameter."""
    return jax.tree.map(lambda G: Identity(), gradients)
