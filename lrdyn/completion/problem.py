"""What the claims about completion share: a target seen in part, flags, trainings."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from lrdyn.completion import recovery
from lrdyn.core.descent import simulate
from lrdyn.core.factorization import Weights, end_to_end
from lrdyn.core.initialization import orthogonal_layers
from lrdyn.core.masking import observe
from lrdyn.core.recording import Recorded, recorded_steps
from lrdyn.core.spectra import singular_values
from lrdyn.corollary1.compression import GradientBasis, gradient_basis
from lrdyn.engine.flags import Domain, Flag, at_least, between
from lrdyn.theorem2 import setting

DEPTH = 3
"""L of the full network, and of the compressed one of Kwon et al., outer factors counted."""


class Trained(NamedTuple):
    """What training leaves."""

    error: Float[Array, "times"]
    """Recovery error."""
    loss: Float[Array, "times"]
    diverged_at: Int[Array, ""]


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
    ) -> Trained:
        """Train a network and look at its product at the recorded steps."""

        def loss(network: PyTree) -> Float[Array, ""]:
            return self.loss(product(network))

        def record(network: PyTree) -> tuple[Array, Array]:
            return recovery.recovery_error(product(network), self.target), loss(network)

        run = simulate(loss, start, rule, self.times, record=record)
        error, value = run.records
        return Trained(error, value, run.diverged_at)


def seen_alone(case: Recovery) -> Recovery:
    """The case with 0 in place of what is hidden of its target."""
    return dataclasses.replace(case, target=jnp.where(case.mask == 1, case.target, 0.0))


FLAGS = (
    Flag("dim", (24,), at_least(4), int, "d", "width of the target", (100, 200), shapes=True),
    Flag("rank", (2,), at_least(1), int, "r", "rank of the target Phi", (5,), shapes=True),
    Flag("observed", (0.5,), Domain("a number > 0 and <= 1", lambda p: 0 < p <= 1), float, "p",
         "fraction of the entries that is observed; p d^2 measurements of sensing", (0.3,),
         shapes=True),
    Flag("init_scale", (0.03,), between(1e-6, 10.0), float, "eps", "init scale of every layer",
         (0.004,)),
    Flag("learning_rate", (0.15,), between(1e-9, 1e9), float, "eta",
         "step size for the estimate of 1/2 ||f - Phi||_F^2", (0.05,)),
    Flag("step_ratio", (4.0,), between(2.0, 1e3), float, "alpha",
         "step of the outer factors over eta, from the spectral start", (5.0,)),
    Flag("outer_ratio", (0.01,), between(1e-6, 1.0), float, "gamma",
         "step of the outer factors over eta, from the basis of the gradient"),
    Flag("target_scale", (1.0,), between(1e-3, 1e3), float, "sigma_1",
         "largest singular value of Phi"),
    Flag("draw", (0, 1, 2, 3), at_least(0), int, "", "which of the instances of a seed", (0,)),
    Flag("steps", (1500,), at_least(1), int, "t", "steps of descent", (16_000,), swept=False),
)  # fmt: skip


def make_entries(
    key: Key[Array, ""], *, dim: int, rank: int, observed: float, init_scale: Any,
    target_scale: Any, draw: Any, steps: int, **rates: Any,
) -> Recovery:  # fmt: skip
    """Draw a target of which some entries are seen, from the flags."""
    for_target, for_weights, for_view = jax.random.split(jax.random.fold_in(key, draw), 3)
    target = recovery.spread_target(for_target, (dim, dim), rank)
    target *= target_scale / singular_values(target)[0]
    mask = observe(for_view, (dim, dim), observed)
    weight = mask * mask.size / jnp.sum(mask)
    return Recovery(
        target=target,
        mask=mask,
        sharpness=recovery.sharpness(target, rank, lambda X: weight * X),
        weights=orthogonal_layers(for_weights, (dim,) * (DEPTH + 1), jnp.full(DEPTH, init_scale)),
        rank=rank,
        steps=recorded_steps(steps),
        **{name: jnp.asarray(rate, target.dtype) for name, rate in rates.items()},
    )


def make_measurements(
    key: Key[Array, ""], *, dim: int, observed: float, draw: Any, **flags: Any
) -> Recovery:
    """Draw the same target, seen by p d^2 Gaussian measurements."""
    case = make_entries(key, dim=dim, observed=observed, draw=draw, **flags)
    shape = (max(1, round(observed * dim * dim)), dim, dim)
    for_view = jax.random.split(jax.random.fold_in(key, draw), 3)[2]
    draws = jax.random.normal(for_view, shape, case.target.dtype)

    def curvature(direction: Float[Array, "d d"]) -> Float[Array, "d d"]:
        return jnp.tensordot(jnp.tensordot(draws, direction, 2), draws, 1) / len(draws)

    sharpness = recovery.sharpness(case.target, case.rank, curvature)
    values = recovery.sense(draws, case.target)
    return dataclasses.replace(case, measurements=draws, values=values, sharpness=sharpness)


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
    most = (SMALL / MISSED * top * (rank / (dim - 2 * rank)) ** 0.5) ** (1 / DEPTH)
    if point["init_scale"] > most:
        raise ValueError(
            f"--init-scale: got {point['init_scale']:g} with d = {dim}, r = {rank} and sigma_1 = "
            f"{top:g}, wanted at most {most:.3g}, a start that is small beside the target"
        )
    factors = _of_outer_steps(point["step_ratio"], point["outer_ratio"], top)
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
    factors = _of_outer_steps(case.step_ratio, case.outer_ratio, top)
    return case.learning_rate * case.sharpness * jnp.maximum(*factors) <= STABLE


def _of_outer_steps(alpha: Any, gamma: Any, top: Any) -> tuple[Any, Any]:
    return alpha ** (2 / 3), 1 + 2 / 3 * gamma * top ** (2 / 3)


def small_start(case: Recovery) -> Bool[Array, ""]:
    """Whether the start is small beside the target: runs end at 0.1 of it, or closer."""
    size = case.target.shape[0]
    left = jnp.linalg.norm(end_to_end(case.weights)) * jnp.sqrt(1 - 2 * case.rank / size)
    return MISSED * left <= SMALL * jnp.linalg.norm(case.target)


HYPOTHESES = {"stable_steps": stable_steps, "small_start": small_start}
