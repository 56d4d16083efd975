"""Theorem 3, part A: the network that is masked, and what the scenarios about it share."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import reflection
from lrdyn.core.masking import MaskDistribution, block_masks, exact_expectation
from lrdyn.core.spectra import singular_values
from lrdyn.engine.claims import excess
from lrdyn.engine.statement import Outcome

MOST_MASKS = 12
"""Most independent masks whose combinations are enumerated here: 4096 losses."""


class Network(eqx.Module):
    """Layers, data, and every mask of what is masked."""

    weights: Weights
    """W_1 and W_2."""
    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    keep_prob: Float[Array, ""]
    mixers: Float[Array, "mixers h h"]
    """Invertible G with other factors of the same product, W_2 G and G^-1 W_1."""
    unmixers: Float[Array, "mixers h h"]
    """G^-1."""
    masks: MaskDistribution
    """Of the hidden units."""
    block: int = eqx.field(static=True)

    @property
    def width(self) -> int:
        """Number of hidden units h."""
        return len(self.weights[0])

    @property
    def factors(self) -> tuple[Float[Array, "m h"], Float[Array, "h n"]]:
        """U and V of two layers, whose product is the prediction."""
        return self.weights[-1], self.weights[0] @ self.inputs

    @property
    def product(self) -> Float[Array, "m n"]:
        """Z, the prediction."""
        left, right = self.factors
        return left @ right


def make_network(draws: Sequence[Array], keep_prob: Any, block: int = 1) -> Network:
    """A network from Gaussian matrices: Y, X, two vectors of h entries, and the layers."""
    target, inputs, vectors, *weights = draws
    width, keep_prob = len(weights[0]), jnp.asarray(keep_prob, target.dtype)
    # Reflections times diagonals: invertible, and the inverse is known.
    reflections = jax.vmap(reflection)(vectors)
    scales = jnp.stack([jnp.linspace(1.0, 3.0, width), jnp.linspace(2.0, 0.5, width)])
    return Network(
        weights=tuple(W / np.sqrt(max(W.shape)) for W in weights),
        inputs=inputs,
        target=target,
        keep_prob=keep_prob,
        mixers=reflections * scales[:, None, :],
        unmixers=reflections / scales[:, :, None],
        masks=block_masks(width, block, keep_prob),
        block=block,
    )


def only(kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Settings of a scenario about one kind of mask."""
    return lambda settings: (
        settings | {"mask": tuple(name for name in settings["mask"] if name == kind)}
    )


def variation(theta: Array, divisor: Any = None) -> Float[Array, ""]:
    """Variance of a mask over its divisor, theta if none is given, from its two values.

    What independent masks add is this times the squares of their terms.
    """
    whole = 1 / (theta if divisor is None else divisor)
    mean = theta * whole
    return theta * (whole - mean) ** 2 + (1 - theta) * mean**2


def added_by_masks(
    output: Callable[[Array], Array], masks: MaskDistribution, mean: Array
) -> Float[Array, ""]:
    """``E ||output(R) - mean||_F^2`` over all masks: what they add to the loss at their mean."""
    return exact_expectation(lambda mask: jnp.sum((output(mask) - mean) ** 2), *masks)


def rounded_chance(theta: Array, width: int) -> Float[Array, ""]:
    """By how much the odds at the width-free theta(h) amplify the rounding of theta(h).

    It is 1 / (1 - theta(h)), with ``1 - theta(h) = h (1-p) / (h - (h-1) p)``.
    """
    return (width - (width - 1) * theta) / (width * (1 - theta))


def nuclear(matrix: Float[Array, "m n"]) -> Float[Array, ""]:
    """Nuclear norm."""
    return jnp.sum(singular_values(matrix))


def missing(name: str) -> Callable[[Outcome], float]:
    """Residual of a bound: by how much what is measured falls below what is predicted."""

    def residual(one: Outcome) -> float:
        below, above = one.predicted[name], one.measured[name]
        return excess(below, above, np.maximum(below, above))

    return residual


def masked_layers(weights: Weights, inputs: Array, mask: Array) -> Float[Array, "m n"]:
    """Output of layers with a mask on each hidden one."""
    first, *rest = weights
    hidden = first @ inputs
    for W, kept in zip(rest, jnp.split(mask, len(rest)), strict=True):
        hidden = W @ (kept[:, None] * hidden)
    return hidden
