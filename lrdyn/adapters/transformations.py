"""Algorithm 1 in optax's idiom: GaLore and ReLoRA as transformations of gradients.

For a loop of one's own, in which the model is W itself, merged at every step, and gradients are
taken in W. With S the map of a matrix, R its coordinates and G the gradient in W, a step is ::

    GaLore     W <- W + s S^T opt(S G)
    ReLoRA     R, S <- (R, S) + opt(of s S G and of s G in S),    W <- W + the change of s S^T R

and every T steps, at the first of them, S is chosen anew of G. The lines are those of
:mod:`lrdyn.adapters.algorithm_1`, whose loops take the same path, up to rounding.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from lrdyn.adapters.algorithm_1 import (
    Choice,
    DescentState,
    Method,
    SplitParts,
    WeightParts,
    all_weights,
    begin,
    choice_of,
    frozen_weights,
    maps_of_zeros,
    merged,
    restart_at,
    updates_of,
)
from lrdyn.adapters.methods import GALORE, RELORA, RELORA_FROZEN
from lrdyn.adapters.projectors import (
    Identity,
    LinearMap,
    Projector,
    Side,
    is_map,
    over_maps,
)
from lrdyn.adapters.state import Policy, StatePolicy, resolve_policy
from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Scalar
from lrdyn.core.selection import name_of


class LowRankState(NamedTuple):
    """What :func:`galore` and :func:`relora` hold between two steps; W is not among it.

    Arrays in containers that every library knows, so that flax's NNX and whatever writes
    checkpoints take it as they take optax's own.
    """

    step: Int[Array, ""]
    """Steps that were taken."""
    projectors: tuple[Array, ...]
    """P of each matrix that is adapted, in the order of ``jax.tree.leaves(params)``; of ReLoRA the
    factor that begins there."""
    coordinates: tuple[Array, ...]
    """ReLoRA's other factor of each of them; none for GaLore."""
    inner: PyTree
    """State of the inner optimiser, in the shapes of what it sees: coordinates in the place of each
    matrix; with both factors of ReLoRA a pair of the projectors and of these."""
    counts: tuple[Array, ...]
    """Counts of the adapted parameters, see :class:`lrdyn.adapters.algorithm_1.DescentState`."""


@checked
def galore(
    inner: optax.GradientTransformation,
    *,
    rank: int = 0,
    refresh_every: int | None,
    scale: Scalar = 1.0,
    side: Side | None = None,
    choose: Choice | None = None,
    key: Key[Array, ""] | None = None,
    state: Policy | StatePolicy = "keep",
) -> optax.GradientTransformationExtraArgs:
    """GaLore: gradients S G for an optimiser, its updates lifted, ``s S^T opt(S G)``.

    S is chosen of the gradients of steps 0, T, 2T, ..., by an SVD if no ``choose`` is given:
    P^T G on the smaller side of each matrix. Vectors and numbers are trained as they are. It is
    :data:`lrdyn.GALORE` of :func:`lrdyn.adapters.algorithm1`, up to rounding.

    A rate is inside of ``inner`` or behind, which is the same. A decay is one of all of W:
    ``inner`` may be ``optax.adamw``, see :func:`lrdyn.low_rank_descent`, or
    ``optax.add_decayed_weights`` stands behind in a chain. What must not be projected goes to an
    optimiser of its own by ``optax.partition``.

    Parameters and gradients may differ in type: P and the state have the wider one from the first
    step on. A carry of ``lax.scan`` has one type from the start: there, ``init`` is given
    parameters of that type.

    Args:
        inner: opt, any optax transformation; what it is given has the shapes of S G.
        rank: r, min(m, n) if that is less; not needed with ``choose``.
        refresh_every: T, in steps; None to choose S at the first step alone.
        scale: s, GaLore's alpha, of projected parameters alone.
        side: ``left``, ``right``, ``smaller`` or ``larger``; ``smaller`` if not given.
        choose: maps a key and the gradients to a :class:`~lrdyn.adapters.LinearMap` for each
            parameter: :func:`~lrdyn.adapters.choose_by_path` for stacked layers, or
            ``lambda key, G: lrdyn.adapters.draw_projectors(key, G, r)``.
        key: random key, where maps are drawn; that of a refresh is ``fold_in(key, t)``.
        state: what becomes of the moments and of Adam's count at a refresh: ``keep``, ``reset``,
            ``transport`` or a function, see :data:`~lrdyn.adapters.state.StatePolicy`.

    Raises:
        ValueError: the rank or T is not positive, the side or the policy unknown, a parameter has
            three axes or more of which ``choose`` does not say what it is, or ``inner`` looks at
            the parameters otherwise than by a decoupled decay.

    Note:
        Under ``jax.vmap`` of ``update`` alone the number of the step is batched, and a refresh is
        computed at every step; ``init`` inside of the batched function avoids it.

    Example:
        >>> rule = optax.chain(
        ...     galore(optax.scale_by_adam(), rank=1, refresh_every=50),
        ...     optax.add_decayed_weights(0.1),
        ...     optax.scale_by_learning_rate(1e-3),
        ... )
        >>> params = {"W": jnp.ones((4, 3)), "b": jnp.ones(4)}
        >>> state = rule.init(params)
        >>> updates, state = rule.update(params, state, params)  # some gradients
        >>> state[0].inner.mu["W"].shape, updates["W"].shape
        ((4, 1), (4, 3))

    Reference:
        Zhao et al., GaLore (arXiv 2403.03507).
    """
    chosen = choice_of(GALORE, rank, side, choose)
    return _transformation(GALORE, inner, chosen, refresh_every, scale, key, state)


