"""Theorem 3, part A: dropout, its layers, DropBlock and DropConnect (Example 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.claims import tolerance
from lrdyn.descent import gradient_descent, simulate
from lrdyn.dropout import (
    Shrinkage,
    dropconnect_penalty,
    dropout_descent,
    dropout_loss,
    dropout_minimizer,
    dropout_penalty,
    dropout_strength,
    enough_blocks,
    equalize,
    equalized_factors,
    equalized_layers,
    input_layer,
    layers_penalty,
    layers_strength,
    project_rows,
    shrink_squared,
    spectral_support_norm,
    support_factors,
    width_free_keep_prob,
)
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import (
    gaussian_layers,
    gaussians,
    low_rank_target,
    orthogonal,
    spaced_singular_values,
)
from lrdyn.masking import bernoulli_masks, block_masks, exact_expectation
from lrdyn.spectra import singular_values
from lrdyn.theorem import Arrays, Claim, Control, Statement, relative_difference

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

LARGEST = 12
"""Most independent masks whose combinations are enumerated here: 4096 losses."""

COPIES = (1, 2, 4)
"""Widths, as multiples of h, at which a claim about all widths is tested."""


class Network(eqx.Module):
    """Two layers (or more), data, and the chance to keep a hidden unit or a block."""

    weights: Weights
    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    keep_prob: Float[Array, ""]
    mixers: Float[Array, "mixers h h"]
    """Invertible matrices G with other factors of the same product, W_2 G and G^-1 W_1."""
    unmixers: Float[Array, "mixers h h"]
    """G^-1."""
    chances: Float[Array, "points"]
    """Probabilities of all masks; their number decides how sums are rounded."""
    block: int = eqx.field(static=True)

    @property
    def factors(self) -> tuple[Float[Array, "m h"], Float[Array, "h n"]]:
        """U and V, whose product is the prediction."""
        *before, last = self.weights
        return last, end_to_end(tuple(before)) @ self.inputs


def _network(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    width: int,
    keep_prob: Any,
    block: int = 1,
    layers: int = 2,
    **flags: Any,
) -> Network:
    for_data, for_weights, for_mixers = jax.random.split(key, 3)
    width = min(width, LARGEST * block // (layers - 1))
    target, inputs = gaussians(for_data, [(rows, cols), (rows, cols)])
    weights = gaussian_layers(for_weights, (rows, *(width,) * (layers - 1), rows), jnp.ones(layers))
    keep_prob = jnp.asarray(keep_prob, target.dtype)
    one, other = gaussians(for_mixers, [(width, width), (width, width)])
    scales = jnp.stack([jnp.linspace(1.0, 3.0, width), jnp.linspace(2.0, 0.5, width)])
    left, right = orthogonal(one), orthogonal(other)
    return Network(
        weights=weights,
        inputs=inputs,
        target=target,
        keep_prob=keep_prob,
        mixers=(left[None] * scales[:, None, :]) @ right[None],
        unmixers=right.T[None] @ (left.T[None] / scales[:, :, None]),
        chances=bernoulli_masks(width // block * (layers - 1), keep_prob).probabilities,
        block=block,
    )


def _only(kind: str, *unused: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Settings of a statement about one kind of mask, without what does not concern it."""

    def narrow(settings):
        kinds = tuple(name for name in settings["mask"] if name == kind)
        first = {name: settings[name][:1] for name in ("loss", *unused)}
        return settings | first | {"mask": kinds, "steps": 1}

    return narrow


def _nuclear(matrix: Float[Array, "m n"]) -> Float[Array, ""]:
    return jnp.sum(singular_values(matrix))


def _odds(keep_prob: Float[Array, ""]) -> Float[Array, ""]:
    return (1 - keep_prob) / keep_prob


def _missing(below: str, above: str) -> Callable[..., Array]:
    """Residual of a bound: by how much what is measured falls below it."""
    return lambda case, p, m: jnp.max(
        jnp.maximum(p[below] - m[above], 0.0) / jnp.maximum(p[below], m[above])
    )


# Penalty and factorisations ------------------------------------------------------------------


def _terms(left, right) -> Float[Array, "h"]:
    return jnp.linalg.norm(left, axis=0) * jnp.linalg.norm(right, axis=1)


