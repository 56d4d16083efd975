"""What is done with the state of the optimiser when the linear maps are new."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from lrdyn.adapters.projectors import is_map, over_maps

Policy = Literal["keep", "reset", "transport"]
FIRST_MOMENTS = ("mu", "trace")
"""Names under which optax keeps a running mean of gradients, which is linear in them."""

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

    Raises:
        ValueError: the state has arrays but no first moment under a known name, or the maps are
            trained too, so that their moments are no coordinates.

    Example:
        >>> import lrdyn, optax
        >>> old, new = (lrdyn.adapters.Projector(jnp.eye(2)[:, i:i + 1], "left") for i in (0, 1))
        >>> state = (optax.TraceState(jnp.ones((1, 2))),)
        >>> transport_moments(state, state, old, new)[0].trace.tolist()
        [[0.0, 0.0]]
    """
    nodes = jax.tree.leaves(state, is_leaf=_is_moment)
    # A state of scalars alone, as that of plain descent, has nothing to move.
    if not any(map(_is_moment, nodes)) and any(jnp.ndim(node) for node in nodes):
        raise ValueError(
            "state: got 'transport' and an optimizer without a first moment, wanted one that keeps "
            f"it as {' or '.join(FIRST_MOMENTS)}"
        )

    def move(node: Any) -> Any:
        if not _is_moment(node):
            return node
        known = [name for name in FIRST_MOMENTS if name in node._fields]
        return node._replace(**{name: moved(getattr(node, name)) for name in known})

    def moved(moments: PyTree) -> PyTree:
        # Where maps are trained, moments have their leaves as well, and no map belongs to those.
        if jax.tree.structure(moments) != jax.tree.structure(old, is_leaf=is_map):
            raise ValueError(
                "state: got 'transport' and moments of maps that are trained, wanted frozen ones"
            )
        return over_maps(lambda S, T, M: T.project(S.lift(M)), old, new, moments)

    return jax.tree.map(move, state, is_leaf=_is_moment)


POLICIES: dict[str, StatePolicy] = {
    "keep": lambda fresh, state, old, new: state,
    "reset": lambda fresh, state, old, new: fresh,
    "transport": transport_moments,
}


def reset(*, moments: bool = True, count: bool = True) -> StatePolicy:
    """ReLoRA's reset of the moments and, separately, of the counts of steps (arXiv 2307.05695).

    With ``count=False`` the count goes on, and Adam's correction of its bias is that of a long run:
    the first steps after the reset are smaller. A count is a scalar of integers, and of a schedule
    in the same optimiser too.

    Example:
        >>> import optax
        >>> used = optax.TraceState(jnp.ones(2)), optax.ScaleByScheduleState(jnp.asarray(5))
        >>> new = optax.TraceState(jnp.zeros(2)), optax.ScaleByScheduleState(jnp.asarray(0))
        >>> trace, schedule = reset(count=False)(new, used, None, None)
        >>> trace.trace.tolist(), int(schedule.count)
        ([0.0, 0.0], 5)
    """

    def policy(fresh: PyTree, state: PyTree, old: PyTree, new: PyTree) -> PyTree:
        def of_leaf(begun: Any, present: Any) -> Any:
            is_integer = jnp.issubdtype(jnp.result_type(present), jnp.integer)
            is_count = jnp.ndim(present) == 0 and is_integer
            return begun if (count if is_count else moments) else present

        return jax.tree.map(of_leaf, fresh, state)

    return policy


def resolve_policy(state: Policy | StatePolicy) -> StatePolicy:
    """Look up a policy by its name; a function is one already.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> resolve_policy("keep")("fresh", "present", None, None)
        'present'
    """
    if callable(state):
        return state
    if state not in POLICIES:
        raise ValueError(f"state: got {state!r}, wanted one of {', '.join(POLICIES)} or a function")
    return POLICIES[state]