@checked
def relora(
    inner: optax.GradientTransformation,
    *,
    rank: int = 0,
    refresh_every: int,
    scale: Scalar = 1.0,
    frozen: bool = False,
    side: Side | None = None,
    choose: Choice | None = None,
    key: Key[Array, ""] | None = None,
    state: Policy | StatePolicy = "reset",
) -> optax.GradientTransformationExtraArgs:
    """ReLoRA: both factors of an adapter are trained, and the model has them merged at every step.

    The gradients in the factors follow from the gradient G in the merged W, ``s B^T G`` and
    ``s G A^T``; W moves by the change of s B A, so that there is nothing to merge at a refresh: A
    is drawn anew and B is 0. It is :data:`lrdyn.RELORA` of :func:`lrdyn.adapters.algorithm1`, up to
    rounding, and with ``frozen`` ReLoRA', :data:`lrdyn.RELORA_FROZEN`. The gradient of W is formed,
    as in GaLore; :func:`lrdyn.adapters.layered` is for a model that never forms it.

    The rate belongs into ``inner``, a schedule goes on over a refresh, and
    :func:`~lrdyn.adapters.jagged` is ReLoRA's. What multiplies the updates behind would move W and
    not the factors, and is another algorithm; ``optax.add_decayed_weights`` times the rate, behind,
    decays W. A decay inside of ``inner`` is one of the factors. Types and ``vmap`` are those of
    :func:`galore`.

    Args:
        inner: opt, any optax transformation, with its step size; what it is given are factors.
        rank: r, min(m, n) if that is less; not needed with ``choose``.
        refresh_every: T, in steps.
        scale: s, of the adapter.
        frozen: whether one factor stays at P, as chosen, between two refreshes.
        side: of what is drawn or chosen; if not given, as published: ``right`` for ReLoRA,
            ``smaller`` with ``frozen``.
        choose: see :func:`galore`; if not given, a Gaussian A, or P by an SVD with ``frozen``.
        key: random key, where maps are drawn; that of a refresh is ``fold_in(key, t)``.
        state: see :func:`galore`; both factors have no ``transport``.

    Raises:
        ValueError: as :func:`galore`; a key is missing, or ``transport`` meets trained maps.

    Example:
        >>> rule = relora(optax.sgd(1.0), rank=1, refresh_every=10, key=jax.random.key(0))
        >>> W = jnp.eye(3)
        >>> updates, state = rule.update(W, rule.init(W), W)
        >>> int(jnp.linalg.matrix_rank(updates)), state.coordinates[0].shape
        (1, (3, 1))

    Reference:
        Lialin et al., ReLoRA (arXiv 2307.05695).
    """
    checks.integer("refresh_every", refresh_every)
    method = RELORA_FROZEN if frozen else RELORA
    chosen = choice_of(method, rank, side, choose)
    return _transformation(method, inner, chosen, refresh_every, scale, key, state)


