"""Second-order points of LoRA: the Hessian by a formula, its gauge directions, Newton's method.

With ``J_kc = (G_kc V, G_kc^T U)`` the derivative of an output and D_k the second derivative of
phi_k (the identity, or ``diag(p) - p p^T``),

    Hessian[(A, B), (A, B)] = sum_k w_k J_k^T D_k J_k + 2 <R, A B^T> + lambda (||A||^2 + ||B||^2).

``(U Q, V Q)`` with Q orthogonal is the same point: along ``(U S, V S)``, S antisymmetric, F does
not change, so that a minimum is one modulo this gauge. Without decay every invertible matrix does
so: ``(U S, -V S^T)``, any S.

At ``(U, V)`` with a column of zeros added to both the Hessian falls into that of (U, V) and the
eigenvalues ``lambda +- sigma_i(R)`` of the new column (and lambda, |m - n| times). A second-order
point of rank UV^T < r is a point of this kind, up to the gauge, if it is stationary and lambda > 0,
for then ``U^T U = V^T V``. So it has ``||R||_2 <= lambda``, and is a global minimum.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lrdyn.core import linalg
from lrdyn.core.spectra import half_of_the_digits
from lrdyn.studies.lora_landscape.problem import (
    SQUARED,
    Factors,
    LinearisedModel,
    duality_gap,
    largest_decay,
    lora_loss,
)


def flat(factors: Factors) -> Float[Array, "p"]:
    """U and V as one vector, row by row."""
    return jnp.concatenate([factors.U.ravel(), factors.V.ravel()])


def unflat(x: Float[Array, "p"], like: Factors) -> Factors:
    """The factors of a vector of :func:`flat`."""
    size = like.U.size
    return Factors(x[:size].reshape(like.U.shape), x[size:].reshape(like.V.shape))


def gradient(model: LinearisedModel, factors: Factors) -> Float[Array, "p"]:
    """The gradient of F: ``(R V + lambda U, R^T U + lambda V)``."""
    U, V = factors
    R = model.residual(factors.product)
    return flat(Factors(R @ V + model.decay * U, R.T @ U + model.decay * V))


def hessian(model: LinearisedModel, factors: Factors) -> Float[Array, "p p"]:
    """The Hessian of F in the coordinates of :func:`flat`.

    Example:
        >>> one = jnp.ones((1, 1, 1, 1))
        >>> model = LinearisedModel(one, one[0, 0], jnp.ones(1), jnp.asarray(0.5), "squared")
        >>> hessian(model, Factors(0 * one[0, 0], 0 * one[0, 0])).tolist()  # R = -1
        [[0.5, -1.0], [-1.0, 0.5]]
    """
    U, V = factors
    G, R = model.features, model.residual(factors.product)
    (N, K, m, n), r = G.shape, U.shape[1]
    J = jnp.concatenate(
        [
            jnp.einsum("kcab,bs->kcas", G, V).reshape(N, K, m * r),
            jnp.einsum("kcab,as->kcbs", G, U).reshape(N, K, n * r),
        ],
        axis=2,
    )
    if model.loss == SQUARED:
        DJ = J
    else:
        p = jax.nn.softmax(model.outputs(factors.product), axis=1)
        DJ = p[:, :, None] * (J - jnp.sum(p[:, :, None] * J, axis=1, keepdims=True))
    J = (model.weights[:, None, None] * J).reshape(N * K, -1)
    beside = jnp.einsum("ab,st->asbt", R, jnp.eye(r, dtype=U.dtype)).reshape(m * r, n * r)
    whole = J.T @ DJ.reshape(N * K, -1) + model.decay * jnp.eye(J.shape[1], dtype=U.dtype)
    return whole.at[: m * r, m * r :].add(beside).at[m * r :, : m * r].add(beside.T)


def gauge_directions(factors: Factors, *, decays: bool) -> Float[Array, "p g"]:
    """Directions in which the product (and, with decay, F) stays: columns, not orthonormal.

    Args:
        factors: U and V.
        decays: whether lambda > 0: then S is antisymmetric, r (r - 1) / 2 of them; else any, r^2.

    Example:
        >>> ones = Factors(jnp.ones((3, 2)), jnp.ones((4, 2)))
        >>> [gauge_directions(ones, decays=decays).shape for decays in (True, False)]
        [(14, 1), (14, 4)]
    """
    U, V = factors
    r = U.shape[1]
    pairs = [(i, j) for i in range(r) for j in range(r) if not decays or i < j]
    S = np.zeros((len(pairs), r, r))
    for place, (i, j) in enumerate(pairs):
        S[place, i, j] = 1.0
    if decays:
        S -= S.swapaxes(1, 2)
    of_U = jnp.einsum("as,gst->gat", U, S.astype(U.dtype))
    of_V = jnp.einsum("bs,gts->gbt", V, -S.astype(V.dtype))
    return jnp.concatenate([of_U.reshape(len(S), U.size), of_V.reshape(len(S), V.size)], axis=1).T


def least_curvature(
    model: LinearisedModel, factors: Factors, *, decays: bool
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Smallest eigenvalue of the Hessian off the gauge directions, and its largest absolute one.

    Args:
        model: the model.
        factors: U and V.
        decays: whether lambda > 0, see :func:`gauge_directions`.

    Example:
        >>> one = jnp.ones((1, 1, 1, 1))
        >>> model = LinearisedModel(one, one[0, 0], jnp.ones(1), jnp.asarray(0.5), "squared")
        >>> zero = Factors(0 * one[0, 0], 0 * one[0, 0])
        >>> [float(value) for value in least_curvature(model, zero, decays=True)]
        [-0.5, 1.5]
    """
    H = hessian(model, factors)
    eigenvalues = linalg.eigh(H)[0]
    size = jnp.max(jnp.abs(eigenvalues))
    T = gauge_directions(factors, decays=decays)
    if not T.shape[1]:
        return eigenvalues[0], size
    left, values, _ = linalg.svd(T)
    # Directions that a lower rank leaves without length are none; half of the digits tell them.
    kept = values > half_of_the_digits(H.dtype) * jnp.maximum(values[0], 1e-30)
    basis = left * kept[None]
    off = jnp.eye(len(H), dtype=H.dtype) - basis @ basis.T
    # The gauge directions get the largest eigenvalue: they are the smallest nowhere.
    return linalg.eigh(off @ H @ off + size * basis @ basis.T)[0][0], size


