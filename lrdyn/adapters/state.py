"""What is done with the state of the optimiser when the linear maps are new."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from lrdyn.adapters.projectors import is_map, over_maps
from lrdyn.core.checks import checked

Policy = Literal["keep", "reset", "transport"]
FIRST_MOMENTS = ("mu", "trace")
"""Names under which optax keeps a running mean of gradients, which is linear in them."""

StatePolicy = Callable[[PyTree, PyTree, PyTree, PyTree], PyTree]
"""``policy(fresh, state, old, new)``: the state to go on with, from that of a new run, the present
one and the old and new linear maps. What it makes of moments that belong to adapted parameters, and
of the counts beside them, is taken; all else goes on, see :class:`Owners`."""


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
        return node._replace(**{name: transport(getattr(node, name)) for name in known})

    def transport(moments: PyTree) -> PyTree:
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

    With ``count=False`` Adam's count goes on, as in the code of ReLoRA, and its correction of the
    bias is that of a long run: the first steps after the reset are larger, by (1 - b1) /
    sqrt(1 - b2), 3.2 by default. Algorithm 1 takes of this policy what belongs to the adapted
    parameters: the count of a schedule goes on in either case. A count is a scalar of integers.

    Example:
        >>> import optax
        >>> used = optax.TraceState(jnp.ones(2)), optax.ScaleByScheduleState(jnp.asarray(5))
        >>> new = optax.TraceState(jnp.zeros(2)), optax.ScaleByScheduleState(jnp.asarray(0))
        >>> trace, schedule = reset(count=False)(new, used, None, None)
        >>> trace.trace.tolist(), int(schedule.count)
        ([0.0, 0.0], 5)
    """

    def policy(fresh: PyTree, state: PyTree, old: PyTree, new: PyTree) -> PyTree:
        def reset_leaf(begun: Any, present: Any) -> Any:
            is_integer = jnp.issubdtype(jnp.result_type(present), jnp.integer)
            is_count = jnp.ndim(present) == 0 and is_integer
            return begun if (count if is_count else moments) else present

        return jax.tree.map(reset_leaf, fresh, state)

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


# Whose state it is ----------------------------------------------------------------------------


class _Marked(eqx.Module):
    """An array of a parameter, with its path and whether the parameter is adapted."""

    array: Any
    path: tuple[Any, ...] = eqx.field(static=True)
    adapted: bool = eqx.field(static=True)


