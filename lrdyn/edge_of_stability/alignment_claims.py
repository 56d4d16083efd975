"""Two layers: when the singular vectors of a mode beyond the edge stay, and when they leave.

Measured are dense layers in random bases: the derivative of their steps, and some hundred runs from
a slightly turned start.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.edge_of_stability import alignment, cycles
from lrdyn.edge_of_stability.alignment import PairMultipliers, oscillating_pair, resting_pair
from lrdyn.edge_of_stability.dense import AlignedNetwork, draw_bases
from lrdyn.verification.running.evaluate import Once, each_time
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import AtLeast, AtMost, Count, Equal, Form, Zero
from lrdyn.verification.stating.hypotheses import Extent, above, at_most
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

ON_THE_LINE = 100
"""Steps of an orbit on the line eta (s_i + s_j) = 2."""
DIVERGED = 100.0
"""A value of eta rho^2 from which no orbit comes back: all that do stay below 2 + eta s < 4."""
GRID = (np.linspace(1.02, 1.22, 6), np.linspace(0.4, 0.96, 8))
"""eta s_1, before the doubling, and s_2 / s_1 of the runs whose vectors stay or leave."""
GRID_STEPS = 400
"""Steps of each of these at most; near the line a run would take more, and nothing is claimed."""
TURN = 1e-4
"""Size of their first error, relative to the layers: far above rounding, also of float32, and so
small that its square does not count, as long as it has not grown by more than this:"""
ERROR = ((1.0, 0.3), (-0.6, 0.8))
"""Entries (1, 2) and (2, 1) of the error of both layers: with parts in X and in D, in every run of
the grid far from the directions that only decay where another grows."""
CHANGE = 5.0
"""By how much ln of the error has changed, by theory, when a run is looked at: a generic error is
spread over several directions, which can hide a factor of a few, and 148 is more."""


class TwoModes(eqx.Module):
    """Two layers, two modes, and an orbit on the line where their pair is neutral."""

    network: AlignedNetwork
    edge_ratio: Float[Array, ""]
    """eta s_1 of the pairs on two-cycles."""
    mode_ratio: Float[Array, ""]
    """s_2 / s_1."""
    scaled: Float[Array, "2"]
    """eta s_1 and eta s_2 on the line: their sum is 2."""
    square: Float[Array, ""]
    """a_0 = eta rho_1^2 of the orbit on the line."""
    errors: Float[Array, "2"]
    """D_12 and D_21 at the start of the orbit on the line."""

    @property
    def first(self) -> Float[Array, ""]:
        """s_1."""
        return self.network.values[0]

    @property
    def second_ratio(self) -> Float[Array, ""]:
        """The eta s_2 of a second mode that oscillates, too: between 1 and that of the first."""
        return 1 + (self.edge_ratio - 1) * self.mode_ratio

    @property
    def ratios(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Ratios z and v of two modes that oscillate."""
        first, second = (cycles.two_cycle(2, 1.0, e) for e in (self.edge_ratio, self.second_ratio))
        return first.ratio, second.ratio

    def at(self, scaled_first: Any, scaled_second: Any) -> AlignedNetwork:
        """The network at these eta s_1 and eta s_2, with the same s_1."""
        rate = scaled_first / self.first
        values = jnp.zeros_like(self.network.values).at[0].set(self.first)
        values = values.at[1].set(scaled_second / rate)
        return dataclasses.replace(self.network, values=values, learning_rate=rate)


class AlignmentTheory(NamedTuple):
    """Multipliers in closed form, and what they say."""

    resting_multipliers: Float[Array, "invariant"] = ABSENT
    """Trace and determinant of (D_12, D_21) in two steps, and the factor of the product: mode 1 on
    its two-cycle, mode 2 at rest."""
    oscillating_multipliers: Float[Array, "phase invariant"] = ABSENT
    """The same of two modes on two-cycles, in phase and in opposite phase."""
    oscillating_radius: Float[Array, "phase"] = ABSENT
    """Largest multiplier of these."""
    vectors_stay: Int[Array, "run"] = ABSENT
    """1 where eta (s_1 + s_2) < 2."""
    decided: Int[Array, "run"] = ABSENT
    """1 where the multipliers change the error by enough to be judged."""
    line_conserved: Float[Array, "line_step"] = ABSENT
    """||D_t||^2 / (2 + e - a_t), the same at every step."""
    line_bounds: Float[Array, "side"] = ABSENT
    """Least and largest ln ||D_t|| / ||D_0|| that a_t can give."""
    line_condition: Float[Array, ""] = ABSENT
    """By how much roundings of a step move ||D||^2 / (2 + e - a)."""
    cycle_condition: Float[Array, ""] = ABSENT
    """By how much an error of z moves the multipliers."""
    cycles_condition: Float[Array, ""] = ABSENT
    """By how much one of the nearer to its edge of two oscillating modes does."""


