"""Mistakes in ReLoRA with a frozen factor, each of which must be seen to leave GaLore's path."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from lrdyn.adapters.algorithm_1 import Choice, WeightParts, restarted
from lrdyn.adapters.methods import RELORA_FROZEN
from lrdyn.adapters.projectors import Side, choose_projectors
from lrdyn.adapters.state import StatePolicy

PRUNED = 0.999
"""Share of the state that ReLoRA's reset by pruning sets to zero."""


def prune_moments(
    key: Key[Array, ""], *, count: bool = False, share: float = PRUNED
) -> StatePolicy:
    """ReLoRA's reset as it is implemented: a random share of all moments is set to zero.

    The count of steps goes on unless it is reset too.
    """

    def policy(fresh: PyTree, state: PyTree, old: PyTree, new: PyTree) -> PyTree:
        def prune(begun: Any, array: Any):
            # The count of steps is the one leaf without an axis.
            if jnp.ndim(array) == 0:
                return begun if count else array
            stays = jax.random.uniform(key, array.shape, array.dtype) >= share
            return jnp.where(stays, array, 0)

        return jax.tree.map(prune, fresh, state)

    return policy


STALE = RELORA_FROZEN._replace(
    restart=lambda old, weights, maps: WeightParts(weights, maps, old.coordinates)
)
"""A fresh P, and the A of the old one."""

UNMERGED = RELORA_FROZEN._replace(
    restart=lambda old, weights, maps: restarted(old, old.weights, maps)
)
"""A is set to zero at a refresh and B A not added to W: the function jumps."""


def choose_zero_maps(rank: int, side: Side) -> Choice:
    """Choose maps that are zero, so that both factors of ReLoRA start there."""
    return lambda key, gradients: jax.tree.map(
        jnp.zeros_like, choose_projectors(gradients, rank, side)
    )
