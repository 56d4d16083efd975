"""The setting that Theorem 2 and Corollary 1 share: cases, flags, hypotheses and departures."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key, PyTree

from lrdyn.claims import relative_difference, tolerance
from lrdyn.descent import Trajectory, gradient_descent, recorded_steps, simulate
from lrdyn.factorization import Weights, factorization_loss
from lrdyn.initialization import (
    gaussian_layers,
    layer_scales,
    low_rank_target,
    orthogonal_layers,
    spaced_singular_values,
)
from lrdyn.masking import masked_loss, observe
from lrdyn.spectra import numerical_rank, singular_values
from lrdyn.subspace import reduced_dynamics, reduced_start
from lrdyn.theorem import (
    NON_NEGATIVE,
    POSITIVE,
    Control,
    Flag,
    Outcome,
    at_least,
    with_condition,
)


class DeepFactorization(eqx.Module):
    """One run of deep matrix factorisation: everything that decides it."""

    weights: Weights
    """Square layers at the start."""
    target: Float[Array, "d d"]
    scales: Float[Array, "depth"]
    """eps_l."""
    learning_rate: Float[Array, ""]
    weight_decay: Float[Array, "depth"]
    """lambda_l."""
    rank: int = eqx.field(static=True)
    """r, the claimed bound on the rank of the target."""
    steps: tuple[int, ...] = eqx.field(static=True)
    """Recorded steps."""
    mask: Float[Array, "d d"] | None = None
    """Observed entries; all of them if None."""
    noise: Float[Array, ""] | None = None
    """Standard deviation of the noise on each entry of the gradients; none if None."""
    key: Key[Array, ""] | None = None
    """Key of that noise."""


FLAGS = (
    Flag("dim", (16,), at_least(3), int, "d", "width of the square layers", (30, 100), shapes=True),
    Flag("depth", (2, 4), at_least(2), int, "L", "number of layers", (2, 3, 5, 8), shapes=True),
    Flag("rank", (3,), at_least(1), int, "r", "rank of the target Phi", (1, 3, 10), shapes=True),
    Flag(
        "init_scale",
        (0.3, 1.0),
        POSITIVE,
        float,
        "eps",
        "init scale, geometric mean over the layers",
        (0.01, 0.1, 0.3, 1.0),
    ),
    Flag(
        "init_spread",
        (1.0, 3.0),
        POSITIVE,
        float,
        "eps_L / eps_1",
        "ratio of the last layer's init scale to the first's",
    ),
    Flag(
        "weight_decay",
        (0.0, 0.03),
        NON_NEGATIVE,
        float,
        "lambda",
        "weight decay, geometric mean over the layers",
        (0.0, 0.01, 0.1),
    ),
    Flag(
        "decay_spread",
        (1.0, 3.0),
        POSITIVE,
        float,
        "lambda_L / lambda_1",
        "ratio of the last layer's decay to the first's",
    ),
    Flag("learning_rate", (0.1,), POSITIVE, float, "eta", "step size for the loss 1/2 ||.||_F^2"),
    Flag(
        "target_scale",
        (1.0,),
        POSITIVE,
        float,
        "sigma_1",
        "largest singular value of the default target, factor on a given one",
    ),
    Flag("steps", (100,), at_least(1), int, "t", "steps of gradient descent", (500,), swept=False),
    Flag("target", (), None, "array", "Phi", "run on your own square matrix", swept=False),
)

AXES = ("init_scale", "depth", "rank")
"""What a sweep is drawn over: abscissa, curves, panels."""


def make_case(
    key: Key[Array, ""],
    *,
    dim: int,
    depth: int,
    rank: int,
    init_scale: Any,
    init_spread: Any,
    weight_decay: Any,
    decay_spread: Any,
    learning_rate: Any,
    target_scale: Any,
    steps: int,
    target: np.ndarray | None = None,
) -> DeepFactorization:
    """Draw a run that meets the hypotheses of Theorem 2, from the flags."""
    weights_key, target_key = jax.random.split(key)
    scales = layer_scales(init_scale, init_spread, depth)
    if target is None:
        phi = low_rank_target(target_key, (dim, dim), spaced_singular_values(rank, target_scale))
    else:
        phi = target_scale * jnp.asarray(target, scales.dtype)
    return DeepFactorization(
        weights=orthogonal_layers(weights_key, (dim,) * (depth + 1), scales),
        target=phi,
        scales=scales,
        learning_rate=jnp.asarray(learning_rate, scales.dtype),
        weight_decay=layer_scales(weight_decay, decay_spread, depth),
        rank=rank,
        steps=tuple(recorded_steps(steps, at_most=26).tolist()),
    )


def prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Complete the settings from the user's own target, if there is one."""
    target = settings["target"]
    if target is None:
        return settings
    if target.ndim != 2 or target.shape[0] != target.shape[1]:
        raise ValueError(f"--target: got an array of shape {target.shape}, wanted a square matrix")
    if "dim" in given:
        raise ValueError(f"--dim: got {settings['dim']} beside --target, wanted one of the two")
    values = np.linalg.svd(target, compute_uv=False)
    if not values[0] > 0:
        raise ValueError("--target: got a matrix of zeros, wanted one of rank >= 1")
    dim, rank = target.shape[0], int(numerical_rank(values, target.shape[0]))
    if dim <= 2 * rank and "rank" not in given:
        raise ValueError(
            f"--target: got a matrix of rank {rank} and width {dim}, wanted a width above twice "
            "the rank (--perturb shows what a tail beyond rank r does)"
        )
    found = {"dim": (dim,), "rank": (rank,)}
    # The curvature at the minimum grows at most like sigma_1^2: the default step stays stable.
    found["learning_rate"] = tuple(
        eta / max(1.0, values[0]) ** 2 for eta in settings["learning_rate"]
    )
    return settings | {name: value for name, value in found.items() if name not in given}


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    if point["dim"] <= 2 * point["rank"]:
        raise ValueError(f"--rank: got {point['rank']} with d = {point['dim']}, wanted d > 2 rank")


