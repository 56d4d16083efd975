"""Theorem 1, minimisers: gradient descent with weight decay lands on the shrunk target."""

import dataclasses
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core import linalg
from lrdyn.core.factorization import Weights, end_to_end, factorization_loss
from lrdyn.core.recording import recorded_steps
from lrdyn.core.spectra import half_of_the_digits, singular_values
from lrdyn.engine.claims import excess, on_scale
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario
from lrdyn.theorem1 import convergence, setting, shrinkage
from lrdyn.theorem2.setting import Descent


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
        """Lambda, of the layer with most of it."""
        return jnp.max(self.weight_decay)


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
    """Minimiser, minimum and shrunk singular values in closed form; what decides when."""
    best = _minimiser(case, case.decay)
    start = setting.start_of(case.weights, best["left"], best["right"])
    return (
        best
        | start
        | {
            "singular_values": best["shrunk"][: case.rank],
            "decay": case.weight_decay,
            "start_norms": _norms(case.weights),
        }
    )


def _norms(weights: Weights) -> Float[Array, "depth"]:
    return jnp.stack([jnp.sqrt(jnp.sum(W**2)) for W in weights])


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
    slopes = [
        G + decay * W
        for G, decay, W in zip(
            jax.grad(loss)(run.params), case.weight_decay, run.params, strict=True
        )
    ]
    return {
        "product": products[-1],
        "loss": losses[-1],
        "singular_values": singular_values(products[-1])[: case.rank],
        "objective": losses,
        "first": run.params[0],
        "last": run.params[-1],
        "first_gradient": slopes[0],
        "last_gradient": slopes[-1],
        "norms": _norms(run.params),
        "gradient_norms": _norms(tuple(slopes)),
        "imbalance": imbalance(run.params),
        "diverged_at": run.diverged_at,
        "step": jnp.asarray(case.steps),
    }


def imbalance(weights: Weights) -> Float[Array, ""]:
    """Largest entry of ``W_{l+1}^T W_{l+1} - W_l W_l^T`` over all l."""
    gaps = [after.T @ after - before @ before.T for before, after in pairwise(weights)]
    return jnp.max(jnp.abs(jnp.stack(gaps)))


# When a run is judged: decided by theory ---------------------------------------------------------


def _kept(one: Outcome) -> np.ndarray:
    """The singular values of the target that the minimiser may keep."""
    return one.predicted["target_values"][: one.point["rank"]]


def _largest(one: Outcome) -> float:
    return _kept(one)[0]


def _degenerate(one: Outcome) -> bool:
    """A direction without curvature, along which descent converges like a power of time only.

    Two layers: ``sigma_i = lambda`` for some i <= r. More: lambda = 0 and rank Phi < r.
    """
    kept, decay = _kept(one), setting.decay_of(one)
    least = setting.close(one, kept[0])
    if one.point["depth"] == 2:
        return bool(np.any(np.abs(kept - decay) <= least))
    return decay == 0 and bool(kept[-1] <= least)


def _leaves_the_origin(one: Outcome) -> bool:
    """Not so near to the origin that descent must end there, though the minimum is elsewhere.

    With layers of norm w at most the gradient is at most ``w^{L-1} (sigma_1 + w^L)``: below
    ``lambda w`` all of them shrink at every step.
    """
    depth, decay, largest = one.point["depth"], setting.decay_of(one), _largest(one)
    if depth == 2 or largest <= convergence.threshold(decay, depth):
        return True
    size = float(np.max(one.predicted["start_norms"]))
    return not size ** (depth - 2) * (largest + size**depth) < decay


def _number(one: Outcome) -> float | None:
    """Steps after which two layers must have arrived, where theory has a number."""
    if one.point["depth"] > 2:
        return None
    return convergence.steps_to_arrive(
        setting.start(one),
        one.predicted["target_values"],
        (one.point["rows"], one.point["cols"]),
        setting.decay_of(one),
        one.point["learning_rate"],
        setting.nearness(one),
        close=setting.close(one, _largest(one)),
    )


def _not_at_the_end(one: Outcome) -> str:
    """Why the end of a run cannot be judged; by the gradient where theory has no number."""
    number = _number(one)
    if _degenerate(one):
        return "no curvature"
    if number is not None:
        return setting.too_few(one, number)
    return "" if setting.at_rest(one, _distance(one), _largest(one)) else "still moving"


