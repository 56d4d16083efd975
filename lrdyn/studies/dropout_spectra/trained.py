"""What is measured of a network that is trained with dropout, beside the same without it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lrdyn.theorem import Finding, Outcome

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
    found = {}
    for beside, rate, name in (("", dropout, ""), ("plain_", 0.0, "without dropout")):
        run = train(rate, name)
        found |= {f"{beside}{key}": value for key, value in run.records.items()}
        found |= {f"{beside}loss": run.loss, f"{beside}quality": run.quality}
        found[f"{beside}diverged_at"] = run.diverged_at
    return found


def only(network: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the scenario of one network, which is left out if nobody asked for it."""
    asked = (network,) if network in settings["network"] else ()
    return settings | {"network": asked}


def _drop(name: str) -> Callable[[Outcome], np.ndarray]:
    """How much higher a rank is without dropout, at the end."""

    def value(one: Outcome) -> np.ndarray:
        return one.measured[f"plain_{name}"][:, -1] - one.measured[name][:, -1]

    return value


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
                    expected="above 0", came_true=lambda values: np.mean(values) > 0),
        )
    ]  # fmt: skip
    return (
        *ranks,
        Finding(f"{network}_quality", f"{quality}, with dropout",
                lambda one: one.measured["quality"], reads=("quality",)),
        Finding(f"{network}_plain_quality", f"{quality}, without",
                lambda one: one.measured["plain_quality"], reads=("plain_quality",)),
    )  # fmt: skip
