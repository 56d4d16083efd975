"""What is claimed of the update of one trained matrix, whatever network it belongs to."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.core.spectra import singular_values
from lrdyn.engine.claims import above_p
from lrdyn.engine.statement import Claim, Control, Finding, Outcome
from lrdyn.studies.over_seeds import ALPHA, SEEDS

DIMS = {
    "update": ("step", "index"),
    "start": ("index",),
    "step": ("step",),
    "matrix_update": ("matrix", "top"),
    "matrix_rows": ("matrix",),
    "matrix_columns": ("matrix",),
    **dict.fromkeys(("share", "effective_rank", "stable_rank", "loss"), ("step",)),
}


def _last(name: str) -> Callable[[Outcome], np.ndarray]:
    return lambda one: one.measured[name][:, -1]


def share_claim(network: str, threshold: float, seed0: str) -> Claim:
    """At the end most of ||W(t) - W(0)||_F^2 is in the top 2K directions."""
    return Claim(
        f"{network}_share",
        f"the top 2K directions hold more than {threshold:g} of ||W(t) - W(0)||_F^2 at the end "
        f"(seed 0 had {seed0}; Student's test over seeds above 0, the residual is its p)",
        kind="statistical", reads=("share_end",), tolerance=ALPHA, seeds=SEEDS,
        residual=lambda one: above_p(threshold, one.measured["share_end"]),
        sides="a threshold from seed 0 against the SVD of trained updates",
    )  # fmt: skip


def share_control(network: str) -> Control:
    """A Gaussian matrix of equal norm."""
    return Control(
        f"{network}_gaussian", "a Gaussian update of equal norm", f"{network}_share",
        swap={"share_end": "share_gaussian"},
    )  # fmt: skip


def moved(before: Float[Array, "m n"], after: Float[Array, "m n"]) -> dict[str, Array]:
    """Singular values of a matrix at its start, and how many of them moved by 1 % or more."""
    start, end = singular_values(before), singular_values(after)
    far = jnp.abs(end - start) > 0.01 * jnp.max(end)
    return {"start": start, "moved": jnp.mean(1.0 * far)}


def findings(network: str) -> tuple[Finding, ...]:
    """Ranks of the update at the end, how much of the start's spectrum moved, accuracy."""
    return (
        Finding(f"{network}_effective_rank", "effective rank of the update at the end",
                _last("effective_rank"), reads=("effective_rank",)),
        Finding(f"{network}_stable_rank", "||.||_F^2 / ||.||_2^2 of the update at the end",
                _last("stable_rank"), reads=("stable_rank",)),
        Finding(f"{network}_moved",
                "share of W's singular values that moved by more than 1 % of the largest",
                lambda one: one.measured["moved"], reads=("moved",)),
        Finding(f"{network}_accuracy", "accuracy on images that were not trained on",
                lambda one: one.measured["test_accuracy"], reads=("test_accuracy",)),
    )  # fmt: skip