def _distance(one: Outcome) -> float:
    """Bound of the distance of the product from the minimiser, by the gradient."""
    left, values, right = (one.predicted[name] for name in ("left", "target_values", "right"))
    return convergence.distance_bound(
        convergence.End(**{name: one.measured[name] for name in convergence.End._fields}),
        (left * values) @ right,
        one.point["rank"],
        setting.decay_of(one),
        one.point["depth"],
        close=setting.close(one, _largest(one)),
    )


def _not_at_the_least(one: Outcome) -> str:
    """The same of the loss: of three layers and more the product can be 0 long before they are.

    What decay alone still shrinks, W with gradient lambda W, costs |g|^2 / (2 lambda).
    """
    reason, decay = _not_at_the_end(one), setting.decay_of(one)
    if reason or one.point["depth"] == 2 or decay == 0:
        return reason
    left = np.sum(one.measured["gradient_norms"] ** 2) / (2 * decay)
    return "" if setting.at_rest(one, left, _loss_scale(one)) else "still moving"


def _loss_scale(one: Outcome) -> float:
    return 0.5 * float(np.sum(one.predicted["target_values"] ** 2))


def _not_balanced_yet(one: Outcome) -> str:
    """Of the layers: lambda ||W'^T W' - W W^T|| = ||W'^T g' - g W^T|| at any point whatever."""
    number = _number(one)
    if number is not None:
        return setting.too_few(one, number)
    size, slope = (np.max(one.measured[name]) for name in ("norms", "gradient_norms"))
    bound = 2 * size * slope / setting.decay_of(one)
    scale = _largest(one) ** (2 / one.point["depth"])
    return "" if setting.at_rest(one, bound, scale) else "still moving"


def _overflows(one: Outcome) -> str:
    """Of a loss that is no number, where theory has no bound of the step or a step above it."""
    if np.all(np.isfinite(one.measured["objective"])):
        return ""
    steepest = convergence.sharpness(setting.start(one), _largest(one), setting.decay_of(one))
    stable = one.point["depth"] == 2 and one.point["learning_rate"] * steepest < 2
    return "" if stable else "step too large"


_TARGET = ("target_values", "decay", *setting.START)
_END = (*_TARGET, "start_norms", "left", "right", *convergence.End._fields)


# Claims ----------------------------------------------------------------------------------------


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


def _of_the_end(**more: Any) -> dict[str, Any]:
    return {"applies": _leaves_the_origin, "undecided": _not_at_the_end} | more


CLAIMS = (
    Claim("minimiser",
          "gradient descent ends at W_L...W_1 = U_r s(Sigma_r) V_r^T, two layers: "
          "s = (sigma - lambda)_+; if sigma_r = sigma_{r+1}, at sum_above s_i u_i v_i^T + "
          "s_r U_t Q V_t^T with an orthogonal projector Q in the tied space",
          **_of_the_end(residual=_from_minimisers, reads=("shrunk", *_END))),
    Claim("minimum",
          "at the value sum_{i<=r, sigma_i > lambda} (lambda sigma_i - lambda^2/2) + sum_rest "
          "sigma_i^2/2 (two layers), with a tie too",
          **_of_the_end(residual=on_scale("loss", _loss_scale), undecided=_not_at_the_least,
                        reads=("loss", "gradient_norms", *_END))),
    Claim("schatten",
          "the singular values of the product minimise 1/2 (s - sigma)^2 + (lambda L/2) s^{2/L}",
          **_of_the_end(residual=on_scale("singular_values", _largest),
                        reads=("singular_values", *_END))),
    Claim("balanced", "lambda > 0: W_{l+1}^T W_{l+1} = W_l W_l^T, wherever descent ends "
          "(both sides are measured: there is no formula to break)",
          residual=_balance, reads=("imbalance", "norms", "gradient_norms", *_TARGET),
          applies=lambda one: setting.decay_of(one) > 0, undecided=_not_balanced_yet),
    Claim("lower_bound", "the loss is never below that value, at no recorded step of any run "
          "(of any weights at all: no run breaks it, only a wrong loss)",
          kind="bound", reads=("loss", "objective", *_TARGET), undecided=_overflows,
          residual=lambda one: excess(
              one.predicted["loss"], one.measured["objective"], _loss_scale(one))),
)  # fmt: skip


