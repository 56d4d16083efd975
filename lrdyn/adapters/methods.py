"""The methods of Algorithm 1: values of :class:`lrdyn.adapters.Method`, and what belongs to them.

====================  ===========================================================================
FULL                  :data:`FULL`
GaLore                :data:`GALORE`; what optax's holds, :data:`OPTAX_GALORE`
ReLoRA                :data:`RELORA`, :data:`RELORA_FROZEN`, its schedule :func:`jagged`
LoRA                  :data:`LORA`, :func:`lora`, its scales :func:`over_rank`, :func:`over_root`
LoRA-FA               :data:`LORA_FA`
LoRA+                 :func:`lora_plus`, an optimiser; :func:`by_label` has one for each label
PiSSA                 :data:`PISSA`
DoRA                  :data:`DORA`
Deep LoRA             :func:`deep_lora`
compressed Deep LoRA  :func:`compressed_deep_lora`
====================  ===========================================================================

W is m x n, the rank is r and s is the scale. Beside each method stands what it holds for one matrix
(:class:`lrdyn.adapters.Footprint`).
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.adapters.adapter import DeepFactors, DirectedFactors, Factors, labels, row_norms
from lrdyn.adapters.algorithm_1 import (
    Method,
    SplitParts,
    WeightParts,
    all_weights,
    frozen_weights,
)
from lrdyn.adapters.memory import DECOMPOSED, PROJECTED, SVD, Footprint, Formula
from lrdyn.adapters.projectors import (
    Identity,
    Law,
    LinearMap,
    Projector,
    Side,
    choose_by_svd,
    choose_identity,
    draw_projectors,
    is_matrix,
    map_matrices,
)
from lrdyn.core import checks, linalg
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar, Weights
from lrdyn.core.initialization import orthogonal_layers
from lrdyn.core.selection import name_of
from lrdyn.corollary1 import compression
from lrdyn.theorem2.subspace import unscaled_product

# GaLore, full training ---------------------------------------------------------------------------

GALORE = Method(
    split=lambda parts: SplitParts(parts.weights, parts.maps),
    parts=lambda split: WeightParts(split.trained, split.frozen, None),
    projects=True,
    choose=choose_by_svd,
    gradients=True,
    side="smaller",
    state="keep",
    memory=Footprint(
        weights=Formula("mn"),
        state=Formula("mr + 2nr"),
        counters=1,
        merged=PROJECTED,
        refresh=DECOMPOSED,
    ),
)
"""The gradient is projected, the update is lifted; P comes from an SVD of the gradient every T
steps, on the smaller side, and the state of the optimiser is kept (arXiv 2403.03507)."""

FULL = GALORE._replace(
    choose=choose_identity,
    gradients=False,
    once=True,
    # W X became E in place; it is held with the gradient E X^T.
    memory=Footprint(
        weights=Formula("mn"),
        state=Formula("2mn"),
        counters=1,
        merged=Formula("mn + mb"),
    ),
)
"""Full training: P is the identity, for every parameter and for ever."""

OPTAX_GALORE = Footprint(
    weights=Formula("mn"),
    state=Formula("nr + 2mr"),
    counters=2,
    # One program steps and refreshes: the gradient is needed again after its SVD.
    merged=Formula("mn", ("mb", "nr", SVD)),
)
"""What :data:`FULL` holds if its optimiser is ``optax.contrib.galore``: P on the larger side.
Its SVD is in float32 in either precision: in float64 a step needs up to half of it less."""

# ReLoRA ------------------------------------------------------------------------------------------

FACTORS = Formula("mn + mr + nr")
"""W, B and A."""

RELORA_FROZEN = Method(
    split=lambda parts: SplitParts(parts.coordinates, (frozen_weights(parts), parts.maps)),
    parts=lambda split: WeightParts(
        all_weights(split.frozen[0], split.frozen[1], split.trained), split.frozen[1], split.trained
    ),
    choose=choose_by_svd,
    gradients=True,
    side="smaller",
    state="reset",
    memory=Footprint(
        weights=FACTORS,
        state=Formula("2nr"),
        counters=1,
        merged=PROJECTED,
        layered=Formula("rb", ("2mb", "nr")),
        refresh=DECOMPOSED,
    ),
)
"""ReLoRA': one factor is frozen at GaLore's P; the other, from 0, is trained and merged every T
steps, and the state of the optimiser is reset. Line 3 of Algorithm 1 chooses P."""

RELORA = Method(
    split=lambda parts: SplitParts((parts.maps, parts.coordinates), frozen_weights(parts)),
    parts=lambda split: WeightParts(all_weights(split.frozen, *split.trained), *split.trained),
    choose=draw_projectors,
    side="right",
    state="reset",
    memory=Footprint(
        weights=FACTORS,
        state=Formula("2mr + 2nr"),
        counters=1,
        # W + B A and then its gradient, with E, or with the gradients of the trained factors.
        merged=Formula("mn", ("mb", "mr + nr")),
        # A X is kept; with it W X and B (A X), or E, B^T E and the gradient of B, or that of A.
        layered=Formula("rb", ("2mb", "mb + rb + mr", "nr")),
        # B A is formed and added; the rest happens in place.
        refresh=Formula("mn"),
    ),
)
"""ReLoRA as published: both factors are trained; every T steps B A is merged, A drawn anew and B
set to 0 (arXiv 2307.05695). With ``choose`` of another kind the factor that is not 0 starts there:
at GaLore's P, say."""


