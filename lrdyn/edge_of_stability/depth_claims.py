"""Any depth: the step of the entries beside the diagonals, and the rate at which rounding leaves.

The step is proven (first order) and compared with the derivative of dense steps. That rounding,
which no theory sees, leaves an aligned run at the largest exponent of its pair is measured, and so
is that two modes that are both on their two-cycles are unstable.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core.condition import with_condition
from lrdyn.core.descent import gradient_descent, simulate
from lrdyn.core.factorization import end_to_end
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.edge_of_stability import alignment, cycles
from lrdyn.edge_of_stability.alignment import Pair
from lrdyn.edge_of_stability.dense import AlignedNetwork, draw_bases
from lrdyn.verification.running.evaluate import each_time
from lrdyn.verification.stating.claims import MoreSteps
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal, Stated, scale_of_each
from lrdyn.verification.stating.hypotheses import Extent, above
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

FOLLOWED = 40
"""Steps over which an error is followed entry by entry."""
FLOOR = 1e3
"""Roundings from which on the growth of what rounding has left is taken: below, each step adds
what is not yet small beside it."""
CEILING = 1e-3
"""Size of the entries beside the diagonal, relative to s_1, up to which it is taken: their square,
which the first order leaves out, is then a thousandth of them."""
TOLERANCE = 0.1
"""Of the rate: rounding has no stated first size, and along a window of a factor e^20 a factor of
e^2 at one of its ends is a tenth."""


MULTIPLIERS = 0.01
"""Of a largest multiplier: where two of them meet they move like the square root of an error, and
(1000 eps)^{1/2} is a hundredth in float32, 1000 being what a two-cycle near its edge amplifies."""


class Modes(Recorded):
    """A target of rank two, both modes balanced at the start, and an error of the layers."""

    network: AlignedNetwork
    start: Float[Array, "2"]
    """rho_1 on the two-cycle, its lower point, and rho_2 at rest."""
    errors: Float[Array, "depth 2"]
    """Entries (e^l_12, e^l_21) of the error."""
    edge_ratio: Float[Array, ""]
    second_target: Float[Array, ""]
    """s_2 of a second mode that oscillates, too."""
    phases: Float[Array, "phase 2"]
    """rho_1 and rho_2 on both two-cycles: at their lower points together, and one at its upper."""

    @property
    def targets(self) -> Float[Array, "2"]:
        """s_1 and s_2."""
        return self.network.values[:2]


class DepthTheory(NamedTuple):
    """The linear recursion of a pair along its orbit."""

    off_diagonal_step: Float[Array, "followed layer side"] = ABSENT
    """e^l_12 and e^l_21 after each step."""
    step_condition: Float[Array, ""] = ABSENT
    """By how much an error of the orbit moves them."""
    rounding_rate: Float[Array, ""] = ABSENT
    """Largest exponent of the pair a step, gauge left out."""
    multiplier: Float[Array, ""] = ABSENT
    """That of the two-cycle of the first mode."""
    oscillating_radius: Float[Array, "phase"] = ABSENT
    """Largest multiplier in two steps of a pair on two two-cycles, gauge left out."""


class DepthMeasured(NamedTuple):
    """Derivatives of dense steps, and a dense run from an aligned start."""

    off_diagonal_step: Float[Array, "followed layer side"] = ABSENT
    """The entries of the pushed error in the bases."""
    oscillating_round: Float[Array, "phase unit entry"] = ABSENT
    """What two steps from two two-cycles make of each (e^l_12, e^l_21): a row a unit error."""
    beside: Float[Array, "step"] = ABSENT
    """Largest entry of U^T P V beside the diagonal over s_1: of rounding alone."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""


DepthOutcome = Outcome[DepthTheory, DepthMeasured]


