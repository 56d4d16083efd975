"""Corollary 1 where it is approximate: completion and sensing by compressed networks.

A target Phi of rank r is seen in part, and ``1/2 ||f - Phi||_F^2`` is estimated from what is seen.
The compressed network ``f_C = U W_L ... W_1 V^T`` has inner layers of 2r x 2r; U and V are singular
subspaces of that estimate, trained at alpha eta, or bases from one gradient of the full network,
trained at gamma eta. From the former it completes Phi no later than the full network and no worse,
until both end within a multiple of ``sqrt(d - 2r) prod_l eps_l / ||Phi||_F``, which their starts
leave them, if enough of Phi is seen. Theory decides that beforehand (:func:`enough_seen`): noise of
what is hidden must not grow above that multiple before Phi is found. What else compressed networks
do is measured (findings).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from lrdyn.completion import recovery
from lrdyn.completion.basis_claims import BASIS
from lrdyn.completion.figures import plot_recovery
from lrdyn.completion.problem import (
    FLAGS,
    HYPOTHESES,
    MISSED,
    CompletionMeasured,
    CompletionOutcome,
    CompletionRun,
    CompletionTheory,
    Recovery,
    check,
    make_entries,
    make_measurements,
)
from lrdyn.completion.start_claims import (
    START,
    START_CONTROLS,
    begin,
    predict_start,
    spectral_start,
)
from lrdyn.core.descent import gradient_descent
from lrdyn.core.factorization import end_to_end
from lrdyn.corollary1.compression import (
    CompressedNetwork,
    compressed_product,
    compression_bound,
    gradient_network,
)
from lrdyn.theorem2.subspace import start_scales
from lrdyn.verification.stating.claims import MoreSteps
from lrdyn.verification.stating.forms import AtLeast, AtMost, Numbers
from lrdyn.verification.stating.statement import Claim, Control, Finding, Scenario, Theorem

REACHED = 1e-2
"""The recovery error at which a network counts as having found the target, if its start is small
enough for that."""

ENTRIES, MEASUREMENTS = "observed entries", "Gaussian measurements"
"""What is seen of the target, as statements have it."""


# The runs ------------------------------------------------------------------------------------


def _bulk_error(case: Recovery, power: int = 1) -> Float[Array, ""]:
    """Recovery error that Corollary 1 grants the bulk at the start."""
    scales = start_scales(case.weights) ** power
    bound = compression_bound(scales, case.target.shape[0], case.rank)
    return bound / jnp.linalg.norm(case.target)


def _train_full(case: Recovery, factor: float = 1.0) -> CompletionTheory:
    """The full network, which compressed ones are compared with, and the level at which it ends."""
    rule = gradient_descent(factor * case.learning_rate)
    run = case.train(end_to_end, case.weights, rule)
    return CompletionTheory(
        full_error=run.error,
        full_loss=run.loss,
        full_diverged_at=run.diverged_at,
        level=MISSED * _bulk_error(case),
        left=_bulk_error(case),
        step=jnp.asarray(case.steps),
    )


def _train(
    case: Recovery, start: CompressedNetwork, ratio: float | Float[Array, ""]
) -> CompletionRun:
    rule = recovery.discrepant_rates(case.learning_rate, ratio)
    return case.train(compressed_product, start, rule)


def _train_spectral(case: Recovery, ratio: float | Float[Array, ""]) -> CompletionMeasured:
    """The compressed network from its spectral start."""
    run = _train(case, spectral_start(case, start_scales(case.weights)[0]), ratio)
    return CompletionMeasured(
        spectral_error=run.error, spectral_loss=run.loss, diverged_at=run.diverged_at
    )


def _train_from_basis(case: Recovery, *, fixed_ratio: float = 0.0) -> CompletionMeasured:
    """Compressed networks from the basis of the gradient: moving and fixed."""
    network = gradient_network(case.weights, case.basis.columns)
    # Both in one program: they differ in a step size alone.
    ratios = jnp.stack([case.outer_ratio, jnp.asarray(fixed_ratio, case.outer_ratio.dtype)])
    run = jax.vmap(lambda ratio: _train(case, network, ratio))(ratios)
    return CompletionMeasured(
        basis_error=run.error[0],
        basis_loss=run.loss[0],
        fixed_error=run.error[1],
        diverged_at=jnp.max(run.diverged_at),
    )


def _floor(case: Recovery, size: int) -> Float[Array, ""]:
    """The smallest recovery error between the subspaces of the first columns of the basis."""
    # P and Q are projectors onto the columns of its outer factors, which are orthonormal.
    network = gradient_network(case.weights, case.basis.columns[:, :size])
    best = network.left @ (network.left.T @ case.target @ network.right) @ network.right.T
    return recovery.recovery_error(best, case.target)


def predict(case: Recovery) -> CompletionTheory:
    """The full network, the smallest error between the subspaces of the basis, and the start."""
    start = predict_start(case)
    return _train_full(case)._replace(
        start=start.start,
        start_condition=start.start_condition,
        floor=_floor(case, 2 * case.rank),
        hidden=jnp.sum(case.mask == 0),
    )


def measure(case: Recovery) -> CompletionMeasured:
    """The compressed networks: spectral start, basis of the gradient, and that basis fixed."""
    spectral, basis = _train_spectral(case, case.step_ratio), _train_from_basis(case)
    return spectral._replace(
        basis_error=basis.basis_error,
        basis_loss=basis.basis_loss,
        fixed_error=basis.fixed_error,
        start=begin(case),
        diverged_at=jnp.maximum(spectral.diverged_at, basis.diverged_at),
    )


# Claims --------------------------------------------------------------------------------------

Curve = Shaped[np.ndarray | Array, "step"]


def first_crossing(steps: Curve, values: Curve, level: float | Numbers) -> float:
    """Step at which a curve first falls to a level, linear between records.

    Twice the last step if it never does, so that a quotient of two such steps stays a number; NaN
    if a value is.
    """
    if not np.all(np.isfinite(values)):
        return float("nan")
    (below,) = np.nonzero(values <= level)
    if not len(below):
        return 2.0 * float(steps[-1])
    last = below[0]
    before = max(last - 1, 0)
    drop = values[before] - values[last] if values[before] > values[last] else 1.0
    part = np.clip((values[before] - level) / drop, 0.0, 1.0)
    return float(steps[before] + part * (steps[last] - steps[before]))


def _has_arrived(outcome: CompletionOutcome) -> bool:
    return bool(outcome.predicted.full_error[-1] <= outcome.predicted.level)


def _may_find_target(outcome: CompletionOutcome) -> bool:
    """Whether the full network finds Phi, or may still: it has fitted no other matrix."""
    theory = outcome.predicted
    # The loss is a square: at the target it has fallen by the square of what is left.
    fits = theory.full_loss[-1] <= theory.level**2 * theory.full_loss[0]
    return _has_arrived(outcome) or not fits


def _too_few_steps(outcome: CompletionOutcome) -> str:
    return "" if _has_arrived(outcome) else MoreSteps(flag="steps")


def _bound_by_full(outcome: CompletionOutcome) -> AtMost:
    """The recovery error is at most that of the full network, until that has ended."""
    theory, error = outcome.predicted, outcome.measured.spectral_error
    ended = theory.full_error < theory.level
    # Which of two small starts is nearer to the target is chance: they differ by what is left.
    bound = theory.full_error + theory.left
    # Relative errors, 1 at the start. Where the full network has ended nothing bounds the
    # compressed one but that it is a number.
    bound = np.where(ended, np.maximum(error, bound), bound)
    return AtMost(error, bound, scale=1.0)


def _claims(prefix: str, seen: str) -> tuple[Claim[CompletionTheory, CompletionMeasured], ...]:
    return (
        Claim(
            f"{prefix}recovery",
            f"the recovery error of the compressed network, trained on {seen}, is at most that of "
            "the full network plus delta at every recorded t, until the latter has fallen to "
            f"{MISSED:g} delta, if it does; delta = sqrt(d - 2r) prod_l eps_l / ||Phi||_F, by "
            "which two starts differ",
            kind="bound",
            form=_bound_by_full,
            reads=lambda theory, run: (
                run.spectral_error,
                theory.left,
                theory.full_error,
                theory.full_loss,
                theory.level,
            ),
            applies=_may_find_target,
            undecided=_too_few_steps,
        ),
        Claim(
            f"{prefix}recovered",
            f"the compressed network, trained on {seen}, ends with a recovery error of at most "
            f"{MISSED:g} sqrt(d - 2r) prod_l eps_l / ||Phi||_F if the full network does (both "
            "stop where their starts leave them)",
            kind="bound",
            form=lambda outcome: AtMost(
                outcome.measured.spectral_error[-1], MISSED * outcome.predicted.left, scale=1.0
            ),
            reads=lambda theory, run: (
                run.spectral_error,
                theory.left,
                theory.full_error,
                theory.full_loss,
                theory.level,
            ),
            applies=_may_find_target,
            undecided=_too_few_steps,
        ),
    )


BASIS_CLAIMS: tuple[Claim[CompletionTheory, CompletionMeasured], ...] = (
    Claim(
        "fixed_basis",
        "with fixed outer factors the recovery error of the compressed network never falls below "
        "||Phi - P Phi Q||_F / ||Phi||_F, P and Q the projectors onto their spans (by "
        "construction: the verdict does not rest on it)",
        kind="bound",
        form=lambda outcome: AtLeast(
            outcome.measured.fixed_error, outcome.predicted.floor, scale=1.0
        ),
        reads=lambda theory, run: (run.fixed_error, theory.floor),
        carries=False,
    ),
    START,
)


# Findings ------------------------------------------------------------------------------------


def _arrived_seeds(outcome: CompletionOutcome) -> np.ndarray:
    """Places of the seeds that meet the hypotheses and whose full network has arrived."""
    met = np.all([np.ravel(met) for met in outcome.hypotheses.values()], axis=0)
    arrived = outcome.predicted.full_error[:, -1] <= outcome.predicted.level
    return np.flatnonzero(met & arrived)


def _time_ratios(outcome: CompletionOutcome) -> list[float]:
    """Steps of the full network until it has found Phi, over those of the compressed one."""
    theory, run, ratios = outcome.predicted, outcome.measured, []
    for i in _arrived_seeds(outcome):
        level = max(REACHED, float(theory.level[i]))
        full, compressed = (
            first_crossing(theory.step[i], errors[i], level)
            for errors in (theory.full_error, run.spectral_error)
        )
        ratios.append(full / compressed)
    return ratios


def _time_differences(outcome: CompletionOutcome) -> list[float]:
    """Steps until the loss has fallen by 10 %: from the basis, over the full network's, less 1."""
    theory, run, differences = outcome.predicted, outcome.measured, []
    for i in _arrived_seeds(outcome):
        level = 0.9 * theory.full_loss[i][0]
        basis, full = (
            first_crossing(theory.step[i], losses[i], level)
            for losses in (run.basis_loss, theory.full_loss)
        )
        differences.append(abs(basis / full - 1))
    return differences


