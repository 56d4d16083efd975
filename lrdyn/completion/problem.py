"""What the claims about completion share: a target seen in part, flags, trainings, arrays."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from lrdyn.completion import recovery
from lrdyn.core import linalg
from lrdyn.core.descent import simulate
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.initialization import orthogonal_layers
from lrdyn.core.masking import observe
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.core.spectra import singular_values
from lrdyn.corollary1.compression import GradientBasis, gradient_basis
from lrdyn.shared_flags import (
    INIT_SCALE,
    LEARNING_RATE,
    RANK,
    STEPS,
    TARGET_CONDITION,
    TARGET_SCALE,
)
from lrdyn.theorem2 import setting
from lrdyn.verification.stating.fields import ABSENT
from lrdyn.verification.stating.flags import Domain, Flag, at_least, between
from lrdyn.verification.stating.statement import Outcome

DEPTH = 3
"""L of the full network, and of the compressed one of Kwon et al., outer factors counted."""


class CompletionRun(NamedTuple):
    """Recovery error and loss of one training at its recorded steps."""

    error: Float[Array, "times"]
    """Recovery error."""
    loss: Float[Array, "times"]
    """The estimate of ``1/2 ||f - Phi||_F^2`` that is descended on."""
    diverged_at: Int[Array, ""]


class CompletionTheory(NamedTuple):
    """The full network, which compressed ones are compared with, and the basis itself.

    In sensing the fields from ``start`` on are absent.
    """

    full_error: Float[Array, "step"] = ABSENT
    """Recovery error ||f - Phi||_F / ||Phi||_F of the full network."""
    full_loss: Float[Array, "step"] = ABSENT
    """Its loss."""
    full_diverged_at: Int[Array, ""] = ABSENT
    """Step at which it diverged, or -1."""
    level: Float[Array, ""] = ABSENT
    """Recovery error at which it has ended: 32 times ``left``."""
    left: Float[Array, ""] = ABSENT
    """sqrt(d - 2r) prod eps_l / ||Phi||_F: what Corollary 1 grants the bulk at the start."""
    step: Int[Array, "step"] = ABSENT
    """Recorded steps."""
    start: Float[Array, "part row column"] = ABSENT
    """Start as in the run, with 0 in place of every hidden entry of Phi."""
    start_condition: Float[Array, ""] = ABSENT
    """By how much rounding errors of that start are amplified."""
    floor: Float[Array, ""] = ABSENT
    """||Phi - P Phi Q||_F / ||Phi||_F, P and Q onto the subspaces of the basis."""
    hidden: Int[Array, ""] = ABSENT
    """Number of hidden entries."""


class CompletionMeasured(NamedTuple):
    """Compressed networks while they are trained; in sensing from the spectral start alone."""

    spectral_error: Float[Array, "step"] = ABSENT
    """Recovery error from the spectral start."""
    spectral_loss: Float[Array, "step"] = ABSENT
    """Loss from there."""
    basis_error: Float[Array, "step"] = ABSENT
    """Recovery error from the basis of the gradient, outer factors trained at gamma eta."""
    basis_loss: Float[Array, "step"] = ABSENT
    """Loss from there."""
    fixed_error: Float[Array, "step"] = ABSENT
    """Recovery error from that basis with fixed outer factors."""
    start: Float[Array, "part row column"] = ABSENT
    """Product at the spectral start of scale 1, projector on the basis, slope of the loss there."""
    diverged_at: Int[Array, ""] = ABSENT
    """Last step at which a network diverged, or -1."""


CompletionOutcome = Outcome[CompletionTheory, CompletionMeasured]


class Recovery(Recorded):
    """A target seen in part, a full network and what decides its compressed ones."""

    target: Float[Array, "d d"]
    weights: Weights
    learning_rate: Float[Array, ""]
    step_ratio: Float[Array, ""]
    """alpha."""
    outer_ratio: Float[Array, ""]
    """gamma."""
    mask: Float[Array, "d d"]
    """Observed entries."""
    sharpness: Float[Array, ""]
    """Largest curvature of the full network at the target, see :func:`recovery.sharpness`."""
    least_curvature: Float[Array, ""]
    """Smallest one of the loss along matrices of rank r, :func:`recovery.tangent_curvature`."""
    rank: int = eqx.field(static=True)
    measurements: Float[Array, "m d d"] | None = None
    """Gaussian measurements, if the target is seen by these."""
    values: Float[Array, "m"] | None = None
    """What they measure."""

    def loss(self, product: Float[Array, "d d"]) -> Float[Array, ""]:
        """1/2 ||f - Phi||_F^2, estimated from what is seen."""
        if self.measurements is None or self.values is None:
            return product.size * recovery.observed_loss(product, self.target, self.mask)
        return recovery.sensing_loss(product, self.measurements, self.values)

    @property
    def share(self) -> Float[Array, ""]:
        """How many numbers are seen of each entry of the target."""
        if self.measurements is None:
            return jnp.mean(self.mask)
        return jnp.asarray(len(self.measurements) / self.target.size, self.target.dtype)

    @property
    def surrogate(self) -> Float[Array, "d d"]:
        """The target, estimated from what is seen."""
        if self.measurements is None or self.values is None:
            return recovery.surrogate(self.target, self.mask)
        return recovery.sensing_surrogate(self.measurements, self.values)

    @property
    def gradient(self) -> Float[Array, "d d"]:
        """The gradient of the first layer of the full network at its start."""
        return jax.grad(lambda weights: self.loss(end_to_end(weights)))(self.weights)[0]

    @property
    def basis(self) -> GradientBasis:
        """The basis of that gradient."""
        return gradient_basis(self.weights, self.gradient, self.rank)

    def train(
        self,
        product: Callable[[PyTree], Float[Array, "d d"]],
        start: PyTree,
        rule: optax.GradientTransformation,
    ) -> CompletionRun:
        """Train a network, and record error and loss of its product.

        Args:
            product: maps the network to its product.
            start: the network at the start, any PyTree.
            rule: the optimiser.
        """

        def loss(network: PyTree) -> Float[Array, ""]:
            return self.loss(product(network))

        def record(network: PyTree) -> tuple[Array, Array]:
            return recovery.recovery_error(product(network), self.target), loss(network)

        run = simulate(loss, start, rule, self.times, record=record)
        error, value = run.records
        return CompletionRun(error, value, run.diverged_at)


def hide_unseen(case: Recovery) -> Recovery:
    """The case with 0 in place of each hidden entry of its target."""
    return dataclasses.replace(case, target=jnp.where(case.mask == 1, case.target, 0.0))


FLAGS = (
    Flag(
        "dim", (24,), at_least(4), int, "d", "width of the target", (100, 200), shapes=True, most=14
    ),
    RANK.at((1,), paper=(5,)),
    Flag(
        "observed",
        quick=(0.5,),
        paper=(0.3, 0.7),
        domain=Domain(0, 1, low_open=True),
        symbol="p",
        help="fraction of the entries that is observed; p d^2 measurements of sensing",
        shapes=True,
        from_usual=True,
    ),
    INIT_SCALE.at(
        (0.03,), paper=(0.004,), domain=between(1e-6, 10.0), help="init scale of every layer"
    ),
    LEARNING_RATE.at(
        (0.15,),
        paper=(0.05,),
        domain=between(1e-9, 1e9),
        help="step size for the estimate of 1/2 ||f - Phi||_F^2",
    ),
    Flag(
        "step_ratio",
        quick=(4.0,),
        paper=(5.0,),
        domain=between(2.0, 1e3),
        symbol="alpha",
        help="step of the outer factors over eta, from the spectral start",
    ),
    Flag(
        "outer_ratio",
        quick=(0.01,),
        domain=between(1e-6, 1.0),
        symbol="gamma",
        help="step of the outer factors over eta, from the basis of the gradient",
    ),
    TARGET_SCALE.at((1.0,), domain=between(1e-3, 1e3)),
    TARGET_CONDITION.at(
        (0.0,),
        domain=between(1.0, 1e6, zero=True),
        help="largest over smallest singular value of Phi; 1: all are equal, 0: as drawn",
    ),
    Flag(
        "draw",
        quick=(0, 1, 2, 3),
        paper=(0,),
        domain=at_least(0),
        type=int,
        help="which of the instances of a seed",
        most=1000,
    ),
    STEPS.at((1000,), paper=(16_000,)),
)


def _set_condition(target: Float[Array, "d d"], rank: int, condition: Any) -> Float[Array, "d d"]:
    """The target with a power of its singular values: sigma_1 / sigma_r is as asked, unless 0."""
    if rank == 1:
        return target
    left, values, right = linalg.svd(target)
    # From sigma_i / sigma_1 <= 1 one power makes any condition, and keeps their order.
    relative = values[:rank] / values[0]
    # relative[-1] ** power is 1 / condition.
    power = jnp.log(jnp.where(condition == 0, 1.0, condition)) / -jnp.log(relative[-1])
    changed = (left[:, :rank] * relative[None, :] ** power) @ right[:rank]
    return jnp.where(condition == 0, target, changed)


def make_entries(
    key: Key[Array, ""],
    *,
    dim: int,
    rank: int,
    observed: float,
    init_scale: Any,
    target_scale: Any,
    draw: Any,
    steps: int,
    target_condition: Any = 0.0,
    **rates: Any,
) -> Recovery:
    """Draw a target of which some entries are seen, from the flags."""
    # Draws are instances of one seed: their targets are independent.
    for_target, for_weights, for_view = jax.random.split(jax.random.fold_in(key, draw), 3)
    target = recovery.spread_target(for_target, (dim, dim), rank)
    target = _set_condition(target, rank, target_condition)
    target *= target_scale / singular_values(target)[0]
    mask = observe(for_view, (dim, dim), observed)
    # The second derivative of the loss in the product, entry by entry: 1 in the mean over masks.
    weight = mask * mask.size / jnp.sum(mask)

    def curvature(direction: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return weight * direction

    return Recovery(
        target=target,
        mask=mask,
        sharpness=recovery.sharpness(target, rank, curvature),
        least_curvature=recovery.tangent_curvature(target, rank, curvature),
        weights=orthogonal_layers(for_weights, (dim,) * (DEPTH + 1), jnp.full(DEPTH, init_scale)),
        rank=rank,
        steps=recorded_steps(steps),
        **{name: jnp.asarray(rate, target.dtype) for name, rate in rates.items()},
    )


def make_measurements(
    key: Key[Array, ""], *, dim: int, observed: float, draw: Any, **flags: Any
) -> Recovery:
    """Draw the target of :func:`make_entries`, seen by p d^2 Gaussian measurements."""
    case = make_entries(key, dim=dim, observed=observed, draw=draw, **flags)
    shape = (max(1, round(observed * dim * dim)), dim, dim)
    # The third key again: target and weights are those of `make_entries`.
    for_view = jax.random.split(jax.random.fold_in(key, draw), 3)[2]
    draws = jax.random.normal(for_view, shape, case.target.dtype)

    def curvature(direction: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return jnp.tensordot(jnp.tensordot(draws, direction, 2), draws, 1) / len(draws)

    return dataclasses.replace(
        case,
        measurements=draws,
        values=recovery.sense(draws, case.target),
        sharpness=recovery.sharpness(case.target, case.rank, curvature),
        least_curvature=recovery.tangent_curvature(case.target, case.rank, curvature),
    )


# Hypotheses ----------------------------------------------------------------------------------

MISSED = 32.0
"""The recovery error at which a run has ended, over that of Corollary 1 at the start."""

STABLE = 1.7
"""Largest step times curvature: descent leaves a minimum at 2."""

SMALL = 0.1
"""Largest recovery error at which a run may end, where the start is small."""


def check(point: Mapping[str, Any]) -> None:
    """Refuse settings at which a hypothesis fails whatever is drawn.

    A start too large beside any target of this norm, and a step too large for the curvature of the
    loss that is estimated, of which all entries are seen.
    """
    setting.check(point)
    dim, rank, top = point["dim"], point["rank"], point["target_scale"]
    # small_start for the largest norm that a target can have, r^{1/2} sigma_1.
    most = (SMALL / MISSED * top * (rank / (dim - 2 * rank)) ** 0.5) ** (1 / DEPTH)
    if point["init_scale"] > most:
        raise ValueError(
            f"--init-scale: got {point['init_scale']:g} with d = {dim}, r = {rank} and sigma_1 = "
            f"{top:g}, wanted at most {most:.3g}, a start that is small beside the target"
        )
    factors = _curvature_factors(point["step_ratio"], point["outer_ratio"], top)
    # stable_steps where all entries are seen: the curvature is then 3 sigma_1^{4/3}.
    most = STABLE / (3 * top ** (4 / 3) * max(factors))
    if point["learning_rate"] > most:
        raise ValueError(
            f"--learning-rate: got {point['learning_rate']:g} with sigma_1 = {top:g} and alpha = "
            f"{point['step_ratio']:g}, wanted at most {most:.3g}, a step that stays at the target"
        )


def stable_steps(case: Recovery) -> Bool[Array, ""]:
    """Whether every network can stay at the target: step times curvature is at most 1.7.

    Outer factors at alpha times the step multiply the curvature of the balanced layers by
    alpha^{2/3}; those of a basis, which start orthonormal, add to it by up to 2 gamma sigma_1^2.
    """
    top = singular_values(case.target)[0]
    factors = _curvature_factors(case.step_ratio, case.outer_ratio, top)
    return case.learning_rate * case.sharpness * jnp.maximum(*factors) <= STABLE


def _curvature_factors(alpha: Any, gamma: Any, top: Any) -> tuple[Any, Any]:
    """Factors on the curvature of balanced layers: of the spectral start, and of a basis."""
    return alpha ** (2 / 3), 1 + 2 / 3 * gamma * top ** (2 / 3)


def small_start(case: Recovery) -> Bool[Array, ""]:
    """Whether the start is small beside the target: runs end at 0.1 of it, or closer."""
    size = case.target.shape[0]
    left = jnp.linalg.norm(end_to_end(case.weights)) * jnp.sqrt(1 - 2 * case.rank / size)
    return MISSED * left <= SMALL * jnp.linalg.norm(case.target)


LEAST_SEEN = 1 / 16
"""Smallest curvature along the matrices of rank r at which enough is seen.