def make_case(
    key: Key[Array, ""],
    *,
    dim: int,
    depth: int,
    edge_ratio: Any,
    mode_ratio: Any,
    target_scale: Any,
    steps: int,
) -> Modes:
    """Draw bases and an error; the first mode starts on its two-cycle."""
    bases, draws = draw_bases(key, dim, depth, (depth, 2))
    ratio = jnp.asarray(edge_ratio, bases.dtype)
    values = jnp.zeros(dim, bases.dtype).at[0].set(target_scale)
    values = values.at[1].set(values[0] * mode_ratio)
    network = AlignedNetwork(bases, values, ratio * cycles.edge(depth, values[0]))
    # A second mode whose step is between 1 and eta / eta_c times that of its own edge.
    second = values[0] * ((1 + (ratio - 1) * mode_ratio) / ratio) ** (depth / (2 * depth - 2))
    both = jax.vmap(lambda s: cycles.two_cycle(depth, s, network.learning_rate))(
        jnp.stack([values[0], second])
    )
    return Modes(
        network,
        start=jnp.stack([both.low[0], values[1] ** (1 / depth)]),
        errors=draws,
        edge_ratio=ratio,
        second_target=second,
        phases=jnp.stack([both.low, both.low.at[1].set(both.high[1])]),
        steps=recorded_steps(steps, at_most=401),
    )


