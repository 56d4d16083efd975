"""Theorem 4: its problems, what it looks at, and what it refuses."""

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn as lr
from lrdyn import cli
from lrdyn.adapters.methods import GALORE, RELORA_FROZEN
from lrdyn.adapters.projectors import Projector
from lrdyn.core.condition import conditions, twins, with_condition
from lrdyn.galore.path_claims import PATH
from lrdyn.galore.statement import GALORE as OF_OPTAX
from lrdyn.theorem4 import duality_claims as duality
from lrdyn.theorem4 import problems
from lrdyn.theorem4.duality_claims import DUALITY
from lrdyn.theorem4.figures import plot_paths
from lrdyn.theorem4.gradient_rank_claims import GRADIENT_RANK
from lrdyn.theorem4.optimizer_state_claims import OPTIMIZER_STATE, galore
from lrdyn.theorem4.statement import THEOREM4
from lrdyn.theorem4.trajectory_claims import (
    OTHER_PROBLEMS,
    TRAJECTORY,
    TrajectoryMeasured,
    TrajectoryTheory,
    measure_trajectory,
)
from lrdyn.verification.running.configuration import BadInput, run_of
from lrdyn.verification.running.evaluate import case_arguments
from lrdyn.verification.running.jobs import own_settings, split_settings
from lrdyn.verification.running.produce import select_scenarios, validate
from lrdyn.verification.stating.statement import Outcome
from tests import oracles
from tests.runs import finished

SETTINGS = {flag.name: flag.quick if flag.swept else flag.quick[0] for flag in THEOREM4.flags}


def make(**flags: Any) -> problems.LowRankRun:
    settings: dict[str, Any] = {flag.name: flag.quick[0] for flag in THEOREM4.flags}
    settings |= {"rows": 4, "cols": 6, "steps": 12} | flags
    return problems.make_run(jax.random.key(0), **settings)


@jax.jit
def looked_at(case):
    path = problems.train(case).records
    return path, problems.examine_refreshes(case, path)


@pytest.mark.parametrize("problem", problems.PROBLEMS)
def test_the_first_matrix_is_m_times_n_and_the_loss_of_size_one(problem, dtype):
    @jax.jit
    def drawn():
        case = make(problem=problem)
        return problems.first_matrix(case.params), case.loss(case.params, case.data)

    matrix, value = drawn()
    chex.assert_shape(matrix, (4, 6))
    assert value.dtype == dtype
    assert 0.1 < float(value) < 10 * 4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("gap", [1.0, 0.5, 1e-6, 0.0])
def test_a_gap_moves_one_singular_value_of_the_first_gradient(gap, side):
    def values(case):
        return np.linalg.svd(jax.grad(case.loss)(case.params, case.data), compute_uv=False)

    drawn, moved = (make(rank=2, side=side, gradient_gap=x) for x in (1.0, gap))
    expected = values(drawn)
    expected[2] = expected[1] - gap * (expected[1] - expected[2])
    oracles.assert_close(values(moved), expected, size=6)
    if gap == 1:
        assert np.array_equal(make(rank=2, side=side).data[1], moved.data[1])


@pytest.mark.parametrize(
    ("theorem", "flags"),
    [
        (theorem, {"rank": rank, **others})
        for theorem in (THEOREM4, OF_OPTAX)
        for rank in ((2,), (4,), (2, 4))
        for others in (
            [{}, {"problem": ("mlp",)}, {"problem": ("mlp", "regression")}]
            if theorem is THEOREM4
            else [{}]
        )
    ],
)
def test_several_gaps_are_several_cases_or_refused(theorem, flags):
    """At r = min(m, n) and in a network a gap moves nothing: the same case would count twice."""
    sizes = {"rows": 5, "cols": 4, "gradient_gap": (1.0, 0.3), "steps": 3}
    distinct = flags["rank"] == (2,) and "problem" not in flags
    one_gap = run_of(theorem, **sizes | flags | {"gradient_gap": (0.3,)})
    assert one_gap.settings["gradient_gap"] == (0.3,)
    if not distinct:
        refused = r"^--gradient-gap: got 1 0\.3 with --(rank 4|problem mlp)"
        with pytest.raises(BadInput, match=refused):
            run_of(theorem, **sizes | flags)
        return
    run = run_of(theorem, **sizes | flags)
    for scenario in run.concerned.scenarios:
        swept, fixed = split_settings(theorem, own_settings(theorem, scenario, run.settings))
        columns = lr.product(**swept).columns
        points = [
            fixed | dict(zip(columns, values, strict=True))
            for values in zip(*columns.values(), strict=True)
        ]
        cases = [scenario.case(jax.random.key(0), **case_arguments(scenario, p)) for p in points]
        forms = [(str(jax.tree.structure(c)), *map(np.asarray, jax.tree.leaves(c))) for c in cases]
        told = {(form, *(array.tobytes() for array in arrays)) for form, *arrays in forms}
        assert len(told) == len(cases), scenario.id


