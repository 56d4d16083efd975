"""The edge of stability, against recursions, matrices and 80 digits that share no code with it."""

from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from lrdyn import edge_of_stability as edge
from lrdyn.edge_of_stability import cycle_claims, depth_claims
from lrdyn.edge_of_stability.alignment import Pair
from lrdyn.edge_of_stability.cycle_claims import CYCLE, CycleTheory
from lrdyn.edge_of_stability.depth_claims import DepthMeasured, DepthTheory
from lrdyn.verification.stating.statement import Outcome
from tests import oracles

DEPTHS = (2, 3, 4, 6)


def step(rho, depth, s, eta):
    """Descent of one balanced mode."""
    return rho - eta * (rho**depth - s) * rho ** (depth - 1)


def descend(layers, target, eta):
    """Descent of 2 x 2 layers on 1/2 ||W_L ... W_1 - Phi||^2, gradients by hand."""
    depth = len(layers)
    below, above = [np.eye(2)], [np.eye(2)]
    for W in layers[:-1]:
        below.append(W @ below[-1])
    for W in layers[:0:-1]:
        above.append(above[-1] @ W)
    error = layers[-1] @ below[-1] - target
    return [W - eta * above[depth - 1 - l].T @ error @ below[l].T for l, W in enumerate(layers)]


def pushed(errors, rhos, targets, eta):
    """What a step makes of entries beside the diagonals: the imaginary part of a complex step."""
    blocks = []
    for e_12, e_21 in errors:
        block = np.diag(rhos).astype(complex)
        block[0, 1], block[1, 0] = 1e-30j * e_12, 1e-30j * e_21
        blocks.append(block)
    after = np.imag(np.array(descend(blocks, np.diag(targets), eta))) / 1e-30
    return np.stack([after[:, 0, 1], after[:, 1, 0]], axis=1)


# One mode ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", DEPTHS)
def test_at_the_edge_the_slope_at_the_minimum_is_minus_one(depth):
    s = 1.7
    eta, at = float(edge.edge(depth, s)), s ** (1 / depth)
    slope = (step(at + 1e-6, depth, s, eta) - step(at - 1e-6, depth, s, eta)) / 2e-6
    assert slope == pytest.approx(-1, abs=1e-8)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_cycle_goes_there_and_back(depth):
    solve = jax.jit(lambda s, eta: edge.two_cycle(depth, s, eta))
    for s in (0.3, 1.0, 20.0):
        for ratio in (1.001, 1.1, 1.5, 3.0):
            eta = ratio * float(edge.edge(depth, s))
            low, high, z = map(float, solve(s, eta))
            assert z > 1
            assert high == pytest.approx(step(low, depth, s, eta), rel=1e-12)
            assert low == pytest.approx(step(high, depth, s, eta), rel=1e-11)


@pytest.mark.parametrize("depth", DEPTHS)
def test_there_is_no_other_cycle_with_positive_points(depth):
    """Of h(h(rho)) = rho with h(rho) > 0 there are three roots: the minimum and the cycle."""
    for ratio in (1.05, 1.3, 1.8):
        eta = ratio * float(edge.edge(depth, 1.0))
        rho = np.linspace(1e-3, 2.0, 400_001)
        once = step(rho, depth, 1.0, eta)
        moved = np.where(once > 0, step(once, depth, 1.0, eta) - rho, np.nan)
        with np.errstate(invalid="ignore"):
            changes = np.flatnonzero(moved[1:] * moved[:-1] < 0)
        cycle = edge.two_cycle(depth, 1.0, eta)
        assert rho[changes] == pytest.approx([float(cycle.low), 1.0, float(cycle.high)], abs=1e-4)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_multiplier_is_the_slope_of_two_steps(depth):
    cycle = edge.two_cycle(depth, 1.0, 1.3 * float(edge.edge(depth, 1.0)))
    eta = 1.3 * float(edge.edge(depth, 1.0))
    turned = step(step(float(cycle.low) + 1e-30j, depth, 1.0, eta), depth, 1.0, eta)
    assert float(edge.cycle_multiplier(depth, cycle.ratio)) == pytest.approx(turned.imag / 1e-30)