def _predict_dropout(case: Network) -> dict[str, Array]:
    left, right = case.factors
    product = left @ right
    width, nuclear = left.shape[1], _nuclear(product)
    theta, copies = case.keep_prob, jnp.asarray(COPIES, product.dtype)
    fit = jnp.sum((case.target - theta * product) ** 2)
    least = dropout_strength(theta, width) * nuclear**2
    return {
        "penalty": dropout_loss(left, right, case.target, theta),
        "unscaled_masks": fit + theta**2 * dropout_penalty(left, right, theta),
        "factorisations": jnp.full(len(case.mixers) + 1, least),
        "equalised": jnp.full(width, nuclear / width),
        "equalised_product": product,
        "equalised_penalty": least,
        "width_free": jnp.full(len(COPIES), _odds(theta) * nuclear**2),
        "fixed_keep_prob": dropout_penalty(left, right, theta) / copies,
    }


def _measure_dropout(case: Network, *, width_free: bool = True) -> dict[str, Array]:
    left, right = case.factors
    width, theta = left.shape[1], case.keep_prob

    def loss(mask, scale):
        return jnp.sum((case.target - (left * (mask / scale)[None, :]) @ right) ** 2)

    support, _ = bernoulli_masks(width, theta)
    penalties = jax.vmap(lambda G, H: dropout_penalty(left @ G, H @ right, theta))(
        case.mixers, case.unmixers
    )
    equal = equalized_factors(left @ right, width)
    wide, copied = [], []
    for copies in COPIES:
        chance = width_free_keep_prob(theta, copies * width) if width_free else theta
        wide.append(
            dropout_penalty(*equalized_factors(left @ right, copies * width), chance)
        )
        several = jnp.tile(left, (1, copies)) / copies, jnp.tile(right, (copies, 1))
        copied.append(dropout_penalty(*several, theta))
    return {
        "penalty": exact_expectation(lambda mask: loss(mask, theta), support, case.chances),
        "unscaled_masks": exact_expectation(
            lambda mask: loss(mask, jnp.ones_like(theta)), support, case.chances
        ),
        "factorisations": jnp.concatenate([penalties, dropout_penalty(*equal, theta)[None]]),
        "equalised": _terms(*equal),
        "equalised_product": equal[0] @ equal[1],
        "equalised_penalty": dropout_penalty(*equal, theta),
        "width_free": jnp.stack(wide),
        "fixed_keep_prob": jnp.stack(copied),
    }


DROPOUT_CLAIMS = (
    Claim(
        "penalty",
        "E ||Y - W_2 diag(R/theta) W_1 X||_F^2 = ||Y - W_2 W_1 X||_F^2 + ((1-theta)/theta) sum_i "
        "||w_{2,i}||^2 ||w_{1,i}^T X||^2, over all 2^h masks",
    ),
    Claim(
        "unscaled_masks",
        "E ||Y - W_2 diag(R) W_1 X||_F^2 = ||Y - theta W_2 W_1 X||_F^2 + theta (1-theta) sum_i ...",
    ),
    Claim(
        "factorisations",
        "every factorisation of Z has a penalty of at least ((1-theta)/(theta h)) ||Z||_*^2",
        kind="bound",
        residual=_missing("factorisations", "factorisations"),
    ),
    Claim("equalised", "the equalised factors have terms of the same norm, ||Z||_*/h"),
    Claim("equalised_product", "their product is Z"),
    Claim("equalised_penalty", "their penalty is ((1-theta)/(theta h)) ||Z||_*^2: the minimum"),
    Claim(
        "width_free",
        "with theta(h') = p/(h' - (h'-1) p) the least penalty is ((1-p)/p) ||Z||_*^2 for h' = h, "
        "2 h and 4 h",
    ),
    Claim(
        "fixed_keep_prob",
        "at fixed theta the penalty of k copies of every unit is 1/k of it: it vanishes with width",
    ),
)

AT = {"mask": "dropout", "keep_prob": 0.5, "width": 4, "steps": 1}


def _without_width(case: Network) -> dict[str, Array]:
    right = _predict_dropout(case)
    width = case.factors[0].shape[1]
    return right | {
        name: width * right[name] for name in ("equalised_penalty", "factorisations")
    }