def _transformation(
    published: Method,
    inner: optax.GradientTransformation,
    choose: Choice,
    period: int | None,
    scale: Scalar,
    key: Key[Array, ""] | None,
    state: Policy | StatePolicy,
) -> optax.GradientTransformationExtraArgs:
    """A method as a transformation of gradients in the merged weights."""
    if period is not None:
        checks.integer("refresh_every", period)
    policy = resolve_policy(state)

    def init(params: PyTree) -> LowRankState:
        maps = maps_of_zeros(choose, params)
        _check_maps(maps, published)
        method = _in_plain_containers(published, maps)
        return _hold(method, jnp.zeros((), jnp.int32), begin(method, inner, params, maps))

    def update(
        updates: PyTree, state: Any, params: PyTree | None = None, **extra: Any
    ) -> tuple[PyTree, LowRankState]:
        optimizer = _with_arguments(inner, extra)
        shown = params is not None
        # Without parameters their shapes are enough: they are those of the gradients.
        gradients, weights = _of_one_type(updates, params if shown else updates)
        shapes = jax.eval_shape(lambda G: maps_of_zeros(choose, G), gradients)
        method = _in_plain_containers(published, shapes)

        def refreshed(held: LowRankState) -> LowRankState:
            key_now = None if key is None else jax.random.fold_in(key, held.step)
            run = _resume(method, held, weights, shapes)
            maps = choose(key_now, gradients)
            return _hold(
                method,
                held.step,
                restart_at(method, optimizer, run, weights, maps, policy=policy),
            )

        # Both branches have the types of a run that begins with these gradients, or wider ones.
        held = jax.tree.map(_widen, state, jax.eval_shape(init, weights))
        is_due = held.step % period == 0 if period else held.step == 0
        held = jax.lax.cond(
            is_due,
            lambda held: jax.tree.map(_cast_like, refreshed(held), held),
            lambda held: held,
            held,
        )
        run = _resume(method, held, weights, shapes)
        after, moved = _step(
            method, optimizer, run, gradients, scale, shown=shown, both=_trains_maps(published)
        )
        return moved, _hold(method, jnp.asarray(optax.safe_increment(held.step)), after)

    return optax.GradientTransformationExtraArgs(init, update)


def _step(
    method: Method,
    optimizer: optax.GradientTransformation,
    run: DescentState,
    gradients: PyTree,
    scale: Scalar,
    *,
    shown: bool,
    both: bool,
) -> tuple[DescentState, PyTree]:
    """The run after a step, and by how much the merged weights move."""
    split = run.split
    if method.projects:
        moved, inner, counts = updates_of(
            method, optimizer, run, gradients, scale=scale, shown=shown
        )
        return DescentState(split, inner, counts), moved
    # The loss has the gradient G in the merged weights, whose derivatives in the parts are known.
    _, pull_back = jax.vjp(
        lambda trained: merged(method.parts(split._replace(trained=trained)), scale), split.trained
    )
    (slopes,) = pull_back(gradients)
    updates, inner, counts = updates_of(method, optimizer, run, slopes, shown=shown)
    later = split._replace(trained=optax.apply_updates(split.trained, updates))
    before, after = method.parts(split), method.parts(later)
    moves = method.parts(split._replace(trained=updates))

    def move(S: LinearMap, T: LinearMap, change: LinearMap, R: Array, step: Array) -> Array:
        if isinstance(S, Identity):
            return step
        # T^T (R + step) - S^T R: the difference of two products would have the rounding of both.
        moved = T.lift(step)
        if both:  # S was trained, too
            moved = moved + change.lift(R)
        return jnp.asarray(scale, moved.dtype) * moved

    moved = over_maps(
        move, before.maps, after.maps, moves.maps, before.coordinates, moves.coordinates
    )
    return DescentState(later, inner, counts), moved


