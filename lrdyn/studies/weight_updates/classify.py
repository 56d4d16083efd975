"""Training a network to classify images: cross-entropy on mini-batches, spectra of its updates."""

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
from lrdyn.studies.pictures import TESTED, accuracy, cross_entropy, spread_out
from lrdyn.studies.weight_updates import trained
from lrdyn.studies.weight_updates.measures import of_gaussian, of_update, top_share
from lrdyn.training import Batches, train

POINTS = 26
TOP = 64
"""Singular values that are kept of the updates of all other matrices."""


class Classifier(NamedTuple):
    """A network, what it is trained on, and how."""

    key: Key[Array, ""]
    net: networks.Network
    images: Images
    examples: int
    batch: int
    epochs: int
    optimizer: optax.GradientTransformation
    shuffled: bool = False
    """Whether another network is trained on shuffled labels beside it."""


def classifier(
    key: Key[Array, ""], draw: Callable[[Key[Array, ""], Images], networks.Network],
    *, data: str, **how: Any,
) -> Classifier:  # fmt: skip
    """Draw a network for a set of images."""
    start_key, key = jax.random.split(key)
    found = images(data)
    return Classifier(key, draw(start_key, found), found, **how)


def measure_classifier(case: Classifier) -> dict[str, Any]:
    """Train, and look at the update of the penultimate matrix and of all others."""
    chosen = spread_out(case.examples, len(case.images.train_labels))
    inputs, labels = case.images.train_inputs[chosen], case.images.train_labels[chosen]
    run, steps = _train(case, inputs, labels, "")
    before, after = penultimate(case.net), penultimate(run.params)
    moving = 2 * case.images.classes
    tested = spread_out(TESTED, len(case.images.test_labels))
    found = run.records | {
        **of_gaussian(case.key, after - before, moving),
        **trained.moved(before, after),
        **_others(case.net, run.params),
        "share_end": run.records["share"][-1],
        "loss": run.metrics["loss"],
        "train_accuracy": accuracy(run.params, inputs, labels),
        "test_accuracy": accuracy(
            run.params, case.images.test_inputs[tested], case.images.test_labels[tested]
        ),
        "step": steps,
        "diverged_at": run.diverged_at,
    }
    return found | (_on_shuffled(case, inputs, labels, moving) if case.shuffled else {})


def penultimate(net: networks.Network) -> Float[Array, "m n"]:
    """The matrix that the survey calls penultimate."""
    return networks.matrices(net)[networks.penultimate(net)]


def _train(
    case: Classifier, inputs: np.ndarray, labels: np.ndarray, name: str
) -> tuple[Trajectory, np.ndarray]:
    before, moving = penultimate(case.net), 2 * case.images.classes

    def look(net: networks.Network, state: PyTree) -> dict[str, Array]:
        return of_update(penultimate(net) - before, moving)

    batches = Batches({"x": inputs, "y": labels.astype(np.int32)}, case.batch)
    steps = recorded_steps(case.epochs * batches.epoch, POINTS)
    run = train(
        case.key, cross_entropy, case.net, case.optimizer, batches, steps,
        record=look, name=name,
    )  # fmt: skip
    return run, steps


def _others(before: networks.Network, after: networks.Network) -> dict[str, np.ndarray]:
    """The largest singular values of the updates of all matrices, NaN where there are fewer.

    They are in the order of :func:`lrdyn.networks.matrices`.
    """
    starts, ends = (list(networks.matrices(net).values()) for net in (before, after))
    spectra = np.full((len(starts), TOP), np.nan, np.asarray(starts[0]).dtype)
    for row, start, end in zip(spectra, starts, ends, strict=True):
        values = np.asarray(singular_values(end - start))[:TOP]
        row[: len(values)] = values
    return {
        "matrix_update": spectra,
        "matrix_rows": np.array([len(start) for start in starts]),
        "matrix_columns": np.array([start.shape[1] for start in starts]),
    }


def _on_shuffled(
    case: Classifier, inputs: np.ndarray, labels: np.ndarray, moving: int
) -> dict[str, Any]:
    """The same training on labels that say nothing."""
    order = np.asarray(jax.random.permutation(jax.random.fold_in(case.key, 7), len(labels)))
    run, _ = _train(case, inputs, labels[order], "shuffled labels")
    update = penultimate(run.params) - penultimate(case.net)
    return {"share_shuffled": top_share(singular_values(update), moving)}
