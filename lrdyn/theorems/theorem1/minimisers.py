"""Theorem 1, minimisers: gradient descent with weight decay lands on the shrunk target."""

import dataclasses
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.claims import ROUNDING_SAFETY, relative_difference, tolerance
from lrdyn.descent import gradient_descent, recorded_steps, simulate
from lrdyn.factorization import Weights, end_to_end, factorization_loss
from lrdyn.initialization import gaussians, orthogonal, spaced_singular_values
from lrdyn.shrinkage import basin, decayed_loss, minimum, schatten_curvature, shrink
from lrdyn.spectra import singular_values
from lrdyn.theorem import (
    NON_NEGATIVE,
    POSITIVE,
    Claim,
    Control,
    Domain,
    Flag,
    Outcome,
    Statement,
    at_least,
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


def predict(case: Factorization) -> dict[str, Array]:
    """Minimiser, minimum and shrunk singular values in closed form."""
    decay, (left, values, right) = _decay(case), linalg.svd(case.target)
    target = {"left": left, "target_values": values, "right": right}
    best = _minimiser(case, target, decay)
    return {
        **target,
        **best,
        "singular_values": best["shrunk"][: case.rank],
        "basin": basin(values[: case.rank], decay, case.depth),
        "decay": case.weight_decay,
    }


def _minimiser(
    case: Factorization, target: Mapping[str, Array], decay: Float[Array, ""]
) -> dict[str, Array]:
    rank, values = case.rank, target["target_values"]
    shrunk = shrink(values, decay, case.depth)
    return {
        "product": (target["left"][:, :rank] * shrunk[None, :rank]) @ target["right"][:rank],
        "loss": minimum(values, rank, decay, case.depth),
        "shrunk": shrunk,
    }


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


# What the claims ask of a run -------------------------------------------------------------------


def resolution(largest: float, one: Outcome) -> float:
    """Half of all digits: what is closer counts as equal.

    Args:
        largest: scale of the numbers.
        one: the outcome that they belong to.

    Returns:
        The least distance of different numbers.
    """
    return largest * float(np.sqrt(np.finfo(one.dtype).eps))


def settled(one: Outcome, scale: float) -> bool:
    """Whether a run has arrived: in its second half it moved by round-off only.

    Descent converges linearly to a minimum that is not degenerate. What is left to go is then at
    most what the second half went.

    Args:
        one: an outcome with ``moved``.
        scale: scale of what moves.

    Returns:
        Whether it has.
    """
    limit = tolerance("identity", one.dtype, steps=one.steps, size=one.size)
    return bool(one.measured["moved"] <= limit * scale / ROUNDING_SAFETY)


def vanished(one: Outcome, factor: float) -> bool:
    """Whether what is multiplied by a factor at every step is below round-off at the end.

    Args:
        one: an outcome.
        factor: the factor.

    Returns:
        Whether it is.
    """
    size = abs(float(factor))
    return size < 1 and size**one.steps <= float(np.finfo(one.dtype).eps)


def _kept(one: Outcome) -> np.ndarray:
    """The singular values of the target that the minimiser may keep."""
    return one.predicted["target_values"][: one.point["rank"]]


def _decay_of(one: Outcome) -> float:
    # A control changes it, so that the flag does not tell.
    return float(one.predicted["decay"][0])


def _settled(one: Outcome) -> bool:
    return settled(one, _kept(one)[0]) and not _degenerate(one)


def _degenerate(one: Outcome) -> bool:
    """A direction without curvature, along which descent converges like a power of time only.

    Two layers: ``sigma_i = lambda`` for some i <= r. More: lambda = 0 and rank Phi < r.
    """
    kept, decay = _kept(one), _decay_of(one)
    if one.point["depth"] == 2:
        return bool(np.any(np.abs(kept - decay) <= resolution(kept[0], one)))
    return decay == 0 and bool(kept[-1] <= resolution(kept[0], one))


def _landed(one: Outcome) -> bool:
    """Settled, every singular value in the basin of the minimiser."""
    if not _settled(one):
        return False
    found, (low, high) = one.measured["singular_values"], one.predicted["basin"]
    start = np.maximum(found, 0.0)  # without a root below 0
    bend = schatten_curvature(start, _kept(one), _decay_of(one), one.point["depth"])
    # A value that is lost, NaN, is not outside: it is judged, and fails.
    return not np.any((found <= low) | (found > high) | (bend <= 0))


def _balance_reached(one: Outcome) -> bool:
    """The imbalance of the start, times (1 - eta lambda)^2 at each step, is below round-off."""
    decay = _decay_of(one)
    factor = (1 - one.point["learning_rate"] * decay) ** 2
    return _settled(one) and decay > 0 and vanished(one, factor)


_SETTLED = ("target_values", "moved", "decay")
_LANDED = (*_SETTLED, "singular_values", "basin")


# Claims ----------------------------------------------------------------------------------------


def _on_scale_of_target(name: str) -> Callable[[Outcome], float]:
    return lambda one: relative_difference(one.predicted[name], one.measured[name], _kept(one)[0])


def _loss_scale(one: Outcome) -> float:
    return 0.5 * float(np.sum(one.predicted["target_values"] ** 2))


def _from_minimisers(one: Outcome) -> float:
    """Distance from the minimiser, or from all of them if sigma_r is tied and kept."""
    rank, values = one.point["rank"], one.predicted["target_values"]
    tied = np.abs(values - values[rank - 1]) <= resolution(values[0], one)
    if one.predicted["shrunk"][rank - 1] > 0 and np.any(tied[rank:]):
        return _from_family(one, tied)
    return _on_scale_of_target("product")(one)


def _from_family(one: Outcome, tied: np.ndarray) -> float:
    """Distance from the family ``sum_above s_i u_i v_i^T + s_r U_t Q V_t^T``, Q a projector."""
    left, right, shrunk = (one.predicted[name] for name in ("left", "right", "shrunk"))
    product, rank = one.measured["product"], one.point["rank"]
    seen, first = left.T @ product @ right.T, np.arange(len(shrunk)) < rank
    both, above = np.outer(tied, tied), np.where(first & ~tied, shrunk, 0.0)
    block, size = np.where(both, seen, 0.0), shrunk[rank - 1]
    errors = [
        np.max(np.abs(np.where(both, 0.0, seen) - np.diag(above))),
        np.max(np.abs(block - block.T)),
        np.max(np.abs(block @ block - size * block)) / size,
        np.abs(np.trace(block) - size * np.sum(first & tied)),
        np.max(np.abs(product - left @ seen @ right)),
    ]
    return float(np.max(errors) / _kept(one)[0])


def _minimum(one: Outcome) -> float:
    return relative_difference(one.predicted["loss"], one.measured["loss"], _loss_scale(one))


def _below(one: Outcome) -> float:
    lowest = np.min(one.measured["objective"])
    return float(np.maximum(one.predicted["loss"] - lowest, 0.0)) / _loss_scale(one)


def _balance(one: Outcome) -> float:
    return float(one.measured["imbalance"] / _kept(one)[0] ** (2 / one.point["depth"]))


CLAIMS = (
    Claim(
        "minimiser",
        "gradient descent ends at W_L...W_1 = U_r s(Sigma_r) V_r^T, two layers: "
        "s = (sigma - lambda)_+; if sigma_r = sigma_{r+1}, at sum_above s_i u_i v_i^T + "
        "s_r U_t Q V_t^T with an orthogonal projector Q in the tied space",
        residual=_from_minimisers,
        reads=("product", "shrunk", "left", "right", *_LANDED),
        applies=_landed,
    ),
    Claim(
        "minimum",
        "at the value sum_{i<=r, sigma_i > lambda} (lambda sigma_i - lambda^2/2) + sum_rest "
        "sigma_i^2/2 (two layers), with a tie too",
        residual=_minimum,
        reads=("loss", *_LANDED),
        applies=_landed,
    ),
    Claim(
        "schatten",
        "the singular values of the product minimise 1/2 (s - sigma)^2 + (lambda L/2) s^{2/L}",
        residual=_on_scale_of_target("singular_values"),
        reads=_LANDED,
        applies=_landed,
    ),
    Claim(
        "balanced",
        "lambda > 0: W_{l+1}^T W_{l+1} = W_l W_l^T, wherever descent ends",
        residual=_balance,
        reads=("imbalance", *_SETTLED),
        applies=_balance_reached,
    ),
    Claim(
        "lower_bound",
        "the loss is never below that value, at no recorded step of any run",
        kind="bound",
        residual=_below,
        reads=("loss", "objective", "target_values"),
    ),
)


# Controls --------------------------------------------------------------------------------------


def _half_threshold(case: Factorization) -> dict[str, Array]:
    right = predict(case)
    return right | _minimiser(case, right, _decay(case) / 2)


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
    """Predict the product with u_r v_r^T as if nothing were left beyond sigma_r."""
    right = predict(case)
    return right | {"target_values": right["target_values"].at[case.rank :].set(0.0)}


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
        "basin": ("end", "index"),
        "decay": ("layer",),
        "left": ("row", "target_index"),
        "right": ("target_index", "column"),
        "objective": ("step",),
        "step": ("step",),
    },
    steps="steps",
    diverged="diverged_at",
    sides="SVD of Phi, shrunk (L >= 3: a scalar minimisation for each value) against gradient "
    "descent from random layers",
)
