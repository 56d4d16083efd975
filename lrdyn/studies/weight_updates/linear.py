"""A deep linear network on images as they are: squared loss, full batches, not whitened."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.core.descent import Trajectory, gradient_descent
from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import orthogonal_layers
from lrdyn.core.recording import recorded_steps
from lrdyn.data import Images, images
from lrdyn.studies.pictures import spread_out
from lrdyn.studies.weight_updates.updates import (
    SHUFFLED,
    UpdateMeasured,
    UpdateSpectrum,
    measured_update,
    shuffled_labels,
    shuffled_records,
    trained_scenario,
    update_spectrum,
)
from lrdyn.training import FORGETFUL, Batches, Keeper, train

POINTS = 26


class Moments(NamedTuple):
    """Data of a linear least-squares problem, as few columns as inputs instead of examples."""

    inputs: Float[np.ndarray, "d d"]
    outputs: Float[np.ndarray, "k d"]


def moments(inputs: Float[np.ndarray, "d n"], outputs: Float[np.ndarray, "k n"]) -> Moments:
    """Compress ``n`` examples: ``1/(2n) ||W X - Y||^2 = 1/2 ||W A - B||^2 + c`` for every W.

    With ``X^T = Q R``: ``A = R^T / sqrt n``, ``B = Y Q / sqrt n``. No covariance is formed, so that
    small losses keep their digits. Fewer examples than inputs are filled up with zeros, which add
    nothing to the loss.

    Example:
        >>> A, B = moments(np.array([[3.0, 4.0]]), np.array([[3.0, 4.0]]))
        >>> round(float(B[0, 0] / A[0, 0]), 6)
        1.0
    """
    d, n = inputs.shape
    zeros = [(0, 0), (0, max(d - n, 0))]
    Q, R = np.linalg.qr(np.pad(inputs, zeros).T)
    return Moments(R.T / np.sqrt(n), np.pad(outputs, zeros) @ Q / np.sqrt(n))


class LinearCase(NamedTuple):
    """A deep linear network and what it is trained on."""

    key: Key[Array, ""]
    images: Images
    examples: int
    start: Weights
    learning_rate: float
    steps: np.ndarray
    """Recorded ones."""


def pixels(inputs: np.ndarray) -> Float[np.ndarray, "features n"]:
    """Images as columns, pixels in [0, 1]."""
    return inputs.reshape(len(inputs), -1).T / np.float64(255)


def make_linear(
    key: Key[Array, ""],
    *,
    flat_data: str,
    data_dir: str = "",
    examples: int,
    depth: int,
    linear_scale: float,
    linear_rate: float,
    linear_steps: int,
) -> LinearCase:
    """Layers as wide as an image has pixels, from an orthogonal start."""
    start_key, key = jax.random.split(key)
    data_set = images(flat_data, data_dir)
    widths = (*[data_set.train_inputs[0].size] * depth, data_set.classes)
    start = orthogonal_layers(start_key, widths, jnp.full(depth, linear_scale))
    steps = recorded_steps(linear_steps, POINTS)
    return LinearCase(key, data_set, examples, start, linear_rate, steps)


def product_of(weights: Weights) -> Float[Array, "k d"]:
    """Product of the layers from the last: with few outputs, no square layers are multiplied."""
    *others, last = weights
    for W in reversed(others):
        last = last @ W
    return last


def linear_loss(weights: Weights, state: None, batch: Moments, key: Any) -> Any:
    """1/2 ||W A - B||^2: half the mean squared error, but for what no weights can change."""
    return 0.5 * jnp.sum((product_of(weights) @ batch.inputs - batch.outputs) ** 2), (None, {})


def measure_linear(case: LinearCase, keeper: Keeper = FORGETFUL) -> UpdateMeasured:
    """Train, and look at the update of the penultimate layer."""
    chosen = spread_out(case.examples, len(case.images.train_labels))
    inputs, labels = case.images.train_inputs[chosen], case.images.train_labels[chosen]
    before, directions = case.start[-2], 2 * case.images.classes

    def train_on(labels: np.ndarray, name: str) -> Trajectory:
        data = moments(pixels(inputs), np.eye(case.images.classes)[labels].T)
        data = jax.tree.map(lambda array: array.astype(case.start[0].dtype), data)

        def look(weights: Weights, state: PyTree) -> UpdateSpectrum:
            # At the start there is no update: its ranks are those of nothing, NaN.
            return update_spectrum(weights[-2] - before, directions)

        return train(
            case.key,
            linear_loss,
            case.start,
            gradient_descent(case.learning_rate),
            Batches(data, count=len(chosen)),
            case.steps,
            record=look,
            keeper=keeper,
            name=name,
        )

    run = train_on(labels, "")
    end = np.asarray(product_of(run.params))

    def accuracy(inputs: np.ndarray, labels: np.ndarray) -> float:
        return float(np.mean(np.argmax(end @ pixels(inputs), axis=0) == labels))

    measured = measured_update(
        case.key,
        before,
        run.params[-2],
        run,
        case.steps,
        directions=directions,
        train_accuracy=accuracy(inputs, labels),
        test_accuracy=accuracy(case.images.test_inputs, case.images.test_labels),
    )
    shuffled = train_on(shuffled_labels(case.key, labels), SHUFFLED)
    return measured._replace(**shuffled_records(shuffled))


LINEAR = trained_scenario(
    "dln",
    make_linear,
    measure_linear,
    threshold=0.99,
    seed0="0.9999",
    longer="linear_steps",
    steps="linear_steps",
    seeds=4,
)
