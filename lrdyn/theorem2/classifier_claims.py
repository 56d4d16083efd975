"""Theorem 2 for classifiers: whitened data and a last layer of K rows.

With ``X X^T = I`` the regression loss is deep factorisation of ``Phi = Y X^T``, up to a constant.
The moving part has 2K dimensions, and the bulk of the layers l < L only decays:

    rho_l(t) = eps_l (1 - eta lambda_l)^t,      W_L V_{L,2} = 0.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from lrdyn.core import linalg
from lrdyn.core.condition import Twins, conditions, perturb_updates, twins
from lrdyn.core.descent import Trajectory
from lrdyn.core.factorization import Weights, end_to_end, factorization_loss, regression_loss
from lrdyn.core.initialization import orthogonal
from lrdyn.core.spectra import singular_values
from lrdyn.theorem2 import classifier, setting
from lrdyn.theorem2.setting import zero_claim
from lrdyn.theorem2.subspace import Frame, propagate, reduced_start, rho
from lrdyn.verification.stating.claims import tolerance
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal, Form, Zero, start_of
from lrdyn.verification.stating.hypotheses import Extent, at_most
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario


class Classification(setting.OrthogonalDescent):
    """A deep linear classifier on whitened data: square layers and a last one of K rows."""

    inputs: Float[Array, "d n"]
    outputs: Float[Array, "k n"]
    labels: Int[Array, "n"]

    @property
    def target(self) -> Float[Array, "k d"]:
        """Phi = Y X^T."""
        return self.outputs @ self.inputs.T

    def loss(self, weights: Weights) -> Float[Array, ""]:
        """The regression loss ``1/2 ||W_L ... W_1 X - Y||_F^2``."""
        return regression_loss(weights, self.inputs, self.outputs)


def make_classifier(
    key: Key[Array, ""],
    *,
    dim: int,
    depth: int,
    rank: int,
    target_scale: Any,
    target: Any = None,
    target_condition: Any = None,
    optimizer: Any = None,
    per_class: int | None = None,
    **of_run: Any,
) -> Classification:
    """Draw a classifier of K = ``rank`` classes, whose labels have the norm ``target_scale``.

    With that norm step sizes that suit a deep factorisation suit the classifier, too. ``target``
    and ``target_condition`` are ignored: the labels decide both; and ``optimizer``: it descends.
    """
    weights_key, inputs_key = jax.random.split(key)
    # 2 d examples or more: X X^T = I takes at least d.
    per_class = -(-2 * dim // rank) if per_class is None else per_class
    labels = jnp.arange(rank * per_class) % rank
    one_hot = (labels[None, :] == jnp.arange(rank)[:, None]) * 1.0
    return Classification(
        # Orthonormal rows are whitened data; the rows of Y are orthogonal, of norm target_scale.
        inputs=orthogonal(jax.random.normal(inputs_key, (dim, len(labels)))),
        outputs=one_hot * target_scale / jnp.sqrt(1.0 * per_class),
        labels=labels,
        **setting.start_of_run(weights_key, (*(dim,) * depth, rank), **of_run),
    )


def reduced_run(
    case: Classification,
    target: Float[Array, "k s"],
    start: Weights,
    record: Callable,
    optimizer: optax.GradientTransformation | None = None,
) -> Trajectory:
    """Descend on the reduced problem, whose target has as many columns as the block."""

    def loss(weights: Weights) -> Float[Array, ""]:
        return factorization_loss(weights, target)

    return case.descend(loss, start, record, optimizer)


def reduced_problem(case: Classification) -> tuple[Float[Array, "k s"], Weights]:
    """Target and start of the reduced problem of width 2K."""
    fixed, size = classifier.classifier_frame(case.weights, case.target), 2 * len(case.outputs)
    start = classifier.classifier_start(fixed, case.weights, size)
    return case.target @ fixed.right[0, :, :size], start


def theory_run(case: Classification) -> Twins:
    """Run the reduced problem, and twins of it, with up to two dimensions of the bulk.

    See :func:`lrdyn.theorem2.setting.theory_run`. The records are the square layers, the last one
    and their product.
    """
    target, (*square, last) = reduced_problem(case)
    spare = min(setting.SPARE, len(case.inputs) - target.shape[1])
    # Phi and W_L are 0 in the spare directions, by the choice of the frame.
    wide, size = ((0, 0), (0, spare)), target.shape[1] + spare
    start = (*reduced_start(case.scales[: len(square)], size), jnp.pad(last, wide))

    def record(weights: Weights) -> dict[str, Array]:
        square, last = jnp.stack(weights[:-1]), weights[-1]
        return {"square": square, "last": last, "product": end_to_end(weights)}

    def run(data: tuple[Array, Weights, Weights]) -> Trajectory:
        goal, start, push = data
        rule = perturb_updates(case.optimizer, push, case.steps[-1])
        return reduced_run(case, goal, start, record, rule)

    return twins(run, (jnp.pad(target, wide), start, jax.tree.map(jnp.ones_like, start)))


class ClassificationTheory(NamedTuple):
    """What the recursion of the bulk and the problem of width 2K say of a classifier."""

    class_rho: Float[Array, "step square_layer"] = ABSENT
    """rho_l = eps_l (1 - eta lambda_l)^t, for l < L."""
    class_product: Float[Array, "step class column"] = ABSENT
    """Product of the layers of the reduced problem, K x 2K."""
    diverges: Int[Array, ""] = ABSENT
    """Step at which theory's own run diverges, or -1."""
    condition_bulk: Float[Array, ""] = ABSENT
    """By how much theory's own run amplifies a small error in the bulk."""
    condition_off_block: Float[Array, ""] = ABSENT
    """Amplification between the moving blocks and the bulk, of the last layer too."""
    condition_product: Float[Array, ""] = ABSENT
    """Amplification in the product of all layers."""


