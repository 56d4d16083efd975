"""Corollary 1 where it is approximate: completion and sensing by compressed networks.

A target Phi of rank r is seen in part, and ``1/2 ||f - Phi||_F^2`` is estimated from what is seen.
The compressed network ``f_C = U W_L ... W_1 V^T`` has inner layers of 2r x 2r; U and V are singular
subspaces of that estimate, trained at alpha eta, or bases from one gradient of the full network,
trained at gamma eta. It completes Phi no later than the full network and no worse: both end within
a multiple of ``sqrt(d - 2r) prod_l eps_l / ||Phi||_F``, which their starts leave them.
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
    CompletionTheory,
    Recovery,
    Trained,
    check,
    make_entries,
    make_measurements,
)
from lrdyn.completion.start_claims import (
    START,
    START_CONTROLS,
    begin,
    spectral_start,
    start_of_what_is_seen,
)
from lrdyn.core.descent import gradient_descent
from lrdyn.core.factorization import end_to_end
from lrdyn.core.spectra import singular_values
from lrdyn.corollary1.compression import (
    CompressedNetwork,
    compressed_product,
    compression_bound,
    gradient_network,
)
from lrdyn.engine.claims import Numbers, excess
from lrdyn.engine.statement import Claim, Control, Scenario, Theorem
from lrdyn.theorem2.subspace import start_scales

REACHED = 1e-2
"""The recovery error at which a network counts as having found the target, if its start is small
enough for that."""

BEHIND = 4.0
"""How much farther a compressed network may end than where the full one has ended: both stop where
their starts leave them, in an order that depends on the instance."""

RESOLVED = 4
"""Records before a loss has fallen, at least, for its time to be read from them."""

TURNED = 0.25
"""How far outer factors must have turned since the full network ended: gamma eta sigma_r^2 t."""


# The runs ------------------------------------------------------------------------------------


def _left(case: Recovery, power: int = 1) -> Float[Array, ""]:
    """Recovery error that Corollary 1 grants the bulk at the start."""
    scales = start_scales(case.weights) ** power
    bound = compression_bound(scales, case.target.shape[0], case.rank)
    return bound / jnp.linalg.norm(case.target)


def _full(case: Recovery, factor: float = 1.0) -> CompletionTheory:
    """The full network, which the compressed ones are measured against, and where it may end."""
    rule = gradient_descent(factor * case.learning_rate)
    run = case.train(end_to_end, case.weights, rule)
    return CompletionTheory(
        full_error=run.error,
        full_loss=run.loss,
        full_diverged_at=run.diverged_at,
        level=MISSED * _left(case),
        left=_left(case),
        step=jnp.asarray(case.steps),
    )


def _train(case: Recovery, start: CompressedNetwork, ratio: float | Float[Array, ""]) -> Trained:
    rule = recovery.discrepant_rates(case.learning_rate, ratio)
    return case.train(compressed_product, start, rule)


def _spectral(case: Recovery, ratio: float | Float[Array, ""]) -> CompletionMeasured:
    """The compressed network from its spectral start."""
    run = _train(case, spectral_start(case, start_scales(case.weights)[0]), ratio)
    return CompletionMeasured(
        spectral_error=run.error, spectral_loss=run.loss, diverged_at=run.diverged_at
    )


def _from_basis(
    case: Recovery,
    *,
    size: int | None = None,
    start_factor: float = 1.0,
    outer_ratio: float | None = None,
    fixed_ratio: float = 0.0,
) -> CompletionMeasured:
    """Compressed networks from the basis of the gradient, or another: moving and fixed."""
    network = gradient_network(case.weights, case.basis.columns[:, :size])
    network = network._replace(inner=tuple(start_factor * W for W in network.inner))
    moving = case.outer_ratio if outer_ratio is None else outer_ratio
    ratios = jnp.stack([jnp.asarray(moving), jnp.asarray(fixed_ratio)]).astype(network.left.dtype)
    run = jax.vmap(lambda ratio: _train(case, network, ratio))(ratios)
    return CompletionMeasured(
        basis_error=run.error[0],
        basis_loss=run.loss[0],
        fixed_error=run.error[1],
        diverged_at=jnp.max(run.diverged_at),
    )


def _floor(case: Recovery, size: int) -> Float[Array, ""]:
    """The smallest recovery error between the subspaces of the first columns of the basis."""
    network = gradient_network(case.weights, case.basis.columns[:, :size])
    best = network.left @ (network.left.T @ case.target @ network.right) @ network.right.T
    return recovery.recovery_error(best, case.target)


def predict(case: Recovery) -> CompletionTheory:
    """The full network, the smallest error between the subspaces of the basis, what is seen."""
    smallest = singular_values(case.target)[case.rank - 1]
    seen = start_of_what_is_seen(case)
    return _full(case)._replace(
        start=seen.start,
        start_condition=seen.start_condition,
        floor=_floor(case, 2 * case.rank),
        hidden=jnp.sum(case.mask == 0),
        turning=case.outer_ratio * case.learning_rate * smallest**2,
    )


def measure(case: Recovery) -> CompletionMeasured:
    """The compressed networks: spectral start, basis of the gradient, and that basis fixed."""
    spectral, basis = _spectral(case, case.step_ratio), _from_basis(case)
    return spectral._replace(
        basis_error=basis.basis_error,
        basis_loss=basis.basis_loss,
        fixed_error=basis.fixed_error,
        start=begin(case),
        diverged_at=jnp.maximum(spectral.diverged_at, basis.diverged_at),
    )


# Claims --------------------------------------------------------------------------------------

Curve = Shaped[np.ndarray | Array, "step"]


def first_below(steps: Curve, values: Curve, level: float | Numbers) -> float:
    """Step at which a curve first falls to a level, linear between records.

    If it never does 2 t; NaN if a value is lost.
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


