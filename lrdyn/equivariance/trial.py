"""Whether an optimiser sees the basis: it is tried, on a run and on its twins in other bases.

Layers ``V_l^T W_l V_{l-1}`` with the target ``V_L^T Phi V_0`` are the same problem in other bases.
An optimiser is *equivariant* if it takes the same path there, for orthogonal V_0, ..., V_L; many
that work entry by entry do so for signed permutations alone.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.core import checks
from lrdyn.core.checks import checked
from lrdyn.core.factorization import Weights, factorization_loss
from lrdyn.core.initialization import (
    gaussian_layers,
    low_rank_target,
    orthogonal_layers,
    spaced_singular_values,
)

Bases = tuple[Float[Array, "d d"], ...]
"""V_0, ..., V_L: the bases of the inputs and behind each layer."""
ROUNDINGS = 100.0
"""By how many roundings of its own precision a state may differ between two bases."""


class Equivariance(NamedTuple):
    """How far the same run in other bases is from the run, over how far the run moved."""

    orthogonal: float
    """In random bases. 0 but for rounding: the optimiser is equivariant."""
    signed: float
    """In bases of signed permutations, in which only entries change their places and signs."""
    frame: float
    """Off-diagonal blocks of Theorem 2 that arise in a random basis, from its start."""
    frame_in_coordinates: float
    """The same where the frame is the standard basis."""
    moved: float
    """Largest change of an entry of a layer in the run."""
    state_eps: float
    """Machine epsilon of the coarsest floating-point numbers that the optimiser holds."""
    eps: float
    """That of the layers."""
    amplified: float
    """How many times as large a small error of the start has become at the end, over ``moved``."""

    @property
    def kind(self) -> str:
        """What was seen: one of the keys of :data:`KINDS`.

        Example:
            >>> Equivariance(1e-15, 0.0, 1e-15, 0.0, 1.0, 2e-16, 2e-16, 1.0).kind
            'equivariant'
        """
        # Half of the digits, unless the run itself loses more.
        limit = max(self.eps**0.5, ROUNDINGS * self.eps * self.amplified)
        if self.orthogonal <= limit:
            return "equivariant" if self.state_eps <= self.eps else "low precision"
        # optax's GaLore holds none, but decomposes in float32.
        coarsest = max(self.state_eps, float(np.finfo(np.float32).eps))
        if self.orthogonal <= ROUNDINGS * coarsest:
            return "low precision"
        return "signed permutations" if self.signed <= limit else "neither"


KINDS = {
    "equivariant": "the same path in every basis, but for rounding",
    "low precision": "the same path but for the rounding of a state in less precision than the "
    "layers",
    "signed permutations": "the same path where entries only change places and signs",
    "neither": "another path in both",
}
"""What is seen in a trial -> what it means."""


def change_bases(layers: Weights, bases: Bases) -> Weights:
    """Layers in other bases, ``V_l^T W_l V_{l-1}``.

    Example:
        >>> flip = jnp.diag(jnp.array([1.0, -1.0]))
        >>> change_bases((jnp.ones((2, 2)),), (flip, jnp.eye(2)))[0].tolist()
        [[1.0, -1.0], [1.0, -1.0]]
    """
    return tuple(
        after.T @ W @ before for W, before, after in zip(layers, bases[:-1], bases[1:], strict=True)
    )


def signed_permutations(key: Key[Array, ""], count: int, dim: int) -> Bases:
    """Random matrices with one entry, 1 or -1, in each row and column.

    Example:
        >>> (P,) = signed_permutations(jax.random.key(0), 1, 3)
        >>> (P @ P.T).tolist()
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    made = []
    for each in jax.random.split(key, count):
        order, signs = jax.random.split(each)
        rows = jax.random.permutation(order, dim)
        made.append(jnp.eye(dim)[rows] * jax.random.rademacher(signs, (dim, 1), float))
    return tuple(made)


