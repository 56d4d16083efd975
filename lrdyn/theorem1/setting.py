"""What the scenarios of Theorem 1 share: flags, targets, and what claims ask of a run."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lrdyn.core.factorization import Weights
from lrdyn.core.initialization import gaussians, orthogonal
from lrdyn.core.spectra import half_of_the_digits, singular_values
from lrdyn.shared_flags import (
    DEPTH,
    INIT_SCALE,
    LEARNING_RATE,
    RANK,
    STEPS,
    TARGET_CONDITION,
    TARGET_SCALE,
    WEIGHT_DECAY,
)
from lrdyn.theorem1 import rest_points
from lrdyn.theorem2.setting import target_values
from lrdyn.verification.stating.claims import ROUNDING_SAFETY, MoreSteps, tolerance
from lrdyn.verification.stating.flags import Domain, Flag, at_least, between
from lrdyn.verification.stating.statement import Outcome

SCALE = between(1e-6, 1e6)
"""Scales of a target: the search for critical points squares gradients, and the square of the last
digit of one, ``(eps sigma^{3/2})^2``, is no number of float32 from sigma = 1e-8 on."""

FLAGS = (
    Flag("rows", (6,), at_least(1), int, "k", "rows of the target Phi", (6,), shapes=True, most=7),
    Flag(
        "cols",
        (4,),
        at_least(1),
        int,
        "d",
        "columns of the target Phi",
        (4, 8),
        shapes=True,
        most=7,
    ),
    RANK.at((2,), paper=(1, 2, 4), help="width of the hidden layers"),
    DEPTH.at((2, 3), paper=(2, 3, 4)),
    WEIGHT_DECAY.at((0.0, 0.1, 0.92), paper=(0.0, 0.03, 0.1, 0.2, 0.35, 0.7, 0.92)),
    INIT_SCALE.at(
        (0.3, 1.0),
        paper=(0.1, 0.3, 1.0),
        help="init scale: Gaussian layers, entries of variance eps^2 / longer side",
    ),
    Flag(
        "rank_deficit",
        quick=(0, 2),
        paper=(0, 2, 3),
        domain=at_least(0),
        type=int,
        symbol="min(k, d) - rank Phi",
        help="so many of the smallest singular values of the target are 0",
    ),
    Flag(
        "tie",
        quick=(0, 1),
        domain=Domain(0, 1, integer=True),
        type=int,
        help="1: a target with sigma_{r+1} = sigma_r",
    ),
    LEARNING_RATE.at((0.2,)),
    TARGET_SCALE.at((1.0,), domain=SCALE),
    TARGET_CONDITION.at(
        (2.0,),
        symbol="sigma_1 / sigma_min(k,d)",
        help="largest over smallest singular value of Phi, before --rank-deficit and --tie; "
        "1: all are equal",
    ),
    STEPS.at((4000,), paper=(10_000,)),
)


def draw_target(
    key: Key[Array, ""],
    rows: int,
    cols: int,
    others: list[tuple[int, int]],
    *,
    rank: int,
    rank_deficit: Any,
    tie: Any,
    target_scale: Any,
    target_condition: Any = 2.0,
) -> tuple[Float[Array, "k d"], list[Array]]:
    """Target with spaced singular values, some zero, perhaps ``sigma_{r+1} = sigma_r``.

    Gaussian matrices of the other shapes come out of the same draw, for a draw of its own takes as
    long to compile as the descent.
    """
    count = min(rows, cols)
    left, right, *rest = gaussians(key, [(rows, count), (count, cols), *others])
    values, place = target_values(count, target_scale, target_condition), np.arange(count)
    # Zeros first: they would undo a tie.
    values = jnp.where(place < count - rank_deficit, values, 0.0)
    values = jnp.where((place == rank) & (tie == 1), values[rank - 1], values)
    return (orthogonal(left) * values[None, :]) @ orthogonal(right), rest


def prepare(settings: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Leave out default deficits that small targets have no room for."""
    room = min(settings["rows"] + settings["cols"])
    fitting = tuple(d for d in settings["rank_deficit"] if d < room)
    # A deficit that was asked for is kept, and refused by `check`.
    return settings if "rank_deficit" in given else settings | {"rank_deficit": fitting}


def check(point: Mapping[str, Any]) -> None:
    """Refuse combinations outside the theorem."""
    rows, cols = point["rows"], point["cols"]
    sizes = f"with k = {rows} and d = {cols}"
    if point["rank"] > min(rows, cols):
        raise ValueError(f"--rank: got {point['rank']} {sizes}, wanted r <= min(k, d)")
    if point["rank_deficit"] >= min(rows, cols):
        raise ValueError(
            f"--rank-deficit: got {point['rank_deficit']} {sizes}, wanted less than min(k, d)"
        )


def numbers(point: Mapping[str, Any]) -> int:
    """Numbers of a case: target, product and its gradient, factors of their singular values."""
    return 3 * (point["rows"] + point["rank"]) * (point["cols"] + point["rank"])


# What the claims ask of a run -------------------------------------------------------------------

FEW = 64
"""Units in the last place below which a gradient is rounding. The distance that such a gradient
leaves does not grow with the steps before it, so that a claim about a point of rest has the
tolerance of so many steps."""


def start_fields(
    weights: Weights, left: Float[Array, "k n"], right: Float[Array, "n d"]
) -> tuple[Float[Array, "n r"], Float[Array, "r r"], Float[Array, "r r"]]:
    """The fields of :class:`lrdyn.theorem1.Start`, from the singular vectors of the target."""
    first, last = weights[0], weights[-1]
    return (left.T @ last + right @ first.T) / 2, first @ first.T, last.T @ last


def tie_distance(outcome: Outcome, largest: Any) -> float:
    """Distance from which singular values are told apart: half of all digits."""
    return half_of_the_digits(outcome.dtype) * abs(float(largest))


def nearness(outcome: Outcome) -> float:
    """Distance from its end, relative to the scale of a claim, at which a run has arrived."""
    # Without the factor that covers many entries and cases: what a run still has to go is then a
    # part of what its rounding may leave.
    rounding = tolerance("identity", outcome.dtype, steps=outcome.steps, size=outcome.size)
    return rounding / ROUNDING_SAFETY


def is_at_rest(outcome: Outcome, distance: Any, scale: float) -> Any:
    """Whether a gradient, or a distance bounded by it, is round-off alone.

    A distance that a run still has to go would not shrink with machine epsilon, and an identity
    would be taken for false.
    """
    least = min(nearness(outcome), FEW * float(np.finfo(outcome.dtype).eps))
    return distance <= least * scale


def rest_condition(
    target: Float[Array, "k d"], rank: int, decay: Array, depth: int
) -> Float[Array, ""]:
    """Condition of a point of rest: by how much its distance exceeds a gradient that is rounding.

    It is 1 for two layers, of which no claim is about a point of rest.
    """
    if depth == 2:
        return jnp.ones((), target.dtype)
    smallest = FEW * float(jnp.finfo(target.dtype).eps)
    rows, cols = target.shape
    values = singular_values(target)
    return rest_points.rest_condition(values, rank, (rows, cols), decay, depth, smallest)


def too_few_steps(outcome: Outcome, number: float) -> str:
    """Why a run need not be at its end yet; nothing if it has the steps that theory asks for."""
    if np.isinf(number):
        return "no curvature"
    return "" if outcome.steps >= number else MoreSteps(number, flag="steps")