class Newton(NamedTuple):
    """Damped Newton's method on its way."""

    x: Float[Array, "p"]
    value: Float[Array, ""]
    damping: Float[Array, ""]
    step: Int[Array, ""]
    resting: Bool[Array, ""]


class End(NamedTuple):
    """Where a descent ended, and what tells whether it is a global minimum."""

    U: Float[Array, "m r"]
    V: Float[Array, "n r"]
    value: Float[Array, ""]
    """F."""
    gap: Float[Array, ""]
    """F - min F over all ranks is at most this."""
    gradient: Float[Array, ""]
    """||gradient|| over :func:`~.problem.largest_decay`."""
    curvature: Float[Array, ""]
    """Smallest eigenvalue of the Hessian off the gauge over its largest absolute one."""
    norm: Float[Array, ""]
    """||R||_2."""
    values: Float[Array, "k"]
    """Singular values of U V^T."""
    steps: Int[Array, ""]


STEPS = 400
"""Steps of Newton's method, refused ones among them; most descents need below 60."""


def descend(model: LinearisedModel, start: Factors, *, decays: bool, steps: int = STEPS) -> End:
    """Damped Newton's method on F from a start, to a second-order point.

    A step solves ``(H + mu I) p = -gradient`` with mu so large that the matrix is positive definite
    and F falls; mu shrinks by 4 at each step that does, and grows by 4 at one that is refused.

    Args:
        model: the model.
        start: U and V; zeros are a saddle that no step leaves.
        decays: whether lambda > 0, see :func:`gauge_directions`.
        steps: the most steps.
    """
    eps = jnp.finfo(start.U.dtype).eps
    size = largest_decay(model)
    # Three quarters of the digits: in the value, which is of second order, all of them.
    small = eps**0.75 * size

    def slope(x: Array) -> Array:
        return gradient(model, unflat(x, start))

    def value_of(x: Array) -> Array:
        return lora_loss(model, unflat(x, start))

    def step(now: Newton) -> Newton:
        H, g = hessian(model, unflat(now.x, start)), slope(now.x)
        shifted = H + now.damping * jnp.eye(len(H), dtype=H.dtype)
        move = -solve_positive(shifted, g)
        x = now.x + move
        value = value_of(x)
        # Where F moves by rounding alone a smaller gradient says that it fell. A matrix that is
        # not positive definite leaves NaN, which is neither.
        level = jnp.abs(value - now.value) <= 8 * eps * jnp.abs(now.value)
        smaller = jnp.linalg.norm(slope(x)) < jnp.linalg.norm(g)
        falls = (value < now.value) & ~level | level & smaller
        return Newton(
            jnp.where(falls, x, now.x),
            jnp.where(falls, value, now.value),
            jnp.clip(jnp.where(falls, now.damping / 4, now.damping * 4), 1e-3 * eps, 1e30),
            now.step + 1,
            jnp.linalg.norm(slope(jnp.where(falls, x, now.x))) <= small,
        )

    def goes_on(now: Newton) -> Array:
        # A damping of more than the Hessian's size a million times moves nothing any more.
        return ~now.resting & (now.step < steps) & (now.damping < 1e8 * size)

    x = flat(start)
    begin = Newton(x, value_of(x), 1.0 * size, jnp.asarray(0), jnp.asarray(False))
    end = jax.lax.while_loop(goes_on, step, begin)
    return examine(model, unflat(end.x, start), decays=decays)._replace(steps=end.step)


@linalg.sequential_on_cpu
def solve_positive(matrix: Float[Array, "p p"], right: Float[Array, "p"]) -> Float[Array, "p"]:
    """``matrix^-1 right`` by Cholesky's factors; NaN if the matrix is not positive definite."""
    factor = jnp.linalg.cholesky(matrix)
    half = jax.scipy.linalg.solve_triangular(factor, right, lower=True)
    return jax.scipy.linalg.solve_triangular(factor, half, lower=True, trans=1)


def examine(model: LinearisedModel, factors: Factors, *, decays: bool) -> End:
    """What tells of a point whether it is a second-order point, and whether a global minimum."""
    least, size = least_curvature(model, factors, decays=decays)
    return End(
        *factors,
        value=lora_loss(model, factors),
        gap=duality_gap(model, factors),
        gradient=jnp.linalg.norm(gradient(model, factors)) / largest_decay(model),
        curvature=least / size,
        norm=linalg.svdvals(model.residual(factors.product))[0],
        values=linalg.svdvals(factors.product),
        steps=jnp.asarray(0),
    )