def descend(
    optimizer: optax.GradientTransformation, layers: Weights, target: Array, steps: int
) -> tuple[Weights, PyTree]:
    """Layers after some steps on ``1/2 ||W_L ... W_1 - target||_F^2``, and the state.

    An optimiser that asks for them gets the loss, its gradient and the function itself, as those
    with a line search do; ``optax.lookahead`` gets a pair of layers.

    Args:
        optimizer: any of optax.
        layers: at the start.
        target: Phi.
        steps: how many.

    Example:
        >>> end, _ = descend(optax.sgd(1.0), (jnp.zeros((1, 1)),), jnp.ones((1, 1)), 1)
        >>> end[0].tolist()
        [[1.0]]
    """
    rule = optax.with_extra_args_support(optimizer)

    def loss(layers: Weights) -> Float[Array, ""]:
        return factorization_loss(layers, target)

    def step(_: Array, held: tuple[Any, PyTree]) -> tuple[Any, PyTree]:
        params, state = held
        now = params.fast if isinstance(params, optax.LookaheadParams) else params
        value, gradient = jax.value_and_grad(loss)(now)
        try:
            updates, state = rule.update(
                gradient, state, params, value=value, grad=gradient, value_fn=loss
            )
        except TypeError:  # optax.contrib.sam takes none of them
            updates, state = rule.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params: Any = layers
    state = rule.init(params)
    if any(isinstance(part, optax.LookaheadState) for part in _parts(state)):
        params = optax.LookaheadParams.init_synced(layers)
        state = rule.init(params)
    held: Any = jax.lax.fori_loop(0, steps, step, (params, state))
    ended = held[0].slow if isinstance(held[0], optax.LookaheadParams) else held[0]
    return ended, held[1]


def _parts(state: Any) -> Iterator[Any]:
    yield state
    if isinstance(state, tuple):
        for part in state:
            yield from _parts(part)


class Problem(NamedTuple):
    """A factorisation that is descended on in several bases."""

    layers: Weights
    """Gaussian, at the start."""
    target: Float[Array, "d d"]
    turned: Bases
    """Random bases."""


def draw_problem(key: Key[Array, ""], dim: int, depth: int, rank: int) -> Problem:
    """Gaussian layers of norm .7, a target with singular values from 2 to 1, and random bases.

    Args:
        key: of all of it.
        dim: d.
        depth: L.
        rank: r.

    Example:
        >>> len(draw_problem(jax.random.key(0), 5, 3, 2).turned)
        4
    """
    of_layers, of_target, of_bases = jax.random.split(key, 3)
    layers = gaussian_layers(of_layers, (dim,) * (depth + 1), jnp.full(depth, 0.7))
    target = low_rank_target(of_target, (dim, dim), 2.0 * spaced_singular_values(rank))
    # As many orthogonal layers as there are bases.
    turned = orthogonal_layers(of_bases, (dim,) * (depth + 2), jnp.ones(depth + 1))
    return Problem(layers, target, turned)


