"""LoRA's landscape: the Hessian, the gauge, the gap, second-order points, and what is said of them.

Oracles are plain NumPy loops, automatic differentiation, and problems that are solved by hand.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.studies.lora_landscape import LORA_LANDSCAPE, features, phase
from lrdyn.studies.lora_landscape.certificate_claims import widened_spectrum
from lrdyn.studies.lora_landscape.convex import proximal_gradient
from lrdyn.studies.lora_landscape.draws import draw_model, draw_starts
from lrdyn.studies.lora_landscape.problem import (
    LOSSES,
    Factors,
    LinearisedModel,
    duality_gap,
    largest_decay,
    lora_loss,
    lower_bound,
)
from lrdyn.studies.lora_landscape.second_order import (
    descend,
    flat,
    gauge_directions,
    gradient,
    hessian,
    least_curvature,
    unflat,
)
from lrdyn.studies.lora_landscape.verdicts import (
    Ends,
    Verdict,
    exact_interval,
    first_count,
    second_count,
    verdicts,
)
from lrdyn.training import FORGETFUL
from lrdyn.verification.running.configuration import run_of
from lrdyn.verification.stating.claims import tolerance
from tests.runs import results_of, verdict_of

ROUNDING = tolerance("identity", "float64", size=100)


def drawn(loss, rows=4, cols=5, rank=3, measurements=7, decay=0.1):
    model = draw_model(jax.random.key(1), loss, rows, cols, measurements, decay)
    starts = draw_starts(jax.random.key(2), (1,), rows, cols, rank)
    return model, Factors(starts.U[0], starts.V[0])


def loss_by_loops(model, U, V):
    """F, example by example."""
    W, total = np.asarray(U) @ np.asarray(V).T, 0.0
    count = len(model.targets)
    for G, y in zip(np.asarray(model.features), np.asarray(model.targets), strict=True):
        z = np.array([np.sum(of_output * W) for of_output in G])
        if model.loss == "squared":
            total += sum((z - y) ** 2) / 2 / count
        else:
            total += (np.log(np.sum(np.exp(z))) - z[int(np.argmax(y))]) / count
    return total + float(model.decay) / 2 * (np.sum(np.square(U)) + np.sum(np.square(V)))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_is_the_mean_over_examples_and_the_decay_of_the_factors(loss):
    model, factors = drawn(loss)
    assert float(lora_loss(model, factors)) == pytest.approx(loss_by_loops(model, *factors))


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_and_hessian_are_those_of_automatic_differentiation(loss):
    model, factors = drawn(loss)
    value = lambda x: lora_loss(model, unflat(x, factors))  # noqa: E731
    x = flat(factors)
    for mine, of_jax in (
        (gradient(model, factors), jax.grad(value)(x)),
        (hessian(model, factors), jax.hessian(value)(x)),
    ):
        scale = float(jnp.max(jnp.abs(of_jax)))
        np.testing.assert_allclose(mine, of_jax, rtol=0, atol=ROUNDING * scale)


@pytest.mark.parametrize(("decays", "count"), [(True, 3), (False, 9)])
def test_along_the_gauge_the_product_stays_and_with_decay_the_norms(decays, count):
    model, factors = drawn("squared")
    directions = gauge_directions(factors, decays=decays)
    assert directions.shape[1] == np.linalg.matrix_rank(directions) == count
    for direction in directions.T:
        A, B = unflat(direction, factors)
        np.testing.assert_allclose(A @ factors.V.T + factors.U @ B.T, 0.0, atol=1e-14)
        if decays:
            assert abs(float(jnp.sum(A * factors.U) + jnp.sum(B * factors.V))) < 1e-14
    del model


@pytest.mark.parametrize("loss", LOSSES)
def test_at_a_minimum_the_hessian_vanishes_along_the_gauge_and_there_alone(loss):
    # r = 2 is below the rank of the convex minimiser: the minimum has both columns.
    model, start = drawn(loss, rank=2, measurements=12, decay=0.02)
    end = descend(model, start, decays=True)
    factors = Factors(end.U, end.V)
    values = np.linalg.eigvalsh(hessian(model, factors))
    digits = np.sqrt(np.finfo(float).eps)
    assert np.sum(np.abs(values) <= digits * values[-1]) == 1
    least, size = least_curvature(model, factors, decays=True)
    assert float(least) == pytest.approx(np.sort(np.abs(values))[1])
    assert float(size) == pytest.approx(values[-1])
    assert float(end.gradient) < digits


def test_a_column_of_zeros_adds_the_singular_values_of_the_residual_to_the_spectrum():
    # By hand: at U = V = 0 the loss is lambda / 2 (|U|^2 + |V|^2) + <R, U V^T> to second order.
    model, _ = drawn("squared", rows=2, cols=3)
    nothing = Factors(jnp.zeros((2, 1)), jnp.zeros((3, 1)))
    R = np.zeros((2, 3))
    for G, y in zip(np.asarray(model.features)[:, 0], np.asarray(model.targets)[:, 0], strict=True):
        R -= y * G / 7
    values = np.linalg.svd(R)[1]
    of_column = [0.1 + s for s in values] + [0.1 - s for s in values] + [0.1]
    found = widened_spectrum(model, nothing)
    np.testing.assert_allclose(found, np.sort([*of_column, *of_column]), atol=1e-14)


def test_one_example_of_one_entry_is_solved_by_hand():
    # F(u, v) = (g u v - y)^2 / 2 + lambda (u^2 + v^2) / 2 has u v = (g y - lambda) / g^2.
    g, y, decay = 2.0, 3.0, 0.5
    one = jnp.ones((1, 1))
    model = LinearisedModel(
        g * one[None, None], y * one, jnp.ones(1), jnp.asarray(decay), "squared"
    )
    W = (g * y - decay) / g**2
    end = descend(model, Factors(one, 0.3 * one), decays=True)
    assert float(end.values[0]) == pytest.approx(W)
    assert float(end.value) == pytest.approx((g * W - y) ** 2 / 2 + decay * W)
    assert abs(float(end.gap)) < 1e-14
    assert float(largest_decay(model)) == pytest.approx(g * y)
    assert float(proximal_gradient(model, 200).value) == pytest.approx(float(end.value))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 10.0])
def test_the_gap_of_any_point_bounds_its_distance_from_the_minimum(loss, scale):
    model, factors = drawn(loss)
    factors = Factors(scale * factors.U, scale * factors.V)
    convex = proximal_gradient(model, 3000)
    assert float(convex.gap) < 1e-12
    excess = float(lora_loss(model, factors) - convex.value)
    assert -1e-12 <= excess <= float(duality_gap(model, factors)) + 1e-12
    assert float(lower_bound(model, factors.product)) <= float(convex.value) + 1e-12


@pytest.mark.parametrize("loss", LOSSES)
def test_with_as_many_columns_as_rows_every_end_is_the_convex_minimum(loss):
    model, _ = drawn(loss, rows=3, cols=4, measurements=5)
    starts = draw_starts(jax.random.key(3), (4,), 3, 4, 3)
    ends = jax.vmap(lambda start: descend(model, start, decays=True))(starts)
    np.testing.assert_allclose(ends.value, proximal_gradient(model, 3000).value, atol=1e-12)
    assert (np.asarray(ends.gap) < 1e-12).all()
    assert (np.asarray(ends.norm) <= 0.1 * (1 + 1e-8)).all()


def test_where_decay_is_large_every_descent_ends_at_zero():
    model, start = drawn("squared")
    model = LinearisedModel(
        model.features, model.targets, model.weights, 1.1 * largest_decay(model), "squared"
    )
    end = descend(model, start, decays=True)
    np.testing.assert_allclose(end.values, 0.0, atol=1e-12)
    assert float(end.gap) < 1e-12 * float(end.value)


# What is said of an end --------------------------------------------------------------------------


def ends(value, gap=1.0, gradient=0.0, curvature=0.1, norm=1.0):
    """Ends at two ranks from two starts, one of which is looked at: the last."""
    whole = np.broadcast_to(0.0, (2, 2))
    values = np.array([[0.7, 0.6], [0.5, value]])
    return Ends(values, *(whole + x for x in (gap, gradient, curvature, norm)))


@pytest.mark.parametrize(
    ("end", "said"),
    [
        (ends(0.5, gap=0.0), Verdict.CERTIFIED),
        (ends(0.6), Verdict.SPURIOUS),
        (ends(0.5), Verdict.LEAST),
        (ends(0.5 + 1e-7), Verdict.LEAST),  # no value tells it from the least one
        (ends(0.6, gradient=1e-3), Verdict.UNRESOLVED),
        (ends(0.6, curvature=-1e-3), Verdict.UNRESOLVED),
        (ends(np.nan, gap=np.nan), Verdict.UNRESOLVED),
        (ends(0.6, norm=0.0), Verdict.SPURIOUS),  # R = 0 is no certificate with decay
    ],
)
def test_an_end_is_certified_spurious_or_undecided(end, said):
    if np.isnan(end.value[-1, -1]):
        end = end._replace(gradient=end.value)
    assert verdicts(end, 1e-8, decays=True)[-1, -1] == said


def test_without_decay_a_residual_of_zero_certifies():
    assert verdicts(ends(0.6, norm=0.0), 1e-8, decays=False)[-1, -1] == Verdict.CERTIFIED


def test_a_value_found_at_a_lower_rank_counts_at_a_higher_one():
    end = ends(0.6)
    lower = end._replace(value=np.array([[0.1, 0.1], [0.5, 0.5]]))
    assert (verdicts(lower, 1e-8, decays=True)[1] == Verdict.SPURIOUS).all()


@pytest.mark.parametrize("count", [1, 24, 480])
def test_the_exact_interval_of_no_hit_ends_where_none_has_a_chance_of_a_fortieth(count):
    low, high = exact_interval(0, count)
    assert low == 0
    assert (1 - high) ** count == pytest.approx(0.025)
    assert exact_interval(count, count) == pytest.approx((1 - high, 1.0))


def test_the_counts_are_those_of_symmetric_matrices_and_of_matrices_of_a_rank():
    r = np.arange(1, 5)
    symmetric = [len(np.triu_indices(int(n))[0]) for n in r]
    of_rank = [4 * n + 6 * n - n * n for n in r]  # entries of U and V less those of a basis
    for N in range(1, 30):
        assert first_count(r, np.array(N)).tolist() == [n > N for n in symmetric]
        assert second_count(r, np.array(N), 4, 6).tolist() == [n > 1.35 * N for n in of_rank]


def test_shares_count_problems_and_not_cells():
    holds = np.zeros((2, 1, 3, 4), bool)
    holds[0, 0, 0, 1:] = True  # three cells of one problem
    among = np.ones_like(holds)
    among[0, 0, 2] = False  # a problem that has no such cell
    assert phase.share_of_problems(holds, among).tolist() == [0.5, 0.0]


# A file of features ------------------------------------------------------------------------------


def test_vectors_with_classes_are_a_linear_layer_with_the_cross_entropy():
    x, classes = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([1, 0, 2])
    found = features.fit_together("mine", x, classes)
    assert found.loss == "cross_entropy"
    W = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(np.einsum("kcab,ab->kc", found.features, W), x @ W.T)
    np.testing.assert_array_equal(np.argmax(found.targets, axis=1), classes)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.ones((3, 2)), np.ones(2)), "wanted a target for each example"),
        ((np.ones((3, 2)), np.array([0, 2, 2])), "integers from 0 on that all occur"),
        ((np.ones((3, 2, 4)), np.array([0, 1, 1])), "wanted features N x p"),
        ((np.array([[np.nan], [1.0]]), np.ones(2)), "wanted numbers up to 1e6"),
        ((np.ones(3), np.ones(3)), "features of shape"),
    ],
)
def test_features_that_do_not_fit_are_named(arrays, message):
    with pytest.raises(ValueError, match=f"--features: got 'mine' .*{message}"):
        features.fit_together("mine", *arrays)


def own_files(folder):
    """The same model as a table and as named arrays, in every format."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 3)), rng.integers(0, 2, 6)
    y[:2] = 0, 1
    table = np.column_stack([x, y])
    np.savetxt(folder / "own.csv", table, delimiter=",", header="a,b,c,class", comments="")
    np.save(folder / "own.npy", table)
    np.savez(folder / "own.npz", features=x, targets=y)
    pytest.importorskip("safetensors.numpy").save_file(
        {"features": x, "targets": y}, folder / "own.safetensors"
    )
    return [folder / f"own.{end}" for end in ("csv", "npy", "npz", "safetensors")]


