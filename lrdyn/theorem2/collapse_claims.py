"""Collapse between the layers of a classifier: what is claimed of it.

At convergence without decay the scatter within classes over that between them falls from layer to
layer by about ``p = eps^2 / n^{1/L}``, and lies in an interval whose upper end is p.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core.factorization import factorization_loss
from lrdyn.theorem2 import collapse, setting
from lrdyn.theorem2.classifier_claims import (
    HYPOTHESES,
    Classification,
    make_classifier,
    reduced_problem,
    reduced_run,
)
from lrdyn.verification.running.evaluate import each_time
from lrdyn.verification.stating.claims import MoreSteps
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import AtLeast, AtMost, Form
from lrdyn.verification.stating.statement import Claim, Control, Outcome, Scenario

PER_CLASS = 10
"""n, examples of a class, as in the published slopes."""


class CollapseTheory(NamedTuple):
    """Collapse between the layers, as theory has it without decay."""

    collapse: Float[Array, ""] = ABSENT
    """p = eps^2 / n^{1/L}, the ratio of neighbouring layers' collapse metrics."""
    collapse_lower: Float[Array, ""] = ABSENT
    """Lower end of the interval whose upper end is p."""
    collapse_loss: Float[Array, "step"] = ABSENT
    """Loss of the reduced problem of width 2K at each recorded step."""
    diverges: Int[Array, ""] = ABSENT
    """Step at which the reduced problem diverges, or -1."""


class CollapseMeasured(NamedTuple):
    """Collapse between the layers of a classifier that has descended."""

    collapse: Float[Array, ""] = ABSENT
    """(D_{L-1} / D_0)^{1/(L-1)}: a geometric mean over the layers, which needs no fit."""
    collapse_metric: Float[Array, "square_layer"] = ABSENT
    """D_l, scatter within classes over scatter between them, behind each layer but the last."""
    collapse_loss: Float[Array, "step"] = ABSENT
    """Loss at each recorded step."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


def make_collapse(key: Key[Array, ""], *, depth: int, **flags: Any) -> Classification:
    """Draw a classifier with half the step size at which descent leaves its minimum.

    The curvature of the minimum is L n^{(L-1)/L}.
    """
    stable = 1 / (depth * PER_CLASS ** ((depth - 1) / depth))
    # With rows of norm n^{1/2} the entries of Y are 0 and 1.
    flags |= {"learning_rate": stable, "target_scale": PER_CLASS**0.5}
    return make_classifier(key, depth=depth, per_class=PER_CLASS, **flags)


def predict_collapse(case: Classification) -> CollapseTheory:
    """The interval of the ratio, and the loss of the reduced problem."""
    depth, (classes, examples) = len(case.weights), case.outputs.shape
    ratio = collapse.collapse_ratio(case.scales[0], examples // classes, depth)
    lower = collapse.collapse_lower_bound(ratio, len(case.inputs), classes, depth)
    target, start = reduced_problem(case)
    run = reduced_run(case, target, start, lambda weights: weights)
    return CollapseTheory(
        collapse=ratio,
        collapse_lower=ratio * lower,
        collapse_loss=jax.vmap(lambda *weights: factorization_loss(weights, target))(*run.records),
        diverges=run.diverged_at,
    )


def measure_collapse(case: Classification) -> CollapseMeasured:
    """Descend, and compare the scatter within classes behind the first and the last layer."""
    run = case.descend(case.loss, case.weights, case.loss)
    metrics = collapse.collapse_metrics(run.params, case.inputs, case.labels, len(case.outputs))
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
    # The scenario has a number of steps of its own.
    return "" if loss[-1] <= 100 * np.finfo(outcome.dtype).eps * loss[0] else MoreSteps()


def _ratio_interval(outcome: Outcome[CollapseTheory, CollapseMeasured]) -> tuple[Form, ...]:
    low, high = outcome.predicted.collapse_lower, outcome.predicted.collapse
    ratio = outcome.measured.collapse
    return AtLeast(ratio, low, scale=high), AtMost(ratio, high, scale=high)


def _descend_with_decay(case: Classification) -> CollapseMeasured:
    """Descent with decay, under which the bulk shrinks at every step."""
    return measure_collapse(dataclasses.replace(case, weight_decay=case.weight_decay + 0.1))


_AT = {"dim": 50, "rank": 5, "depth": 6, "init_scale": 0.5, "weight_decay": 0.0, "steps": 1000}
_AT |= dict.fromkeys(("init_spread", "decay_spread", "learning_rate", "target_scale"), 1.0)
_AT |= {"target_condition": 2.0}


def _collapse_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the published slopes (K = 5, n = 10, d = 50, eps = 1/2), whatever the flags.

    Theory's run has converged after 180 steps with 6 layers, 1,640 with 10 (most of 32 seeds).
    """
    fixed = {name: value if name == "steps" else (value,) for name, value in _AT.items()}
    settings = setting.descent_alone(settings)
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
            "at convergence without decay, D_{l+1} / D_l of a classifier is about eps^2 / "
            "n^{1/L} (geometric mean over the layers), D_l = tr Sigma_W / tr Sigma_B behind "
            "layer l; the gap is c_0 / n + c_2 eps^2: here 1 to 2 %, tolerance 3 %",
            kind="limit",
            reads=lambda theory, run: (theory.collapse_loss,),
            tolerance=0.03,
            undecided=_too_few_steps,
        ),
        Claim(
            "collapse_interval",
            "where gradient flow without decay converges to, on d examples, p "
            "((d-2K)/(d-K))^{1/(L-1)} (1-p)^{1/L} <= (D_{L-1}/D_0)^{1/(L-1)} <= p, p = eps^2 / "
            "n^{1/L}, D_l = tr Sigma_W / tr Sigma_B behind layer l of a classifier",
            kind="bound",
            form=_ratio_interval,
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
            "without decay on d whitened examples, the loss f(t) of a classifier is that of the "
            "reduced problem of width 2K at every step up to convergence",
        ),
    ),
    controls=(
        Control(
            "collapse_without_n",
            "collapse ratio eps^2",
            "collapse",
            predict=lambda case: CollapseTheory(
                collapse=collapse.collapse_ratio(case.scales[0], 1, len(case.weights))
            ),
        ),
        Control(
            "collapse_not_squared",
            "collapse ratio eps / n^{1/L}",
            "collapse",
            predict=lambda case: CollapseTheory(
                collapse=collapse.collapse_ratio(
                    jnp.sqrt(case.scales[0]), PER_CLASS, len(case.weights)
                )
            ),
        ),
        Control(
            "collapse_exact",
            "collapse ratio exactly eps^2 / n^{1/L}",
            "collapse_interval",
            predict=lambda case, once=each_time: CollapseTheory(
                collapse_lower=once(predict_collapse, case).collapse
            ),
        ),
        Control(
            "collapse_loss_without_half",
            "the loss without its factor 1/2",
            "collapse_loss",
            predict=lambda case, once=each_time: CollapseTheory(
                collapse_loss=2 * once(predict_collapse, case).collapse_loss
            ),
        ),
        *(
            Control(f"{claim}_decayed", "descent with decay", claim, measure=_descend_with_decay)
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
