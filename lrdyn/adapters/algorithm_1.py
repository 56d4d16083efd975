"""Algorithm 1: descent in few coordinates. What a method says, its lines, and the loop.

:mod:`lrdyn.adapters.methods` has the methods: GaLore, ReLoRA, LoRA and its relatives.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn.adapters import decay
from lrdyn.adapters.memory import Footprint
from lrdyn.adapters.projectors import (
    Identity,
    Parametrization,
    Side,
    adapter_of,
    begin_coordinates,
    choose_identity,
    is_map,
    lift_onto,
    over_maps,
    project,
)
from lrdyn.adapters.state import Owners, Policy, StatePolicy, owners_of, resolve_policy
from lrdyn.core import checks
from lrdyn.core.algorithm import Algorithm, Cost
from lrdyn.core.checks import checked
from lrdyn.core.descent import (
    Loss,
    Trajectory,
    divergence_limit,
    first_divergence,
    mark_batched,
    partition_loss,
    scan_records,
)
from lrdyn.core.factorization import Scalar
from lrdyn.core.precision import full_precision

Choice = Callable[[Key[Array, ""] | None, PyTree], PyTree]
"""``choose(key, gradients)``: a :class:`~lrdyn.adapters.LinearMap` for each parameter."""
Choose = Callable[[Key[Array, ""] | None, PyTree, int, Side], PyTree]
"""``choose(key, gradients, rank, side)``: one :class:`~lrdyn.adapters.LinearMap` or
:class:`~lrdyn.adapters.Adapter` a parameter."""


class WeightParts(NamedTuple):
    """The weights of a network, W + s S^T A, part by part."""

    weights: PyTree
    """W: what the run began with, or what was merged at the last refresh."""
    maps: PyTree
    """S: for each parameter a :class:`~lrdyn.adapters.LinearMap`, or of an
    :class:`~lrdyn.adapters.Adapter` what is not trained, as chosen at the last refresh."""
    coordinates: PyTree
    """A (B, if S is on the right; the rest of an adapter), or of a parameter that is trained as it
    is the parameter itself; None if there is nothing to merge."""


class SplitParts(NamedTuple):
    """The parts of the weights by what becomes of them between two refreshes."""

    trained: PyTree
    """What gradients are taken in, and what moves."""
    frozen: PyTree
    """What stays as it is until the next refresh."""


@checked
def merged(parts: WeightParts, scale: Any = 1.0) -> PyTree:
    """W + s S^T A, one array for each parameter.

    Example:
        >>> import lrdyn
        >>> S = lrdyn.adapters.Projector(jnp.ones((2, 1)), "left")
        >>> merged(WeightParts(jnp.eye(2), S, jnp.ones((1, 2)))).tolist()
        [[2.0, 1.0], [1.0, 2.0]]
    """
    W, S, A = parts
    if A is None:
        return W
    return over_maps(lambda S, W, A: _merge_one(S, W, A, scale), S, W, A)


def _merge_one(S: Parametrization, W: Array, A: Any, scale: Any) -> Array:
    return A if isinstance(S, Identity) else lift_onto(W, S, A, scale)


@checked
def layered(parts: WeightParts, scale: Any = 1.0) -> PyTree:
    """W + s S^T A, an :class:`~lrdyn.adapters.Adapted` for each matrix that has factors.

    For a loss that uses a matrix as ``W @ x`` or ``x @ W`` only: W x + s B (A x). Layers that are
    stacked in one array for a scan are merged.

    Example:
        >>> import lrdyn
        >>> S = lrdyn.adapters.Projector(jnp.ones((2, 1)), "left")
        >>> layer = layered(WeightParts(jnp.eye(2), S, jnp.ones((1, 2))))
        >>> layer.adapter.B.shape, (layer @ jnp.ones(2)).tolist()
        ((2, 1), [3.0, 3.0])
    """
    if parts.coordinates is None:
        return parts.weights
    W, S, A = parts

    def layer(S: Parametrization, W: Array, A: Any) -> Any:
        if isinstance(S, Identity) or W.ndim > 2:
            return _merge_one(S, W, A, scale)
        return adapter_of(S, A, scale).layer(W)

    return over_maps(layer, S, W, A)


@checked
def restarted(old: WeightParts, weights: PyTree, maps: PyTree) -> WeightParts:
    """W is what was merged, S is new, A begins (at 0); only mistakes look at the parts before.

    A parameter that is trained as it is goes on from where it is.

    Args:
        old: the parts before.
        weights: what they were merged to.
        maps: the new S, one for each parameter.

    Example:
        >>> import lrdyn
        >>> W, S = jnp.ones((2, 2)), lrdyn.adapters.Projector(jnp.ones((2, 1)), "left")
        >>> restarted(WeightParts(W, S, W[:1]), 2 * W, S).coordinates.tolist()
        [[0.0, 0.0]]
    """
    leaves, structure = jax.tree.flatten(maps, is_leaf=is_map)
    pairs = [
        (S, W) if isinstance(S, Identity) else begin_coordinates(S, W)
        for S, W in zip(leaves, structure.flatten_up_to(weights), strict=True)
    ]
    fixed, coordinates = (structure.unflatten(pair[i] for pair in pairs) for i in (0, 1))
    return WeightParts(weights, fixed, coordinates)


@checked
def frozen_weights(parts: WeightParts) -> PyTree:
    """W of the adapted parameters; None for those trained as they are, which are held once.

    Args:
        parts: the parts of the weights.

    Example:
        >>> import lrdyn
        >>> maps = {"W": lrdyn.adapters.Projector(jnp.ones((2, 1)), "left"), "b": Identity()}
        >>> frozen_weights(WeightParts({"W": "matrix", "b": "bias"}, maps, None))
        {'W': 'matrix', 'b': None}
    """
    return over_maps(lambda S, W: None if isinstance(S, Identity) else W, parts.maps, parts.weights)


def all_weights(frozen: PyTree, maps: PyTree, coordinates: PyTree) -> PyTree:
    """W of all parameters: of :func:`frozen_weights`, and those that are trained as they are.

    Args:
        frozen: W of the adapted parameters.
        maps: S for each parameter.
        coordinates: of the parts of the weights.

    Example:
        >>> all_weights({"b": None}, {"b": Identity()}, {"b": "bias"})
        {'b': 'bias'}
    """
    return over_maps(lambda S, W, R: R if isinstance(S, Identity) else W, maps, frozen, coordinates)


class Method(NamedTuple):
    """What tells GaLore, ReLoRA and LoRA apart: the lines of Algorithm 1 in which they differ.

    Example:
        >>> import lrdyn
        >>> parts = WeightParts("W", "S", "A")
        >>> [method.split(parts) for method in (lrdyn.GALORE, lrdyn.RELORA_FROZEN, lrdyn.RELORA)]
        [SplitParts(trained='W', frozen='S'),
         SplitParts(trained='A', frozen=('W', 'S')),
         SplitParts(trained=('S', 'A'), frozen='W')]
    """

    split: Callable[[WeightParts], SplitParts]
    """What is trained and what is frozen."""
    parts: Callable[[SplitParts], WeightParts]
    """The inverse of ``split``."""
    choose: Choose
    """Line 3, as published."""
    side: Side
    """Side of S, as published."""
    state: Policy
    """Line 4, as published: what becomes of the state of the optimiser."""
    memory: Footprint
    """What it holds for one matrix and Adam."""
    projects: bool = False
    """Lines 6 and 8: W is trained, frozen are the maps S; the optimiser sees S G, and its update is
    lifted. If not, it sees the gradient in what is trained."""
    fit: Callable[[Any, Array, Any], Any] = lambda S, weight, scale: S
    """Line 3, continued: S for a parameter W at a scale s, where a method starts from W."""
    restart: Callable[[WeightParts, PyTree, PyTree], WeightParts] = restarted
    """Lines 2 and 4: the parts after a refresh."""
    once: bool = False
    """S is chosen at the start, and there is no refresh."""
    gradients: bool = False
    """Line 3 looks at the gradients, and not at their shapes alone."""


# Its lines, for a method, a loss f, an optimiser opt and a scale s -----------------------------


class DescentState(NamedTuple):
    """What a run holds from one step to the next."""

    split: SplitParts
    optimizer: PyTree
    """State of the optimiser, its counts those of the parameters that are trained as they are."""
    counts: tuple[Array, ...] = ()
    """Counts of the adapted parameters' steps, if there are parameters of both kinds: a reset
    begins these anew and leaves the others."""


@checked
def begin(
    method: Method, optimizer: optax.GradientTransformation, weights: PyTree, maps: PyTree
) -> DescentState:
    """Begin a run of a method from the weights W with given maps S.

    Args:
        method: the method.
        optimizer: opt, any optax transformation.
        weights: W, a PyTree of arrays.
        maps: S, a linear map or an adapter for each parameter.

    Example:
        >>> import lrdyn
        >>> S = lrdyn.adapters.Projector(jnp.ones((2, 1)), "left")
        >>> begin(lrdyn.GALORE, optax.trace(0.9), jnp.ones((2, 3)), S).optimizer.trace.shape
        (1, 3)
    """
    maps = _fit_maps(method, maps, weights)
    return _begin_state(
        method, optimizer, restarted(WeightParts(weights, maps, None), weights, maps)
    )


def _fit_maps(method: Method, maps: PyTree, weights: PyTree) -> PyTree:
    # The scale of Algorithm 1 multiplies what is added: a start of W itself has s = 1.
    return over_maps(lambda S, W: method.fit(S, W, 1.0), maps, weights)


def _begin_state(
    method: Method, optimizer: optax.GradientTransformation, parts: WeightParts
) -> DescentState:
    split = method.split(parts)
    # GaLore's optimiser sees coordinates alone: its state must have their shapes, not those of W.
    inner = optimizer.init(_optimizer_view(method, split, split.trained))
    owners = _owners(method, optimizer, split)
    return DescentState(split, inner, () if method.once else owners.second_counts(inner))


def _optimizer_view(method: Method, split: SplitParts, trained: PyTree) -> PyTree:
    """What the optimiser sees of a gradient: line 6."""
    return project(split.frozen, trained) if method.projects else trained


def _owners(method: Method, optimizer: optax.GradientTransformation, split: SplitParts) -> Owners:
    """Which parts of the optimiser's state belong to parameters that are adapted."""
    parts = method.parts(split)

    def mark_adapted(part: PyTree) -> PyTree:
        """Whether a parameter is adapted, in the place of each of its arrays."""
        return over_maps(
            lambda S, node: jax.tree.map(lambda _: not isinstance(S, Identity), node),
            parts.maps,
            part,
        )

    adapted = method.split(
        WeightParts(*(p if p is None else mark_adapted(p) for p in parts))
    ).trained
    return owners_of(optimizer, _optimizer_view(method, split, split.trained), adapted)


