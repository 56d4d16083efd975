"""Follow singular vectors through time: by overlap, since sorted indices swap when values cross."""

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment


def follow(vectors: Float[np.ndarray, "times d n"], start: Float[np.ndarray, "d a"]) -> np.ndarray:
    """Indices of the columns that continue ``start``, (times - 1, a), each column used once.

    The columns at each time are orthonormal and in any order. Those at time 0 are not used, because
    equal singular values leave them arbitrary.
    """
    chosen = []
    for columns in vectors[1:]:
        overlap = (start.T @ columns) ** 2
        chosen.append(linear_sum_assignment(-overlap)[1])
        start = columns[:, chosen[-1]]
    return np.array(chosen)


def degrees(sine: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """Angle in [0, 90] degrees from both of its functions, of any sign: no end loses digits."""
    return np.degrees(np.arctan2(np.abs(sine), np.abs(cosine)))


def vector_angles(
    vectors: Float[np.ndarray, "times d n"], start: Float[np.ndarray, "d n"]
) -> Float[np.ndarray, "times n"]:
    """Angle between each unit column and its own start, in degrees."""
    cosines = np.sum(vectors * start, axis=1)
    rests = vectors - cosines[:, None, :] * start
    return degrees(np.linalg.norm(rests, axis=1), cosines)


def subspace_angles(
    vectors: Float[np.ndarray, "times d n"],
    inside: Float[np.ndarray, "d a"],
    outside: Float[np.ndarray, "d b"],
) -> Float[np.ndarray, "times n"]:
    """Angle between each unit column and a subspace, from bases of it and of its complement."""
    parts = (np.linalg.norm(basis.T @ vectors, axis=1) for basis in (outside, inside))
    return degrees(*parts)
