"""Theorem 4 on a path: GaLore and ReLoRA with a frozen factor step by step, and what they add up.

Weights and losses are equal at every recorded step, whatever the P_k are. That these are the top r
singular vectors of the gradients is seen in what is added between two refreshes, P_k A_k. After K
refreshes W(t) - W(0) is a sum of K such terms, of rank r K at most, and of that rank if the columns
of [P_1 ... P_K] and the rows of A_1, ..., A_K are independent.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrdyn.adapters.algorithm_1 import Method
from lrdyn.adapters.methods import GALORE, RELORA, RELORA_FROZEN
from lrdyn.core.condition import with_condition
from lrdyn.theorem4 import problems
from lrdyn.theorem4.mistakes import STALE, UNMERGED, choose_zero_maps, prune_moments
from lrdyn.theorem4.optimizer_state_claims import OPTIMIZER_STATE, galore, relora
from lrdyn.theorem4.problems import LowRankRun, trained_claim
from lrdyn.verification.stating.claims import CLEARLY, tolerance
from lrdyn.verification.stating.fields import ABSENT, both_sides
from lrdyn.verification.stating.forms import Count, Zero
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario


class TrajectoryTheory(NamedTuple):
    """Run of GaLore, with its projectors and what follows from them."""

    weights: Float[Array, "step entry"] = ABSENT
    """All parameters at each recorded step."""
    training_loss: Float[Array, "step"] = ABSENT
    """Loss at each recorded step."""
    trained: Int[Array, ""] = ABSENT
    """Number of entries in which ReLoRA differentiates."""
    condition: Float[Array, ""] = ABSENT
    """By how much GaLore's run amplifies a small error of its start and data."""
    galore_diverges_at: Int[Array, ""] = ABSENT
    """First recorded step at which GaLore has diverged, or -1."""
    moved: Float[Array, ""] = ABSENT
    """How far GaLore moves, over its largest weight."""
    singular_gap: Float[Array, "refresh matrix"] = ABSENT
    """sigma_r - sigma_{r+1} of the gradient of each matrix, over its largest sigma_1."""
    rank_margin: Float[Array, "refresh matrix"] = ABSENT
    """sigma_r over sigma_1 of the gradient of each matrix."""
    top_directions: Float[Array, "refresh coordinate direction"] = ABSENT
    """Top r left (or right) singular vectors of the gradient of the first matrix."""
    independence: Float[Array, "refreshes"] = ABSENT
    """Least singular value of [P_1 ... P_K]."""
    sum_rank: Int[Array, "refreshes"] = ABSENT
    """r K, the rank of W(t) - W(0) after K refreshes."""
    sum_spread: Float[Array, "refreshes"] = ABSENT
    """sigma_{rK} over sigma_1 of GaLore's own W(t) - W(0)."""
    sum_rounding: Float[Array, ""] = ABSENT
    """Largest entry of W over the largest singular value of W(t) - W(0), at least 1."""