@checked
def jagged(schedule: optax.Schedule, *, period: int, warmup: int, start: int = 0) -> optax.Schedule:
    """ReLoRA's schedule: at each refresh the rate falls to 0 and comes back within a few steps.

    At t = start + T, start + 2 T, ... it is multiplied by 0, 1 / k, 2 / k, ... up to 1, k the
    ``warmup``. The schedule's count goes on over a refresh. ReLoRA's code keeps Adam's as well:
    ``state=lrdyn.adapters.reset(count=False)``. A full-rank warm start of so many steps is a run of
    :data:`lrdyn.FULL` before.

    Args:
        schedule: the rate without the falls.
        period: T.
        warmup: k, at most T.
        start: when the periods begin.

    Example:
        >>> rate = jagged(optax.constant_schedule(1.0), period=4, warmup=2)
        >>> [float(rate(t)) for t in range(8)]
        [1.0, 1.0, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0]
    """
    checks.integer("period", period)
    checks.integer("warmup", warmup, 1, period)
    checks.integer("start", start, 0)

    def rate(count: Any) -> Any:
        since = jnp.asarray(count) - start
        # Integers of 32 bits would be divided in float32.
        share = jnp.minimum(jnp.mod(since, period).astype(float) / warmup, 1.0)
        return schedule(count) * jnp.where(since < period, 1.0, share)

    return rate


# LoRA, LoRA-FA, LoRA+ ----------------------------------------------------------------------------

LORA = RELORA._replace(once=True, memory=RELORA.memory._replace(refresh=None))
"""W + s B A. Both factors are trained, from a Gaussian A and B = 0, and W is frozen for ever (arXiv
2106.09685): ReLoRA that never merges. The scale s is alpha / r there, :func:`over_rank`, and
alpha / sqrt(r) in rsLoRA (arXiv 2312.03732), :func:`over_root`.

A, on the right, is on the side of the inputs of a W that multiplies as W x (PyTorch, equinox), as
PEFT has it. For kernels of inputs x outputs, x W (flax), the same start is ``lora(zero="A")``: its
random factor is B, on the left. With ``law="kaiming"`` it has PEFT's distribution."""


