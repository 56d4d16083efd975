"""Theorem 4 at a refresh: the state of the optimiser is kept, reset or transported.

GaLore and ReLoRA agree under each policy. With heavy ball the path needs no coordinates at all,

    W <- W - eta M,    M <- mu M + P P^T G,    mu = 0.9,

where at a refresh M becomes P_new P_old^T M (keep), 0 (reset) or P_new P_new^T M (transport).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from lrdyn.adapters.algorithm_1 import Method
from lrdyn.adapters.methods import GALORE, RELORA_FROZEN
from lrdyn.adapters.projectors import (
    Identity,
    choose_projectors,
    lift_onto,
    over_maps,
    project,
)
from lrdyn.adapters.state import POLICIES, StatePolicy
from lrdyn.core.condition import with_condition
from lrdyn.core.descent import iterate
from lrdyn.theorem4 import problems
from lrdyn.theorem4.problems import LowRankRun, RunRecord, trained_claim
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Zero
from lrdyn.verification.stating.statement import Claim, Control, Scenario

KEEP, RESET, TRANSPORT = range(3)
NAMES = tuple(POLICIES)
MOMENTUM = 0.9
"""mu."""
SIGN_FREE = np.array([RESET, TRANSPORT], np.int32)
"""Policies after which the signs of singular vectors have no effect."""


def _select(number: Int[Array, ""], choices: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *arrays: jax.lax.select_n(number, *arrays), *choices)


def select_policy(number: Int[Array, ""]) -> StatePolicy:
    """Make the policy of a traced number: one program serves all policies."""
    number = number.astype(jnp.int32)

    def policy(fresh: PyTree, state: PyTree, old: PyTree, new: PyTree):
        return _select(number, [POLICIES[name](fresh, state, old, new) for name in NAMES])

    return policy


def flip_signs(maps: PyTree) -> PyTree:
    """Another rule for the signs of singular vectors: the first entry of each is positive."""

    def flip(basis: Array):
        return basis * jnp.where(basis[:1] < 0, -1.0, 1.0).astype(basis.dtype)

    return jax.tree.map(flip, maps)


def run_policies(
    case: LowRankRun, method: Method, params_and_data: Any = None, flipped: Any = False
) -> RunRecord:
    """Run a method with each policy.

    Args:
        case: the problem and its settings.
        method: GaLore, ReLoRA, ...
        params_and_data: start and data in the place of those of the case.
        flipped: whether the signs of singular vectors follow the other rule.
    """

    def choose(key: Any, gradients: PyTree):
        # Only the rule for signs differs, so that both runs have the same subspaces.
        maps = choose_projectors(gradients, case.rank, case.side)
        return jax.tree.map(lambda a, b: jnp.where(flipped, a, b), flip_signs(maps), maps)

    def run(number: Array):
        policy = select_policy(number)
        return problems.train(case, method, params_and_data, state=policy, choose=choose)

    return jax.vmap(run)(policy_numbers())


def policy_numbers() -> Int[Array, "policy"]:
    """The number of each policy, for :func:`select_policy`."""
    return jnp.arange(len(NAMES), dtype=jnp.int32)


# Momentum without coordinates --------------------------------------------------------------------


class Lifted(NamedTuple):
    """A run whose momentum has the size of the weights."""

    weights: PyTree
    momentum: PyTree
    maps: PyTree


def project_through(first: PyTree, then: PyTree, matrices: PyTree) -> PyTree:
    """S_then^T S_first X: if both are one map S, the projection onto its subspace."""
    zeros = jax.tree.map(jnp.zeros_like, matrices)
    return lift_onto(zeros, then, project(first, matrices))


def lifted_momentum(case: LowRankRun, number: Int[Array, ""]) -> Float[Array, "times entries"]:
    """W <- W - eta M, M <- mu M + P P^T G, with no state in coordinates.

    Args:
        case: the problem and its settings.
        number: of the policy, which says what M becomes at a refresh.
    """

    def gradient(weights: PyTree) -> PyTree:
        return jax.grad(case.loss)(weights, case.data)

    def refresh(old: Lifted) -> Lifted:
        maps = choose_projectors(gradient(old.weights), case.rank, case.side)
        moments = [
            # The coordinates stay, the directions turn.
            project_through(old.maps, maps, old.momentum),
            # A bias has no coordinates, and nothing of its own begins anew.
            over_maps(lambda S, M: M if isinstance(S, Identity) else 0 * M, maps, old.momentum),
            project_through(maps, maps, old.momentum),
        ]
        return Lifted(old.weights, _select(number, moments), maps)

    def step(t: Array, state: Lifted) -> Lifted:
        state = jax.lax.cond(t % case.period == 0, refresh, lambda same: same, state)
        projected = project_through(state.maps, state.maps, gradient(state.weights))
        momentum = jax.tree.map(lambda M, g: MOMENTUM * M + g, state.momentum, projected)
        weights = jax.tree.map(lambda W, M: W - case.learning_rate * M, state.weights, momentum)
        return Lifted(weights, momentum, state.maps)

    # Placeholders: step 0 is a refresh, and the momentum before it is 0.
    maps = choose_projectors(gradient(case.params), case.rank, case.side)
    start = Lifted(case.params, jax.tree.map(jnp.zeros_like, case.params), maps)
    times = problems.record_times(case)
    return iterate(step, start, times, lambda state: problems.ravel(state.weights))[1]


# Theory and measurement --------------------------------------------------------------------------


class PoliciesTheory(NamedTuple):
    """GaLore with each policy, and the recursion without coordinates."""

    weights: Float[Array, "policy step entry"] = ABSENT
    """All parameters at each recorded step."""
    training_loss: Float[Array, "policy step"] = ABSENT
    """Loss at each recorded step."""
    trained: Int[Array, "policy"] = ABSENT
    """Number of entries in which ReLoRA differentiates."""
    galore_diverges_at: Int[Array, "policy"] = ABSENT
    """First recorded step at which GaLore has diverged, or -1."""
    moved: Float[Array, ""] = ABSENT
    """How far GaLore moves, over its largest weight; the least of all policies."""
    singular_gap: Float[Array, "policy refresh matrix"] = ABSENT
    """sigma_r - sigma_{r+1} of the gradient of each matrix, over its largest sigma_1."""
    rank_margin: Float[Array, "policy refresh matrix"] = ABSENT
    """sigma_r over sigma_1 of the gradient of each matrix."""
    condition: Float[Array, ""] = ABSENT
    """By how much GaLore's runs amplify a small error of their start and data."""
    policy_weights: Float[Array, "policy step entry"] = ABSENT
    """The weights, for the claim about policies."""
    lifted: Float[Array, "policy step entry"] = ABSENT
    """Weights of the recursion without coordinates."""


