"""The rate of each method: the best of several, bracketed, on seeds and texts of their own."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SIDE = 2
"""Rates on each side of the first guess: five at least are tried."""
FARTHEST = 16
"""How many steps the grid may grow to a side."""


class Chosen(NamedTuple):
    """Rates that were tried, and the best one."""

    rate: float
    tried: Float[np.ndarray, "tried"]
    """Rates that were tried, in increasing order."""
    scores: Float[np.ndarray, "tried seed"]
    bracketed: bool
    """Whether worse rates lie on both sides of the best one."""


def rate_at(place: int) -> float:
    """Rate number k of the grid, 10^(k/2).

    Example:
        >>> rate_at(-8), round(rate_at(-5), 5)
        (0.0001, 0.00316)
    """
    return 10.0 ** (place / 2)


def search_rate(score: Callable[[float], Float[np.ndarray, "seed"]], guess: int) -> Chosen:
    """Try five rates around a guess, and more to the side on whose edge the best one lies.

    Args:
        score: ``score(rate)``: a number for each seed, the larger the better; one that is no number
            counts as -1.
        guess: k of the rate in the middle.

    Example:
        >>> best = search_rate(lambda rate: np.array([-abs(np.log10(rate) + 1.0)]), guess=-6)
        >>> best.rate, best.bracketed, len(best.tried)
        (0.1, True, 8)
    """
    scores = {k: score(rate_at(k)) for k in range(guess - SIDE, guess + SIDE + 1)}

    def best() -> int:
        return max(scores, key=lambda k: float(np.mean(np.nan_to_num(scores[k], nan=-1.0))))

    # The edge itself is never taken: the grid grows until a worse rate lies beyond the best one.
    # Bounded: scores that only rise towards one end would be followed for ever.
    while best() in (min(scores), max(scores)) and len(scores) < 2 * SIDE + 1 + FARTHEST:
        further = min(scores) - 1 if best() == min(scores) else max(scores) + 1
        scores[further] = score(rate_at(further))
    tried = sorted(scores)
    return Chosen(
        rate_at(best()),
        np.array([rate_at(k) for k in tried]),
        np.stack([scores[k] for k in tried]),
        best() not in (tried[0], tried[-1]),
    )


class Ridge(NamedTuple):
    """Least squares with a penalty, of features of the encoder as it is."""

    penalty: float
    weights: Float[np.ndarray, "width"]
    bias: float


def ridge(
    features: Float[np.ndarray, "n width"], scores: Float[np.ndarray, "n"], penalty: float
) -> Ridge:
    """The minimiser of mean (w h + b - y)^2 + penalty ||w||^2 times the mean squared feature.

    Example:
        >>> fit = ridge(np.array([[0.0], [1.0], [2.0]]), np.array([1.0, 3.0, 5.0]), 1e-12)
        >>> fit.weights.round(6).tolist(), round(fit.bias, 6)
        ([2.0], 1.0)
    """
    mean, level = features.mean(axis=0), float(scores.mean())
    H, y = features - mean, scores - level
    size = float(np.mean(H**2))
    # With more features than examples the dual system, n x n, is the smaller one.
    K = H @ H.T / len(y) + penalty * size * np.eye(len(y))
    weights = H.T @ np.linalg.solve(K, y) / len(y)
    return Ridge(penalty, weights, level - float(mean @ weights))
