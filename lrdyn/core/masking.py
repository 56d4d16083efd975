"""Masks: losses that see part of the entries, distributions of masks and expectations over them."""

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Weights, end_to_end


@checked
def masked_loss(
    weights: Annotated[Weights, "k d"], target: Float[Array, "k d"], mask: Float[Array, "k d"]
) -> Float[Array, ""]:
    """Squared loss on the observed entries, ``1/2 ||M * (W_L ... W_1 - Phi)||_F^2``.

    Args:
        weights: layers ``(W_1, ..., W_L)``.
        target: Phi.
        mask: M, 1 where an entry is observed and 0 elsewhere.

    Example:
        >>> mask = jnp.array([[1.0, 1.0], [0.0, 0.0]])
        >>> float(masked_loss((jnp.eye(2),), jnp.zeros((2, 2)), mask))
        0.5
    """
    return 0.5 * jnp.sum((mask * (end_to_end(weights) - target)) ** 2)


@checked
def observe(key: Key[Array, ""], shape: tuple[int, int], fraction: Scalar) -> Float[Array, "k d"]:
    """Draw a mask, 1 where an entry is observed, independently with a probability, and 0 elsewhere.

    Args:
        key: random key.
        shape: (k, d), that of the matrix.
        fraction: probability that an entry is observed, above 0 and at most 1.

    Example:
        >>> float(observe(jax.random.key(0), (2, 2), 1.0).sum())
        4.0
    """
    checks.sizes("shape", shape, 2, 2)
    checks.allocation({"shape": shape}, shape)
    fraction = checks.fraction("fraction", fraction)
    # Uniform numbers are below 1: with the probability 1 every entry is observed.
    return jnp.where(jax.random.uniform(key, shape) < fraction, 1.0, 0.0)


class MaskDistribution(NamedTuple):
    """Finitely many masks and their probabilities: :func:`exact_expectation` sums over them."""

    support: Float[Array, "points terms"]
    """The masks R, one a row; any real numbers."""
    probabilities: Float[Array, "points"]
    """Their probabilities, of sum 1."""


ENUMERABLE = 20
"""Most independent Bernoulli masks that are enumerated: 2^20 points."""


@checked
def bernoulli_masks(size: int, keep_prob: Scalar) -> MaskDistribution:
    """All 2^size masks of independent entries, ``P(R_i = 1) = theta``.

    Raises:
        ValueError: ``size`` is not between 1 and 20.

    Example:
        >>> masks = bernoulli_masks(2, 0.75)
        >>> masks.support.tolist(), masks.probabilities.tolist()
        ([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.0625, 0.1875, 0.1875, 0.5625])
    """
    checks.integer("size", size, 1, ENUMERABLE)  # 2^size masks
    keep_prob = checks.fraction("keep_prob", keep_prob)
    keep_prob = jnp.asarray(keep_prob, jnp.zeros(()).dtype)
    masks = np.arange(2**size)[:, None] >> np.arange(size)[None] & 1  # the bits of 0, 1, 2, ...
    chances = jnp.where(masks == 1, keep_prob, 1 - keep_prob)
    return MaskDistribution(jnp.asarray(masks, keep_prob.dtype), jnp.prod(chances, axis=1))


@checked
def block_masks(size: int, block: int, keep_prob: Scalar) -> MaskDistribution:
    """All 2^(size / block) masks of blocks of neighbours, as DropBlock and patches have them.

    Args:
        size: number of entries.
        block: entries of a block, a divisor of ``size``.
        keep_prob: theta, of each block independently.

    Raises:
        ValueError: ``block`` does not divide ``size``, or there are too many blocks.

    Example:
        >>> block_masks(4, 2, 0.5).support.tolist()[1]
        [1.0, 1.0, 0.0, 0.0]
    """
    masks = bernoulli_masks(_block_count(size, block), keep_prob)
    checks.allocation({"size": size}, (len(masks.support), size))
    return masks._replace(support=jnp.repeat(masks.support, block, axis=1))


