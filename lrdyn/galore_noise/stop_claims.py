"""GaLore with SGD under gradient noise: all values, and the step at which it stops."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from lrdyn.adapters.methods import GALORE, RELORA_FROZEN
from lrdyn.adapters.projectors import Projector
from lrdyn.core.initialization import gaussians, orthogonal
from lrdyn.core.spectra import half_of_the_digits
from lrdyn.galore.releases import running_release, unseen_release
from lrdyn.galore_noise import setting, stall
from lrdyn.galore_noise.setting import NoisyExample, NoisyRun
from lrdyn.verification.stating.claims import MoreSteps
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import AtLeast, AtMost, Count, Equal, Form, Zero, start_of
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario


class StopTheory(NamedTuple):
    """Values by the schedule, and the last step by its formula."""

    noisy_values: Float[Array, "refresh value"] = ABSENT
    """s_i at each refresh and at the end, the largest first."""
    last_move: Int[Array, ""] = ABSENT
    """T_0 K - 1."""
    relora_last_move: Int[Array, ""] = ABSENT
    """The same step of ReLoRA with a frozen factor."""
    optax_last_move: Int[Array, ""] = ABSENT
    """The same step of ``optax.contrib.galore``."""
    stalled_between: Float[Array, "end"] = ABSENT
    """(1 - eta)^{T_0} sigma and sigma."""
    smallest_gap: Float[Array, ""] = ABSENT
    """Distance over sigma from another choice, over the run."""
    choice_condition: Float[Array, ""] = ABSENT
    """By how much rounding of a gradient turns its vectors: 1 over that distance, and 1."""
    rest_condition: Float[Array, ""] = ABSENT
    """By how much it turns those of the noise at the end: kappa of the largest value, and 1."""
    noise_size: Float[Array, ""] = ABSENT
    """sigma."""


class StopMeasured(NamedTuple):
    """Runs of Algorithm 1 and of optax."""

    noisy_values: Float[Array, "refresh value"] = ABSENT
    """Singular values of X_TT + D."""
    last_move: Int[Array, ""] = ABSENT
    """Last step that changed an entry of the true rows by more than rounding."""
    stalled_gradient: Float[Array, ""] = ABSENT
    """||grad f||_2 at the end."""
    moved: Float[Array, "noisy_step"] = ABSENT
    """Largest change of an entry of the true rows, in each step."""
    relora_last_move: Int[Array, ""] = ABSENT
    """The last step of ReLoRA with a frozen factor."""
    relora_distance: Float[Array, "refresh"] = ABSENT
    """Largest difference of an entry of the true rows from GaLore's."""
    optax_last_move: Int[Array, ""] = ABSENT
    """The last step of ``optax.contrib.galore``."""
    optax_release: Int[Array, "release_number"] = ABSENT
    """The release of optax that ran."""


StopOutcome = Outcome[StopTheory, StopMeasured]


def predict(case: NoisyExample) -> StopTheory:
    """Closed forms, and the schedule of values."""
    found, rates = case.schedule, (case.noise, case.learning_rate, case.period)
    last = stall.last_moving_step(case.values, *rates, case.rank)
    return StopTheory(
        noisy_values=jnp.flip(jnp.sort(found.values, axis=1), axis=1),
        last_move=last,
        relora_last_move=last,
        optax_last_move=last,
        stalled_between=case.noise * jnp.stack([(1 - case.learning_rate) ** case.period, 1.0]),
        smallest_gap=jnp.min(found.gap),
        choice_condition=1 + 1 / jnp.min(found.gap),
        rest_condition=1 + 1 / jnp.abs(1 - (jnp.max(found.values[-1]) / case.noise) ** 2),
        noise_size=case.noise,
    )


# Measurement -------------------------------------------------------------------------------------


def measure(case: NoisyExample) -> StopMeasured:
    """Run Algorithm 1 by GaLore and by ReLoRA', and optax's GaLore."""
    return setting.one_at_a_time(_measure, case)


def _measure(case: NoisyExample) -> StopMeasured:
    run, other = setting.run(case, GALORE), setting.run(case, RELORA_FROZEN)
    k = len(case.target)
    return _measured(case, run)._replace(
        relora_last_move=setting.last_move(case, other.moved),
        relora_distance=jnp.max(jnp.abs((run.weights - other.weights)[:, :k]), axis=(1, 2)),
        optax_last_move=setting.last_move(case, _run_of_optax(case)),
        optax_release=running_release(),
    )


def _measured(case: NoisyExample, run: NoisyRun) -> StopMeasured:
    k = len(case.target)
    gradient = run.weights[-1, :k].at[:, :k].add(case.target)
    return StopMeasured(
        noisy_values=jax.lax.map(case.true_values, run.weights),
        last_move=setting.last_move(case, run.moved),
        stalled_gradient=jnp.linalg.norm(gradient, 2),
        moved=run.moved,
    )