def _recorded_below(steps: Curve, values: Curve, level: float | Numbers) -> float:
    """The first recorded step at which a curve is at a level; twice the last if it never is."""
    if not np.all(np.isfinite(values)):
        return float("nan")
    (below,) = np.nonzero(values <= level)
    return float(steps[below[0]]) if len(below) else 2.0 * float(steps[-1])


def _arrived(outcome: CompletionOutcome) -> bool:
    return bool(outcome.predicted.full_error[-1] <= outcome.predicted.level)


def _finds(outcome: CompletionOutcome) -> bool:
    """Whether the full network finds Phi, or may still: it fits what is seen by no other matrix."""
    theory = outcome.predicted
    # The loss is a square: at the target it has fallen by the square of what is left.
    fits = theory.full_loss[-1] <= theory.level**2 * theory.full_loss[0]
    return _arrived(outcome) or not fits


def _too_few(outcome: CompletionOutcome) -> str:
    return "" if _arrived(outcome) else "too few steps"


def _above_full(outcome: CompletionOutcome) -> float:
    """By how much the recovery error exceeds that of the full network, until that has ended."""
    full = outcome.predicted.full_error
    above = outcome.measured.spectral_error - full
    ended = full < outcome.predicted.level
    return excess(np.where(ended, np.minimum(above, 0.0), above), 0.0)  # what is lost stays lost


def _later(outcome: CompletionOutcome) -> float:
    """How many steps later than the full network, over its steps, both as recorded."""
    theory = outcome.predicted
    level = max(REACHED, float(theory.level))
    full = _recorded_below(theory.step, theory.full_error, level)
    compressed = _recorded_below(theory.step, outcome.measured.spectral_error, level)
    return excess(np.float64(compressed), full, max(full, 1.0))