def _block_count(size: int, block: int) -> int:
    checks.integer("size", size)
    checks.integer("block", block)
    if size % block:
        checks.refuse("block", block, f"a divisor of {size}")
    return size // block


@checked
def draw_mask(
    key: Key[Array, ""], size: int, keep_prob: Scalar, *, block: int = 1
) -> Float[Array, "terms"]:
    """Draw one mask of zeros and ones: blocks of neighbours are kept with probability theta each.

    Args:
        key: random key.
        size: number of entries.
        keep_prob: theta.
        block: entries of a block, a divisor of ``size``; 1 for independent entries.

    Raises:
        ValueError: ``block`` does not divide ``size``.

    Example:
        >>> draw_mask(jax.random.key(0), 4, 1.0, block=2).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    keep_prob, blocks = checks.fraction("keep_prob", keep_prob), _block_count(size, block)
    checks.allocation({"size": size}, (size,))
    return jnp.repeat(observe(key, (1, blocks), keep_prob)[0], block)


@checked
def block_covariance(size: int, block: int, keep_prob: Scalar) -> Float[Array, "terms terms"]:
    """Covariance of block masks, ``theta (1 - theta)`` within a block and 0 elsewhere.

    Args:
        size: number of entries of a mask.
        block: entries of a block, a divisor of ``size``.
        keep_prob: theta, the probability that a block is kept.

    Raises:
        ValueError: ``block`` does not divide ``size``.

    Example:
        >>> block_covariance(2, 2, 0.5).tolist()
        [[0.25, 0.25], [0.25, 0.25]]
    """
    keep_prob = checks.fraction("keep_prob", keep_prob)
    blocks = _block_count(size, block)
    checks.allocation({"size": size}, (size, size))
    number = np.repeat(np.arange(blocks), block)
    same = jnp.asarray(number[:, None] == number[None, :])
    return jnp.where(same, keep_prob * (1 - keep_prob), 0.0)


@checked
def mask_mean(masks: MaskDistribution) -> Float[Array, "terms"]:
    """Mean of a mask, ``mu = E R``.

    Example:
        >>> mask_mean(bernoulli_masks(2, 0.25)).tolist()
        [0.25, 0.25]
    """
    return masks.probabilities @ masks.support


@checked
def mask_covariance(masks: MaskDistribution) -> Float[Array, "terms terms"]:
    """Covariance of a mask, ``C = E (R - mu)(R - mu)^T``.

    Example:
        >>> mask_covariance(bernoulli_masks(2, 0.5)).tolist()
        [[0.25, 0.0], [0.0, 0.25]]
    """
    # Centred first: E R R^T - mu mu^T would cancel where theta is near 1.
    centred = masks.support - mask_mean(masks)[None, :]
    return (centred * masks.probabilities[:, None]).T @ centred


@checked
def masked_prediction(
    mask: Float[Array, "terms"], mean: Float[Array, "terms"], terms: Float[Array, "terms m n"]
) -> Float[Array, "m n"]:
    """Prediction under a scaled mask, ``sum_i (R_i / mu_i) Z_i``, of expectation ``sum_i Z_i``.

    Args:
        mask: R.
        mean: mu, nowhere zero; ones for masks that are not scaled.
        terms: Z_i.

    Example:
        >>> masked_prediction(jnp.array([1.0, 0.0]), jnp.full(2, 0.5), jnp.ones((2, 1, 1))).tolist()
        [[2.0]]
    """
    return jnp.tensordot(mask / mean, terms, 1)


@checked
def deterministic_equivalent(
    target: Float[Array, "m n"],
    terms: Float[Array, "terms m n"],
    mean: Float[Array, "terms"],
    covariance: Float[Array, "terms terms"],
) -> Float[Array, ""]:
    """Expected squared loss under any masks with this mean and covariance.

    ``E ||Y - sum_i (R_i/mu_i) Z_i||_F^2 = ||Y - sum_i Z_i||_F^2 + sum_ij C_ij/(mu_i mu_j) <Z_i,
    Z_j>``, the general identity of Theorem 3: the loss of the mean prediction and a penalty.

    Args:
        target: Y.
        terms: Z_i, one matrix for each entry of a mask.
        mean: mu, nowhere zero; ones for masks that are not scaled.
        covariance: C of the masks.

    Raises:
        ValueError: ``mean`` or ``covariance`` does not have an entry for each term.

    Example:
        >>> term = jnp.ones((1, 1, 1))  # a single term 1, kept half of the time: 0 or 2
        >>> float(deterministic_equivalent(term[0], term, jnp.full(1, 0.5), jnp.full((1, 1), 0.25)))
        1.0
    """
    flat = terms.reshape(len(terms), -1)
    scaled = covariance / (mean[:, None] * mean[None, :])
    return jnp.sum((target - jnp.sum(terms, axis=0)) ** 2) + jnp.sum(scaled * (flat @ flat.T))


AT_ONCE = 4096
"""Masks whose losses are evaluated side by side: bounds the memory of an enumeration."""


@checked
def exact_expectation(
    loss: Callable[[Float[Array, "terms"]], Float[Array, "*shape"]],
    masks: Float[Array, "points terms"],
    probabilities: Float[Array, "points"],
) -> Float[Array, "*shape"]:
    """Expectation over finitely many masks, ``sum_R P(R) loss(R)``.

    Args:
        loss: maps a mask to an array, for example the loss of your own network.
        masks: every mask, one a row.
        probabilities: their probabilities.

    Raises:
        ValueError: there are not as many probabilities as masks.

    Example:
        >>> masks = bernoulli_masks(3, 0.5)
        >>> float(exact_expectation(lambda R: jnp.sum(R) ** 2, *masks))
        3.0
    """
    probabilities = checks.nonnegative("probabilities", probabilities, ("points",))
    # Beyond that in batches, since all losses at once may not fit into memory.
    if len(masks) <= AT_ONCE:
        values = jax.vmap(loss)(masks)
    else:
        values = jax.lax.map(loss, masks, batch_size=AT_ONCE)
    return jnp.tensordot(probabilities, values, 1)


class Estimate(NamedTuple):
    """A mean over random masks and its error: what :func:`monte_carlo` returns."""

    mean: Float[Array, "*shape"]
    standard_error: Float[Array, "*shape"]
    """Standard error of the mean, from the scatter of the draws."""


@checked
def monte_carlo(
    key: Key[Array, ""],
    loss: Callable[[PyTree], Float[Array, "*shape"]],
    draw: Callable[[Key[Array, ""]], PyTree],
    samples: int,
) -> Estimate:
    """Mean over random masks and its standard error, which falls as ``samples^{-1/2}``.

    Args:
        key: random key.
        loss: maps a mask to an array.
        draw: maps a key to a mask, for example ``lambda key: draw_mask(key, 8, 0.5)``.
        samples: number of draws, at least 2.

    Raises:
        ValueError: ``samples`` is smaller than 2.

    Example:
        >>> draw = lambda key: draw_mask(key, 4, 0.5)
        >>> estimate = monte_carlo(jax.random.key(0), jnp.sum, draw, 1000)
        >>> abs(float(estimate.mean) - 2) < 4 * float(estimate.standard_error)
        True
    """
    checks.integer("samples", samples, 2)
    checks.allocation({"samples": samples}, (samples, 2), dtype="uint32")  # a key of each draw
    values = jax.vmap(lambda k: loss(draw(k)))(jax.random.split(key, samples))
    return Estimate(jnp.mean(values, 0), jnp.std(values, 0, ddof=1) / jnp.sqrt(1.0 * samples))
