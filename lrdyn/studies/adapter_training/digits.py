"""A task of the same form that takes a tenth of a second: a perceptron that knows other digits.

It was trained to tell the digits 0 to 4 apart, and learns which number a digit from 5 to 9 shows.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from lrdyn import adapters, networks
from lrdyn.data import mnist
from lrdyn.networks import MLP, mlp
from lrdyn.studies.adapter_training.tasks import parts_of
from lrdyn.training import Batches, train
from lrdyn.verification.judging.rounding import scope

WIDTH, KNOWN = 64, 5
"""Hidden units of both layers; digits that the perceptron was trained on."""
STEPS, SIZE, RATE = 300, 64, 2e-3
"""Steps, examples of a batch and rate of that training, by Adam."""
TESTED = 1000
"""Digits that are tested on, at most."""


class Headed(eqx.Module):
    """A perceptron up to its last hidden layer, and a head."""

    model: MLP
    head: Float[Array, "width"]

    def __call__(self, images: Float[Array, "batch pixels"]) -> Float[Array, "batch"]:
        """Scores of images, one example a row."""
        return self.model.features(images.T).T @ self.head


class DigitBatch(NamedTuple):
    """Images with what is to be learned of each."""

    images: Float[Array, "batch pixels"]
    scores: Float[Array, "batch"]


@lru_cache(maxsize=2)
def pretrain(precision: str) -> MLP:
    """A perceptron that tells 0 to 4 apart, always the same."""
    # It is kept under this name, so that it must not depend on the precision of whoever asks first.
    with scope(precision):
        return _train_perceptron(precision)


def _train_perceptron(precision: str) -> MLP:
    digits = mnist()
    known = digits.labels < KNOWN
    data = {"x": digits.inputs.T[known].astype(precision), "y": digits.labels[known]}
    keys = jax.random.split(jax.random.key(0))
    net = mlp(keys[0], (data["x"].shape[1], WIDTH, WIDTH, KNOWN))

    def loss(net: MLP, state: Any, batch: Any, key: Any) -> Any:
        return networks.cross_entropy(net(batch["x"].T).T, batch["y"]), (state, {})

    run = train(
        keys[1],
        loss,
        net,
        optax.adam(RATE),
        Batches(data, SIZE),
        (0, STEPS),
        record=lambda net, state: jnp.zeros(()),
    )
    return run.params


class Digits:
    """The digits 5 to 9, a perceptron with a head, and how a batch is learned and tested.

    Args:
        precision: name of a floating-point type.
    """

    def __init__(self, precision: str):
        digits = mnist()
        new = digits.labels >= KNOWN
        labels = digits.labels[new]
        scores = (labels - labels.min()) / (labels.max() - labels.min())
        self.images = jnp.asarray(digits.inputs.T[new], precision)
        self.scores = jnp.asarray(scores, precision)
        self.rows = parts_of(len(labels), TESTED, own_test=False)
        model = pretrain(precision)
        self.net = Headed(model, jnp.zeros(WIDTH, precision))
        self.paths = ["model.weights.0", "model.weights.1"]
        self.programs, self.searched = {}, {}
        self.features = np.asarray(model.features(self.images.T).T, np.float64)

    def weight(self, path: str) -> Float[Array, "m n"]:
        """A matrix of the perceptron."""
        return self.net.model.weights[int(path.rpartition(".")[2])]

    def batch(self, rows: Int[Array, "batch"], scores: Float[Array, "n"]) -> DigitBatch:
        """Batch of the digits of these rows, with their scores."""
        return DigitBatch(self.images[rows], scores[rows])

    def loss(self, net: Headed, now: dict[str, Any], batch: DigitBatch) -> Any:
        """Mean squared error of a batch, in the form that a training takes."""
        outputs = adapters.apply(net, now)(batch.images)
        return jnp.mean((outputs - batch.scores) ** 2), (None, {})

    def pearson(self, net: Headed, added: dict[str, Any], part: str) -> Float[Array, ""]:
        """Correlation on a part that is tested on."""
        rows = self.rows[part]
        return _test_pearson(net, added, self.images[rows], self.scores[rows])


@eqx.filter_jit
def _test_pearson(net: Headed, added: dict[str, Any], images: Array, scores: Array) -> Array:
    return jnp.corrcoef(adapters.apply(net, added)(images), scores)[0, 1]
