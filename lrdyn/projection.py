"""Algorithm 1: GaLore, and ReLoRA with a frozen factor, for the weights of any network."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from lrdyn import linalg
from lrdyn.descent import Trajectory, divergence_limit, first_divergence

Loss = Callable[[PyTree], Float[Array, ""]]
Side = Literal["left", "right", "smaller", "larger"]
Policy = Literal["keep", "reset", "transport"]
FIRST_MOMENTS = ("mu", "trace")
"""Names under which optax keeps a running mean of gradients, which is linear in them."""


class LinearMap(Protocol):
    """S, from gradients to what the optimiser sees, and its transpose."""

    def project(self, gradient: Array) -> Array:
        """S G."""
        ...

    def lift(self, coordinates: Array) -> Array:
        """S^T R."""
        ...


class Projector(eqx.Module):
    """Orthonormal columns P on one side of a matrix: S G = P^T G, or S G = G P.

    Args:
        basis: P.
        side: ``left`` or ``right``.

    Example:
        >>> import jax.numpy as jnp
        >>> P = Projector(jnp.array([[1.0], [0.0]]), "left")
        >>> G = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> P.project(G).tolist(), P.lift(P.project(G)).tolist()
        ([[1.0, 2.0]], [[1.0, 2.0], [0.0, 0.0]])
    """

    basis: Float[Array, "length rank"]
    side: str = eqx.field(static=True)

    def project(self, gradient: Float[Array, "m n"]) -> Float[Array, "..."]:
        """P^T G (r x n), or G P (m x r)."""
        return self.basis.T @ gradient if self.side == "left" else gradient @ self.basis

    def lift(self, coordinates: Float[Array, "..."]) -> Float[Array, "m n"]:
        """P R, or R P^T (m x n)."""
        return self.basis @ coordinates if self.side == "left" else coordinates @ self.basis.T


class Identity(eqx.Module):
    """The linear map of a parameter that is trained as it is: a bias, a gain."""

    def project(self, gradient: Array) -> Array:
        """G."""
        return gradient

    def lift(self, coordinates: Array) -> Array:
        """R."""
        return coordinates


def resolve_side(shape: tuple[int, ...], side: Side) -> Literal["left", "right"]:
    """Name the side that is projected.

    Args:
        shape: m x n of the matrix.
        side: ``left`` or ``right``; ``smaller``, as published (left if m <= n), or ``larger``, as
            in optax (left if m >= n).

    Returns:
        ``left`` or ``right``.

    Raises:
        ValueError: the side is unknown.

    Example:
        >>> resolve_side((2, 3), "smaller"), resolve_side((2, 3), "larger")
        ('left', 'right')
    """
    m, n = shape
    sides = {"left": True, "right": False, "smaller": m <= n, "larger": m >= n}
    if side not in sides:
        raise ValueError(f"side: got {side!r}, wanted one of {', '.join(get_args(Side))}")
    return "left" if sides[side] else "right"


def top_singular_projector(
    gradient: Float[Array, "m n"], rank: int, side: Side = "smaller"
) -> Projector:
    """P = top-r left (or right) singular vectors of G, the largest entry of each positive.

    Without a rule for signs a kept momentum would depend on LAPACK's choice of them.

    Args:
        gradient: G.
        rank: r; min(m, n) if that is less.
        side: see :func:`resolve_side`.

    Returns:
        The :class:`Projector`.

    Raises:
        ValueError: the rank is not positive, or the side unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> P = top_singular_projector(jnp.diag(jnp.array([1.0, -2.0])), 1, "left")
        >>> jnp.abs(P.basis).tolist(), P.side
        ([[0.0], [1.0]], 'left')
    """
    if rank < 1:
        raise ValueError(f"rank: got {rank}, wanted an integer >= 1")
    side = resolve_side(gradient.shape, side)
    left, _, right = linalg.svd(gradient)
    vectors = left if side == "left" else right.T
    vectors = vectors[:, :rank]
    largest = jnp.argmax(jnp.abs(vectors), axis=0, keepdims=True)
    signs = jnp.sign(jnp.take_along_axis(vectors, largest, axis=0))
    return Projector(vectors * signs, side)


def choose_projectors(gradients: PyTree, rank: int, side: Side = "smaller") -> PyTree:
    """One linear map for each parameter: a projector for matrices, the identity for the rest.

    Args:
        gradients: gradients, a PyTree like the parameters.
        rank: r.
        side: see :func:`resolve_side`.

    Returns:
        A PyTree of :class:`Projector` and :class:`Identity`.

    Example:
        >>> import jax.numpy as jnp
        >>> found = choose_projectors({"W": jnp.eye(3), "b": jnp.ones(3)}, 2)
        >>> found["W"].basis.shape, found["b"]
        ((3, 2), Identity())
    """
    return jax.tree.map(
        lambda G: top_singular_projector(G, rank, side) if G.ndim == 2 else Identity(), gradients
    )


def project(maps: PyTree, gradients: PyTree) -> PyTree:
    """R = S G for every parameter.

    Args:
        maps: a :class:`LinearMap` for each parameter.
        gradients: G.

    Returns:
        R.

    Example:
        >>> import jax.numpy as jnp
        >>> project({"b": Identity()}, {"b": jnp.ones(2)})["b"].tolist()
        [1.0, 1.0]
    """
    return jax.tree.map(lambda G, S: S.project(G), gradients, maps)


def lift_onto(weights: PyTree, maps: PyTree, coordinates: PyTree, scale: Any = 1.0) -> PyTree:
    """W + s S^T R for every parameter that is projected, W + R for every other.

    Args:
        weights: W.
        maps: a :class:`LinearMap` for each parameter.
        coordinates: R.
        scale: s.

    Returns:
        The sum.

    Example:
        >>> import jax.numpy as jnp
        >>> W, P = jnp.zeros((2, 1)), Projector(jnp.array([[1.0], [0.0]]), "left")
        >>> found = lift_onto((W, W), (P, Identity()), (jnp.ones((1, 1)), W + 1), 2.0)
        >>> [new.tolist() for new in found]
        [[[2.0], [0.0]], [[1.0], [1.0]]]
    """

    def add(W, S, R):
        return W + (R if isinstance(S, Identity) else jnp.asarray(scale, W.dtype) * S.lift(R))

    return jax.tree.map(add, weights, maps, coordinates)


# What is done with the state of the optimiser when the projectors are new ---------------------

StatePolicy = Callable[[PyTree, PyTree, PyTree, PyTree], PyTree]
"""``policy(fresh, state, old, new)``: the state to go on with, from that of a new run, the present
one and the old and new linear maps."""


def _is_moment(node: Any) -> bool:
    return isinstance(node, tuple) and not set(FIRST_MOMENTS).isdisjoint(
        getattr(node, "_fields", ())
    )


def transport_moments(fresh: PyTree, state: PyTree, old: PyTree, new: PyTree) -> PyTree:
    """Flora's policy: first moments move to the new coordinates, M <- S_new S_old^T M.

    Second moments stay as they are: squares of coordinates do not transform linearly, and the same
    map would make some of them negative.

    Args:
        fresh: the state of a new run.
        state: an optax state; its first moments are those named ``mu`` or ``trace``.
        old: linear maps of the state.
        new: linear maps to come.

    Returns:
        The state.

    Raises:
        ValueError: the state has arrays but no first moment under a known name.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> old, new = (Projector(jnp.eye(2)[:, i:i + 1], "left") for i in (0, 1))
        >>> state = (optax.TraceState(jnp.ones((1, 2))),)
        >>> transport_moments(state, state, old, new)[0].trace.tolist()
        [[0.0, 0.0]]
    """
    nodes = jax.tree.leaves(state, is_leaf=_is_moment)
    if not any(map(_is_moment, nodes)) and any(jnp.ndim(node) for node in nodes):
        raise ValueError(
            "state: got 'transport' and an optimizer without a first moment, wanted one that keeps "
            f"it as {' or '.join(FIRST_MOMENTS)}"
        )

    def move(node):
        if not _is_moment(node):
            return node
        known = [name for name in FIRST_MOMENTS if name in node._fields]
        return node._replace(**{name: moved(getattr(node, name)) for name in known})

    def moved(moments):
        return _over_maps(lambda S, T, M: T.project(S.lift(M)), old, new, moments)

    return jax.tree.map(move, state, is_leaf=_is_moment)


def _over_maps(function, maps: PyTree, *others: PyTree) -> PyTree:
    return jax.tree.map(function, maps, *others, is_leaf=lambda node: hasattr(node, "lift"))


POLICIES: dict[str, StatePolicy] = {
    "keep": lambda fresh, state, old, new: state,
    "reset": lambda fresh, state, old, new: fresh,
    "transport": transport_moments,
}


# Algorithm 1 ----------------------------------------------------------------------------------


class Iterate(NamedTuple):
    """W, S and what is trained in the coordinates of S."""

    weights: PyTree
    """W."""
    maps: PyTree
    """S: P, P^T or whatever else was chosen at the last refresh."""
    adapters: PyTree
    """A (or B, if the right side is projected); None for GaLore."""


class Method(NamedTuple):
    """Lines 2, 6 and 8 of Algorithm 1, in which GaLore and ReLoRA differ."""

    gradient: Callable[[Loss, Iterate, Any], tuple[Array, PyTree]]
    """The loss, and the gradient that the optimiser sees."""
    move: Callable[[Iterate, PyTree, Any], Iterate]
    """Apply the update that the optimiser gives."""
    merge: Callable[[Iterate, Any], Iterate]
    """Bring W up to date."""
    begin: Callable[[Iterate], Iterate]
    """Begin with new maps."""


def merged(iterate: Iterate, scale: Any = 1.0) -> PyTree:
    """W + s S^T A: the weights that the network uses.

    Args:
        iterate: weights, maps and adapters.
        scale: s.

    Returns:
        The weights.

    Example:
        >>> import jax.numpy as jnp
        >>> merged(Iterate(jnp.ones(2), Identity(), jnp.ones(2))).tolist()
        [2.0, 2.0]
    """
    return lift_onto(iterate.weights, iterate.maps, iterate.adapters, scale)


def _projected_gradient(loss: Loss, iterate: Iterate, scale: Any):
    value, gradients = jax.value_and_grad(loss)(iterate.weights)
    return value, project(iterate.maps, gradients)


def _adapter_gradient(loss: Loss, iterate: Iterate, scale: Any):
    return jax.value_and_grad(lambda A: loss(merged(iterate._replace(adapters=A), scale)))(
        iterate.adapters
    )


def _move_weights(iterate: Iterate, updates: PyTree, scale: Any) -> Iterate:
    return iterate._replace(weights=lift_onto(iterate.weights, iterate.maps, updates, scale))


def _move_adapters(iterate: Iterate, updates: PyTree, scale: Any) -> Iterate:
    return iterate._replace(adapters=optax.apply_updates(iterate.adapters, updates))


def _zero_adapters(iterate: Iterate) -> Iterate:
    zeros = jax.tree.map(jnp.zeros_like, project(iterate.maps, iterate.weights))
    return iterate._replace(adapters=zeros)


GALORE = Method(
    gradient=_projected_gradient,
    move=_move_weights,
    merge=lambda iterate, scale: iterate,
    begin=lambda iterate: iterate,
)
"""The gradient is projected, the update is lifted."""

RELORA = Method(
    gradient=_adapter_gradient,
    move=_move_adapters,
    merge=lambda iterate, scale: iterate._replace(weights=merged(iterate, scale)),
    begin=_zero_adapters,
)
"""The network is W + s B A with a frozen factor; the other is trained, and merged at a refresh."""


class _State(NamedTuple):
    iterate: Iterate
    optimizer: PyTree
    limit: Float[Array, ""]
    diverged_at: Int[Array, ""]


def low_rank_descent(
    method: Method,
    loss: Loss,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    choose: Callable[[PyTree], PyTree],
    *,
    period: int,
    steps: np.ndarray | tuple[int, ...],
    state: Policy | StatePolicy = "keep",
    scale: float | Float[Array, ""] = 1.0,
    record: Callable[[PyTree], PyTree] = lambda params: params,
) -> Trajectory:
    """Algorithm 1: descend in coordinates that are chosen anew every T steps.

    Both methods are this loop, and Theorem 4 says that they take the same path::

        1  for t = 0, T, 2T, ...                          (refresh)
        2      ReLoRA': W <- W + s B A                    (GaLore has nothing to merge)
        3      G <- grad f(W);  P <- top-r left singular vectors of G
        4      state of opt: kept, reset or transported;  ReLoRA': B <- P, A <- 0
        5      for T steps:
        6          R <- P^T grad f(W)    (GaLore)         s B^T grad f(W + s B A) by
                                                          differentiating in A   (ReLoRA')
        7          U, state <- opt(R, state)
        8          W <- W + s P U        (GaLore)         A <- A + U             (ReLoRA')

    Here P^T and P are any linear map S and its transpose, one for each parameter. GaLore's s is its
    alpha, the scale of an update; ReLoRA's is the scale of an adapter. The loops are nested, so
    that the SVD runs once in T steps under ``vmap`` too, where a ``cond`` on a batched counter
    would run it at every step.

    Args:
        method: :data:`GALORE` or :data:`RELORA`.
        loss: f, maps the parameters to a scalar.
        params: W, any PyTree of arrays.
        optimizer: opt, any optax transformation that looks at gradients only (no decay, no trust
            ratio): it sees coordinates and not the parameters. Its updates include the step size.
        choose: maps the gradients to a :class:`LinearMap` for each parameter.
        period: T, in steps.
        steps: increasing step numbers at which ``record`` is called; the run ends at the last.
        state: policy at a refresh, or a function, see :data:`StatePolicy`.
        scale: s.
        record: maps the weights (merged) to a PyTree of arrays.

    Returns:
        A :class:`~lrdyn.Trajectory`.

    Raises:
        ValueError: the period is not positive, the steps do not increase from 0 or more, or the
            policy is unknown.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> def loss(W):
        ...     return jnp.sum((W - jnp.diag(jnp.array([2.0, 1.0]))) ** 2) / 2
        >>> run = low_rank_descent(
        ...     GALORE, loss, jnp.zeros((2, 2)), optax.sgd(1.0),
        ...     lambda G: choose_projectors(G, 1), period=1, steps=(0, 1, 2))
        >>> run.records.round(6).tolist()
        [[[0.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 0.0]], [[2.0, 0.0], [0.0, 1.0]]]

    Reference:
        Zhao et al., GaLore (arXiv 2403.03507); Lialin et al., ReLoRA (arXiv 2307.05695); Hao et
        al., Flora (arXiv 2402.03293) for ``transport``.
    """
    policy = _policy(state)
    starts, stops, fresh, kept = _segments(steps, period)

    def refresh(current: _State) -> _State:
        iterate = method.merge(current.iterate, scale)
        maps = choose(jax.grad(loss)(iterate.weights))
        new = method.begin(iterate._replace(maps=maps))
        initial = optimizer.init(jax.tree.map(jnp.zeros_like, project(maps, iterate.weights)))
        going_on = policy(initial, current.optimizer, iterate.maps, maps)
        return current._replace(iterate=new, optimizer=going_on)

    def step(t, current: _State) -> _State:
        value, gradients = method.gradient(loss, current.iterate, scale)
        updates, inner = optimizer.update(gradients, current.optimizer)
        lost = first_divergence(value, t, current.limit, current.diverged_at)
        return _State(method.move(current.iterate, updates, scale), inner, current.limit, lost)

    def segment(current: _State, times):
        start, stop, fresh = times
        current = jax.lax.cond(fresh, refresh, lambda same: same, current)
        current = jax.lax.fori_loop(start, stop, step, current)
        return current, record(method.merge(current.iterate, scale).weights)

    # Nothing of the start but its shapes is used: the first segment begins with a refresh.
    maps = _zeros(jax.eval_shape(choose, params))
    coordinates = _zeros(jax.eval_shape(project, maps, params))
    first = _State(
        method.begin(Iterate(params, maps, None)),
        optimizer.init(coordinates),
        divergence_limit(loss(params)),
        jnp.asarray(-1, jnp.int32),
    )
    last, records = jax.lax.scan(segment, first, (starts, stops, fresh))
    weights = method.merge(last.iterate, scale).weights
    lost = first_divergence(loss(weights), stops[-1], last.limit, last.diverged_at)
    return Trajectory(weights, jax.tree.map(lambda array: array[kept], records), lost)


def _zeros(shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _policy(state: Policy | StatePolicy) -> StatePolicy:
    if callable(state):
        return state
    if state not in POLICIES:
        raise ValueError(f"state: got {state!r}, wanted one of {', '.join(POLICIES)} or a function")
    return POLICIES[state]


def _segments(steps: np.ndarray | tuple[int, ...], period: int):
    """Cut a run at refreshes and at recorded steps: starts, stops, refresh first, recorded."""
    if period < 1:
        raise ValueError(f"period: got {period}, wanted at least 1")
    recorded = [int(step) for step in steps]
    if not recorded or recorded[0] < 0 or any(b <= a for a, b in pairwise(recorded)):
        raise ValueError(f"steps: got {recorded}, wanted increasing integers >= 0")
    refreshes = range(0, recorded[-1], period)
    cuts = sorted({0, *refreshes, *recorded})
    # A segment of no step looks at the start before anything is chosen.
    starts, stops = np.array([0, *cuts[:-1]]), np.array(cuts)
    fresh = (starts % period == 0) & (stops > starts)
    # int32, like all indices: threads of both precisions can share a trace of int64.
    kept = np.searchsorted(stops, recorded).astype(np.int32)
    return starts.astype(np.int32), stops.astype(np.int32), fresh, kept


def galore(
    loss: Loss,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    rank: int,
    period: int,
    steps: np.ndarray | tuple[int, ...],
    side: Side = "smaller",
    state: Policy | StatePolicy = "keep",
    scale: float | Float[Array, ""] = 1.0,
    record: Callable[[PyTree], PyTree] = lambda params: params,
) -> Trajectory:
    """GaLore: W <- W + alpha P opt(P^T grad f(W)), P from an SVD of the gradient every T steps.

    Args:
        loss: f.
        params: W, any PyTree; matrices are projected, everything else is trained as it is.
        optimizer: opt, see :func:`low_rank_descent`.
        rank: r.
        period: T, in steps.
        steps: increasing step numbers at which ``record`` is called.
        side: ``left``, ``right``, ``smaller`` (as published) or ``larger`` (as optax).
        state: ``keep`` (as published), ``reset``, ``transport``, or a function.
        scale: alpha.
        record: maps the weights to a PyTree of arrays.

    Returns:
        A :class:`~lrdyn.Trajectory`.

    Raises:
        ValueError: see :func:`low_rank_descent`; the rank is not positive, or the side unknown.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> run = galore(
        ...     lambda W: jnp.sum((W - 1) ** 2) / 2, jnp.zeros((3, 2)), optax.sgd(0.5),
        ...     rank=1, period=10, steps=(0, 1, 2))
        >>> run.records[:, 0, 0].round(4).tolist()
        [0.0, 0.5, 0.75]

    Reference:
        Algorithm 1 of the survey; Zhao et al. (arXiv 2403.03507).
    """
    return low_rank_descent(
        GALORE, loss, params, optimizer, lambda G: choose_projectors(G, rank, side),
        period=period, steps=steps, state=state, scale=scale, record=record,
    )  # fmt: skip


def relora(
    loss: Loss,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    *,
    rank: int,
    period: int,
    steps: np.ndarray | tuple[int, ...],
    side: Side = "smaller",
    state: Policy | StatePolicy = "reset",
    scale: float | Float[Array, ""] = 1.0,
    record: Callable[[PyTree], PyTree] = lambda params: params,
) -> Trajectory:
    """ReLoRA with a frozen factor: train A in W + s B A, merge and choose B anew every T steps.

    With ``side="right"`` (or where that is the smaller side) A is frozen and B trained.

    Args:
        loss: f.
        params: W, any PyTree; matrices get adapters, everything else is trained as it is.
        optimizer: opt, see :func:`low_rank_descent`.
        rank: r.
        period: T, in steps.
        steps: increasing step numbers at which ``record`` is called.
        side: side of the frozen factor, see :func:`resolve_side`.
        state: ``reset`` (as published), ``keep``, ``transport``, or a function.
        scale: s.
        record: maps the merged weights to a PyTree of arrays.

    Returns:
        A :class:`~lrdyn.Trajectory`.

    Raises:
        ValueError: see :func:`low_rank_descent`; the rank is not positive, or the side unknown.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> run = relora(
        ...     lambda W: jnp.sum((W - 1) ** 2) / 2, jnp.zeros((3, 2)), optax.sgd(0.5),
        ...     rank=1, period=10, steps=(0, 1, 2))
        >>> run.records[:, 0, 0].round(4).tolist()
        [0.0, 0.5, 0.75]

    Reference:
        Algorithm 1 of the survey; Lialin et al. (arXiv 2307.05695), who train both factors.
    """
    return low_rank_descent(
        RELORA, loss, params, optimizer, lambda G: choose_projectors(G, rank, side),
        period=period, steps=steps, state=state, scale=scale, record=record,
    )  # fmt: skip