def _claims(prefix: str) -> tuple[Claim[CompletionTheory, CompletionMeasured], ...]:
    return (
        Claim(
            f"{prefix}recovery",
            "recovery error of the compressed network <= that of the full one at every recorded "
            f"t, until the full one's has fallen to {MISSED:g} sqrt(d - 2r) prod eps_l / "
            "||Phi||_F, if it does",
            kind="bound",
            residual=_above_full,
            reads=lambda theory, run: (
                run.spectral_error,
                theory.full_error,
                theory.full_loss,
                theory.level,
            ),
            applies=_finds,
            undecided=_too_few,
        ),
        Claim(
            f"{prefix}first",
            f"the compressed network reaches recovery error {REACHED:g}, or that level if it is "
            "higher, no later than the full one, between records",
            kind="bound",
            residual=_later,
            reads=lambda theory, run: (
                run.spectral_error,
                theory.full_error,
                theory.full_loss,
                theory.level,
                theory.step,
            ),
            applies=_finds,
            undecided=_too_few,
        ),
        Claim(
            f"{prefix}recovered",
            f"its recovery error ends within {BEHIND * MISSED:g} sqrt(d - 2r) prod eps_l / "
            f"||Phi||_F, if the full network's does within {MISSED:g} (both stop where their "
            "starts leave them)",
            kind="limit",
            tolerance=BEHIND * MISSED,
            residual=lambda outcome: float(
                outcome.measured.spectral_error[-1] / outcome.predicted.left
            ),
            reads=lambda theory, run: (
                run.spectral_error,
                theory.full_error,
                theory.full_loss,
                theory.level,
                theory.left,
            ),
            applies=_finds,
            undecided=_too_few,
        ),
    )


def _fall(outcome: CompletionOutcome, loss: Curve) -> float:
    """When a loss has fallen by 10 % of what the full network starts with."""
    return first_below(outcome.predicted.step, loss, 0.9 * outcome.predicted.full_loss[0])


def _apart_in_time(outcome: CompletionOutcome) -> float:
    full = _fall(outcome, outcome.predicted.full_loss)
    basis = _fall(outcome, outcome.measured.basis_loss)
    if full == 0:  # two times at the start are the same
        return 0.0 if basis == 0 else float("inf")
    return abs(basis / full - 1)


def _coarse(outcome: CompletionOutcome) -> str:
    within = _fall(outcome, outcome.predicted.full_loss) / outcome.predicted.step[1]
    return _too_few(outcome) or ("too few records" if within < RESOLVED else "")


def _hides(outcome: CompletionOutcome) -> bool:
    """Whether a fixed basis must end farther away than a network whose outer factors turn."""
    theory = outcome.predicted
    return _finds(outcome) and bool(theory.floor > BEHIND * theory.level)


def _not_turned(outcome: CompletionOutcome) -> str:
    theory = outcome.predicted
    if not _arrived(outcome):
        return "too few steps"
    rest = float(theory.step[-1]) - _recorded_below(theory.step, theory.full_error, theory.level)
    return "" if theory.turning * rest >= TURNED else "too few steps"


BASIS_CLAIMS: tuple[Claim[CompletionTheory, CompletionMeasured], ...] = (
    Claim(
        "same_time",
        "from the basis of the gradient the loss has fallen by 10 % at the same step as that of "
        "the full network, within 5 % (the two bases differ by the hidden entries)",
        kind="limit",
        tolerance=0.05,
        residual=_apart_in_time,
        reads=lambda theory, run: (
            run.basis_loss,
            theory.full_error,
            theory.full_loss,
            theory.level,
            theory.step,
        ),
        applies=_finds,
        undecided=_coarse,
    ),
    Claim(
        "fixed_basis",
        "with fixed outer factors the recovery error stays above ||Phi - P Phi Q||_F / ||Phi||_F "
        "(by construction: the verdict does not rest on it)",
        kind="bound",
        residual=lambda outcome: excess(outcome.predicted.floor, outcome.measured.fixed_error),
        reads=lambda theory, run: (
            run.fixed_error,
            theory.floor,
            theory.full_error,
            theory.full_loss,
            theory.level,
            theory.step,
        ),
        applies=_finds,
        undecided=_too_few,
        carries=False,
    ),
    Claim(
        "discrepant_rates",
        "with outer factors trained at gamma eta it ends below that",
        kind="bound",
        residual=lambda outcome: excess(outcome.measured.basis_error[-1], outcome.predicted.floor),
        reads=lambda theory, run: (
            run.basis_error,
            theory.floor,
            theory.turning,
            theory.full_error,
            theory.full_loss,
            theory.level,
            theory.step,
        ),
        applies=_hides,
        undecided=_not_turned,
    ),
    START,
)


