"""Mistakes in ReLoRA with a frozen factor, each of which must be seen to leave GaLore's path."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from lrdyn.projection import RELORA, Iterate, Method, StatePolicy, lift_onto, merged, project

PRUNED = 0.999
"""Share of the state that ReLoRA's reset by pruning sets to zero."""


def pruned(key: Key[Array, ""], *, count: bool = False, share: float = PRUNED) -> StatePolicy:
    """ReLoRA's reset as it is implemented: a random share of all moments is set to zero.

    Args:
        key: random key of the entries that stay.
        count: whether the count of steps is reset too.
        share: share that is set to zero.

    Returns:
        The policy.
    """

    def policy(fresh: PyTree, state: PyTree, old: PyTree, new: PyTree) -> PyTree:
        def prune(begun, array):
            if jnp.ndim(array) == 0:
                return begun if count else array
            stays = jax.random.uniform(key, array.shape, array.dtype) >= share
            return jnp.where(stays, array, 0)

        return jax.tree.map(prune, fresh, state)

    return policy


def _keep_adapters(iterate: Iterate) -> Iterate:
    if iterate.adapters is None:
        return RELORA.begin(iterate)
    return iterate


STALE = RELORA._replace(begin=_keep_adapters)
"""A fresh P, and the A of the old one."""


def _base(iterate: Iterate) -> PyTree:
    return iterate.weights if iterate.adapters is None else iterate.adapters[1]


def _forget(iterate: Iterate) -> Iterate:
    base = _base(iterate)
    zeros = jax.tree.map(jnp.zeros_like, project(iterate.maps, base))
    return Iterate(base, iterate.maps, (zeros, base))


UNMERGED = Method(
    gradient=lambda loss, iterate, scale: jax.value_and_grad(
        lambda A: loss(lift_onto(_base(iterate), iterate.maps, A, scale))
    )(iterate.adapters[0]),
    move=lambda iterate, updates, scale: iterate._replace(
        adapters=(jax.tree.map(jnp.add, iterate.adapters[0], updates), _base(iterate))
    ),
    merge=lambda iterate, scale: iterate._replace(
        weights=merged(Iterate(_base(iterate), iterate.maps, iterate.adapters[0]), scale)
    ),
    begin=_forget,
)
"""A is set to zero at a refresh and B A not added to W: the function jumps."""


def _both(iterate: Iterate) -> Any:
    B, A = iterate.adapters
    return iterate.weights + B @ A


def trained_factors(start: float) -> Method:
    """Both factors trained, for one matrix with P on the left and an optimiser without state.

    Args:
        start: B = start P.

    Returns:
        ReLoRA as published for 1; for 0 both factors start at zero.
    """
    return Method(
        gradient=lambda loss, iterate, scale: jax.value_and_grad(
            lambda pair: loss(_both(iterate._replace(adapters=pair)))
        )(iterate.adapters),
        move=lambda iterate, updates, scale: iterate._replace(
            adapters=jax.tree.map(jnp.add, iterate.adapters, updates)
        ),
        merge=lambda iterate, scale: iterate._replace(weights=_both(iterate)),
        begin=lambda iterate: iterate._replace(
            adapters=(
                start * iterate.maps.basis,
                jnp.zeros_like(project(iterate.maps, iterate.weights)),
            )
        ),
    )
