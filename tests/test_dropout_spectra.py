"""Figure 2 as a study: balanced activations, the minimum of dropout, and what training makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn import networks
from lrdyn import theorem3 as dropout
from lrdyn.studies.dropout_spectra import DROPOUT_SPECTRA, activations, minimum, raw, synthetic
from lrdyn.verification.stating.claims import tolerance
from tests import oracles
from tests.runs import results_of, verdict_of
from tests.test_weight_updates import many_images

SMALL = (
    "--depth 2 --network dln resnet --examples 1000 --synthetic-examples 1000 --synthetic-width 24 "
    "--synthetic-epochs 2 --resnet-width 2 --resnet-epochs 1 --batch-size 50 --seeds 1"
).split()


make_linear = jax.jit(minimum.make_linear, static_argnames=("depth", "width", "dropout", "steps"))
expected_loss = jax.jit(minimum.expected_loss)


@jax.jit
def factors(case):
    """Layers of 8 hidden units of the least expected loss, the last first."""
    shrinkage = dropout.dropout_minimiser(case.target, case.inputs, case.keep_prob, 8)
    last, right = dropout.equalized_factors(shrinkage.product, 8)
    return last, dropout.input_layer(right, case.inputs)


def test_spectra_are_those_of_numpy_whatever_the_shape():
    rng = np.random.default_rng(0)
    for units, examples in ((4, 9), (9, 4)):
        H, W = rng.normal(size=(units, examples)), rng.normal(size=(3, units))
        scale = np.sqrt(np.linalg.norm(H, axis=1) / np.sqrt(examples) / np.linalg.norm(W, axis=0))
        spectra = activations.spectra(jnp.asarray(H), jnp.asarray(W))
        for rows, singular_values, rank in (
            (H, spectra.activations, spectra.activations_rank),
            (H / scale[:, None], spectra.balanced, spectra.balanced_rank),
        ):
            values = np.linalg.svd(rows / np.sqrt(examples), compute_uv=False)
            oracles.assert_close(singular_values, values, size=9)
            shares = values / values.sum()
            entropy = -np.sum(shares * np.log(shares))
            oracles.assert_close(rank, np.exp(entropy), size=9)


def test_balanced_rows_do_not_depend_on_the_scale_of_units():
    rng = np.random.default_rng(1)
    H, W, D = rng.normal(size=(4, 9)), rng.normal(size=(3, 4)), np.array([0.1, 1.0, 3.0, 20.0])
    balanced = activations.balance_rows(jnp.asarray(H), jnp.asarray(W))
    rescaled = activations.balance_rows(jnp.asarray(D[:, None] * H), jnp.asarray(W / D))
    oracles.assert_close(rescaled, balanced, size=9)
    dead = activations.balance_rows(
        jnp.asarray(H) * jnp.array([0.0, 1, 1, 1])[:, None], jnp.asarray(W)
    )
    assert not np.any(dead[0])
    assert np.isfinite(dead).all()


@pytest.mark.parametrize("depth", [2, 3])
def test_the_loss_is_the_mean_over_all_masks(depth):
    """Against a sum over every mask of the last hidden layer."""
    case = make_linear(jax.random.key(0), depth=depth, width=4, dropout=0.3, steps=1)
    X, Y = np.asarray(case.inputs), np.asarray(case.target)
    weights = oracles.double(case.weights)
    H = X
    for W in weights[:-1]:
        H = W @ H
    expected = sum(
        chance * np.sum((Y - weights[-1] @ (mask[:, None] / 0.7 * H)) ** 2) / 2
        for mask, chance in oracles.masks_of(range(4), 0.7)
    )
    oracles.assert_close(expected_loss(case, case.weights), expected, size=12)


def test_a_factor_below_the_minimum_of_the_loss_is_found_by_nobody():
    """The prediction is a minimum: the loss of its own factors, and of neighbours."""
    case = make_linear(jax.random.key(3), depth=2, width=8, dropout=0.6, steps=1)
    last, first = factors(case)
    least = expected_loss(case, (first, last))
    values = jax.jit(minimum.predict_minimum)(case).balanced
    H = activations.balance_rows(first @ case.inputs, last)
    gram = np.linalg.eigvalsh(H @ H.T)[::-1]  # the tail of values is a square root of round-off
    oracles.assert_close(gram, values**2, size=12, steps=8)
    for push in oracles.normal(0, *[first.shape] * 5):
        assert expected_loss(case, (first + 0.05 * push, last)) > least
    for scale in (0.5, 3.0):  # the free scale
        moved = expected_loss(case, (scale * first, last / scale))
        oracles.assert_close(moved, least, size=12)


def test_the_raw_limit_is_that_of_the_minimum_of_balanced_factors():
    make = jax.jit(raw.make_raw, static_argnames=("width", "dropout"))
    case = make(jax.random.key(0), width=8, dropout=0.6)
    last, first = factors(case)  # of the same product, not balanced
    ratio = np.sqrt(np.linalg.norm(last, axis=0) / np.linalg.norm(first, axis=1))
    H = ratio[:, None] * np.asarray(first) @ np.asarray(case.inputs)
    gram = np.linalg.eigvalsh(H @ H.T)[::-1]
    oracles.assert_close(gram[:6], jax.jit(raw.predict_raw)(case).limit ** 2, size=12, steps=8)


def test_the_shrunk_spectrum_is_that_of_the_data_themselves():
    case = synthetic.make_synthetic(
        jax.random.key(0),
        linear=True,
        dropout=0.6,
        synthetic_examples=100,
        synthetic_width=9,
        synthetic_depth=2,
        synthetic_rate=0.1,
        synthetic_epochs=1,
        batch_size=10,
    )
    assert isinstance(case.net, networks.MLP)
    n = 100
    slack = tolerance("identity", "float64", size=n)
    for X in (case.inputs, case.held_inputs):
        np.testing.assert_allclose(X @ X.T / X.shape[1], np.eye(64), rtol=0, atol=10 * slack)
    whole = dropout.dropout_minimiser(case.target / 10, case.inputs / 10, 0.4, 9)
    oracles.assert_close(synthetic.shrunk_spectrum(case), np.sqrt(whole.values[:9]), size=n)


def test_the_study_runs_on_a_set_of_the_readers_own(command_line, monkeypatch, tmp_path):
    many_images(monkeypatch, tmp_path, count=80)
    words = ("--data", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "out")
    status, text, errors = command_line(DROPOUT_SPECTRA, *SMALL, *words)
    assert status == 0, errors + text
    assert text.splitlines()[0] == "dropout_spectra: residual network on MNIST (made up)"
    claims = {claim["id"]: claim for claim in verdict_of(tmp_path / "out")["claims"]}
    held = {name for name, claim in claims.items() if claim["holds"] and claim["kind"] != "control"}
    assert held == {"balanced_spectrum", "equal_units", "raw_spectrum"}
    for network in ("dln", "resnet"):
        assert claims[f"{network}_lower_rank"]["holds"] is None  # one seed
        assert claims[f"{network}_quality"]["finding"]["seeds"] == 1
        run = results_of(tmp_path / "out", f"/{network}")
        assert np.isfinite(run["activations"].values).all()
        assert np.array_equal(run["activations"][..., 0, :], run["plain_activations"][..., 0, :])
        assert not np.array_equal(
            run["activations"][..., -1, :], run["plain_activations"][..., -1, :]
        )


@pytest.mark.parametrize("value", ["1", "0", "-0.1", "nan"])
def test_a_dropout_outside_its_domain_is_refused(command_line, tmp_path, value):
    status, _, errors = command_line(DROPOUT_SPECTRA, "--dropout", value, "--out", tmp_path / "o")
    assert status == 2
    assert "--dropout: got" in errors
    assert not (tmp_path / "o").exists()


def test_without_the_residual_network_no_images_are_read():
    settings = {
        "network": ["dln"],
        "data": "no such set",
        "synthetic_examples": 1000,
        "batch_size": 50,
    }
    assert DROPOUT_SPECTRA.prepare(settings, set()) == settings
    assert DROPOUT_SPECTRA.data(settings) == ()
    assert DROPOUT_SPECTRA.about(settings) == "synthetic data"
