"""A residual network on images: Adam on the cross-entropy, dropout of its last activations."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from lrdyn import networks
from lrdyn.data import Images, images
from lrdyn.studies.dropout_spectra.activations import (
    NetworkTraining,
    Spectra,
    TrainedDropoutMeasured,
    spectra,
    steps_of,
    train_both,
    trained_scenario,
)
from lrdyn.studies.pictures import (
    TESTED,
    accuracy,
    adam,
    cross_entropy,
    features,
    read,
    spread_out,
)
from lrdyn.training import FORGETFUL, Batches, Keeper, train

POINTS = 11
"""Recorded steps: at each a thousand images are evaluated."""


class Residual(NamedTuple):
    """A network and what it is trained on."""

    key: Key[Array, ""]
    net: networks.ResNet
    images: Images
    examples: int
    dropout: float
    batch: int
    epochs: int
    warmup: float
    """Share of the steps over which Adam's rate rises; at 0 it is constant."""


def make_resnet(
    key: Key[Array, ""],
    *,
    data: str,
    data_dir: str = "",
    examples: int,
    dropout: float,
    resnet_width: int,
    resnet_epochs: int,
    warmup: float,
    batch_size: int,
) -> Residual:
    """Draw a ResNet-18, its stages from one width to eight times it."""
    start_key, key = jax.random.split(key)
    data_set = images(data, data_dir)
    net = networks.resnet(
        start_key,
        widths=[resnet_width * 2**stage for stage in range(4)],
        channels=data_set.train_inputs.shape[3],
        classes=data_set.classes,
    )
    return Residual(key, net, data_set, examples, dropout, batch_size, resnet_epochs, warmup)


def measure_resnet(case: Residual, keeper: Keeper = FORGETFUL) -> TrainedDropoutMeasured:
    """Train with dropout and without, and look at 1,000 images that are not trained on."""
    chosen = spread_out(case.examples, len(case.images.train_labels))
    inputs = case.images.train_inputs[chosen]
    labels = case.images.train_labels[chosen].astype(np.int32)
    tested = spread_out(TESTED, len(case.images.test_labels))
    test_inputs, test_labels = case.images.test_inputs[tested], case.images.test_labels[tested]
    batches = Batches({"x": inputs, "y": labels}, case.batch)
    steps = steps_of(case.epochs * batches.epoch, POINTS)

    def look(net: networks.ResNet, state: PyTree) -> Spectra:
        # All at once: in a loop convolutions are ten times slower on a CPU.
        pixels = read(jnp.asarray(test_inputs), net)
        H = jax.vmap(lambda image: features(net, image, state))(pixels)
        return spectra(H.T, net.head.weight)

    def train_with(rate: float, name: str) -> NetworkTraining:
        net = dataclasses.replace(case.net, dropout=rate)
        run = train(
            case.key,
            cross_entropy,
            net,
            adam(case.warmup)(int(steps[-1])),
            batches,
            steps,
            state=networks.initial_state(net),
            record=look,
            keeper=keeper,
            name=name,
        )
        right = accuracy(run.params, test_inputs, test_labels, run.state)
        return NetworkTraining(run.records, run.metrics["loss"], right, run.diverged_at)

    return train_both(train_with, case.dropout, steps)


RESIDUAL = trained_scenario(
    "resnet",
    make_resnet,
    measure_resnet,
    seed0="8.8 on CIFAR-10",
    quality="accuracy on images that were not trained on",
    epochs="resnet_epochs",
)
