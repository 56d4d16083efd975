"""Projectors of ``optax.contrib.galore``: from an SVD in float32, signs as LAPACK leaves them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from lrdyn.adapters import projectors as adapter_projectors
from lrdyn.adapters.projectors import Projector, Side
from lrdyn.core import linalg


def single_precision_projector(gradient: Float[Array, "m n"], rank: int, side: Side) -> Projector:
    """Projector P of optax: from an SVD in float32, with the signs that LAPACK leaves.

    Args:
        gradient: G, in the precision of the run.
        rank: r, columns of P.
        side: ``left``, ``right``, ``smaller`` or ``larger``; optax has the larger one.

    Example:
        >>> import jax.numpy as jnp
        >>> G = jnp.array([[0.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
        >>> P = single_precision_projector(G, 1, "larger")
        >>> P.side, jnp.abs(P.basis).tolist()
        ('left', [[0.0], [1.0], [0.0]])
    """
    # In float32 and without a rule for signs, as optax has it: another SVD would give other P.
    left, _, right = linalg.svd_on_device(gradient.astype(jnp.float32))
    side = adapter_projectors.resolve_side(gradient.shape, side)
    vectors = (left if side == "left" else right.T)[:, :rank]
    return Projector(vectors.astype(gradient.dtype), side)


def align_signs(projector: Projector, other: Projector) -> Projector:
    """Give each column the sign of that of a projector close to it; the subspace stays.

    Args:
        projector: whose columns change their signs.
        other: whose signs they take.

    Example:
        >>> import jax.numpy as jnp
        >>> P, Q = (Projector(sign * jnp.eye(2), "left") for sign in (1.0, -1.0))
        >>> bool(jnp.all(align_signs(P, Q).basis == Q.basis))
        True
    """
    # Close projectors have columns with inner products near 1 or -1: none is near 0.
    signs = jnp.sign(jnp.sum(projector.basis * other.basis, axis=0, keepdims=True))
    return Projector(projector.basis * signs, projector.side)
