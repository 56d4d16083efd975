"""Theorem 3, part A: DropBlock and the spectral k-support norm."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lrdyn.core import linalg
from lrdyn.core.initialization import gaussians, reflection, spaced_singular_values
from lrdyn.core.masking import MaskDistribution, block_masks, exact_expectation
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem3 import dropblock, dropout_penalties
from lrdyn.theorem3.network import (
    MOST_MASKS,
    Network,
    added_by_masks,
    make_network,
    missing,
    nuclear,
    only,
    rounded_chance,
    variation,
)


class Blocks(eqx.Module):
    """A network with block masks, and a matrix to be factorised in blocks."""

    network: Network
    matrix: Float[Array, "m n"]
    blocks: int = eqx.field(static=True)
    """B, of the factorisation with the least penalty."""


def make_case(
    key: Key[Array, ""], *, rows: int, cols: int, width: int, keep_prob: Any, block_size: int
) -> Blocks:
    """Draw a network, and a matrix of spaced singular values."""
    rank, width = min(rows, cols), min(width, MOST_MASKS * block_size)
    data, layers = (rows, cols), [(width, rows), (rows, width)]
    shapes = [data, data, (2, width), *layers, (1, rows), (1, cols)]
    *draws, column, line = gaussians(key, shapes)
    columns, lines = reflection(column[0])[:, :rank], reflection(line[0])[:rank]
    return Blocks(
        network=make_network(draws, keep_prob, block_size),
        matrix=(columns * spaced_singular_values(rank)[None, :]) @ lines,
        blocks=8 * rank,
    )


def _norms(case: Blocks, norm: Callable[[Array, int], Array]) -> dict[str, Array]:
    """The least penalties, if that is the norm whose square they are."""
    one = case.network
    factor = dropout_penalties.odds(one.keep_prob)
    bound = factor * norm(one.product, one.block) ** 2
    least = factor * norm(case.matrix, one.block) ** 2
    return {
        "dropblock_bound": jnp.stack([bound, bound, bound, least]),
        "dropblock_least": least,
    }


def predict(case: Blocks) -> dict[str, Array]:
    """Expected loss and least penalties from formulas."""
    one = case.network
    expected = dropout_penalties.dropout_loss(
        *one.factors, one.target, one.keep_prob, block=one.block
    )
    return _norms(case, dropblock.spectral_support_norm) | {
        "dropblock": expected,
        "dropblock_product": case.matrix,
        "enough_blocks": dropblock.enough_blocks(case.matrix, one.block, case.blocks),
        "rounded_chance": jnp.maximum(
            rounded_chance(one.keep_prob, one.width // one.block),
            rounded_chance(one.keep_prob, case.blocks),
        ),
    }


def _chance(case: Blocks, width: int) -> Float[Array, ""]:
    """The theta of a width."""
    one = case.network
    return dropout_penalties.width_free_keep_prob(one.keep_prob, width, block=one.block)


def _given_and_mixed(case: Blocks, scaled: bool) -> Float[Array, "factorisations"]:
    """Penalties of three factorisations of the network's product, over all masks of blocks."""
    one = case.network
    theta, (left, right) = _chance(case, one.width), one.factors
    masks = block_masks(one.width, one.block, theta)
    divisor = theta if scaled else jnp.ones_like(theta)

    def penalty(G: Array, H: Array):
        U, V = left @ G, H @ right

        def output(mask: Array):
            return (U * (mask / divisor)[None, :]) @ V

        return added_by_masks(output, masks, (theta / divisor) * (U @ V))

    eye = jnp.eye(one.width, dtype=left.dtype)[None]
    mixers, unmixers = (jnp.concatenate([eye, each]) for each in (one.mixers, one.unmixers))
    return jax.vmap(penalty)(mixers, unmixers)


def _penalty(left: Array, right: Array, theta: Array, block: int) -> Float[Array, ""]:
    """What masks of blocks add, each by its two masks, in another basis of each block."""
    turn = reflection(jnp.arange(1.0, block + 1, dtype=left.dtype))
    U = left.reshape(len(left), -1, block).swapaxes(0, 1) @ turn
    products = U @ (turn.T @ right.reshape(-1, block, right.shape[1]))
    return variation(theta) * jnp.sum(products**2)


def _expected_loss(network: Network, masks: MaskDistribution) -> Float[Array, ""]:
    left, right = network.factors

    def loss(mask: Array):
        output = (left * (mask / network.keep_prob)[None, :]) @ right
        return jnp.sum((network.target - output) ** 2)

    return exact_expectation(loss, *masks)


