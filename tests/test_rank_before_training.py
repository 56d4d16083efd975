"""What predicts the rank of an update: taps of a network, ranks, correlations, and a small run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lrdyn.diagnosis import gradients
from lrdyn.networks import mlp
from lrdyn.networks.llama_network import llama
from lrdyn.studies.rank_before_training import RANK_BEFORE_TRAINING, one_gradient, trainings
from lrdyn.studies.rank_before_training.layers import (
    gradients_of,
    inputs_and_slopes,
    inputs_of,
    matrices_of,
)
from lrdyn.studies.rank_before_training.prediction import (
    gain_over_constant,
    mean_of_kind,
    predict_ranks,
    spearman,
    without_kind,
)
from lrdyn.verification.stating.claims import tolerance
from tests.runs import results_of, verdict_of

ROUNDING = tolerance("identity", "float64", size=100)
RNG = np.random.default_rng(3)


# Taps ---------------------------------------------------------------------------------------------


def every(path):
    return True


def test_taps_give_the_inputs_and_slopes_of_a_perceptron_by_hand():
    net = mlp(jax.random.key(0), (4, 5, 3), activation=jnp.tanh)
    x = jax.random.normal(jax.random.key(1), (4, 7))
    inputs, slopes = inputs_and_slopes(net, lambda net: jnp.sum(net(x) ** 2) / 2, every)
    first, second = (np.asarray(W) for W in net.weights)
    assert net.biases is not None
    bias = [np.asarray(b)[:, None] for b in net.biases]
    hidden = np.tanh(first @ np.asarray(x) + bias[0])
    outputs = second @ hidden + bias[1]
    np.testing.assert_allclose(inputs["weights.1"], hidden, atol=ROUNDING)
    np.testing.assert_allclose(slopes["weights.1"], outputs, atol=ROUNDING)
    below = (second.T @ outputs) * (1 - hidden**2)
    np.testing.assert_allclose(slopes["weights.0"], below, atol=10 * ROUNDING)


def test_gradients_of_a_network_with_shared_keys_are_products_of_inputs_and_slopes():
    sizes = {"vocabulary": 9, "width": 8, "depth": 2, "heads": 4, "hidden": 6, "key_heads": 2}
    net = llama(jax.random.key(0), **sizes)
    text = jax.random.randint(jax.random.key(1), (3, 6), 0, 9)

    def loss(net):
        return trainings.next_token_loss(net, text)

    def select(path):
        return path.startswith("blocks.")

    inputs, slopes = inputs_and_slopes(net, loss, select)
    found = gradients_of(net, loss, select)
    assert set(inputs) == set(found) == set(matrices_of(net, select))
    assert len(found) == 14
    size = max(float(jnp.max(jnp.abs(G))) for G in found.values())
    for path, G in found.items():
        np.testing.assert_allclose(slopes[path] @ inputs[path].T, G, atol=ROUNDING * size)
    assert inputs_of(net, loss, select)["blocks.1.mlp.down"].shape == (6, 15)


# Predictions --------------------------------------------------------------------------------------


def of_scipy(x, y):
    found: Any = stats.spearmanr(x, y)
    return found.statistic


def test_spearman_is_that_of_scipy_with_equal_numbers():
    x, y = RNG.integers(0, 5, (2, 20)).astype(float)
    assert spearman(x, y) == pytest.approx(of_scipy(x, y))
    assert np.isnan(spearman(np.ones(4), np.arange(4.0)))


def test_the_gain_is_that_of_lines_fitted_one_matrix_left_out():
    known, ranks = RNG.uniform(1, 30, (2, 9))
    x, y = np.log(known), np.log(ranks)
    apart, plain = [], []
    for place in range(9):
        others = np.arange(9) != place
        line = np.polyfit(x[others], y[others], 1)
        apart.append(abs(y[place] - np.polyval(line, x[place])))
        plain.append(abs(y[place] - y[others].mean()))
    wanted = 1 - np.mean(apart) / np.mean(plain)
    assert gain_over_constant(known, ranks) == pytest.approx(wanted)
    as_it_is = 1 - np.mean(np.abs(x - y)) / np.mean(plain)
    assert gain_over_constant(known, ranks, fit=False) == pytest.approx(as_it_is)


def test_a_number_that_says_nothing_has_neither_order_nor_gain():
    ranks = RNG.uniform(1, 30, (1, 12))
    found = predict_ranks(np.ones((1, 12)), ranks)
    assert np.isnan(found.correlation)
    assert np.isnan(found.p)
    assert found.gain == 0
    assert np.isnan(gain_over_constant(RNG.uniform(1, 2, 5), np.full(5, 7.0)))


def test_chance_is_told_as_often_as_its_level_says():
    """Of ranks that are drawn apart from the number, p is below .1 in a tenth of the cases."""
    cases = [predict_ranks(*RNG.uniform(1, 9, (2, 1, 14))).p for _ in range(60)]
    below = int(np.sum(np.array(cases) < 0.1))
    assert stats.binomtest(below, 60, 0.1).pvalue > 1e-3


def test_repeated_seeds_do_not_make_chance_smaller():
    """Matrices are what is permuted: five copies of a training tell no more than one."""
    known, ranks = RNG.uniform(1, 30, (2, 1, 10))
    once = predict_ranks(known, ranks)
    copies = predict_ranks(np.repeat(known, 5, axis=0), np.repeat(ranks, 5, axis=0))
    assert copies.p == once.p
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))


def test_kinds_are_taken_out_and_predicted_from_other_blocks():
    kinds = ["a", "b", "a", "b"]
    ranks = np.array([2.0, 9.0, 8.0, 1.0])
    np.testing.assert_allclose(mean_of_kind(ranks, kinds), [8, 1, 2, 9])
    left = without_kind(ranks, kinds)
    np.testing.assert_allclose(left[:2] + left[2:], 0, atol=1e-11)


# What is known ------------------------------------------------------------------------------------


def test_what_is_known_before_is_what_the_command_finds_in_files():
    """Gradients, their mean and Adam's step, and activations, each by NumPy from the taps."""
    net = llama(jax.random.key(0), vocabulary=9, width=8, depth=1, heads=2, hidden=6)
    texts = list(jax.random.randint(jax.random.key(1), (3, 4, 7), 0, 9))

    def select(path):
        return path.startswith("blocks.")

    known = trainings.known_before(net, trainings.next_token_loss, texts, select)
    each = [
        gradients_of(net, lambda net, text=text: trainings.next_token_loss(net, text), select)
        for text in texts
    ]
    report = gradients({p: np.asarray(W) for p, W in matrices_of(net, select).items()}, each)
    for matrix in report.matrices:
        for name, rank in (
            ("weights", matrix.weights),
            ("gradient", matrix.gradient),
            ("gradients", matrix.mean),
        ):
            assert trainings.ranks_of(known[name][matrix.name]).share == rank
    path, columns = "blocks.0.mlp.up", []
    for text in texts:
        read = inputs_of(net, lambda net, t=text: trainings.next_token_loss(net, t), select)
        X = np.asarray(read[path])
        columns.append(X - X.mean(axis=1, keepdims=True))
    inputs = np.hstack(columns)
    wanted = np.linalg.svd(inputs, compute_uv=False)
    found = np.linalg.svd(known["activations"][path], compute_uv=False)
    np.testing.assert_allclose(found, wanted, atol=1e-6 * wanted[0])


