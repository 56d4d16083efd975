"""Losses of factorised linear networks.

Glossary of the axis names used in the annotations of this package:

==========  ==================================================================
``depth``   layers, L; ``W_1`` acts first and is ``weights[0]``
``d``       width of a square layer (``dim`` on the command line)
``k``       rows of a target or of the last layer
``n``       examples
``s``       size of a reduced block, 2 r
``times``   recorded steps
==========  ==================================================================
"""

from collections.abc import Callable
from functools import reduce
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float, Int, Shaped

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.platforms import platform_dependent

Weights = tuple[Float[Array, "_ _"], ...]
"""The layers ``(W_1, ..., W_L)`` of a linear network; ``W_1`` acts first."""
Scalar = float | Float[Array, ""]
"""A number of Python's, or a traced one."""
Decay = Scalar | Float[Array, "depth"]
"""lambda, one for all layers or one for each."""
Steps = Int[Array, "times"] | np.ndarray
"""Increasing step numbers; they may be traced."""
Matmul = Callable[[Float[Array, "m k"], Float[Array, "k n"]], Float[Array, "m n"]]
"""How two matrices are multiplied."""


def is_small(entries: int, dtype: Any) -> bool:
    """Whether many runs at once multiply matrices of so many entries sooner by small_matmul.

    That is up to 12 x 12 in float64 and 20 x 20 in float32, of which a vector of the processor
    holds twice as many; larger ones are multiplied sooner as matrices, those of 32 x 32 in a sixth
    of the time. In float64 14 x 14 is faster with one thread and slower with two
    (``python -m benchmarks cells``).

    Example:
        >>> is_small(12 * 12, "float64"), is_small(16 * 16, "float64"), is_small(16 * 16, "float32")
        (True, False, True)
    """
    checks.integer("entries", entries)
    return entries <= (144 if np.dtype(dtype).itemsize > 4 else 400)


