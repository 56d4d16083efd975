"""Corollary 1 where it is approximate: completion and sensing by compressed networks."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn import linalg, recovery
from lrdyn.claims import excess
from lrdyn.compression import compressed_product, gradient_network
from lrdyn.descent import gradient_descent
from lrdyn.factorization import end_to_end
from lrdyn.subspace import start_scales
from lrdyn.theorem import Claim, Control, Outcome, Scenario, Theorem
from lrdyn.theorems.completion.basis import BASIS
from lrdyn.theorems.completion.figures import plot_recovery
from lrdyn.theorems.completion.problem import (
    DEPTH,
    FLAGS,
    Recovery,
    make_entries,
    make_measurements,
)
from lrdyn.theorems.deep_factorization import check

REACHED = 1e-2
"""The recovery error at which a network counts as having found the target."""

LEFT = 1e-3
"""The recovery error at which a run has ended: what is left depends on the size of its start."""


# The runs ------------------------------------------------------------------------------------


def _full(case: Recovery) -> dict[str, Array]:
    """The full network, which the compressed ones are measured against."""
    error, loss = case.train(end_to_end, case.weights, gradient_descent(case.learning_rate))
    return {"full_error": error, "full_loss": loss, "step": jnp.asarray(case.steps)}


def _spectral(case: Recovery, ratio: float | Float[Array, ""]) -> dict[str, Array]:
    """The compressed network from its spectral start."""
    scale = start_scales(case.weights)[0]
    network = recovery.spectral_network(case.surrogate, 2 * case.rank, scale, DEPTH)
    rule = recovery.discrepant_rates(case.learning_rate, ratio)
    error, loss = case.train(compressed_product, network, rule)
    return {"spectral_error": error, "spectral_loss": loss}


def _from_basis(
    case: Recovery,
    columns: Float[Array, "d s"] | None = None,
    *,
    start_factor: float = 1.0,
    outer_ratio: float | None = None,
    fixed_ratio: float = 0.0,
) -> dict[str, Array]:
    """Compressed networks from the basis of the gradient, or another: moving and fixed."""
    network = gradient_network(case.weights, case.basis.columns if columns is None else columns)
    network = network._replace(inner=tuple(start_factor * W for W in network.inner))
    moving, fixed = (
        case.train(compressed_product, network, recovery.discrepant_rates(case.learning_rate, r))
        for r in (case.outer_ratio if outer_ratio is None else outer_ratio, fixed_ratio)
    )
    return {"basis_error": moving[0], "basis_loss": moving[1], "fixed_error": fixed[0]}


def predict(case: Recovery) -> dict[str, Array]:
    """The full network, and the smallest error of any map between the subspaces of the basis."""
    network = gradient_network(case.weights, case.basis.columns)
    best = network.left @ (network.left.T @ case.target @ network.right) @ network.right.T
    return _full(case) | {"floor": recovery.recovery_error(best, case.target)}


def measure(case: Recovery) -> dict[str, Array]:
    """The compressed networks: spectral start, basis of the gradient, and that basis fixed."""
    return _spectral(case, case.step_ratio) | _from_basis(case)


# Claims --------------------------------------------------------------------------------------


def first_below(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """Step at which a curve first falls to a level, linear between records.

    If it never does 2 t; NaN if a value is lost.
    """
    if not np.all(np.isfinite(values)):
        return float("nan")
    (below,) = np.nonzero(values <= level)
    if not len(below):
        return 2.0 * float(steps[-1])
    last = below[0]
    before = max(last - 1, 0)
    drop = values[before] - values[last] if values[before] > values[last] else 1.0
    part = np.clip((values[before] - level) / drop, 0.0, 1.0)
    return float(steps[before] + part * (steps[last] - steps[before]))


def _above_full(one: Outcome) -> float:
    full = one.predicted["full_error"]
    return excess(np.where(full < LEFT, 0.0, one.measured["spectral_error"] - full), 0.0)


def _delay(one: Outcome, full: str, compressed: str, level: Callable[[np.ndarray], float]) -> float:
    """How much later than the full network a compressed one falls to a level, over its time."""
    curves = one.predicted[full], one.measured[compressed]
    time, other = (first_below(one.predicted["step"], curve, level(curve)) for curve in curves)
    if time == 0:  # two times at the start are the same
        return 0.0 if other == 0 else float("inf")
    return other / time - 1


def _later(one: Outcome) -> float:
    return max(_delay(one, "full_error", "spectral_error", lambda _: REACHED), 0.0)


def _full_arrives(one: Outcome) -> bool:
    return bool(one.predicted["full_error"][-1] <= LEFT)


def _claims(prefix: str) -> tuple[Claim, ...]:
    both = ("spectral_error", "full_error")
    return (
        Claim(f"{prefix}recovery",
              "recovery error of the compressed network <= that of the full one at every t, until "
              f"the full one's has fallen to {LEFT:g}, if it does",
              kind="bound", residual=_above_full, reads=both, applies=_full_arrives),
        Claim(f"{prefix}first",
              f"the compressed network reaches recovery error {REACHED:g} no later than the full "
              "one", kind="bound", residual=_later, reads=(*both, "step"),
              applies=lambda one: np.any(one.predicted["full_error"] <= REACHED)),
        Claim(f"{prefix}recovered",
              f"at the end its recovery error is at most {LEFT:g}, if the full network got there",
              kind="limit", residual=lambda one: one.measured["spectral_error"][-1], reads=both,
              tolerance=LEFT, applies=_full_arrives),
    )  # fmt: skip


def _loss_falls(one: Outcome) -> bool:
    loss = one.predicted["full_loss"]
    return bool(np.any(loss <= 0.9 * loss[0]))


BASIS_CLAIMS = (
    Claim("same_time",
          "from the basis of the gradient the loss has fallen by 10 % at the same step as that of "
          "the full network, within 5 % (the two bases differ by the hidden entries)",
          kind="limit", tolerance=0.05, applies=_loss_falls,
          residual=lambda one: abs(_delay(one, "full_loss", "basis_loss", lambda f: 0.9 * f[0])),
          reads=("basis_loss", "full_loss", "step")),
    Claim("fixed_basis",
          "with fixed outer factors the recovery error stays above ||Phi - P Phi Q||_F / ||Phi||_F",
          kind="bound", reads=("fixed_error", "floor"),
          residual=lambda one: excess(one.predicted["floor"], one.measured["fixed_error"])),
    Claim("discrepant_rates", "with outer factors trained at gamma eta it ends below that",
          kind="bound", reads=("basis_error", "floor", "full_error"), applies=_full_arrives,
          residual=lambda one: excess(one.measured["basis_error"][-1], one.predicted["floor"])),
)  # fmt: skip


# Controls ------------------------------------------------------------------------------------


def _one_decomposition(case: Recovery) -> dict[str, Array]:
    stack = jnp.concatenate([case.gradient, case.gradient.T @ case.weights[0]])
    return _from_basis(case, linalg.svd(stack)[2][: 2 * case.rank].T)


def _controls(prefix: str) -> tuple[Control[Recovery], ...]:
    slow, fixed = (partial(_spectral, ratio=ratio) for ratio in (0.1, 0.0))
    return tuple(
        Control(f"{prefix}{name}", text, f"{prefix}{claim}", measure=run)
        for name, text, claim, run in (
            ("recovery_slow_outer_factors", "step ratio alpha = 0.1", "recovery", slow),
            ("first_slow_outer_factors", "step ratio alpha = 0.1", "first", slow),
            ("fixed_outer_factors", "step ratio alpha = 0", "recovered", fixed),
        )
    )


BASIS_CONTROLS = (
    Control[Recovery]("larger_start", "inner layers from 4 eps I", "same_time",
                      measure=lambda case: _from_basis(case, start_factor=4.0)),
    Control("one_decomposition", "basis from one SVD of the stack [G; G^T W_1]", "same_time",
            measure=_one_decomposition),
    Control[Recovery]("basis_not_fixed", "outer factors trained, at gamma = 1", "fixed_basis",
                      measure=lambda case: _from_basis(case, fixed_ratio=1.0)),
    Control[Recovery]("no_discrepant_rates", "gamma = 0", "discrepant_rates",
                      measure=lambda case: _from_basis(case, outer_ratio=0.0)),
)  # fmt: skip

CURVES = ("full_error", "full_loss", "spectral_error", "spectral_loss", "step")

COMPLETION_BY_ENTRIES = Scenario[Recovery](
    "completion", make_entries, predict, measure,
    (*_claims(""), *BASIS_CLAIMS), (*_controls(""), *BASIS_CONTROLS),
    dims=dict.fromkeys((*CURVES, "basis_error", "basis_loss", "fixed_error"), ("step",)),
    steps="steps",
    sides="the full network, and projections of Phi, against trained compressed networks",
)  # fmt: skip

SENSING = Scenario[Recovery](
    "sensing", make_measurements, _full, lambda case: _spectral(case, case.step_ratio),
    _claims("sensing_"), _controls("sensing_"),
    dims=dict.fromkeys(CURVES, ("step",)), steps="steps",
    # p d^2 matrices of d^2 entries
    narrow=lambda settings: settings | {"dim": settings["dim"][:1]},
    sides="the full network against trained compressed networks",
)  # fmt: skip

COMPLETION = Theorem(
    "completion",
    "compressed networks complete a matrix no later and no worse than the full one",
    FLAGS,
    (COMPLETION_BY_ENTRIES, SENSING, BASIS),
    plots={"recovery": plot_recovery},
    check=check,
    axes=("init_scale", "rank"),
)
