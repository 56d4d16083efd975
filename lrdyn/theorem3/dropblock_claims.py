"""Example 4.1 of Theorem 3: DropBlock and the spectral k-support norm."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from lrdyn.core import linalg
from lrdyn.core.initialization import gaussians, reflection, spaced_singular_values
from lrdyn.core.masking import MaskDistribution, block_masks, exact_expectation
from lrdyn.theorem3 import dropblock, dropout_penalties
from lrdyn.theorem3.network import (
    DECOMPOSED,
    MOST_MASKS,
    EnumeratedNetwork,
    lower_bound,
    make_network,
    mask_penalty,
    nuclear_norm,
    odds_condition,
    restrict_mask,
    true_widths,
    variation,
)
from lrdyn.verification.stating.fields import ABSENT, arrays_in
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario


class BlockFactorization(eqx.Module):
    """A network with block masks, and a matrix to be factorised in blocks."""

    network: EnumeratedNetwork
    matrix: Float[Array, "m n"]
    blocks: int = eqx.field(static=True)
    """B, of the factorisation with the least penalty."""


class BlocksTheory(NamedTuple):
    """Losses and penalties of masks on blocks of b units, kept with probability theta."""

    dropblock: Float[Array, ""] = ABSENT
    """Loss at the mean of the masks and ``(1-theta)/theta sum_j ||U_j V_j^T||_F^2``, in sum."""
    dropblock_bound: Float[Array, "factorisation"] = ABSENT
    """``(1-p)/p`` times the square of the spectral b-support norm, of Z and of the matrix."""
    dropblock_least: Float[Array, ""] = ABSENT
    """That of the matrix alone, which is attained."""
    dropblock_product: Float[Array, "row column"] = ABSENT
    """The matrix that is factorised."""
    enough_blocks: Bool[Array, ""] = ABSENT
    """Whether so many blocks can attain the bound."""
    rounded_chance: Float[Array, ""] = ABSENT
    """By how much the penalties amplify the rounding of theta(h)."""


class BlocksMeasured(NamedTuple):
    """Sums over all masks, and penalties of factors."""

    dropblock: Float[Array, ""] = ABSENT
    """Loss summed over all masks with their probabilities."""
    dropblock_bound: Float[Array, "factorisation"] = ABSENT
    """Penalties at theta(h) of three factorisations of Z, and that of factors of the matrix."""
    dropblock_least: Float[Array, ""] = ABSENT
    """Penalty of factors of the matrix that are made for it."""
    dropblock_product: Float[Array, "row column"] = ABSENT
    """Their product."""


def make_case(
    key: Key[Array, ""], *, rows: int, cols: int, width: int, keep_prob: Any, block_size: int
) -> BlockFactorization:
    """Draw a network, and a matrix of spaced singular values."""
    rank = min(rows, cols)
    data, layers = (rows, cols), [(width, rows), (rows, width)]
    shapes = [data, data, (2, width), *layers, (1, rows), (1, cols)]
    *draws, column, line = gaussians(key, shapes)
    columns, lines = reflection(column[0])[:, :rank], reflection(line[0])[:rank]
    return BlockFactorization(
        network=make_network(draws, keep_prob, block_size),
        # Spaced values are far from 0, so that rounding does not decide how Z is split.
        matrix=(columns * spaced_singular_values(rank)[None, :]) @ lines,
        # Enough for most matrices: the projections of rank b are split into so many parts.
        blocks=8 * rank,
    )


# Theory and measurement ----------------------------------------------------------------------


def _least_penalties(case: BlockFactorization, norm: Callable[[Array, int], Array]) -> BlocksTheory:
    """Least penalties, from the norm whose square they are: that of the theorem or another."""
    network = case.network
    factor = dropout_penalties.odds(network.keep_prob)
    bound = factor * norm(network.product, network.block) ** 2
    least = factor * norm(case.matrix, network.block) ** 2
    return BlocksTheory(
        dropblock_bound=jnp.stack([bound, bound, bound, least]), dropblock_least=least
    )


def predict(case: BlockFactorization) -> BlocksTheory:
    """Expected loss and least penalties from formulas."""
    network = case.network
    expected = dropout_penalties.dropout_loss(
        *network.factors, network.target, network.keep_prob, block=network.block
    )
    return BlocksTheory(
        **arrays_in(_least_penalties(case, dropblock.spectral_support_norm)),
        dropblock=expected,
        dropblock_product=case.matrix,
        enough_blocks=dropblock.enough_blocks(case.matrix, network.block, case.blocks),
        rounded_chance=jnp.maximum(
            odds_condition(network.keep_prob, network.width // network.block),
            odds_condition(network.keep_prob, case.blocks),
        ),
    )


def _keep_prob_at(case: BlockFactorization, width: int) -> Float[Array, ""]:
    """``theta(h) = b p/(h - (h-b) p)`` of a width."""
    network = case.network
    return dropout_penalties.width_free_keep_prob(network.keep_prob, width, block=network.block)


def _penalties_of_product(case: BlockFactorization, scaled: bool) -> Float[Array, "factorisations"]:
    """Penalties of three factorisations of Z, over all masks of blocks kept with theta(h).

    Masks are divided by theta(h) if ``scaled``, as they are in the theorem.
    """
    network = case.network
    theta, (left, right) = _keep_prob_at(case, network.width), network.factors
    # Masks of their own probability: theta(h) is not that of the case.
    masks = block_masks(network.width, network.block, theta)
    divisor = theta if scaled else jnp.ones_like(theta)

    def penalty(G: Array, H: Array) -> Array:
        U, V = left @ G, H @ right

        def output(mask: Array) -> Array:
            return (U * (mask / divisor)[None, :]) @ V

        return mask_penalty(output, masks, (theta / divisor) * (U @ V))

    # The factors as they are come first.
    eye = jnp.eye(network.width, dtype=left.dtype)[None]
    mixers = jnp.concatenate([eye, network.mixers])
    return jax.vmap(penalty)(mixers, jnp.concatenate([eye, network.unmixers]))


def _penalty_of_factors(left: Array, right: Array, theta: Array, block: int) -> Float[Array, ""]:
    """Penalty that masks of blocks add to the loss of factors, each block by its two masks.

    The factors are turned within each block first: the theorem holds in any basis of a block.
    """
    turn = reflection(jnp.arange(1.0, block + 1, dtype=left.dtype))
    U = left.reshape(len(left), -1, block).swapaxes(0, 1) @ turn
    products = U @ (turn.T @ right.reshape(-1, block, right.shape[1]))
    return variation(theta) * jnp.sum(products**2)


def _expected_loss(network: EnumeratedNetwork, masks: MaskDistribution) -> Float[Array, ""]:
    left, right = network.factors

    def loss(mask: Array) -> Array:
        output = (left * (mask / network.keep_prob)[None, :]) @ right
        return jnp.sum((network.target - output) ** 2)

    return exact_expectation(loss, *masks)


def measure(case: BlockFactorization) -> BlocksMeasured:
    """Expected loss and penalties over all masks, and those of factors made for it."""
    network = case.network
    block = network.block
    left, right = dropblock.support_factors(case.matrix, block, case.blocks)
    least = _penalty_of_factors(left, right, _keep_prob_at(case, case.blocks * block), block)
    return BlocksMeasured(
        dropblock=_expected_loss(network, network.masks),
        dropblock_bound=jnp.append(_penalties_of_product(case, scaled=True), least),
        dropblock_least=least,
        dropblock_product=left @ right,
    )


def _has_enough_blocks(outcome: Outcome[BlocksTheory, BlocksMeasured]) -> bool:
    return bool(outcome.predicted.enough_blocks)


# What is broken ------------------------------------------------------------------------------


def _nuclear_for_support(case: BlockFactorization) -> BlocksTheory:
    """Least penalties from the nuclear norm, that of blocks of one unit."""
    return _least_penalties(case, lambda matrix, block: nuclear_norm(matrix))


def _blocks_as_units(case: BlockFactorization) -> BlocksTheory:
    network = case.network
    return BlocksTheory(
        dropblock=dropout_penalties.dropout_loss(
            *network.factors, network.target, network.keep_prob
        )
    )


def _fixed_theta(case: BlockFactorization) -> BlocksMeasured:
    """Penalty of the best factors at p itself, whatever the width."""
    block = case.network.block
    left, right = dropblock.support_factors(case.matrix, block, case.blocks)
    return BlocksMeasured(
        dropblock_least=_penalty_of_factors(left, right, case.network.keep_prob, block)
    )


def _wrong_masks(case: BlockFactorization) -> BlocksMeasured:
    """Masks of single units for the loss; masks that are not divided by theta for the bound."""
    network = case.network
    bounds = _penalties_of_product(case, scaled=False)
    return BlocksMeasured(
        dropblock=_expected_loss(network, block_masks(network.width, 1, network.keep_prob)),
        # A penalty of Z in the place of that of the matrix, which the control leaves alone.
        dropblock_bound=jnp.append(bounds, bounds[0]),
    )


def _best_of_rank_b(case: BlockFactorization) -> Float[Array, "m n"]:
    """The best approximation of rank b of the matrix."""
    left, values, right = linalg.svd(case.matrix)
    largest = jnp.where(jnp.arange(len(values)) < case.network.block, values, 0.0)
    return (left * largest[None, :]) @ right


def _remove_blocks(
    key: Key[Array, ""], case: BlockFactorization, amount: Array
) -> BlockFactorization:
    """Fewer blocks than the projections of rank b can be made of."""
    return dataclasses.replace(case, blocks=2)


# The scenario --------------------------------------------------------------------------------

DROPBLOCK = Scenario[BlockFactorization, BlocksTheory, BlocksMeasured](
    "dropblock",
    make_case,
    predict,
    measure,
    theory=BlocksTheory,
    measured=BlocksMeasured,
    claims=(
        Claim(
            "dropblock",
            "masks on blocks of b hidden units add ((1-theta)/theta) sum_j ||U_j V_j^T||_F^2 to "
            "the expected loss, over all masks",
        ),
        lower_bound(
            "dropblock_bound",
            "with theta(h) = b p/(h - (h-b) p) every factorisation of Z has a DropBlock penalty "
            "of at least ((1-p)/p) times the square of the spectral b-support norm of Z",
            condition=lambda theory: theory.rounded_chance,
        ),
        Claim(
            "dropblock_least",
            "with theta(h) = b p/(h - (h-b) p) and enough blocks, the least DropBlock penalty of "
            "a factorisation of Z is ((1-p)/p) times the square of the spectral b-support norm "
            "of Z",
            reads=lambda theory, run: (theory.enough_blocks,),
            applies=_has_enough_blocks,
            condition=lambda theory: theory.rounded_chance,
        ),
        Claim(
            "dropblock_product",
            "the factors with the least DropBlock penalty, if there are enough blocks, have the "
            "product Z",
            steps=DECOMPOSED,
            reads=lambda theory, run: (theory.enough_blocks,),
            applies=_has_enough_blocks,
        ),
    ),
    controls=(
        Control(
            "blocks_as_units",
            "the penalty of dropout in place of that of blocks",
            "dropblock",
            predict=_blocks_as_units,
        ),
        *(
            Control(
                name,
                "the nuclear norm in place of the b-support norm",
                claim,
                predict=_nuclear_for_support,
            )
            for name, claim in (
                ("nuclear_norm_bounds_blocks", "dropblock_bound"),
                ("nuclear_norm_of_blocks", "dropblock_least"),
            )
        ),
        Control(
            "fixed_theta_of_blocks",
            "fixed theta claimed to be width-free",
            "dropblock_least",
            measure=_fixed_theta,
        ),
        Control(
            "too_few_blocks",
            "two blocks alone",
            "dropblock_product",
            case=_remove_blocks,
            breaks="applies",
        ),
        Control(
            "one_block",
            "the best approximation that a single block can be, of rank b",
            "dropblock_product",
            measure=lambda case: BlocksMeasured(dropblock_product=_best_of_rank_b(case)),
        ),
        Control(
            "product_of_one_block",
            "the best approximation of rank b",
            "dropblock_product",
            predict=lambda case: BlocksTheory(dropblock_product=_best_of_rank_b(case)),
        ),
        Control(
            "units_masked_apart",
            "masks of single units in the run",
            "dropblock",
            measure=_wrong_masks,
        ),
        Control(
            "blocks_not_divided",
            "masks that are not divided by theta in the run",
            "dropblock_bound",
            measure=_wrong_masks,
        ),
    ),
    narrow=lambda settings: true_widths(
        restrict_mask("dropblock")(settings), MOST_MASKS * min(settings["block_size"])
    ),
    summed=lambda case: (case.network.matrices, case.matrix),
    sides="spectral support norm, as a dual norm, against all masks enumerated and factors that "
    "attain it",
    at={"mask": "dropblock", "keep_prob": 0.5, "width": 4, "block_size": 2},
)
