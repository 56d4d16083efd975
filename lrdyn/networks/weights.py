"""The weights of a network: how they are drawn, and its matrices by name."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.core.checks import checked
from lrdyn.networks.network import Network

N = TypeVar("N")


@checked
def draw_weights(
    key: Key[Array, ""], build: Callable[[Any], N], deviation: Callable[[str, int], float]
) -> N:
    """Fill a network: gains 1, biases 0, the rest Gaussian, from a single draw.

    Args:
        key: random key.
        build: makes the network from a key; of its arrays the shapes alone are used.
        deviation: standard deviation of the array at a path of which a row has so many inputs.

    Example:
        >>> def build(key):
        ...     return eqx.nn.Linear(2, 3, key=key)
        >>> net = draw_weights(jax.random.key(0), build, lambda path, inputs: inputs**-0.5)
        >>> net.weight.shape, net.bias.tolist()
        ((3, 2), [0.0, 0.0, 0.0])
    """
    named, structure = jax.tree_util.tree_flatten_with_path(eqx.filter_eval_shape(build, key))
    paths, leaves = [_path_name(path) for path, _ in named], [leaf for _, leaf in named]
    is_constant = [p.endswith("gain") or "bias" in p.rpartition(".")[2] for p in paths]
    sizes = (0 if c else leaf.size for c, leaf in zip(is_constant, leaves, strict=True))
    stops = list(accumulate(sizes))

    @jax.jit
    def fill(key: Key[Array, ""]) -> list[Array]:
        parts = jnp.split(jax.random.normal(key, (stops[-1],), leaves[0].dtype), stops[:-1])
        filled = []
        for path, leaf, part in zip(paths, leaves, parts, strict=True):
            inputs = int(np.prod(leaf.shape[1:]))
            scaled = part.reshape(leaf.shape) * deviation(path, inputs) if part.size else None
            constant = jnp.full(leaf.shape, 1.0 * path.endswith("gain"), leaf.dtype)
            filled.append(constant if scaled is None else scaled)
        return filled

    return jax.tree.unflatten(structure, fill(key))


def _path_name(path: tuple) -> str:
    return jax.tree_util.keystr(path).removeprefix(".")


def matrices(network: PyTree) -> dict[str, Float[Array, "out in"]]:
    """All weight matrices of a network by their paths, a kernel as out x (in k k).

    Biases, gains and position embeddings, which multiply nothing, are not among them.

    Example:
        >>> from lrdyn.networks import mlp
        >>> {path: W.shape for path, W in matrices(mlp(jax.random.key(0), (3, 5, 2))).items()}
        {'weights[0]': (5, 3), 'weights[1]': (2, 5)}
    """
    leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(network, eqx.is_inexact_array))
    return {
        _path_name(path): leaf.reshape(len(leaf), -1)
        for path, leaf in leaves
        if leaf.ndim in (2, 4)
    }


@checked
def penultimate(network: Network) -> str:
    """Path of the weights that the survey calls penultimate, a name among :func:`matrices`.

    They are W_{L-1} of a perceptron, the last hidden layer of VGG's classifier, and the second
    matrix of the perceptron in the last block of a ViT. Where the last layer follows convolutions,
    in ResNet and in VGG with one layer of classifier, they are the last kernel.

    Raises:
        ValueError: the network has a single layer.

    Example:
        >>> from lrdyn.networks import mlp
        >>> penultimate(mlp(jax.random.key(0), (3, 5, 4, 2)))
        'weights[1]'
    """
    return network.penultimate
