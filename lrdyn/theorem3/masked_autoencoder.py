"""Masked self-supervised learning by a linear autoencoder: exact objectives and their minimisers.

The autoencoder A sees ``M * X``, each feature (or patch of features) kept with probability p and
replaced by 0 otherwise, independently, and has to give back X. With ``S = X X^T / n``, D the
diagonal blocks of S that belong to one patch (single entries without patches) and ``Q = p S + (1 -
p) D``, everything that masks do in expectation is a function of S, D and p.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar
from lrdyn.core.spectra import singular_values

Groups = Int[Array, "m"] | Int[np.ndarray, "m"]
"""Number of the patch of each feature."""


def patches(rows: int, size: int) -> Int[np.ndarray, "m"]:
    """Number of the patch of each feature, in patches of consecutive ones; the last may be smaller.

    Args:
        rows: number of features, m.
        size: features in a patch; 1 masks each feature on its own.

    Raises:
        ValueError: ``size`` is not between 1 and ``rows``.

    Example:
        >>> patches(5, 2).tolist()
        [0, 0, 1, 1, 2]
    """
    checks.integer("rows", rows)
    checks.integer("size", size, 1, rows)
    checks.allocation({"rows": rows}, (rows,), dtype="int64")
    return np.arange(rows) // size


@checked
def pool_images(
    images: Float[np.ndarray, "pixels n"], shape: tuple[int, int]
) -> Float[np.ndarray, "m n"]:
    """Average square images over a grid and standardise: mean 0 and variance 1 of each feature.

    Args:
        images: one square image a column, pixels row by row.
        shape: rows and columns of the grid; its cells differ by at most one pixel a side.

    Returns:
        One feature for each cell of the grid, row by row: patches of consecutive features are
        parts of the rows of the image.

    Raises:
        ValueError: the images are not square, the grid does not fit, or a cell never varies.

    Example:
        >>> pool_images(np.eye(9), (3, 1)).round(3)[0].tolist()
        [1.414, 1.414, 1.414, -0.707, -0.707, -0.707, -0.707, -0.707, -0.707]
    """
    checks.sizes("shape", shape, 2, 2)
    side = round(len(images) ** 0.5)
    if side**2 != len(images):
        checks.refuse("images", f"{len(images)} pixels", "a square number")
    if not all(1 <= cells <= side for cells in shape):
        checks.refuse("shape", shape, f"1 to {side} rows and columns")
    pooled = images.reshape(side, side, -1)
    for axis, cells in enumerate(shape):
        parts = np.array_split(pooled, cells, axis)
        pooled = np.stack([part.mean(axis) for part in parts], axis)
    pooled = pooled.reshape(-1, images.shape[1])
    spread = pooled.std(axis=1, keepdims=True)
    if not np.all(spread > 0):
        checks.refuse("images", "a cell without variance", "features that vary")
    return (pooled - pooled.mean(axis=1, keepdims=True)) / spread


@checked
def within_patches(matrix: Float[Array, "m m"], groups: Groups) -> Float[Array, "m m"]:
    """Diagonal blocks: entries whose row and column belong to one patch, and 0 elsewhere.

    Example:
        >>> within_patches(jnp.ones((3, 3)), jnp.array([0, 0, 1])).tolist()
        [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    groups = _check_groups(groups)
    return jnp.where(groups[:, None] == groups[None, :], matrix, 0.0)


class MaskedMoments(NamedTuple):
    """Second moments of data and of masked data, as :func:`masked_moments` makes them."""

    keep_prob: Scalar
    """p, the probability that a patch is shown."""
    groups: Groups
    """Number of the patch of each feature."""
    whole: Float[Array, "m m"]
    """Second moment of the data, ``S = X X^T / n``."""
    within: Float[Array, "m m"]
    """D, its diagonal blocks."""
    masked: Float[Array, "m m"]
    """Second moment of the masked data over p, ``Q = p S + (1 - p) D``."""
    root: Float[Array, "m m"]
    """``Q^{-1/2}``; of a singular Q the pseudo-inverse."""


def _check_groups(groups: Groups) -> Groups:
    """Numbers of at most as many patches as there are features."""
    return checks.integer("groups", groups, 0, len(groups) - 1, ("m",))


@checked
def masked_moments(data: Float[Array, "m n"], groups: Groups, keep_prob: Scalar) -> MaskedMoments:
    """Second moments of data whose patches are masked, ``Q = p S + (1 - p) D``.

    Args:
        data: X, one example a column.
        groups: number of the patch of each feature, see :func:`patches`.
        keep_prob: p, the probability that a patch is shown.

    Example:
        >>> masked_moments(jnp.ones((2, 1)), jnp.arange(2), 0.5).masked.tolist()
        [[1.0, 0.5], [0.5, 1.0]]
    """
    groups = _check_groups(groups)
    keep_prob = checks.fraction("keep_prob", keep_prob)
    whole = data @ data.T / data.shape[1]
    within = within_patches(whole, groups)
    masked = keep_prob * whole + (1 - keep_prob) * within
    return MaskedMoments(keep_prob, groups, whole, within, masked, _matrix_power(masked, -0.5))


@checked
def masking_penalty(autoencoder: Float[Array, "m m"], moments: MaskedMoments) -> Float[Array, ""]:
    """Penalty that masks add to the loss at their mean, ``p (1 - p) tr(A D A^T)``: a ridge on A.

    Example:
        >>> moments = masked_moments(jnp.ones((2, 1)), jnp.arange(2), 0.5)
        >>> float(masking_penalty(jnp.eye(2), moments))
        0.5
    """
    _check_groups(moments.groups)
    p = moments.keep_prob
    return p * (1 - p) * jnp.sum((autoencoder @ moments.within) * autoencoder)


@checked
def nuclear_norm_bound(
    autoencoder: Float[Array, "m m"], data: Float[Array, "m n"], keep_prob: Scalar
) -> Float[Array, ""]:
    """Lower bound of :func:`masking_penalty`, ``p (1 - p) ||A X||_*^2 / (n m)``.

    With ``Z_b = A_b X_b`` the part of ``A X`` that comes from patch b, of rank at most its size,
    ``sum_b ||Z_b||_F^2 >= ||sum_b Z_b||_*^2 / m``. Equality needs parts with orthogonal row and
    column spaces and equal singular values, for example A = I and orthogonal features of equal
    norm. For dropout the same bound is attained by the best factors; here it is not in general.

    Args:
        autoencoder: A.
        data: X, one example a column.
        keep_prob: p.

    Example:
        >>> float(nuclear_norm_bound(jnp.eye(2), jnp.eye(2), 0.5))
        0.25
    """
    keep_prob = checks.fraction("keep_prob", keep_prob)
    nuclear = jnp.sum(singular_values(autoencoder @ data))
    return keep_prob * (1 - keep_prob) * nuclear**2 / data.size


@checked
def masked_autoencoder_loss(
    autoencoder: Float[Array, "m m"], moments: MaskedMoments
) -> Float[Array, ""]:
    """Expected loss ``E ||X - A(M*X)||^2 / n = tr[(I - pA) S (I - pA)^T] + p(1-p) tr(A D A^T)``.

    Example:
        >>> moments = masked_moments(jnp.ones((2, 1)), jnp.arange(2), 0.5)
        >>> float(masked_autoencoder_loss(jnp.eye(2), moments))
        1.0
    """
    _check_groups(moments.groups)
    left = jnp.eye(len(autoencoder), dtype=autoencoder.dtype) - moments.keep_prob * autoencoder
    return jnp.sum((left @ moments.whole) * left) + masking_penalty(autoencoder, moments)


@checked
def masked_only_loss(autoencoder: Float[Array, "m m"], moments: MaskedMoments) -> Float[Array, ""]:
    """Expected loss on what is hidden, ``E ||(1 - M) * (X - A (M*X))||_F^2 / n``.

    It is (1 - p) times :func:`masked_autoencoder_loss` with the diagonal (the blocks of the
    patches) of A put to 0: a feature that is to be guessed is never seen.

    Example:
        >>> moments = masked_moments(jnp.ones((2, 1)), jnp.arange(2), 0.5)
        >>> float(masked_only_loss(jnp.eye(2), moments))
        1.0
    """
    _check_groups(moments.groups)
    of_others = autoencoder - within_patches(autoencoder, moments.groups)
    return (1 - moments.keep_prob) * masked_autoencoder_loss(of_others, moments)


@checked
def optimal_autoencoder(moments: MaskedMoments) -> Float[Array, "m m"]:
    """Minimiser of :func:`masked_autoencoder_loss`, ``A = S Q^{-1}``, of the rank of S.

    Returns:
        A; the one of least norm if Q is singular.

    Example:
        >>> moments = masked_moments(jnp.diag(jnp.array([1.0, 3.0])), jnp.arange(2), 0.5)
        >>> optimal_autoencoder(moments).round(6).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    _check_groups(moments.groups)
    return moments.whole @ moments.root @ moments.root


@checked
def optimal_masked_only(moments: MaskedMoments) -> Float[Array, "m m"]:
    """Minimiser of :func:`masked_only_loss` with diagonal blocks 0, ``A = (S - M) Q^{-1}``.

    M has the diagonal blocks ``M_b = (S Q^{-1})_bb [(Q^{-1})_bb]^{-1}``, which without patches are
    the numbers ``mu_i = (S Q^{-1})_ii / (Q^{-1})_ii``, and 0 elsewhere, for a Q that is not
    singular. Any diagonal blocks may be added to the minimiser: the loss does not see them.

    Example:
        >>> moments = masked_moments(jnp.array([[1.0, 0.0], [0.6, 0.8]]), jnp.arange(2), 0.5)
        >>> optimal_masked_only(moments).round(6).tolist()
        [[0.0, 0.6], [0.6, 0.0]]
    """
    _check_groups(moments.groups)
    inverse = moments.root @ moments.root
    blocks = within_patches(moments.whole @ inverse, moments.groups)
    # The inverse of a block-diagonal matrix is that of its blocks.
    multiplier = blocks @ _matrix_power(within_patches(inverse, moments.groups), -1.0)
    return (moments.whole - multiplier) @ inverse


class Bottleneck(NamedTuple):
    """Minimiser of width r, from :func:`bottleneck_autoencoder`, and its loss."""

    autoencoder: Float[Array, "m m"]
    """A, of rank r."""
    loss: Float[Array, ""]
    """Its loss, ``tr S - p sum_{i <= r} sigma_i(S Q^{-1/2})^2``."""
    values: Float[Array, "m"]
    """All singular values of ``S Q^{-1/2}``."""


@checked
def bottleneck_autoencoder(moments: MaskedMoments, width: int) -> Bottleneck:
    """Minimiser of :func:`masked_autoencoder_loss` over ``A = W_2 W_1`` of width r.

    ``A = U_r U_r^T S Q^{-1}``, U_r the first r left singular vectors of ``S Q^{-1/2}``. It is
    unique if ``sigma_r > sigma_{r+1}``.

    Args:
        moments: S, D and Q of the data.
        width: r.

    Raises:
        ValueError: ``width`` is not between 1 and m.

    Example:
        >>> moments = masked_moments(jnp.diag(jnp.array([1.0, 2.0])), jnp.arange(2), 0.5)
        >>> best = bottleneck_autoencoder(moments, 1)
        >>> best.autoencoder.round(6).tolist(), round(float(best.loss), 6)
        ([[0.0, 0.0], [0.0, 1.0]], 1.5)
    """
    _check_groups(moments.groups)
    checks.integer("width", width, 1, len(moments.whole))
    whole = moments.whole
    # (A - S Q^{-1}) Q (A - S Q^{-1})^T is to be least over A of rank r: Eckart-Young for A Q^{1/2}.
    left, values, _ = linalg.svd(whole @ moments.root)
    best = left[:, :width] @ (left[:, :width].T @ optimal_autoencoder(moments))
    loss = jnp.trace(whole) - moments.keep_prob * jnp.sum(values[:width] ** 2)
    return Bottleneck(best, loss, values)


def _matrix_power(matrix: Float[Array, "m m"], exponent: float) -> Float[Array, "m m"]:
    """Power of a positive semidefinite matrix on its range; its SVD is its eigendecomposition."""
    left, values, _ = linalg.svd(matrix)
    # Values below the error of the SVD are zeros: features that never vary are left alone.
    nonzero = values > len(matrix) * jnp.finfo(matrix.dtype).eps * values[0]
    powers = jnp.where(nonzero, jnp.where(nonzero, values, 1.0) ** exponent, 0.0)
    return (left * powers[None, :]) @ left.T