def _floor_ratios(outcome: CompletionOutcome) -> np.ndarray:
    """Recovery error at the end from the basis, over the least between its subspaces."""
    hidden = outcome.predicted.hidden > 0  # else the floor is rounding
    places = [i for i in _arrived_seeds(outcome) if hidden[i]]
    return np.divide(outcome.measured.basis_error[places, -1], outcome.predicted.floor[places])


def _time_ratio_finding(prefix: str, seen: str) -> Finding[CompletionTheory, CompletionMeasured]:
    return Finding(
        f"{prefix}sooner",
        f"steps of the full network, trained on {seen}, until its recovery error is {REACHED:g} "
        "(or where it ends), over those of the compressed network from the spectral start",
        _time_ratios,
        reads=lambda theory, run: (
            run.spectral_error,
            theory.full_error,
            theory.level,
            theory.step,
        ),
        above=1.0,
    )


BASIS_FINDINGS: tuple[Finding[CompletionTheory, CompletionMeasured], ...] = (
    Finding(
        "same_time",
        "relative difference of the steps at which the loss has fallen by 10 %, from the basis "
        "of the gradient and of the full network",
        _time_differences,
        reads=lambda theory, run: (
            run.basis_loss,
            theory.full_error,
            theory.full_loss,
            theory.level,
            theory.step,
        ),
        within=(-0.05, 0.05),
    ),
    Finding(
        "discrepant_rates",
        "recovery error at the end with outer factors trained at gamma eta, over ||Phi - P Phi "
        "Q||_F / ||Phi||_F, the least that fixed outer factors can reach",
        _floor_ratios,
        reads=lambda theory, run: (
            run.basis_error,
            theory.floor,
            theory.hidden,
            theory.full_error,
            theory.level,
        ),
        below=1.0,
    ),
)


