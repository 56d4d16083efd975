"""Example 4.1 of Theorem 3: the network that is masked, and what the scenarios about it share."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import reflection
from lrdyn.core.masking import MaskDistribution, block_masks, exact_expectation
from lrdyn.core.spectra import singular_values
from lrdyn.verification.stating.fields import both_sides
from lrdyn.verification.stating.forms import AtLeast
from lrdyn.verification.stating.statement import Claim, Outcome

T = TypeVar("T")
M = TypeVar("M")

MOST_MASKS = 12
"""Most independent masks whose combinations are enumerated here: 4096 losses."""

DECOMPOSED = 16
"""Steps whose rounding a product of factors of an SVD is granted. LAPACK iterates: for 1,500 random
7 x 4 matrices U S V^T was off by 34 roundings of the largest singular value at most, by 2 in the
median; the tolerance of a product alone is 34 of them."""


class MaskedCase(eqx.Module):
    """What every case of Theorem 3 has: the probability that what is masked is kept."""

    keep_prob: Float[Array, ""]
    """theta, the same for all hidden units, weights, blocks or inputs."""


class EnumeratedCase(MaskedCase):
    """A case of so few masks that expectations are sums over all of them."""

    masks: MaskDistribution
    """All masks R and their probabilities."""


class EnumeratedNetwork(EnumeratedCase):
    """Two layers, data, and every mask of the hidden units."""

    weights: Weights
    """W_1 and W_2."""
    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    mixers: Float[Array, "mixers h h"]
    """Invertible G with other factors of the same product, W_2 G and G^-1 W_1."""
    unmixers: Float[Array, "mixers h h"]
    """G^-1."""
    block: int = eqx.field(static=True)
    """Neighbouring units that are masked together."""

    @property
    def matrices(self) -> tuple[Weights, Array, Array]:
        """What its sums run over: layers and data."""
        return self.weights, self.inputs, self.target

    @property
    def width(self) -> int:
        """Number of hidden units h."""
        return len(self.weights[0])

    @property
    def factors(self) -> tuple[Float[Array, "m h"], Float[Array, "h n"]]:
        """U = W_2 and V = W_1 X, whose product is the prediction."""
        return self.weights[-1], self.weights[0] @ self.inputs

    @property
    def product(self) -> Float[Array, "m n"]:
        """Prediction of the network, Z = U V."""
        left, right = self.factors
        return left @ right


def make_network(draws: Sequence[Array], keep_prob: Any, block: int = 1) -> EnumeratedNetwork:
    """A network from Gaussian matrices: Y, X, two vectors of h entries, and the layers."""
    target, inputs, vectors, *weights = draws
    width, keep_prob = len(weights[0]), jnp.asarray(keep_prob, target.dtype)
    # Reflections times diagonals: invertible, and the inverse is known.
    reflections = jax.vmap(reflection)(vectors)
    scales = jnp.stack([jnp.linspace(1.0, 3.0, width), jnp.linspace(2.0, 0.5, width)])
    return EnumeratedNetwork(
        # Layers of norm about 1, whatever their width.
        weights=tuple(W / np.sqrt(max(W.shape)) for W in weights),
        inputs=inputs,
        target=target,
        keep_prob=keep_prob,
        mixers=reflections * scales[:, None, :],
        unmixers=reflections / scales[:, :, None],
        masks=block_masks(width, block, keep_prob),
        block=block,
    )


def restrict_mask(kind: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Make the ``narrow`` of a scenario about one kind of mask."""
    return lambda settings: (
        settings | {"mask": tuple(name for name in settings["mask"] if name == kind)}
    )


def true_widths(settings: dict[str, Any], most: int) -> dict[str, Any]:
    """Settings whose networks have as many units as their label says, each width once.

    Masks of more than :data:`MOST_MASKS` units or blocks are not enumerated.
    """
    widths = (min(width, most) for width in settings["width"])
    return settings | {"width": tuple(dict.fromkeys(widths))}


def variation(theta: Array, divisor: Any = None) -> Float[Array, ""]:
    """Variance of a mask over its divisor, theta if none is given, from its two values.

    The penalty of independent masks is this times the squares of their terms.
    """
    # From (R - theta)^2, not E R^2 - theta^2: the latter cancels near theta = 1.
    whole = 1 / (theta if divisor is None else divisor)
    mean = theta * whole
    return theta * (whole - mean) ** 2 + (1 - theta) * mean**2


def mask_penalty(
    output: Callable[[Array], Array], masks: MaskDistribution, mean: Array
) -> Float[Array, ""]:
    """``E ||output(R) - mean||_F^2`` over all masks: their penalty."""
    return exact_expectation(lambda mask: jnp.sum((output(mask) - mean) ** 2), *masks)


def odds_condition(theta: Array, width: int) -> Float[Array, ""]:
    """By how much the odds at the width-free theta(h) amplify the rounding of theta(h).

    It is 1 / (1 - theta(h)), with ``1 - theta(h) = h (1-p) / (h - (h-1) p)``.
    """
    return (width - (width - 1) * theta) / (width * (1 - theta))


def nuclear_norm(matrix: Float[Array, "m n"]) -> Float[Array, ""]:
    """Nuclear norm of a matrix, the sum of its singular values."""
    return jnp.sum(singular_values(matrix))


def lower_bound(
    id: str,
    statement: str,
    compares: Callable[[T, M], tuple[Any, Any]] | None = None,
    condition: Callable[[T], Any] | None = None,
) -> Claim[T, M]:
    """Claim that what is measured is nowhere below what is predicted, entry by entry.

    Args:
        id: short name.
        statement: in words and formula.
        compares: ``lambda theory, run: (theory.bound, run.x)``, the bound and what is to be above
            it; the fields of the claim's id if it is not given.
        condition: that of the claim.
    """
    sides = compares or both_sides(id)

    def form(outcome: Outcome[T, M]) -> AtLeast:
        bound, value = sides(outcome.predicted, outcome.measured)
        return AtLeast(value, bound)

    return Claim(id, statement, kind="bound", form=form, reads=sides, condition=condition)


def masked_layers(weights: Weights, inputs: Array, mask: Array) -> Float[Array, "m n"]:
    """Output of layers with a mask on each hidden one."""
    first, *rest = weights
    hidden = first @ inputs
    for W, of_layer in zip(rest, jnp.split(mask, len(rest)), strict=True):
        hidden = W @ (of_layer[:, None] * hidden)
    return hidden