# Controls ------------------------------------------------------------------------------------


def _slow(case: Recovery) -> CompletionMeasured:
    return _spectral(case, 0.1)


def _faster(case: Recovery) -> CompletionTheory:
    return _full(case, factor=5.0)


Controls = tuple[Control[Recovery, CompletionTheory, CompletionMeasured], ...]


def _controls(prefix: str) -> Controls:
    return (
        *(
            Control(
                f"{prefix}{claim}_slow_outer_factors",
                "step ratio alpha = 0.1",
                f"{prefix}{claim}",
                measure=_slow,
            )
            for claim in ("recovery", "first", "recovered")
        ),
        *(
            Control(
                f"{prefix}{claim}_of_a_faster_run",
                "a full network at five times the step",
                f"{prefix}{claim}",
                predict=_faster,
            )
            for claim in ("recovery", "first")
        ),
        Control(
            f"{prefix}recovered_squared_scales",
            "what is left, from squared init scales",
            f"{prefix}recovered",
            predict=lambda case: CompletionTheory(left=_left(case, 2)),
        ),
    )


BASIS_CONTROLS: Controls = (
    Control(
        "larger_start",
        "inner layers from 4 eps I",
        "same_time",
        measure=lambda case: _from_basis(case, start_factor=4.0),
    ),
    Control(
        "time_of_a_faster_run",
        "a full network at five times the step",
        "same_time",
        predict=_faster,
    ),
    Control(
        "basis_not_fixed",
        "outer factors trained, at gamma = 1",
        "fixed_basis",
        measure=lambda case: _from_basis(case, fixed_ratio=1.0),
    ),
    Control(
        "floor_of_half_a_basis",
        "r columns of the basis in place of 2 r",
        "fixed_basis",
        predict=lambda case: CompletionTheory(floor=_floor(case, case.rank)),
    ),
    Control(
        "no_discrepant_rates",
        "gamma = 0, from r columns of the basis",
        "discrepant_rates",
        measure=lambda case: _from_basis(case, size=case.rank, outer_ratio=0.0),
    ),
    Control(
        "squared_floor",
        "the square of ||Phi - P Phi Q||_F / ||Phi||_F in its place",
        "discrepant_rates",
        predict=lambda case: CompletionTheory(floor=_floor(case, 2 * case.rank) ** 2),
    ),
    *START_CONTROLS,
)

AT = {"rank": 1, "observed": 0.8, "init_scale": 0.025, "learning_rate": 0.05, "outer_ratio": 0.04}
"""Settings of the controls: an easy target, so that the full network finds it whatever the seed,
and steps so small that it stays at five times as many."""

COMPLETION_BY_ENTRIES = Scenario[Recovery, CompletionTheory, CompletionMeasured](
    "completion",
    make_entries,
    predict,
    measure,
    theory=CompletionTheory,
    measured=CompletionMeasured,
    claims=(*_claims(""), *BASIS_CLAIMS),
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
    _full,
    lambda case: _spectral(case, case.step_ratio),
    theory=CompletionTheory,
    measured=CompletionMeasured,
    claims=_claims("sensing_"),
    controls=_controls("sensing_"),
    hypotheses=HYPOTHESES,
    steps="steps",
    diverges=lambda theory: theory.full_diverged_at,
    diverged=lambda run: run.diverged_at,
    at=AT | {"dim": 16, "observed": 1.0},
    # p d^2 matrices of d^2 entries
    narrow=lambda settings: settings | {name: settings[name][:1] for name in ("dim", "draw")},
    sides="the full network against trained compressed networks",
)

COMPLETION = Theorem(
    "completion",
    "compressed networks complete a matrix no later and no worse than the full one",
    FLAGS,
    (COMPLETION_BY_ENTRIES, SENSING, BASIS),
    plots={"recovery": plot_recovery},
    check=check,
    axes=("init_scale", "rank"),
    numbers=lambda point: 7 * point["dim"] ** 2,  # as that of a network of three layers
)
