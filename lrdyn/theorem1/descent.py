"""Theorem 1, descent from random layers: the runs, and what is known of their end beforehand.

The loss is ``1/2 ||W_L ... W_1 - Phi||_F^2 + lambda/2 sum_l ||W_l||_F^2`` with hidden layers of r
rows.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from lrdyn.core import linalg
from lrdyn.core.factorization import Weights, end_to_end, factorization_loss
from lrdyn.core.recording import recorded_steps
from lrdyn.core.spectra import singular_values
from lrdyn.theorem1 import rest_points, setting, shrinkage
from lrdyn.theorem2.setting import Descent
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.statement import Outcome


class Factorization(Descent):
    """One run with hidden layers of r rows; the theorem wants the decay of all layers equal."""

    target: Float[Array, "k d"]

    @property
    def rank(self) -> int:
        """r, the width of the factorisation."""
        return len(self.weights[0])

    @property
    def depth(self) -> int:
        """Number L of layers."""
        return len(self.weights)

    @property
    def values(self) -> Float[Array, "n"]:
        """The singular values of the target."""
        return singular_values(self.target)

    @property
    def decay(self) -> Float[Array, ""]:
        """Largest decay of a layer; the theorem wants all of them equal."""
        return jnp.max(self.weight_decay)


class DescentTheory(NamedTuple):
    """What is known of the end of descent before it is run."""

    product: Float[Array, "row column"] = ABSENT
    """U_r s(Sigma_r) V_r^T, the minimiser."""
    loss: Float[Array, ""] = ABSENT
    """The minimum, decay included."""
    singular_values: Float[Array, "index"] = ABSENT
    """s(sigma_i) for i <= r."""
    target_values: Float[Array, "target_index"] = ABSENT
    """sigma_i, all singular values of the target."""
    shrunk: Float[Array, "target_index"] = ABSENT
    """s(sigma_i) of all of them, as if the rank were not bounded."""
    left: Float[Array, "row target_index"] = ABSENT
    """U, left singular vectors of the target."""
    right: Float[Array, "target_index column"] = ABSENT
    """V^T."""
    decay: Float[Array, "layer"] = ABSENT
    """lambda of each layer; a control makes them differ, so that the flag does not tell."""
    local_values: Float[Array, "target_index"] = ABSENT
    """s_i at the local minimum away from 0, whatever it costs; 0 if there is none."""
    rest_losses: Float[Array, "modes"] = ABSENT
    """The loss at P_0, ..., P_r: see :mod:`lrdyn.theorem1.rest_points`."""
    rest_condition: Float[Array, ""] = ABSENT
    """Largest ratio of the distance from the nearest of them to a small gradient."""
    start_imbalance: Float[Array, ""] = ABSENT
    """Largest entry of W_{l+1}^T W_{l+1} - W_l W_l^T over all l, at the start."""
    start_modes: Float[Array, "target_index slot"] = ABSENT
    """The modes of :class:`lrdyn.theorem1.Start`."""
    start_first: Float[Array, "slot other_slot"] = ABSENT
    """W_1 W_1^T at the start."""
    start_last: Float[Array, "slot other_slot"] = ABSENT
    """W_L^T W_L at the start."""


class DescentMeasured(NamedTuple):
    """State of descent with decay, at its last step unless an axis says otherwise."""

    product: Float[Array, "row column"] = ABSENT
    """W_L ... W_1."""
    loss: Float[Array, ""] = ABSENT
    """The loss, decay included."""
    singular_values: Float[Array, "index"] = ABSENT
    """The r largest of the product."""
    objective: Float[Array, "step"] = ABSENT
    """The loss at each recorded step, decay included."""
    first: Float[Array, "slot column"] = ABSENT
    """W_1."""
    last: Float[Array, "row slot"] = ABSENT
    """W_L."""
    first_gradient: Float[Array, "slot column"] = ABSENT
    """Gradient of the loss in W_1, decay included."""
    last_gradient: Float[Array, "row slot"] = ABSENT
    """Gradient of the loss in W_L, decay included."""
    norms: Float[Array, "layer"] = ABSENT
    """||W_l||_F."""
    gradient_norms: Float[Array, "layer"] = ABSENT
    """Frobenius norm of the gradient in each layer, decay included."""
    imbalance: Float[Array, ""] = ABSENT
    """Largest entry of W_{l+1}^T W_{l+1} - W_l W_l^T over all l."""
    diverged_at: Int[Array, ""] = ABSENT
    """Step at which the run diverged, or -1."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""


