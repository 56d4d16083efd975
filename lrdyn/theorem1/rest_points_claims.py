"""Theorem 1, three layers and more: which minimum a start leads to, and starts for the global one.

With decay there are several local minima, ``P_q = sum_{i <= q} w_i^L u_i v_i^T`` (``rest_points``).
Descent ends at the global minimiser ``U_r s(Sigma_r) V_r^T``, where s minimises ``1/2 (s -
sigma)^2 + (lambda L / 2) s^{2/L}``, if it starts where the loss is below that of every other
critical point, with a step so small that it never rises. From random layers it can come to rest at
any of the P_q: how often, and from which scale, is a finding.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core import linalg
from lrdyn.core.descent import Problem, gradient_descent, simulate_lanes
from lrdyn.core.factorization import (
    Weights,
    end_to_end,
    factorization_loss,
    is_small,
    small_matmul,
)
from lrdyn.core.recording import Recorded
from lrdyn.core.spectra import singular_values
from lrdyn.theorem1 import rest_points, setting, shrinkage
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.forms import Equal
from lrdyn.verification.stating.statement import Claim, Control, Finding, Outcome, Scenario

NEAR = 4
"""Starts near the minimiser."""

NOISE = 0.03
"""Standard deviation of the entries that are added to its layers, in units of sigma_1^{1/L}."""

SCALES = (0.05, 0.1, 0.3, 0.6, 1.0)
"""Scales of the random starts, as of ``--init-scale``, in units of sigma_1^{1/L}."""

STARTS = 12
"""Random starts at each scale."""


class Basins(Recorded):
    """A target, and starts: balanced layers at the minimiser plus noise, and random ones."""

    target: Float[Array, "k d"]
    near: tuple[Float[Array, "near _ _"], ...]
    """Layers of all starts near the minimiser, along a first axis."""
    random: tuple[Float[Array, "random _ _"], ...]
    """Layers of all random starts, those of one scale after the other."""
    weight_decay: Float[Array, ""]
    learning_rate: Float[Array, ""]

    @property
    def depth(self) -> int:
        """Number L of layers."""
        return len(self.near)

    @property
    def rank(self) -> int:
        """Width r of the hidden layers."""
        return self.near[0].shape[1]

    @property
    def values(self) -> Float[Array, "n"]:
        """The singular values of the target."""
        return singular_values(self.target)

    @property
    def near_losses(self) -> Float[Array, "near"]:
        """The loss at the starts near the minimiser."""
        return jax.vmap(self.loss)(self.near)

    @property
    def near_rates(self) -> Float[Array, "near"]:
        """Step sizes with which the loss never rises from there: 1 over a bound of the Hessian."""
        bound = jax.vmap(
            lambda loss: rest_points.sublevel_curvature(
                loss, self.values, self.rank, self.weight_decay, self.depth
            )
        )
        return jnp.minimum(self.learning_rate, 1 / bound(self.near_losses))

    def loss(self, weights: Weights) -> Float[Array, ""]:
        """Loss of layers of any depth, with decay."""
        return shrinkage.decayed_loss(weights, self.target, self.weight_decay)


class BasinsTheory(NamedTuple):
    """Starts and minima, as they are known before descent."""

    minimiser: Float[Array, "row column"] = ABSENT
    """U_r s(Sigma_r) V_r^T."""
    minimum: Float[Array, ""] = ABSENT
    """The loss there."""
    next_value: Float[Array, ""] = ABSENT
    """The loss of every other critical point is at least that."""
    near_losses: Float[Array, "near_start"] = ABSENT
    """The loss at each start near the minimiser."""
    near_distances: Float[Array, "near_start"] = ABSENT
    """Distance of its product from that of the minimiser, Frobenius norm."""
    near_rates: Float[Array, "near_start"] = ABSENT
    """Its step size."""
    target_values: Float[Array, "target_index"] = ABSENT
    """sigma_i."""
    shrunk: Float[Array, "target_index"] = ABSENT
    """s(sigma_i) of all of them, as if the rank were not bounded."""
    local_values: Float[Array, "target_index"] = ABSENT
    """s_i at the local minimum away from 0, whatever it costs; 0 if there is none."""


class BasinsMeasured(NamedTuple):
    """Where the runs are after their last step."""

    near_products: Float[Array, "near_start row column"] = ABSENT
    """W_L ... W_1 of the runs that start near the minimiser."""
    near_ends: Float[Array, "near_start"] = ABSENT
    """Their loss, decay included."""
    ends: Float[Array, "start_scale start slot"] = ABSENT
    """Singular values of the products of the runs from random layers, as many as the rank."""
    end_gradients: Float[Array, "start_scale start"] = ABSENT
    """Largest norm of their gradient in a layer, decay included."""
    start_scale: Float[Array, "start_scale"] = ABSENT
    """Scale of the random layers."""


BasinsOutcome = Outcome[BasinsTheory, BasinsMeasured]


def make_case(
    key: Key[Array, ""],
    *,
    rows: int,
    cols: int,
    rank: int,
    depth: int,
    weight_decay: Any,
    learning_rate: Any,
    target_scale: Any,
    steps: int,
    target_condition: Any = 2.0,
) -> Basins:
    """Draw a target with distinct singular values, and starts."""
    widths = (cols, *(rank,) * (depth - 1), rows)
    shapes = list(zip(widths[1:], widths[:-1], strict=True))
    # All starts in one draw, a row each: a draw of its own is a program of its own.
    count = NEAR + len(SCALES) * STARTS
    target, drawn = setting.draw_target(
        key,
        rows,
        cols,
        [(count, a * b) for a, b in shapes],
        rank=rank,
        rank_deficit=0,
        tie=0,
        target_scale=target_scale,
        target_condition=target_condition,
    )
    layers = [G.reshape(count, *shape) for G, shape in zip(drawn, shapes, strict=True)]
    # Layers that share a singular value sigma_1 of the product equally.
    size = jnp.asarray(target_scale, target.dtype) ** (1 / depth)
    scales = size * jnp.repeat(jnp.asarray(SCALES, target.dtype), STARTS)[:, None, None]
    decay = jnp.asarray(weight_decay, target.dtype)
    shrunk = shrinkage.shrink(singular_values(target), decay, depth)
    return Basins(
        target=target,
        near=tuple(
            W[None] + size * NOISE * G[:NEAR]
            for W, G in zip(_balanced_layers(target, shrunk, rank, depth), layers, strict=True)
        ),
        random=tuple(scales * G[NEAR:] / float(np.sqrt(max(G.shape[1:]))) for G in layers),
        weight_decay=decay,
        learning_rate=jnp.asarray(learning_rate, target.dtype),
        steps=(0, steps),
    )


def _balanced_layers(
    target: Float[Array, "k d"], values: Float[Array, "n"], rank: int, depth: int
) -> Weights:
    """Balanced layers whose product has the first of these values in the basis of the target."""
    left, _, right = linalg.svd(target)
    roots = values[:rank] ** (1 / depth)
    inner = [jnp.diag(roots)] * (depth - 2)
    # The same w_i in every layer: W_{l+1}^T W_{l+1} = W_l W_l^T = diag(w_i^2).
    return (roots[:, None] * right[:rank], *inner, left[:, :rank] * roots[None, :])


# Prediction and measurement --------------------------------------------------------------------


def predict(case: Basins) -> BasinsTheory:
    """Minimiser, minimum and second lowest critical value; steps of the starts near it."""
    of_minimum = _minimum(case, case.weight_decay)
    products = jax.vmap(end_to_end)(case.near)
    return of_minimum._replace(
        next_value=rest_points.next_critical_value(
            case.values, case.rank, case.weight_decay, case.depth
        ),
        near_losses=case.near_losses,
        near_distances=jnp.sqrt(jnp.sum((products - of_minimum.minimiser[None]) ** 2, axis=(1, 2))),
        near_rates=case.near_rates,
        target_values=case.values,
        local_values=shrinkage.local_minimum(case.values, case.weight_decay, case.depth),
    )


def _minimum(case: Basins, decay: Float[Array, ""]) -> BasinsTheory:
    left, values, right = linalg.svd(case.target)
    shrunk = shrinkage.shrink(values, decay, case.depth)
    return BasinsTheory(
        minimiser=(left[:, : case.rank] * shrunk[None, : case.rank]) @ right[: case.rank],
        minimum=shrinkage.minimum(values, case.rank, decay, case.depth),
        shrunk=shrunk,
    )


def measure(case: Basins) -> BasinsMeasured:
    """Gradient descent with decay from all starts, side by side."""
    small = is_small(case.target.size, case.target.dtype)
    matmul = small_matmul if small else jnp.matmul

    def problem(start: tuple[Weights, Float[Array, ""]]) -> Problem:
        weights, rate = start
        loss = partial(factorization_loss, target=case.target, matmul=matmul)
        return loss, weights, gradient_descent(rate, case.weight_decay)

    def end(
        weights: Weights,
    ) -> tuple[Float[Array, "k d"], Float[Array, ""], Float[Array, ""]]:
        slopes = jax.grad(case.loss)(weights)
        steepest = jnp.max(jnp.stack([linalg.frobenius(G) for G in slopes]))
        return end_to_end(weights), case.loss(weights), steepest

    # One batch of as many steps; the starts near the minimiser have step sizes of their own.
    starts = tuple(jnp.concatenate(pair) for pair in zip(case.near, case.random, strict=True))
    rates = jnp.full(len(case.random[0]), case.learning_rate)
    data = starts, jnp.append(case.near_rates, rates)
    run = simulate_lanes(problem, data, case.times, record=lambda layers: None)
    products, losses, gradients = jax.vmap(end)(run.params)
    values = singular_values(products[NEAR:])[:, : case.rank]
    return BasinsMeasured(
        near_products=products[:NEAR],
        near_ends=losses[:NEAR],
        ends=values.reshape(len(SCALES), STARTS, case.rank),
        end_gradients=gradients[NEAR:].reshape(len(SCALES), STARTS),
        start_scale=jnp.asarray(SCALES, values.dtype),
    )


# Claims ----------------------------------------------------------------------------------------


def _starts_below_others(outcome: BasinsOutcome) -> bool:
    """Whether the starts have a loss below that of every critical point but the minimum."""
    theory = outcome.predicted
    return bool(np.max(theory.near_losses) < theory.next_value)


def _loss_scale(outcome: BasinsOutcome) -> float:
    """The loss of layers that are 0, the scale of all losses."""
    return 0.5 * float(np.sum(np.asarray(outcome.predicted.target_values, float) ** 2))


def _not_there_yet(outcome: BasinsOutcome) -> str:
    """Why the runs need not be at the minimum yet; nothing if each has the steps that it needs."""
    theory = outcome.predicted
    values = np.asarray(theory.target_values, float)
    known = (values, theory.shrunk, theory.minimum, theory.near_losses, theory.near_distances)
    if not all(np.all(np.isfinite(array)) for array in known):
        return ""  # lost, and it must fail
    if np.any(theory.near_rates == 0):
        # 1 over a bound that is no number of this precision: no step, and no way to the minimum.
        return "no step in this precision"
    curvature = rest_points.deep_curvature(
        values,
        np.asarray(theory.shrunk, float),
        outcome.point["rank"],
        (outcome.point["rows"], outcome.point["cols"]),
        outcome.point["weight_decay"],
        outcome.point["depth"],
    )
    nearness = setting.nearness(outcome)
    # The loss above the minimum falls twice as fast as the distance; decay can keep it there while
    # the product, of layers that are all small, has long arrived.
    above = np.maximum(theory.near_losses - theory.minimum, 0) / _loss_scale(outcome)
    ends = (theory.near_distances / values[0], nearness), (np.sqrt(above), np.sqrt(nearness))
    numbers = [
        rest_points.steps_to_approach(float(distance), curvature, float(rate), float(tolerance))
        for distances, tolerance in ends
        for distance, rate in zip(distances, theory.near_rates, strict=True)
    ]
    return setting.too_few_steps(outcome, max(numbers))


def modes_kept(
    sigma: np.ndarray,
    local_values: np.ndarray,
    ends: np.ndarray,
    gradients: np.ndarray,
    depth: int,
    dtype: Any,
) -> tuple[np.ndarray, int]:
    """Number q of the local minimum P_q at which each run rests, and the largest that there is.

    Args:
        sigma: singular values of the target.
        local_values: s_i of the local minima.
        ends: singular values of the products of the runs, along the last axis.
        gradients: norms of their gradients.
        depth: L.
        dtype: precision of the runs.

    Returns:
        The numbers, -1 for a run that still moves, and the largest.
    """
    values = local_values[: ends.shape[-1]]
    most = int(np.sum(values > 0))
    points = np.where(np.arange(len(values)) < np.arange(most + 1)[:, None], values, 0.0)
    distances = np.max(np.abs(ends[..., None, :] - points), axis=-1)
    # A gradient of layers of size sigma_1^{1/L} has the size sigma_1^{2-1/L}.
    rests = gradients <= setting.FEW * np.finfo(dtype).eps * sigma[0] ** (2 - 1 / depth)
    return np.where(rests, np.argmin(distances, axis=-1), -1), most


def _claim_of_the_minimum(
    id: str,
    statement: str,
    form: Callable[[BasinsOutcome], Equal],
    reads: Callable[[BasinsTheory, BasinsMeasured], tuple[Any, ...]],
) -> Claim[BasinsTheory, BasinsMeasured]:
    """Claim about the minimum; it also reads what decides whether a run must be there."""
    return Claim(
        id,
        statement,
        form=form,
        reads=lambda theory, run: (
            *reads(theory, run),
            theory.minimum,
            theory.next_value,
            theory.near_losses,
            theory.near_distances,
            theory.near_rates,
            theory.target_values,
            theory.shrunk,
        ),
        applies=_starts_below_others,
        undecided=_not_there_yet,
    )


CLAIMS: tuple[Claim[BasinsTheory, BasinsMeasured], ...] = (
    _claim_of_the_minimum(
        "deep_minimiser",
        "with three layers or more and lambda > 0, descent that starts below the loss of every "
        "critical point but the minimum, with a step of at most 1 over a bound of the Hessian "
        "there, ends at W_L...W_1 = U_r s(Sigma_r) V_r^T, where s(sigma) minimises 1/2 (s - "
        "sigma)^2 + (lambda L/2) s^{2/L}",
        form=lambda outcome: Equal(
            np.broadcast_to(outcome.predicted.minimiser, outcome.measured.near_products.shape),
            outcome.measured.near_products,
            scale=outcome.predicted.target_values[0],
        ),
        reads=lambda theory, run: (theory.minimiser, run.near_products),
    ),
    _claim_of_the_minimum(
        "deep_minimum",
        "with three layers or more and lambda > 0, descent that starts below the loss of every "
        "critical point but the minimum ends at the loss sum_{i<=r} (1/2 (s_i - sigma_i)^2 + "
        "(lambda L/2) s_i^{2/L}) + sum_{i>r} sigma_i^2/2, the least over s_i >= 0",
        form=lambda outcome: Equal(
            np.broadcast_to(outcome.predicted.minimum, outcome.measured.near_ends.shape),
            outcome.measured.near_ends,
            scale=_loss_scale(outcome),
        ),
        reads=lambda theory, run: (run.near_ends,),
    ),
)


# Findings --------------------------------------------------------------------------------------


def _share_of_most_modes(
    name: str, scale: float, **expected: Any
) -> Finding[BasinsTheory, BasinsMeasured]:
    """Share of runs at rest, from random starts of one scale, that keep all that can be kept."""

    def shares(outcome: BasinsOutcome) -> list[float]:
        theory, run = outcome.predicted, outcome.measured
        sides = theory.target_values, theory.local_values, run.ends, run.end_gradients
        of_seeds = []
        for arrays in zip(*sides, strict=True):  # of one seed
            modes, most = modes_kept(*arrays, outcome.point["depth"], outcome.dtype)
            at_rest = modes[SCALES.index(scale)] >= 0
            # A target of which no minimum keeps anything, or runs that all move, say nothing.
            if most and np.any(at_rest):
                of_seeds.append(float(np.mean(modes[SCALES.index(scale)][at_rest] == most)))
        return of_seeds

    return Finding(
        name,
        f"share of the runs at rest, from random layers of scale {scale:g}, that keep all singular "
        "values that a local minimum can keep",
        value=shares,
        reads=lambda theory, run: (
            theory.target_values,
            theory.local_values,
            run.ends,
            run.end_gradients,
        ),
        **expected,
    )


FINDINGS = (
    _share_of_most_modes("most_modes_from_small_starts", SCALES[0], below=0.5),
    _share_of_most_modes("most_modes_from_large_starts", SCALES[-1], above=0.5),
)


# Controls --------------------------------------------------------------------------------------


def _without_the_last(key: Key[Array, ""], case: Basins, amount: Array) -> Basins:
    """Start near the local minimum that keeps one singular value less."""
    shrunk = shrinkage.shrink(case.values, case.weight_decay, case.depth)
    last = jnp.sum(shrunk[: case.rank] > 0) - 1
    less = jnp.where(jnp.arange(len(shrunk)) == last, (1 - amount) * shrunk, shrunk)
    there, elsewhere = (
        _balanced_layers(case.target, values, case.rank, case.depth) for values in (shrunk, less)
    )
    # The noise stays as it was drawn: only its centre moves.
    moved = (W + (B - A)[None] for W, A, B in zip(case.near, there, elsewhere, strict=True))
    return dataclasses.replace(case, near=tuple(moved))


CONTROLS: tuple[Control[Basins, BasinsTheory, BasinsMeasured], ...] = (
    Control(
        "another_basin",
        "starts near the local minimum that keeps one singular value less (deep_minimum fails, "
        "too)",
        "deep_minimiser",
        case=_without_the_last,
        breaks="applies",
    ),
    Control(
        "deep_half_threshold",
        "minimiser with lambda/2 in place of lambda",
        "deep_minimiser",
        predict=lambda case: _minimum(case, case.weight_decay / 2),
    ),
    Control(
        "deep_half_threshold_value",
        "minimum with lambda/2 in place of lambda",
        "deep_minimum",
        predict=lambda case: _minimum(case, case.weight_decay / 2),
    ),
)


def _narrow(settings: dict[str, Any]) -> dict[str, Any]:
    """Three layers and more with decay, or nothing."""
    return settings | {
        "depth": tuple(depth for depth in settings["depth"] if depth > 2),
        "weight_decay": tuple(decay for decay in settings["weight_decay"] if decay > 0),
    }


BASINS = Scenario[Basins, BasinsTheory, BasinsMeasured](
    "basins",
    make_case,
    predict,
    measure,
    theory=BasinsTheory,
    measured=BasinsMeasured,
    claims=CLAIMS,
    controls=CONTROLS,
    findings=FINDINGS,
    narrow=_narrow,
    steps="steps",
    at={"depth": 3, "weight_decay": 0.1},
    sides="SVD of Phi, shrunk by the roots of a polynomial, against gradient descent from starts "
    "near the minimiser",
)
