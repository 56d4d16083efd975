"""Spectra of the last hidden activations H, as they are and without the free scale of the units.

H is h x n, a hidden unit a row and an example a column, and W the last layer. Dropout of the hidden
units finds ``W D, D^-1 H`` as good as ``W, H`` for every positive diagonal D: the raw singular
values of H say as much of D as of the product. What is claimed of a network that is trained with
dropout, beside the same network without it, is about the balanced ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lrdyn.core import linalg
from lrdyn.core.recording import log_steps
from lrdyn.core.spectra import effective_rank
from lrdyn.studies.over_seeds import ALPHA, SEEDS, first_lost, mean_exceeds, restrict_to
from lrdyn.training import Keeper
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.rest import OverSteps
from lrdyn.verification.stating.statement import Claim, Control, Finding, Outcome, Scenario

POINTS = 26
"""Recorded steps, first (0) and last included."""


class Spectra(NamedTuple):
    """Singular values of H / sqrt(n)."""

    activations: Float[Array, "index"]
    """Singular values of H as it is, over sqrt(n)."""
    activations_rank: Float[Array, ""]
    """Their effective rank."""
    balanced: Float[Array, "index"]
    """Singular values of H with balanced rows, over sqrt(n)."""
    balanced_rank: Float[Array, ""]
    """Their effective rank."""


class TrainedDropoutMeasured(NamedTuple):
    """What a network leaves that is trained with dropout and, ``plain_``, without."""

    activations: Float[np.ndarray, "step index"] = ABSENT
    """Singular values of H / sqrt(n) on examples that were not trained on."""
    plain_activations: Float[np.ndarray, "step index"] = ABSENT
    """These without dropout."""
    activations_rank: Float[np.ndarray, "step"] = ABSENT
    """Effective rank of ``activations``."""
    plain_activations_rank: Float[np.ndarray, "step"] = ABSENT
    """Effective rank of ``plain_activations``."""
    balanced: Float[np.ndarray, "step index"] = ABSENT
    """Singular values of H / sqrt(n) with balanced rows."""
    plain_balanced: Float[np.ndarray, "step index"] = ABSENT
    """These without dropout."""
    balanced_rank: Float[np.ndarray, "step"] = ABSENT
    """Effective rank of ``balanced``."""
    plain_balanced_rank: Float[np.ndarray, "step"] = ABSENT
    """Effective rank of ``plain_balanced``."""
    loss: Float[np.ndarray, "step"] = ABSENT
    """Loss of the last batch before each recorded step, under its masks; NaN at the start."""
    plain_loss: Float[np.ndarray, "step"] = ABSENT
    """This loss without dropout."""
    quality: Float[np.ndarray, ""] = ABSENT
    """What was learned, on examples that were not trained on: an accuracy, or a missed share."""
    plain_quality: Float[np.ndarray, ""] = ABSENT
    """What was learned without dropout."""
    shrunk: Float[np.ndarray, "index"] = ABSENT
    """sqrt(s_i), the balanced spectrum of a linear network at the minimum of the expected loss. Of
    synthetic data alone."""
    step: Int[np.ndarray, "step"] = ABSENT
    """Recorded steps."""
    diverged_at: Int[np.ndarray, ""] = ABSENT
    """Step at which the first of the two trainings diverged, or -1."""


def steps_of(steps: int, points: int = POINTS) -> np.ndarray:
    """Recorded steps: 0, and others from 1 on, evenly spread on a log axis.

    Example:
        >>> steps_of(100, 4).tolist()
        [0, 1, 10, 100]
    """
    return np.append(0, log_steps(steps, points - 1))


def balance_rows(hidden: Float[Array, "h n"], last: Float[Array, "m h"]) -> Float[Array, "h n"]:
    """Rows of H over ``(||h_i|| / ||w_i||)^{1/2}``: as large as the columns of W that read them.

    A unit that is 0, or that nothing reads, is 0.

    Example:
        >>> balance_rows(jnp.array([[4.0, 0.0]]), jnp.array([[1.0]])).tolist()
        [[2.0, 0.0]]
    """
    rows, columns = jnp.linalg.norm(hidden, axis=1), jnp.linalg.norm(last, axis=0)
    alive = (rows > 0) & (columns > 0)
    ratio = jnp.sqrt(jnp.where(alive, columns, 0.0) / jnp.where(alive, rows, 1.0))
    return ratio[:, None] * hidden


def spectra(hidden: Float[Array, "h n"], last: Float[Array, "m h"]) -> Spectra:
    """Singular values of H / sqrt(n), raw and balanced, and the effective rank of both.

    Example:
        >>> of_two = spectra(jnp.diag(jnp.array([2.0, 1.0])), jnp.eye(2))
        >>> round(float(of_two.activations_rank), 3), round(float(of_two.balanced_rank), 3)
        (1.89, 1.97)
    """
    rows = hidden / jnp.sqrt(1.0 * hidden.shape[1])
    if rows.shape[0] < rows.shape[1]:  # a triangular factor has the same rows but for a rotation
        rows = jnp.linalg.qr(rows.T, mode="r").T
    raw, even = linalg.svdvals(rows), linalg.svdvals(balance_rows(rows, last))
    return Spectra(
        activations=raw,
        activations_rank=effective_rank(raw),
        balanced=even,
        balanced_rank=effective_rank(even),
    )


class NetworkTraining(NamedTuple):
    """Records of one training with dropout or without, and how well it learned."""

    records: Any
    """:class:`Spectra` at the recorded steps, the steps as first axis."""
    loss: np.ndarray
    """Loss of the last batch before them, with its masks."""
    quality: float
    """What was learned, on examples that were not trained on."""
    diverged_at: Any


def train_both(
    train: Callable[[float, str], NetworkTraining], dropout: float, steps: np.ndarray
) -> TrainedDropoutMeasured:
    """Train with dropout and, from the same start and in the same order, without."""
    dropped, plain = train(dropout, ""), train(0.0, "without dropout")
    return TrainedDropoutMeasured(
        activations=dropped.records.activations,
        plain_activations=plain.records.activations,
        activations_rank=dropped.records.activations_rank,
        plain_activations_rank=plain.records.activations_rank,
        balanced=dropped.records.balanced,
        plain_balanced=plain.records.balanced,
        balanced_rank=dropped.records.balanced_rank,
        plain_balanced_rank=plain.records.balanced_rank,
        loss=dropped.loss,
        plain_loss=plain.loss,
        quality=np.asarray(dropped.quality),
        plain_quality=np.asarray(plain.quality),
        step=steps,
        diverged_at=np.asarray(first_lost((dropped.diverged_at, plain.diverged_at))),
    )


Rank = Callable[[TrainedDropoutMeasured], np.ndarray]
"""An effective rank over the steps, of a run or of its seeds."""


def _drop_over_steps(rank: Rank, plain_rank: Rank, flag: str) -> Callable[..., OverSteps]:
    """How much higher a rank is without dropout, over the steps: a sign is claimed of it."""

    def over_steps(outcome: Outcome[Any, TrainedDropoutMeasured]) -> OverSteps:
        run = outcome.measured
        return OverSteps(run.step[0], plain_rank(run) - rank(run), flag=flag)

    return over_steps


def _rank_findings(
    id: str, text: str, rank: Rank, plain_rank: Rank, flag: str
) -> tuple[Finding[Any, TrainedDropoutMeasured], Finding[Any, TrainedDropoutMeasured]]:
    """An effective rank at the end, and how much higher it is without dropout."""
    return (
        Finding(
            f"{id}_rank",
            f"effective rank of {text}, at the end",
            lambda outcome: rank(outcome.measured)[:, -1],
            reads=lambda theory, run: (rank(run),),
        ),
        Finding(
            f"{id}_drop",
            f"effective rank of {text} without dropout, less that with it",
            lambda outcome: plain_rank(outcome.measured)[:, -1] - rank(outcome.measured)[:, -1],
            reads=lambda theory, run: (rank(run), plain_rank(run), run.step),
            above=0.0,
            rest=_drop_over_steps(rank, plain_rank, flag),
        ),
    )


def trained_scenario(
    network: str,
    make: Callable[..., Any],
    train: Callable[[Any, Keeper], TrainedDropoutMeasured],
    *,
    seed0: str,
    quality: str,
    epochs: str,
    findings: tuple[Finding[Any, TrainedDropoutMeasured], ...] = (),
    seeds: int = 1,
) -> Scenario[Any, Any, TrainedDropoutMeasured]:
    """The trainings of one network: dropout lowers the effective rank of balanced activations.

    Args:
        network: its word of ``--network``, with which the ids begin.
        make: builds its case.
        train: trains it with dropout and without.
        seed0: the difference of the ranks that seed 0 had, in words.
        quality: what its field of that name is, in words.
        epochs: flag that counts its epochs.
        findings: what is measured beside what is measured of every network.
        seeds: how many seeds it runs with unless the number is given.
    """
    return Scenario[Any, Any, TrainedDropoutMeasured](
        network,
        make,
        train=train,
        measured=TrainedDropoutMeasured,
        claims=(
            Claim(
                f"{network}_lower_rank",
                "dropout lowers the effective rank of H with balanced rows, the difference being "
                f"at rest (seed 0: by {seed0}; Student's test over seeds above 0, the residual is "
                "its p; the alternative is no difference)",
                kind="statistical",
                form=lambda outcome: mean_exceeds(
                    0.0,
                    outcome.measured.plain_balanced_rank[:, -1]
                    - outcome.measured.balanced_rank[:, -1],
                ),
                reads=lambda theory, run: (run.balanced_rank, run.plain_balanced_rank, run.step),
                tolerance=ALPHA,
                seeds=SEEDS,
                sides="a sign that seed 0 had against the SVD of activations after two trainings",
                rest=_drop_over_steps(
                    lambda run: run.balanced_rank, lambda run: run.plain_balanced_rank, epochs
                ),
            ),
        ),
        controls=(
            Control(
                f"{network}_without_dropout",
                "a training without dropout",
                f"{network}_lower_rank",
                swap=lambda theory, run: (run.balanced_rank, run.plain_balanced_rank),
            ),
        ),
        findings=(
            *_rank_findings(
                f"{network}_activations",
                "H",
                lambda run: run.activations_rank,
                lambda run: run.plain_activations_rank,
                epochs,
            ),
            *_rank_findings(
                f"{network}_balanced",
                "H, rows balanced",
                lambda run: run.balanced_rank,
                lambda run: run.plain_balanced_rank,
                epochs,
            ),
            Finding(
                f"{network}_quality",
                f"{quality}, with dropout",
                lambda outcome: outcome.measured.quality,
                reads=lambda theory, run: (run.quality,),
            ),
            Finding(
                f"{network}_plain_quality",
                f"{quality}, without",
                lambda outcome: outcome.measured.plain_quality,
                reads=lambda theory, run: (run.plain_quality,),
            ),
            *findings,
        ),
        narrow=lambda settings: restrict_to(network, settings),
        diverged=lambda run: run.diverged_at,
        seeds=seeds,
    )
