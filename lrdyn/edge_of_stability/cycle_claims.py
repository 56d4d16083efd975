"""One balanced mode beyond the edge: what is claimed of its two-cycle, at any depth.

Theory has closed forms in z alone (``cycles``), and runs the scalar recursion besides, to know
where a run has arrived. Measured are dense layers in random bases, stepped and differentiated
automatically.
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
from lrdyn.core.recording import Recorded
from lrdyn.edge_of_stability import cycles
from lrdyn.edge_of_stability.cycles import balanced_step
from lrdyn.edge_of_stability.dense import AlignedNetwork, draw_bases
from lrdyn.verification.stating.claims import ROUNDING_SAFETY, MoreSteps, tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal
from lrdyn.verification.stating.hypotheses import Extent, above
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

EARLY = 12
"""Steps over which the balance of unbalanced layers is followed: at every step size of the flags
so few that a chaotic mode has not yet amplified rounding beyond what float32 holds."""


FORGOTTEN = 10
"""Steps whose rounding is in a descent that has arrived, beside what its condition adds up."""


class OneMode(Recorded):
    """A target of rank one, balanced and unbalanced layers at the start, and a step size."""

    network: AlignedNetwork
    cycle: cycles.TwoCycle
    """Its two-cycle."""
    start: Float[Array, ""]
    """rho_0 of all layers."""
    unbalanced: Float[Array, "depth"]
    """Singular values of the layers of a run that is not balanced."""
    edge_ratio: Float[Array, ""]
    """eta / eta_c."""

    @property
    def rates(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The target s and the step size eta."""
        return self.network.values[0], self.network.learning_rate

    def layers(self, values: Float[Array, "*layers"]) -> Any:
        """Layers of rank one with these singular values."""
        first = jnp.zeros((self.network.depth, len(self.network.values)), values.dtype)
        return self.network.aligned(first.at[:, 0].set(values))


class CycleTheory(NamedTuple):
    """The two-cycle, from closed forms in z."""

    two_cycle: Float[Array, "place"] = ABSENT
    """Singular value of the product one and two steps after the lower point: z^L rho^L, rho^L."""
    cycle_reached: Float[Array, "place"] = ABSENT
    """The smaller and the larger singular value of the product on the cycle."""
    cycle_multiplier: Float[Array, ""] = ABSENT
    """h'(rho) h'(z rho)."""
    balance_factor: Float[Array, ""] = ABSENT
    """5 - 2 (z + 1/z)."""
    balance_law: Float[Array, "early"] = ABSENT
    """s_1^2 - s_2^2 of the first two layers, by a product of factors."""
    doubling: Float[Array, ""] = ABSENT
    """eta / eta_c at which the multiplier is -1."""
    gap: Float[Array, ""] = ABSENT
    """|h(h(rho)) - rho| / rho of the scalar recursion after the last step."""
    lowest: Float[Array, ""] = ABSENT
    """Least rho of the scalar recursion over s^{1/L}."""
    highest: Float[Array, ""] = ABSENT
    """Largest |rho| over s^{1/L}."""
    reached_condition: Float[Array, ""] = ABSENT
    """By how much an error of the data moves the cycle that a run ends at."""
    multiplier_condition: Float[Array, ""] = ABSENT
    """By how much it moves the multipliers."""
    balance_condition: Float[Array, ""] = ABSENT
    """By how much it moves s_1^2 - s_2^2."""


class CycleMeasured(NamedTuple):
    """Dense layers, and the derivative of their steps."""

    two_cycle: Float[Array, "place"] = ABSENT
    """Singular value of the product one and two steps after the lower point."""
    cycle_reached: Float[Array, "place"] = ABSENT
    """The smaller and the larger one of the last two steps of a descent."""
    cycle_multiplier: Float[Array, ""] = ABSENT
    """What two steps make of an error that is the same in all layers."""
    balance_factor: Float[Array, ""] = ABSENT
    """What two steps make of an error of opposite signs in the first two layers."""
    balance_law: Float[Array, "early"] = ABSENT
    """s_1^2 - s_2^2 of the first two layers of an unbalanced descent."""
    doubling: Float[Array, ""] = ABSENT
    """eta / eta_c at which two steps of scalar layers turn an error around, by halving."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the descent diverged, or -1."""