@pytest.mark.parametrize("depth", DEPTHS)
def test_doubling_in_forty_digits(depth):
    """Where h(h(rho)) = rho with slope -1, by Newton's method from the closed form's answer."""
    with mpmath.workdps(40):

        def equations(rho, eta):
            back = lambda x: step(step(x, depth, 1, eta), depth, 1, eta)  # noqa: E731
            return back(rho) - rho, mpmath.diff(back, rho) + 1

        ratio = float(edge.doubling(depth))
        eta = ratio * 2 / depth
        rho = float(edge.two_cycle(depth, 1.0, eta).low)
        _, found = mpmath.findroot(equations, (rho, eta))
        assert ratio == pytest.approx(float(found * depth / 2), rel=1e-13)


def test_two_layers_double_at_the_golden_ratio():
    assert float(edge.doubling(2)) == pytest.approx(5**0.5 - 1, rel=1e-14)
    z = edge.two_cycle(2, 1.0, 5**0.5 - 1).ratio
    assert float(z) == pytest.approx((1 + 5**0.5) / 2, rel=1e-13)


def test_balance_decays_by_its_factor():
    rng = np.random.default_rng(0)
    for depth in (2, 3, 5):
        layers, s, eta = rng.uniform(0.2, 1.5, depth), 0.8, 0.3
        others = np.array([np.prod(np.delete(layers, l)) for l in range(depth)])
        after = layers - eta * (np.prod(layers) - s) * others
        factor = float(edge.balance_decay(jnp.asarray(layers), 0, 1, s, eta))
        before = layers[0] ** 2 - layers[1] ** 2
        assert after[0] ** 2 - after[1] ** 2 == pytest.approx(factor * before, rel=1e-12)


def test_a_zero_layer_has_a_balance():
    """The factor needs no division by a singular value."""
    assert float(edge.balance_decay(jnp.array([0.0, 1.0, 0.5]), 0, 1, 1.0, 0.2)) == 1 - 0.1**2


def test_the_chaotic_orbit_in_eighty_digits():
    s, p, q, times = 3.0, 321, 20_011, np.arange(40)
    found = edge.orbit_at_twice_the_edge(jnp.asarray(p), q, s, jnp.asarray(times))
    with mpmath.workdps(80):
        rho, exact = mpmath.sqrt(2 * s) * mpmath.cos(2 * mpmath.pi * p / q), []
        for _ in times:
            exact.append(float(rho))
            rho = step(rho, 2, s, 2 / mpmath.mpf(s))
    assert np.asarray(found) == pytest.approx(np.array(exact), abs=1e-14)


test_bad_input_is_named = oracles.refuses(
    (lambda: edge.edge(1, 1.0), "depth: got 1, wanted at least 2"),
    (lambda: edge.two_cycle(2, 0.0, 1.2), "target: got 0.0, wanted > 0"),
    (lambda: edge.two_cycle(2, 1.0, -1.0), "learning_rate: got -1.0, wanted > 0"),
    (lambda: edge.doubling(0), "depth: got 0, wanted at least 2"),
    (
        lambda: edge.orbit_at_twice_the_edge(jnp.array(1), 2, 1.0, jnp.arange(2)),
        "denominator: got 2, wanted 3 to",
    ),
)


# Alignment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3, 4, 5])
def test_a_step_of_the_entries_beside_the_diagonal(depth):
    """Away from any cycle, with a mode that is negative and one that is 0."""
    rng = np.random.default_rng(depth)
    run = jax.jit(lambda e, r, s, eta: edge.off_diagonal_step(e, Pair(r, s), eta))
    for rhos in ([1.1, 0.7], [-0.9, 0.6], [1.2, 0.0]):
        errors, targets, eta = rng.standard_normal((depth, 2)), np.array([1.0, 0.5]), 0.37
        found = run(jnp.asarray(errors), jnp.asarray(rhos), jnp.asarray(targets), eta)
        assert np.asarray(found) == pytest.approx(pushed(errors, rhos, targets, eta), abs=1e-13)


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_turns_of_inner_bases_are_gauge(depth):
    """Turning layers against one another leaves the product, and is all that is taken out."""
    rhos, rng = np.array([1.3, 0.6]), np.random.default_rng(0)
    turns = [0.0, *rng.standard_normal(depth - 1), 0.0]
    skew = np.array([[0.0, 1.0], [-1.0, 0.0]])
    moved = [
        turns[l + 1] * skew @ np.diag(rhos) - turns[l] * np.diag(rhos) @ skew for l in range(depth)
    ]
    errors = jnp.asarray([[e[0, 1], e[1, 0]] for e in moved])
    pair = Pair(jnp.asarray(rhos), jnp.ones(2))
    assert float(jnp.max(jnp.abs(edge.without_gauge(errors, pair)))) < 1e-14
    units = jnp.eye(2 * depth).reshape(-1, depth, 2)
    left = jax.vmap(lambda e: edge.without_gauge(e, pair))(units)
    assert np.linalg.matrix_rank(np.asarray(left).reshape(2 * depth, -1)) == depth + 1