def test_every_format_gives_the_same_model(tmp_path):
    first, *others = map(features.read_features, map(str, own_files(tmp_path)))
    assert first.features.shape == (6, 2, 2, 3)
    for other in others:
        assert other.loss == first.loss == "cross_entropy"
        np.testing.assert_allclose(other.features, first.features)
        np.testing.assert_array_equal(other.targets, first.targets)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--features", "no such.npz"), "--features: got 'no such.npz' (No such file"),
        (("--features", "own.txt"), "wanted a .npy, .npz, .csv or .safetensors"),
        (("--problem", "own"), "--problem: got own without --features"),
        (("--rank", "5"), "--rank: got 5, wanted at most min(m, n), 4"),
        (("--starts", "100000000"), "--starts: got 100000000, with which"),
        (("--weight-decay", "0"), "--weight-decay: got '0', wanted a number > 0"),
    ],
)
def test_bad_words_are_one_line(command_line, tmp_path, words, message):
    status, _, errors = command_line(LORA_LANDSCAPE, *words, "--out", tmp_path / "out")
    assert (status, errors.count("\n")) == (2, 1)
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_rows_beside_a_file_are_refused(command_line, tmp_path):
    path = own_files(tmp_path)[0]
    status, _, errors = command_line(LORA_LANDSCAPE, "--features", path, "--rows", "3")
    assert (status, errors.count("\n")) == (2, 1)
    assert "--rows: got it beside --features" in errors


