"""Theorem 1, descent from random layers: where it ends, with two layers and with more.

The loss is ``1/2 ||W_L ... W_1 - Phi||_F^2 + lambda/2 sum_l ||W_l||_F^2`` with hidden layers of r
rows, ``Phi = U Sigma V^T``. Two layers end at a minimiser, ``U_r (Sigma_r - lambda I)_+ V_r^T``.
More come to rest at one of ``P_q = sum_{i <= q} w_i^L u_i v_i^T``, q = 0, 1, ..., with the larger
root of ``w_i^{2L-2} - sigma_i w_i^{L-2} + lambda = 0``. Which one, the start decides: see
``rest_points_claims``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from lrdyn.theorem1 import convergence, setting, shrinkage
from lrdyn.theorem1.descent import (
    DescentMeasured,
    DescentOutcome,
    DescentTheory,
    Factorization,
    make_case,
    measure,
    minimiser,
    predict,
)
from lrdyn.verification.running.evaluate import each_time
from lrdyn.verification.stating.forms import AtLeast, Equal, Zero
from lrdyn.verification.stating.statement import Claim, Control, Scenario

# When a run is judged: decided by theory ---------------------------------------------------------


def _decay(outcome: DescentOutcome) -> float:
    """Largest decay of a layer."""
    return float(np.max(outcome.predicted.decay))


def _largest_value(outcome: DescentOutcome) -> float:
    """Largest singular value sigma_1 of the target."""
    # A NumPy number: if a control makes it negative, its powers are NaN and not complex.
    return np.float64(outcome.predicted.target_values[0])


def _loss_scale(outcome: DescentOutcome) -> float:
    """Loss of layers that are 0: the scale of all losses."""
    return 0.5 * float(np.sum(outcome.predicted.target_values**2))


def _start(outcome: DescentOutcome) -> convergence.Start:
    theory = outcome.predicted
    return convergence.Start(
        modes=np.asarray(theory.start_modes),
        first=np.asarray(theory.start_first),
        last=np.asarray(theory.start_last),
    )


def _has_two_layers(outcome: DescentOutcome) -> bool:
    return outcome.point["depth"] == 2


def _steps_needed(outcome: DescentOutcome) -> float | None:
    """Steps after which two layers must have arrived, where theory has a number."""
    if not _has_two_layers(outcome):
        return None
    return convergence.steps_to_arrive(
        _start(outcome),
        np.asarray(outcome.predicted.target_values),
        (outcome.point["rows"], outcome.point["cols"]),
        _decay(outcome),
        outcome.point["learning_rate"],
        setting.nearness(outcome),
        close=setting.tie_distance(outcome, _largest_value(outcome)),
        rounding=float(np.finfo(outcome.dtype).eps),
    )


def _certified(outcome: DescentOutcome) -> bool:
    """Whether the gradient says that the run has arrived, for want of a number of steps."""
    return _steps_needed(outcome) is None


def _not_at_the_end(outcome: DescentOutcome) -> str:
    """Why the end of two layers cannot be judged; by the gradient where theory has no number."""
    values = outcome.predicted.target_values[: outcome.point["rank"]]
    # Where sigma_i = lambda a direction has no curvature: a power of time is no end.
    if np.any(np.abs(values - _decay(outcome)) <= setting.tie_distance(outcome, values[0])):
        return "no curvature"
    number = _steps_needed(outcome)
    if number is not None:
        return setting.too_few_steps(outcome, number)
    if setting.is_at_rest(outcome, _distance(outcome), _largest_value(outcome)):
        return ""
    return _not_at_rest(outcome) or "no bound"


def _distance(outcome: DescentOutcome) -> float:
    """Bound of the distance of the product from the minimiser, by the gradient."""
    theory, run = outcome.predicted, outcome.measured
    return convergence.distance_bound(
        convergence.End(
            first=np.asarray(run.first),
            last=np.asarray(run.last),
            first_gradient=np.asarray(run.first_gradient),
            last_gradient=np.asarray(run.last_gradient),
            product=np.asarray(run.product),
        ),
        np.asarray((theory.left * theory.target_values) @ theory.right),
        outcome.point["rank"],
        _decay(outcome),
        close=setting.tie_distance(outcome, _largest_value(outcome)),
    )


def _not_at_rest(outcome: DescentOutcome) -> str:
    """Why a run cannot be judged by where it rests: its gradient is more than rounding."""
    # A product of L layers of size sigma_1^{1/L} has a gradient of sigma_1^{1-1/L} times its own.
    scale = _largest_value(outcome) ** (2 - 1 / outcome.point["depth"])
    slope = float(np.max(outcome.measured.gradient_norms))
    return "" if setting.is_at_rest(outcome, slope, scale) else "still moving"


def _not_balanced_yet(outcome: DescentOutcome) -> str:
    """Why layers need not be balanced yet; nothing if their gradients are rounding.

    Anywhere ``lambda ||W'^T W' - W W^T|| = ||W'^T g' - g W^T||``, W and W' neighbours and g and g'
    their gradients: docs/theorems/theorem1.md, Why 4.
    """
    number = _steps_needed(outcome)
    if number is not None:
        return setting.too_few_steps(outcome, number)
    run = outcome.measured
    # Two terms, each at most the product of these norms.
    bound = float(2 * np.max(run.norms) * np.max(run.gradient_norms) / _decay(outcome))
    scale = _largest_value(outcome) ** (2 / outcome.point["depth"])
    return "" if setting.is_at_rest(outcome, bound, scale) else "still moving"


def _overflows(outcome: DescentOutcome) -> str:
    """Why a loss that overflows is not judged: there is no bound of the step, or it is above it."""
    if np.all(np.isfinite(outcome.measured.objective)):
        return ""
    steepest = convergence.sharpness(_start(outcome), _largest_value(outcome), _decay(outcome))
    # Two layers descend, and stay finite, below 2 over the curvature; for more theory has no bound.
    stable = outcome.point["depth"] == 2 and outcome.point["learning_rate"] * steepest < 2
    return "" if stable else "step too large"


# Claims ----------------------------------------------------------------------------------------


def _nearest_product(outcome: DescentOutcome, values: np.ndarray, count: int) -> np.ndarray:
    """``sum_{i <= count} s_i u_i v_i^T`` with these values s_i, or with a tie the nearest of them.

    With ``sigma_q = sigma_{q+1}``, q the count, and s_q > 0 they are a family, ``sum_above s_i u_i
    v_i^T + s_q U_t Q V_t^T``, Q an orthogonal projector of the rank that is left in the tied space.
    """
    theory, product = outcome.predicted, np.asarray(outcome.measured.product, float)
    left, right = np.asarray(theory.left, float), np.asarray(theory.right, float)
    sigma = np.asarray(theory.target_values)
    spectrum = np.where(np.arange(len(sigma)) < count, values, 0.0)
    # The judge is NumPy in float64, but a run in float32 knows ties to half of its digits.
    tied = np.abs(sigma - sigma[count - 1]) <= setting.tie_distance(outcome, sigma[0])
    family = count > 0 and values[count - 1] > 0 and np.any(tied[count:])
    if not (family and np.all(np.isfinite(product))):
        return (left * spectrum) @ right
    in_basis = (left.T @ product @ right.T)[np.ix_(tied, tied)]
    # The nearest projector has the leading eigenvectors of the symmetric part.
    basis = np.linalg.eigh(in_basis + in_basis.T)[1][:, -int(np.sum(tied[:count])) :]
    inner = np.diag(np.where(tied, 0.0, spectrum))
    inner[np.ix_(tied, tied)] = values[count - 1] * basis @ basis.T
    return left @ inner @ right


def _compare_with_minimiser(outcome: DescentOutcome) -> Equal:
    theory, run, rank = outcome.predicted, outcome.measured, outcome.point["rank"]
    nearest = _nearest_product(outcome, np.asarray(theory.shrunk), rank)
    return Equal(nearest, run.product, scale=_largest_value(outcome))


def _rest_point(outcome: DescentOutcome) -> tuple[int, np.ndarray]:
    """Number q and product P_q, of the P_q that is nearest to the product of the run."""
    product, values = outcome.measured.product, np.asarray(outcome.predicted.local_values)
    points = [_nearest_product(outcome, values, q) for q in range(outcome.point["rank"] + 1)]
    # Theory does not say which P_q a start leads to: the nearest one.
    q = int(np.argmin([np.max(np.abs(point - product)) for point in points]))
    return q, points[q]


def _claim_of_two_layers(
    id: str,
    statement: str,
    form: Callable[[DescentOutcome], Equal],
    reads: Callable[[DescentTheory, DescentMeasured], tuple[Any, ...]],
) -> Claim[DescentTheory, DescentMeasured]:
    """Claim about the end of two layers; it also reads what decides whether a run is there."""
    return Claim(
        id,
        statement,
        form=form,
        reads=lambda theory, run: (
            *reads(theory, run),
            theory.target_values,
            theory.decay,
            theory.left,
            theory.right,
            theory.start_modes,
            theory.start_first,
            theory.start_last,
            run.first,
            run.last,
            run.first_gradient,
            run.last_gradient,
            run.gradient_norms,
            run.product,
        ),
        applies=_has_two_layers,
        undecided=_not_at_the_end,
        certified=_certified,
    )


def _claim_of_rest(
    id: str,
    statement: str,
    form: Callable[[DescentOutcome], Equal],
    reads: Callable[[DescentTheory, DescentMeasured], tuple[Any, ...]],
) -> Claim[DescentTheory, DescentMeasured]:
    """Claim about a point of rest of more layers; it also reads what tells the nearest one."""
    return Claim(
        id,
        statement,
        form=form,
        reads=lambda theory, run: (
            *reads(theory, run),
            theory.target_values,
            theory.left,
            theory.right,
            theory.local_values,
            theory.rest_condition,
            run.product,
            run.gradient_norms,
        ),
        applies=lambda outcome: not _has_two_layers(outcome),
        undecided=_not_at_rest,
        condition=lambda theory: theory.rest_condition,
        steps=setting.FEW,
        certified=lambda outcome: True,
    )


CLAIMS: tuple[Claim[DescentTheory, DescentMeasured], ...] = (
    _claim_of_two_layers(
        "minimiser",
        "with two layers, gradient descent ends at W_2 W_1 = U_r (Sigma_r - lambda I)_+ V_r^T "
        "or, if sigma_r = sigma_{r+1}, at sum_above s_i u_i v_i^T + s_r U_t Q V_t^T with s_i = "
        "(sigma_i - lambda)_+ and an orthogonal projector Q in the tied space",
        form=_compare_with_minimiser,
        reads=lambda theory, run: (theory.shrunk,),
    ),
    _claim_of_two_layers(
        "minimum",
        "with two layers, gradient descent ends at the loss sum_{i<=r, sigma_i > lambda} (lambda "
        "sigma_i - lambda^2/2) + sum_rest sigma_i^2/2, even if sigma_r = sigma_{r+1}",
        form=lambda outcome: Equal(
            outcome.predicted.loss, outcome.measured.loss, scale=_loss_scale(outcome)
        ),
        reads=lambda theory, run: (theory.loss, run.loss),
    ),
    _claim_of_two_layers(
        "schatten",
        "with two layers, gradient descent ends at a product whose singular values minimise 1/2 "
        "(s - sigma_i)^2 + lambda s, each for its own i <= r",
        form=lambda outcome: Equal(
            outcome.predicted.singular_values,
            outcome.measured.singular_values,
            scale=_largest_value(outcome),
        ),
        reads=lambda theory, run: (theory.singular_values, run.singular_values),
    ),
    _claim_of_rest(
        "rest",
        "with three layers or more, a run whose gradient is down to rounding is at P_q = "
        "sum_{i<=q} w_i^L u_i v_i^T for some q <= r, w_i the larger root of w_i^{2L-2} - sigma_i "
        "w_i^{L-2} + lambda = 0 (at a tie, in the family of P_q)",
        form=lambda outcome: Equal(
            _rest_point(outcome)[1], outcome.measured.product, scale=_largest_value(outcome)
        ),
        reads=lambda theory, run: (theory.local_values,),
    ),
    _claim_of_rest(
        "rest_loss",
        "with three layers or more, a run at rest at P_q = sum_{i<=q} w_i^L u_i v_i^T has the "
        "loss sum_{i<=q} (1/2 (w_i^L - sigma_i)^2 + lambda L/2 w_i^2) + sum_{i>q} sigma_i^2/2",
        form=lambda outcome: Equal(
            outcome.predicted.rest_losses[_rest_point(outcome)[0]],
            outcome.measured.loss,
            scale=_loss_scale(outcome),
        ),
        reads=lambda theory, run: (theory.rest_losses, run.loss),
    ),
    Claim(
        "balanced",
        "if lambda > 0, W_{l+1}^T W_{l+1} = W_l W_l^T for all l < L wherever descent ends "
        "(without decay gradient flow would keep the difference that the two sides have at the "
        "start)",
        form=lambda outcome: Zero(
            outcome.measured.imbalance,
            scale=_largest_value(outcome) ** (2 / outcome.point["depth"]),
            alternative=outcome.predicted.start_imbalance,
        ),
        reads=lambda theory, run: (
            run.imbalance,
            run.norms,
            run.gradient_norms,
            theory.start_imbalance,
            theory.target_values,
            theory.decay,
            theory.start_modes,
            theory.start_first,
            theory.start_last,
        ),
        applies=lambda outcome: _decay(outcome) > 0,
        undecided=_not_balanced_yet,
        certified=_certified,
    ),
    Claim(
        "lower_bound",
        "at every recorded step of every run the loss is at least the global minimum, sum_{i<=r} "
        "min_s (1/2 (s - sigma_i)^2 + lambda L/2 s^{2/L}) + sum_{i>r} sigma_i^2/2 (true of any "
        "weights: only a wrong loss breaks it)",
        kind="bound",
        form=lambda outcome: AtLeast(
            outcome.measured.objective, outcome.predicted.loss, scale=_loss_scale(outcome)
        ),
        reads=lambda theory, run: (
            theory.loss,
            run.objective,
            theory.target_values,
            theory.decay,
            theory.start_modes,
            theory.start_first,
            theory.start_last,
        ),
        undecided=_overflows,
        carries=False,
    ),
)


# Controls --------------------------------------------------------------------------------------


def _half_the_decay(case: Factorization) -> DescentTheory:
    return minimiser(case, case.decay / 2)


def _unequal_decay(key: Key[Array, ""], case: Factorization, amount: Array) -> Factorization:
    """Take part of the decay from all layers but the last; all of it would leave no minimum."""
    spared = jnp.arange(case.depth) < case.depth - 1
    decays = jnp.where(spared, (1 - amount) * case.weight_decay, case.weight_decay)
    return dataclasses.replace(case, weight_decay=decays)


DEEP = {"depth": 3, "weight_decay": 0.1, "tie": 0, "steps": 4000}
"""Settings at which three layers from a start of scale 1 are at rest in time and have kept a
singular value, for each of 60 seeds in both precisions."""


def _root_of_another_power(case: Factorization) -> DescentTheory:
    """The larger root of ``w^{2L} - sigma w^{L-2} + lambda``, by Newton's method from above."""
    depth, w = case.depth, jnp.maximum(case.values, 1.0)
    # From above, where the polynomial is convex and rises, Newton's method descends to the root.
    for _ in range(40):
        value = w ** (2 * depth) - case.values * w ** (depth - 2) + case.decay
        slope = 2 * depth * w ** (2 * depth - 1) - (depth - 2) * case.values * w ** (depth - 3)
        w -= value / slope
    return DescentTheory(local_values=w**depth)