# Controls ------------------------------------------------------------------------------------


def _slow_outer_steps(case: Recovery) -> CompletionMeasured:
    """The compressed network with outer factors at a tenth of the inner step."""
    return _train_spectral(case, 0.1)


Controls = tuple[Control[Recovery, CompletionTheory, CompletionMeasured], ...]


def _controls(prefix: str) -> Controls:
    return (
        *(
            Control(
                f"{prefix}{claim}_slow_outer_factors",
                "step ratio alpha = 0.1",
                f"{prefix}{claim}",
                measure=_slow_outer_steps,
            )
            for claim in ("recovery", "recovered")
        ),
        Control(
            f"{prefix}recovery_of_a_faster_run",
            "a full network at five times the step",
            f"{prefix}recovery",
            predict=lambda case: _train_full(case, factor=5.0),
        ),
        Control(
            f"{prefix}recovered_squared_scales",
            "what is left, from squared init scales",
            f"{prefix}recovered",
            predict=lambda case: CompletionTheory(left=_bulk_error(case, 2)),
            # Where these runs end is below the rounding of so many steps in float32.
            precision="float64",
        ),
    )


BASIS_CONTROLS: Controls = (
    Control(
        "basis_not_fixed",
        "outer factors trained, at gamma = 1",
        "fixed_basis",
        measure=lambda case: _train_from_basis(case, fixed_ratio=1.0),
    ),
    Control(
        "floor_of_half_a_basis",
        "r columns of the basis in place of 2 r",
        "fixed_basis",
        predict=lambda case: CompletionTheory(floor=_floor(case, case.rank)),
    ),
    *START_CONTROLS,
)

