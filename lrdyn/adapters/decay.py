"""Decay of the weights, where an optimiser sees coordinates of them alone.

GaLore's optimiser is given S W in the place of the parameters W. A decay of S W would be one of
S^T S W, the part of W in r directions that change every T steps. So a decoupled decay, that of
AdamW or Lion, acts on W itself, and what else looks at the parameters is refused.

Which of the two an optimiser does is read from its traced update::

    u(R, p) = u(R, 0) + L p,

with L made of numbers alone (rates, schedules, masks), is a decoupled decay, and L is applied to W.
A trust ratio (LAMB) is not of that form, nor is a penalty that goes through moments, nor a state
that begins as a copy of the parameters.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from lrdyn.adapters.projectors import Identity, over_maps
from lrdyn.adapters.state import Owners
from lrdyn.core import checks
from lrdyn.core.checks import checked


@final
class InCoordinates(optax.GradientTransformation):
    """An optimiser that is given the coordinates of parameters, see :func:`in_coordinates`."""


@checked
def in_coordinates(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Declare that under GaLore an optimiser is to be given S W, the coordinates of the parameters.

    Its decay then acts on S^T S W alone, and its trust ratios are those of coordinates: Theorem 4
    for optimisers that look at parameters would need both sides to do so.

    Args:
        optimizer: any optax transformation.

    Example:
        >>> import lrdyn
        >>> rule = in_coordinates(optax.sgd(0.0)._replace(update=lambda R, s, p: (-0.5 * p, s)))
        >>> lrdyn.low_rank_descent(
        ...     lrdyn.GALORE, lambda W: W[0, 0] + 0 * jnp.sum(W), jnp.eye(2), rule,
        ...     rank=1, period=1, steps=(1,)).params.tolist()
        [[0.5, 0.0], [0.0, 1.0]]
    """
    return InCoordinates(*optimizer)


@checked
def separate_decay(
    optimizer: optax.GradientTransformation,
    owners: Owners,
    maps: PyTree,
    seen: PyTree,
    state: PyTree,
    weights: PyTree,
) -> tuple[PyTree, PyTree | None]:
    """What an optimiser is given as parameters, and the update of W by its decay, if it has one.

    Args:
        optimizer: any optax transformation.
        owners: of its state.
        maps: S for each parameter.
        seen: S G, the gradients that it is given.
        state: of the optimiser before the step.
        weights: W.

    Raises:
        ValueError: it looks at the adapted parameters otherwise than by a decoupled decay.
    """
    given = over_maps(lambda S, W: S.project(W), maps, weights)
    if isinstance(optimizer, InCoordinates) or not any(jax.tree.leaves(owners.adapted)):
        return given, None
    if not _has_decay(optimizer, owners, seen, state, given):
        return given, None
    # What is trained as it is decays in the optimiser; of the others it is given 0, and no decay.
    given = over_maps(lambda S, p: p if isinstance(S, Identity) else jnp.zeros_like(p), maps, given)
    zeros = jax.tree.map(jnp.zeros_like, weights)
    # The state of an optimiser of W with the present counts. L depends on no moment, so that these
    # zeros take no memory in a compiled program.
    present = jax.tree.leaves(state)
    begun, structure = jax.tree.flatten(optimizer.init(zeros))
    whole = structure.unflatten(
        old if role in ("count", "shared") and old.shape == new.shape else new
        for role, old, new in zip(owners.roles, present, begun, strict=True)
    )
    _, decayed = jax.jvp(lambda p: optimizer.update(zeros, whole, p)[0], (weights,), (weights,))
    of_adapted = over_maps(
        lambda S, L, zero: zero if isinstance(S, Identity) else L, maps, decayed, zeros
    )
    return given, of_adapted


class _Kind(NamedTuple):
    """How a value of the traced update depends on what the optimiser was given."""

    degree: int
    """In the parameters: 0 not at all, 1 as an affine function, 2 otherwise."""
    of_arrays: bool
    """Whether it depends on gradients or moments."""


