"""Theorem 1, minimisers: gradient descent with weight decay lands on the shrunk target."""

import dataclasses
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.claims import ROUNDING_SAFETY, tolerance
from lrdyn.descent import gradient_descent, recorded_steps, simulate
from lrdyn.factorization import Weights, end_to_end, factorization_loss
from lrdyn.initialization import gaussians, orthogonal, spaced_singular_values
from lrdyn.shrinkage import decayed_loss, in_basin, minimum, shrink
from lrdyn.spectra import singular_values
from lrdyn.theorem import (
    NON_NEGATIVE,
    POSITIVE,
    Arrays,
    Claim,
    Control,
    Domain,
    Flag,
    Statement,
    at_least,
    longest_axis,
    relative_difference,
)


class Factorization(eqx.Module):
    """One run of factorisation with weight decay."""

    target: Float[Array, "k d"]
    weights: Weights
    """Layers at the start; the hidden ones have r rows."""
    weight_decay: Float[Array, "depth"]
    """lambda_l; the theorem wants them equal."""
    learning_rate: Float[Array, ""]
    steps: tuple[int, ...] = eqx.field(static=True)
    """Recorded steps."""

    @property
    def rank(self) -> int:
        """r, the width of the factorisation."""
        return len(self.weights[0])

    @property
    def depth(self) -> int:
        """L."""
        return len(self.weights)


FLAGS = (
    Flag("rows", (6,), at_least(1), int, "k", "rows of the target Phi", (6,), shapes=True),
    Flag("cols", (4,), at_least(1), int, "d", "columns of the target Phi", (4, 8), shapes=True),
    Flag("rank", (2,), at_least(1), int, "r", "width of the hidden layers", (1, 2, 4), shapes=True),
    Flag("depth", (2, 3), at_least(2), int, "L", "number of layers", (2, 3, 4), shapes=True),
    Flag(
        "weight_decay",
        (0.0, 0.1, 0.92),
        NON_NEGATIVE,
        float,
        "lambda",
        "weight decay of every layer",
        (0.0, 0.03, 0.1, 0.2, 0.35, 0.7, 0.92),
    ),
    Flag(
        "init_scale",
        (0.3, 1.0),
        POSITIVE,
        float,
        "eps",
        "init scale: Gaussian layers, entries of variance eps^2 / longer side",
        (0.1, 0.3, 1.0),
    ),
    Flag(
        "rank_deficit",
        (0, 2),
        at_least(0),
        int,
        "min(k, d) - rank Phi",
        "so many of the smallest singular values of the target are 0",
        (0, 2, 3),
    ),
    Flag(
        "tie",
        (0, 1),
        Domain("0 or 1", lambda x: x in (0, 1)),
        int,
        "",
        "1: a target with sigma_{r+1} = sigma_r",
    ),
    Flag("learning_rate", (0.2,), POSITIVE, float, "eta", "step size for the loss 1/2 ||.||_F^2"),
    Flag("target_scale", (1.0,), POSITIVE, float, "sigma_1", "largest singular value of Phi"),
    Flag(
        "steps", (4000,), at_least(1), int, "t", "steps of descent", (10_000,), swept=False
    ),
)  # fmt: skip


def target_shapes(rows: int, cols: int) -> list[tuple[int, int]]:
    """Shapes of the Gaussian matrices that :func:`make_target` takes its singular spaces from."""
    count = min(rows, cols)
    return [(rows, count), (count, cols)]


def make_target(
    left: Float[Array, "k n"],
    right: Float[Array, "n d"],
    *,
    rank: int,
    rank_deficit: Any,
    tie: Any,
    target_scale: Any,
) -> Float[Array, "k d"]:
    """Target with evenly spaced singular values, some zero, perhaps ``sigma_{r+1} = sigma_r``."""
    count = len(right)
    values, place = spaced_singular_values(count, target_scale), np.arange(count)
    values = jnp.where(place < count - rank_deficit, values, 0.0)
    values = jnp.where((place == rank) & (tie == 1), values[rank - 1], values)
    return (orthogonal(left) * values[None, :]) @ orthogonal(right)