def lora(*, zero: Literal["A", "B"] = "B", law: Law = "gaussian") -> Method:
    """LoRA with another start (arXiv 2406.08447 compares them): one factor is 0, one is drawn.

    Args:
        zero: which factor is 0. With B = 0 the first step moves B alone, with A = 0 it moves A.
        law: of the other, of length l (n for A, m for B): ``gaussian``, of variance 1 / l, or
            ``kaiming``, uniform within 1 / sqrt(l).

    Example:
        >>> import lrdyn
        >>> adapters = lrdyn.adapters.init(
        ...     jax.random.key(0), {"W": jnp.eye(3)}, rank=2, method=lora(zero="A"))
        >>> adapters["W"].A.any().item(), adapters["W"].B.any().item()
        (False, True)
    """
    if zero not in ("A", "B"):
        checks.refuse("zero", repr(zero), "'A' or 'B'")
    if law not in get_args(Law):
        checks.refuse("law", repr(law), f"one of {', '.join(get_args(Law))}")
    # The map S is the factor that is drawn, and coordinates begin at 0: S on the right is A.
    side = "right" if zero == "B" else "left"
    return LORA._replace(choose=partial(draw_projectors, law=law), side=side)


@checked
def over_rank(alpha: float | int) -> Callable[[int], float]:
    """The scale s = alpha / r, as a function of r (arXiv 2106.09685).

    Example:
        >>> over_rank(16)(8)
        2.0
    """
    alpha = checks.positive("alpha", alpha)
    return lambda rank: alpha / checks.integer("rank", rank)


@checked
def over_root(alpha: float | int) -> Callable[[int], float]:
    """The scale s = alpha / sqrt(r), as a function of r: rsLoRA (arXiv 2312.03732).

    Example:
        >>> over_root(16)(4)
        8.0
    """
    alpha = checks.positive("alpha", alpha)
    return lambda rank: alpha / checks.integer("rank", rank) ** 0.5


LORA_FA = RELORA_FROZEN._replace(
    choose=draw_projectors,
    gradients=False,
    side="right",
    once=True,
    memory=Footprint(
        weights=FACTORS,
        state=Formula("2mr"),
        counters=1,
        by_sides=False,
        # W + B A and then its gradient, with E, or with that of B.
        merged=Formula("mn", ("mb", "mr")),
        # A X is kept; with it W X and B (A X), or E and the gradient of B.
        layered=Formula("rb", ("2mb", "mb + mr")),
    ),
)
"""W + s B A with A frozen where it was drawn, and B trained from 0 (arXiv 2308.03303): ReLoRA with
a frozen factor that never merges. For the gradient A x alone is kept, and not x."""


@checked
def by_label(
    rules: Mapping[str, optax.GradientTransformation], adapters: PyTree
) -> optax.GradientTransformation:
    """An optimiser for each label of :func:`lrdyn.adapters.labels`; what is frozen stays.

    Args:
        rules: label -> optimiser, for ``A``, ``B``, ``magnitude``, ``factors``, ``inner``,
            ``frame``, ``extra``.
        adapters: what is trained.

    Raises:
        ValueError: there is a label without an optimiser.

    Example:
        >>> adapters = {"W": Factors(jnp.ones((2, 1)), jnp.ones((1, 2)))}
        >>> rule = by_label({"A": optax.sgd(1.0), "B": optax.sgd(2.0)}, adapters)
        >>> updates, _ = rule.update(adapters, rule.init(adapters))
        >>> updates["W"].B.tolist(), updates["W"].A.tolist()
        ([[-2.0], [-2.0]], [[-1.0, -1.0]])
    """
    # optax wants an optimiser for each label that occurs, and none besides.
    words = labels(adapters)
    every = {"frozen": optax.set_to_zero(), **rules}
    used = set(jax.tree.leaves(words))
    if not any(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(adapters)):
        checks.refuse("adapters", f"type {type(adapters).__name__}", "adapters, or other arrays")
    if missing := sorted(used - set(every)):
        checks.refuse("rules", ", ".join(rules) or "none", f"one for {', '.join(missing)}")
    return optax.multi_transform({name: every[name] for name in sorted(used)}, words)


