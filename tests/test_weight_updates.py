"""Figure 1 as a study: moments, whitening, spectra of updates, and the edge of the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lrdyn
from lrdyn.data import Images
from lrdyn.studies import pictures
from lrdyn.studies.weight_updates import (
    WEIGHT_UPDATES,
    edge,
    linear,
    nonlinear,
    updates,
)
from lrdyn.verification.stating.claims import CLEARLY, above_p, tolerance
from tests import oracles
from tests.runs import results_of, verdict_of


def few_images(count=60, classes=3, side=5, seed=0):
    """Images of clear classes, as bytes."""
    rng = np.random.default_rng(seed)
    means = rng.integers(40, 200, size=(classes, side, side, 1))
    labels = np.arange(count) % classes
    pixels = np.clip(means[labels] + 20 * rng.normal(size=(count, side, side, 1)), 0, 255)
    pixels = pixels.astype(np.uint8)
    return Images("mnist", "a few", classes, pixels, labels, pixels, labels)


def test_moments_give_the_loss_of_the_data():
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(6, 20)), rng.normal(size=(3, 20))
    data = linear.moments(X, Y)
    for scale in (0.0, 1.0):
        weights = (
            jnp.asarray(scale * rng.normal(size=(6, 6))),
            jnp.asarray(rng.normal(size=(3, 6))),
        )
        loss, _ = linear.linear_loss(weights, None, data, None)
        missed = np.sum((np.asarray(weights[1] @ weights[0]) @ X - Y) ** 2) / 40
        nothing = np.sum(Y**2) / 40 - np.sum(data.outputs**2) / 2
        oracles.assert_close(loss + nothing, missed, size=20)


def test_whitened_coordinates_are_white():
    white = edge.whiten(np.random.default_rng(0).normal(size=(8, 30)), 5)
    slack = tolerance("identity", "float64", size=30)
    np.testing.assert_allclose(white @ white.T / 30, np.eye(5), rtol=0, atol=10 * slack)


def test_measures_of_an_update_of_known_spectrum():
    values = np.array([3.0, 2.0, 1.0, 0.5])
    Q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    spectrum = updates.update_spectrum(jnp.asarray(Q * values), 2)
    oracles.assert_close(spectrum.update, values, size=4)
    oracles.assert_close(spectrum.share, 13 / 14.25, size=4)
    oracles.assert_close(spectrum.stable_rank, 14.25 / 9, size=4)
    shares = values / values.sum()
    oracles.assert_close(spectrum.effective_rank, np.exp(-np.sum(shares * np.log(shares))), size=4)


def test_a_gaussian_update_is_of_full_rank_and_of_equal_norm():
    update = jnp.ones((40, 40))
    drawn = updates.gaussian_like(jax.random.key(0), update)
    oracles.assert_close(jnp.linalg.norm(drawn), 40, size=40)
    spectrum = updates.update_spectrum(drawn, 2)
    assert spectrum.share < 0.3
    assert spectrum.effective_rank > 20


@pytest.mark.parametrize(("shift", "small"), [(0.2, True), (0.0, False), (-0.2, False)])
def test_a_mean_above_a_threshold_is_told_from_one_that_is_not(shift, small):
    draws = 0.5 + shift + 0.01 * np.array([-1.0, 0.3, 0.9, -0.4])
    assert (above_p(0.5, draws) < 0.01) is small


def test_the_linear_network_learns_and_moves_in_few_directions(monkeypatch):
    monkeypatch.setattr(linear, "images", lambda name, data_dir: few_images())
    case = linear.make_linear(
        jax.random.key(0),
        flat_data="mnist",
        examples=60,
        depth=3,
        linear_scale=0.3,
        linear_rate=0.05,
        linear_steps=300,
    )
    measured = linear.measure_linear(case)
    assert measured.train_accuracy > 0.95
    assert measured.update.shape == (26, 25)
    assert measured.share_end == measured.share[-1] > 0.99 > 1.4 * measured.share_gaussian
    assert measured.loss[-1] < 0.5 * measured.loss[1]
    oracles.assert_close(measured.start, np.full(25, 0.3), size=25)


@pytest.fixture
def edge_case(monkeypatch):
    monkeypatch.setattr(edge, "images", lambda name, data_dir: few_images())
    return edge.make_edge(
        jax.random.key(0),
        flat_data="mnist",
        edge_width=12,
        edge_scale=0.3,
        edge_steps=100,
    )


def test_the_whitened_update_has_rank_2k_and_a_coloured_one_has_not(edge_case):
    """Against a loop in NumPy."""
    X, Y = np.asarray(edge_case.inputs), np.asarray(edge_case.outputs)
    slack = tolerance("identity", "float64", steps=100, size=60)

    def tail(X):
        layers = oracles.double(edge_case.weights)
        start = layers[1].copy()
        for _ in range(100):
            A, B, C = layers
            missed = C @ B @ A @ X - Y
            steps = (B.T @ C.T @ missed @ X.T, C.T @ missed @ (A @ X).T, missed @ (B @ A @ X).T)
            layers = [W - 0.1 * G for W, G in zip(layers, steps, strict=True)]
        values = np.linalg.svd(layers[1] - start, compute_uv=False)
        A, B, C = layers
        right = np.argmax(C @ B @ A @ X, axis=0) == np.asarray(edge_case.labels)
        return values[6] / values[0], values, right.mean()

    measured = edge.measure_edge(edge_case)
    white, values, accuracy = tail(X)
    oracles.assert_close(measured.update[-1, 1], values, size=60, steps=100)
    assert white <= slack
    assert measured.edge_accuracy == pytest.approx(accuracy)
    assert float(measured.edge[1]) <= slack
    assert tail(np.linspace(0.5, 1.5, 12)[:, None] * X)[0] > CLEARLY * slack


def test_singular_values_are_of_the_square_layers_alone(edge_case):
    measured = edge.measure_edge(edge_case)
    assert measured.update.shape == (26, 2, 12)
    values = lrdyn.singular_values(edge_case.weights[0])
    oracles.assert_close(values, np.full(12, 0.3), size=12)


@pytest.mark.parametrize("n", [4, 6, 9])
def test_the_moments_have_the_loss_of_all_examples(n):
    rng = np.random.default_rng(n)
    X, Y, W = (rng.normal(size=shape) for shape in ((6, n), (3, n), (3, 6)))
    A, B = linear.moments(X, Y)
    assert (A.shape, B.shape) == ((6, 6), (3, 6))

    def loss(W):
        return np.sum((W @ A - B) ** 2) / 2 - np.sum(B**2) / 2

    whole = np.sum((W @ X - Y) ** 2) / (2 * n) - np.sum(Y**2) / (2 * n)
    oracles.assert_close(loss(W), whole, size=9)


def many_images(monkeypatch, tmp_path, count=200, tested=20):
    """MNIST of a few images in an npz, as a user could have it."""
    from lrdyn.data import sets
    from tests.datasets import write_npz

    few = few_images(count + tested, classes=10, side=8)
    known = sets.KNOWN["mnist"]._replace(train=count, test=tested, shape=(8, 8, 1))
    monkeypatch.setitem(sets.KNOWN, "mnist", known)
    inputs, labels = few.train_inputs[..., 0], few.train_labels
    parts = (inputs[:count], labels[:count], inputs[count:], labels[count:])
    write_npz(tmp_path / "mnist.npz", parts, described="made up")


SMALL = (
    "--linear-steps 30 --mlp-width 24 --mlp-epochs 2 --batch-size 20 --vgg-epochs 1 "
    "--vit-width 24 --vit-depth 1 --vit-heads 2 --vit-epochs 1 --edge-width 24 --edge-steps 60 "
    "--reach-width 24 --reach-depth 3 --seeds 1"
).split()


def test_the_study_runs_on_a_set_of_the_readers_own(command_line, monkeypatch, tmp_path):
    many_images(monkeypatch, tmp_path, count=80)
    words = ("--data", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "out")
    status, text, errors = command_line(WEIGHT_UPDATES, *SMALL, *words)
    assert status == 0, errors + text
    assert text.splitlines()[0] == "weight_updates: on MNIST (made up)"
    claims = {claim["id"]: claim for claim in verdict_of(tmp_path / "out")["claims"]}
    held = {name for name, claim in claims.items() if claim["holds"] and claim["kind"] != "control"}
    assert held >= {"whitened_edge", "narrow_edge", *(claim.id for claim in nonlinear.CLAIMS)}
    for network in ("dln", "mlp", "vgg", "vit"):
        assert claims[f"{network}_share"]["holds"] is None  # one seed
        assert claims[f"{network}_accuracy"]["finding"]["seeds"] == 1
        run = results_of(tmp_path / "out", f"/{network}")
        assert np.isfinite(run["loss"].values[..., 1:]).all()
        assert (run["diverged_at"] == -1).all()
    run = results_of(tmp_path / "out", "/vgg")
    assert run["matrix_rows"].values.ravel().tolist()[-2:] == [512, 10]
    assert run["matrix_columns"].values.ravel().tolist()[:2] == [9, 64 * 9]


def test_the_expansion_in_the_nonlinearity_against_a_loop():
    """Off-diagonal blocks of one leaky run, with gradients by hand."""
    case = nonlinear.make_nonlinear(jax.random.key(0), reach_width=24, reach_depth=2)
    kink = 0.01
    residual, energy = nonlinear.departure(case, nonlinear.leaky_relu, jnp.asarray(kink))
    X, Y = np.asarray(case.inputs), np.asarray(case.outputs)
    A, B = oracles.double(case.weights)
    start = A.copy()
    for _ in range(100):
        before = A @ X
        slope = np.where(before > 0, 1, 1 - kink)
        missed = B @ (slope * before) - Y
        A, B = A - 0.1 * (slope * (B.T @ missed)) @ X.T, B - 0.1 * missed @ (slope * before).T
    values = np.linalg.svd(A - start, compute_uv=False) ** 2
    oracles.assert_close(energy, values[6:].sum() / values.sum(), size=24, steps=100)
    fixed = lrdyn.theorem2.classifier_frame(case.weights, case.target)
    inner = np.asarray(fixed.left[0]).T @ A @ np.asarray(fixed.right[0])
    edge = max(np.abs(inner[:6, 6:]).max(), np.abs(inner[6:, :6]).max())
    last = np.abs(B @ np.asarray(fixed.left[-1])[:, 6:]).max()
    oracles.assert_close(residual, max(edge, last), size=24, steps=100)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--vit-patch", "64"), "--vit-patch: got 64, wanted a divisor of 8, the side"),
        (("--vit-patch", "3"), "--vit-patch: got 3, wanted a divisor of 8"),
        (
            ("--vit-heads", "5", "--vit-width", "24"),
            "--vit-heads: got 5, wanted a divisor of --vit-",
        ),
        (("--vit-width", "0"), "--vit-width: got '0', wanted an integer >= 1"),
        (("--mlp-width", "0"), "--mlp-width: got '0', wanted an integer >= 1"),
        (("--batch-size", "201"), "--batch-size: got 201, wanted at most the 200 examples"),
        (("--edge-width", "65"), "--edge-width: got 65, wanted at most 64, the principal"),
        (("--network", "mlp", "--batch-size", "60", "--examples", "50"), "at most the 50 examples"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_runs(
    command_line, monkeypatch, tmp_path, words, message
):
    many_images(monkeypatch, tmp_path)
    where = ("--data", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "out")
    status, _, errors = command_line(WEIGHT_UPDATES, *where, *words)
    assert (status, errors.count("\n")) == (2, 1)
    assert message in errors
    assert not (tmp_path / "out").exists()


def test_a_set_of_too_few_images_for_the_controls_is_refused(command_line, monkeypatch, tmp_path):
    many_images(monkeypatch, tmp_path, count=63)
    words = ("--data", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "out")
    status, _, errors = command_line(WEIGHT_UPDATES, *SMALL, *words)
    assert (status, errors.count("\n")) == (2, 1)
    assert "--flat-data: got 63 images of 64 pixels, wanted 64 or more of both" in errors
    assert not (tmp_path / "out").exists()


def test_a_warm_up_rises_in_a_line_and_falls_to_nothing():
    """The steps of Adam on a constant gradient are as long as its rate."""

    def lengths(warmup, steps=40):
        rule, weights = pictures.adam(warmup)(steps), jnp.ones(1)
        state, found = rule.init(weights), []
        for _ in range(steps):
            update, state = rule.update(jnp.ones(1), state, weights)
            found.append(-np.asarray(update)[0])
        return np.array(found) / pictures.RATE

    np.testing.assert_allclose(lengths(0.0), 1.0, rtol=1e-6)
    risen = lengths(0.25)
    np.testing.assert_allclose(risen[:11], np.arange(11) / 10, rtol=1e-6, atol=1e-12)
    falling = (1 + np.cos(np.pi * np.arange(30) / 30)) / 2
    np.testing.assert_allclose(risen[10:], falling, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_moved_and_those_in_colour_mirrored(channels):
    """By -4 to 4 pixels to each side, every move as often as others; black moves in."""
    count, side = 4050, 11
    image = np.zeros((side, side, channels), np.uint8)
    image[5, 4:7] = np.array([7, 8, 9])[:, None]
    varied = pictures.augment(jnp.tile(image, (count, 1, 1, 1)), jax.random.key(0))
    moved = np.asarray(varied)[..., 0]
    assert (moved.sum(axis=(1, 2)) == 24).sum() == (moved.max(axis=(1, 2)) == 9).sum() == count
    rows, columns = (np.argmax((moved == 8).any(axis=axis), axis=1) for axis in (2, 1))
    moves = np.bincount(rows * side + columns, minlength=side**2).reshape(side, side)[1:10, 1:10]
    assert moves.sum() == count
    assert abs(moves / (count / 81) - 1).max() < 5 / np.sqrt(count / 81)
    left, right = (moved[np.arange(count), rows, columns + step] for step in (-1, 1))
    mirrored = left > right
    assert (left + right == 16).all()
    assert mirrored.mean() == (0 if channels == 1 else pytest.approx(0.5, abs=0.03))


def test_a_training_on_varied_images_sees_other_ones_at_each_step():
    net = lrdyn.networks.mlp(jax.random.key(0), (81, 3))
    batch = {"x": jnp.arange(2 * 81, dtype=jnp.uint8).reshape(2, 9, 9, 1), "y": jnp.array([0, 2])}
    keys = jax.random.split(jax.random.key(1), 3)
    losses = {float(pictures.augmented_cross_entropy(net, None, batch, key)[0]) for key in keys}
    losses.add(float(pictures.cross_entropy(net, None, batch, keys[0])[0]))
    assert len(losses) == 4
