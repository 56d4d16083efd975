"""Theorem 2 for classifiers: whitened data, a last layer of K rows, and collapse between layers.

With ``X X^T = I`` the regression loss is deep factorisation of ``Phi = Y X^T``, up to a constant.
The moving part has 2K dimensions, and the bulk of the layers l < L only decays:

    rho_l(t) = eps_l (1 - eta lambda_l)^t,      W_L V_{L,2} = 0.

At convergence without decay the scatter within classes over that between them falls from layer to
layer by about ``p = eps^2 / n^{1/L}``.
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
from lrdyn.core.condition import Twins, conditions, pushed, twins
from lrdyn.core.descent import Trajectory
from lrdyn.core.factorization import Weights, end_to_end, factorization_loss, regression_loss
from lrdyn.core.initialization import orthogonal
from lrdyn.core.spectra import singular_values
from lrdyn.engine.claims import excess, tolerance
from lrdyn.engine.fields import ABSENT
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem2 import classifier, setting
from lrdyn.theorem2.setting import weights_claim, zero_claim
from lrdyn.theorem2.subspace import Frame, propagate, reduced_start, rho


class Classification(setting.Run):
    """A deep linear classifier on whitened data: square layers and a last one of K rows."""

    inputs: Float[Array, "d n"]
    outputs: Float[Array, "k n"]
    labels: Int[Array, "n"]

    @property
    def target(self) -> Float[Array, "k d"]:
        """Phi = Y X^T."""
        return self.outputs @ self.inputs.T

    def loss(self, weights: Weights) -> Float[Array, ""]:
        """The regression loss."""
        return regression_loss(weights, self.inputs, self.outputs)


def make_classifier(
    key: Key[Array, ""],
    *,
    dim: int,
    depth: int,
    rank: int,
    target_scale: Any,
    target: Any = None,
    per_class: int | None = None,
    **of_run: Any,
) -> Classification:
    """K = rank classes; labels of norm ``target_scale``, so that steps suit both versions."""
    weights_key, inputs_key = jax.random.split(key)
    per_class = -(-2 * dim // rank) if per_class is None else per_class
    labels = jnp.arange(rank * per_class) % rank
    one_hot = (labels[None, :] == jnp.arange(rank)[:, None]) * 1.0
    return Classification(
        inputs=orthogonal(jax.random.normal(inputs_key, (dim, len(labels)))),
        outputs=one_hot * target_scale / jnp.sqrt(1.0 * per_class),
        labels=labels,
        **setting.start_of_run(weights_key, (*(dim,) * depth, rank), **of_run),
    )


def _reduced_run(
    case: Classification,
    target: Float[Array, "k s"],
    start: Weights,
    record: Callable,
    optimizer: optax.GradientTransformation | None = None,
) -> Trajectory:
    def loss(weights: Weights) -> Float[Array, ""]:
        return factorization_loss(weights, target)

    return case.descend(loss, start, record, optimizer)


def _reduced_problem(case: Classification) -> tuple[Float[Array, "k s"], Weights]:
    """Target and start of the reduced problem of width 2K."""
    fixed, size = classifier.classifier_frame(case.weights, case.target), 2 * len(case.outputs)
    start = classifier.classifier_start(fixed, case.weights, size)
    return case.target @ fixed.right[0, :, :size], start


def theory_run(case: Classification) -> Twins:
    """Run the reduced problem, and twins of it, with up to two dimensions of the bulk.

    See :func:`lrdyn.theorem2.setting.theory_run`. The records are the square layers, the last one
    and their product.
    """
    target, (*square, last) = _reduced_problem(case)
    spare = min(setting.SPARE, len(case.inputs) - target.shape[1])
    wide, size = ((0, 0), (0, spare)), target.shape[1] + spare
    start = (*reduced_start(case.scales[: len(square)], size), jnp.pad(last, wide))

    def record(weights: Weights) -> dict[str, Array]:
        square, last = jnp.stack(weights[:-1]), weights[-1]
        return {"square": square, "last": last, "product": end_to_end(weights)}

    def run(data: tuple[Array, Weights, Weights]) -> Trajectory:
        goal, start, push = data
        rule = pushed(case.optimizer, push, case.steps[-1])
        return _reduced_run(case, goal, start, record, rule)

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
    """What is seen of a classifier that descends, in the frame of its start."""

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
        return setting.parts_of(run.records["square"], moving) | beside

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
    """Train the classifier and look at its layers in its frame; or by another rule, in another."""
    fixed = fixed or classifier.classifier_frame(case.weights, case.target)
    size = 2 * len(case.outputs)

    def record(weights: Weights) -> ClassificationMeasured:
        blocks = classifier.classifier_blocks(fixed, weights, size)
        return ClassificationMeasured(
            class_rho=blocks.rho,
            class_product=end_to_end(weights) @ fixed.right[0, :, :size],
            class_off_block=blocks.off_block,
            singular_values=jnp.max(jnp.stack([singular_values(W)[0] for W in weights])),
        )

    run = case.descend(case.loss, case.weights, record, optimizer)
    return run.records._replace(diverged_at=run.diverged_at, step=jnp.asarray(case.steps))


def _whitened(case: Classification) -> Array:
    dim, count = case.inputs.shape
    error = jnp.max(jnp.abs(case.inputs @ case.inputs.T - jnp.eye(dim)))
    return error <= tolerance("identity", error.dtype, size=count)


HYPOTHESES = {
    "whitened_inputs": _whitened,
    "orthogonal_start": setting.orthogonal_start,
}


def colour(key: Key[Array, ""], case: Classification, amount: Array) -> Classification:
    """Rescale the input coordinates, ``X <- (I + amount diag(g)) X``: no longer whitened."""
    factors = jax.random.uniform(key, (len(case.inputs), 1), minval=-0.5, maxval=0.5)
    return dataclasses.replace(case, inputs=(1 + amount * factors) * case.inputs)


def _from_identity(case: Classification) -> ClassificationTheory:
    target, _ = _reduced_problem(case)
    *square, last = reduced_start(case.scales, target.shape[1])
    run = _reduced_run(case, target, (*square, last[: len(target)]), end_to_end)
    return ClassificationTheory(class_product=run.records)


def _adam(case: Classification) -> ClassificationMeasured:
    return measure_classifier(case, optax.adam(0.1 * case.learning_rate))


def _frame_of_the_target(case: Classification) -> ClassificationMeasured:
    """Blocks in a frame that spans row(Phi), and otherwise whatever completes it."""
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
            "classifier on whitened data: off-diagonal blocks and W_L V_{L,2} are zero, m = d - 2K "
            "(the formula is that of the frame: the other side is 0)",
            lambda run: run.class_off_block,
            scale=lambda run: run.singular_values,
            condition=lambda theory: theory.condition_off_block,
        ),
        weights_claim(
            "class_rho",
            "rho_l(t) = eps_l (1 - eta lambda_l)^t for l < L",
            lambda theory, run: (theory.class_rho, run.class_rho),
            scale=lambda run: run.singular_values,
            condition=lambda theory: theory.condition_bulk,
        ),
        Claim(
            "class_product",
            "W(t) V_{1,1} follows the reduced problem of width 2K",
            compares=lambda theory, run: (theory.class_product, run.class_product),
            condition=lambda theory: theory.condition_product,
            undecided=setting.undecided_below(lambda theory: theory.class_product),
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
    narrow=setting.first_shapes,
    steps="steps",
    diverges=lambda theory: theory.diverges,
    diverged=lambda run: run.diverged_at,
    at=setting.AT,
    sides="recursion and blocks of width 2K against a trained classifier",
)

PER_CLASS = 10


class CollapseTheory(NamedTuple):
    """What is predicted of the classes between the layers, without decay."""

    collapse: Float[Array, ""] = ABSENT
    """p = eps^2 / n^{1/L}, the ratio of neighbouring layers' collapse metrics."""
    collapse_lower: Float[Array, ""] = ABSENT
    """Lower end of the interval whose upper end is p."""
    collapse_loss: Float[Array, "step"] = ABSENT
    """Loss of the reduced problem of width 2K at each recorded step."""
    diverges: Int[Array, ""] = ABSENT
    """Step at which the reduced problem diverges, or -1."""


