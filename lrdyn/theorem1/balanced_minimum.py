"""The Hessian of the factorised loss at its balanced minimum, at any depth, without decay.

At ``W_l = U_l diag(s^{1/L}) U_{l-1}^T``, whose product is Phi of rank r, f = 1/2 ||W_L ... W_1 -
Phi||_F^2 is 0 and its Hessian is J^T J, J the derivative of the product. J J^T maps X to ``sum_l
A_l A_l^T X B_l^T B_l`` with A_l the layers above l and B_l those below, which are diagonal in the
same bases: its eigenvectors are u_i v_j^T.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar


@checked
def balanced_spectrum(values: Float[Array, "d"], depth: int) -> Float[Array, "d d"]:
    """Eigenvalues of the Hessian at a balanced minimum, for the direction u_i v_j^T.

    ``mu_ij = sum_{l=1}^L s_i^{2(L-l)/L} s_j^{2(l-1)/L}``, 0^0 = 1: 0 if and only if s_i = s_j = 0,
    so that d^2 - (d - r)^2 of them are not. The other L d^2 - d^2 eigenvalues are 0.

    Args:
        values: all d singular values s_i of the target, zeros among them.
        depth: L.

    Raises:
        ValueError: the depth is below 2.

    Example:
        >>> balanced_spectrum(jnp.array([4.0, 0.0]), 2).tolist()  # s_i + s_j
        [[8.0, 4.0], [4.0, 0.0]]
    """
    checks.integer("depth", depth, 2)
    roots = [values ** (2 * l / depth) for l in range(depth)]
    return sum(
        (high[:, None] * low[None, :] for high, low in zip(reversed(roots), roots, strict=True)),
        start=jnp.zeros((len(values), len(values)), values.dtype),
    )


@checked
def least_sharpness(largest: Scalar, depth: int) -> Float[Array, ""]:
    """Least sharpness of all factorisations of Phi, ``L s_1^{2 - 2/L}``: that of the balanced one.

    Whatever the inner widths: for any other the largest eigenvalue of the Hessian is at least
    ``sum_l ||A_l^T u_1||^2 ||B_l v_1||^2``, and the products of these over l are at least
    s_1^{L-1}. With a step above 2 over it every minimum of gradient descent is linearly unstable.

    Args:
        largest: s_1 > 0.
        depth: L.

    Example:
        >>> float(least_sharpness(4.0, 2))
        8.0
    """
    checks.integer("depth", depth, 2)
    return depth * jnp.asarray(checks.positive("largest", largest)) ** (2 - 2 / depth)
