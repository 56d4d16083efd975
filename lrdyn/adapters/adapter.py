"""Adapters: what is added to one parameter, what multiplies in its place, and what is trained.

Everywhere W is m x n, the rank is r and s is the scale. An adapter makes of W ::

    W' = diag(g) (W + s F_1 ... F_k - s F_1(0) ... F_k(0)),

where g is 1 for all but DoRA, and the last product is there if the start is to be subtracted. Which
of its arrays are trained is a field of each adapter, :attr:`Adapter.trained`.

* :class:`Factors`: s B A, of LoRA and most of its relatives
* :class:`DirectedFactors`: s B A and the lengths g of the rows, of DoRA
* :class:`DeepFactors`: a product of more factors, of Deep LoRA
* :class:`Shift`: R, of a parameter that is trained as it is
* :class:`Frozen`: nothing, of a parameter that is not trained

Each of these is final; :class:`Adapter` is abstract, and its methods are the same for all.
"""

from abc import abstractmethod
from functools import reduce
from operator import matmul
from typing import Any, final

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lrdyn.adapters.array_like import Adapted, Term
from lrdyn.core import checks
from lrdyn.core.checks import checked

BOTH = ("B", "A")
"""What is trained of two factors, unless one of them is frozen."""


class Adapter(eqx.Module):
    """What is added to one parameter W, some of whose arrays are trained.

    A final class has, among its fields, ``scale``: s, or None where there is none; ``start``: the
    factors whose product is subtracted, or None; and ``trained``, static: the names of the fields
    that are trained. No gradient reaches the others.
    """

    # The three fields are declared in the final classes: here they would come first in a call.

    @abstractmethod
    def factors_now(self) -> tuple[Array, ...]:
        """F_1, ..., F_k, with gradients in those that are trained; none if nothing is added."""

    @abstractmethod
    def gain(self, weight: Array) -> Float[Array, "m"] | None:
        """g, a factor for each row of the sum, or None for 1."""

    @abstractmethod
    def label(self, path: tuple[Any, ...]) -> str:
        """The word for an array that is trained, by its path in this adapter."""

    def value_of(self: Any, name: str) -> Any:
        """A field; gradients stop at one that is not trained."""
        value = getattr(self, name)
        return value if name in self.trained else jax.lax.stop_gradient(value)

    def terms(self: Any) -> tuple[Term, ...]:
        """The terms beside W: s F_1 ... F_k, and what is subtracted of it if there is a start."""
        factors = self.factors_now()
        if not factors:
            return ()
        scale: Any = None if self.scale is None else self.value_of("scale")
        moving = Term(scale, factors)
        # A term of its own, not factors that are subtracted: at the start both products are equal
        # to the bit, and the sum is W.
        return (moving,) if self.start is None else (moving, Term(-scale, self.value_of("start")))

    def onto(self, weight: Array) -> Array:
        """The adapted parameter W' as one array."""
        whole = weight
        for term in self.terms():
            whole = whole + term.array()
        gain = self.gain(weight)
        return whole if gain is None else gain[:, None] * whole

    def layer(self, weight: Array) -> Any:
        """What takes the place of W in a model: W' in factors, or an array where none has any."""
        in_factors = any(len(term.factors) > 1 for term in self.terms())
        return Adapted(weight, self) if in_factors else self.onto(weight)

    def unmerge(self, merged: Array) -> Array:
        """W from what :meth:`onto` made of it.

        Raises:
            ValueError: it does not follow from it, since there is a gain.
        """
        if self.gain(merged) is not None:
            checks.refuse("adapters", "one of DoRA", "others: its norms are lost in a merge")
        # Exact only up to round-off: the sum has been rounded at the size of the larger of both.
        return merged - sum(term.array() for term in self.terms())

    def scaled(self: Any, scale: Any) -> "Adapter":
        """The adapter with its scale, if there is one, multiplied by another."""
        if self.scale is None:
            return self
        return eqx.tree_at(lambda adapter: adapter.scale, self, scale * self.scale)

    def base(self: Any, weight: Array) -> Array:
        """W less the product at the start: with :meth:`without_start` beside it the sum stays."""
        return weight if self.start is None else weight - Term(self.scale, self.start).array()

    def without_start(self: Any) -> "Adapter":
        """The adapter with nothing to subtract."""
        if self.start is None:
            return self
        # ``tree_at`` must take the whole tuple as one leaf, in the place of which None can stand.
        is_start = lambda node: node is self.start  # noqa: E731
        return eqx.tree_at(lambda adapter: adapter.start, self, None, is_leaf=is_start)

    def labels(self: Any) -> "Adapter":
        """A word in the place of each array: ``frozen``, or what :meth:`label` says."""

        def word(path: tuple[Any, ...], leaf: Any) -> str:
            return self.label(path) if path[0].name in self.trained else "frozen"

        return jax.tree_util.tree_map_with_path(word, self)

    def partition(self: Any) -> tuple[Any, Any]:
        """What is trained, and the rest: None in the place of the other part.

        ``eqx.combine`` puts them together.

        Example:
            >>> adapter = Factors(jnp.ones((2, 1)), jnp.ones((1, 3)), trained=("B",))
            >>> trained, rest = adapter.partition()
            >>> trained.B.shape, trained.A, rest.B, rest.A.shape
            ((2, 1), None, None, (1, 3))
        """
        is_trained = jax.tree_util.tree_map_with_path(
            lambda path, leaf: path[0].name in self.trained, self
        )
        return eqx.partition(self, is_trained)