@checked
def lora_plus(
    rule: Callable[[Scalar], optax.GradientTransformation],
    rate: Scalar,
    ratio: Scalar,
    adapters: PyTree,
) -> optax.GradientTransformation:
    """LoRA+ (arXiv 2402.12354): B is trained at ``ratio`` times the rate of A; ratio 1 is LoRA.

    The rates may be traced, so that one program serves every ratio. In Algorithm 1, where what is
    trained of LoRA is A and then B, ``optax.multi_transform({"A": ..., "B": ...}, ("A", "B"))`` is
    the same.

    Args:
        rule: maps a rate to an optimiser, such as ``optax.adam``.
        rate: of A, and of the parameters that are trained as they are.
        ratio: rate of B over that of A; 16 there.
        adapters: what is trained.

    Example:
        >>> adapters = {"W": Factors(jnp.ones((2, 1)), jnp.ones((1, 2)))}
        >>> rule = lora_plus(optax.sgd, 1.0, 16.0, adapters)
        >>> rule.update(adapters, rule.init(adapters))[0]["W"].B.tolist()
        [[-16.0], [-16.0]]
    """
    rate, ratio = checks.nonnegative("rate", rate), checks.nonnegative("ratio", ratio)
    plain = rule(rate)
    names = set(jax.tree.leaves(labels(adapters))) - {"frozen"}
    return by_label(dict.fromkeys(names, plain) | {"B": rule(ratio * rate)}, adapters)


# PiSSA, DoRA: their starts come from W -----------------------------------------------------------


def principal_factors(S: Any, weight: Array, scale: Any) -> Any:
    """PiSSA's start: B = U (S / s)^(1/2), A = (S / s)^(1/2) V^T of the top-r triples of W.

    Args:
        S: what was chosen; a projector, of which the rank alone is taken, for a matrix.
        weight: W.
        scale: s.

    Example:
        >>> rank_1 = Projector(jnp.zeros((2, 1)), "right")
        >>> start = principal_factors(rank_1, jnp.diag(jnp.array([4.0, 1.0])), 1.0)
        >>> jnp.abs(start.B).round(6).tolist(), jnp.abs(start.A).round(6).tolist()
        ([[2.0], [0.0]], [[2.0, 0.0]])
    """
    if not isinstance(S, Projector):
        return S
    weight, scale = checks.floats("weight", weight, ("m", "n")), checks.positive("scale", scale)
    dtype = jnp.promote_types(weight.dtype, jnp.float32)  # LAPACK has no narrower one
    left, values, right = linalg.svd(weight.astype(dtype))
    rank = S.basis.shape[1]
    # Split evenly, so that B and A have the same norm and move at the same speed.
    roots = jnp.sqrt(values[:rank] / jnp.asarray(scale, dtype))
    B = (left[:, :rank] * roots[None]).astype(weight.dtype)
    A = (roots[:, None] * right[:rank]).astype(weight.dtype)
    # The scale 1 stands for "not yet": ``adapter_of`` multiplies it by s.
    return Factors(B, A, jnp.ones((), weight.dtype), (B, A))


def _choose_zero_projectors(
    key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side
) -> PyTree:
    """Projectors of the rank, which are 0: :func:`principal_factors` takes their place."""

    def choose(path: tuple[Any, ...], G: Array) -> LinearMap:
        if not is_matrix(name_of(path), G):
            return Identity()
        return Projector(jnp.zeros((G.shape[1], min(rank, *G.shape)), G.dtype), "right")

    return jax.tree_util.tree_map_with_path(choose, gradients)


PISSA: Method = RELORA_FROZEN._replace(
    choose=_choose_zero_projectors,
    fit=principal_factors,
    gradients=False,
    once=True,
    memory=Footprint(
        weights=Formula("mn + 2mr + 2nr + 1"),
        state=Formula("2mr + 2nr"),
        counters=1,
    ),
)
"""W + s B A - s B_0 A_0 from B = B_0, A = A_0, where s B_0 A_0 is the best approximation of W of
rank r, B_0 = U (S / s)^(1/2) and A_0 = (S / s)^(1/2) V^T (arXiv 2404.02948). The paper
holds the residual W - s B_0 A_0 in the place of W, and is left with LoRA: that is
:func:`lrdyn.adapters.rebase`. In Algorithm 1, whose ``scale``
is another one, s is 1 here; :func:`lrdyn.adapters.init` gives it."""


