"""Matrix completion and sensing: full and compressed networks that see part of the target.

Phi is the ``target`` and f the ``product`` of a network. M is a ``mask``, 1 where an entry is
observed and 0 elsewhere, and p the fraction of ones; A_1, ..., A_m are linear ``measurements`` and
y_i = <A_i, Phi> their ``values``.

Reference: Kwon et al., Efficient low-dimensional compression of overparameterized models, 2024.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar
from lrdyn.core.initialization import gaussians
from lrdyn.core.masking import masked_loss
from lrdyn.corollary1.compression import CompressedNetwork, compressed_product


@checked
def spread_target(key: Key[Array, ""], shape: tuple[int, int], rank: int) -> Float[Array, "k d"]:
    """Rank-r part of a standard Gaussian matrix with evenly spread singular triplets.

    Kept are the triplets with the (0-based) indices ``floor(i min(k, d) / (2 r))``, i < r: the
    singular values run from the largest to about the median.

    Args:
        key: random key.
        shape: (k, d).
        rank: r, at most min(k, d) / 2.

    Raises:
        ValueError: ``rank`` is out of range.

    Example:
        >>> import jax
        >>> int(jnp.linalg.matrix_rank(spread_target(jax.random.key(0), (12, 12), 3)))
        3
    """
    checks.sizes("shape", shape, 2, 2)
    checks.integer("rank", rank, 1, min(shape) // 2)
    checks.allocation({"shape": shape}, shape)
    (gaussian,) = gaussians(key, [shape])
    left, values, right = linalg.svd(gaussian)
    indices = np.arange(rank) * min(shape) // (2 * rank)
    return (left[:, indices] * values[indices][None, :]) @ right[indices]


@checked
def surrogate(target: Float[Array, "k d"], mask: Float[Array, "k d"]) -> Float[Array, "k d"]:
    """Unbiased estimate of a target from its observed entries, ``M * Phi / p``.

    Example:
        >>> surrogate(jnp.ones((2, 2)), jnp.eye(2)).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    return mask * target / jnp.mean(mask)


@checked
def sensing_loss(
    product: Float[Array, "k d"], measurements: Float[Array, "m k d"], values: Float[Array, "m"]
) -> Float[Array, ""]:
    """Half the mean square of linear measurements, ``1/(2m) sum_i (<A_i, f> - y_i)^2``.

    For standard Gaussian A_i its expectation is ``1/2 ||f - Phi||_F^2``.

    Args:
        product: f.
        measurements: A_i.
        values: y_i.

    Example:
        >>> float(sensing_loss(jnp.eye(2), jnp.ones((1, 2, 2)), jnp.zeros(1)))
        2.0
    """
    return 0.5 * jnp.mean((sense(measurements, product) - values) ** 2)


@checked
def sense(measurements: Float[Array, "m k d"], target: Float[Array, "k d"]) -> Float[Array, "m"]:
    """Linear measurements of a matrix, ``y_i = <A_i, Phi>``.

    Example:
        >>> sense(jnp.ones((2, 2, 2)), jnp.eye(2)).tolist()
        [2.0, 2.0]
    """
    return measurements.reshape(len(measurements), -1) @ target.ravel()


@checked
def sensing_surrogate(
    measurements: Float[Array, "m k d"], values: Float[Array, "m"]
) -> Float[Array, "k d"]:
    """Unbiased estimate of a target from Gaussian measurements, ``(1/m) sum_i y_i A_i``.

    Example:
        >>> sensing_surrogate(jnp.ones((2, 1, 1)), jnp.array([1.0, 2.0])).tolist()
        [[1.5]]
    """
    return jnp.tensordot(values, measurements, 1) / len(values)


