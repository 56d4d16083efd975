"""Theorem 4: GaLore and ReLoRA with a frozen factor take the same path."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lrdyn.adapters.algorithm_1 import Method
from lrdyn.adapters.methods import GALORE, RELORA, RELORA_FROZEN
from lrdyn.core.condition import with_condition
from lrdyn.engine.claims import CLEARLY, relative_difference, tolerance
from lrdyn.engine.flags import Flag, at_least, between, one_of
from lrdyn.engine.statement import Arrays, Claim, Control, Outcome, Scenario, Theorem
from lrdyn.theorem4 import problems
from lrdyn.theorem4.duality_claims import DUALITY
from lrdyn.theorem4.figures import plot_paths
from lrdyn.theorem4.gradient_rank_claims import GRADIENT_RANK
from lrdyn.theorem4.memory_claims import MEMORY
from lrdyn.theorem4.mistakes import STALE, UNMERGED, no_factors, pruned
from lrdyn.theorem4.optax_galore_claims import OPTAX
from lrdyn.theorem4.optax_programs_claims import OPTAX_PROGRAMS
from lrdyn.theorem4.optimizer_state_claims import NAMES, OPTIMIZER_STATE, galore, relora
from lrdyn.theorem4.problems import OPTIMIZERS, PROBLEMS, LowRankRun, trained_claim

SIDES = ("left", "right")

RATE = between(1e-12, 1e12)
"""Where updates keep all digits: a decay of some step times a weight has none below 1e-307."""

FLAGS = (
    Flag("rows", (10,), at_least(2), int, "m", "rows of W: outputs, classes, hidden units",
         shapes=True),
    Flag("cols", (14,), at_least(2), int, "n", "columns of W: features of an example", shapes=True),
    Flag("rank", (2,), at_least(1), int, "r", "columns of P", (1, 3), shapes=True),
    Flag("period", (10,), at_least(1), int, "T", "steps between two refreshes of P", (1, 7, 25),
         shapes=True),
    Flag("optimizer", tuple(OPTIMIZERS), one_of(*OPTIMIZERS), str, "opt",
         "what sees the coordinates of the gradient: sgd, momentum 0.9, or Adam", shapes=True),
    Flag("state", ("keep",), one_of(*NAMES), str, "",
         "what becomes of the optimiser's state at a refresh", NAMES, shapes=True),
    Flag("side", SIDES, one_of(*SIDES), str, "", "side of the gradient that is projected",
         shapes=True),
    Flag("problem", ("regression", "mlp"), one_of(*PROBLEMS), str, "f",
         "what is trained; every matrix of a network is projected", PROBLEMS, shapes=True),
    Flag("learning_rate", (0.05,), RATE, float, "eta",
         "step size; for the regression that of the loss 1/2 ||.||_F^2", (0.02, 0.05)),
    Flag("steps", (60,), at_least(1), int, "t", "steps of descent", (100,), swept=False),
)  # fmt: skip


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    if point["rank"] > min(point["rows"], point["cols"]):
        raise ValueError(
            f"--rank: got {point['rank']} with {point['rows']} x {point['cols']}, "
            "wanted at most the smaller"
        )


# Theory and measurement --------------------------------------------------------------------------


def predict(case: LowRankRun) -> dict[str, Array]:
    """GaLore, and what its projectors say."""
    records, condition = with_condition(
        lambda both: problems.train(case, GALORE, both).records, (case.params, case.data)
    )
    found, recorded = problems.refreshed(case, records), records[problems.at(case, case.steps)]
    losses, sums = problems.losses(case, recorded), problems.sum_values(case, records)
    return {
        "weights": recorded,
        "training_loss": losses,
        "trained": problems.factor_entries(case),
        "condition": condition,
        "galore_diverges_at": problems.diverges(case, losses),
        "moved": problems.moved(recorded),
        "singular_gap": found.gaps,
        "rank_margin": found.least,
        "independence": problems.independence(case, found.bases),
        "sum_rank": problems.sum_ranks(case),
        "sum_spread": problems.sum_spread(case, sums),
        "sum_rounding": problems.sum_rounding(case, records, sums),
    }


def measure(case: LowRankRun, *, method: Method = RELORA_FROZEN, **how: Any) -> dict[str, Array]:
    """ReLoRA with a frozen factor, or something else with the arguments of its run."""
    run = problems.train(case, method, **how)
    recorded = run.records[problems.at(case, case.steps)]
    return {
        "weights": recorded,
        "training_loss": problems.losses(case, recorded),
        "trained": run.trained,
        "sum_values": problems.sum_values(case, run.records),
        "step": jnp.asarray(case.steps),
        "diverged_at": run.diverged_at,
    }


def gap(case: LowRankRun, predicted: Arrays, measured: Arrays) -> dict[str, Array]:
    """The gap between the two trajectories at each recorded step."""
    return {"gap": problems.distance(predicted["weights"], measured["weights"])}


INDEPENDENT = 0.1
"""Least singular value of [P_1 ... P_K] from which its columns count as independent."""


def _same_path(prefix: str = "", more: str = "") -> tuple[Claim, ...]:
    """Claims that GaLore and ReLoRA agree, for a scenario of other claims."""

    def claim(name: str, statement: str) -> Claim:
        return Claim(
            prefix + name,
            statement + more,
            residual=lambda one: relative_difference(one.predicted[name], one.measured[name]),
            reads=(name, *problems.WATCHED),
            applies=problems.has_rank,
            undecided=problems.undecided,
            condition="condition",
        )

    same = "GaLore and ReLoRA with a frozen factor have the same weights at every step"
    return (
        claim("weights", same),
        claim("training_loss", "and the same loss"),
        trained_claim(prefix + "trained", more),
    )


def _relative_values(one: Outcome) -> np.ndarray:
    """Singular values of the sums over their largest, and 0 beyond the last: nothing is there."""
    values = np.pad(one.measured["sum_values"], ((0, 0), (0, 1)))
    largest = values[:, :1]
    return values / np.where(largest == 0, 1.0, largest)


def _excess(one: Outcome) -> float:
    values, ranks = _relative_values(one), one.predicted["sum_rank"][:, None]
    within = np.arange(values.shape[1]) < ranks
    return float(np.max(values * ~within))  # a product keeps a NaN, wherever it stands


def _wrong_ranks(one: Outcome) -> float:
    """For how many K the rank is another one, of those whose subspaces are independent."""
    values, independence = _relative_values(one), one.predicted["independence"]
    if not (np.all(np.isfinite(values)) and np.all(np.isfinite(independence))):
        return float("nan")
    # What is larger than the rounding that the other claims allow is no rounding.
    wrong = np.sum(values > _rounding(one), axis=1) != one.predicted["sum_rank"]
    return float(np.sum(wrong & (independence >= INDEPENDENT)))


def _rounding(one: Outcome) -> float:
    """Of the singular values of a sum, over the largest: that of the weights."""
    limit = tolerance("identity", one.dtype, steps=one.steps, size=one.size)
    return limit * float(one.predicted["sum_rounding"])


def _beneath_the_rank(one: Outcome) -> bool:
    """Whether r K leaves any singular value of the sum to be 0."""
    return bool(one.predicted["sum_rank"][0] < one.measured["sum_values"].shape[1])


def _visible(one: Outcome) -> str:
    """Why ranks cannot be counted: sigma_{rK} of GaLore's own sums is near to their rounding."""
    counted = one.predicted["independence"] >= INDEPENDENT
    least = np.min(one.predicted["sum_spread"][counted], initial=np.inf)
    return "" if least > CLEARLY * _rounding(one) else "rank below rounding"