def _run_of_optax(case: NoisyExample) -> Float[Array, "steps"]:
    """What each step of ``optax.contrib.galore`` moves; X is square, and its side the left one."""
    rule = optax.contrib.galore(
        case.learning_rate,
        rank=case.rank,
        update_proj_gap=case.period,
        base_optimizer=optax.identity(),
    )
    k = len(case.target)

    def step(state: tuple[Array, Any], sign: Array) -> tuple[tuple[Array, Any], Array]:
        X, inner = state
        update: Any
        update, inner = rule.update(jax.grad(case.cost)(X, sign), inner, X)
        return (X + update, inner), jnp.max(jnp.abs(update[:k]))

    with jax.numpy_dtype_promotion("standard"):
        return jax.lax.scan(step, (case.start, rule.init(case.start)), case.signs)[1]


# Claims ------------------------------------------------------------------------------------------


def _has_stopped(outcome: StopOutcome) -> str:
    """Why the run may not have stopped yet: it is shorter than theory's last step and a period."""
    needed = float(outcome.predicted.last_move) + 1 + outcome.point["period"]
    return MoreSteps(needed, flag="steps") if needed > outcome.steps else ""


def _last_step_is_seen(outcome: StopOutcome) -> str:
    """Why the last step cannot be seen: of a long period with a large eta it is like rounding."""
    shrink = float(outcome.predicted.stalled_between[0] / outcome.predicted.noise_size)
    if shrink / outcome.point["dim"] <= half_of_the_digits(outcome.dtype):
        return "the last steps of a period are below what is counted as a move"
    return _has_stopped(outcome)


def _rests(outcome: StopOutcome) -> Form:
    moved = outcome.measured.moved
    # What is no number is judged from the start on, and fails.
    known = np.isfinite(outcome.predicted.last_move)
    last = int(outcome.predicted.last_move) if known else -1
    before = np.max(moved[: last + 1], initial=0.0)
    # A step is eta times a part of the gradient, of which sigma is the size that is left.
    return Zero(
        moved[last + 1 :], outcome.point["learning_rate"] * outcome.predicted.noise_size, before
    )


def _lies_between(outcome: StopOutcome) -> tuple[Form, ...]:
    low, high = outcome.predicted.stalled_between
    norm = outcome.measured.stalled_gradient
    return AtLeast(norm, low), AtMost(norm, high)


def _moves_at_first(outcome: StopOutcome) -> bool:
    return not float(outcome.predicted.last_move) < 0


def _same_path(outcome: StopOutcome) -> tuple[Form, ...]:
    run = outcome.measured
    return (
        Count(outcome.predicted.relora_last_move, run.relora_last_move),
        Zero(run.relora_distance, outcome.predicted.noise_size, run.noisy_values[0, 0]),
    )


CLAIMS: tuple[Claim[StopTheory, StopMeasured], ...] = (
    Claim(
        "noisy_values",
        "at each refresh the r largest of the s_i above sigma are multiplied by (1 - eta)^{T_0}, "
        "and the others stay",
        form=lambda outcome: Equal(
            outcome.predicted.noisy_values,
            outcome.measured.noisy_values,
            null=start_of(outcome.predicted.noisy_values),
        ),
        reads=lambda theory, run: (theory.noisy_values, run.noisy_values),
    ),
    Claim(
        "last_move",
        "the true rows move for the last time at step T_0 K - 1, K = max(max_i N_i, ceil(sum_i N_i "
        "/ r)), N_i = ceil(ln(s_i / sigma) / (-T_0 ln(1 - eta)))",
        kind="exact",
        undecided=_last_step_is_seen,
        reads=lambda theory, run: (theory.stalled_between, theory.noise_size),
    ),
    Claim(
        "stalled_rows",
        "after that step the true rows never move again",
        form=_rests,
        applies=_moves_at_first,
        undecided=_has_stopped,
        reads=lambda theory, run: (theory.last_move, theory.noise_size, run.moved),
        condition=lambda theory: theory.rest_condition,
        sides="0 against what each step moved",
    ),
    Claim(
        "stalled_gradient",
        "(1 - eta)^{T_0} sigma <= ||grad f||_2 < sigma from then on: it does not converge",
        kind="bound",
        form=_lies_between,
        applies=_moves_at_first,
        undecided=_has_stopped,
        reads=lambda theory, run: (
            theory.last_move,
            theory.stalled_between,
            run.stalled_gradient,
        ),
        sides="both bounds in eta, T_0 and sigma against the norm at the end",
    ),
    Claim(
        "relora_stops",
        "ReLoRA with a frozen factor stops at the same step, on the same path (Theorem 4)",
        form=_same_path,
        undecided=_last_step_is_seen,
        reads=lambda theory, run: (
            theory.last_move,
            theory.stalled_between,
            theory.noise_size,
            theory.relora_last_move,
            run.relora_last_move,
            run.relora_distance,
            run.noisy_values,
        ),
        condition=lambda theory: theory.choice_condition,
    ),
    Claim(
        "optax_stops",
        "optax.contrib.galore with SGD inside stops at the same step: the larger side of a square "
        "matrix is the left one, and on either side the noise is its own block",
        kind="exact",
        form=lambda outcome: Count(
            outcome.predicted.optax_last_move, outcome.measured.optax_last_move
        ),
        undecided=lambda outcome: (
            unseen_release(outcome.measured.optax_release)
            or _last_step_is_seen(outcome)
            or _below_single(outcome)
        ),
        reads=lambda theory, run: (
            theory.last_move,
            theory.stalled_between,
            theory.noise_size,
            theory.smallest_gap,
            theory.optax_last_move,
            run.optax_last_move,
            run.optax_release,
        ),
    ),
)