def loss(case: DeepFactorization) -> Callable[[Weights], Float[Array, ""]]:
    """The objective of a case, masked if it has a mask."""
    mask = case.mask
    if mask is None:
        return lambda weights: factorization_loss(weights, case.target)
    return lambda weights: masked_loss(weights, case.target, mask)


def run(
    case: DeepFactorization,
    record: Callable[[Weights], PyTree],
    optimizer: optax.GradientTransformation | None = None,
) -> Trajectory:
    """Train the dense layers of a case by gradient descent, or by another optimiser."""
    if optimizer is None:
        optimizer = gradient_descent(case.learning_rate, case.weight_decay)
    if case.noise is not None:
        optimizer = optax.chain(optax.add_noise(case.noise**2, 0.0, case.key), optimizer)
    return simulate(loss(case), case.weights, optimizer, np.asarray(case.steps), record=record)


def conditioned_run(
    case: DeepFactorization,
    target: Float[Array, "s s"],
    record: Callable[[Weights], Float[Array, "..."]],
) -> tuple[Float[Array, "times ..."], Float[Array, ""]]:
    """Reduced run of a case, and the condition of its records.

    Args:
        case: the case.
        target: reduced target; its size decides the size of the blocks.
        record: maps the reduced weights to one array.

    Returns:
        The records and their condition.
    """

    def reduced(data):
        goal, start = data
        return reduced_dynamics(
            goal,
            case.scales,
            case.learning_rate,
            case.weight_decay,
            np.asarray(case.steps),
            start=start,
            record=record,
        ).records

    return with_condition(reduced, (target, reduced_start(case.scales, len(target))))


def orthogonal_start(case: Any) -> Array:
    """Check that every layer starts as its scale times (semi-)orthogonal, wide or square."""
    errors = [
        jnp.max(jnp.abs(W @ W.T - scale**2 * jnp.eye(W.shape[0]))) / scale**2
        for W, scale in zip(case.weights, case.scales, strict=True)
    ]
    size = case.weights[0].shape[1]
    return jnp.max(jnp.stack(errors)) <= tolerance("identity", case.scales.dtype, size=size)


def _rank_at_most_r(case: DeepFactorization) -> Array:
    values = singular_values(case.target)
    limit = tolerance("identity", values.dtype, size=len(case.target))
    return values[case.rank] <= limit * values[0]


HYPOTHESES = {
    "orthogonal_start": orthogonal_start,
    "rank_at_most_r": _rank_at_most_r,
    "all_entries_observed": lambda case: jnp.asarray(
        True if case.mask is None else jnp.all(case.mask == 1)
    ),
    "exact_gradient": lambda case: jnp.asarray(True if case.noise is None else case.noise == 0),
}