@checked
def refresh(
    method: Method,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    state: DescentState,
    choose: Choice,
    key: Key[Array, ""] | None = None,
    *,
    policy: StatePolicy,
    scale: Any = 1.0,
) -> DescentState:
    """Lines 2 to 4 of Algorithm 1: ``choose`` makes new maps S of the key and the gradients.

    The policy is about the adapted parameters: their moments, and the counts of their steps beside
    these. What belongs to parameters that are trained as they are goes on as if there were no
    refresh, and so does all else in the state: the count of a schedule, its hyperparameters.

    Args:
        method: the method.
        loss: f, of the merged weights.
        optimizer: opt.
        state: the run before the refresh.
        choose: makes the new maps of the key and the gradients at the merged weights.
        key: random key, where maps are drawn.
        policy: what becomes of the state of the adapted parameters.
        scale: s.

    Example:
        >>> import lrdyn
        >>> from lrdyn.adapters.state import POLICIES
        >>> rule, loss = optax.sgd(1.0), lambda W: jnp.sum(W ** 2) / 2
        >>> S, T = (lrdyn.adapters.Projector(jnp.eye(2)[:, i:i + 1], "left") for i in (0, 1))
        >>> state = begin(lrdyn.RELORA_FROZEN, rule, jnp.ones((2, 1)), S)
        >>> value, state = step(lrdyn.RELORA_FROZEN, loss, rule, state)
        >>> state = refresh(lrdyn.RELORA_FROZEN, loss, rule, state, lambda key, G: T,
        ...                 policy=POLICIES["reset"])
        >>> state.split.frozen[0].tolist(), state.split.trained.tolist()
        ([[0.0], [1.0]], [[0.0]])
    """
    weights = merged(method.parts(state.split), scale)
    # The gradient at the merged weights, before anything is restarted: all methods look at the same
    # point, as Theorem 4 needs.
    maps = choose(key, jax.grad(loss)(weights))
    return restart_at(method, optimizer, state, weights, maps, policy=policy)