def _nuclear_not_squared(case: Network) -> dict[str, Array]:
    left, right = case.factors
    wrong = dropout_strength(case.keep_prob, left.shape[1]) * _nuclear(left @ right)
    return _predict_dropout(case) | {"equalised_penalty": wrong}


def _rate_for_odds(case: Network) -> dict[str, Array]:
    left, right = case.factors
    fit = jnp.sum((case.target - left @ right) ** 2)
    wrong = case.keep_prob * dropout_penalty(left, right, case.keep_prob)
    scaled = dropout_loss(left, right, case.target, case.keep_prob)
    return _predict_dropout(case) | {"penalty": fit + wrong, "unscaled_masks": scaled}


def _not_rotated(case: Network) -> dict[str, Array]:
    """Factors from the SVD alone, and the left one of them rotated alone."""
    left, values, right = linalg.svd(case.factors[0] @ case.factors[1])
    width = case.factors[0].shape[1]
    one = left[:, :width] * jnp.sqrt(values[:width])[None, :]
    other = jnp.sqrt(values[:width])[:, None] * right[:width]
    return _measure_dropout(case) | {
        "equalised": _terms(one, other),
        "equalised_product": equalize(one, one.T)[0] @ other,
    }


def _penalty_of_one_copy(case: Network) -> dict[str, Array]:
    right = _predict_dropout(case)
    return right | {"fixed_keep_prob": jnp.full(len(COPIES), right["fixed_keep_prob"][0])}


DROPOUT_STATEMENT = Statement(
    "dropout",
    _network,
    _predict_dropout,
    _measure_dropout,
    DROPOUT_CLAIMS,
    controls=(
        *(
            Control(name, "c with h dropped", claim, predict=_without_width, at=AT)
            for name, claim in (
                ("penalty_without_width", "equalised_penalty"),
                ("bound_without_width", "factorisations"),
            )
        ),
        Control(
            "nuclear_norm_not_squared",
            "c ||Z||_* in place of c ||Z||_*^2",
            "equalised_penalty",
            predict=_nuclear_not_squared,
            at=AT,
        ),
        Control(
            "dropout_rate_for_odds",
            "1 - theta in place of (1-theta)/theta",
            "penalty",
            predict=_rate_for_odds,
            at=AT,
        ),
        Control(
            "scaled_for_unscaled",
            "the formula of scaled masks for masks that are not",
            "unscaled_masks",
            predict=_rate_for_odds,
            at=AT,
        ),
        Control(
            "factors_not_rotated", "factors of the SVD", "equalised", measure=_not_rotated, at=AT
        ),
        Control(
            "one_factor_rotated",
            "only the left factor rotated",
            "equalised_product",
            measure=_not_rotated,
            at=AT,
        ),
        Control(
            "fixed_theta_width_free",
            "fixed theta claimed to be width-free",
            "width_free",
            measure=lambda case: _measure_dropout(case, width_free=False),
            at=AT,
        ),
        Control(
            "copies_change_nothing",
            "the penalty of copies at fixed theta claimed to be that of one",
            "fixed_keep_prob",
            predict=_penalty_of_one_copy,
            at=AT,
        ),
    ),
    dims={
        "factorisations": ("factorisation",),
        "equalised": ("unit",),
        "equalised_product": ("row", "column"),
        "width_free": ("copies",),
        "fixed_keep_prob": ("copies",),
    },
    narrow=_only("dropout", "block_size", "patch_size"),
)


# Minimisers ----------------------------------------------------------------------------------

RUNS = 32
"""Runs of stochastic training."""


class Training(eqx.Module):
    """A regression to be trained with dropout."""

    inputs: Float[Array, "d n"]
    target: Float[Array, "m n"]
    weights: Weights
    """Start of gradient descent."""
    fitted: Weights
    """Start of stochastic training: the minimiser without dropout."""
    keep_prob: Float[Array, ""]
    learning_rate: Float[Array, ""]
    key: Key[Array, ""]
    width: int = eqx.field(static=True)
    steps: int = eqx.field(static=True)