class TrajectoryMeasured(NamedTuple):
    """ReLoRA with a frozen factor."""

    weights: Float[Array, "step entry"] = ABSENT
    """All parameters at each recorded step, P A merged."""
    training_loss: Float[Array, "step"] = ABSENT
    """Loss at each recorded step."""
    trained: Int[Array, ""] = ABSENT
    """Number of entries in which the method differentiates."""
    moves: Float[Array, "refresh row column"] = ABSENT
    """What is added to the first matrix from each refresh to the next."""
    sum_values: Float[Array, "refreshes index"] = ABSENT
    """Singular values of W(t) - W(0), the first matrix, after K refreshes."""
    gap: Float[Array, "step"] = ABSENT
    """Largest difference of the two paths, over their largest weight."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


TrajectoryOutcome = Outcome[TrajectoryTheory, TrajectoryMeasured]


def predict_trajectory(case: LowRankRun) -> TrajectoryTheory:
    """Run GaLore, and look at its gradients once more for what its projectors are."""
    # Start and data are disturbed together: a run may amplify either.
    records, condition = with_condition(
        lambda both: problems.train(case, GALORE, both).records,
        (case.params, case.data),
        roundings=problems.roundings_of(case),
    )
    refreshed, recorded = problems.examine_refreshes(case, records), _select_recorded(case, records)
    losses, values = problems.losses(case, recorded), problems.sum_values(case, records)
    return TrajectoryTheory(
        weights=recorded,
        training_loss=losses,
        trained=problems.factor_entries(case),
        condition=condition,
        galore_diverges_at=problems.divergence_step(case, losses),
        moved=problems.relative_change(recorded),
        singular_gap=refreshed.gaps,
        rank_margin=refreshed.least,
        top_directions=refreshed.bases,
        independence=problems.independence(case, refreshed.bases),
        sum_rank=problems.sum_ranks(case),
        sum_spread=problems.sum_spread(case, values),
        sum_rounding=problems.sum_rounding(case, records, values),
    )


def _select_recorded(case: LowRankRun, records: Float[Array, "times entries"]) -> Array:
    """The records without those of refreshes between the recorded steps."""
    return records[problems.time_indices(case, case.steps)]


def measure_trajectory(
    case: LowRankRun, *, method: Method = RELORA_FROZEN, **how: Any
) -> TrajectoryMeasured:
    """Run ReLoRA with a frozen factor; controls run another method, or with other arguments."""
    run = problems.train(case, method, **how)
    recorded = _select_recorded(case, run.records)
    return TrajectoryMeasured(
        weights=recorded,
        training_loss=problems.losses(case, recorded),
        trained=run.trained,
        moves=problems.refresh_changes(case, run.records),
        sum_values=problems.sum_values(case, run.records),
        diverged_at=run.diverged_at,
        step=jnp.asarray(case.steps),
    )


def gap(case: LowRankRun, theory: TrajectoryTheory, run: TrajectoryMeasured) -> TrajectoryMeasured:
    """The gap between the two trajectories at each recorded step."""
    return TrajectoryMeasured(gap=problems.distance(theory.weights, run.weights))


# Claims ------------------------------------------------------------------------------------------


@runtime_checkable
class Paths(Protocol):
    """Weights, losses and counts of one side."""

    @property
    def weights(self) -> Array:
        """All parameters at each recorded step."""
        ...

    @property
    def training_loss(self) -> Array:
        """Loss at each recorded step."""
        ...

    @property
    def trained(self) -> Array:
        """How many numbers are trained."""
        ...


@runtime_checkable
class GalorePaths(Paths, problems.Watched, Protocol):
    """Paths of GaLore, and what is said of its run."""


T = TypeVar("T", bound=GalorePaths)
M = TypeVar("M", bound=Paths)


def _path_claims(prefix: str = "", more: str = "") -> tuple[Claim[T, M], ...]:
    """Claims that GaLore and ReLoRA take one path, for scenarios whose sides have these fields.

    Args:
        prefix: of the names of the claims.
        more: text behind each statement.
    """

    def claim(name: str, statement: str) -> Claim[T, M]:
        return Claim(
            prefix + name,
            statement + more,
            compares=both_sides(name),
            reads=lambda theory, run: problems.watched_fields(theory),
            undecided=problems.undecided,
            condition=lambda theory: theory.condition,
        )

    return (
        claim(
            "weights",
            "GaLore and ReLoRA with a frozen factor have the same weights at every step",
        ),
        claim(
            "training_loss",
            "GaLore and ReLoRA with a frozen factor have the same loss at every step",
        ),
        trained_claim(prefix + "trained", lambda theory, run: (theory.trained, run.trained), more),
    )


INDEPENDENT = 0.1
"""Least singular value of [P_1 ... P_K] from which its columns count as independent."""


def _relative_values(outcome: TrajectoryOutcome) -> np.ndarray:
    """Singular values of the sums over their largest, and 0 beyond the last: nothing is there."""
    values = np.pad(outcome.measured.sum_values, ((0, 0), (0, 1)))
    # A sum that is 0 has no scale: its values stay 0.
    largest = values[:, :1]
    return values / np.where(largest == 0, 1.0, largest)


def _rounding(outcome: TrajectoryOutcome) -> float:
    """Rounding of the singular values of a sum, over the largest: that of the weights."""
    limit = tolerance("identity", outcome.dtype, steps=outcome.steps, size=outcome.size)
    return limit * float(outcome.predicted.sum_rounding)


def _excess(outcome: TrajectoryOutcome) -> Zero:
    """Singular values beyond the first r K, after each K: one term more would add one of those."""
    values, ranks = _relative_values(outcome), outcome.predicted.sum_rank[:, None]
    beyond = ~(np.arange(values.shape[1]) < ranks)  # of a rank that is lost, all
    # A product keeps a NaN, wherever it stands.
    return Zero(values * beyond, scale=1.0, alternative=outcome.predicted.sum_spread)


def _compare_ranks(outcome: TrajectoryOutcome) -> Count:
    """The ranks after each K at which the subspaces are independent."""
    values, counted = _relative_values(outcome), _independent_subspaces(outcome)
    # What is larger than the rounding that the other claims allow is no rounding.
    ranks = np.sum(values > _rounding(outcome), axis=1)
    ranks = np.where(np.all(np.isfinite(values), axis=1), ranks, np.nan)
    return Count(outcome.predicted.sum_rank[counted], ranks[counted])


def _independent_subspaces(outcome: TrajectoryOutcome) -> np.ndarray:
    """For which K the subspaces are independent; a NaN, which must fail, counts as independent."""
    return ~np.asarray(outcome.predicted.independence < INDEPENDENT)


def _rank_undecided(outcome: TrajectoryOutcome) -> str:
    """Why ranks cannot be counted: sigma_{rK} of GaLore's own sums is near to their rounding."""
    if low := problems.low_rank_reason(outcome):
        return low
    counted = _independent_subspaces(outcome)
    if not np.any(counted):
        return "dependent subspaces"
    # The rows of the A_k must be independent, too. A first step of Adam is made of signs, up to its
    # eps: where A_1 = A_2 but for that, P_1 A_1 + P_2 A_2 has the rank of one of them.
    least = np.min(outcome.predicted.sum_spread[counted])
    return "" if least > CLEARLY * _rounding(outcome) else "rank below rounding"