def _below_single(outcome: StopOutcome) -> str:
    """Optax decomposes in float32, which may choose otherwise between values that are close."""
    enough = float(outcome.predicted.smallest_gap) > half_of_the_digits(np.float32)
    return "" if enough else "two values are closer than float32 tells apart"


# Controls ----------------------------------------------------------------------------------------


def _another_noise(share: float) -> Any:
    def measured(case: NoisyExample) -> StopMeasured:
        other = dataclasses.replace(case, noise=share * case.noise)
        return setting.one_at_a_time(lambda one: _measured(one, setting.run(one, GALORE)), other)

    return measured


def _random_projection(case: NoisyExample) -> StopMeasured:
    """Directions drawn at each refresh, as in GoLore."""
    n, r = len(case.start), case.rank

    def choose(key: Any, gradient: Array) -> Projector:
        return Projector(orthogonal(gaussians(key, [(n, r)])[0]), "left")

    return setting.one_at_a_time(
        lambda one: _measured(one, setting.run(one, GALORE, choose=choose)), case
    )


def _every_one_alone(case: NoisyExample) -> StopTheory:
    """K = max_i N_i: as if all values above sigma were taken at every refresh."""
    rates = case.noise, case.learning_rate, case.period
    counts = stall.refreshes_needed(case.values, *rates)
    return StopTheory(last_move=case.period * jnp.max(counts) - 1)


def _all_are_taken(case: NoisyExample) -> StopTheory:
    """Every value shrinks in every period, as in full training."""
    shrink = (1 - case.learning_rate) ** case.period
    powers = shrink ** jnp.arange(case.refreshes + 1)
    return StopTheory(noisy_values=powers[:, None] * jnp.flip(jnp.sort(case.values))[None, :])


CONTROLS: tuple[Control[NoisyExample, StopTheory, StopMeasured], ...] = (
    Control(
        "full_training",
        "all values shrink in every period",
        "noisy_values",
        predict=_all_are_taken,
    ),
    Control("without_noise", "no noise", "last_move", measure=_another_noise(0.0)),
    Control(
        "all_at_once",
        "K = max_i N_i, as if there were no limit r",
        "last_move",
        predict=_every_one_alone,
        at={"rank": 1, "steps": 800},
    ),
    Control(
        "gaussian_noise",
        "Gaussian numbers in the place of signs",
        "last_move",
        case=setting.break_noise,
        breaks="noise_of_one_size",
    ),
    Control(
        "something_beside",
        "Y of the size of the noise at the start",
        "last_move",
        case=setting.break_start,
        breaks="nothing_beside",
    ),
    Control(
        "random_projection",
        "P drawn at random at each refresh, as in GoLore: the rows go on",
        "stalled_rows",
        measure=_random_projection,
        precision="float64",
    ),
    Control(
        "smaller_noise",
        "a quarter of the noise, below the values of the claimed end",
        "stalled_gradient",
        measure=_another_noise(0.25),
    ),
)

STOP = Scenario[NoisyExample, StopTheory, StopMeasured](
    "stop",
    setting.make_case,
    predict,
    measure,
    theory=StopTheory,
    measured=StopMeasured,
    claims=CLAIMS,
    controls=CONTROLS,
    hypotheses=setting.HYPOTHESES | {"separated": setting.separated},
    blocks=True,
    steps="steps",
    narrow=lambda settings: settings | {"optimizer": ("sgd",), "state": ("reset",)},
    at={"dim": 8, "rank": 2, "period": 10, "side": "left", "learning_rate": 0.02},
    sides="a schedule of scalar values and its end in closed form, against Algorithm 1 and optax "
    "on matrices",
)