class AlignmentMeasured(NamedTuple):
    """Derivatives of dense steps, and runs."""

    resting_multipliers: Float[Array, "invariant"] = ABSENT
    oscillating_multipliers: Float[Array, "phase invariant"] = ABSENT
    oscillating_radius: Float[Array, "phase"] = ABSENT
    vectors_stay: Int[Array, "run"] = ABSENT
    """1 where the entries of D and of U^T P V beside the diagonal are smaller than at first."""
    line_conserved: Float[Array, "line_step"] = ABSENT
    line_growth: Float[Array, "line_step"] = ABSENT
    """ln ||D_t|| / ||D_0||."""
    line_others: Float[Array, "line_step"] = ABSENT
    """Largest other entry that a step makes of (D_12, D_21), relative to these."""


AlignmentOutcome = Outcome[AlignmentTheory, AlignmentMeasured]


def make_case(
    key: Key[Array, ""], *, dim: int, edge_ratio: Any, mode_ratio: Any, target_scale: Any
) -> TwoModes:
    """Draw bases, an orbit on the line and an error."""
    bases, draws = draw_bases(key, dim, 2, (1, 3))
    ratio = jnp.asarray(mode_ratio, bases.dtype)
    e = 2 / (1 + ratio)
    # Anywhere below the largest square that an orbit comes back to.
    square = (0.5 + 0.4 * draws[0, 0]) * 4 * (1 + e) ** 3 / 27
    step = jnp.asarray(edge_ratio, bases.dtype)
    values = jnp.zeros(dim, bases.dtype).at[0].set(target_scale)
    network = AlignedNetwork(bases, values.at[1].set(ratio * target_scale), step / values[0])
    return TwoModes(network, step, ratio, jnp.stack([e, ratio * e]), square, draws[0, 1:])


# Prediction --------------------------------------------------------------------------------------


def _invariants(pair: PairMultipliers) -> Float[Array, "... invariant"]:
    return jnp.stack([pair.trace, pair.determinant, pair.product], axis=-1)


def _grid() -> tuple[Float[np.ndarray, "run"], Float[np.ndarray, "run"]]:
    """Both eta s_1 and eta s_2 of all runs of the grid."""
    first, ratio = (side.ravel() for side in np.meshgrid(*GRID, indexing="ij"))
    return first, first * ratio


def _looks(dtype: Any) -> Float[Array, "run"]:
    """The step at which each run of the grid is looked at: an even number, by theory."""
    pairs = resting_pair(*(jnp.asarray(side, dtype) for side in _grid()))
    return 2 * jnp.ceil(CHANGE / jnp.abs(jnp.log(pairs.radius)))