@checked
def spectral_network(
    matrix: Float[Array, "k d"], size: int, scale: Scalar, depth: int = 3
) -> CompressedNetwork:
    """Start of a compressed network: outer factors are leading singular subspaces of a matrix.

    ``f_C = (eps U) (eps I) ... (eps I) (eps V^T)`` with ``depth`` factors, L - 2 of them inner.

    Args:
        matrix: the surrogate of the target.
        size: width of the inner layers, 2 r^.
        scale: eps.
        depth: L, the number of factors.

    Raises:
        ValueError: ``depth`` < 3 or ``size`` out of range.

    Example:
        >>> network = spectral_network(jnp.eye(4), 2, 0.1)
        >>> [len(network.inner), network.left.shape, network.right.shape]
        [1, (4, 2), (4, 2)]
    """
    checks.integer("size", size, 1, min(matrix.shape))
    scale = checks.nonnegative("scale", scale)
    checks.integer("depth", depth, 3)
    checks.allocation({"depth": depth}, (depth, size, size), dtype=matrix.dtype)
    left, _, right = linalg.svd(matrix)
    inner = scale * jnp.eye(size, dtype=matrix.dtype)
    return CompressedNetwork(scale * left[:, :size], (inner,) * (depth - 2), scale * right[:size].T)


@checked
def observed_loss(
    product: Float[Array, "k d"], target: Float[Array, "k d"], mask: Float[Array, "k d"]
) -> Float[Array, ""]:
    """Half the mean square on the observed entries, ``1/2 ||M * (f - Phi)||_F^2 / sum M``.

    Args:
        product: f.
        target: Phi.
        mask: M.

    Example:
        >>> float(observed_loss(jnp.zeros((2, 2)), jnp.ones((2, 2)), jnp.eye(2)))
        0.5
    """
    return masked_loss((product,), target, mask) / jnp.sum(mask)


@checked
def recovery_error(product: Float[Array, "k d"], target: Float[Array, "k d"]) -> Float[Array, ""]:
    """Relative distance to the whole target, ``||f - Phi||_F / ||Phi||_F``.

    Example:
        >>> float(recovery_error(jnp.zeros((2, 2)), jnp.eye(2)))
        1.0
    """
    return jnp.linalg.norm(product - target) / jnp.linalg.norm(target)


@checked
def completion_loss(
    network: CompressedNetwork, target: Float[Array, "k d"], mask: Float[Array, "k d"]
) -> Float[Array, ""]:
    """Loss of a compressed network on the observed entries, ``1/2 ||M * (f_C - Phi)||^2 / sum M``.

    Args:
        network: f_C.
        target: Phi.
        mask: M.

    Example:
        >>> network = spectral_network(jnp.eye(4), 2, 1.0)
        >>> float(completion_loss(network, jnp.eye(4), jnp.ones((4, 4))))
        0.0625
    """
    return observed_loss(compressed_product(network), target, mask)


@checked
def sharpness(
    target: Float[Array, "k d"],
    rank: int,
    curvature: Callable[[Float[Array, "k d"]], Float[Array, "k d"]],
    iterations: int = 50,
) -> Float[Array, ""]:
    """Largest curvature of a loss of three balanced layers where their product is the target.

    With ``Phi = U S V^T`` it is the largest eigenvalue of ``K A``, ``K(X) = X V S^{4/3} V^T + U
    S^{2/3} U^T X V S^{2/3} V^T + U S^{4/3} U^T X`` and A the second derivative of the loss in the
    product, by power iteration. Descent with steps above 2 over it leaves the target. Outer layers
    at alpha times the step balance at ``alpha^{1/6} S^{1/3}``, the inner one at ``alpha^{-1/3}
    S^{1/3}``, and alpha^{2/3} times this takes its place.

    Args:
        target: Phi.
        rank: r.
        curvature: A.
        iterations: of the power iteration, which starts at Phi.

    Example:
        >>> round(float(sharpness(jnp.diag(jnp.array([8.0, 0.0])), 1, lambda X: X)), 3)
        48.0
    """
    checks.integer("rank", rank, 1, min(target.shape))
    checks.integer("iterations", iterations)
    left, values, right = linalg.svd(target)
    U, s, V = left[:, :rank], values[:rank][None, :], right[:rank].T

    def flow(X: Float[Array, "k d"]) -> Float[Array, "k d"]:
        X = curvature(X)
        inner = (U * s ** (2 / 3)) @ (U.T @ X @ V) @ (V * s ** (2 / 3)).T
        return X @ (V * s ** (4 / 3)) @ V.T + inner + (U * s ** (4 / 3)) @ (U.T @ X)

    def normalize(X: Float[Array, "k d"]) -> Float[Array, "k d"]:
        return X / jnp.linalg.norm(X)

    # K A is no symmetric map, but similar to K^{1/2} A K^{1/2}: its eigenvalues are real.
    top = jax.lax.fori_loop(0, iterations, lambda _, X: normalize(flow(X)), normalize(target))
    return jnp.linalg.norm(flow(top))