# Controls --------------------------------------------------------------------------------------


def _halved(case: Factorization) -> dict[str, Array]:
    return _minimiser(case, case.decay / 2)


def _kept_as(case: Factorization, values: Float[Array, "n"]) -> dict[str, Array]:
    return {"singular_values": values[: case.rank]}


def _unequal_decay(key: Key[Array, ""], case: Factorization, amount: Array) -> Factorization:
    """Take part of the decay from all layers but the last; all of it would leave no minimum."""
    spared = jnp.arange(case.depth) < case.depth - 1
    decays = jnp.where(spared, (1 - amount) * case.weight_decay, case.weight_decay)
    return dataclasses.replace(case, weight_decay=decays)


def _near_zero(key: Key[Array, ""], case: Factorization, amount: Array) -> Factorization:
    """Shrink the start into the basin of the origin."""
    return dataclasses.replace(case, weights=tuple((1 - amount) * W for W in case.weights))


MUCH_DECAY = {"weight_decay": 0.3, "steps": 1600}
"""Where the basin of the origin is wide, and unequal layers end far apart, and soon: whatever the
seed, of 60 that were tried in both precisions."""

CONTROLS = (
    Control("half_threshold", "minimiser with threshold lambda/2", "minimiser", predict=_halved),
    Control[Factorization](  # as if nothing were left beyond sigma_r
        "unique_despite_tie",
        "U_r s(Sigma_r) V_r^T claimed the only minimiser with sigma_r = sigma_{r+1}", "minimiser",
        predict=lambda case: {"target_values": case.values.at[case.rank :].set(0.0)}),
    Control("half_threshold_value", "minimum with threshold lambda/2", "minimum", predict=_halved),
    Control("decay_on_one_layer", "more decay on the last layer", "balanced",
            case=_unequal_decay, breaks="equal_decay", amount=0.4, at=MUCH_DECAY),
    Control[Factorization](
        "minimum_without_half", "minimum of the loss without the factors 1/2", "lower_bound",
        predict=lambda case: {"loss": 2 * predict(case)["loss"]}),
    Control[Factorization](
        "exponent_two", "penalty s^2 in place of s^{2/L}", "schatten",
        predict=lambda case: _kept_as(case, case.values / (1 + case.depth * case.decay))),
    Control[Factorization](
        "soft_threshold_at_depth_three", "(sigma - lambda)_+ with three layers", "schatten",
        predict=lambda case: _kept_as(case, shrinkage.shrink(case.values, case.decay))),
    Control("start_near_zero", "three layers, a start in the basin of the origin (there "
            "minimiser and minimum fail too)", "schatten",
            case=_near_zero, breaks="applies", amount=0.97, at=MUCH_DECAY),
)  # fmt: skip

DESCENT = Scenario[Factorization](
    "descent", make_case, predict, measure, CLAIMS, CONTROLS,
    hypotheses={"equal_decay": lambda case: jnp.all(case.weight_decay == case.decay)},
    dims={
        "product": ("row", "column"),
        "singular_values": ("index",),
        "target_values": ("target_index",),
        "shrunk": ("target_index",),
        **setting.START_DIMS,
        "start_norms": ("layer",),
        "norms": ("layer",),
        "gradient_norms": ("layer",),
        "first": ("slot", "column"),
        "first_gradient": ("slot", "column"),
        "last": ("row", "slot"),
        "last_gradient": ("row", "slot"),
        "decay": ("layer",),
        "left": ("row", "target_index"),
        "right": ("target_index", "column"),
        "objective": ("step",),
        "step": ("step",),
    },
    steps="steps", diverged="diverged_at",
    # So much decay that the failures are clear in float32 as well, and not so much that some random
    # starts end at a minimum of lower rank; 60 seeds of 60 have arrived in both precisions.
    at={"depth": 3, "weight_decay": 0.075, "init_scale": 1.0, "tie": 1, "steps": 1200},
    sides="SVD of Phi, shrunk (L >= 3: a scalar minimisation for each value) against gradient "
    "descent from random layers",
)  # fmt: skip
