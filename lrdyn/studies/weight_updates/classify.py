"""Training a network to classify images: cross-entropy on mini-batches, spectra of its updates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn.data import Images
from lrdyn.recording import recorded_steps
from lrdyn.spectra import singular_values
from lrdyn.studies.weight_updates import trained
from lrdyn.studies.weight_updates.measures import of_gaussian, of_update, spread_out, top_share
from lrdyn.training import Batches, train

POINTS = 26
TOP = 64
"""Singular values that are kept of the updates of all other matrices."""
TESTED = 1000
"""Images that a network is tested on."""

Logits = Callable[
    [PyTree, Array, Key[Array, ""] | None, PyTree], tuple[Float[Array, "batch classes"], PyTree]
]
"""``logits(net, images, key, state)``: of a batch of images, pixels in [0, 1], and the new state;
without a key as in evaluation."""


class Classifier(NamedTuple):
    """A network, what it is trained on, and how."""

    key: Key[Array, ""]
    net: PyTree
    state: PyTree
    logits: Logits
    penultimate: Callable[[PyTree], Float[Array, "m n"]]
    """The matrix that the survey calls penultimate."""
    images: Images
    examples: int
    batch: int
    epochs: int
    optimizer: optax.GradientTransformation
    shuffled: bool = False
    """Whether another network is trained on shuffled labels beside it."""


def scaled(pixels: Array, precision: Any) -> Array:
    """Pixels from bytes to [0, 1]."""
    return pixels.astype(precision) / 255


def measure_classifier(case: Classifier) -> dict[str, Any]:
    """Train, and look at the update of the penultimate matrix and of all others."""
    chosen = spread_out(case.examples, len(case.images.train_labels))
    inputs, labels = case.images.train_inputs[chosen], case.images.train_labels[chosen]
    run, steps = _train(case, inputs, labels.astype(np.int32), "")
    before, after = case.penultimate(case.net), case.penultimate(run.params)
    moving = 2 * case.images.classes
    tested = spread_out(TESTED, len(case.images.test_labels))
    found = run.records | {
        **of_gaussian(case.key, after - before, moving),
        **trained.moved(before, after),
        **_others(case.net, run.params),
        "share_end": run.records["share"][-1],
        "loss": run.metrics["loss"],
        "train_accuracy": _accuracy(case, run, inputs, labels),
        "test_accuracy": _accuracy(
            case, run, case.images.test_inputs[tested], case.images.test_labels[tested]
        ),
        "step": steps,
        "diverged_at": run.diverged_at,
    }
    return found | (_on_shuffled(case, inputs, labels, moving) if case.shuffled else {})


def _train(case: Classifier, inputs: np.ndarray, labels: np.ndarray, name: str) -> Any:
    before, moving = case.penultimate(case.net), 2 * case.images.classes

    def look(net: PyTree, state: PyTree) -> dict[str, Array]:
        return of_update(case.penultimate(net) - before, moving)

    batches = Batches({"x": inputs, "y": labels}, case.batch)
    steps = recorded_steps(case.epochs * batches.epoch, POINTS)
    run = train(
        case.key, cross_entropy(case.logits), case.net, case.optimizer, batches, steps,
        state=case.state, record=look, name=name,
    )  # fmt: skip
    return run, steps


def cross_entropy(logits: Logits) -> Callable[..., Any]:
    """Mean cross-entropy of a batch, and the share of it that is classified correctly."""

    def loss(net: PyTree, state: PyTree, batch: dict[str, Array], key: Any) -> Any:
        precision = jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))[0].dtype
        found, state = logits(net, scaled(batch["x"], precision), key, state)
        each = optax.softmax_cross_entropy_with_integer_labels(found, batch["y"])
        correct = jnp.mean(1.0 * (jnp.argmax(found, axis=-1) == batch["y"]))
        return jnp.mean(each), (state, {"accuracy": correct})

    return loss


def _accuracy(
    case: Classifier, run: Any, inputs: np.ndarray, labels: Int[np.ndarray, "n"]
) -> float:
    """Share of images that are classified correctly, in evaluation."""
    arrays, rest = eqx.partition(run.params, eqx.is_array)

    @jax.jit
    def guess(arrays: PyTree, state: PyTree, pixels: Array) -> Array:
        precision = jax.tree.leaves(eqx.filter(arrays, eqx.is_inexact_array))[0].dtype
        net = eqx.combine(arrays, rest)
        return jnp.argmax(case.logits(net, scaled(pixels, precision), None, state)[0], axis=-1)

    size = min(250, len(inputs))
    parts = [inputs[i : i + size] for i in range(0, len(inputs) - size + 1, size)]
    found = np.concatenate([np.asarray(guess(arrays, run.state, part)) for part in parts])
    return float(np.mean(found == labels[: len(found)]))


def matrices(net: PyTree) -> list[Float[Array, "m n"]]:
    """All matrices of a network, kernels as out x (in k k), in the order of its leaves."""
    arrays = jax.tree.leaves(eqx.filter(net, eqx.is_inexact_array))
    # A bias has one long side at most.
    kept = [a for a in arrays if a.ndim >= 2 and sum(side > 1 for side in a.shape) > 1]
    return [a.reshape(a.shape[0], -1) for a in kept]


def _others(before: PyTree, after: PyTree) -> dict[str, np.ndarray]:
    """The largest singular values of the updates of all matrices, NaN where there are fewer."""
    pairs = list(zip(matrices(before), matrices(after), strict=True))
    spectra = np.full((len(pairs), TOP), np.nan, np.asarray(pairs[0][0]).dtype)
    for row, (start, end) in zip(spectra, pairs, strict=True):
        values = np.asarray(singular_values(end - start))[:TOP]
        row[: len(values)] = values
    return {
        "matrix_update": spectra,
        "matrix_rows": np.array([len(start) for start, _ in pairs]),
        "matrix_columns": np.array([start.shape[1] for start, _ in pairs]),
    }


def _on_shuffled(
    case: Classifier, inputs: np.ndarray, labels: np.ndarray, moving: int
) -> dict[str, Any]:
    """The same training on labels that say nothing."""
    order = np.asarray(jax.random.permutation(jax.random.fold_in(case.key, 7), len(labels)))
    run, _ = _train(case, inputs, labels[order].astype(np.int32), "shuffled labels")
    update = case.penultimate(run.params) - case.penultimate(case.net)
    return {"share_shuffled": top_share(singular_values(update), moving)}
