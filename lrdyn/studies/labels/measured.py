"""What labels do to an update: one network trained on true, shuffled and fresh labels.

Trainings are compared where they fit their labels equally well, never at the same step: a network
that has not yet learnt has an update of another size and another rank. Labels that are drawn anew
at every step are never fitted; that training is compared where its update is as large.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from lrdyn import networks
from lrdyn.core import chance
from lrdyn.core.descent import Trajectory
from lrdyn.core.recording import log_steps
from lrdyn.core.spectra import effective_rank, singular_values
from lrdyn.studies.over_seeds import first_lost
from lrdyn.studies.pictures import spread_out
from lrdyn.studies.weight_updates.classifiers import penultimate
from lrdyn.training import FORGETFUL, Batches, Keeper, train
from lrdyn.verification.stating.fields import ABSENT

TRUE, SHUFFLED, ANEW = "true", "shuffled", "anew"
LABELLINGS = (TRUE, SHUFFLED, ANEW)
"""Labels that every cell is trained on; the base cell is trained on those of PARTLY, too."""
PARTLY = ("25", "50", "75")
"""Per cent of the labels that are shuffled."""
LEVELS = (0.9, 0.5, 0.1, 0.01)
"""Training losses at which trainings are compared, over log K, the loss of guessing."""
POINTS = 64
"""Recorded steps, evenly spread on a log axis."""
TOLD = 1000
"""Training examples on which the training loss is measured."""
REACH = 3
"""The largest drop is looked for among the first 3 K singular values."""

Loss = Callable[[Any, Any, dict[str, Array], Any], Any]
"""Cross-entropy of a batch ``{"x": ..., "y": ...}``, as a training takes it."""


class LabelCase(NamedTuple):
    """A network, labelled examples, and how it is trained on them."""

    key: Key[Array, ""]
    net: networks.Network
    inputs: np.ndarray
    labels: Int[np.ndarray, "n"]
    classes: int
    loss: Loss
    rule: optax.GradientTransformation
    batch: int
    epochs: int
    labellings: tuple[str, ...]


class LabelsMeasured(NamedTuple):
    """Updates of the penultimate matrix under each labelling of a cell."""

    update: Float[np.ndarray, "labelling step index"] = ABSENT
    """Singular values of W(t) - W(0) at the recorded steps."""
    training_loss: Float[np.ndarray, "labelling step"] = ABSENT
    """Cross-entropy of training examples over log K; of fresh labels it says nothing."""
    step: Int[np.ndarray, "step"] = ABSENT
    """Recorded steps."""
    record_at: Int[np.ndarray, "labelling level"] = ABSENT
    """First record at which the training loss is at most the level, -1 without one: fresh labels
    are never fitted."""
    rank_at: Float[np.ndarray, "labelling level"] = ABSENT
    """Effective rank of the update there; NaN without a record."""
    outside_K: Float[np.ndarray, "labelling level"] = ABSENT
    """Share of the update's squared norm outside its first K directions, there."""
    outside_2K: Float[np.ndarray, "labelling level"] = ABSENT
    """Share outside its first 2 K directions, there."""
    drop_at_K: Float[np.ndarray, "labelling level"] = ABSENT
    """sigma_{K+1} / sigma_K there."""
    drop_at_2K: Float[np.ndarray, "labelling level"] = ABSENT
    """sigma_{2K+1} / sigma_{2K} there."""
    largest_drop: Float[np.ndarray, "labelling level"] = ABSENT
    """The j up to 3 K whose sigma_{j+1} / sigma_j is least, over K, there."""
    equal_norm: Float[np.ndarray, ""] = ABSENT
    """The largest ||W(t) - W(0)||_F that every labelling reaches."""
    rank_at_equal_norm: Float[np.ndarray, "labelling"] = ABSENT
    """Effective rank at the first record at which the update is as large as that."""
    gaussian_rank: Float[np.ndarray, ""] = ABSENT
    """Effective rank of a Gaussian matrix of this size."""
    rank_end: Float[np.ndarray, "labelling"] = ABSENT
    """Effective rank of the update at the end."""
    rank_without_mean: Float[np.ndarray, "labelling"] = ABSENT
    """The same without the mean of what the matrix reads, a direction that it is projected off; NaN
    for kernels."""
    left_start: Float[np.ndarray, "labelling"] = ABSENT
    """Share of the update's squared norm at the end whose left side lies in the rows that the last
    layer had at the start; by chance K over their length."""
    left_both: Float[np.ndarray, "labelling"] = ABSENT
    """That share in the rows of start and end together; by chance 2 K over their length."""
    right_means: Float[np.ndarray, "labelling"] = ABSENT
    """Share whose right side lies in the class means of what the matrix reads at the end, by the
    labels of the training; NaN for fresh labels and for kernels."""
    right_top: Float[np.ndarray, "labelling"] = ABSENT
    """Share in the first K principal directions, not centred, of what the matrix reads at the end;
    NaN for kernels."""
    classes: Int[np.ndarray, ""] = ABSENT
    """K."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """Step at which the first training that was lost diverged, or -1."""


class _Looked(NamedTuple):
    """What is recorded of a training."""

    update: Float[Array, "index"]
    training_loss: Float[Array, ""]


class _Ended(NamedTuple):
    """A training and the labels that it had."""

    run: Trajectory
    labels: Int[np.ndarray, "n"]


def shuffle_share(key: Key[Array, ""], labels: Int[np.ndarray, "n"], share: float) -> np.ndarray:
    """Permute a share of the labels among each other: they say nothing of their examples.

    Example:
        >>> labels = np.arange(1000) % 10
        >>> moved = shuffle_share(jax.random.key(0), labels, 0.5)
        >>> bool(0.4 < np.mean(moved != labels) < 0.5), np.bincount(moved).tolist() == [100] * 10
        (True, True)
    """
    order = np.asarray(jax.random.permutation(key, len(labels)))[: round(share * len(labels))]
    moved = labels.copy()
    moved[np.sort(order)] = labels[order]
    return moved


def with_fresh_labels(loss: Loss, classes: int) -> Loss:
    """The same loss of labels that are drawn anew at every step."""

    def fresh(net: Any, state: Any, batch: dict[str, Array], key: Key[Array, ""]) -> Any:
        drawn = jax.random.randint(
            jax.random.fold_in(key, 2), batch["y"].shape, 0, classes, batch["y"].dtype
        )
        return loss(net, state, batch | {"y": drawn}, key)

    return fresh


def last_layer(net: networks.Network) -> Float[Array, "k m"]:
    """The matrix of the last layer, W_L."""
    *_, last = networks.matrices(net).values()
    return last


def measure_labels(case: LabelCase, keeper: Keeper = FORGETFUL) -> LabelsMeasured:
    """Train on each labelling from the same start, and look at the update of W_{L-1}."""
    epoch = Batches(case.labels, case.batch).epoch
    steps = np.append(0, log_steps(case.epochs * epoch, POINTS))
    ends = [_train_on(labelling, case, steps, keeper) for labelling in case.labellings]
    updates = np.stack([end.run.records.update for end in ends])
    losses = np.stack([end.run.records.training_loss for end in ends])
    at = _at_levels(case.labellings, losses)
    spans = [
        _shares_of_spans(labelling, case, end)
        for labelling, end in zip(case.labellings, ends, strict=True)
    ]
    return LabelsMeasured(
        update=updates,
        training_loss=losses,
        step=steps,
        record_at=at,
        **_measure_at(updates, at, case.classes),
        **_at_equal_norm(updates),
        gaussian_rank=np.asarray(chance.gaussian_effective_rank(*penultimate(case.net).shape)),
        **{name: np.array([of_run[name] for of_run in spans]) for name in spans[0]},
        classes=np.asarray(case.classes),
        diverged_at=np.asarray(first_lost(end.run.diverged_at for end in ends)),
    )


def _train_on(labelling: str, case: LabelCase, steps: np.ndarray, keeper: Keeper) -> _Ended:
    """Train on one labelling, from the start and in the order of all of them."""
    share = float(labelling) / 100 if labelling in PARTLY else float(labelling == SHUFFLED)
    # The trainings have the key itself.
    labels = shuffle_share(jax.random.fold_in(case.key, 7), case.labels, share).astype(np.int32)
    told, before = spread_out(TOLD, len(labels)), penultimate(case.net)
    examples = {"x": jnp.asarray(case.inputs[told]), "y": jnp.asarray(labels[told])}

    def look(net: networks.Network, state: PyTree) -> _Looked:
        value, _ = case.loss(net, state, examples, None)
        values = singular_values(penultimate(net) - before)
        return _Looked(values, value / np.log(case.classes))

    run = train(
        case.key,
        with_fresh_labels(case.loss, case.classes) if labelling == ANEW else case.loss,
        case.net,
        case.rule,
        Batches({"x": case.inputs, "y": labels}, case.batch),
        steps,
        state=networks.initial_state(case.net) or None,
        record=look,
        keeper=keeper,
        name=f"{labelling} labels",
    )
    return _Ended(run, labels)


def first_record(reached: np.ndarray) -> int:
    """Index of the first true entry, -1 if none is."""
    return int(np.argmax(reached)) if reached.any() else -1


def _at_levels(
    labellings: tuple[str, ...], losses: Float[np.ndarray, "labelling step"]
) -> Int[np.ndarray, "labelling level"]:
    """Records at which the levels of the training loss are reached."""
    return np.array(
        [
            [-1 if name == ANEW else first_record(of_run <= level) for level in LEVELS]
            for name, of_run in zip(labellings, losses, strict=True)
        ]
    )


def _at_equal_norm(updates: Float[np.ndarray, "labelling step index"]) -> dict[str, np.ndarray]:
    """Effective ranks where all updates are as large."""
    norms = np.linalg.norm(updates, axis=-1)
    norm = np.asarray(np.min(np.max(norms, axis=1)))
    spectra = [of[first_record(sizes >= norm)] for of, sizes in zip(updates, norms, strict=True)]
    ranks = effective_rank(jnp.asarray(np.stack(spectra)))
    return {"equal_norm": norm, "rank_at_equal_norm": np.asarray(ranks)}


def _measure_at(
    updates: Float[np.ndarray, "labelling step index"],
    at: Int[np.ndarray, "labelling level"],
    classes: int,
) -> dict[str, np.ndarray]:
    """Rank, shares and drops of the spectra at some records; NaN where there is none."""
    # The last record stands in, to be left out below: at the start there is no update.
    spectra = np.take_along_axis(updates, np.where(at > 0, at, -1)[..., None], axis=1)
    squares = spectra**2
    outside = 1 - np.cumsum(squares, axis=-1) / np.sum(squares, axis=-1, keepdims=True)
    reach = min(REACH * classes, spectra.shape[-1] - 1)
    drops = spectra[..., 1 : reach + 1] / spectra[..., :reach]
    measured = {
        "rank_at": np.asarray(effective_rank(jnp.asarray(spectra))),
        "outside_K": outside[..., classes - 1],
        "outside_2K": outside[..., 2 * classes - 1],
        "drop_at_K": drops[..., classes - 1],
        "drop_at_2K": drops[..., 2 * classes - 1],
        "largest_drop": (1 + np.argmin(drops, axis=-1)) / classes,
    }
    return {name: np.where(at > 0, values, np.nan) for name, values in measured.items()}


def _shares_of_spans(labelling: str, case: LabelCase, end: _Ended) -> dict[str, float]:
    """Shares of the last update in the spans of the last layer's rows and of what W_{L-1} reads."""
    net = end.run.params
    update = np.asarray(penultimate(net) - penultimate(case.net), np.float64)
    rows = [np.asarray(last_layer(n), np.float64).T for n in (case.net, net)]
    shares = {
        "left_start": _share_in(rows[0], update),
        "left_both": _share_in(np.hstack(rows), update),
        "right_means": np.nan,
        "right_top": np.nan,
        "rank_end": float(effective_rank(singular_values(jnp.asarray(update)))),
        "rank_without_mean": np.nan,
    }
    if isinstance(net, networks.MLP):
        read = np.asarray(_read_by_penultimate(net, jnp.asarray(case.inputs)), np.float64)
        top, _, _ = np.linalg.svd(read, full_matrices=False)
        mean = read.mean(axis=1) / np.linalg.norm(read.mean(axis=1))
        without = jnp.asarray(update - np.outer(update @ mean, mean))
        shares["rank_without_mean"] = float(effective_rank(singular_values(without)))
        shares["right_top"] = _share_in(top[:, : case.classes], update.T)
        if labelling != ANEW:
            of_class = [
                read[:, end.labels == label].mean(axis=1) for label in np.unique(end.labels)
            ]
            shares["right_means"] = _share_in(np.stack(of_class, axis=1), update.T)
    return shares


def _read_by_penultimate(net: networks.MLP, inputs: Float[Array, "n d"]) -> Float[Array, "m n"]:
    """Activations that W_{L-1} of a perceptron reads, an example a column."""
    hidden = inputs.T
    for layer in range(len(net.weights) - 2):
        inner = net.weights[layer] @ hidden
        bias = 0.0 if net.biases is None else net.biases[layer][:, None]
        hidden = net.activation(inner + bias)
    return hidden


def _share_in(span: Float[np.ndarray, "m s"], matrix: Float[np.ndarray, "m n"]) -> float:
    """Share of a squared norm in the span of some columns.

    Example:
        >>> _share_in(np.array([[1.0], [0.0]]), np.array([[3.0], [4.0]]))
        0.36
    """
    basis, sizes, _ = np.linalg.svd(span, full_matrices=False)
    basis = basis[:, sizes > 1e-10 * sizes[0]]
    return float(np.sum((basis.T @ matrix) ** 2) / np.sum(matrix**2))