def _has_decay(
    optimizer: optax.GradientTransformation,
    owners: Owners,
    seen: PyTree,
    state: PyTree,
    params: PyTree,
) -> bool:
    """Whether an optimiser has a decoupled decay of adapted parameters."""
    adapted = [_Kind(int(flag), False) for flag in jax.tree.leaves(owners.adapted)]
    begins = _kinds(jax.make_jaxpr(optimizer.init)(params).jaxpr, adapted)
    inputs = (seen, state, params)
    closed, out = jax.make_jaxpr(optimizer.update, return_shape=True)(*inputs)
    gradients = [_Kind(0, True)] * len(adapted)
    # A number of the state is that of a schedule, or a rate; an array is a moment.
    held = [_Kind(0, leaf.ndim > 0) for leaf in jax.tree.leaves(state)]
    kinds = _kinds(closed.jaxpr, [*gradients, *held, *adapted])
    updates = len(jax.tree.leaves(out[0]))
    of_updates, of_states = kinds[:updates], [*kinds[updates:], *begins]
    if any(k.degree > 1 for k in of_updates) or any(k.degree for k in of_states):
        checks.refuse(
            "optimizer",
            "one that looks at the parameters otherwise than by a decoupled decay (a trust ratio, "
            "a penalty that goes through moments)",
            "one of gradients, or one like optax.adamw; a penalty can be a part of the loss, and "
            "lrdyn.adapters.in_coordinates(optimizer) gives it the projected parameters",
        )
    return any(kind.degree for kind in of_updates)


LINEAR = {
    *("neg", "convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "transpose"),
    *("copy", "copy_p", "expand_dims", "slice", "concatenate", "add", "sub", "add_any"),
}
"""Primitives that are affine in all arguments together."""


def _kinds(jaxpr: Any, inputs: Sequence[_Kind]) -> list[_Kind]:
    """The kinds of the outputs of a program, given those of its inputs."""
    known = dict(zip(jaxpr.invars, inputs, strict=True))

    def kind_of(value: Any) -> _Kind:
        # A literal and a constant of the program: rates and masks.
        return _Kind(0, False) if hasattr(value, "val") else known.get(value, _Kind(0, False))

    for equation in jaxpr.eqns:
        kinds = [kind_of(value) for value in equation.invars]
        known.update(zip(equation.outvars, _output_kinds(equation, kinds), strict=True))
    return [kind_of(value) for value in jaxpr.outvars]


def _output_kinds(equation: Any, kinds: list[_Kind]) -> list[_Kind]:
    """The kinds of the outputs of one equation of a program."""
    name, inner = equation.primitive.name, equation.params
    degrees = [kind.degree for kind in kinds]
    of_arrays = any(kind.of_arrays for kind in kinds)
    called = inner.get("jaxpr", inner.get("call_jaxpr"))
    if name in ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat"):
        return _kinds(getattr(called, "jaxpr", called), kinds)
    if name == "cond" and kinds[0] == _Kind(0, False):
        branches = [_kinds(branch.jaxpr, kinds[1:]) for branch in inner["branches"]]
        return [
            _Kind(max(k.degree for k in each), any(k.of_arrays for k in each))
            for each in zip(*branches, strict=True)
        ]
    moving = [kind for kind in kinds if kind.degree]
    fixed = [kind for kind in kinds if not kind.degree]
    if not moving:
        degree = 0
    elif name in LINEAR:
        degree = max(degrees)
    elif name == "mul" and len(moving) == 1 and not fixed[0].of_arrays:
        degree = moving[0].degree
    elif name == "div" and not kinds[1].degree and not kinds[1].of_arrays:
        degree = moving[0].degree
    elif name == "select_n" and kinds[0] == _Kind(0, False):
        degree = max(degrees)
    else:
        degree = 2
    return [_Kind(degree, of_arrays)] * len(equation.outvars)
