"""Where the edge is: a deep linear classifier on whitened images moves in 2K directions, exactly.

With X X^T = I, an orthogonal start, full batches and no decay the update W_l(t) - W_l(0) of every
square layer has rank 2K at most (classification version of Theorem 2,
:mod:`lrdyn.theorem2.classifier`). The images enter by their principal coordinates, as many as the
layers are wide.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core.condition import conditions
from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import gaussian_layers
from lrdyn.core.linalg import svdvals
from lrdyn.data import images
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.studies.pictures import spread_out
from lrdyn.studies.weight_updates.measures import whiten
from lrdyn.theorem2 import setting
from lrdyn.theorem2.classifier_claims import HYPOTHESES, Classification, colour, theory_run
from lrdyn.theorem2.setting import parts_of

DEPTH = 3
EXAMPLES = 600
"""Images of the identity; more would change the numbers and not what is true."""


def _classes_and_inputs(data: str, directions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whitened coordinates of images, their labels as columns of norm of about one, and as such."""
    found = images(data)
    chosen = spread_out(EXAMPLES, len(found.train_labels))
    pixels, labels = found.train_inputs[chosen], found.train_labels[chosen]
    count = len(labels)
    inputs = whiten(pixels.reshape(count, -1).T / 255.0, directions) / np.sqrt(count)
    one_hot = np.eye(found.classes)[labels].T * np.sqrt(found.classes / count)
    return inputs, one_hot, labels


def make_edge(
    key: Key[Array, ""], *, flat_data: str, edge_width: int, edge_steps: int, edge_scale: Any
) -> Classification:
    """A classifier of three layers on the first principal coordinates of images."""
    return on_images(key, flat_data, edge_width, edge_width, edge_steps, edge_scale)


def on_images(
    key: Key[Array, ""], data: str, directions: int, width: int, steps: int, scale: Any
) -> Classification:
    """A classifier of three layers of one width on so many principal coordinates of images."""
    inputs, one_hot, labels = _classes_and_inputs(data, directions)
    start = setting.start_of_run(
        key, (directions, *[width] * (DEPTH - 1), len(one_hot)), init_scale=scale,
        init_spread=1.0, weight_decay=0.0, decay_spread=1.0, learning_rate=0.1, steps=steps,
    )  # fmt: skip
    precision = start["scales"].dtype
    return Classification(
        inputs=jnp.asarray(inputs, precision), outputs=jnp.asarray(one_hot, precision),
        labels=jnp.asarray(labels), **start,
    )  # fmt: skip


def predict_edge(case: Classification) -> dict[str, Array]:
    """Nothing beyond 2K; and how far theory's own run carries a small error off that space."""
    runs, moving = theory_run(case), 2 * len(case.outputs)
    off = conditions(runs, lambda run: parts_of(run.records["square"], moving))["off_block"]
    layers = runs.run.records["square"]
    moved = jnp.max(jnp.abs(layers - layers[:1]))
    return {
        "edge": jnp.zeros(DEPTH - 1),
        # An update loses the digits that it is smaller than the weights.
        "condition_edge": off * jnp.max(jnp.abs(layers)) / moved,
        "diverges": runs.run.diverged_at,
    }


def measure_edge(case: Classification) -> dict[str, Array]:
    """Singular values of the updates of the square layers, by automatic gradients."""

    def spectra(weights: Weights) -> Float[Array, "layers d"]:
        pairs = zip(weights[:-1], case.weights[:-1], strict=True)
        return jnp.stack([svdvals(now - before) for now, before in pairs])

    run = case.descend(case.loss, case.weights, spectra)
    return _edges(run.records, 2 * len(case.outputs)) | {
        "diverged_at": run.diverged_at, "step": jnp.asarray(case.steps),
        "classes": jnp.asarray(len(case.outputs)),
    }  # fmt: skip


def _edges(spectra: Float[Array, "times layers d"], moving: int) -> dict[str, Array]:
    largest = jnp.max(spectra[..., 0], axis=0)
    return {
        "edge": jnp.max(spectra[..., moving], axis=0) / largest,
        "update": spectra,
    }


def _edge_residual(one: Outcome) -> float:
    return float(np.max(np.abs(one.measured["edge"] - one.predicted["edge"])))


def _gaussian(key: Key[Array, ""], case: Classification, amount: Array) -> Classification:
    """A Gaussian start of the same norm."""
    widths = (*[len(case.inputs)] * DEPTH, len(case.outputs))
    drawn = gaussian_layers(key, widths, case.scales)
    return dataclasses.replace(case, weights=tuple(drawn))


def _decayed(case: Classification) -> dict[str, Array]:
    return measure_edge(dataclasses.replace(case, weight_decay=case.weight_decay + 0.01))


def _in_batches(case: Classification) -> dict[str, Array]:
    """Descent on every third example: their inputs alone are not white."""
    third = {name: getattr(case, name)[..., ::3] for name in ("inputs", "outputs", "labels")}
    return measure_edge(dataclasses.replace(case, **third))


def _one_class_less(case: Classification) -> dict[str, Array]:
    """The edge looked for one pair of directions too early."""
    found = measure_edge(case)["update"]
    return _edges(found, 2 * len(case.outputs) - 2)


EDGE = Scenario[Classification](
    "edge", make_edge, predict_edge, measure_edge,
    (
        Claim("whitened_edge",
              "deep linear classifier on whitened images: sigma_{2K+1} of W_l(t) - W_l(0) is zero "
              "for l < L, relative to sigma_1 (the formula is that of the frame: the other side "
              "is 0)",
              residual=_edge_residual, reads=("edge",), condition="condition_edge"),
    ),
    (
        Control("edge_not_whitened", "input coordinates rescaled", "whitened_edge", case=colour,
                breaks="whitened_inputs"),
        Control("edge_gaussian_start", "Gaussian start", "whitened_edge", case=_gaussian,
                breaks="orthogonal_start"),
        Control("edge_decayed", "weight decay .01", "whitened_edge", measure=_decayed),
        Control("edge_in_batches", "every third example", "whitened_edge", measure=_in_batches),
        Control("edge_too_early", "sigma_{2K-1} in place of sigma_{2K+1}", "whitened_edge",
                measure=_one_class_less),
    ),
    hypotheses=HYPOTHESES,
    dims={"edge": ("square_layer",), "update": ("step", "square_layer", "index"),
          "step": ("step",)},
    steps="edge_steps", diverges="diverges", diverged="diverged_at",
    sides="the frame's 2K directions against the SVD of trained updates",
)  # fmt: skip
