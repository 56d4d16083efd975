"""Starting weights and targets."""

from collections.abc import Sequence
from itertools import accumulate

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Weights


@checked
def layer_scales(scale: Scalar, spread: Scalar, depth: int) -> Float[Array, "depth"]:
    """Geometric scales per layer with geometric mean ``scale`` and last / first = ``spread``.

    Args:
        scale: geometric mean of the scales.
        spread: last scale over the first.
        depth: L, number of layers.

    Raises:
        ValueError: ``depth`` is smaller than 2.

    Example:
        >>> [round(float(s), 3) for s in layer_scales(1.0, 4.0, 3)]
        [0.5, 1.0, 2.0]
    """
    scale, spread = checks.nonnegative("scale", scale), checks.positive("spread", spread)
    checks.integer("depth", depth, 2)
    checks.allocation({"depth": depth}, (depth,))
    return scale * jnp.asarray(spread) ** jnp.linspace(-0.5, 0.5, depth)


@checked
def gaussians(key: Key[Array, ""], shapes: Sequence[tuple[int, int]]) -> list[Float[Array, "_ _"]]:
    """Independent standard Gaussian matrices from one draw (each draw costs 0.3 s of compilation).

    Example:
        >>> [G.shape for G in gaussians(jax.random.key(0), [(2, 3), (4, 1)])]
        [(2, 3), (4, 1)]
    """
    for place, shape in enumerate(shapes):
        checks.sizes(f"shapes[{place}]", shape, 2, 2)
    checks.allocation({"shapes": shapes}, *shapes)
    sizes = [rows * columns for rows, columns in shapes]
    draws = jnp.split(jax.random.normal(key, (sum(sizes),)), list(accumulate(sizes))[:-1])
    return [draw.reshape(shape) for draw, shape in zip(draws, shapes, strict=True)]


