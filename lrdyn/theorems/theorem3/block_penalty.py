"""Theorem 3, part A: DropBlock and the spectral k-support norm."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.dropout import (
    dropout_loss,
    dropout_penalty,
    enough_blocks,
    odds,
    spectral_support_norm,
    support_factors,
    width_free_keep_prob,
)
from lrdyn.initialization import gaussians, spaced_singular_values
from lrdyn.masking import exact_expectation
from lrdyn.theorem import Claim, Control, Outcome, Statement
from lrdyn.theorems.theorem3.dropout_penalty import (
    LARGEST,
    Network,
    make_network,
    missing,
    nuclear,
    only,
    reflection,
)


class Blocks(eqx.Module):
    """A network with block masks, and a matrix to be factorised in blocks."""

    network: Network
    matrix: Float[Array, "m n"]
    blocks: int = eqx.field(static=True)
    """B, of the factorisation with the least penalty."""


def _blocks_case(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    width: int,
    keep_prob: Any,
    block_size: int,
) -> Blocks:
    rank, width = min(rows, cols), min(width, LARGEST * block_size)
    data, layers = (rows, cols), [(width, rows), (rows, width)]
    shapes = [data, data, (2, width), *layers, (1, rows), (1, cols)]
    *draws, column, line = gaussians(key, shapes)
    columns, lines = reflection(column[0])[:, :rank], reflection(line[0])[:rank]
    return Blocks(
        network=make_network(draws, keep_prob, block_size),
        matrix=(columns * spaced_singular_values(rank)[None, :]) @ lines,
        blocks=8 * rank,
    )


def _predict_blocks(
    case: Blocks, norm: Callable[..., Array] = spectral_support_norm
) -> dict[str, Array]:
    one = case.network
    left, right = one.factors
    factor = odds(one.keep_prob)
    bound = factor * norm(left @ right, one.block) ** 2
    least = factor * norm(case.matrix, one.block) ** 2
    return {
        "dropblock": dropout_loss(left, right, one.target, one.keep_prob, block=one.block),
        "dropblock_bound": jnp.stack([bound, bound, bound, least]),
        "dropblock_least": least,
        "dropblock_product": case.matrix,
        "enough_blocks": enough_blocks(case.matrix, one.block, case.blocks),
    }


def _measure_blocks(case: Blocks, *, width_free: bool = True) -> dict[str, Array]:
    one = case.network
    left, right = one.factors
    theta = one.keep_prob

    def penalty(left, right):
        chance = width_free_keep_prob(theta, left.shape[1], block=one.block)
        return dropout_penalty(left, right, chance if width_free else theta, block=one.block)

    def loss(mask):
        return jnp.sum((one.target - (left * (mask / theta)[None, :]) @ right) ** 2)

    mixed = jax.vmap(lambda G, H: penalty(left @ G, H @ right))(one.mixers, one.unmixers)
    found = support_factors(case.matrix, one.block, case.blocks)
    least = penalty(*found)
    return {
        "dropblock": exact_expectation(loss, *one.masks),
        "dropblock_bound": jnp.concatenate([penalty(left, right)[None], mixed, least[None]]),
        "dropblock_least": least,
        "dropblock_product": found[0] @ found[1],
    }


def _enough(one: Outcome) -> bool:
    return bool(one.predicted["enough_blocks"])


BLOCK_CLAIMS = (
    Claim(
        "dropblock",
        "masks on blocks of b units add ((1-theta)/theta) sum_j ||U_j V_j^T||_F^2, over all masks",
    ),
    Claim(
        "dropblock_bound",
        "with theta(h) = b p/(h - (h-b) p) every factorisation of Z has a penalty of at least "
        "((1-p)/p) times the square of its spectral b-support norm",
        kind="bound",
        residual=missing("dropblock_bound"),
    ),
    Claim(
        "dropblock_least",
        "attained with enough blocks",
        reads=("dropblock_least", "enough_blocks"),
        applies=_enough,
    ),
    Claim(
        "dropblock_product",
        "by factors whose product is Z",
        reads=("dropblock_product", "enough_blocks"),
        applies=_enough,
    ),
)

BLOCKS_AT = {"mask": "dropblock", "keep_prob": 0.5, "width": 4, "block_size": 2}


def _nuclear_for_support(case: Blocks) -> dict[str, Array]:
    return _predict_blocks(case, lambda matrix, block: nuclear(matrix))


def _blocks_as_units(case: Blocks) -> dict[str, Array]:
    one = case.network
    wrong = dropout_loss(*one.factors, one.target, one.keep_prob)
    return _predict_blocks(case) | {"dropblock": wrong}


def _few_blocks(case: Blocks) -> dict[str, Array]:
    """One block: the best approximation of rank b in place of Z."""
    left, values, right = linalg.svd(case.matrix)
    kept = jnp.where(jnp.arange(len(values)) < case.network.block, values, 0.0)
    return _measure_blocks(case) | {"dropblock_product": (left * kept[None, :]) @ right}


DROPBLOCK = Statement(
    "dropblock",
    _blocks_case,
    _predict_blocks,
    _measure_blocks,
    BLOCK_CLAIMS,
    controls=(
        Control(
            "blocks_as_units",
            "the penalty of dropout in place of that of blocks",
            "dropblock",
            predict=_blocks_as_units,
            at=BLOCKS_AT,
        ),
        Control(
            "nuclear_norm_bounds_blocks",
            "the nuclear norm in place of the b-support norm",
            "dropblock_bound",
            predict=_nuclear_for_support,
            at=BLOCKS_AT,
        ),
        Control(
            "nuclear_norm_of_blocks",
            "the nuclear norm in place of the b-support norm",
            "dropblock_least",
            predict=_nuclear_for_support,
            at=BLOCKS_AT,
        ),
        Control(
            "fixed_theta_of_blocks",
            "fixed theta claimed to be width-free",
            "dropblock_least",
            measure=lambda case: _measure_blocks(case, width_free=False),
            at=BLOCKS_AT,
        ),
        Control(
            "one_block",
            "a single block",
            "dropblock_product",
            measure=_few_blocks,
            at=BLOCKS_AT,
        ),
    ),
    dims={"dropblock_bound": ("factorisation",), "dropblock_product": ("row", "column")},
    narrow=only("dropblock"),
    sides="spectral support norm against all masks enumerated",
)