DescentOutcome = Outcome[DescentTheory, DescentMeasured]


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
    """Draw a target and the Gaussian layers from which descent starts."""
    widths = (cols, *(rank,) * (depth - 1), rows)
    layers = list(zip(widths[1:], widths[:-1], strict=True))
    # One draw for all: each would be a program of its own.
    target, starts = setting.draw_target(key, rows, cols, layers, rank=rank, **of_target)
    return Factorization(
        target=target,
        # A Gaussian matrix has about the root of its longer side for a norm: eps is that of a
        # layer.
        weights=tuple(init_scale * W / float(np.sqrt(max(W.shape))) for W in starts),
        weight_decay=jnp.full(depth, weight_decay, target.dtype),
        learning_rate=jnp.asarray(learning_rate, target.dtype),
        steps=recorded_steps(steps, at_most=21),
    )


# Prediction and measurement --------------------------------------------------------------------


def predict(case: Factorization) -> DescentTheory:
    """Minimiser, minimum and points of rest in closed form; what tells when a run has arrived."""
    theory = minimiser(case, case.decay)
    modes, first, last = setting.start_fields(case.weights, theory.left, theory.right)
    values, depth = theory.target_values, case.depth
    return theory._replace(
        singular_values=theory.shrunk[: case.rank],
        local_values=shrinkage.local_minimum(values, case.decay, depth),
        rest_losses=rest_points.rest_losses(values, case.rank, case.decay, depth),
        rest_condition=setting.rest_condition(case.target, case.rank, case.decay, depth),
        decay=case.weight_decay,
        start_imbalance=imbalance(case.weights),
        start_modes=modes,
        start_first=first,
        start_last=last,
    )


def _norms(weights: Weights) -> Float[Array, "depth"]:
    return jnp.stack([jnp.sqrt(jnp.sum(W**2)) for W in weights])


def minimiser(case: Factorization, decay: Float[Array, ""]) -> DescentTheory:
    """Minimiser and minimum in closed form, for the decay of the case or that of a control."""
    rank, (left, values, right) = case.rank, linalg.svd(case.target)
    shrunk = shrinkage.shrink(values, decay, case.depth)
    return DescentTheory(
        product=(left[:, :rank] * shrunk[None, :rank]) @ right[:rank],
        loss=shrinkage.minimum(values, rank, decay, case.depth),
        target_values=values,
        shrunk=shrunk,
        left=left,
        right=right,
    )


def measure(case: Factorization) -> DescentMeasured:
    """Gradient descent with decay from a random start."""

    def record(weights: Weights) -> tuple[Array, Array]:
        return end_to_end(weights), shrinkage.decayed_loss(weights, case.target, case.decay)

    def loss(weights: Weights) -> Float[Array, ""]:
        return factorization_loss(weights, case.target)

    run = case.descend(loss, case.weights, record)
    products, losses = run.records
    # The rule of descent decays by itself; the gradient of the whole loss has both parts.
    slopes = jax.grad(loss)(run.params)
    decayed = zip(slopes, case.weight_decay, run.params, strict=True)
    gradients = tuple(slope + decay * W for slope, decay, W in decayed)
    return DescentMeasured(
        product=products[-1],
        loss=losses[-1],
        singular_values=singular_values(products[-1])[: case.rank],
        objective=losses,
        first=run.params[0],
        last=run.params[-1],
        first_gradient=gradients[0],
        last_gradient=gradients[-1],
        norms=_norms(run.params),
        gradient_norms=_norms(gradients),
        imbalance=imbalance(run.params),
        diverged_at=run.diverged_at,
        step=jnp.asarray(case.steps),
    )


def imbalance(weights: Weights) -> Float[Array, ""]:
    """Largest entry of ``W_{l+1}^T W_{l+1} - W_l W_l^T`` over all l."""
    gaps = [after.T @ after - before @ before.T for before, after in pairwise(weights)]
    return jnp.max(jnp.abs(jnp.stack(gaps)))