def test_an_update_of_nothing_has_rank_1_and_breaks_no_logarithm():
    assert trainings.ranks_of(np.zeros((3, 4))) == (1, 1.0)


# The study ----------------------------------------------------------------------------------------

SMALL = (
    *("--width", "8", "--heads", "2", "--depth", "2", "--context", "8", "--batch", "4"),
    *("--steps", "5", "--tuning-steps", "20", "--gradients", "3", "--small-depth", "1"),
)


def test_a_small_run_says_what_its_arrays_say(command_line, tmp_path):
    words = (*SMALL, "--cell", "language", "language_sgd", "--seed", "1", "--seeds", "2")
    status, text, _ = command_line(RANK_BEFORE_TRAINING, *words, "--out", tmp_path)
    assert status == 0
    assert "4 of 4 controls were seen to fail" in text
    entries = {claim["id"]: claim for claim in verdict_of(tmp_path)["claims"]}
    for cell in ("language", "language_sgd"):
        run = results_of(tmp_path, f"/{cell}")
        known = run["known"].transpose("seed", ..., "predictor", "matrix").values
        ranks = run["rank"].transpose("seed", ..., "matrix").values
        known, ranks = known.reshape(2, 7, 14), ranks.reshape(2, 14)
        assert np.all((ranks >= 1) & (ranks <= 8))
        for place, name in enumerate(trainings.PREDICTORS):
            found = entries[f"{cell}_{name}"]["finding"]["value"]
            if all(len(set(of_seed[place])) > 1 for of_seed in known):
                draws = [of_scipy(known[i, place], ranks[i]) for i in (0, 1)]
                assert found == pytest.approx(np.mean(draws))


def test_a_package_or_a_text_that_is_missing_is_named(command_line, tmp_path):
    words = ("--cell", "bert", "--encoder", "nosuch", "--out", tmp_path)
    status, _, errors = command_line(RANK_BEFORE_TRAINING, *words)
    assert status == 2
    assert "encoder: got 'nosuch" in errors
    words = (*SMALL, "--text", "nosuch", "--out", tmp_path)
    status, _, errors = command_line(RANK_BEFORE_TRAINING, *words)
    assert status == 2
    assert "got 'nosuch', wanted a file, a folder" in errors


def test_the_bounds_need_the_largest_slope():
    """Horn's inequality by NumPy, of matrices that come from no network."""
    slopes, inputs = RNG.standard_normal((2, 6, 4))
    values = np.linalg.svd(slopes @ inputs.T, compute_uv=False)[:4]
    sizes = np.linalg.svd(slopes, compute_uv=False)
    bounds = np.linalg.svd(inputs, compute_uv=False)
    assert np.all(values <= sizes[0] * bounds * (1 + 1e-12))
    assert np.all(values >= sizes[-1] * bounds * (1 - 1e-12))


def test_a_gradient_has_no_more_directions_than_its_text_has_tokens():
    case = one_gradient.make_small_model(jax.random.key(2), small_depth=1, small_rate=0.1)
    values = np.asarray(one_gradient.measure_gradient(case).gradient_values).reshape(-1, 8)
    tokens = case.texts.shape[-1] - 1
    assert np.all(values[:, tokens:] < 1e-12 * values[:, :1])
