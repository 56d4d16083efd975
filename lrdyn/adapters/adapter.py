"""What is added to one parameter.

Everywhere W is m x n, the rank is r and s is the scale.
"""

from abc import abstractmethod
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float

from lrdyn.adapters.array_like import Adapted, Chain


class Adapter(eqx.Module):
    """What is added to one parameter W, some of whose arrays are trained.

    A subclass has a static field ``trained``, the names of the fields that are; no gradient
    reaches the others.
    """

    def of(self: Any, name: str) -> Any:
        """A field; gradients stop at one that is not trained."""
        value = getattr(self, name)
        return value if name in self.trained else jax.lax.stop_gradient(value)

    def chains(self) -> tuple[Chain, ...]:
        """The terms beside W."""
        return ()

    def gain(self, weight: Array) -> Float[Array, "m"] | None:
        """A factor for each row of the sum, or None for 1."""
        return None

    @abstractmethod
    def onto(self, weight: Array) -> Array:
        """The adapted parameter as one array."""

    def layer(self, weight: Array) -> Any:
        """What takes its place in a model."""
        return Adapted(weight, self)

    def taken_off(self, merged: Array) -> Array:
        """W from what :meth:`onto` made of it.

        Raises:
            ValueError: it does not follow from it.
        """
        return merged - sum(chain.product() for chain in self.chains())

    def fitted(self, weight: Array) -> "Adapter":
        """This adapter where it depends on W: started on it."""
        return self

    def based(self, weight: Array) -> Array:
        """W less what this adapter subtracts: the base of :meth:`settled`."""
        return weight

    def settled(self) -> "Adapter":
        """This adapter with nothing to subtract: of the base that :func:`rebase` gives."""
        return self

    def scaled(self, scale: Any) -> "Adapter":
        """This adapter with its scale times another."""
        raise NotImplementedError

    def label(self, name: str) -> Any:
        """The label, or a tree of them, of a trained field."""
        return jax.tree.map(lambda leaf: name, getattr(self, name))

    def labels(self: Any) -> "Adapter":
        """A label in the place of each array: ``frozen``, or what it is."""
        frozen = jax.tree.map(lambda leaf: "frozen", self)
        names = list(self.trained)
        known = [self.label(name) for name in names]
        return eqx.tree_at(lambda tree: [getattr(tree, name) for name in names], frozen, known)


class Linear(Adapter):
    """An adapter of the form W + s_1 F_1 F_2 ... + ..., for a matrix."""

    def onto(self, weight: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """One array."""
        whole = weight
        for chain in self.chains():
            whole = whole + chain.product()
        gain = self.gain(weight)
        return whole if gain is None else gain[:, None] * whole


class Started(Linear):
    """One of the form W + s F_1 F_2 ..., less the same product at the start if there is one."""

    @abstractmethod
    def factors_now(self) -> tuple[Array, ...]:
        """F_1, F_2, ... ."""

    def chains(self: Any) -> tuple[Chain, ...]:
        """The product, and that of the start."""
        scale = self.of("scale")
        moving = Chain(scale, self.factors_now())
        return (moving,) if self.start is None else (moving, Chain(-scale, self.of("start")))

    def based(self: Any, weight: Float[Array, "m n"]) -> Float[Array, "m n"]:
        """W less the product at the start."""
        return weight if self.start is None else weight - Chain(self.scale, self.start).product()

    def settled(self: Any) -> "Started":
        """Without the start."""
        return eqx.tree_at(
            lambda one: one.start, self, None, is_leaf=lambda node: node is self.start
        )

    def scaled(self: Any, scale: Any) -> "Started":
        """Another scale, s times this one."""
        return eqx.tree_at(lambda one: one.scale, self, scale * self.scale)


class Factors(Started):
    """s B A, less s B_0 A_0 if there is a start to subtract (:mod:`lrdyn.adapters.pissa`).

    Args:
        B: B.
        A: A.
        scale: s.
        start: B_0 and A_0, or None.
        trained: which of B and A.

    Example:
        >>> import jax.numpy as jnp
        >>> adapter = Factors(jnp.ones((2, 1)), jnp.ones((1, 2)), jnp.asarray(2.0))
        >>> adapter.onto(jnp.eye(2)).tolist()
        [[3.0, 2.0], [2.0, 3.0]]
    """

    B: Float[Array, "*seeds m r"]
    A: Float[Array, "*seeds r n"]
    scale: Any = 1.0
    start: tuple[Array, Array] | None = None
    trained: tuple[str, ...] = eqx.field(static=True, default=("B", "A"), kw_only=True)

    def factors_now(self) -> tuple[Array, Array]:
        """B and A."""
        return self.of("B"), self.of("A")


class Shift(Adapter):
    """R, added to a parameter that is trained as it is: a bias, a gain, a head.

    Example:
        >>> import jax.numpy as jnp
        >>> Shift(jnp.ones(2)).onto(jnp.zeros(2)).tolist()
        [1.0, 1.0]
    """

    value: Array
    trained: tuple[str, ...] = eqx.field(static=True, default=("value",), kw_only=True)

    def onto(self, weight: Array) -> Array:
        """W + R."""
        return weight + self.value

    def layer(self, weight: Array) -> Array:
        """The same: an array."""
        return self.onto(weight)

    def taken_off(self, merged: Array) -> Array:
        """W."""
        return merged - self.value

    def scaled(self, scale: Any) -> Adapter:
        """Of a parameter that is trained as it is there is no scale."""
        return self

    def label(self, name: str) -> str:
        """``extra``."""
        return "extra"


def is_adapter(node: Any) -> bool:
    """Whether a node of a PyTree is the adapter of one parameter."""
    return isinstance(node, Adapter)


def apart(adapter: Any) -> tuple[Adapter, Adapter]:
    """What of an adapter is trained, and the rest: None in the place of the other part.

    ``eqx.combine`` puts them together.

    Example:
        >>> import jax.numpy as jnp
        >>> trained, rest = apart(Factors(jnp.ones((2, 1)), jnp.ones((1, 3)), trained=("B",)))
        >>> trained.B.shape, trained.A, rest.B, rest.A.shape
        ((2, 1), None, None, (1, 3))
    """
    names = [name for name in adapter.trained if getattr(adapter, name) is not None]
    nothing = jax.tree.map(lambda leaf: False, adapter)
    chosen = eqx.tree_at(
        lambda tree: [getattr(tree, name) for name in names], nothing, [True] * len(names)
    )
    return eqx.partition(adapter, chosen)
