"""Example 4.1 of Theorem 3: penalties of single units, and the factors that have the least."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import linalg
from lrdyn.core.checks import checked
from lrdyn.core.masking import MaskDistribution, exact_expectation
from lrdyn.theorem3 import dropout_penalties
from lrdyn.theorem3.network import (
    EnumeratedNetwork,
    mask_penalty,
    nuclear_norm,
    odds_condition,
    variation,
)

COPIES = (1, 3)
"""Widths, as multiples of h, at which a claim about all widths is tested."""


@checked
def terms(left: Float[Array, "m h"], right: Float[Array, "h n"]) -> Float[Array, "h"]:
    """``||u_i|| ||v_i||`` of each unit."""
    return jnp.linalg.norm(left, axis=0) * jnp.linalg.norm(right, axis=1)


def strengths(network: EnumeratedNetwork, width: int) -> Float[Array, "copies"]:
    """The strength c at all COPIES of a width."""
    theta = network.keep_prob
    return jnp.stack(
        [dropout_penalties.dropout_strength(theta, copies * width) for copies in COPIES]
    )


def least_penalties(network: EnumeratedNetwork, width: int) -> dict[str, Array]:
    """Least penalties of the product of a network, if its hidden layer had that width."""
    penalties = strengths(network, width) * nuclear_norm(network.product) ** 2
    factorisations = jnp.full(len(network.mixers) + 1, penalties[0])
    return {"factorisations": factorisations, "equalised_penalty": penalties}


def predict_units(network: EnumeratedNetwork) -> dict[str, Array]:
    """Expected losses, least penalties and factors from norms and formulas."""
    left, right = network.factors
    product, theta, norm = network.product, network.keep_prob, nuclear_norm(network.product)
    penalty = dropout_penalties.dropout_penalty(left, right, theta)
    return least_penalties(network, network.width) | {
        "penalty": dropout_penalties.dropout_loss(left, right, network.target, theta),
        "unscaled_masks": jnp.sum((network.target - theta * product) ** 2) + theta**2 * penalty,
        "equalised": jnp.full(network.width, norm / network.width),
        "equalised_product": product,
        "width_free": jnp.full(len(COPIES), dropout_penalties.odds(theta) * norm**2),
        "rounded_chance": odds_condition(theta, network.width),
        "fixed_keep_prob": penalty / jnp.asarray(COPIES, product.dtype),
        "envelope_above": dropout_penalties.odds(theta) * norm**2,
        "envelope_below": minorant(network, slope=2.0),
    }


Factors = tuple[Array, Array]
"""m x h and h x n, of any width h."""


def _single_units(network: EnumeratedNetwork, equal: Factors) -> Float[Array, "units m n"]:
    """Networks of one unit: those of Z, and those of its equalised factors, h times as large."""
    every = [network.factors, equal]
    products = [left.T[:, :, None] * right[:, None, :] for left, right in every]
    return network.width * jnp.concatenate(products)


def minorant(network: EnumeratedNetwork, slope: float) -> Float[Array, "units"]:
    """The affine function ``k (2 ||Z||_* <U V^T, M> - ||Z||_*^2)`` at networks M of one unit."""
    left, values, right = linalg.svd(network.product)
    # Beyond the width singular values are rounding, and their vectors arbitrary.
    leading = jnp.arange(len(values)) < network.width
    polar, norm = (left * leading[None, :]) @ right, jnp.sum(values)
    units = _single_units(
        network, dropout_penalties.equalized_factors(network.product, network.width)
    )
    along = jnp.sum(polar[None] * units, axis=(1, 2))
    return dropout_penalties.odds(network.keep_prob) * (slope * norm * along - norm**2)


def equalised_factors(network: EnumeratedNetwork) -> list[Factors]:
    """Equalised factors of Z, of h units and of its copies."""
    width = network.width
    return [
        dropout_penalties.equalized_factors(network.product, copies * width) for copies in COPIES
    ]


def penalties(
    factors: Iterable[tuple[Array, Array]], chances: Iterable[Any], divisor: Any = None
) -> Float[Array, "factors"]:
    """Penalties of factors, each unit by its two masks.

    Args:
        factors: pairs U, V.
        chances: the keep probability for each pair.
        divisor: what masks are divided by, the keep probability if none is given.
    """
    pairs = zip(factors, chances, strict=True)
    return jnp.stack(
        [variation(chance, divisor) * jnp.sum(terms(*pair) ** 2) for pair, chance in pairs]
    )


def unit_losses(network: EnumeratedNetwork, masks: MaskDistribution) -> dict[str, Array]:
    """Expected losses with masks that are divided by theta, and with masks that are not."""
    (left, right), theta = network.factors, network.keep_prob

    def losses(mask: Array):
        products = (left * (mask / theta)[None, :]) @ right, (left * mask[None, :]) @ right
        return jnp.stack([jnp.sum((network.target - product) ** 2) for product in products])

    expected = exact_expectation(losses, *masks)
    return {"penalty": expected[0], "unscaled_masks": expected[1]}


def unit_penalties(
    network: EnumeratedNetwork, equal: list[Factors], divisor: Any
) -> dict[str, Array]:
    """Penalties of factors, with masks over a divisor."""
    (left, right), theta = network.factors, network.keep_prob

    def mixed_penalty(G: Array, H: Array):
        U, V = left @ G, H @ right
        # The mean output, by which masks over another divisor shrink or stretch Z.
        mean = (theta / divisor) * (U @ V)
        return mask_penalty(lambda mask: (U * (mask / divisor)[None, :]) @ V, network.masks, mean)

    mixed = jax.vmap(mixed_penalty)(network.mixers, network.unmixers)
    same = [theta] * len(COPIES)
    # The product stays: every copy has 1/k of its unit.
    copied = [(jnp.tile(left, (1, k)) / k, jnp.tile(right, (k, 1))) for k in COPIES]
    fixed = penalties(equal, same, divisor)
    alone = variation(theta, divisor) * jnp.sum(_single_units(network, equal[0]) ** 2, axis=(1, 2))
    return {
        "factorisations": jnp.append(mixed, fixed[0]),
        "equalised_penalty": fixed,
        "fixed_keep_prob": penalties(copied, same, divisor),
        # The equalised units come second; h times as large, their mean is Z.
        "envelope_above": jnp.mean(alone[network.width :]),
        "envelope_below": alone,
    }


def measure_units(network: EnumeratedNetwork) -> dict[str, Array]:
    """Expected losses over all masks, and penalties of factors."""
    theta, equal = network.keep_prob, equalised_factors(network)
    free = [
        dropout_penalties.width_free_keep_prob(theta, copies * network.width) for copies in COPIES
    ]
    return {
        **unit_losses(network, network.masks),
        **unit_penalties(network, equal, theta),
        "equalised": terms(*equal[0]),
        "equalised_product": equal[0][0] @ equal[0][1],
        "width_free": penalties(equal, free),
    }


def drop_last_direction(network: EnumeratedNetwork) -> Float[Array, "m n"]:
    """Product Z without its smallest direction."""
    left, values, right = linalg.svd(network.product)
    rank = min(network.width, len(values))
    return (left * jnp.where(jnp.arange(len(values)) < rank - 1, values, 0.0)[None, :]) @ right


def wrong_factors(network: EnumeratedNetwork) -> dict[str, Array]:
    """Factors from the SVD alone, and the left one of them rotated alone; theta fixed."""
    left, values, right = linalg.svd(network.product)
    width, roots = network.width, jnp.sqrt(values[: network.width])
    columns, rows = left[:, :width] * roots[None, :], roots[:, None] * right[:width]
    return {
        "equalised": terms(columns, rows),
        "equalised_product": dropout_penalties.equalize(columns, columns.T)[0] @ rows,
        "width_free": penalties(equalised_factors(network), [network.keep_prob] * len(COPIES)),
    }
