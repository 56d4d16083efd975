"""Theorem 2 for classifiers: whitened data, a last layer of K rows, and collapse between layers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.claims import tolerance
from lrdyn.classifier import (
    classifier_blocks,
    classifier_frame,
    classifier_rho,
    classifier_start,
    collapse_lower_bound,
    collapse_metrics,
    collapse_ratio,
)
from lrdyn.descent import gradient_descent, recorded_steps, simulate
from lrdyn.factorization import Weights, end_to_end, factorization_loss, regression_loss
from lrdyn.initialization import layer_scales, orthogonal, orthogonal_layers
from lrdyn.spectra import singular_values
from lrdyn.subspace import reduced_start, rho
from lrdyn.theorem import Claim, Control, Outcome, Statement, with_condition
from lrdyn.theorems.deep_factorization import (
    AT,
    RUN,
    first_shapes,
    of_weights,
    orthogonal_start,
    vanishes,
)


class Classification(eqx.Module):
    """A deep linear classifier on whitened data."""

    weights: Weights
    """Square layers and a last one of K rows."""
    inputs: Float[Array, "d n"]
    outputs: Float[Array, "k n"]
    labels: Int[Array, "n"]
    scales: Float[Array, "depth"]
    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, "depth"]
    steps: tuple[int, ...] = eqx.field(static=True)


def _classifier(
    key: Key[Array, ""],
    *,
    dim: int,
    depth: int,
    rank: int,
    init_scale: Any,
    init_spread: Any,
    weight_decay: Any,
    decay_spread: Any,
    learning_rate: Any,
    target_scale: Any,
    steps: int,
    target: Any = None,
    per_class: int | None = None,
) -> Classification:
    """K = rank classes; labels of norm ``target_scale``, so that steps suit both versions."""
    weights_key, inputs_key = jax.random.split(key)
    per_class = -(-2 * dim // rank) if per_class is None else per_class
    labels = jnp.arange(rank * per_class) % rank
    one_hot = (labels[None, :] == jnp.arange(rank)[:, None]) * 1.0
    scales = layer_scales(init_scale, init_spread, depth)
    return Classification(
        weights=orthogonal_layers(weights_key, (*(dim,) * depth, rank), scales),
        inputs=orthogonal(jax.random.normal(inputs_key, (dim, len(labels)))),
        outputs=one_hot * target_scale / jnp.sqrt(1.0 * per_class),
        labels=labels,
        scales=scales,
        learning_rate=jnp.asarray(learning_rate, scales.dtype),
        weight_decay=layer_scales(weight_decay, decay_spread, depth),
        steps=tuple(recorded_steps(steps, at_most=26).tolist()),
    )


def _predict_classifier(
    case: Classification, start: Callable[..., Weights] = classifier_start
) -> dict[str, Array]:
    target = case.outputs @ case.inputs.T
    fixed = classifier_frame(case.weights, target)
    size, steps = 2 * len(target), np.asarray(case.steps)

    def reduced(data):
        goal, begin = data
        return simulate(
            lambda weights: factorization_loss(weights, goal),
            begin,
            gradient_descent(case.learning_rate, case.weight_decay),
            steps,
            record=end_to_end,
        ).records

    begin = start(fixed, case.weights, size)
    product, condition = with_condition(reduced, (target @ fixed.right[0, :, :size], begin))
    bulk = classifier_rho(case.scales[:-1], case.learning_rate, case.weight_decay[:-1], steps)
    return {"class_rho": bulk, "class_product": product, "condition": condition}


def _measure_classifier(case: Classification) -> dict[str, Array]:
    fixed = classifier_frame(case.weights, case.outputs @ case.inputs.T)
    size = 2 * len(case.outputs)

    def record(weights):
        product = end_to_end(weights) @ fixed.right[0, :, :size]
        largest = jnp.max(jnp.stack([singular_values(W)[0] for W in weights]))
        return classifier_blocks(fixed, weights, size), product, largest

    trajectory = simulate(
        lambda weights: regression_loss(weights, case.inputs, case.outputs),
        case.weights,
        gradient_descent(case.learning_rate, case.weight_decay),
        np.asarray(case.steps),
        record=record,
    )
    seen, product, largest = trajectory.records
    return {
        "class_rho": seen.rho,
        "class_product": product,
        "class_off_block": seen.off_block,
        "singular_values": largest,
        "diverged_at": trajectory.diverged_at,
        "step": jnp.asarray(case.steps),
    }


def _whitened(case: Classification) -> Array:
    dim = case.inputs.shape[0]
    error = jnp.max(jnp.abs(case.inputs @ case.inputs.T - jnp.eye(dim)))
    return error <= tolerance("identity", error.dtype, size=case.inputs.shape[1])


def _colour(key, case, amount):
    """Rescale the input coordinates, ``X <- (I + amount diag(g)) X``: no longer whitened."""
    factors = 1 + amount * jax.random.uniform(
        key, (case.inputs.shape[0], 1), minval=-0.5, maxval=0.5
    )
    return dataclasses.replace(case, inputs=factors * case.inputs)


def _with_product_term(case: Classification) -> dict[str, Array]:
    wrong = rho(case.scales, case.learning_rate, case.weight_decay, np.asarray(case.steps))
    return _predict_classifier(case) | {"class_rho": wrong[:, :-1]}


def _from_identity(case: Classification) -> dict[str, Array]:
    def start(fixed, weights, size):
        *square, last = reduced_start(case.scales, size)
        return (*square, last[: len(weights[-1])])

    return _predict_classifier(case, start)


CLASSIFICATION = Statement(
    "classification",
    _classifier,
    _predict_classifier,
    _measure_classifier,
    (
        Claim(
            "class_off_block",
            "classifier on whitened data: off-diagonal blocks and W_L V_{L,2} are zero, m = d - 2K",
            **vanishes("class_off_block"),
        ),
        Claim(
            "class_rho",
            "rho_l(t) = eps_l (1 - eta lambda_l)^t for l < L",
            **of_weights("class_rho"),
        ),
        Claim("class_product", "W(t) V_{1,1} follows the reduced problem of width 2K"),
    ),
    controls=(
        Control(
            "not_whitened",
            "input coordinates rescaled",
            "class_off_block",
            case=_colour,
            at=AT,
            amounts=(1e-8, 1e-6, 1e-4, 1e-2, 0.1, 1.0),
            amount_label="spread of the input scales",
        ),
        Control(
            "class_rho_with_product",
            "classifier bulk with Theorem 2's product term",
            "class_rho",
            predict=_with_product_term,
            at=AT,
        ),
        Control(
            "class_from_identity",
            "reduced classifier started from eps_L I, as in Theorem 2",
            "class_product",
            predict=_from_identity,
            at=AT,
        ),
    ),
    hypotheses={"whitened_inputs": _whitened, "orthogonal_start": orthogonal_start},
    dims={
        "class_rho": ("step", "square_layer"),
        "class_product": ("step", "class", "column"),
        "class_off_block": ("step", "layer"),
        "singular_values": ("step",),
        "step": ("step",),
    },
    narrow=first_shapes,
    **RUN,
    sides="recursion and blocks of width 2K against a trained classifier",
)

PER_CLASS = 10


def _collapse_case(key: Key[Array, ""], *, depth: int, **flags: Any) -> Classification:
    """Half the step size at which the minimum, of curvature L n^{(L-1)/L}, turns unstable."""
    stable = 1 / (depth * PER_CLASS ** ((depth - 1) / depth))
    flags |= {"learning_rate": stable, "target_scale": PER_CLASS**0.5}
    return _classifier(key, depth=depth, per_class=PER_CLASS, **flags)


def _predict_collapse(case: Classification) -> dict[str, Array]:
    depth, (classes, examples) = len(case.weights), case.outputs.shape
    dim, ratio = len(case.inputs), collapse_ratio(case.scales[0], examples // classes, depth)
    lower = collapse_lower_bound(ratio, dim, classes, depth)
    return {"collapse": ratio, "collapse_lower": ratio * lower}


def _measure_collapse(case: Classification) -> dict[str, Array]:
    def loss(weights):
        return regression_loss(weights, case.inputs, case.outputs)

    rule = gradient_descent(case.learning_rate, case.weight_decay)
    trajectory = simulate(loss, case.weights, rule, np.asarray(case.steps), record=loss)
    metrics = collapse_metrics(trajectory.params, case.inputs, case.labels, len(case.outputs))
    # The ratio per layer as a geometric mean: no fit to explain.
    return {
        "collapse": (metrics[-1] / metrics[0]) ** (1 / (len(metrics) - 1)),
        "collapse_metric": metrics,
        "loss": trajectory.records,
        "diverged_at": trajectory.diverged_at,
        "step": jnp.asarray(case.steps),
    }


def _converged(one: Outcome) -> bool:
    # The collapse metric is a square, so the loss must be as small as the rounding of a square.
    loss = one.measured["loss"]
    return bool(loss[-1] <= 100 * np.finfo(one.dtype).eps * loss[0])


def _outside_interval(one: Outcome) -> float:
    low, high = one.predicted["collapse_lower"], one.predicted["collapse"]
    outside = np.maximum(low - one.measured["collapse"], one.measured["collapse"] - high)
    return float(np.maximum(outside, 0.0) / high)


def _collapse_without(part: str):
    def predict_wrong(case):
        scale, per_class = case.scales[0], PER_CLASS if part == "square" else 1
        ratio = collapse_ratio(
            scale if part == "n" else jnp.sqrt(scale), per_class, len(case.weights)
        )
        return _predict_collapse(case) | {"collapse": ratio}

    return predict_wrong


def _collapse_exactly(case: Classification) -> dict[str, Array]:
    right = _predict_collapse(case)
    return right | {"collapse_lower": right["collapse"]}


_COLLAPSE_AT = {
    "dim": 50,
    "rank": 5,
    "depth": 6,
    "init_scale": 0.5,
    "init_spread": 1.0,
    "weight_decay": 0.0,
    "decay_spread": 1.0,
    "learning_rate": 1.0,
    "target_scale": 1.0,
    "steps": 2500,
}


def _collapse_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of the published slopes (K = 5, n = 10, d = 50, eps = 1/2), whatever the flags."""
    fixed = {name: value if name == "steps" else (value,) for name, value in _COLLAPSE_AT.items()}
    return settings | fixed | {"depth": (6, 10)}