@final
class Factors(Adapter):
    """s B A, less s B_0 A_0 if there is a start to subtract (:data:`lrdyn.adapters.PISSA`).

    Args:
        B: B.
        A: A.
        scale: s.
        start: B_0 and A_0, or None.
        trained: which of B and A.

    Example:
        >>> adapter = Factors(jnp.ones((2, 1)), jnp.ones((1, 2)), jnp.asarray(2.0))
        >>> adapter.onto(jnp.eye(2)).tolist()
        [[3.0, 2.0], [2.0, 3.0]]
    """

    B: Float[Array, "*seeds m r"]
    A: Float[Array, "*seeds r n"]
    scale: Any = 1.0
    start: tuple[Array, Array] | None = None
    trained: tuple[str, ...] = eqx.field(static=True, default=BOTH, kw_only=True)

    def factors_now(self) -> tuple[Array, Array]:
        """B and A, which are multiplied."""
        return self.value_of("B"), self.value_of("A")

    def gain(self, weight: Array) -> None:
        """None: the rows have no gain."""

    def label(self, path: tuple[Any, ...]) -> str:
        """Name the field, ``B`` or ``A``."""
        return path[0].name


@final
class DirectedFactors(Adapter):
    """diag(magnitude / ||rows of W + s B A||) (W + s B A), no gradient through the norms.

    Args:
        B: B.
        A: A.
        scale: s.
        start: B_0 and A_0, or None.
        magnitude: lengths of the rows.
        trained: which of B, A and the magnitude.

    Example:
        >>> factors = jnp.zeros((2, 1)), jnp.ones((1, 2)), jnp.ones(())
        >>> adapter = DirectedFactors(*factors, magnitude=jnp.array([5.0, 2.0]))
        >>> adapter.onto(jnp.array([[3.0, 4.0], [0.0, 1.0]])).tolist()
        [[3.0, 4.0], [0.0, 2.0]]
    """

    B: Float[Array, "*seeds m r"]
    A: Float[Array, "*seeds r n"]
    scale: Any = 1.0
    start: tuple[Array, Array] | None = None
    magnitude: Any = None
    trained: tuple[str, ...] = eqx.field(static=True, default=(*BOTH, "magnitude"), kw_only=True)

    def factors_now(self) -> tuple[Array, Array]:
        """B and A, which are multiplied."""
        return self.value_of("B"), self.value_of("A")

    def gain(self, weight: Float[Array, "m n"]) -> Float[Array, "m"]:
        """The magnitude over the norm; a row of zeros stays one."""
        # DoRA holds the norms constant in the gradient (arXiv 2402.09353).
        norms = jax.lax.stop_gradient(row_norms(weight, self.terms()))
        return jnp.asarray(self.value_of("magnitude")) / jnp.where(norms > 0, norms, 1)

    def label(self, path: tuple[Any, ...]) -> str:
        """Name the field, ``B``, ``A`` or ``magnitude``."""
        return path[0].name