def _training(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    width: int,
    keep_prob: Any,
    learning_rate: Any,
    steps: int,
    **flags: Any,
) -> Training:
    for_inputs, for_target, for_noise, for_start, for_runs = jax.random.split(key, 5)
    rank = min(rows, cols)
    inputs = low_rank_target(for_inputs, (rows, cols), spaced_singular_values(rank, 4 / 3))
    # Singular values from 1 to 1/rank, so that some are above and some below the threshold.
    draws = gaussians(for_target, [(rows, rank), (rank, rank)])
    left, turn = map(orthogonal, draws)
    spectrum = jnp.linspace(1.0, 1 / rank, rank)
    reached = (left * spectrum[None, :]) @ turn @ linalg.svd(inputs)[2]
    noise = 0.1 * jax.random.normal(for_noise, (rows, cols), inputs.dtype)
    factors = equalized_factors(reached, width)
    return Training(
        inputs=inputs,
        target=reached + noise - project_rows(noise, inputs),
        weights=gaussian_layers(for_start, (rows, width, rows), jnp.full(2, 0.5)),
        fitted=(input_layer(factors[1], inputs), factors[0]),
        keep_prob=jnp.asarray(keep_prob, inputs.dtype),
        learning_rate=jnp.asarray(learning_rate, inputs.dtype),
        key=for_runs,
        width=width,
        steps=steps,
    )


def _predict_minimiser(case: Training, found: Shrinkage | None = None) -> dict[str, Array]:
    """The closed form: product, value, spectrum, and how clear the choice of q is."""
    if found is None:
        found = dropout_minimizer(case.target, case.inputs, case.keep_prob, case.width)
    rest = case.target - found.product
    strength = dropout_strength(case.keep_prob, case.width)
    return {
        "minimiser": found.product,
        "minimum": jnp.sum(rest**2) + strength * jnp.sum(found.values) ** 2,
        "stochastic": found.values,
        "rank": found.rank,
    }


def _gap(case: Training) -> Float[Array, ""]:
    """Least curvature across the minimisers, over the largest singular value of the target."""
    found = dropout_minimizer(case.target, case.inputs, case.keep_prob, case.width)
    reached = singular_values(project_rows(case.target, case.inputs))
    counted = jnp.arange(len(reached)) < case.width
    gap = jnp.min(jnp.where(counted, jnp.abs(reached - found.threshold), jnp.inf))
    if case.width < len(reached):  # a full choice can be exchanged for what was left out
        step = reached[case.width - 1] - reached[case.width]
        gap = jnp.where(found.rank == case.width, jnp.minimum(gap, step), gap)
    return gap / reached[0]


