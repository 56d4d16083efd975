"""Theorem 4: what becomes of the state of the optimiser at a refresh."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from lrdyn.adapters.algorithm_1 import Method
from lrdyn.adapters.maps import choose_projectors, lift_onto, project
from lrdyn.adapters.methods import GALORE, RELORA_FROZEN
from lrdyn.adapters.state import POLICIES, StatePolicy
from lrdyn.core.condition import with_condition
from lrdyn.core.descent import iterate
from lrdyn.engine.statement import Claim, Control, Scenario
from lrdyn.theorem4 import problems
from lrdyn.theorem4.problems import LowRankRun, Run

KEEP, RESET, TRANSPORT = range(3)
NAMES = tuple(POLICIES)
MOMENTUM = 0.9


def _select(number: Int[Array, ""], choices: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *arrays: jax.lax.select_n(number, *arrays), *choices)


def one_policy(number: Int[Array, ""]) -> StatePolicy:
    """The policy of a traced number, so that one program serves all."""
    number = number.astype(jnp.int32)

    def policy(fresh: PyTree, state: PyTree, old: PyTree, new: PyTree):
        return _select(number, [POLICIES[name](fresh, state, old, new) for name in NAMES])

    return policy


def other_signs(maps: PyTree) -> PyTree:
    """Another rule for the signs of singular vectors: the first entry of each is positive."""

    def flip(basis: Array):
        return basis * jnp.where(basis[:1] < 0, -1.0, 1.0).astype(basis.dtype)

    return jax.tree.map(flip, maps)


def lanes(
    case: LowRankRun, method: Method, params_and_data: Any = None, flipped: Any = False
) -> Run:
    """Runs with each policy; the signs of the singular vectors by one rule or by the other."""

    def choose(key: Any, gradients: PyTree):
        maps = choose_projectors(gradients, case.rank, case.side)
        return jax.tree.map(lambda a, b: jnp.where(flipped, a, b), other_signs(maps), maps)

    def run(number: Array):
        policy = one_policy(number)
        return problems.train(case, method, params_and_data, state=policy, choose=choose)

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

    def gradient(weights: PyTree):
        return jax.grad(case.loss)(weights, case.data)

    def refresh(old: Lifted) -> Lifted:
        maps = choose_projectors(gradient(old.weights), case.rank, case.side)
        moments = [
            through(old.maps, maps, old.momentum),
            jax.tree.map(jnp.zeros_like, old.momentum),
            through(maps, maps, old.momentum),
        ]
        return Lifted(old.weights, _select(number, moments), maps)

    def step(t: Array, now: Lifted) -> Lifted:
        now = jax.lax.cond(t % case.period == 0, refresh, lambda same: same, now)
        projected = through(now.maps, now.maps, gradient(now.weights))
        momentum = jax.tree.map(lambda M, g: MOMENTUM * M + g, now.momentum, projected)
        weights = jax.tree.map(lambda W, M: W - case.learning_rate * M, now.weights, momentum)
        return Lifted(weights, momentum, now.maps)

    start = choose_projectors(gradient(case.params), case.rank, case.side)
    zeros = jax.tree.map(jnp.zeros_like, case.params)
    begin = Lifted(case.params, zeros, start)
    return iterate(step, begin, problems.times(case), lambda now: problems.flat(now.weights))[1]


# The scenario -----------------------------------------------------------------------------------


def galore(case: LowRankRun) -> dict[str, Array]:
    """GaLore with each policy."""
    runs, condition = with_condition(
        lambda both: lanes(case, GALORE, both).records, (case.params, case.data)
    )
    paths, seen = _recorded(case, runs), jax.vmap(partial(problems.refreshed, case))(runs)
    losses = jax.vmap(partial(problems.losses, case))(paths)
    return {
        "weights": paths,
        "training_loss": losses,
        "trained": jnp.full_like(_numbers(), problems.factor_entries(case)),
        "galore_diverges_at": jax.vmap(partial(problems.diverges, case))(losses),
        "moved": problems.moved(paths),
        "singular_gap": seen.gaps,
        "rank_margin": seen.least,
        "condition": condition,
    }


def relora(case: LowRankRun, method: Method = RELORA_FROZEN) -> dict[str, Array]:
    """ReLoRA with each policy."""
    runs = lanes(case, method)
    paths = _recorded(case, runs.records)
    return {
        "weights": paths,
        "training_loss": jax.vmap(partial(problems.losses, case))(paths),
        "trained": runs.trained,
        "step": jnp.asarray(case.steps),
    }


def _recorded(case: LowRankRun, runs: Float[Array, "policy times entries"]) -> Array:
    return runs[:, problems.at(case, case.steps)]


def predict(case: LowRankRun) -> dict[str, Array]:
    """GaLore with each policy, and the recursion without coordinates."""
    found = galore(case)
    return found | {"policy_weights": found["weights"], "lifted": _lifted(case)}


def _lifted(case: LowRankRun) -> Float[Array, "policy step entry"]:
    """The recursion without coordinates, for each policy."""
    return _recorded(case, jax.vmap(lambda number: lifted_momentum(case, number))(_numbers()))


SIGN_FREE = np.array([RESET, TRANSPORT], np.int32)
"""Policies after which the signs of singular vectors have no effect."""


def _runs(case: LowRankRun) -> tuple[Array, Array]:
    """ReLoRA with both rules for the signs and each policy; and how many numbers it trains."""
    rules = jnp.array([False, True])
    found = jax.vmap(lambda flipped: lanes(case, RELORA_FROZEN, flipped=flipped))(rules)
    return jax.vmap(partial(_recorded, case))(found.records), found.trained[0]


def measure(case: LowRankRun) -> dict[str, Array]:
    """ReLoRA with each policy, and how far apart the rules for the signs are."""
    (one, other), trained = _runs(case)
    return {
        "policy_weights": one,
        "lifted": one,
        "trained": trained,
        "signs": jax.vmap(problems.distance)(one[SIGN_FREE], other[SIGN_FREE]),
        "step": jnp.asarray(case.steps),
    }


CLAIMS = (
    Claim("policy_weights",
          "GaLore and ReLoRA with a frozen factor agree whether both keep, reset or transport",
          reads=("policy_weights", *problems.WATCHED), applies=problems.has_rank,
          undecided=problems.undecided, condition="condition"),
    problems.trained_claim("policy_trained"),
    Claim("lifted",
          "with momentum the path is that of W <- W - eta M, M <- mu M + P P^T G, where M becomes "
          "P_new P_old^T M (keep), 0 (reset), P_new P_new^T M (transport) at a refresh",
          reads=("lifted", *problems.WATCHED), applies=problems.has_rank,
          undecided=problems.undecided, condition="condition",
          sides="a momentum of the size of W, projected, against one in coordinates"),
    Claim("signs",
          "after a reset or a transport the path does not depend on the signs of singular vectors "
          "(no formula: both sides are runs)",
          residual=lambda one: float(np.max(one.measured["signs"])),
          reads=("signs", *problems.WATCHED), applies=problems.has_rank,
          undecided=problems.undecided, condition="condition",
          sides="runs with two rules for the signs of singular vectors"),
)  # fmt: skip


def _broken(case: LowRankRun) -> dict[str, Array]:
    """Each policy under the name of another, and signs with a kept state."""
    (one, other), _ = _runs(case)
    kept = jnp.full_like(SIGN_FREE, KEEP)
    return {
        "policy_weights": jnp.roll(one, 1, axis=0),
        "lifted": jnp.roll(one, 1, axis=0),
        "signs": jax.vmap(problems.distance)(one[kept], other[kept]),
    }


def _other_formulas(case: LowRankRun) -> dict[str, Array]:
    """Momentum that is lifted with each policy under the name of another, as both predictions."""
    wrong = jnp.roll(_lifted(case), 1, axis=0)
    return {"policy_weights": wrong, "lifted": wrong}


CONTROLS = (
    Control("other_policy",
            "one keeps its state where the other resets, resets where it transports, ...",
            "policy_weights", measure=_broken),
    Control("other_prediction", "the same of what is predicted", "policy_weights",
            predict=_other_formulas),
    Control("other_recursion", "each policy lifted as another one", "lifted",
            predict=_other_formulas),
    Control("other_run", "each policy run as another one", "lifted", measure=_broken),
    Control("kept_signs", "a state that is kept while the signs of singular vectors change",
            "signs", measure=_broken),
    Control[LowRankRun](
        "galore_of_all_policies", "GaLore in the place of ReLoRA", "policy_trained",
        measure=lambda case: {"trained": lanes(case, GALORE).trained}),
    Control[LowRankRun](
        "whole_matrices_of_all_policies", "all entries of W claimed to be trained",
        "policy_trained", predict=lambda case: {
            "trained": jnp.full_like(_numbers(), problems.flat(case.params).size)}),
)  # fmt: skip


def _momentum(settings: dict[str, Any]) -> dict[str, Any]:
    """Momentum, on the first problem and the last side; all policies are run anyway."""
    optimizers = tuple(name for name in settings["optimizer"] if name == "momentum")
    first = {name: settings[name][:1] for name in ("state", "problem")}
    return settings | first | {"optimizer": optimizers, "side": settings["side"][-1:]}


DIMS = {
    **dict.fromkeys(("policy_weights", "lifted", "weights"), ("policy", "step", "entry")),
    **dict.fromkeys(("singular_gap", "rank_margin"), ("policy", "refresh", "matrix")),
    **dict.fromkeys(("trained", "galore_diverges_at"), ("policy",)),
    "training_loss": ("policy", "step"),
    "signs": ("sign_free_policy", "step"),
    "step": ("step",),
}

OPTIMIZER_STATE = Scenario(
    "optimizer_state", problems.make_run, predict, measure, CLAIMS, CONTROLS,
    dims=DIMS,
    hypotheses={"full_rank_gradient": problems.full_rank_gradient},
    narrow=_momentum, steps="steps", diverges="galore_diverges_at",
    sides="GaLore against ReLoRA, all three policies",
    at={"optimizer": "momentum", "side": "left", "problem": "regression", "steps": 40},
)  # fmt: skip