OF_SUMS = "r times the number of refreshes against singular values of W(t) - W(0)"

CLAIMS = (
    *_same_path(),
    Claim("sum_excess", "W(t) - W(0) has rank at most r K after K refreshes: sigma_{rK+1} = 0",
          kind="bound", residual=_excess, reads=("sum_values", "sum_rank", "sum_rounding"),
          sides=OF_SUMS, applies=_beneath_the_rank, condition="sum_rounding"),
    Claim("sum_rank",
          "and no less if the subspaces are independent: steps of rank r, a sum of rank r K",
          kind="exact", residual=_wrong_ranks,
          reads=("sum_values", "sum_rank", "independence", "sum_spread", "sum_rounding",
                 "rank_margin"),
          applies=problems.has_rank, undecided=_visible, carries=False, sides=OF_SUMS),
)  # fmt: skip


# Controls ----------------------------------------------------------------------------------------


ADAM = {"optimizer": "adam", "state": "reset", "steps": 20}


def _nothing_moves(case: LowRankRun) -> dict[str, Array]:
    """ReLoRA with both factors 0 at the start; lost, and so not seen to fail, if anything moves."""
    found = measure(case, method=RELORA, choose=no_factors(case.rank, case.side))
    weights = found["weights"]
    return {"weights": jnp.where(jnp.all(weights == weights[:1]), weights, jnp.nan)}


def _other_side(case: LowRankRun) -> dict[str, Array]:
    """GaLore on the other side."""
    side = "right" if case.side == "left" else "left"
    return measure(case, method=GALORE, side=side)


def _wider(case: LowRankRun) -> dict[str, Array]:
    """One column of P more."""
    return measure(case, rank=case.rank + 1)


def _galore_twice(case: LowRankRun) -> dict[str, Array]:
    """What GaLore trains; its path would be no other."""
    return {"trained": problems.train(case, GALORE).trained}


_unmerged = partial(measure, method=UNMERGED)