def _leaves_no_choice(outcome: TrajectoryOutcome) -> bool:
    """Whether r singular vectors are all that a matrix has: then P says nothing of an order."""
    return outcome.predicted.top_directions.shape[-1] == min(outcome.measured.moves.shape[-2:])


def _moves_outside(outcome: TrajectoryOutcome) -> Zero:
    """Compare the moves between refreshes, outside of the span of theory's vectors, with 0.

    The last singular vectors in the place of the first would leave all of it there.
    """
    P, moves = outcome.predicted.top_directions, outcome.measured.moves
    across = moves if outcome.point["side"] == "left" else np.swapaxes(moves, 1, 2)
    outside = across - P @ (np.swapaxes(P, 1, 2) @ across)
    # Differences of weights are rounded like the weights.
    return Zero(outside, scale=np.max(np.abs(outcome.predicted.weights)), alternative=moves)


# Controls ----------------------------------------------------------------------------------------


def _nothing_moves(case: LowRankRun) -> TrajectoryMeasured:
    """ReLoRA with both factors 0 at the start; lost, and so not seen to fail, if anything moves."""
    run = measure_trajectory(case, method=RELORA, choose=choose_zero_maps(case.rank, case.side))
    still = jnp.all(run.weights == run.weights[:1])
    return TrajectoryMeasured(weights=jnp.where(still, run.weights, jnp.nan))


def _run_galore(case: LowRankRun, **how: Any) -> TrajectoryTheory:
    """GaLore with other arguments of its run."""
    run = measure_trajectory(case, method=GALORE, **how)
    return TrajectoryTheory(weights=run.weights, training_loss=run.training_loss)