def multipliers(rhos, targets, eta):
    """Those of two steps of two layers."""
    units = np.eye(4).reshape(4, 2, 2)
    whole = np.eye(4)
    for _ in range(2):
        columns = [pushed(unit, rhos, targets, eta).ravel() for unit in units]
        whole = np.array(columns).T @ whole
        rhos = step(rhos, 2, targets, eta)
    return np.linalg.eigvals(whole)


def cycle_point(scaled):
    """z of the two-cycle of two layers."""
    return ((scaled + 1) + np.sqrt((scaled + 1) ** 2 - 4)) / 2


def expected(pair):
    """Multipliers of a pair with that of gauge, sorted by size."""
    of_d = np.roots([1, -float(pair.trace), float(pair.determinant)])
    return np.sort(np.abs([1.0, float(pair.product), *of_d]))


def test_multipliers_of_a_resting_partner():
    for first, second in ((1.05, 0.2), (1.2, 0.79), (1.2, 0.9), (1.6, 0.5)):
        rhos = np.sqrt([1 / cycle_point(first), second])
        found = multipliers(rhos, np.array([first, second]), 1.0)
        wanted = expected(edge.resting_pair(first, second))
        assert np.sort(np.abs(found)) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("phase", [1.0, -1.0])
def test_multipliers_of_two_modes_on_cycles(phase):
    for first, second in ((1.2, 1.1), (1.9, 1.02), (1.6, 1.5)):
        z, v = cycle_point(first), cycle_point(second)
        found = multipliers(np.sqrt([1 / z, v**-phase]), np.array([first, second]), 1.0)
        wanted = expected(edge.oscillating_pair(z, v, phase))
        assert np.sort(np.abs(found)) == pytest.approx(wanted, abs=1e-10)


def test_the_border_of_a_resting_partner_is_the_line():
    first, second = np.meshgrid(np.linspace(1.001, 5**0.5 - 1.001, 60), np.linspace(0, 0.999, 80))
    stays = np.asarray(edge.resting_pair(jnp.asarray(first), jnp.asarray(second)).radius) < 1
    away = np.abs(first + second - 2) > 1e-9
    assert np.array_equal(stays[away], (first + second < 2)[away])


def test_two_oscillating_modes_are_never_stable():
    z, v = (jnp.asarray(side) for side in np.random.default_rng(1).uniform(1.0, 3.0, (2, 4000)))
    for phase in (1.0, -1.0):
        assert float(jnp.min(edge.oscillating_pair(z, v, phase).radius)) > 1
    assert float(jnp.max(edge.oscillation_excess(z, v, -1.0))) < 0


def test_a_chaotic_orbit_on_the_line_conserves():
    """By the matrix of the page, over 3,000 steps of an orbit that is chaotic."""
    for e in (1.3, 1.7, 1.95):
        a, q, D = 0.4, 2 - e, np.array([1.0, -0.3])
        first = D @ D / (2 + e - a)
        most = float(edge.largest_square(e, a))
        for _ in range(3000):
            beside = np.sqrt(a * q)
            D = np.array([[1 - a, beside], [beside, 1 + a - e - q]]) @ D
            a = a * (1 + e - a) ** 2
            assert a <= most * (1 + 1e-12)
        assert D @ D / (2 + e - a) == pytest.approx(first, rel=1e-10)


