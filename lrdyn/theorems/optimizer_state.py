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
    top_singular_projector,
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
    unflat,
)

KEEP, RESET, TRANSPORT = range(3)
NAMES = ("keep", "reset", "transport")
MOMENTUM, SQUARES = 0.9, 0.999
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

    return jax.vmap(run)(_numbers())


def _numbers() -> Int[Array, "policy"]:
    return jnp.arange(len(NAMES), dtype=jnp.int32)


# Momentum without coordinates --------------------------------------------------------------------


class Lifted(NamedTuple):
    """A run whose momentum has the size of the weights."""

    weights: PyTree
    momentum: PyTree
    maps: PyTree


def through(first: PyTree, then: PyTree, matrices: PyTree) -> PyTree:
    """S_then^T S_first X: for one and the same S the projection onto its subspace."""
    zeros = jax.tree.map(jnp.zeros_like, matrices)
    return lift_onto(zeros, then, project(first, matrices))


def lifted_momentum(case: LowRankRun, number: Int[Array, ""]) -> Float[Array, "times entries"]:
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
        return Lifted(old.weights, momentum, maps)

    def step(t, now: Lifted) -> Lifted:
        now = jax.lax.cond(t % case.period == 0, refresh, lambda same: same, now)
        projected = through(now.maps, now.maps, gradient(now.weights))
        momentum = jax.tree.map(lambda M, g: MOMENTUM * M + g, now.momentum, projected)
        weights = jax.tree.map(lambda W, M: W - case.learning_rate * M, now.weights, momentum)
        return Lifted(weights, momentum, now.maps)

    start = choose_projectors(gradient(case.params), case.rank, case.side)
    zeros = jax.tree.map(jnp.zeros_like, case.params)
    begin = Lifted(case.params, zeros, start)
    return iterate(step, begin, times(case), lambda now: flat(now.weights))[1]


def transported_squares(
    case: LowRankRun, records: Float[Array, "times entries"]
) -> Float[Array, "..."]:
    """S_new S_old^T v at the first refresh after the start: v moved as if it were a momentum.

    v is Adam's mean of squares, ``(1 - b) sum_t b^(T-1-t) (S G_t)^2``; its first matrix is shown.
    """

    def gradient(vector):
        return first_matrix(jax.grad(case.loss)(unflat(case)(vector), case.data))

    if len(refreshes(case)) == 1:
        return jnp.zeros_like(gradient(records[0]))
    path = jax.vmap(gradient)(records[at(case, np.arange(case.period + 1))])
    old, new = (top_singular_projector(G, case.rank, case.side) for G in (path[0], path[-1]))
    shares = (1 - SQUARES) * SQUARES ** np.arange(case.period - 1, -1, -1)
    weighed = jnp.asarray(shares, path.dtype)[:, None, None]
    return new.project(old.lift(jnp.sum(weighed * jax.vmap(old.project)(path[:-1]) ** 2, axis=0)))


def negative_rows(case: LowRankRun, squares: Float[Array, "..."]) -> Int[Array, ""]:
    """In how many directions some entry is negative for one of the two signs of its vector."""
    along = 1 if case.side == "left" else 0
    lowest, highest = jnp.min(squares, axis=along), jnp.max(squares, axis=along)
    return jnp.sum(jnp.minimum(lowest, -highest) < 0)


# The statement -----------------------------------------------------------------------------------


def predict(case: LowRankRun) -> dict[str, Array]:
    """GaLore with each policy, and the recursion without coordinates."""
    galore, condition = with_condition(
        lambda both: lanes(case, GALORE, both), (case.params, case.data)
    )
    every = jax.vmap(lambda number: lifted_momentum(case, number))(_numbers())
    recorded = at(case, case.steps)
    return {
        "policy_weights": galore[:, recorded],
        "lifted": every[:, recorded],
        "signs": jnp.zeros((len(SIGN_FREE), len(recorded)), galore.dtype),
        "negative_directions": jnp.asarray(case.rank),
        "singular_gap": jnp.stack([refreshed(case, run).gaps for run in galore]),
        "condition": condition,
    }


SIGN_FREE = (RESET, TRANSPORT)


