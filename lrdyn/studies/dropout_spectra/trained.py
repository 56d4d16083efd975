"""What is measured of a network that is trained with dropout, beside the same without it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lrdyn.engine.claims import above_p
from lrdyn.engine.statement import Claim, Control, Finding, Outcome
from lrdyn.studies.over_seeds import ALPHA, SEEDS, first_lost

POINTS = 26
SPECTRA = ("activations", "balanced")
DIMS = {
    "step": ("step",),
    "shrunk": ("index",),
    **{
        f"{beside}{name}": axes
        for beside in ("", "plain_")
        for name, axes in {
            **dict.fromkeys(SPECTRA, ("step", "index")),
            **{f"{name}_rank": ("step",) for name in SPECTRA},
            "loss": ("step",),
        }.items()
    },
}
"""Axes of what the scenarios leave; ``plain_`` is without dropout."""


class Trained(NamedTuple):
    """Of one training."""

    records: dict[str, np.ndarray]
    """:func:`lrdyn.studies.dropout_spectra.activations.spectra` at the recorded steps."""
    loss: np.ndarray
    """Of the last batch before them, with its masks."""
    quality: float
    """On examples that were not trained on."""
    diverged_at: Any


def compared(train: Callable[[float, str], Trained], dropout: float) -> dict[str, Any]:
    """Train with dropout and, from the same start and in the same order, without."""
    found, lost = {}, []
    for beside, rate, name in (("", dropout, ""), ("plain_", 0.0, "without dropout")):
        run = train(rate, name)
        found |= {f"{beside}{key}": value for key, value in run.records.items()}
        found |= {f"{beside}loss": run.loss, f"{beside}quality": run.quality}
        lost.append(run.diverged_at)
    return found | {"diverged_at": first_lost(lost)}


def _drop(name: str) -> Callable[[Outcome], np.ndarray]:
    """How much higher a rank is without dropout, at the end."""

    def value(one: Outcome) -> np.ndarray:
        return one.measured[f"plain_{name}"][:, -1] - one.measured[name][:, -1]

    return value


def drop_claim(network: str, threshold: float, seed0: str) -> Claim:
    """Dropout lowers the effective rank of the balanced activations."""
    return Claim(
        f"{network}_lower_rank",
        f"dropout lowers the effective rank of H with balanced rows by more than {threshold:g} "
        f"(seed 0: by {seed0}; Student's test over seeds above 0, the residual is its p)",
        kind="statistical", reads=("balanced_rank", "plain_balanced_rank"), tolerance=ALPHA,
        seeds=SEEDS, residual=lambda one: above_p(threshold, _drop("balanced_rank")(one)),
        sides="a threshold from seed 0 against the SVD of activations after two trainings",
    )  # fmt: skip


def drop_control(network: str) -> Control:
    """The training without dropout in the place of that with it."""
    return Control(
        f"{network}_without_dropout", "a training without dropout", f"{network}_lower_rank",
        swap={"balanced_rank": "plain_balanced_rank"},
    )  # fmt: skip


def findings(network: str, quality: str) -> tuple[Finding, ...]:
    """Ranks of the activations with and without dropout, and what either has learned."""
    texts = {"activations": "H", "balanced": "H, rows balanced"}
    ranks = [
        finding
        for name, text in texts.items()
        for finding in (
            Finding(f"{network}_{name}_rank", f"effective rank of {text}, at the end",
                    lambda one, name=name: one.measured[f"{name}_rank"][:, -1],
                    reads=(f"{name}_rank",)),
            Finding(f"{network}_{name}_drop",
                    f"effective rank of {text} without dropout, less that with it",
                    _drop(f"{name}_rank"), reads=(f"{name}_rank", f"plain_{name}_rank"),
                    above=0.0),
        )
    ]  # fmt: skip
    return (
        *ranks,
        Finding(f"{network}_quality", f"{quality}, with dropout",
                lambda one: one.measured["quality"], reads=("quality",)),
        Finding(f"{network}_plain_quality", f"{quality}, without",
                lambda one: one.measured["plain_quality"], reads=("plain_quality",)),
    )  # fmt: skip