CONTROLS: tuple[Control[Factorization, DescentTheory, DescentMeasured], ...] = (
    Control(
        "half_threshold",
        "minimiser with lambda/2 in place of lambda",
        "minimiser",
        predict=_half_the_decay,
    ),
    Control(
        "unique_despite_tie",
        "U_r (Sigma_r - lambda I)_+ V_r^T claimed the only minimiser with sigma_r = sigma_{r+1}",
        "minimiser",
        # As if nothing were left beyond sigma_r: the judge then sees no tie.
        predict=lambda case: DescentTheory(
            target_values=case.values.at[case.rank :].set(0.0),
        ),
        drops="sigma_r > sigma_{r+1}",
    ),
    Control(
        "half_threshold_value",
        "minimum with lambda/2 in place of lambda",
        "minimum",
        predict=_half_the_decay,
    ),
    Control(
        "exponent_two",
        "penalty s^2 in place of s",
        "schatten",
        # 1/2 (s - sigma)^2 + lambda s^2 is least at sigma / (1 + 2 lambda).
        predict=lambda case: DescentTheory(
            singular_values=(case.values / (1 + 2 * case.decay))[: case.rank]
        ),
    ),
    Control(
        "smaller_root",
        "P_q with the smaller root",
        "rest",
        predict=lambda case: DescentTheory(
            local_values=shrinkage.barrier(case.values, case.decay, case.depth)
        ),
        at=DEEP,
    ),
    Control(
        "saddles",
        "the points without u_1 v_1^T, which are saddles",
        "rest",
        predict=lambda case, once=each_time: DescentTheory(
            local_values=once(predict, case).local_values.at[0].set(0.0)
        ),
        at=DEEP,
    ),
    Control(
        "soft_threshold_at_depth_three",
        "(sigma - lambda)_+ with three layers",
        "rest",
        predict=lambda case: DescentTheory(
            local_values=shrinkage.local_minimum(case.values, case.decay)
        ),
        # The two differ in the second order of lambda: less would drown in float32's tolerance.
        at=DEEP | {"weight_decay": 0.2},
    ),
    Control(
        "another_power",
        "w^{2L} in place of w^{2L-2}",
        "rest",
        predict=_root_of_another_power,
        at=DEEP,
    ),
    Control(
        "rest_without_decay",
        "the losses without decay",
        "rest_loss",
        predict=lambda case: DescentTheory(
            rest_losses=0.5 * jnp.sum(case.values**2)
            - 0.5 * jnp.append(0.0, jnp.cumsum(case.values[: case.rank] ** 2))
        ),
        at=DEEP,
    ),
    Control(
        "decay_on_one_layer",
        "0.6 lambda on all layers but the last",
        "balanced",
        case=_unequal_decay,
        breaks="equal_decay",
        amount=0.4,
    ),
    Control(
        "minimum_without_half",
        "minimum of the loss without the factors 1/2",
        "lower_bound",
        predict=lambda case, once=each_time: DescentTheory(loss=2 * once(predict, case).loss),
    ),
)

DESCENT = Scenario[Factorization, DescentTheory, DescentMeasured](
    "descent",
    make_case,
    predict,
    measure,
    theory=DescentTheory,
    measured=DescentMeasured,
    claims=CLAIMS,
    controls=CONTROLS,
    hypotheses={"equal_decay": lambda case: jnp.all(case.weight_decay == case.decay)},
    steps="steps",
    diverged=lambda run: run.diverged_at,
    # So much decay that the failures are clear in float32 as well, and two layers arrive soon.
    at={"depth": 2, "weight_decay": 0.3, "init_scale": 1.0, "tie": 1, "steps": 2400},
    sides="SVD of Phi, shrunk (L >= 3: roots of a polynomial for each value) against gradient "
    "descent from random layers",
)