class PoliciesMeasured(NamedTuple):
    """ReLoRA with a frozen factor under each policy."""

    weights: Float[Array, "policy step entry"] = ABSENT
    """All parameters at each recorded step, P A merged."""
    training_loss: Float[Array, "policy step"] = ABSENT
    """Loss at each recorded step."""
    trained: Int[Array, "policy"] = ABSENT
    """Number of entries in which the method differentiates."""
    policy_weights: Float[Array, "policy step entry"] = ABSENT
    """The weights, for the claim about policies."""
    lifted: Float[Array, "policy step entry"] = ABSENT
    """The weights, for the claim about the recursion."""
    signs: Float[Array, "sign_free_policy step"] = ABSENT
    """Largest difference of two runs with two rules for signs, over the largest weight."""
    kept_signs: Float[Array, "step"] = ABSENT
    """Largest difference of two such runs which keep their state, over the largest weight."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


def galore(case: LowRankRun) -> PoliciesTheory:
    """Run GaLore with each policy, and look at its paths and its refreshes."""
    runs, condition = with_condition(
        lambda both: run_policies(case, GALORE, both).records,
        (case.params, case.data),
        roundings=problems.roundings_of(case),
    )
    paths, refreshed = (
        _select_recorded(case, runs),
        jax.vmap(partial(problems.examine_refreshes, case))(runs),
    )
    losses = jax.vmap(partial(problems.losses, case))(paths)
    return PoliciesTheory(
        weights=paths,
        training_loss=losses,
        trained=jnp.full_like(policy_numbers(), problems.factor_entries(case)),
        galore_diverges_at=jax.vmap(partial(problems.divergence_step, case))(losses),
        moved=problems.relative_change(paths),
        singular_gap=refreshed.gaps,
        rank_margin=refreshed.least,
        condition=condition,
    )


def relora(case: LowRankRun, method: Method = RELORA_FROZEN) -> PoliciesMeasured:
    """Run ReLoRA with a frozen factor, or another method, with each policy."""
    runs = run_policies(case, method)
    paths = _select_recorded(case, runs.records)
    return PoliciesMeasured(
        weights=paths,
        training_loss=jax.vmap(partial(problems.losses, case))(paths),
        trained=runs.trained,
        step=jnp.asarray(case.steps),
    )


def _select_recorded(case: LowRankRun, runs: Float[Array, "policy times entries"]) -> Array:
    """The records without those of refreshes between the recorded steps."""
    return runs[:, problems.time_indices(case, case.steps)]


def predict_policies(case: LowRankRun) -> PoliciesTheory:
    """GaLore with each policy, and the recursion without coordinates."""
    theory = galore(case)
    return theory._replace(policy_weights=theory.weights, lifted=_lifted_paths(case))


def _lifted_paths(case: LowRankRun) -> Float[Array, "policy step entry"]:
    """The recursion without coordinates, for each policy."""
    return _select_recorded(
        case, jax.vmap(lambda number: lifted_momentum(case, number))(policy_numbers())
    )


def _run_both_rules(case: LowRankRun) -> tuple[Array, Array, Array]:
    """ReLoRA with each policy and either rule for the signs, and the number of its entries."""
    rules = jnp.array([False, True])
    runs = jax.vmap(lambda flipped: run_policies(case, RELORA_FROZEN, flipped=flipped))(rules)
    plain, flipped = jax.vmap(partial(_select_recorded, case))(runs.records)
    return plain, flipped, runs.trained[0]


def measure_policies(case: LowRankRun) -> PoliciesMeasured:
    """ReLoRA with each policy, and how far apart the rules for the signs are."""
    plain, flipped, trained = _run_both_rules(case)
    return PoliciesMeasured(
        policy_weights=plain,
        lifted=plain,
        trained=trained,
        signs=jax.vmap(problems.distance)(plain[SIGN_FREE], flipped[SIGN_FREE]),
        kept_signs=problems.distance(plain[KEEP], flipped[KEEP]),
        step=jnp.asarray(case.steps),
    )


# Controls ----------------------------------------------------------------------------------------


def _other_runs(case: LowRankRun) -> PoliciesMeasured:
    """Each policy under the name of another, and signs with a kept state."""
    plain, flipped, _ = _run_both_rules(case)
    keep = jnp.full_like(SIGN_FREE, KEEP)
    return PoliciesMeasured(
        policy_weights=jnp.roll(plain, 1, axis=0),
        lifted=jnp.roll(plain, 1, axis=0),
        signs=jax.vmap(problems.distance)(plain[keep], flipped[keep]),
    )


def _other_formulas(case: LowRankRun) -> PoliciesTheory:
    """Momentum that is lifted with each policy under the name of another, as both predictions."""
    # Each policy has another one for a prediction.
    wrong = jnp.roll(_lifted_paths(case), 1, axis=0)
    return PoliciesTheory(policy_weights=wrong, lifted=wrong)


def _momentum_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with momentum alone, the first problem and the last side; all policies are run."""
    optimizers = tuple(name for name in settings["optimizer"] if name == "momentum")
    first = {name: settings[name][:1] for name in ("state", "problem")}
    return settings | first | {"optimizer": optimizers, "side": settings["side"][-1:]}


