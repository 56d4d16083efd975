"""Theorem 1, minimisers: gradient descent with weight decay lands on the shrunk target."""

import dataclasses
from itertools import pairwise
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import linalg, shrinkage
from lrdyn.claims import excess, on_scale
from lrdyn.descent import recorded_steps
from lrdyn.factorization import Weights, end_to_end, factorization_loss
from lrdyn.spectra import half_of_the_digits, singular_values
from lrdyn.theorem import Claim, Control, Outcome, Scenario
from lrdyn.theorems.deep_factorization import Descent
from lrdyn.theorems.theorem1 import setting


class Factorization(Descent):
    """One run with hidden layers of r rows; the theorem wants the decay of all layers equal."""

    target: Float[Array, "k d"]

    @property
    def rank(self) -> int:
        """r, the width of the factorisation."""
        return len(self.weights[0])

    @property
    def depth(self) -> int:
        """L."""
        return len(self.weights)

    @property
    def values(self) -> Float[Array, "n"]:
        """The singular values of the target."""
        return singular_values(self.target)

    @property
    def decay(self) -> Float[Array, ""]:
        """Lambda, of the first layer."""
        return self.weight_decay[0]


def make_case(
    key: Key[Array, ""], *, rows: int, cols: int, rank: int, depth: int, weight_decay: Any,
    init_scale: Any, learning_rate: Any, steps: int, **of_target: Any,
) -> Factorization:  # fmt: skip
    """Draw a run."""
    widths = (cols, *(rank,) * (depth - 1), rows)
    layers = list(zip(widths[1:], widths[:-1], strict=True))
    target, starts = setting.draw_target(key, rows, cols, layers, rank=rank, **of_target)
    return Factorization(
        target=target,
        weights=tuple(init_scale * W / float(np.sqrt(max(W.shape))) for W in starts),
        weight_decay=jnp.full(depth, weight_decay, target.dtype),
        learning_rate=jnp.asarray(learning_rate, target.dtype),
        steps=recorded_steps(steps, at_most=21),
    )


# Prediction and measurement --------------------------------------------------------------------


def predict(case: Factorization) -> dict[str, Array]:
    """Minimiser, minimum and shrunk singular values in closed form."""
    best = _minimiser(case, case.decay)
    kept = best["target_values"][: case.rank]
    return best | {
        "singular_values": best["shrunk"][: case.rank],
        "basin": shrinkage.basin(kept, case.decay, case.depth),
        "decay": case.weight_decay,
    }


def _minimiser(case: Factorization, decay: Float[Array, ""]) -> dict[str, Array]:
    rank, (left, values, right) = case.rank, linalg.svd(case.target)
    shrunk = shrinkage.shrink(values, decay, case.depth)
    return {
        "left": left,
        "target_values": values,
        "right": right,
        "product": (left[:, :rank] * shrunk[None, :rank]) @ right[:rank],
        "loss": shrinkage.minimum(values, rank, decay, case.depth),
        "shrunk": shrunk,
    }


def measure(case: Factorization) -> dict[str, Array]:
    """Gradient descent with decay from a random start."""

    def record(weights: Weights) -> tuple[Array, Array]:
        return end_to_end(weights), shrinkage.decayed_loss(weights, case.target, case.decay)

    def loss(weights: Weights) -> Float[Array, ""]:
        return factorization_loss(weights, case.target)

    run = case.descend(loss, case.weights, record)
    products, losses = run.records
    return {
        "product": products[-1],
        "loss": losses[-1],
        "singular_values": singular_values(products[-1])[: case.rank],
        "objective": losses,
        "moved": setting.moved(products),
        "imbalance": imbalance(run.params),
        "diverged_at": run.diverged_at,
        "step": jnp.asarray(case.steps),
    }


def imbalance(weights: Weights) -> Float[Array, ""]:
    """Largest entry of ``W_{l+1}^T W_{l+1} - W_l W_l^T`` over all l."""
    gaps = [after.T @ after - before @ before.T for before, after in pairwise(weights)]
    return jnp.max(jnp.abs(jnp.stack(gaps)))


# What the claims ask of a run -------------------------------------------------------------------


def _kept(one: Outcome) -> np.ndarray:
    """The singular values of the target that the minimiser may keep."""
    return one.predicted["target_values"][: one.point["rank"]]


def _largest(one: Outcome) -> float:
    return _kept(one)[0]


def _settled(one: Outcome) -> bool:
    return setting.settled(one, _largest(one)) and not _degenerate(one)


def _degenerate(one: Outcome) -> bool:
    """A direction without curvature, along which descent converges like a power of time only.

    Two layers: ``sigma_i = lambda`` for some i <= r. More: lambda = 0 and rank Phi < r.
    """
    kept, decay = _kept(one), setting.decay_of(one)
    least = half_of_the_digits(one.dtype) * kept[0]
    if one.point["depth"] == 2:
        return bool(np.any(np.abs(kept - decay) <= least))
    return decay == 0 and bool(kept[-1] <= least)


def _landed(one: Outcome) -> bool:
    """Settled, every singular value in the basin of the minimiser."""
    if not _settled(one):
        return False
    found, (low, high) = one.measured["singular_values"], one.predicted["basin"]
    start = np.maximum(found, 0.0)  # without a root below 0
    bend = shrinkage.schatten_curvature(
        start, _kept(one), setting.decay_of(one), one.point["depth"]
    )
    # A value that is lost, NaN, is not outside: it is judged, and fails.
    return not np.any((found <= low) | (found > high) | (bend <= 0))