def make_case(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: int,
    depth: int,
    weight_decay: Any,
    init_scale: Any,
    learning_rate: Any,
    steps: int,
    **of_target: Any,
) -> Factorization:
    """Draw a run from the flags."""
    widths = (cols, *(rank,) * (depth - 1), rows)
    layers = list(zip(widths[1:], widths[:-1], strict=True))
    # One draw for all: each costs as much to compile as the descent.
    left, right, *starts = gaussians(key, [*target_shapes(rows, cols), *layers])
    target = make_target(left, right, rank=rank, **of_target)
    return Factorization(
        target=target,
        weights=tuple(init_scale * W / float(np.sqrt(max(W.shape))) for W in starts),
        weight_decay=jnp.full(depth, weight_decay, target.dtype),
        learning_rate=jnp.asarray(learning_rate, target.dtype),
        steps=tuple(recorded_steps(steps, at_most=21).tolist()),
    )


def prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Leave out default deficits that small targets have no room for."""
    room = min(settings["rows"] + settings["cols"])
    fitting = tuple(d for d in settings["rank_deficit"] if d < room)
    return settings if "rank_deficit" in given else settings | {"rank_deficit": fitting}


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    rows, cols = point["rows"], point["cols"]
    sizes = f"with k = {rows} and d = {cols}"
    if point["rank"] > min(rows, cols):
        raise ValueError(f"--rank: got {point['rank']} {sizes}, wanted r <= min(k, d)")
    if point["rank_deficit"] >= min(rows, cols):
        raise ValueError(
            f"--rank-deficit: got {point['rank_deficit']} {sizes}, wanted less than min(k, d)"
        )


# Prediction and measurement --------------------------------------------------------------------


def _decay(case: Factorization) -> Float[Array, ""]:
    return case.weight_decay[0]


def _predict(case: Factorization, decay: Float[Array, ""]) -> dict[str, Array]:
    rank = case.rank
    left, values, right = linalg.svd(case.target)
    kept = shrink(values, decay, case.depth)
    tied = jnp.abs(values - values[rank - 1]) <= _resolution(values)
    return {
        "product": (left[:, :rank] * kept[None, :rank]) @ right[:rank],
        "loss": minimum(values, rank, decay, case.depth),
        "singular_values": kept[:rank],
        "target_values": values,
        "shrunk": kept,
        "tied": tied.astype(jnp.int32),
        "left": left,
        "right": right,
    }


def predict(case: Factorization) -> dict[str, Array]:
    """Minimiser, minimum and shrunk singular values in closed form."""
    return _predict(case, _decay(case))


def measure(case: Factorization) -> dict[str, Array]:
    """Gradient descent with decay from a random start."""
    decay = _decay(case)
    run = simulate(
        lambda weights: factorization_loss(weights, case.target),
        case.weights,
        gradient_descent(case.learning_rate, case.weight_decay),
        np.asarray(case.steps),
        record=lambda weights: (end_to_end(weights), decayed_loss(weights, case.target, decay)),
    )
    products, losses = run.records
    product = products[-1]
    return {
        "product": product,
        "loss": losses[-1],
        "singular_values": singular_values(product)[: case.rank],
        "objective": losses,
        "moved": jnp.max(jnp.abs(product - products[(len(products) - 1) // 2])),
        "imbalance": imbalance(run.params),
        "diverged_at": run.diverged_at,
        "step": jnp.asarray(case.steps),
    }


def imbalance(weights: Weights) -> Float[Array, ""]:
    """Largest entry of ``W_{l+1}^T W_{l+1} - W_l W_l^T`` over all l."""
    return jnp.max(
        jnp.stack(
            [
                jnp.max(jnp.abs(after.T @ after - before @ before.T))
                for before, after in pairwise(weights)
            ]
        )
    )


# Hypotheses of the claims ----------------------------------------------------------------------


def _resolution(values: Float[Array, "n"]) -> Float[Array, ""]:
    """Half of all digits: singular values that are closer count as equal."""
    return values[0] * float(np.sqrt(np.finfo(values.dtype).eps))


def settled(moved: Array, scale: Array, steps: int, size: int) -> Array:
    """Whether a run has arrived: in its second half it moved by round-off only.

    Descent converges linearly to a minimum that is not degenerate. What is left to go is then at
    most what the second half went.
    """
    return moved <= tolerance("identity", moved.dtype, steps=steps, size=size) * scale / (
        ROUNDING_SAFETY
    )


def _settled(case: Factorization, predicted: Arrays, measured: Arrays) -> Array:
    values = predicted["target_values"]
    arrived = settled(measured["moved"], values[0], case.steps[-1], longest_axis(case))
    return arrived & ~_degenerate(case, values)


def _degenerate(case: Factorization, values: Float[Array, "n"]) -> Array:
    """A direction without curvature, along which descent converges like a power of time only.

    Two layers: ``sigma_i = lambda`` for some i <= r. More: lambda = 0 and rank Phi < r.
    """
    kept, decay = values[: case.rank], _decay(case)
    if case.depth == 2:
        return jnp.any(jnp.abs(kept - decay) <= _resolution(values))
    return (decay == 0) & (kept[-1] <= _resolution(values))


def _landed(case: Factorization, predicted: Arrays, measured: Arrays) -> Array:
    """Settled, every singular value in the basin of the minimiser."""
    kept = predicted["target_values"][: case.rank]
    inside = in_basin(measured["singular_values"], kept, _decay(case), case.depth)
    return _settled(case, predicted, measured) & jnp.all(inside)


def _tied(case: Factorization, predicted: Arrays) -> Array:
    kept = predicted["shrunk"][case.rank - 1] > 0
    return kept & jnp.any(predicted["tied"][case.rank :] > 0)


def _balance_reached(case: Factorization, predicted: Arrays, measured: Arrays) -> Array:
    """The imbalance of the start, times (1 - eta lambda)^2 at each step, is below round-off."""
    left = (1 - case.learning_rate * _decay(case)) ** (2 * case.steps[-1])
    few = left <= jnp.finfo(left.dtype).eps
    return _settled(case, predicted, measured) & (_decay(case) > 0) & few


# Claims ----------------------------------------------------------------------------------------


def _on_scale_of_target(name: str):
    return lambda case, p, m: relative_difference(p[name], m[name], p["target_values"][0])


def _loss_scale(predicted: Arrays) -> Array:
    return 0.5 * jnp.sum(predicted["target_values"] ** 2)


def _from_minimisers(case: Factorization, predicted: Arrays, measured: Arrays) -> Array:
    unique = _on_scale_of_target("product")(case, predicted, measured)
    family = _from_family(case, predicted, measured)
    return jnp.where(_tied(case, predicted), family, unique)


def _below(case: Factorization, predicted: Arrays, measured: Arrays) -> Array:
    lowest = jnp.min(measured["objective"])
    return jnp.maximum(predicted["loss"] - lowest, 0.0) / _loss_scale(predicted)


def _balance(case: Factorization, predicted: Arrays, measured: Arrays) -> Array:
    return measured["imbalance"] / predicted["target_values"][0] ** (2 / case.depth)


def _from_family(case: Factorization, predicted: Arrays, measured: Arrays) -> Array:
    """Distance from the family ``sum_above s_i u_i v_i^T + s_r U_t Q V_t^T``, Q a projector."""
    left, right, product = predicted["left"], predicted["right"], measured["product"]
    seen, shrunk, tied = left.T @ product @ right.T, predicted["shrunk"], predicted["tied"]
    first = np.arange(len(shrunk)) < case.rank
    above = jnp.where(first & (tied == 0), shrunk, 0.0)
    both = (tied[:, None] * tied[None, :]) > 0
    block = jnp.where(both, seen, 0.0)
    size = shrunk[case.rank - 1]
    count = jnp.sum(jnp.where(first, tied, 0))
    errors = [
        jnp.max(jnp.abs(jnp.where(both, 0.0, seen) - jnp.diag(above))),
        jnp.max(jnp.abs(block - block.T)),
        jnp.max(jnp.abs(block @ block - size * block)) / size,
        jnp.abs(jnp.trace(block) - size * count),
        jnp.max(jnp.abs(product - left @ seen @ right)),
    ]
    return jnp.max(jnp.stack(errors)) / predicted["target_values"][0]


CLAIMS = (
    Claim(
        "minimiser",
        "gradient descent ends at W_L...W_1 = U_r s(Sigma_r) V_r^T, two layers: "
        "s = (sigma - lambda)_+; if sigma_r = sigma_{r+1}, at sum_above s_i u_i v_i^T + "
        "s_r U_t Q V_t^T with an orthogonal projector Q in the tied space",
        residual=_from_minimisers,
        applies=_landed,
    ),
    Claim(
        "minimum",
        "at the value sum_{i<=r, sigma_i > lambda} (lambda sigma_i - lambda^2/2) + sum_rest "
        "sigma_i^2/2 (two layers), with a tie too",
        residual=lambda case, p, m: relative_difference(p["loss"], m["loss"], _loss_scale(p)),
        applies=_landed,
    ),
    Claim(
        "schatten",
        "the singular values of the product minimise 1/2 (s - sigma)^2 + (lambda L/2) s^{2/L}",
        residual=_on_scale_of_target("singular_values"),
        applies=_landed,
    ),
    Claim(
        "balanced",
        "lambda > 0: W_{l+1}^T W_{l+1} = W_l W_l^T, wherever descent ends",
        residual=_balance,
        applies=_balance_reached,
    ),
    Claim(
        "lower_bound",
        "the loss is never below that value, at no recorded step of any run",
        kind="bound",
        residual=_below,
    ),
)


# Controls --------------------------------------------------------------------------------------


def _half_threshold(case: Factorization) -> dict[str, Array]:
    return _predict(case, _decay(case) / 2)


def _half_forgotten(case: Factorization) -> dict[str, Array]:
    right = predict(case)
    return right | {"loss": 2 * right["loss"]}


def _ridge(case: Factorization) -> dict[str, Array]:
    right = predict(case)
    values = right["target_values"][: case.rank]
    return right | {"singular_values": values / (1 + case.depth * _decay(case))}


def _as_two_layers(case: Factorization) -> dict[str, Array]:
    right = predict(case)
    values = right["target_values"][: case.rank]
    return right | {"singular_values": shrink(values, _decay(case))}


def _unique_despite_tie(case: Factorization) -> dict[str, Array]:
    """Predict the product with u_r v_r^T as if it were the only one."""
    right = predict(case)
    return right | {"tied": (np.arange(len(right["tied"])) == case.rank - 1).astype(np.int32)}


def _decay_one_layer(key: Key[Array, ""], case: Factorization, amount: Array) -> Factorization:
    """Take the decay from all layers but the last."""
    spared = jnp.arange(case.depth) < case.depth - 1
    return dataclasses.replace(
        case, weight_decay=jnp.where(spared, (1 - amount) * case.weight_decay, case.weight_decay)
    )


def _near_zero(key: Key[Array, ""], case: Factorization, amount: Array) -> Factorization:
    """Shrink the start into the basin of the origin."""
    return dataclasses.replace(case, weights=tuple((1 - amount) * W for W in case.weights))


# Fewer steps and more decay than by default: the failures must be clear in float32 as well.
_AT = {"depth": 3, "weight_decay": 0.2, "init_scale": 1.0, "tie": 1, "steps": 2500}

DESCENT = Statement(
    "descent",
    make_case,
    predict,
    measure,
    CLAIMS,
    controls=(
        Control(
            "half_threshold",
            "minimiser with threshold lambda/2",
            "minimiser",
            predict=_half_threshold,
            at=_AT,
        ),
        Control(
            "unique_despite_tie",
            "U_r s(Sigma_r) V_r^T claimed the only minimiser with sigma_r = sigma_{r+1}",
            "minimiser",
            predict=_unique_despite_tie,
            at=_AT,
        ),
        Control(
            "half_threshold_value",
            "minimum with threshold lambda/2",
            "minimum",
            predict=_half_threshold,
            at=_AT,
        ),
        Control(
            "decay_on_one_layer",
            "decay on the last layer alone",
            "balanced",
            case=_decay_one_layer,
            at=_AT,
        ),
        Control(
            "minimum_without_half",
            "minimum of the loss without the factors 1/2",
            "lower_bound",
            predict=_half_forgotten,
            at=_AT,
        ),
        Control(
            "exponent_two",
            "penalty s^2 in place of s^{2/L}",
            "schatten",
            predict=_ridge,
            at=_AT,
        ),
        Control(
            "soft_threshold_at_depth_three",
            "(sigma - lambda)_+ with three layers",
            "schatten",
            predict=_as_two_layers,
            at=_AT,
        ),
        Control(
            "start_near_zero",
            "three layers, a start in the basin of the origin",
            "schatten",
            case=_near_zero,
            at=_AT,
            amount=0.97,
        ),
    ),
    hypotheses={
        "equal_decay": lambda case: jnp.all(case.weight_decay == case.weight_decay[0]),
    },
    dims={
        "product": ("row", "column"),
        "singular_values": ("index",),
        "target_values": ("target_index",),
        "shrunk": ("target_index",),
        "tied": ("target_index",),
        "left": ("row", "target_index"),
        "right": ("target_index", "column"),
        "objective": ("step",),
        "step": ("step",),
    },
)