@checked
def restart_at(
    method: Method,
    optimizer: optax.GradientTransformation,
    state: DescentState,
    weights: PyTree,
    maps: PyTree,
    *,
    policy: StatePolicy,
) -> DescentState:
    """Lines 2 and 4: go on from the merged weights W with new maps S.

    Args:
        method: the method.
        optimizer: opt.
        state: the run before the refresh.
        weights: W, merged.
        maps: S, as chosen.
        policy: what becomes of the state of the adapted parameters.

    Example:
        >>> import lrdyn
        >>> from lrdyn.adapters.state import POLICIES
        >>> S, T = (lrdyn.adapters.Projector(jnp.eye(2)[:, i:i + 1], "left") for i in (0, 1))
        >>> state = begin(lrdyn.GALORE, optax.trace(0.9), jnp.ones((2, 1)), S)
        >>> state = restart_at(lrdyn.GALORE, optax.trace(0.9), state, jnp.ones((2, 1)), T,
        ...                    policy=POLICIES["keep"])
        >>> state.split.frozen.basis.tolist()
        [[0.0], [1.0]]
    """
    old, maps = method.parts(state.split), _fit_maps(method, maps, weights)
    fresh = _begin_state(method, optimizer, method.restart(old, weights, maps))
    owners = _owners(method, optimizer, fresh.split)
    present = owners.with_counts(state.optimizer, state.counts)
    renewed = policy(fresh.optimizer, present, old.maps, maps)
    return DescentState(fresh.split, *owners.renew(state.optimizer, state.counts, renewed))