COLLAPSE = Statement(
    "collapse",
    _collapse_case,
    _predict_collapse,
    _measure_collapse,
    (
        Claim(
            "collapse",
            "D_{l+1} / D_l is about eps^2 / n^{1/L} at convergence without decay; approximate, "
            "gap c_0 / n + c_2 eps^2: here 1 to 2 %, tolerance 3 %",
            kind="limit",
            reads=("collapse", "loss"),
            tolerance=0.03,
            applies=_converged,
        ),
        Claim(
            "collapse_interval",
            "p ((d-2K)/(d-K))^{1/(L-1)} (1-p)^{1/L} <= (D_{L-1}/D_0)^{1/(L-1)} <= p, "
            "p = eps^2 / n^{1/L}",
            kind="bound",
            residual=_outside_interval,
            reads=("collapse", "collapse_lower", "loss"),
            applies=_converged,
        ),
    ),
    controls=(
        Control(
            "collapse_without_n",
            "collapse ratio eps^2",
            "collapse",
            predict=_collapse_without("n"),
            at=_COLLAPSE_AT,
        ),
        Control(
            "collapse_not_squared",
            "collapse ratio eps / n^{1/L}",
            "collapse",
            predict=_collapse_without("square"),
            at=_COLLAPSE_AT,
        ),
        Control(
            "collapse_exact",
            "collapse ratio exactly eps^2 / n^{1/L}",
            "collapse_interval",
            predict=_collapse_exactly,
            at=_COLLAPSE_AT,
        ),
    ),
    hypotheses={"whitened_inputs": _whitened, "orthogonal_start": orthogonal_start},
    dims={"collapse_metric": ("square_layer",), "loss": ("step",), "step": ("step",)},
    narrow=_collapse_settings,
    steps="steps",
    diverged="diverged_at",
    sides="formula against within- and between-class scatter of a trained classifier",
)