def _follow(data: Any) -> Float[Array, "followed layer side"]:
    """The errors of a pair, step by step; each is divided by the size of the first."""
    errors, start, targets, rate = data

    def advance(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        errors, values = state
        errors = alignment.off_diagonal_step(errors, Pair(values, targets), rate)
        values = cycles.balanced_step(values, len(errors), targets, rate)
        return (errors, values), errors

    return jax.lax.scan(advance, (errors, start), length=FOLLOWED)[1]


def predict(case: Modes) -> DepthTheory:
    """The recursion along the orbit of two scalars, and its exponent."""
    depth, rate = case.network.depth, case.network.learning_rate
    errors, condition = with_condition(_follow, (case.errors, case.start, case.targets, rate))
    starts = jnp.concatenate([case.start[None], case.phases])
    oscillating = case.targets.at[1].set(case.second_target)
    targets = jnp.stack([case.targets, oscillating, oscillating])
    exponents = jax.vmap(
        lambda start, targets: alignment.cycle_exponent(start, targets, depth, rate)
    )(starts, targets)
    low = case.start[0]
    ratio = cycles.balanced_step(low, depth, case.targets[0], rate) / low
    return DepthTheory(
        off_diagonal_step=errors,
        step_condition=condition,
        rounding_rate=exponents[0],
        multiplier=cycles.cycle_multiplier(depth, ratio),
        oscillating_radius=jnp.exp(2 * exponents[1:]),
    )


def _from_entries(network: AlignedNetwork, errors: Float[Array, "depth 2"]) -> Any:
    """Errors of the layers with these entries (1, 2) and (2, 1) in the bases."""
    return network.from_frame(network.beside(errors[:, 0], errors[:, 1]))


def _to_entries(network: AlignedNetwork, errors: Any) -> Float[Array, "depth 2"]:
    """Entries (1, 2) and (2, 1) of errors of the layers."""
    blocks = network.to_frame(errors)
    return jnp.stack([blocks[:, 0, 1], blocks[:, 1, 0]], axis=1)


def _layers(network: AlignedNetwork, modes: Float[Array, "2"]) -> Any:
    """Balanced layers with these first two singular values."""
    return network.aligned(jnp.zeros_like(network.values).at[:2].set(modes))


def _push_in_a_round(case: Modes) -> Float[Array, "phase unit entry"]:
    """What two dense steps from two two-cycles make of every error of the pair."""
    values = case.network.values.at[1].set(case.second_target)
    network = dataclasses.replace(case.network, values=values)
    units = jnp.eye(2 * network.depth, dtype=values.dtype).reshape(-1, network.depth, 2)

    def push(_: Array, state: tuple[Any, Any]) -> tuple[Any, Any]:
        weights, errors = state
        return jax.vmap(lambda e: network.push(weights, e), out_axes=(None, 0))(errors)

    def of_phase(modes: Array) -> Array:
        errors = jax.vmap(lambda unit: _from_entries(network, unit))(units)
        _, errors = jax.lax.fori_loop(0, 2, push, (_layers(network, modes), errors))
        entries = jax.vmap(lambda error: _to_entries(network, error))(errors)
        return entries.reshape(len(units), -1)

    return jax.vmap(of_phase)(case.phases)


def measure(case: Modes) -> DepthMeasured:
    """Push errors through dense steps; descend from an aligned start."""
    network, bases = case.network, case.network.bases
    weights = _layers(network, case.start)

    def advance(state: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
        state = network.push(*state)
        return state, _to_entries(network, state[1])

    state = weights, _from_entries(network, case.errors)
    _, followed = jax.lax.scan(advance, state, length=FOLLOWED)

    def record(weights: Any) -> Array:
        product = bases[-1].T @ end_to_end(weights) @ bases[0]
        return jnp.max(jnp.abs(product - jnp.diag(jnp.diag(product)))) / case.targets[0]

    run = simulate(
        network.loss, weights, gradient_descent(network.learning_rate), case.times, record=record
    )
    return DepthMeasured(
        off_diagonal_step=followed,
        oscillating_round=_push_in_a_round(case),
        beside=run.records,
        step=jnp.asarray(case.steps),
        diverged_at=run.diverged_at,
    )


# Claims ------------------------------------------------------------------------------------------


@above("eta / eta_c")
def _beyond_the_edge(case: Modes) -> Extent:
    return Extent(case.edge_ratio, 1.0)


def _compare_errors(outcome: DepthOutcome) -> Equal:
    predicted, measured = (s.off_diagonal_step for s in (outcome.predicted, outcome.measured))
    # Each step on its own scale: errors grow, or decay, by orders of magnitude.
    return Equal(predicted, measured, scale_of_each(predicted, measured))


def _window(outcome: DepthOutcome) -> tuple[float, float]:
    """First and last step of the growth, by theory: from FLOOR roundings to CEILING."""
    epsilon, rate = float(np.finfo(outcome.dtype).eps), float(outcome.predicted.rounding_rate)
    return np.log(FLOOR) / rate, np.log(CEILING / epsilon) / rate


def _leaves(outcome: DepthOutcome) -> bool:
    """Whether each mode is stable by itself, on its cycle and at rest, and their pair is not."""
    theory, point = outcome.predicted, outcome.point
    second = point["edge_ratio"] * point["mode_ratio"] ** (2 - 2 / point["depth"])
    return bool(np.abs(theory.multiplier) < 1 and second < 1 and theory.rounding_rate > 0)


def _window_too_short(outcome: DepthOutcome) -> str:
    """Why the rate is not judged: too few digits to grow through, or too few steps."""
    if CEILING / (FLOOR * np.finfo(outcome.dtype).eps) < np.exp(1 / TOLERANCE):
        return "too few digits between rounding and the square of an error"
    needed = _window(outcome)[1]
    if outcome.steps < needed:
        return MoreSteps(needed, flag="steps")
    first, last = _window(outcome)
    records = outcome.measured.step
    inside = np.sum((records >= first) & (records <= last))
    return "" if inside >= 4 else "too few records between rounding and the square of an error"


def _compare_rates(outcome: DepthOutcome) -> Stated:
    first, last = _window(outcome)
    steps, beside = outcome.measured.step, outcome.measured.beside
    inside = (steps >= first) & (steps <= last)
    if inside.sum() < 2:
        return Stated(np.nan, 1.0)
    slope = float(np.polyfit(steps[inside], np.log(beside[inside]), 1)[0])
    low, high = sorted((slope, float(outcome.predicted.rounding_rate)))
    # Somebody who expects that the vectors stay expects 0, infinitely far from any growth.
    return Stated(high / low - 1 if low > 0 else np.inf, np.inf)


def _largest_multiplier(matrix: np.ndarray, depth: int) -> float:
    """Largest eigenvalue of a round, but for L - 1 of gauge: those next to 1."""
    values = np.linalg.eigvals(matrix)
    values = values[np.argsort(np.abs(values - 1))][depth - 1 :]
    return float(np.abs(values).max())


def _compare_multipliers(outcome: DepthOutcome) -> Stated:
    theory, rounds = outcome.predicted.oscillating_radius, outcome.measured.oscillating_round
    if not (np.isfinite(theory).all() and np.isfinite(rounds).all()):
        return Stated(np.nan, 1.0)
    run = np.array([_largest_multiplier(each, outcome.point["depth"]) for each in rounds])
    # Below 1 a pair would be stable, however well both sides agree. Somebody who expects neutral
    # pairs expects 1.
    apart = np.max(np.abs(run - theory) / theory) if np.min(theory) > 1 else np.inf
    return Stated(float(apart), float(np.min(np.abs(theory - 1))))


def _without_below(case: Modes) -> DepthTheory:
    """The recursion without the terms of E, as at the minimum."""

    def advance(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        errors, values = state
        depth, rate = case.network.depth, case.network.learning_rate
        # With s = rho^L nothing but delta is left.
        resting = Pair(values, values**depth)
        errors = alignment.off_diagonal_step(errors, resting, rate)
        return (errors, cycles.balanced_step(values, depth, case.targets, rate)), errors

    start = (case.errors, case.start)
    return DepthTheory(off_diagonal_step=jax.lax.scan(advance, start, length=FOLLOWED)[1])


def _rate_at_the_minimum(case: Modes) -> DepthTheory:
    """The rate of the pair at the balanced minimum, where the Hessian has the eigenvalue mu_12."""
    depth, (first, second) = case.network.depth, case.targets ** (2 / case.network.depth)
    powers = jnp.arange(depth)
    mu = jnp.sum(first ** (depth - 1 - powers) * second**powers)
    return DepthTheory(rounding_rate=jnp.log(case.network.learning_rate * mu - 1))


DEPTH = Scenario[Modes, DepthTheory, DepthMeasured](
    "any_depth",
    make_case,
    predict,
    measure,
    theory=DepthTheory,
    measured=DepthMeasured,
    claims=(
        Claim(
            "off_diagonal_step",
            "to first order the entries e^l_ij beside balanced diagonals step by the gradient "
            "rho_i^{L-l} delta_ij rho_j^{l-1} + E_j rho_j^{l-1} sum_{k>l} rho_j^{L-k} e^k_ji "
            "rho_i^{k-l-1} + E_i rho_i^{L-l} sum_{k<l} rho_j^{l-1-k} e^k_ji rho_i^{k-1}, delta_ij "
            "= sum_k rho_i^{L-k} e^k_ij rho_j^{k-1}, E = rho^L - s",
            form=_compare_errors,
            reads=lambda theory, run: (theory.off_diagonal_step, run.off_diagonal_step),
            steps=FOLLOWED,
            condition=lambda theory: theory.step_condition,
        ),
        Claim(
            "rounding_rate",
            "measured: from an aligned start rounding leaves the two-cycle at the largest exponent "
            "of the pair, gauge left out (within 10 %: its first size is not known)",
            kind="rate",
            form=_compare_rates,
            tolerance=TOLERANCE,
            reads=lambda theory, run: (
                theory.rounding_rate,
                theory.multiplier,
                run.beside,
                run.step,
            ),
            applies=_leaves,
            undecided=_window_too_short,
            # A matter of one pair of settings in four, of which small runs may have none.
            carries=False,
            sides="exponents along two scalars against dense runs that rounding alone has left",
        ),
        Claim(
            "both_oscillate",
            "measured: two modes that are both on their two-cycles are unstable at any depth, in "
            "phase and in opposite phase, by the largest exponent along their orbit, gauge left "
            "out (two layers: proven, but on the curve A = 0)",
            kind="rate",
            form=_compare_multipliers,
            tolerance=MULTIPLIERS,
            reads=lambda theory, run: (theory.oscillating_radius, run.oscillating_round),
            sides="exponents along two scalars against eigenvalues of derivatives of dense steps",
        ),
    ),
    controls=(
        Control(
            "phases_exchanged",
            "each phase with the multiplier of the other",
            "both_oscillate",
            predict=lambda case, once=each_time: DepthTheory(
                oscillating_radius=once(predict, case).oscillating_radius[::-1]
            ),
        ),
        Control(
            "without_the_residual",
            "the terms of E left out, as at the minimum",
            "off_diagonal_step",
            predict=_without_below,
            precision="float64",
        ),
        Control(
            "rate_at_the_minimum",
            "ln(eta mu_12 - 1), the rate with both modes at rest",
            "rounding_rate",
            predict=_rate_at_the_minimum,
            precision="float64",
        ),
    ),
    hypotheses={"beyond_the_edge": _beyond_the_edge},
    diverged=lambda run: run.diverged_at,
    steps="steps",
    at={"depth": 3, "edge_ratio": 1.2, "mode_ratio": 0.85},
    sides="a recursion of 2 L numbers along two scalars against derivatives of dense steps",
)
