"""Coordinates in which a parameter is trained: linear maps S, and how they are chosen.

Algorithm 1 keeps for each parameter W something chosen, S, and coordinates R that are trained. S is
a :class:`LinearMap`, whose parameter is W + s S^T R, or an :class:`~lrdyn.adapters.Adapter` of any
form, whose trained arrays are R.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, final, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.adapters.adapter import Adapter, Factors, Shift
from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.selection import name_of

Side = Literal["left", "right", "smaller", "larger"]


class LinearMap(eqx.Module):
    """S, from the gradient of one parameter to its coordinates, and its transpose: W + s S^T R."""

    @abstractmethod
    def project(self, gradient: Array) -> Array:
        """Coordinates S G of a gradient."""

    @abstractmethod
    def lift(self, coordinates: Array) -> Array:
        """What coordinates add to the parameter, S^T R."""


@final
class Projector(LinearMap):
    """A factor P on one side of a matrix: S G = P^T G and S^T R = P R, or G P and R P^T.

    Matrices that are stacked along leading axes have one each.

    Args:
        basis: P; its columns are orthonormal if it comes from an SVD.
        side: ``left`` or ``right``.

    Example:
        >>> P = Projector(jnp.array([[1.0], [0.0]]), "left")
        >>> G = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> P.project(G).tolist(), P.lift(P.project(G)).tolist()
        ([[1.0, 2.0]], [[1.0, 2.0], [0.0, 0.0]])
    """

    basis: Float[Array, "*layers length rank"]
    side: str = eqx.field(static=True)

    def project(self, gradient: Float[Array, "*layers m n"]) -> Float[Array, "..."]:
        """P^T G (r x n), or G P (m x r)."""
        return self.basis.mT @ gradient if self.side == "left" else gradient @ self.basis

    def lift(self, coordinates: Float[Array, "..."]) -> Float[Array, "*layers m n"]:
        """B A: P R, or R P^T (m x n)."""
        B, A = self.factors(coordinates)
        return B @ A

    def factors(self, coordinates: Float[Array, "..."]) -> tuple[Array, Array]:
        """B and A: P and R, or R and P^T."""
        left = self.side == "left"
        return (self.basis, coordinates) if left else (coordinates, self.basis.mT)


@final
class Identity(LinearMap):
    """The map of a parameter that is trained as it is, without a scale: a bias, a gain."""

    def project(self, gradient: Array) -> Array:
        """The gradient itself, S G = G."""
        return gradient

    def lift(self, coordinates: Array) -> Array:
        """The coordinates themselves, S^T R = R."""
        return coordinates


Parametrization = LinearMap | Adapter
"""What is chosen for one parameter."""


def is_map(node: Any) -> bool:
    """Whether a node of a PyTree is what was chosen for one parameter."""
    return isinstance(node, Parametrization)


def begin_coordinates(S: Parametrization, weight: Array) -> tuple[Parametrization, Any]:
    """What stays of S, and the coordinates R at which the parameter is W.

    Example:
        >>> adapter = Factors(jnp.zeros((2, 1)), jnp.ones((1, 2)), trained=("B",))
        >>> fixed, R = begin_coordinates(adapter, jnp.eye(2))  # A is not trained
        >>> R.B.shape, R.A, fixed.B, fixed.A.shape
        ((2, 1), None, None, (1, 2))
    """
    _check_map(S)
    if isinstance(S, Adapter):
        coordinates, fixed = S.partition()
        return fixed, coordinates
    return S, jnp.zeros_like(S.project(weight))


def adapter_of(S: Parametrization, coordinates: Any, scale: Any, *, both: bool = True) -> Adapter:
    """The adapter with these coordinates; ``both`` says that a projector is trained as well.

    Args:
        S: what was chosen for the parameter.
        coordinates: R, or what is trained of an adapter.
        scale: s.
        both: whether both factors of a projector are trained, or its coordinates alone.

    Example:
        >>> P = Projector(jnp.ones((2, 1)), "left")
        >>> adapter_of(P, jnp.ones((1, 3)), 2.0, both=False).trained
        ('A',)
    """
    _check_map(S)
    if isinstance(S, Adapter):
        # An adapter has a scale of its own, by which that of Algorithm 1 is multiplied.
        return eqx.combine(coordinates, S).scaled(scale)
    if isinstance(S, Identity):
        return Shift(coordinates)
    scale = jnp.asarray(scale, coordinates.dtype)
    if not isinstance(S, Projector):
        return Shift(scale * S.lift(coordinates))
    B, A = S.factors(coordinates)
    if both:
        return Factors(B, A, scale)
    return Factors(B, A, scale, trained=("A",) if S.side == "left" else ("B",))


def _check_map(S: Any) -> None:
    if not is_map(S):
        checks.refuse("S", f"type {type(S).__name__}", "a LinearMap or an Adapter")


@checked
def over_maps(function: Callable[..., Any], maps: PyTree, *others: PyTree) -> PyTree:
    """Map a function over the linear maps of a PyTree, and over the nodes that others have there.

    Example:
        >>> over_maps(lambda S, name: name, {"b": Identity()}, {"b": "bias"})
        {'b': 'bias'}
    """
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

    Args:
        weights: W, a PyTree of arrays.
        maps: S for each of them.
        coordinates: R for each of them.
        scale: s.

    Example:
        >>> W, P = jnp.zeros((2, 1)), Projector(jnp.array([[1.0], [0.0]]), "left")
        >>> sums = lift_onto((W, W), (P, Identity()), (jnp.ones((1, 1)), W + 1), 2.0)
        >>> [total.tolist() for total in sums]
        [[[2.0], [0.0]], [[1.0], [1.0]]]
    """

    def lift(S: Parametrization, W: Array, R: Any) -> Array:
        if isinstance(S, Projector):  # its adapter would stop gradients in s
            return W + jnp.asarray(scale, W.dtype) * S.lift(R)
        return adapter_of(S, R, scale).onto(W)

    return over_maps(lift, maps, weights, coordinates)


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
    # A square matrix is projected from the left by either word, as GaLore's paper and optax do.
    sides = {"left": True, "right": False, "smaller": m <= n, "larger": m >= n}
    if side not in sides:
        raise ValueError(f"side: got {side!r}, wanted one of {', '.join(get_args(Side))}")
    return "left" if sides[side] else "right"