@checked
def step(
    method: Method,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    state: DescentState,
    *,
    scale: Any = 1.0,
    network: Callable[[WeightParts, Any], PyTree] = merged,
) -> tuple[Float[Array, ""], DescentState]:
    """Lines 6 to 8 of Algorithm 1: the loss before the step, and the run after it.

    ``network`` makes of the parts what the loss is given, :func:`merged` or :func:`layered`.

    Args:
        method: the method.
        loss: f, of what ``network`` makes.
        optimizer: opt.
        state: the run before the step.
        scale: s.
        network: :func:`merged` or :func:`layered`.

    Example:
        >>> import lrdyn
        >>> rule, S = optax.sgd(0.5), lrdyn.adapters.Projector(jnp.eye(2)[:, :1], "left")
        >>> state = begin(lrdyn.GALORE, rule, jnp.ones((2, 1)), S)
        >>> value, state = step(lrdyn.GALORE, lambda W: jnp.sum(W ** 2) / 2, rule, state)
        >>> float(value), state.split.trained.tolist()
        (1.0, [[0.5], [1.0]])
    """
    value, _, state = _take_step(
        method, lambda W: (loss(W), None), optimizer, state, scale, network
    )
    return value, state


def _take_step(
    method: Method,
    cost: Cost,
    optimizer: optax.GradientTransformation,
    state: DescentState,
    scale: Any,
    network: Callable[[WeightParts, Any], PyTree],
) -> tuple[Float[Array, ""], Any, DescentState]:
    split = state.split

    def trained_cost(trained: PyTree) -> tuple[Float[Array, ""], Any]:
        return cost(network(method.parts(split._replace(trained=trained)), scale))

    (value, other), gradients = jax.value_and_grad(trained_cost, has_aux=True)(split.trained)
    updates, inner, counts = updates_of(method, optimizer, state, gradients, scale=scale)
    trained = optax.apply_updates(split.trained, updates)
    return value, other, DescentState(split._replace(trained=trained), inner, counts)