CycleOutcome = Outcome[CycleTheory, CycleMeasured]


def make_case(
    key: Key[Array, ""],
    *,
    dim: int,
    depth: int,
    edge_ratio: Any,
    target_scale: Any,
    steps: int,
) -> OneMode:
    """Draw bases, and starts below the minimum."""
    bases, draws = draw_bases(key, dim, depth, (1, depth + 1))
    scale = jnp.asarray(target_scale, bases.dtype)
    # Between 0 and 1, so that a start is neither near 0 nor beyond the cycle.
    shares = (1 + draws[0]) / 2
    size, ratio = scale ** (1 / depth), jnp.asarray(edge_ratio, bases.dtype)
    rate = ratio * cycles.edge(depth, scale)
    return OneMode(
        network=AlignedNetwork(bases, jnp.zeros(dim, bases.dtype).at[0].set(scale), rate),
        cycle=cycles.two_cycle(depth, scale, rate),
        start=size * (0.7 + 0.2 * shares[0]),
        unbalanced=size * (0.8 + 0.3 * shares[1:]),
        edge_ratio=ratio,
        steps=sorted({*range(1, EARLY + 1), steps - 1, steps}),
    )


# Prediction --------------------------------------------------------------------------------------


def _balance(depth: int, data: tuple[Array, Array, Array]) -> Float[Array, "early"]:
    """``s_1^2 - s_2^2`` at every early step, from the recursion of scalar layers."""
    start, target, rate = data

    def step(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        layers, b = state
        factor = cycles.balance_decay(layers, 0, 1, target, rate)
        others = jnp.prod(jnp.where(jnp.eye(depth, dtype=bool), 1.0, layers[None, :]), axis=1)
        layers = layers - rate * (jnp.prod(layers) - target) * others
        return (layers, factor * b), factor * b

    return jax.lax.scan(step, (start, start[0] ** 2 - start[1] ** 2), length=EARLY)[1]


def predict(case: OneMode) -> CycleTheory:
    """Closed forms of the cycle; the scalar recursion up to the last step."""
    depth, (s, eta), cycle = case.network.depth, case.rates, case.cycle

    def step(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rho, low, high = state
        rho = balanced_step(rho, depth, s, eta)
        return rho, jnp.minimum(low, rho), jnp.maximum(high, jnp.abs(rho))

    start = (case.start, case.start, case.start)
    rho, low, high = jax.lax.fori_loop(0, case.steps[-1], step, start)
    twice = balanced_step(balanced_step(rho, depth, s, eta), depth, s, eta)
    points = jnp.stack([cycle.low, cycle.high]) ** depth
    multiplier = cycles.cycle_multiplier(depth, cycle.ratio)
    run = lambda data: _balance(depth, data)  # noqa: E731
    law, condition = with_condition(run, (case.unbalanced, s, eta))

    # Two steps of an orbit nearby: an error of the place moves a multiplier by its slope.
    def slope(place: Array) -> Array:
        h = lambda rho: balanced_step(rho, depth, s, eta)  # noqa: E731
        return jax.jvp(lambda rho: h(h(rho)), (place,), (jnp.ones_like(place),))[1]

    sensitivity = jnp.abs(cycle.low * jax.grad(slope)(cycle.low))
    y = jnp.log(cycle.ratio)
    stretch = 1 / jnp.abs(jax.grad(lambda y: jnp.log(cycles.cycle_edge_ratio(depth, y)))(y))
    return CycleTheory(
        two_cycle=points[::-1],
        cycle_reached=points,
        cycle_multiplier=multiplier,
        balance_factor=cycles.balance_factor(cycle.ratio),
        balance_law=law,
        doubling=cycles.doubling(depth),
        gap=jnp.abs(twice - rho) / jnp.abs(rho),
        lowest=low / s ** (1 / depth),
        highest=high / s ** (1 / depth),
        # What a round adds is summed over 1 / (1 - m) rounds; near the edge the cycle opens like a
        # square root, so that an error of eta moves it by 1 / (d ln eta / dy).
        reached_condition=depth * (1 + stretch) / jnp.abs(1 - jnp.abs(multiplier)),
        multiplier_condition=depth + (1 + stretch) * sensitivity,
        balance_condition=condition,
    )


# Measurement -------------------------------------------------------------------------------------


def _first_value(case: OneMode, weights: Any) -> Float[Array, ""]:
    """Singular value of the product in the direction of the mode, with its sign."""
    bases = case.network.bases
    return bases[-1][:, 0] @ end_to_end(weights) @ bases[0][:, 0]


def _measured_doubling(depth: int, dtype: np.dtype) -> np.ndarray:
    """Where two steps of scalar layers, s = 1, turn an error of their two-cycle around.

    It depends on the depth alone, so that NumPy steps, in the precision of the run; a small
    imaginary part of rho is the error.
    """
    lowest, highest, tiny = dtype.type(0.6), dtype.type(0.95), 1e-20j

    def step(rho: Any, eta: Any) -> Any:
        return rho - eta * (rho**depth - 1) * rho ** (depth - 1)

    def is_stable(ratio: Any) -> bool:
        eta = 2 * ratio / depth
        # Below the lower point of the cycle two steps lead up, above it down to it.
        rho = cycles.halve(lowest, highest, lambda rho: step(step(rho, eta), eta) > rho)
        return bool(step(step(rho + tiny, eta), eta).imag / tiny.imag > -1)

    return np.asarray(cycles.halve(dtype.type(1.2), dtype.type(1.27), is_stable))


def measure(case: OneMode) -> CycleMeasured:
    """Step, differentiate and descend with dense layers."""
    network, depth, dtype = case.network, case.network.depth, case.start.dtype
    # Errors in the direction of the mode: the same in all layers, and opposite in two of them.
    opposite = jnp.zeros(depth, dtype).at[0].set(1.0).at[1].set(-1.0)
    errors = jax.vmap(case.layers)(jnp.stack([jnp.ones_like(opposite), opposite]))

    def advance(state: tuple[Any, Any], _: None) -> tuple[tuple[Any, Any], Array]:
        weights, errors = state
        push = jax.vmap(lambda error: network.push(weights, error), out_axes=(None, 0))
        weights, errors = push(errors)
        return (weights, errors), _first_value(case, weights)

    low = case.layers(jnp.full(depth, case.cycle.low))
    (_, pushed), round_trip = jax.lax.scan(advance, (low, errors), length=2)
    same, unequal = jax.vmap(network.to_frame)(pushed)[:, :, 0, 0]

    def record(weights: Any) -> tuple[Array, Array]:
        values = network.to_frame(weights)[:, 0, 0]
        return _first_value(case, weights), values[0] ** 2 - values[1] ** 2

    # One program of both descents: a balanced one, and one that is not.
    starts = jnp.stack([jnp.full(depth, case.start), case.unbalanced])
    runs = jax.vmap(
        lambda values: simulate(
            network.loss,
            case.layers(values),
            gradient_descent(network.learning_rate),
            case.times,
            record=record,
        )
    )(starts)
    values, balance = runs.records[0][0], runs.records[1][1]
    return CycleMeasured(
        two_cycle=round_trip,
        cycle_reached=jnp.sort(values[-2:]),
        cycle_multiplier=jnp.mean(same),
        balance_factor=(unequal[0] - unequal[1]) / 2,
        balance_law=balance[:EARLY],
        doubling=jnp.asarray(_measured_doubling(depth, np.dtype(dtype))),
        diverged_at=runs.diverged_at[0],
    )


# Claims ------------------------------------------------------------------------------------------


@above("eta / eta_c")
def _beyond_the_edge(case: OneMode) -> Extent:
    return Extent(case.edge_ratio, 1.0)


def _is_stable(outcome: CycleOutcome) -> bool:
    """Whether the two-cycle attracts, and the scalar recursion has kept its sign."""
    theory = outcome.predicted
    return bool(np.abs(theory.cycle_multiplier) < 1 and theory.lowest > 0 and theory.highest < 10)


def _not_there_yet(outcome: CycleOutcome) -> str:
    """Why descent need not be on the cycle yet: how fast the gap of the recursion closes."""
    theory = outcome.predicted
    rounding = tolerance("identity", outcome.dtype, steps=outcome.steps, size=outcome.size)
    enough = rounding / ROUNDING_SAFETY
    if theory.gap <= enough:
        return ""
    rounds = np.log(theory.gap / enough) / -np.log(np.abs(theory.cycle_multiplier))
    return MoreSteps(float(outcome.point["steps"] + 2 * rounds), flag="steps")


def _layer_square(outcome: CycleOutcome) -> float:
    """Square of the singular value of a layer at the minimum, s^{2/L}."""
    return float(outcome.point["target_scale"] ** (2 / outcome.point["depth"]))


def _compare_on(scale: Any, name: str) -> Any:
    """Compare the fields of one name on a scale of at least so much."""

    def form(outcome: CycleOutcome) -> Equal:
        predicted, measured = (getattr(s, name) for s in (outcome.predicted, outcome.measured))
        largest = np.maximum(np.max(np.abs(predicted)), scale(outcome))
        return Equal(predicted, measured, scale=largest)

    return form


CLAIMS: tuple[Claim[CycleTheory, CycleMeasured], ...] = (
    Claim(
        "two_cycle",
        "for eta > eta_c = (2/L) s^{-(2 - 2/L)} a balanced mode goes from rho to z rho and back, "
        "rho^L = s (1 + z^{L-1}) / (1 + z^{2L-1}), eta / eta_c = L cosh((2L-1)y/2)^a "
        "cosh((L-1)y/2)^{1-a} sinh(y/2) / sinh(Ly/2), z = e^y, a = 2 - 2/L",
        steps=2,
        condition=lambda theory: theory.multiplier_condition,
    ),
    Claim(
        "cycle_reached",
        "descent from a balanced start below the minimum ends at that two-cycle, for eta above "
        "eta_c and below the doubling (attraction is proven near the cycle; that these starts "
        "reach it is read off the scalar recursion, without which there is no verdict)",
        applies=_is_stable,
        undecided=_not_there_yet,
        reads=lambda theory, run: (
            theory.cycle_multiplier,
            theory.gap,
            theory.lowest,
            theory.highest,
        ),
        # An attracting cycle forgets the rounding of earlier steps; the condition sums the rest.
        steps=FORGOTTEN,
        condition=lambda theory: theory.reached_condition,
    ),
    Claim(
        "cycle_multiplier",
        "two steps multiply a balanced error by h'(rho) h'(z rho) = [1 - (z-1) P / (z^{L-1} (z^L - "
        "1))] [1 - (z-1) Q / (z (z^L - 1))], P = L + (2L-1) z^{L-1} - (L-1) z^{2L-1}, Q = L "
        "z^{2L-1} + (2L-1) z^L - (L-1)",
        form=_compare_on(lambda outcome: 1.0, "cycle_multiplier"),
        steps=2,
        condition=lambda theory: theory.multiplier_condition,
    ),
    Claim(
        "balance_factor",
        "on the two-cycle s_i^2 - s_j^2 of two layers is multiplied by 5 - 2 (z + 1/z) in two "
        "steps, at every depth (first order)",
        form=_compare_on(lambda outcome: 1.0, "balance_factor"),
        steps=2,
        condition=lambda theory: theory.multiplier_condition,
    ),
    Claim(
        "balance_law",
        "every step multiplies s_i^2 - s_j^2 of scalar layers by 1 - eta^2 (p - s)^2 q^2, p the "
        "product of all and q that of the others: exact at any step size",
        form=_compare_on(_layer_square, "balance_law"),
        steps=EARLY,
        reads=lambda theory, run: (theory.balance_law, run.balance_law),
        condition=lambda theory: theory.balance_condition,
    ),
    Claim(
        "doubling",
        "the two-cycle doubles where its multiplier is -1, at eta / eta_c = sqrt 5 - 1 for two "
        "layers, 1.244607, 1.247169, 1.249076 for 3, 4, 6",
        # Both sides halve an interval; what is rounded is two steps, and they cross -1 steeply.
        steps=2,
    ),
)


# Controls ----------------------------------------------------------------------------------------


def _power_of_all_layers(case: OneMode) -> CycleTheory:
    """Write L in the place of L - 1: z^L and z^{2L} for z^{L-1} and z^{2L-1}."""
    depth, z = case.network.depth, case.cycle.ratio
    low = case.network.values[0] * (1 + z**depth) / (1 + z ** (2 * depth))
    return CycleTheory(two_cycle=jnp.stack([z**depth * low, low]))


def _as_in_a_flow(case: OneMode) -> CycleTheory:
    """Balance is conserved, as under gradient flow."""
    b = case.unbalanced[0] ** 2 - case.unbalanced[1] ** 2
    return CycleTheory(balance_factor=jnp.ones_like(b), balance_law=jnp.full(EARLY, b))


def _set_edge_ratio(case: OneMode, ratio: Any) -> OneMode:
    network = case.network
    rate = ratio * cycles.edge(network.depth, network.values[0])
    return dataclasses.replace(
        case,
        network=dataclasses.replace(network, learning_rate=rate),
        cycle=cycles.two_cycle(network.depth, network.values[0], rate),
        edge_ratio=jnp.asarray(ratio, rate.dtype),
    )


CONTROLS: tuple[Control[OneMode, CycleTheory, CycleMeasured], ...] = (
    Control(
        "power_of_all_layers",
        "z^L and z^{2L} in the place of z^{L-1} and z^{2L-1}",
        "two_cycle",
        predict=_power_of_all_layers,
    ),
    Control(
        "past_the_doubling",
        "eta = 1.3 eta_c, where the orbit has a longer period",
        "cycle_reached",
        case=lambda key, case, amount: _set_edge_ratio(case, 1.3),
        breaks="applies",
    ),
    Control(
        "one_factor",
        "h'(rho)^2 in the place of h'(rho) h'(z rho)",
        "cycle_multiplier",
        predict=lambda case: CycleTheory(
            cycle_multiplier=jax.grad(
                lambda rho: balanced_step(rho, case.network.depth, *case.rates)
            )(case.cycle.low)
            ** 2
        ),
    ),
    Control(
        "factor_of_a_flow",
        "balance conserved, as under gradient flow",
        "balance_factor",
        predict=_as_in_a_flow,
    ),
    Control(
        "balance_of_a_flow",
        "balance conserved, as under gradient flow",
        "balance_law",
        predict=_as_in_a_flow,
    ),
    Control(
        "fastest_cycle",
        "the step at which the cycle's multiplier is 0",
        "doubling",
        predict=lambda case: CycleTheory(doubling=cycles.fastest_cycle(case.network.depth)),
    ),
)

CYCLE = Scenario[OneMode, CycleTheory, CycleMeasured](
    "two_cycle",
    make_case,
    predict,
    measure,
    theory=CycleTheory,
    measured=CycleMeasured,
    claims=CLAIMS,
    controls=CONTROLS,
    hypotheses={"beyond_the_edge": _beyond_the_edge},
    diverged=lambda run: run.diverged_at,
    steps="steps",
    at={"depth": 2, "edge_ratio": 1.2},
    sides="closed forms in z, and scalar recursions, against dense layers in random bases, stepped "
    "and differentiated",
)
