"""A linear network and a perceptron on synthetic data: a teacher of low rank, and noise."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from lrdyn import networks
from lrdyn.core.initialization import low_rank_target, orthogonal, spaced_singular_values
from lrdyn.core.linalg import svdvals
from lrdyn.studies.dropout_spectra.activations import (
    NetworkTraining,
    Spectra,
    TrainedDropoutMeasured,
    spectra,
    steps_of,
    train_both,
    trained_scenario,
)
from lrdyn.theorem3 import dropout_minimum, dropout_penalties
from lrdyn.training import FORGETFUL, Batches, Keeper, train
from lrdyn.verification.stating.statement import Finding, Outcome

# White inputs make the minimum of the expected loss a formula of the target alone; the noise gives
# dropout something of full rank to leave out.
INPUTS, OUTPUTS, RANK, NOISE = 64, 32, 8, 0.1
HELD_OUT = 1000
QUALITY = "share of the held-out targets' squared norm that is missed"


class Synthetic(NamedTuple):
    """A network, examples as columns, and how it is trained."""

    key: Key[Array, ""]
    net: networks.MLP
    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    held_inputs: Float[Array, "d k"]
    held_target: Float[Array, "m k"]
    dropout: float
    learning_rate: float
    batch: int
    epochs: int


def make_synthetic(
    key: Key[Array, ""],
    *,
    linear: bool,
    dropout: float,
    synthetic_examples: int,
    synthetic_width: int,
    synthetic_depth: int,
    synthetic_rate: float,
    synthetic_epochs: int,
    batch_size: int,
) -> Synthetic:
    """Draw the data and a network, without biases if it is linear."""
    keys = jax.random.split(key, 7)
    teacher = low_rank_target(keys[0], (OUTPUTS, INPUTS), spaced_singular_values(RANK))

    def draw(count: int, inputs_key: Array, noise_key: Array) -> tuple[Array, Array]:
        # Gaussian inputs, made white: X X^T = n I. As many as there are, up to a rotation.
        X = jnp.sqrt(1.0 * count) * orthogonal(jax.random.normal(inputs_key, (INPUTS, count)))
        return X, teacher @ X + NOISE * jax.random.normal(noise_key, (OUTPUTS, count))

    inputs, target = draw(synthetic_examples, *keys[1:3])
    held_inputs, held_target = draw(HELD_OUT, *keys[3:5])
    sizes = (INPUTS, *[synthetic_width] * (synthetic_depth - 1), OUTPUTS)
    activation = identity if linear else jax.nn.relu
    return Synthetic(
        keys[6],
        networks.mlp(keys[5], sizes, activation=activation, bias=not linear),
        inputs,
        target,
        held_inputs,
        held_target,
        dropout,
        synthetic_rate,
        batch_size,
        synthetic_epochs,
    )


def identity(x: Array) -> Array:
    """Activation of a linear network, the identity."""
    return x


def squared_error(net: networks.MLP, state: None, batch: dict[str, Array], key: Any) -> Any:
    """Mean over the batch of ``||y - f(x)||^2``, under one mask an example."""
    outputs = networks.apply(net, batch["x"], key=key)
    return jnp.mean(jnp.sum((outputs - batch["y"]) ** 2, axis=1)), (None, {})


def measure_synthetic(case: Synthetic, keeper: Keeper = FORGETFUL) -> TrainedDropoutMeasured:
    """Train with Adam on mini-batches, with random masks and without."""
    batches = Batches({"x": case.inputs.T, "y": case.target.T}, case.batch)
    steps = steps_of(case.epochs * batches.epoch)

    def look(net: networks.MLP, state: PyTree) -> Spectra:
        return spectra(net.features(case.held_inputs), net.weights[-1])

    def train_with(rate: float, name: str) -> NetworkTraining:
        net = dataclasses.replace(case.net, dropout=rate)
        run = train(
            case.key,
            squared_error,
            net,
            optax.adam(case.learning_rate),
            batches,
            steps,
            record=look,
            keeper=keeper,
            name=name,
        )
        missed = run.params(case.held_inputs) - case.held_target
        share = jnp.sum(missed**2) / jnp.sum(case.held_target**2)
        return NetworkTraining(run.records, run.metrics["loss"], float(share), run.diverged_at)

    measured = train_both(train_with, case.dropout, steps)
    return measured._replace(shrunk=np.asarray(shrunk_spectrum(case)))


def shrunk_spectrum(case: Synthetic) -> Float[Array, "h"]:
    """sqrt(s_i), s the singular values of ``Y P / sqrt n`` shrunk.

    It is a linear network's balanced spectrum at the minimum, on the held-out inputs, too: they are
    as white.
    """
    count, width = case.target.shape[1], case.net.weights[-1].shape[1]
    # Y P = (Y X^T / n) X, and X / sqrt n has orthonormal rows.
    reached = case.target @ case.inputs.T / count
    strength = dropout_penalties.dropout_strength(1 - case.dropout, width)
    values, _, _ = dropout_minimum.shrink_squared_values(svdvals(reached), strength, width)
    return jnp.pad(jnp.sqrt(values)[:width], (0, max(width - len(values), 0)))


def _distance(outcome: Outcome[Any, TrainedDropoutMeasured]) -> np.ndarray:
    """Largest distance from sqrt(s), over the largest of them."""
    spectrum, limit = outcome.measured.balanced[:, -1], outcome.measured.shrunk
    return np.max(np.abs(spectrum - limit), axis=1) / np.max(limit, axis=1)


LINEAR = trained_scenario(
    "dln",
    partial(make_synthetic, linear=True),
    measure_synthetic,
    seed0="16.7",
    quality=QUALITY,
    epochs="synthetic_epochs",
    seeds=4,
    findings=(
        Finding(
            "dln_distance",
            "distance of the balanced spectrum from sqrt(s), the minimum of the expected loss",
            _distance,
            reads=lambda theory, run: (run.balanced, run.shrunk),
        ),
    ),
)
PERCEPTRON = trained_scenario(
    "mlp",
    partial(make_synthetic, linear=False),
    measure_synthetic,
    seed0="37.4",
    quality=QUALITY,
    epochs="synthetic_epochs",
    seeds=4,
)
