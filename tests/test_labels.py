"""The study of labels: how labels are made, what is compared, and the words of an interval."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.core.spectra import effective_rank
from lrdyn.studies.labels import LABELS, cells, head, measured, trainings
from tests.runs import results_of


def test_the_difference_of_both_layers_is_a_recursion_by_numpy_too():
    """Three steps by central differences of the loss, which know nothing of backpropagation."""
    case = head.make_head(
        jax.random.key(1),
        head_loss="cross_entropy",
        head_width=6,
        head_classes=3,
        head_scale=0.7,
        head_steps=3,
    )
    x, labels = np.asarray(case.inputs, float), np.argmax(np.asarray(case.one_hot), axis=0)
    layers = [np.asarray(W, float) for W in case.weights]
    eta = float(case.learning_rate)

    def loss(first, second, last):
        scores = last @ second @ np.maximum(first @ x, 0)
        scores = scores - scores.max(axis=0)
        logs = scores - np.log(np.exp(scores).sum(axis=0))
        return -np.mean(logs[labels, np.arange(len(labels))])

    def slope(place):
        grad = np.zeros_like(layers[place])
        for index in np.ndindex(grad.shape):
            sides = []
            for sign in (1, -1):
                moved = [W.copy() for W in layers]
                moved[place][index] += sign * 1e-5
                sides.append(loss(*moved))
            grad[index] = (sides[0] - sides[1]) / 2e-5
        return grad

    wanted = layers[1] @ layers[1].T - layers[2].T @ layers[2]
    for _ in range(3):
        slopes = [slope(place) for place in range(3)]
        wanted = wanted + eta**2 * (slopes[1] @ slopes[1].T - slopes[2].T @ slopes[2])
        layers = [W - eta * grad for W, grad in zip(layers, slopes, strict=True)]
    np.testing.assert_allclose(head.predict_head(case).balance[-1], wanted, atol=1e-5)
    np.testing.assert_allclose(head.measure_head(case).balance[-1], wanted, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_share_of_the_labels_changes_places(share):
    labels = np.arange(4000) % 10
    moved = measured.shuffle_share(jax.random.key(3), labels, share)
    assert np.bincount(moved).tolist() == np.bincount(labels).tolist()
    # A tenth of those that change places gets the label that it had.
    assert np.mean(moved != labels) == pytest.approx(0.9 * share, abs=0.03)


def test_fresh_labels_are_others_at_every_step_and_all_as_likely():
    seen = []

    def loss(net, state, batch, key):
        seen.append(np.asarray(batch["y"]))
        return jnp.zeros(()), (state, {})

    fresh = measured.with_fresh_labels(loss, 5)
    for step in range(2):
        fresh(None, None, {"y": jnp.zeros(5000, jnp.int32)}, jax.random.key(step))
    assert np.mean(seen[0] == seen[1]) == pytest.approx(0.2, abs=0.03)
    np.testing.assert_allclose(np.bincount(seen[0]) / 5000, 0.2, atol=0.03)


def test_whitened_images_have_no_covariance_and_gaussian_ones_that_of_the_images():
    rng = np.random.default_rng(0)
    labels = np.arange(3000) % 3
    inputs = rng.normal(size=(3000, 6)) * [3, 2, 1, 1, 0.5, 0.1] + 4.0 * np.eye(6)[labels]
    white = cells.whiten(inputs, 4)
    gram = white.T @ white / len(white)
    np.testing.assert_allclose(gram, np.mean(inputs**2) * np.eye(4), atol=1e-9)
    drawn = cells.gaussian_inputs(jax.random.key(0), inputs, labels)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(inputs.T), atol=0.6)
    for label in range(3):
        means = (data[labels == label].mean(axis=0) for data in (drawn, inputs))
        np.testing.assert_allclose(*means, atol=0.3)


def test_spectra_are_compared_where_losses_and_sizes_are_equal():
    """Three trainings of two recorded spectra, K = 1, made by hand."""
    flat, steep = np.array([1.0, 1.0, 1.0, 1.0]), np.array([1.0, 0.1, 0.1, 0.1])
    none = np.zeros(4)
    updates = np.stack(
        [
            np.stack([none, steep, 2 * steep]),
            np.stack([none, flat, 3 * flat]),
            [none, flat / 4, flat],
        ]
    )
    losses = np.array([[1.0, 0.4, 0.005], [1.0, 0.95, 0.3], [1.0, 1.0, 0.1]])
    at = measured._at_levels(measured.LABELLINGS, losses)
    assert at.tolist() == [[1, 1, 2, 2], [2, 2, -1, -1], [-1] * 4]
    found = measured._measure_at(updates, at, 1)
    ranks = [float(effective_rank(jnp.asarray(values))) for values in (steep, flat)]
    np.testing.assert_allclose(found["rank_at"][0], ranks[0], rtol=1e-6)
    np.testing.assert_allclose(found["rank_at"][1], [ranks[1]] * 2 + [np.nan] * 2, rtol=1e-6)
    np.testing.assert_allclose(found["drop_at_K"][0], 0.1)
    np.testing.assert_allclose(found["largest_drop"][0], 1.0)
    np.testing.assert_allclose(found["outside_K"][1, 0], 0.75)
    equal = measured._at_equal_norm(updates)
    assert equal["equal_norm"] == pytest.approx(2.0)  # of the last, which moved least
    wanted = [ranks[0], ranks[1], ranks[1]]
    np.testing.assert_allclose(equal["rank_at_equal_norm"], wanted, rtol=1e-6)


@pytest.mark.parametrize("rank", [10.0, 30.0, 100.0])
def test_the_part_of_the_labels_is_0_and_1_at_its_ends(rank):
    of_true, gaussian = np.array(10.0), np.array(100.0)
    part = trainings.part_of_labels(np.array(rank), of_true, gaussian)
    assert 10.0 * 10.0**part == pytest.approx(rank)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("--head-width", "21"), "--head-width: got 21, wanted at most 20"),
        (("--cell", "random100"), "--mlp-width: got 128, wanted more directions than 200"),
        (("--examples", "100"), "--batch-size: got 128, wanted at most the 100 examples"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(command_line, command, message):
    status, _, errors = command_line(LABELS, *command)
    assert status == 2
    assert message in errors


def test_a_small_training_leaves_what_the_findings_read(command_line, tmp_path):
    """And what says nothing of labels leaves R at 0: classes that were random before."""
    small = ("--examples", "256", "--mlp-width", "112", "--mlp-depth", "3", "--mlp-epochs", "200")
    small = (*small, "--batch-size", "16")
    words = ("--cell", "random50", "--head-loss", "squared", "--head-width", "8", "--seeds", "3")
    status, text, _ = command_line(
        LABELS, *small, *words, "--head-scale", ".1", "--head-classes", "2", "--out", tmp_path
    )
    assert status == 0, text
    results = results_of(tmp_path, "/random50")
    level = measured.LEVELS.index(0.1)
    ranks = results["rank_at"].isel(level=level).values.reshape(3, 3)
    assert np.isfinite(ranks[:, :2]).all()  # both fit their labels
    part = trainings.part_of_labels(
        ranks[:, 1], ranks[:, 0], results["gaussian_rank"].values.ravel()
    )
    assert np.abs(part).max() < 0.1
    assert "equal fits" in text
