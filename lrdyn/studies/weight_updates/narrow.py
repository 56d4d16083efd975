"""Fewer whitened dimensions than the width: the update has min(2K, d_0) + min(K, d - d_0) more.

With d_0 inputs and layers of width d > d_0, ``B B^T`` of the layers below is a multiple of a
projector of rank d_0, not of the identity: the labels then enter an inner layer from outside of its
image, too. The first layer, which has nothing below it, stays at min(2K, d_0).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lrdyn.core.factorization import Weights
from lrdyn.core.spectra import singular_values
from lrdyn.engine.claims import tolerance
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.studies.weight_updates.edge import on_images
from lrdyn.theorem2.classifier_claims import HYPOTHESES, Classification

FEWER = 0.4
"""Share of the width that the inputs have."""


def make_narrow(
    key: Key[Array, ""], *, flat_data: str, edge_width: int, edge_steps: int, edge_scale: Any
) -> Classification:
    """The classifier of the edge with fewer principal coordinates than its width."""
    directions = max(1, round(FEWER * edge_width))
    return on_images(key, flat_data, directions, edge_width, edge_steps, edge_scale)


def predict_narrow(case: Classification) -> dict[str, Array]:
    """Ranks of the updates of the first and the second layer."""
    (dims, width), classes = case.weights[0].shape[::-1], len(case.outputs)
    return {"narrow_rank": _ranks(dims, width, classes)}


def _ranks(dims: int, width: int, classes: int) -> Array:
    first = min(2 * classes, dims)
    return jnp.array([first, first + min(classes, width - dims)])


def measure_narrow(case: Classification) -> dict[str, Array]:
    """Singular values of both updates at the end, and the scale of the weights."""

    def look(weights: Weights) -> tuple[Float[Array, "d"], Float[Array, "d"]]:
        first, second, _ = (W - start for W, start in zip(weights, case.weights, strict=True))
        return singular_values(first), singular_values(second)

    run = case.descend(case.loss, case.weights, look)
    first, second = (values[-1] for values in run.records)
    return {
        "narrow_first": first, "narrow_second": second,
        "narrow_scale": jnp.max(jnp.stack([singular_values(W)[0] for W in run.params])),
        "diverged_at": run.diverged_at,
    }  # fmt: skip


def _beyond(one: Outcome) -> float:
    """The largest singular value beyond the rank, of both layers."""
    ranks = one.predicted["narrow_rank"]
    spectra = (one.measured["narrow_first"], one.measured["narrow_second"])
    tails = [v[r] if r < len(v) else 0.0 for v, r in zip(spectra, ranks, strict=True)]
    return float(max(tails) / one.measured["narrow_scale"])


def _orthonormal(case: Classification) -> Array:
    """Every layer starts as its scale times a matrix of orthonormal rows or columns."""
    errors = []
    for W, scale in zip(case.weights, case.scales, strict=True):
        unit = (W if W.shape[0] <= W.shape[1] else W.T) / scale
        errors.append(jnp.max(jnp.abs(unit @ unit.T - jnp.eye(len(unit)))))
    limit = tolerance("identity", case.scales.dtype, size=max(case.weights[0].shape))
    return jnp.max(jnp.stack(errors)) <= limit


def _as_wide(case: Classification) -> dict[str, Array]:
    """2K for every layer, as if there were as many inputs as the layers are wide."""
    return {"narrow_rank": jnp.full(2, 2 * len(case.outputs))}


def _one_less(case: Classification) -> dict[str, Array]:
    return {"narrow_rank": predict_narrow(case)["narrow_rank"] - 1}


def _decayed(case: Classification) -> dict[str, Array]:
    return measure_narrow(dataclasses.replace(case, weight_decay=case.weight_decay + 0.01))


NARROW = Scenario[Classification](
    "narrow", make_narrow, predict_narrow, measure_narrow,
    (
        Claim("narrow_edge",
              "with d_0 whitened dimensions below the width d the update of an inner layer has "
              "rank min(2K, d_0) + min(K, d - d_0), that of the first min(2K, d_0): what is "
              "beyond is zero on the scale of the weights (the other side is 0)",
              residual=_beyond,
              reads=("narrow_rank", "narrow_first", "narrow_second", "narrow_scale")),
    ),
    (
        Control[Classification]("narrow_as_wide", "rank 2K for all layers", "narrow_edge",
                                predict=_as_wide),
        Control[Classification]("narrow_one_less", "one less", "narrow_edge", predict=_one_less),
        Control("narrow_decayed", "weight decay .01", "narrow_edge", measure=_decayed),
    ),
    hypotheses=HYPOTHESES | {"orthogonal_start": _orthonormal},
    dims={"narrow_rank": ("pair",), "narrow_first": ("first_index",),
          "narrow_second": ("index",)},
    steps="edge_steps", diverged="diverged_at",
    sides="a count of dimensions against the SVD of trained updates",
)  # fmt: skip