@checked
def orthogonal(gaussian: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Haar-distributed (semi-)orthogonal matrix from a Gaussian one of the same shape.

    Example:
        >>> Q = orthogonal(jax.random.normal(jax.random.key(0), (2, 5)))
        >>> [[round(abs(float(x)), 4) for x in row] for row in Q @ Q.T]
        [[1.0, 0.0], [0.0, 1.0]]
    """
    # QR makes columns orthonormal; of a wide matrix the rows shall be.
    if gaussian.shape[0] < gaussian.shape[1]:
        return orthogonal(gaussian.T).T
    return linalg.orthogonal_factor(gaussian)


@checked
def reflection(vector: Float[Array, "d"]) -> Float[Array, "d d"]:
    """Orthogonal matrix without the cost of a decomposition, ``I - 2 v v^T / ||v||^2``.

    Args:
        vector: v, not zero; a Gaussian one makes the matrix random.

    Example:
        >>> reflection(jnp.array([2.0, 0.0])).tolist()
        [[-1.0, 0.0], [0.0, 1.0]]
    """
    outer = vector[:, None] * vector[None, :]
    return jnp.eye(len(vector), dtype=vector.dtype) - 2 * outer / jnp.sum(vector**2)


@checked
def orthogonal_layers(
    key: Key[Array, ""], widths: Sequence[int], scales: Float[Array, "depth"]
) -> Weights:
    """Layers ``W_l(0) = eps_l Q_l`` with Haar-distributed (semi-)orthogonal ``Q_l``.

    Args:
        key: random key.
        widths: ``(d_0, ..., d_L)``; layer l maps ``d_{l-1}`` to ``d_l``.
        scales: ``(eps_1, ..., eps_L)``.

    Raises:
        ValueError: the number of scales is not the number of layers.

    Example:
        >>> (W,) = orthogonal_layers(jax.random.key(0), (4, 4), jnp.array([2.0]))
        >>> bool(jnp.allclose(W @ W.T, 4 * jnp.eye(4), atol=1e-5))
        True
    """
    scales, draws = _layer_gaussians(key, widths, scales)
    if len(set(widths)) == 1:
        # One loop over equal layers compiles once, not once a layer.
        return tuple(scales[:, None, None] * linalg.over_leading_axes(orthogonal, jnp.stack(draws)))
    return tuple(scale * orthogonal(G) for scale, G in zip(scales, draws, strict=True))


def _layer_gaussians(
    key: Key[Array, ""], widths: Sequence[int], scales: Float[Array, "depth"]
) -> tuple[Float[Array, "depth"], list[Float[Array, "_ _"]]]:
    checks.sizes("widths", widths, 2)
    scales = checks.floats("scales", scales, (len(widths) - 1,))
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    checks.allocation({"widths": widths}, *shapes)
    return scales, gaussians(key, shapes)


@checked
def gaussian_layers(
    key: Key[Array, ""], widths: Sequence[int], scales: Float[Array, "depth"]
) -> Weights:
    """Gaussian layers with the expected Frobenius norm of :func:`orthogonal_layers`.

    Args:
        key: random key.
        widths: ``(d_0, ..., d_L)``.
        scales: ``(eps_1, ..., eps_L)``; entries of layer l have variance
            ``eps_l^2 / max(d_{l-1}, d_l)``.

    Example:
        >>> gaussian_layers(jax.random.key(0), (3, 5), jnp.ones(1))[0].shape
        (5, 3)
    """
    scales, draws = _layer_gaussians(key, widths, scales)
    # A semi-orthogonal matrix has min(d_l, d_{l-1}) unit singular values: entries of variance 1
    # over the longer side have that squared norm in the mean.
    return tuple(scale * G / jnp.sqrt(max(G.shape)) for scale, G in zip(scales, draws, strict=True))


@checked
def low_rank_target(
    key: Key[Array, ""], shape: tuple[int, int], singular_values: Float[Array, "r"]
) -> Float[Array, "k d"]:
    """Target ``Phi = U diag(singular_values) V^T`` with random singular subspaces.

    Args:
        key: random key.
        shape: (k, d).
        singular_values: the non-zero singular values, at most min(k, d) of them.

    Raises:
        ValueError: more singular values than the shape has room for.

    Example:
        >>> Phi = low_rank_target(jax.random.key(0), (4, 4), jnp.array([2.0, 1.0]))
        >>> [round(float(s), 4) for s in jnp.linalg.svd(Phi, compute_uv=False)[:2]]
        [2.0, 1.0]
    """
    checks.sizes("shape", shape, 2, 2)
    singular_values = checks.spectrum("singular_values", singular_values)
    rank = singular_values.shape[0]
    if rank > min(shape):
        checks.refuse("singular_values", rank, f"at most {min(shape)} for shape {shape}")
    checks.allocation({"shape": shape}, shape)
    left, right = gaussians(key, [(shape[0], rank), (rank, shape[1])])
    return (orthogonal(left) * singular_values[None, :]) @ orthogonal(right)


@checked
def spaced_singular_values(rank: int, scale: Scalar = 1.0) -> Float[Array, "r"]:
    """Default singular values of a target: evenly spaced from ``scale`` down to ``scale / 2``.

    Example:
        >>> spaced_singular_values(3).tolist()
        [1.0, 0.75, 0.5]
    """
    checks.integer("rank", rank)
    checks.allocation({"rank": rank}, (rank,))
    scale = checks.nonnegative("scale", scale)
    return scale * jnp.linspace(1.0, 0.5, rank)


@checked
def truncated_gaussian_target(
    key: Key[Array, ""], shape: tuple[int, int], rank: int
) -> Float[Array, "k d"]:
    """Best rank-r approximation of a standard Gaussian matrix (the target of Figure 3).

    Args:
        key: random key.
        shape: (k, d).
        rank: r, from 1 to min(k, d).

    Example:
        >>> int(jnp.linalg.matrix_rank(truncated_gaussian_target(jax.random.key(0), (9, 9), 2)))
        2
    """
    checks.sizes("shape", shape, 2, 2)
    checks.integer("rank", rank, 1, min(shape))
    smaller = min(shape)
    factors = (shape[0], smaller), (smaller, shape[1])
    checks.allocation({"shape": shape}, shape, *factors)
    left, values, right = linalg.svd(jax.random.normal(key, shape))
    return (left[:, :rank] * values[None, :rank]) @ right[:rank]
