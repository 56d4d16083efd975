"""Follow singular vectors through time: by overlap, since sorted indices swap when values cross."""

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment


def follow(vectors: Float[np.ndarray, "times d n"], start: Float[np.ndarray, "d a"]) -> np.ndarray:
    """Columns that continue ``start``, step by step, each column used once.

    Args:
        vectors: orthonormal columns at each time, in any order; those at time 0 are not used,
            because equal singular values leave them arbitrary.
        start: orthonormal columns at time 0.

    Returns:
        Indices of shape (times - 1, a) into the columns of ``vectors[1:]``.

    Example:
        >>> swapped = np.stack([np.eye(3), np.eye(3)[:, ::-1]])
        >>> follow(swapped, np.eye(3)[:, :2]).tolist()
        [[2, 1]]
    """
    chosen = []
    for columns in vectors[1:]:
        overlap = (start.T @ columns) ** 2
        chosen.append(linear_sum_assignment(-overlap)[1])
        start = columns[:, chosen[-1]]
    return np.array(chosen)


def degrees(sine: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """Angle in [0, 90] degrees from both of its functions: neither end loses digits.

    Args:
        sine: of any sign.
        cosine: of any sign; vectors that differ by a sign are the same direction.

    Returns:
        The angle in degrees.

    Example:
        >>> float(degrees(np.array(1e-12), np.array(-1.0))) > 0
        True
    """
    return np.degrees(np.arctan2(np.abs(sine), np.abs(cosine)))


def vector_angles(
    vectors: Float[np.ndarray, "times d n"], start: Float[np.ndarray, "d n"]
) -> Float[np.ndarray, "times n"]:
    """Angle between each column and its own start, in degrees.

    Args:
        vectors: unit columns at each time.
        start: unit columns at time 0.

    Returns:
        The angles, in [0, 90].

    Example:
        >>> vector_angles(np.eye(2)[None, :, ::-1], np.eye(2)).tolist()
        [[90.0, 90.0]]
    """
    cosines = np.sum(vectors * start, axis=1)
    rests = vectors - cosines[:, None, :] * start
    return degrees(np.linalg.norm(rests, axis=1), cosines)


def subspace_angles(
    vectors: Float[np.ndarray, "times d n"],
    inside: Float[np.ndarray, "d a"],
    outside: Float[np.ndarray, "d b"],
) -> Float[np.ndarray, "times n"]:
    """Angle between each column and a subspace, in degrees.

    Args:
        vectors: unit columns at each time.
        inside: orthonormal basis of the subspace.
        outside: orthonormal basis of its complement.

    Returns:
        The angles, in [0, 90].

    Example:
        >>> subspace_angles(np.eye(3)[None], np.eye(3)[:, :2], np.eye(3)[:, 2:]).tolist()
        [[0.0, 0.0, 90.0]]
    """
    return degrees(
        np.linalg.norm(outside.T @ vectors, axis=1), np.linalg.norm(inside.T @ vectors, axis=1)
    )
