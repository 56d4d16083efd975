"""Where the edge is: a deep linear classifier on whitened images moves in 2K directions, exactly.

With X X^T = I, an orthogonal start, full batches and no decay the update W_l(t) - W_l(0) of every
square layer has rank 2K at most (classification version of Theorem 2,
:mod:`lrdyn.theorem2.classifier`). The images enter by their principal coordinates, as many as the
layers are wide.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core.condition import conditions
from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import gaussian_layers
from lrdyn.core.linalg import svdvals
from lrdyn.data import Images, images
from lrdyn.studies.pictures import spread_out
from lrdyn.theorem2 import setting
from lrdyn.theorem2.classifier_claims import HYPOTHESES, Classification, colour, theory_run
from lrdyn.theorem2.setting import layer_blocks
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Zero
from lrdyn.verification.stating.statement import Claim, Control, Scenario

DEPTH = 3
EXAMPLES = 600
"""Images of the identity; more would change the numbers and not what is true."""


class EdgeTheory(NamedTuple):
    """What is predicted of the updates on whitened images."""

    gaussian_edge: Float[Array, ""] = ABSENT
    """sigma_{2K+1} / sigma_1 of a Gaussian matrix of this size, which moves in all directions."""
    condition_edge: Float[Array, ""] = ABSENT
    """Factor by which theory's own run carries a small error off the 2K directions, over how far
    the layers move."""
    diverges: Int[Array, ""] = ABSENT
    """Step at which the reduced problem diverges, or -1."""


class EdgeMeasured(NamedTuple):
    """What is measured of the updates on whitened images."""

    edge: Float[Array, "square_layer"] = ABSENT
    """sigma_{2K+1} / sigma_1 of the update of each square layer, either largest over the steps."""
    update: Float[Array, "step square_layer index"] = ABSENT
    """Singular values of W_l(t) - W_l(0) at the recorded steps."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""
    classes: Int[Array, ""] = ABSENT
    """K."""
    edge_accuracy: Float[Array, ""] = ABSENT
    """Share of the images, which are trained on, that are classified correctly at the end."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""


def whiten(inputs: Float[np.ndarray, "features n"], directions: int) -> np.ndarray:
    """Leading principal components with ``X X^T = n I``; the last ones are ill-determined noise.

    The largest entry of each principal direction is made positive: signs are arbitrary, and another
    version of LAPACK would start another run.

    Example:
        >>> whiten(np.diag([2.0, 1.0]), 1).round(6).tolist()
        [[1.414214, 0.0]]
    """
    U, _, Vh = np.linalg.svd(inputs, full_matrices=False)
    largest = np.take_along_axis(U, np.argmax(np.abs(U), axis=0)[None], axis=0)[0]
    return np.sqrt(inputs.shape[1]) * (np.sign(largest)[:, None] * Vh)[:directions]


def make_edge(
    key: Key[Array, ""],
    *,
    flat_data: str,
    data_dir: str = "",
    edge_width: int,
    edge_steps: int,
    edge_scale: Any,
) -> Classification:
    """A classifier of three layers on the first principal coordinates of images."""
    return make_classification(
        key, images(flat_data, data_dir), edge_width, edge_width, edge_steps, edge_scale
    )


def make_classification(
    key: Key[Array, ""], data_set: Images, directions: int, width: int, steps: int, scale: Any
) -> Classification:
    """A classifier of three layers of one width on so many principal coordinates of images."""
    chosen = spread_out(EXAMPLES, len(data_set.train_labels))
    labels = data_set.train_labels[chosen]
    count = len(labels)
    pixels = data_set.train_inputs[chosen].reshape(count, -1).T / 255.0
    # X X^T = I, and not n I: the step size then means the same for any number of images.
    inputs = whiten(pixels, directions) / np.sqrt(count)
    # Columns of this norm leave Phi = Y X^T singular values of about one.
    one_hot = np.eye(data_set.classes)[labels].T * np.sqrt(data_set.classes / count)
    start = setting.start_of_run(
        key,
        (directions, *[width] * (DEPTH - 1), len(one_hot)),
        init_scale=scale,
        init_spread=1.0,
        weight_decay=0.0,
        decay_spread=1.0,
        learning_rate=0.1,
        steps=steps,
    )
    precision = start["scales"].dtype
    return Classification(
        inputs=jnp.asarray(inputs, precision),
        outputs=jnp.asarray(one_hot, precision),
        labels=jnp.asarray(labels),
        **start,
    )


def gaussian_edge(shape: tuple[int, int], rank: int) -> float:
    """sigma_{rank+1} / sigma_1 of a Gaussian matrix; 0 if it has no so many singular values.

    Example:
        >>> 0 < gaussian_edge((20, 20), 15) < gaussian_edge((20, 20), 5) < 1
        True
    """
    values = np.linalg.svd(np.random.default_rng(0).normal(size=shape), compute_uv=False)
    return float(values[rank] / values[0]) if rank < len(values) else 0.0


def predict_edge(case: Classification) -> EdgeTheory:
    """How far theory's own run carries a small error off the space of 2K directions."""
    runs, moving = theory_run(case), 2 * len(case.outputs)
    off = conditions(runs, lambda run: layer_blocks(run.records["square"], moving))["off_block"]
    layers = runs.run.records["square"]
    moved = jnp.max(jnp.abs(layers - layers[:1]))
    width = len(case.inputs)
    return EdgeTheory(
        gaussian_edge=jnp.asarray(gaussian_edge((width, width), moving)),
        # An update loses the digits that it is smaller than the weights.
        condition_edge=off * jnp.max(jnp.abs(layers)) / moved,
        diverges=runs.run.diverged_at,
    )