@final
class DeepFactors(Adapter):
    """s F_1 F_2 ... F_k, less the product at the start if that is to be subtracted.

    Args:
        factors: F_1, the last to act, to F_k, the first.
        scale: s.
        start: the factors at the start, or None.
        gap: of the gradient that the outer factors come from, see
            :class:`lrdyn.corollary1.GradientBasis`.
        framed: whether the outer factors are a frame, with a label of its own.

    Example:
        >>> factors = jnp.ones((2, 1)), jnp.ones((1, 1)), jnp.ones((1, 3))
        >>> DeepFactors(factors, jnp.asarray(2.0)).onto(jnp.zeros((2, 3))).tolist()
        [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """

    factors: tuple[Array, ...]
    scale: Any = 1.0
    start: tuple[Array, ...] | None = None
    gap: Float[Array, ""] | None = None
    framed: bool = eqx.field(static=True, default=False, kw_only=True)
    trained: tuple[str, ...] = eqx.field(static=True, default=("factors",), kw_only=True)

    def factors_now(self) -> tuple[Array, ...]:
        """All factors, F_1, ..., F_k."""
        return self.value_of("factors")

    def gain(self, weight: Array) -> None:
        """None: the rows have no gain."""

    def label(self, path: tuple[Any, ...]) -> str:
        """``factors``; of a compressed network ``inner``, and ``frame`` for the outer two."""
        if not self.framed:
            return "factors"
        return "frame" if path[1].idx in (0, len(self.factors) - 1) else "inner"


@final
class Shift(Adapter):
    """R, added to a parameter that is trained as it is: a bias, a gain, a head.

    Example:
        >>> Shift(jnp.ones(2)).onto(jnp.zeros(2)).tolist()
        [1.0, 1.0]
    """

    value: Array
    scale: None = eqx.field(static=True, default=None, init=False)
    start: None = eqx.field(static=True, default=None, init=False)
    trained: tuple[str, ...] = eqx.field(static=True, default=("value",), kw_only=True)

    def factors_now(self) -> tuple[Array]:
        """R, as the only factor."""
        return (self.value,)

    def gain(self, weight: Array) -> None:
        """None: the rows have no gain."""

    def label(self, path: tuple[Any, ...]) -> str:
        """Say ``extra``: it is trained beside the adapters of matrices."""
        return "extra"


@final
class Frozen(Adapter):
    """Nothing, of a parameter that is not trained.

    Example:
        >>> Frozen().onto(jnp.ones(2)).tolist(), jax.tree.leaves(Frozen())
        ([1.0, 1.0], [])
    """

    scale: None = eqx.field(static=True, default=None, init=False)
    start: None = eqx.field(static=True, default=None, init=False)
    trained: tuple[str, ...] = eqx.field(static=True, default=(), init=False)

    def factors_now(self) -> tuple[()]:
        """No factor at all: nothing is added."""
        return ()

    def gain(self, weight: Array) -> None:
        """None: the rows have no gain."""

    def label(self, path: tuple[Any, ...]) -> str:
        """Say ``frozen``; there is no array to say it of."""
        return "frozen"


@checked
def row_norms(weight: Float[Array, "m n"], terms: tuple[Term, ...] = ()) -> Float[Array, "m"]:
    """Norms of the rows of W + s B A + ..., of which no m x n array is formed.

    ``||w + s b A||^2 = ||w||^2 + 2 s b . (A w^T) + s^2 b A A^T b^T`` for each row, and likewise for
    several terms, whose factors are put side by side.

    Example:
        >>> ones = jnp.ones((2, 1)), jnp.ones((1, 2))
        >>> row_norms(jnp.zeros((2, 2)), (Term(3.0, ones),)).round(3).tolist()
        [4.243, 4.243]
    """
    squares = jnp.sum(weight**2, axis=1)
    if terms:
        # The scale goes into B alone: squared it appears once, in B A A^T B^T.
        B = jnp.concatenate([s * reduce(matmul, F[:-1]) for s, F in terms], axis=1)
        A = jnp.concatenate([F[-1] for _, F in terms], axis=0)
        squares = squares + jnp.sum(B * (2 * (weight @ A.T) + B @ (A @ A.T)), axis=1)
    # Round-off may take a row that vanishes below 0.
    return jnp.sqrt(jnp.maximum(squares, 0))


def labels(adapters: PyTree) -> PyTree:
    """A word for each array, for ``optax.multi_transform`` and :func:`lrdyn.adapters.by_label`.

    ``A``, ``B``, ``magnitude`` (DoRA), ``factors`` (Deep LoRA), ``frame`` and ``inner``
    (compressed), ``extra`` for what is trained as it is, ``frozen`` for all else.

    Example:
        >>> words = labels({"W": Factors(jnp.ones((2, 1)), jnp.ones((1, 2)), 2.0)})
        >>> words["W"].B, words["W"].A, words["W"].scale
        ('B', 'A', 'frozen')
    """
    is_adapter = lambda node: isinstance(node, Adapter)  # noqa: E731
    return jax.tree.map(
        lambda node: node.labels() if is_adapter(node) else "extra", adapters, is_leaf=is_adapter
    )