def toward_gaussian(
    key: Key[Array, ""], case: DeepFactorization, amount: Array
) -> DeepFactorization:
    """Move the start from orthogonal (0) to Gaussian (1), at the same norm."""
    dim, depth = case.target.shape[0], len(case.weights)
    gaussian = gaussian_layers(key, (dim,) * (depth + 1), case.scales)
    mixed = [(1 - amount) * W + amount * G for W, G in zip(case.weights, gaussian, strict=True)]
    weights = tuple(
        W * (scale * jnp.sqrt(1.0 * dim) / jnp.linalg.norm(W))
        for W, scale in zip(mixed, case.scales, strict=True)
    )
    return dataclasses.replace(case, weights=weights)


def add_tail(key: Key[Array, ""], case: DeepFactorization, amount: Array) -> DeepFactorization:
    """Add singular values beyond rank r: a Gaussian matrix of norm ``amount ||Phi||_F``."""
    tail = jax.random.normal(key, case.target.shape)
    tail *= jnp.linalg.norm(case.target) / jnp.linalg.norm(tail)
    return dataclasses.replace(case, target=case.target + amount * tail)


def add_noise(key: Key[Array, ""], case: DeepFactorization, amount: Array) -> DeepFactorization:
    """Add noise to every gradient; its norm is ``amount ||Phi||_F``."""
    spread = amount * jnp.linalg.norm(case.target) / case.target.shape[0]
    return dataclasses.replace(case, noise=spread, key=key)


def hide_entries(key: Key[Array, ""], case: DeepFactorization, amount: Array) -> DeepFactorization:
    """Hide the fraction ``amount`` of the entries of the target."""
    rows, columns = case.target.shape
    return dataclasses.replace(case, mask=observe(key, (rows, columns), 1 - amount))


# Where the breaks are plain to see: scale 1, so that the bulk moves and the gradient is large.
AT = {
    "dim": 16,
    "depth": 3,
    "rank": 2,
    "init_scale": 1.0,
    "init_spread": 1.0,
    "weight_decay": 0.0,
    "decay_spread": 1.0,
    "learning_rate": 0.1,
    "target_scale": 1.0,
    "steps": 50,
}

_SMALL = (1e-8, 1e-6, 1e-4, 1e-2, 0.1)


Move = Callable[[Key[Array, ""], PyTree, Array], PyTree]


def departures(
    claim: str,
    *,
    prefix: str = "",
    at: Mapping[str, Any] = AT,
    wrap: Callable[[Move], Move] = lambda m: m,
) -> tuple[Control, ...]:
    """Controls that leave the hypotheses by degrees.

    Args:
        claim: id of the claim that must then fail.
        prefix: of the ids of the controls.
        at: settings under which the failure must show.
        wrap: turns a move of a :class:`DeepFactorization` into one of the caller's case.

    Returns:
        The controls.
    """
    wide, entries = (*_SMALL, 1.0), (0.004, 0.02, 0.1, 0.3, 0.5)
    return tuple(
        Control(
            prefix + name,
            text,
            claim,
            case=wrap(move),
            at=at,
            amount=amounts[-1],
            amounts=amounts,
            amount_label=label,
        )
        for name, text, move, amounts, label in (
            ("gaussian_start", "Gaussian start", toward_gaussian, wide, "0 orthogonal, 1 Gaussian"),
            ("rank_above_r", "tail beyond rank r", add_tail, wide, "||tail|| / ||Phi||"),
            ("noisy_gradient", "noisy gradients", add_noise, wide, "||noise|| / ||Phi||"),
            ("masked_loss", "hidden entries", hide_entries, entries, "fraction of entries hidden"),
        )
    )


RUN: dict[str, Any] = {"steps": "steps", "condition": "condition", "diverged": "diverged_at"}
"""Names by which the statements about runs are judged."""


def weight_scale(one: Outcome) -> float:
    """Scale of whatever is compared with a weight: the largest singular value that occurs."""
    return float(np.max(one.measured["singular_values"]))


def of_weights(*names: str) -> dict[str, Any]:
    """How arrays of weights are judged: predicted against measured on the scale of the weights."""

    def residual(one: Outcome) -> float:
        scale = weight_scale(one)
        apart = [relative_difference(one.predicted[n], one.measured[n], scale) for n in names]
        return float(np.max(apart))

    return {"residual": residual, "reads": (*names, "singular_values")}


def vanishes(name: str) -> dict[str, Any]:
    """How something that should be zero is judged, on the scale of the weights."""
    return {
        "residual": lambda one: np.max(one.measured[name]) / weight_scale(one),
        "reads": (name, "singular_values"),
    }


def first_shapes(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a side statement: all but dimension and rank, which the main one sweeps."""
    return settings | {name: settings[name][:1] for name in ("dim", "rank")}