class CollapseMeasured(NamedTuple):
    """What is measured of a classifier that descends."""

    collapse: Float[Array, ""] = ABSENT
    """(D_{L-1} / D_0)^{1/(L-1)}: a geometric mean over the layers, so that no fit is to explain."""
    collapse_metric: Float[Array, "square_layer"] = ABSENT
    """D_l, scatter within classes over scatter between them, behind each layer but the last."""
    collapse_loss: Float[Array, "step"] = ABSENT
    """Loss at each recorded step."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


def make_collapse(key: Key[Array, ""], *, depth: int, **flags: Any) -> Classification:
    """Half the step size at which the minimum, of curvature L n^{(L-1)/L}, turns unstable."""
    stable = 1 / (depth * PER_CLASS ** ((depth - 1) / depth))
    flags |= {"learning_rate": stable, "target_scale": PER_CLASS**0.5}
    return make_classifier(key, depth=depth, per_class=PER_CLASS, **flags)


def predict_collapse(case: Classification) -> CollapseTheory:
    """The interval of the ratio, and the loss of the reduced problem."""
    depth, (classes, examples) = len(case.weights), case.outputs.shape
    ratio = classifier.collapse_ratio(case.scales[0], examples // classes, depth)
    lower = classifier.collapse_lower_bound(ratio, len(case.inputs), classes, depth)
    target, start = _reduced_problem(case)
    run = _reduced_run(case, target, start, lambda weights: weights)
    return CollapseTheory(
        collapse=ratio,
        collapse_lower=ratio * lower,
        collapse_loss=jax.vmap(lambda *weights: factorization_loss(weights, target))(*run.records),
        diverges=run.diverged_at,
    )


def measure_collapse(case: Classification) -> CollapseMeasured:
    """Descend, and compare the scatter within classes behind the first and the last layer."""
    run = case.descend(case.loss, case.weights, case.loss)
    metrics = classifier.collapse_metrics(run.params, case.inputs, case.labels, len(case.outputs))
    return CollapseMeasured(
        collapse=(metrics[-1] / metrics[0]) ** (1 / (len(metrics) - 1)),
        collapse_metric=metrics,
        collapse_loss=run.records,
        diverged_at=run.diverged_at,
        step=jnp.asarray(case.steps),
    )


def _too_few_steps(outcome: Outcome[CollapseTheory, CollapseMeasured]) -> str:
    # The collapse metric is a square, so the loss must be as small as the rounding of a square.
    loss = outcome.predicted.collapse_loss
    return "" if loss[-1] <= 100 * np.finfo(outcome.dtype).eps * loss[0] else "too few steps"


def _outside_interval(outcome: Outcome[CollapseTheory, CollapseMeasured]) -> float:
    low, high = outcome.predicted.collapse_lower, outcome.predicted.collapse
    ratio = outcome.measured.collapse
    return excess(np.maximum(low - ratio, ratio - high), 0.0, high)


def _decayed(case: Classification) -> CollapseMeasured:
    """Descent with decay, by which the bulk fades."""
    return measure_collapse(dataclasses.replace(case, weight_decay=case.weight_decay + 0.1))


_AT = {"dim": 50, "rank": 5, "depth": 6, "init_scale": 0.5, "weight_decay": 0.0, "steps": 1000}
_AT |= dict.fromkeys(("init_spread", "decay_spread", "learning_rate", "target_scale"), 1.0)


def _collapse_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the published slopes (K = 5, n = 10, d = 50, eps = 1/2), whatever the flags.

    Theory's run has converged after 180 steps with 6 layers, 1,640 with 10 (most of 32 seeds).
    """
    fixed = {name: value if name == "steps" else (value,) for name, value in _AT.items()}
    return settings | fixed | {"depth": (6, 10), "steps": 1800}


