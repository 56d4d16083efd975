"""Corollary 1 where it is approximate: completion and sensing by compressed networks."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn import linalg
from lrdyn.claims import relative_difference
from lrdyn.compression import (
    CompressedNetwork,
    compressed_product,
    gradient_basis,
    gradient_gap_bound,
    gradient_network,
)
from lrdyn.descent import gradient_descent, recorded_steps, simulate
from lrdyn.factorization import Weights, end_to_end
from lrdyn.initialization import orthogonal_layers
from lrdyn.masking import observe
from lrdyn.recovery import (
    discrepant_rates,
    observed_loss,
    recovery_error,
    sense,
    sensing_loss,
    sensing_surrogate,
    spectral_network,
    spread_target,
    surrogate,
)
from lrdyn.spectra import singular_values
from lrdyn.subspace import frame, start_scales
from lrdyn.theorem import (
    POSITIVE,
    Claim,
    Control,
    Domain,
    Flag,
    Outcome,
    Statement,
    Theorem,
    at_least,
)
from lrdyn.theorems.completion.figures import plot_recovery

DEPTH = 3
"""L of the full network, and of the compressed one of Kwon et al., outer factors counted."""

REACHED = 1e-2
"""The recovery error at which a network counts as having found the target."""

LEFT = 1e-3
"""The recovery error at which a run has ended: what is left depends on the size of its start."""


class Recovery(eqx.Module):
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
    rank: int = eqx.field(static=True)
    steps: tuple[int, ...] = eqx.field(static=True)
    measurements: Float[Array, "m d d"] | None = None
    """Gaussian measurements, if the target is seen by these."""

    def loss(self, product: Float[Array, "d d"]) -> Float[Array, ""]:
        """1/2 ||f - Phi||_F^2, estimated from what is seen."""
        if self.measurements is not None:
            return sensing_loss(product, self.measurements, sense(self.measurements, self.target))
        return product.size * observed_loss(product, self.target, self.mask)

    def surrogate(self) -> Float[Array, "d d"]:
        """The target, estimated from what is seen."""
        if self.measurements is not None:
            return sensing_surrogate(self.measurements, sense(self.measurements, self.target))
        return surrogate(self.target, self.mask)


FLAGS = (
    Flag("dim", (24,), at_least(4), int, "d", "width of the target", (100, 200), shapes=True),
    Flag("rank", (2,), at_least(1), int, "r", "rank of the target Phi", (5,), shapes=True),
    Flag(
        "observed",
        (0.5,),
        Domain("a number > 0 and <= 1", lambda p: 0 < p <= 1),
        float,
        "p",
        "fraction of the entries that is observed; p d^2 measurements of sensing",
        (0.3,),
        shapes=True,
    ),
    Flag("init_scale", (0.01,), POSITIVE, float, "eps", "init scale of every layer", (0.004,)),
    Flag(
        "learning_rate",
        (0.15,),
        POSITIVE,
        float,
        "eta",
        "step size for the estimate of 1/2 ||f - Phi||_F^2",
        (0.05,),
    ),
    Flag(
        "step_ratio",
        (5.0,),
        POSITIVE,
        float,
        "alpha",
        "step of the outer factors over eta, from the spectral start",
    ),
    Flag(
        "outer_ratio",
        (0.01,),
        POSITIVE,
        float,
        "gamma",
        "step of the outer factors over eta, from the basis of the gradient",
    ),
    Flag("target_scale", (1.0,), POSITIVE, float, "sigma_1", "largest singular value of Phi"),
    Flag("steps", (1500,), at_least(1), int, "t", "steps of descent", (16_000,), swept=False),
)


def _case(
    key: Key[Array, ""],
    *,
    dim: int,
    rank: int,
    observed: float,
    init_scale: Any,
    learning_rate: Any,
    step_ratio: Any,
    outer_ratio: Any,
    target_scale: Any,
    steps: int,
    seen: str,
) -> Recovery:
    for_target, for_weights, for_view = jax.random.split(key, 3)
    target = spread_target(for_target, (dim, dim), rank)
    target *= target_scale / singular_values(target)[0]
    case = Recovery(
        target=target,
        mask=observe(for_view, (dim, dim), observed),
        weights=orthogonal_layers(for_weights, (dim,) * (DEPTH + 1), jnp.full(DEPTH, init_scale)),
        learning_rate=jnp.asarray(learning_rate, target.dtype),
        step_ratio=jnp.asarray(step_ratio, target.dtype),
        outer_ratio=jnp.asarray(outer_ratio, target.dtype),
        rank=rank,
        steps=tuple(recorded_steps(steps).tolist()),
    )
    if seen == "entries":
        return case
    count = max(1, round(observed * dim * dim))
    return dataclasses.replace(
        case, measurements=jax.random.normal(for_view, (count, dim, dim), target.dtype)
    )


def _seen(by: str) -> Callable[..., Recovery]:
    return functools.partial(_case, seen=by)


# The runs ------------------------------------------------------------------------------------


def _errors(case: Recovery, network: CompressedNetwork, ratio: Any) -> tuple[Array, Array]:
    """Recovery error and loss of a compressed network at the recorded steps."""

    def look(trained):
        product = compressed_product(trained)
        return recovery_error(product, case.target), case.loss(product)

    return simulate(
        lambda trained: case.loss(compressed_product(trained)),
        network,
        discrepant_rates(case.learning_rate, ratio),
        np.asarray(case.steps),
        record=look,
    ).records


def _full(case: Recovery) -> dict[str, Array]:
    """The full network, which the compressed ones are measured against."""

    def look(weights):
        product = end_to_end(weights)
        return recovery_error(product, case.target), case.loss(product)

    run = simulate(
        lambda weights: case.loss(end_to_end(weights)),
        case.weights,
        gradient_descent(case.learning_rate),
        np.asarray(case.steps),
        record=look,
    )
    error, loss = run.records
    return {"full_error": error, "full_loss": loss, "step": jnp.asarray(case.steps)}


def _spectral(case: Recovery) -> CompressedNetwork:
    scale = start_scales(case.weights)[0]
    return spectral_network(case.surrogate(), 2 * case.rank, scale, DEPTH)


def _spectral_run(case: Recovery, network: CompressedNetwork, ratio: Any) -> dict[str, Array]:
    error, loss = _errors(case, network, ratio)
    return {"spectral_error": error, "spectral_loss": loss}


def _basis(case: Recovery) -> CompressedNetwork:
    basis = gradient_basis(case.weights, _gradient(case), case.rank)
    return gradient_network(case.weights, basis.columns)


def _gradient(case: Recovery) -> Float[Array, "d d"]:
    return jax.grad(lambda weights: case.loss(end_to_end(weights)))(case.weights)[0]


def _floor(case: Recovery) -> Float[Array, ""]:
    """Smallest recovery error of any map between the subspaces of the basis of the gradient."""
    network = _basis(case)
    best = network.left @ (network.left.T @ case.target @ network.right) @ network.right.T
    return recovery_error(best, case.target)


def predict(case: Recovery) -> dict[str, Array]:
    """The full network and the floor of a fixed basis."""
    return _full(case) | {"floor": _floor(case)}


def measure(
    case: Recovery,
    *,
    start_factor: float = 1.0,
    ratio: Any = None,
    fixed_ratio: float = 0.0,
    outer_ratio: Any = None,
) -> dict[str, Array]:
    """The compressed networks: spectral start, basis of the gradient, and that basis fixed."""
    network = _basis(case)
    network = network._replace(inner=tuple(start_factor * W for W in network.inner))
    moving, loss = _errors(case, network, case.outer_ratio if outer_ratio is None else outer_ratio)
    fixed, _ = _errors(case, network, fixed_ratio)
    spectral = _spectral_run(case, _spectral(case), case.step_ratio if ratio is None else ratio)
    return spectral | {"basis_error": moving, "basis_loss": loss, "fixed_error": fixed}


# Claims --------------------------------------------------------------------------------------


def first_below(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """Step at which a curve first falls to a level, linear between records; if never, 2 t.

    Args:
        steps: those that are recorded.
        values: of the curve at these steps.
        level: the level.

    Returns:
        The step; NaN if a value is lost.
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
    excess = np.where(full < LEFT, 0.0, one.measured["spectral_error"] - full)
    return float(np.max(excess, initial=0.0))