def test_a_gap_of_a_gradient_without_a_value_beyond_r_changes_nothing():
    drawn, moved = (make(rank=4, gradient_gap=gap) for gap in (1.0, 0.0))
    assert np.array_equal(drawn.data[1], moved.data[1])


def test_the_losses_are_what_they_say():
    draw = np.random.default_rng(0)
    W, X, Y, tokens = (draw.normal(size=shape) for shape in [(3, 4), (4, 5), (3, 5), (2, 3, 4)])
    classes = np.eye(3)[:, draw.integers(3, size=5)]
    odds, squares = np.exp(W @ X), np.sum((W @ X - Y) ** 2, axis=0)
    of_class = np.sum(classes * odds, axis=0) / odds.sum(axis=0)
    for name, weights, inputs, outputs, expected in (
        ("regression", jnp.asarray(W), X, Y, squares.sum() / 2),
        ("mlp", lambda x: W @ x, X, Y, squares.mean() / 2),
        ("logistic", jnp.asarray(W), X, classes, -np.log(of_class).mean()),
        ("transformer", lambda x: x, tokens, np.zeros_like(tokens), np.sum(tokens**2) / 16),
    ):
        found = problems.LOSS[name](weights, (jnp.asarray(inputs), jnp.asarray(outputs)))
        oracles.assert_close(found, expected, size=15)


@pytest.mark.parametrize(("optimizer", "side"), [("adam", "left"), ("momentum", "right")])
def test_a_transformer_takes_the_same_path(optimizer, side):
    case = make(problem="transformer", optimizer=optimizer, side=side, period=4)

    @jax.jit
    def both(given):
        one, condition = with_condition(lambda d: problems.train(case, GALORE, d).records, given)
        return one, problems.train(case, params_and_data=given).records, condition

    one, other, condition = both((case.params, case.data))
    assert 1 <= float(condition) < 1e6
    apart = oracles.residual(one, other)
    assert apart <= float(condition) * oracles.tolerance("identity", "float64", steps=12, size=6)
    moved = problems.unravel(case)(one[-1] - one[0])
    assert all(leaf.any() for leaf in jax.tree.leaves(moved))


def test_times_hold_what_is_recorded_and_the_refreshes():
    case = make(period=5, steps=60)
    refreshes, times = problems.refresh_steps(case), problems.record_times(case)
    assert refreshes.tolist() == list(range(0, 60, 5))
    assert set(case.steps) | set(refreshes.tolist()) == set(times.tolist())
    assert times[problems.time_indices(case, case.steps)].tolist() == list(case.steps)
    assert problems.refresh_steps(make(period=100)).tolist() == [0]


@pytest.mark.parametrize(
    ("rank", "period", "expected"),
    [(1, 3, [1, 2, 3]), (1, 1, [1, 2, 3]), (2, 3, [2]), (1, 6, [1, 2]), (4, 3, [4]), (3, 20, [3])],
)
def test_sums_are_looked_at_while_they_are_deficient(rank, period, expected):
    case = make(rank=rank, period=period)
    assert problems.sum_ranks(case).tolist() == expected
    assert problems.deficient_refreshes(case) == len(expected)
    path = jnp.zeros((len(problems.record_times(case)), 24))
    found = jax.eval_shape(partial(problems.sum_values, case), path)
    assert found.shape == (len(expected), 4)


def test_sums_are_those_after_each_refresh():
    case = make(rank=1, period=4)
    times = problems.record_times(case).tolist()
    path = np.random.default_rng(0).normal(size=(len(times), 24))
    moved = [(path[times.index(t)] - path[0]).reshape(4, 6) for t in (4, 8, 12)]
    expected = [np.linalg.svd(matrix, compute_uv=False) for matrix in moved]
    oracles.assert_close(problems.sum_values(case, jnp.asarray(path)), np.array(expected), size=24)