COLLAPSE = Scenario[Classification, CollapseTheory, CollapseMeasured](
    "collapse",
    make_collapse,
    predict_collapse,
    measure_collapse,
    theory=CollapseTheory,
    measured=CollapseMeasured,
    claims=(
        Claim(
            "collapse",
            "D_{l+1} / D_l is about eps^2 / n^{1/L} at convergence without decay; approximate, "
            "gap c_0 / n + c_2 eps^2: here 1 to 2 %, tolerance 3 %",
            kind="limit",
            compares=lambda theory, run: (theory.collapse, run.collapse),
            reads=lambda theory, run: (theory.collapse, run.collapse, theory.collapse_loss),
            tolerance=0.03,
            undecided=_too_few_steps,
        ),
        Claim(
            "collapse_interval",
            "p ((d-2K)/(d-K))^{1/(L-1)} (1-p)^{1/L} <= (D_{L-1}/D_0)^{1/(L-1)} <= p, "
            "p = eps^2 / n^{1/L}",
            kind="bound",
            residual=_outside_interval,
            reads=lambda theory, run: (
                theory.collapse,
                run.collapse,
                theory.collapse_lower,
                theory.collapse_loss,
            ),
            undecided=_too_few_steps,
        ),
        Claim(
            "collapse_loss",
            "on the way there f(t) is the loss of the problem of width 2K",
            compares=lambda theory, run: (theory.collapse_loss, run.collapse_loss),
        ),
    ),
    controls=(
        Control(
            "collapse_without_n",
            "collapse ratio eps^2",
            "collapse",
            predict=lambda case: CollapseTheory(
                collapse=classifier.collapse_ratio(case.scales[0], 1, len(case.weights))
            ),
        ),
        Control(
            "collapse_not_squared",
            "collapse ratio eps / n^{1/L}",
            "collapse",
            predict=lambda case: CollapseTheory(
                collapse=classifier.collapse_ratio(
                    jnp.sqrt(case.scales[0]), PER_CLASS, len(case.weights)
                )
            ),
        ),
        Control(
            "collapse_exact",
            "collapse ratio exactly eps^2 / n^{1/L}",
            "collapse_interval",
            predict=lambda case: CollapseTheory(collapse_lower=predict_collapse(case).collapse),
        ),
        Control(
            "collapse_loss_without_half",
            "the loss without its factor 1/2",
            "collapse_loss",
            predict=lambda case: CollapseTheory(
                collapse_loss=2 * predict_collapse(case).collapse_loss
            ),
        ),
        *(
            Control(f"{claim}_decayed", "descent with decay", claim, measure=_decayed)
            for claim in ("collapse", "collapse_interval", "collapse_loss")
        ),
    ),
    hypotheses=HYPOTHESES,
    narrow=_collapse_settings,
    steps="steps",
    diverges=lambda theory: theory.diverges,
    diverged=lambda run: run.diverged_at,
    at=_AT,
    sides="formula against within- and between-class scatter of a trained classifier",
)