def _over(time: float, other: float) -> float:
    """One time over another; two at the start are the same."""
    if other == 0:
        return 1.0 if time == 0 else float("inf")
    return time / other


def _later(one: Outcome) -> float:
    full, compressed = (
        first_below(one.predicted["step"], curve, REACHED)
        for curve in (one.predicted["full_error"], one.measured["spectral_error"])
    )
    return float(np.maximum(_over(compressed, full) - 1, 0.0))


def _full_arrives(one: Outcome) -> bool:
    return bool(one.predicted["full_error"][-1] <= LEFT)


def _claims(prefix: str) -> tuple[Claim, ...]:
    return (
        Claim(
            f"{prefix}recovery",
            "recovery error of the compressed network <= that of the full one at every t, until "
            f"the full one's has fallen to {LEFT:g}, if it does",
            kind="bound",
            residual=_above_full,
            reads=("spectral_error", "full_error"),
            applies=_full_arrives,
        ),
        Claim(
            f"{prefix}first",
            f"the compressed network reaches recovery error {REACHED:g} no later than the full one",
            kind="bound",
            residual=_later,
            reads=("spectral_error", "full_error", "step"),
            applies=lambda one: np.any(one.predicted["full_error"] <= REACHED),
        ),
        Claim(
            f"{prefix}recovered",
            f"at the end its recovery error is at most {LEFT:g}, if the full network got there",
            kind="limit",
            residual=lambda one: one.measured["spectral_error"][-1],
            reads=("spectral_error", "full_error"),
            tolerance=LEFT,
            applies=_full_arrives,
        ),
    )