def _first_directions(case: LowRankRun) -> TrajectoryTheory:
    """The singular vectors of the first gradient, at every refresh."""
    still = jnp.tile(problems.ravel(case.params), (len(problems.record_times(case)), 1))
    return TrajectoryTheory(top_directions=problems.examine_refreshes(case, still).bases)


def _other_side(case: LowRankRun) -> TrajectoryTheory:
    return _run_galore(case, side="right" if case.side == "left" else "left")


ADAM = {"optimizer": "adam", "state": "reset", "steps": 20}
"""Settings of controls about the state, which SGD has none of."""

# One object for all controls that use it: they share its runs.
_unmerged = partial(measure_trajectory, method=UNMERGED)
_both_trained = partial(measure_trajectory, method=RELORA)


def _more_columns(case: LowRankRun) -> TrajectoryMeasured:
    return measure_trajectory(case, rank=case.rank + 1)


OF_SUMS = "r times the number of refreshes against singular values of W(t) - W(0)"


def _first_problem(settings: dict[str, Any]) -> dict[str, Any]:
    """The first problem, on the first side unless several ranks, periods or states are swept.

    The other scenarios run on the last side.
    """
    # The paper preset; the quick one saves the second side here, since other scenarios have it.
    broad = max(len(settings[name]) for name in ("rank", "period", "state")) > 1
    sides = settings["side"] if broad else settings["side"][:1]
    return settings | {"problem": settings["problem"][:1], "side": sides}


