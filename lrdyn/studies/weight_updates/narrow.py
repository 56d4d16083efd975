"""Fewer whitened dimensions than the width: the update has min(2K, d_0) + min(K, d - d_0) more.

With d_0 inputs and layers of width d > d_0, ``B B^T`` of the layers below is a multiple of a
projector of rank d_0, not of the identity: the labels then enter an inner layer from outside of its
image, too. The first layer, which has nothing below it, stays at min(2K, d_0).
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lrdyn.core.factorization import Weights
from lrdyn.core.spectra import singular_values
from lrdyn.data import images
from lrdyn.studies.weight_updates.edge import gaussian_edge, make_classification
from lrdyn.theorem2.classifier_claims import HYPOTHESES, Classification
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Zero
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

FEWER = 0.4
"""Share of the width that the inputs have."""


class NarrowTheory(NamedTuple):
    """What is predicted of the updates of the first and the second layer."""

    narrow_rank: Int[Array, "pair"] = ABSENT
    """min(2K, d_0), and min(2K, d_0) + min(K, d - d_0)."""
    gaussian_edges: Float[Array, "pair"] = ABSENT
    """The singular values behind these of Gaussian matrices, which move in all directions, over
    their largest."""


class NarrowMeasured(NamedTuple):
    """What is measured of both updates at the end."""

    narrow_first: Float[Array, "first_index"] = ABSENT
    """Singular values of the update of the first layer, d x d_0."""
    narrow_second: Float[Array, "index"] = ABSENT
    """Singular values of the update of the second layer, d x d."""
    narrow_scale: Float[Array, ""] = ABSENT
    """Largest singular value of a layer."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""


def make_narrow(
    key: Key[Array, ""],
    *,
    flat_data: str,
    data_dir: str = "",
    edge_width: int,
    edge_steps: int,
    edge_scale: Any,
) -> Classification:
    """The classifier of the edge with fewer principal coordinates than its width."""
    directions = max(1, round(FEWER * edge_width))
    return make_classification(
        key, images(flat_data, data_dir), directions, edge_width, edge_steps, edge_scale
    )


def predict_narrow(case: Classification) -> NarrowTheory:
    """Ranks of the updates of the first and the second layer."""
    (dims, width), classes = case.weights[0].shape[::-1], len(case.outputs)
    first = min(2 * classes, dims)
    ranks = [first, first + min(classes, width - dims)]
    shapes = [(width, dims), (width, width)]
    return NarrowTheory(
        narrow_rank=jnp.array(ranks),
        gaussian_edges=jnp.array(list(map(gaussian_edge, shapes, ranks))),
    )


def measure_narrow(case: Classification) -> NarrowMeasured:
    """Singular values of both updates at the end, and the scale of the weights."""

    def look(weights: Weights) -> tuple[Float[Array, "d"], Float[Array, "e"]]:
        first, second, _ = (W - start for W, start in zip(weights, case.weights, strict=True))
        return singular_values(first), singular_values(second)

    run = case.descend(case.loss, case.weights, look)
    first, second = (values[-1] for values in run.records)
    return NarrowMeasured(
        narrow_first=first,
        narrow_second=second,
        narrow_scale=jnp.max(jnp.stack([singular_values(W)[0] for W in run.params])),
        diverged_at=run.diverged_at,
    )


NarrowOutcome = Outcome[NarrowTheory, NarrowMeasured]


def _values_beyond_rank(outcome: NarrowOutcome) -> tuple[Zero, ...]:
    """The singular values beyond the rank, which an update in all directions would have, too."""
    theory, run = outcome.predicted, outcome.measured
    spectra, ranks = (run.narrow_first, run.narrow_second), theory.narrow_rank
    forms = [
        Zero(values[rank:], scale=run.narrow_scale, alternative=edge * values[0])
        for values, rank, edge in zip(spectra, ranks, theory.gaussian_edges, strict=True)
        if rank < len(values)  # an update may have no more of them than its rank is predicted to be
    ]
    # Without anything beyond the ranks there is nothing to see: an alternative of 0 leaves the case
    # open.
    return tuple(forms) or (Zero(0.0, scale=1.0, alternative=0.0),)


def _has_values_beyond(outcome: NarrowOutcome) -> bool:
    spectra = (outcome.measured.narrow_first, outcome.measured.narrow_second)
    ranks = outcome.predicted.narrow_rank
    return any(rank < len(values) for values, rank in zip(spectra, ranks, strict=True))


def _is_orthonormal(case: Classification) -> Array:
    """Every layer starts as its scale times a matrix of orthonormal rows or columns."""
    errors = []
    for W, scale in zip(case.weights, case.scales, strict=True):
        unit = (W if W.shape[0] <= W.shape[1] else W.T) / scale
        errors.append(jnp.max(jnp.abs(unit @ unit.T - jnp.eye(len(unit)))))
    limit = tolerance("identity", case.scales.dtype, size=max(case.weights[0].shape))
    return jnp.max(jnp.stack(errors)) <= limit


NARROW = Scenario[Classification, NarrowTheory, NarrowMeasured](
    "narrow",
    make_narrow,
    predict_narrow,
    measure_narrow,
    theory=NarrowTheory,
    measured=NarrowMeasured,
    claims=(
        Claim(
            "narrow_edge",
            "with d_0 whitened dimensions below the width d the update of an inner layer has "
            "rank min(2K, d_0) + min(K, d - d_0), that of the first min(2K, d_0): what is "
            "beyond is zero on the scale of the weights (the other side is 0; float32 rounds "
            "by as much as the last directions within it move)",
            form=_values_beyond_rank,
            reads=lambda theory, run: (
                theory.narrow_rank,
                theory.gaussian_edges,
                run.narrow_first,
                run.narrow_second,
                run.narrow_scale,
            ),
            applies=_has_values_beyond,
        ),
    ),
    controls=(
        Control(
            "narrow_as_wide",
            "rank 2K for all layers",
            "narrow_edge",
            # 2K, as if there were as many inputs as the layers are wide.
            predict=lambda case: NarrowTheory(narrow_rank=jnp.full(2, 2 * len(case.outputs))),
            precision="float64",
        ),
        Control(
            "narrow_one_less",
            "one less",
            "narrow_edge",
            predict=lambda case: NarrowTheory(narrow_rank=predict_narrow(case).narrow_rank - 1),
            precision="float64",
        ),
        Control(
            "narrow_decayed",
            "weight decay .01",
            "narrow_edge",
            measure=lambda case: measure_narrow(
                dataclasses.replace(case, weight_decay=case.weight_decay + 0.01)
            ),
        ),
    ),
    hypotheses=HYPOTHESES | {"orthogonal_start": _is_orthonormal},
    steps="edge_steps",
    diverged=lambda run: run.diverged_at,
    sides="a count of dimensions against the SVD of trained updates",
)
