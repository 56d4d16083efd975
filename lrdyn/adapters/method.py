"""A method of Algorithm 1: what is trained and what is frozen, refreshed, merged and drawn anew."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jaxtyping import Array, Key, PyTree

from lrdyn.adapters.maps import Side, lift_onto, over_maps
from lrdyn.adapters.memory import Footprint
from lrdyn.adapters.state import Policy
from lrdyn.core import checks

Choose = Callable[[Key[Array, ""] | None, PyTree, int, Side], PyTree]
"""``choose(key, gradients, rank, side)``: one :class:`~lrdyn.adapters.LinearMap` a parameter."""


class Parts(NamedTuple):
    """The weights of a network, W + s S^T A, part by part."""

    weights: PyTree
    """W."""
    maps: PyTree
    """S: a :class:`~lrdyn.adapters.LinearMap` for each parameter, as chosen at the last refresh."""
    coordinates: PyTree
    """A (B, if S is on the right); None if there is nothing to merge."""


class Split(NamedTuple):
    """The same parts by what becomes of them between two refreshes."""

    trained: PyTree
    """What gradients are taken in, and what moves."""
    frozen: PyTree
    """What stays."""


def merged(parts: Parts, scale: Any = 1.0) -> PyTree:
    """W + s S^T A, one array for each parameter.

    Example:
        >>> import jax.numpy as jnp
        >>> import lrdyn
        >>> merged(Parts(jnp.ones(2), lrdyn.adapters.Identity(), jnp.ones(2))).tolist()
        [2.0, 2.0]
    """
    checks.instance("parts", parts, Parts)
    if parts.coordinates is None:
        return parts.weights
    return lift_onto(parts.weights, parts.maps, parts.coordinates, scale)


def layered(parts: Parts, scale: Any = 1.0) -> PyTree:
    """The same, an :class:`~lrdyn.adapters.Adapted` for each matrix that has factors.

    For a loss that uses a matrix as ``W @ x`` or ``x @ W`` only: W x + s B (A x).

    Example:
        >>> import jax.numpy as jnp
        >>> import lrdyn
        >>> S = lrdyn.adapters.Projector(jnp.ones((2, 1)), "left")
        >>> layer = layered(Parts(jnp.eye(2), S, jnp.ones((1, 2))))
        >>> layer.adapter.B.shape, (layer @ jnp.ones(2)).tolist()
        ((2, 1), [3.0, 3.0])
    """
    checks.instance("parts", parts, Parts)
    if parts.coordinates is None:
        return parts.weights
    W, S, A = parts
    return over_maps(lambda S, W, A: S.layer(W, A, scale), S, W, A)


class Begun(NamedTuple):
    """One parameter of a new run."""

    map: Any
    coordinates: Any


def _each(begun: PyTree, name: str) -> PyTree:
    return jax.tree.map(
        lambda one: getattr(one, name), begun, is_leaf=lambda node: isinstance(node, Begun)
    )


def restarted(old: Parts, weights: PyTree, maps: PyTree) -> Parts:
    """W is what was merged, S is new, A begins (at 0); only mistakes look at the parts before.

    Example:
        >>> import jax.numpy as jnp
        >>> import lrdyn
        >>> W, S = jnp.ones(2), lrdyn.adapters.Identity()
        >>> restarted(Parts(W, S, W), 2 * W, S).coordinates.tolist()
        [0.0, 0.0]
    """
    checks.instance("old", old, Parts)
    begun = over_maps(lambda S, W: Begun(*S.begin(W)), maps, weights)
    return Parts(weights, *(_each(begun, name) for name in Begun._fields))


class Method(NamedTuple):
    """What tells GaLore, ReLoRA and LoRA apart: the lines of Algorithm 1 in which they differ.

    Example:
        >>> import lrdyn
        >>> parts = Parts("W", "S", "A")
        >>> [method.split(parts) for method in (lrdyn.GALORE, lrdyn.RELORA_FROZEN, lrdyn.RELORA)]
        [Split(trained='W', frozen='S'),
         Split(trained='A', frozen=('W', 'S')),
         Split(trained=('S', 'A'), frozen='W')]
    """

    split: Callable[[Parts], Split]
    """What is trained and what is frozen."""
    parts: Callable[[Split], Parts]
    """Its inverse."""
    choose: Choose
    """Line 3, as published."""
    side: Side
    """Side of S, as published."""
    state: Policy
    """Line 4, as published: what becomes of the state of the optimiser."""
    memory: Footprint
    """What it holds for one matrix and Adam."""
    sees: Callable[[Split, PyTree], PyTree] = lambda split, gradients: gradients
    """Line 6: what the optimiser sees of what is trained, or of a gradient in it."""
    move: Callable[[Split, PyTree, Any], Split] = lambda split, updates, scale: split._replace(
        trained=optax.apply_updates(split.trained, updates)
    )
    """Line 8: apply the update that the optimiser gives."""
    restart: Callable[[Parts, PyTree, PyTree], Parts] = restarted
    """Lines 2 and 4: the parts after a refresh."""
    once: bool = False
    """S is chosen at the start, and there is no refresh."""
    gradients: bool = False
    """Line 3 looks at the gradients, and not at their shapes alone."""