TIED = 1e-3
"""Entries of a singular vector that are so close to the largest, as a part of it, are tied."""


@checked
def fix_signs(vectors: Float[Array, "length rank"]) -> Float[Array, "length rank"]:
    """Give each column a sign: the first of its largest entries is positive, ties included.

    Where entries are equal up to rounding, as in the gradient of two classes, rounding would say
    which one is the largest. So the first entry within :data:`TIED` of the largest decides.

    Example:
        >>> fix_signs(jnp.array([[-0.7], [0.7 + 1e-9]])).round(3).tolist()
        [[0.7], [-0.7]]
    """
    sizes = jnp.abs(vectors)
    largest = sizes >= (1 - TIED) * jnp.max(sizes, axis=0, keepdims=True)
    first = jnp.argmax(largest, axis=0, keepdims=True)
    return vectors * jnp.sign(jnp.take_along_axis(vectors, first, axis=0))


@checked
def top_singular_projector(
    gradient: Float[Array, "m n"], rank: int, side: Side = "smaller"
) -> Projector:
    """P = top-r left (or right) singular vectors of G, with signs by :func:`fix_signs`.

    Without a rule for signs a kept momentum would depend on LAPACK's choice of them.

    Args:
        gradient: G.
        rank: r; min(m, n) if that is less.
        side: see :func:`resolve_side`.

    A gradient narrower than float32 is decomposed in float32; P has the type of the gradient.

    Raises:
        ValueError: the rank is not positive, or the side unknown.

    Example:
        >>> P = top_singular_projector(jnp.diag(jnp.array([1.0, -2.0])), 1, "left")
        >>> jnp.abs(P.basis).tolist(), P.side
        ([[0.0], [1.0]], 'left')
    """
    checks.integer("rank", rank)
    side = resolve_side(gradient.shape, side)
    # LAPACK has no narrower type.
    wide = gradient.astype(jnp.promote_types(gradient.dtype, jnp.float32))
    left, _, right = linalg.svd_on_device(wide)
    vectors = left if side == "left" else right.T
    return Projector(fix_signs(vectors[:, :rank]).astype(gradient.dtype), side)