def measure(case: Blocks) -> dict[str, Array]:
    """Expected loss and penalties over all masks, and those of factors made for it."""
    one = case.network
    found = dropblock.support_factors(case.matrix, one.block, case.blocks)
    least = _penalty(*found, _chance(case, case.blocks * one.block), one.block)
    return {
        "dropblock": _expected_loss(one, one.masks),
        "dropblock_bound": jnp.append(_given_and_mixed(case, scaled=True), least),
        "dropblock_least": least,
        "dropblock_product": found[0] @ found[1],
    }


def _enough(one: Outcome) -> bool:
    return bool(one.predicted["enough_blocks"])


CLAIMS = (
    Claim("dropblock",
          "masks on blocks of b units add ((1-theta)/theta) sum_j ||U_j V_j^T||_F^2, over all "
          "masks"),
    Claim("dropblock_bound",
          "with theta(h) = b p/(h - (h-b) p) every factorisation of Z has a penalty of at least "
          "((1-p)/p) times the square of its spectral b-support norm", kind="bound",
          residual=missing("dropblock_bound"), condition="rounded_chance"),
    Claim("dropblock_least", "attained with enough blocks",
          reads=("dropblock_least", "enough_blocks"), applies=_enough,
          condition="rounded_chance"),
    Claim("dropblock_product", "by factors whose product is Z",
          reads=("dropblock_product", "enough_blocks"), applies=_enough),
)  # fmt: skip


def _nuclear_for_support(case: Blocks) -> dict[str, Array]:
    return _norms(case, lambda matrix, block: nuclear(matrix))


def _blocks_as_units(case: Blocks) -> dict[str, Array]:
    one = case.network
    return {"dropblock": dropout_penalties.dropout_loss(*one.factors, one.target, one.keep_prob)}


def _fixed_theta(case: Blocks) -> dict[str, Array]:
    one = case.network
    found = dropblock.support_factors(case.matrix, one.block, case.blocks)
    return {
        "dropblock_least": _penalty(*found, one.keep_prob, one.block),
    }


def _wrong_masks(case: Blocks) -> dict[str, Array]:
    """Masks of single units for the loss; masks that are not divided by theta for the bound."""
    one = case.network
    bounds = _given_and_mixed(case, scaled=False)
    return {
        "dropblock": _expected_loss(one, block_masks(one.width, 1, one.keep_prob)),
        "dropblock_bound": jnp.append(bounds, bounds[0]),
    }


def _one_block(case: Blocks) -> dict[str, Array]:
    """The best approximation of rank b in place of Z."""
    left, values, right = linalg.svd(case.matrix)
    kept = jnp.where(jnp.arange(len(values)) < case.network.block, values, 0.0)
    return {"dropblock_product": (left * kept[None, :]) @ right}


def _too_few(key: Key[Array, ""], case: Blocks, amount: Array) -> Blocks:
    """Fewer blocks than the projections of rank b can be made of."""
    return dataclasses.replace(case, blocks=2)


NUCLEAR = "the nuclear norm in place of the b-support norm"

CONTROLS = (
    Control(
        "blocks_as_units", "the penalty of dropout in place of that of blocks", "dropblock",
        predict=_blocks_as_units,
    ),
    Control("nuclear_norm_bounds_blocks", NUCLEAR, "dropblock_bound", predict=_nuclear_for_support),
    Control("nuclear_norm_of_blocks", NUCLEAR, "dropblock_least", predict=_nuclear_for_support),
    Control(
        "fixed_theta_of_blocks", "fixed theta claimed to be width-free", "dropblock_least",
        measure=_fixed_theta,
    ),
    Control("too_few_blocks", "two blocks", "dropblock_product", case=_too_few,
            breaks="applies"),
    Control("one_block", "a single block", "dropblock_product", measure=_one_block),
    Control("product_of_one_block", "the best approximation of rank b", "dropblock_product",
            predict=_one_block),
    Control("units_masked_apart", "masks of single units in the run", "dropblock",
            measure=_wrong_masks),
    Control("blocks_not_divided", "masks that are not divided by theta in the run",
            "dropblock_bound", measure=_wrong_masks),
)  # fmt: skip

DROPBLOCK = Scenario(
    "dropblock", make_case, predict, measure, CLAIMS, CONTROLS,
    dims={"dropblock_bound": ("factorisation",), "dropblock_product": ("row", "column")},
    narrow=only("dropblock"),
    sides="spectral support norm, as a dual norm, against all masks enumerated and factors that "
    "attain it",
    at={"mask": "dropblock", "keep_prob": 0.5, "width": 4, "block_size": 2},
)  # fmt: skip