def predict(case: TwoModes) -> AlignmentTheory:
    """Closed forms."""
    e, q = case.edge_ratio, case.edge_ratio * case.mode_ratio
    z, v = case.ratios
    oscillating = oscillating_pair(z, v, jnp.asarray((1.0, -1.0), z.dtype))
    first, second = _grid()
    e_line, d = case.scaled[0], case.errors
    most = alignment.largest_square(e_line, case.square)
    left = 2 + e_line - case.square
    sides = jnp.stack([2 + e_line - most, 2 + e_line])
    return AlignmentTheory(
        resting_multipliers=_invariants(resting_pair(e, q)),
        oscillating_multipliers=_invariants(oscillating),
        oscillating_radius=oscillating.radius,
        vectors_stay=jnp.asarray(first + second < 2).astype(jnp.int32),
        decided=(_looks(z.dtype) <= GRID_STEPS).astype(jnp.int32),
        line_conserved=jnp.full(ON_THE_LINE, jnp.sum(d**2) / left),
        # A start beyond 2 + e has no bound: these are then of its distance.
        line_bounds=0.5 * jnp.log(jnp.abs(sides / left)),
        # A step rounds relative to D before it, and makes it c times as large, c^2 = 1 - e a + a^2
        # >= 1 - e^2 / 4; ||D||^2 has twice the relative error of D, and a is divided by what is
        # left of 2 + e. Beside those of a step itself five roundings are the same in every step:
        # of eta, of both targets and both modes. They add up in quadrature.
        line_condition=6**0.5
        * (2 / jnp.sqrt(1 - (e_line / 2) ** 2) + (2 + e_line) / jnp.abs(2 + e_line - most)),
        # z opens like the square root of eta - eta_c, and multipliers are polynomials in it.
        cycle_condition=10 * (1 + 1 / (z - 1)),
        cycles_condition=10 * (1 + 1 / (v - 1)),
    )


# Measurement -------------------------------------------------------------------------------------


def _errors(
    network: AlignedNetwork, x: Float[Array, "2"], d: Float[Array, "2"]
) -> Float[Array, "2 d d"]:
    """W_1 = X + D and W_2 = (X - D)^T in the bases, of entries (1, 2) and (2, 1) of X and of D."""
    first, second = x + d, x - d
    return network.beside(jnp.stack([first[0], second[1]]), jnp.stack([first[1], second[0]]))


def _measured_pair(network: AlignedNetwork, low: Float[Array, "2"]) -> Float[Array, "invariant"]:
    """Trace, determinant and factor of the product, from the derivative of two dense steps."""
    values = jnp.zeros_like(network.values).at[:2].set(low)
    start = network.aligned(values)

    def push(entries: Float[Array, "4"]) -> Float[Array, "4"]:
        state = (start, network.from_frame(_errors(network, entries[:2], entries[2:])))
        _, pushed = jax.lax.fori_loop(0, 2, lambda _, state: network.push(*state), state)
        first, second = network.to_frame(pushed)
        above, below = (
            jnp.stack([first[0, 1], first[1, 0]]),
            jnp.stack([second[1, 0], second[0, 1]]),
        )
        return jnp.concatenate([above + below, above - below]) / 2

    columns = jax.vmap(push)(jnp.eye(4, dtype=low.dtype)).T
    of_x, of_d = columns[:2, :2], columns[2:, 2:]
    # X has the gauge direction, whose multiplier is 1: what is left of its trace is the product's.
    det = of_d[0, 0] * of_d[1, 1] - of_d[0, 1] * of_d[1, 0]
    return jnp.stack([jnp.trace(of_d), det, jnp.trace(of_x) - 1])


def _runs(case: TwoModes) -> Int[Array, "run"]:
    """Whether the vectors stay, for every run of the grid: dense descent from a turned start."""

    def stays(first: Array, second: Array, look: Array) -> Array:
        network = case.at(first, second)
        cycle = cycles.two_cycle(2, network.values[0], network.learning_rate)
        values = jnp.sqrt(network.values).at[0].set(cycle.low)
        turn = TURN * jnp.sqrt(case.first) * jnp.asarray(ERROR, values.dtype)
        blocks = jnp.diag(values)[None] + network.beside(turn[:, 0], turn[:, 1])

        def beside(weights: Any) -> Array:
            first, second = network.to_frame(weights)
            entries = jnp.stack([(first - second.T) / 2, (second @ first) / jnp.sqrt(case.first)])
            # Of D and of the product, so that gauge is not seen.
            return jnp.max(jnp.abs(jnp.stack([entries[:, 0, 1], entries[:, 1, 0]])))

        start = network.from_frame(blocks)

        def advance(t: Array, weights: Any) -> Any:
            after = network.step(weights)
            return jax.tree.map(lambda old, new: jnp.where(t < look, new, old), weights, after)

        end = jax.lax.fori_loop(0, GRID_STEPS, advance, start)
        # A run that diverged has lost its vectors; the maximum of NaN may be any number to XLA.
        return (beside(end) < beside(start)) & jnp.all(jnp.isfinite(jnp.stack(end)))

    first, second = (jnp.asarray(side, case.first.dtype) for side in _grid())
    return jax.vmap(stays)(first, second, _looks(case.first.dtype)).astype(jnp.int32)


