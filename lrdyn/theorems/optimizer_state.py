"""Theorem 4: what becomes of the state of the optimiser at a refresh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from lrdyn.descent import iterate
from lrdyn.projection import (
    GALORE,
    POLICIES,
    RELORA,
    Identity,
    Method,
    Projector,
    StatePolicy,
    choose_projectors,
    lift_onto,
    project,
)
from lrdyn.theorem import Arrays, Claim, Control, Statement, relative_difference, with_condition
from lrdyn.theorems.low_rank_training import (
    LowRankRun,
    at,
    determined,
    distance,
    first_matrix,
    flat,
    make_run,
    refreshed,
    refreshes,
    times,
    train,
)

KEEP, RESET, TRANSPORT = range(3)
NAMES = ("keep", "reset", "transport")
MOMENTUM, SECOND_DECAY = 0.9, 0.999
"""Decays of the means of gradients (momentum) and of their squares (Adam)."""


def one_policy(number: Int[Array, ""]) -> StatePolicy:
    """The policy of a traced number, so that one program serves all."""

    def policy(fresh, state, old, new):
        choices = [POLICIES[name](fresh, state, old, new) for name in NAMES]
        return jax.tree.map(lambda *arrays: jax.lax.select_n(number, *arrays), *choices)

    return policy


def other_signs(maps: PyTree) -> PyTree:
    """Another rule for the signs of singular vectors: the first entry of each is positive."""

    def flip(S):
        if isinstance(S, Identity):
            return S
        return Projector(S.basis * jnp.where(S.basis[:1] < 0, -1.0, 1.0).astype(S.basis.dtype),
                         S.side)  # fmt: skip

    return jax.tree.map(flip, maps, is_leaf=lambda node: hasattr(node, "lift"))


def lanes(
    case: LowRankRun, method: Method, params_and_data: Any = None, flipped: Any = False
) -> Float[Array, "policy times entries"]:
    """Runs with each policy; the signs of the singular vectors by one rule or by the other."""

    def choose(gradients):
        maps = choose_projectors(gradients, case.rank, case.side)
        return jax.tree.map(lambda a, b: jnp.where(flipped, a, b), other_signs(maps), maps)

    def run(number):
        policy = one_policy(number)
        return train(case, method, params_and_data, state=policy, choose=choose).records

    return jax.vmap(run)(jnp.arange(len(NAMES), dtype=jnp.int32))


# Momentum without coordinates --------------------------------------------------------------------


class Lifted(NamedTuple):
    """A run whose momentum has the size of the weights."""

    weights: PyTree
    momentum: PyTree
    maps: PyTree
    squares: Array
    """Adam's mean of squares, in the coordinates of the first matrix."""


class LiftedRun(NamedTuple):
    """What is recorded of it."""

    weights: Float[Array, "policy times entries"]
    basis: Float[Array, "policy times length rank"]
    squares: Float[Array, "policy times ..."]


def through(first: PyTree, then: PyTree, matrices: PyTree) -> PyTree:
    """S_then^T S_first X: for one and the same S the projection onto its subspace."""
    zeros = jax.tree.map(jnp.zeros_like, matrices)
    return lift_onto(zeros, then, project(first, matrices))


def lifted_momentum(case: LowRankRun, number: Int[Array, ""]) -> LiftedRun:
    """W <- W - eta M, M <- mu M + P P^T G, with no state in coordinates.

    At a refresh M becomes ``P_new P_old^T M`` (keep: the coordinates stay and the directions
    turn), 0 (reset) or ``P_new P_new^T M`` (transport: the projection onto the new subspace).
    """

    def gradient(weights):
        return jax.grad(case.loss)(weights, case.data)

    def refresh(old: Lifted) -> Lifted:
        maps = choose_projectors(gradient(old.weights), case.rank, case.side)
        moments = [
            through(old.maps, maps, old.momentum),
            jax.tree.map(jnp.zeros_like, old.momentum),
            through(maps, maps, old.momentum),
        ]
        momentum = jax.tree.map(lambda *arrays: jax.lax.select_n(number, *arrays), *moments)
        return old._replace(momentum=momentum, maps=maps, squares=jnp.zeros_like(old.squares))

    def step(t, now: Lifted) -> Lifted:
        now = jax.lax.cond(t % case.period == 0, refresh, lambda same: same, now)
        G = gradient(now.weights)
        projected = through(now.maps, now.maps, G)
        momentum = jax.tree.map(lambda M, g: MOMENTUM * M + g, now.momentum, projected)
        weights = jax.tree.map(lambda W, M: W - case.learning_rate * M, now.weights, momentum)
        R = first_matrix(project(now.maps, G))
        squares = SECOND_DECAY * now.squares + (1 - SECOND_DECAY) * R**2
        return Lifted(weights, momentum, now.maps, squares)

    def record(now: Lifted):
        return LiftedRun(flat(now.weights), _first_basis(now.maps), now.squares)

    start = choose_projectors(gradient(case.params), case.rank, case.side)
    zeros = jax.tree.map(jnp.zeros_like, case.params)
    squares = jnp.zeros_like(first_matrix(project(start, case.params)))
    return iterate(step, Lifted(case.params, zeros, start, squares), times(case), record)[1]


def _first_basis(maps: PyTree) -> Float[Array, "length rank"]:
    every = jax.tree.leaves(maps, is_leaf=lambda node: hasattr(node, "lift"))
    return next(S.basis for S in every if isinstance(S, Projector))


def transported_squares(case: LowRankRun, run: LiftedRun) -> Float[Array, "..."]:
    """S_new S_old^T v: the mean of squares in new coordinates, if it were moved like a momentum."""
    before = int(at(case, refreshes(case)[1]))
    old, new = (Projector(run.basis[RESET, i], case.side) for i in (before, before + 1))
    return new.project(old.lift(run.squares[RESET, before]))


# The statement -----------------------------------------------------------------------------------


def predict(case: LowRankRun) -> dict[str, Array]:
    """GaLore with each policy, and the recursion without coordinates."""
    galore, condition = with_condition(
        lambda both: lanes(case, GALORE, both), (case.params, case.data)
    )
    every = jax.vmap(lambda number: lifted_momentum(case, number))(jnp.arange(3, dtype=jnp.int32))
    recorded = at(case, case.steps)
    several = len(refreshes(case)) > 1
    squares = transported_squares(case, every) if several else every.squares[RESET, 0]
    zeros = jnp.zeros((2, len(recorded)), galore.dtype)
    return {
        "policy_weights": galore[:, recorded],
        "lifted": every.weights[:, recorded],
        "signs": zeros,
        "negative": jnp.asarray(case.rank),
        "transported": squares,
        "refreshed": jnp.asarray(several),
        "singular_gap": jnp.stack([refreshed(case, run).gaps for run in galore]),
        "condition": condition,
    }


def measure(case: LowRankRun, *, sign_free: tuple[int, ...] = (RESET, TRANSPORT)) -> dict[str, Any]:
    """ReLoRA with each policy, with both rules for the signs."""
    runs = jax.vmap(lambda flipped: lanes(case, RELORA, flipped=flipped))(jnp.array([False, True]))
    recorded = at(case, case.steps)
    one, other = runs[:, :, recorded]
    chosen = np.array(sign_free)
    return {
        "policy_weights": one,
        "lifted": one,
        "signs": jax.vmap(distance)(one[chosen], other[chosen]),
        "step": jnp.asarray(case.steps),
    }