def choose_projectors(gradients: PyTree, rank: int, side: Side = "smaller") -> PyTree:
    """One linear map for each parameter: a projector for matrices, the identity for vectors.

    Args:
        gradients: gradients, a PyTree like the parameters.
        rank: r.
        side: see :func:`resolve_side`.

    Raises:
        ValueError: an array has three axes or more: whether it is a stack of matrices or a kernel
            is for :func:`lrdyn.adapters.choose_by_path` to say.

    Example:
        >>> maps = choose_projectors({"W": jnp.eye(3), "b": jnp.ones(3)}, 2)
        >>> maps["W"].basis.shape, maps["b"]
        ((3, 2), Identity())
    """
    checks.integer("rank", rank)

    def choose(path: tuple[Any, ...], G: Array) -> LinearMap:
        is_projected = is_matrix(name_of(path), G)
        return top_singular_projector(G, rank, side) if is_projected else Identity()

    return jax.tree_util.tree_map_with_path(choose, gradients)


def is_matrix(name: str, array: Any) -> bool:
    """Whether an array is a matrix, and not a vector or a number.

    Args:
        name: path of the array in a model.
        array: the array, or its shape.

    Raises:
        ValueError: it has three axes or more.

    Example:
        >>> is_matrix("W", jnp.ones((2, 3))), is_matrix("b", jnp.ones(3))
        (True, False)
    """
    if array.ndim > 2:
        checks.refuse(
            "params",
            f"{name or 'an array'} of shape {array.shape}",
            "matrices and vectors: choose=lrdyn.adapters.choose_by_path(method, ..., "
            f'stacks="{name}") adapts each of stacked matrices, extra="{name}" trains it as it is',
        )
    return array.ndim == 2


Law = Literal["gaussian", "kaiming"]
"""Distribution of the entries of a factor that is drawn."""


@checked
def draw_projectors(
    key: Key[Array, ""] | None,
    weights: PyTree,
    rank: int,
    side: Side = "right",
    *,
    law: Law = "gaussian",
) -> PyTree:
    """Draw one linear map for each matrix at random; the rest gets the identity.

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
        >>> maps = draw_projectors(jax.random.key(0), {"W": jnp.ones((3, 5)), "b": jnp.ones(3)}, 2)
        >>> maps["W"].basis.shape, maps["b"]
        ((5, 2), Identity())
    """
    checks.integer("rank", rank)
    if law not in get_args(Law):
        checks.refuse("law", repr(law), f"one of {', '.join(get_args(Law))}")

    def draw(key: Key[Array, ""], W: Array) -> LinearMap:
        resolved = resolve_side(W.shape, side)
        length = W.shape[0 if resolved == "left" else 1]
        shape = (length, min(rank, *W.shape))
        if law == "gaussian":
            basis = jax.random.normal(key, shape, W.dtype)
        else:
            basis = jax.random.uniform(key, shape, W.dtype, -1, 1)
        return Projector(basis / math.sqrt(length), resolved)

    return map_matrices(draw, key, weights)


@checked
def map_matrices(
    draw: Callable[[Key[Array, ""], Array], Any], key: Key[Array, ""] | None, gradients: PyTree
) -> PyTree:
    """``draw(key, G)`` for each matrix, with a key of its own, and the identity for vectors.

    Args:
        draw: ``draw(key, G)``: what is chosen for a matrix.
        key: random key; each leaf has one of its own.
        gradients: PyTree of arrays, of which the matrices are looked at.

    Raises:
        ValueError: an array has three axes or more.

    Example:
        >>> maps = map_matrices(
        ...     lambda key, G: Projector(G, "left"), jax.random.key(0), [jnp.eye(2), jnp.ones(2)])
        >>> maps[0].side, maps[1]
        ('left', Identity())
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(gradients)
    # A key for every leaf, whether it is drawn or not: which of them are matrices moves no other
    # key.
    keys = jax.random.split(checks.key(key), len(leaves))
    return structure.unflatten(
        draw(key, G) if is_matrix(name_of(path), G) else Identity()
        for key, (path, G) in zip(keys, leaves, strict=True)
    )


# As a method chooses them: from a random key, the gradients, r and the side -----------------------


def choose_by_svd(key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side) -> PyTree:
    """Projectors from an SVD of each gradient, see :func:`choose_projectors`; no key is needed."""
    return choose_projectors(gradients, rank, side)


def choose_identity(key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side) -> PyTree:
    """The identity for every parameter."""
    return jax.tree.map(lambda G: Identity(), gradients)