class ClassificationMeasured(NamedTuple):
    """Layers of a classifier that descends, in the frame of its start."""

    class_rho: Float[Array, "step square_layer"] = ABSENT
    """Mean of the diagonal of the bulk block of each layer but the last."""
    class_product: Float[Array, "step class column"] = ABSENT
    """W_L ... W_1 V_{1,1}."""
    class_off_block: Float[Array, "step layer"] = ABSENT
    """Largest entry of the off-diagonal blocks; of the last layer, of W_L V_{L,2}."""
    singular_values: Float[Array, "step"] = ABSENT
    """Largest singular value of all layers."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


def predict_classifier(case: Classification) -> ClassificationTheory:
    """The bulk, and the reduced problem from the start of the layers."""
    runs, moving = theory_run(case), 2 * len(case.outputs)

    def parts(run: Trajectory) -> dict[str, Array]:
        last = run.records["last"]
        beside = {"last": last[..., :moving], "off_last": last[..., moving:]}
        return setting.layer_blocks(run.records["square"], moving) | beside

    of_layers = conditions(runs, parts)
    return ClassificationTheory(
        class_rho=classifier.classifier_rho(
            case.scales[:-1], case.learning_rate, case.weight_decay[:-1], case.times
        ),
        class_product=runs.run.records["product"][..., :moving],
        diverges=runs.run.diverged_at,
        condition_bulk=of_layers["bulk"],
        condition_off_block=jnp.maximum(of_layers["off_block"], of_layers["off_last"]),
        # Products have a scale of their own.
        condition_product=conditions(runs, lambda run: run.records["product"]),
    )


def measure_classifier(
    case: Classification,
    optimizer: optax.GradientTransformation | None = None,
    fixed: Frame | None = None,
) -> ClassificationMeasured:
    """Train the classifier and measure its layers in its frame.

    Controls train with another optimiser, or measure in another frame.
    """
    fixed = fixed or classifier.classifier_frame(case.weights, case.target)
    run = case.descend(case.loss, case.weights, _record(case, fixed), optimizer)
    return run.records._replace(diverged_at=run.diverged_at, step=jnp.asarray(case.steps))


def read_classifier(
    case: Classification, records: tuple[Float[Array, "step _ _"], ...]
) -> ClassificationMeasured:
    """The same of a classifier that somebody else trained, from the records of its layers."""
    fixed = classifier.classifier_frame(case.weights, case.target)
    lost = setting.first_lost_record(records, case.times)
    measured = jax.lax.map(_record(case, fixed), records)
    return measured._replace(diverged_at=lost, step=jnp.asarray(case.steps))


def _record(case: Classification, fixed: Frame) -> Callable[[Weights], ClassificationMeasured]:
    """Make the function that measures the layers at one step."""
    size = 2 * len(case.outputs)

    def record(weights: Weights) -> ClassificationMeasured:
        blocks = classifier.classifier_blocks(fixed, weights, size)
        return ClassificationMeasured(
            class_rho=blocks.rho,
            class_product=end_to_end(weights) @ fixed.right[0, :, :size],
            class_off_block=blocks.off_block,
            singular_values=jnp.max(jnp.stack([singular_values(W)[0] for W in weights])),
        )

    return record


@at_most("largest entry of |X X^T - I|")
def _is_whitened(case: Classification) -> Extent:
    dim, count = case.inputs.shape
    error = jnp.max(jnp.abs(case.inputs @ case.inputs.T - jnp.eye(dim)))
    # An entry of X X^T is a sum over the examples.
    return Extent(error, tolerance("identity", error.dtype, size=count))


def _compare_bulk(outcome: Outcome[ClassificationTheory, ClassificationMeasured]) -> Form:
    """Compare the bulk with its formula; without decay it stays, and its change must be 0."""
    theory, run = outcome.predicted, outcome.measured
    scale = np.max(run.singular_values)
    if setting.largest_change(theory.class_rho) > 0:
        return Equal(theory.class_rho, run.class_rho, scale, start_of(theory.class_rho))
    # With Theorem 2's product term the bulk would move as the product does.
    moved = setting.largest_change(theory.class_product)
    return Zero(run.class_rho - theory.class_rho, scale, alternative=moved)


HYPOTHESES = {
    "whitened_inputs": _is_whitened,
    "orthogonal_start": setting.orthogonal_start,
}


def colour(key: Key[Array, ""], case: Classification, amount: Array) -> Classification:
    """Rescale the input coordinates, ``X <- (I + amount diag(g)) X``: no longer whitened."""
    factors = jax.random.uniform(key, (len(case.inputs), 1), minval=-0.5, maxval=0.5)
    return dataclasses.replace(case, inputs=(1 + amount * factors) * case.inputs)


def _from_identity(case: Classification) -> ClassificationTheory:
    """Reduced problem whose last layer starts from the first K rows of eps_L I."""
    target, _ = reduced_problem(case)
    *square, last = reduced_start(case.scales, target.shape[1])
    run = reduced_run(case, target, (*square, last[: len(target)]), end_to_end)
    return ClassificationTheory(class_product=run.records)


def _adam(case: Classification) -> ClassificationMeasured:
    return measure_classifier(case, optax.adam(0.1 * case.learning_rate))


def _frame_of_the_target(case: Classification) -> ClassificationMeasured:
    """Blocks in a frame of row(Phi) and arbitrary directions, without those of the start."""
    rows = linalg.complete_basis(case.target.T)
    return measure_classifier(case, fixed=propagate(case.weights[:-1], rows))


CLASSIFICATION = Scenario[Classification, ClassificationTheory, ClassificationMeasured](
    "classification",
    make_classifier,
    predict_classifier,
    measure_classifier,
    theory=ClassificationTheory,
    measured=ClassificationMeasured,
    claims=(
        zero_claim(
            "class_off_block",
            "for a classifier on whitened data, the off-diagonal blocks of every layer l < L and "
            "W_L V_{L,2} are 0 in the frame, with m = d - 2K bulk directions (theory gives the "
            "frame; the blocks are compared with 0)",
            lambda run: run.class_off_block,
            moves=lambda theory: theory.class_product,
            scale=lambda run: run.singular_values,
            condition=lambda theory: theory.condition_off_block,
        ),
        Claim(
            "class_rho",
            "for a classifier on whitened data, the bulk of every layer l < L only decays: "
            "rho_l(t) = eps_l (1 - eta lambda_l)^t",
            form=_compare_bulk,
            reads=lambda theory, run: (
                theory.class_rho,
                run.class_rho,
                run.singular_values,
                theory.class_product,
            ),
            condition=lambda theory: theory.condition_bulk,
        ),
        Claim(
            "class_product",
            "for a classifier on whitened data, W_L...W_1 V_{1,1} follows gradient descent on "
            "the reduced problem of width 2K",
            condition=lambda theory: theory.condition_product,
            undecided=setting.undecided_by_underflow(lambda theory: theory.class_product),
        ),
    ),
    controls=(
        Control(
            "not_whitened",
            "input coordinates rescaled",
            "class_off_block",
            case=colour,
            breaks="whitened_inputs",
            amounts=(1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0),
            amount_label="spread of the input scales",
        ),
        Control(
            "class_rho_with_product",
            "classifier bulk with Theorem 2's product term",
            "class_rho",
            predict=lambda case: ClassificationTheory(
                class_rho=rho(*case.rates, case.times)[:, :-1]
            ),
        ),
        Control(
            "class_from_identity",
            "reduced classifier started from eps_L I, as in Theorem 2",
            "class_product",
            predict=_from_identity,
        ),
        *(
            Control(f"{claim}_adam", "Adam instead of gradient descent", claim, measure=_adam)
            for claim in ("class_off_block", "class_rho", "class_product")
        ),
        Control(
            "class_frame_of_the_target",
            "V_{1,1} spans row(Phi) and K arbitrary directions",
            "class_off_block",
            measure=_frame_of_the_target,
        ),
    ),
    hypotheses=HYPOTHESES,
    narrow=lambda settings: (
        # The labels decide the condition: no row of the table must name another.
        setting.first_shapes(settings) | {"target_condition": (setting.USUAL_CONDITION,)}
    ),
    steps="steps",
    diverges=lambda theory: theory.diverges,
    diverged=lambda run: run.diverged_at,
    at=setting.AT,
    sides="recursion and blocks of width 2K against a trained classifier",
)