def distance(
    run: Callable[[Weights, Array], Weights], layers: Weights, target: Array, bases: Bases
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """How far the run in other bases is from the run, turned; and how far the run moved.

    Args:
        run: maps layers at the start and a target to layers at the end.
        layers: at the start.
        target: Phi.
        bases: V_0, ..., V_L.

    Returns:
        Two largest differences of an entry.

    Example:
        >>> flip = (-jnp.eye(2), jnp.eye(2))
        >>> apart, _ = distance(lambda W, _: (W[0] + 1,), (jnp.eye(2),), jnp.eye(2), flip)
        >>> float(apart)
        2.0
    """
    whole = run(layers, target)
    other = run(change_bases(layers, bases), bases[-1].T @ target @ bases[0])
    return largest_change(change_bases(whole, bases), other), largest_change(whole, layers)


def largest_change(first: Weights, second: Weights) -> Float[Array, ""]:
    """Largest difference of an entry of two sets of layers.

    Example:
        >>> float(largest_change((jnp.ones((2, 2)),), (jnp.eye(2),)))
        1.0
    """
    return jnp.max(jnp.stack([jnp.max(jnp.abs(a - b)) for a, b in zip(first, second, strict=True)]))


@checked
def equivariance(
    key: Key[Array, ""],
    optimizer: optax.GradientTransformation,
    *,
    dim: int = 10,
    depth: int = 3,
    rank: int = 2,
    steps: int = 30,
) -> Equivariance:
    """Try an optimiser: the same descent in the basis that is given, and in others.

    A trial can show that an optimiser sees the basis, and never that it does not: gradients that
    are clipped by value, for example, take the same path in every basis until an entry is clipped.

    Args:
        key: of layers, target and bases.
        optimizer: any of optax, with its rate.
        dim: d.
        depth: L.
        rank: r of the target, d > 2 r.
        steps: of the run.

    Raises:
        ValueError: the run is lost, as with a step that is too large.

    Example:
        >>> key = jax.random.key(0)
        >>> equivariance(key, optax.sgd(0.1, momentum=0.9)).kind
        'equivariant'
        >>> equivariance(key, optax.adam(0.01)).kind
        'signed permutations'
    """
    checks.integer("dim", dim, 3)
    checks.integer("rank", rank, 1, (dim - 1) // 2)
    of_problem, of_signs, of_corner = jax.random.split(key, 3)
    problem = draw_problem(of_problem, dim, depth, rank)
    signed = signed_permutations(of_signs, depth + 1, dim)

    # One program for all bases.
    @jax.jit
    def whole_run(layers: Weights, target: Array) -> tuple[Weights, PyTree]:
        return descend(optimizer, layers, target, steps)

    def run(layers: Weights, target: Array) -> Weights:
        return whole_run(layers, target)[0]

    apart, moved = distance(run, problem.layers, problem.target, problem.turned)
    if not (jnp.isfinite(moved) and moved > 0):
        checks.refuse("optimizer", f"layers that move by {float(moved):g}", "layers that move")
    signed_apart, _ = distance(run, problem.layers, problem.target, signed)
    # In every entry, and without a pattern.
    error = problem.target.dtype.type(1e3) * jnp.finfo(problem.target.dtype).eps
    beside = tuple(
        W + error * jnp.cos(jnp.arange(W.size, dtype=W.dtype) ** 2).reshape(W.shape)
        for W in problem.layers
    )
    grown = largest_change(run(problem.layers, problem.target), run(beside, problem.target))

    # Theorem 2's start in its own frame: the moving block comes first.
    moving = 2 * rank
    still = tuple(0.5 * jnp.eye(dim) for _ in range(depth))
    corner = low_rank_target(of_corner, (moving, moving), 2.0 * spaced_singular_values(rank))
    framed = jnp.pad(corner, (0, dim - moving))

    def off_block(bases: Bases) -> float:
        ended = run(change_bases(still, bases), bases[-1].T @ framed @ bases[0])
        back = change_bases(ended, tuple(V.T for V in bases))
        beside = (block for W in back for block in (W[:moving, moving:], W[moving:, :moving]))
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(block)) for block in beside]))
        return float(largest / largest_change(back, still))

    _, state = jax.eval_shape(whole_run, problem.layers, problem.target)
    # A random key, which some states hold, is no number.
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state)}
    floats = [kind for kind in kinds if jax.numpy.issubdtype(kind, jnp.floating)]
    eps = float(jnp.finfo(problem.target.dtype).eps)
    return Equivariance(
        orthogonal=float(apart / moved),
        signed=float(signed_apart / moved),
        frame=off_block(problem.turned),
        frame_in_coordinates=off_block(tuple(jnp.eye(dim) for _ in range(depth + 1))),
        moved=float(moved),
        state_eps=max([eps, *(float(jnp.finfo(dtype).eps) for dtype in floats)]),
        eps=eps,
        amplified=float(grown / error / moved),
    )