Pushed = tuple[Array, Array, Array]
"""Squared size of D, a_t, and the largest other entry that a step makes."""


def _on_the_line(case: TwoModes) -> Pushed:
    """Squared size of D at every step of an orbit, a_t, and what each step adds elsewhere.

    To first order the other entries stay 0. Rounding gets into them, and in a chaotic orbit grows
    there, so that a step starts from (D_12, D_21) alone; what it makes of the others is returned.
    """
    network = case.at(*case.scaled)
    rho = jnp.sqrt(case.square / network.learning_rate)
    weights = network.aligned(jnp.sqrt(network.values).at[0].set(rho))

    def blocks(d: Array) -> Array:
        return _errors(network, jnp.zeros_like(d), d)

    def advance(state: tuple[Any, Array], _: None) -> tuple[tuple[Any, Array], Pushed]:
        weights, d = state
        a = network.learning_rate * jnp.prod(network.to_frame(weights)[:, 0, 0])
        after, pushed = network.push(weights, network.from_frame(blocks(d)))
        first, second = network.to_frame(pushed)
        difference = (first - second.T) / 2
        moved = jnp.stack([difference[0, 1], difference[1, 0]])
        others = jnp.max(jnp.abs(jnp.stack([first, second]) - blocks(moved)))
        # An orbit that diverges is held, while there are numbers for it.
        held = jnp.abs(a) > DIVERGED
        state = jax.tree.map(lambda old, new: jnp.where(held, old, new), state, (after, moved))
        return state, (jnp.sum(d**2), a, others / jnp.max(jnp.abs(d)))

    return jax.lax.scan(advance, (weights, case.errors), length=ON_THE_LINE)[1]


def measure(case: TwoModes) -> AlignmentMeasured:
    """Differentiate dense steps, and run."""
    e, q, s = case.edge_ratio, case.edge_ratio * case.mode_ratio, case.first
    rate = e / s
    low = cycles.two_cycle(2, s, rate).low
    other = cycles.two_cycle(2, case.second_ratio / rate, rate)
    # The second mode at rest, at the lower and at the upper point of a two-cycle.
    scaled = jnp.stack([q, case.second_ratio, case.second_ratio])
    values = jnp.stack([jnp.sqrt(q / rate), other.low, other.high])
    pairs = jax.vmap(
        lambda scaled, value: _measured_pair(case.at(e, scaled), jnp.stack([low, value]))
    )(scaled, values)
    squares, a, others = _on_the_line(case)
    return AlignmentMeasured(
        resting_multipliers=pairs[0],
        oscillating_multipliers=pairs[1:],
        oscillating_radius=PairMultipliers(*pairs[1:].T).radius,
        vectors_stay=_runs(case),
        line_conserved=squares / (2 + case.scaled[0] - a),
        line_growth=0.5 * jnp.log(squares / squares[0]),
        line_others=others,
    )


# Claims ------------------------------------------------------------------------------------------


@above("eta s_1")
def _beyond_the_edge(case: TwoModes) -> Extent:
    return Extent(case.edge_ratio, 1.0)


@at_most("|eta (s_i + s_j) - 2| of the orbit on the line")
def _on_line(case: TwoModes) -> Extent:
    # Both were divided and multiplied: a few roundings.
    return Extent(jnp.abs(jnp.sum(case.scaled) - 2), 8 * jnp.finfo(case.scaled.dtype).eps)


@above("2 + e - a_0 of the orbit on the line")
def _bounded_orbit(case: TwoModes) -> Extent:
    return Extent(2 + case.scaled[0] - case.square, 0.0)


def _compare_invariants(name: str) -> Any:
    def form(outcome: AlignmentOutcome) -> Equal:
        predicted, measured = (getattr(s, name) for s in (outcome.predicted, outcome.measured))
        # Multipliers of 1 are data: a small trace is a difference of entries of that size.
        return Equal(predicted, measured, max(1.0, float(np.max(np.abs(predicted)))))

    return form