@pytest.mark.parametrize("side", ["left", "right"])
def test_refreshes_are_looked_at_by_hand(side):
    case = make(rank=2, period=4, side=side)
    (path, found), times = looked_at(case), problems.record_times(case).tolist()
    X, Y = oracles.double(case.data)
    spectra, bases = [], []
    for t in (0, 4, 8):
        W = np.asarray(path[times.index(t)]).reshape(4, 6)
        left, values, right = np.linalg.svd((W @ X - Y) @ X.T)
        spectra.append(values)
        bases.append((left if side == "left" else right.T)[:, :2])
    spectra = np.array(spectra)
    gaps = (spectra[:, 1] - spectra[:, 2]) / spectra[:, 0].max()
    oracles.assert_close(found.gaps[:, 0], gaps, size=100, scale=1.0)
    for seen, expected in zip(found.bases, bases, strict=True):
        oracles.assert_close(seen @ seen.T, expected @ expected.T, size=100)
    one = make(rank=1, period=4, side=side)
    smallest = jax.jit(problems.independence)(one, found.bases[:, :, :1])
    stacked = np.stack([basis[:, 0] for basis in bases], axis=1)
    expected = [np.linalg.svd(stacked[:, :K])[1][-1] for K in (1, 2, 3)]
    oracles.assert_close(smallest, expected, size=100)


def seen_by_a_judge(case):
    theory = jax.tree.map(np.asarray, jax.jit(TRAJECTORY.predict)(case))
    run = TrajectoryMeasured()
    return Outcome({}, theory, run, {}, np.dtype("float64"), size=6, steps=12)


def test_ties_low_ranks_and_small_steps_are_noticed():
    """With tied singular values the projector is not determined; with no step nothing is shown."""
    case = make(rank=2, period=4, side="left")
    start, zero = case.params, jnp.zeros((4, 6))
    diagonal = jnp.eye(6, 12), jnp.diag(jnp.array([2.0, 1.0, 1.0, 1.0])) @ jnp.eye(4, 12)
    low = jnp.eye(6, 12), start @ jnp.eye(6, 12) + jnp.eye(4, 1) @ jnp.eye(1, 12)
    claim: Any = TRAJECTORY.claims[0]
    still = jnp.asarray(1e-16)
    for changes, full, reason in (
        ({}, True, ""),
        ({"params": zero, "data": diagonal}, True, "tied singular values"),
        ({"data": low}, False, "gradients of rank below r"),
        ({"learning_rate": still}, True, "hardly moves"),
    ):
        one = dataclasses.replace(case, **changes)
        assert np.all(problems.full_rank_gradient(one)) == full
        assert claim.undecided(seen_by_a_judge(one)) == reason


def test_a_run_that_has_arrived_leaves_the_claims_about_its_path_open():
    """What is true of any such sum, and counts, are no evidence for them."""
    flags = {"rows": 4, "cols": 6, "rank": 3, "period": 200, "steps": 400, "learning_rate": 0.5}
    flags |= {"problem": "regression", "optimizer": "sgd", "side": "left"}
    _, legs = oracles.judged(THEOREM4, TRAJECTORY, flags)
    for claim in TRAJECTORY.claims:
        open_reason = "" if claim.id in ("trained", "sum_excess") else problems.LOW_RANK
        assert legs[claim.id].reason.item() == open_reason
        assert legs[claim.id].unmet.item() == ""
        assert not (claim.carries and open_reason == "")


def test_other_singular_vectors_are_seen():
    """The paths are the same with any P: only the directions tell that these are the wrong ones."""
    case = make(rank=2, period=4, side="left", problem="regression", optimizer="momentum")

    def last(key, G):
        left, _, _ = jnp.linalg.svd(G, full_matrices=False)
        return Projector(left[:, -2:], "left")

    @jax.jit
    def both(case):
        right, wrong = measure_trajectory(case), measure_trajectory(case, choose=last)
        return TRAJECTORY.predict(case), right, wrong, problems.train(case, GALORE, choose=last)

    theory, right, wrong, galore_of_last = jax.device_get(both(case))
    claims: dict[str, Any] = {claim.id: claim for claim in TRAJECTORY.claims}
    limit = oracles.tolerance("identity", "float64", steps=12, size=12)
    residuals = []
    for run in (right, wrong):
        outcome = Outcome({"side": "left"}, theory, run, {}, np.dtype("float64"), 12, 12)
        form = claims["top_directions"].form(outcome)
        assert form.lack_of_power(limit) == ""
        residuals.append(form.residual())
    assert residuals[0] < limit * theory.condition < 1e-3 < residuals[1]
    path = galore_of_last.records[problems.time_indices(case, case.steps)]
    assert oracles.residual(path, wrong.weights) < 100 * limit