TRAJECTORY = Scenario[LowRankRun, TrajectoryTheory, TrajectoryMeasured](
    "trajectory",
    problems.make_run,
    predict_trajectory,
    measure_trajectory,
    theory=TrajectoryTheory,
    measured=TrajectoryMeasured,
    claims=(
        *_path_claims(),
        Claim(
            "top_directions",
            "between two refreshes W moves only in the span of the top r left (right) singular "
            "vectors of the gradient at the first of them",
            form=_moves_outside,
            reads=lambda theory, run: (
                theory.top_directions,
                theory.weights,
                run.moves,
                *problems.watched_fields(theory),
            ),
            applies=lambda outcome: not _leaves_no_choice(outcome),
            undecided=problems.undecided,
            condition=lambda theory: theory.condition,
            sides="singular vectors of GaLore's gradients against what ReLoRA adds to W",
        ),
        Claim(
            "sum_excess",
            "after K refreshes W(t) - W(0) has rank at most r K: sigma_{rK+1} = 0 (true of any "
            "sum of K terms of rank r: no verdict rests on it)",
            kind="bound",
            form=_excess,
            reads=lambda theory, run: (
                run.sum_values,
                theory.sum_rank,
                theory.sum_spread,
                theory.sum_rounding,
            ),
            carries=False,
            sides=OF_SUMS,
            # Where r K is below the number of singular values there is one to be 0.
            applies=lambda outcome: bool(
                outcome.predicted.sum_rank[0] < outcome.measured.sum_values.shape[1]
            ),
            condition=lambda theory: theory.sum_rounding,
        ),
        Claim(
            "sum_rank",
            "after K refreshes W(t) - W(0) = sum_k P_k A_k has rank r K if the columns of [P_1 "
            "... P_K] and the rows of A_1, ..., A_K are independent: steps of low rank, a sum of "
            "higher rank",
            kind="exact",
            form=_compare_ranks,
            reads=lambda theory, run: (
                run.sum_values,
                theory.sum_rank,
                theory.independence,
                theory.sum_spread,
                theory.sum_rounding,
                theory.rank_margin,
            ),
            undecided=_rank_undecided,
            carries=False,
            sides=OF_SUMS,
        ),
    ),
    controls=(
        Control(
            "one_keeps_one_resets",
            "GaLore keeps its state and ReLoRA resets it, as published",
            "weights",
            predict=partial(_run_galore, state="keep"),
            at=ADAM,
        ),
        Control(
            "pruned_state",
            "a reset that sets 99.9 % of the moments to zero and keeps the count of steps",
            "weights",
            measure=lambda case: measure_trajectory(case, state=prune_moments(jax.random.key(0))),
            at=ADAM,
        ),
        Control(
            "no_merge",
            "A set to zero at a refresh without a merge: the function jumps",
            "training_loss",
            measure=_unmerged,
        ),
        Control(
            "stale_adapter",
            "a fresh P with the A of the old one",
            "weights",
            measure=partial(measure_trajectory, method=STALE),
        ),
        Control(
            "both_factors_trained",
            "B = P trained as well as A, as ReLoRA does",
            "weights",
            measure=_both_trained,
        ),
        Control(
            "both_factors_zero",
            "both factors zero at the start: their gradients are exactly 0, and nothing moves",
            "weights",
            measure=_nothing_moves,
        ),
        Control("other_side", "GaLore on the other side", "weights", predict=_other_side),
        Control(
            "loss_of_other_side",
            "the loss of GaLore on the other side",
            "training_loss",
            predict=_other_side,
        ),
        Control(
            "galore_twice",
            "GaLore in the place of ReLoRA",
            "trained",
            measure=lambda case: TrajectoryMeasured(trained=problems.train(case, GALORE).trained),
        ),
        Control(
            "whole_matrices",
            "all entries of W claimed to be trained",
            "trained",
            predict=lambda case: TrajectoryTheory(
                trained=jnp.asarray(problems.ravel(case.params).size)
            ),
        ),
        Control(
            "next_direction",
            "P of r + 1 columns",
            "top_directions",
            measure=_more_columns,
        ),
        Control(
            "trained_directions",
            "B = P trained as well as A, as ReLoRA does",
            "top_directions",
            measure=_both_trained,
        ),
        Control(
            "first_directions",
            "the singular vectors of the first gradient claimed at every refresh",
            "top_directions",
            predict=_first_directions,
        ),
        Control(
            "more_columns",
            "P of r + 1 columns",
            "sum_excess",
            measure=_more_columns,
        ),
        Control(
            "one_direction_less",
            "the sum claimed to have a rank below r K",
            "sum_excess",
            predict=lambda case: TrajectoryTheory(sum_rank=problems.sum_ranks(case) - 1),
        ),
        Control(
            "rank_without_merge",
            "no merge: only the last adapter is left",
            "sum_rank",
            measure=_unmerged,
        ),
        Control(
            "rank_of_one_adapter",
            "the sum claimed to have the rank of one adapter",
            "sum_rank",
            predict=lambda case: TrajectoryTheory(
                sum_rank=jnp.full_like(problems.sum_ranks(case), case.rank)
            ),
        ),
    ),
    hypotheses={"full_rank_gradient": problems.full_rank_gradient},
    narrow=_first_problem,
    compare=gap,
    steps="steps",
    diverges=lambda theory: theory.galore_diverges_at,
    diverged=lambda run: run.diverged_at,
    sides="projected gradients of W (GaLore) against gradients of A by differentiation (ReLoRA)",
    at={"optimizer": "sgd", "side": "left", "problem": "regression", "state": "keep", "steps": 60},
)


def _other_problems(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the other problems, in few steps: their runs amplify rounding at every step.

    All policies are run, whatever --state says.
    """
    names = ("optimizer", "rank", "period", "side", "learning_rate")
    last = {name: settings[name][-1:] for name in names}
    # With one refresh in the middle; float32 has digits left after 20.
    steps = min(settings["steps"], 2 * last["period"][0], 30)
    # The gap is one of the regression, which is the first problem where several are swept.
    first = {name: settings[name][:1] for name in ("state", "gradient_gap")}
    return settings | last | first | {"problem": settings["problem"][1:], "steps": steps}


OTHER_PROBLEMS = dataclasses.replace(
    OPTIMIZER_STATE,
    id="other_problems",
    predict=galore,
    measure=relora,
    claims=_path_claims(
        "network_",
        " (on the other problems, whether both keep, reset or transport the state; controls as on "
        "the first problem)",
    ),
    controls=(),
    narrow=_other_problems,
)