def _compare_grid(outcome: AlignmentOutcome) -> Form:
    judged = outcome.predicted.decided == 1
    return Count(outcome.predicted.vectors_stay[judged], outcome.measured.vectors_stay[judged])


def _above_one(outcome: AlignmentOutcome) -> Form:
    radius = outcome.measured.oscillating_radius
    return AtLeast(radius, np.ones_like(radius))


def _near_the_curve(outcome: AlignmentOutcome) -> str:
    """Why two modes are not judged: they are neutral on a curve, where rounding decides."""
    nearest = np.min(outcome.predicted.oscillating_radius) - 1
    # Ten of its own roundings, amplified as multipliers are.
    least = 100 * np.finfo(outcome.dtype).eps * outcome.predicted.cycles_condition
    return "" if nearest > least else "on the curve A = 0"


def _conserved_alone(outcome: AlignmentOutcome) -> tuple[Form, ...]:
    run = outcome.measured
    return (
        Equal(outcome.predicted.line_conserved, run.line_conserved),
        # A pair that other pairs saw would move them as much as itself.
        Zero(run.line_others, scale=1.0, alternative=1.0),
    )


def _within_bounds(outcome: AlignmentOutcome) -> tuple[Form, ...]:
    low, high = outcome.predicted.line_bounds
    growth = outcome.measured.line_growth
    return AtLeast(growth, low, scale=1.0), AtMost(growth, high, scale=1.0)


CLAIMS: tuple[Claim[AlignmentTheory, AlignmentMeasured], ...] = (
    Claim(
        "resting_multipliers",
        "two layers, mode i on the two-cycle, mode j at rest: in two steps the pair has the trace "
        "c^2 - (w + 4) c + 10 and the determinant (c - w)(c - 2w) + 1 besides the factor 1 - (1 + "
        "eta s_j)(eta s_i - eta s_j) of the product, w = eta s_i + 1, c = 3 - eta s_j",
        form=_compare_invariants("resting_multipliers"),
        steps=2,
        condition=lambda theory: theory.cycle_condition,
    ),
    Claim(
        "oscillating_multipliers",
        "two modes on two-cycles (z, v): the determinant is A (A - p - 1/p) + 1, 1 plus it less "
        "the trace 2 A (2 - z - 1/z - v - 1/v), the factor of the product 5 - 2 (p + 1/p), A = 6 "
        "- 2 (z + 1/z) - 2 (v + 1/v) + p + 1/p, p = z v in phase and z/v in opposite phase",
        form=_compare_invariants("oscillating_multipliers"),
        steps=2,
        condition=lambda theory: theory.cycles_condition,
    ),
    Claim(
        "two_modes_unstable",
        "two modes on two-cycles are unstable, but on the curve A = 0: a multiplier exceeds 1",
        kind="bound",
        form=_above_one,
        reads=lambda theory, run: (
            run.oscillating_radius,
            theory.oscillating_radius,
            theory.cycles_condition,
        ),
        steps=2,
        undecided=_near_the_curve,
    ),
    Claim(
        "vectors_stay",
        "two layers, 1 < eta s_1 < sqrt 5 - 1, mode 2 at rest: a slightly turned start is turned "
        "back if eta (s_1 + s_2) < 2, and turned further if it is more (runs away from that line)",
        kind="exact",
        form=_compare_grid,
        reads=lambda theory, run: (theory.vectors_stay, theory.decided, run.vectors_stay),
        sides="the side of the line against dense runs from a slightly turned start",
    ),
    Claim(
        "line_conserved",
        "on the line eta (s_i + s_j) = 2, mode j at rest, ||D_t||^2 / (2 + e - a_t) is conserved, "
        "e = eta s_i, a = eta rho_i^2: at every step of every orbit of mode i, chaotic ones too",
        form=_conserved_alone,
        reads=lambda theory, run: (theory.line_conserved, run.line_conserved, run.line_others),
        steps=ON_THE_LINE,
        condition=lambda theory: theory.line_condition,
    ),
    Claim(
        "line_bounded",
        "so ||D_t|| / ||D_0|| stays between ((2 + e - a*) / (2 + e - a_0))^{1/2} and ((2 + e) / (2 "
        "+ e - a_0))^{1/2}, a* = max(a_0, 4 (1+e)^3 / 27), for e < 2 and a_0 < 2 + e: its exponent "
        "is 0",
        kind="bound",
        form=_within_bounds,
        reads=lambda theory, run: (theory.line_bounds, run.line_growth),
        steps=ON_THE_LINE,
        condition=lambda theory: theory.line_condition,
    ),
)


