"""Theorem 4: its problems, what it looks at, and what it refuses."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.adapters.galore import GALORE
from lrdyn.engine.produce import concerned, unoptimized, validate
from lrdyn.theorem import Outcome, with_condition
from lrdyn.theorems.theorem4 import OTHER_PROBLEMS, THEOREM4, TRAJECTORY, check
from lrdyn.theorems.theorem4.figures import plot_paths
from lrdyn.theorems.theorem4.optimizer_state import OPTIMIZER_STATE
from lrdyn.theorems.theorem4.problems import (
    LOSS,
    PROBLEMS,
    at,
    deficient,
    determined,
    first_matrix,
    independence,
    make_run,
    refreshed,
    refreshes,
    sum_ranks,
    sum_values,
    times,
    train,
    unflat,
)
from tests import oracles
from tests.runs import finished

SETTINGS = {flag.name: flag.quick if flag.swept else flag.quick[0] for flag in THEOREM4.flags}
FLAGS: dict[str, Any] = {
    name: value[0] if isinstance(value, tuple) else value for name, value in SETTINGS.items()
}


def make(seed=0, **flags):
    settings: dict[str, Any] = FLAGS | {"rows": 4, "cols": 6, "steps": 12} | flags
    return make_run(jax.random.key(seed), **settings)


# Problems --------------------------------------------------------------------------------------


@pytest.mark.float32
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_first_matrix_is_m_times_n_and_the_loss_of_size_one(problem, dtype):
    case = make(problem=problem)
    assert first_matrix(case.params).shape == (4, 6)
    value = case.loss(case.params, case.data)
    assert value.dtype == dtype
    assert 0.1 < float(value) < 10 * 4


def test_the_losses_are_what_they_say():
    draw = np.random.default_rng(0)
    W, X, Y = (draw.normal(size=shape) for shape in [(3, 4), (4, 5), (3, 5)])
    found = LOSS["regression"](jnp.asarray(W), (jnp.asarray(X), jnp.asarray(Y)))
    oracles.assert_close(found, np.sum((W @ X - Y) ** 2) / 2, size=15)
    found = LOSS["mlp"](lambda x: jnp.asarray(W) @ x, (jnp.asarray(X), jnp.asarray(Y)))
    oracles.assert_close(found, np.mean(np.sum((W @ X - Y) ** 2, axis=0)) / 2, size=15)
    classes = np.eye(3)[:, draw.integers(3, size=5)]
    found = LOSS["logistic"](jnp.asarray(W), (jnp.asarray(X), jnp.asarray(classes)))
    each = []
    for x, y in zip(X.T, classes.T, strict=True):
        odds = np.exp(W @ x)
        each.append(-np.log(odds[y == 1][0] / odds.sum()))
    oracles.assert_close(found, np.mean(each), size=15)
    tokens = jnp.asarray(draw.normal(size=(2, 3, 4)))
    found = LOSS["transformer"](lambda x: x, (tokens, jnp.zeros_like(tokens)))
    oracles.assert_close(found, np.sum(np.square(tokens)) / 16, size=24)


@pytest.mark.parametrize(("optimizer", "side"), [("adam", "left"), ("momentum", "right")])
def test_a_transformer_takes_the_same_path(optimizer, side):
    case = make(problem="transformer", optimizer=optimizer, side=side, period=4)

    @partial(jax.jit, compiler_options=unoptimized())
    def both(params, data):
        one, condition = with_condition(lambda d: train(case, GALORE, d).records, (params, data))
        return one, train(case, params_and_data=(params, data)).records, condition

    one, other, condition = both(case.params, case.data)
    assert 1 <= float(condition) < 1e6
    apart = oracles.residual(one, other)
    assert apart <= float(condition) * oracles.tolerance("identity", "float64", steps=12, size=6)
    moved = np.abs(np.asarray(one[-1] - one[0]))
    assert all(leaf.any() for leaf in jax.tree.leaves(unflat(case)(jnp.asarray(moved))))


# What is looked at -----------------------------------------------------------------------------


def test_times_hold_what_is_recorded_and_the_refreshes():
    case = make(period=5, steps=60)
    assert refreshes(case).tolist() == list(range(0, 60, 5))
    assert set(case.steps) | set(refreshes(case).tolist()) == set(times(case).tolist())
    assert times(case)[at(case, case.steps)].tolist() == list(case.steps)
    assert refreshes(make(period=100)).tolist() == [0]


@pytest.mark.parametrize(
    ("rank", "period", "expected"),
    [(1, 3, [1, 2, 3]), (1, 1, [1, 2, 3]), (2, 3, [2]), (1, 6, [1, 2]), (4, 3, [4]), (3, 20, [3])],
)
def test_sums_are_looked_at_while_they_are_deficient(rank, period, expected):
    case = make(rank=rank, period=period)
    assert sum_ranks(case).tolist() == expected
    assert deficient(case) == len(expected)
    path = jnp.zeros((len(times(case)), 24))
    assert sum_values(case, path).shape == (len(expected), 4)


def test_sums_are_those_after_each_refresh():
    case = make(rank=1, period=4)
    path = np.random.default_rng(0).normal(size=(len(times(case)), 24))
    expected = [
        np.linalg.svd((path[list(times(case)).index(t)] - path[0]).reshape(4, 6))[1]
        for t in (4, 8, 12)
    ]
    oracles.assert_close(sum_values(case, jnp.asarray(path)), np.array(expected), size=24)


@pytest.mark.parametrize("side", ["left", "right"])
def test_refreshes_are_looked_at_by_hand(side):
    case = make(rank=2, period=4, side=side)
    path = train(case).records
    found = refreshed(case, path)
    X, Y = (np.asarray(array) for array in case.data)
    spectra, bases = [], []
    for t in (0, 4, 8):
        W = np.asarray(path[list(times(case)).index(t)]).reshape(4, 6)
        left, values, right = np.linalg.svd((W @ X - Y) @ X.T)
        spectra.append(values)
        bases.append((left if side == "left" else right.T)[:, :2])
    spectra = np.array(spectra)
    gaps = (spectra[:, 1] - spectra[:, 2]) / spectra[:, 0].max()
    oracles.assert_close(found.gaps[:, 0], gaps, size=100, scale=1.0)
    for seen, expected in zip(found.bases, bases, strict=True):
        oracles.assert_close(seen @ seen.T, expected @ expected.T, size=100)
    smallest = independence(make(rank=1, period=4, side=side), found.bases[:, :, :1])
    stacked = np.stack([basis[:, 0] for basis in bases], axis=1)
    expected = [np.linalg.svd(stacked[:, :K])[1][-1] for K in (1, 2, 3)]
    oracles.assert_close(smallest, expected, size=100)


def test_a_tie_is_noticed():
    """With tied singular values the projector is not determined: nothing is claimed."""
    case = make(rank=2)
    tied = dataclasses.replace(
        case, params=jnp.zeros((4, 6)), data=(jnp.eye(6), jnp.eye(4, 6)), loss=LOSS["regression"]
    )
    for one, expected in ((case, True), (tied, False)):
        predicted = {"singular_gap": np.asarray(refreshed(one, train(one).records).gaps)}
        seen = Outcome({}, predicted, {}, {}, np.dtype("float64"), size=6, steps=12)
        assert determined(seen) is expected
        applies: Any = TRAJECTORY.claims[0].applies
        assert applies(seen) is expected


# The command -----------------------------------------------------------------------------------


def test_the_results_keep_the_gap_of_every_step(tmp_path_factory):
    ran = finished("theorem4", tmp_path_factory.getbasetemp())
    data = ran.group("/")
    assert data["step"].values.tolist() == list(range(41))
    one, other = (
        abs(data[f"weights_{part}"]).max(["step", "entry"]) for part in ("predicted", "measured")
    )
    largest = one.where(one > other, other)
    apart = abs(data["weights_predicted"] - data["weights_measured"]).max("entry") / largest
    eps = np.finfo(float).eps
    assert float(abs(apart - data["gap"]).max()) <= eps
    assert (data["gap"].sel(step=0) == 0).all()
    assert float(data["gap"].max()) > 0


def test_the_controls_are_far_away(tmp_path_factory):
    """Not by rounding that grew: by more than a hundredth of the weights or of the loss."""
    ran = finished("theorem4", tmp_path_factory.getbasetemp())
    ids = {c.id for s in (TRAJECTORY, OPTIMIZER_STATE) for c in s.controls}
    controls = [c for c in ran.verdict["claims"] if c["id"] in ids]
    assert len(controls) == len(ids)
    assert all(control["residual"] > 1e-2 for control in controls)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["trajectory", "optimizer_state", "other_problems"]),
        ({"problem": ("mlp",)}, ["trajectory", "optimizer_state"]),
        ({"optimizer": ("adam", "sgd")}, ["trajectory", "other_problems"]),
    ],
)
def test_statements_that_are_not_concerned_are_left_out(given, expected):
    kept = concerned(THEOREM4, SETTINGS | given).statements
    always = ["optax", "optax_programs", "duality", "gradient_rank"]
    assert [statement.id for statement in kept] == [*expected, *always]


def test_broad_sweeps_take_both_sides():
    assert TRAJECTORY.narrow(SETTINGS)["side"] == ("left",)
    assert OTHER_PROBLEMS.narrow(SETTINGS)["side"] == ("right",)
    broad = SETTINGS | {"state": ("keep", "reset")}
    assert TRAJECTORY.narrow(broad)["side"] == ("left", "right")


def test_a_rank_beyond_the_matrix_is_refused(unchecked):
    with pytest.raises(ValueError, match="--rank: got 9 with 10 x 8, wanted at most the smaller"):
        check({"rank": 9, "rows": 10, "cols": 8})
    with pytest.raises(ValueError, match="--rank: got 11"):
        validate(THEOREM4, SETTINGS | {"rank": (2, 11)})


WEIGHTS_CONTROLS = {c.id for c in TRAJECTORY.controls if c.claim == "weights"}


def test_the_plot_shows_paths_gaps_and_sums(tmp_path_factory):
    ran = finished("theorem4", tmp_path_factory.getbasetemp())
    data = ran.group("/")
    names = [f"/controls/{control.id}/float64" for control in TRAJECTORY.controls]
    figure = plot_paths({name: ran.group(name) for name in ("/", *names)})
    left, middle, right = figure.axes
    one = data.isel(seed=0, rows=0, cols=0, rank=0, period=0, state=0, side=0, problem=0,
                    learning_rate=0)  # fmt: skip
    drawn = [line.get_ydata() for line in left.lines[:6]]
    for index, name in enumerate(one["optimizer"].values):
        for part, curve in zip(("predicted", "measured"), drawn[2 * index :], strict=False):
            expected = one[f"training_loss_{part}"].sel(optimizer=name).values
            assert (np.asarray(curve) == expected).all()
        gaps = one["gap"].sel(optimizer=name).values
        assert np.array_equal(middle.lines[index].get_ydata(), np.where(gaps > 0, gaps, np.nan),
                              equal_nan=True)  # fmt: skip
    values = one["sum_values"].isel(optimizer=0, refreshes=0).values
    assert (right.lines[0].get_ydata() == values / values[0]).all()
    left_by = [c["residual"] for c in ran.verdict["claims"] if c["id"] in WEIGHTS_CONTROLS]
    assert f"controls: {min(left_by):.2f} to {max(left_by):.2f}" == middle.texts[0].get_text()