def test_growth_along_an_orbit_is_the_largest_multiplier():
    """On a stable cycle the mean growth of two steps is the largest multiplier modulo gauge."""
    targets, eta = jnp.array([1.0, 0.85]), 1.2
    start = jnp.stack([edge.two_cycle(2, 1.0, eta).low, jnp.sqrt(targets[1])])
    growth = edge.alignment_growth(start, targets, 2, eta, 4000)
    radius = float(edge.resting_pair(eta, eta * 0.85).radius)
    # A pair of complex multipliers turns: a mean over n steps is off by some 1/n.
    assert float(jnp.mean(growth[2000:])) == pytest.approx(np.log(radius) / 2, abs=1e-3)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_exponent_of_a_cycle_is_that_of_its_eigenvalues(depth):
    """Largest eigenvalue of two steps but for L - 1 of gauge, which are 1."""
    targets = np.array([1.0, 0.9])
    eta = 1.2 * float(edge.edge(depth, 1.0))
    start = np.array([float(edge.two_cycle(depth, 1.0, eta).low), 0.9 ** (1 / depth)])
    units, whole, rhos = np.eye(2 * depth).reshape(-1, depth, 2), np.eye(2 * depth), start
    for _ in range(2):
        columns = [pushed(unit, rhos, targets, eta).ravel() for unit in units]
        whole = np.array(columns).T @ whole
        rhos = step(rhos, depth, targets, eta)
    values = np.linalg.eigvals(whole)
    assert np.sum(np.abs(values - 1) < 1e-6) >= depth - 1
    wanted = np.log(np.abs(values).max()) / 2
    found = edge.cycle_exponent(jnp.asarray(start), jnp.asarray(targets), depth, eta)
    assert wanted > 0
    assert float(found) == pytest.approx(wanted, abs=1e-9)


# What is judged ----------------------------------------------------------------------------------


# Fields are JAX's where they are made, and NumPy's where they are judged.
cycle_theory: Any = CycleTheory
depth_theory: Any = DepthTheory
depth_run: Any = DepthMeasured


def outcome(predicted: Any, measured: Any, steps: int, dtype: str = "float64") -> Outcome:
    return Outcome({"steps": steps}, predicted, measured, {}, np.dtype(dtype), 5, steps)


def claim(scenario, name) -> Any:
    return next(claim for claim in scenario.claims if claim.id == name)


def test_a_slow_approach_says_how_many_steps_it_needs():
    """Of a multiplier -0.9 a gap shrinks by a tenth in two steps."""
    reached = claim(CYCLE, "cycle_reached")
    theory = cycle_theory(
        cycle_multiplier=np.array(-0.9), gap=np.array(1e-6), lowest=np.array(0.5), highest=1.5
    )
    found = outcome(theory, None, 100)
    assert reached.applies(found)
    reason: Any = reached.undecided(found)
    assert 1e-6 * 0.9 ** ((reason.needed - 100) / 2) < 1e-12
    assert reason == "too few steps"
    arrived = outcome(theory._replace(gap=np.array(0.0)), None, 100)
    assert reached.undecided(arrived) == ""


def test_nothing_is_claimed_of_an_orbit_that_changed_sign():
    theory = cycle_theory(cycle_multiplier=np.array(-0.5), lowest=np.array(-0.1), highest=1.5)
    assert not claim(CYCLE, "cycle_reached").applies(outcome(theory, None, 100))


@pytest.mark.parametrize(("rate", "passes"), [(0.05, True), (0.06, False), (0.02, False)])
def test_the_rate_of_rounding_is_a_slope(rate, passes):
    """A run that grows by .05 a step agrees with that rate, and with none further off."""
    steps = np.arange(0, 800, 4)
    theory = depth_theory(rounding_rate=np.array(rate), multiplier=np.array(-0.5))
    run = depth_run(step=steps, beside=np.minimum(1e-16 * np.exp(0.05 * steps), 0.3))
    rated = claim(depth_claims.DEPTH, "rounding_rate")
    form = rated.form(outcome(theory, run, 800))
    assert (form.residual() <= rated.tolerance) == passes


def test_float32_has_no_room_for_a_rate():
    theory = depth_theory(rounding_rate=np.array(0.05), multiplier=np.array(-0.5))
    rated = claim(depth_claims.DEPTH, "rounding_rate")
    found = outcome(theory, depth_run(step=np.arange(9)), 10_000, "float32")
    assert "digits" in rated.undecided(found)


def test_early_steps_do_not_outrun_float32():
    """At twice the edge errors triple: over the early steps less than float32 has digits."""
    assert 3.0**cycle_claims.EARLY * np.finfo(np.float32).eps < 1