def directed_factors(S: Any, weight: Array, scale: Any) -> Any:
    """DoRA's start: a factor that is drawn, the other is 0, magnitudes the norms of the rows of W.

    Args:
        S: what was chosen; a projector for a matrix.
        weight: W.
        scale: s, which has no part in it.

    Example:
        >>> drawn = Projector(jnp.ones((2, 1)), "right")
        >>> directed_factors(drawn, jnp.array([[3.0, 4.0]]), 1.0).magnitude.tolist()
        [5.0]
    """
    if not isinstance(S, Projector):
        return S
    shape = (len(S.basis), "n") if S.side == "left" else ("m", len(S.basis))
    weight = checks.floats("weight", weight, shape)
    B, A = S.factors(jnp.zeros_like(S.project(weight)))
    return DirectedFactors(B, A, jnp.ones((), weight.dtype), magnitude=row_norms(weight))


DORA: Method = RELORA_FROZEN._replace(
    choose=draw_projectors,
    fit=directed_factors,
    side="right",
    gradients=False,
    once=True,
    memory=Footprint(
        weights=Formula("mn + mr + nr + m + 1"),
        state=Formula("2mr + 2nr + 2m"),
        counters=1,
        by_sides=False,
    ),
)
"""W' = diag(m / ||W + s B A||) (W + s B A), the norms those of the rows and held constant in the
gradient; m starts at the norms of the rows of W, A Gaussian and B = 0 (arXiv 2402.09353)."""

# Deep LoRA, and compressed -----------------------------------------------------------------------


@checked
def deep_lora(*, depth: int = 3, init_scale: float = 1e-3, centred: bool = False) -> Method:
    """Deep LoRA (arXiv 2406.04112): W + s W_L ... W_1, each W_l(0) = eps * orthogonal.

    The rank is the width between the factors, m x r, r x r, ..., r x n: with r = n = m it is the
    overparametrised product of the paper, whose updates have low rank all the same (Theorem 2).
    Depth 2 is LoRA with another start.

    Args:
        depth: L.
        init_scale: eps.
        centred: subtract the product at the start, so that a run begins at W.

    Example:
        >>> import lrdyn
        >>> adapters = lrdyn.adapters.init(
        ...     jax.random.key(0), {"W": jnp.ones((4, 3))}, rank=2, method=deep_lora())
        >>> [F.shape for F in adapters["W"].factors]
        [(4, 2), (2, 2), (2, 3)]
    """
    _check_deep(depth, init_scale, centred)

    def choose(key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side) -> PyTree:
        def draw(key: Key[Array, ""], G: Array) -> DeepFactors:
            (m, n), width = G.shape, min(rank, *G.shape)
            scales = jnp.full(depth, init_scale, G.dtype)
            layers = orthogonal_layers(key, (n, *[width] * (depth - 1), m), scales)
            # Layers are numbered from the input on, and a product is written from the output.
            factors = tuple(W.astype(G.dtype) for W in reversed(layers))
            start = factors if centred else None
            return DeepFactors(factors, jnp.ones((), G.dtype), start)

        return map_matrices(draw, key, gradients)

    # Between the outer factors, m x r and r x n, stand depth - 2 of r x r: at depth 2 none.
    memory = _deep_footprint(depth - 2, centred, numbers=1)
    return RELORA_FROZEN._replace(
        choose=choose, side="right", gradients=False, once=True, memory=memory
    )


def _check_deep(depth: int, init_scale: float, centred: bool) -> None:
    checks.integer("depth", depth, 2)
    checks.positive("init_scale", init_scale)
    checks.instance("centred", centred, bool)


def _deep_footprint(inner: int, centred: bool, numbers: int) -> Footprint:
    """What a product with so many factors of r x r between the outer two, and numbers, holds."""
    # The factors at the start are held as well, where they are subtracted.
    times = 2 if centred else 1
    return Footprint(
        weights=Formula(f"mn + {times}mr + {times * inner}rr + {times}nr + {numbers}"),
        state=Formula(f"2mr + {2 * inner}rr + 2nr"),
        counters=1,
    )