def _trains_maps(method: Method) -> bool:
    """Whether S is trained beside R, as both factors of ReLoRA are."""
    return "S" in method.split(WeightParts("W", "S", "R")).trained


def _check_maps(maps: PyTree, method: Method) -> None:
    """Refuse what is no linear map; of trained ones what is not linear in its arrays, too."""
    kinds, words = LinearMap, "a LinearMap for each parameter"
    if _trains_maps(method):
        kinds, words = Projector | Identity, "a Projector or the Identity for each parameter"
    for path, S in jax.tree_util.tree_leaves_with_path(maps, is_leaf=is_map):
        if not isinstance(S, kinds):
            wanted = f'{words} (of choose_by_path, extra="*" trains what is not selected)'
            checks.refuse("choose", f"{type(S).__name__} for {name_of(path) or 'W'}", wanted)


def _hold(method: Method, step: Array, run: DescentState) -> LowRankState:
    """What is held of a run: all but W and what is trained as it is, which the model has."""
    _, S, R = method.parts(run.split)
    if R is not None:
        R = over_maps(lambda S, R: None if isinstance(S, Identity) else R, S, R)
    projectors, coordinates = (tuple(jax.tree.leaves(tree)) for tree in (S, R))
    return LowRankState(step, projectors, coordinates, run.optimizer, run.counts)


def _resume(method: Method, held: LowRankState, weights: PyTree, maps: PyTree) -> DescentState:
    """The run of what is held, for a model of these weights and maps of these shapes."""
    S, R = jax.tree.unflatten(jax.tree.structure(maps), held.projectors), None
    if not method.projects:
        left = iter(held.coordinates)
        R = over_maps(lambda S, W: W if isinstance(S, Identity) else next(left), S, weights)
    return DescentState(method.split(WeightParts(weights, S, R)), held.inner, held.counts)


def _in_plain_containers(method: Method, maps: PyTree) -> Method:
    """The method, with a tuple of arrays in the place of maps that are trained."""
    if not _trains_maps(method):
        return method
    structure = jax.tree.structure(maps)

    def split(parts: WeightParts) -> SplitParts:
        arrays = tuple(jax.tree.leaves(parts.maps))
        return SplitParts((arrays, parts.coordinates), frozen_weights(parts))

    def parts(split: SplitParts) -> WeightParts:
        S, R = structure.unflatten(split.trained[0]), split.trained[1]
        return WeightParts(all_weights(split.frozen, S, R), S, R)

    return method._replace(split=split, parts=parts)


def _with_arguments(
    optimizer: optax.GradientTransformation, extra: dict[str, Any]
) -> optax.GradientTransformation:
    """The optimiser with the further arguments of this step: a loss, for example."""
    if not extra:
        return optimizer
    rule = optax.with_extra_args_support(optimizer)
    return optimizer._replace(
        update=lambda updates, state, params=None: rule.update(updates, state, params, **extra)
    )


def _of_one_type(gradients: PyTree, weights: PyTree) -> tuple[PyTree, PyTree]:
    """Both in the wider type of the two, leaf by leaf."""
    return jax.tree.map(_widen, gradients, weights), jax.tree.map(_widen, weights, gradients)


def _widen(leaf: Any, other: Any) -> Array:
    """The leaf in the wider type of both."""
    if leaf.dtype == other.dtype:  # among them keys, which have no wider type
        return leaf
    return leaf.astype(jnp.promote_types(leaf.dtype, other.dtype))


def _cast_like(leaf: Any, other: Any) -> Array:
    """The leaf in the type of another."""
    return leaf if leaf.dtype == other.dtype else leaf.astype(other.dtype)