@jax.custom_vjp
@checked
def small_matmul(left: Float[Array, "m k"], right: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """Product of small matrices as a sum of outer products, ``sum_k left[:, k] right[k, :]``.

    Mapped over runs (``vmap``, :func:`lrdyn.core.simulate_lanes`) it becomes element-wise work on
    neighbouring runs. Alone it is slower than ``left @ right``.

    Example:
        >>> small_matmul(jnp.ones((2, 3)), jnp.ones((3, 1))).tolist()
        [[3.0], [3.0]]
    """
    return _product(left, right)


def _sum_of_outer_products(
    left: Float[Array, "m k"] | Float[Array, "m k runs"],
    right: Float[Array, "k n"] | Float[Array, "k n runs"],
) -> Float[Array, "m n"] | Float[Array, "m n runs"]:
    # One loop over the entries of the product, with the sum written out. As ``jnp.sum`` it would be
    # a reduction, which XLA hands from 4,096 numbers on to a library that is two to twenty times
    # slower here; and with a loop for each row, a step has so many that XLA deals them out to
    # threads, which takes longer than they do.
    return reduce(jnp.add, (left[:, k, None] * right[None, k] for k in range(len(right))))


_product = custom_vmap(_sum_of_outer_products)


@_product.def_vmap
def _product_over_runs(
    _: int, has_runs: list[bool], left: Array, right: Array
) -> tuple[Float[Array, "runs m n"], bool]:
    # The same loop over neighbouring runs. What vmap makes of it by itself has the runs in the
    # midst of some arrays, over which XLA goes entry by entry: two times as long, in float32 three
    # times.
    left, right = (
        jnp.moveaxis(factor, 0, -1) if runs else factor[..., None]
        for factor, runs in zip((left, right), has_runs, strict=True)
    )
    product = fix_runs_layout(_sum_of_outer_products(left, right))
    return jnp.moveaxis(product, -1, 0), True


def fix_runs_layout(array: Shaped[Array, "... runs"]) -> Shaped[Array, "... runs"]:
    """Fix the order of an array in memory: the last axis, of the runs, changes fastest.

    Left to itself XLA (of JAX 0.10) puts the runs outermost in the loops of a program that is
    spread over devices, which then take two and a half times as long.

    Example:
        >>> fix_runs_layout(jnp.ones((2, 3))).shape
        (2, 3)
    """
    if not jnp.ndim(array):
        checks.refuse("array", array, "one with an axis of runs")
    return with_layout_constraint(array, Layout(tuple(range(array.ndim))))


# What autodiff makes of the sum is a third slower: products of the same kind are not.
small_matmul.defvjp(
    lambda left, right: (small_matmul(left, right), (left, right)),
    lambda factors, bar: (small_matmul(bar, factors[1].T), small_matmul(factors[0].T, bar)),
)


@checked
def end_to_end(weights: Weights, matmul: Matmul = jnp.matmul) -> Float[Array, "k d"]:
    """Multiply the layers: ``W_L ... W_1``.

    Args:
        weights: layers ``(W_1, ..., W_L)``, ``W_l`` of shape (out, in).
        matmul: how to multiply two matrices.

    Example:
        >>> end_to_end((2 * jnp.eye(2), 3 * jnp.eye(2))).tolist()
        [[6.0, 0.0], [0.0, 6.0]]
    """
    return reduce(lambda product, layer: matmul(layer, product), weights)


def decays(weight_decay: Decay, depth: int | str = "depth") -> Decay:
    """The decay if it is one number, or one for each layer, and nowhere negative.

    Example:
        >>> decays(0.5), decays(jnp.zeros(3), 3).shape
        (0.5, (3,))
    """
    axes = (depth,) if np.shape(weight_decay) else ()
    return checks.nonnegative("weight_decay", weight_decay, axes)


def product_shape(weights: Weights) -> tuple[int, int]:
    """Shape of the product of layers.

    Example:
        >>> product_shape((jnp.ones((3, 2)), jnp.ones((1, 3))))
        (1, 2)
    """
    return weights[-1].shape[0], weights[0].shape[1]


@checked
def factorization_loss(
    weights: Annotated[Weights, "k d"],
    target: Float[Array, "k d"],
    matmul: Matmul = jnp.matmul,
) -> Float[Array, ""]:
    """Squared loss of deep matrix factorisation, ``1/2 ||W_L ... W_1 - Phi||_F^2``.

    Args:
        weights: layers ``(W_1, ..., W_L)``.
        target: Phi.
        matmul: how to multiply two matrices, see :func:`end_to_end`.

    Example:
        >>> float(factorization_loss((jnp.eye(3), jnp.eye(3)), jnp.zeros((3, 3))))
        1.5

    Reference:
        arXiv 2503.19859, Theorems 1 and 2.
    """
    return 0.5 * _sum_of_squares(end_to_end(weights, matmul) - target)


@jax.jit  # traced once for each shape, not at each loss of a program
def _sum_of_squares(residual: Float[Array, "k d"]) -> Float[Array, ""]:
    """Square of the Frobenius norm, ``sum x_ij^2``."""

    # XLA adds the numbers of one sum one after another, but columns side by side. The barrier keeps
    # it from making one sum of the two: at d = 30 that takes a tenth of a step.
    def column_by_column(residual: Array) -> Array:
        return jnp.sum(jax.lax.optimization_barrier(jnp.sum(residual**2, axis=0)))

    return platform_dependent(
        residual, cpu=column_by_column, default=lambda residual: jnp.sum(residual**2)
    )


@checked
def mean_factorization_loss(
    weights: Annotated[Weights, "k d"], target: Float[Array, "k d"]
) -> Float[Array, ""]:
    """Mean form of the squared loss, ``1/2 mean over entries of (W_L ... W_1 - Phi)^2``.

    Gradient descent on it with step ``eta`` and decay ``lambda`` is gradient descent on
    :func:`factorization_loss` with ``eta / (k d)`` and ``lambda k d``.

    Example:
        >>> float(mean_factorization_loss((jnp.eye(2), jnp.eye(2)), jnp.zeros((2, 2))))
        0.25
    """
    return 0.5 * jnp.mean((end_to_end(weights) - target) ** 2)


@checked
def regression_loss(
    weights: Annotated[Weights, "k d"], inputs: Float[Array, "d n"], outputs: Float[Array, "k n"]
) -> Float[Array, ""]:
    """Squared loss of a deep linear network on data, ``1/2 ||W_L ... W_1 X - Y||_F^2``.

    Args:
        weights: layers ``(W_1, ..., W_L)``.
        inputs: X, one example a column.
        outputs: Y, one example a column.

    Example:
        >>> float(regression_loss((jnp.eye(2),), jnp.eye(2), jnp.zeros((2, 2))))
        1.0
    """
    # From the end with the shorter side, so that no two square layers are multiplied.
    if inputs.shape[1] <= outputs.shape[0]:
        prediction = end_to_end((inputs, *weights))
    else:
        prediction = reduce(jnp.matmul, (*weights[::-1], inputs))
    return 0.5 * jnp.sum((prediction - outputs) ** 2)