@checked
def updates_of(
    method: Method,
    optimizer: optax.GradientTransformation,
    state: DescentState,
    gradients: PyTree,
    *,
    scale: Any = 1.0,
    shown: bool = True,
) -> tuple[PyTree, PyTree, tuple[Array, ...]]:
    """Lines 6 to 8: updates of what is trained, the state of the optimiser and its counts.

    Where W is trained, ``s S^T opt(S G)`` and, of an optimiser that decays, its decay of W.

    Args:
        method: the method.
        optimizer: opt.
        state: the run before the step.
        gradients: in what is trained.
        scale: s.
        shown: whether the optimiser may look at the parameters; if not, of W shapes alone are used.

    Example:
        >>> import lrdyn
        >>> S = lrdyn.adapters.Projector(jnp.eye(2)[:, :1], "left")
        >>> state = begin(lrdyn.GALORE, optax.sgd(0.5), jnp.ones((2, 1)), S)
        >>> updates_of(lrdyn.GALORE, optax.sgd(0.5), state, jnp.ones((2, 1)))[0].tolist()
        [[-0.5], [0.0]]
    """
    split, inner, counts = state
    owners, seen = _owners(method, optimizer, split), _optimizer_view(method, split, gradients)
    if not method.projects:
        parameters = split.trained if shown else None
        return owners.update(optimizer, seen, inner, counts, parameters)
    W, S = split
    parameters, decayed = None, None
    if shown:
        parameters, decayed = decay.separate_decay(optimizer, owners, S, seen, inner, W)
    updates, inner, counts = owners.update(optimizer, seen, inner, counts, parameters)
    updates = over_maps(
        lambda S, U: U if isinstance(S, Identity) else jnp.asarray(scale, U.dtype) * S.lift(U),
        S,
        updates,
    )
    if decayed is not None:
        updates = jax.tree.map(jnp.add, updates, decayed)
    return updates, inner, counts


@checked
def choice_of(method: Method, rank: int, side: Side | None, choose: Choice | None) -> Choice:
    """What chooses the maps: ``choose``, or line 3 as the method was published.

    Args:
        method: the method.
        rank: r; not needed with ``choose``.
        side: side of S; if not given, as published.
        choose: the choice, if it is another one.

    Raises:
        ValueError: the rank is not positive.

    Example:
        >>> import lrdyn
        >>> choice_of(lrdyn.GALORE, 1, "right", None)(None, jnp.ones((2, 3))).basis.shape
        (3, 1)
    """
    unranked = choose is not None or method.choose is choose_identity
    checks.integer("rank", rank, 0 if unranked else 1)

    def choose_default(key: Key[Array, ""] | None, gradients: PyTree) -> PyTree:
        return method.choose(key, gradients, rank, side or method.side)

    return choose or choose_default


@checked
def maps_of_zeros(choose: Choice, weights: PyTree) -> PyTree:
    """Maps of the shapes that will be chosen, for a run that begins with a refresh.

    Args:
        choose: see :func:`choice_of`.
        weights: W, or arrays of its shapes.

    Example:
        >>> import lrdyn
        >>> maps_of_zeros(choice_of(lrdyn.GALORE, 1, None, None), jnp.ones((2, 3))).basis.tolist()
        [[0.0], [0.0]]
    """
    shapes = jax.eval_shape(choose, jax.eval_shape(lambda: jax.random.key(0)), weights)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


@checked
def algorithm1(
    method: Method,
    optimizer: optax.GradientTransformation,
    *,
    rank: int = 0,
    period: int = 0,
    side: Side | None = None,
    choose: Choice | None = None,
    state: Policy | StatePolicy | None = None,
    scale: Scalar = 1.0,
    network: Callable[[WeightParts, Any], PyTree] = merged,
) -> Algorithm:
    """Algorithm 1 for :func:`lrdyn.training.train`: :func:`low_rank_descent` has its arguments.

    On mini-batches the maps of a refresh come from the gradient of one batch. By GaLore a decay of
    the optimiser is one of W, by LoRA and ReLoRA one of the factors, as there.

    Raises:
        ValueError: the period is not positive, or there is one and no refresh, or the state policy
            is unknown.

    Example:
        >>> import lrdyn
        >>> rule = algorithm1(lrdyn.GALORE, optax.sgd(0.5), rank=1, period=10)
        >>> rule.period, jax.tree.map(jnp.shape, rule.weights(rule.begin(jnp.ones((3, 2)))))
        (10, (3, 2))
    """
    if method.once and period:
        checks.refuse("period", period, "none for a method without a refresh")
    if not method.once:
        checks.integer("period", period)
    chosen = choice_of(method, rank, side, choose)
    policy = resolve_policy(method.state if state is None else state)

    def start(weights: PyTree) -> DescentState:
        return begin(method, optimizer, weights, maps_of_zeros(chosen, weights))

    def renew(key: Key[Array, ""] | None, cost: Cost, run: DescentState) -> DescentState:
        loss = lambda W: cost(W)[0]  # noqa: E731
        return refresh(method, loss, optimizer, run, chosen, key, policy=policy, scale=scale)

    return Algorithm(
        start,
        lambda cost, run: _take_step(method, cost, optimizer, run, scale, network),
        lambda run: merged(method.parts(run.split), scale),
        renew,
        period,
    )


