"""Networks that learn to classify images: a perceptron, VGG, ResNet and a vision transformer.

The loss is the cross-entropy of mini-batches. The perceptron (Example 2.1 of the survey) takes
plain descent, the others take Adam. Each is trained on shuffled labels, too, the perceptron to the
end, the others for ``--shuffled-epochs``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from lrdyn import networks
from lrdyn.core.descent import Trajectory
from lrdyn.core.recording import recorded_steps
from lrdyn.core.spectra import singular_values
from lrdyn.data import Images, images
from lrdyn.networks import MLP, VGG, VGG11, VGG16, ResNet, ViT, mlp, resnet, vgg, vit
from lrdyn.studies.pictures import (
    TESTED,
    accuracy,
    adam,
    augmented_cross_entropy,
    cross_entropy,
    spread_out,
)
from lrdyn.studies.weight_updates.updates import (
    SHUFFLED,
    UpdateMeasured,
    UpdateSpectrum,
    measured_update,
    recorded_until,
    shuffled_labels,
    shuffled_records,
    trained_scenario,
    update_spectrum,
)
from lrdyn.training import FORGETFUL, Batches, Keeper, train

POINTS = 26
TOP = 64
"""Singular values that are saved of the updates of all matrices."""
REVISITED = 5000
"""Training images that a network classifies again at the end: as many tell its accuracy to .01."""
CONFIGURATIONS = {"11": VGG11, "16": VGG16}


class ClassifierTraining(NamedTuple):
    """A network, what it is trained on, and how."""

    key: Key[Array, ""]
    net: networks.Network
    images: Images
    examples: int
    batch: int
    epochs: int
    rule: Callable[[int], optax.GradientTransformation]
    """Steps of the training -> its optimiser."""
    shuffled: int
    """Epochs of a second training, on shuffled labels."""
    augment: bool = False
    """Whether images are moved and mirrored at random at each step."""


def classifier(
    key: Key[Array, ""],
    draw: Callable[[Key[Array, ""], Images], networks.Network],
    *,
    data: str,
    data_dir: str = "",
    **settings: Any,
) -> ClassifierTraining:
    """Draw a network for a set of images."""
    start_key, key = jax.random.split(key)
    data_set = images(data, data_dir)
    return ClassifierTraining(key, draw(start_key, data_set), data_set, **settings)


def make_mlp(
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
) -> ClassifierTraining:
    """Draw a perceptron of layers of one width, ReLU, for plain descent on mini-batches."""

    def draw(key: Key[Array, ""], data_set: Images) -> MLP:
        sizes = (data_set.train_inputs[0].size, *[mlp_width] * (mlp_depth - 1), data_set.classes)
        return mlp(key, sizes, activation=jax.nn.relu)

    return classifier(
        key,
        draw,
        data=flat_data,
        data_dir=data_dir,
        examples=examples,
        batch=batch_size,
        epochs=mlp_epochs,
        rule=lambda steps: optax.sgd(mlp_rate),
        shuffled=mlp_epochs,
    )


def pool_count(side: int) -> int:
    """How many poolings an image allows: five, but for smaller ones than 32 x 32.

    Example:
        >>> pool_count(32), pool_count(28)
        (5, 4)
    """
    return min(5, side.bit_length() - 1)


def make_vgg(
    key: Key[Array, ""],
    *,
    data: str,
    data_dir: str = "",
    examples: int,
    vgg_layers: str,
    vgg_norm: str,
    vgg_epochs: int,
    shuffled_epochs: int,
    warmup: float,
    augment: str,
    batch_size: int,
) -> ClassifierTraining:
    """Draw a VGG, of the variant with a hidden layer of 512 x 512."""

    def draw(key: Key[Array, ""], data_set: Images) -> VGG:
        _, side, _, channels = data_set.train_inputs.shape
        # An image that is too small for the last poolings goes through the layers without them.
        remaining, layers = pool_count(side), []
        for layer in CONFIGURATIONS[vgg_layers]:
            remaining -= layer == "pool"
            if layer != "pool" or remaining >= 0:
                layers.append(layer)
        return vgg(
            key,
            tuple(layers),
            size=side,
            channels=channels,
            hidden=(512,),
            classes=data_set.classes,
            batch_norm=vgg_norm == "yes",
        )

    return classifier(
        key,
        draw,
        data=data,
        data_dir=data_dir,
        examples=examples,
        batch=batch_size,
        epochs=vgg_epochs,
        rule=adam(warmup),
        shuffled=shuffled_epochs,
        augment=augment == "yes",
    )


def make_resnet(
    key: Key[Array, ""],
    *,
    data: str,
    data_dir: str = "",
    examples: int,
    resnet_width: int,
    resnet_epochs: int,
    shuffled_epochs: int,
    warmup: float,
    augment: str,
    batch_size: int,
) -> ClassifierTraining:
    """Draw a ResNet-18, its stages from one width to eight times it.

    Its penultimate matrix is the last kernel.
    """

    def draw(key: Key[Array, ""], data_set: Images) -> ResNet:
        return resnet(
            key,
            widths=[resnet_width * 2**stage for stage in range(4)],
            channels=data_set.train_inputs.shape[3],
            classes=data_set.classes,
        )

    return classifier(
        key,
        draw,
        data=data,
        data_dir=data_dir,
        examples=examples,
        batch=batch_size,
        epochs=resnet_epochs,
        rule=adam(warmup),
        shuffled=shuffled_epochs,
        augment=augment == "yes",
    )


def make_vit(
    key: Key[Array, ""],
    *,
    data: str,
    data_dir: str = "",
    examples: int,
    vit_patch: int,
    vit_width: int,
    vit_depth: int,
    vit_heads: int,
    vit_epochs: int,
    shuffled_epochs: int,
    warmup: float,
    augment: str,
    batch_size: int,
) -> ClassifierTraining:
    """Draw a vision transformer, pre-norm blocks with perceptrons four times as wide."""

    def draw(key: Key[Array, ""], data_set: Images) -> ViT:
        _, side, _, channels = data_set.train_inputs.shape
        return vit(
            key,
            size=side,
            patch=vit_patch,
            channels=channels,
            width=vit_width,
            depth=vit_depth,
            heads=vit_heads,
            hidden=4 * vit_width,
            classes=data_set.classes,
        )

    return classifier(
        key,
        draw,
        data=data,
        data_dir=data_dir,
        examples=examples,
        batch=batch_size,
        epochs=vit_epochs,
        rule=adam(warmup),
        shuffled=shuffled_epochs,
        augment=augment == "yes",
    )


def penultimate(net: networks.Network) -> Float[Array, "m n"]:
    """The matrix that the survey calls penultimate."""
    return networks.matrices(net)[networks.penultimate(net)]


def measure_classifier(case: ClassifierTraining, keeper: Keeper = FORGETFUL) -> UpdateMeasured:
    """Train, and look at the update of the penultimate matrix and of all others."""
    chosen = spread_out(case.examples, len(case.images.train_labels))
    inputs, labels = case.images.train_inputs[chosen], case.images.train_labels[chosen]
    tested = spread_out(TESTED, len(case.images.test_labels))
    revisited = spread_out(REVISITED, len(labels))
    before, directions = penultimate(case.net), 2 * case.images.classes
    epoch = Batches(labels, case.batch).epoch
    steps = recorded_steps(case.epochs * epoch, POINTS)
    # One optimiser for both trainings: its rate falls to the last step of the longer one.
    rule = case.rule(int(steps[-1]))

    def train_on(labels: np.ndarray, steps: np.ndarray, name: str) -> Trajectory:
        def look(net: networks.Network, state: PyTree) -> UpdateSpectrum:
            return update_spectrum(penultimate(net) - before, directions)

        return train(
            case.key,
            augmented_cross_entropy if case.augment else cross_entropy,
            case.net,
            rule,
            Batches({"x": inputs, "y": labels.astype(np.int32)}, case.batch),
            steps,
            state=networks.initial_state(case.net) or None,
            record=look,
            keeper=keeper,
            name=name,
        )

    run = train_on(labels, steps, "")
    measured = measured_update(
        case.key,
        before,
        penultimate(run.params),
        run,
        steps,
        directions=directions,
        train_accuracy=accuracy(run.params, inputs[revisited], labels[revisited], run.state),
        test_accuracy=accuracy(
            run.params, case.images.test_inputs[tested], case.images.test_labels[tested], run.state
        ),
    )
    starts, ends = (list(networks.matrices(net).values()) for net in (case.net, run.params))
    spectra = np.full((len(starts), TOP), np.nan, np.asarray(starts[0]).dtype)
    for row, start, end in zip(spectra, starts, ends, strict=True):
        values = np.asarray(singular_values(end - start))[:TOP]
        row[: len(values)] = values
    until = recorded_until(steps, case.shuffled * epoch)
    shuffled = train_on(shuffled_labels(case.key, labels), until, SHUFFLED)
    return measured._replace(
        matrix_update=spectra,
        matrix_rows=np.array([len(start) for start in starts]),
        matrix_columns=np.array([start.shape[1] for start in starts]),
        **shuffled_records(shuffled),
    )


PERCEPTRON = trained_scenario(
    "mlp",
    make_mlp,
    measure_classifier,
    threshold=0.9,
    seed0="0.9956",
    longer="mlp_epochs",
    seeds=4,
)
CONVOLUTIONAL = trained_scenario(
    "vgg",
    make_vgg,
    measure_classifier,
    threshold=0.5,
    seed0="0.78 on MNIST, 0.86 on CIFAR-10",
    longer="vgg_epochs",
)
RESIDUAL = trained_scenario("resnet", make_resnet, measure_classifier, longer="resnet_epochs")
TRANSFORMER = trained_scenario(
    "vit",
    make_vit,
    measure_classifier,
    threshold=0.75,
    seed0="0.984 on MNIST, 0.980 on CIFAR-10",
    longer="vit_epochs",
)