def _measure_minimiser(case: Training) -> dict[str, Array]:
    """Gradient descent on the expected loss, and stochastic training with dropout."""

    def loss(weights):
        first, second = weights
        return 0.5 * dropout_loss(second, first @ case.inputs, case.target, case.keep_prob)

    run = simulate(
        loss, case.weights, gradient_descent(case.learning_rate), np.asarray([0, case.steps])
    )
    slopes = jax.grad(loss)(run.params)
    product = end_to_end(run.params) @ case.inputs
    closed = dropout_minimizer(case.target, case.inputs, case.keep_prob, case.width)

    def train(key):
        weights = dropout_descent(
            key,
            case.fitted,
            case.inputs,
            case.target,
            case.keep_prob,
            case.learning_rate,
            case.steps,
            halve_after=max(1, case.steps // 20),
        )
        found = end_to_end(weights) @ case.inputs
        return jnp.diagonal(closed.left.T @ found @ closed.right.T)

    ends = jax.vmap(train)(jax.random.split(case.key, RUNS))
    return {
        "minimiser": product,
        "minimum": 2 * loss(run.params),
        "stochastic": jnp.mean(ends, axis=0),
        "standard_error": jnp.std(ends, axis=0, ddof=1) / np.sqrt(RUNS),
        "singular_values": singular_values(product),
        "gradient": jnp.sqrt(sum(jnp.sum(slope**2) for slope in slopes)),
        "gap": _gap(case),
        "diverged_at": run.diverged_at,
    }


def _converged(case: Training, predicted: Arrays, measured: Arrays) -> Array:
    # Near a minimum the distance to it is the gradient over the curvature.
    limit = tolerance("identity", case.target.dtype, steps=case.steps, size=max(case.target.shape))
    return measured["gradient"] <= limit * measured["gap"]


def _standard_errors(case: Training, predicted: Arrays, measured: Arrays) -> Array:
    apart = jnp.abs(predicted["stochastic"] - measured["stochastic"]) / measured["standard_error"]
    return jnp.max(jnp.where(jnp.arange(len(apart)) < predicted["rank"], apart, 0.0))


MINIMISER_CLAIMS = (
    Claim(
        "minimiser",
        "gradient descent on the expected loss ends at Z = U (Sigma - mu_q I)_+ V^T, from Y P = "
        "U Sigma V^T and c = (1-theta)/(theta h) (if it has converged)",
        applies=_converged,
    ),
    Claim(
        "minimum",
        "the expected loss there is the minimum of ||Y - Z||_F^2 + c ||Z||_*^2 over rank Z <= h",
        applies=_converged,
    ),
    Claim(
        "stochastic",
        f"training with random masks and decreasing steps ends there: mean over {RUNS} runs of "
        "u_i^T Z v_i, i <= q",
        kind="statistical",
        residual=_standard_errors,
        applies=lambda case, p, m: jnp.all(m["standard_error"] > 0),
    ),
)

MINIMISER_AT = {"mask": "dropout", "keep_prob": 0.5, "rows": 6, "cols": 8, "width": 4}


def _shrunk_by(strength: float, *, projected: bool = True) -> Callable[[Training], dict]:
    """Prediction with another strength than c, in multiples of it, or without P."""

    def wrong(case):
        c = strength * dropout_strength(case.keep_prob, case.width)
        target = project_rows(case.target, case.inputs) if projected else case.target
        return _predict_minimiser(case, shrink_squared(target, c, case.width))

    return wrong


def _soft_thresholded(case: Training) -> dict[str, Array]:
    """Minimiser of ||Y P - Z||_F^2 + c ||Z||_*: soft thresholding at c/2."""
    left, values, right = linalg.svd(project_rows(case.target, case.inputs))
    threshold = dropout_strength(case.keep_prob, case.width) / 2
    kept = jnp.maximum(values - threshold, 0.0) * (jnp.arange(len(values)) < case.width)
    rank = jnp.sum(kept > 0)
    wrong = Shrinkage((left * kept[None, :]) @ right, kept, threshold, rank, left, right)
    return _predict_minimiser(case, wrong)


MINIMISER = Statement(
    "minimiser",
    _training,
    _predict_minimiser,
    _measure_minimiser,
    MINIMISER_CLAIMS,
    controls=(
        *(
            Control(
                f"{claim}_without_width",
                "c with h dropped",
                claim,
                predict=_shrunk_by(MINIMISER_AT["width"]),
                at=MINIMISER_AT,
            )
            for claim in ("minimiser", "stochastic")
        ),
        *(
            Control(
                f"{claim}_soft_thresholded",
                "nuclear norm not squared",
                claim,
                predict=_soft_thresholded,
                at=MINIMISER_AT,
            )
            for claim in ("minimiser", "minimum", "stochastic")
        ),
        Control(
            "target_not_projected",
            "Y in place of Y P, though X has fewer rows than columns",
            "minimiser",
            predict=_shrunk_by(1.0, projected=False),
            at=MINIMISER_AT,
        ),
    ),
    dims={
        "minimiser": ("row", "column"),
        "stochastic": ("index",),
        "standard_error": ("index",),
        "singular_values": ("index",),
    },
    narrow=lambda settings: _only("dropout", "block_size", "patch_size")(settings)
    | {"steps": settings["steps"]},
)


# Several layers and masked weights -----------------------------------------------------------

LAYERS = 3


class Small(eqx.Module):
    """A deep network and a tiny one whose single weights are masked."""

    deep: Network
    tiny: Network
    column: Float[Array, "m"]
    row: Float[Array, "d"]
    """Of a rank-one map."""

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        return tuple(W.shape[0] for W in self.deep.weights[:-1])


def _small(key: Key[Array, ""], *, rows: int, cols: int, width: int, **flags: Any) -> Small:
    for_deep, for_tiny, for_rank_one = jax.random.split(key, 3)
    few = min(width, 3)
    column, row = gaussians(for_rank_one, [(1, rows), (1, rows)])
    return Small(
        deep=_network(for_deep, rows=rows, cols=cols, width=width, layers=LAYERS, **flags),
        tiny=_network(for_tiny, rows=min(rows, 3), cols=cols, width=few, **flags),
        column=column[0],
        row=row[0],
    )


def _predict_layers(case: Small) -> dict[str, Array]:
    deep, tiny, theta = case.deep, case.tiny, case.deep.keep_prob
    moment = deep.inputs @ deep.inputs.T
    nu = layers_strength(theta, case.hidden)
    product = end_to_end(deep.weights) @ deep.inputs
    one = case.column[:, None] * (case.row @ deep.inputs)[None, :]
    left, right = tiny.factors
    fit = jnp.sum((tiny.target - left @ right) ** 2)
    added = [
        dropconnect_penalty(tiny.weights, tiny.inputs, theta, layer=layer) for layer in (1, 2)
    ]
    return {
        "layers": jnp.sum((deep.target - product) ** 2)
        + layers_penalty(deep.weights, moment, theta),
        "layers_bound": nu * _nuclear(product) ** 2,
        "layers_rank_one": nu * jnp.sum(one**2),
        "dropconnect_input": fit + added[0],
        "dropconnect_output": fit + added[1],
    }


def _measure_layers(case: Small, weights: Weights | None = None) -> dict[str, Array]:
    deep, tiny, theta = case.deep, case.tiny, case.deep.keep_prob
    moment = deep.inputs @ deep.inputs.T
    even = equalized_layers(case.column, case.row, case.hidden)

    def loss(mask):
        """Squared loss of the deep network with one mask after another on its hidden layers."""
        first, *rest = deep.weights
        hidden = first @ deep.inputs
        for W, kept in zip(rest, jnp.split(mask / theta, len(rest)), strict=True):
            hidden = W @ (kept[:, None] * hidden)
        return jnp.sum((deep.target - hidden) ** 2)

    def expected(layer):
        """Masks on every single weight of one layer of the tiny network."""
        shape = tiny.weights[layer].shape
        masks = bernoulli_masks(int(np.prod(shape)), theta)

        def loss(mask):
            weights = list(tiny.weights)
            weights[layer] = weights[layer] * mask.reshape(shape) / theta
            return jnp.sum((tiny.target - weights[1] @ (weights[0] @ tiny.inputs)) ** 2)

        return exact_expectation(loss, *masks)

    return {
        "layers": exact_expectation(loss, *bernoulli_masks(sum(case.hidden), theta)),
        "layers_bound": layers_penalty(weights or deep.weights, moment, theta),
        "layers_rank_one": layers_penalty(even, moment, theta),
        "dropconnect_input": expected(0),
        "dropconnect_output": expected(1),
    }


LAYERS_CLAIMS = (
    Claim(
        "layers",
        "dropout after each hidden layer adds tr M_L - tr(W C W^T), M_{l+1} = W_{l+1} (M_l + "
        "((1-theta)/theta) Diag M_l) W_{l+1}^T, over all masks of all layers",
    ),
    Claim(
        "layers_bound",
        "that is at least nu ||W C^(1/2)||_*^2, nu = prod_i (1 + (1-theta)/(theta d_i)) - 1",
        kind="bound",
        residual=_missing("layers_bound", "layers_bound"),
    ),
    Claim("layers_rank_one", "and equal to it for a rank-one map spread evenly over the units"),
    Claim(
        "dropconnect_input",
        "masks on the weights of W_1 add ((1-theta)/theta) sum_ik ||w_{2,i}||^2 W_{1,ik}^2 "
        "||x_k||^2, over all masks",
    ),
    Claim("dropconnect_output", "masks on the weights of W_2 add what dropout adds"),
)


def _layers_apart(case: Small) -> dict[str, Array]:
    """Each layer's masks alone, added up."""
    deep, theta = case.deep, case.deep.keep_prob
    first, second, third = deep.weights
    hidden = first @ deep.inputs
    product = third @ second @ hidden
    alone = dropout_penalty(third @ second, hidden, theta)
    alone += dropout_penalty(third, second @ hidden, theta)
    return _predict_layers(case) | {"layers": jnp.sum((deep.target - product) ** 2) + alone}


def _layers_without_width(case: Small) -> dict[str, Array]:
    right = _predict_layers(case)
    ones = layers_strength(case.deep.keep_prob, (1,) * (LAYERS - 1))
    factor = ones / layers_strength(case.deep.keep_prob, case.hidden)
    return right | {name: factor * right[name] for name in ("layers_bound", "layers_rank_one")}


def _spread_evenly(case: Small) -> dict[str, Array]:
    """The layers of the rank-one map, whose bound is tight, against the bound of its own."""
    deep = case.deep
    even = equalized_layers(case.column, case.row, case.hidden)
    right = _predict_layers(eqx.tree_at(lambda c: c.deep.weights, case, even))
    ones = layers_strength(deep.keep_prob, (1,) * (LAYERS - 1))
    return right | {
        "layers_bound": right["layers_bound"]
        * ones
        / layers_strength(deep.keep_prob, case.hidden)
    }


def _dropconnect_swapped(case: Small) -> dict[str, Array]:
    right = _predict_layers(case)
    swapped = {"input": "output", "output": "input"}
    return right | {
        f"dropconnect_{one}": right[f"dropconnect_{other}"] for one, other in swapped.items()
    }


LAYERS_STATEMENT = Statement(
    "layers",
    _small,
    _predict_layers,
    _measure_layers,
    LAYERS_CLAIMS,
    controls=(
        Control(
            "layers_apart",
            "the penalties of the layers one by one, added",
            "layers",
            predict=_layers_apart,
            at=AT,
        ),
        Control(
            "layers_without_width",
            "nu with the widths dropped",
            "layers_bound",
            predict=_layers_without_width,
            at=AT,
        ),
        Control(
            "rank_one_without_width",
            "nu with the widths dropped",
            "layers_rank_one",
            predict=_layers_without_width,
            at=AT,
        ),
        Control(
            "input_masks_as_dropout",
            "masks on W_1 taken for dropout",
            "dropconnect_input",
            predict=_dropconnect_swapped,
            at=AT,
        ),
        Control(
            "output_masks_as_input",
            "masks on W_2 taken for masks on W_1",
            "dropconnect_output",
            predict=_dropconnect_swapped,
            at=AT,
        ),
    ),
    narrow=_only("dropout", "block_size", "patch_size"),
)


# DropBlock -----------------------------------------------------------------------------------


class Blocks(eqx.Module):
    """A network with block masks, and a matrix to be factorised in blocks."""

    network: Network
    matrix: Float[Array, "m n"]
    blocks: int = eqx.field(static=True)
    """B, of the factorisation with the least penalty."""


def _blocks_case(
    key: Key[Array, ""], *, rows: int, cols: int, block_size: int, **flags: Any
) -> Blocks:
    for_network, for_matrix = jax.random.split(key)
    rank = min(rows, cols)
    return Blocks(
        network=_network(for_network, rows=rows, cols=cols, block=block_size, **flags),
        matrix=low_rank_target(for_matrix, (rows, cols), spaced_singular_values(rank)),
        blocks=8 * rank,
    )


def _predict_blocks(
    case: Blocks, norm: Callable[..., Array] = spectral_support_norm
) -> dict[str, Array]:
    one = case.network
    left, right = one.factors
    odds = _odds(one.keep_prob)
    bound = odds * norm(left @ right, one.block) ** 2
    least = odds * norm(case.matrix, one.block) ** 2
    return {
        "dropblock": dropout_loss(left, right, one.target, one.keep_prob, block=one.block),
        "dropblock_bound": jnp.stack([bound, bound, bound, least]),
        "dropblock_least": least,
        "dropblock_product": case.matrix,
        "enough_blocks": enough_blocks(case.matrix, one.block, case.blocks),
    }


def _measure_blocks(case: Blocks, *, width_free: bool = True) -> dict[str, Array]:
    one = case.network
    left, right = one.factors
    theta, width = one.keep_prob, left.shape[1]

    def penalty(left, right):
        chance = width_free_keep_prob(theta, left.shape[1], block=one.block)
        return dropout_penalty(left, right, chance if width_free else theta, block=one.block)

    def loss(mask):
        return jnp.sum((one.target - (left * (mask / theta)[None, :]) @ right) ** 2)

    mixed = jax.vmap(lambda G, H: penalty(left @ G, H @ right))(one.mixers, one.unmixers)
    found = support_factors(case.matrix, one.block, case.blocks)
    least = penalty(*found)
    return {
        "dropblock": exact_expectation(loss, *block_masks(width, one.block, theta)),
        "dropblock_bound": jnp.concatenate([penalty(left, right)[None], mixed, least[None]]),
        "dropblock_least": least,
        "dropblock_product": found[0] @ found[1],
    }


def _enough(case: Blocks, predicted: Arrays, measured: Arrays) -> Array:
    return predicted["enough_blocks"]


BLOCK_CLAIMS = (
    Claim(
        "dropblock",
        "masks on blocks of b units add ((1-theta)/theta) sum_j ||U_j V_j^T||_F^2, over all masks",
    ),
    Claim(
        "dropblock_bound",
        "with theta(h) = b p/(h - (h-b) p) every factorisation of Z has a penalty of at least "
        "((1-p)/p) times the square of its spectral b-support norm",
        kind="bound",
        residual=_missing("dropblock_bound", "dropblock_bound"),
    ),
    Claim("dropblock_least", "attained with enough blocks", applies=_enough),
    Claim("dropblock_product", "by factors whose product is Z", applies=_enough),
)

BLOCKS_AT = {"mask": "dropblock", "keep_prob": 0.5, "width": 4, "block_size": 2, "steps": 1}


def _nuclear_for_support(case: Blocks) -> dict[str, Array]:
    return _predict_blocks(case, lambda matrix, block: _nuclear(matrix))


def _blocks_as_units(case: Blocks) -> dict[str, Array]:
    one = case.network
    wrong = dropout_loss(*one.factors, one.target, one.keep_prob)
    return _predict_blocks(case) | {"dropblock": wrong}


def _few_blocks(case: Blocks) -> dict[str, Array]:
    """One block: the best approximation of rank b in place of Z."""
    left, values, right = linalg.svd(case.matrix)
    kept = jnp.where(jnp.arange(len(values)) < case.network.block, values, 0.0)
    return _measure_blocks(case) | {"dropblock_product": (left * kept[None, :]) @ right}


DROPBLOCK = Statement(
    "dropblock",
    _blocks_case,
    _predict_blocks,
    _measure_blocks,
    BLOCK_CLAIMS,
    controls=(
        Control(
            "blocks_as_units",
            "the penalty of dropout in place of that of blocks",
            "dropblock",
            predict=_blocks_as_units,
            at=BLOCKS_AT,
        ),
        Control(
            "nuclear_norm_bounds_blocks",
            "the nuclear norm in place of the b-support norm",
            "dropblock_bound",
            predict=_nuclear_for_support,
            at=BLOCKS_AT,
        ),
        Control(
            "nuclear_norm_of_blocks",
            "the nuclear norm in place of the b-support norm",
            "dropblock_least",
            predict=_nuclear_for_support,
            at=BLOCKS_AT,
        ),
        Control(
            "fixed_theta_of_blocks",
            "fixed theta claimed to be width-free",
            "dropblock_least",
            measure=lambda case: _measure_blocks(case, width_free=False),
            at=BLOCKS_AT,
        ),
        Control(
            "one_block",
            "a single block",
            "dropblock_product",
            measure=_few_blocks,
            at=BLOCKS_AT,
        ),
    ),
    dims={"dropblock_bound": ("factorisation",), "dropblock_product": ("row", "column")},
    narrow=_only("dropblock", "patch_size"),
)

DROPOUT = (DROPOUT_STATEMENT, MINIMISER, LAYERS_STATEMENT, DROPBLOCK)


def plot_dropout(groups: Mapping[str, xr.Dataset]) -> Figure | None:
    """Draw the spectra of the minimisers and the least penalty over the width."""
    return None