def test_own_features_are_certified_from_the_command_line(command_line, tmp_path):
    path = own_files(tmp_path)[0]
    words = ("--weight-decay", "0.05", "--starts", "3", "--seeds", "2")
    out = tmp_path / "out"
    status, text, errors = command_line(LORA_LANDSCAPE, "--features", path, *words, "--out", out)
    assert status == 0, errors + text
    assert "6 examples of 2 classes, cross-entropy, W 2 x 3" in text
    claims = {claim["id"]: claim for claim in verdict_of(out)["claims"]}
    assert claims["spectrum"]["holds"] is True
    assert claims["bounds"]["holds"] is True
    found = results_of(out, "/own")
    # Of a 2 x 3 matrix every end of rank 2 is a global minimum.
    assert (found["verdict"].isel(width=1) == Verdict.CERTIFIED).all()


def test_ends_of_a_small_run_are_what_their_arrays_say():
    case = phase.make_grid(
        jax.random.key(4),
        rows=3,
        cols=3,
        rank=(1, 3),
        measurements=(2, 6),
        weight_decay=(0.05, 0.1),
        starts=3,
    )
    run = phase.measure_phase(case, FORGETFUL)
    assert run.verdict.shape == (2, 2, 2, 3)
    # r = min(m, n): every second-order point is a global minimum.
    assert (run.verdict[:, :, 1] == Verdict.CERTIFIED).all()
    # Examples that fill the array of two do not count: the model of N = 2 alone says the same.
    alone = jax.tree.map(lambda leaf: leaf[0], case.models)
    kept = alone.weights > 0
    assert float(jnp.sum(kept)) == 2
    short = LinearisedModel(
        alone.features[:2], alone.targets[:2], alone.weights[:2], alone.decay, alone.loss
    )
    unit = float(short.data_loss(jnp.zeros_like(short.targets)))
    wanted = float(proximal_gradient(short, 3000).value)
    np.testing.assert_allclose(run.value[0, 0, 1] * unit, wanted, atol=1e-10)
    for decay, N in np.ndindex(2, 2):
        rank = run.convex_rank[decay, N]
        assert (run.product_rank[decay, N, 1] == rank).all()
        # The minimiser that is the only one: no direction of Sym(r*) is seen by no equation.
        assert rank * (rank + 1) / 2 <= (2, 6)[N]


def test_the_study_runs_in_float64_unless_another_precision_is_asked_for():
    assert run_of(LORA_LANDSCAPE).dtype == "float64"
    assert run_of(LORA_LANDSCAPE, dtype="float32").dtype == "float32"