def of_sums(values, ranks, independence=1.0, spread=0.5):
    """What is claimed of the sums after each refresh, with the limit of one rounding."""
    arrays: dict[str, Any] = {
        "sum_rank": np.array(ranks),
        "independence": np.full(len(ranks), independence),
        "sum_spread": np.full(len(ranks), spread),
        "sum_rounding": np.array(2.0),
        "rank_margin": np.ones((len(ranks), 1)),
    }
    measured: Any = np.array(values)
    theory, run = TrajectoryTheory(**arrays), TrajectoryMeasured(sum_values=measured)
    outcome = Outcome({}, theory, run, {}, np.dtype("float64"), size=6, steps=12)
    claims: dict[str, Any] = {claim.id: claim for claim in TRAJECTORY.claims}
    excess, counted = claims["sum_excess"], claims["sum_rank"]
    limit = 2.0 * oracles.tolerance("identity", "float64", steps=12, size=6)
    return (excess.form(outcome), counted.form(outcome), counted.undecided(outcome)), limit


@pytest.mark.parametrize("refresh", [0, 1])
def test_what_is_beyond_the_rank_is_seen_after_each_refresh(refresh):
    """At 30 times the rounding of a sum, relative to its largest singular value; not at 1/30."""
    values = 4.0 * np.array([[1.0, 0.5, 0.0, 0.0, 0.0], [1.0, 0.8, 0.5, 0.4, 0.0]])
    for times, fails in ((30.0, True), (1 / 30, False)):
        _, limit = of_sums(values, [2, 4])
        moved = values.copy()
        moved[refresh, [2, 4][refresh]] = 4.0 * times * limit
        (excess, ranks, reason), _ = of_sums(moved, [2, 4])
        np.testing.assert_allclose(excess.residual(), times * limit)
        assert excess.lack_of_power(limit) == ""
        assert (ranks.residual(), reason) == (float(fails), "")
    lost = values.copy()
    lost[refresh, 0] = np.nan
    (excess, ranks, _), _ = of_sums(lost, [2, 4])
    assert np.isnan([excess.residual(), ranks.residual()]).all()


def test_ranks_of_subspaces_that_meet_are_not_counted():
    (_, _, reason), _ = of_sums([[1.0, 0.5, 0.0]], [2], independence=0.09)
    assert reason == "dependent subspaces"


def test_ranks_of_adapters_that_share_their_rows_are_not_counted():
    """P_1 A + P_2 A has the rank of A, however independent the subspaces are."""
    (_, _, reason), _ = of_sums([[1.0, 0.0, 0.0]], [2], spread=0.0)
    assert reason == "rank below rounding"


FEW = {"rows": 2, "cols": 6, "rank": 1, "steps": 40}


def test_two_classes_leave_no_sign_to_rounding():
    """Every gradient has the left singular vector (1, -1)/sqrt 2."""
    flags = FEW | {"problem": "logistic", "side": "left", "optimizer": ("momentum", "adam")}
    _, legs = oracles.judged(THEOREM4, TRAJECTORY, flags, range(8))
    leg = legs["weights"]
    judged = (leg.reason == "") & (leg.unmet == "")
    assert int(judged.sum()) >= 12
    assert bool((leg.residual <= leg.tolerance).where(judged, True).all())


@pytest.mark.parametrize(
    ("rate", "reason"), [(1e-14, "hardly moves"), (1e3, "diverges"), (0.05, "")]
)
def test_what_shows_nothing_is_left_out_by_theory(rate, reason):
    flags = FEW | {"problem": "regression", "side": "left", "optimizer": "sgd"}
    found, legs = oracles.judged(THEOREM4, TRAJECTORY, flags | {"learning_rate": rate})
    assert legs["weights"].reason.item() == reason
    assert (found["galore_diverges_at"].item() >= 0) == (reason == "diverges")
    if reason != "diverges":
        assert legs["sum_excess"].residual <= legs["sum_excess"].tolerance