def _balance_reached(one: Outcome) -> bool:
    """The imbalance of the start, times (1 - eta lambda)^2 at each step, is below round-off."""
    decay = setting.decay_of(one)
    factor = (1 - one.point["learning_rate"] * decay) ** 2
    return _settled(one) and decay > 0 and setting.vanished(one, factor)


_SETTLED = ("target_values", "moved", "decay")
_LANDED = (*_SETTLED, "singular_values", "basin")


# Claims ----------------------------------------------------------------------------------------


def _loss_scale(one: Outcome) -> float:
    return 0.5 * float(np.sum(one.predicted["target_values"] ** 2))


def _from_minimisers(one: Outcome) -> float:
    """Distance from the minimiser, or from all of them if sigma_r is tied and kept."""
    rank, values = one.point["rank"], one.predicted["target_values"]
    tied = np.abs(values - values[rank - 1]) <= half_of_the_digits(one.dtype) * values[0]
    if one.predicted["shrunk"][rank - 1] > 0 and np.any(tied[rank:]):
        return _from_family(one, tied)
    return on_scale("product", _largest)(one)


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
    return float(np.max(errors) / _largest(one))


def _balance(one: Outcome) -> float:
    return float(one.measured["imbalance"] / _largest(one) ** (2 / one.point["depth"]))


CLAIMS = (
    Claim("minimiser",
          "gradient descent ends at W_L...W_1 = U_r s(Sigma_r) V_r^T, two layers: "
          "s = (sigma - lambda)_+; if sigma_r = sigma_{r+1}, at sum_above s_i u_i v_i^T + "
          "s_r U_t Q V_t^T with an orthogonal projector Q in the tied space",
          residual=_from_minimisers, applies=_landed,
          reads=("product", "shrunk", "left", "right", *_LANDED)),
    Claim("minimum",
          "at the value sum_{i<=r, sigma_i > lambda} (lambda sigma_i - lambda^2/2) + sum_rest "
          "sigma_i^2/2 (two layers), with a tie too",
          residual=on_scale("loss", _loss_scale), reads=("loss", *_LANDED), applies=_landed),
    Claim("schatten",
          "the singular values of the product minimise 1/2 (s - sigma)^2 + (lambda L/2) s^{2/L}",
          residual=on_scale("singular_values", _largest), reads=_LANDED, applies=_landed),
    Claim("balanced", "lambda > 0: W_{l+1}^T W_{l+1} = W_l W_l^T, wherever descent ends",
          residual=_balance, reads=("imbalance", *_SETTLED), applies=_balance_reached),
    Claim("lower_bound", "the loss is never below that value, at no recorded step of any run",
          kind="bound", reads=("loss", "objective", "target_values"),
          residual=lambda one: excess(
              one.predicted["loss"], one.measured["objective"], _loss_scale(one))),
)  # fmt: skip


# Controls --------------------------------------------------------------------------------------


def _halved(case: Factorization) -> dict[str, Array]:
    return _minimiser(case, case.decay / 2)


def _kept_as(case: Factorization, values: Float[Array, "n"]) -> dict[str, Array]:
    return {"singular_values": values[: case.rank]}


def _decay_one_layer(key: Key[Array, ""], case: Factorization, amount: Array) -> Factorization:
    """Take the decay from all layers but the last."""
    spared = jnp.arange(case.depth) < case.depth - 1
    decays = jnp.where(spared, (1 - amount) * case.weight_decay, case.weight_decay)
    return dataclasses.replace(case, weight_decay=decays)


def _near_zero(key: Key[Array, ""], case: Factorization, amount: Array) -> Factorization:
    """Shrink the start into the basin of the origin."""
    return dataclasses.replace(case, weights=tuple((1 - amount) * W for W in case.weights))


CONTROLS = (
    Control("half_threshold", "minimiser with threshold lambda/2", "minimiser", predict=_halved),
    Control[Factorization](  # as if nothing were left beyond sigma_r
        "unique_despite_tie",
        "U_r s(Sigma_r) V_r^T claimed the only minimiser with sigma_r = sigma_{r+1}", "minimiser",
        predict=lambda case: {"target_values": case.values.at[case.rank :].set(0.0)}),
    Control("half_threshold_value", "minimum with threshold lambda/2", "minimum", predict=_halved),
    Control("decay_on_one_layer", "decay on the last layer alone", "balanced",
            case=_decay_one_layer, breaks="equal_decay"),
    Control[Factorization](
        "minimum_without_half", "minimum of the loss without the factors 1/2", "lower_bound",
        predict=lambda case: {"loss": 2 * predict(case)["loss"]}),
    Control[Factorization](
        "exponent_two", "penalty s^2 in place of s^{2/L}", "schatten",
        predict=lambda case: _kept_as(case, case.values / (1 + case.depth * case.decay))),
    Control[Factorization](
        "soft_threshold_at_depth_three", "(sigma - lambda)_+ with three layers", "schatten",
        predict=lambda case: _kept_as(case, shrinkage.shrink(case.values, case.decay))),
    Control("start_near_zero", "three layers, a start in the basin of the origin", "schatten",
            case=_near_zero, breaks="applies", amount=0.97),
)  # fmt: skip

DESCENT = Scenario[Factorization](
    "descent", make_case, predict, measure, CLAIMS, CONTROLS,
    hypotheses={"equal_decay": lambda case: jnp.all(case.weight_decay == case.decay)},
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
    steps="steps", diverged="diverged_at",
    # Fewer steps and more decay than by default: the failures must be clear in float32 as well.
    at={"depth": 3, "weight_decay": 0.2, "init_scale": 1.0, "tie": 1, "steps": 2500},
    sides="SVD of Phi, shrunk (L >= 3: a scalar minimisation for each value) against gradient "
    "descent from random layers",
)  # fmt: skip
