"""Gradients become low-rank: closed form and stable rank under a linear recursion.

Reference: Zhao et al., GaLore (arXiv 2403.03507), Lemma 3.3.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Steps
from lrdyn.core.spectra import half_of_the_digits, singular_values


class GradientModes(NamedTuple):
    """Eigenvectors of G -> (1/N) sum_i B_i G C_i."""

    values: Float[Array, "mn"]
    """Eigenvalues in increasing order."""
    vectors: Float[Array, "mn mn"]
    """Eigenvectors as columns; a column is a matrix, row after row."""


class Edges(NamedTuple):
    """The eigenvalues that decide how fast the gradient loses rank."""

    first: Float[Array, ""]
    """l_1, the smallest."""
    second: Float[Array, ""]
    """l_2, the next one that is distinct; l_max if there is none."""
    last: Float[Array, ""]
    """l_max."""


@checked
def gradient_modes(
    left: Float[Array, "terms m m"], right: Float[Array, "terms n n"]
) -> GradientModes:
    """Diagonalise S = (1/N) sum_i B_i (x) C_i, which acts on matrices read row after row.

    Args:
        left: B_i, symmetric.
        right: C_i, symmetric.

    Returns:
        The :class:`GradientModes`. (Read column after column the same map is C_i (x) B_i.)

    Raises:
        ValueError: the numbers of terms differ, or a term is not square.

    Example:
        >>> one, two = jnp.eye(1)[None], jnp.diag(jnp.array([1.0, 3.0]))[None]
        >>> gradient_modes(2 * one, two).values.tolist()
        [2.0, 6.0]
    """
    terms, m, n = len(left), left.shape[-1], right.shape[-1]
    # (B W C)_ia = sum_jb B_ij C_ab W_jb for symmetric C, with rows (i, a) and columns (j, b).
    products = jnp.einsum("kij,kab->iajb", left, right) / terms
    return GradientModes(*linalg.eigh(products.reshape(m * n, m * n)))


@checked
def gradient_path(
    modes: GradientModes, start: Float[Array, "m n"], learning_rate: Scalar, steps: Steps
) -> Float[Array, "times m n"]:
    """Solve G <- G - (eta/N) sum_i B_i G C_i: G_t = sum_j (1 - eta l_j)^t <V_j, G_0> V_j.

    Args:
        modes: l_j and V_j.
        start: G_0.
        learning_rate: eta.
        steps: t, in steps.

    Example:
        >>> modes = gradient_modes(jnp.eye(1)[None], jnp.eye(1)[None])
        >>> gradient_path(modes, jnp.ones((1, 1)), 0.5, jnp.arange(3)).ravel().tolist()
        [1.0, 0.5, 0.25]
    """
    _require_fit("start", start, modes)
    learning_rate = checks.nonnegative("learning_rate", learning_rate)
    steps = checks.steps(steps)
    times = jnp.asarray(steps, start.dtype)
    # A power of the step number, and no loop: the descent that it is compared with is one.
    factors = (1 - learning_rate * modes.values)[None, :] ** times[:, None]
    # S is symmetric, its eigenvectors orthonormal: coordinates are inner products.
    coordinates = modes.vectors.T @ start.ravel()
    return ((factors * coordinates[None, :]) @ modes.vectors.T).reshape(-1, *start.shape)


def _require_fit(name: str, matrix: Float[Array, "m n"], modes: GradientModes) -> None:
    """Refuse a matrix that has not as many entries as each of the modes."""
    if matrix.size != len(modes.values):
        checks.refuse(name, f"shape {matrix.shape}", f"{len(modes.values)} entries")


def _slow_modes(modes: GradientModes, tolerance: float | None) -> Bool[Array, "mn"]:
    """Which eigenvalues count as l_1."""
    values = modes.values
    if tolerance is None:
        reach = half_of_the_digits(values.dtype)
    else:
        reach = checks.nonnegative("tolerance", tolerance)
    return values - values[0] <= reach * jnp.max(jnp.abs(values))


@checked
def spectral_edges(modes: GradientModes, tolerance: float | None = None) -> Edges:
    """Find l_1 < l_2 <= l_max.

    Args:
        modes: eigenvalues.
        tolerance: eigenvalues closer to l_1 than this part of the largest absolute one count as
            l_1; by default :func:`lrdyn.core.half_of_the_digits`.

    Example:
        >>> modes = GradientModes(jnp.array([0.0, 1e-9, 0.5, 1.0]), jnp.eye(4))
        >>> [float(value) for value in spectral_edges(modes)]
        [0.0, 0.5, 1.0]
    """
    values = modes.values
    # Where all values count as l_1 the largest is left, and l_2 = l_max.
    others = jnp.where(_slow_modes(modes, tolerance), values[-1], values)
    return Edges(values[0], jnp.min(others), values[-1])


@checked
def slowest_part(
    modes: GradientModes, matrix: Float[Array, "m n"], tolerance: float | None = None
) -> Float[Array, "m n"]:
    """Project a matrix onto the eigenspace of l_1, see :func:`spectral_edges`: G_par of G_0.

    Args:
        modes: eigenvalues and eigenvectors.
        matrix: G_0.
        tolerance: as of :func:`spectral_edges`.

    Example:
        >>> B = jnp.diag(jnp.array([1.0, 0.0]))[None]
        >>> slowest_part(gradient_modes(B, B), jnp.ones((2, 2))).tolist()
        [[0.0, 1.0], [1.0, 1.0]]
    """
    _require_fit("matrix", matrix, modes)
    coordinates = modes.vectors.T @ matrix.ravel()
    slowest = jnp.where(_slow_modes(modes, tolerance), coordinates, 0.0)
    return (modes.vectors @ slowest).reshape(matrix.shape)


@checked
def misalignment(
    modes: GradientModes, part: Float[Array, "m n"], tolerance: float | None = None
) -> Float[Array, ""]:
    """Distance of the top singular pair u v^T of G_par from the eigenspace of l_1.

    Args:
        modes: eigenvalues and eigenvectors.
        part: G_par.
        tolerance: as of :func:`spectral_edges`.

    Returns:
        A number from 0, where Lemma 3.3 of GaLore holds as printed, to 1.

    Example:
        >>> B = jnp.diag(jnp.array([1.0, 0.0]))[None]
        >>> part = jnp.array([[0.0, 0.5], [0.5, 0.75]])
        >>> round(float(misalignment(gradient_modes(B, B), part)), 4)
        0.2
    """
    _require_fit("part", part, modes)
    # First-order change of ||G_par||_2 in the direction R_t: <u v^T, R_t>, 0 if u v^T is in the
    # eigenspace (gradient_rank.md, "As printed it is false").
    left, _, right = linalg.svd(part)
    pair = left[:, :1] @ right[:1]
    return jnp.linalg.norm(pair - slowest_part(modes, pair, tolerance))


@checked
def stable_rank(values: Float[Array, "... k"]) -> Float[Array, "..."]:
    """Stable rank ``||G||_F^2 / ||G||_2^2``.

    Args:
        values: singular values, not all zero.

    Returns:
        A number from 1 to k, at most the rank.

    Example:
        >>> float(stable_rank(jnp.array([2.0, 1.0])))
        1.25
    """
    values = checks.spectrum("values", values)
    return jnp.sum(values**2, axis=-1) / jnp.max(values, axis=-1) ** 2


class StableRankBounds(NamedTuple):
    """Bounds of the stable rank of G_t, see :func:`stable_rank_bounds`."""

    lower: Float[Array, "times"]
    upper: Float[Array, "times"]
    """Infinite while its bracket is not positive."""
    printed: Float[Array, "times"]
    """Lemma 3.3 of GaLore, false in general."""


@checked
def stable_rank_bounds(
    part: Float[Array, "m n"], rest: Float[Array, "m n"], ratio: Scalar, steps: Steps
) -> StableRankBounds:
    """Bounds of sr(G_t), which goes to sr(G_par) as D = G_0 - G_par shrinks by q at each step.

    ::

        lower    ||G_par||_F^2 / (||G_par||_2 + q^t ||D||_F)^2
        upper    (||G_par||_F^2 + q^2t ||D||_F^2) / (||G_par||_2 - q^t ||D||_F)^2
        printed  (||G_par||_F^2 + q^2t ||D||_F^2) / ||G_par||_2^2

    The last one, Lemma 3.3 of GaLore, holds if the top singular pair of G_par lies in the
    eigenspace of l_1 (:func:`misalignment` 0), for example for N = 1 and B or C nonsingular.

    Args:
        part: G_par, see :func:`slowest_part`; not zero.
        rest: D.
        ratio: q = (1 - eta l_2) / (1 - eta l_1), for 0 < eta <= 2/(l_2 + l_max).
        steps: t, in steps.

    Example:
        >>> part = jnp.array([[0.0, 0.5], [0.5, 0.75]])
        >>> rest = jnp.array([[-0.75, 0.0], [0.0, 0.0]])
        >>> bounds = stable_rank_bounds(part, rest, 0.5, jnp.array([0]))
        >>> [round(float(bound[0]), 3) for bound in bounds]
        [0.347, 26.0, 1.625]
        >>> round(float(stable_rank(singular_values(part + rest))), 3)
        2.0
    """
    steps = checks.steps(steps)
    spectral, frobenius = jnp.max(singular_values(part)), jnp.linalg.norm(part)
    left = ratio ** jnp.asarray(steps, part.dtype) * jnp.linalg.norm(rest)
    bracket, whole = spectral - left, frobenius**2 + left**2
    # Where it is not positive nothing is known of the largest singular value.
    upper = whole / jnp.where(bracket > 0, bracket, 1.0) ** 2
    return StableRankBounds(
        lower=frobenius**2 / (spectral + left) ** 2,
        upper=jnp.where(bracket > 0, upper, jnp.inf),
        printed=whole / spectral**2,
    )