def _time_apart(one: Outcome) -> float:
    full, basis = (
        first_below(one.predicted["step"], curve, 0.9 * curve[0])
        for curve in (one.predicted["full_loss"], one.measured["basis_loss"])
    )
    return abs(_over(basis, full) - 1)


BASIS_CLAIMS = (
    Claim(
        "same_time",
        "from the basis of the gradient the loss has fallen by 10 % at the same step as that of "
        "the full network, within 5 % (the two bases differ by the hidden entries)",
        kind="limit",
        residual=_time_apart,
        reads=("basis_loss", "full_loss", "step"),
        tolerance=0.05,
        applies=lambda one: np.any(
            one.predicted["full_loss"] <= 0.9 * one.predicted["full_loss"][0]
        ),
    ),
    Claim(
        "fixed_basis",
        "with fixed outer factors the recovery error stays above ||Phi - P Phi Q||_F / ||Phi||_F",
        kind="bound",
        residual=lambda one: float(
            np.max(one.predicted["floor"] - one.measured["fixed_error"], initial=0.0)
        ),
        reads=("fixed_error", "floor"),
    ),
    Claim(
        "discrepant_rates",
        "with outer factors trained at gamma eta it ends below that",
        kind="bound",
        residual=lambda one: float(
            np.maximum(one.measured["basis_error"][-1] - one.predicted["floor"], 0.0)
        ),
        reads=("basis_error", "floor", "full_error"),
        applies=_full_arrives,
    ),
)


# Controls ------------------------------------------------------------------------------------


def _one_decomposition(case: Recovery) -> dict[str, Array]:
    gradient = _gradient(case)
    _, _, right = linalg.svd(jnp.concatenate([gradient, gradient.T @ case.weights[0]]))
    network = gradient_network(case.weights, right[: 2 * case.rank].T)
    return {"basis_loss": _errors(case, network, case.outer_ratio)[1]}


def _slow(case: Recovery) -> dict[str, Array]:
    return _spectral_run(case, _spectral(case), 0.1)


def _fixed(case: Recovery) -> dict[str, Array]:
    return _spectral_run(case, _spectral(case), 0.0)


def _controls(prefix: str) -> tuple[Control, ...]:
    return (
        *(
            Control(
                f"{prefix}{claim}_slow_outer_factors",
                "step ratio alpha = 0.1",
                f"{prefix}{claim}",
                measure=_slow,
            )
            for claim in ("recovery", "first")
        ),
        Control(
            f"{prefix}fixed_outer_factors",
            "step ratio alpha = 0",
            f"{prefix}recovered",
            measure=_fixed,
        ),
    )


RUNS = ("full_error", "full_loss", "spectral_error", "spectral_loss", "step")

