"""Corollary 1 where it is approximate: completion and sensing by compressed networks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lrdyn.completion import recovery
from lrdyn.completion.basis_claims import BASIS
from lrdyn.completion.figures import plot_recovery
from lrdyn.completion.problem import (
    FLAGS,
    HYPOTHESES,
    MISSED,
    Recovery,
    Trained,
    check,
    make_entries,
    make_measurements,
)
from lrdyn.completion.start_claims import (
    START,
    START_CONTROLS,
    begin,
    spectral_start,
    start_of_what_is_seen,
)
from lrdyn.core.descent import gradient_descent
from lrdyn.core.factorization import end_to_end
from lrdyn.core.spectra import singular_values
from lrdyn.corollary1.compression import (
    CompressedNetwork,
    compressed_product,
    compression_bound,
    gradient_network,
)
from lrdyn.engine.claims import excess
from lrdyn.engine.statement import Claim, Control, Outcome, Scenario, Theorem
from lrdyn.theorem2.subspace import start_scales

REACHED = 1e-2
"""The recovery error at which a network counts as having found the target, if its start is small
enough for that."""

BEHIND = 4.0
"""How much farther a compressed network may end than where the full one has ended: both stop where
their starts leave them, in an order that depends on the instance."""

RESOLVED = 4
"""Records before a loss has fallen, at least, for its time to be read from them."""

TURNED = 0.25
"""How far outer factors must have turned since the full network ended: gamma eta sigma_r^2 t."""


# The runs ------------------------------------------------------------------------------------


def _left(case: Recovery, power: int = 1) -> Float[Array, ""]:
    """Recovery error that Corollary 1 grants the bulk at the start."""
    scales = start_scales(case.weights) ** power
    bound = compression_bound(scales, case.target.shape[0], case.rank)
    return bound / jnp.linalg.norm(case.target)


def _full(case: Recovery, factor: float = 1.0) -> dict[str, Array]:
    """The full network, which the compressed ones are measured against, and where it may end."""
    rule = gradient_descent(factor * case.learning_rate)
    run = case.train(end_to_end, case.weights, rule)
    return {
        "full_error": run.error,
        "full_loss": run.loss,
        "full_diverged_at": run.diverged_at,
        "level": MISSED * _left(case),
        "left": _left(case),
        "step": jnp.asarray(case.steps),
    }


def _train(case: Recovery, start: CompressedNetwork, ratio: float | Float[Array, ""]) -> Trained:
    rule = recovery.discrepant_rates(case.learning_rate, ratio)
    return case.train(compressed_product, start, rule)


def _spectral(case: Recovery, ratio: float | Float[Array, ""]) -> dict[str, Array]:
    """The compressed network from its spectral start."""
    run = _train(case, spectral_start(case, start_scales(case.weights)[0]), ratio)
    return {
        "spectral_error": run.error,
        "spectral_loss": run.loss,
        "diverged_at": run.diverged_at,
    }


def _from_basis(
    case: Recovery,
    *,
    size: int | None = None,
    start_factor: float = 1.0,
    outer_ratio: float | None = None,
    fixed_ratio: float = 0.0,
) -> dict[str, Array]:
    """Compressed networks from the basis of the gradient, or another: moving and fixed."""
    network = gradient_network(case.weights, case.basis.columns[:, :size])
    network = network._replace(inner=tuple(start_factor * W for W in network.inner))
    moving = case.outer_ratio if outer_ratio is None else outer_ratio
    ratios = jnp.stack([jnp.asarray(moving), jnp.asarray(fixed_ratio)]).astype(network.left.dtype)
    run = jax.vmap(lambda ratio: _train(case, network, ratio))(ratios)
    return {
        "basis_error": run.error[0],
        "basis_loss": run.loss[0],
        "fixed_error": run.error[1],
        "diverged_at": jnp.max(run.diverged_at),
    }


def _floor(case: Recovery, size: int) -> Float[Array, ""]:
    """The smallest recovery error between the subspaces of the first columns of the basis."""
    network = gradient_network(case.weights, case.basis.columns[:, :size])
    best = network.left @ (network.left.T @ case.target @ network.right) @ network.right.T
    return recovery.recovery_error(best, case.target)


def predict(case: Recovery) -> dict[str, Array]:
    """The full network, the smallest error between the subspaces of the basis, what is seen."""
    smallest = singular_values(case.target)[case.rank - 1]
    return {
        **_full(case),
        **start_of_what_is_seen(case),
        "floor": _floor(case, 2 * case.rank),
        "hidden": jnp.sum(case.mask == 0),
        "turning": case.outer_ratio * case.learning_rate * smallest**2,
    }


def measure(case: Recovery) -> dict[str, Array]:
    """The compressed networks: spectral start, basis of the gradient, and that basis fixed."""
    spectral, basis = _spectral(case, case.step_ratio), _from_basis(case)
    last = jnp.maximum(spectral["diverged_at"], basis["diverged_at"])
    return spectral | basis | begin(case) | {"diverged_at": last}


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


def _recorded_below(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """The first recorded step at which a curve is at a level; twice the last if it never is."""
    if not np.all(np.isfinite(values)):
        return float("nan")
    (below,) = np.nonzero(values <= level)
    return float(steps[below[0]]) if len(below) else 2.0 * float(steps[-1])


def _arrived(one: Outcome) -> bool:
    return bool(one.predicted["full_error"][-1] <= one.predicted["level"])


def _finds(one: Outcome) -> bool:
    """Not if the full network fits what is seen and ends elsewhere."""
    loss = one.predicted["full_loss"]
    return _arrived(one) or not loss[-1] <= one.predicted["level"] ** 2 * loss[0]


def _too_few(one: Outcome) -> str:
    return "" if _arrived(one) else "too few steps"


def _above_full(one: Outcome) -> float:
    full = one.predicted["full_error"]
    above = one.measured["spectral_error"] - full
    ended = full < one.predicted["level"]
    return excess(np.where(ended, np.minimum(above, 0.0), above), 0.0)  # what is lost stays lost


def _later(one: Outcome) -> float:
    """How many steps later than the full network, over its steps, both as recorded."""
    level = max(REACHED, float(one.predicted["level"]))
    curves = one.predicted["full_error"], one.measured["spectral_error"]
    full, other = (_recorded_below(one.predicted["step"], curve, level) for curve in curves)
    return excess(np.float64(other), full, max(full, 1.0))


def _claims(prefix: str) -> tuple[Claim, ...]:
    both = ("spectral_error", "full_error", "full_loss", "level")
    met = {"applies": _finds, "undecided": _too_few}
    return (
        Claim(f"{prefix}recovery",
              "recovery error of the compressed network <= that of the full one at every recorded "
              f"t, until the full one's has fallen to {MISSED:g} sqrt(d - 2r) prod eps_l / "
              "||Phi||_F, if it does",
              kind="bound", residual=_above_full, reads=both, **met),
        Claim(f"{prefix}first",
              f"the compressed network reaches recovery error {REACHED:g}, or that level if it is "
              "higher, no later than the full one, between records", kind="bound",
              residual=_later, reads=(*both, "step"), **met),
        Claim(f"{prefix}recovered",
              f"its recovery error ends within {BEHIND * MISSED:g} sqrt(d - 2r) prod eps_l / "
              f"||Phi||_F, if the full network's does within {MISSED:g} (both stop where their "
              "starts leave them)", kind="limit", tolerance=BEHIND * MISSED,
              residual=lambda one: one.measured["spectral_error"][-1] / one.predicted["left"],
              reads=(*both, "left"), **met),
    )  # fmt: skip


def _fall(one: Outcome, name: str, of: str) -> float:
    """When a loss has fallen by 10 %."""
    loss = getattr(one, of)[name]
    return first_below(one.predicted["step"], loss, 0.9 * one.predicted["full_loss"][0])


def _apart_in_time(one: Outcome) -> float:
    full, basis = _fall(one, "full_loss", "predicted"), _fall(one, "basis_loss", "measured")
    if full == 0:  # two times at the start are the same
        return 0.0 if basis == 0 else float("inf")
    return abs(basis / full - 1)


def _coarse(one: Outcome) -> str:
    within = _fall(one, "full_loss", "predicted") / one.predicted["step"][1]
    return _too_few(one) or ("too few records" if within < RESOLVED else "")


def _hides(one: Outcome) -> bool:
    return _finds(one) and bool(one.predicted["floor"] > BEHIND * one.predicted["level"])


def _not_turned(one: Outcome) -> str:
    if not _arrived(one):
        return "too few steps"
    steps, error = one.predicted["step"], one.predicted["full_error"]
    left = float(steps[-1]) - _recorded_below(steps, error, float(one.predicted["level"]))
    return "" if one.predicted["turning"] * left >= TURNED else "too few steps"


FOUND = ("full_error", "full_loss", "level", "step")

BASIS_CLAIMS = (
    Claim("same_time",
          "from the basis of the gradient the loss has fallen by 10 % at the same step as that of "
          "the full network, within 5 % (the two bases differ by the hidden entries)",
          kind="limit", tolerance=0.05, applies=_finds, undecided=_coarse,
          residual=_apart_in_time, reads=("basis_loss", *FOUND)),
    Claim("fixed_basis",
          "with fixed outer factors the recovery error stays above ||Phi - P Phi Q||_F / ||Phi||_F "
          "(by construction: the verdict does not rest on it)",
          kind="bound", reads=("fixed_error", "floor", *FOUND), carries=False,
          applies=_finds, undecided=_too_few,
          residual=lambda one: excess(one.predicted["floor"], one.measured["fixed_error"])),
    Claim("discrepant_rates", "with outer factors trained at gamma eta it ends below that",
          kind="bound", reads=("basis_error", "floor", "turning", *FOUND),
          applies=_hides, undecided=_not_turned,
          residual=lambda one: excess(one.measured["basis_error"][-1], one.predicted["floor"])),
    START,
)  # fmt: skip


# Controls ------------------------------------------------------------------------------------


def _slow(case: Recovery) -> dict[str, Array]:
    return _spectral(case, 0.1)


def _faster(case: Recovery) -> dict[str, Array]:
    return _full(case, factor=5.0)


def _controls(prefix: str) -> tuple[Control[Recovery], ...]:
    def control(name: str, text: str, claim: str, **broken: Any) -> Control[Recovery]:
        return Control(f"{prefix}{name}", text, f"{prefix}{claim}", **broken)

    slow, faster = "step ratio alpha = 0.1", "a full network at five times the step"
    return (
        control("recovery_slow_outer_factors", slow, "recovery", measure=_slow),
        control("first_slow_outer_factors", slow, "first", measure=_slow),
        control("recovered_slow_outer_factors", slow, "recovered", measure=_slow),
        control("recovery_of_a_faster_run", faster, "recovery", predict=_faster),
        control("first_of_a_faster_run", faster, "first", predict=_faster),
        control("recovered_squared_scales", "what is left, from squared init scales", "recovered",
                predict=lambda case: {"left": _left(case, 2)}),
    )  # fmt: skip


BASIS_CONTROLS = (
    Control[Recovery]("larger_start", "inner layers from 4 eps I", "same_time",
                      measure=lambda case: _from_basis(case, start_factor=4.0)),
    Control("time_of_a_faster_run", "a full network at five times the step", "same_time",
            predict=_faster),
    Control[Recovery]("basis_not_fixed", "outer factors trained, at gamma = 1", "fixed_basis",
                      measure=lambda case: _from_basis(case, fixed_ratio=1.0)),
    Control[Recovery]("floor_of_half_a_basis", "r columns of the basis in place of 2 r",
                      "fixed_basis",
                      predict=lambda case: {"floor": _floor(case, case.rank)}),
    Control[Recovery]("no_discrepant_rates", "gamma = 0, from r columns of the basis",
                      "discrepant_rates",
                      measure=lambda case: _from_basis(case, size=case.rank, outer_ratio=0.0)),
    Control[Recovery]("squared_floor", "the square of that bound", "discrepant_rates",
                      predict=lambda case: {"floor": _floor(case, 2 * case.rank) ** 2}),
    *START_CONTROLS,
)  # fmt: skip

AT = {"rank": 1, "observed": 0.8, "init_scale": 0.025, "learning_rate": 0.05, "outer_ratio": 0.04}
"""Settings of the controls: an easy target, so that the full network finds it whatever the seed,
and steps so small that it stays at five times as many."""

CURVES = ("full_error", "full_loss", "spectral_error", "spectral_loss", "step")

COMPLETION_BY_ENTRIES = Scenario[Recovery](
    "completion", make_entries, predict, measure,
    (*_claims(""), *BASIS_CLAIMS), (*_controls(""), *BASIS_CONTROLS), HYPOTHESES,
    dims=dict.fromkeys((*CURVES, "basis_error", "basis_loss", "fixed_error"), ("step",))
    | {"start": ("part", "row", "column")},
    steps="steps", diverges="full_diverged_at", diverged="diverged_at", at=AT,
    sides="the full network, and projections of Phi, against trained compressed networks",
)  # fmt: skip

SENSING = Scenario[Recovery](
    "sensing", make_measurements, _full, lambda case: _spectral(case, case.step_ratio),
    _claims("sensing_"), _controls("sensing_"), HYPOTHESES,
    dims=dict.fromkeys(CURVES, ("step",)),
    steps="steps", diverges="full_diverged_at", diverged="diverged_at",
    at=AT | {"dim": 16, "observed": 1.0},
    # p d^2 matrices of d^2 entries
    narrow=lambda settings: settings | {name: settings[name][:1] for name in ("dim", "draw")},
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
    numbers=lambda point: 7 * point["dim"] ** 2,  # as that of a network of three layers
)