OPTIMIZER_STATE = Scenario[LowRankRun, PoliciesTheory, PoliciesMeasured](
    "optimizer_state",
    problems.make_run,
    predict_policies,
    measure_policies,
    theory=PoliciesTheory,
    measured=PoliciesMeasured,
    claims=(
        Claim(
            "policy_weights",
            "GaLore and ReLoRA with a frozen factor have the same weights at every step, whether "
            "both keep, reset or transport the optimiser's state at a refresh",
            reads=lambda theory, run: problems.watched_fields(theory),
            undecided=problems.undecided,
            condition=lambda theory: theory.condition,
        ),
        trained_claim("policy_trained", lambda theory, run: (theory.trained, run.trained)),
        Claim(
            "lifted",
            "with momentum GaLore and ReLoRA with a frozen factor take the path W <- W - eta M, "
            "M <- mu M + P P^T G, where a refresh turns M into P_new P_old^T M (keep), 0 (reset) "
            "or P_new P_new^T M (transport)",
            reads=lambda theory, run: problems.watched_fields(theory),
            undecided=problems.undecided,
            condition=lambda theory: theory.condition,
            sides="a momentum of the size of W, projected, against one in coordinates",
        ),
        Claim(
            "signs",
            "after a reset or a transport of the state the path does not depend on the signs of "
            "singular vectors, on which that of a kept state depends (no formula: both sides are "
            "runs)",
            # In every bit, since a change of signs rounds nothing. Where the two rules agree at
            # every refresh a kept state goes the same way, too, and nothing is shown.
            form=lambda outcome: Zero(
                outcome.measured.signs,
                scale=1.0,
                alternative=outcome.measured.kept_signs,
            ),
            reads=lambda theory, run: (run.signs, run.kept_signs, *problems.watched_fields(theory)),
            undecided=problems.undecided,
            condition=lambda theory: theory.condition,
            sides="runs with two rules for the signs of singular vectors",
        ),
    ),
    controls=(
        Control(
            "other_policy",
            "one keeps its state where the other resets, resets where it transports, ...",
            "policy_weights",
            measure=_other_runs,
        ),
        Control(
            "other_prediction",
            "each policy predicted as another one, by the recursion without coordinates",
            "policy_weights",
            predict=_other_formulas,
        ),
        Control(
            "other_recursion",
            "each policy lifted as another one",
            "lifted",
            predict=_other_formulas,
        ),
        Control("other_run", "each policy run as another one", "lifted", measure=_other_runs),
        Control(
            "kept_signs",
            "a state that is kept while the signs of singular vectors change",
            "signs",
            measure=_other_runs,
        ),
        Control(
            "galore_of_all_policies",
            "GaLore in the place of ReLoRA",
            "policy_trained",
            measure=lambda case: PoliciesMeasured(trained=run_policies(case, GALORE).trained),
        ),
        Control(
            "whole_matrices_of_all_policies",
            "all entries of W claimed to be trained",
            "policy_trained",
            predict=lambda case: PoliciesTheory(
                trained=jnp.full_like(policy_numbers(), problems.ravel(case.params).size)
            ),
        ),
    ),
    hypotheses={"full_rank_gradient": problems.full_rank_gradient},
    narrow=_momentum_settings,
    steps="steps",
    diverges=lambda theory: theory.galore_diverges_at,
    sides="GaLore against ReLoRA, all three policies",
    at={"optimizer": "momentum", "side": "left", "problem": "regression", "steps": 40},
)