COMPLETION_BY_ENTRIES = Statement(
    "completion",
    _seen("entries"),
    predict,
    measure,
    (*_claims(""), *BASIS_CLAIMS),
    controls=(
        *_controls(""),
        Control(
            "larger_start",
            "inner layers from 4 eps I",
            "same_time",
            measure=lambda case: measure(case, start_factor=4.0),
        ),
        Control(
            "one_decomposition",
            "basis from one SVD of the stack [G; G^T W_1]",
            "same_time",
            measure=_one_decomposition,
        ),
        Control(
            "basis_not_fixed",
            "outer factors trained, at gamma = 1",
            "fixed_basis",
            measure=lambda case: measure(case, fixed_ratio=1.0),
        ),
        Control(
            "no_discrepant_rates",
            "gamma = 0",
            "discrepant_rates",
            measure=lambda case: measure(case, outer_ratio=0.0),
        ),
    ),
    dims=dict.fromkeys((*RUNS, "basis_error", "basis_loss", "fixed_error"), ("step",)),
    steps="steps",
    sides="the full network, and projections of Phi, against trained compressed networks",
)

SENSING = Statement(
    "sensing",
    _seen("measurements"),
    _full,
    lambda case: _spectral_run(case, _spectral(case), case.step_ratio),
    _claims("sensing_"),
    controls=_controls("sensing_"),
    dims=dict.fromkeys(RUNS, ("step",)),
    narrow=lambda settings: (
        settings | {"dim": settings["dim"][:1]}
    ),  # p d^2 matrices of d^2 entries
    steps="steps",
    sides="the full network against trained compressed networks",
)


# The basis -----------------------------------------------------------------------------------


def _projector(columns: Float[Array, "d s"]) -> Float[Array, "d d"]:
    return columns @ columns.T


def _predict_basis(case: Recovery) -> dict[str, Array]:
    exact = frame(case.weights, case.target, case.rank).right[0, :, : 2 * case.rank]
    smallest = singular_values(case.target)[case.rank - 1]
    return {
        "basis": _projector(exact),
        "basis_gap": gradient_gap_bound(start_scales(case.weights), smallest),
    }


def _measure_basis(case: Recovery) -> dict[str, Array]:
    found = gradient_basis(case.weights, _gradient(case), case.rank)
    return {"basis": _projector(found.columns), "basis_gap": found.gap}


def _squared_start(case: Recovery) -> dict[str, Array]:
    smallest = singular_values(case.target)[case.rank - 1]
    return {"basis_gap": gradient_gap_bound(start_scales(case.weights) ** 2, smallest)}


def _hide(key: Key[Array, ""], case: Recovery, amount: Array) -> Recovery:
    rows, columns = case.target.shape
    return dataclasses.replace(case, mask=observe(key, (rows, columns), 1 - amount))


# A start that is large enough for its square to differ in float32, too.
_WHOLE = {"observed": 1.0, "steps": 1, "init_scale": 0.1}

BASIS = Statement(
    "basis",
    _seen("entries"),
    _predict_basis,
    _measure_basis,
    (
        Claim(
            "basis",
            "all entries observed: the basis of the gradient spans V_{1,1} of Theorem 2",
            residual=lambda one: relative_difference(
                one.predicted["basis"], one.measured["basis"], 1.0
            ),
        ),
        Claim(
            "basis_gap",
            "its gap sigma_{r+1} / sigma_r is at most e / (sigma_r(Phi) - e), e = prod eps_l",
            kind="bound",
            residual=lambda one: float(
                np.maximum(one.measured["basis_gap"] - one.predicted["basis_gap"], 0.0)
            ),
        ),
    ),
    controls=(
        Control(
            "hidden_entries",
            "half of the entries hidden",
            "basis",
            case=_hide,
            at=_WHOLE,
            amount=0.5,
            amounts=(0.002, 0.02, 0.1, 0.3, 0.5),
            amount_label="fraction of entries hidden",
        ),
        Control(
            "gap_of_squared_scales",
            "the bound of the gap from squared init scales",
            "basis_gap",
            predict=_squared_start,
            at=_WHOLE,
        ),
    ),
    hypotheses={"all_entries_observed": lambda case: jnp.all(case.mask == 1)},
    narrow=lambda settings: settings | {"steps": 1, "observed": (1.0,)},
    dims={"basis": ("row", "column")},
    sides="frame of Theorem 2 from the SVD of Phi against the SVD of one gradient",
)


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the claims."""
    if point["dim"] <= 2 * point["rank"]:
        raise ValueError(f"--rank: got {point['rank']} with d = {point['dim']}, wanted d > 2 rank")


COMPLETION = Theorem(
    "completion",
    "compressed networks complete a matrix no later and no worse than the full one",
    FLAGS,
    (COMPLETION_BY_ENTRIES, SENSING, BASIS),
    plots={"recovery": plot_recovery},
    check=check,
    axes=("init_scale", "rank"),
)