# The loop --------------------------------------------------------------------------------------


class _Run(NamedTuple):
    state: DescentState
    diverged_at: Int[Array, ""]


@checked
@full_precision
def low_rank_descent(
    method: Method,
    loss: Loss,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    steps: np.ndarray | tuple[int, ...],
    rank: int = 0,
    period: int = 0,
    side: Side | None = None,
    choose: Choice | None = None,
    key: Key[Array, ""] | None = None,
    state: Policy | StatePolicy | None = None,
    scale: Scalar = 1.0,
    network: Callable[[WeightParts, Any], PyTree] = merged,
    record: Callable[[PyTree], PyTree] = lambda params: params,
) -> Trajectory:
    """Algorithm 1: descend in few coordinates, chosen anew every T steps.

    All methods are this loop. Theorem 4 says that GaLore and ReLoRA', whose B is frozen at P, take
    the same path::

        1  for t = 0, T, 2T, ...       (refresh; LoRA: t = 0 alone)
        2      W <- W + s B A          (GaLore has nothing to merge)
        3      P <- top-r left singular vectors of grad f(W)        (GaLore, ReLoRA')
               a Gaussian A, and 0 for B                            (ReLoRA, LoRA)
        4      state of opt: kept, reset or transported;  B <- P, A <- 0            (ReLoRA')
        5      for T steps:
        6          R <- P^T grad f(W)                               (GaLore)
                   R <- grad of f(W + s B A) in A, by differentiation   (ReLoRA')
                                             in A and B             (ReLoRA, LoRA)
        7          U, state <- opt(R, state)
        8          W <- W + s P U                                   (GaLore)
                   A <- A + U                                       (ReLoRA')
                   A, B <- (A, B) + U                               (ReLoRA, LoRA)

    Here P^T and P, or A^T and A on the right, are any linear map S and its transpose, one for each
    parameter. GaLore's s is its alpha, the scale of an update; that of the others is the scale of
    an adapter. The loops are nested, so that the SVD runs once in T steps under ``vmap`` too, where
    a ``cond`` on a batched counter would run it at every step.

    Args:
        method: :data:`~lrdyn.GALORE`, :data:`~lrdyn.RELORA_FROZEN`, :data:`~lrdyn.RELORA`,
            :data:`~lrdyn.LORA`, :data:`~lrdyn.FULL` or another :class:`Method`.
        loss: f, maps the model to a scalar.
        params: W, any PyTree, an ``equinox.nn`` model for example: of its inexact arrays matrices
            get factors, vectors and numbers are trained as they are; whatever else it has stays.
            Of others :func:`lrdyn.adapters.choose_by_path` says what they are.
        optimizer: opt, any optax transformation; its updates include the step size. Theorem 4 is
            about those that look at gradients alone. A decay is one of what is trained: by FULL and
            GaLore of W, by LoRA and ReLoRA of the factors, which pulls towards what was merged last
            and not towards 0; of a parameter that is trained as it is always of itself. With GaLore
            it must be decoupled, as that of ``optax.adamw``; what else looks at the parameters is
            refused, see :func:`lrdyn.adapters.in_coordinates`.
        steps: increasing step numbers at which ``record`` is called; the run ends at the last.
        rank: r; not needed with ``choose``.
        period: T, in steps; none for a method without a refresh.
        side: ``left``, ``right``, ``smaller`` or ``larger``, see
            :func:`~lrdyn.adapters.projectors.resolve_side`; if not given, as the method was
            published.
        choose: maps a random key and the gradients to a :class:`~lrdyn.adapters.LinearMap` for each
            parameter; if not given, as the method was published.
        key: random key of the factors that are drawn; that of a refresh is ``fold_in(key, t)``.
        state: policy at a refresh, or a function, see
            :data:`~lrdyn.adapters.state.StatePolicy`; if not given, as the method was published. It
            is about the adapted parameters, their moments and Adam's count; a schedule goes on, and
            so do the moments and the count of what is trained as it is.
        scale: s.
        network: what the loss is given: :func:`merged` or :func:`layered` weights.
        record: maps the model, its weights merged, to a PyTree, whose arrays are stacked.

    Raises:
        ValueError: the rank or the period is not positive, there is a period and no refresh, the
            steps do not increase from 0 or more, the side or the policy is unknown, a key is
            missing, ``params`` has no inexact array, or one of three axes or more of which
            ``choose`` does not say what it is, or GaLore's optimiser looks at the parameters
            otherwise than by a decoupled decay.

    Example:
        >>> import lrdyn
        >>> def loss(W):
        ...     return jnp.sum((W - jnp.diag(jnp.array([2.0, 1.0]))) ** 2) / 2
        >>> run = low_rank_descent(
        ...     lrdyn.GALORE, loss, jnp.zeros((2, 2)), optax.sgd(1.0),
        ...     rank=1, period=1, steps=(0, 1, 2))
        >>> run.records.round(6).tolist()
        [[[0.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]]]

    Reference:
        Zhao et al., GaLore (arXiv 2403.03507); Lialin et al., ReLoRA (arXiv 2307.05695); Hu et al.,
        LoRA (arXiv 2106.09685); Hao et al., Flora (arXiv 2402.03293) for ``transport``.
    """
    rule = algorithm1(
        method,
        optimizer,
        rank=rank,
        period=period,
        side=side,
        choose=choose,
        state=state,
        scale=scale,
        network=network,
    )
    starts, stops, is_refresh, recorded_at = _segments(steps, period)
    cost, arrays, whole = partition_loss(loss, params)
    value = checks.floats("loss(params)", cost(arrays))
    limit = divergence_limit(value)

    def cost_with_aux(arrays: PyTree) -> tuple[Float[Array, ""], None]:
        return cost(arrays), None

    def renew(t: Array, run: _Run) -> _Run:
        # The key of a refresh depends on its step alone: recording at other steps changes no draw.
        key_now = None if key is None else jax.random.fold_in(key, t)
        assert rule.refresh is not None
        return run._replace(state=rule.refresh(key_now, cost_with_aux, run.state))

    def advance(t: Array, run: _Run) -> _Run:
        value, _, state = rule.step(cost_with_aux, run.state)
        return _Run(state, first_divergence(value, t, limit, run.diverged_at))

    def segment(run: _Run, times: tuple[Array, Array, Array]) -> tuple[_Run, PyTree]:
        start, stop, is_refresh = times
        # Outside of the loop over steps, and not batched: whether there is a refresh is the same
        # for all runs under ``vmap``, so that this stays a branch.
        run = jax.lax.cond(is_refresh, renew, lambda t, run: run, start, run)
        run = jax.lax.fori_loop(start, stop, advance, run)
        return run, record(whole(rule.weights(run.state)))

    diverged_at = first_divergence(value, 0, limit, jnp.asarray(-1, jnp.int32))  # as step 0 finds
    first = _Run(mark_batched(rule.begin(arrays), limit), diverged_at)
    last, records = scan_records(segment, first, (starts, stops, is_refresh))
    weights = rule.weights(last.state)
    # The loop looks at the loss before each step: that of the last weights is still to be looked
    # at.
    diverged_at = first_divergence(cost(weights), stops[-1], limit, last.diverged_at)
    records = jax.tree.map(lambda leaf: leaf[recorded_at] if eqx.is_array(leaf) else leaf, records)
    return Trajectory(whole(weights), records, diverged_at)


def _segments(steps: np.ndarray | tuple[int, ...], period: int):
    """Cut a run at refreshes and at recorded steps: starts, stops, is there a refresh, records."""
    recorded = np.asarray(checks.steps(steps)).tolist()
    # Without a period one refresh at 0. A run of no steps has none, and range wants a step of 1 or
    # more.
    refreshes = range(0, recorded[-1], period or max(1, recorded[-1]))
    cuts = sorted({0, *refreshes, *recorded})
    # A segment of no step looks at the start before anything is chosen.
    starts, stops = np.array([0, *cuts[:-1]]), np.array(cuts)
    # The empty segment [0, 0] also starts at a refresh, and must leave it to the one behind it.
    is_refresh = np.isin(starts, refreshes) & (stops > starts)
    # int32, like all indices: threads of both precisions can share a trace of int64.
    recorded_at = np.searchsorted(stops, recorded).astype(np.int32)
    return starts.astype(np.int32), stops.astype(np.int32), is_refresh, recorded_at