@checked
def tangent_curvature(
    target: Float[Array, "k d"],
    rank: int,
    curvature: Callable[[Float[Array, "k d"]], Float[Array, "k d"]],
) -> Float[Array, ""]:
    """Smallest curvature of a loss along the matrices of rank r: how well it sees the target.

    The smallest eigenvalue of ``P_T A P_T`` on ``T = {U X^T + Z V^T}``, the tangent space of the
    matrices of rank r at ``Phi = U S V^T``, A the second derivative of the loss in the product. A
    loss that sees everything has 1. It is 0 where some matrix of rank r close to the target has
    nearly the same loss. In between, with c this number and a the largest eigenvalue of A, an error
    outside of T can leave one within T that is ``(a / c)^{1/2}`` times as large.

    Args:
        target: Phi.
        rank: r.
        curvature: A.

    Example:
        >>> float(tangent_curvature(jnp.diag(jnp.array([8.0, 0.0])), 1, lambda X: 0.5 * X))
        0.5
    """
    checks.integer("rank", rank, 1, min(target.shape))
    (rows, columns), (left, _, right) = target.shape, linalg.svd(target)
    U, V = left[:, :rank], right[:rank].T
    beside = linalg.complete_basis(U)[:, rank:]

    def to_matrix(coordinates: Float[Array, "n"]) -> Float[Array, "k d"]:
        X, Z = jnp.split(coordinates, [rank * columns])
        # Orthonormal coordinates: the second part is orthogonal to U, so that no direction counts
        # twice.
        return U @ X.reshape(rank, columns) + beside @ Z.reshape(rows - rank, rank) @ V.T

    def column(coordinates: Float[Array, "n"]) -> Float[Array, "n"]:
        bent = curvature(to_matrix(coordinates))
        return jnp.concatenate([(U.T @ bent).ravel(), (beside.T @ bent @ V).ravel()])

    # One direction of T at a time: all at once are as many k x d matrices as T has dimensions.
    directions = jnp.eye(rank * (rows + columns - rank), dtype=target.dtype)
    matrix = jax.lax.map(column, directions)
    # Symmetric up to rounding.
    return linalg.eigh((matrix + matrix.T) / 2)[0][0]


@checked
def discrepant_rates(learning_rate: Scalar, ratio: Scalar) -> optax.GradientTransformation:
    """Gradient descent on a compressed network: eta inside, ``ratio * eta`` for the outer factors.

    Args:
        learning_rate: eta of the inner layers.
        ratio: alpha (or gamma): step of the two outer factors over eta.

    Example:
        >>> import jax
        >>> network = spectral_network(jnp.eye(4), 2, 1.0)
        >>> rule = discrepant_rates(0.1, 5.0)
        >>> updates, _ = rule.update(jax.tree.map(jnp.ones_like, network), rule.init(network))
        >>> float(updates.left[0, 0]), round(float(updates.inner[0][0, 0]), 3)
        (-0.5, -0.1)
    """
    learning_rate = checks.nonnegative("learning_rate", learning_rate)
    ratio = checks.nonnegative("ratio", ratio)
    return optax.partition(
        {"outer": optax.sgd(ratio * learning_rate), "inner": optax.sgd(learning_rate)},
        CompressedNetwork("outer", "inner", "outer"),  # type: ignore[arg-type]
    )
