"""Any inner optimiser stops, too: once all s_i are below sigma at a refresh.

With P on the left the state of a coordinate is a row, and P lifts it into the last rows. On the
right it is a column, whose entries in the true rows P lifts into Y: a state that was kept from a
true direction moves Y there after that refresh, and the claim is one of reset states.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrdyn.adapters.algorithm_1 import Choice
from lrdyn.adapters.methods import GALORE
from lrdyn.adapters.projectors import Projector, choose_projectors
from lrdyn.core.spectra import half_of_the_digits
from lrdyn.galore_noise import setting
from lrdyn.galore_noise.setting import NoisyExample
from lrdyn.theorem4.problems import OPTIMIZERS
from lrdyn.verification.stating.claims import MoreSteps
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Form, Zero
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario


class AnyTheory(NamedTuple):
    """What the statement is relative to."""

    noise_size: Float[Array, ""] = ABSENT
    """sigma."""


class AnyMeasured(NamedTuple):
    """A run with any inner optimiser."""

    any_values: Float[Array, "refresh value"] = ABSENT
    """s_i at each refresh and at the end."""
    any_moved: Float[Array, "noisy_step"] = ABSENT
    """Largest change of an entry of the true rows, in each step."""
    any_beside: Float[Array, "refresh"] = ABSENT
    """Largest entry of Y, which must be 0."""
    any_stopped: Int[Array, ""] = ABSENT
    """The first refresh at which all s_i are below sigma, by more than rounding; -1: none."""


AnyOutcome = Outcome[AnyTheory, AnyMeasured]


def predict(case: NoisyExample) -> AnyTheory:
    """Theory says 0."""
    return AnyTheory(noise_size=case.noise)


def measure(case: NoisyExample) -> AnyMeasured:
    """Run Algorithm 1 with the optimiser of the case."""
    return setting.one_at_a_time(_measure, case)


def _measure(case: NoisyExample, choose: Choice | None = None) -> AnyMeasured:
    rule = OPTIMIZERS[case.optimizer](case.learning_rate)
    run = setting.run(case, GALORE, rule, choose)
    k = len(case.target)
    values = jax.lax.map(case.true_values, run.weights)
    below = case.noise * (1 - half_of_the_digits(values.dtype))
    stopped = jnp.max(values[:-1], axis=1) < below
    return AnyMeasured(
        any_values=values,
        any_moved=run.moved,
        any_beside=jnp.max(jnp.abs(run.weights[:, :k, k:]), axis=(1, 2)),
        any_stopped=jnp.where(jnp.any(stopped), jnp.argmax(stopped), -1),
    )


# The claim ---------------------------------------------------------------------------------------


def _first_still_step(outcome: AnyOutcome) -> int:
    first = outcome.measured.any_stopped
    # What is no number is judged from the start on, and fails.
    return int(first) * outcome.point["period"] if np.isfinite(first) else 0


def _rests(outcome: AnyOutcome) -> Form:
    run, first = outcome.measured, _first_still_step(outcome)
    # An optimiser can make any step out of a small gradient: what moved before is the scale.
    before = np.max(run.any_moved[:first], initial=0.0)
    scale = before if before > 0 else float(outcome.predicted.noise_size)
    return Zero(run.any_moved[first:], scale, scale)


def _nothing_is_left_in_the_state(outcome: AnyOutcome) -> bool:
    """P is on the left, or the state is reset, or there is none."""
    point = outcome.point
    return point["side"] == "left" or point["state"] == "reset" or point["optimizer"] == "sgd"


def _not_yet(outcome: AnyOutcome) -> str:
    """Why the case says nothing: the values are not below sigma yet, or Y is not 0."""
    if not np.isfinite(outcome.measured.any_stopped):
        return ""
    stopped = int(outcome.measured.any_stopped)
    if stopped < 0:
        return MoreSteps(flag="steps")
    rounding = half_of_the_digits(outcome.dtype) * float(outcome.predicted.noise_size)
    return "Y is not 0" if outcome.measured.any_beside[stopped] > rounding else ""


def _without_noise(case: NoisyExample) -> AnyMeasured:
    k, r, side = len(case.target), case.rank, case.side

    def choose(key: Array | None, gradient: Array) -> Projector:
        return choose_projectors(gradient.at[k:].set(0.0), r, side)

    return setting.one_at_a_time(lambda one: _measure(one, choose), case)


def _kept_on_the_right(case: NoisyExample) -> AnyMeasured:
    other = dataclasses.replace(case, side="right", state="keep", optimizer="momentum")
    return setting.one_at_a_time(_measure, other)


ANY_OPTIMIZER = Scenario[NoisyExample, AnyTheory, AnyMeasured](
    "any_optimizer",
    setting.make_case,
    predict,
    measure,
    theory=AnyTheory,
    measured=AnyMeasured,
    blocks=True,
    claims=(
        Claim(
            "never_again",
            "for any inner optimiser: once all s_i < sigma at a refresh, and Y = 0, the true rows "
            "never move again (on the right: of a state that is reset there)",
            form=_rests,
            applies=_nothing_is_left_in_the_state,
            undecided=_not_yet,
            reads=lambda theory, run: (
                theory.noise_size,
                run.any_stopped,
                run.any_moved,
                run.any_beside,
            ),
            sides="0 against what each step of Algorithm 1 moved",
        ),
    ),
    controls=(
        Control(
            "gradient_without_noise",
            "P from the gradient without its noise: the rows go on",
            "never_again",
            measure=_without_noise,
        ),
        Control(
            "kept_on_the_right",
            "momentum that is kept at a refresh, P on the right: it moves Y",
            "never_again",
            measure=_kept_on_the_right,
            at={"rank": 1, "steps": 800},
        ),
    ),
    hypotheses=setting.HYPOTHESES,
    steps="steps",
    at={"dim": 8, "rank": 2, "period": 10, "side": "left", "learning_rate": 0.02},
    sides="0 against what each step of Algorithm 1 moved",
)
