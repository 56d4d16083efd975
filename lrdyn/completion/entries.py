"""Completion that touches observed entries only: for masks that hide nearly everything."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrdyn.completion.recovery import completion_loss
from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import end_to_end
from lrdyn.core.platforms import platform_dependent
from lrdyn.corollary1.compression import CompressedNetwork

BLOCK = 4
"""Rows at a time: with a few hundred entries each and s = 10 their factors stay in the cache."""

DENSE_FROM = 0.08
"""Fraction observed from which whole matrices take less time on two cores of a CPU, from 100 x 100
to 2000 x 2000: ``python -m benchmarks completion``. Elsewhere nothing was measured: there whole
matrices are taken, whose products an accelerator does best."""
NARROW, LARGE, DENSE_FROM_NARROW = 8, 200, 0.14
"""The same fraction for networks of less width and matrices with sides of more: there a product of
whole matrices moves more than it multiplies."""


class Lines(NamedTuple):
    """Observed entries line by line, padded to equal length."""

    places: Int[Array, "blocks block n"]
    """Where in its line an entry is."""
    values: Float[Array, "blocks block n"]
    """Entries of the target; 0 where padded."""
    weights: Float[Array, "blocks block n"]
    """1 over the number of all observed entries; 0 where padded."""


class ObservedEntries(NamedTuple):
    """The observed entries of a matrix, twice: neither factor's gradient needs a scatter."""

    rows: Lines
    columns: Lines


@checked
def observed_entries(target: Float[Array, "k d"], mask: Float[Array, "k d"]) -> ObservedEntries:
    """List the observed entries of a matrix.

    Args:
        target: Phi.
        mask: M, 1 where an entry is observed and 0 elsewhere; concrete, since it decides shapes.

    Raises:
        ValueError: no entry is observed.

    Example:
        >>> entries = observed_entries(jnp.ones((5, 3)), jnp.eye(5, 3))
        >>> entries.rows.values.shape, float(entries.rows.weights.sum())
        ((2, 4, 1), 1.0)
    """
    observed, values = np.asarray(mask) > 0, np.asarray(target)
    if not observed.any():
        checks.refuse("mask", "no observed entry", "at least one")
    return ObservedEntries(_make_lines(observed, values), _make_lines(observed.T, values.T))


def _make_lines(observed: np.ndarray, values: np.ndarray) -> Lines:
    longest = int(observed.sum(1).max())
    # The places of a line's observed entries come first; the others only pad it.
    places = np.argsort(~observed, axis=1, kind="stable")[:, :longest].astype(np.int32)
    is_entry = np.take_along_axis(observed, places, 1)
    entries = np.where(is_entry, np.take_along_axis(values, places, 1), 0.0).astype(values.dtype)
    weights = (is_entry / observed.sum()).astype(values.dtype)

    def to_blocks(lines: np.ndarray) -> Array:
        # Empty lines up to a whole block: their weights are 0.
        padded = np.pad(lines, ((0, -len(observed) % BLOCK), (0, 0)))
        return jnp.asarray(padded.reshape(-1, BLOCK, longest))

    return Lines(to_blocks(places), to_blocks(entries), to_blocks(weights))


@checked
def entries_loss(network: CompressedNetwork, entries: ObservedEntries) -> Float[Array, ""]:
    """Loss of a compressed network by its observed entries, ``1/2 ||M * (f_C - Phi)||^2 / sum M``.

    :func:`lrdyn.completion.completion_loss` has the same value. This one can be differentiated once
    and never forms a k x d matrix: a gradient costs a pass over the entries of each row and one
    over those of each column. :func:`faster_loss` takes it where that is the faster of the two.

    Example:
        >>> from lrdyn.completion.recovery import spectral_network
        >>> entries = observed_entries(jnp.eye(4), jnp.ones((4, 4)))
        >>> float(entries_loss(spectral_network(jnp.eye(4), 2, 1.0), entries))
        0.0625
    """
    for factor, lines in zip((network.left, network.right), entries, strict=True):
        checks.integer("rows of a factor of network", len(factor), 1, BLOCK * len(lines.values))
    left = network.left @ end_to_end(network.inner)
    return _loss(left, network.right, entries)