# Controls ----------------------------------------------------------------------------------------


def _wrong_pair(case: TwoModes) -> AlignmentTheory:
    """The pair of mode 1 and a mode with s = 0."""
    e = case.edge_ratio
    return AlignmentTheory(resting_multipliers=_invariants(resting_pair(e, jnp.zeros_like(e))))


def _other_phase(case: TwoModes, once: Once = each_time) -> AlignmentTheory:
    """Each phase with the p of the other."""
    theory = once(predict, case)
    return AlignmentTheory(oscillating_multipliers=theory.oscillating_multipliers[::-1])


def _second_at_rest(case: TwoModes, once: Once = each_time) -> AlignmentMeasured:
    """Two modes of which the second is at rest, on the stable side of the line."""
    pair = PairMultipliers(*once(measure, case).resting_multipliers)
    return AlignmentMeasured(oscillating_radius=jnp.stack([pair.radius] * 2))


def _beside_the_line(key: Key[Array, ""], case: TwoModes, amount: Array) -> TwoModes:
    """Move s_j: eta (s_i + s_j) = 2 - amount."""
    return dataclasses.replace(case, scaled=case.scaled.at[1].add(-amount))


def _diverging_orbit(key: Key[Array, ""], case: TwoModes, amount: Array) -> TwoModes:
    """Start at a_0 = 2 + e + amount, from where the mode diverges."""
    return dataclasses.replace(case, square=2 + case.scaled[0] + amount)


CONTROLS: tuple[Control[TwoModes, AlignmentTheory, AlignmentMeasured], ...] = (
    Control(
        "wrong_pair",
        "the multipliers of the pair with a mode of singular value 0",
        "resting_multipliers",
        predict=_wrong_pair,
    ),
    Control(
        "other_phase",
        "p of the opposite phase",
        "oscillating_multipliers",
        predict=_other_phase,
    ),
    Control(
        "second_at_rest",
        "the second mode at rest",
        "two_modes_unstable",
        measure=_second_at_rest,
    ),
    Control(
        "gauge_counted",
        "directions of gauge counted among those that must decay",
        "vectors_stay",
        # Their multipliers are 1: nothing would be stable.
        predict=lambda case: AlignmentTheory(vectors_stay=jnp.zeros(len(_grid()[0]), jnp.int32)),
    ),
    Control(
        "wrong_line",
        "eta s_1 + eta s_2 < 1.8 in the place of 2",
        "vectors_stay",
        predict=lambda case: AlignmentTheory(
            vectors_stay=jnp.asarray(sum(_grid()) < 1.8).astype(jnp.int32)
        ),
    ),
    Control(
        "beside_the_line",
        "eta (s_i + s_j) = 1.95",
        "line_conserved",
        case=_beside_the_line,
        breaks="on_the_line",
        amount=0.05,
    ),
    Control(
        "diverging_orbit",
        "a_0 = 2 + e + 0.1",
        "line_bounded",
        case=_diverging_orbit,
        breaks="bounded_orbit",
        amount=0.1,
        precision="float64",
    ),
)

ALIGNMENT = Scenario[TwoModes, AlignmentTheory, AlignmentMeasured](
    "alignment",
    make_case,
    predict,
    measure,
    theory=AlignmentTheory,
    measured=AlignmentMeasured,
    claims=CLAIMS,
    controls=CONTROLS,
    hypotheses={
        "beyond_the_edge": _beyond_the_edge,
        "on_the_line": _on_line,
        "bounded_orbit": _bounded_orbit,
    },
    at={"depth": 2, "edge_ratio": 1.2, "mode_ratio": 0.5},
    sides="closed forms against derivatives of dense steps in random bases",
)
