"""Compressed Deep LoRA: small inner layers between frames that come from one gradient."""

from functools import partial, reduce
from operator import matmul

import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.adapters.deep_lora_method import DeepFactors
from lrdyn.adapters.maps import Parametrization, Separate, Side, matrices_alone
from lrdyn.adapters.memory import Footprint, Formula
from lrdyn.adapters.method import Method
from lrdyn.adapters.relora import RELORA_FROZEN
from lrdyn.core import checks
from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import orthogonal_layers
from lrdyn.corollary1 import compression


def full_width_layers(
    key: Key[Array, ""], shape: tuple[int, int], depth: int, init_scale: float
) -> Weights:
    """The layers W_1(0), ..., W_L(0) that are compressed: eps * orthogonal, of width min(m, n).

    W_L is m x n if m >= n, and W_1 if not; its columns, or rows, are orthonormal.

    Example:
        >>> import jax
        >>> [W.shape for W in full_width_layers(jax.random.key(0), (2, 5), 3, 0.1)]
        [(2, 5), (2, 2), (2, 2)]
    """
    checks.sizes("shape", shape, 2, 2)
    checks.integer("depth", depth, 2)
    m, n = shape
    return orthogonal_layers(key, (n, *[min(m, n)] * (depth - 1), m), jnp.full(depth, init_scale))


def compressed_factors(
    layers: Weights, gradient: Float[Array, "m n"], rank: int
) -> tuple[tuple[Array, ...], Float[Array, ""]]:
    """The factors U, eps I, ..., eps I, V^T of the compressed product, and the gap of the gradient.

    V has s = ``rank`` columns: the basis of :func:`lrdyn.corollary1.gradient_basis`, s / 2
    directions of the gradient of W_1 and s / 2 of its product with W_1. U = W_L ... W_1 V / prod
    eps. If m < n all this is done for the transposed matrix.

    Args:
        layers: W_1, ..., W_L.
        gradient: of the loss in the matrix that is adapted.
        rank: s, even.

    Example:
        >>> import jax
        >>> layers = full_width_layers(jax.random.key(0), (4, 4), 2, 0.1)
        >>> factors, gap = compressed_factors(layers, jnp.diag(jnp.array([1.0, 0, 0, 0])), 2)
        >>> [F.shape for F in factors], float(gap)
        ([(4, 2), (2, 2), (2, 2), (2, 4)], 0.0)
    """
    layers = checks.layers(layers, name="layers")
    gradient = checks.floats("gradient", gradient, (layers[-1].shape[0], layers[0].shape[1]))
    if checks.integer("rank", rank, 2) % 2:
        checks.refuse("rank", rank, "an even number: half from the gradient, half from its product")
    if gradient.shape[0] < gradient.shape[1]:
        turned = tuple(W.T for W in reversed(layers))
        factors, gap = compressed_factors(turned, gradient.T, rank)
        return tuple(F.T for F in reversed(factors)), gap
    first, *others = layers
    of_first = reduce(matmul, reversed(others)).T @ gradient
    basis = compression.gradient_basis((first,), of_first, rank // 2)
    network = compression.gradient_network(layers, basis.columns)
    return (network.left, *reversed(network.inner), network.right.T), basis.gap


def compressed_deep_lora(
    *, depth: int = 3, init_scale: float = 1e-3, centred: bool = False
) -> Method:
    """Compressed Deep LoRA (arXiv 2406.04112): W + s U (W_L ... W_1) V^T, W_l of r x r.

    U and V come from the gradient of one batch at W, see :func:`compressed_factors`: :func:`init`
    needs ``gradients``, Algorithm 1 has them. The gap of each gradient is a field of its adapter.
    The labels are ``frame`` for U and V and ``inner`` for the layers: the paper trains the frame at
    a small part gamma of the rate, with :func:`lrdyn.adapters.by_label`. At gamma = 0, on a square
    matrix, with plain descent on a squared loss of whitened inputs, it is the run of full width up
    to the error of Corollary 1 if the target is of rank r / 2 or less away from W: see
    ``python -m experiments.lora``.

    Args:
        depth: L, layers between U and V.
        init_scale: eps.
        centred: subtract the product at the start, so that a run begins at W.

    Example:
        >>> import jax, lrdyn
        >>> params = {"W": jnp.ones((4, 4))}
        >>> found = lrdyn.adapters.init(
        ...     jax.random.key(0), params, rank=2, method=compressed_deep_lora(), gradients=params)
        >>> len(found["W"].factors), bool(found["W"].gap < 1e-6)
        (5, True)
    """
    checks.integer("depth", depth, 2)
    checks.positive("init_scale", init_scale)
    checks.instance("centred", centred, bool)
    times = 2 if centred else 1
    held = f"mn + {times}mr + {times * depth}rr + {times}nr"
    return RELORA_FROZEN._replace(
        choose=partial(_choose, depth=depth, init_scale=init_scale, centred=centred),
        once=True,
        memory=Footprint(Formula(held), Formula(f"2mr + {2 * depth}rr + 2nr"), 1),
    )


def _choose(
    key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side, *,
    depth: int, init_scale: float, centred: bool,
) -> PyTree:  # fmt: skip
    def one(key: Key[Array, ""], G: Array) -> Parametrization:
        m, n = G.shape
        layers = full_width_layers(key, (m, n), depth, init_scale)
        layers = tuple(W.astype(G.dtype) for W in layers)
        factors, gap = compressed_factors(layers, G, rank)
        start = factors if centred else None
        return Separate(DeepFactors(factors, jnp.ones((), G.dtype), start, gap, framed=True))

    return matrices_alone(one, key, gradients)