@checked
def faster_loss(
    target: Float[Array, "k d"], mask: Float[Array, "k d"]
) -> Callable[[CompressedNetwork], Float[Array, ""]]:
    """The loss of a compressed network on the observed entries, in the way that takes less time.

    That is :func:`entries_loss` on a CPU where less than :data:`DENSE_FROM` of the entries is
    observed (:data:`DENSE_FROM_NARROW` for a narrow network of a large matrix), and
    :func:`lrdyn.completion.completion_loss` elsewhere. Both have the same value.

    Args:
        target: Phi.
        mask: M, 1 where an entry is observed and 0 elsewhere; concrete, since it decides shapes.

    Raises:
        ValueError: no entry is observed.

    Example:
        >>> from lrdyn.completion.recovery import spectral_network
        >>> loss = faster_loss(jnp.eye(4), jnp.ones((4, 4)))
        >>> float(loss(spectral_network(jnp.eye(4), 2, 1.0)))
        0.0625
    """
    fraction = np.mean(np.asarray(mask) > 0)

    def dense(network: CompressedNetwork) -> Float[Array, ""]:
        return completion_loss(network, target, mask)

    if fraction >= max(DENSE_FROM, DENSE_FROM_NARROW):
        return dense
    # Without an observed entry it is the listing that refuses.
    entries = observed_entries(target, mask)

    def loss(network: CompressedNetwork) -> Float[Array, ""]:
        narrow = network.left.shape[1] < NARROW and min(target.shape) > LARGE
        if fraction >= (DENSE_FROM_NARROW if narrow else DENSE_FROM):
            return dense(network)
        return platform_dependent(
            network, cpu=lambda network: entries_loss(network, entries), default=dense
        )

    return loss


Slopes = tuple[Float[Array, "k s"], Float[Array, "d s"]]
"""Gradients with respect to the left and the right factor."""


# The derivative of the gather `others[places]` would be a scatter, which is slow on a CPU. So each
# factor has its gradient from a pass over its own lines, and both are made where the loss is.
@jax.custom_vjp
def _loss(left: Array, right: Array, entries: ObservedEntries) -> Float[Array, ""]:
    return _loss_and_slope(left, right, entries.rows)[0]


def _forward(left: Array, right: Array, entries: ObservedEntries) -> tuple[Array, Slopes]:
    loss, of_left = _loss_and_slope(left, right, entries.rows)
    return loss, (of_left, _loss_and_slope(right, left, entries.columns)[1])


def _backward(slopes: Slopes, cotangent: Array) -> tuple[Array, Array, None]:
    # None: the entries are data, in which nothing is differentiated.
    return cotangent * slopes[0], cotangent * slopes[1], None


_loss.defvjp(_forward, _backward)


def _loss_and_slope(
    factor: Float[Array, "k s"], others: Float[Array, "d s"], lines: Lines
) -> tuple[Float[Array, ""], Float[Array, "k s"]]:
    """Loss, and its gradient in the factor whose rows the lines belong to."""
    rows, size = factor.shape
    blocks = jnp.pad(factor, ((0, -rows % BLOCK), (0, 0))).reshape(-1, BLOCK, size)

    def block(loss: Array, block_and_lines: tuple[Array, Lines]) -> tuple[Array, Array]:
        own, (places, values, weights) = block_and_lines
        factors = others[places]
        error = jnp.einsum("bs,bns->bn", own, factors) - values
        slope = jnp.einsum("bn,bns->bs", weights * error, factors)
        return loss + 0.5 * jnp.sum(weights * error**2), slope

    loss, slopes = jax.lax.scan(block, jnp.zeros((), factor.dtype), (blocks, lines))
    return loss, slopes.reshape(-1, size)[:rows]