@pytest.mark.usefixtures("unchecked")
def test_a_run_has_diverged_when_its_loss_has_lost_half_of_the_digits(dtype):
    """A perceptron whose loss rose 1e9-fold took a step from a difference of large terms."""
    case: Any = SimpleNamespace(
        loss=lambda params, data: jnp.asarray(2.0, dtype), params=(), data=(), steps=(0, 3, 5, 7)
    )
    few, many = {"float64": (1e7, 1e8), "float32": (2e3, 4e3)}[dtype]

    def found(*rises):
        return int(problems.divergence_step(case, 2 * jnp.asarray((1.0, *rises), dtype)))

    assert found(1.0, few, few) == -1
    assert found(1.0, many, 1.0) == 5
    assert found(np.nan, 1.0, 1.0) == 3


def test_a_perceptron_that_loses_digits_is_judged_by_those_that_are_left():
    """Found by a scan: its loss rises 6e6-fold, and two runs part by 80 times what twins show."""
    flags = {"rows": 7, "cols": 8, "rank": 2, "period": 9, "steps": 8, "side": "right"}
    how: Any = {
        "optimizer": "momentum",
        "state": "keep",
        "problem": "mlp",
        "learning_rate": 3.05270,
    }
    case = problems.make_run(jax.random.key(127), **flags, **how)
    given, allowed = (case.params, case.data), problems.roundings_of(case)

    @jax.jit
    def both(given):
        runs = twins(lambda d: problems.train(case, GALORE, d).records, given, rounded=True)
        other = problems.train(case, params_and_data=given).records
        return runs.run, other, conditions(runs), conditions(runs, roundings=allowed)

    one, other, of_twins, known = both(given)
    assert float(known) > 10 * float(of_twins) > 1e4
    tolerance = oracles.tolerance("identity", "float64", steps=8, size=16)
    assert tolerance == pytest.approx(8 * np.finfo("float64").eps * allowed)
    assert oracles.residual(one, other) <= float(known) * tolerance


def test_a_sum_is_rounded_like_the_largest_weight_of_any_record():
    case = make(rank=1, period=4)
    records = jnp.ones((len(problems.record_times(case)), 24)).at[2, 3].set(-7.0)
    values = jnp.array([[0.5, 0.1], [2.0, 0.1]])
    assert float(problems.sum_rounding(case, records, values)) == 14.0
    assert float(problems.sum_rounding(case, records, 100 * values)) == 1.0


@pytest.mark.parametrize("rate", ["1e-307", "1e13"])
def test_a_step_whose_updates_have_no_digits_is_refused(rate):
    with pytest.raises(cli.BadInput, match=r"--learning-rate: got .*wanted a number from 1e-12"):
        cli.parse(THEOREM4, ["--learning-rate", rate])


def test_a_gradient_of_less_than_full_rank_is_no_case():
    flags = FEW | {"problem": "logistic", "side": "left", "optimizer": "sgd", "rank": 2}
    _, legs = oracles.judged(THEOREM4, TRAJECTORY, flags)
    assert legs["weights"].unmet.item() == "full_rank_gradient"


@pytest.mark.parametrize("theorem", [THEOREM4, OF_OPTAX], ids=lambda theorem: theorem.name)
@pytest.mark.parametrize(("rows", "cols"), [(4, 9), (9, 4)])
def test_a_rank_above_the_smaller_side_is_refused(theorem, rows, cols):
    usual = {flag.name: flag.quick[0] if flag.quick else None for flag in theorem.flags}
    theorem.check(usual | {"rank": 4, "rows": rows, "cols": cols})
    with pytest.raises(ValueError, match=f"--rank: got 5 with {rows} x {cols}, wanted at most"):
        theorem.check(usual | {"rank": 5, "rows": rows, "cols": cols})


def test_any_rank_up_to_the_smaller_side_is_accepted():
    """The scenario of at most 5 x 6 entries needs no rank."""
    validate(THEOREM4, SETTINGS | {"rank": (8,)})
    assert own_settings(THEOREM4, GRADIENT_RANK, SETTINGS | {"rank": (8,)})["rank"] == (1,)