def measure(case: LowRankRun, *, sign_free: tuple[int, ...] = SIGN_FREE) -> dict[str, Array]:
    """ReLoRA with each policy, with both rules for the signs."""
    runs = jax.vmap(lambda flipped: lanes(case, RELORA, flipped=flipped))(jnp.array([False, True]))
    recorded, chosen = at(case, case.steps), np.array(sign_free)
    one, other = runs[:, :, recorded]
    squares = transported_squares(case, runs[0, RESET])
    return {
        "policy_weights": one,
        "lifted": one,
        "signs": jax.vmap(distance)(one[chosen], other[chosen]),
        "negative_directions": negative_rows(case, squares),
        "transported_squares": squares,
        "step": jnp.asarray(case.steps),
    }


def _determined(case: LowRankRun, predicted: Arrays, measured: Arrays) -> Array:
    return jnp.all(jax.vmap(determined)(predicted["singular_gap"]))


def _has_momentum(case: LowRankRun, predicted: Arrays, measured: Arrays) -> Array:
    return _determined(case, predicted, measured) & (case.optimizer == "momentum")


CLAIMS = (
    Claim(
        "policy_weights",
        "GaLore and ReLoRA with a frozen factor agree whether both keep, reset or transport",
        applies=_determined,
    ),
    Claim(
        "lifted",
        "with momentum the path is that of W <- W - eta M, M <- mu M + P P^T G, where M becomes "
        "P_new P_old^T M (keep), 0 (reset), P_new P_new^T M (transport) at a refresh",
        applies=_has_momentum,
    ),
    Claim(
        "signs",
        "after a reset or a transport the path does not depend on the signs of singular vectors",
        residual=lambda case, p, m: relative_difference(
            p["signs"], m["signs"], jnp.ones_like(case.learning_rate)
        ),
        applies=_determined,
    ),
    Claim(
        "negative_directions",
        "Adam's mean of squares, moved like a momentum, has negative entries in each of the r "
        "directions, for one of the two signs that its singular vector can have",
        kind="exact",
        applies=lambda case, p, m: _determined(case, p, m) & (len(refreshes(case)) > 1),
    ),
)


def _turned(case: LowRankRun) -> dict[str, Array]:
    """The three recursions in another order: nothing is the same but their number."""
    right = predict(case)
    turned = {name: jnp.roll(right[name], 1, axis=0) for name in ("policy_weights", "lifted")}
    return right | turned | {"negative_directions": jnp.asarray(0)}


AT = {"optimizer": "momentum", "side": "left", "problem": "regression", "steps": 40}


def _with_state(settings: dict[str, Any]) -> dict[str, Any]:
    """Optimisers that have a state, on the first problem; all policies are run anyway."""
    optimizers = tuple(name for name in settings["optimizer"] if name != "sgd")
    first = {name: settings[name][:1] for name in ("state", "side", "problem")}
    return settings | first | {"optimizer": optimizers}


OPTIMIZER_STATE = Statement(
    "optimizer_state",
    make_run,
    predict,
    measure,
    CLAIMS,
    controls=(
        Control(
            "other_policy",
            "one keeps its state where the other resets, resets where it transports, ...",
            "policy_weights",
            predict=_turned,
            at=AT,
        ),
        Control(
            "other_recursion",
            "each policy lifted as another one",
            "lifted",
            predict=_turned,
            at=AT,
        ),
        Control(
            "kept_signs",
            "a state that is kept while the signs of singular vectors change",
            "signs",
            measure=lambda case: measure(case, sign_free=(KEEP, KEEP)),
            at=AT,
        ),
        Control(
            "squares_stay_positive",
            "the transported squares claimed to be a mean of squares",
            "negative_directions",
            predict=_turned,
            at=AT,
        ),
    ),
    dims={
        "policy_weights": ("policy", "step", "entry"),
        "lifted": ("policy", "step", "entry"),
        "signs": ("sign_free_policy", "step"),
        "singular_gap": ("policy", "refresh", "matrix"),
        "transported_squares": ("direction", "entry_of_direction"),
        "step": ("step",),
    },
    narrow=_with_state,
)