class Owners(NamedTuple):
    """Which arrays of an optimiser's state belong to adapted parameters, and which to others.

    Four roles: moments of parameters that are ``adapted``; of those trained as they are
    (``direct``); a ``count``, which stands beside moments in one node of the state, as Adam's does;
    and what is ``shared``: all else, a schedule's count for example.

    An adapted parameter has new coordinates after a refresh, and a state that begins anew there,
    with Adam's count. One that is trained as it is has nothing new: its state goes on, with a count
    of its own. So where there are parameters of both kinds there are two counts, and the optimiser
    is called with each of them; what is not used of either call costs nothing once it is compiled.
    """

    roles: tuple[str, ...]
    """The role of each leaf of the state."""
    adapted: PyTree
    """For each array that the optimiser sees, whether it belongs to an adapted parameter."""

    def second_counts(self, state: PyTree) -> tuple[Array, ...]:
        """The counts of adapted parameters, apart; none unless there are parameters of both kinds.

        Args:
            state: of the optimiser.
        """
        if not {"adapted", "direct", "count"} <= set(self.roles):
            return ()
        leaves = zip(self.roles, jax.tree.leaves(state), strict=True)
        return tuple(leaf for role, leaf in leaves if role == "count")

    def with_counts(self, state: PyTree, counts: tuple[Array, ...]) -> PyTree:
        """The state as the adapted parameters see it: with these counts, if there are any."""
        if not counts:
            return state
        leaves, structure = jax.tree.flatten(state)
        left = iter(counts)
        pairs = zip(self.roles, leaves, strict=True)
        return structure.unflatten(next(left) if r == "count" else leaf for r, leaf in pairs)

    def renew(
        self, state: PyTree, counts: tuple[Array, ...], renewed: PyTree
    ) -> tuple[PyTree, tuple[Array, ...]]:
        """The state after a refresh, and the counts of adapted parameters, if these are apart.

        Args:
            state: before the refresh.
            counts: of adapted parameters, if they are apart.
            renewed: what a policy made of the state.
        """
        taken = {"adapted"}
        if not counts and "adapted" in self.roles:
            taken.add("count")
        both = self._replace_roles(state, renewed, taken)
        return both, self.second_counts(renewed) if counts else ()

    def update(
        self,
        optimizer: optax.GradientTransformation,
        gradients: PyTree,
        state: PyTree,
        counts: tuple[Array, ...],
        params: PyTree,
    ) -> tuple[PyTree, PyTree, tuple[Array, ...]]:
        """Updates, state and counts after a step of the optimiser.

        Args:
            optimizer: any optax transformation.
            gradients: what it sees of them.
            state: before the step.
            counts: of the adapted parameters, if they are apart.
            params: what it sees of the parameters.
        """
        updates, after = optimizer.update(gradients, state, params)
        if not counts:
            return updates, after, ()
        seen = self.with_counts(state, counts)
        of_adapted, after_adapted = optimizer.update(gradients, seen, params)
        chosen = jax.tree.map(
            lambda adapted, one, other: one if adapted else other,
            self.adapted,
            of_adapted,
            updates,
        )
        later = self.second_counts(after_adapted)
        return chosen, self._replace_roles(after, after_adapted, {"adapted"}), later

    def _replace_roles(self, state: PyTree, other: PyTree, roles: set[str]) -> PyTree:
        """The state, with the leaves of some roles taken from another."""
        leaves, structure = jax.tree.flatten(state)
        triples = zip(self.roles, leaves, jax.tree.leaves(other), strict=True)
        return structure.unflatten(b if role in roles else a for role, a, b in triples)


@checked
def owners_of(optimizer: optax.GradientTransformation, seen: PyTree, adapted: PyTree) -> Owners:
    """Find out by an abstract call of ``optimizer.init`` whose each array of its state is.

    An optimiser that makes its state of arrays, and not of their PyTree, cannot be looked into: all
    of its state then counts as that of adapted parameters.

    Args:
        optimizer: any optax transformation.
        seen: what it sees of the parameters.
        adapted: whether each array belongs to an adapted parameter.

    Example:
        >>> import optax
        >>> params = {"W": jnp.ones((2, 2)), "b": jnp.ones(2)}
        >>> rule = optax.adam(optax.constant_schedule(0.1))
        >>> owners_of(rule, params, {"W": True, "b": False}).roles
        ('count', 'adapted', 'direct', 'adapted', 'direct', 'shared')
    """
    marked = jax.tree_util.tree_map_with_path(
        lambda path, array, is_adapted: _Marked(array, path, is_adapted), seen, adapted
    )
    try:
        state = jax.eval_shape(optimizer.init, marked)
    except (TypeError, AttributeError, ValueError):
        count = len(jax.tree.leaves(jax.eval_shape(optimizer.init, seen)))
        return Owners(("adapted",) * count, adapted)
    is_marked = lambda node: isinstance(node, _Marked)  # noqa: E731
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_marked)
    # ``optax.masked`` leaves marks without an array.
    leaves = [pair for pair in leaves if jax.tree.leaves(pair[1])]
    # A moment stands at the path of its field and then of its parameter: what is in front of both
    # is the path of a node that has moments.
    nodes = {path[: len(path) - len(leaf.path) - 1] for path, leaf in leaves if is_marked(leaf)}

    def role(path: tuple[Any, ...], leaf: Any) -> str:
        if is_marked(leaf):
            return "adapted" if leaf.adapted else "direct"
        return "count" if path[:-1] in nodes else "shared"

    return Owners(tuple(role(*leaf) for leaf in leaves), adapted)