@pytest.mark.parametrize("side", ["left", "right"])
def test_galore_in_the_place_of_relora_is_seen(side):
    """Its path is the same; what it trains is not."""
    case = make(problem="mlp", rank=2, side=side)
    shapes = [leaf.shape for leaf in jax.tree.leaves(case.params) if leaf.ndim == 2]
    biases = sum(leaf.size for leaf in jax.tree.leaves(case.params) if leaf.ndim == 1)
    factors = sum(2 * (n if side == "left" else m) for m, n in shapes)
    expected = {RELORA_FROZEN: factors, GALORE: sum(m * n for m, n in shapes)}
    assert int(problems.factor_entries(case)) == factors + biases
    for method, entries in expected.items():
        found = jax.jit(lambda one: problems.train(one, method).trained)(case)  # noqa: B023
        assert int(found) == entries + biases


@pytest.mark.parametrize("scenario", [TRAJECTORY, OPTIMIZER_STATE, OTHER_PROBLEMS])
def test_no_measured_run_is_galore(scenario):
    """What it trains alone is compiled."""
    case = make(optimizer="momentum")
    found = jax.jit(lambda case: scenario.measure(case).trained)(case)
    assert np.all(found == problems.factor_entries(case))
    assert int(problems.factor_entries(case)) < problems.ravel(case.params).size


@pytest.mark.parametrize("scenario", [TRAJECTORY, OPTIMIZER_STATE, OTHER_PROBLEMS, DUALITY])
def test_each_side_runs_a_method_of_its_own(scenario, monkeypatch):
    """The paths of the two are the same, so that no claim about paths sees one method run twice."""
    seen = []
    for module in (problems, duality):

        def descent(method, *words, run=module.low_rank_descent, **more):
            seen.append(method)
            return run(method, *words, **more)

        monkeypatch.setattr(module, "low_rank_descent", descent)
    flags = {name: v[0] if isinstance(v, tuple) else v for name, v in SETTINGS.items()}
    flags |= {"rows": 4, "cols": 6, "steps": 12, "optimizer": "momentum"}
    case = scenario.case(jax.random.key(0), **case_arguments(scenario, flags))
    methods = [GALORE, RELORA_FROZEN][:: -1 if scenario is DUALITY else 1]
    for side, method in zip((scenario.predict, scenario.measure), methods, strict=True):
        seen.clear()
        jax.eval_shape(side, case)
        assert seen
        assert all(one is method for one in seen)


@pytest.mark.parametrize(
    ("scenario", "optimizer"),
    [(TRAJECTORY, "sgd"), (OPTIMIZER_STATE, "momentum"), (OTHER_PROBLEMS, "adam"), (PATH, "adam")],
)
def test_a_stable_run_grants_little(scenario, optimizer):
    """Errors grow by 4 at most with small steps, and tolerances not by more than 10."""
    flags = {name: v[0] if isinstance(v, tuple) else v for name, v in SETTINGS.items()}
    flags |= {"rows": 4, "cols": 6, "steps": 12, "optimizer": optimizer, "learning_rate": 0.01}
    case = scenario.case(jax.random.key(0), **case_arguments(scenario, flags))
    condition = jax.jit(lambda case: scenario.predict(case).condition)(case)
    assert 1 <= float(condition) < 10


def test_transported_momentum_of_a_flat_loss_is_chaotic():
    """Errors grow until step 120 and end at 1e-3 of the weights: no condition says how large."""
    flags = {"rows": 3, "cols": 2, "rank": 1, "period": 1, "side": "left", "steps": 190}
    flags |= {"problem": "logistic", "optimizer": "momentum", "learning_rate": 0.6117}
    settings = {flag.name: flag.quick[0] for flag in THEOREM4.flags} | flags
    case = problems.make_run(jax.random.key(499602098), **settings)
    found = jax.jit(galore)(case)
    assert np.all(found.galore_diverges_at == -1)
    assert np.isinf(found.condition)


@pytest.fixture
def ran(tmp_path_factory):
    return finished("theorem4", tmp_path_factory.getbasetemp())


def test_the_results_keep_the_gap_of_every_step(ran):
    data = ran.group("/")
    assert data["step"].values.tolist() == list(range(41))
    one, other = data["weights_predicted"], data["weights_measured"]
    largest = np.maximum(*(abs(path).max(["step", "entry"]) for path in (one, other)))
    apart = abs(one - other).max("entry") / largest
    assert float(abs(apart - data["gap"]).max()) <= np.finfo(float).eps
    assert (data["gap"].sel(step=0) == 0).all()
    assert float(data["gap"].max()) > 0


