"""How well a number that is known before training predicts the rank of an update.

There is a number and a rank for each matrix. Spearman's correlation says whether the order of the
matrices is predicted; its spread under permutations of the matrices is what chance gives; matrices
drawn with replacement give an interval. Whether the rank itself is predicted better than by one
rank for all is a matter of errors on a matrix that was left out.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

DRAWS = 2000
"""Permutations, and samples with replacement."""
LEVEL = 0.95


class Prediction(NamedTuple):
    """How well one number predicts another, over matrices."""

    correlation: float
    """Spearman's correlation; NaN where one of the two is the same for all matrices."""
    low: float
    """Lower end of the interval of :data:`LEVEL` over matrices."""
    high: float
    p: float
    """Share of the permutations of the matrices with a correlation of that size or more."""
    chance: float
    """Size of the correlation that :data:`LEVEL` of the permutations stay below."""
    gain: float
    """1 - E / E_0, see :func:`gain_over_constant`."""


def spearman(
    first: Float[np.ndarray, "... n"], second: Float[np.ndarray, "... n"]
) -> Float[np.ndarray, "..."]:
    """Spearman's rank correlation over the last axis, equal numbers at the mean of their ranks.

    Args:
        first: n numbers, or several rows of them, in axes that broadcast.
        second: likewise.

    Returns:
        Correlations, NaN where one side is constant.

    Example:
        >>> spearman(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 4.0])).item()
        0.5
    """
    ranks = [rankdata(side, axis=-1) for side in (first, second)]
    centred = [side - np.mean(side, axis=-1, keepdims=True) for side in ranks]
    sizes = [np.sqrt(np.sum(side**2, axis=-1)) for side in centred]
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.sum(centred[0] * centred[1], axis=-1) / (sizes[0] * sizes[1])
    return np.where(sizes[0] * sizes[1] > 0, found, np.nan)


def gain_over_constant(
    known: Float[np.ndarray, "n"], ranks: Float[np.ndarray, "n"], *, fit: bool = True
) -> float:
    """Share of the error of a constant that a prediction saves: ``1 - E / E_0``.

    E is the mean of |log r - log r'| over the matrices, r' what a line in log(known), fitted to all
    other matrices by least squares, says of it. E_0 is that of the mean of log r over the others,
    the best constant rank.

    Args:
        known: a positive number for each matrix.
        ranks: r of each, positive.
        fit: false to take the known number itself for r'.

    Returns:
        At most 1; 0 or less where the number is of no use; NaN where all ranks are the same.

    Example:
        >>> gain_over_constant(np.array([1.0, 2.0, 4.0, 8.0]), np.array([3.0, 6.0, 12.0, 24.0]))
        1.0
    """
    x, y, n = np.log(known), np.log(ranks), len(ranks)
    others = (np.sum(y) - y) / (n - 1)
    constant = np.mean(np.abs(y - others))
    if fit:
        centre = (np.sum(x) - x) / (n - 1)
        apart = x[None, :] - centre[:, None]
        apart[np.diag_indices(n)] = 0
        square = np.sum(apart**2, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = np.where(square > 0, apart @ y / square, 0)
        # The sums of ``apart`` over the others are 0: y needs no centring.
        predicted = others + slope * (x - centre)
    else:
        predicted = x
    # What rounding leaves of equal ranks is no error to be measured by.
    if constant < 1e-12:
        return np.nan
    return float(np.round(1 - np.mean(np.abs(y - predicted)) / constant, 12))


def predict_ranks(
    known: Float[np.ndarray, "seed n"], ranks: Float[np.ndarray, "seed n"], *, fit: bool = True
) -> Prediction:
    """How well a number predicts ranks, as the mean over seeds.

    Matrices have the same places in every seed and are permuted, and drawn, alike in all of them:
    seeds repeat a training, they do not make a matrix twice as telling.

    Args:
        known: a positive number for each matrix.
        ranks: r of each.
        fit: as in :func:`gain_over_constant`.

    Example:
        >>> known = np.arange(1.0, 13.0)[None]
        >>> found = predict_ranks(known, 3 * known)
        >>> found.correlation, found.p < 0.001, found.gain
        (1.0, True, 1.0)
    """
    rng, n = np.random.default_rng(0), ranks.shape[-1]

    def mean(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.asarray(np.mean(spearman(first, second), axis=0))

    correlation = float(mean(known, ranks))
    places = np.argsort(rng.random((DRAWS, n)), axis=-1)
    permuted = np.abs(mean(known[:, None], ranks[:, places]))
    drawn = rng.integers(0, n, (DRAWS, n))
    low, high = (
        np.nanquantile(mean(known[:, drawn], ranks[:, drawn]), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        if np.isfinite(correlation)
        else (np.nan, np.nan)
    )
    # Rounding must not tell a permutation that leaves everything as it was from the order itself.
    at_least = np.sum(permuted >= abs(correlation) - 1e-12)
    p = (1 + at_least) / (1 + DRAWS) if np.isfinite(correlation) else np.nan
    chance = float(np.quantile(permuted, LEVEL)) if np.isfinite(correlation) else np.nan
    gains = [gain_over_constant(x, r, fit=fit) for x, r in zip(known, ranks, strict=True)]
    return Prediction(correlation, float(low), float(high), float(p), chance, float(np.mean(gains)))


def mean_of_kind(
    ranks: Float[np.ndarray, "*seeds n"], kinds: list[str]
) -> Float[np.ndarray, "*seeds n"]:
    """Geometric mean of the ranks of the other matrices of a kind; of all others without any.

    Args:
        ranks: r of each matrix.
        kinds: what each matrix is: ``attention.query`` of any block.

    Example:
        >>> mean_of_kind(np.array([2.0, 8.0, 4.0, 1.0]), ["a", "a", "a", "b"]).round(2).tolist()
        [5.66, 2.83, 4.0, 4.0]
    """
    alike = np.array(kinds)[:, None] == np.array(kinds)[None, :]
    others = ~np.eye(len(kinds), dtype=bool)
    chosen = np.where((alike & others).any(axis=1, keepdims=True), alike & others, others)
    weights = chosen / chosen.sum(axis=1, keepdims=True)
    return np.exp(np.log(ranks) @ weights.T)


def without_kind(ranks: Float[np.ndarray, "n"], kinds: list[str]) -> Float[np.ndarray, "n"]:
    """Log r of each matrix less its mean over the matrices of that kind.

    Args:
        ranks: r of each matrix.
        kinds: what each matrix is.

    Example:
        >>> without_kind(np.array([2.0, 8.0, 5.0]), ["a", "a", "b"]).round(3).tolist()
        [-0.693, 0.693, 0.0]
    """
    alike = np.array(kinds)[:, None] == np.array(kinds)[None, :]
    logs = np.log(ranks)
    # Rounded, so that equal ranks stay equal whatever their kind's mean is.
    return np.round(logs - alike @ logs / alike.sum(axis=1), 12)
