"""A residual network on images: Adam on the cross-entropy, dropout of its last activations."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from lrdyn import networks
from lrdyn.core.recording import recorded_steps
from lrdyn.data import Images, images
from lrdyn.engine.statement import Scenario
from lrdyn.studies.dropout_spectra import trained
from lrdyn.studies.dropout_spectra.activations import spectra
from lrdyn.studies.over_seeds import only
from lrdyn.studies.pictures import (  # fmt: skip
    TESTED,
    accuracy,
    cross_entropy,
    features,
    read,
    spread_out,
)
from lrdyn.training import Batches, train

RATE = 1e-3
"""Step size of Adam, its own default."""
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


def make_resnet(
    key: Key[Array, ""], *, data: str, examples: int, dropout: float, resnet_width: int,
    resnet_epochs: int, batch_size: int,
) -> Residual:  # fmt: skip
    """ResNet-18, its stages from one width to eight times it."""
    start_key, key = jax.random.split(key)
    found = images(data)
    net = networks.resnet(
        start_key, widths=[resnet_width * 2**stage for stage in range(4)],
        channels=found.train_inputs.shape[3], classes=found.classes,
    )  # fmt: skip
    return Residual(key, net, found, examples, dropout, batch_size, resnet_epochs)


def measure_resnet(case: Residual) -> dict[str, Any]:
    """Train with dropout and without, and look at 1,000 images that are not trained on."""
    found = case.images
    chosen = spread_out(case.examples, len(found.train_labels))
    inputs = found.train_inputs[chosen]
    labels = found.train_labels[chosen].astype(np.int32)
    tested = spread_out(TESTED, len(found.test_labels))
    seen, known = found.test_inputs[tested], found.test_labels[tested]
    batches = Batches({"x": inputs, "y": labels}, case.batch)
    steps = recorded_steps(case.epochs * batches.epoch, POINTS)

    def look(net: networks.ResNet, state: PyTree) -> dict[str, Array]:
        # All at once: in a loop convolutions are ten times slower on a CPU.
        H = jax.vmap(lambda image: features(net, image, state))(read(jnp.asarray(seen), net))
        return spectra(H.T, net.head.weight)

    def once(rate: float, name: str) -> trained.Trained:
        net = dataclasses.replace(case.net, dropout=rate)
        run = train(
            case.key, cross_entropy, net, optax.adam(RATE), batches, steps,
            state=networks.initial_state(net), record=look, name=name,
        )  # fmt: skip
        right = accuracy(run.params, seen, known, run.state)
        return trained.Trained(run.records, run.metrics["loss"], right, run.diverged_at)

    return trained.compared(once, case.dropout) | {"step": steps}


RESIDUAL = Scenario[Residual](
    "resnet", make_resnet, measure=measure_resnet,
    claims=(trained.drop_claim("resnet", 0.0, "8.8 on CIFAR-10"),),
    controls=(trained.drop_control("resnet"),),
    dims=trained.DIMS,
    narrow=lambda settings: only("resnet", settings),
    diverged="diverged_at", trains=True,
    findings=trained.findings("resnet", "accuracy on images that were not trained on"),
)  # fmt: skip