def test_every_claim_is_judged_in_both_precisions(ran):
    """A wrong prediction that excuses itself would show here.

    A perceptron amplifies rounding too much for float32.
    """
    of_each_optimizer = {claim.id for claim in TRAJECTORY.claims}
    for claim in ran.verdict["claims"]:
        if claim["kind"] != "control":
            count = 3 if claim["id"] in of_each_optimizer else 1
            every = {"drawn": count, "judged": count, "left_out": {}}
            counts = claim["judged"]
            if claim["id"].startswith("network_") and not counts["float32"]["judged"]:
                assert counts["float32"]["left_out"] == {"ill-conditioned": 1}
                counts = counts | {"float32": every}
            assert counts == {"float64": every, "float32": every}, claim["id"]


def test_the_controls_are_far_away(ran):
    """Not by rounding that grew: by more than a thousandth of the weights or of the loss."""
    ids = {c.id for s in (TRAJECTORY, OPTIMIZER_STATE) for c in s.controls}
    controls = [c for c in ran.verdict["claims"] if c["id"] in ids]
    assert len(controls) == len(ids)
    assert all(control["residual"] > 1e-3 for control in controls)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["trajectory", "optimizer_state", "other_problems"]),
        ({"problem": ("mlp",)}, ["trajectory", "optimizer_state"]),
        ({"optimizer": ("adam", "sgd")}, ["trajectory", "other_problems"]),
    ],
)
def test_statements_that_are_not_concerned_are_left_out(given, expected):
    kept = select_scenarios(THEOREM4, SETTINGS | given).scenarios
    always = ["memory", "duality", "gradient_rank"]
    assert [scenario.id for scenario in kept] == [*expected, *always]


def test_every_claim_has_a_control_of_the_run_and_one_of_the_formula():
    for scenario in (*THEOREM4.scenarios, *OF_OPTAX.scenarios):
        of_run = {c.claim for c in scenario.controls if c.measure or c.case}
        of_formula = {c.claim for c in scenario.controls if c.predict}
        every = {claim.id for claim in scenario.claims}
        if scenario is OTHER_PROBLEMS:  # the claims of the first two, on other problems
            assert {name.removeprefix("network_") for name in every} <= {
                claim.id for claim in TRAJECTORY.claims
            }
        else:
            assert of_run == every, scenario.id
            assert every - of_formula <= {"signs"}  # both sides of it are runs


def test_broad_sweeps_take_both_sides():
    assert TRAJECTORY.narrow(SETTINGS)["side"] == ("left",)
    assert OTHER_PROBLEMS.narrow(SETTINGS)["side"] == ("right",)
    broad = SETTINGS | {"state": ("keep", "reset")}
    assert TRAJECTORY.narrow(broad)["side"] == ("left", "right")


def test_the_plot_shows_paths_gaps_and_sums(ran):
    data = ran.group("/")
    names = [f"/controls/{control.id}/float64" for control in TRAJECTORY.controls]
    figure = plot_paths({name: ran.group(name) for name in ("/", *names)})
    left, middle, right = figure.axes
    one = data.isel(dict.fromkeys(set(data["gap"].dims) - {"optimizer", "step"}, 0))
    curves = iter(left.lines)
    for name, shown in zip(one["optimizer"].values, middle.lines, strict=True):
        for part in ("predicted", "measured"):
            expected = one[f"training_loss_{part}"].sel(optimizer=name)
            np.testing.assert_array_equal(next(curves).get_ydata(), expected)
        gaps = one["gap"].sel(optimizer=name)
        np.testing.assert_array_equal(shown.get_ydata(), gaps.where(gaps > 0))
    values = one["sum_values"].isel(optimizer=0, refreshes=0).values
    assert (right.lines[0].get_ydata() == values / values[0]).all()
    of_weights = {control.id for control in TRAJECTORY.controls if control.claim == "weights"}
    left_by = [c["residual"] for c in ran.verdict["claims"] if c["id"] in of_weights]
    assert f"controls: {min(left_by):.2f} to {max(left_by):.2f}" == middle.texts[0].get_text()