An error outside of their tangent space then leaves one within that is at most ``4 p^{-1/2}`` times
as large, p the share observed. Where less is seen of some direction it is learned so late that
noise goes on growing meanwhile.
"""


def noise_growth(alpha: Any, ratio: Any) -> Any:
    """Factor by which noise has grown when the target is found.

    While a network is small its residual is the surrogate S, and its product moves along each
    singular direction of S on its own: with ``tau = sigma eps t``, and outer layers u = v and an
    inner one w in units of eps, ``u' = alpha u w`` and ``w^2 = 1 + (u^2 - 1) / alpha``, so that

        u(tau) = k / sinh((1 - tau / tau_1) arcsinh k),  k = (alpha - 1)^{1/2},

    which escapes at tau_1. When the r-th direction does, u^2 w of the next, the noise of what is
    hidden, has grown to its value at ``tau / tau_1 = sigma_{r+1} / sigma_r``. At alpha = 1, as of
    the full network, that is ``(1 - sigma_{r+1} / sigma_r)^{-3}``, which is less.

    Args:
        alpha: step of the outer layers over that of the inner one, above 1.
        ratio: sigma_{r+1} / sigma_r of the surrogate, below 1.
    """
    k = jnp.sqrt(alpha - 1)
    outer = k / jnp.sinh((1 - ratio) * jnp.arcsinh(k))
    return outer**2 * jnp.sqrt(1 + (outer**2 - 1) / alpha)


def amplification(case: Recovery) -> Float[Array, ""]:
    """Recovery error at which both networks end, over that of Corollary 1 at the start, by theory.

    In each of the d - r directions beside those of the target the start leaves prod eps_l (the
    corollary counts d - 2r), which has grown as noise does (:func:`noise_growth`). There it stays.
    A matrix of which nothing is seen has at most ``(p c)^{-1/2}`` times the norm of its part
    outside the matrices of rank r, c the :func:`recovery.tangent_curvature`, p the share observed.
    """
    size, r, least = len(case.target), case.rank, case.least_curvature
    values = singular_values(case.surrogate)
    ratio = values[r] / values[r - 1]
    # Without a gap noise escapes with the target; what is not seen at all is never learned.
    possible = (ratio < 1) & (least > 0)
    grown = noise_growth(case.step_ratio, jnp.where(possible, ratio, 0.0))
    seen_curvature = jnp.where(possible, least * case.share, 1.0)
    # Noise counts d - r directions, what the start leaves d - 2r.
    beside = (size - r) / (size - 2 * r)
    return jnp.where(possible, grown * jnp.sqrt(beside / seen_curvature), jnp.inf)


def enough_seen(case: Recovery) -> Bool[Array, ""]:
    """Whether enough is seen of the target for what the start leaves to end below the level."""
    return (case.least_curvature >= LEAST_SEEN) & (amplification(case) <= MISSED)


HYPOTHESES = {
    "stable_steps": stable_steps,
    "small_start": small_start,
    "enough_seen": enough_seen,
}