CONTROLS = (
    Control("one_keeps_one_resets",
            "GaLore keeps its state and ReLoRA resets it, as published", "weights",
            predict=partial(measure, method=GALORE, state="keep"), at=ADAM),
    Control[LowRankRun](
        "pruned_state",
        "a reset that sets 99.9 % of the moments to zero and keeps the count of steps", "weights",
        measure=lambda case: measure(case, state=pruned(jax.random.key(0))), at=ADAM),
    Control("no_merge", "A set to zero at a refresh without a merge: the function jumps",
            "training_loss", measure=_unmerged),
    Control("stale_adapter", "a fresh P with the A of the old one", "weights",
            measure=partial(measure, method=STALE)),
    Control("both_factors_trained", "B trained as well as A: ReLoRA as published", "weights",
            measure=partial(measure, method=RELORA)),
    Control[LowRankRun](
        "both_factors_zero",
        "both factors zero at the start: their gradients are exactly 0, and nothing moves",
        "weights", measure=_nothing_moves),
    Control("other_side", "GaLore on the other side", "weights", predict=_other_side),
    Control("loss_of_other_side", "its loss", "training_loss", predict=_other_side),
    Control("galore_twice", "GaLore in the place of ReLoRA", "trained", measure=_galore_twice),
    Control[LowRankRun](
        "whole_matrices", "all entries of W claimed to be trained", "trained",
        predict=lambda case: {"trained": jnp.asarray(problems.flat(case.params).size)}),
    Control("more_columns", "P of r + 1 columns", "sum_excess", measure=_wider),
    Control[LowRankRun](
        "one_direction_less", "the sum claimed to have a rank below r K", "sum_excess",
        predict=lambda case: {"sum_rank": problems.sum_ranks(case) - 1}),
    Control("rank_without_merge", "no merge: only the last adapter is left", "sum_rank",
            measure=_unmerged),
    Control[LowRankRun](
        "rank_of_one_adapter", "the sum claimed to have the rank of one adapter", "sum_rank",
        predict=lambda case: {"sum_rank": jnp.full_like(problems.sum_ranks(case), case.rank)}),
)  # fmt: skip

DIMS = {
    "weights": ("step", "entry"),
    "training_loss": ("step",),
    "gap": ("step",),
    "singular_gap": ("refresh", "matrix"),
    "rank_margin": ("refresh", "matrix"),
    "sum_rank": ("refreshes",),
    "sum_spread": ("refreshes",),
    "independence": ("refreshes",),
    "sum_values": ("refreshes", "index"),
    "step": ("step",),
}


def _first_problem(settings: dict[str, Any]) -> dict[str, Any]:
    """The first problem, on the first side unless several ranks, periods or states are swept.

    The other scenarios run on the last side.
    """
    broad = max(len(settings[name]) for name in ("rank", "period", "state")) > 1
    sides = settings["side"] if broad else settings["side"][:1]
    return settings | {"problem": settings["problem"][:1], "side": sides}


def _other_problems(settings: dict[str, Any]) -> dict[str, Any]:
    """The other problems, briefly: they amplify rounding the more the longer they are trained.

    All policies are run anyway.
    """
    names = ("optimizer", "rank", "period", "side", "learning_rate")
    last = {name: settings[name][-1:] for name in names}
    steps = min(settings["steps"], 30)
    first = {"state": settings["state"][:1]}
    return settings | last | first | {"problem": settings["problem"][1:], "steps": steps}


TRAJECTORY = Scenario(
    "trajectory", problems.make_run, predict, measure, CLAIMS, CONTROLS,
    hypotheses={"full_rank_gradient": problems.full_rank_gradient},
    dims=DIMS,
    narrow=_first_problem, compare=gap, steps="steps",
    diverges="galore_diverges_at", diverged="diverged_at",
    sides="projected gradients of W (GaLore) against gradients of A by differentiation (ReLoRA)",
    at={"optimizer": "sgd", "side": "left", "problem": "regression", "state": "keep", "steps": 60},
)  # fmt: skip

OTHER_PROBLEMS = dataclasses.replace(
    OPTIMIZER_STATE,
    id="other_problems",
    predict=galore,
    measure=relora,
    claims=_same_path("network_", ", whether both keep, reset or transport (controls: above)"),
    controls=(),
    narrow=_other_problems,
)

THEOREM4 = Theorem(
    "theorem4",
    "GaLore and ReLoRA with a frozen factor take the same path, for any optimiser of gradients",
    FLAGS,
    (
        TRAJECTORY,
        OPTIMIZER_STATE,
        OTHER_PROBLEMS,
        OPTAX,
        OPTAX_PROGRAMS,
        MEMORY,
        DUALITY,
        GRADIENT_RANK,
    ),
    plots={"paths": plot_paths},
    numbers=lambda point: 4 * point["rows"] * point["cols"],  # W, G and two moments
    check=check,
    axes=("rank",),
)