@checked
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
    ``lrdyn verify lora``.

    Args:
        depth: L, layers between U and V.
        init_scale: eps.
        centred: subtract the product at the start, so that a run begins at W.

    Example:
        >>> import lrdyn
        >>> params = {"W": jnp.ones((4, 4))}
        >>> adapters = lrdyn.adapters.init(
        ...     jax.random.key(0), params, rank=2, method=compressed_deep_lora(), gradients=params)
        >>> len(adapters["W"].factors), bool(adapters["W"].gap < 1e-6)
        (5, True)
    """
    _check_deep(depth, init_scale, centred)

    def choose(key: Key[Array, ""] | None, gradients: PyTree, rank: int, side: Side) -> PyTree:
        def draw(key: Key[Array, ""], G: Array) -> DeepFactors:
            m, n = G.shape
            layers = full_width_layers(key, (m, n), depth, init_scale)
            wide = jnp.promote_types(G.dtype, jnp.float32)  # LAPACK has no narrower one
            layers = tuple(W.astype(wide) for W in layers)
            found, gap = compressed_factors(layers, G.astype(wide), rank)
            factors = tuple(F.astype(G.dtype) for F in found)
            start, gap = factors if centred else None, gap.astype(G.dtype)
            return DeepFactors(factors, jnp.ones((), G.dtype), start, gap, framed=True)

        return map_matrices(draw, key, gradients)

    # Beside the scale it holds the gap.
    memory = _deep_footprint(depth, centred, numbers=2)
    return RELORA_FROZEN._replace(choose=choose, once=True, memory=memory)


@checked
def full_width_layers(
    key: Key[Array, ""], shape: tuple[int, int], depth: int, init_scale: float
) -> Weights:
    """The layers W_1(0), ..., W_L(0) that are compressed: eps * orthogonal, of width min(m, n).

    W_L is m x n if m >= n, and W_1 if not; its columns, or rows, are orthonormal.

    Args:
        key: random key.
        shape: (m, n), that of the matrix that is adapted.
        depth: L, number of layers.
        init_scale: eps.

    Example:
        >>> [W.shape for W in full_width_layers(jax.random.key(0), (2, 5), 3, 0.1)]
        [(2, 5), (2, 2), (2, 2)]
    """
    checks.sizes("shape", shape, 2, 2)
    checks.integer("depth", depth, 2)
    checks.positive("init_scale", init_scale)
    m, n = shape
    width = min(m, n)
    checks.allocation({"shape": shape, "depth": depth}, (depth - 1, width, width), (m, n))
    return orthogonal_layers(key, (n, *[width] * (depth - 1), m), jnp.full(depth, init_scale))


@checked
def compressed_factors(
    layers: Annotated[Weights, "m n"], gradient: Float[Array, "m n"], rank: int
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
        >>> layers = full_width_layers(jax.random.key(0), (4, 4), 2, 0.1)
        >>> factors, gap = compressed_factors(layers, jnp.diag(jnp.array([1.0, 0, 0, 0])), 2)
        >>> [F.shape for F in factors], float(gap)
        ([(4, 2), (2, 2), (2, 2), (2, 4)], 0.0)
    """
    if checks.integer("rank", rank, 2) % 2:
        checks.refuse("rank", rank, "an even number: half from the gradient, half from its product")
    if gradient.shape[0] < gradient.shape[1]:
        transposed = tuple(W.T for W in reversed(layers))
        factors, gap = compressed_factors(transposed, gradient.T, rank)
        return tuple(F.T for F in reversed(factors)), gap
    first, *others = layers
    # Its direction is that of the gradient of W_1, whose size may underflow.
    of_first = unscaled_product(tuple(others)).T @ gradient
    basis = compression.gradient_basis((first,), of_first, rank // 2)
    network = compression.gradient_network(layers, basis.columns)
    return (network.left, *reversed(network.inner), network.right.T), basis.gap
