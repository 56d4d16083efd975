"""Cells of the study of labels: a network, its inputs, its number of classes and its optimiser.

The base cell is a perceptron on ten digits as they are, with SGD at a constant rate. Each other
cell differs from it in one factor.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from lrdyn import networks
from lrdyn.data import images
from lrdyn.studies import pictures
from lrdyn.studies.labels.measured import LABELLINGS, PARTLY, LabelCase
from lrdyn.studies.weight_updates import edge

DIRECTIONS = 256
"""Principal coordinates of whitened images; the last ones of an image are ill-determined noise."""


class Cell(NamedTuple):
    """What a cell is, and what differs from the base cell."""

    title: str
    classes: int = 10
    inputs: str = "as they are"
    optimizer: str = "sgd"
    labellings: tuple[str, ...] = LABELLINGS


PERCEPTRONS = {
    "base": Cell("ten digits, SGD", labellings=LABELLINGS + PARTLY),
    "pairs": Cell("digits in pairs", classes=5),
    "parity": Cell("digits by the parity of their number", classes=20),
    "random50": Cell("50 random classes", classes=50),
    "random100": Cell("100 random classes", classes=100),
    "whitened": Cell("whitened images", inputs="whitened"),
    "gaussian": Cell("Gaussian inputs", inputs="gaussian"),
    "adam": Cell("Adam", optimizer="adam"),
}
"""Cells of the perceptron. *True* labels of random classes are random ones that stay."""
RESNET = "resnet"
CELLS = (*PERCEPTRONS, RESNET)


def classify(labels: Int[np.ndarray, "n"], classes: int) -> Int[np.ndarray, "n"]:
    """Labels in so many classes: of ten digits in pairs, the digits, by parity, or at random.

    Example:
        >>> classify(np.array([3, 4, 4]), 5).tolist(), classify(np.array([3, 4, 4]), 20).tolist()
        ([1, 2, 2], [3, 14, 4])
    """
    if classes == 5:
        return labels // 2
    if classes == 10:
        return labels
    if classes == 20:
        # The parity of an image's number in the set says nothing of the image.
        return labels + 10 * (np.arange(len(labels)) % 2)
    return np.random.default_rng(0).integers(0, classes, len(labels))


def whiten(inputs: Float[np.ndarray, "n d"], directions: int) -> Float[np.ndarray, "n p"]:
    """Leading principal coordinates, centred, each of the mean square that a pixel had."""
    centred = inputs - inputs.mean(axis=0)
    coordinates = edge.whiten(centred.T, min(directions, *centred.shape)).T
    return coordinates * np.sqrt(np.mean(inputs**2))


def gaussian_inputs(
    key: Key[Array, ""], inputs: Float[np.ndarray, "n d"], labels: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n d"]:
    """Gaussian examples with the class means of images and their covariance about them.

    The covariance of all examples is that of the images, and labels say what means say.
    """
    means = np.stack([inputs[labels == label].mean(axis=0) for label in labels])
    about = inputs - means
    drawn = np.asarray(jax.random.normal(key, (len(inputs), len(inputs)), jnp.float32))
    # A Gaussian combination of the images has their covariance in expectation.
    return means + drawn @ about / np.sqrt(len(inputs))


def vector_cross_entropy(
    net: networks.Network, state: None, batch: dict[str, Array], key: Any
) -> Any:
    """Mean cross-entropy of a batch of vectors."""
    logits = networks.apply(net, batch["x"], key=key)
    return networks.cross_entropy(logits, batch["y"]), (None, {})


def make_perceptron(cell: str) -> Callable[..., LabelCase]:
    """The function that draws the cases of a cell of the perceptron."""
    of_cell = PERCEPTRONS[cell]

    def make(
        key: Key[Array, ""],
        *,
        flat_data: str,
        data_dir: str = "",
        examples: int,
        mlp_width: int,
        mlp_depth: int,
        mlp_rate: float,
        mlp_epochs: int,
        batch_size: int,
    ) -> LabelCase:
        start_key, inputs_key, key = jax.random.split(key, 3)
        data_set = images(flat_data, data_dir)
        chosen = pictures.spread_out(examples, len(data_set.train_labels))
        inputs = data_set.train_inputs[chosen].reshape(len(chosen), -1) / np.float32(255)
        digits = data_set.train_labels[chosen]
        if of_cell.inputs == "whitened":
            inputs = whiten(inputs, DIRECTIONS)
        elif of_cell.inputs == "gaussian":
            inputs = gaussian_inputs(inputs_key, inputs, digits)
        sizes = (inputs.shape[1], *[mlp_width] * (mlp_depth - 1), of_cell.classes)
        net = networks.mlp(start_key, sizes, activation=jax.nn.relu)
        return LabelCase(
            key=key,
            net=net,
            inputs=inputs.astype(net.weights[0].dtype),
            labels=classify(digits, of_cell.classes),
            classes=of_cell.classes,
            loss=vector_cross_entropy,
            rule=optax.adam(pictures.RATE) if of_cell.optimizer == "adam" else optax.sgd(mlp_rate),
            batch=batch_size,
            epochs=mlp_epochs,
            labellings=of_cell.labellings,
        )

    return make


def make_resnet(
    key: Key[Array, ""],
    *,
    data: str,
    data_dir: str = "",
    examples: int,
    resnet_width: int,
    resnet_epochs: int,
    batch_size: int,
) -> LabelCase:
    """Draw a ResNet-18 for images as they are: nothing moves or mirrors them, Adam's rate stays."""
    start_key, key = jax.random.split(key)
    data_set = images(data, data_dir)
    chosen = pictures.spread_out(examples, len(data_set.train_labels))
    net = networks.resnet(
        start_key,
        widths=[resnet_width * 2**stage for stage in range(4)],
        channels=data_set.train_inputs.shape[3],
        classes=data_set.classes,
    )
    return LabelCase(
        key=key,
        net=net,
        inputs=data_set.train_inputs[chosen],
        labels=data_set.train_labels[chosen],
        classes=data_set.classes,
        loss=pictures.cross_entropy,
        rule=optax.adam(pictures.RATE),
        batch=batch_size,
        epochs=resnet_epochs,
        labellings=LABELLINGS,
    )
