"""The update W(t) - W(0) of one trained matrix: what is measured of it, and what is claimed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core.descent import Trajectory
from lrdyn.core.spectra import effective_rank, singular_values, top_share
from lrdyn.studies.over_seeds import ALPHA, SEEDS, mean_exceeds, restrict_to
from lrdyn.training import Keeper
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.rest import OverSteps
from lrdyn.verification.stating.statement import Claim, Control, Finding, Scenario


class UpdateSpectrum(NamedTuple):
    """Singular values of an update, and how concentrated they are."""

    update: Float[Array, "index"]
    """Singular values, decreasing."""
    share: Float[Array, ""]
    """Share of the squared Frobenius norm in the first directions."""
    effective_rank: Float[Array, ""]
    """exp of the entropy of the singular values over their sum."""
    stable_rank: Float[Array, ""]
    """||.||_F^2 / ||.||_2^2."""


class UpdateMeasured(NamedTuple):
    """What a trained network leaves of the update of its penultimate matrix."""

    update: Float[np.ndarray, "step index"] = ABSENT
    """Singular values of W(t) - W(0) at the recorded steps."""
    share: Float[np.ndarray, "step"] = ABSENT
    """Share of ||W(t) - W(0)||_F^2 in its first 2K directions."""
    effective_rank: Float[np.ndarray, "step"] = ABSENT
    """Effective rank of the update; NaN at the start, where there is none."""
    stable_rank: Float[np.ndarray, "step"] = ABSENT
    """||.||_F^2 / ||.||_2^2 of the update; NaN at the start."""
    loss: Float[np.ndarray, "step"] = ABSENT
    """Loss of the last batch before each recorded step; NaN at the start."""
    step: Int[np.ndarray, "step"] = ABSENT
    """Recorded steps."""
    share_end: Float[np.ndarray, ""] = ABSENT
    """``share`` at the last step."""
    share_gaussian: Float[np.ndarray, ""] = ABSENT
    """The share of a Gaussian matrix of the shape and norm of the last update."""
    effective_rank_gaussian: Float[np.ndarray, ""] = ABSENT
    """The effective rank of that matrix."""
    start: Float[np.ndarray, "index"] = ABSENT
    """Singular values of W(0)."""
    rows: Int[np.ndarray, ""] = ABSENT
    """Rows of the matrix."""
    columns: Int[np.ndarray, ""] = ABSENT
    """Its columns."""
    moved: Float[np.ndarray, ""] = ABSENT
    """Share of W's singular values that moved by more than 1 % of the largest at the end."""
    train_accuracy: Float[np.ndarray, ""] = ABSENT
    """Share of up to 5,000 training images that are classified correctly at the end."""
    test_accuracy: Float[np.ndarray, ""] = ABSENT
    """The share of images that were not trained on."""
    matrix_update: Float[np.ndarray, "matrix top"] = ABSENT
    """Largest singular values of the updates of all matrices at the end, in the order of
    :func:`lrdyn.networks.matrices`; NaN where a matrix has fewer. Of classifiers alone."""
    matrix_rows: Int[np.ndarray, "matrix"] = ABSENT
    """Rows of these matrices."""
    matrix_columns: Int[np.ndarray, "matrix"] = ABSENT
    """Columns of these matrices."""
    share_shuffled: Float[np.ndarray, "early"] = ABSENT
    """``share`` of a training on shuffled labels, at the same steps as far as it goes."""
    update_shuffled: Float[np.ndarray, "index"] = ABSENT
    """Singular values of its update at its last step."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """Step at which the training diverged, or -1."""


def update_spectrum(update: Float[Array, "m n"], count: int) -> UpdateSpectrum:
    """Singular values of an update, the share of the first ones, its effective and stable rank."""
    values = singular_values(update)
    return UpdateSpectrum(
        update=values,
        share=top_share(values, count),
        effective_rank=effective_rank(values),
        stable_rank=jnp.sum(values**2) / values[0] ** 2,
    )


def gaussian_like(key: Key[Array, ""], update: Float[Array, "m n"]) -> Float[Array, "m n"]:
    """A Gaussian matrix of the shape and norm of an update: an update without a direction."""
    drawn = jax.random.normal(key, update.shape, update.dtype)
    return drawn * (jnp.linalg.norm(update) / jnp.linalg.norm(drawn))


def measured_update(
    key: Key[Array, ""],
    before: Float[Array, "m n"],
    after: Float[Array, "m n"],
    run: Trajectory,
    steps: np.ndarray,
    *,
    directions: int,
    train_accuracy: float,
    test_accuracy: float,
) -> UpdateMeasured:
    """What every training leaves of its penultimate matrix.

    Args:
        key: draws the Gaussian matrix that is compared with the update.
        before: the matrix at the start.
        after: the matrix at the end.
        run: the training, whose records are :class:`UpdateSpectrum` at each recorded step.
        steps: the recorded steps.
        directions: how many are the first ones, 2K.
        train_accuracy: share of the training images that are classified correctly at the end.
        test_accuracy: the share of images that were not trained on.
    """
    start, end = singular_values(before), singular_values(after)
    gaussian = update_spectrum(gaussian_like(key, after - before), directions)
    return UpdateMeasured(
        **run.records._asdict(),
        loss=run.metrics["loss"],
        step=steps,
        share_end=run.records.share[-1],
        share_gaussian=np.asarray(gaussian.share),
        effective_rank_gaussian=np.asarray(gaussian.effective_rank),
        start=np.asarray(start),
        rows=np.asarray(before.shape[0]),
        columns=np.asarray(before.shape[1]),
        # Above 1 % of the largest, far from what rounding makes of a value that stays.
        moved=np.asarray(jnp.mean(1.0 * (jnp.abs(end - start) > 0.01 * jnp.max(end)))),
        train_accuracy=np.asarray(train_accuracy),
        test_accuracy=np.asarray(test_accuracy),
        diverged_at=np.asarray(run.diverged_at),
    )


SHUFFLED = "shuffled labels"
"""Name of the second training of a network."""


def shuffled_labels(key: Key[Array, ""], labels: np.ndarray) -> np.ndarray:
    """The labels in a random order: they say nothing of their images."""
    # The trainings have the key itself.
    order = jax.random.permutation(jax.random.fold_in(key, 7), len(labels))
    return labels[np.asarray(order)]


def recorded_until(steps: np.ndarray, step: int) -> np.ndarray:
    """The recorded steps up to the first that is not before a step; all where there is none.

    Example:
        >>> recorded_until(np.array([0, 4, 8, 12]), 6).tolist()
        [0, 4, 8]
    """
    return steps[: np.searchsorted(steps, step) + 1]


def shuffled_records(run: Trajectory) -> dict[str, np.ndarray]:
    """What is kept of a training on shuffled labels."""
    return {"share_shuffled": run.records.share, "update_shuffled": run.records.update[-1]}


def label_share(run: UpdateMeasured) -> Float[np.ndarray, "..."]:
    """The share less that on shuffled labels, at the last step of the training on these."""
    last = run.share_shuffled.shape[-1] - 1
    return run.share[..., last] - run.share_shuffled[..., last]


def trained_scenario(
    network: str,
    make: Callable[..., Any],
    train: Callable[[Any, Keeper], UpdateMeasured],
    *,
    threshold: float | None = None,
    seed0: str = "",
    longer: str,
    steps: str = "",
    seeds: int = 1,
) -> Scenario[Any, Any, UpdateMeasured]:
    """The training of one network, in whose top 2K directions most of the update is at the end.

    Args:
        network: its word of ``--network``, with which the ids begin.
        make: builds its case.
        train: trains it.
        threshold: what the mean share is claimed to exceed; nothing is claimed without one.
        seed0: the shares that seed 0 had, in words.
        longer: flag that counts its epochs or steps.
        steps: flag that counts its steps, if there is one.
        seeds: how many seeds it runs with unless the number is given.
    """
    return Scenario[Any, Any, UpdateMeasured](
        network,
        make,
        train=train,
        measured=UpdateMeasured,
        claims=()
        if threshold is None
        else (
            Claim(
                f"{network}_share",
                f"the top 2K directions hold more than {threshold:g} of ||W(t) - W(0)||_F^2 at the "
                f"end (seed 0 had {seed0}; Student's test over seeds above 0, the residual is its "
                "p; the alternative is half of that)",
                kind="statistical",
                form=lambda outcome: mean_exceeds(threshold, outcome.measured.share_end),
                reads=lambda theory, run: (run.share_end, run.share, run.step),
                tolerance=ALPHA,
                seeds=SEEDS,
                rest=lambda outcome: OverSteps(
                    outcome.measured.step[0], outcome.measured.share, threshold, longer
                ),
                sides="a threshold from seed 0 against the SVD of trained updates",
            ),
        ),
        controls=()
        if threshold is None
        else (
            Control(
                f"{network}_gaussian",
                "a Gaussian update of equal norm",
                f"{network}_share",
                swap=lambda theory, run: (run.share_end, run.share_gaussian),
            ),
        ),
        findings=(
            Finding(
                f"{network}_effective_rank",
                "effective rank of the update at the end",
                lambda outcome: outcome.measured.effective_rank[:, -1],
                reads=lambda theory, run: (run.effective_rank,),
            ),
            Finding(
                f"{network}_stable_rank",
                "||.||_F^2 / ||.||_2^2 of the update at the end",
                lambda outcome: outcome.measured.stable_rank[:, -1],
                reads=lambda theory, run: (run.stable_rank,),
            ),
            Finding(
                f"{network}_moved",
                "share of W's singular values that moved by more than 1 % of the largest",
                lambda outcome: outcome.measured.moved,
                reads=lambda theory, run: (run.moved,),
            ),
            Finding(
                f"{network}_accuracy",
                "accuracy on images that were not trained on",
                lambda outcome: outcome.measured.test_accuracy,
                reads=lambda theory, run: (run.test_accuracy,),
            ),
            Finding(
                f"{network}_shuffled",
                "share of the top 2K directions, less that of a training on shuffled labels at its "
                "last step",
                lambda outcome: label_share(outcome.measured),
                reads=lambda theory, run: (run.share, run.share_shuffled),
                above=0.0,
                rest="equal steps",
            ),
        ),
        narrow=lambda settings: restrict_to(network, settings),
        steps=steps,
        diverged=lambda run: run.diverged_at,
        seeds=seeds,
    )