def measure_edge(case: Classification) -> EdgeMeasured:
    """Singular values of the updates of the square layers, by automatic gradients."""

    def spectra(weights: Weights) -> Float[Array, "layers d"]:
        pairs = zip(weights[:-1], case.weights[:-1], strict=True)
        return jnp.stack([svdvals(now - before) for now, before in pairs])

    run = case.descend(case.loss, case.weights, spectra)
    scores = case.inputs
    for W in run.params:
        scores = W @ scores
    return EdgeMeasured(
        edge=_edge_of(run.records, 2 * len(case.outputs)),
        update=run.records,
        step=jnp.asarray(case.steps),
        classes=jnp.asarray(len(case.outputs)),
        edge_accuracy=jnp.mean(1.0 * (jnp.argmax(scores, axis=0) == case.labels)),
        diverged_at=run.diverged_at,
    )


def _edge_of(
    spectra: Float[Array, "times square_layer d"], moving: int
) -> Float[Array, "square_layer"]:
    return jnp.max(spectra[..., moving], axis=0) / jnp.max(spectra[..., 0], axis=0)


def _gaussian_start(key: Key[Array, ""], case: Classification, amount: Array) -> Classification:
    """Start from Gaussian layers of the same norm, which are not orthogonal."""
    widths = (*[len(case.inputs)] * DEPTH, len(case.outputs))
    drawn = gaussian_layers(key, widths, case.scales)
    return dataclasses.replace(case, weights=tuple(drawn))


def _every_third_example(case: Classification) -> EdgeMeasured:
    """Descent on every third example: their inputs alone are not white."""
    third = {name: getattr(case, name)[..., ::3] for name in ("inputs", "outputs", "labels")}
    return measure_edge(dataclasses.replace(case, **third))


EDGE = Scenario[Classification, EdgeTheory, EdgeMeasured](
    "edge",
    make_edge,
    predict_edge,
    measure_edge,
    theory=EdgeTheory,
    measured=EdgeMeasured,
    claims=(
        Claim(
            "whitened_edge",
            "deep linear classifier on whitened images: sigma_{2K+1} of W_l(t) - W_l(0) is zero "
            "for l < L, relative to sigma_1 (the formula is that of the frame: the other side "
            "is 0; float32 cannot tell such an update from one of other inputs or another start)",
            form=lambda outcome: Zero(
                outcome.measured.edge,
                scale=1.0,
                alternative=outcome.predicted.gaussian_edge,
            ),
            reads=lambda theory, run: (run.edge, theory.gaussian_edge),
            condition=lambda theory: theory.condition_edge,
        ),
    ),
    controls=(
        Control(
            "edge_not_whitened",
            "input coordinates rescaled",
            "whitened_edge",
            case=colour,
            breaks="whitened_inputs",
            precision="float64",
        ),
        Control(
            "edge_gaussian_start",
            "Gaussian start",
            "whitened_edge",
            case=_gaussian_start,
            breaks="orthogonal_start",
            precision="float64",
        ),
        Control(
            "edge_decayed",
            "weight decay .01",
            "whitened_edge",
            measure=lambda case: measure_edge(
                dataclasses.replace(case, weight_decay=case.weight_decay + 0.01)
            ),
        ),
        Control(
            "edge_in_batches",
            "every third example",
            "whitened_edge",
            measure=_every_third_example,
            precision="float64",
        ),
        Control(
            "edge_too_early",
            "sigma_{2K-1} in place of sigma_{2K+1}",
            "whitened_edge",
            measure=lambda case: EdgeMeasured(
                edge=_edge_of(measure_edge(case).update, 2 * len(case.outputs) - 2)
            ),
        ),
    ),
    hypotheses=HYPOTHESES,
    steps="edge_steps",
    diverges=lambda theory: theory.diverges,
    diverged=lambda run: run.diverged_at,
    sides="the frame's 2K directions against the SVD of trained updates",
)