AT = {
    "rank": 1,
    "observed": 0.8,
    "init_scale": 0.025,
    "learning_rate": 0.05,
    "outer_ratio": 0.04,
    "steps": 1500,
}
"""Settings of the controls: an easy target, so that the full network finds it whatever the seed,
and steps so small that it stays at five times as many."""

COMPLETION_BY_ENTRIES = Scenario[Recovery, CompletionTheory, CompletionMeasured](
    "completion",
    make_entries,
    predict,
    measure,
    theory=CompletionTheory,
    measured=CompletionMeasured,
    claims=(*_claims("", ENTRIES), *BASIS_CLAIMS),
    findings=(_time_ratio_finding("", ENTRIES), *BASIS_FINDINGS),
    controls=(*_controls(""), *BASIS_CONTROLS),
    hypotheses=HYPOTHESES,
    steps="steps",
    diverges=lambda theory: theory.full_diverged_at,
    diverged=lambda run: run.diverged_at,
    at=AT,
    sides="the full network, and projections of Phi, against trained compressed networks",
)

SENSING = Scenario[Recovery, CompletionTheory, CompletionMeasured](
    "sensing",
    make_measurements,
    _train_full,
    lambda case: _train_spectral(case, case.step_ratio),
    theory=CompletionTheory,
    measured=CompletionMeasured,
    claims=_claims("sensing_", MEASUREMENTS),
    findings=(_time_ratio_finding("sensing_", MEASUREMENTS),),
    controls=_controls("sensing_"),
    hypotheses=HYPOTHESES,
    steps="steps",
    diverges=lambda theory: theory.full_diverged_at,
    diverged=lambda run: run.diverged_at,
    at=AT | {"dim": 16, "observed": 1.0},
    # p d^2 matrices of d^2 entries
    narrow=lambda settings: (
        settings | {name: settings[name][:1] for name in ("dim", "draw", "observed")}
    ),
    sides="the full network against trained compressed networks",
)

COMPLETION = Theorem(
    "completion",
    "where enough is seen, compressed networks complete a matrix no later and no worse than full "
    "ones",
    FLAGS,
    (COMPLETION_BY_ENTRIES, SENSING, BASIS),
    plots={"recovery": plot_recovery},
    check=check,
    axes=("init_scale", "rank"),
    numbers=lambda point: 7 * point["dim"] ** 2,  # as that of a network of three layers
    title="Completion and sensing",
    page="docs/theorems/completion.md",
)
