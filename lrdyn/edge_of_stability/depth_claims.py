"""Any depth: the step of the entries beside the diagonals, and the rate at which rounding leaves.

The step is proven (first order) and compared with the derivative of dense steps. That rounding,
which no theory sees, leaves an aligned run at the largest exponent of its pair is measured.
"""

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


class Modes(Recorded):
    """A target of rank two, both modes balanced at the start, and an error of the layers."""

    network: AlignedNetwork
    start: Float[Array, "2"]
    """rho_1 on the two-cycle, its lower point, and rho_2 at rest."""
    errors: Float[Array, "depth 2"]
    """Entries (e^l_12, e^l_21) of the error."""
    edge_ratio: Float[Array, ""]

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


class DepthMeasured(NamedTuple):
    """Derivatives of dense steps, and a dense run from an aligned start."""

    off_diagonal_step: Float[Array, "followed layer side"] = ABSENT
    """The entries of the pushed error in the bases."""
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
    low = cycles.two_cycle(depth, values[0], network.learning_rate).low
    start = jnp.stack([low, values[1] ** (1 / depth)])
    return Modes(network, start, draws, ratio, steps=recorded_steps(steps, at_most=201))


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
    ratio = cycles.two_cycle(depth, case.targets[0], rate).ratio
    return DepthTheory(
        off_diagonal_step=errors,
        step_condition=condition,
        rounding_rate=alignment.cycle_exponent(case.start, case.targets, depth, rate),
        multiplier=cycles.cycle_multiplier(depth, ratio),
    )


def measure(case: Modes) -> DepthMeasured:
    """Push an error through dense steps; descend from an aligned start."""
    network, bases = case.network, case.network.bases
    weights = network.aligned(jnp.zeros_like(network.values).at[:2].set(case.start))
    blocks = jnp.zeros((network.depth, *network.target.shape), case.start.dtype)
    blocks = blocks.at[:, 0, 1].set(case.errors[:, 0]).at[:, 1, 0].set(case.errors[:, 1])

    def advance(state: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
        state = network.push(*state)
        pushed = network.to_frame(state[1])
        return state, jnp.stack([pushed[:, 0, 1], pushed[:, 1, 0]], axis=1)

    _, followed = jax.lax.scan(advance, (weights, network.from_frame(blocks)), length=FOLLOWED)

    def record(weights: Any) -> Array:
        product = bases[-1].T @ end_to_end(weights) @ bases[0]
        return jnp.max(jnp.abs(product - jnp.diag(jnp.diag(product)))) / case.targets[0]

    run = simulate(
        network.loss, weights, gradient_descent(network.learning_rate), case.times, record=record
    )
    return DepthMeasured(
        off_diagonal_step=followed,
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
    ),
    controls=(
        Control(
            "without_the_residual",
            "the terms of E left out, as at the minimum",
            "off_diagonal_step",
            predict=_without_below,
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
