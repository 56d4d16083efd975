"""What goes into the matrices of a network and what the loss says of what comes out of them.

A matrix W that is used once, as W x_1, ..., W x_N, has the gradient

    G = sum_i delta_i x_i^T = Delta X^T,

with x_i its inputs and delta_i the derivative of the loss in its outputs, columns of X and Delta.
"""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from lrdyn.core.selection import name_of, named_arrays

Loss = Callable[[PyTree], Float[Array, ""]]


class _Tapped:
    """W in a product: what it multiplies is kept, and zeros are added to what comes out."""

    def __init__(self, W: Array, added: Array | None, keep: Callable[[Array], None]):
        self.W, self.added, self.keep = W, added, keep

    @property
    def shape(self) -> tuple[int, ...]:
        return self.W.shape

    def __matmul__(self, inputs: Array) -> Array:
        self.keep(inputs)
        outputs = self.W @ inputs
        return outputs if self.added is None else outputs + self.added


def matrices_of(net: PyTree, select: Callable[[str], bool]) -> dict[str, Float[Array, "m n"]]:
    """The matrices of a network whose paths are selected.

    Args:
        net: any PyTree.
        select: takes a path such as ``blocks.0.mlp.up``.

    Example:
        >>> list(matrices_of({"W": jnp.ones((2, 3)), "b": jnp.ones(2)}, lambda path: True))
        ['W']
    """
    return {path: leaf for path, leaf in named_arrays(net) if leaf.ndim == 2 and select(path)}


def replace_matrices(net: PyTree, others: Mapping[str, Any]) -> PyTree:
    """The network with something else in the place of some of its matrices.

    Args:
        net: any PyTree.
        others: path -> what stands there.

    Example:
        >>> replace_matrices({"W": jnp.ones(1), "V": jnp.ones(1)}, {"W": 3})["W"]
        3
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: others.get(name_of(path), leaf), net)


def inputs_of(
    net: PyTree, loss: Loss, select: Callable[[str], bool]
) -> dict[str, Float[Array, "n columns"]]:
    """What each matrix multiplies when the loss is computed, one column for each token.

    Args:
        net: the network, whose matrices are called as ``W @ x``.
        loss: ``loss(net)``, the loss of a batch.
        select: which matrices.

    Example:
        >>> net, x = {"W": jnp.ones((2, 3))}, jnp.ones((3, 5))
        >>> inputs_of(net, lambda net: jnp.sum(net["W"] @ x), lambda path: True)["W"].shape
        (3, 5)
    """
    _, inputs = _loss_with_taps(net, loss, select, {})
    return inputs


def inputs_and_slopes(
    net: PyTree, loss: Loss, select: Callable[[str], bool]
) -> tuple[dict[str, Float[Array, "n columns"]], dict[str, Float[Array, "m columns"]]]:
    """X and Delta of each matrix, without a derivative in any of them.

    Args:
        net: the network, whose matrices are called as ``W @ x``, each once.
        loss: ``loss(net)``, the loss of a batch.
        select: which matrices.

    Example:
        >>> net, x = {"W": jnp.ones((1, 2))}, jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> X, slopes = inputs_and_slopes(
        ...     net, lambda net: jnp.sum(net["W"] @ x) ** 2 / 2, lambda path: True
        ... )
        >>> (slopes["W"] @ X["W"].T).tolist()
        [[30.0, 70.0]]
    """
    inputs = jax.eval_shape(lambda net: inputs_of(net, loss, select), net)
    zeros = {
        path: jnp.zeros((len(W), inputs[path].shape[1]), W.dtype)
        for path, W in matrices_of(net, select).items()
    }
    slopes, columns = jax.grad(
        lambda added: _loss_with_taps(net, loss, select, added), has_aux=True
    )(zeros)
    return columns, slopes


def _loss_with_taps(
    net: PyTree, loss: Loss, select: Callable[[str], bool], added: Mapping[str, Array]
) -> tuple[Float[Array, ""], dict[str, Array]]:
    kept: dict[str, Array] = {}
    taps = {
        path: _Tapped(W, added.get(path), lambda inputs, path=path: kept.update({path: inputs}))
        for path, W in matrices_of(net, select).items()
    }
    value = loss(replace_matrices(net, taps))
    return value, kept


def gradients_of(
    net: PyTree, loss: Loss, select: Callable[[str], bool]
) -> dict[str, Float[Array, "m n"]]:
    """The gradient of the loss in each of some matrices, by automatic differentiation.

    Args:
        net: the network.
        loss: ``loss(net)``.
        select: which matrices.

    Example:
        >>> net = {"W": jnp.eye(2)}
        >>> gradients_of(net, lambda net: jnp.sum(net["W"]), lambda path: True)["W"].tolist()
        [[1.0, 1.0], [1.0, 1.0]]
    """
    arrays, rest = eqx.partition(net, eqx.is_inexact_array)
    found = jax.grad(lambda arrays: loss(eqx.combine(arrays, rest)))(arrays)
    return matrices_of(found, select)
